"""A data set, in memory or in a file, and how its pixels become what a model sees."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..settings.data import Binarisation, SourceConfig
from ..support.errors import UserError, require
from .stored import Stored

Settled = Literal["dynamic", "threshold", "none"]

# One seed for everybody: numbers on "the" binarised test set are then about the same bits.
FREEZE_SEED = 777

WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


@dataclass(frozen=True)
class Split:
    """Images (N, C, H, W), uint8 or float in [0, 1], and their labels (N,), whole numbers from 0, if there are any.

    Images too large for memory are `Stored` in a file, and what is indexed is read.
    """

    images: Tensor | Stored
    labels: Tensor | None = None

    def __post_init__(self) -> None:
        if isinstance(self.labels, Tensor) and self.labels.dtype in WHOLE:
            object.__setattr__(self, "labels", self.labels.long())

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, indices: slice | Tensor) -> Batch:
        labels = self.labels
        if isinstance(indices, slice):
            return Batch(self.images[indices], None if labels is None else labels[indices])
        # index_select copies whole images, where indexing goes through them pixel by pixel.
        images = self.images.index_select(0, indices.to(self.images.device))
        if labels is not None:
            labels = labels.index_select(0, indices.to(labels.device))
        return Batch(images, labels)

    def take(self, rows: Tensor) -> Split:
        """Some of the images, those in a file left there."""
        labels = self.labels
        if labels is not None:
            labels = labels.index_select(0, rows.to(labels.device))
        if isinstance(self.images, Stored):
            return Split(self.images.take(rows.cpu()), labels)
        return Split(self.images.index_select(0, rows.to(self.images.device)), labels)

    def to(self, device: torch.device) -> Split:
        labels = None if self.labels is None else self.labels.to(device)
        return Split(self.images.to(device), labels)


@dataclass(frozen=True)
class Batch(Split):
    """Images and labels in memory: what indexing a split gives."""

    images: Tensor


@dataclass(frozen=True)
class Frozen:
    """A split as validation and test see it, which `freeze` makes: a slice of it has floats in [0, 1]."""

    split: Split
    binarisation: Settled

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, indices: slice | Tensor) -> Batch:
        part = self.split[indices]
        return Batch(pixels(part.images, self.binarisation), part.labels)

    @property
    def labels(self) -> Tensor | None:
        return self.split.labels

    @property
    def device(self) -> torch.device:
        return self.split.images.device

    def take(self, rows: Tensor) -> Frozen:
        return Frozen(self.split.take(rows), self.binarisation)

    def to(self, device: torch.device) -> Frozen:
        return Frozen(self.split.to(device), self.binarisation)


def check_labels(labels: Any, count: int, where: str) -> None:
    """UserError unless these are labels of `count` images."""
    require(
        isinstance(labels, Tensor) and labels.dtype == torch.int64 and labels.ndim == 1,
        f"{where}: the labels must be a tensor of whole numbers, one for each image",
    )
    require(len(labels) == count, f"{where}: {count} images but {len(labels)} labels")
    require(bool((labels >= 0).all()), f"{where}: labels must be 0 or more")


@dataclass(frozen=True)
class Dataset:
    """Three splits of images of one size.

    `black_and_white` marks sets that the field binarises (MNIST and its like), whose likelihood is Bernoulli.
    `source` is how `load` finds the same images again; None for arrays. `digest` is the hash of the content, where it
    is known already.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    classes: tuple[str, ...] | None = None
    black_and_white: bool = False
    source: SourceConfig | None = None
    digest: str | None = None

    def __post_init__(self) -> None:
        for name, split in self.splits.items():
            images = split.images
            where = f"data set {self.name!r}, {name}"
            require(
                images.ndim == 4 and len(images) >= 1, f"{where}: no images of shape (N, C, H, W)"
            )
            require(
                images.shape[1:] == self.train.images.shape[1:]
                and images.dtype == self.train.images.dtype,
                f"{where}: its images differ from the training images in size or type",
            )
            require(
                images.dtype in (torch.uint8, torch.float32),
                f"{where}: pixels are {images.dtype}; they must be uint8, or float32 in [0, 1]",
            )
            require(
                isinstance(images, Stored)
                or images.dtype == torch.uint8
                or bool(((images >= 0) & (images <= 1)).all()),
                f"{where}: float pixels must lie in [0, 1]",
            )
            if split.labels is not None:
                check_labels(split.labels, len(images), where)

    @classmethod
    def of(cls, name: str, splits: Iterable[Split], **about: Any) -> Dataset:
        """A data set of its three splits in order."""
        train, validation, test = splits
        return cls(name, train, validation, test, **about)

    def with_splits(self, splits: Iterable[Split], **about: Any) -> Dataset:
        """The same data set with other pixels."""
        train, validation, test = splits
        return replace(self, train=train, validation=validation, test=test, **about)

    @property
    def splits(self) -> dict[str, Split]:
        return {"train": self.train, "validation": self.validation, "test": self.test}

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        _, channels, height, width = self.train.images.shape
        return channels, height, width

    @property
    def class_count(self) -> int:
        """How many classes the labels have; 0 where there are no labels."""
        if self.train.labels is None:
            return 0
        return len(self.classes) if self.classes else int(self.train.labels.max()) + 1

    @property
    def likelihood(self) -> Literal["bernoulli", "logistic", "gaussian"]:
        """The distribution of pixels that suits these images."""
        if self.black_and_white:
            return "bernoulli"
        return "gaussian" if self.train.images.dtype == torch.float32 else "logistic"

    def binarisation(self, wanted: Binarisation, likelihood: str) -> Settled:
        """What `wanted` comes to under a likelihood; UserError where the two make no sense together."""
        if likelihood == "bernoulli":
            return "dynamic" if wanted == "auto" else wanted
        require(
            wanted in ("auto", "none"),
            f"--binarisation {wanted} needs --likelihood bernoulli, and the model's is {likelihood}",
        )
        return "none"

    def sha256(self) -> str:
        """Hash of all pixels and labels, in order: which data a run was trained on."""
        if self.digest is not None:
            return self.digest
        digest = hashlib.sha256()
        for split in self.splits.values():
            for tensor in (split.images, split.labels):
                if isinstance(tensor, Tensor):
                    digest.update(str((tuple(tensor.shape), tensor.dtype)).encode())
                    digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """What config.json says of it."""
        return {
            "name": self.name,
            "source": None if self.source is None else asdict(self.source),
            "images": {name: len(split) for name, split in self.splits.items()},
            "classes": self.classes,
            "sha256": self.sha256(),
            "normalisation": "pixels in [0, 1]: 8-bit values divided by 255, floats as they are",
        }


