"""Decoding of one image (any format of Pillow, or a .npy array) to the size and channels that a model takes.

An image of 8 bits per value becomes uint8. One of 16 bits, or of 32-bit numbers, keeps its values as uint16 or float32.
"""

from __future__ import annotations

import contextlib
import io
import math
import struct
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal, TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError
from torch import Tensor

from ...support.errors import reason
from ..axes import single_image_order
from .deep import deep_type, read_deep
from .tiff_tags import BITS, ORIENTATION, is_plain_image

T = TypeVar("T")
# Formats whose decoding starts another program, or that Pillow only recognises.
UNREAD_FORMATS = {"EPS", "WMF", "MPEG", "HDF5", "GRIB", "BUFR"}
MAX_PIXELS = 2**26  # 8192 x 8192; a larger image is refused before it is decoded
MAX_FILE_BYTES = 2**27  # of an image file
MAX_PAGES = 2**20  # of a file
MAX_PAGE_BYTES = 2**31  # of all pages of a file
NPY = b"\x93NUMPY"
PAGE = (
    b"\x93VAEKIT-PAGE"  # of `pages.pack`: then a .npy file, or "!" and why the page cannot be read
)
ONE_OF_SEVERAL = ("MPO", "PSD")  # a photo with its preview or depth map, a picture with its layers
PNG = b"\x89PNG\r\n\x1a\n"
MAGIC = {PNG: "PNG", b"\xff\xd8\xff": "JPEG", b"GIF8": "GIF", b"II*\0": "TIFF", b"MM\0*": "TIFF"}
LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as Pillow's grey
MISSING = "it has 16 bits per colour, which needs imagecodecs: pip install 'vaekit[science]'"
Depth = Literal["uint8", "uint16", "int16", "float32"]
CONVERTED = (
    ("uint16", "uint8"),
    ("int16", "float32"),
)  # from a type to another, where it is wanted


@dataclass(frozen=True)
class ImageSpec:
    """The target of a conversion: channels (1 grey, 3 colour), size, how to fit another aspect ratio (crop, letterbox,
    stretch; exact where all images have the size), the type of the values, and whether 16 bits may become the nearest
    of 8."""

    channels: int
    height: int
    width: int
    fit: str = "crop"
    depth: Depth = "uint8"
    rounded: bool = False


@dataclass(frozen=True)
class ImageInfo:
    """Channels, size and type of the values from an image's header, after its EXIF orientation is applied."""

    channels: int
    height: int
    width: int
    depth: Depth = "uint8"


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
        {".npy", ".nii", *(e for e, kind in Image.registered_extensions().items() if kind in known)}
    )


def inspect_image(content: bytes) -> ImageInfo:
    """Read an image's header. Raises BadImage."""
    if content.startswith(PAGE):
        return _array_info(unpack(content))
    if content.startswith(NPY):
        return _array_info(_load_npy(content))
    return _apply(content, lambda image: _image_info(image, content))


def decode(content: bytes, spec: ImageSpec) -> np.ndarray:
    """Decode a file's bytes, (C, H, W), of the type `spec.depth`; values of 16 bits become the nearest of 8 where that
    is uint8 and `spec.rounded`. Raises BadImage, also for values of another type."""
    if content.startswith(PAGE):
        return _decode_page(unpack(content), spec)
    if content.startswith(NPY):
        return fit_array(_load_npy(content), spec)
    return _apply(content, lambda image: _decode(image, content, spec))


def _decode(image: Image.Image, content: bytes, spec: ImageSpec) -> np.ndarray:
    depth = image_depth(image, content)
    if depth == "uint8":
        if spec.depth != "uint8":
            raise BadImage(f"its values are uint8, not {spec.depth}")
        return image_to_array(fit_image(image, spec))
    return fit_array(deep_values(image, content), spec)


def _decode_page(page: np.ndarray, spec: ImageSpec) -> np.ndarray:
    """A page (H, W, C) as other images are decoded."""
    if page.dtype == spec.depth == "uint8" and page.shape[2] in (1, 3) and spec.channels in (1, 3):
        image = Image.fromarray(page[..., 0] if page.shape[2] == 1 else page)
        return image_to_array(fit_image(image, spec))
    return fit_array(page, spec)


