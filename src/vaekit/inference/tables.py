"""Reading and writing tables (.npz, .csv, .parquet)."""

from __future__ import annotations

import csv
import io
import math
import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.sources.arrays import check_unpacked_size
from ..runs.directory import require_output
from ..support.atomic import atomic_write
from ..support.errors import UserError, one_line, require
from ..support.escaping import csv_cell

if TYPE_CHECKING:
    import pandas

EXTENSIONS = (".npz", ".csv", ".parquet")
MAX_CSV_COLUMNS = 16_384
INDEXED_COLUMN = re.compile(r"(.+)_(\d{1,6})")
Columns = dict[str, np.ndarray]  # of a table, by name


class Table(dict[str, np.ndarray]):
    """Columns by name, all of one length: (N,) or (N, D), stored in .csv and .parquet as name_0, name_1, ..."""

    def to_pandas(self) -> pandas.DataFrame:
        """The table as a DataFrame, with columns as in .csv. Raises UserError where pandas is not installed."""
        try:
            import pandas
        except ImportError:
            raise UserError("to_pandas() needs pandas: pip install 'vaekit[pandas]'") from None
        return pandas.DataFrame(flatten_columns(self))


def check_extension(path: Path) -> str:
    """The extension of a table's file. Raises UserError for an unknown one, or where its package is missing."""
    extension = path.suffix.lower()
    require(
        extension in EXTENSIONS,
        f"{path} is not a table file; its ending must be one of {', '.join(EXTENSIONS)}",
    )
    if extension == ".parquet":
        import_pyarrow()
    return extension


def check_output(path: Path, columns: int = 0) -> str:
    """The extension of a table of so many columns to write. Raises UserError where it cannot be written."""
    extension = check_extension(path)
    require_output(path, EXTENSIONS)
    require(
        extension != ".csv" or columns <= MAX_CSV_COLUMNS,
        f"{path} would have {columns:,} columns, and spreadsheets read {MAX_CSV_COLUMNS:,}; write a "
        ".npz or .parquet file",
    )
    return extension


def import_pyarrow() -> Any:
    """pyarrow, with pyarrow.parquet loaded. Raises UserError where it is not installed."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise UserError(".parquet files need pyarrow: pip install 'vaekit[parquet]'") from None
    return pyarrow


def write_table(table: Columns, path: Path) -> Path:
    """Write a table atomically, in the format of the path's extension. Raises UserError."""
    extension = check_output(path, sum(math.prod(column.shape[1:]) for column in table.values()))
    with atomic_write(path) as file:
        if extension == ".npz":
            arrays: dict[str, Any] = dict(table)  # no object arrays, so nothing is pickled
            np.savez(file, **arrays)
        elif extension == ".csv":
            columns = flatten_columns(table)
            text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(map(csv_cell, columns))
            writer.writerows(zip(*map(format_column, columns.values()), strict=True))
            text.detach()
        else:
            pyarrow = import_pyarrow()
            pyarrow.parquet.write_table(pyarrow.table(flatten_columns(table)), file)
    return path


def read_table(path: Path) -> Table:
    """Read a table, written by vaekit or another program. Raises UserError."""
    require(path.is_file(), f"there is no file {path}")
    extension = check_extension(path)
    try:
        if extension == ".npz":
            check_unpacked_size(path)
            with np.load(path, allow_pickle=False) as file:
                return Table({name: file[name] for name in file.files})
        if extension == ".csv":
            text = path.read_text(encoding="utf-8-sig")
            header, *_ = text.partition("\n")
            # Some spreadsheets write semicolons.
            delimiter = ";" if ";" in header and "," not in header else ","
            reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
            lines = [row for row in reader if row]
            require(len(lines) > 1, f"{path} has no rows below its header")
            names, rows = [name.strip() for name in lines[0]], lines[1:]
            require(
                all(len(row) == len(names) for row in rows), f"{path}: its rows differ in length"
            )
            columns = {
                name: parse_column(np.array([row[i] for row in rows]))
                for i, name in enumerate(names)
            }
        else:
            table = import_pyarrow().parquet.read_table(path)
            columns = {name: table[name].to_numpy() for name in table.column_names}
    except UserError:
        raise
    except (ValueError, OSError, zipfile.BadZipFile, EOFError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as {extension} ({one_line(error)})") from None
    return join_columns(columns)


def format_column(column: np.ndarray) -> list[Any]:
    """The values of a column as written to .csv; nine digits are exact for float32."""
    if column.dtype.kind == "f":
        return [f"{value:.9g}" for value in column]
    return [csv_cell(value) for value in column.tolist()]


def parse_column(text: np.ndarray) -> np.ndarray:
    """A column of text as float64 where all of it are numbers, else unchanged."""
    try:
        return text.astype(np.float64)
    except ValueError:
        return text


def flatten_columns(table: Columns) -> Columns:
    """Replace each column (N, D) by D columns name_0, name_1, ... of (N,)."""
    columns: Columns = {}
    for name, values in table.items():
        if values.ndim == 2:
            columns |= {f"{name}_{i}": values[:, i] for i in range(values.shape[1])}
        else:
            columns[name] = values
    return columns


def join_columns(columns: Columns) -> Table:
    """Replace columns name_0, name_1, ..., where none is missing, by one column (N, D)."""
    table = Table()
    groups: dict[str, dict[int, np.ndarray]] = {}
    for name, values in columns.items():
        match = INDEXED_COLUMN.fullmatch(name)
        if match:
            groups.setdefault(match[1], {})[int(match[2])] = values
        else:
            table[name] = values
    for name, parts in groups.items():
        if sorted(parts) == list(range(len(parts))):
            table[name] = np.stack([parts[i] for i in range(len(parts))], axis=1)
        else:  # a name that only ends in a number, such as run_7
            table.update({f"{name}_{i}": values for i, values in parts.items()})
    return table
