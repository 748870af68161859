"""Scatter plots of latents, coloured by class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.patheffects as effects
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from mpl_toolkits.mplot3d import Axes3D

from .style import BLUE, OTHER_COLOUR, PALETTE, escape_math, ignore_missing_glyphs

# Probability mass of the prior inside each contour.
CONTOUR_MASSES = (0.5, 0.9, 0.99)
MAX_CLASSES = 20  # with more, only the most common have their own colour


@dataclass(frozen=True)
class Panel:
    """One scatter plot: `points` (N, 2) and the `names` of its axes; the prior's `density` at points (M, 2) -> (M,)
    with `prior_samples` (S, 2), and the `centres` (K, 2) of its components."""

    points: np.ndarray
    title: str = ""
    names: tuple[str, str] = ("", "")
    density: Callable[[np.ndarray], np.ndarray] | None = None
    prior_samples: np.ndarray | None = None
    centres: np.ndarray | None = None


@dataclass(frozen=True)
class Group:
    """The points of one class or several: boolean `mask` (N,), legend name, colour, marker."""

    mask: np.ndarray
    name: str
    colour: str
    marker: str = "o"


def group_points(
    count: int, labels: np.ndarray | None, classes: Sequence[str] | None
) -> list[Group]:
    """Group points by class: ten colours, then the same with another marker; with over 20 classes, the ten most common
    and one group of all others."""
    if labels is None:
        return [Group(np.ones(count, bool), "", BLUE)]
    present, sizes = np.unique(labels, return_counts=True)
    shown = present
    groups = []
    if len(present) > MAX_CLASSES:
        shown = np.sort(present[np.argsort(-sizes, kind="stable")[: len(PALETTE)]])
        name = f"{len(present) - len(shown)} other classes"
        groups.append(Group(~np.isin(labels, shown), name, OTHER_COLOUR))
    for i, label in enumerate(shown):
        name = classes[label] if classes is not None and label < len(classes) else str(label)
        colour, marker = PALETTE[i % len(PALETTE)], "o^"[i // len(PALETTE)]
        groups.append(Group(labels == label, name, colour, marker))
    return groups


def scatter(
    panels: Sequence[Panel],
    labels: np.ndarray | None = None,
    classes: Sequence[str] | None = None,
    title: str = "",
) -> Figure:
    """Draw panels side by side, all of the same points, coloured by their labels (N,), which `classes` names."""
    groups = group_points(len(panels[0].points), labels, classes)
    width = 5.4 * len(panels) + 1.9  # the legend
    figure = Figure(figsize=(width, 5.6), dpi=100, layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        draw_panel(axes, panel, groups)
    figure.suptitle(escape_math(title), fontsize=11)
    add_legend(figure, groups, panels)
    with ignore_missing_glyphs():
        # With a fixed aspect the layout settles at the second pass; one pass would cut labels.
        figure.draw_without_rendering()
        figure.draw_without_rendering()
    return figure


def draw_panel(axes: Axes, panel: Panel, groups: Sequence[Group]) -> None:
    """Draw one panel: points, axis limits, the prior and class names."""
    draw_points(axes, panel.points, groups)
    extent = np.concatenate(
        [panel.points, *([] if panel.prior_samples is None else [panel.prior_samples])]
    )
    low, high = np.quantile(extent, [0.0005, 0.9995], axis=0)
    middle, half = (low + high) / 2, float((high - low).max()) * 0.53
    axes.set(
        title=escape_math(panel.title), xlabel=panel.names[0], ylabel=panel.names[1],
        xlim=(middle[0] - half, middle[0] + half), ylim=(middle[1] - half, middle[1] + half),
        aspect="equal",
    )  # fmt: skip
    axes.title.set_fontsize(10)
    if not any(panel.names):
        axes.set(xticks=[], yticks=[])
    draw_prior(axes, panel)
    if len(groups) > 1:
        draw_class_names(axes, panel.points, groups, 0.06 * half)


def draw_points(axes: Axes, points: np.ndarray, groups: Sequence[Group]) -> None:
    """Draw all points in one random order, so that no class covers the others."""
    size = float(np.clip(15000 / len(points), 4, 16))
    order = np.random.default_rng(0).permutation(len(points))
    for marker in ("o", "^"):
        colours = np.full(len(points), "", object)
        for group in groups:
            if group.marker == marker:
                colours[group.mask] = group.colour
        rows = order[colours[order] != ""]
        if len(rows):
            axes.scatter(
                points[rows, 0], points[rows, 1], s=size, c=list(colours[rows]), marker=marker, linewidths=0,
                alpha=0.8,
            )  # fmt: skip


def draw_class_names(
    axes: Axes, points: np.ndarray, groups: Sequence[Group], min_distance: float
) -> None:
    """Write each class name at the median of its points, unless another name is closer than `min_distance`."""
    placed: list[np.ndarray] = []
    for group in groups:
        median = np.median(points[group.mask], axis=0)
        crowded = any(np.linalg.norm(median - other) < min_distance for other in placed)
        if group.colour != OTHER_COLOUR and not crowded:
            placed.append(median)
            x, y = median
            outline = [effects.withStroke(linewidth=2.5, foreground="white")]
            axes.text(
                x, y, escape_math(group.name[:14]), ha="center", va="center", fontsize=9, weight="bold",
                path_effects=outline,
            )  # fmt: skip


def draw_prior(axes: Axes, panel: Panel) -> None:
    """Draw contours that enclose given masses of the prior, and the centres of its components."""
    if panel.density is not None and panel.prior_samples is not None:
        x, y = (np.linspace(*limits, 150) for limits in (axes.get_xlim(), axes.get_ylim()))
        grid = np.stack(np.meshgrid(x, y), axis=-1)
        heights = panel.density(grid.reshape(-1, 2)).reshape(grid.shape[:2])
        # The highest-density region of a mass: its level is a quantile of the density at samples.
        levels = np.unique(
            np.quantile(panel.density(panel.prior_samples), [1 - mass for mass in CONTOUR_MASSES])
        )
        axes.contour(x, y, heights, levels=levels, colors="#333333", linewidths=0.8, alpha=0.8)
    if panel.centres is not None:
        sparse = len(panel.centres) <= 50
        axes.scatter(
            panel.centres[:, 0], panel.centres[:, 1], s=18 if sparse else 5, marker="D", facecolors="white",
            edgecolors="black", linewidths=0.8 if sparse else 0.5, zorder=3,
        )  # fmt: skip


def add_legend(figure: Figure, groups: Sequence[Group], panels: Sequence[Panel]) -> None:
    """Add a legend of the classes, the prior's contours and its components."""
    handles = class_handles(groups)
    if any(panel.density for panel in panels):
        masses = ", ".join(f"{mass * 100:g}" for mass in CONTOUR_MASSES)
        handles.append(
            Line2D([], [], color="#333333", linewidth=0.8, label=f"{masses}% of\nprior probability")
        )
    if any(panel.centres is not None for panel in panels):
        diamond = Line2D(
            [], [], marker="D", color="black", markerfacecolor="none", linestyle="", markersize=4,
            label="prior components",
        )  # fmt: skip
        handles.append(diamond)
    if handles:
        figure.legend(handles=handles, loc="outside right center", fontsize=9, frameon=False)


