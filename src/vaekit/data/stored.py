"""Images in a safetensors file, read on demand, and the reading and writing of that file.

Tensors: `images` (N, C, H, W), values of a type in STORED; `labels` (N,), int64, optional; `parts` (N,), uint8: the
split of each image in its source, an index into SPLITS; `extents` (N, 2), float64, where the values are not uint8: the
smallest and largest value of each image. Of image files also `hashes` (N, 16), uint8, of the values of each image, and
`table`, JSON as uint8: file names and metadata (image_table.py). The metadata entry "vaekit" is a JSON object, the
fields of StoreMetadata.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from torch import Tensor

from ..settings.data import EIGHT_BITS, ValueRange
from ..support.atomic import atomic_write
from ..support.console import ProgressBar
from ..support.errors import UserError, printable, reason, record_from_dict, require
from .image_table import ImageTable, TableContent
from .values import STORED, Facts, is_plain, to_pixels

CHUNK_BYTES = 2**24  # of images that are read at once
Chunk = tuple[np.ndarray, np.ndarray | None, np.ndarray]  # images, labels, split indices
SPLITS = ("train", "validation", "test")
HASH_BYTES = 16
FORMAT = 1


@dataclass(frozen=True)
class StoreMetadata:
    """Metadata of an image store. `sha256` is of the values, in order; `bad` is the number of unreadable images left
    out, `bad_names` the first of them; `facts` is what the values are; `reading` as in Dataset."""

    name: str
    classes: list[str] | None
    sha256: str
    black_and_white: bool
    bad: int
    bad_names: list[str]
    format: int = FORMAT
    facts: Facts = Facts()  # noqa: RUF009
    reading: list[str] = field(default_factory=list)


def chunk_slices(count: int, bytes_per_image: int, max_bytes: int = CHUNK_BYTES) -> Iterator[slice]:
    """Yield slices of `count` images, each of up to `max_bytes`, or of one image."""
    step = max(1, max_bytes // max(1, bytes_per_image))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


class OpenFile:
    """An open file that stays the same even if its path is replaced; closed when garbage-collected."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))

    def stamp(self) -> tuple[int, ...]:
        """What tells this file from another of the same path."""
        status = os.fstat(self.descriptor)
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns

    def __reduce__(self) -> tuple[Any, ...]:
        """Opened again in another process, such as a worker of a DataLoader."""
        return reopen, (self.path, self.stamp())

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)

    def read(self, buffer: memoryview, start: int) -> None:
        """Fill a buffer from offset `start` in the file. Raises UserError if the file is too short."""
        done = 0
        while done < len(buffer):
            if hasattr(os, "preadv"):
                count = os.preadv(self.descriptor, [buffer[done:]], start + done)
            else:  # Windows
                os.lseek(self.descriptor, start + done, os.SEEK_SET)
                content = os.read(self.descriptor, len(buffer) - done)
                count = len(content)
                buffer[done : done + count] = content
            require(count > 0, "a file of images was truncated while being read; create it again")
            done += count


def reopen(path: Path, stamp: tuple[int, ...]) -> OpenFile:
    """The file that another process has open. Raises UserError if its path has another file by now, or none."""
    require(path.is_file(), f"{printable(path)} was removed while in use; load the data set again")
    file = OpenFile(path)
    require(
        file.stamp() == stamp,
        f"{printable(path)} was replaced while in use; load the data set again",
    )
    return file


