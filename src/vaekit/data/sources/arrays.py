"""Arrays as data sets: .npy and .npz files, folders of .npy files, and what a program has in memory."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...settings.data import SourceConfig
from ...support.console import Shown
from ...support.errors import UserError, one_line, printable, require
from ..cache import cached
from ..dataset import Dataset, Split
from ..splits import hold_back_missing
from ..stored import PARTS, open_store, write_store
from .image_files import MEMORY, Chunk, as_dataset
from .images import upright

CHUNK = 1000

# Whose arrays a name is of: train_images, x_test, val_labels, images, y ... in any order of its words.
WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "validation", "val"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("images", "image", "x", "data", "arr"), "images"),
    **dict.fromkeys(("labels", "label", "y", "targets", "target"), "labels"),
    **dict.fromkeys(("full", "all", "0"), ""),
}


def array_names(names: list[str]) -> dict[str, tuple[str, str]] | None:
    """name -> (part, images or labels) of arrays whose names say so; None where one does not, or none are images."""
    found = {}
    for name in names:
        words = [WORDS.get(word) for word in name.lower().replace("-", "_").split("_")]
        if None in words:
            return None
        parts = [word for word in words if word in PARTS]
        kinds = [word for word in words if word in ("images", "labels")]
        if len(parts) > 1 or len(kinds) > 1 or not (parts or kinds):
            return None
        found[name] = (parts[0] if parts else "train", kinds[0] if kinds else "images")
    kinds_found = list(found.values())
    good = ("train", "images") in kinds_found and len(set(kinds_found)) == len(kinds_found)
    return found if good else None


def load_array_file(path: Path, settings: SourceConfig, shown: Shown) -> Dataset:
    """The data set of a .npy file of images, of an .npz file of images and labels, or of a folder of .npy files named
    as the arrays of such a one; .npy files of bytes that are larger than memory stay on the disk. Raises UserError."""
    where = printable(path)
    files = [path] if path.is_file() else sorted(path.glob("*.npy"))
    large = path.suffix.lower() != ".npz" and sum(f.stat().st_size for f in files) > MEMORY
    mapped = large and settings.in_memory != "yes"
    if path.suffix.lower() == ".npz":
        arrays = _open_npz(path)
    elif path.is_file():
        arrays = {"images": _open(path, mapped)}
    else:
        arrays = {file.stem: _open(file, mapped) for file in files}
    names = array_names(list(arrays))
    if names is None:
        raise UserError(
            f"{where} has the arrays {', '.join(map(printable, arrays)) or '(none)'}; name them images and labels, or "
            "x_train, y_train, x_test, y_test"
        )
    named = {names[name]: array for name, array in arrays.items()}
    parts: dict[str, tuple[Any, Any]] = {
        part: (named[part, "images"], named.get((part, "labels")))
        for part in PARTS
        if (part, "images") in named
    }
    require(
        all((part, "images") in named for part, _ in named),
        f"{where} has labels without their images",
    )
    large = large and all(images.dtype == np.uint8 for images, _ in parts.values())
    if settings.in_memory == "no" or (settings.in_memory == "auto" and large):
        about = [(f, f.stat()) for f in files]
        key = [[str(f), s.st_size, s.st_mtime_ns, s.st_ctime_ns] for f, s in about]
        make = partial(write_parts, parts, path.stem, where)
        return as_dataset(
            open_store(cached(path.stem, key, make, shown)), settings, path.stem, path
        )
    return from_parts(parts, settings, path.stem, where)


def _open(path: Path, mapped: bool) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="c" if mapped else None, allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"there is no file {printable(path)}") from None
    except Exception as error:  # numpy raises anything on damaged files
        raise UserError(
            f"{printable(path)} cannot be read as an array: {one_line(error)}"
        ) from None


def _open_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        check_sizes(path)
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except UserError:
        raise
    except Exception as error:  # numpy raises anything on damaged files
        raise UserError(f"{printable(path)} cannot be read as arrays: {one_line(error)}") from None


def check_sizes(path: Path) -> None:
    """UserError for an archive whose arrays would be far larger than what they are unpacked from."""
    with zipfile.ZipFile(path) as archive:
        packed = sum(member.compress_size for member in archive.infolist())
        whole = sum(member.file_size for member in archive.infolist())
    require(
        whole <= 2**28 or whole <= 200 * packed,
        f"{printable(path)} would unpack to {whole:,} bytes, {whole // max(1, packed):,} times its size; if that is "
        "meant, save its arrays as .npy files",
    )


def write_parts(parts: Mapping[str, tuple[Any, Any]], name: str, where: str, path: Path) -> None:
    """Arrays by part into a file of images. Raises UserError for pixels that are no bytes."""
    check_labelled(parts, where)
    first = as_images(parts["train"][0][:1], where)

    def pieces() -> Iterator[Chunk]:
        for part, (images, labels) in parts.items():
            bits = is_zero_one(images)
            for start in range(0, len(images), CHUNK):
                rows = slice(start, start + CHUNK)
                piece = as_images(images[rows], where, bits)
                require(
                    piece.dtype == torch.uint8 and piece.shape[1:] == first.shape[1:],
                    f"{where}: to stay on the disk, images must be uint8 and of one shape; save them so, or take "
                    "--in-memory yes",
                )
                named = None if labels is None else as_labels(labels[rows], len(piece), where)
                yield from chunks({part: Split(piece, named)})

    _, channels, height, width = first.shape
    write_store(path, name, None, (channels, height, width), pieces(), [])


def chunks(splits: Mapping[str, Split]) -> Iterator[Chunk]:
    """Pixels, labels and parts of splits, a piece at a time."""
    for name, split in splits.items():
        for start in range(0, len(split), CHUNK):
            piece = split[start : start + CHUNK]
            labels = None if piece.labels is None else piece.labels.cpu().numpy()
            part = np.full(len(piece), PARTS.index(name), np.uint8)
            yield piece.images.cpu().numpy(), labels, part


def from_parts(
    parts: Mapping[str, tuple[Any, Any]], settings: SourceConfig, name: str, where: str
) -> Dataset:
    """A data set of arrays by part, each (images, labels or None); parts that are missing are held back from train."""
    check_labelled(parts, where)
    given = {
        part: as_split(images, labels, f"{where}, {part}")
        for part, (images, labels) in parts.items()
    }
    if given["train"].labels is not None:
        known = set(given["train"].labels.tolist())
        for part, split in given.items():
            new = sorted(set() if split.labels is None else set(split.labels.tolist()) - known)
            require(
                not new, f"{where}: {part} has the label {new[:1]}, of which train has no images"
            )
    splits = hold_back_missing(given, settings, where)
    bits = all(is_bits(split[:].images) for split in splits)
    return Dataset.of(name, splits, black_and_white=bits)


def check_labelled(parts: Mapping[str, tuple[Any, Any]], where: str) -> None:
    """UserError unless all parts have labels, or none has."""
    without = [part for part, (_, labels) in parts.items() if labels is None]
    require(
        len(without) in (0, len(parts)),
        f"{where} has labels, but none of {', '.join(without)}; give all parts labels, or none",
    )


def is_bits(images: Tensor) -> bool:
    """Whether all pixels are black or white."""
    if images.dtype != torch.uint8:
        return False
    return all(bool(((part == 0) | (part == 255)).all()) for part in images.split(CHUNK))


def as_split(images: Any, labels: Any, where: str) -> Split:
    """Images of any of the usual shapes and types, and labels. Raises UserError."""
    found = as_images(images, where)
    return Split(found, None if labels is None else as_labels(labels, len(found), where))


def as_labels(labels: Any, count: int, where: str) -> Tensor:
    """Labels (N,), int64, of a list or an array of whole numbers. Raises UserError."""
    array = to_numpy(labels, where, "labels")
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.dtype == bool or (array.dtype.kind == "f" and (array == np.round(array)).all()):
        array = array.astype(np.int64)
    require(
        array.ndim == 1 and array.dtype.kind in "iu",
        f"{where}: labels of shape {array.shape} and type {array.dtype}; they must be whole numbers, one an image",
    )
    require(len(array) == count, f"{where}: {count:,} images but {len(array):,} labels")
    require(array.size == 0 or array.min() >= 0, f"{where}: labels must be 0 or more")
    return torch.from_numpy(array.astype(np.int64))


def to_numpy(values: Any, where: str, what: str) -> np.ndarray:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = (values.float() if values.is_floating_point() else values).numpy()
    try:
        return np.asarray(values)
    except ValueError as error:
        raise UserError(f"{where}: these {what} are no array ({one_line(error)})") from None


def as_images(images: Any, where: str, bits: bool | None = None) -> Tensor:
    """(N, C, H, W), uint8 or float32 in [0, 1], of an array or a tensor: (N, H, W), (N, H, W, C) or (N, C, H, W), of
    bytes, bits or floats; 98 packed bytes a row are 28 x 28 bits. Raises UserError.

    `bits` says whether whole numbers are 0 and 1, where that cannot be seen from a part of the array.
    """
    array = to_numpy(images, where, "images")
    require(
        array.dtype.kind in "buif",
        f"{where}: an array of type {array.dtype}; pixels must be numbers",
    )
    if array.ndim == 2 and array.dtype == np.uint8 and array.shape[1] == 98:
        array, bits = np.unpackbits(array, axis=1).reshape(-1, 28, 28), True
    require(
        array.ndim in (3, 4) and array.size > 0,
        f"{where}: an array of shape {array.shape}; images are (N, H, W), (N, H, W, C) or (N, C, H, W)",
    )
    if array.ndim == 3:
        array = array[:, None]
    elif array.shape[3] in (1, 3, 4) and array.shape[1] not in (1, 3):
        array = array.transpose(0, 3, 1, 2)
    low, high = array.min(), array.max()
    if bits is None:
        bits = bool(low >= 0) and bool(high <= 1)
    if array.dtype.kind in "bui" and bits:
        array = 255 * array.astype(np.uint8)
    elif array.dtype != np.uint8:
        whole = array.dtype.kind in "iu" or (high > 1 and bool((array == np.round(array)).all()))
        require(
            bool(low >= 0) and bool(high <= (255 if whole else 1)),
            f"{where}: pixels from {low:g} to {high:g}; bring them to 0 ... 255, or floats to [0, 1]",
        )
        array = array.astype(np.uint8 if whole else np.float32)
    require(
        array.shape[1] != 4,
        f"{where}: images of four channels; put them over a background, and give three",
    )
    return torch.from_numpy(np.ascontiguousarray(array))


def is_zero_one(images: Any) -> bool:
    """Whether an array's whole numbers are 0 and 1: black and white, as one writes them in a program."""
    array = to_numpy(images, "the data", "images")
    return array.dtype.kind in "bui" and array.size > 0 and array.min() >= 0 and array.max() <= 1


