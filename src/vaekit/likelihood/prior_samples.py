"""Samples of the prior, added to those of the posterior: they show likelihood that the posterior misses.

Importance sampling gives no sign of a mode that its proposal never reaches. Samples of the prior reach all modes where
the latent has few dimensions, and are decoded once for many images.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, Independent

from ..data import EvalSplit
from ..model.graph import VAE

IMAGES_AT_ONCE = 100


def log_mixture_ratio(log_ratio: Tensor, samples: int, prior_samples: int) -> Tensor:
    """log q(z) / m(z), where `log_ratio` is log p(z) - log q(z) and m the mixture of q and p in proportion to their
    samples (the balance heuristic of Veach and Guibas 1995)."""
    total = samples + prior_samples
    if prior_samples == 0:
        return torch.zeros_like(log_ratio)
    from_p = log_ratio + math.log(prior_samples / total)
    return -torch.logaddexp(from_p, torch.full_like(from_p, math.log(samples / total)))


def log_sum_over_prior(
    model: VAE, images: EvalSplit, samples: int, prior_samples: int, rows: int
) -> Tensor:
    """log of the sum of p(x, z) / m(z) over `prior_samples` of the prior, the same for all images, (N,), for m of
    log_mixture_ratio; `rows` of samples x images at once."""
    ((name, prior),) = model.prior.items()
    p = prior(model.given(None, None))
    z = p.expand((prior_samples,)).sample().unsqueeze(1)
    log_p, sums = p.log_prob(z), []
    chunk = min(rows, IMAGES_AT_ONCE)
    for start in range(0, len(images), chunk):
        x = images[start : start + chunk].images
        q = model.posterior[name](model.given(x, None))
        parts = []
        for block in torch.arange(prior_samples, device=z.device).split(max(1, rows // len(x))):
            likelihood = model.decoder({**model.given(None, None), name: z[block]})
            log_ratio = log_p[block] - q.log_prob(z[block])
            # p / m = (p / q) (q / m)
            total = pairwise_log_likelihood(likelihood, x) + log_ratio
            parts.append(total + log_mixture_ratio(log_ratio, samples, prior_samples))
        weights = torch.cat(parts)
        sums.append((weights if weights.device.type == "mps" else weights.double()).logsumexp(0))
    return torch.cat(sums)


def pairwise_log_likelihood(likelihood: Distribution, x: Tensor) -> Tensor:
    """log p(x | z) of all pairs, (S, N), from pixels of batch shape (S, 1) and images (N, C, H, W)."""
    if not (isinstance(likelihood, Independent) and isinstance(likelihood.base_dist, Bernoulli)):
        return likelihood.log_prob(x)
    logits = likelihood.base_dist.logits.flatten(1)
    return logits @ x.flatten(1).mT - F.softplus(logits).sum(-1, keepdim=True)
