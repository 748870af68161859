"""The IDX format of MNIST and its like: a magic number, big-endian sizes, then bytes; often gzipped."""

from __future__ import annotations

import gzip
import hashlib
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..checks import UserError, printable, require
from .dataset import Split


def read_idx(path: Path, dimensions: int, md5: str | None = None) -> Tensor:
    """The uint8 tensor of an IDX file, gzipped or not, of the given number of dimensions.

    Raises UserError where the file is missing, damaged, of another shape, or its unpacked bytes differ from `md5`.
    """
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except FileNotFoundError:
        raise UserError(f"{printable(path)} is missing; put the data set's file there") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"{printable(path)} cannot be read ({error}); it is damaged, get it again"
        ) from None
    # The type of byte elements is 0x08; the last byte of the magic number counts the dimensions.
    header = 4 + 4 * dimensions
    require(
        content[:4] == bytes([0, 0, 8, dimensions]) and len(content) >= header,
        f"{printable(path)} is no IDX file of bytes in {dimensions} dimensions",
    )
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    size = int(np.prod(shape, dtype=object))
    require(
        len(content) == header + size,
        f"{printable(path)} says it holds {' x '.join(map(str, shape))} bytes but has {len(content) - header}; it is "
        "damaged, get it again",
    )
    if md5 is not None and hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
        raise UserError(
            f"{printable(path)} is not the original file (its hash differs); get it again"
        )
    return torch.frombuffer(bytearray(content[header:]), dtype=torch.uint8).reshape(shape)


def find_idx(folder: Path) -> dict[str, Path] | None:
    """The four files of a data set in IDX format, by train-images, train-labels, test-images and test-labels.

    None if the folder has no such file; UserError if it has some of them.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        match = re.search(
            r"(train|t10k|test)[-_](images|labels)[-.]idx[13][-.]ubyte(\.gz)?$", path.name
        )
        if match:
            found.setdefault(f"{match[1].replace('t10k', 'test')}-{match[2]}", path)
    if not found:
        return None
    for name in ("train-images", "train-labels", "test-images", "test-labels"):
        require(
            name in found, f"{printable(folder)} has IDX files, but none called {name}-idx...-ubyte"
        )
    return found


def read_idx_folder(found: dict[str, Path], md5: dict[str, str] | None = None) -> dict[str, Split]:
    """Training and test images and labels of the files that `find_idx` found, checked by md5 of the unpacked files."""
    splits = {}
    for part in ("train", "test"):
        images, labels = (
            read_idx(found[f"{part}-{kind}"], size, (md5 or {}).get(f"{part}-{kind}"))
            for kind, size in (("images", 3), ("labels", 1))
        )
        require(
            len(images) == len(labels),
            f"{printable(found[f'{part}-images'])} has {len(images):,} images, its labels are {len(labels):,}",
        )
        splits[part] = Split(images[:, None], labels)
    return splits
