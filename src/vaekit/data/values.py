"""Values and pixels: what the values of an array are, and the one range by which they become pixels in [0, 1].

The values of a data set are kept in a type of STORED: bits as 0 and 255, 8-bit values as uint8, 16-bit ones as uint16
or int16, all others as float32. `to_pixels` makes pixels of them: uint8 if they are bits or 8-bit values, else float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..settings.data import MAX_LEVELS, ValueRange, parse_range
from ..support.errors import UserError, require

STORED = {"uint8": "U8", "uint16": "U16", "int16": "I16", "float32": "F32"}  # names in safetensors
ROUNDING = 1e-6  # floats that are outside of [0, 1] by less are in it
MAX_WHOLE = 2**24  # largest whole number of which float32 has all smaller ones
MIN_SHARE = 1 / 128  # of a range, which the values of other images must span


@dataclass(frozen=True)
class Facts:
    """What the values of all images of a data set are. `dtype`: the type in their source; `stored`: in STORED; `bits`:
    all are 0 or 1; `eight_bits`: all are whole numbers from 0 to 255, of a type other than of 16 bits; `whole`: all are
    whole numbers; `step`: the greatest common divisor of their differences, 0 where they are equal or not whole;
    `anchor`: one of them; `low`, `high`: the smallest and the largest."""

    dtype: str = "uint8"
    stored: str = "uint8"
    bits: bool = False
    eight_bits: bool = True
    whole: bool = True
    step: int = 1
    anchor: float = 0.0
    low: float = 0.0
    high: float = 255.0

    @property
    def unit_floats(self) -> bool:
        """Whether the values are floats in [0, 1]."""
        floats = self.dtype.startswith("float")
        return floats and self.low >= -ROUNDING and self.high <= 1 + ROUNDING

    def levels(self, low: float, high: float) -> int | None:
        """The number of evenly spaced values from low to high that these values are among; None where there are none
        or too many."""
        if not (self.whole and low == round(low) and high == round(high)):
            return None
        step = math.gcd(self.step, round(low - self.anchor), round(high - low))
        levels = round(high - low) // step + 1
        return levels if levels <= MAX_LEVELS else None


class ValueInspector:
    """Finds the facts of values that come in chunks of one type."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.low, self.high, self.step, self.whole = math.inf, -math.inf, 0, True
        self.anchor: float | None = None
        self.dtype = np.dtype("uint8")

    def add(self, chunk: np.ndarray) -> None:
        """Raises UserError for values that are not finite."""
        self.dtype = chunk.dtype
        smallest, largest = chunk.min(), chunk.max()
        if not (np.isfinite(smallest) and np.isfinite(largest)):
            bad = int((~np.isfinite(chunk)).sum())
            raise UserError(
                f"{self.where}: {bad:,} values are not finite (NaN or infinite); replace them, or leave their images "
                "out"
            )
        self.low, self.high = min(self.low, smallest.item()), max(self.high, largest.item())
        floats = self.dtype.kind == "f"
        self.whole = self.whole and (not floats or bool((chunk == np.rint(chunk)).all()))
        small = max(abs(self.low), abs(self.high)) <= MAX_WHOLE
        if self.whole and self.step != 1 and self.dtype.itemsize > 1 and small:
            self.anchor = chunk.flat[0].item() if self.anchor is None else self.anchor
            differences = np.unique(chunk).astype(np.int64) - int(self.anchor)
            self.step = math.gcd(self.step, int(np.gcd.reduce(differences)))

    def facts(self, stored: str | None = None) -> Facts:
        """The facts, of values in the type `stored` or the smallest one. Raises UserError for values that float32
        cannot hold."""
        dtype, low, high = self.dtype, float(self.low), float(self.high)
        bits = self.whole and low >= 0 and high <= 1
        # Numbers of 32 and 64 bits often are 8-bit values that a program has converted.
        eight_bits = (
            self.whole and low >= 0 and high <= 255 and dtype.name not in ("int16", "uint16")
        )
        if stored is None:
            exact = dtype.name in STORED and dtype.kind in "iu"
            stored = dtype.name if exact and not bits else "float32"
            stored = "uint8" if bits or eight_bits else stored
        if stored == "float32" and dtype.name not in ("float16", "float32"):
            size = max(abs(low), abs(high))
            exact = size <= (MAX_WHOLE if dtype.kind in "iu" else 3e38)
            require(
                exact and (high == low or high - low >= size / 1024),
                f"{self.where}: float32 cannot hold the {dtype} values from {low:g} to {high:g} with their "
                "differences; subtract an offset, or scale them",
            )
        step = (1 if dtype.itemsize == 1 else self.step) if self.whole else 0
        anchor = float(self.anchor or 0)
        eight_bits = eight_bits and not bits
        return Facts(dtype.name, stored, bits, eight_bits, self.whole, step, anchor, low, high)


