"""Arrays as data sets: .npy and .npz files, folders of .npy files, and objects in memory."""

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

from ...settings.data import MAX_CLASSES, SourceConfig
from ...support.console import ProgressBar
from ...support.errors import UserError, one_line, printable, require
from ..cache import cached_file
from ..dataset import Dataset, Split
from ..formats.images import upright_array
from ..splits import complete_splits
from ..stored import SPLITS, Chunk, open_store, write_store
from .image_files import MAX_BYTES_IN_MEMORY, dataset_from_store

CHUNK = 1000  # images

# The words of an array's name, in any order: train_images, x_test, val_labels, images, y ...
ARRAY_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "validation", "val"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("images", "image", "x", "data", "arr"), "images"),
    **dict.fromkeys(("labels", "label", "y", "targets", "target"), "labels"),
    **dict.fromkeys(("full", "all", "0"), ""),
}


def parse_array_names(names: list[str]) -> dict[str, tuple[str, str]] | None:
    """name -> (split, "images" or "labels"); None if a name is not understood, or there are no training images."""
    roles = {}
    for name in names:
        words = [ARRAY_WORDS.get(word) for word in name.lower().replace("-", "_").split("_")]
        if None in words:
            return None
        splits = [word for word in words if word in SPLITS]
        kinds = [word for word in words if word in ("images", "labels")]
        if len(splits) > 1 or len(kinds) > 1 or not (splits or kinds):
            return None
        roles[name] = (splits[0] if splits else "train", kinds[0] if kinds else "images")
    unique = len(set(roles.values())) == len(roles)
    return roles if unique and ("train", "images") in roles.values() else None


def load_array_file(path: Path, settings: SourceConfig, bar: ProgressBar) -> Dataset:
    """Load a .npy file of images, an .npz file of images and labels, or a folder of .npy files named like the arrays of
    an .npz file; large .npy files of bytes are read from disk. Raises UserError."""
    where = printable(path)
    files = [path] if path.is_file() else sorted(path.glob("*.npy"))
    large = (
        path.suffix.lower() != ".npz" and sum(f.stat().st_size for f in files) > MAX_BYTES_IN_MEMORY
    )
    splits = open_arrays(path, large and settings.in_memory != "yes")
    large = large and all(images.dtype == np.uint8 for images, _ in splits.values())
    if settings.in_memory == "no" or (settings.in_memory == "auto" and large):
        statuses = [(f, f.stat()) for f in files]
        key = [[str(f), s.st_size, s.st_mtime_ns, s.st_ctime_ns] for f, s in statuses]
        make = partial(write_arrays, splits, path.stem, where)
        return dataset_from_store(
            open_store(cached_file(path.stem, key, make, bar), bar), settings, path.stem, path
        )
    return dataset_from_arrays(splits, settings, path.stem, where)


def open_arrays(path: Path, mapped: bool) -> dict[str, tuple[Any, Any]]:
    """(images, labels or None) by split, of a .npy or .npz file or a folder of .npy files, which may be memory-mapped.
    Raises UserError."""
    where = printable(path)
    if path.suffix.lower() == ".npz":
        arrays = _open_npz(path)
    elif path.is_file():
        arrays = {"images": _open(path, mapped)}
    else:
        arrays = {file.stem: _open(file, mapped) for file in sorted(path.glob("*.npy"))}
    roles = parse_array_names(list(arrays))
    if roles is None:
        raise UserError(
            f"{where} has the arrays {', '.join(map(printable, arrays)) or '(none)'}; name them images and labels, or "
            "x_train, y_train, x_test, y_test"
        )
    by_role = {roles[name]: array for name, array in arrays.items()}
    require(
        all((split, "images") in by_role for split, _ in by_role),
        f"{where} has labels without their images",
    )
    return {
        split: (by_role[split, "images"], by_role.get((split, "labels")))
        for split in SPLITS
        if (split, "images") in by_role
    }


def _open(path: Path, mapped: bool) -> np.ndarray:
    # Opening a pipe would wait for its writer.
    require(path.is_file(), f"{printable(path)} is missing, or is no file")
    try:
        return np.load(path, mmap_mode="c" if mapped else None, allow_pickle=False)
    except Exception as error:  # numpy raises anything on damaged files
        raise UserError(
            f"{printable(path)} cannot be read as an array: {one_line(error)}"
        ) from None


def _open_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        check_unpacked_size(path)
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except UserError:
        raise
    except Exception as error:  # numpy raises anything on damaged files
        raise UserError(f"{printable(path)} cannot be read as arrays: {one_line(error)}") from None


def check_unpacked_size(path: Path) -> None:
    """Raise UserError for a .npz file whose arrays would be far larger than the file."""
    with zipfile.ZipFile(path) as archive:
        packed = sum(member.compress_size for member in archive.infolist())
        unpacked = sum(member.file_size for member in archive.infolist())
    require(
        unpacked <= 2**28 or unpacked <= 200 * packed,
        f"{printable(path)} would unpack to {unpacked:,} bytes, {unpacked // max(1, packed):,} times its size; if this "
        "is intended, save its arrays as .npy files",
    )


