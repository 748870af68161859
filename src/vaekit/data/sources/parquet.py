"""Parquet files as a source of image files: each row is one, its label and split known from the table and its name."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ...support.errors import printable, require
from ..cache import stat_key
from ..dataset import check_class_count
from ..formats.images import MAX_FILE_BYTES
from ..formats.parquet import ParquetTable
from .files import Entry, ImageSource, is_image, open_source
from .layout import SPLIT_NAMES, Layout, check_splits

SHARD = re.compile(r"(.*)-(\d{1,6})-of-(\d{1,6})\.parquet", re.IGNORECASE)


def find_parquet(path: Path) -> list[Path]:
    """The Parquet files of a path: a file, or those of a folder or its sub-folder data; none where there are images in
    files. Raises UserError where both are."""
    if path.is_file():
        return [path] if path.suffix.lower() == ".parquet" else []
    for folder in (path, path / "data"):
        names = os.listdir(folder) if folder.is_dir() else []
        files = sorted(n for n in names if n.endswith(".parquet") and n != "metadata.parquet")
        if files:
            images = [name for name in names if is_image(name)]
            require(
                not images,
                f"{printable(folder)} has Parquet files and image files, such as {printable((images or [''])[0])}; put "
                "these in a folder of their own",
            )
            return [folder / name for name in files]
    return []


def open_images(path: Path) -> ImageSource:
    """Open Parquet files, or a folder, an archive or an image file. Raises UserError as `open_source` does."""
    parquet = find_parquet(path)
    return ParquetSource(path, parquet) if parquet else open_source(path)


class ParquetSource:
    """The images in the rows of Parquet files, called as "train.parquet row 0"; its layout is known."""

    def __init__(self, path: Path, files: list[Path]) -> None:
        self.path, self.files = path, files
        self.folders = set[str]()
        self.tables: list[Entry] = []

    @property
    def key(self) -> Any:
        return [str(self.path), [[file.name, *stat_key(file.stat())] for file in self.files]]

    @cached_property
    def parquet_tables(self) -> list[ParquetTable]:
        return [ParquetTable(file) for file in self.files]

    @cached_property
    def entries(self) -> list[Entry]:
        return [
            Entry(name, table.path.stat().st_size // table.count, "")
            for table in self.parquet_tables
            for name in self._names(table)
        ]

    @staticmethod
    def _names(table: ParquetTable) -> list[str]:
        return [f"{table.path.name} row {row}" for row in range(table.count)]

    def read(self, names: Collection[str]) -> Iterator[tuple[str, bytes | None]]:
        for table in self.parquet_tables:
            known = self._names(table)
            rows = [row for row, name in enumerate(known) if name in names]
            for row, content in table.images(rows) if rows else ():
                yield known[row], None if len(content) > MAX_FILE_BYTES else content

    @cached_property
    def layout(self) -> Layout:
        """Splits from the names of the files, if there are several; classes from the tables. Raises UserError."""
        where = printable(self.path)
        require(len(self.entries) >= 1, f"{where} has no images: its tables have no rows")
        splits = file_splits(where, [file.name for file in self.files])
        counts = [table.count for table in self.parquet_tables]
        labels, classes = self._labels()
        layout = Layout(
            [entry.name for entry in self.entries],
            np.repeat(np.array(splits, np.uint8), counts),
            labels,
            classes,
        )
        check_splits(where, layout, slice(None))
        return layout

    def _labels(self) -> tuple[np.ndarray | None, list[str] | None]:
        """The labels (N,) and the names of the classes that occur, in the order of their numbers or names."""
        where, found = printable(self.path), [table.labels() for table in self.parquet_tables]
        columns = [labels for labels in found if labels is not None]
        # Hugging Face marks images without a label by -1.
        if not columns or all(c.dtype.kind == "i" and (c == -1).all() for c in columns):
            return None, None
        names = self.parquet_tables[0].names
        require(
            len(columns) == len(found)
            and len({labels.dtype.kind for labels in columns}) == 1
            and all(table.names == names for table in self.parquet_tables),
            f"{where}: its files differ in their labels; give all the same classes, or none",
        )
        values, labels = np.unique(np.concatenate(columns), return_inverse=True)
        check_class_count(len(values), where)
        if values.dtype.kind == "i":
            outside = [int(v) for v in values if not 0 <= v < (len(names) if names else 2**62)]
            require(
                not outside,
                f"{where} has the label {(outside or [0])[0]}, which is no class; label all images, or none",
            )
        classes = [names[v] if names and values.dtype.kind == "i" else str(v) for v in values]
        return labels.astype(np.int64), classes


def file_splits(where: str, names: list[str]) -> list[int]:
    """The index into SPLITS of each file, by its name; all 0 for one file, and where no name tells one.

    Raises UserError for some names that tell none, no training images, and missing shards (train-00000-of-00002).
    """
    shards: dict[tuple[str, int], set[int]] = {}
    for name in names:
        match = SHARD.fullmatch(name)
        if match and len(names) > 1:
            shards.setdefault((match[1], int(match[3])), set()).add(int(match[2]))
    for (prefix, total), numbers in shards.items():
        missing = next((n for n in range(total) if n not in numbers), None)
        require(
            missing is None,
            f"{where} lacks file {missing} of the {total} files {printable(prefix)}-...-of-...; get it, or rename them",
        )
    told = [
        {SPLIT_NAMES[w] for w in re.split(r"[^a-z]+", n.lower()) if w in SPLIT_NAMES} for n in names
    ]
    if len(names) == 1 or not any(told):
        return [0] * len(names)
    unclear = [name for name, splits in zip(names, told, strict=True) if len(splits) != 1]
    require(
        not unclear,
        f"{where}: the name of {printable((unclear or [''])[0])} does not tell its split; call it as "
        "train-00000-of-00001.parquet, validation-... or test-...",
    )
    index = [next(iter(splits)) for splits in told]
    require(
        0 in index,
        f"{where} has no training images: no file called as train-00000-of-00001.parquet",
    )
    return index
