"""What runs came to, in one table: a row for those that differ in their seed alone, the best in bold."""

from __future__ import annotations

import csv
import io
import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..evaluation.metrics import COMPARED, Figure
from ..runs.directory import Run
from ..support.atomic import write as write_file
from ..support.errors import require, require_folder
from .curves import grouped, measured, name_of, require_same, settings_of

if TYPE_CHECKING:
    from rich.table import Table

Evaluation = Mapping[str, Any]  # evaluation.json
EARLIER = {"estimator": "importance", "precision": "float32"}  # of files that do not say
NARROW = 5  # figures that stand side by side on a screen
PAD = "\N{FIGURE SPACE}"  # as wide as a digit
LATEX = str.maketrans(
    {
        **{c: "\\" + c for c in "&%$#_{}"},
        **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
        **{"<": r"\textless{}", ">": r"\textgreater{}", "[": "{[}"},  # \\ would take [ as its own
        **{"±": r"$\pm$", "\N{MINUS SIGN}": "$-$", PAD: r"\phantom{0}"},
    }
)


@dataclass(frozen=True)
class Cell:
    """A figure over the seeds of a group: sd = sqrt(sum (value - mean)^2 / (count - 1)), null for one seed.

    `error`, of the mean, is sd / sqrt(count); for one seed the figure's own, null where it has none.
    """

    mean: float
    sd: float | None
    count: int
    error: float | None
    text: str = ""
    bold: bool = False
    note: str = ""


