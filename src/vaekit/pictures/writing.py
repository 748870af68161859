"""Figures to files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from ..checks import UserError
from ..replacing import replacing


@dataclass(frozen=True)
class Movie:
    """The frames of a GIF, figures or image files of one size, each shown for `seconds`, the last for `hold` more."""

    frames: Sequence[Figure | Path]
    seconds: float = 0.2
    hold: float = 0.0


def save(figure: Figure | Movie, path: Path) -> Path:
    """Write a figure, whose kind follows the file's ending, or a movie as a GIF.

    UserError for an ending that matplotlib lacks, or a folder that does not exist.
    """
    if not path.suffix or path.is_dir():
        raise UserError(f"cannot write {path}: name a file such as {path.name}.png")
    kind = path.suffix[1:].lower()
    kinds = FigureCanvasAgg.get_supported_filetypes() if isinstance(figure, Figure) else ["gif"]
    if kind not in kinds:
        raise UserError(
            f"cannot write {path}: its ending must be one of {', '.join(sorted(kinds))}"
        )
    try:
        with replacing(path) as file:
            if isinstance(figure, Figure):
                figure.savefig(file, format=kind)
            else:
                write_gif(figure, file)
    except FileNotFoundError:
        raise UserError(f"cannot write {path}: its folder does not exist") from None
    return path


def write_gif(movie: Movie, file: BinaryIO) -> None:
    """A GIF without end."""
    images = [pixels(frame) for frame in movie.frames]
    # One palette for all frames: palettes of their own would flicker.
    palette = images[-1].quantize(256)
    first, *rest = (image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images)
    times = [round(movie.seconds * 1000)] * len(images)
    times[-1] += round(movie.hold * 1000)
    first.save(file, "GIF", save_all=True, append_images=rest, duration=times, loop=0)


def pixels(frame: Figure | Path) -> Image.Image:
    if isinstance(frame, Path):
        return Image.open(frame).convert("RGB")
    content = io.BytesIO()
    frame.savefig(content, format="png")
    return Image.open(content).convert("RGB")
