"""Settings of data, as frozen dataclasses with one sentence per field. Imports no torch, so that --help is fast."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ..support.errors import flag_name, printable, require, require_count, require_seed

Binarisation = Literal["auto", "dynamic", "threshold", "none"]
Pages = Literal["all", "first", "channels"]
ChannelAxis = Literal["auto", "first", "last"]
PixelType = Literal["uint8", "uint16", "int16", "int32", "float32"]  # of written images
MAX_CLASSES = 2**20
MAX_LEVELS = 2**16


@dataclass(frozen=True)
class ValueRange:
    """How the values v of a data set become pixels x = (v - low) / (high - low) in [0, 1]: one range for all its parts.

    `levels`: number of evenly spaced values from low to high, of data with whole numbers; None for others. `dtype`: the
    type of the values in their source, as NumPy names it.
    """

    low: float = 0.0
    high: float = 255.0
    levels: int | None = 256
    dtype: str = "uint8"

    def __post_init__(self) -> None:
        require(
            -math.inf < self.low < self.high < math.inf,
            f"the range of values is {self.low} to {self.high}; its ends must be numbers, the first below the second",
        )
        require(
            self.levels is None or 2 <= self.levels <= MAX_LEVELS,
            f"the number of levels is {self.levels}; it must be 2 to {MAX_LEVELS:,}",
        )


EIGHT_BITS = ValueRange()
UNIT_RANGE = ValueRange(0.0, 1.0, None, "float32")  # of pixels as they are


@dataclass(frozen=True)
class LocationConfig:
    """Where the images are."""

    data: str = "mnist"
    """A named data set (`vaekit data list`; mnist:1000 for 1,000 training images), or your own images: a folder, a .zip
    or .tar.gz of one, a .npy or .npz file, a .h5 or .zarr file (file.h5:/images), Parquet files, or a file of
    `vaekit data prepare`."""
    data_dir: str | None = None
    """Folder with the named data set's files, or to download them to."""


@dataclass(frozen=True)
class PreprocessConfig:
    """How images are read, resized and converted."""

    size: str | None = None
    """Size in pixels: 64, or height x width as 48x64; default: that of the images, or 64 where they differ."""
    fit: Literal["crop", "letterbox", "stretch"] = "crop"
    """Resizing where the aspect ratio differs: crop the centre, letterbox with black bars, or stretch."""
    colour: Literal["auto", "grey", "rgb"] = "auto"
    """Grey or colour; auto: grey if all images are grey."""
    skip_bad: bool = False
    """Skip image files that cannot be read, instead of stopping."""
    pages: Pages | None = None
    """Files of several pages, frames or slices: all are images, only the first is, or together they are the channels of
    one image; without it they are refused."""
    channel_axis: ChannelAxis = "auto"
    """Axis of the channels in arrays: first (N, C, H, W) or last (N, H, W, C); auto: the clearly smaller one."""
    range: str = "auto"
    """Values that become black and white in data of other than 8 bits: LOW,HIGH (--range=-5,5 below 0), or percentiles
    of the training images as 1%,99%; auto: their smallest and largest, or 0 to 1 for floats within."""

    def __post_init__(self) -> None:
        if self.size is not None:
            parse_size(self.size)
        parse_range(self.range)

    @property
    def height_width(self) -> tuple[int, int] | None:
        return None if self.size is None else parse_size(self.size)


@dataclass(frozen=True)
class SourceConfig(PreprocessConfig, LocationConfig):
    """Where the images are and how they are split: everything needed to load the same data set again."""

    validation_share: float = 0.1
    """Fraction of the training images held out for validation, if the source has no validation images."""
    test_share: float = 0.1
    """Fraction of all images held out for testing, if the source has no test images."""
    split_seed: int = 0
    """Random seed of the split."""
    train_images: int | None = None
    """Number of training images to use: the first of a named data set; of other images, each class in proportion,
    chosen by --split-seed; default: all."""
    validation_images: int | None = None
    """Number of validation images to use, chosen likewise; default: all."""
    group_by: str | None = None
    """Keep images of one group in one part of a random split: those of one folder, by its level (1 is the first below
    the data, train or test), or of one value in a column of metadata.csv, such as patient."""
    in_memory: Literal["auto", "yes", "no"] = "auto"
    """Hold pixels in memory, or read them from a file as needed; auto: in memory up to 2 GB."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("validation_share", "test_share"):
            value = getattr(self, name)
            require(
                0 < value < 1,
                f"{flag_name(name)} is {value}; it must be between 0 and 1, such as 0.1",
            )
        require_seed(self.split_seed, "split_seed")
        for name in ("train_images", "validation_images"):
            if getattr(self, name) is not None:
                require_count(name, getattr(self, name))
        group_by = self.group_by
        require(
            group_by is None or (group_by.strip() != "" and group_by.strip("0") != ""),
            f"--group-by is {group_by!r}; it must be the level of a folder, from 1, or the name of a metadata column",
        )


def parse_size(text: str) -> tuple[int, int]:
    """(height, width) of "64" or "48x64". Raises UserError."""
    parts = text.lower().replace("×", "x").split("x")
    good = 1 <= len(parts) <= 2 and all(
        p.isdecimal() and len(p) <= 4 and 1 <= int(p) <= 4096 for p in parts
    )
    require(
        good,
        f"--size {printable(text)[:40]} is not a size; give height x width of 1 to 4096 pixels, as 64 or 48x64",
    )
    return int(parts[0]), int(parts[-1])


def parse_range(text: str) -> tuple[Literal["auto", "values", "percentiles"], tuple[float, float]]:
    """The kind of a range and its ends: "auto", "LOW,HIGH", or "1%,99%". Raises UserError."""
    if text == "auto":
        return "auto", (0.0, 1.0)
    words = [word.strip() for word in text.split(",")]
    percent = all(word.endswith("%") for word in words)
    try:
        low, high = (float(word.removesuffix("%") if percent else word) for word in words)
    except ValueError:
        low = high = math.nan
    require(
        -math.inf < low < high < math.inf and (not percent or 0 <= low < high <= 100),
        f"--range {printable(text)[:40]} is not a range; give two numbers as 0,4095, or percentiles as 1%,99%",
    )
    return ("percentiles" if percent else "values"), (low, high)


@dataclass(frozen=True)
class DataConfig(SourceConfig):
    """The images, and how their pixels are binarised."""

    binarisation: Binarisation = "auto"
    """Binarisation of the pixels for a bernoulli likelihood: dynamic re-binarises at every step (validation and test
    once, with a fixed seed), threshold cuts at one half, none takes grey values as probabilities; auto is dynamic."""


@dataclass(frozen=True)
class DataRecord:
    """The data set as config.json records it, to recognise the same images again."""

    name: str
    binarisation: Literal["dynamic", "threshold", "none"]
    sha256: str
    value_range: ValueRange = EIGHT_BITS