@dataclass(frozen=True)
class Row:
    """A group: its values of the settings that differ, how many seeds are counted, and a cell for each figure."""

    settings: tuple[Any, ...]
    seeds: int
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True)
class Ranking:
    """The table: the keys of the settings that differ, the figures that some group has, rows, and what to note."""

    settings: tuple[str, ...]
    figures: tuple[Figure, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    @property
    def header(self) -> list[str]:
        names = [
            c.name if c.unit is None or c.unit in c.name else f"{c.name}, {c.unit}"
            for c in self.figures
        ]
        return [*(key.replace("_", " ") for key in self.settings), "seeds", *names]

    @property
    def grid(self) -> list[list[tuple[str, bool]]]:
        """The text of each place below the header, and whether it is bold."""
        marks, rows = self.marks, []
        for row in self.rows:
            words = ["-" if value is None else str(value) for value in row.settings]
            cells = [(c.text + marks[c.note], c.bold) if c else ("-", False) for c in row.cells]
            rows.append([*((word, False) for word in [*words, str(row.seeds)]), *cells])
        return rows

    @property
    def marks(self) -> dict[str, str]:
        """The mark of each cell's note."""
        notes = dict.fromkeys(c.note for row in self.rows for c in row.cells if c and c.note)
        return {"": "", **{note: f" [{i}]" for i, note in enumerate(notes, 1)}}

    @property
    def footnotes(self) -> list[str]:
        return [f"{mark[1:]} {note}" for note, mark in self.marks.items() if note] + [*self.notes]


def rank(runs: Sequence[Run | str | Path], figures: Sequence[Figure] = COMPARED) -> Ranking:
    """The table of runs, from what `evaluate` wrote; a run without has no part in its row, and a note of what to do.

    Raises UserError where none is evaluated, and for figures of different things or of different images.
    """
    found = list({Run.of(run).path.resolve(): Run.of(run) for run in runs}.values())
    require(len(found) >= 1, "there are no runs to compare")
    files = [run for run in found if (run.path / "evaluation.json").is_file()]
    read = {run: {**EARLIER, **run.evaluation} for run in files}
    require(len(read) >= 1, f"no run is evaluated yet; first: vaekit evaluate {found[0]}")
    require_same({run: measured(run) for run in found}, "leave one out")
    require_same(images_of(read), "evaluate both with one --split, --limit and --seed")

    groups = list(grouped(found).values())
    counted = [one_a_seed([run for run in group if run in read]) for group in groups]
    evaluations = [[read[run] for run in group] for group in counted]
    present = [c for c in figures if any(having(c, group) for group in evaluations)]
    columns = [column_cells(column, evaluations) for column in present]
    settings = [settings_of(group[0]) for group in groups]
    keys = differing(settings)
    rows = [
        Row(tuple(mine.get(k) for k in keys), len(counted[i]), tuple(cells[i] for cells in columns))
        for i, mine in enumerate(settings)
    ]
    used = {run for group in counted for run in group}
    notes = [
        *explained([cell for cells in columns for cell in cells if cell]),
        *(f"not counted, having another's settings and seed: {r}" for r in read if r not in used),
        *(f"not evaluated yet: vaekit evaluate {run}" for run in found if run not in read),
    ]
    return Ranking(tuple(keys), tuple(present), tuple(rows), tuple(notes))


def images_of(evaluations: Mapping[Run, Evaluation]) -> dict[Run, dict[str, Any]]:
    """Which images were measured; where one run's were not all, the seed that chose them."""
    chosen = False
    for run, e in evaluations.items():
        whole = run.section("data").get("images", {}).get(e.get("split"))
        chosen |= any(e.get(key) not in (None, 0, whole) for key in ("images", "nll_images"))
    keys = {"split": "split", "number of images": "images"}
    keys |= {"seed that chose the images": "seed"} if chosen else {}
    return {run: {what: e.get(key) for what, key in keys.items()} for run, e in evaluations.items()}


def one_a_seed(runs: Sequence[Run]) -> list[Run]:
    """The first run of each seed: a second one says nothing of other seeds."""
    seeds = [(run.blueprint.seed, run.section("training").get("seed")) for run in runs]
    return [run for i, run in enumerate(runs) if seeds.index(seeds[i]) == i]


def differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The settings that the names of groups say, and the model where there are several or nothing else is said."""
    names = [name_of(mine, settings) for mine in settings]
    keys = dict.fromkeys(key for mine in settings for key in mine if key != "model")
    said = [k for k in keys if [name_of({**mine, k: None}, settings) for mine in settings] != names]
    several = len({mine["model"] for mine in settings}) > 1
    return ["model", *said] if several or not said else said


def explained(cells: Sequence[Cell]) -> list[str]:
    """What sd and bold mean, where there are any."""
    bold = [cell for cell in cells if cell.bold]
    notes = []
    if any(cell.sd is not None for cell in cells):
        notes.append("mean ± standard deviation over seeds")
    if bold:
        notes.append("bold: better than each other by more than the 95% error of the difference")
    if any(cell.sd is None for cell in bold):
        notes.append("bold of one seed is of that run: other seeds may differ by more")
    return notes


def number(evaluation: Evaluation, key: str | None) -> float | None:
    value: Any = evaluation.get(key or "")
    return float(value) if type(value) in (int, float) else None


def having(column: Figure, evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    return [e for e in evaluations if number(e, column.key) is not None]


def column_cells(column: Figure, groups: Sequence[Sequence[Evaluation]]) -> list[Cell | None]:
    """A figure's cells, one a group, with text, bold and notes."""
    there = [having(column, group) for group in groups]
    cells = [cell_of(column, group) for group in there]
    differ = len({depending(column, [e]) for group in there for e in group}) > 1
    first = None if differ else best(cells, column.better)
    texts = written(cells, column.digits)
    found: list[Cell | None] = []
    for i, cell in enumerate(cells):
        notes = [depending(column, there[i])] if differ else []
        if len(there[i]) < len(groups[i]):
            notes.append(f"{len(there[i])} of {len(groups[i])} seeds")
        found.append(cell and replace(cell, text=texts[i], bold=i == first, note=", ".join(notes)))
    return found


def depending(column: Figure, evaluations: Sequence[Evaluation]) -> str:
    """What a figure depends on, such as "samples 1000"."""
    values = {key: dict.fromkeys(e.get(key) for e in evaluations) for key in column.depends}
    return ", ".join(
        f"{key.replace('_', ' ')} {' and '.join(map(str, found))}"
        for key, found in values.items()
        if [*found] != [None]
    )


def cell_of(column: Figure, evaluations: Sequence[Evaluation]) -> Cell | None:
    values = [float(e[column.key]) for e in evaluations]
    if len(values) >= 2:
        sd = statistics.stdev(values)  # exactly 0 of equal values, unlike numpy's
        return Cell(statistics.fmean(values), sd, len(values), sd / math.sqrt(len(values)))
    return Cell(values[0], None, 1, number(evaluations[0], column.error)) if values else None


def best(cells: Sequence[Cell | None], better: str | None) -> int | None:
    """Which cell is better than each other by more than the error of their difference."""
    there = {i: cell for i, cell in enumerate(cells) if cell is not None}
    if better is None or len(there) < 2:
        return None
    sign = 1 if better == "higher" else -1
    first = max(there, key=lambda i: sign * there[i].mean)
    beaten = [exceeds(there[first], cell) for i, cell in there.items() if i != first]
    return first if all(beaten) else None


def exceeds(a: Cell, b: Cell) -> bool:
    """Welch's test: |mean_a - mean_b| > t(0.975, v) sqrt(e_a^2 + e_b^2), v = (e_a^2 + e_b^2)^2 / (e_a^4 / (n_a - 1) +
    e_b^4 / (n_b - 1)), or infinite for two runs with their own errors.

    False where an error is unknown or both are 0, or only one is over seeds: one run does not say how seeds spread.
    """
    from scipy.stats import t

    if a.error is None or b.error is None or (a.sd is None) != (b.sd is None):
        return False
    variance = a.error**2 + b.error**2
    if variance == 0:
        return False
    parts = [c.error**4 / (c.count - 1) for c in (a, b) if c.error and c.sd]
    freedom = variance**2 / sum(parts) if parts else math.inf
    return abs(a.mean - b.mean) > float(t.ppf(0.975, freedom)) * math.sqrt(variance)


def written(cells: Sequence[Cell | None], digits: int) -> list[str]:
    """mean ± sd, padded so that digits stand below each other."""
    means = ["" if c is None else f"{c.mean:z.{digits}f}" for c in cells]
    sds = ["" if c is None or c.sd is None else f"{c.sd:.{digits}f}" for c in cells]
    wide, spread = max(map(len, means)), max(map(len, sds))
    tails = [" ± " + sd.rjust(spread, PAD) if sd else PAD * (spread and spread + 3) for sd in sds]
    return [mean.rjust(wide, PAD) + tail for mean, tail in zip(means, tails, strict=True)]


def as_terminal(table: Ranking) -> Table:
    """The table for the screen; where there are many figures, a line for each and a column for a group."""
    from rich.table import Table
    from rich.text import Text

    shown = Table(caption=Text("\n".join(table.footnotes)), caption_justify="left")
    texts = [[Text(text, style="bold" if bold else "") for text, bold in row] for row in table.grid]
    lines = [list(map(Text, table.header)), *texts]
    if len(table.figures) > NARROW:
        lines = list(map(list, zip(*lines, strict=True)))
    first, *rest = lines
    for name in first:
        right = name.plain == "seeds" and len(table.figures) <= NARROW
        shown.add_column(name, justify="right" if right else "left", overflow="fold")
    for line in rest:
        shown.add_row(*line)
    return shown


def as_markdown(table: Ranking) -> str:
    def escaped(text: str) -> str:
        return re.sub(r"([\\`*_{}\[\]<>|#~])", r"\\\1", text.replace(PAD, ""))

    rows = [
        [escaped(name) for name in table.header],
        ["---"] * len(table.settings) + ["---:"] * (1 + len(table.figures)),
        *([f"**{escaped(t)}**" if bold else escaped(t) for t, bold in row] for row in table.grid),
    ]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([*lines, *(f"\n{escaped(note)}" for note in table.footnotes), ""])


def as_latex(table: Ranking) -> str:
    """A tabular of the package booktabs, and the notes below it."""

    def escaped(text: str) -> str:
        return re.sub(r"(?<!\S)-(?=\d)", "\N{MINUS SIGN}", text).translate(LATEX)

    def line(row: Sequence[tuple[str, bool]]) -> str:
        texts = (rf"\textbf{{{escaped(t)}}}" if bold else escaped(t) for t, bold in row)
        return " & ".join(texts) + r" \\"

    head = line([(name, False) for name in table.header])
    columns = "l" * len(table.settings) + "r" + "l" * len(table.figures)
    return "\n".join(
        [
            r"% needs \usepackage{booktabs}",
            rf"\begin{{tabular}}{{{columns}}}",
            *(r"\toprule", head, r"\midrule", *map(line, table.grid), r"\bottomrule"),
            r"\end{tabular}",
            *(rf"\par{{\footnotesize {escaped(note)}\par}}" for note in table.footnotes),
            "",
        ]
    )


def as_csv(table: Ranking) -> str:
    """All digits: of each figure mean, standard deviation, count, standard error of the mean, and the cell's note."""
    parts = ("mean", "sd", "count", "error", "note")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [f"{figure.key}_{part}" for figure in table.figures for part in parts]
    writer.writerow([*table.settings, "seeds", *names])
    for row in table.rows:
        cells = [vars(c) if c else {"count": 0} for c in row.cells]
        values = [cell.get(part) for cell in cells for part in parts]
        writer.writerow([*row.settings, row.seeds, *values])
    return text.getvalue()


WRITERS: dict[str, Callable[[Ranking], str]] = {
    ".md": as_markdown,
    ".csv": as_csv,
    ".tex": as_latex,
}


def write(table: Ranking, path: str | Path) -> Path:
    """Write the table in the format that its ending says, in one step. Raises UserError."""
    path = Path(path)
    require(
        path.suffix.lower() in WRITERS,
        f"{path} has not one of the endings {', '.join(WRITERS)}; choose one of these",
    )
    require_folder(path)
    write_file(path, WRITERS[path.suffix.lower()](table).encode())
    return path
