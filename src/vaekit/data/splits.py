"""Splitting of images into train, validation and test, and selection of rows."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ..settings.data import SourceConfig
from ..support.errors import flag_name, printable, require
from .dataset import Dataset, Split
from .stored import SPLITS


def held_out_mask(
    labels: np.ndarray | None, count: int, share: float, seed: list[int]
) -> np.ndarray:
    """Mask of the images to hold out, (count,), bool: a share of `count`, at least one and not all.

    Each image is equally likely. Each class is in proportion to its size, rounded up or down: systematic sampling along
    the images in order of class, in random order within a class. A class left empty gets one image back, in exchange.
    """
    generator = np.random.default_rng(seed)
    labels = np.zeros(count, np.int64) if labels is None else labels
    order = np.lexsort((generator.random(count), labels))
    size = min(count - 1, max(1, round(share * count)))
    positions = (generator.random() + np.arange(size)) * (count / size)
    held_out = np.zeros(count, bool)
    held_out[order[positions.astype(np.int64)]] = True
    remaining = np.bincount(labels[~held_out], minlength=int(labels.max()) + 1)
    for label in np.flatnonzero((remaining == 0) & (np.bincount(labels) > 0)):
        spare = np.flatnonzero(~held_out & (remaining[labels] > 1))
        if len(spare):
            other, own = generator.choice(spare), generator.choice(np.flatnonzero(labels == label))
            held_out[other], held_out[own] = True, False
            remaining[labels[other]] -= 1
            remaining[label] += 1
    return held_out


def held_out_groups(
    groups: np.ndarray,
    labels: np.ndarray | None,
    share: float,
    seed: list[int],
    parts: int,
    where: str,
) -> np.ndarray:
    """Mask of the images to hold out, (N,), bool: whole `groups` (N,), numbered from 0, chosen at random until they
    have about a share of the images, but not the last images of a class. One group at least is left for each of the
    other `parts`. Raises UserError where that cannot be.
    """
    labels = np.zeros(len(groups), np.int64) if labels is None else labels
    sizes = np.bincount(groups)
    remaining = np.bincount(labels)
    pairs, counts = np.unique(np.stack([groups, labels]), axis=1, return_counts=True)
    starts = np.searchsorted(pairs[0], np.arange(len(sizes) + 1))
    order = np.random.default_rng(seed).permutation(len(sizes))
    target, taken, size = share * len(groups), list[int](), 0

    def take(group: int) -> bool:
        """Hold a group out, if some images of its classes remain."""
        own = slice(starts[group], starts[group + 1])
        rest = remaining[pairs[1, own]] - counts[own]
        if (rest <= 0).any() or len(taken) + 1 + parts > len(sizes):
            return False
        remaining[pairs[1, own]] = rest
        taken.append(group)
        return True

    for group in order.tolist():
        closer = abs(size + sizes[group] - target) < abs(size - target)
        if closer and take(group):
            size += int(sizes[group])
    if not taken:  # all groups are larger than the share: the smallest
        any(take(group) for group in order[np.argsort(sizes[order], kind="stable")].tolist())
    require(
        bool(taken),
        f"{where} has too few groups ({len(sizes):,}) to hold some out, and to leave {parts} and images of every class "
        "in training; choose other groups than --group-by has",
    )
    return np.isin(groups, taken)


def check_groups(
    groups: Sequence[str], index: np.ndarray, settings: SourceConfig, where: str
) -> None:
    """Raise UserError where the source itself has a group in two splits."""
    first: dict[str, int] = {}
    for group, split in zip(groups, index.tolist(), strict=True):
        require(
            first.setdefault(group, split) == split,
            f"--group-by {settings.group_by}: {where} has the group {printable(group)!r} in its {SPLITS[split]} and "
            f"its {SPLITS[first[group]]} images; move them together",
        )


def split_rows(
    split_index: np.ndarray,
    labels: Tensor | None,
    settings: SourceConfig,
    where: str,
    groups: Sequence[str] | None = None,
) -> list[Tensor]:
    """The rows of the training, validation and test images, given each image's index into SPLITS, (N,).

    A split without images is held out from training: images at random, in proportion to their classes, or whole
    `groups` of images. Raises UserError for too few training images or groups.
    """
    index = split_index.copy()
    numbers = None
    if groups is not None:
        check_groups(groups, index, settings, where)
        numbers = np.unique(np.array(groups, object).astype(str), return_inverse=True)[1]
    classes = None if labels is None else labels.numpy()
    for split, share in ((2, settings.test_share), (1, settings.validation_share)):
        if not (index == split).any():
            rows = np.flatnonzero(index == 0)
            missing = 2 - len({*index[index > 0].tolist()})
            require(
                len(rows) > missing,
                f"{where} has {len(rows):,} training images; at least {missing + 1} are needed, so that some can be "
                f"held out for {'validation' if missing == 1 else 'validation and test'}",
            )
            strata = None if classes is None else classes[rows]
            seed = [settings.split_seed, split]
            if numbers is None:
                mask = held_out_mask(strata, len(rows), share, seed)
            else:
                own = np.unique(numbers[rows], return_inverse=True)[1]
                mask = held_out_groups(own, strata, share, seed, missing, where)
            index[rows[mask]] = split
    return [torch.from_numpy(np.flatnonzero(index == split)) for split in range(3)]


def complete_splits(given: Mapping[str, Split], settings: SourceConfig, where: str) -> list[Split]:
    """The train, validation and test splits: those given, the missing ones held out from train."""
    train = given["train"]
    others = [SPLITS.index(name) for name in given if name != "train"]
    # One row stands for the whole of another split that is given.
    split_index = np.array([0] * len(train) + others, np.uint8)
    labels = train.labels
    if labels is not None:
        labels = torch.cat([labels, labels.new_zeros(len(others))])
    rows = split_rows(split_index, labels, settings, where)
    return [
        given[name] if name in given and name != "train" else train.take(rows[i])
        for i, name in enumerate(SPLITS)
    ]


def subset_order(labels: Tensor | None, count: int, seed: list[int]) -> Tensor:
    """The rows 0 ... count - 1 in an order that follows from the seed, of which any number of first ones are a subset:
    one image of each class, then each class in proportion to its size."""
    generator = np.random.default_rng(seed)
    classes = np.zeros(count, np.int64) if labels is None else labels.numpy()
    order = np.lexsort((generator.random(count), classes))
    _, starts, number, sizes = np.unique(
        classes[order], return_index=True, return_inverse=True, return_counts=True
    )
    rank = np.arange(count) - starts[number]  # of each image among those of its class
    position = (rank + generator.random(len(sizes))[number]) / sizes[number]
    position[rank == 0] -= 1
    return torch.from_numpy(order[np.argsort(position, kind="stable")])


def take_subsets(dataset: Dataset, settings: SourceConfig, ordered: bool) -> Dataset:
    """The data set with the numbers of training and validation images of the settings: the first ones if `ordered`,
    else those that the seed chooses, in their order. Raises UserError where there are fewer."""
    splits, digest = dict(dataset.splits), dataset.digest
    for name in ("train", "validation"):
        number, split = getattr(settings, f"{name}_images"), splits[name]
        if number is None or number == len(split):
            continue
        flag, word = flag_name(f"{name}_images"), name.replace("train", "training")
        require(
            number < len(split),
            f"{flag} is {number:,}, but {printable(dataset.name)} has {len(split):,} {word} images; give at most that",
        )
        rows = torch.arange(number)
        if not ordered:
            classes = 0 if split.labels is None else len(split.labels.unique())
            require(
                number >= classes or name != "train",
                f"{flag} is {number:,}, but there are {classes:,} classes; give at least one image of each",
            )
            seed = [settings.split_seed, 3 + SPLITS.index(name)]
            rows = subset_order(split.labels, len(split), seed)[:number].sort().values
        splits[name] = split.take(rows)
        if digest is not None:
            digest = hashlib.sha256(f"{digest} {name} {rows.tolist()}".encode()).hexdigest()
    return dataset.with_splits(splits.values(), digest=digest)


def evenly_spaced(total: int, count: int) -> Tensor:
    """`count` evenly spaced rows of `total`, in order; all of them if they are fewer."""
    return torch.linspace(0, total - 1, min(count, total)).long()


def balanced_rows(labels: Tensor | None, total: int, count: int) -> Tensor:
    """The row of the first image of each class, then of the second, and so on up to `count` rows; evenly spaced rows of
    `total` without labels."""
    if labels is None:
        return evenly_spaced(total, count)
    by_class = [torch.nonzero(labels == label)[:count, 0] for label in labels.unique()]
    longest = max(map(len, by_class))
    interleaved = [rows[i] for i in range(longest) for rows in by_class if i < len(rows)]
    return torch.stack(interleaved[:count])


def random_rows(count: int, limit: int | None, seed: int) -> Tensor:
    """`limit` of `count` rows, or all, in a random order that follows from the seed."""
    order = np.random.default_rng(seed).permutation(count)
    return torch.from_numpy(order[:limit])


def sorted_random_rows(count: int, limit: int | None, seed: int) -> Tensor:
    """`limit` of `count` rows chosen by the seed, or all, sorted, so that a file is read in order."""
    return random_rows(count, limit, seed).sort().values