def unpack(content: bytes) -> np.ndarray:
    """The page of `pages.pack`, (H, W, C). Raises BadImage where it could not be read."""
    rest = content.removeprefix(PAGE)
    if rest.startswith(b"!"):
        raise BadImage(rest[1:].decode())
    return np.load(io.BytesIO(rest), allow_pickle=False)


def check_pixel_count(width: int, height: int) -> None:
    """Raise BadImage for too many pixels to decode."""
    if width * height > MAX_PIXELS:
        raise BadImage(f"it has {width} x {height} pixels, too many to decode")


def check_page_bytes(count: int, page_bytes: int) -> None:
    """Raise BadImage for too many pages to hold in memory."""
    if not 1 <= count <= MAX_PAGES or count * page_bytes > MAX_PAGE_BYTES:
        raise BadImage(
            f"it has {count:,} pages of {page_bytes:,} bytes, too large to read; split it into several files"
        )


def has_frames(image: Image.Image) -> bool:
    """Whether an opened file has several images of equal rank: pages or frames."""
    return getattr(image, "is_animated", False) and image.format not in ONE_OF_SEVERAL


def _apply(content: bytes, function: Callable[[Image.Image], T]) -> T:
    """Open an image and apply a function to it. Raises BadImage, whatever went wrong."""
    if not content:
        raise BadImage("it is empty")
    try:
        with open_image(content) as image:
            check_pixel_count(*image.size)
            if has_frames(image) or (image.format == "TIFF" and not is_plain_image(image)):
                raise BadImage(
                    "it has several pages or frames, or more than 8 bits of several channels"
                )
            return function(image)
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        bomb = isinstance(error, Image.DecompressionBombError)
        raise BadImage(
            "it has too many pixels to decode" if bomb else "it is not an image"
        ) from None
    except BadImage:
        raise
    except Exception as error:  # decoders raise anything on damaged files
        raise BadImage(reason(error)) from None


def open_image(content: bytes) -> Image.Image:
    """Open an image, in Pillow. Asking one format where the first bytes name it takes a fifth of the time that asking
    all takes."""
    named = next((kind for start, kind in MAGIC.items() if content.startswith(start)), None)
    return Image.open(io.BytesIO(content), formats=(named,) if named else formats())


def _load_npy(content: bytes) -> np.ndarray:
    """The image of a .npy file, (H, W) or (H, W, C). Raises BadImage."""
    try:
        array = np.load(io.BytesIO(content), allow_pickle=False)
    except Exception as error:  # numpy raises anything on damaged files
        raise BadImage(reason(error)) from None
    if array.dtype.kind not in "buif" or 0 in array.shape:
        raise BadImage(f"it is an array of {array.dtype} of shape {array.shape}, not an image")
    order = single_image_order(array.shape)
    if order is None:
        raise BadImage(
            f"it is an array of shape {array.shape}; an image is (H, W), (H, W, C) or (C, H, W), with fewer channels "
            "than pixels in a row or column, at most 16"
        )
    return np.moveaxis(array, 0, -1) if order == "CHW" else array


def _array_info(array: np.ndarray) -> ImageInfo:
    height, width, channels = array.shape if array.ndim == 3 else (*array.shape, 1)
    return ImageInfo(channels, height, width, array_depth(array.dtype))


def array_depth(dtype: np.dtype) -> Depth:
    """The type that keeps the values of an array, of either byte order."""
    kept: dict[str, Depth] = {
        "uint8": "uint8",
        "bool": "uint8",
        "uint16": "uint16",
        "int16": "int16",
    }
    return kept.get(dtype.name, "float32")


def _image_info(image: Image.Image, content: bytes) -> ImageInfo:
    width, height = image.size
    # Pillow turns a .tif when it opens it.
    if image.format != "TIFF" and orientation(image, content) in (5, 6, 7, 8):
        width, height = height, width
    depth = image_depth(image, content)
    grey = is_grey(image) or (image.format == "PNG" and depth == "uint16" and content[25] in (0, 4))
    return ImageInfo(1 if grey else 3, height, width, depth)


