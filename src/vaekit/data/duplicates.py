"""Images of one part of a data set that are also in another, pixel for pixel."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..support.errors import printable
from .dataset import Dataset, Split
from .sources.catalog import parse_name
from .stored import HASH_BYTES, ImageStore, chunk_slices, pixel_hashes

MAX_PIXELS = 2**28  # hashed in about a second
PAIRS = (("test", "train"), ("validation", "train"), ("test", "validation"))


def find_duplicates(dataset: Dataset) -> list[str]:
    """A sentence on the images that each two parts share, with the first of them: its file, or else its row from 0.

    Reads all pixels of images that come from arrays; those of files were hashed when they were decoded.
    """
    return shared_images(dataset.splits)


def given_duplicates(store: ImageStore) -> list[str]:
    """The same for the parts that the source of a file of images has."""
    images = Split(store.images, None, store.table)
    return shared_images({name: images.take(rows) for name, rows in store.rows_by_split().items()})


def shared_images(splits: Mapping[str, Split]) -> list[str]:
    hashes = {name: split_hashes(split) for name, split in splits.items()}
    sentences = []
    for name, other in PAIRS:
        if not {name, other} <= splits.keys():
            continue
        shared = np.isin(hashes[name], hashes[other])
        if shared.any():
            row, count = int(shared.argmax()), int(shared.sum())
            twin = int((hashes[other] == hashes[name][row]).argmax())
            what = f"{count:,} images of {name} are" if count > 1 else f"1 image of {name} is"
            first, second = image_name(splits, name, row), image_name(splits, other, twin)
            sentences.append(f"{what} also in {other}, first {first} = {second}")
    return sentences


def duplicates_at_hand(dataset: Dataset) -> list[str]:
    """The same where it is found at once."""
    return find_duplicates(dataset) if at_hand(dataset) else []


def at_hand(dataset: Dataset) -> bool:
    """Whether duplicates are found at once: those of image files, and of the user's arrays of up to MAX_PIXELS."""
    count = sum(split.images.shape.numel() for split in dataset.splits.values())
    named = dataset.source is not None and parse_name(dataset.source.data) is not None
    return dataset.train.table is not None or (count <= MAX_PIXELS and not named)


def count_copies(dataset: Dataset) -> int:
    """Images of all parts whose pixels an earlier one has."""
    hashes = np.concatenate([split_hashes(split) for split in dataset.splits.values()])
    return len(hashes) - len(np.unique(hashes))


def split_hashes(split: Split) -> np.ndarray:
    """A hash of the pixels of each image (N,), as HASH_BYTES bytes."""
    if split.table is not None:
        rows = split.table.hashes.numpy()
    else:
        chunks = chunk_slices(len(split), split.images[:1].nbytes)
        rows = np.concatenate([pixel_hashes(split[c].images.cpu().numpy()) for c in chunks])
    return np.ascontiguousarray(rows).view(np.dtype((np.void, HASH_BYTES)))[:, 0]


def image_name(splits: Mapping[str, Split], split: str, row: int) -> str:
    table = splits[split].table
    if table is None:
        return f"row {row:,} of {split}"
    return printable(table.content.names[int(table.rows[row])])
