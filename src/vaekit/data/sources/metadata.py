"""Tables beside image files that tell their labels: metadata.csv or .jsonl, as Hugging Face's imagefolder has them, and
labels.csv or .tsv."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from ...support.errors import UserError, one_line, printable, require
from ..formats.pages import file_of_page
from .files import TABLES, ImageSource

FILE_COLUMNS = (
    "file_name", "filename", "file", "image", "image_name", "image_id", "image_path", "path", "name", "id", "img",
)  # fmt: skip
LABEL_COLUMNS = ("label", "labels", "class", "class_name", "target", "category")
SPLIT_COLUMNS = ("split", "subset")
MAX_LABEL = 255  # characters

Row = tuple[int, dict[str, str]]  # its line in the file, and its cells by column


@dataclass(frozen=True)
class Metadata:
    """The columns of tables, each a value per image: the label and the split, where there are, and the others by name.
    `reading` says which columns these are."""

    labels: list[str] | None
    splits: list[str] | None
    columns: dict[str, list[str]]
    reading: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """A table of images: the row of each file that it names, and the names of its columns."""

    name: str
    rows: list[Row]
    file: str
    label: str | None
    split: str | None
    others: list[str]

    @property
    def reading(self) -> str:
        roles = {"file names": self.file, "labels": self.label, "splits": self.split}
        parts = [f"{role} from {printable(c)!r}" for role, c in roles.items() if c is not None]
        if self.others:
            parts.append(f"kept: {', '.join(map(printable, self.others[:20]))}")
        return f"{printable(self.name)}: {', '.join(parts)}"


def read_metadata(source: ImageSource, names: Sequence[str]) -> Metadata | None:
    """The metadata of the images `names`; None without tables of them.

    Raises UserError for a table that cannot be read, a row without its file, an image without its row or with two, and
    for a label or split that is missing.
    """
    if not source.tables:
        return None
    files = [*dict.fromkeys(map(file_of_page, names))]
    if len(files) < len(names):
        return of_pages(read_metadata(source, files), files, names)
    where = printable(source.path)
    tables, unread = read_tables(source, names)
    if not tables:
        return Metadata(None, None, {}, tuple(unread)) if unread else None
    rows = match_rows(where, tables, names, getattr(source, "broken", []))

    def column(role: str) -> list[str] | None:
        if not any(getattr(table, role) for table in tables):
            return None
        return [cells.get(getattr(table, role) or "", "") for table, cells in rows]

    labels, splits = column("label"), column("split")
    for values, role in ((labels, "label"), (splits, "split")):
        for name, value in zip(names, values or (), strict=False):
            require(
                value != "", f"{where}: {printable(name)} has no {role}; give one for every image"
            )
    reading = [table.reading for table in tables[:3]] + unread
    others = {key: None for table in tables for key in table.others}
    columns = {key: [cells.get(key, "") for _, cells in rows] for key in others}
    if labels is not None:
        labels = whole_labels(labels)
        longest = max(labels, key=len)
        require(
            len(longest) <= MAX_LABEL,
            f"{where}: a label has {len(longest):,} characters; name the column of captions text, not label",
        )
        if measured(labels):
            reading.append("the labels are measurements, not classes: kept as the column label")
            columns, labels = {**columns, "label": labels}, None
    return Metadata(labels, splits, columns, tuple(reading))


def read_tables(source: ImageSource, names: Sequence[str]) -> tuple[list[Table], list[str]]:
    """The tables of a source of the images `names`, and a sentence on each that is not one. Raises UserError for a
    table that cannot be read."""
    where = printable(source.path)
    tables, unread = list[Table](), list[str]()
    for name, content in source.read({table.name for table in source.tables}):
        base = PurePosixPath(name).name.lower()
        require(
            base in TABLES and content is not None,
            f"{where}: {printable(name)} cannot be read; save it as metadata.csv, or move it away",
        )
        assert content is not None
        try:
            table = parse_table(name, content, names)
        except (csv.Error, ValueError, RecursionError) as error:
            reason = str(error) if isinstance(error, UserError) else one_line(error)
            raise UserError(f"{where}: {printable(name)}: {reason}") from None
        if table is None:
            unread.append(f"{printable(name)} is not read: it has no column file_name")
        else:
            tables.append(table)
    return tables, unread


def of_pages(
    metadata: Metadata | None, files: Sequence[str], names: Sequence[str]
) -> Metadata | None:
    """The metadata of images `names`, of which some are pages, from that of their files."""
    if metadata is None:
        return None
    number = {file: i for i, file in enumerate(files)}
    rows = [number[file_of_page(name)] for name in names]

    def spread(values: list[str] | None) -> list[str] | None:
        return None if values is None else [values[row] for row in rows]

    columns = {key: [values[row] for row in rows] for key, values in metadata.columns.items()}
    return Metadata(spread(metadata.labels), spread(metadata.splits), columns, metadata.reading)


def match_rows(
    where: str, tables: Sequence[Table], names: Sequence[str], broken: Sequence[str]
) -> list[tuple[Table, dict[str, str]]]:
    """The table and the cells of each image. Raises UserError unless images and rows match one to one. The rows of
    `broken` links, which are left out, may be there."""
    found: dict[int, tuple[Table, int, dict[str, str]]] = {}
    for table in tables:
        files = FileNames(table.name, [*names, *broken])
        for line, cells in table.rows:
            text = cells[table.file]
            index = files.find(text)
            place = f"{where}: {printable(table.name)}, line {line}"
            if index is None:
                raise UserError(
                    f"{place}: there is no image {printable(text)!r} (or several); correct or remove the line"
                )
            if index in found:
                other, first, _ = found[index]
                raise UserError(
                    f"{place}: a second row of {printable(text)!r}, after line {first} of {printable(other.name)}; "
                    "remove one"
                )
            found[index] = table, line, cells
    for index, name in enumerate(names):
        require(
            index in found,
            f"{where}: {printable(name)} has no row in {printable(tables[0].name)}"
            f"{' or another table' if len(tables) > 1 else ''}; add one, or move the image away",
        )
    return [(found[index][0], found[index][2]) for index in range(len(names))]


class FileNames:
    """The images that a table in `folder` may name: by their path from its folder; those of labels.csv also without
    extension, or by their name alone where it is the only one."""

    def __init__(self, table: str, names: Sequence[str]) -> None:
        folder, _, base = table.rpartition("/")
        prefix = f"{folder}/" if folder else ""
        inside = [
            (name[len(prefix) :], i) for i, name in enumerate(names) if name.startswith(prefix)
        ]
        keys = [self.path]
        if not base.lower().startswith("metadata"):
            keys += [self.stem, self.name, lambda name: self.stem(self.name(name))]
        self.indices: list[dict[str, int | None]] = []
        for key in keys:
            index: dict[str, int | None] = {}
            for name, i in inside:
                text = key(name)
                index[text] = None if text in index else i
            self.indices.append(index)

    def find(self, text: str) -> int | None:
        """The number of the image that a table calls `text`; None if there is none, or more than one."""
        name = re.sub("^(\\./)+", "", text.replace("\\", "/"))
        for index in self.indices:
            if name in index:
                return index[name]
        return None

    @staticmethod
    def path(name: str) -> str:
        return re.sub("^(\\./)+", "", name)

    @staticmethod
    def name(name: str) -> str:
        return PurePosixPath(name).name

    @staticmethod
    def stem(name: str) -> str:
        return name[: -len(PurePosixPath(name).suffix) or None]


def parse_table(name: str, content: bytes, names: Sequence[str]) -> Table | None:
    """Parse a table; None for a metadata.csv of something else. Raises csv.Error, and UserError or another
    ValueError."""
    base = PurePosixPath(name).name.lower()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError("it is not text in UTF-8; save it as UTF-8") from None
    if base.startswith("metadata"):
        records = (
            read_json_lines(text) if base.endswith(".jsonl") else with_header(read_cells(text, ","))
        )
        columns = list(dict.fromkeys(key for _, cells in records for key in cells))
        if "file_name" not in columns:
            return None
        for line, cells in records:
            require(cells.get("file_name", "") != "", f"line {line} has no file_name; add it")
        return as_table(name, columns, records, "file_name", None)
    first = text.lstrip("\r\n").partition("\n")[0]
    delimiter = "\t" if base.endswith(".tsv") else ";" if "," not in first and ";" in first else ","
    rows = read_cells(text, delimiter)
    require(len(rows) >= 1, "it is empty; remove it")
    line, header = rows[0]
    require(len(header) >= 2, f"line {line} has one column; give a file name and a label")
    known = [column.lower() for column in header]
    is_header = FileNames(name, names).find(header[0]) is None and (
        any(column in FILE_COLUMNS for column in known) or any(c in LABEL_COLUMNS for c in known)
    )
    if not is_header:
        require(
            len(header) <= 3,
            f"line {line} is no header, and has {len(header)} columns; add a header such as file_name,label",
        )
        keys = ["column 1", "column 2", "column 3"][: len(header)]
        records = [(n, dict(zip(keys, row, strict=True))) for n, row in rows]
        return Table(name, records, keys[0], keys[1], keys[2] if len(keys) == 3 else None, [])
    records = with_header(rows)
    columns = list(records[0][1]) if records else header
    file = next((c for wanted in FILE_COLUMNS for c in columns if c.lower() == wanted), columns[0])
    rest = [c for c in columns if c != file and c.lower() not in SPLIT_COLUMNS]
    return as_table(name, columns, records, file, rest[0] if len(rest) == 1 else None)


def as_table(
    name: str, columns: Sequence[str], rows: list[Row], file: str, label: str | None
) -> Table:
    """The table with its columns of labels (`label` where no column is called so) and splits found. Raises
    UserError."""
    others = [column for column in columns if column != file]
    labels = [column for column in others if column.lower() in LABEL_COLUMNS]
    if "label" in labels:
        labels = ["label"]
    require(
        len(labels) <= 1,
        f"it has the columns {' and '.join(map(printable, labels))}; call the one with the classes label",
    )
    label = labels[0] if labels else label
    if label is None and not PurePosixPath(name).name.lower().startswith("metadata"):
        raise UserError(
            f"it has the columns {', '.join(map(printable, columns[:20]))}; call the one with the classes label"
        )
    split = next((column for column in others if column.lower() in SPLIT_COLUMNS), None)
    return Table(name, rows, file, label, split, [c for c in others if c not in (label, split)])


def read_cells(text: str, delimiter: str) -> list[tuple[int, list[str]]]:
    """The rows of a .csv text with their line numbers, without empty ones. Raises UserError where their lengths differ,
    and csv.Error."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    rows = [(line, row) for line, row in rows if any(row)]
    for line, row in rows:
        count = len(rows[0][1])
        require(
            len(row) == count, f"line {line} has {len(row)} cells, the first {count}; correct it"
        )
    return rows


