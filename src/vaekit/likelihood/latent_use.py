"""How a model uses its latents, measured after each epoch on some validation images, and warnings with a remedy."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Independent, kl_divergence

from ..data import Frozen
from ..model.build import decoded_numbers
from ..model.distributions import Deterministic, GaussianMixture
from ..model.graph import VAE, Latent
from ..model.pixels import SCALE_FLOOR
from ..settings.model import ClusterConfig, ModelConfig
from ..settings.training import TrainConfig
from ..support.devices import evaluating, seeded

# A latent dimension is active if its posterior mean varies over images by more (Burda et al. 2016, section 5.2).
ACTIVE_VARIANCE = 0.01
# A component of a mixture is used if it has this part of an equal share of the images.
USED_PART = 0.01
IMAGES = 1000
NUMBERS = 2**20  # at once: of images x components x dimensions, and of what is decoded
SEED = 2
FIRST_STEPS = 200  # in which nothing is said


@dataclass(frozen=True)
class Health:
    """`kl_per_dimension`: nats by latent, from one draw an image, null where there is no density; against the
    prior's marginal in each dimension, so that the sum is the KL only where the prior factorises.
    `components_used`: of the prior's mixture; `components_told_apart`: exp of the mutual information between image and
    component, so K where each image has one of K equally large components for its own, 1 where all lie upon another.
    `share_at_floor`: of Gaussian pixels, whose scale is the smallest.
    """

    active_units: int | None
    latent_units: int
    kl_per_dimension: dict[str, list[float]] | None
    components_used: int | None
    components_told_apart: float | None
    components: int | None
    share_at_floor: float | None


@torch.no_grad()
def examine(model: VAE, images: Frozen) -> Health:
    """The health of a model on images, some hundreds; one alone says nothing of active units, which are then None."""
    means: list[Tensor] = []
    kls: dict[str, Tensor] = {}
    use: Tensor | None = None
    entropy = 0.0  # of p(component | image), a mean over images
    at_floor: Tensor | None = None
    size = batch_size(model)
    with evaluating(model), seeded(SEED, images.device):
        for start in range(0, len(images), size):
            batch = images[start : start + size]
            share = len(batch) / len(images)
            values = model.given(batch.images, batch.labels)
            # At the means of the latents above: at draws of them, noise would count as activity.
            centres = model.posteriors({**values}).values()
            means.append(torch.cat([q.mean for q in centres], dim=-1))
            latents = model.infer(values, (len(batch),))
            for name, latent in latents.items():
                kls[name] = kls.get(name, 0) + share * kl_per_dimension(latent)
                if isinstance(latent.prior, GaussianMixture):
                    log_r = latent.prior.log_responsibilities(latent.z)
                    weights = log_r.exp().mean(0)
                    use = share * weights if use is None else use + share * weights
                    entropy -= share * float((log_r.exp() * log_r).sum(-1).mean())
            if model.blueprint.settings.likelihood == "gaussian":
                scale = model.decoder(values).base_dist.scale
                low = share * (scale < 1.01 * SCALE_FLOOR).float().mean()
                at_floor = low if at_floor is None else at_floor + low
    spread = torch.cat(means).var(0, correction=0)
    known = {name: kl.tolist() for name, kl in kls.items() if not kl.isnan().any()}
    return Health(
        active_units=int((spread > ACTIVE_VARIANCE).sum()) if len(images) > 1 else None,
        latent_units=len(spread),
        kl_per_dimension=known or None,
        # Of fewer images some components would have none by chance.
        components_used=None
        if use is None or len(images) < 2 * len(use)
        else int((use * len(use) > USED_PART).sum()),
        components_told_apart=None if use is None else told_apart(use, entropy),
        components=None if use is None else len(use),
        share_at_floor=None if at_floor is None else float(at_floor),
    )


def told_apart(use: Tensor, entropy: float) -> float:
    """exp(H(component) - H(component | image)), of shares `use` (K,) and the second entropy, nats."""
    return math.exp(float(torch.special.entr(use).sum()) - entropy)


def batch_size(model: VAE) -> int:
    """How many images at once."""
    settings = model.blueprint.settings
    components = settings.mixture_size if settings.prior != "standard" else 1
    components = settings.clusters if isinstance(settings, ClusterConfig) else components
    largest = max(components * settings.latent_dim, decoded_numbers(model.blueprint))
    return max(1, min(IMAGES, NUMBERS // largest))


def kl_per_dimension(latent: Latent) -> Tensor:
    """KL(q(z_d | x) || p(z_d)) of each dimension, a mean over the batch: (D,), nats.

    In closed form where torch has one, else from the one draw. NaN of a posterior without a density, and where q or p
    has no marginals that are known.
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


