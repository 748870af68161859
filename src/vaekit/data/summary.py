"""Summaries of a data set, for `vaekit data show`, `vaekit data prepare` and `vaekit plan`."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from rich.table import Table
from torch import Tensor

from ..settings.data import PreprocessConfig
from ..support.console import ProgressBar
from ..support.errors import printable, require, require_count
from .dataset import Dataset, get_split, pixels
from .duplicates import given_duplicates
from .formats.images import BadImage, ignore_pillow_warnings, inspect_image
from .sources.files import PageSource, leave_out_broken_links
from .sources.image_files import decode_each, prepare
from .sources.inputs import is_array_path
from .sources.layout import read_layout
from .sources.parquet import open_images
from .splits import evenly_spaced, sorted_random_rows
from .stored import open_store
from .values import is_plain

SAMPLED_IMAGES = 2000  # per split, for the pixel statistics
MAX_CLASSES_SHOWN = 40
INSPECTED_FILES = 200
NEARLY = 0.1  # of the range of pixels: how near to black or white a pixel is almost so


def as_table(dataset: Dataset) -> Table:
    """A table of the image size, the images per split and class, and pixel statistics."""
    channels, height, width = dataset.shape
    colours = {1: "grey", 3: "colour"}.get(channels, f"{channels} channels")
    title = f"{printable(dataset.name)}: {height} x {width} pixels (height x width), {colours}, likelihood "
    table = Table(title=title + dataset.likelihood, title_justify="left")
    for name in ("", *dataset.splits):
        table.add_column(name, justify="right" if name else "left")
    table.add_row("images", *(f"{len(split):,}" for split in dataset.splits.values()))
    rows = [pixel_statistics(dataset, name) for name in dataset.splits]
    for i, name in enumerate(
        ("pixel minimum", "pixel maximum", "pixel mean", "pixel standard deviation")
    ):
        table.add_row(name, *(f"{row[i]:.3f}" for row in rows))
    if not is_plain(dataset.value_range):
        low, span = dataset.value_range.low, dataset.value_range.high - dataset.value_range.low
        for i, name in enumerate(("smallest value", "largest value", "mean value")):
            table.add_row(name, *(f"{low + span * row[i]:.6g}" for row in rows))
    if dataset.class_count:
        table.add_section()
        counts = [
            torch.bincount(split.labels, minlength=dataset.class_count).tolist()
            if split.labels is not None
            else [0] * dataset.class_count
            for split in dataset.splits.values()
        ]
        for k, row in enumerate(zip(*counts, strict=True)):
            if k == MAX_CLASSES_SHOWN:
                table.add_row(f"and {dataset.class_count - k:,} more classes", *[""] * 3)
                break
            table.add_row(class_name(dataset, k), *(f"{count:,}" for count in row))
    if len(dataset.train) > SAMPLED_IMAGES:
        table.caption = f"pixels in [0, 1], from {SAMPLED_IMAGES:,} images per split"
        table.caption_justify = "left"
    return table


def class_name(dataset: Dataset, label: int) -> str:
    return printable(dataset.classes[label]) if dataset.classes else str(label)


def pixel_statistics(dataset: Dataset, split: str) -> list[float]:
    """Minimum, maximum, mean and standard deviation of the pixels, of up to SAMPLED_IMAGES images."""
    images = get_split(dataset, split)
    rows = sorted_random_rows(len(images), SAMPLED_IMAGES, 0)
    x = pixels(images[rows].images, "none").double()
    return [float(value) for value in (x.min(), x.max(), x.mean(), x.std(correction=0))]


def two_tone_share(dataset: Dataset) -> float:
    """The share of pixels that are almost black or white, of up to SAMPLED_IMAGES training images."""
    rows = sorted_random_rows(len(dataset.train), SAMPLED_IMAGES, 0)
    x = pixels(dataset.train[rows].images, "none")
    return float(((x <= NEARLY) | (x >= 1 - NEARLY)).double().mean())


def image_sizes(path: Path, settings: PreprocessConfig) -> list[tuple[int, int]]:
    """(height, width) in pixels of up to INSPECTED_FILES image files of a folder or an archive, without decoding them;
    none of a file of arrays. Raises UserError as `load` does."""
    if is_array_path(path):
        return []
    source = open_images(path)
    leave_out_broken_links(source, settings.skip_bad, ProgressBar(False))
    pages = PageSource(source, settings.pages)
    names = read_layout(pages).names
    chosen = {names[i] for i in evenly_spaced(len(names), INSPECTED_FILES).tolist()}
    with ignore_pillow_warnings():
        infos = [info for _, info in decode_each(inspect_image, pages.read(chosen))]
    return [(info.height, info.width) for info in infos if not isinstance(info, BadImage)]


def sample_images(dataset: Dataset, split: str, count: int) -> tuple[Tensor, list[str]]:
    """Random images in [0, 1] of a split, sorted by class where there are labels, and their class names."""
    require_count("count", count, largest=2000)
    images = get_split(dataset, split)
    rows = sorted_random_rows(len(images), count, 0)
    if images.labels is not None:
        rows = rows[images.labels[rows].argsort(stable=True)]
    batch = images[rows]
    names = [""] * len(rows)
    if batch.labels is not None:
        names = [class_name(dataset, label) for label in batch.labels.tolist()]
    return pixels(batch.images, "none"), names


def file_name(dataset: Dataset) -> str:
    """The data set's name with only characters that are safe in a file name."""
    return re.sub(r"[^\w.+-]+", "-", dataset.name) or "data"


def prepare_file(folder: Path, settings: PreprocessConfig, out: Path) -> str:
    """Decode image files (of a folder, an archive or Parquet files) into `out`; returns a one-line summary. Raises
    UserError."""
    require(
        folder.exists() and not is_array_path(folder),
        f"{printable(folder)} has arrays, which need no preparing; give it to --data as it is"
        if folder.exists()
        else f"there is no folder or archive {printable(folder)}",
    )
    require(out.suffix == ".safetensors", f"--out {printable(out)} must end in .safetensors")
    require(
        not out.exists(),
        f"--out {printable(out)} exists already; remove it, or choose another name",
    )
    require(out.parent.is_dir(), f"--out {printable(out)}: its folder does not exist")
    source, bar = open_images(folder), ProgressBar(True)
    leave_out_broken_links(source, settings.skip_bad, bar)
    prepare(source, settings, folder.name, out, bar)
    store = open_store(out)
    for sentence in (*store.metadata.reading, *given_duplicates(store)):
        bar.log(sentence)
    count, channels, height, width = store.images.shape
    size = count * store.images.bytes_per_image / 1e6
    return (
        f"{printable(out)}: {count:,} images of {height} x {width} pixels, {channels} channel{'s' * (channels > 1)}, "
        f"{size:,.0f} MB; vaekit train convvae --data {printable(out)}"
    )
