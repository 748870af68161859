"""Image files, read with Pillow into the size and colours that a model takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..checks import UserError, one_line, require


def read_images(
    paths: Sequence[Path], shape: tuple[int, int, int], notice: Callable[[str], None]
) -> Tensor:
    """Files, or all image files of folders, as uint8 (N, C, H, W); `notice` hears of each conversion.

    Raises UserError for a missing file, a file that is no image, a folder without images.
    """
    files = [file for path in paths for file in _expand(path)]
    return torch.stack([_read_image(file, shape, notice) for file in files])


def _expand(path: Path) -> list[Path]:
    require(path.exists(), f"there is no image {path}")
    if not path.is_dir():
        return [path]
    known = {end for end, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    files = sorted(f for f in path.iterdir() if f.suffix.lower() in known and f.is_file())
    require(len(files) >= 1, f"the folder {path} has no image files")
    return files


def _read_image(path: Path, shape: tuple[int, int, int], notice: Callable[[str], None]) -> Tensor:
    channels, height, width = shape
    if channels not in (1, 3):
        raise UserError(f"the model's images have {channels} channels; files have grey or colour")
    try:
        with Image.open(path) as opened:
            image = _in_colours(ImageOps.exif_transpose(opened), "L" if channels == 1 else "RGB")
            changes = [] if opened.mode == image.mode else [f"{opened.mode} to {image.mode}"]
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError) as error:
        reason = "it is no image" if isinstance(error, UnidentifiedImageError) else str(error)
        raise UserError(f"{path} cannot be read: {one_line(reason)}") from None
    if image.size != (width, height):
        changes.append(f"{image.width} x {image.height} to {width} x {height} pixels")
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    if changes:
        notice(f"{path}: converted {', '.join(changes)}")
    return torch.from_numpy(np.array(image)).reshape(height, width, channels).permute(2, 0, 1)


def _in_colours(image: Image.Image, mode: str) -> Image.Image:
    """An image as L or RGB: what is transparent over white, 16 bits scaled to 8."""
    if image.mode.startswith("I"):  # Pillow's own conversion cuts at 255
        scaled = np.asarray(image, dtype=np.float64) / 257
        image = Image.fromarray(scaled.round().clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert(mode)
