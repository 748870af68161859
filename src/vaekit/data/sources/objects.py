"""Objects in memory as data sets: arrays, tensors, pairs of images and labels, dicts of these, map-style datasets."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils import data as torch_data

from ...settings.data import SourceConfig
from ...support.console import ProgressBar
from ...support.errors import UserError, one_line, printable, reason, require
from ..assemble import MAX_BYTES_IN_MEMORY
from ..cache import cache_dir
from ..dataset import Dataset, Split
from ..formats.images import upright_array
from ..stored import SPLITS, chunk_slices
from .arrays import as_array, dataset_from_arrays, dataset_on_disk, to_numpy

NAME, WHERE = "arrays", "the data"
IMAGE_KEYS = ("image", "images", "pixel_values", "x", "img")
LABEL_KEYS = ("label", "labels", "y", "target")
ITEM_FORMS = (
    "an item is an image, (image,), (image, label), or a dict with the keys image and label"
)


@dataclass(frozen=True)
class Part:
    """The images and labels, or None, of one split; `upright` tells that its images are (N, C, H, W) for sure."""

    images: Any
    labels: Any
    upright: bool = False


def dataset_from_objects(data: Any, settings: SourceConfig, bar: ProgressBar) -> Dataset:
    """The data set of objects in memory: an array or tensor of images, a pair of images and labels, a map-style dataset
    (see `Items`), or a dict of these by split (train, validation, test). Raises UserError.

    Map-style datasets too large for memory are read, one item at a time, into a file in the cache.
    """
    given = data
    if not isinstance(data, Mapping):
        given = {"train": data}
    require(
        "train" in given and all(split in SPLITS for split in given),
        f"the dict has the keys {', '.join(map(printable, given)) or '(none)'}; they must be train, and optionally "
        "validation and test",
    )
    opened = {split: as_part(given[split]) for split in SPLITS if split in given}
    items = [part for part in opened.values() if isinstance(part, Items)]
    large = sum(part.nbytes for part in items) > MAX_BYTES_IN_MEMORY
    unchanged = settings.size is None and settings.colour == "auto"
    wanted = settings.in_memory == "no" and unchanged  # images are resized in memory
    on_disk = bool(items) and (wanted or (large and settings.in_memory != "yes"))
    with contextlib.ExitStack() as stack:

        def file() -> IO[bytes]:
            cache_dir().mkdir(parents=True, exist_ok=True)
            return stack.enter_context(tempfile.TemporaryFile(dir=cache_dir()))

        parts = {
            split: part.read(bar, file() if on_disk else None) if isinstance(part, Items) else part
            for split, part in opened.items()
        }
        if all(part.upright for part in parts.values()):
            settings = dataclasses.replace(settings, channel_axis="first")
        arrays = {split: (part.images, part.labels) for split, part in parts.items()}
        if on_disk:
            key = ["objects", content_hash(arrays)]
            dataset = dataset_on_disk(arrays, settings, Path(WHERE), key, bar)
            # Without a digest, it has that of the same images in memory.
            dataset = dataclasses.replace(dataset, name=NAME, digest=None)
        else:
            dataset = dataset_from_arrays(arrays, settings, NAME, WHERE)
    ignored = sorted(set().union(*(part.ignored for part in items)))
    if ignored:
        text = f"keys of its items that were ignored: {', '.join(map(printable, ignored))}"
        dataset = dataclasses.replace(dataset, reading=(*dataset.reading, text))
    return dataset


def content_hash(arrays: Mapping[str, tuple[Any, Any]]) -> str:
    """Hash of arrays (images, labels or None) by split, which are read in parts."""
    digest = hashlib.sha256()
    for split, (images, labels) in arrays.items():
        array = as_array(images, WHERE)
        digest.update(f"{split} {tuple(array.shape)} {array.dtype.str}".encode())
        for chunk in chunk_slices(len(array), array[:1].nbytes):
            digest.update(np.ascontiguousarray(array[chunk]).data)
        if labels is not None:
            digest.update(str(to_numpy(labels, WHERE, "labels").tolist()).encode())
    return digest.hexdigest()


def as_part(data: Any) -> Part | Items:
    """The images and labels of one split; or its items, to be read. Raises UserError."""
    if isinstance(data, np.ndarray | Tensor):
        return Part(data, None)
    if isinstance(data, tuple):
        require(
            len(data) in (1, 2),
            f"a tuple of {len(data)}; give (images, labels), a list of items, or a dict by train, validation and test",
        )
        images, labels = (*data, None)[:2]
        require(
            isinstance(images, np.ndarray | Tensor | list | tuple) or hasattr(images, "__array__"),
            f"the images of the pair (images, labels) are of type {type(images).__name__}, not an array; for several "
            "datasets, give a dict by train, validation and test",
        )
        return Part(images, labels)
    require(
        not isinstance(data, torch_data.IterableDataset),
        f"{type(data).__name__} is an IterableDataset, whose items have no numbers; give a map-style dataset, or a "
        "list of the items",
    )
    held = held_tensors(data)
    if held is not None:
        return held
    if hasattr(data, "__len__") and hasattr(data, "__getitem__"):
        return Items(data)
    hint = "its dataset, or " if isinstance(data, torch_data.DataLoader) else ""
    raise UserError(
        f"no images in an object of type {type(data).__name__}; give {hint}an array, a pair (images, labels) or a "
        "map-style dataset"
    )


def held_tensors(data: Any) -> Part | None:
    """The images and labels of a dataset that has them as tensors, such as a TensorDataset, a Split or a subset of one,
    as they are; None for other datasets."""
    if isinstance(data, Split):
        return Part(data.images[:], data.labels, upright=True)
    if type(data) is torch_data.TensorDataset and len(data.tensors) <= 2:
        images, labels = data.tensors[0], data.tensors[1] if len(data.tensors) == 2 else None
        if images.ndim == 3:  # grey, (N, H, W)
            return Part(images[:, None], labels, upright=True)
        return Part(images, labels)
    if type(data) is torch_data.Subset:
        rows = torch.as_tensor(data.indices).long()
        if isinstance(data.dataset, Split):
            return held_tensors(data.dataset.take(rows))
        held = held_tensors(data.dataset)
        if held is None:
            return None
        labels = None if held.labels is None else held.labels[rows]
        return Part(held.images[rows], labels, held.upright)
    if type(data) is torch_data.ConcatDataset:
        every = [held_tensors(part) for part in data.datasets]
        parts = [part for part in every if part is not None]
        kinds = {(p.images.dtype, p.images.shape[1:], p.labels is None, p.upright) for p in parts}
        if len(parts) < len(every) or len(kinds) > 1:
            return None
        labelled = [part.labels for part in parts if part.labels is not None]
        return Part(
            torch.cat([part.images for part in parts]),
            torch.cat(labelled) if labelled else None,
            parts[0].upright,
        )
    return None


class ImagesInFile:
    """Images (N, ...) of one shape and type in an open file; a slice reads some."""

    def __init__(self, file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.file, self.shape, self.dtype = file, shape, dtype
        self.ndim = len(shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop, step = rows.indices(len(self))
        assert step == 1
        shape = (max(0, stop - start), *self.shape[1:])
        self.file.seek(start * math.prod(self.shape[1:]) * self.dtype.itemsize)
        content = self.file.read(math.prod(shape) * self.dtype.itemsize)
        return np.frombuffer(content, self.dtype).reshape(shape)


class Items:
    """The items of a map-style dataset: each an image (PIL, array or tensor), (image,), (image, label), or a dict with
    one key of IMAGE_KEYS and at most one of LABEL_KEYS; others are `ignored`.

    Raises UserError for an empty dataset, one without a length, and a first item that is none of these.
    """

    def __init__(self, data: Any) -> None:
        self.data = data
        try:
            self.count = len(data)
        except Exception as error:  # the user's code
            raise UserError(
                f"the dataset of type {type(data).__name__} has no length ({reason(error)}); give a list of its items"
            ) from None
        require(self.count >= 1, "the dataset is empty")
        self.ignored: set[str] = set()
        self.upright = True
        self.first, self.label = self.item(0)

    @property
    def nbytes(self) -> int:
        """The size of all images, if all are like the first."""
        return self.first.nbytes * self.count

    def read(self, bar: ProgressBar, file: IO[bytes] | None) -> Part:
        """All images (N, ...) and labels, read one by one; the images are in `file`, if given. Raises UserError for an
        item that cannot be read, or differs from the first in shape or type, or in whether it has a label."""
        shape, dtype, labels = self.first.shape, self.first.dtype, [self.label]
        images: Any
        if file is None:
            images = np.empty((self.count, *shape), dtype)
        else:
            images = ImagesInFile(file, (self.count, *shape), dtype)
        for i in bar.track(range(self.count), "reading the dataset"):
            image, label = self.item(i) if i else (self.first, self.label)
            if image.shape != shape or image.dtype != dtype:
                raise UserError(
                    f"items 0 and {i} of the dataset differ in shape or type: {shape}, {dtype} and {image.shape}, "
                    f"{image.dtype}; convert them to one"
                )
            if (label is None) != (self.label is None):
                raise UserError(
                    f"item {i} of the dataset has {'no' if label is None else 'a'} label, unlike item 0; give all a "
                    "label, or none"
                )
            if file is None:
                images[i] = image
            else:
                file.write(image.tobytes())
            if i:
                labels.append(label)
        return Part(images, None if self.label is None else labels, self.upright)

    def item(self, index: int) -> tuple[np.ndarray, Any]:
        """The image and the label, or None, of one item. Raises UserError."""
        try:
            item = self.data[index]
        except Exception as error:  # the user's code
            raise UserError(
                f"item {index} of the dataset cannot be read: {type(error).__name__}: {one_line(error)}"
            ) from None
        where, label = f"item {index} of the dataset", None
        if isinstance(item, Mapping):
            item, label = self.from_dict(item, where)
        elif isinstance(item, tuple | list):
            require(len(item) in (1, 2), f"{where} has {len(item)} parts; {ITEM_FORMS}")
            item, label = (*item, None)[:2]
        image = as_image(item, where)
        # Of three axes of an array, the first or the last are the channels.
        self.upright = self.upright and (image.ndim == 2 or isinstance(item, Image.Image))
        return image[None] if image.ndim == 2 else image, plain(label)

    def from_dict(self, item: Mapping[Any, Any], where: str) -> tuple[Any, Any]:
        """The image and the label, or None, of an item by keys; other keys are ignored. Raises UserError."""
        images, labels = (
            [key for key in item if str(key).lower() in keys] for keys in (IMAGE_KEYS, LABEL_KEYS)
        )
        require(
            len(images) == 1 and len(labels) <= 1,
            f"{where} has the keys {', '.join(map(printable, item)) or '(none)'}; it must have one of "
            f"{', '.join(IMAGE_KEYS)}, and may have one of {', '.join(LABEL_KEYS)}",
        )
        self.ignored |= {str(key) for key in item} - {str(key) for key in images + labels}
        return item[images[0]], item[labels[0]] if labels else None


def as_image(image: Any, where: str) -> np.ndarray:
    """A PIL image, array or tensor as an array. Raises UserError for other objects."""
    if isinstance(image, Image.Image):
        try:
            return upright_array(image)
        except Exception as error:  # decoders raise anything on damaged files
            raise UserError(f"{where}: its image cannot be read: {reason(error)}") from None
    array = to_numpy(image, where, "images") if hasattr(image, "__len__") else np.array(None)
    if array.dtype.kind not in "buif" or array.ndim not in (2, 3):
        shape = f" and shape {array.shape}" if array.ndim else ""
        raise UserError(
            f"{where}: no image in an object of type {type(image).__name__}{shape}; {ITEM_FORMS}"
        )
    return array


def plain(label: Any) -> Any:
    """A label without its array or tensor, so that a list of many is quick to convert."""
    if isinstance(label, Tensor | np.ndarray) and label.ndim == 0:
        return label.item()
    return label.detach().cpu().numpy() if isinstance(label, Tensor) else label
