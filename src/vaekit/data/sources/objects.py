"""Objects in memory as data sets: arrays, tensors, pairs of images and labels, dicts of these, map-style datasets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ...settings.data import SourceConfig
from ...support.errors import UserError, require
from ..dataset import Dataset
from ..formats.images import upright_array
from ..stored import SPLITS
from .arrays import dataset_from_arrays, to_numpy


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