def inspect_values(chunks: Iterable[np.ndarray], where: str) -> Facts:
    """The facts of values in chunks of one type. Raises UserError as ValueInspector does."""
    inspector = ValueInspector(where)
    for chunk in chunks:
        inspector.add(chunk)
    return inspector.facts()


def to_stored(array: np.ndarray, facts: Facts) -> np.ndarray:
    """Values in the type that keeps them, a copy."""
    if facts.bits and facts.stored == "uint8":
        return np.multiply(array, 255).astype(np.uint8)
    return np.array(array, dtype=facts.stored, order="C")


def choose_range(
    facts: Facts,
    low: float,
    high: float,
    wanted: str,
    where: str,
    percentiles: Callable[[tuple[float, float]], tuple[float, float]],
) -> ValueRange:
    """The range of a data set whose training values go from low to high: `wanted`, as LOW,HIGH or as percentiles of the
    training values, else 0 to 1 for bits and for floats in [0, 1], 0 to 255 for 8-bit values, low to high for others.

    Raises UserError where that is no range.
    """
    kind, ends = parse_range(wanted)
    if facts.bits:
        require(
            kind == "auto" or ends == (0, 1),
            f"{where}: all values are 0 or 1, which need no --range; leave it out",
        )
        return ValueRange(0, 1, 2, facts.dtype)
    floats = facts.dtype.startswith("float")
    if kind == "values":
        low, high = ends
    elif kind == "percentiles":
        low, high = percentiles(ends)
    elif facts.eight_bits:
        return ValueRange(dtype=facts.dtype)
    elif floats and low >= -ROUNDING and high <= 1 + ROUNDING:
        low, high = 0, 1
    require(
        low < high,
        f"{where}: all training values are {low:g}; give images that differ, or --range LOW,HIGH",
    )
    require(
        not facts.whole or (low, high) != (0, 1),
        f"{where}: of the whole numbers from {facts.low:g} to {facts.high:g}, the range 0 to 1 keeps two; give a range "
        "in their units, or save black and white images as 0 and 255",
    )
    return ValueRange(float(low), float(high), facts.levels(low, high), facts.dtype)


def is_plain(value_range: ValueRange) -> bool:
    """Whether a model of this range takes 8-bit images: its own values are 8 bits, bits, or floats from 0 to 1. Values
    of 16 bits, and floats that are not whole, are not, even from 0 to 255."""
    eight_bits = value_range.levels is not None and value_range.dtype not in ("int16", "uint16")
    return value_range.low == 0 and (
        value_range.high == 1 or (value_range.high == 255 and eight_bits)
    )


def to_pixels(values: Tensor, value_range: ValueRange) -> Tensor:
    """Pixels of values of `to_stored`: uint8 as they are where `is_plain`, else float32 in [0, 1]."""
    if values.dtype == torch.uint8 and is_plain(value_range):
        return values
    low, high = value_range.low, value_range.high
    pixels = values.to(torch.float32, copy=True)
    return pixels.sub_(low).div_(high - low).clamp_(0, 1)


def on_levels(images: Tensor, value_range: ValueRange) -> Tensor:
    """Resized pixels, rounded in place to the levels of their range where these are not 8 bits."""
    levels = value_range.levels
    if not images.is_floating_point() or levels is None:
        return images
    return images.mul_(levels - 1).round_().div_(levels - 1)


