"""The ELBO of a model on images, its parts, and the active units of the latents."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Independent

from ..data import EvalSplit
from ..model.build import numbers_per_image
from ..model.conditions import Quadrants
from ..model.graph import VAE
from ..model.pixels import SCALE_FLOOR
from ..settings.model import DISCRETE
from ..support.console import ProgressBar
from .latent_use import ACTIVE_VARIANCE, kl_per_dimension, lists_groups, pixel_scales

ELBO_SAMPLES = 10
CHUNK_NUMBERS = 2**21  # numbers per chunk: 8 MB in float32


def image_chunks(model: VAE, images: EvalSplit, samples: int) -> list[slice]:
    """Slices of the images whose `samples` are decoded at once."""
    size = max(1, CHUNK_NUMBERS // numbers_per_image(model.blueprint) // samples)
    return [slice(start, start + size) for start in range(0, len(images), size)]


@dataclass(frozen=True)
class ElboEstimate:
    """The result of `measure_elbo`: nats, means over images. ELBO and KL are None for a deterministic posterior, which
    has no density; `kl_per_dimension`, by latent, where the prior does not factorise; `active_units` for one image.
    A deep hierarchy has `kl_per_latent` and `active_per_latent` instead of its thousands of dimensions.
    `minimum_scale` and `share_at_floor` (of pixels) are of Gaussian pixels, whose density grows as scales shrink.
    """

    elbo: float | None
    log_likelihood: float
    kl: float | None
    kl_per_dimension: dict[str, list[float]] | None
    active_units: int | None
    latent_units: int
    minimum_scale: float | None
    share_at_floor: float | None
    kl_per_latent: dict[str, float] | None = None
    active_per_latent: dict[str, int] | None = None


def measure_elbo(model: VAE, images: EvalSplit, samples: int, bar: ProgressBar) -> ElboEstimate:
    """The ELBO from `samples` per image, its parts, and the active units."""
    totals = torch.zeros(2, dtype=torch.float64)
    means: dict[str, list[Tensor]] = {name: [] for name in model.prior}
    spreads: dict[str, list[Tensor]] = {name: [] for name in model.prior}
    scales = []
    kls: dict[str, Tensor] = {}
    kl_sums = {name: torch.zeros((), dtype=torch.float64) for name in model.prior}
    settings = model.blueprint.settings
    gaussian, grouped = settings.likelihood == "gaussian", lists_groups(model)
    for chunk in bar.track(image_chunks(model, images, samples), "ELBO"):
        batch = images[chunk]
        inference, size = model(batch.images, batch.labels, samples=(samples,)), len(batch)
        parts = inference.log_likelihood.mean() * size, inference.kl.mean() * size
        totals += torch.stack(parts).cpu().double()
        for name, latent in inference.latents.items():
            if grouped:
                kl_sums[name] += latent.kl.detach().mean().cpu().double() * size
            elif isinstance(latent.prior, Independent):
                kls[name] = kls.get(name, 0) + kl_per_dimension(latent) * size / len(images)
            average, variance = over_samples(latent.posterior.mean)
            means[name].append(average.cpu())
            spreads[name].append(variance.cpu())
        if gaussian:
            scale = pixel_scales(model, inference.likelihood)
            at_floor = (scale < 1.01 * SCALE_FLOOR).float().mean() * size
            scales.append(torch.stack([scale.min(), at_floor]).cpu())
    log_likelihood, kl = (totals / len(images)).tolist()
    active = {
        name: active_units(torch.cat(means[name]), torch.cat(spreads[name]), samples)
        for name in means
    }
    known = [count for count in active.values() if count is not None]
    all_known = len(known) == len(active)
    has_density = settings.posterior != "deterministic"
    kl_lists = {name: value.tolist() for name, value in kls.items() if not value.isnan().any()}
    return ElboEstimate(
        log_likelihood - kl if has_density else None,
        log_likelihood,
        kl if has_density else None,
        kl_lists or None,
        active_units=sum(known) if all_known else None,
        latent_units=sum(parts[0].shape[-1] for parts in means.values()),
        minimum_scale=float(torch.stack(scales)[:, 0].min()) if gaussian else None,
        share_at_floor=float(torch.stack(scales)[:, 1].sum()) / len(images) if gaussian else None,
        kl_per_latent={name: float(kl) / len(images) for name, kl in kl_sums.items()}
        if grouped
        else None,
        active_per_latent=dict(zip(active, known, strict=True)) if grouped and all_known else None,
    )


def over_samples(mean: Tensor) -> tuple[Tensor, Tensor]:
    """Average and variance (B, D) of posterior means over samples of the latents above: (S, B, D), or (B, D) of the
    first latent, which has none above. The variance of one sample is NaN."""
    if mean.ndim == 2:
        return mean, torch.zeros_like(mean)
    variance = mean.var(0) if len(mean) > 1 else torch.full_like(mean[0], torch.nan)
    return mean.mean(0), variance


def active_units(means: Tensor, spreads: Tensor, samples: int) -> int | None:
    """The number of latent dimensions whose posterior mean varies over images by more than ACTIVE_VARIANCE, and by more
    than 3 standard errors of an idle one. None for one image, and for one sample of a latent below another.

    `means` (N, D) are averages over `samples` of the latents above, which vary by `spreads` (N, D): their variance over
    images is too large by that of the average, which is subtracted.
    """
    count, noise = len(means), spreads.mean(0)
    if count < 2 or noise.isnan().any():
        return None
    variance = means.var(0, correction=0) - (1 - 1 / count) * noise / samples
    error = noise * math.sqrt(2 / (count * samples * max(1, samples - 1)))
    return int((variance > (3 * error).clamp(min=ACTIVE_VARIANCE)).sum())


def nats_per_bit(model: VAE) -> float | None:
    """The nats of an image that are one bit per dimension (pixel and channel); None unless the likelihood is of pixels
    with levels, such as 8-bit ones: a density has no bits."""
    discrete = model.blueprint.settings.likelihood in DISCRETE
    return modelled_pixels(model) * math.log(2) if discrete else None


def modelled_pixels(model: VAE) -> int:
    """How many pixels (times channels) the likelihood covers: all, or those that no condition shows."""
    if isinstance(model.condition, Quadrants):
        return int((1 - model.condition.mask).sum()) * model.blueprint.shape[0]
    return math.prod(model.blueprint.shape)
