"""What `anomalies` found as files: a table, its summary, and pictures of the oddest images; and as text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..evaluation.anomalies import Anomalies
from ..inference.picture_data import run_bands
from ..inference.tables import Table, write_table
from ..pictures import contact_sheet, heat_maps, save
from ..runs.directory import Run
from ..support.atomic import write_json
from ..support.errors import printable, require

if TYPE_CHECKING:
    from rich.table import Table as TextTable

SHOWN_ROWS = 10  # of the table for the terminal
COLUMNS = 10  # of the pictures


def default_folder(run: Run, images: Sequence[str]) -> Path:
    """RUN/anomalies/NAME, named after the first of the images."""
    name = re.sub(r"[^\w.-]+", "-", Path(images[0]).resolve().name) if images else "test"
    return run.path / "anomalies" / (name or "images")


def check_output(run: Run, folder: Path, bands: str | None = None) -> None:
    """Raise UserError where a folder cannot be made here, and for bands that the images do not have."""
    require(folder.is_dir() or not folder.exists(), f"--out {folder} is a file; name a folder")
    parent = next(each for each in (folder, *folder.parents) if each.exists())
    require(parent.is_dir(), f"--out {folder}: {parent} is a file; name another folder")
    run_bands(run, bands, torch.zeros(1, *run.blueprint.shape))


def write_anomalies(
    result: Anomalies, run: Run, folder: Path, bands: str | None = None
) -> Iterator[Path]:
    """Write SCORE.csv and SCORE.json, all images with the oddest first, SCORE.png, a contact sheet of the oddest, and
    SCORE-maps.png, these above their reconstructions and what is odd in each pixel, into a folder, created if missing;
    yield the paths. `bands`: as of `vaekit plot`."""
    check_output(run, folder, bands)
    table, score = result.table, result.summary["score"]
    shown = run_bands(run, bands, result.images)
    names = [f"p {p:.3f} {n}" for p, n in zip(table["p_value"], short_names(table), strict=True)]
    pictures = {
        f"{score}.png": contact_sheet(result.images, names[: len(result.images)], COLUMNS, shown),
        f"{score}-maps.png": heat_maps(
            result.images, result.reconstructions, result.maps, COLUMNS, shown
        ),
    }
    rows = [
        dict(zip(table, row, strict=True))
        for row in zip(*map(as_plain, table.values()), strict=True)
    ]
    folder.mkdir(parents=True, exist_ok=True)

    def place(name: str) -> Path:  # whose name says the weights, where they are not the best
        return folder / run.file(name).name

    yield write_table(table, place(f"{score}.csv"))
    write_json(place(f"{score}.json"), {**result.summary, "table": rows})
    yield place(f"{score}.json")
    for name, figure in pictures.items():
        yield save(figure, place(name))


def as_plain(column: np.ndarray) -> list[Any]:
    """The values of a column for JSON, which has no infinity."""
    values = column.tolist()
    return [None if isinstance(v, float) and not np.isfinite(v) else v for v in values]


def short_names(table: Table) -> list[str]:
    """The name of each image for a picture: its file's, or its number."""
    if "path" in table:
        return [Path(name).name for name in table["path"]]
    return [f"image {index}" for index in table["index"]]


def as_text(result: Anomalies) -> TextTable:
    """The oddest images as a table for the terminal."""
    from rich.table import Table as TextTable

    summary, table = result.summary, result.table
    shown = TextTable(title=headline(summary), title_justify="left")
    where = [key for key in ("path", "split", "index", "class") if key in table]
    where = [key for key in where if "path" not in table or key in ("path", "class")]
    for key in ("rank", *where, "score", "p_value", "flagged"):
        shown.add_column(
            key.replace("_value", "-value"), justify="left" if key in where else "right"
        )
    for row in range(min(SHOWN_ROWS, len(table["rank"]))):
        numbers = f"{table['score'][row]:.4g}", f"{table['p_value'][row]:.4f}"
        flagged = "yes" if table["flagged"][row] else ""
        places = (printable(table[key][row]) for key in where)
        shown.add_row(str(table["rank"][row]), *places, *numbers, flagged)
    shown.caption, shown.caption_justify = "\n".join(sentences(summary)), "left"
    return shown


def headline(summary: dict[str, Any]) -> str:
    return (
        f"{summary['flagged']:,} of {summary['images']:,} images flagged: {summary['score']} above "
        f"{summary['threshold']:.4g} {summary['unit']}"
    )


def sentences(summary: dict[str, Any]) -> list[str]:
    """What the numbers mean, a sentence each."""
    found = [
        f"At most {summary['false_alarms']:.3g} of images like the {summary['validation_images']:,} validation images "
        f"are flagged, on average; these images {summary['validation_use']}."
    ]
    if summary["normal_classes"]:
        names = ", ".join(map(printable, summary["normal_classes"][:10]))
        text = f"Normal are {names}{' ...' if len(summary['normal_classes']) > 10 else ''}"
        for key, words in (
            ("found", "of the odd images flagged"),
            ("normal_flagged", "of the normal ones flagged"),
        ):
            text += f"; {summary[key]:.1%} {words}" if summary[key] is not None else ""
        found.append(text + ".")
    if summary["auroc"] is not None:
        text = f"AUROC {summary['auroc']:.3f} (0.5: chance), average precision {summary['average_precision']:.3f}"
        share = summary["odd_images"] / (summary["odd_images"] + summary["normal_images"])
        text += f" ({share:.3f}: chance)"
        found.append(text + ".")
    if summary["pixel_auroc"] is not None:
        found.append(f"AUROC of pixels {summary['pixel_auroc']:.3f}.")
    return found
