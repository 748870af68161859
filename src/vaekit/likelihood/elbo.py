"""The ELBO of a model on images, with its parts and what it says of the latents."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Independent

from ..data import Frozen
from ..model.build import decoded_numbers
from ..model.conditions import Quadrants
from ..model.graph import VAE
from ..model.pixels import SCALE_FLOOR
from ..support.console import Shown
from .latent_use import ACTIVE_VARIANCE, kl_per_dimension

ELBO_SAMPLES = 10
# Images x samples decoded at once are bounded by the numbers that the decoder gives: 8 MB in float32.
CHUNK_NUMBERS = 2**21


def chunked(model: VAE, images: Frozen, samples: int) -> list[slice]:
    """Chunks of the images to decode `samples` times at once."""
    size = max(1, CHUNK_NUMBERS // decoded_numbers(model.blueprint) // samples)
    return [slice(start, start + size) for start in range(0, len(images), size)]


@dataclass(frozen=True)
class Bound:
    """What `measure_elbo` finds, nats, means over images. ELBO and KL are null where the posterior is one point, which
    has no density; `kl_per_dimension`, by latent, where the prior does not factorise. `active_units` is null of one
    image. `minimum_scale` and `share_at_floor` (of pixels) are of Gaussian pixels, whose density grows as scales
    shrink.
    """

    elbo: float | None
    log_likelihood: float
    kl: float | None
    kl_per_dimension: dict[str, list[float]] | None
    active_units: int | None
    latent_units: int
    minimum_scale: float | None
    share_at_floor: float | None


def measure_elbo(model: VAE, images: Frozen, samples: int, shown: Shown) -> Bound:
    """ELBO parts, the likelihood averaged over `samples` draws, and the active units."""
    totals = torch.zeros(2, dtype=torch.float64)
    means: list[Tensor] = []
    scales = []
    kls: dict[str, Tensor] = {}
    settings = model.blueprint.settings
    gaussian = settings.likelihood == "gaussian"
    for chunk in shown.track(chunked(model, images, samples), "ELBO"):
        batch = images[chunk]
        inference, size = model(batch.images, batch.labels, samples=(samples,)), len(batch)
        parts = inference.log_likelihood.mean() * size, inference.kl.mean() * size
        totals += torch.stack(parts).cpu().double()
        for name, latent in inference.latents.items():
            if isinstance(latent.prior, Independent):
                kls[name] = kls.get(name, 0) + kl_per_dimension(latent) * size / len(images)
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
    dense = settings.posterior != "deterministic"
    known = {name: value.tolist() for name, value in kls.items() if not value.isnan().any()}
    return Bound(
        log_likelihood - kl if dense else None,
        log_likelihood,
        kl if dense else None,
        known or None,
        active_units=int((spread > ACTIVE_VARIANCE).sum()) if len(images) > 1 else None,
        latent_units=len(spread),
        minimum_scale=float(torch.stack(scales)[:, 0].min()) if gaussian else None,
        share_at_floor=float(torch.stack(scales)[:, 1].sum()) / len(images) if gaussian else None,
    )


def random_pixels(model: VAE) -> int:
    """Pixels times channels that the likelihood is of: all, or those not given."""
    if isinstance(model.condition, Quadrants):
        return int((1 - model.condition.mask).sum()) * model.blueprint.shape[0]
    return math.prod(model.blueprint.shape)
