"""The settings of data: frozen dataclasses, one sentence a field. Imports no torch, so that --help is instant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..support.errors import flag, require, require_seed

Binarisation = Literal["auto", "dynamic", "threshold", "none"]


@dataclass(frozen=True)
class PlaceConfig:
    """Where images are."""

    data: str = "mnist"
    """A data set by name (`vaekit data list`), or your own images: a folder, a .zip or .tar.gz of one, a .npy or .npz
    file, or what `vaekit data prepare` wrote."""
    data_dir: str | None = None
    """Folder that holds the named data set's files, or gets them."""


@dataclass(frozen=True)
class FormConfig:
    """What images are brought to."""

    size: str | None = None
    """Pixels: 64, or height x width as 48x64; by default as the images are, or 64 where they differ."""
    fit: Literal["crop", "letterbox", "stretch"] = "crop"
    """How, where the shape differs: crop the middle, letterbox with black bars, or stretch."""
    colour: Literal["auto", "grey", "rgb"] = "auto"
    """Grey or colour; auto: grey if all images are."""
    skip_bad: bool = False
    """Leave out image files that cannot be read, rather than stop."""

    def __post_init__(self) -> None:
        if self.size is not None:
            parse_size(self.size)

    @property
    def height_width(self) -> tuple[int, int] | None:
        return None if self.size is None else parse_size(self.size)


@dataclass(frozen=True)
class SourceConfig(FormConfig, PlaceConfig):
    """Which images: enough to find the same ones again."""

    validation_share: float = 0.1
    """Share of the training images to hold back for validation, where the source has no validation images."""
    test_share: float = 0.1
    """Share of all images to hold back for the test, where the source has no test images."""
    split_seed: int = 0
    """Seed of which images are held back."""
    in_memory: Literal["auto", "yes", "no"] = "auto"
    """Whether pixels are held in memory or read from a file as they are needed; auto: in memory up to 2 GB."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("validation_share", "test_share"):
            value = getattr(self, name)
            require(
                0 < value < 1, f"{flag(name)} is {value}; it must be between 0 and 1, such as 0.1"
            )
        require_seed(self.split_seed, "split_seed")


def parse_size(text: str) -> tuple[int, int]:
    """(height, width) of "64" or "48x64". Raises UserError."""
    parts = text.lower().replace("×", "x").split("x")
    good = 1 <= len(parts) <= 2 and all(p.isdecimal() and 1 <= int(p) <= 4096 for p in parts)
    require(
        good, f"--size {text} is no size; give height x width of 1 to 4096 pixels, as 64 or 48x64"
    )
    return int(parts[0]), int(parts[-1])


@dataclass(frozen=True)
class DataConfig(SourceConfig):
    """Which images, and how their pixels are read."""

    binarisation: Binarisation = "auto"
    """Of a bernoulli model's pixels: dynamic draws black or white anew at each use (validation and test
    once, with a fixed seed), threshold cuts at one half, none takes greys as probabilities; auto is dynamic."""


@dataclass(frozen=True)
class DataRecord:
    """What config.json keeps of the data set, enough to know the same images again."""

    name: str
    binarisation: Literal["dynamic", "threshold", "none"]
    sha256: str