class Warnings:
    """What is wrong with a training and what to do, each said once."""

    def __init__(self, settings: ModelConfig, config: TrainConfig, steps: int) -> None:
        """`steps`: of an epoch."""
        self.settings, self.config, self.steps = settings, config, steps
        self.said: set[str] = set()
        self.most_active = 0

    def new(self, epoch: int, kl: float, health: Health) -> list[str]:
        """The warnings that an epoch gives rise to, `kl` its validation KL (NaN where there is none); none at the very
        start, nor before all warm-ups have ended."""
        if epoch * self.steps < FIRST_STEPS or epoch < self.config.warmup:
            return []
        new = {key: text for key, text in self.found(kl, health) if key not in self.said}
        self.most_active = max(self.most_active, health.active_units or 0)
        self.said.update(new)
        return list(new.values())

    def remember(self, line: Mapping[str, Any]) -> None:
        """Take in an epoch as metrics.jsonl has it, of a training that goes on."""
        if "latent_units" in line:
            health = Health(**{field.name: line[field.name] for field in fields(Health)})
            kl = line["validation_kl"]
            self.new(line["epoch"], math.nan if kl is None else kl, health)

    def found(self, kl: float, health: Health) -> Iterator[tuple[str, str]]:
        settings, active, units = self.settings, health.active_units, health.latent_units
        if active == 0 or kl < 0.1:
            carried = "" if math.isnan(kl) else f"the latents carry {max(kl, 0):.2f} nats and "
            shown = "few" if active is None else active
            remedy = (
                "--kl-warmup 10, a smaller --beta where it is above 1, or a smaller --learning-rate"
            )
            if settings.posterior == "deterministic":
                remedy = "a smaller --mmd-weight or --learning-rate"
            yield (
                "collapse",
                f"posterior collapse: {carried}{shown} of {units} dimensions are active, so that all images are "
                f"redrawn alike; try {remedy}",
            )
        elif active is not None and self.most_active >= 4 and active <= self.most_active / 2:
            yield (
                "falling",
                f"active units fell from {self.most_active} to {active} of {units}; if the ELBO falls too, try "
                "--kl-warmup 10 or a smaller --learning-rate",
            )
        if health.components is not None and health.components_used is not None:
            used, count = health.components_used, health.components
            unused = f"{count - used} of {count} get under {USED_PART:.0%} of an equal share of the images"
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
                and (health.components_told_apart or count) < count / 2
            ):
                yield (
                    "components",
                    f"merged clusters: of {count} no more than {health.components_told_apart:.1f} can be told apart; "
                    "try more --start-epochs or a longer --kl-warmup",
                )
        if health.share_at_floor is not None and health.share_at_floor > 0.1:
            yield (
                "floor",
                f"{health.share_at_floor:.0%} of the pixels have the smallest scale allowed, 1/256: the likelihood "
                "measures that floor rather than the images; try --likelihood logistic, or --scale shared",
            )


def record(health: Health, warnings: list[str]) -> dict[str, Any]:
    """What metrics.jsonl keeps of both."""
    return {**asdict(health), "warnings": warnings}
