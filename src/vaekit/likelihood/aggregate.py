"""The aggregate posterior, q(z) = 1/N sum_n q(z | x_n), compared with the prior."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal

from ..data import EvalSplit
from ..model.distributions import GaussianMixture
from ..model.graph import VAE
from ..model.mmd import squared_mmd
from ..support.errors import MetricUnavailable
from .latent_use import batch_size

CHUNK_ROWS = 500  # rows of the (N, N) matrix of densities at once
MMD_SAMPLES = 5000


@torch.no_grad()
def measure_aggregate(model: VAE, images: EvalSplit) -> dict[str, Any]:
    """The decomposition of the mean of KL(q(z | x) || p(z)) over N images (Hoffman and Johnson 2016, eq. 6), nats, from
    one sample per image, and an MMD:

    mutual_information = E[log q(z | x) - log q(z)], of image and latent, at most log N;
    marginal_kl = E[log q(z) - log p(z)], where q(z) = 1/N sum_n q(z | x_n);
    mmd = squared MMD of these samples and as many of the prior, unbiased, kernel exp(-|x - y|^2 / 2d).

    They are of the latents that `top_latents` names, concatenated. The first two are missing where the posterior has no
    density. Raises MetricUnavailable where the prior differs between images.
    """
    names = top_latents(model)
    samples: list[Tensor] = []
    locs, scales = [], []
    log_q, log_p = [], []
    size = batch_size(model)
    if any("y" in getattr(model.prior[name], "given", ()) for name in names):
        raise MetricUnavailable("the prior is conditional")
    for start in range(0, len(images), size):
        batch = images[start : start + size]
        latents = model.infer(model.given(batch.images, batch.labels), (len(batch),))
        top = [latents[name] for name in names]
        samples.append(torch.cat([v.z for v in top], -1))
        log_p.append(torch.stack([v.prior.log_prob(v.z) for v in top]).sum(0))
        log_q.append(torch.stack([v.posterior.log_prob(v.z) for v in top]).sum(0))
        if all(is_gaussian(v.posterior) for v in top):
            locs.append(torch.cat([v.posterior.mean for v in top], -1))
            scales.append(torch.cat([v.posterior.stddev for v in top], -1))
    z, prior_z = torch.cat(samples), prior_samples(model, names, len(images))
    result: dict[str, Any] = {
        "aggregate_of": ", ".join(names),
        "aggregate_images": len(z),
        "mmd": float(squared_mmd(z[:MMD_SAMPLES], prior_z[:MMD_SAMPLES])) if len(z) > 1 else None,
    }
    if locs and len(z) > 1:
        mixture = GaussianMixture(torch.cat(locs), torch.cat(scales))
        log_aggregate = torch.cat([mixture.log_prob(rows) for rows in z.split(CHUNK_ROWS)])
        result["mutual_information"] = float((torch.cat(log_q) - log_aggregate).double().mean())
        result["marginal_kl"] = float((log_aggregate - torch.cat(log_p)).double().mean())
        result["mutual_information_limit"] = math.log(len(z))
    return result


def top_latents(model: VAE) -> list[str]:
    """The latents whose posteriors depend on the image alone: the upper one of two levels, or all of one level."""
    latents = set(model.prior)
    names = [
        name for name, q in model.posterior.items() if not latents & set(getattr(q, "given", ()))
    ]
    return names or [next(iter(model.prior))]


def is_gaussian(q: Distribution) -> bool:
    return isinstance(q, Independent) and isinstance(q.base_dist, Normal)


def prior_samples(model: VAE, names: list[str], count: int) -> Tensor:
    """Samples of these latents from the prior, concatenated: (count, D)."""
    values = model.given(None, None) if model.condition is None else {"x": None, "y": None}
    for name in names:
        values[name] = model.prior[name](values).expand((count,)).sample()
    return torch.cat([value for name in names if (value := values[name]) is not None], -1)
