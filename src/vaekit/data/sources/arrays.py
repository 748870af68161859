"""Arrays as data sets: .npy and .npz files, folders of .npy files, and arrays in memory."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...settings.data import MAX_CLASSES, PreprocessConfig, SourceConfig
from ...support.console import ProgressBar
from ...support.errors import UserError, one_line, printable, require, unreadable
from ..assemble import MAX_BYTES_IN_MEMORY, class_order, dataset_from_store, range_of_splits
from ..axes import Order, describe, image_axes, read_axes, to_nchw
from ..cache import cached_file, stat_key
from ..dataset import Dataset, Split, check_class_count
from ..formats.chunked import file_of, files_key, is_chunked, select_arrays
from ..splits import complete_splits
from ..stored import SPLITS, Chunk, chunk_slices, image_extents, open_store, write_store
from ..values import inspect_values, to_pixels, to_stored

CHUNK = 1000  # images
MAX_NAME = 255  # characters of a class
NUMPY_FLOATS = (torch.float16, torch.float32, torch.float64)  # others, such as bfloat16, it lacks
ARRAY_VERSION = 1  # increment when the same arrays would be read as other values

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
    where, name = printable(path), file_of(path).stem
    files = [path] if path.is_file() else sorted(path.glob("*.npy"))
    chunked = is_chunked(path)
    large = not chunked and (
        path.suffix.lower() != ".npz" and sum(f.stat().st_size for f in files) > MAX_BYTES_IN_MEMORY
    )
    splits = open_arrays(path, large and settings.in_memory != "yes")
    if chunked:
        large = sum(images.nbytes for images, _ in splits.values()) > MAX_BYTES_IN_MEMORY
    if settings.in_memory == "no" or (settings.in_memory == "auto" and large):
        key: list[Any] = [[str(file), *stat_key(file.stat())] for file in files]
        if chunked:
            key = [str(path), files_key(path)]
        return dataset_on_disk(splits, settings, path, key, bar)
    return dataset_from_arrays(splits, settings, name, where)


def open_arrays(path: Path, mapped: bool) -> dict[str, tuple[Any, Any]]:
    """(images, labels or None) by split, of a .npy or .npz file or a folder of .npy files, which may be memory-mapped,
    or of an HDF5 or zarr file, read slice by slice. Raises UserError."""
    where = printable(path)
    arrays: dict[str, Any]
    if is_chunked(path):
        arrays = select_arrays(path, parse_array_names)
    elif path.suffix.lower() == ".npz":
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
        raise unreadable(printable(path), error) from None


def _open_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        check_unpacked_size(path)
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except UserError:
        raise
    except Exception as error:  # numpy raises anything on damaged files
        raise unreadable(printable(path), error) from None


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


class ArraySplits:
    """The images of splits in arrays, or array-likes that are read by slices, and how they are read: the order of their
    axes and the facts of their values. Raises UserError for arrays that can be read in two ways, or do not fit.
    """

    def __init__(
        self,
        arrays: Mapping[str, Any],
        settings: PreprocessConfig,
        where: str,
        image_shape: tuple[int, int, int] | None = None,
    ) -> None:
        self.where = where
        self.arrays = {name: as_array(array, where) for name, array in arrays.items()}
        shapes = {name: tuple(array.shape) for name, array in self.arrays.items()}
        first = next(iter(shapes.values()))
        self.order: Order = read_axes(first, settings.channel_axis, where, image_shape)
        self.shape = image_axes(first, self.order)[1:]
        for name, shape in shapes.items():
            require(
                len(shape) == len(first) and 0 not in shape,
                f"{where}: {name} is an array of shape {shape}, and {next(iter(shapes))} of {first}",
            )
            require(
                image_axes(shape, self.order)[1:] == self.shape,
                f"{where}: the images of {name}, an array of shape {shape}, differ from the training images in size or "
                f"type, in an array of shape {first}",
            )
        kinds = {array.dtype.kind in "bui" for array in self.arrays.values()}
        if len(kinds) > 1:
            types = ", ".join(f"{name} is {array.dtype}" for name, array in self.arrays.items())
            raise UserError(f"{where}: {types}; give all of them one type, and one scale of values")
        self.facts = inspect_values(
            (part for name in self.arrays for part in self.chunks(name)), where
        )

    def chunks(self, name: str) -> Iterator[np.ndarray]:
        """The values of a split, in chunks (n, C, H, W)."""
        bytes_per_image = math.prod(self.shape) * self.arrays[name].dtype.itemsize
        for chunk in chunk_slices(self.count(name), bytes_per_image):
            yield self.read(name, chunk)

    def read(self, name: str, rows: slice) -> np.ndarray:
        """The values of some images of a split, (n, C, H, W)."""
        array = self.arrays[name]
        single = self.order in ("CHW", "HWC")
        return to_nchw(np.asarray(array if single else array[rows]), self.order)

    def count(self, name: str) -> int:
        return image_axes(tuple(self.arrays[name].shape), self.order)[0]

    def values(self, name: str) -> Tensor:
        """The values of a split in memory, (N, C, H, W), uint8 or float32, a copy."""
        dtype = np.uint8 if self.facts.stored == "uint8" else np.float32
        values, start = np.empty((self.count(name), *self.shape), dtype), 0
        for chunk in self.chunks(name):
            values[start : start + len(chunk)] = to_stored(chunk, self.facts)
            start += len(chunk)
        return torch.from_numpy(values)

    def describe(self) -> str:
        """A sentence on how the axes were read."""
        name, array = next(iter(self.arrays.items()))
        return describe_array(name, array, self.order)


def describe_array(name: str, array: Any, order: Order) -> str:
    """A sentence on how an array was read, and which of its attributes were not."""
    shape, ignored = tuple(array.shape), getattr(array, "not_applied", None)
    told = f"; its attributes {', '.join(ignored)} are not applied" if ignored else ""
    return f"{name}: an array of shape {shape} as {describe(shape, order)}{told}"


def as_array(images: Any, where: str) -> Any:
    """An object with shape, type and slices: a tensor or list as an array, others as they are. Raises UserError."""
    if isinstance(images, Tensor) or not (hasattr(images, "dtype") and hasattr(images, "shape")):
        images = to_numpy(images, where, "images")
    check_mask(images, where, "images")
    require(
        images.dtype.kind in "buif",
        f"{where}: an array of type {images.dtype}; pixels must be numbers",
    )
    return images


def dataset_on_disk(
    splits: Mapping[str, tuple[Any, Any]],
    settings: SourceConfig,
    path: Path,
    key: Any,
    bar: ProgressBar,
) -> Dataset:
    """The data set of arrays (images, labels or None) by split, copied in chunks to a file in the cache; `key` changes
    whenever they do. Raises UserError."""
    where, name = printable(path), file_of(path).stem
    images = {split: x for split, (x, _) in splits.items()}

    def make(file: Path) -> None:
        write_arrays(splits, ArraySplits(images, settings, where), name, file)

    key = [key, settings.channel_axis, ARRAY_VERSION]
    store = open_store(cached_file(name, key, make, bar), bar)
    first = as_array(splits["train"][0], where)
    order = read_axes(tuple(first.shape), settings.channel_axis, where)
    dataset = dataset_from_store(store, settings, name, path)
    return replace(dataset, reading=(describe_array("train", first, order), *dataset.reading))


def write_arrays(
    splits: Mapping[str, tuple[Any, Any]], arrays: ArraySplits, name: str, path: Path
) -> None:
    """Write the arrays of splits to an image store. Raises UserError."""
    check_all_labelled(splits, arrays.where)
    splits, classes = number_classes(splits, arrays.where)
    labels = {
        split: None if y is None else as_labels(y, arrays.count(split), arrays.where)
        for split, (_, y) in splits.items()
    }

    def chunks() -> Iterator[Chunk]:
        for split, y in labels.items():
            start = 0
            for chunk in arrays.chunks(split):
                rows = slice(start, start + len(chunk))
                start = rows.stop
                split_index = np.full(len(chunk), SPLITS.index(split), np.uint8)
                yield (
                    to_stored(chunk, arrays.facts),
                    None if y is None else y[rows].numpy(),
                    split_index,
                )

    names, facts = None if classes is None else list(classes), arrays.facts
    write_store(path, name, names, arrays.shape, chunks(), [], facts.stored, lambda: facts)


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
    images = ArraySplits({split: x for split, (x, _) in arrays.items()}, settings, where)
    given = {
        split: Split(
            images.values(split),
            None if y is None else as_labels(y, images.count(split), f"{where}, {split}"),
        )
        for split, (_, y) in arrays.items()
    }
    if given["train"].labels is not None:
        train_labels = set(given["train"].labels.tolist())
        for key, split in given.items():
            labels = set() if split.labels is None else set(split.labels.tolist())
            for label in sorted(labels - train_labels):
                new = classes[label] if classes else str(label)
                raise UserError(
                    f"{where}: {key} has the class {new!r}, of which train has no images; add some, or leave the "
                    "class out"
                )
    splits = complete_splits(given, settings, where)
    extents = [image_extents(split[:].images.numpy()).T for split in splits]
    value_range, sentences = range_of_splits(
        images.facts, extents, settings, where, lambda rows: splits[0].take(rows)[:].images.numpy()
    )
    splits = [Split(to_pixels(split[:].images, value_range), split.labels) for split in splits]
    return Dataset.from_splits(
        name,
        splits,
        classes=classes,
        black_and_white=all(is_binary(split[:].images) for split in splits),
        value_range=value_range,
        reading=(images.describe(), *sentences),
    )


def number_classes(
    splits: Mapping[str, tuple[Any, Any]], where: str
) -> tuple[Mapping[str, tuple[Any, Any]], tuple[str, ...] | None]:
    """The splits with their classes numbered from 0 in order, and the labels as the names of the classes, where labels
    are texts, or one is too large to be a class's number, such as a date or an identifier; else the splits as they are,
    and None.

    Raises UserError where there are too many classes.
    """
    texts = {s: None if y is None else as_texts(y, where) for s, (_, y) in splits.items()}
    if all(text is not None for text in texts.values()):
        order = class_order(sorted({name for text in texts.values() for name in text or ()}))
        number = {name: k for k, name in enumerate(order)}
        require(
            len(order) <= MAX_CLASSES and max(map(len, order), default=0) <= MAX_NAME,
            f"{where}: {len(order):,} different labels, of up to {max(map(len, order), default=0):,} characters; there "
            f"may be {MAX_CLASSES:,} classes of {MAX_NAME}; leave the labels out",
        )
        of_text = {s: np.array([number[t] for t in text or ()]) for s, text in texts.items()}
        return {s: (x, of_text[s]) for s, (x, _) in splits.items()}, tuple(order)
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
    check_class_count(len(values), where)
    ends = np.cumsum([y.size for y in found.values()])[:-1]
    numbered = {
        split: part.reshape(y.shape)
        for (split, y), part in zip(found.items(), np.split(numbers, ends), strict=True)
    }
    return {s: (x, numbered[s]) for s, (x, _) in splits.items()}, tuple(map(str, values.tolist()))


def as_texts(labels: Any, where: str) -> list[str] | None:
    """Labels that are texts, one per image, such as those of HDF5; None for others. Raises UserError for bytes that are
    not UTF-8."""
    array = to_numpy(labels, where, "labels")
    if array.ndim != 1 or array.size == 0 or array.dtype.kind not in "SUOT":
        return None
    values = array.tolist()
    if not all(isinstance(value, str | bytes) for value in values):
        return None
    try:
        return [v.decode() if isinstance(v, bytes) else v for v in values]
    except UnicodeDecodeError:
        raise UserError(f"{where}: the labels are not text in UTF-8; number them from 0") from None


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


def check_mask(values: Any, where: str, what: str) -> None:
    """Raise UserError for a masked array of NumPy with masked values, which would be read as if they were there."""
    masked = int(np.ma.count_masked(values)) if isinstance(values, np.ma.MaskedArray) else 0
    require(
        masked == 0,
        f"{where}: {masked:,} values of the {what} are masked; fill them, or leave them out",
    )


def to_numpy(values: Any, where: str, what: str) -> np.ndarray:
    """A tensor, list or array as an array. Raises UserError for tensors that have no values in rows, such as sparse
    ones, for lists of different shapes, and for masked values."""
    if isinstance(values, Tensor):
        kind = f"{values.layout} tensor of type {values.dtype}".replace("torch.", "")
        try:
            values = values.detach().cpu()
            if values.is_floating_point() and what == "labels":  # float32 would round above 2^24
                values = values.double()
            elif values.is_floating_point() and values.dtype not in NUMPY_FLOATS:
                values = values.float()
            values = values.numpy()
        except (TypeError, RuntimeError) as error:  # sparse, quantised, without data
            raise UserError(
                f"{where}: {what} in a {kind} cannot be read as an array ({one_line(error)}); give a dense tensor"
            ) from None
    check_mask(values, where, what)
    try:
        return np.asarray(values)
    except ValueError as error:
        raise UserError(
            f"{where}: these {what} do not form an array ({one_line(error)}); give them equal shapes"
        ) from None