class StoredImages:
    """Images (N, C, H, W) in a file; indexing reads their values, makes pixels of them by `value_range`, uint8 or
    float32 in [0, 1], and moves these to `device`. `stored` is the type of the values, in STORED.

    Read, not memory-mapped: mapped pages count as memory, and one access maps up to 2 MB of them (docs/design/0013).
    """

    ndim = 4

    def __init__(
        self,
        path: Path | OpenFile,
        offset: int,
        shape: tuple[int, int, int, int],
        rows: Tensor | None = None,
        device: torch.device | None = None,
        stored: str = "uint8",
        value_range: ValueRange = EIGHT_BITS,
    ) -> None:
        self.file = OpenFile(path) if isinstance(path, Path) else path
        self.offset, self.file_shape = offset, shape
        self.rows = torch.arange(shape[0]) if rows is None else rows
        self.device = device or torch.device("cpu")
        self.stored, self.value_range = np.dtype(stored), value_range

    @property
    def dtype(self) -> torch.dtype:
        """The type of the pixels."""
        plain = self.stored == np.uint8 and is_plain(self.value_range)
        return torch.uint8 if plain else torch.float32

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self.rows), *self.file_shape[1:]))

    @property
    def bytes_per_image(self) -> int:
        """Size of the values of an image in the file."""
        return math.prod(self.file_shape[1:]) * self.stored.itemsize

    @property
    def nbytes(self) -> int:
        """Size of the pixels in memory."""
        return self.shape.numel() * self.dtype.itemsize

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, indices: slice | Tensor) -> Tensor:
        rows = self.rows[indices if isinstance(indices, slice) else indices.cpu()]
        pixels = to_pixels(torch.from_numpy(self.read_values(rows)), self.value_range)
        return pixels.to(self.device, non_blocking=True)

    def index_select(self, dim: int, indices: Tensor) -> Tensor:
        assert dim == 0
        return self[indices]

    def take(self, rows: Tensor) -> StoredImages:
        """The images of these rows, still in the file."""
        return self._changed(rows=self.rows[rows])

    def to(self, device: torch.device) -> StoredImages:
        return self._changed(device=device)

    def with_range(self, value_range: ValueRange) -> StoredImages:
        """The images whose values become pixels by another range."""
        return self._changed(value_range=value_range)

    def _changed(self, **changes: Any) -> StoredImages:
        kept = {"rows": self.rows, "device": self.device, "value_range": self.value_range}
        fields = {**kept, **changes}
        return StoredImages(
            self.file, self.offset, self.file_shape, stored=self.stored.name, **fields
        )

    def sha256(self, bar: ProgressBar) -> str:
        """Hash of all values of the file, in file order."""
        digest, rows = hashlib.sha256(), torch.arange(self.file_shape[0])
        slices = [*chunk_slices(len(rows), self.bytes_per_image)]
        for chunk in bar.track(slices, "checking the pixels"):
            digest.update(self.read_values(rows[chunk]).data)
        return digest.hexdigest()

    def read_values(self, rows: Tensor) -> np.ndarray:
        """The values of these rows of the file (n, C, H, W)."""
        numbers = rows.numpy()
        images = np.empty((len(numbers), *self.file_shape[1:]), self.stored)
        size = self.bytes_per_image
        buffer = images.reshape(-1).view(np.uint8).data
        breaks = np.flatnonzero(np.diff(numbers) != 1) + 1  # consecutive rows are read at once
        starts = [0, *breaks.tolist(), len(numbers)]
        for start, end in itertools.pairwise(starts):
            if end > start:
                position = self.offset + int(numbers[start]) * size
                self.file.read(buffer[start * size : end * size], position)
        return images


@dataclass(frozen=True)
class ImageStore:
    """An opened file of images; `split_index` (N,) is each image's index into SPLITS. `extents` (N, 2) are the smallest
    and largest value of each image, None where the values are uint8; `table` names the files."""

    path: Path
    images: StoredImages
    labels: Tensor | None
    split_index: Tensor
    metadata: StoreMetadata
    extents: np.ndarray | None = None
    table: ImageTable | None = None

    def rows_by_split(self) -> dict[str, Tensor]:
        """The rows (n,) of the images of each split of the source that has some."""
        rows = [torch.nonzero(self.split_index == i)[:, 0] for i in range(len(SPLITS))]
        return {name: part for name, part in zip(SPLITS, rows, strict=True) if len(part)}

    def extents_of(self, rows: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """The smallest and the largest value of each of these images, (n,)."""
        if self.extents is not None:
            lows, highs = self.extents[rows.numpy()].T
            return lows, highs
        chunks = chunk_slices(len(rows), self.images.bytes_per_image)
        found = [image_extents(self.images.read_values(rows[chunk])) for chunk in chunks]
        lows, highs = np.concatenate(found).T
        return lows, highs


def image_extents(values: np.ndarray) -> np.ndarray:
    """The smallest and largest value of each image, (N, 2), float64."""
    flat = values.reshape(len(values), -1)
    return np.stack([flat.min(1), flat.max(1)], axis=1).astype(np.float64)


def open_store(path: Path, bar: ProgressBar | None = None) -> ImageStore:
    """Open a file of `write_store` and check the hash of its pixels, which reads all of them once. Raises UserError if
    it is missing, damaged or another kind of file."""
    require(path.is_file(), f"there is no file {printable(path)}")  # opening a pipe would wait
    try:
        with safetensors.safe_open(path, "pt") as file:
            keys, entries = set(file.keys()), file.metadata() or {}
            require(
                "vaekit" in entries and {"images", "parts"} <= keys,
                f"{printable(path)} is not a file of images written by `vaekit data prepare`",
            )
            metadata = record_from_dict(
                StoreMetadata, json.loads(entries["vaekit"]), f"{path}, metadata"
            )
            shape = file.get_slice("images").get_shape()
            labels = file.get_tensor("labels") if "labels" in keys else None
            split_index = file.get_tensor("parts")
            extents = file.get_tensor("extents").numpy() if "extents" in keys else None
            table = read_table(file, len(split_index), printable(path))
        with path.open("rb") as content:
            (length,) = struct.unpack("<Q", content.read(8))
            entry = json.loads(content.read(length))["images"]
        stored = metadata.facts.stored
        images = StoredImages(path, 8 + length + entry["data_offsets"][0], shape, stored=stored)
        expected = (
            metadata.format == FORMAT and entry["dtype"] == STORED[stored] and len(shape) == 4
            and (stored == "uint8" or (extents is not None and extents.shape == (shape[0], 2)))
            and split_index.dtype == torch.uint8 and split_index.shape == (shape[0],)
            and int(split_index.max()) < len(SPLITS)
            and (labels is None or (labels.dtype == torch.int64 and labels.shape == (shape[0],)))
        )  # fmt: skip
        if not expected:
            raise ValueError("unexpected tensors or metadata")
    except UserError:
        raise
    except Exception as error:  # any kind means that the file is not as it was written
        raise UserError(
            f"{printable(path)} is damaged ({reason(error)}); create it again"
        ) from None
    require(
        images.sha256(bar or ProgressBar(False)) == metadata.sha256,
        f"{printable(path)} is damaged (the hash of its pixels differs); remove it, and create it again",
    )
    return ImageStore(path, images, labels, split_index, metadata, extents, table)


def read_table(file: Any, count: int, where: str) -> ImageTable | None:
    """The table of an open file of `count` images; None without one. Raises ValueError for one of another form."""
    if not {"hashes", "table"} <= set(file.keys()):
        return None
    hashes, content = file.get_tensor("hashes"), file.get_tensor("table")
    if hashes.shape != (count, HASH_BYTES) or not hashes.dtype == content.dtype == torch.uint8:
        raise ValueError("unexpected tensors or metadata")
    return ImageTable(TableContent(content, count, where), torch.arange(count), hashes)


def pixel_hashes(images: np.ndarray) -> np.ndarray:
    """A hash of the pixels of each image (N, 16), uint8."""
    content = np.ascontiguousarray(images).reshape(len(images), -1).view(np.uint8)
    digests = [hashlib.blake2b(row.data, digest_size=HASH_BYTES).digest() for row in content]
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, HASH_BYTES)


