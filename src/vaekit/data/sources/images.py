"""One image: what Pillow reads (or a .npy array), in the size and colours that a model takes."""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ...support.errors import UserError, one_line, printable, require

T = TypeVar("T")
# Left out are those whose reading starts another program, or that Pillow only recognises.
NOT_READ = {"EPS", "WMF", "MPEG", "HDF5", "GRIB", "BUFR"}
MOST_PIXELS = 2**26  # 8192 x 8192; an image of so many is refused before it is unpacked
MOST_BYTES = 2**27  # of an image file
ROTATION = 0x0112  # EXIF's tag; 5 to 8 are on their side
NPY = b"\x93NUMPY"


@dataclass(frozen=True)
class Form:
    """What images are brought to: channels (1 grey, 3 colour), size, and how where the shape differs."""

    channels: int
    height: int
    width: int
    fit: str = "crop"


@dataclass(frozen=True)
class Look:
    """What an image's header says, its rotation undone."""

    grey: bool
    height: int
    width: int


class BadImage(ValueError):
    """What cannot be read as an image; the message says why."""


@cache
def formats() -> tuple[str, ...]:
    Image.init()
    return tuple(sorted(set(Image.OPEN) - NOT_READ))


@cache
def endings() -> frozenset[str]:
    """Endings of the names of image files, in small letters."""
    known = set(formats())
    return frozenset(
        {".npy", *(e for e, kind in Image.registered_extensions().items() if kind in known)}
    )


def look(content: bytes) -> Look:
    """Raises BadImage."""
    return _guarded(content, _look)


def decode(content: bytes, form: Form) -> np.ndarray:
    """The image of a file's bytes, (C, H, W), uint8. Raises BadImage."""
    return _guarded(content, lambda image: as_array(fitted(image, form)))


def _guarded(content: bytes, use: Callable[[Image.Image], T]) -> T:
    try:
        with _open(content) as image:
            if math.prod(image.size) > MOST_PIXELS:
                raise BadImage(f"it has {image.width} x {image.height} pixels, too many to unpack")
            return use(image)
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        bomb = isinstance(error, Image.DecompressionBombError)
        raise BadImage("it has too many pixels to unpack" if bomb else "it is no image") from None
    except BadImage:
        raise
    except Exception as error:  # decoders raise anything on damaged files
        raise BadImage(one_line(error) or type(error).__name__) from None


def _open(content: bytes) -> Image.Image:
    if content.startswith(NPY):
        array = np.load(io.BytesIO(content), allow_pickle=False)
        if array.dtype != np.uint8:
            raise BadImage(f"it is an array of {array.dtype}; pixels must be uint8")
        return Image.fromarray(array.squeeze(-1) if array.shape[2:] == (1,) else array)
    if not content:
        raise BadImage("it is empty")
    return Image.open(io.BytesIO(content), formats=formats())


def _look(image: Image.Image) -> Look:
    width, height = image.size
    # Pillow would unpack all of a .png to look for EXIF behind the pixels.
    has_exif = image.format != "PNG" or "exif" in image.info
    if has_exif and image.getexif().get(ROTATION, 1) in (5, 6, 7, 8):
        width, height = height, width
    return Look(is_grey(image), height, width)


def is_grey(image: Image.Image) -> bool:
    return image.mode in ("1", "L", "LA", "La", "I", "F") or image.mode.startswith("I;")


def fitted(image: Image.Image, form: Form) -> Image.Image:
    """An image turned upright, in its form's colours and size."""
    image = _in_colours(ImageOps.exif_transpose(image), "L" if form.channels == 1 else "RGB")
    size = (form.width, form.height)
    if image.size == size:
        return image
    if form.fit == "stretch":
        return image.resize(size, Image.Resampling.LANCZOS)
    if form.fit == "letterbox":
        return ImageOps.pad(image, size, Image.Resampling.LANCZOS)
    return ImageOps.fit(image, size, Image.Resampling.LANCZOS)


