"""Decoding of one image (any format of Pillow, or a .npy array) to the size and channels that a model takes."""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ...support.errors import one_line

T = TypeVar("T")
# Formats whose decoding starts another program, or that Pillow only recognises.
UNREAD_FORMATS = {"EPS", "WMF", "MPEG", "HDF5", "GRIB", "BUFR"}
MAX_PIXELS = 2**26  # 8192 x 8192; a larger image is refused before it is decoded
MAX_FILE_BYTES = 2**27  # of an image file
EXIF_ORIENTATION = 0x0112  # EXIF tag; values 5 to 8 swap height and width
NPY = b"\x93NUMPY"


@dataclass(frozen=True)
class ImageSpec:
    """The target of a conversion: channels (1 grey, 3 colour), size, and how to fit another aspect ratio."""

    channels: int
    height: int
    width: int
    fit: str = "crop"


@dataclass(frozen=True)
class ImageInfo:
    """Colour and size from an image's header, after its EXIF orientation is applied."""

    grey: bool
    height: int
    width: int


class BadImage(ValueError):
    """Content that cannot be read as an image; the message is the reason."""


@cache
def formats() -> tuple[str, ...]:
    """The formats that Pillow may decode."""
    Image.init()
    return tuple(sorted(set(Image.OPEN) - UNREAD_FORMATS))


@cache
def extensions() -> frozenset[str]:
    """File name extensions of images, in lower case."""
    known = set(formats())
    return frozenset(
        {".npy", *(e for e, kind in Image.registered_extensions().items() if kind in known)}
    )


def inspect_image(content: bytes) -> ImageInfo:
    """Read an image's header. Raises BadImage."""
    return _apply(content, _image_info)


def decode(content: bytes, spec: ImageSpec) -> np.ndarray:
    """Decode a file's bytes, (C, H, W), uint8. Raises BadImage."""
    return _apply(content, lambda image: image_to_array(fit_image(image, spec)))


def _apply(content: bytes, function: Callable[[Image.Image], T]) -> T:
    """Open an image and apply a function to it. Raises BadImage, whatever went wrong."""
    try:
        with _open(content) as image:
            if math.prod(image.size) > MAX_PIXELS:
                raise BadImage(f"it has {image.width} x {image.height} pixels, too many to decode")
            return function(image)
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        bomb = isinstance(error, Image.DecompressionBombError)
        raise BadImage(
            "it has too many pixels to decode" if bomb else "it is not an image"
        ) from None
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


def _image_info(image: Image.Image) -> ImageInfo:
    width, height = image.size
    # Pillow would decode all of a .png to look for EXIF after the pixels.
    has_exif = image.format != "PNG" or "exif" in image.info
    if has_exif and image.getexif().get(EXIF_ORIENTATION, 1) in (5, 6, 7, 8):
        width, height = height, width
    return ImageInfo(is_grey(image), height, width)


def is_grey(image: Image.Image) -> bool:
    return image.mode in ("1", "L", "LA", "La", "I", "F") or image.mode.startswith("I;")


def fit_image(image: Image.Image, spec: ImageSpec) -> Image.Image:
    """Apply the EXIF orientation, then convert to the channels and size of `spec`."""
    image = _convert_mode(ImageOps.exif_transpose(image), "L" if spec.channels == 1 else "RGB")
    size = (spec.width, spec.height)
    if image.size == size:
        return image
    if spec.fit == "stretch":
        return image.resize(size, Image.Resampling.LANCZOS)
    if spec.fit == "letterbox":
        return ImageOps.pad(image, size, Image.Resampling.LANCZOS)
    return ImageOps.fit(image, size, Image.Resampling.LANCZOS)


def image_to_array(image: Image.Image) -> np.ndarray:
    """The (C, H, W), uint8 array of an image of mode L or RGB."""
    array = np.array(image)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def upright_array(image: Image.Image) -> np.ndarray:
    """The (C, H, W), uint8 array of an image, grey or colour as it is, after its EXIF orientation is applied."""
    return image_to_array(
        _convert_mode(ImageOps.exif_transpose(image), "L" if is_grey(image) else "RGB")
    )


def _convert_mode(image: Image.Image, mode: str) -> Image.Image:
    """Convert to L or RGB: transparent pixels over white, more than 8 bits scaled to 8. Raises BadImage."""
    if image.mode == "F" or image.mode.startswith("I"):  # Pillow's own conversion clips at 255
        image = Image.fromarray(_to_8_bits(np.asarray(image, dtype=np.float64), image.mode))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert(mode)


def _to_8_bits(pixels: np.ndarray, mode: str) -> np.ndarray:
    """Scale to 8 bits: floats in [0, 1] or in levels, 32-bit integers of 8- or 16-bit levels, 16-bit integers."""
    low, high = pixels.min(), pixels.max()
    if not (low >= 0 and high <= 65535):
        raise BadImage(f"its pixels range from {low:g} to {high:g}, not from 0 to 255 or 65,535")
    scale = 255.0 if mode == "F" and high <= 1 else 1.0
    if high > 255 or mode.startswith("I;"):
        scale = 1 / 257
    return (pixels * scale).round().astype(np.uint8)


def resize_images(images: Tensor, spec: ImageSpec) -> Tensor:
    """Convert images (N, C, H, W), uint8, of one or three channels, to the channels and size of `spec`."""
    arrays = images.permute(0, 2, 3, 1).numpy()
    if arrays.shape[3] == 1:
        arrays = arrays[..., 0]
    resized = np.empty((len(images), spec.channels, spec.height, spec.width), np.uint8)
    for i, array in enumerate(arrays):
        resized[i] = image_to_array(fit_image(Image.fromarray(array), spec))
    return torch.from_numpy(resized)


@contextlib.contextmanager
def ignore_pillow_warnings() -> Iterator[None]:
    """Silence Pillow's warnings about large images and odd EXIF; what it cannot read still raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
