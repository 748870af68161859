"""Which images are held back for validation and test."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..checks import require
from .settings import SourceConfig


def hold_back(labels: np.ndarray | None, count: int, share: float, seed: list[int]) -> np.ndarray:
    """Which of `count` images to hold back, (count,), bool: a share, at least one and not all.

    All are as likely; of each class as many as its size says, to the next whole number (systematic sampling along the
    images ordered by class, within one at random).
    """
    chance = np.random.default_rng(seed)
    order = np.lexsort((chance.random(count), np.zeros(count) if labels is None else labels))
    wanted = min(count - 1, max(1, round(share * count)))
    places = (chance.random() + np.arange(wanted)) * (count / wanted)
    held = np.zeros(count, bool)
    held[order[places.astype(np.int64)]] = True
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
