"""Which images are held back for validation and test."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from ..settings.data import SourceConfig
from ..support.errors import require
from .dataset import Split
from .stored import PARTS


def hold_back(labels: np.ndarray | None, count: int, share: float, seed: list[int]) -> np.ndarray:
    """Which of `count` images to hold back, (count,), bool: a share, at least one and not all.

    All are as likely; of each class as many as its size says, to the next whole number (systematic sampling along the
    images ordered by class, within one at random). But a class keeps one image, in exchange for another's.
    """
    chance = np.random.default_rng(seed)
    labels = np.zeros(count, np.int64) if labels is None else labels
    order = np.lexsort((chance.random(count), labels))
    wanted = min(count - 1, max(1, round(share * count)))
    places = (chance.random() + np.arange(wanted)) * (count / wanted)
    held = np.zeros(count, bool)
    held[order[places.astype(np.int64)]] = True
    left = np.bincount(labels[~held], minlength=int(labels.max()) + 1)
    for label in np.flatnonzero((left == 0) & (np.bincount(labels) > 0)):
        spare = np.flatnonzero(~held & (left[labels] > 1))
        if len(spare):
            other, own = chance.choice(spare), chance.choice(np.flatnonzero(labels == label))
            held[other], held[own] = True, False
            left[labels[other]] -= 1
            left[label] += 1
    return held


def split_rows(
    parts: np.ndarray, labels: Tensor | None, settings: SourceConfig, where: str
) -> list[Tensor]:
    """The rows of training, validation and test images, of images whose parts the source may name: (N,), indices into
    PARTS. What it does not name is held back from training. Raises UserError where there are too few."""
    part = parts.copy()
    names = None if labels is None else labels.numpy()
    for index, share in ((2, settings.test_share), (1, settings.validation_share)):
        if not (part == index).any():
            rows = np.flatnonzero(part == 0)
            missing = 2 - len({*part[part > 0].tolist()})
            require(
                len(rows) > missing,
                f"{where} has {len(rows):,} images to train on; it takes {missing + 1} or more, so that some can be "
                f"held back to {'validate with' if missing == 1 else 'validate with and to test'}",
            )
            of = None if names is None else names[rows]
            part[rows[hold_back(of, len(rows), share, [settings.split_seed, index])]] = index
    return [torch.from_numpy(np.flatnonzero(part == index)) for index in range(3)]


def hold_back_missing(
    given: Mapping[str, Split], settings: SourceConfig, where: str
) -> list[Split]:
    """Training, validation and test images: those given, the others held back from training."""
    train = given["train"]
    others = [PARTS.index(part) for part in given if part != "train"]
    # One row stands for the whole of a part that is there.
    parts = np.array([0] * len(train) + others, np.uint8)
    labels = train.labels
    if labels is not None:
        labels = torch.cat([labels, labels.new_zeros(len(others))])
    rows = split_rows(parts, labels, settings, where)
    return [
        given[part] if part in given and part != "train" else train.take(rows[i])
        for i, part in enumerate(PARTS)
    ]


def spread(there: int, count: int) -> Tensor:
    """`count` rows from all over those there are (all of them, where they are fewer), in order."""
    return torch.linspace(0, there - 1, min(count, there)).long()


def in_turn(labels: Tensor | None, there: int, count: int) -> Tensor:
    """The rows of the first image of each class, of the second, and so on until there are `count`; rows from all over
    where there are no labels."""
    if labels is None:
        return spread(there, count)
    places = [torch.nonzero(labels == label)[:count, 0] for label in labels.unique()]
    most = max(map(len, places))
    turns = [place[i] for i in range(most) for place in places if i < len(place)]
    return torch.stack(turns[:count])
