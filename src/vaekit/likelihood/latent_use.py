"""How a model uses its latents (active units, KL per dimension, mixture components), and warnings during training."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, kl_divergence

from ..data import EvalSplit
from ..model.build import numbers_per_image
from ..model.conditions import Quadrants
from ..model.distributions import Deterministic, GaussianMixture
from ..model.graph import VAE, Latent, Values
from ..model.pixels import SCALE_FLOOR, MaskedPixels
from ..settings.model import ClusterConfig, ModelConfig
from ..settings.training import TrainConfig
from ..support.devices import eval_mode, seeded

# A latent dimension is active if its posterior mean has a larger variance over images (Burda et al. 2016, section 5.2).
ACTIVE_VARIANCE = 0.01
# A component of a mixture is used if it has more than this fraction of an equal share of the images.
USED_SHARE = 0.01
MAX_IMAGES = 1000
MAX_NUMBERS = 2**20  # per batch: images x components x dimensions, and decoder outputs
SEED = 2
SILENT_STEPS = 200  # without warnings, at the start of a training
# Keys of metrics.jsonl that differ from the names here: files of all versions have the same keys.
KEYS = {"effective_components": "components_told_apart"}


@dataclass(frozen=True)
class LatentUse:
    """How a model uses its latents, and its pixel scales; None where a value does not apply.

    `kl_per_dimension`: nats by latent whose prior factorises, so that they add up to its KL, by one sample per image;
    `marginal_kl_per_dimension`: the same of mixtures, to their marginal in each dimension, which does not add up.
    `kl_per_latent` and `active_per_latent`: KL, nats, and active units by latent of a deep hierarchy, whose thousands
    of dimensions are not listed. `kl_parts`: nats, of a model with clusters, see `kl_parts`. `components_used`: of the
    prior's mixture, with more than USED_SHARE. `effective_components`: exp of the mutual information between image and
    component: K where the images divide equally among K distinct components, 1 where all components coincide.
    `share_at_floor`: the share of Gaussian pixels with the smallest scale.
    """

    active_units: int | None
    latent_units: int
    kl_per_dimension: dict[str, list[float]] | None
    components_used: int | None
    effective_components: float | None
    components: int | None
    share_at_floor: float | None
    # Written to metrics.jsonl only where they apply.
    marginal_kl_per_dimension: dict[str, list[float]] | None = None
    kl_parts: dict[str, float] | None = None
    kl_per_latent: dict[str, float] | None = None
    active_per_latent: dict[str, int] | None = None


@torch.no_grad()
def measure_latent_use(model: VAE, images: EvalSplit) -> LatentUse:
    """The latent use of a model on some hundreds of images; with one image, active units are None."""
    means: dict[str, list[Tensor]] = {name: [] for name in model.prior}
    kls: dict[str, Tensor] = {}
    marginal_kls: dict[str, Tensor] = {}
    totals = dict.fromkeys(model.prior, 0.0)  # KL by latent
    parts: dict[str, Tensor] = {}
    shares: Tensor | None = None  # of the components, (K,)
    entropy = 0.0  # of p(component | image), a mean over images
    at_floor: Tensor | None = None
    size, grouped = batch_size(model), lists_groups(model)
    with eval_mode(model), seeded(SEED, images.device):
        for start in range(0, len(images), size):
            batch = images[start : start + size]
            fraction = len(batch) / len(images)
            values = model.given(batch.images, batch.labels)
            # Given the means of the latents above: with samples of them, noise would count as activity.
            for name, q in model.posteriors({**values}).items():
                means[name].append(q.mean)
            latents = model.infer(values, (len(batch),))
            if isinstance(model.blueprint.settings, ClusterConfig):
                for name, part in kl_parts(latents).items():
                    parts[name] = parts.get(name, 0) + fraction * part.mean()
            for name, latent in latents.items():
                if grouped:
                    totals[name] += fraction * float(latent.kl.mean())
                else:
                    mixture = isinstance(latent.prior, GaussianMixture)
                    of_kind = marginal_kls if mixture else kls
                    of_kind[name] = of_kind.get(name, 0) + fraction * kl_per_dimension(latent)
                if isinstance(latent.prior, GaussianMixture):
                    log_r = latent.prior.log_responsibilities(latent.z)
                    r = log_r.exp()
                    shares = fraction * r.mean(0) + (0 if shares is None else shares)
                    entropy -= fraction * float((r * log_r).sum(-1).mean())
            if model.blueprint.settings.likelihood == "gaussian":
                scale = pixel_scales(model, model.decoder(values))
                low = fraction * (scale < 1.01 * SCALE_FLOOR).float().mean()
                at_floor = low if at_floor is None else at_floor + low
    variances = {name: torch.cat(parts).var(0, correction=0) for name, parts in means.items()}
    active = {name: int((v > ACTIVE_VARIANCE).sum()) for name, v in variances.items()}
    return LatentUse(
        active_units=sum(active.values()) if len(images) > 1 else None,
        latent_units=sum(map(len, variances.values())),
        kl_per_dimension=known_lists(kls),
        kl_per_latent=totals if grouped else None,
        active_per_latent=active if grouped and len(images) > 1 else None,
        marginal_kl_per_dimension=known_lists(marginal_kls),
        kl_parts={name: float(part) for name, part in parts.items()} or None,
        # With fewer images some components would have none by chance.
        components_used=None
        if shares is None or len(images) < 2 * len(shares)
        else int((shares * len(shares) > USED_SHARE).sum()),
        effective_components=None if shares is None else effective_components(shares, entropy),
        components=None if shares is None else len(shares),
        share_at_floor=None if at_floor is None else float(at_floor),
    )


def pixel_scales(model: VAE, likelihood: Any) -> Tensor:
    """The scales of Gaussian pixels, (..., C H W), of which a model that completes images has only the hidden ones."""
    pixels: Any = likelihood.pixels if isinstance(likelihood, MaskedPixels) else likelihood
    scale: Tensor = pixels.base_dist.scale
    if isinstance(model.condition, Quadrants):
        return scale[..., (model.condition.mask == 0).expand(scale.shape[-3:])]
    return scale.flatten(-3)


def known_lists(values: Mapping[str, Tensor]) -> dict[str, list[float]] | None:
    """The values without NaN, as lists; None where there are none."""
    return {name: v.tolist() for name, v in values.items() if not v.isnan().any()} or None


def kl_parts(latents: Mapping[str, Latent]) -> dict[str, Tensor]:
    """The parts that add up to the KL of a model with clusters, nats, (B,): `conditional_prior` log q(z | x) -
    E_r[log p(z | w, cluster)], `w` KL(q(w | x) || p(w)) and `cluster` KL(r || p(cluster)), with r = p(cluster | z, w).
    Dilokthanakul et al. 2016, eq. 5."""
    z = latents["z"]
    cluster = z.cluster_kl
    assert isinstance(cluster, Tensor)
    return {"conditional_prior": z.kl - cluster, "w": latents["w"].kl, "cluster": cluster}


def effective_components(shares: Tensor, entropy: float) -> float:
    """exp(H(component) - H(component | image)), from the components' shares (K,) and the second entropy, nats."""
    return math.exp(float(torch.special.entr(shares).sum()) - entropy)


