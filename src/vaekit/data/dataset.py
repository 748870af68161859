"""Dataset, Split and EvalSplit, in memory or in a file, and the conversion of stored pixels to model input."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, SupportsIndex, overload

import numpy as np
import torch
from torch import Tensor
from torch.utils import data as torch_data

from ..settings.data import EIGHT_BITS, MAX_CLASSES, Binarisation, SourceConfig, ValueRange
from ..support.errors import UserError, require
from .image_table import ImageTable
from .stored import StoredImages, chunk_slices

ResolvedBinarisation = Literal["dynamic", "threshold", "none"]

# One seed for all users, so that all results on the binarised test set are on the same bits.
BINARISATION_SEED = 777

INTEGER_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)

Item = Tensor | tuple[Tensor, int]


@dataclass(frozen=True)
class Split(torch_data.Dataset[Item]):
    """Images (N, C, H, W), uint8 or float in [0, 1], and optional labels (N,), whole numbers from 0.

    Images too large for memory are `StoredImages` in a file; indexing reads them. A slice or a tensor of rows gives a
    Batch of images as they are stored. It is also a dataset of PyTorch, for a DataLoader: a whole number gives one
    item, (image, label), or the image alone without labels; the image is (C, H, W), float in [0, 1]. `table` has the
    names of image files and their metadata.
    """

    images: Tensor | StoredImages
    labels: Tensor | None = None
    table: ImageTable | None = None

    def __post_init__(self) -> None:
        if isinstance(self.labels, Tensor) and self.labels.dtype in INTEGER_DTYPES:
            object.__setattr__(self, "labels", self.labels.long())
        if isinstance(self.images, Tensor) and self.images.requires_grad:
            object.__setattr__(self, "images", self.images.detach())

    def __len__(self) -> int:
        return len(self.images)

    @overload
    def __getitem__(self, indices: slice | Tensor) -> Batch: ...

    @overload
    def __getitem__(self, indices: int) -> Item: ...

    def __getitem__(self, indices: slice | Tensor | int) -> Batch | Item:
        labels = self.labels
        if isinstance(indices, slice):
            return Batch(self.images[indices], None if labels is None else labels[indices])
        if not (isinstance(indices, Tensor) and indices.ndim):
            return self.__getitems__([indices])[0]
        # index_select copies whole images; indexing goes through them pixel by pixel.
        images = self.images.index_select(0, indices.to(self.images.device))
        if labels is not None:
            labels = labels.index_select(0, indices.to(labels.device))
        return Batch(images, labels)

    def __getitems__(self, indices: Sequence[SupportsIndex]) -> list[Item]:
        """The items at these indices, read at once: how a DataLoader asks for a batch. Raises IndexError."""
        batch = self[row_numbers(indices, len(self))]
        return items(pixels(batch.images, "none"), batch.labels)

    def take(self, rows: Tensor) -> Split:
        """The split of these rows; images in a file stay there."""
        labels = self.labels
        if labels is not None:
            labels = labels.index_select(0, rows.to(labels.device))
        table = None if self.table is None else self.table.take(rows)
        if isinstance(self.images, StoredImages):
            return Split(self.images.take(rows.cpu()), labels, table)
        return Split(self.images.index_select(0, rows.to(self.images.device)), labels, table)

    def to(self, device: torch.device) -> Split:
        labels = None if self.labels is None else self.labels.to(device)
        return Split(self.images.to(device), labels, self.table)


@dataclass(frozen=True)
class Batch(Split):
    """Images and labels in memory, the result of indexing a split."""

    images: Tensor


@dataclass(frozen=True)
class EvalSplit(torch_data.Dataset[Item]):
    """A split for validation or test, made by `eval_split`: indexing it gives floats in [0, 1]; items as of a Split."""

    split: Split
    binarisation: ResolvedBinarisation

    def __len__(self) -> int:
        return len(self.split)

    @overload
    def __getitem__(self, indices: slice | Tensor) -> Batch: ...

    @overload
    def __getitem__(self, indices: int) -> Item: ...

    def __getitem__(self, indices: slice | Tensor | int) -> Batch | Item:
        if isinstance(indices, slice) or (isinstance(indices, Tensor) and indices.ndim):
            batch = self.split[indices]
            return Batch(pixels(batch.images, self.binarisation), batch.labels)
        return self.__getitems__([indices])[0]

    def __getitems__(self, indices: Sequence[SupportsIndex]) -> list[Item]:
        """As of a Split."""
        batch = self[row_numbers(indices, len(self))]
        return items(batch.images, batch.labels)

    @property
    def labels(self) -> Tensor | None:
        return self.split.labels

    @property
    def device(self) -> torch.device:
        return self.split.images.device

    def take(self, rows: Tensor) -> EvalSplit:
        return EvalSplit(self.split.take(rows), self.binarisation)

    def to(self, device: torch.device) -> EvalSplit:
        return EvalSplit(self.split.to(device), self.binarisation)


def row_numbers(indices: Iterable[SupportsIndex], count: int) -> Tensor:
    """Indices from -count to count - 1 as rows (n,), int64. Raises IndexError, which ends an iteration."""
    rows = [operator.index(index) for index in indices]
    for row in rows:
        if not -count <= row < count:
            raise IndexError(f"there is no image {row}: the split has {count:,}")
    return torch.tensor(rows, dtype=torch.int64) % count


def items(images: Tensor, labels: Tensor | None) -> list[Item]:
    """The items of a batch, as a DataLoader collates them."""
    return list(images) if labels is None else list(zip(images, labels.tolist(), strict=True))


def check_labels(labels: Any, count: int, where: str) -> None:
    """Raise UserError unless these are labels of `count` images: (count,), int64, 0 or more, below MAX_CLASSES."""
    require(
        isinstance(labels, Tensor) and labels.dtype == torch.int64 and labels.ndim == 1,
        f"{where}: the labels must be a tensor of whole numbers, one per image",
    )
    require(len(labels) == count, f"{where}: {count} images but {len(labels)} labels")
    require(bool((labels >= 0).all()), f"{where}: labels must be 0 or more")
    require(
        bool((labels < MAX_CLASSES).all()),
        f"{where}: a label is {int(labels.max()):,}, but must be below {MAX_CLASSES:,}; number the classes from 0",
    )


def check_class_count(count: int, where: str) -> None:
    """Raise UserError for more than MAX_CLASSES classes."""
    require(
        count <= MAX_CLASSES,
        f"{where} has {count:,} different labels, but there may be {MAX_CLASSES:,} classes; leave the labels out",
    )


@dataclass(frozen=True)
class Dataset:
    """Three splits of images of one size.

    `black_and_white` marks data sets that the literature binarises (such as MNIST); their likelihood is Bernoulli.
    `source` lets `load` find the same images again; None for arrays. `digest` is the hash of the content, if already
    known. `value_range` tells what the values were before they became pixels in [0, 1]; `reading` says in sentences how
    the source was read, where it could have been read in another way.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    classes: tuple[str, ...] | None = None
    black_and_white: bool = False
    source: SourceConfig | None = None
    digest: str | None = None
    value_range: ValueRange = EIGHT_BITS
    reading: tuple[str, ...] = ()

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
                isinstance(images, StoredImages)
                or images.dtype == torch.uint8
                or bool(((images >= 0) & (images <= 1)).all()),
                f"{where}: float pixels must lie in [0, 1]",
            )
            if split.labels is not None:
                check_labels(split.labels, len(images), where)

    @classmethod
    def from_splits(cls, name: str, splits: Iterable[Split], **fields: Any) -> Dataset:
        """The data set of three splits: train, validation, test."""
        train, validation, test = splits
        return cls(name, train, validation, test, **fields)

    def with_splits(self, splits: Iterable[Split], **fields: Any) -> Dataset:
        """A copy with other splits: train, validation, test."""
        train, validation, test = splits
        return replace(self, train=train, validation=validation, test=test, **fields)

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
        """Number of classes; 0 without labels."""
        if self.train.labels is None:
            return 0
        return len(self.classes) if self.classes else int(self.train.labels.max()) + 1

    @property
    def likelihood(self) -> Literal["bernoulli", "logistic", "gaussian"]:
        """The default likelihood of these pixels."""
        if self.black_and_white:
            return "bernoulli"
        return "gaussian" if self.levels is None else "logistic"

    @property
    def levels(self) -> int | None:
        """Number L of values k / (L - 1) of a pixel; None where pixels are not discrete."""
        if self.train.images.dtype == torch.uint8:
            return EIGHT_BITS.levels
        # Floats without a range of their own are not 8-bit values.
        return None if self.value_range == EIGHT_BITS else self.value_range.levels

    def binarisation(self, requested: Binarisation, likelihood: str) -> ResolvedBinarisation:
        """Resolve the requested binarisation for a likelihood. Raises UserError where they do not fit together."""
        if likelihood == "bernoulli":
            return "dynamic" if requested == "auto" else requested
        require(
            requested in ("auto", "none"),
            f"--binarisation {requested} needs --likelihood bernoulli, but the model's is {likelihood}",
        )
        return "none"

    def sha256(self) -> str:
        """Hash of all pixels and labels, in order: identifies the data that a run was trained on."""
        if self.digest is not None:
            return self.digest
        digest = hashlib.sha256()
        for split in self.splits.values():
            for array in (split.images, split.labels):
                if array is None:
                    continue
                digest.update(str((tuple(array.shape), array.dtype)).encode())
                for chunk in chunk_slices(len(array), array[:1].nbytes):
                    digest.update(array[chunk].contiguous().numpy().data)
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """The entry in config.json."""
        return {
            "name": self.name,
            "source": None if self.source is None else asdict(self.source),
            "images": {name: len(split) for name, split in self.splits.items()},
            "classes": self.classes,
            "sha256": self.sha256(),
            "value_range": asdict(self.value_range),
        }


