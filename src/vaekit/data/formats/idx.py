"""The IDX format of MNIST: a magic number, big-endian sizes, then bytes; often gzipped."""

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
    """Read the uint8 tensor of an IDX file, gzipped or not, with the given number of dimensions.

    Raises UserError if the file is missing, damaged, of another shape, or the md5 of its unpacked bytes is not `md5`.
    """
    where, header_size = printable(path), 4 + 4 * dimensions
    try:
        packed_size = path.stat().st_size
        with path.open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if zipped else path.open("rb") as unpacked:
            header = unpacked.read(header_size)
            # The type of byte elements is 0x08; the last byte of the magic number is the number of dimensions.
            require(
                header[:4] == bytes([0, 0, 8, dimensions]) and len(header) == header_size,
                f"{where} is not an IDX file of bytes with {dimensions} dimensions",
            )
            shape = struct.unpack(f">{dimensions}I", header[4:])
            size = math.prod(shape)
            # A file whose header declares an implausible size is refused without unpacking it.
            content = unpacked.read(size + 1) if size <= max(2**28, 1000 * packed_size) else b""
    except FileNotFoundError:
        raise UserError(f"{where} is missing; put the data set's file there") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{where} cannot be read ({error}); it is damaged, get it again") from None
    difference = "more" if len(content) > size else "fewer"
    require(
        len(content) == size > 0,
        f"{where} declares {' x '.join(map(str, shape))} bytes but has {difference}; it is damaged, get it again",
    )
    if md5 is not None:
        digest = hashlib.md5(header + content, usedforsecurity=False).hexdigest()
        require(digest == md5, f"{where} is not the original file (its hash differs); get it again")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).reshape(shape)


def find_idx(folder: Path) -> dict[str, Path] | None:
    """Find the four files of a data set in IDX format, by train-images, train-labels, test-images and test-labels.

    None if the folder has no such file. Raises UserError if it has only some of them, or those of several data sets.
    """
    files: dict[str, Path] = {}
    prefixes = set[str]()
    for path in sorted(folder.iterdir()):
        match = re.fullmatch(
            r"(.*?)(train|t10k|test)[-_](images|labels)[-.]idx[13][-.]ubyte(\.gz)?", path.name
        )
        if match and path.is_file():
            prefixes.add(match[1])
            files.setdefault(f"{match[2].replace('t10k', 'test')}-{match[3]}", path)
    if not files:
        return None
    names = ", ".join(sorted(map(printable, prefixes)))
    require(
        len(prefixes) == 1,
        f"{printable(folder)} has IDX files of several data sets ({names}); put each in a folder of its own",
    )
    for name in ("train-images", "train-labels", "test-images", "test-labels"):
        require(
            name in files, f"{printable(folder)} has IDX files, but none called {name}-idx...-ubyte"
        )
    return files


def read_idx_files(files: dict[str, Path], md5: dict[str, str] | None = None) -> dict[str, Split]:
    """Read the train and test splits from the files of `find_idx`, checked by md5 of the unpacked files."""
    splits = {}
    for name in ("train", "test"):
        images, labels = (
            read_idx(files[f"{name}-{kind}"], dimensions, (md5 or {}).get(f"{name}-{kind}"))
            for kind, dimensions in (("images", 3), ("labels", 1))
        )
        require(
            len(images) == len(labels),
            f"{printable(files[f'{name}-images'])} has {len(images):,} images but {len(labels):,} labels",
        )
        splits[name] = Split(images[:, None], labels)
    return splits
