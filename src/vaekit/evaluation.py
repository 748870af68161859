"""One call measures a trained model on a split: ELBO, importance-weighted NLL, bits/dim, active units."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .checks import require, require_count, require_seed
from .compute import fast_float32, find_device, seeded
from .conditions import Quadrants
from .config import DISCRETE
from .data import Dataset, Frozen, freeze, load_again
from .data.dataset import choose_split
from .health import ACTIVE_VARIANCE
from .models import decoded_numbers, load
from .pixels import SCALE_FLOOR
from .progress import Shown
from .runs import Run, write_json
from .vae import VAE

if TYPE_CHECKING:
    from rich.table import Table

ELBO_SAMPLES = 10
TIME_BUDGET = 120.0
# Images x samples decoded at once are bounded by the numbers that the decoder gives: 8 MB in float32.
CHUNK_NUMBERS = 2**21


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` measures. Likelihoods in nats per image, means over images.

    `nll` is -log 1/S sum_s w_s with S = `samples`; in expectation an upper bound of -log p(x) (Burda et al. 2016).
    `nll_standard_error` is what other draws of the same size would change (delta method);
    `nll_image_standard_error` is what other test images would (spread over images / sqrt(images)).
    Both, and `active_units`, are null where one draw or one image cannot say. ELBO, KL and NLL are null where the
    posterior is one point, which has no density. Of a model of hidden pixels, all likelihoods are of these alone.
    `minimum_scale` and `share_at_floor` (of pixels) are of Gaussian pixels, whose density grows as scales shrink.
    """

    elbo: float | None
    log_likelihood: float
    kl: float | None
    nll: float | None
    nll_standard_error: float | None
    nll_image_standard_error: float | None
    bits_per_dim: float | None
    active_units: int | None
    latent_units: int
    minimum_scale: float | None
    share_at_floor: float | None
    samples: int
    split: str
    images: int
    nll_images: int
    likelihood: str
    binarisation: str
    seed: int
    seconds: float


def evaluate(
    run: Run | str | Path,
    split: str = "test",
    samples: int = 1000,
    limit: int | None = None,
    seed: int = 0,
    data: Dataset | None = None,
    data_dir: str | Path | None = None,
    device: str = "auto",
    progress: bool = False,
) -> dict[str, Any]:
    """Measure a run on a split; the fields of Evaluation, also written to RUN/evaluation.json.

    `samples` draws an image give the NLL. `limit` takes that many images, chosen by `seed`. Without it the ELBO is
    of all images, and the NLL of as many, chosen by `seed`, as take two minutes here. `data` stands in for loading
    the run's data set by its name. Raises UserError for a missing or damaged run, another data set, bad numbers.
    """
    require_count("samples", samples)
    if limit is not None:
        require_count("limit", limit)
    require_seed(seed)
    run, where = Run.of(run), find_device(device)
    model = load(run).to(where)
    images, binarisation = evaluation_images(run, split, data, data_dir), run.data.binarisation
    count = len(images) if limit is None else min(limit, len(images))
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(images))[:count])
    chosen = images.take(order).to(where)

    settings = model.blueprint.settings
    dense = settings.posterior != "deterministic"
    discrete = settings.likelihood in DISCRETE or binarisation != "none"
    likelihoods: dict[str, Any] = dict.fromkeys(
        ("nll", "nll_standard_error", "nll_image_standard_error", "bits_per_dim")
    )

    started = time.perf_counter()
    shown = Shown(progress)
    with torch.no_grad(), seeded(seed, where), fast_float32(where):
        elbo_images, nll_images = (
            affordable(model, chosen, samples, limit is not None, shown) if dense else (count, 0)
        )
        bound = measure_elbo(
            model, chosen.take(torch.arange(elbo_images)), min(samples, ELBO_SAMPLES), shown
        )
        if dense:
            log_sums = measure_nll(model, chosen.take(torch.arange(nll_images)), samples, shown)
            likelihoods = measured_nll(
                log_sums, samples, random_pixels(model) if discrete else None
            )
    elbo = None if bound.kl is None else bound.log_likelihood - bound.kl
    require(
        all(map(math.isfinite, (bound.log_likelihood, elbo or 0.0, likelihoods["nll"] or 0.0))),
        f"the likelihoods of {run} are not finite: its training diverged, or its weights are damaged",
    )
    evaluation = asdict(
        Evaluation(
            **asdict(bound),
            **likelihoods,
            elbo=elbo,
            samples=samples,
            split=split,
            images=elbo_images,
            nll_images=nll_images,
            likelihood=settings.likelihood,
            binarisation=binarisation,
            seed=seed,
            seconds=time.perf_counter() - started,
        )
    )
    write_json(run.path / "evaluation.json", evaluation)
    return evaluation