def class_handles(groups: Sequence[Group]) -> list[Any]:
    """The legend entries of the named groups."""
    return [
        Line2D(
            [], [], marker=g.marker, color=g.colour, linestyle="", label=escape_math(g.name[:24])
        )
        for g in groups
        if g.name
    ]


def scatter_3d(
    points: np.ndarray,
    labels: np.ndarray | None = None,
    classes: Sequence[str] | None = None,
    azimuth: float = -60.0,
    title: str = "",
    name: str = "z",
) -> Figure:
    """Draw points (N, 3) seen from one angle; a figure per angle makes a rotating GIF."""
    groups = group_points(len(points), labels, classes)
    figure = Figure(figsize=(6.4, 5.2), dpi=75)
    axes = figure.add_axes((0.05, 0.03, 0.8, 0.93), projection="3d")
    assert isinstance(axes, Axes3D)
    axes.set_box_aspect(None, zoom=0.97)
    for group in groups:
        part = points[group.mask]
        axes.scatter(
            part[:, 0], part[:, 1], part[:, 2], s=5, c=group.colour, marker=group.marker, linewidths=0
        )  # fmt: skip
    axes.view_init(elev=20, azim=azimuth)
    low, high = np.quantile(points, [0.001, 0.999], axis=0)
    axes.set(
        xlim=(low[0], high[0]), ylim=(low[1], high[1]), zlim=(low[2], high[2]),
        xlabel=f"{name}[0]", ylabel=f"{name}[1]", zlabel=f"{name}[2]",
    )  # fmt: skip
    figure.suptitle(escape_math(title), fontsize=11)
    handles = class_handles(groups)
    if handles:
        figure.legend(handles=handles, loc="center right", fontsize=9, frameon=False)
    return figure