def from_objects(data: Any, settings: SourceConfig) -> Dataset:
    """A data set of what a program has: an array or tensor of images, a pair of images and labels, a dict of such by
    part (train, validation, test), or a map-style dataset, whose items are an image or a pair. Raises UserError."""
    if isinstance(data, Mapping):
        require(
            "train" in data and all(part in PARTS for part in data),
            f"the dict has {', '.join(map(str, data)) or 'nothing'}; its keys are train, validation, test",
        )
        parts = {part: _pair(value) for part, value in data.items()}
    else:
        parts = {"train": _pair(data)}
    return from_parts(parts, settings, "arrays", "the data")


def _pair(data: Any) -> tuple[Any, Any]:
    if isinstance(data, np.ndarray | Tensor):
        return data, None
    if isinstance(data, tuple) and len(data) == 2:
        return data
    if hasattr(data, "__len__") and hasattr(data, "__getitem__"):
        return _from_items(data)
    raise UserError(
        f"no images in an object of type {type(data).__name__}; give an array, a pair (images, labels) or a map-style "
        "dataset"
    )


def _from_items(data: Any) -> tuple[np.ndarray, np.ndarray | None]:
    items = [data[i] for i in range(len(data))]
    require(len(items) >= 1, "the dataset is empty")
    paired = isinstance(items[0], tuple | list)
    images = [_item_image(item[0] if paired else item) for item in items]
    shapes = {image.shape for image in images}
    require(
        len(shapes) == 1,
        f"the dataset's images differ in shape ({', '.join(map(str, sorted(shapes)[:3]))} ...); bring them to one size",
    )
    labels = to_numpy([item[1] for item in items], "the dataset", "labels") if paired else None
    return np.stack(images), labels


def _item_image(image: Any) -> np.ndarray:
    if isinstance(image, Image.Image):
        return upright(image)
    return to_numpy(image, "the dataset", "images")