def batch_size(model: VAE) -> int:
    """How many images to process at once."""
    settings = model.blueprint.settings
    components = settings.mixture_size if settings.prior != "standard" else 1
    components = settings.clusters if isinstance(settings, ClusterConfig) else components
    largest = max(components * settings.latent_dim, numbers_per_image(model.blueprint))
    return max(1, min(MAX_IMAGES, MAX_NUMBERS // largest))


def lists_groups(model: VAE) -> bool:
    """Whether numbers are given by latent rather than by dimension, since there are too many dimensions to read."""
    return bool(model.blueprint.settings.top_groups(model.blueprint.shape))


def code_latents(model: VAE) -> list[str]:
    """The latents that stand for the code of an image: all, or the top groups of a deep hierarchy; the first ones."""
    return [*model.blueprint.settings.top_groups(model.blueprint.shape)] or [*model.prior]


def code_posteriors(model: VAE, values: Values) -> dict[str, Distribution]:
    """The posteriors of `code_latents`, given the means of the latents before them, which are added to `values`."""
    return model.posteriors(values, len(code_latents(model)))


def kl_per_dimension(latent: Latent) -> Tensor:
    """KL(q(z_d | x) || p(z_d)) per dimension, a mean over the batch: (D,), nats.

    In closed form where torch has one, else from the one sample. NaN for a posterior without a density, and where the
    marginals of q or p are unknown.
    """
    q, p, z = latent.posterior, latent.prior, latent.z
    unknown = z.new_full(z.shape[-1:], torch.nan)
    if not isinstance(q, Independent) or isinstance(q.base_dist, Deterministic):
        return unknown
    if isinstance(p, GaussianMixture):  # its marginals are mixtures too
        parts = torch.distributions.Normal(p.loc, p.scale, validate_args=False)
        log_p = (p.logits[..., None] + parts.log_prob(z[..., None, :])).logsumexp(-2)
        kl = q.base_dist.log_prob(z) - log_p
    elif isinstance(p, Independent):
        try:
            kl = kl_divergence(q.base_dist, p.base_dist)
        except NotImplementedError:
            kl = q.base_dist.log_prob(z) - p.base_dist.log_prob(z)
    else:
        return unknown
    return kl.flatten(0, -2).mean(0)


class LatentWarnings:
    """Warnings during a training, each with a remedy and given once."""

    def __init__(self, settings: ModelConfig, config: TrainConfig, steps: int) -> None:
        """`steps`: per epoch."""
        self.settings, self.config, self.steps = settings, config, steps
        self.given: set[str] = set()
        self.most_active = 0

    def check(self, epoch: int, kl: float, use: LatentUse) -> list[str]:
        """The new warnings of an epoch with this validation KL (NaN where there is none); none within SILENT_STEPS or
        before all warm-ups have ended."""
        if epoch * self.steps < SILENT_STEPS or epoch < self.config.warmup:
            return []
        new = {key: text for key, text in self.conditions(kl, use) if key not in self.given}
        self.most_active = max(self.most_active, use.active_units or 0)
        self.given.update(new)
        return list(new.values())

    def replay(self, line: Mapping[str, Any]) -> None:
        """Check an earlier epoch of a resumed training, a line of metrics.jsonl."""
        if "latent_units" not in line:
            return
        keys = {f.name: KEYS.get(f.name, f.name) for f in fields(LatentUse)}
        use = LatentUse(**{name: line[key] for name, key in keys.items() if key in line})
        kl = line["validation_kl"]
        self.check(line["epoch"], math.nan if kl is None else kl, use)

    def conditions(self, kl: float, use: LatentUse) -> Iterator[tuple[str, str]]:
        """The warnings that hold, by key."""
        settings, active, units = self.settings, use.active_units, use.latent_units
        kl_warmup = f"--kl-warmup {max(10, 2 * (self.config.kl_warmup or 0)):g}"  # not the one that is there
        if active == 0 or kl < 0.1:
            kl_text = "" if math.isnan(kl) else f"the KL is {max(kl, 0):.2f} nats and "
            count_text = "few" if active is None else active
            remedy = (
                f"{kl_warmup}, a smaller --beta where it is above 1, or a smaller --learning-rate"
            )
            if settings.posterior == "deterministic":
                remedy = "a smaller --mmd-weight or --learning-rate"
            yield (
                "collapse",
                f"posterior collapse: {kl_text}{count_text} of {units} dimensions are active, so all reconstructions "
                f"look alike; try {remedy}",
            )
        elif active is not None and self.most_active >= 4 and active <= self.most_active / 2:
            yield (
                "falling",
                f"active units fell from {self.most_active} to {active} of {units}; if the ELBO falls too, try "
                f"{kl_warmup} or a smaller --learning-rate",
            )
        if use.components is not None and use.components_used is not None:
            used, count = use.components_used, use.components
            unused = f"{count - used} of {count} get under {USED_SHARE:.0%} of an equal share of the images"
            if settings.prior == "vampprior" and used < count / 2:
                yield (
                    "components",
                    f"dead pseudo-inputs: {unused}; --components {used} is as good, and faster",
                )
            elif isinstance(settings, ClusterConfig) and used < count:
                yield (
                    "components",
                    f"merged clusters: {unused}; try more --start-epochs, or --clusters {max(2, used)}",
                )
            elif (
                isinstance(settings, ClusterConfig)
                and (use.effective_components or count) < count / 2
            ):
                yield (
                    "components",
                    f"merged clusters: the effective number is {use.effective_components:.1f} of {count}; try more "
                    "--start-epochs or a longer --kl-warmup",
                )
        if use.share_at_floor is not None and use.share_at_floor > 0.1:
            shared = ", or --scale shared" if settings.scale == "each" else ""
            yield (
                "floor",
                f"{use.share_at_floor:.0%} of the pixels have the smallest scale allowed, 1/256: the likelihood "
                f"measures that floor rather than the images; try --likelihood logistic{shared}",
            )


def metrics_record(use: LatentUse, warnings: list[str]) -> dict[str, Any]:
    """The fields of metrics.jsonl for the latent use and the warnings."""
    values = {KEYS.get(name, name): value for name, value in asdict(use).items()}
    for name in ("marginal_kl_per_dimension", "kl_parts", "kl_per_latent", "active_per_latent"):
        if values[name] is None:
            del values[name]
    return {**values, "warnings": warnings}
