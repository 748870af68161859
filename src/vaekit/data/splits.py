"""Which images are held back for validation and test."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..checks import require
from ..config import SourceConfig


def hold_back(labels: np.ndarray | None, count: int, share: float, seed: list[int]) -> np.ndarray:
    """Which of `count` images to hold back, (count,), bool: a share, at least one and not all; of each class in
    proportion, as nearly as whole images allow."""
    chance = np.random.default_rng(seed)
    place = chance.random(count)
    labels = np.zeros(count, np.int64) if labels is None else labels
    order = np.lexsort((place, labels))
    sizes = np.bincount(labels)
    starts = np.cumsum(sizes) - sizes
    # An image's rank in its class as a share of it, each class from its own random start: the lowest are taken.
    of = labels[order]
    rank = (np.arange(count) - starts[of] + chance.random(len(sizes))[of]) / np.maximum(
        sizes[of], 1
    )
    held = np.zeros(count, bool)
    held[order[np.argsort(rank, kind="stable")[: min(count - 1, max(1, round(share * count)))]]] = (
        True
    )
    return held


def split_rows(
    parts: Tensor, labels: Tensor | None, settings: SourceConfig, where: str
) -> list[Tensor]:
    """The rows of training, validation and test images, of images whose parts the source may name."""
    part = parts.numpy().copy()
    names = None if labels is None else labels.numpy()
    for index, share in ((2, settings.test_share), (1, settings.validation_share)):
        if not (part == index).any():
            rows = np.flatnonzero(part == 0)
            missing = 2 - len({*part[part > 0].tolist()})
            require(
                len(rows) > missing,
                f"{where} has {len(part):,} images; it takes 3 or more, so that there are some to train on, to "
                "validate with and to test",
            )
            of = None if names is None else names[rows]
            part[rows[hold_back(of, len(rows), share, [settings.split_seed, index])]] = index
    return [torch.from_numpy(np.flatnonzero(part == index)) for index in range(3)]
