"""Latents as points, coloured by class."""

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

from .style import BLUE, OTHER, PALETTE, any_glyph, plain

# The prior's contours hold these shares of its probability.
MASSES = (0.5, 0.9, 0.99)
MOST = 20  # classes with a colour and marker of their own


@dataclass(frozen=True)
class Panel:
    """Points (N, 2) and what stands with them: the names of the two axes, the prior as a `density` of points (M, 2)
    and `draws` (S, 2) from it, and `marks` (K, 2), the centres of its components."""

    points: np.ndarray
    title: str = ""
    names: tuple[str, str] = ("", "")
    density: Callable[[np.ndarray], np.ndarray] | None = None
    draws: np.ndarray | None = None
    marks: np.ndarray | None = None


@dataclass(frozen=True)
class Group:
    """Points of one colour: `at` (N,) says which."""

    at: np.ndarray
    name: str
    colour: str
    marker: str = "o"


def groups(count: int, labels: np.ndarray | None, classes: Sequence[str] | None) -> list[Group]:
    """The points by class: ten colours, then the same with another marker; of many classes, the commonest and the
    others together."""
    if labels is None:
        return [Group(np.ones(count, bool), "", BLUE)]
    found, sizes = np.unique(labels, return_counts=True)
    chosen, rest = found, 0
    if len(found) > MOST:
        chosen = np.sort(found[np.argsort(-sizes, kind="stable")[: len(PALETTE)]])
        rest = len(found) - len(chosen)
    made = []
    if rest:
        made.append(Group(~np.isin(labels, chosen), f"{rest} other classes", OTHER))
    for i, label in enumerate(chosen):
        name = classes[label] if classes is not None and label < len(classes) else str(label)
        place, again = i % len(PALETTE), i // len(PALETTE)
        made.append(Group(labels == label, name, PALETTE[place], "o^"[again]))
    return made