def orientation(image: Image.Image, content: bytes) -> int:
    """The EXIF orientation of an image; of a PNG file it may be behind the pixels, which are not decoded for it."""
    exif = image.getexif() if image.format != "PNG" else Image.Exif()
    if image.format == "PNG":
        exif.load(image.info.get("exif") or late_exif(content))
    return int(exif.get(ORIENTATION, 1))


def late_exif(content: bytes) -> bytes:
    """The EXIF chunk of a PNG file, wherever it is; empty if there is none."""
    at = len(PNG)
    while at + 8 <= len(content):
        (size,) = struct.unpack(">I", content[at : at + 4])
        if content[at + 4 : at + 8] == b"eXIf":
            return content[at + 8 : at + 8 + size]
        at += 12 + size
    return b""


def image_depth(image: Image.Image, content: bytes = b"") -> Depth:
    """The type that keeps the values of an image."""
    if (deep := deep_type(image, content)) is not None:
        return deep
    if image.mode == "F" or image.mode == "I":
        return "float32"
    if image.mode.startswith("I;16"):
        return "uint16"
    if image.format == "PNG" and content[24:25] == b"\x10":  # 16 bits; Pillow reads 8 of them
        return "uint16"
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        bits = image.tag_v2.get(BITS, (8,))
        return "uint16" if max(bits) > 8 else "uint8"
    return "uint8"


def deep_values(image: Image.Image, content: bytes) -> np.ndarray:
    """The values of an image of more than 8 bits, upright, (H, W) or (H, W, C); transparent pixels become white.

    Raises BadImage for one that Pillow reads as 8 bits, where no other library can read it.
    """
    try:
        if deep_type(image, content) is not None:
            return read_deep(image, content)
    except ImportError:
        raise BadImage(MISSING) from None
    if image.mode.startswith("I") or image.mode == "F":
        upright = np.asarray(ImageOps.exif_transpose(image))
        transparent = image.info.get("transparency")
        if isinstance(transparent, int):
            upright = np.where(upright == transparent, np.uint16(65535), upright)
        return upright.astype(upright.dtype.newbyteorder("="))
    if image.format != "PNG":
        raise BadImage(f"it is a {image.format} file of 16 bits per colour; save it as PNG")
    try:
        from imagecodecs import png_decode
    except ImportError:
        raise BadImage(MISSING) from None
    pixels = png_decode(content)
    planes = np.moveaxis(pixels if pixels.ndim == 3 else pixels[..., None], -1, 0)
    array = np.moveaxis(turn(planes, orientation(image, content)), 0, -1)
    if array.shape[2:] in ((2,), (4,)):
        colour, alpha = array[..., :-1].astype(np.float64), array[..., -1:] / 65535
        array = (colour * alpha + 65535 * (1 - alpha)).round().astype(np.uint16)
    return array


def turn(array: np.ndarray, orientation: int) -> np.ndarray:
    """An image (C, H, W) upright, from the tag Orientation of TIFF and EXIF, 1 to 8; a copy."""
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(1, 2)
    if orientation in (2, 3, 6, 7):
        array = array[:, :, ::-1]
    if orientation in (3, 4, 7, 8):
        array = array[:, ::-1]
    return np.ascontiguousarray(array)


