"""A linear-Gaussian VAE, of which everything is known in closed form."""

import torch
from torch import nn
from torch.distributions import MultivariateNormal

from vaekit.model.distributions import gaussian, independent
from vaekit.model.graph import VAE
from vaekit.model.priors import StandardNormal
from vaekit.settings.model import Blueprint, ModelConfig

SHAPE, SIGMA = (1, 2, 3), 0.4
MEAN = torch.linspace(0.2, 0.7, 6)


def factors(dim):
    """Orthogonal columns of different lengths (6, dim), so that p(z | x) has independent dimensions."""
    generator = torch.Generator().manual_seed(1)
    q, _ = torch.linalg.qr(torch.randn(6, dim, generator=generator))
    return q * torch.linspace(0.3, 1.2, dim)


class LinearDecoder(nn.Module):
    """p(x | z) = N(W z + MEAN, SIGMA^2)."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, values):
        loc = (values["z"] @ self.weight.T + MEAN).unflatten(-1, SHAPE)
        return independent(gaussian(loc, torch.full_like(loc, SIGMA)), 3)


class LinearPosterior(nn.Module):
    """The exact posterior, its mean moved by `shift` standard deviations, its scale times `factor`."""

    given = ("x",)

    def __init__(self, weight, shift, factor):
        super().__init__()
        self.scale = (1 + (weight**2).sum(0) / SIGMA**2) ** -0.5
        self.weight = self.scale[:, None] ** 2 * weight.T / SIGMA**2
        self.shift, self.factor = torch.as_tensor(shift), torch.as_tensor(factor)

    def forward(self, values):
        loc = (values["x"].flatten(1) - MEAN) @ self.weight.T + self.shift * self.scale
        return independent(gaussian(loc, (self.factor * self.scale).expand_as(loc)), 1)


def linear_vae(dim=2, shift=0.0, factor=1.0) -> VAE:
    weight = factors(dim)
    settings = ModelConfig(latent_dim=dim, likelihood="gaussian", scale=SIGMA)
    posterior = LinearPosterior(weight, shift, factor)
    blueprint = Blueprint("vae", SHAPE, settings)
    return VAE({"z": StandardNormal(dim)}, {"z": posterior}, LinearDecoder(weight), blueprint)


def log_marginal(x, dim=2):
    """log p(x) of images, (N,)."""
    weight = factors(dim)
    covariance = weight @ weight.T + SIGMA**2 * torch.eye(6)
    return MultivariateNormal(MEAN, covariance).log_prob(x.flatten(1))
