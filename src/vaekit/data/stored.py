"""Images in a file, read as they are needed, and the file: safetensors, so that anybody can read it.

`images` (N, C, H, W), uint8; `labels` (N,), int64, where there are any; `parts` (N,), uint8: 0 train, 1 validation,
2 test as the source has them. The metadata's "vaekit" is a JSON object, the fields of About.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import struct
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from torch import Tensor

from ..support.atomic import replacing
from ..support.errors import UserError, one_line, require

CHUNK_BYTES = 2**24
PARTS = ("train", "validation", "test")
FORMAT = 1


@dataclass(frozen=True)
class About:
    """What a file of images says of them. `sha256` is of the pixels, in order; `bad` images were left out, of which
    `bad_names` are the first."""

    name: str
    classes: list[str] | None
    sha256: str
    black_and_white: bool
    bad: int
    bad_names: list[str]
    format: int = FORMAT


class Opened:
    """A file that stays what it was, even if another takes its name; closed when nobody needs it."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)

    def read(self, buffer: memoryview, start: int) -> None:
        """Fill a buffer from a place in the file. Raises UserError where the file ends before."""
        done = 0
        while done < len(buffer):
            if hasattr(os, "preadv"):
                count = os.preadv(self.number, [buffer[done:]], start + done)
            else:  # Windows
                os.lseek(self.number, start + done, os.SEEK_SET)
                found = os.read(self.number, len(buffer) - done)
                count = len(found)
                buffer[done : done + count] = found
            require(count > 0, "a file of images was cut off while it was read; make it again")
            done += count


class Stored:
    """Images (N, C, H, W), uint8, in a file; what is indexed is read, onto `device`.

    Read, not mapped: pages of a mapping count as memory, and one touch maps up to 2 MB of them (docs/design/0013).
    """

    dtype = torch.uint8
    ndim = 4

    def __init__(
        self,
        path: Path | Opened,
        offset: int,
        shape: tuple[int, int, int, int],
        rows: Tensor | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.file = Opened(path) if isinstance(path, Path) else path
        self.offset, self.file_shape = offset, shape
        self.rows = torch.arange(shape[0]) if rows is None else rows
        self.device = device or torch.device("cpu")

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self.rows), *self.file_shape[1:]))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, indices: slice | Tensor) -> Tensor:
        rows = self.rows[indices if isinstance(indices, slice) else indices.cpu()]
        return torch.from_numpy(self._read(rows.numpy())).to(self.device, non_blocking=True)

    def index_select(self, dim: int, indices: Tensor) -> Tensor:
        assert dim == 0
        return self[indices]

    def take(self, rows: Tensor) -> Stored:
        """Some of the images, left in the file."""
        return Stored(self.file, self.offset, self.file_shape, self.rows[rows], self.device)

    def to(self, device: torch.device) -> Stored:
        return Stored(self.file, self.offset, self.file_shape, self.rows, device)

    def sha256(self) -> str:
        """Hash of all pixels of the file, in its order."""
        digest, count = hashlib.sha256(), self.file_shape[0]
        step = max(1, CHUNK_BYTES // math.prod(self.file_shape[1:]))
        for start in range(0, count, step):
            digest.update(self._read(np.arange(start, min(start + step, count))).data)
        return digest.hexdigest()

    def _read(self, rows: np.ndarray) -> np.ndarray:
        images = np.empty((len(rows), *self.file_shape[1:]), np.uint8)
        size = math.prod(self.file_shape[1:])
        buffer = images.reshape(-1).data
        breaks = np.flatnonzero(np.diff(rows) != 1) + 1  # neighbours are read in one go
        starts = [0, *breaks.tolist(), len(rows)]
        for start, end in itertools.pairwise(starts):
            if end > start:
                place = self.offset + int(rows[start]) * size
                self.file.read(buffer[start * size : end * size], place)
        return images


@dataclass(frozen=True)
class Store:
    """A file of images, opened."""

    path: Path
    images: Stored
    labels: Tensor | None
    parts: Tensor
    about: About


def open_store(path: Path) -> Store:
    """Raises UserError where the file is damaged, or not one that `write_store` wrote."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            there, metadata = set(file.keys()), file.metadata() or {}
            require(
                "vaekit" in metadata and {"images", "parts"} <= there,
                f"{path} holds no images that `vaekit data prepare` wrote",
            )
            about = About(**json.loads(metadata["vaekit"]))
            shape = file.get_slice("images").get_shape()
            labels = file.get_tensor("labels") if "labels" in there else None
            parts = file.get_tensor("parts")
        with path.open("rb") as content:
            (length,) = struct.unpack("<Q", content.read(8))
            entry = json.loads(content.read(length))["images"]
        images = Stored(path, 8 + length + entry["data_offsets"][0], shape)
        assert about.format == FORMAT
        assert entry["dtype"] == "U8"
        assert len(shape) == 4
        assert parts.dtype == torch.uint8
        assert parts.shape == (shape[0],)
        assert int(parts.max()) < len(PARTS)
        if labels is not None:
            assert labels.dtype == torch.int64
            assert labels.shape == (shape[0],)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except Exception as error:  # of whatever kind: the file is not what we wrote
        reason = one_line(error) or "not the tensors that belong there"
        raise UserError(f"{path} is damaged ({reason}); make it again") from None
    return Store(path, images, labels, parts, about)


def write_store(
    path: Path,
    name: str,
    classes: list[str] | None,
    shape: tuple[int, int, int],
    chunks: Iterable[tuple[np.ndarray, np.ndarray | None, np.ndarray]],
    bad: list[str],
) -> None:
    """Write images (n, C, H, W), labels (n,) and parts (n,) as they come, in bounded memory; whole or not at all.

    `bad` names what was left out, once all have come. Raises OSError (a full disk), and leaves nothing then.
    """
    room = 2**16 + 2 * len(json.dumps(classes)) // 8 * 8  # for the header, which is known last
    digest, bits = hashlib.sha256(), True
    labels: list[np.ndarray] = []
    parts: list[np.ndarray] = []
    with replacing(path) as file:
        file.write(bytes(room))
        for images, given, where in chunks:
            # Written, not mapped: a full disk is an error here, and would be the end of the process there.
            content = np.ascontiguousarray(images, dtype=np.uint8)
            file.write(content.data)
            digest.update(content.data)
            bits = bits and bool(((content == 0) | (content == 255)).all())
            parts.append(where.astype(np.uint8))
            if given is not None:
                labels.append(given.astype("<i8"))
        small = {"labels": labels} if labels else {}
        assert not labels or len(labels) == len(parts)  # all have labels, or none
        tensors = {n: np.concatenate(arrays) for n, arrays in {**small, "parts": parts}.items()}
        count = len(tensors["parts"])
        about = About(name, classes, digest.hexdigest(), bits, len(bad), [b[:200] for b in bad[:5]])
        end = count * math.prod(shape)
        header: dict[str, Any] = {
            "__metadata__": {"vaekit": json.dumps(asdict(about))},
            "images": {"dtype": "U8", "shape": [count, *shape], "data_offsets": [0, end]},
        }
        for key, array in tensors.items():
            file.write(array.data)
            kind = "I64" if key == "labels" else "U8"
            span = [end, end + array.nbytes]
            header[key] = {"dtype": kind, "shape": [count], "data_offsets": span}
            end += array.nbytes
        text = json.dumps(header).encode()
        file.seek(0)
        file.write(struct.pack("<Q", room - 8) + text.ljust(room - 8))