def check_part(
    lows: np.ndarray,
    highs: np.ndarray,
    value_range: ValueRange,
    where: str,
    strict: bool,
    may_be_dark: bool = False,
    advice: str = "give all images the same, or --range LOW,HIGH",
) -> str | None:
    """A sentence if values of some images lie outside the range and are clipped, from the smallest and largest value of
    each image (N,).

    If `strict`, raises UserError with `advice` where more than half of the images reach further outside than the range
    is wide, or, unless they `may_be_dark`, where all values are in a tiny part of the range: they probably are of
    another scale.
    """
    low, high = value_range.low, value_range.high

    def outside_by(share: float) -> int:
        margin = share * (high - low)
        return int(((lows < low - margin) | (highs > high + margin)).sum())

    outside = outside_by(ROUNDING)
    span = f"values from {lows.min():g} to {highs.max():g}, and the range is {low:g} to {high:g}"
    if strict:
        dark = may_be_dark or value_range.dtype == "uint8"
        tiny = highs.max() - low < MIN_SHARE * (high - low) and not dark
        require(
            2 * outside_by(1) <= len(lows) and not tiny,
            f"{where} has {span}: it seems to be of another scale; {advice}",
        )
    if outside:
        return (
            f"{outside:,} of {len(lows):,} images of {where} have values outside of {low:g} to {high:g}: clipped; "
            f"theirs are {lows.min():g} to {highs.max():g}"
        )
    return None


def converter(
    facts: Facts, value_range: ValueRange, where: str, log: Callable[[str], None]
) -> Callable[[np.ndarray], Tensor]:
    """The function that makes pixels of arrays with these facts for a model whose data had a range; what is read in one
    of several ways is logged. Raises UserError for values of another scale."""
    values = f"{where}: {facts.dtype} values from {facts.low:g} to {facts.high:g}"
    low, high = value_range.low, value_range.high
    if not is_plain(value_range):
        require(
            (facts.dtype == "uint8") == (value_range.dtype == "uint8") or facts.high > 255,
            f"{values}, but the model's data were {value_range.dtype} values, read from {low:g} to {high:g}; give "
            "values of the same scale",
        )
        return lambda array: to_pixels(torch.from_numpy(array.astype(np.float32)), value_range)
    whole = (facts.bits or facts.eight_bits) and not facts.unit_floats
    require(
        facts.unit_floats or (whole and (high == 255 or facts.dtype == "uint8" or facts.bits)),
        f"{values}; for this model scale them to {'0 ... 255, or ' * (high == 255)}floats to [0, 1]",
    )
    if facts.bits and (facts.unit_floats or facts.dtype == "bool" or high == 1):
        if facts.unit_floats and value_range.dtype == facts.dtype and high == 255:
            log(f"{values}: read as black and white, though the model's data were from 0 to 255")
        return lambda array: torch.from_numpy(np.multiply(array, 255).astype(np.uint8))
    if facts.bits:
        log(f"{values}: read as two of 256 levels; give black and white as bool")
    if whole and high == 1:
        log(f"{values}: read as 8-bit values, 255 as 1")
    if whole:
        return lambda array: torch.from_numpy(array.astype(np.uint8))
    return lambda array: torch.from_numpy(array.astype(np.float32)).clamp_(0, 1)


def describe_values(value_range: ValueRange, facts: Facts) -> str | None:
    """A sentence on how values became pixels, where these are not 8-bit values of their own type."""
    low, high = value_range.low, value_range.high
    if facts.bits:
        return f"{facts.dtype} values, all 0 or 1: black and white"
    if facts.eight_bits and value_range == ValueRange():
        if facts.high <= 1:
            return "8-bit values, all 0 or 1 of 255: almost black; if they mean black and white, save them as 0 and 255"
        return None
    if facts.eight_bits and value_range == ValueRange(dtype=facts.dtype):
        return f"{facts.dtype} values, all whole numbers from 0 to 255: read as 8-bit values"
    levels = "" if value_range.levels is None else f" in {value_range.levels:,} levels"
    return f"{facts.dtype} values, {low:g} as 0 (black) to {high:g} as 1{levels}"
