"""Writing images in the units of their data, as arrays or as files of one image each, and as pictures."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from PIL import Image
from torch import Tensor

from ..data.values import is_plain
from ..runs.directory import require_output
from ..settings.data import EIGHT_BITS, UNIT_RANGE, PixelType, ValueRange
from ..support.atomic import atomic_write, write_bytes
from ..support.errors import UserError, require

if TYPE_CHECKING:
    from ..pictures import Bands

PIXEL_TYPES: tuple[PixelType, ...] = get_args(PixelType)
ARRAYS, STACKS = (".npz", ".npy"), (".tif", ".tiff")
MIN_NUMBERS = 16  # whole numbers in the range of fractions, so that these may be rounded to them


def undo(images: Tensor, value_range: ValueRange, dtype: PixelType) -> np.ndarray:
    """Images x in [0, 1] (N, C, H, W) as the values v = low + x (high - low) of their data, of type `dtype`.

    Values are clipped to the data's range, and rounded to whole numbers for types of these, so that they are at most
    half a level off. Raises UserError where the type cannot hold them.
    """
    check_pixel_type(value_range, dtype)
    low, high = value_range.low, value_range.high
    x = images.detach().cpu().double().numpy()
    require(bool(np.isfinite(x).all()), "the images have values that are not finite")
    values = np.clip(low + x * (high - low), low, high)
    return (values if dtype == "float32" else values.round()).astype(dtype)


def check_pixel_type(value_range: ValueRange, dtype: PixelType) -> None:
    """Raise UserError unless a type can hold the values of a range."""
    low, high = value_range.low, value_range.high
    require(
        dtype in PIXEL_TYPES,
        f"--dtype {dtype!r} is none of {', '.join(PIXEL_TYPES)}",
    )
    fitting = [each for each in PIXEL_TYPES if holds(each, low, high)]
    require(
        dtype in fitting,
        f"--dtype {dtype} cannot hold the values of the data, {low:g} to {high:g}; choose "
        + (" or ".join(fitting) or "a picture"),
    )
    numbers = math.floor(high) - math.ceil(low) + 1
    require(
        dtype == "float32" or value_range.levels is not None or numbers >= MIN_NUMBERS,
        f"--dtype {dtype}: the data are fractions from {low:g} to {high:g}, between which there "
        f"{'is' if numbers == 1 else 'are'} only {numbers} whole number{'s' * (numbers != 1)}; choose float32",
    )


def holds(dtype: PixelType, low: float, high: float) -> bool:
    """Whether a type can hold the values from low to high."""
    limits: Any = np.finfo(dtype) if dtype == "float32" else np.iinfo(dtype)
    return float(limits.min) <= low and high <= float(limits.max)


def default_pixel_type(value_range: ValueRange) -> PixelType:
    """The first type that holds all values of the data's own type, or else float32."""
    known = value_range.dtype if value_range.dtype in np.sctypeDict else "float64"
    return next((each for each in PIXEL_TYPES if np.can_cast(known, each)), "float32")


def check_images_output(
    out: Path,
    value_range: ValueRange = EIGHT_BITS,
    dtype: PixelType | None = None,
    channels: int = 1,
    chosen_bands: bool = False,
) -> None:
    """Raise UserError where `write_images` could not write: a new folder, or a file by its extension."""
    from ..pictures.writing import IMAGE_FORMATS

    extension = out.suffix.lower()
    if extension:
        endings = (*ARRAYS, *STACKS, ".gif", *(f".{kind}" for kind in IMAGE_FORMATS))
        require_output(out, endings)
    else:
        empty = not out.exists() or (out.is_dir() and not any(out.iterdir()))
        require(empty, f"{out} is a file or a folder that is not empty; name a new folder")
    if extension in (*ARRAYS, *STACKS, ""):
        require(
            not chosen_bands,
            f"--bands are for pictures, but all channels are written to {out}; leave them out, or name a .png",
        )
        value_range, dtype = written_as(out, value_range, dtype)
        check_pixel_type(value_range, dtype)
        if extension not in ARRAYS and not is_png(extension, dtype, channels):
            import_tifffile()
    else:
        require(
            dtype is None,
            f"--dtype is for arrays and image files, but {out} is a picture; leave it out, or name a folder, .npy, "
            ".npz or .tif",
        )


