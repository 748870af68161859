"""The augmentation of training images, as a frozen dataclass and as text. Imports no torch."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, fields
from typing import Any

from ..support.errors import did_you_mean, printable, require

PIXELS = ("shift", "crop")
COLOURS = ("brightness", "contrast", "saturation")
EXAMPLES = (
    "hflip, vflip, rotate90, shift=2, crop=4, brightness=0.2, contrast=0.2 and saturation=0.2"
)


@dataclass(frozen=True)
class Augmentation:
    """Random changes of the training images, drawn for each image at each step; 0 or False: none of the kind."""

    hflip: bool = False
    """Mirror left and right, with probability one half."""
    vflip: bool = False
    """Mirror top and bottom, with probability one half."""
    rotate90: bool = False
    """Rotate by 0, 90, 180 or 270 degrees, equally likely."""
    shift: int = 0
    """Move by up to this many pixels in each direction; the pixels of the edge are repeated outwards."""
    crop: int = 0
    """Pad by this many pixels on each side, by reflection, and crop back to the size at a random place."""
    brightness: float = 0.0
    """Multiply the values by a factor from 1 - brightness to 1 + brightness."""
    contrast: float = 0.0
    """Multiply the distance from the mean grey of the image by a factor from 1 - contrast to 1 + contrast."""
    saturation: float = 0.0
    """Multiply the distance from the grey of the pixel by a factor from 1 - saturation to 1 + saturation."""

    def __str__(self) -> str:
        """The text of `parse_augmentation`, in the order of the fields."""
        words = []
        for field in fields(self):
            value = getattr(self, field.name)
            if value:
                words.append(field.name if value is True else f"{field.name}={value}")
        return ",".join(words)


def parse_augmentation(text: str) -> Augmentation:
    """The augmentation of a text such as "hflip,shift=2,brightness=0.2". Raises UserError."""
    names = [field.name for field in fields(Augmentation)]
    values: dict[str, Any] = {}
    for part in text.split(","):
        name, equals, value = (word.strip() for word in part.partition("="))
        shown = printable(part.strip())[:40]
        require(
            name in names,
            f"--augment {shown!r} is unknown; choose among {EXAMPLES}, separated by commas"
            + did_you_mean(name.lower(), names),
        )
        require(name not in values, f"--augment has {name} twice; give it once")
        if name in PIXELS:
            good = value.isdecimal() and 1 <= int(value[:9]) < 2**16
            require(good, f"--augment {shown}: {name} needs a number of pixels, as {name}=2")
            values[name] = int(value)
        elif name in COLOURS:
            number = 0.0
            with contextlib.suppress(ValueError):
                number = float(value)
            require(
                0 < number <= 1,
                f"--augment {shown}: {name} needs a number above 0 and at most 1, as {name}=0.2",
            )
            values[name] = number
        else:
            require(not equals, f"--augment {shown}: {name} takes no value; give {name} alone")
            values[name] = True
    return Augmentation(**values)
