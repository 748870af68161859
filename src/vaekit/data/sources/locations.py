"""Where the files of the data sets by name are, and how they get there. Imports no torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ...support.console import Shown
from ...support.errors import UserError, closest, printable, require
from ..cache import cache_dir
from . import catalog as shelf
from .download import fetch

if TYPE_CHECKING:
    from rich.table import Table

PACKAGED = Path(__file__).parents[1] / "mnist"


def place(name: str, data_dir: str | Path | None, shown: Shown) -> Path:
    """The folder with a named data set's files; what is missing there is downloaded. Raises UserError."""
    return find(name, data_dir) or fetch_all(name, data_dir, shown)


def fetch_all(name: str, data_dir: str | Path | None, shown: Shown) -> Path:
    base = Path(data_dir or os.environ.get("VAEKIT_DATA") or cache_dir() / "data").expanduser()
    files = shelf.SHELVES[name].files
    begun = any((base / file.name).exists() for file in files)
    folder = base if begun else child(base, name) or base / name
    for file in files:
        fetch(file, folder.resolve(), shown)
    return folder


def find(name: str, data_dir: str | Path | None = None) -> Path | None:
    """The folder that has all of a named data set's files; None if none has. Raises UserError."""
    named = data_dir or os.environ.get("VAEKIT_DATA")
    candidates: list[Path | None] = []
    if named is not None:
        base = Path(named).expanduser()
        require(
            base.is_dir() or data_dir is None,
            f"the data folder {printable(named)} does not exist",
        )
        candidates = [child(base, name), base]
    if data_dir is None:
        candidates.append(cache_dir() / "data" / name)
    if name == "mnist":
        candidates.append(PACKAGED)
    entry = shelf.SHELVES[name]
    groups = [[file.name for file in entry.files], *entry.sets]
    for folder in candidates:
        if folder is not None and any(all((folder / n).exists() for n in g) for g in groups):
            return folder
    return None


def child(base: Path, name: str) -> Path | None:
    """The folder of a data set's name in `base`, however it is spelt."""
    if not base.is_dir():
        return None
    spelt = [path for path in sorted(base.iterdir()) if shelf.plainly(path.name) == name]
    return next((path for path in spelt if path.is_dir()), None)


def get(name: str, data_dir: str | None) -> str:
    """Download a data set's files, if they are not there; a sentence that says where they are. Raises UserError."""
    known = shelf.find_name(name)
    if known is None:
        there = ", ".join(shelf.SHELVES)
        raise UserError(
            f"there is no data set {printable(name)!r}{closest(name, shelf.SHELVES)} (data sets: {there})"
        )
    plain, _ = known
    if not shelf.SHELVES[plain].files:
        return f"{plain} needs no download"
    known_place = data_dir is None or Path(data_dir).expanduser().is_dir()
    folder = find(plain, data_dir) if known_place else None
    if folder is None or (
        data_dir is not None and folder == PACKAGED
    ):  # there, wherever else it is
        folder = fetch_all(plain, data_dir, Shown(True))
    return f"{plain} is in {folder}"


def as_table(data_dir: str | None) -> Table:
    """All data sets by name, for the screen."""
    from rich.table import Table

    table = Table(title="vaekit train MODEL --data NAME", title_justify="left", show_lines=True)
    table.add_column("name", no_wrap=True)
    table.add_column(
        "what it is; images to train on / validate with / test; licence", overflow="fold"
    )
    table.add_column("here", no_wrap=True)
    for name, entry in shelf.SHELVES.items():
        classes = f", {entry.classes} classes" if entry.classes else ""
        lines = [f"{entry.summary}, {entry.shape}{classes}; {entry.images}; {entry.licence}"]
        lines += [f"{name}:{variant}: {what}" for variant, what in entry.variants.items()]
        size = sum(file.size for file in entry.files) / 1e6
        there = not entry.files or find(name, data_dir)
        table.add_row(name, "\n".join(lines), "yes" if there else f"no, {size:,.0f} MB")
    return table