def evaluation_images(
    run: Run, split: str, data: Dataset | None, data_dir: str | Path | None
) -> Frozen:
    """The frozen images of a split of the run's data set, whose files or folder may now be at `data_dir`."""
    recorded = run.data
    if data is None:
        data = load_again(run.source, data_dir, str(run))
    require(
        data.sha256() == recorded.sha256,
        f"the data set {data.name!r} found here is not the one {run} was trained on (its hash differs)",
    )
    return freeze(choose_split(data, split), recorded.binarisation)


def chunked(model: VAE, images: Frozen, samples: int) -> list[slice]:
    """Chunks of the images to decode `samples` times at once."""
    size = max(1, CHUNK_NUMBERS // decoded_numbers(model.blueprint) // samples)
    return [slice(start, start + size) for start in range(0, len(images), size)]


@dataclass(frozen=True)
class Bound:
    """What `measure_elbo` finds; the fields are those of Evaluation."""

    log_likelihood: float
    kl: float | None
    active_units: int | None
    latent_units: int
    minimum_scale: float | None
    share_at_floor: float | None


def measure_elbo(model: VAE, images: Frozen, samples: int, shown: Shown) -> Bound:
    """ELBO parts, the likelihood averaged over `samples` draws, and the active units."""
    totals = torch.zeros(2, dtype=torch.float64)
    means: list[Tensor] = []
    scales = []
    settings = model.blueprint.settings
    gaussian = settings.likelihood == "gaussian"
    for chunk in shown.track(chunked(model, images, samples), "ELBO"):
        batch = images[chunk]
        inference, size = model(batch.images, batch.labels, samples=(samples,)), len(batch)
        parts = inference.log_likelihood.mean() * size, inference.kl.mean() * size
        totals += torch.stack(parts).cpu().double()
        latents = inference.latents.values()
        # Below another latent a posterior differs between draws: their average is the image's.
        centers = (
            q.mean if q.mean.ndim == 2 else q.mean.mean(0) for q in (v.posterior for v in latents)
        )
        means.append(torch.cat(tuple(centers), dim=-1).cpu())
        if gaussian:
            scale = inference.likelihood.base_dist.scale
            if isinstance(model.condition, Quadrants):
                scale = scale[..., (model.condition.mask == 0).expand(scale.shape[-3:])]
            at_floor = (scale < 1.01 * SCALE_FLOOR).float().mean() * size
            scales.append(torch.stack([scale.min(), at_floor]).cpu())
    log_likelihood, kl = (totals / len(images)).tolist()
    spread = torch.cat(means).var(0, correction=0)
    return Bound(
        log_likelihood,
        None if settings.posterior == "deterministic" else kl,
        active_units=int((spread > ACTIVE_VARIANCE).sum()) if len(images) > 1 else None,
        latent_units=len(spread),
        minimum_scale=float(torch.stack(scales)[:, 0].min()) if gaussian else None,
        share_at_floor=float(torch.stack(scales)[:, 1].sum()) / len(images) if gaussian else None,
    )


def measure_nll(model: VAE, images: Frozen, samples: int, shown: Shown) -> Tensor:
    """log sum_s w_s and log sum_s w_s^2 of every image: (2, N), float64."""
    # A chunk holds several images, or a part of one image's samples; parts meet in a running log-sum-exp.
    parts = split_evenly(samples, max(1, CHUNK_NUMBERS // decoded_numbers(model.blueprint)))
    sums = []
    for chunk in shown.track(chunked(model, images, samples), "NLL"):
        batch = images[chunk]
        total = torch.full((2, len(batch)), -math.inf, dtype=torch.float64)
        for part in parts:
            log_weight = (
                model(batch.images, batch.labels, samples=(part,)).log_weight.cpu().double()
            )
            both = torch.stack([log_weight.logsumexp(0), (2 * log_weight).logsumexp(0)])
            total = torch.logaddexp(total, both)
        sums.append(total)
    return torch.cat(sums, dim=1)


def measured_nll(log_sums: Tensor, samples: int, pixels: int | None) -> dict[str, Any]:
    """The NLL with its errors, and per pixel in bits where `pixels` are discrete, from what `measure_nll` found."""
    nll = -(log_sums[0] - math.log(samples))
    mean, count = float(nll.mean()), len(nll)
    return {
        "nll": mean,
        "nll_standard_error": monte_carlo_error(log_sums, samples),
        "nll_image_standard_error": float(nll.std()) / math.sqrt(count) if count > 1 else None,
        "bits_per_dim": mean / (pixels * math.log(2)) if pixels else None,
    }


def random_pixels(model: VAE) -> int:
    """Pixels times channels that the likelihood is of: all, or those not given."""
    if isinstance(model.condition, Quadrants):
        return int((1 - model.condition.mask).sum()) * model.blueprint.shape[0]
    return math.prod(model.blueprint.shape)


def split_evenly(count: int, largest: int) -> list[int]:
    """`count` as a sum of nearly equal parts, none above `largest`."""
    parts = math.ceil(count / largest)
    return [count // parts + (i < count % parts) for i in range(parts)]


def monte_carlo_error(log_sums: Tensor, samples: int) -> float | None:
    """Standard error of the mean NLL from its draws: Var[log mean w] = Var[w] / (S E[w]^2) for each image.

    None for one sample, which does not say how far another would be.
    """
    if samples == 1:
        return None
    relative = (log_sums[1] - 2 * log_sums[0] + math.log(samples)).exp() - 1
    variance = relative.clamp(min=0) / (samples - 1)
    return float(variance.sum().sqrt()) / log_sums.shape[1]


def affordable(
    model: VAE, images: Frozen, samples: int, limited: bool, shown: Shown
) -> tuple[int, int]:
    """How many images the ELBO and the NLL can have in TIME_BUDGET, from timing a few; all if `limited`. Says so."""
    count = len(images)
    if limited and not shown.enabled:
        return count, count
    first, *_ = chunked(model, images, samples)
    few = Frozen(images[first], "none")
    times: list[float] = []
    while len(times) < 4 and sum(times) < 1:
        started = time.perf_counter()
        with seeded(0, images.device):
            measure_nll(model, few, samples, Shown(False))
        times.append(time.perf_counter() - started)
    nll_each = min(times) / len(few)
    elbo_each = nll_each * min(1, ELBO_SAMPLES / samples)

    elbo_images = count if limited else in_time(count, elbo_each, TIME_BUDGET / 2)
    spent = elbo_images * elbo_each
    nll_images = count if limited else in_time(count, nll_each, TIME_BUDGET - spent)
    seconds = spent + nll_images * nll_each
    shown.say(
        f"ELBO of {elbo_images:,} and NLL of {nll_images:,} of {count:,} images, {samples:,} samples each: "
        f"about {seconds:.0f} s"
    )
    if nll_images < count:
        whole = count * (nll_each + elbo_each) / 60
        shown.say(f"(all would take {whole:.0f} min; --limit {count} does it)")
    return elbo_images, nll_images


def in_time(count: int, each: float, seconds: float) -> int:
    """How many of `count` fit, as a round number."""
    fitting = min(count, max(1, round(seconds / each)))
    return fitting if fitting == count else fitting // 100 * 100 or fitting


def number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def described(e: Evaluation) -> list[tuple[str, str, str]]:
    """Each number with its name and what it is."""
    subset = f" (of {e.nll_images:,} of the images)" if 0 < e.nll_images < e.images else ""
    nothing = (
        "- (grey pixels have none)" if e.likelihood == "bernoulli" else "- (a density has none)"
    )
    if e.elbo is None:
        nothing = "-"
    rows = [
        ("ELBO", number(e.elbo, 2), "lower bound on log p(x), nats per image; higher is better"),
        (
            "log-likelihood",
            f"{e.log_likelihood:.2f}",
            "its first part: how well images are redrawn",
        ),
        ("KL", number(e.kl, 2), "its second part, subtracted: nats that the latent carries"),
        (
            "NLL",
            number(e.nll, 2),
            f"-log p(x) from {e.samples:,} samples, nats per image{subset}; lower is better",
        ),
        ("  error, samples", number(e.nll_standard_error), "standard error from the draws"),
        ("  error, images", number(e.nll_image_standard_error), "standard error from the images"),
        (
            "bits/dim",
            nothing if e.bits_per_dim is None else f"{e.bits_per_dim:.4f}",
            "NLL per pixel and channel, in bits",
        ),
        (
            "active units",
            "-" if e.active_units is None else f"{e.active_units} of {e.latent_units}",
            "latent dimensions that respond to the image",
        ),
    ]
    if e.minimum_scale is not None and e.share_at_floor is not None:
        found = f"{e.minimum_scale:.4f}, {e.share_at_floor:.1%}"
        rows.append(("smallest scale", found, "of a pixel, and the share of pixels at the floor"))
    return rows


def measured_on(e: Evaluation) -> str:
    """Which images were measured, and how their pixels were read."""
    pixels = {
        "dynamic": "binarised once, from a fixed seed",
        "threshold": "cut at one half",
        "none": "grey, as probabilities" if e.likelihood == "bernoulli" else "as they are",
    }[e.binarisation]
    return f"{e.images:,} {e.split} images, {e.likelihood} pixels, {pixels}"


def as_table(evaluation: dict[str, Any]) -> Table:
    """The evaluation as a table for the screen, with what each number means."""
    from rich.table import Table

    e = Evaluation(**evaluation)
    table = Table(title=measured_on(e), title_justify="left")
    table.add_column("")
    table.add_column("value", justify="right")
    table.add_column("what it is", overflow="fold")
    if e.elbo is None:
        table.caption = (
            "ELBO, KL and NLL need a density, which a posterior of one point does not have"
        )
    for row in described(e):
        table.add_row(*row)
    return table
