"""Figures to files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from matplotlib.figure import Figure
from PIL import Image

from ..support.atomic import replacing
from ..support.errors import UserError, require, require_folder
from .style import any_glyph

KINDS = ("png", "svg", "pdf", "jpg", "webp")


@dataclass(frozen=True)
class Movie:
    """The frames of a GIF, figures or image files of one size, each shown for `seconds`, the last for `hold` more."""

    frames: Sequence[Figure | Path]
    seconds: float = 0.2
    hold: float = 0.0


def save(figure: Figure | Movie, path: Path) -> Path:
    """Write a figure, whose kind follows the file's ending, or a movie as a GIF.

    UserError for an ending other than .png, .svg, .pdf, .jpg, .webp, or .gif, and a folder that does not exist.
    """
    if not path.suffix or path.is_dir():
        raise UserError(f"cannot write {path}: name a file such as {path.name}.png")
    kind = path.suffix[1:].lower()
    kinds = KINDS if isinstance(figure, Figure) else ("gif",)
    require(kind in kinds, f"cannot write {path}: its ending must be one of {', '.join(kinds)}")
    require_folder(path)
    with replacing(path) as file, any_glyph():
        if isinstance(figure, Figure):
            figure.savefig(file, format=kind)
        else:
            write_gif(figure, file)
    return path


def write_gif(movie: Movie, file: BinaryIO) -> None:
    """A GIF without end."""
    images, times = rendered(movie)
    # One palette for all frames: palettes of their own would flicker.
    palette = images[-1].quantize(256)
    first, *rest = (image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images)
    first.save(file, "GIF", save_all=True, append_images=rest, duration=times, loop=0)


def rendered(movie: Movie) -> tuple[list[Image.Image], list[int]]:
    """The frames on white of the largest width and height, for a title may widen one of them; and how long each is
    shown, milliseconds."""
    images = [pixels(frame) for frame in movie.frames]
    size = max(image.width for image in images), max(image.height for image in images)
    canvases = [Image.new("RGB", size, "white") for _ in images]
    for canvas, image in zip(canvases, images, strict=True):
        canvas.paste(image)
    times = [round(movie.seconds * 1000)] * len(images)
    times[-1] += round(movie.hold * 1000)
    return canvases, times


def pixels(frame: Figure | Path) -> Image.Image:
    if isinstance(frame, Path):
        return Image.open(frame).convert("RGB")
    content = io.BytesIO()
    with any_glyph():
        frame.savefig(content, format="png")
    return Image.open(content).convert("RGB")
