"""Parquet tables with embedded images, through `pyarrow`, by the conventions of Hugging Face datasets."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ...support.errors import UserError, printable, require, unreadable

LABEL_NAMES = ("label", "labels")
IMAGE_NAMES = ("image", "img")
BATCH = 64  # images
MAX_ROWS_PER_BYTE = 8


class ParquetTable:
    """A table with a column of images, {bytes, path} or bytes, and a column of labels, whole numbers or text, or none.

    `names` are the classes of whole numbers, where the table tells them. Raises UserError for another table, and
    without pyarrow.
    """

    def __init__(self, path: Path) -> None:
        try:
            import pyarrow.parquet
        except ImportError:
            raise UserError(
                f"{printable(path)} needs pyarrow: pip install 'vaekit[parquet]'"
            ) from None
        self.path, self.where = path, printable(path)
        require(path.is_file(), f"{self.where} is missing, or is no file")
        try:
            # In parts, as they are needed: a group of rows may have gigabytes.
            self.file = pyarrow.parquet.ParquetFile(path, buffer_size=2**20, pre_buffer=False)
            schema = self.file.schema_arrow
            self.count = int(self.file.metadata.num_rows)
        except Exception as error:  # pyarrow raises anything on damaged files
            raise unreadable(self.where, error) from None
        require(
            0 <= self.count <= MAX_ROWS_PER_BYTE * path.stat().st_size,
            f"{self.where} declares {self.count:,} rows, which its size belies: it is damaged; get it again",
        )
        types = {field.name: field.type for field in schema}
        features = _features(schema.metadata or {})
        self.image = self._image_column(types)
        self.label = self._label_column(types, features)
        self.names = None if self.label is None else _class_names(features.get(self.label))

    def _image_column(self, types: dict[str, Any]) -> str:
        from pyarrow import types as kinds

        def holds_images(kind: Any) -> bool:
            if kinds.is_struct(kind):
                inner = {kind.field(i).name: kind.field(i).type for i in range(kind.num_fields)}
                return "bytes" in inner and holds_images(inner["bytes"])
            return kinds.is_binary(kind) or kinds.is_large_binary(kind)

        columns = [name for name, kind in types.items() if holds_images(kind)]
        named = [name for name in columns if name in IMAGE_NAMES]
        found = named if len(named) == 1 else columns
        listed = ", ".join(f"{printable(n)} ({printable(k)[:40]})" for n, k in types.items())[:400]
        require(
            len(found) == 1,
            f"{self.where} has {'several columns' if found else 'no column'} of embedded images (columns: {listed}); "
            "name the one of the images image",
        )
        return found[0]

    def _label_column(self, types: dict[str, Any], features: dict[str, Any]) -> str | None:
        named = [name for name in LABEL_NAMES if name in types]
        told = [name for name in types if _class_names(features.get(name)) is not None]
        found = named or told
        require(
            len(found) <= 1,
            f"{self.where} has several columns of labels ({', '.join(map(printable, found))}); name one of them label",
        )
        return found[0] if found else None

    def labels(self) -> np.ndarray | None:
        """The labels (N,): int64, or text. Raises UserError for missing ones, and for other types."""
        if self.label is None:
            return None
        from pyarrow import types as kinds

        try:
            column = self.file.read(columns=[self.label]).column(0)
            kind = column.type.value_type if kinds.is_dictionary(column.type) else column.type
            column = column.cast(kind)
        except Exception as error:
            raise unreadable(self.where, error) from None
        column_name = f"{self.where}, column {printable(self.label)}"
        whole = kinds.is_integer(kind) or kinds.is_boolean(kind)
        require(
            (whole or kinds.is_string(kind) or kinds.is_large_string(kind))
            and len(column) == self.count,
            f"{column_name}: labels of type {kind}; they must be whole numbers or text, one per image",
        )
        require(column.null_count == 0, f"{column_name}: {column.null_count:,} labels are missing")
        values = column.to_numpy()
        return values.astype(np.int64) if whole else values.astype(str)

    def images(self, rows: Collection[int]) -> Iterator[tuple[int, bytes]]:
        """Yield (row, content) of these rows, in order; a missing image has no bytes. Raises UserError for the path of
        a file instead of its bytes."""
        wanted, start = set(rows), 0
        try:
            for group in range(self.file.num_row_groups):
                end = start + self.file.metadata.row_group(group).num_rows
                if wanted.isdisjoint(range(start, end)):
                    start = end
                    continue
                batches = self.file.iter_batches(BATCH, row_groups=[group], columns=[self.image])
                for batch in batches:
                    column = batch.column(0)
                    for i in range(len(column)):
                        if start + i in wanted:
                            yield start + i, self._content(column[i].as_py(), start + i)
                    start += len(column)
        except UserError:
            raise
        except Exception as error:
            raise unreadable(self.where, error) from None

    def _content(self, value: Any, row: int) -> bytes:
        if not isinstance(value, dict):
            return value or b""
        content, path = value.get("bytes"), value.get("path")
        require(
            bool(content) or not path,
            f"{self.where}, row {row}: its image is the path {printable(path)[:60]!r}, without bytes; only images in "
            "the table are read, so embed them",
        )
        return content or b""


def _features(metadata: dict[bytes, bytes]) -> dict[str, Any]:
    """The features that a Hugging Face data set describes its columns by."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError, RecursionError):
        return {}
    return features if isinstance(features, dict) else {}


def _class_names(feature: Any) -> list[str] | None:
    """The names of a feature of type ClassLabel, in the order of their numbers."""
    if not isinstance(feature, dict) or feature.get("_type") != "ClassLabel":
        return None
    names = feature.get("names")
    if isinstance(names, dict):  # {"0": "cat", ...}
        names = [names.get(str(i)) for i in range(len(names))]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    return names if len(set(names)) == len(names) else None
