"""What a data set is, for the screen: `vaekit data show` and `vaekit data prepare`."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import torch
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from ..settings.data import FormConfig
from ..support.console import Shown
from ..support.errors import printable, require, require_count
from .dataset import Dataset, choose_split, pixels
from .sources.files import open_source
from .sources.image_files import prepare
from .stored import open_store

LOOKED_AT = 2000  # images whose pixels the numbers are of
CLASSES_SHOWN = 40


def as_table(dataset: Dataset) -> Table:
    """Sizes, images of each split and class, range of the pixels."""
    channels, height, width = dataset.shape
    colours = {1: "grey", 3: "colour"}.get(channels, f"{channels} channels")
    title = f"{escape(printable(dataset.name))}: {height} x {width} pixels (height x width), {colours}, likelihood "
    table = Table(title=title + dataset.likelihood, title_justify="left")
    for name in ("", *dataset.splits):
        table.add_column(name, justify="right" if name else "left")
    table.add_row("images", *(f"{len(split):,}" for split in dataset.splits.values()))
    rows = [pixel_numbers(dataset, name) for name in dataset.splits]
    for i, name in enumerate(("smallest pixel", "largest", "mean", "standard deviation")):
        table.add_row(name, *(f"{row[i]:.3f}" for row in rows))
    if dataset.class_count:
        table.add_section()
        counts = [
            torch.bincount(split.labels, minlength=dataset.class_count).tolist()
            if split.labels is not None
            else [0] * dataset.class_count
            for split in dataset.splits.values()
        ]
        for k, row in enumerate(zip(*counts, strict=True)):
            if k == CLASSES_SHOWN:
                table.add_row(f"and {dataset.class_count - k:,} more classes", *[""] * 3)
                break
            table.add_row(escape(class_name(dataset, k)), *(f"{count:,}" for count in row))
    few = min(LOOKED_AT, len(dataset.train))
    if few < len(dataset.train):
        table.caption = f"pixels in [0, 1], of {few:,} images of each split"
        table.caption_justify = "left"
    return table


def class_name(dataset: Dataset, label: int) -> str:
    return printable(dataset.classes[label]) if dataset.classes else str(label)


def pixel_numbers(dataset: Dataset, split: str) -> list[float]:
    """Smallest, largest, mean and standard deviation of the pixels of some images."""
    found = choose_split(dataset, split)
    rows = torch.from_numpy(some(len(found), LOOKED_AT))
    seen = pixels(found[rows].images, "none").double()
    return [float(x) for x in (seen.min(), seen.max(), seen.mean(), seen.std(correction=0))]


def some(count: int, wanted: int) -> np.ndarray:
    """Some of `count` rows, in order, the same ones each time."""
    return np.sort(np.random.default_rng(0).permutation(count)[:wanted])


def some_images(dataset: Dataset, split: str, count: int) -> tuple[Tensor, list[str]]:
    """Images in [0, 1] of a split, by class where there are labels, and the names of these."""
    require_count("count", count, largest=2000)
    found = choose_split(dataset, split)
    rows = torch.from_numpy(some(len(found), count))
    if found.labels is not None:
        rows = rows[found.labels[rows].argsort(stable=True)]
    batch = found[rows]
    names = [""] * len(rows)
    if batch.labels is not None:
        names = [class_name(dataset, label) for label in batch.labels.tolist()]
    return pixels(batch.images, "none"), names


def file_name(dataset: Dataset) -> str:
    return re.sub(r"[^\w.+-]+", "-", dataset.name) or "data"


def prepare_file(folder: Path, settings: FormConfig, out: Path) -> str:
    """Decode image files into `out`; a sentence that says what it has."""
    require(folder.exists(), f"there is no folder or archive {printable(folder)}")
    require(out.suffix == ".safetensors", f"--out {printable(out)} must end in .safetensors")
    require(
        not out.exists(),
        f"--out {printable(out)} exists already; remove it, or choose another name",
    )
    require(out.parent.is_dir(), f"--out {printable(out)}: its folder does not exist")
    prepare(open_source(folder), settings, folder.name, out, Shown(True))
    store = open_store(out)
    count, channels, height, width = store.images.shape
    size = math.prod(store.images.shape) / 1e6
    return (
        f"{printable(out)}: {count:,} images of {height} x {width} pixels, {channels} channel{'s' * (channels > 1)}, "
        f"{size:,.0f} MB; vaekit train convvae --data {printable(out)}"
    )