def pixels(images: Tensor, binarisation: ResolvedBinarisation) -> Tensor:
    """Convert stored images to model input: floats in [0, 1]; dynamic binarisation samples new bits in each call."""
    if images.dtype == torch.uint8:
        if binarisation == "dynamic":
            return binarise(images).float()
        return (images > 127).float() if binarisation == "threshold" else images.float().div_(255)
    if binarisation == "dynamic":
        return torch.bernoulli(images)
    return (images > 0.5).to(images.dtype) if binarisation == "threshold" else images


def binarise(images: Tensor) -> Tensor:
    """Sample bits, True with probability x / 255 for each level x of `images` (B, C, H, W).

    Draws one random byte per pixel; the tie-breaking numbers, needed in one case of 256, are shared by the images.
    """
    if images.device.type == "cpu":
        # Eight bytes at once, from all 64-bit words but the largest: a byte's probability is off 1/256 by under 2^-63.
        words = torch.randint(-(2**63), 2**63 - 1, (-(-images.numel() // 8),))
        byte = words.view(torch.uint8)[: images.numel()].view(images.shape)
    else:
        byte = torch.randint(256, images.shape, dtype=torch.uint8, device=images.device)
    return bernoulli_from_bytes(images, byte, torch.empty_like(images[0]).random_(255))


def bernoulli_from_bytes(level: Tensor, byte: Tensor, tie_break: Tensor) -> Tensor:
    """True with probability level / 256 + 1 / 256 * level / 255 = level / 255, exactly, for `byte` uniform on 0 ... 255
    and `tie_break` uniform on 0 ... 254."""
    return (byte < level) | ((byte == level) & (tie_break < level))


def eval_split(split: Split, binarisation: ResolvedBinarisation) -> EvalSplit:
    """The split for validation or test: floats in [0, 1]; dynamic binarisation samples its bits once, with a fixed
    seed."""
    if binarisation != "dynamic":
        return EvalSplit(split, binarisation)
    # NumPy's generator, so that the bits do not depend on the device; a test fixes the bits.
    images = split.images[:].cpu().numpy()
    generator = np.random.default_rng(BINARISATION_SEED)
    if images.dtype == np.uint8:
        bits = generator.integers(0, 255, images.shape, dtype=np.uint8) < images
        binarised = torch.from_numpy(bits).to(torch.uint8).mul_(255)
    else:
        binarised = torch.from_numpy(generator.random(images.shape) < images).float()
    return EvalSplit(Split(binarised.to(split.images.device), split.labels), "none")


def get_split(dataset: Dataset, name: str) -> Split:
    """The split called `name`. Raises UserError."""
    if name not in dataset.splits:
        raise UserError(f"there is no split {name!r}; choose train, validation or test")
    return dataset.splits[name]


def class_sizes(dataset: Dataset) -> dict[str, int]:
    """Training images of each class, by its name or number; none without labels."""
    if dataset.train.labels is None:
        return {}
    counts = torch.bincount(dataset.train.labels, minlength=dataset.class_count).tolist()
    return dict(zip(dataset.classes or map(str, range(len(counts))), counts, strict=True))