def fit_array(array: np.ndarray, spec: ImageSpec) -> np.ndarray:
    """Values (H, W) or (H, W, C) in the size, channels and type of `spec`, (C, H, W). Raises BadImage for values of
    another type."""
    array = array[..., None] if array.ndim == 2 else array
    depth = array_depth(array.dtype)
    change = (depth, spec.depth)
    refused = change not in CONVERTED or (change == ("uint16", "uint8") and not spec.rounded)
    if depth != spec.depth and refused:
        raise BadImage(f"its values are {array.dtype}, not {spec.depth}")
    if (depth, spec.depth) == ("uint16", "uint8"):
        array = np.rint(array / 257).astype(np.uint8)
    if array.dtype == bool:
        array = 255 * array.astype(np.uint8)
    low, high = float(array.min()), float(array.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise BadImage("some of its values are not finite (NaN or infinite)")
    if array.dtype.kind in "iu" and max(abs(low), abs(high)) > 2**24:
        raise BadImage(f"its values reach {max(abs(low), abs(high)):g}, more than float32 can hold")
    if (
        array.dtype.kind == "f"
        and array.dtype.itemsize > 4
        and (high - low) > 1e-12 * max(-low, high)
    ):
        # Not where an even image has nothing but the rounding of its program.
        lost = float(np.abs(array.astype(np.float32) - array).max())
        if not lost <= (high - low) / 256:
            raise BadImage(
                f"float32 cannot hold its values from {low:g} to {high:g} with their differences; subtract an offset"
            )
    channels = array.shape[2]
    if channels == 3 and spec.channels == 1:
        array = (array @ LUMA)[..., None]
    elif channels == 1 and spec.channels == 3:
        array = array.repeat(3, axis=2)
    elif channels != spec.channels:
        raise BadImage(f"it has {channels} channels, not {spec.channels}")
    if array.shape[:2] != (spec.height, spec.width):
        bands = (Image.fromarray(band.astype(np.float32)) for band in np.moveaxis(array, -1, 0))
        fitted = [np.asarray(_resize(band, spec, low)).clip(low, high) for band in bands]
        array = np.stack(fitted, axis=-1)
    if spec.depth != "float32":
        array = np.rint(array)
    return np.ascontiguousarray(np.moveaxis(array, -1, 0).astype(spec.depth))


def is_grey(image: Image.Image) -> bool:
    return image.mode in ("1", "L", "LA", "La", "I", "F") or image.mode.startswith("I;")


def fit_image(image: Image.Image, spec: ImageSpec) -> Image.Image:
    """Apply the EXIF orientation, then convert to the channels and size of `spec`."""
    image = _convert_mode(ImageOps.exif_transpose(image), "L" if spec.channels == 1 else "RGB")
    return image if image.size == (spec.width, spec.height) else _resize(image, spec, 0)


def _resize(image: Image.Image, spec: ImageSpec, black: float) -> Image.Image:
    size = (spec.width, spec.height)
    if spec.fit == "stretch":
        return image.resize(size, Image.Resampling.LANCZOS)
    if spec.fit == "letterbox":
        return ImageOps.pad(image, size, Image.Resampling.LANCZOS, color=black)  # type: ignore[arg-type]
    return ImageOps.fit(image, size, Image.Resampling.LANCZOS)


def image_to_array(image: Image.Image) -> np.ndarray:
    """The (C, H, W), uint8 array of an image of mode L or RGB."""
    array = np.array(image)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def upright_array(image: Image.Image) -> np.ndarray:
    """The values of an image (C, H, W), grey or colour as it is, after its EXIF orientation is applied."""
    if image_depth(image) != "uint8":
        array = deep_values(image, b"")
        return np.moveaxis(array if array.ndim == 3 else array[..., None], -1, 0)
    mode = "L" if is_grey(image) else "RGB"
    return image_to_array(_convert_mode(ImageOps.exif_transpose(image), mode))


def _convert_mode(image: Image.Image, mode: str) -> Image.Image:
    """Convert to L or RGB, with transparent pixels over white."""
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert(mode)


def resize_images(images: Tensor, spec: ImageSpec) -> Tensor:
    """Convert images (N, C, H, W), uint8 or float32, to the channels and size of `spec`; other channels than one and
    three stay."""
    arrays = images.permute(0, 2, 3, 1).numpy()
    plain = arrays.dtype == np.uint8 and arrays.shape[3] in (1, 3)
    spec = replace(spec, depth="uint8" if arrays.dtype == np.uint8 else "float32")
    resized = np.empty((len(images), spec.channels, spec.height, spec.width), arrays.dtype)
    for i, array in enumerate(arrays):
        if plain:
            image = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
            resized[i] = image_to_array(fit_image(image, spec))
        else:
            resized[i] = fit_array(array, spec)
    return torch.from_numpy(resized)


@contextlib.contextmanager
def ignore_pillow_warnings() -> Iterator[None]:
    """Silence Pillow's warnings about large images and odd EXIF; what it cannot read still raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
