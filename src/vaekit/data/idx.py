"""The IDX format of MNIST and its like: a magic number, big-endian sizes, then bytes; often gzipped."""

from __future__ import annotations

import gzip
import hashlib
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..checks import UserError, require


def read_idx(path: Path, dimensions: int, md5: str | None = None) -> Tensor:
    """The uint8 tensor of an IDX file, gzipped or not, of the given number of dimensions.

    Raises UserError where the file is missing, damaged, of another shape, or its unpacked bytes differ from `md5`.
    """
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; put the data set's file there") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({error}); it is damaged, get it again") from None
    # The type of byte elements is 0x08; the last byte of the magic number counts the dimensions.
    header = 4 + 4 * dimensions
    require(
        content[:4] == bytes([0, 0, 8, dimensions]) and len(content) >= header,
        f"{path} is no IDX file of bytes in {dimensions} dimensions",
    )
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    size = int(np.prod(shape, dtype=object))
    require(
        len(content) == header + size,
        f"{path} says it holds {' x '.join(map(str, shape))} bytes but has {len(content) - header}; it is "
        "damaged, get it again",
    )
    if md5 is not None and hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
        raise UserError(f"{path} is not the original file (its hash differs); get it again")
    return torch.frombuffer(bytearray(content[header:]), dtype=torch.uint8).reshape(shape)