def written_as(
    out: Path, value_range: ValueRange, dtype: PixelType | None
) -> tuple[ValueRange, PixelType]:
    """The range and the type in which images are written to `out`. Without a type, arrays are floats, in [0, 1] where
    `vaekit encode` takes these; files have the type of the data, and are of 8 bits for bits."""
    if dtype is not None:
        return value_range, dtype
    plain = is_plain(value_range)
    if out.suffix.lower() in ARRAYS:
        return (UNIT_RANGE if plain else value_range), "float32"
    eight_bits = plain and value_range.levels in (2, 256)
    return (EIGHT_BITS, "uint8") if eight_bits else (value_range, default_pixel_type(value_range))


def describe(out: Path, value_range: ValueRange, dtype: PixelType | None) -> str:
    """In which units and type `write_images` writes to `out`, for a message."""
    if out.suffix.lower() not in (*ARRAYS, *STACKS, ""):
        return "a picture"
    value_range, dtype = written_as(out, value_range, dtype)
    rounding = "" if dtype == "float32" else ", rounded to whole numbers"
    return f"{dtype}, values from {value_range.low:g} to {value_range.high:g}{rounding}"


def is_png(extension: str, dtype: PixelType, channels: int) -> bool:
    """Whether a file of one image is a PNG: of 8 bits grey or colour, or of 16 bits grey; others are TIFF."""
    return not extension and (dtype, channels) in {("uint8", 1), ("uint8", 3), ("uint16", 1)}


def import_tifffile() -> Any:
    """tifffile. Raises UserError where it is not installed."""
    try:
        import tifffile
    except ImportError:
        raise UserError(
            "these images need TIFF files, which need tifffile: pip install 'vaekit[science]'; or name a .npy or .npz "
            "file"
        ) from None
    return tifffile


def write_images(
    images: Tensor,
    out: Path,
    value_range: ValueRange = EIGHT_BITS,
    dtype: PixelType | None = None,
    bands: Bands | None = None,
) -> Path:
    """Write images (N, C, H, W) in [0, 1] to a new folder as PNG or TIFF files, or to one file by the extension of
    `out`: .npz or .npy (an array), .tif (a page per image), a picture (a grid) or .gif (an animation).

    Arrays and image files are in the units of the data (see `undo`), of type `dtype`, by default as `written_as` says;
    pictures show the `bands`. Raises UserError.
    """
    check_images_output(out, value_range, dtype, images.shape[1])
    extension = out.suffix.lower()
    if extension not in (*ARRAYS, *STACKS, ""):
        return write_picture(images, out, bands)
    value_range, dtype = written_as(out, value_range, dtype)
    values = undo(images, value_range, dtype)
    if extension in ARRAYS:
        with atomic_write(out) as file:
            if extension == ".npz":
                np.savez(file, images=values)
            else:
                np.save(file, values)
        return out
    values = values.transpose(0, 2, 3, 1)
    if extension:
        write_bytes(out, tiff_bytes(values))
        return out
    out.mkdir(parents=True, exist_ok=True)
    digits = len(str(len(values) - 1))
    png = is_png(extension, dtype, images.shape[1])
    for i, image in enumerate(values):
        content = png_bytes(image) if png else tiff_bytes(image[None])
        write_bytes(out / f"{i:0{digits}d}.{'png' if png else 'tif'}", content)
    return out


def write_picture(images: Tensor, out: Path, bands: Bands | None) -> Path:
    """Write a grid of images, or an animation of them as .gif."""
    from ..pictures import Movie, choose_bands, image_grid, save

    bands = bands or choose_bands(images)
    if out.suffix.lower() == ".gif":
        frames = [image_grid(image[None], 1, bands=bands) for image in images]
        return save(Movie(frames, 0.1), out)
    return save(image_grid(images, max(1, round(len(images) ** 0.5)), bands=bands), out)


def png_bytes(image: np.ndarray) -> bytes:
    """An image (H, W, C) as PNG."""
    content = io.BytesIO()
    Image.fromarray(image if image.shape[2] == 3 else image[..., 0]).save(content, "PNG")
    return content.getvalue()


def tiff_bytes(images: np.ndarray) -> bytes:
    """Images (N, H, W, C) as TIFF, a page per image, whose channels are the samples of its pixels."""
    content = io.BytesIO()
    channels = images.shape[3]
    kind: dict[str, Any] = {"photometric": "rgb" if channels == 3 else "minisblack"}
    if channels > 1:
        kind |= {"planarconfig": "contig"}
    if channels not in (1, 3):
        kind |= {"extrasamples": ["unspecified"] * (channels - 1)}
    with import_tifffile().TiffWriter(content) as file:
        for image in images:
            file.write(image if channels > 1 else image[..., 0], metadata=None, **kind)
    return content.getvalue()