def scatter(
    panels: Sequence[Panel],
    labels: np.ndarray | None = None,
    classes: Sequence[str] | None = None,
    title: str = "",
) -> Figure:
    """Panels beside each other, all of the same points, coloured by their labels (N,); `classes` names these."""
    found = groups(len(panels[0].points), labels, classes)
    wide = 5.4 * len(panels) + 1.9  # the legend
    figure = Figure(figsize=(wide, 5.6), dpi=100, layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        draw_panel(axes, panel, found)
    figure.suptitle(plain(title), fontsize=11)
    add_legend(figure, found, panels)
    with any_glyph():
        # Where the aspect is given, the layout settles late, and would cut labels.
        figure.draw_without_rendering()
        figure.draw_without_rendering()
    return figure


def draw_panel(axes: Axes, panel: Panel, found: Sequence[Group]) -> None:
    points = panel.points
    size = float(np.clip(15000 / len(points), 4, 16))
    # One class over the other in any order, none on top: all points in one random order.
    order = np.random.default_rng(0).permutation(len(points))
    for marker in ("o", "^"):
        colours = np.full(len(points), "", object)
        for group in found:
            if group.marker == marker:
                colours[group.at] = group.colour
        rows = order[colours[order] != ""]
        if len(rows):
            axes.scatter(
                points[rows, 0],
                points[rows, 1],
                s=size,
                c=list(colours[rows]),
                marker=marker,
                linewidths=0,
                alpha=0.8,
            )
    limits = np.concatenate([points, *([] if panel.draws is None else [panel.draws])])
    low, high = np.quantile(limits, [0.0005, 0.9995], axis=0)
    middle, half = (low + high) / 2, float((high - low).max()) * 0.53
    axes.set(
        title=plain(panel.title), xlabel=panel.names[0], ylabel=panel.names[1],
        xlim=(middle[0] - half, middle[0] + half), ylim=(middle[1] - half, middle[1] + half),
        aspect="equal",
    )  # fmt: skip
    axes.title.set_fontsize(10)
    if not any(panel.names):
        axes.set(xticks=[], yticks=[])
    draw_prior(axes, panel)
    if len(found) > 1:
        placed: list[np.ndarray] = []
        for group in found:
            middle = np.median(points[group.at], axis=0)
            crowded = any(np.linalg.norm(middle - other) < 0.06 * half for other in placed)
            if group.colour != OTHER and not crowded:
                placed.append(middle)
                x, y = middle
                outline = [effects.withStroke(linewidth=2.5, foreground="white")]
                axes.text(
                    x, y, plain(group.name[:14]), ha="center", va="center", fontsize=9, weight="bold",
                    path_effects=outline,
                )  # fmt: skip


def draw_prior(axes: Axes, panel: Panel) -> None:
    """Lines around shares of the prior's probability, and the centres of its components."""
    if panel.density is not None and panel.draws is not None:
        x, y = (np.linspace(*limits, 150) for limits in (axes.get_xlim(), axes.get_ylim()))
        grid = np.stack(np.meshgrid(x, y), axis=-1)
        heights = panel.density(grid.reshape(-1, 2)).reshape(grid.shape[:2])
        # What a share of the draws lies above.
        levels = np.unique(np.quantile(panel.density(panel.draws), [1 - mass for mass in MASSES]))
        axes.contour(x, y, heights, levels=levels, colors="#333333", linewidths=0.8, alpha=0.8)
    if panel.marks is not None:
        few = len(panel.marks) <= 50
        axes.scatter(
            panel.marks[:, 0], panel.marks[:, 1], s=18 if few else 5, marker="D", facecolors="white",
            edgecolors="black", linewidths=0.8 if few else 0.5, zorder=3,
        )  # fmt: skip


def add_legend(figure: Figure, found: Sequence[Group], panels: Sequence[Panel]) -> None:
    handles = class_handles(found)
    if any(panel.density for panel in panels):
        shares = ", ".join(f"{mass * 100:g}" for mass in MASSES)
        handles.append(
            Line2D([], [], color="#333333", linewidth=0.8, label=f"{shares} %\nof the prior")
        )
    if any(panel.marks is not None for panel in panels):
        diamond = Line2D(
            [], [], marker="D", color="black", markerfacecolor="none", linestyle="", markersize=4,
            label="prior's components",
        )  # fmt: skip
        handles.append(diamond)
    if handles:
        figure.legend(handles=handles, loc="outside right center", fontsize=9, frameon=False)


def class_handles(found: Sequence[Group]) -> list[Any]:
    """What a legend says of the classes."""
    return [
        Line2D([], [], marker=g.marker, color=g.colour, linestyle="", label=plain(g.name[:24]))
        for g in found
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
    """Points (N, 3) seen from one side; a figure for each angle makes a rotating GIF."""
    found = groups(len(points), labels, classes)
    figure = Figure(figsize=(6.4, 5.2), dpi=75)
    axes = figure.add_axes((0.05, 0.03, 0.8, 0.93), projection="3d")
    assert isinstance(axes, Axes3D)
    axes.set_box_aspect(None, zoom=0.97)
    for group in found:
        part = points[group.at]
        axes.scatter(
            part[:, 0], part[:, 1], part[:, 2], s=5, c=group.colour, marker=group.marker, linewidths=0
        )  # fmt: skip
    axes.view_init(elev=20, azim=azimuth)
    low, high = np.quantile(points, [0.001, 0.999], axis=0)
    axes.set(
        xlim=(low[0], high[0]), ylim=(low[1], high[1]), zlim=(low[2], high[2]),
        xlabel=f"{name}[0]", ylabel=f"{name}[1]", zlabel=f"{name}[2]",
    )  # fmt: skip
    figure.suptitle(plain(title), fontsize=11)
    handles = class_handles(found)
    if handles:
        figure.legend(handles=handles, loc="center right", fontsize=9, frameon=False)
    return figure