def write_arrays(splits: Mapping[str, tuple[Any, Any]], name: str, where: str, path: Path) -> None:
    """Write the arrays of splits to an image store. Raises UserError for pixels that are not bytes."""
    check_all_labelled(splits, where)
    splits, classes = number_classes(splits, where)
    first = as_images(splits["train"][0][:1], where)

    def chunks() -> Iterator[Chunk]:
        for split, (images, labels) in splits.items():
            binary = is_zero_or_one(images)
            for start in range(0, len(images), CHUNK):
                rows = slice(start, start + CHUNK)
                x = as_images(images[rows], where, binary)
                require(
                    x.dtype == torch.uint8 and x.shape[1:] == first.shape[1:],
                    f"{where}: to be read from disk, images must be uint8 and of one shape; convert them, or give "
                    "--in-memory yes",
                )
                y = None if labels is None else as_labels(labels[rows], len(x), where)
                yield from split_chunks({split: Split(x, y)})

    _, channels, height, width = first.shape
    names = None if classes is None else list(classes)
    write_store(path, name, names, (channels, height, width), chunks(), [])


def split_chunks(splits: Mapping[str, Split]) -> Iterator[Chunk]:
    """Yield the pixels, labels and split indices of splits, in chunks."""
    for name, split in splits.items():
        for start in range(0, len(split), CHUNK):
            batch = split[start : start + CHUNK]
            labels = None if batch.labels is None else batch.labels.cpu().numpy()
            split_index = np.full(len(batch), SPLITS.index(name), np.uint8)
            yield batch.images.cpu().numpy(), labels, split_index


def dataset_from_arrays(
    arrays: Mapping[str, tuple[Any, Any]], settings: SourceConfig, name: str, where: str
) -> Dataset:
    """The data set of arrays (images, labels or None) by split; missing splits are held out from train. Raises
    UserError."""
    check_all_labelled(arrays, where)
    arrays, classes = number_classes(arrays, where)
    given = {
        split: as_split(images, labels, f"{where}, {split}")
        for split, (images, labels) in arrays.items()
    }
    if given["train"].labels is not None:
        train_labels = set(given["train"].labels.tolist())
        for key, split in given.items():
            labels = set() if split.labels is None else set(split.labels.tolist())
            new = [classes[n] if classes else n for n in sorted(labels - train_labels)[:1]]
            require(not new, f"{where}: {key} has the label {new}, of which train has no images")
    splits = complete_splits(given, settings, where)
    binary = all(is_binary(split[:].images) for split in splits)
    return Dataset.from_splits(name, splits, classes=classes, black_and_white=binary)


def number_classes(
    splits: Mapping[str, tuple[Any, Any]], where: str
) -> tuple[Mapping[str, tuple[Any, Any]], tuple[str, ...] | None]:
    """The splits with their classes numbered from 0 in order, and the labels as the names of the classes, where a label
    is too large to be a class's number, such as a date or an identifier; else the splits as they are, and None.

    Raises UserError where there are too many classes.
    """
    found = {s: to_numpy(y, where, "labels") for s, (_, y) in splits.items() if y is not None}
    numeric = all(y.dtype.kind in "iuf" and y.size > 0 for y in found.values())
    if not numeric or not any(y.max() >= MAX_CLASSES for y in found.values()):
        return splits, None
    for y in found.values():
        whole = y.dtype.kind != "f" or bool((np.isfinite(y) & (y == np.round(y))).all())
        require(whole, f"{where}: labels must be whole numbers, one per image")
        require(bool(y.min() >= 0) and y.max() < 2**64, f"{where}: labels must be 0 or more")
    # In 64 bits without sign: int64 and uint64 together would become floats.
    unsigned = np.concatenate([y.astype(np.uint64).ravel() for y in found.values()])
    values, numbers = np.unique(unsigned, return_inverse=True)
    require(
        len(values) <= MAX_CLASSES,
        f"{where}: {len(values):,} different labels, but there may be {MAX_CLASSES:,} classes; leave the labels out",
    )
    ends = np.cumsum([y.size for y in found.values()])[:-1]
    numbered = {
        split: part.reshape(y.shape)
        for (split, y), part in zip(found.items(), np.split(numbers, ends), strict=True)
    }
    return {s: (x, numbered[s]) for s, (x, _) in splits.items()}, tuple(map(str, values.tolist()))


def check_all_labelled(splits: Mapping[str, tuple[Any, Any]], where: str) -> None:
    """Raise UserError unless all splits have labels, or none has."""
    unlabelled = [split for split, (_, labels) in splits.items() if labels is None]
    require(
        len(unlabelled) in (0, len(splits)),
        f"{where}: no labels for {', '.join(unlabelled)}; give labels for every split, or for none",
    )


def is_binary(images: Tensor) -> bool:
    """Whether all pixels are 0 or 255."""
    if images.dtype != torch.uint8:
        return False
    return all(bool(((chunk == 0) | (chunk == 255)).all()) for chunk in images.split(CHUNK))


