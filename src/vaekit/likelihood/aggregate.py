"""The aggregate posterior: how the latents of all images together lie beside the prior."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal

from ..data import Frozen
from ..model.distributions import GaussianMixture
from ..model.graph import VAE
from ..model.mmd import squared_mmd
from ..support.errors import Missing
from .latent_use import batch_size

ROWS = 500  # of the matrix of densities at once
MMD_SAMPLES = 5000


@torch.no_grad()
def measure_aggregate(model: VAE, images: Frozen) -> dict[str, Any]:
    """How KL(q(z | x) || p(z)), a mean over N images, splits (Hoffman and Johnson 2016, eq. 6):

    mutual_information = E[log q(z | x) - log q(z)], of image and latent, at most log N, and
    marginal_kl = E[log q(z) - log p(z)], where q(z) = 1/N sum_n q(z | x_n), nats, from one draw an image;
    mmd = squared MMD of these draws and the prior's, unbiased, kernel exp(-|x - y|^2 / 2d).

    Of two levels they are of the latent on top, whose posterior depends on the image alone; of latents side by side,
    of all together. The first two are null where the posterior has no density. Raises Missing where the prior differs
    between images.
    """
    names = on_top(model)
    draws: list[Tensor] = []
    locs, scales = [], []
    log_q, log_p = [], []
    size = batch_size(model)
    given = any("y" in getattr(model.prior[name], "given", ()) for name in names)
    if given:
        raise Missing("the prior depends on what is given")
    for start in range(0, len(images), size):
        batch = images[start : start + size]
        latents = model.infer(model.given(batch.images, batch.labels), (len(batch),))
        chosen = [latents[name] for name in names]
        draws.append(torch.cat([v.z for v in chosen], -1))
        log_p.append(torch.stack([v.prior.log_prob(v.z) for v in chosen]).sum(0))
        log_q.append(torch.stack([v.posterior.log_prob(v.z) for v in chosen]).sum(0))
        if all(is_gaussian(v.posterior) for v in chosen):
            locs.append(torch.cat([v.posterior.mean for v in chosen], -1))
            scales.append(torch.cat([v.posterior.stddev for v in chosen], -1))
    z, others = torch.cat(draws), prior_draws(model, names, len(images))
    result: dict[str, Any] = {
        "aggregate_of": ", ".join(names),
        "aggregate_images": len(z),
        "mmd": float(squared_mmd(z[:MMD_SAMPLES], others[:MMD_SAMPLES])) if len(z) > 1 else None,
    }
    if locs and len(z) > 1:
        mixture = GaussianMixture(torch.cat(locs), torch.cat(scales))
        log_aggregate = torch.cat([mixture.log_prob(rows) for rows in z.split(ROWS)])
        result["mutual_information"] = float((torch.cat(log_q) - log_aggregate).double().mean())
        result["marginal_kl"] = float((log_aggregate - torch.cat(log_p)).double().mean())
        result["mutual_information_limit"] = math.log(len(z))
    return result


def on_top(model: VAE) -> list[str]:
    """The latents whose posteriors depend on the image alone."""
    latents = set(model.prior)
    found = [
        name for name, q in model.posterior.items() if not latents & set(getattr(q, "given", ()))
    ]
    return found or [next(iter(model.prior))]


def is_gaussian(q: Distribution) -> bool:
    return isinstance(q, Independent) and isinstance(q.base_dist, Normal)


def prior_draws(model: VAE, names: list[str], count: int) -> Tensor:
    """Draws of these latents side by side: (count, D)."""
    values = model.given(None, None) if model.condition is None else {"x": None, "y": None}
    for name in names:
        values[name] = model.prior[name](values).expand((count,)).sample()
    return torch.cat([value for name in names if (value := values[name]) is not None], -1)
