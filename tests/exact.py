"""Exact values that several tests compare with."""

import itertools
import math

import torch

from vaekit.model.graph import VAE


def quadrature(vae: VAE, x: torch.Tensor, dim: int) -> torch.Tensor:
    """log p(x) = log of the integral of p(x | z) p(z), by the trapezoid rule on [-9, 9]^dim."""
    line = torch.linspace(-9, 9, 4001 if dim == 1 else 301)
    z = torch.cartesian_prod(*[line] * dim).view(-1, dim)
    log_prior = vae.prior["z"]({}).log_prob(z)
    likelihood = vae.decode(z=z[:, None])
    log_joint = likelihood.log_prob(x) + log_prior[:, None]
    return log_joint.logsumexp(0) + dim * math.log(float(line[1] - line[0]))


ALL_2X2 = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4)), dtype=torch.float64)
ALL_2X2 = ALL_2X2.view(-1, 1, 2, 2)
