"""Grids of images."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path
from torch import Tensor

from .bands import Bands, choose_bands
from .style import ORANGE, escape_math, ignore_missing_glyphs, shorten

GAP = 2  # pixels between images
MAX_FIGURE_PIXELS = 1600  # pixels per side of a figure, unless the images are larger
MIN_FIGURE_PIXELS = 320  # of the longer side, as far as a whole factor gives it
DPI = 100
FONT_SIZE = 8.0
MAX_NAME_LENGTH = 32  # characters of a name


def image_grid(
    images: Tensor,
    columns: int,
    row_names: Sequence[str] = (),
    column_names: Sequence[str] = (),
    title: str = "",
    marked: Collection[int] = (),
    invert: bool = False,
    bands: Bands | None = None,
    blank: Collection[int] = (),
) -> Figure:
    """Draw images (N, C, H, W) in [0, 1] row by row, with `row_names` at the left and `column_names` above.

    Images whose indices are `marked` get a coloured frame; the places of those that are `blank` stay white. `invert`
    shows black as white. `bands` shows the channels, as colours that the title names; by default fitted to the images.
    """
    height, width = images.shape[-2:]
    bands = bands or choose_bands(images)
    shown, title = bands(images), bands.title(title)
    pixels = canvas(1 - shown if invert else shown, columns, marked, blank)
    edge = GAP if marked else 0
    zoom = zoom_factor(max(height, width), max(pixels.shape[:2]))

    row_names = [shorten(name, MAX_NAME_LENGTH) for name in row_names]
    column_names = [shorten(name, MAX_NAME_LENGTH) for name in column_names]
    left = 12 + max(map(text_width, row_names)) if any(row_names) else 0
    # A name with no others near it may be wider than its column.
    sparse = sum(map(bool, column_names)) * 4 <= len(column_names)
    widest = max(map(text_width, column_names), default=0.0)
    vertical = not sparse and widest > (width + GAP) * zoom
    header = 12 + widest if vertical else 18 if any(column_names) else 0
    top = header + (24 if title else 0)
    size = (pixels.shape[1] * zoom + left, pixels.shape[0] * zoom + top)
    size = (max(size[0], text_width(title) * 1.2 + 12), size[1])
    figure = Figure(figsize=(size[0] / DPI, size[1] / DPI), dpi=DPI)
    extent = pixels.shape[1] * zoom / size[0], pixels.shape[0] * zoom / size[1]
    axes = figure.add_axes((left / size[0], 0, *extent))
    axes.imshow(pixels, interpolation="nearest" if zoom >= 1 else "antialiased", aspect="auto")
    axes.set_axis_off()
    for row, name in enumerate(row_names):
        y = edge + row * (height + GAP) + height / 2
        axes.text(-6 / zoom, y, escape_math(name), ha="right", va="center", fontsize=FONT_SIZE)
    for column, name in enumerate(column_names):
        x = edge + column * (width + GAP) + width / 2
        axes.text(
            x, -4 / zoom, escape_math(name), ha="center", va="bottom", fontsize=FONT_SIZE,
            rotation=90 if vertical else 0,
        )  # fmt: skip
    if title:
        figure.text(
            6 / size[0], 1 - 12 / size[1], escape_math(title), va="center", fontsize=FONT_SIZE * 1.2
        )
    return figure


def zoom_factor(image_side: int, canvas_side: int) -> float:
    """Screen pixels per image pixel: a whole number for small images, so that pixels stay equal squares."""
    scale = max(round(56 / image_side), MIN_FIGURE_PIXELS // canvas_side)
    scale = min(scale, MAX_FIGURE_PIXELS // canvas_side)
    return scale if scale >= 1 else min(1.0, MAX_FIGURE_PIXELS / canvas_side)


def canvas(
    images: Tensor, columns: int, marked: Collection[int] = (), blank: Collection[int] = ()
) -> np.ndarray:
    """Arrange grey or colour images (N, 1 or 3, H, W) in rows on a white canvas (height, width, 3), with frames around
    the marked ones and without the blank ones."""
    count, _, height, width = images.shape
    edge, rows = GAP if marked else 0, -(-count // columns)
    drawn = np.ones(
        (rows * (height + GAP) - GAP + 2 * edge, columns * (width + GAP) - GAP + 2 * edge, 3)
    )
    pixels = images.detach().float().cpu().clamp(0, 1).permute(0, 2, 3, 1).numpy()
    for i, image in enumerate(pixels):
        if i in blank:
            continue
        top, left = edge + i // columns * (height + GAP), edge + i % columns * (width + GAP)
        if i in marked:
            frame = drawn[top - 1 : top + height + 1, left - 1 : left + width + 1]
            frame[:] = to_rgb(ORANGE)
        drawn[top : top + height, left : left + width] = image
    return drawn


def text_width(text: str) -> float:
    """Width of a line of text in pixels."""
    with ignore_missing_glyphs():
        width, _, _ = text_to_path.get_text_width_height_descent(
            text, FontProperties(size=FONT_SIZE), ismath=False
        )
    return width * DPI / 72


def contact_sheet(
    images: Tensor, names: Sequence[str], columns: int = 10, bands: Bands | None = None
) -> Figure:
    """Draw images (N, C, H, W) in [0, 1], each above its name, in fewer columns where they are wide; `bands` as in
    `image_grid`."""
    bands = bands or choose_bands(images)
    height, width = images.shape[-2:]
    cell = 1.1 * max(1, min(columns, width / (2 * height)))  # inches
    columns = min(max(1, int(columns * 1.1 / cell)), len(images))
    rows = -(-len(images) // columns)
    cell_height = height / width * cell + 0.275 * any(names)
    figure_width = max(columns * cell, 1.2 * text_width(bands.text) / DPI)
    figure = Figure(figsize=(figure_width, rows * cell_height), dpi=110, layout="constrained")
    smooth = width > 110 * cell or height > 110 * cell_height
    for axes in figure.subplots(rows, columns, squeeze=False).flat:
        axes.set_axis_off()
    for axes, image, name in zip(figure.axes, bands(images), names, strict=False):
        draw_image(axes, image, smooth)
        axes.text(
            0.5, -0.04, escape_math(name[:16]), ha="center", va="top", fontsize=7, transform=axes.transAxes
        )  # fmt: skip
    if bands.text:
        figure.suptitle(bands.text, fontsize=FONT_SIZE)
    return figure


def draw_image(axes: Axes, image: Tensor, smooth: bool = False) -> None:
    """Draw a grey or colour image (1 or 3, H, W) in [0, 1] without axes; `smooth` averages the pixels of a large one,
    of which the axes have fewer."""
    pixels = image.detach().float().cpu().clamp(0, 1).permute(1, 2, 0).numpy()
    interpolation = "antialiased" if smooth else "nearest"
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation=interpolation)
    axes.set_axis_off()


def pairs(
    inputs: Tensor,
    reconstructions: Tensor,
    columns: int = 10,
    title: str = "",
    bands: Bands | None = None,
) -> Figure:
    """Draw each input, in a coloured frame, above its reconstruction, both (N, C, H, W); `bands` as in `image_grid`,
    by default fitted to the inputs."""
    columns = min(columns, len(inputs))
    bands = bands or choose_bands(inputs)
    images = alternate_rows(inputs, reconstructions, columns)
    names = ["input", "reconstruction"] * (len(images) // columns // 2)
    marked = [n + n // columns * columns for n in range(len(inputs))]
    shown = {*marked, *(n + columns for n in marked)}
    blank = {*range(len(images))} - shown
    return image_grid(images, columns, names, title=title, marked=marked, bands=bands, blank=blank)


def heat_maps(
    inputs: Tensor,
    reconstructions: Tensor,
    maps: Tensor,
    columns: int = 10,
    bands: Bands | None = None,
) -> Figure:
    """Draw each input above its reconstruction, both (N, C, H, W), and a map of its pixels (N, H, W) in colours, from
    black, the lowest value of all maps, to yellow, the 99.5th percentile; `bands` as in `image_grid`."""
    columns = min(columns, len(inputs))
    bands = bands or choose_bands(inputs)
    low, high = maps.min(), maps.flatten()[:: 1 + maps.numel() // 10**6].quantile(0.995)
    scaled = ((maps - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    colours = torch.from_numpy(colormaps["inferno"](scaled.numpy())[..., :3]).permute(0, 3, 1, 2)
    pictures = [*(bands(each).expand(-1, 3, -1, -1) for each in (inputs, reconstructions)), colours]
    rows = [
        torch.cat([each, each.new_ones((-len(each) % columns, *each.shape[1:]))])
        for each in pictures
    ]
    images = torch.stack([each.float().unflatten(0, (-1, columns)) for each in rows], 1).flatten(
        0, 2
    )
    names = ["input", "reconstruction", "odd pixels"] * (len(images) // columns // 3)
    return image_grid(images, columns, names, title=bands.title(""))


def alternate_rows(above: Tensor, below: Tensor, columns: int) -> Tensor:
    """Interleave rows of `columns` images of the two batches, the last rows padded with white."""
    blank = above.new_ones((-len(above) % columns, *above.shape[1:]))
    rows = (torch.cat([images, blank]).unflatten(0, (-1, columns)) for images in (above, below))
    return torch.stack(tuple(rows), dim=1).flatten(0, 2)
