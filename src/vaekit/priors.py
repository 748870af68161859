"""Priors: modules that take the values known so far and return a distribution."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from .distributions import gaussian, independent


class StandardNormal(nn.Module):
    """p(z) = N(0, I) over `dim` dimensions."""

    loc: Tensor
    scale: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        # Buffers follow the model to its device and dtype; they are constants, so they are not saved.
        self.register_buffer("loc", torch.zeros(dim), persistent=False)
        self.register_buffer("scale", torch.ones(dim), persistent=False)

    def forward(self, values: dict[str, Tensor | None]) -> Distribution:
        return independent(gaussian(self.loc, self.scale), 1)
