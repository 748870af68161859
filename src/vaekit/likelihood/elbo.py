"""The ELBO of a model on images, its parts, and the active units of the latents."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Independent

from ..data import EvalSplit
from ..model.build import decoder_outputs
from ..model.conditions import Quadrants
from ..model.graph import VAE
from ..model.pixels import SCALE_FLOOR
from ..support.console import ProgressBar
from .latent_use import ACTIVE_VARIANCE, kl_per_dimension

ELBO_SAMPLES = 10
CHUNK_NUMBERS = 2**21  # outputs of the decoder per chunk: 8 MB in float32


def image_chunks(model: VAE, images: EvalSplit, samples: int) -> list[slice]:
    """Slices of the images whose `samples` are decoded at once."""
    size = max(1, CHUNK_NUMBERS // decoder_outputs(model.blueprint) // samples)
    return [slice(start, start + size) for start in range(0, len(images), size)]


@dataclass(frozen=True)
class ElboEstimate:
    """The result of `measure_elbo`: nats, means over images. ELBO and KL are None for a deterministic posterior, which
    has no density; `kl_per_dimension`, by latent, where the prior does not factorise; `active_units` for one image.
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


def measure_elbo(model: VAE, images: EvalSplit, samples: int, bar: ProgressBar) -> ElboEstimate:
    """The ELBO from `samples` per image, its parts, and the active units."""
    totals = torch.zeros(2, dtype=torch.float64)
    means: list[Tensor] = []
    scales = []
    kls: dict[str, Tensor] = {}
    settings = model.blueprint.settings
    gaussian = settings.likelihood == "gaussian"
    for chunk in bar.track(image_chunks(model, images, samples), "ELBO"):
        batch = images[chunk]
        inference, size = model(batch.images, batch.labels, samples=(samples,)), len(batch)
        parts = inference.log_likelihood.mean() * size, inference.kl.mean() * size
        totals += torch.stack(parts).cpu().double()
        for name, latent in inference.latents.items():
            if isinstance(latent.prior, Independent):
                kls[name] = kls.get(name, 0) + kl_per_dimension(latent) * size / len(images)
        latents = inference.latents.values()
        # The posterior of a lower latent differs between samples of the upper one: the image's mean is their average.
        q_means = (v.posterior.mean for v in latents)
        image_means = [mean if mean.ndim == 2 else mean.mean(0) for mean in q_means]
        means.append(torch.cat(image_means, dim=-1).cpu())
        if gaussian:
            scale = inference.likelihood.base_dist.scale
            if isinstance(model.condition, Quadrants):
                scale = scale[..., (model.condition.mask == 0).expand(scale.shape[-3:])]
            at_floor = (scale < 1.01 * SCALE_FLOOR).float().mean() * size
            scales.append(torch.stack([scale.min(), at_floor]).cpu())
    log_likelihood, kl = (totals / len(images)).tolist()
    variance = torch.cat(means).var(0, correction=0)
    has_density = settings.posterior != "deterministic"
    kl_lists = {name: value.tolist() for name, value in kls.items() if not value.isnan().any()}
    return ElboEstimate(
        log_likelihood - kl if has_density else None,
        log_likelihood,
        kl if has_density else None,
        kl_lists or None,
        active_units=int((variance > ACTIVE_VARIANCE).sum()) if len(images) > 1 else None,
        latent_units=len(variance),
        minimum_scale=float(torch.stack(scales)[:, 0].min()) if gaussian else None,
        share_at_floor=float(torch.stack(scales)[:, 1].sum()) / len(images) if gaussian else None,
    )


def modelled_pixels(model: VAE) -> int:
    """How many pixels (times channels) the likelihood covers: all, or those that no condition shows."""
    if isinstance(model.condition, Quadrants):
        return int((1 - model.condition.mask).sum()) * model.blueprint.shape[0]
    return math.prod(model.blueprint.shape)
