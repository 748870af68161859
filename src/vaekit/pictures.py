"""Every plot. Takes arrays, returns a matplotlib Figure; nothing here needs a display."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from .checks import UserError

GAP = 2  # pixels between images
# Okabe and Ito's colours, which all kinds of colour vision tell apart.
BLUE, ORANGE = "#0072B2", "#D55E00"


def image_grid(images: Tensor, columns: int, row_names: Sequence[str] = ()) -> Figure:
    """Images (N, C, H, W) in [0, 1], row by row; `row_names` stand at the left."""
    count, channels, height, width = images.shape
    rows = -(-count // columns)
    canvas = np.ones((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3))
    pixels = images.detach().float().cpu().clamp(0, 1).permute(0, 2, 3, 1).numpy()
    for i, image in enumerate(pixels):
        top, left = i // columns * (height + GAP), i % columns * (width + GAP)
        canvas[top : top + height, left : left + width] = image if channels == 3 else image[..., :1]

    scale = max(1, round(56 / max(height, width)))  # small images are drawn larger
    margin = 110 if row_names else 0
    size = (canvas.shape[1] * scale + margin, canvas.shape[0] * scale)
    figure = Figure(figsize=(size[0] / 100, size[1] / 100), dpi=100)
    axes = figure.add_axes((margin / size[0], 0, 1 - margin / size[0], 1))
    axes.imshow(canvas, interpolation="nearest", aspect="auto")
    axes.set_axis_off()
    for row, name in enumerate(row_names):
        axes.text(
            -GAP * 2, row * (height + GAP) + height / 2, name, ha="right", va="center", fontsize=8
        )
    return figure


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
        shown = image.detach().float().cpu().clamp(0, 1).permute(1, 2, 0).numpy()
        shown = shown if len(image) == 3 else shown[..., 0]
        axes.imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.text(
            0.5, -0.04, name[:16].replace("$", r"\$"), ha="center", va="top", fontsize=7, transform=axes.transAxes
        )  # fmt: skip
    return figure


def pairs(inputs: Tensor, reconstructions: Tensor, columns: int = 10) -> Figure:
    """Each input above its reconstruction, both (N, C, H, W)."""
    columns = min(columns, len(inputs))
    rows, names = [], []
    for start in range(0, len(inputs), columns):
        for name, images in (("input", inputs), ("reconstruction", reconstructions)):
            row = images[start : start + columns]
            blank = row.new_ones((columns - len(row), *row.shape[1:]))
            rows += [*row, *blank]
            names.append(name)
    return image_grid(torch.stack(rows), columns, names)


def curves(metrics: Sequence[dict[str, Any]]) -> Figure:
    """ELBO, log-likelihood and KL by epoch, training and validation (the records of metrics.jsonl)."""
    figure = Figure(figsize=(11, 3.4), dpi=110, layout="constrained")
    epochs = [epoch["epoch"] for epoch in metrics]
    panels = [
        ("ELBO", "train_elbo", "validation_elbo"),
        ("log-likelihood", "train_log_likelihood", "validation_log_likelihood"),
        ("KL", "kl", "validation_kl"),
    ]
    for axes, (title, train, validation) in zip(figure.subplots(1, 3), panels, strict=True):
        axes.plot(epochs, [e[train] for e in metrics], color=BLUE, label="training", marker=".")
        axes.plot(
            epochs, [e[validation] for e in metrics], color=ORANGE, label="validation", marker="."
        )
        axes.set(title=f"{title} (nats per image)", xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    axes.legend()
    return figure


def save(figure: Figure, path: Path) -> Path:
    """Write a figure; its kind follows the file's ending. UserError for an ending that matplotlib lacks."""
    if not path.suffix or path.is_dir():
        raise UserError(f"cannot write {path}: name a file such as {path.name}.png")
    try:
        figure.savefig(path)
    except ValueError as error:
        raise UserError(f"cannot write {path}: {error}") from None
    except FileNotFoundError:
        raise UserError(f"cannot write {path}: its folder does not exist") from None
    return path