def with_header(rows: list[tuple[int, list[str]]]) -> list[Row]:
    """Rows of cells by the names of the columns, which are the first row. Raises UserError for a name that repeats."""
    if not rows:
        return []
    header = [column or f"column {i}" for i, column in enumerate(rows[0][1], 1)]
    for column in header:
        require(
            header.count(column) == 1, f"two columns are called {printable(column)!r}; rename one"
        )
    return [(line, dict(zip(header, row, strict=True))) for line, row in rows[1:]]


def read_json_lines(text: str) -> list[Row]:
    """The objects of a text, one a line, with values as text. Raises UserError or another ValueError."""
    rows = []
    for line, content in enumerate(text.split("\n"), 1):
        if content.strip():
            try:
                value = json.loads(content)
            except (ValueError, RecursionError) as error:
                raise UserError(
                    f"line {line} is not JSON ({one_line(error)}); correct it"
                ) from None
            require(isinstance(value, dict), f"line {line} is not a JSON object; correct it")
            rows.append((line, {key: as_text(cell) for key, cell in value.items()}))
    return rows


def as_text(value: Any) -> str:
    """A JSON value as the text of a cell; "" for null and NaN."""
    if isinstance(value, str):
        return value.strip()
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return json.dumps(value)


def whole_labels(labels: list[str]) -> list[str]:
    """The labels, 1.0 as 1 where all are whole numbers, as programs write them that keep numbers as floats."""
    if all(re.fullmatch(r"-?[0-9]{1,18}(\.0+)?", label) for label in set(labels)):
        return [str(int(label.partition(".")[0])) for label in labels]
    return labels


def measured(labels: Iterable[str]) -> bool:
    """Whether labels are numbers, not all whole: measurements, such as an age or an angle, and no classes."""
    return all(map(is_number, distinct := set(labels))) and not all(
        re.fullmatch("-?[0-9]+", label) for label in distinct
    )


def is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
