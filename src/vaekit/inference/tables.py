"""Tables of numbers in files (.npz, .csv and .parquet), and images."""

from __future__ import annotations

import csv
import io
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.sources.arrays import check_sizes
from ..support.atomic import replacing
from ..support.errors import UserError, one_line, require, require_folder

# Columns by name, all of one length: (N,), or (N, D), which .csv and .parquet have as name_0, name_1, ...
Table = dict[str, np.ndarray]
ENDINGS = (".npz", ".csv", ".parquet")
BROAD = re.compile(r"(.+)_(\d{1,6})")


def check_ending(path: Path) -> str:
    """The ending of a table's file. Raises UserError for another one, or where its package is missing."""
    ending = path.suffix.lower()
    require(
        ending in ENDINGS,
        f"{path} has not one of the endings {', '.join(ENDINGS)}; choose one of these",
    )
    if ending == ".parquet":
        arrow()
    return ending


def arrow() -> Any:
    """pyarrow's parquet."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise UserError(".parquet files need: pip install 'vaekit[parquet]'") from None
    return pyarrow


def write_table(table: Table, path: Path) -> Path:
    """Write a table in the format that its ending says, in one step. Raises UserError."""
    ending = check_ending(path)
    require_folder(path)
    with replacing(path) as file:
        if ending == ".npz":
            arrays: dict[str, Any] = table  # none is of objects, so nothing is pickled
            np.savez(file, **arrays)
        elif ending == ".csv":
            columns = flat(table)
            text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows(zip(*map(as_words, columns.values()), strict=True))
            text.detach()
        else:
            pyarrow = arrow()
            pyarrow.parquet.write_table(pyarrow.table(flat(table)), file)
    return path


def read_table(path: Path) -> Table:
    """A table from a file, whoever wrote it. Raises UserError."""
    require(path.is_file(), f"there is no file {path}")
    ending = check_ending(path)
    try:
        if ending == ".npz":
            check_sizes(path)
            with np.load(path, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        if ending == ".csv":
            text = path.read_text(encoding="utf-8-sig")
            head, *_ = text.partition("\n")
            between = ";" if ";" in head and "," not in head else ","  # as some spreadsheets write
            table = [
                row for row in csv.reader(io.StringIO(text, newline=""), delimiter=between) if row
            ]
            require(len(table) > 1, f"{path} has no lines below its names")
            names, rows = [name.strip() for name in table[0]], table[1:]
            require(
                all(len(row) == len(names) for row in rows), f"{path}: its rows differ in length"
            )
            columns = {
                name: as_numbers(np.array([row[i] for row in rows])) for i, name in enumerate(names)
            }
        else:
            read = arrow().parquet.read_table(path)
            columns = {name: read[name].to_numpy() for name in read.column_names}
    except UserError:
        raise
    except (ValueError, OSError, zipfile.BadZipFile, EOFError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as {ending} ({one_line(error)})") from None
    return broad(columns)


def as_words(column: np.ndarray) -> list[Any]:
    """A column for .csv; nine digits hold a float32."""
    if column.dtype.kind == "f":
        return [f"{value:.9g}" for value in column]
    return column.tolist()


def as_numbers(words: np.ndarray) -> np.ndarray:
    """A column of text as numbers, if it is all numbers."""
    try:
        return words.astype(np.float64)
    except ValueError:
        return words


def flat(table: Table) -> Table:
    """With a column (N,) for each of those of (N, D)."""
    columns: Table = {}
    for name, values in table.items():
        if values.ndim == 2:
            columns |= {f"{name}_{i}": values[:, i] for i in range(values.shape[1])}
        else:
            columns[name] = values
    return columns


def broad(columns: Table) -> Table:
    """With name_0, name_1, ... as one column (N, D), where none is missing."""
    table: Table = {}
    groups: dict[str, dict[int, np.ndarray]] = {}
    for name, values in columns.items():
        found = BROAD.fullmatch(name)
        if found:
            groups.setdefault(found[1], {})[int(found[2])] = values
        else:
            table[name] = values
    for name, parts in groups.items():
        if sorted(parts) == list(range(len(parts))):
            table[name] = np.stack([parts[i] for i in range(len(parts))], axis=1)
        else:  # one that only looks like it, such as run_7
            table |= {f"{name}_{i}": values for i, values in parts.items()}
    return table


def write_images(images: Tensor, out: Path) -> Path:
    """Images (N, C, H, W) in [0, 1] as PNG files in a folder, in one .npz file, as one picture, or one after the
    other in a .gif. Raises UserError."""
    ending = out.suffix.lower()
    if ending == ".npz":
        return write_table({"images": images.numpy()}, out)
    if ending:
        from ..pictures import Movie, image_grid, save

        if ending == ".gif":
            return save(Movie([image_grid(image[None], 1) for image in images], 0.1), out)
        return save(image_grid(images, max(1, round(len(images) ** 0.5))), out)
    empty = not out.exists() or (out.is_dir() and not any(out.iterdir()))
    require(empty, f"{out} is a file, or a folder with files in it; name a new folder")
    require(
        images.shape[1] in (1, 3),
        f"images of {images.shape[1]} channels are no PNG files; name a .npz file",
    )
    from PIL import Image

    out.mkdir(parents=True, exist_ok=True)
    levels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    digits = len(str(len(levels) - 1))
    for i, image in enumerate(levels):
        picture = Image.fromarray(image if image.shape[2] == 3 else image[..., 0])
        with replacing(out / f"{i:0{digits}d}.png") as file:
            picture.save(file, "PNG")
    return out
