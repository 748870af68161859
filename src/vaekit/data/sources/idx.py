"""The IDX format of MNIST and its like: a magic number, big-endian sizes, then bytes; often gzipped."""

from __future__ import annotations

import gzip
import hashlib
import math
import re
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor

from ...support.errors import UserError, printable, require
from ..dataset import Split


def read_idx(path: Path, dimensions: int, md5: str | None = None) -> Tensor:
    """The uint8 tensor of an IDX file, gzipped or not, of the given number of dimensions.

    Raises UserError where the file is missing, damaged, of another shape, or its unpacked bytes differ from `md5`.
    """
    where, head = printable(path), 4 + 4 * dimensions
    try:
        packed = path.stat().st_size
        with path.open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if zipped else path.open("rb") as unpacked:
            header = unpacked.read(head)
            # The type of byte elements is 0x08; the last byte of the magic number counts the dimensions.
            require(
                header[:4] == bytes([0, 0, 8, dimensions]) and len(header) == head,
                f"{where} is no IDX file of bytes in {dimensions} dimensions",
            )
            shape = struct.unpack(f">{dimensions}I", header[4:])
            size = math.prod(shape)
            # One that says it is vast is not unpacked to see whether it is.
            content = unpacked.read(size + 1) if size <= max(2**28, 1000 * packed) else b""
    except FileNotFoundError:
        raise UserError(f"{where} is missing; put the data set's file there") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{where} cannot be read ({error}); it is damaged, get it again") from None
    found = "more" if len(content) > size else "fewer"
    require(
        len(content) == size > 0,
        f"{where} says it holds {' x '.join(map(str, shape))} bytes but has {found}; it is damaged, get it again",
    )
    if md5 is not None:
        digest = hashlib.md5(header + content, usedforsecurity=False).hexdigest()
        require(digest == md5, f"{where} is not the original file (its hash differs); get it again")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).reshape(shape)


def find_idx(folder: Path) -> dict[str, Path] | None:
    """The four files of a data set in IDX format, by train-images, train-labels, test-images and test-labels.

    None if the folder has no such file; UserError if it has some of them.
    """
    found: dict[str, Path] = {}
    sets = set[str]()
    for path in sorted(folder.iterdir()):
        match = re.fullmatch(
            r"(.*?)(train|t10k|test)[-_](images|labels)[-.]idx[13][-.]ubyte(\.gz)?", path.name
        )
        if match:
            sets.add(match[1])
            found.setdefault(f"{match[2].replace('t10k', 'test')}-{match[3]}", path)
    if not found:
        return None
    several = ", ".join(sorted(map(printable, sets)))
    require(
        len(sets) == 1,
        f"{printable(folder)} has several data sets of IDX files ({several}); give each a folder of its own",
    )
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