def write_store(
    path: Path,
    name: str,
    classes: list[str] | None,
    shape: tuple[int, int, int],
    chunks: Iterable[Chunk],
    bad: list[str],
    stored: str = "uint8",
    facts: Callable[[], Facts] = Facts,
    table: Callable[[], np.ndarray] | None = None,
    reading: Sequence[str] = (),
) -> None:
    """Write chunks of images (n, C, H, W) of the type `stored`, labels (n,) and split indices (n,) in bounded memory,
    atomically.

    `bad` names the images left out, and `table` gives their names and columns as bytes; they and `facts` are read after
    the last chunk. Raises OSError (a full disk) and leaves no file.
    """
    size = len(json.dumps([classes, list(reading)]))
    header_size = 2**16 + 2 * size // 8 * 8  # reserved, written last
    digest, binary = hashlib.sha256(), stored == "uint8"
    extents: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    split_indices: list[np.ndarray] = []
    hashes: list[np.ndarray] = []
    with atomic_write(path) as file:
        file.write(bytes(header_size))
        for images, chunk_labels, split_index in chunks:
            # Written, not memory-mapped: a full disk raises an error here, but would kill the process there.
            content = np.ascontiguousarray(images, dtype=stored)
            file.write(content.data)
            digest.update(content.data)
            binary = binary and bool(((content == 0) | (content == 255)).all())
            if stored != "uint8":
                extents.append(image_extents(content))
            split_indices.append(split_index.astype(np.uint8))
            if table is not None:
                hashes.append(pixel_hashes(content))
            if chunk_labels is not None:
                labels.append(chunk_labels.astype("<i8"))
        assert not labels or len(labels) == len(split_indices)  # all have labels, or none
        tensors = {"labels": np.concatenate(labels)} if labels else {}
        if extents:
            tensors["extents"] = np.concatenate(extents)
        tensors["parts"] = np.concatenate(split_indices)
        if table is not None:
            tensors |= {"hashes": np.concatenate(hashes), "table": table()}
        count, found = len(tensors["parts"]), facts()
        binary = binary or found.bits
        metadata = StoreMetadata(
            name,
            classes,
            digest.hexdigest(),
            binary,
            len(bad),
            [b[:200] for b in bad[:5]],
            facts=found,
            reading=list(reading),
        )
        for array in tensors.values():
            file.write(array.data)
        text = store_header(metadata, [count, *shape], tensors)
        file.seek(0)
        file.write(struct.pack("<Q", header_size - 8) + text.ljust(header_size - 8))


def store_header(
    metadata: StoreMetadata, shape: list[int], tensors: Mapping[str, np.ndarray]
) -> bytes:
    """The JSON header of a safetensors file: images of a shape (N, C, H, W), then the `tensors` in order."""
    stored = metadata.facts.stored
    end = math.prod(shape) * np.dtype(stored).itemsize
    header: dict[str, Any] = {
        "__metadata__": {"vaekit": json.dumps(asdict(metadata))},
        "images": {"dtype": STORED[stored], "shape": shape, "data_offsets": [0, end]},
    }
    types = {"int64": "I64", "float64": "F64", "uint8": "U8"}
    for key, array in tensors.items():
        offsets = [end, end + array.nbytes]
        dtype = types[array.dtype.name]
        header[key] = {"dtype": dtype, "shape": [*array.shape], "data_offsets": offsets}
        end += array.nbytes
    return json.dumps(header).encode()
