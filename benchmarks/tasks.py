"""The training tasks that `speed.py` times, and the MNIST images that they are trained on."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import vaekit

# Training settings of each variant of vaekit.
VAEKIT_VARIANTS: dict[str, dict[str, Any]] = {
    "vaekit": {"compile": "yes"},
    "plain": {"compile": "no"},
    "bfloat16": {"compile": "yes", "precision": "bfloat16"},
}
# Packages that an implementation needs besides vaekit's own dependencies.
REQUIRED_PACKAGES = {"jax": "jax", "pythae": "pythae"}


@dataclass(frozen=True)
class Task:
    """A model to train, and its implementations besides vaekit.

    With `dynamic`, pixels are re-binarised at every step; otherwise, and always in the tutorial and pythae, they are
    grey.
    """

    batch: int
    learning_rate: float
    dynamic: bool
    others: tuple[str, ...]

    @property
    def implementations(self) -> tuple[str, ...]:
        return (*VAEKIT_VARIANTS, *self.others)


TASKS = {
    "dense": Task(100, 1e-3, True, ("tutorial", "pythae", "jax")),
    "conv": Task(256, 1e-4, False, ("eager", "jax")),
    "vampprior": Task(100, 5e-4, True, ("eager", "pythae", "jax")),
    "hvampprior": Task(100, 5e-4, True, ("eager", "pythae", "jax")),
    "gmvae": Task(100, 1e-3, True, ("eager", "jax")),
    "deepvae": Task(32, 2e-3, True, ("eager", "plain-ladder")),
}


def mnist(count: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` training images (N, 28, 28), uint8, and their labels; repeats after 50,000."""
    folder = Path(vaekit.__file__).parent / "data" / "mnist"
    with gzip.open(folder / "train-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)
    with gzip.open(folder / "train-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8)
    rows = np.arange(count) % 50_000
    return images[rows], labels[rows].astype(np.int64)
