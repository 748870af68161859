"""Location of the files of named data sets, and their download. Imports no torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ...support.console import ProgressBar
from ...support.errors import UserError, did_you_mean, printable, require
from ..cache import cache_dir
from . import catalog
from .download import fetch

if TYPE_CHECKING:
    from rich.table import Table

PACKAGED_MNIST = Path(__file__).parents[1] / "mnist"


def locate(name: str, data_dir: str | Path | None, bar: ProgressBar) -> Path:
    """The folder with a named data set's files, downloaded if missing. Raises UserError."""
    return find_local(name, data_dir) or download_files(name, data_dir, bar)


def download_files(name: str, data_dir: str | Path | None, bar: ProgressBar) -> Path:
    """Download the missing files of a named data set; returns their folder. Raises UserError."""
    base = Path(data_dir or os.environ.get("VAEKIT_DATA") or cache_dir() / "data").expanduser()
    files = catalog.CATALOG[name].files
    has_some = any((base / file.name).exists() for file in files)
    folder = base if has_some else find_subfolder(base, name) or base / name
    for file in files:
        fetch(file, folder.resolve(), bar)
    return folder


def find_local(name: str, data_dir: str | Path | None = None) -> Path | None:
    """The folder that has all files of a named data set, or None. Raises UserError if `data_dir` does not exist."""
    parent = data_dir or os.environ.get("VAEKIT_DATA")
    candidates: list[Path | None] = []
    if parent is not None:
        base = Path(parent).expanduser()
        require(
            base.is_dir() or data_dir is None,
            f"the data folder {printable(parent)} does not exist",
        )
        candidates = [find_subfolder(base, name), base]
    if data_dir is None:
        candidates.append(cache_dir() / "data" / name)
    if name == "mnist":
        candidates.append(PACKAGED_MNIST)
    entry = catalog.CATALOG[name]
    groups = [[file.name for file in entry.files], *entry.alternatives]
    for folder in candidates:
        if folder is not None and any(all((folder / n).exists() for n in g) for g in groups):
            return folder
    return None


def find_subfolder(base: Path, name: str) -> Path | None:
    """The subfolder of `base` with a data set's name; case, hyphens and underscores are ignored."""
    if not (base.is_dir() and os.access(base, os.R_OK)):
        return None
    matches = [path for path in sorted(base.iterdir()) if catalog.normalise_name(path.name) == name]
    return next((path for path in matches if path.is_dir()), None)


def download_dataset(name: str, data_dir: str | None) -> str:
    """Download a data set's missing files; returns a sentence with their folder. Raises UserError."""
    parsed = catalog.parse_name(name)
    if parsed is None:
        known = ", ".join(catalog.CATALOG)
        raise UserError(
            f"there is no data set {printable(name)!r}{did_you_mean(name, catalog.CATALOG)} (data sets: {known})"
        )
    key, _ = parsed
    if not catalog.CATALOG[key].files:
        return f"{key} needs no download"
    exists = data_dir is None or Path(data_dir).expanduser().is_dir()
    folder = find_local(key, data_dir) if exists else None
    # An explicit `data_dir` gets the files of MNIST even though the package has them.
    if folder is None or (data_dir is not None and folder == PACKAGED_MNIST):
        folder = download_files(key, data_dir, ProgressBar(True))
    return f"{key} is in {folder}"


def as_table(data_dir: str | None) -> Table:
    """A table of all named data sets."""
    from rich.table import Table

    table = Table(title="vaekit train MODEL --data NAME", title_justify="left", show_lines=True)
    table.add_column("name", no_wrap=True)
    table.add_column("description; training / validation / test images; licence", overflow="fold")
    table.add_column("available", no_wrap=True)
    for name, entry in catalog.CATALOG.items():
        classes = f", {entry.classes} classes" if entry.classes else ""
        lines = [f"{entry.summary}, {entry.shape}{classes}; {entry.images}; {entry.licence}"]
        lines += [f"{name}:{variant}: {text}" for variant, text in entry.variants.items()]
        sizes = [file.size for file in entry.files]
        size = "" if None in sizes else f", {sum(size or 0 for size in sizes) / 1e6:,.0f} MB"
        available = not entry.files or find_local(name, data_dir)
        table.add_row(name, "\n".join(lines), "yes" if available else f"no{size}")
    table.caption = "NAME:1000: 1,000 training images, as with --train-images 1000"
    table.caption_justify = "left"
    return table
