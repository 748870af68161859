"""Priors: modules from the values known so far to a distribution. One with a network is a `Conditional`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from .distributions import GaussianMixture, gaussian, independent


class StandardNormal(nn.Module):
    """p(z) = N(0, I) over `dim` dimensions."""

    loc: Tensor
    scale: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        # Buffers follow the model to its device and dtype; these are constants, so they are not saved.
        self.register_buffer("loc", torch.zeros(dim), persistent=False)
        self.register_buffer("scale", torch.ones(dim), persistent=False)

    def forward(self, values: dict[str, Tensor | None]) -> Distribution:
        return independent(gaussian(self.loc, self.scale), 1)


class ConstantMixture(nn.Module):
    """p(z) = 1/K sum_k N(loc_k, scale_k^2), neither trained nor saved; loc and scale (K, dim)."""

    loc: Tensor
    scale: Tensor

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("loc", loc, persistent=False)
        self.register_buffer("scale", scale, persistent=False)

    def forward(self, values: dict[str, Tensor | None]) -> Distribution:
        return GaussianMixture(self.loc, self.scale)


class FixedMixture(ConstantMixture):
    """p(z) = 1/K sum_k N(m_k 1, I/2), m = 0, 1, -1, 2, -2 ... in every dimension (psanch21/VAE-GMVAE, model3)."""

    def __init__(self, components: int, dim: int) -> None:
        k = torch.arange(components)
        means = (k + 1).div(2, rounding_mode="floor") * torch.where(k % 2 == 0, -1, 1)
        super().__init__(means[:, None].float(), torch.full((components, 1), 0.5**0.5))
        self.dim = dim

    def forward(self, values: dict[str, Tensor | None]) -> Distribution:
        return GaussianMixture(self.loc.expand(-1, self.dim), self.scale.expand(-1, self.dim))


class LearnedMixture(nn.Module):
    """p(z) = sum_k pi_k N(loc_k, scale_k^2), all learned; loc is initialised from N(0, I), scale to 1."""

    def __init__(self, components: int, dim: int) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.randn(components, dim))
        self.log_scale = nn.Parameter(torch.zeros(components, dim))
        self.logits = nn.Parameter(torch.zeros(components))

    def forward(self, values: dict[str, Tensor | None]) -> Distribution:
        return GaussianMixture(self.loc, self.log_scale.exp() + 1e-4, self.logits)


class FullMixture(nn.Module):
    """p(z) = sum_k pi_k N(loc_k, tril_k tril_k^T), with full covariances, at first N(0, I); set by `fit_prior`."""

    def __init__(self, components: int, dim: int) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(components, dim))
        self.tril = nn.Parameter(torch.eye(dim).repeat(components, 1, 1))
        self.logits = nn.Parameter(torch.zeros(components))

    def forward(self, values: dict[str, Tensor | None]) -> Distribution:
        scale = self.tril.square().sum(-1).sqrt()
        return GaussianMixture(self.loc, scale, self.logits, self.tril)


class VampPrior(nn.Module):
    """p(z) = 1/K sum_k q(z | u_k), with learned pseudo-inputs u = sigmoid(logits) (Tomczak and Welling 2018, eq. 9).

    `posterior` is the model's own module for q(z | x), a Gaussian.
    """

    def __init__(self, posterior: nn.Module, components: int, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.randn(components, *shape))
        # In a tuple, so that the model alone registers (and saves) its weights.
        self.shared = (posterior,)

    @property
    def pseudo_inputs(self) -> Tensor:
        """(K, C, H, W), pixels in [0, 1]."""
        return self.logits.sigmoid()

    @torch.no_grad()
    def init_from_images(self, images: Tensor) -> None:
        """Set the pseudo-inputs to images (K, C, H, W) in [0, 1]."""
        # Clamped, since the gradient of a sigmoid vanishes at exactly 0 and 1.
        self.logits.copy_(images.clamp(0.02, 0.98).logit())

    def forward(self, values: dict[str, Tensor | None]) -> Distribution:
        (posterior,) = self.shared
        components = posterior({"x": self.pseudo_inputs, "y": None}).base_dist
        return GaussianMixture(components.loc, components.scale)
