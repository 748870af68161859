"""Maximum mean discrepancy: a distance between two distributions from samples of both."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Kernel = Literal["rbf", "reference", "median", "imq"]


def squared_mmd(x: Tensor, y: Tensor, kernel: Kernel = "rbf", biased: bool = False) -> Tensor:
    """Squared MMD of samples (..., N, D) and (..., M, D): (...), unbiased by default. Gretton et al. 2012, eq. 3 and 5.

    mean k(x, x') - 2 mean k(x, y) + mean k(y, y'). The unbiased estimate leaves out x = x'; it may be negative, and is
    0 where N or M is 1. Kernels of the squared distance r in d dimensions: rbf exp(-r / 2d), reference exp(-r / d^2)
    (nearly constant for large d), median exp(-r / median r), imq 2d / (2d + r).
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
    return kernel_mean(kxx, biased) - 2 * kxy.mean((-2, -1)) + kernel_mean(kyy, biased)


def kernel_mean(kernel: Tensor, biased: bool) -> Tensor:
    """The mean of a kernel matrix (..., N, N), without its diagonal unless biased."""
    if biased:
        return kernel.mean((-2, -1))
    n = kernel.shape[-1]
    return (kernel.sum((-2, -1)) - kernel.diagonal(dim1=-2, dim2=-1).sum(-1)) / (n * (n - 1))


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """|x_i - y_j|^2: (..., N, D), (..., M, D) -> (..., N, M)."""
    squares = (x**2).sum(-1)[..., :, None] + (y**2).sum(-1)[..., None, :] - 2 * x @ y.mT
    return squares.clamp(min=0)
