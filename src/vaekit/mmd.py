"""Maximum mean discrepancy: how far two samples are from being of one distribution."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Kernel = Literal["rbf", "reference", "median", "imq"]


def squared_mmd(x: Tensor, y: Tensor, kernel: Kernel = "rbf", biased: bool = False) -> Tensor:
    """Squared maximum mean discrepancy of two samples (N, D) and (M, D), unbiased unless told otherwise.

    mean k(x, x') - 2 mean k(x, y) + mean k(y, y'), where the unbiased one leaves out x = x'; it may be negative.
    Gretton et al. 2012, eq. 3 and 5. Kernels of the squared distance r in d dimensions: rbf exp(-r / 2d), reference
    exp(-r / d^2) (nearly constant where d is large), median exp(-r / median r), imq 2d / (2d + r).
    """
    d = x.shape[-1]
    xx, xy, yy = squared_distances(x, x), squared_distances(x, y), squared_distances(y, y)
    if kernel == "imq":
        kxx, kxy, kyy = (2 * d / (2 * d + r) for r in (xx, xy, yy))
    else:
        width: Tensor | float = {"rbf": 2.0 * d, "reference": float(d * d)}.get(kernel, 0.0)
        if kernel == "median":
            width = xy.detach().median().clamp(min=1e-6)
        kxx, kxy, kyy = (torch.exp(-r / width) for r in (xx, xy, yy))
    return within(kxx, biased) - 2 * kxy.mean() + within(kyy, biased)


def within(kernel: Tensor, biased: bool) -> Tensor:
    """Mean of a sample's kernel matrix (N, N), its diagonal left out unless biased, or unless there is nothing else."""
    n = len(kernel)
    if biased or n == 1:
        return kernel.mean()
    return (kernel.sum() - kernel.diagonal().sum()) / (n * (n - 1))


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """|x_i - y_j|^2: (N, D), (M, D) -> (N, M)."""
    squares = (x**2).sum(-1)[:, None] + (y**2).sum(-1) - 2 * x @ y.mT
    return squares.clamp(min=0)
