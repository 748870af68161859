"""Images beside images."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath
from torch import Tensor

from .style import ORANGE, plain, shorten

GAP = 2  # pixels between images
LARGEST = 1600  # pixels of a figure, unless the images are larger
DPI = 100
FONT = 8.0
LONGEST = 32  # letters of a name


def image_grid(
    images: Tensor,
    columns: int,
    row_names: Sequence[str] = (),
    column_names: Sequence[str] = (),
    title: str = "",
    marked: Collection[int] = (),
    invert: bool = False,
) -> Figure:
    """Images (N, C, H, W) in [0, 1], row by row; `row_names` stand at the left, `column_names` above.

    The images whose places are `marked` have a coloured frame. `invert` shows black as white.
    """
    height, width = images.shape[-2:]
    drawn = canvas(1 - images if invert else images, columns, marked)
    edge = GAP if marked else 0
    # Small images are drawn larger, by a whole number, so that pixels stay squares of one size.
    scale = min(round(56 / max(height, width)), LARGEST // max(drawn.shape[:2]))
    zoom = scale if scale >= 1 else min(1.0, LARGEST / max(drawn.shape[:2]))

    row_names = [shorten(name, LONGEST) for name in row_names]
    column_names = [shorten(name, LONGEST) for name in column_names]
    left = 12 + max(map(text_width, row_names)) if any(row_names) else 0
    # A name that stands over several columns, alone, may be wider than one.
    alone = sum(map(bool, column_names)) * 4 <= len(column_names)
    widest = max(map(text_width, column_names), default=0.0)
    upright = not alone and widest > (width + GAP) * zoom
    header = 12 + widest if upright else 18 if any(column_names) else 0
    top = header + (24 if title else 0)
    size = (drawn.shape[1] * zoom + left, drawn.shape[0] * zoom + top)
    size = (max(size[0], text_width(title) * 1.2 + 12), size[1])
    figure = Figure(figsize=(size[0] / DPI, size[1] / DPI), dpi=DPI)
    share = drawn.shape[1] * zoom / size[0], drawn.shape[0] * zoom / size[1]
    axes = figure.add_axes((left / size[0], 0, *share))
    how = "nearest" if zoom >= 1 else "antialiased"
    axes.imshow(drawn, interpolation=how, aspect="auto")
    axes.set_axis_off()
    for row, name in enumerate(row_names):
        y = edge + row * (height + GAP) + height / 2
        axes.text(-6 / zoom, y, plain(name), ha="right", va="center", fontsize=FONT)
    for column, name in enumerate(column_names):
        x = edge + column * (width + GAP) + width / 2
        axes.text(
            x,
            -4 / zoom,
            plain(name),
            ha="center",
            va="bottom",
            fontsize=FONT,
            rotation=90 if upright else 0,
        )
    if title:
        figure.text(6 / size[0], 1 - 12 / size[1], plain(title), va="center", fontsize=FONT * 1.2)
    return figure


def canvas(images: Tensor, columns: int, marked: Collection[int] = ()) -> np.ndarray:
    """Images (N, C, H, W) in rows on one white canvas (height, width, 3), with gaps, and frames around those marked."""
    count, channels, height, width = images.shape
    edge, rows = GAP if marked else 0, -(-count // columns)
    drawn = np.ones(
        (rows * (height + GAP) - GAP + 2 * edge, columns * (width + GAP) - GAP + 2 * edge, 3)
    )
    pixels = images.detach().float().cpu().clamp(0, 1).permute(0, 2, 3, 1).numpy()
    for i, image in enumerate(pixels):
        top, left = edge + i // columns * (height + GAP), edge + i % columns * (width + GAP)
        if i in marked:
            frame = drawn[top - 1 : top + height + 1, left - 1 : left + width + 1]
            frame[:] = to_rgb(ORANGE)
        drawn[top : top + height, left : left + width] = image if channels == 3 else image[..., :1]
    return drawn


def text_width(text: str) -> float:
    """Width of a line of text, pixels."""
    if not text:
        return 0.0
    path = TextPath((0, 0), plain(text), size=FONT, prop=FontProperties())
    return path.get_extents().width * DPI / 72


def contact_sheet(images: Tensor, names: Sequence[str], columns: int = 10) -> Figure:
    """Images (N, C, H, W) in [0, 1], each above its name."""
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    height, width = images.shape[-2:]
    tall = height / width + 0.25 * any(names)
    figure = Figure(figsize=(columns * 1.1, rows * tall * 1.1), dpi=110, layout="constrained")
    for axes in figure.subplots(rows, columns, squeeze=False).flat:
        axes.set_axis_off()
    for axes, image, name in zip(figure.axes, images, names, strict=False):
        draw_image(axes, image)
        axes.text(
            0.5, -0.04, plain(name[:16]), ha="center", va="top", fontsize=7, transform=axes.transAxes
        )  # fmt: skip
    return figure


def draw_image(axes: Axes, image: Tensor) -> None:
    """An image (C, H, W) in [0, 1], without axes."""
    shown = image.detach().float().cpu().clamp(0, 1).permute(1, 2, 0).numpy()
    shown = shown if len(image) == 3 else shown[..., 0]
    axes.imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_axis_off()


def pairs(inputs: Tensor, reconstructions: Tensor, columns: int = 10, title: str = "") -> Figure:
    """Each input, in a coloured frame, above its reconstruction, both (N, C, H, W)."""
    columns = min(columns, len(inputs))
    images = alternating(inputs, reconstructions, columns)
    names = ["input", "reconstruction"] * (len(images) // columns // 2)
    marked = [n + n // columns * columns for n in range(len(inputs))]
    return image_grid(images, columns, names, title=title, marked=marked)


def alternating(above: Tensor, below: Tensor, columns: int) -> Tensor:
    """A row of the one, a row of the other, and so on; the last ones filled up with white."""
    blank = above.new_ones((-len(above) % columns, *above.shape[1:]))
    rows = (torch.cat([images, blank]).unflatten(0, (-1, columns)) for images in (above, below))
    return torch.stack(tuple(rows), dim=1).flatten(0, 2)