def as_split(images: Any, labels: Any, where: str) -> Split:
    """Convert images and labels of any of the usual shapes and types. Raises UserError."""
    x = as_images(images, where)
    return Split(x, None if labels is None else as_labels(labels, len(x), where))


def as_labels(labels: Any, count: int, where: str) -> Tensor:
    """Convert a list or an array of whole numbers to labels (N,), int64. Raises UserError."""
    array = to_numpy(labels, where, "labels")
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.dtype == bool or (array.dtype.kind == "f" and (array == np.round(array)).all()):
        array = array.astype(np.int64)
    require(
        array.ndim == 1 and array.dtype.kind in "iu",
        f"{where}: labels of shape {array.shape} and type {array.dtype}; they must be whole numbers, one per image",
    )
    require(len(array) == count, f"{where}: {count:,} images but {len(array):,} labels")
    require(array.size == 0 or array.min() >= 0, f"{where}: labels must be 0 or more")
    return torch.from_numpy(array.astype(np.int64))


def to_numpy(values: Any, where: str, what: str) -> np.ndarray:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        if values.is_floating_point():  # float32 would round labels above 2^24
            values = values.double() if what == "labels" else values.float()
        values = values.numpy()
    try:
        return np.asarray(values)
    except ValueError as error:
        raise UserError(
            f"{where}: these {what} do not form an array ({one_line(error)}); give them equal shapes"
        ) from None


def as_images(images: Any, where: str, binary: bool | None = None) -> Tensor:
    """Convert an array or a tensor to images (N, C, H, W), uint8 or float32 in [0, 1]: from (N, H, W), (N, H, W, C) or
    (N, C, H, W), of bytes, bits or floats, or from 98 packed bytes per row, 28 x 28 bits. Raises UserError.

    `binary` tells whether whole numbers are 0 and 1; by default whether these are, which a chunk of images cannot tell.
    """
    array = to_numpy(images, where, "images")
    require(
        array.dtype.kind in "buif",
        f"{where}: an array of type {array.dtype}; pixels must be numbers",
    )
    if array.ndim == 2 and array.dtype == np.uint8 and array.shape[1] == 98:
        array, binary = np.unpackbits(array, axis=1).reshape(-1, 28, 28), True
    require(
        array.ndim in (3, 4) and array.size > 0,
        f"{where}: an array of shape {array.shape}; images are (N, H, W), (N, H, W, C) or (N, C, H, W)",
    )
    if array.ndim == 3:
        array = array[:, None]
    elif array.shape[3] in (1, 3, 4) and array.shape[1] not in (1, 3):
        array = array.transpose(0, 3, 1, 2)
    low, high = array.min(), array.max()
    if binary is None:
        binary = bool(low >= 0) and bool(high <= 1)
    if array.dtype.kind in "bui" and binary:
        array = 255 * array.astype(np.uint8)
    elif array.dtype != np.uint8:
        whole = array.dtype.kind in "iu" or (high > 1 and bool((array == np.round(array)).all()))
        require(
            bool(low >= 0) and bool(high <= (255 if whole else 1)),
            f"{where}: pixels from {low:g} to {high:g}; scale them to 0 ... 255, or floats to [0, 1]",
        )
        array = array.astype(np.uint8 if whole else np.float32)
    require(
        array.shape[1] != 4,
        f"{where}: images with four channels; composite them over a background to get three",
    )
    return torch.from_numpy(np.ascontiguousarray(array))


def is_zero_or_one(images: Any) -> bool:
    """Whether an array has only the whole numbers 0 and 1, that is binary images."""
    array = to_numpy(images, "the data", "images")
    return array.dtype.kind in "bui" and array.size > 0 and array.min() >= 0 and array.max() <= 1


def dataset_from_objects(data: Any, settings: SourceConfig) -> Dataset:
    """The data set of objects in memory: an array or tensor of images, a pair of images and labels, a dict of these by
    split (train, validation, test), or a map-style dataset, whose items are an image or a pair. Raises UserError."""
    if isinstance(data, Mapping):
        require(
            "train" in data and all(split in SPLITS for split in data),
            f"the dict has the keys {', '.join(map(str, data)) or '(none)'}; they must be train, and optionally "
            "validation and test",
        )
        arrays = {split: _pair(value) for split, value in data.items()}
    else:
        arrays = {"train": _pair(data)}
    return dataset_from_arrays(arrays, settings, "arrays", "the data")


def _pair(data: Any) -> tuple[Any, Any]:
    """(images, labels or None) of one split."""
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
        f"the dataset's images differ in shape ({', '.join(map(str, sorted(shapes)[:3]))} ...); resize them",
    )
    labels = to_numpy([item[1] for item in items], "the dataset", "labels") if paired else None
    return np.stack(images), labels


def _item_image(image: Any) -> np.ndarray:
    """A PIL image, array or tensor as an array."""
    if isinstance(image, Image.Image):
        return upright_array(image)
    return to_numpy(image, "the dataset", "images")
