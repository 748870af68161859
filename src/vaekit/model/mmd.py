"""Maximum mean discrepancy: how far two samples are from being of one distribution."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Kernel = Literal["rbf", "reference", "median", "imq"]


def squared_mmd(x: Tensor, y: Tensor, kernel: Kernel = "rbf", biased: bool = False) -> Tensor:
    """Squared maximum mean discrepancy of samples (..., N, D) and (..., M, D), unbiased unless told otherwise: (...).

    mean k(x, x') - 2 mean k(x, y) + mean k(y, y'), where the unbiased one leaves out x = x'; it may be negative, and
    is 0 for samples of one.
    Gretton et al. 2012, eq. 3 and 5. Kernels of the squared distance r in d dimensions: rbf exp(-r / 2d), reference
    exp(-r / d^2) (nearly constant where d is large), median exp(-r / median r), imq 2d / (2d + r).
    """
    if not biased and min(x.shape[-2], y.shape[-2]) == 1:
        return x.new_zeros(x.shape[:-2])
    d = x.shape[-1]
    xx, xy, yy = squared_distances(x, x), squared_distances(x, y), squared_distances(y, y)
    if kernel == "imq":
        kxx, kxy, kyy = (2 * d / (2 * d + r) for r in (xx, xy, yy))
    else:
        width: Tensor | float = {"rbf": 2.0 * d, "reference": float(d * d)}.get(kernel, 0.0)
        if kernel == "median":
            width = xy.detach().flatten(-2).median(-1).values.clamp(min=1e-6)[..., None, None]
        kxx, kxy, kyy = (torch.exp(-r / width) for r in (xx, xy, yy))
    return within(kxx, biased) - 2 * kxy.mean((-2, -1)) + within(kyy, biased)


def within(kernel: Tensor, biased: bool) -> Tensor:
    """Mean of a sample's kernel matrix (..., N, N), its diagonal left out unless biased."""
    if biased:
        return kernel.mean((-2, -1))
    n = kernel.shape[-1]
    return (kernel.sum((-2, -1)) - kernel.diagonal(dim1=-2, dim2=-1).sum(-1)) / (n * (n - 1))


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """|x_i - y_j|^2: (..., N, D), (..., M, D) -> (..., N, M)."""
    squares = (x**2).sum(-1)[..., :, None] + (y**2).sum(-1)[..., None, :] - 2 * x @ y.mT
    return squares.clamp(min=0)
