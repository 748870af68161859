"""A data set from a file of images: its classes, its splits, its range of values, in memory or on disk."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..settings.data import EIGHT_BITS, SourceConfig, ValueRange
from ..support.errors import UserError, printable, require
from .dataset import Dataset, Split
from .formats.pages import file_of_page
from .splits import sorted_random_rows, split_rows
from .stored import SPLITS, ImageStore, StoredImages
from .values import Facts, check_part, choose_range, describe_values

MAX_BYTES_IN_MEMORY = 2**31  # of pixels, for `in_memory` auto
PERCENTILE_IMAGES = 2000  # that percentiles are taken of


def dataset_from_store(
    store: ImageStore,
    settings: SourceConfig,
    name: str,
    source: Path,
    classes: Sequence[str] | None = None,
) -> Dataset:
    """The data set of an image store decoded from `source`, in memory or on disk. Its classes are numbered in the order
    of `classes`, if these are their names, else as `class_order` has it. Raises UserError."""
    labels, names = number_labels(store, classes)
    where = printable(source)
    groups = None
    if settings.group_by is not None:
        require(store.table is not None, f"--group-by: {where} has no file names; prepare it again")
        assert store.table is not None
        groups = store.table.groups(settings.group_by, where)
    files = None if groups is not None or store.table is None else files_of_pages(store.table.names)
    rows, told = split_files(store.split_index.numpy(), labels, settings, where, groups, files)
    facts, images = store.metadata.facts, store.images
    value_range, reading = EIGHT_BITS, list[str]()
    if settings.range != "auto" or facts != Facts():
        extents = [store.extents_of(split) for split in rows]
        value_range, reading = range_of_splits(
            facts, extents, settings, where, lambda some: images.read_values(rows[0][some])
        )
    pixels = images.with_range(value_range)
    large = pixels.nbytes > MAX_BYTES_IN_MEMORY
    on_disk = settings.in_memory == "no" or (settings.in_memory == "auto" and large)
    all_images = Split(pixels, labels)
    splits = []
    for split in rows:
        part = (all_images.take if on_disk else all_images.__getitem__)(split)
        table = None if store.table is None else store.table.take(split)
        splits.append(Split(part.images, part.labels, table))
    return Dataset.from_splits(
        name,
        splits,
        classes=None if names is None else tuple(names),
        black_and_white=store.metadata.black_and_white,
        digest=content_digest(store, pixels, labels, rows),
        value_range=value_range,
        reading=(*store.metadata.reading, *told, *reading),
    )


def number_labels(
    store: ImageStore, classes: Sequence[str] | None
) -> tuple[Tensor | None, list[str] | None]:
    """The labels (N,) of a store and the names of their classes, numbered as `dataset_from_store` says."""
    labels, names = store.labels, store.metadata.classes
    if labels is not None and names is not None:
        trained = set(labels[store.split_index == 0].unique().tolist())
        own = {name for number, name in enumerate(names) if number in trained}
        # Classes that train lacks come last.
        ordered = sorted(class_order(names), key=lambda name: name not in own)
        order = list(classes or ()) if set(classes or ()) == set(names) else ordered
        numbers = {name: number for number, name in enumerate(order)}
        labels, names = torch.tensor([numbers[name] for name in names])[labels], order
    return labels, names


def content_digest(
    store: ImageStore, pixels: StoredImages, labels: Tensor | None, rows: Sequence[Tensor]
) -> str:
    """Hash of what a data set has: the values, their range, the rows of each split, the labels."""
    key: list[Any] = [store.metadata.sha256, pixels.shape]
    if pixels.value_range != EIGHT_BITS:
        key.append(asdict(pixels.value_range))
    digest = hashlib.sha256(json.dumps(key).encode())
    for split in rows:
        digest.update(split.numpy().tobytes())
    if labels is not None:
        digest.update(labels.numpy().tobytes())
    return digest.hexdigest()


def files_of_pages(names: Sequence[str]) -> list[str] | None:
    """The file of each image; None where no file has several images."""
    files = [*map(file_of_page, names)]
    return None if files == [*names] else files


def split_files(
    split_index: np.ndarray,
    labels: Tensor | None,
    settings: SourceConfig,
    where: str,
    groups: Sequence[str] | None,
    files: Sequence[str] | None,
) -> tuple[list[Tensor], list[str]]:
    """`split_rows` by `groups`; else by the `files` of pages, or by page where files are too few, and a sentence on
    it."""
    if files is None:
        return split_rows(split_index, labels, settings, where, groups), []
    count = len(set(files))
    told = f"{len(files):,} images from {count:,} file{'s' * (count > 1)}"
    try:
        rows = split_rows(split_index, labels, settings, where, files)
        return rows, [f"{told}: all pages of a file are in one split"]
    except UserError:
        rows = split_rows(split_index, labels, settings, where)
        return rows, [
            f"{told}: too few files to split by file, so that pages of one file are in several splits"
        ]


def range_of_splits(
    facts: Facts,
    extents: Sequence[Sequence[np.ndarray] | np.ndarray],
    settings: SourceConfig,
    where: str,
    read_training: Callable[[Tensor], np.ndarray],
) -> tuple[ValueRange, list[str]]:
    """The range of a data set, from its training images, and sentences on it. `extents` of the training, validation and
    test images: the smallest and the largest value of each, (n,); `read_training` gives training images by their rows.
    Raises UserError."""
    (lows, highs), *_ = extents

    def percentiles(ends: tuple[float, float]) -> tuple[float, float]:
        sample = read_training(sorted_random_rows(len(lows), PERCENTILE_IMAGES, 0))
        low, high = np.percentile(sample, ends, method="nearest").tolist()
        return low, high

    value_range = choose_range(
        facts, float(lows.min()), float(highs.max()), settings.range, where, percentiles
    )
    if facts.bits:
        sentences: list[str | None] = []
    else:
        sentences = [
            check_part(low, high, value_range, f"{where}, {split}", settings.range == "auto")
            for split, (low, high) in zip(SPLITS, extents, strict=True)
        ]
    told = [describe_values(value_range, facts), *sentences]
    return value_range, [sentence for sentence in told if sentence]


def class_order(names: Sequence[str]) -> list[str]:
    """Class names in the order of their numbers: by value where all are whole numbers, else as they are."""
    if all(re.fullmatch(r"-?\d{1,300}", name) for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return list(names)