def pixels(images: Tensor, binarisation: Settled) -> Tensor:
    """What a model sees in training: floats in [0, 1] of stored images, bits drawn anew where dynamic."""
    if images.dtype == torch.uint8:
        if binarisation == "dynamic":
            return bits(images).float()
        return (images > 127).float() if binarisation == "threshold" else images.float().div_(255)
    if binarisation == "dynamic":
        return torch.bernoulli(images)
    return (images > 0.5).to(images.dtype) if binarisation == "threshold" else images


def bits(images: Tensor) -> Tensor:
    """Bits, True with probability x / 255 for each level x of `images` (B, C, H, W).

    Takes a random byte a pixel, and of the numbers that decide in one case of 256 as many as one image has pixels.
    """
    if images.device.type == "cpu":
        # Eight bytes at once, of all 64-bit words but the largest: one is off 1/256 by less than 2^-63.
        words = torch.randint(-(2**63), 2**63 - 1, (-(-images.numel() // 8),))
        drawn = words.view(torch.uint8)[: images.numel()].view(images.shape)
    else:
        drawn = torch.randint(256, images.shape, dtype=torch.uint8, device=images.device)
    return is_white(images, drawn, torch.empty_like(images[0]).random_(255))


def is_white(level: Tensor, drawn: Tensor, deciding: Tensor) -> Tensor:
    """Of `drawn` uniform on 0 ... 255 and `deciding` on 0 ... 254: level / 256 + 1 / 256 * level / 255 = level / 255 of
    them are True."""
    return (drawn < level) | ((drawn == level) & (deciding < level))


def freeze(split: Split, binarisation: Settled) -> Frozen:
    """A split as validation and test see it: floats in [0, 1], bits drawn once, from a fixed seed."""
    if binarisation != "dynamic":
        return Frozen(split, binarisation)
    # numpy's generator, so that the bits do not depend on the device. (That they stay as they are is tested.)
    images = split.images[:].cpu().numpy()
    generator = np.random.default_rng(FREEZE_SEED)
    if images.dtype == np.uint8:
        bits = generator.integers(0, 255, images.shape, dtype=np.uint8) < images
        drawn = torch.from_numpy(bits).to(torch.uint8).mul_(255)
    else:
        drawn = torch.from_numpy(generator.random(images.shape) < images).float()
    return Frozen(Split(drawn.to(split.images.device), split.labels), "none")


def choose_split(dataset: Dataset, name: str) -> Split:
    """A split by its name."""
    if name not in dataset.splits:
        raise UserError(f"there is no split {name!r}; choose train, validation or test")
    return dataset.splits[name]
