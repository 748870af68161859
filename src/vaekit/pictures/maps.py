"""A map of images: small versions of them where they lie in two dimensions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from torch import Tensor

from .bands import Bands, choose_bands
from .scatters import Group, class_handles, group_points
from .style import OTHER_COLOUR, escape_math, ignore_missing_glyphs

MIN_CELLS, MAX_CELLS = 6, 32  # per side
FRAME, GAP = 2, 2  # pixels
MAX_PIXELS = 1600  # per side of the map


def image_map(
    points: np.ndarray,
    images: Tensor,
    labels: np.ndarray | None = None,
    classes: Sequence[str] | None = None,
    title: str = "",
    names: tuple[str, str] = ("", ""),
    bands: Bands | None = None,
) -> Figure:
    """Draw images (N, C, H, W) in [0, 1] at their points (N, 2), on a grid so that none covers another: a cell shows
    the image that is nearest to its centre, of those in it.

    Frames have the colours of the labels (N,), which `classes` names; `names` are of the axes, which then have numbers.
    `bands` as in `image_grid`.
    """
    bands = bands or choose_bands(images)
    pixels = bands(images).detach().float().cpu().clamp(0, 1).permute(0, 2, 3, 1).numpy()
    groups = group_points(len(points), labels, classes)
    cells = int(np.clip(round(1.5 * len(points) ** 0.5), MIN_CELLS, MAX_CELLS))
    low, high = np.quantile(points, [0.005, 0.995], axis=0)
    size = np.maximum((high - low) / (cells - 1), 1e-9)  # of a cell, whose centre the extremes are
    rows = shown_rows((points - low) / size, cells)

    drawn = place(pixels, rows, frame_colours(len(points), groups if labels is not None else []))
    scale = min(1.0, MAX_PIXELS / max(drawn.shape))
    width, height = (side * scale / 100 for side in drawn.shape[1::-1])
    figure = Figure(figsize=(width + 1.6, height + 0.8), dpi=100, layout="constrained")
    axes = figure.subplots()
    (left, bottom), (right, top) = low - size / 2, high + size / 2
    axes.imshow(
        drawn, extent=(left, right, bottom, top), aspect="auto", interpolation="antialiased"
    )
    axes.set(xlabel=names[0], ylabel=names[1])
    if not any(names):
        axes.set(xticks=[], yticks=[])
    axes.set_title(escape_math(bands.title(title)), fontsize=10)
    handles = class_handles(groups)
    if handles:
        figure.legend(handles=handles, loc="outside right upper", fontsize=9, frameon=False)
    with ignore_missing_glyphs():
        figure.draw_without_rendering()
    return figure


def shown_rows(position: np.ndarray, cells: int) -> np.ndarray:
    """The row of the image in each cell (cells, cells), the lowest cells first, -1 in empty ones; `position` (N, 2) is
    x and y in units of cells, whose centres are whole numbers."""
    cell = position.round().astype(int)
    distance = np.square(position - cell).sum(1)
    shown = np.full((cells, cells), -1)
    inside = np.flatnonzero(((cell >= 0) & (cell < cells)).all(1))
    for row in inside[np.argsort(-distance[inside], kind="stable")]:  # the nearest comes last
        shown[cell[row, 1], cell[row, 0]] = row
    return shown


def frame_colours(count: int, groups: Sequence[Group]) -> np.ndarray:
    """Colours (N, 3) of the groups of points."""
    colours = np.tile(np.array(to_rgb(OTHER_COLOUR)), (count, 1))
    for group in groups:
        colours[group.mask] = to_rgb(group.colour)
    return colours


def place(pixels: np.ndarray, rows: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """The images (N, H, W, 1 or 3) of `rows` (cells, cells) in frames on white, (height, width, 3)."""
    _, height, width, _ = pixels.shape
    step = height + 2 * FRAME + GAP, width + 2 * FRAME + GAP
    drawn = np.ones((len(rows) * step[0], len(rows) * step[1], 3))
    for (y, x), row in np.ndenumerate(rows[::-1]):
        if row >= 0:
            top, left = y * step[0], x * step[1]
            drawn[top : top + step[0] - GAP, left : left + step[1] - GAP] = colours[row]
            top, left = top + FRAME, left + FRAME
            drawn[top : top + height, left : left + width] = pixels[row]
    return drawn
