"""Write figures and movies to files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image

from ..support.atomic import write_bytes
from ..support.errors import UserError, require, require_folder
from .style import ignore_missing_glyphs

IMAGE_FORMATS = ("png", "svg", "pdf", "jpg", "webp")
UNDATED = {"svg": "Date", "pdf": "CreationDate"}  # metadata to leave out
DESCRIBED = {"png": "Description", "svg": "Description", "pdf": "Subject"}  # its metadata


@dataclass(frozen=True)
class Movie:
    """An animation: figures or image files as frames, each shown for `seconds`, the last for `hold` seconds more."""

    frames: Sequence[Figure | Path]
    seconds: float = 0.2
    hold: float = 0.0


class PictureExists(UserError):
    """A file exists already and would become another picture."""

    def __init__(self, what: object) -> None:
        super().__init__(
            f"{what}: a different picture exists already and was kept; pass --overwrite to replace it, or choose --out"
        )


def save(figure: Figure | Movie, path: Path, overwrite: bool = True, description: str = "") -> Path:
    """Write a figure in the format of the file's ending, or a movie as GIF, and return the path. A PNG, SVG or PDF has
    the `description` in its metadata.

    Raises UserError for an ending other than .png, .svg, .pdf, .jpg, .webp, or .gif, and for a missing folder; unless
    `overwrite`, PictureExists where the file has another content.
    """
    if not path.suffix or path.is_dir():
        raise UserError(f"cannot write {path}: name a file such as {path.name}.png")
    file_format = path.suffix[1:].lower()
    formats = IMAGE_FORMATS if isinstance(figure, Figure) else ("gif",)
    require(
        file_format in formats,
        f"cannot write {path}: its ending must be one of {', '.join(formats)}",
    )
    require_folder(path)
    content = io.BytesIO()
    with ignore_missing_glyphs():
        if isinstance(figure, Figure):
            # Without dates and random names, the same picture is the same file.
            metadata: dict[str, str | None] = {}
            if file_format in UNDATED:
                metadata[UNDATED[file_format]] = None
            if description and file_format in DESCRIBED:
                metadata[DESCRIBED[file_format]] = description
            with rc_context({"svg.hashsalt": "vaekit"}):
                figure.savefig(content, format=file_format, metadata=metadata or None)
        else:
            write_gif(figure, content)
    new = overwrite or not path.exists()
    if not new and path.read_bytes() != content.getvalue():
        raise PictureExists(path)
    if new:
        write_bytes(path, content.getvalue())
    return path


def write_gif(movie: Movie, file: BinaryIO) -> None:
    """Write a GIF that loops forever."""
    images, times = render_frames(movie)
    # One palette for all frames: separate palettes would flicker.
    palette = images[-1].quantize(256)
    first, *rest = (image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images)
    first.save(file, "GIF", save_all=True, append_images=rest, duration=times, loop=0)


def render_frames(movie: Movie) -> tuple[list[Image.Image], list[int]]:
    """Render the frames, padded with white to the largest width and height (a title may widen one), and give the
    duration of each in milliseconds."""
    images = [render_image(frame) for frame in movie.frames]
    size = max(image.width for image in images), max(image.height for image in images)
    canvases = [Image.new("RGB", size, "white") for _ in images]
    for canvas, image in zip(canvases, images, strict=True):
        canvas.paste(image)
    times = [round(movie.seconds * 1000)] * len(images)
    times[-1] += round(movie.hold * 1000)
    return canvases, times


def render_image(frame: Figure | Path) -> Image.Image:
    """Render a figure, or read an image file, as RGB."""
    if isinstance(frame, Path):
        return Image.open(frame).convert("RGB")
    content = io.BytesIO()
    with ignore_missing_glyphs():
        frame.savefig(content, format="png")
    return Image.open(content).convert("RGB")
