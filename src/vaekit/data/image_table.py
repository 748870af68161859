"""The file names of images and the columns of their metadata, beside the pixels of a file of images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from torch import Tensor

from ..support.errors import UserError, printable, require


def table_bytes(names: Sequence[str], skip: int, columns: dict[str, list[str]]) -> np.ndarray:
    """What a file of images keeps of its table: JSON, as bytes (n,)."""
    content = json.dumps({"names": list(names), "skip": skip, "columns": columns})
    return np.frombuffer(content.encode(), np.uint8)


class TableContent:
    """The table of a file of images, read when it is first asked for."""

    def __init__(self, content: Tensor, count: int, where: str) -> None:
        self.content, self.count, self.where = content, count, where

    @cached_property
    def _fields(self) -> dict[str, Any]:
        try:
            fields = json.loads(self.content.numpy().tobytes())
            lists = [fields["names"], *fields["columns"].values()]
            good = isinstance(fields["skip"], int) and all(
                isinstance(values, list)
                and len(values) == self.count
                and all(isinstance(value, str) for value in values)
                for values in lists
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            good = False
        require(good, f"{self.where} is damaged (its table of file names); create it again")
        return fields

    @property
    def names(self) -> list[str]:
        return self._fields["names"]

    @property
    def columns(self) -> dict[str, list[str]]:
        return self._fields["columns"]

    @property
    def skip(self) -> int:
        return self._fields["skip"]


@dataclass(frozen=True)
class ImageTable:
    """File names and metadata of images: `table["caption"]` is a list with the value of each image, as text.

    `rows` (N,) are those of the images in `content`; `hashes` (N, 16), uint8, of their pixels.
    """

    content: TableContent
    rows: Tensor
    hashes: Tensor

    def take(self, rows: Tensor) -> ImageTable:
        """The table of these rows."""
        return ImageTable(self.content, self.rows[rows.cpu()], self.hashes[rows.cpu()])

    @property
    def columns(self) -> list[str]:
        """The names of the columns."""
        return list(self.content.columns)

    @property
    def names(self) -> list[str]:
        """The file of each image, relative to the source."""
        return self._of_rows(self.content.names)

    def __getitem__(self, column: str) -> list[str]:
        columns = self.content.columns
        if column not in columns:
            raise UserError(
                f"there is no column {printable(column)!r} in {self.content.where}{listed(self.columns)}"
            )
        return self._of_rows(columns[column])

    def _of_rows(self, values: list[str]) -> list[str]:
        return [values[row] for row in self.rows.tolist()]

    def groups(self, by: str, where: str) -> list[str]:
        """The group of each image of the source `where`: its n-th folder for the number n, else its value of the column
        `by`.

        Raises UserError for an image without such a folder or value.
        """
        names = self.names
        if not by.isdecimal():
            if by not in self.columns:
                raise UserError(
                    f"--group-by {printable(by)}: {where} has no metadata of that name{listed(self.columns)}; give a "
                    "column of its metadata.csv, or the level of a folder such as 1"
                )
            groups, what = self[by], f"has no {printable(by)}"
        else:
            level = self.content.skip + int(by) - 1
            parts = [PurePosixPath(name).parts for name in names]
            groups = [path[level] if len(path) > level + 1 else "" for path in parts]
            what = f"is in fewer than {by} folders (train and test do not count)"
        for name, group in zip(names, groups, strict=True):
            require(group != "", f"--group-by {printable(by)}: {printable(name)} of {where} {what}")
        return groups


def listed(columns: Sequence[str]) -> str:
    return f" (it has {', '.join(map(printable, columns[:20]))})" if columns else ""