def as_array(image: Image.Image) -> np.ndarray:
    """(C, H, W), uint8, of an image in L or RGB."""
    array = np.array(image)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def upright(image: Image.Image) -> np.ndarray:
    """(C, H, W), uint8, of an image as it is meant to be seen, in grey or in colour as it is."""
    return as_array(_in_colours(ImageOps.exif_transpose(image), "L" if is_grey(image) else "RGB"))


def _in_colours(image: Image.Image, mode: str) -> Image.Image:
    """An image as L or RGB: what is transparent over white, more than 8 bits scaled to 8. Raises BadImage."""
    if image.mode == "F" or image.mode.startswith("I"):  # Pillow's own conversion cuts at 255
        image = Image.fromarray(_in_8_bits(np.asarray(image, dtype=np.float64), image.mode))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert(mode)


def _in_8_bits(pixels: np.ndarray, mode: str) -> np.ndarray:
    """Floats are in [0, 1] or in levels, 32 bits hold 8 or 16, and 16 bits are 16."""
    low, high = pixels.min(), pixels.max()
    if not (low >= 0 and high <= 65535):
        raise BadImage(f"its pixels go from {low:g} to {high:g}, not from 0 to 255 or 65,535")
    scale = 255.0 if mode == "F" and high <= 1 else 1.0
    if high > 255 or mode.startswith("I;"):
        scale = 1 / 257
    return (pixels * scale).round().astype(np.uint8)


def refit(images: Tensor, form: Form) -> Tensor:
    """Images (N, C, H, W), uint8, of one or three channels, in another form."""
    arrays = images.permute(0, 2, 3, 1).numpy()
    if arrays.shape[3] == 1:
        arrays = arrays[..., 0]
    found = np.empty((len(images), form.channels, form.height, form.width), np.uint8)
    for i, array in enumerate(arrays):
        found[i] = as_array(fitted(Image.fromarray(array), form))
    return torch.from_numpy(found)


def read_images(
    paths: Sequence[Path],
    shape: tuple[int, int, int],
    notice: Callable[[str], None],
    fit: str = "crop",
) -> Tensor:
    """Files, or all image files of folders, as uint8 (N, C, H, W); `notice` hears of each conversion.

    Raises UserError for a missing file, a file that is no image, a folder without images.
    """
    require(
        shape[0] in (1, 3),
        f"the model's images have {shape[0]} channels; files have grey or colour",
    )
    form = Form(*shape, fit=fit)
    files = image_files(paths)
    with quiet():
        return torch.stack([_read_image(file, form, notice) for file in files])


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without Pillow's warnings, of what an image's size or EXIF may mean: what it cannot read it raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def image_files(paths: Iterable[Path]) -> list[Path]:
    """The files among these, and the image files in those that are folders."""
    return [file for path in paths for file in _expand(path)]


def _expand(path: Path) -> list[Path]:
    require(path.exists(), f"there is no image {printable(path)}")
    if not path.is_dir():
        return [path]
    known = (f for f in path.iterdir() if f.suffix.lower() in endings())
    files = sorted(f for f in known if f.is_file() and not f.name.startswith("."))
    require(len(files) >= 1, f"the folder {printable(path)} has no image files")
    return files


def _read_image(path: Path, form: Form, notice: Callable[[str], None]) -> Tensor:
    content = path.read_bytes()
    try:
        seen, image = look(content), decode(content, form)
    except BadImage as error:
        raise UserError(f"{printable(path)} cannot be read: {error}") from None
    changes = []
    if seen.grey != (form.channels == 1):
        changes.append("grey to colour" if seen.grey else "colour to grey")
    if (seen.height, seen.width) != (form.height, form.width):
        changes.append(f"{seen.width} x {seen.height} to {form.width} x {form.height} pixels")
    if changes:
        notice(f"{printable(path)}: converted {', '.join(changes)}")
    return torch.from_numpy(image)
