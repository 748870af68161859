"""Comparison table of runs: one row per group of runs that differ only in their seed, the best in bold."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..evaluation.metrics import COMPARED_METRICS, Metric
from ..runs.directory import Run, require_output
from ..runs.load import STALE, find_epoch, is_stale, weights_sha256
from ..support.atomic import write_bytes
from ..support.errors import UserError
from ..support.escaping import csv_cell, latex, markdown
from ..support.warnings import NLL_BIAS
from .curves import (
    comparability,
    group_by_settings,
    require_equal,
    run_settings,
    settings_name,
    unique_runs,
)

if TYPE_CHECKING:
    from rich.table import Table

Evaluation = Mapping[str, Any]  # evaluation.json
# Of the epoch of the saved weights. None is ever bold: they were used to choose that epoch.
VALIDATION_METRICS = (
    Metric("validation_elbo", "validation ELBO", "nats"),
    Metric("validation_log_likelihood", "validation log-likelihood", "nats"),
    Metric("validation_kl", "validation KL", "nats"),
)
LEGACY_DEFAULTS = {"estimator": "importance", "precision": "float32"}  # of older files
MAX_COLUMNS = 5  # metrics side by side in the terminal; more are transposed
PAD = "\N{FIGURE SPACE}"  # as wide as a digit


@dataclass(frozen=True)
class Cell:
    """A metric over the seeds of a group: sd = sqrt(sum (value - mean)^2 / (count - 1)), None for one seed.

    `error`, the standard error of the mean, is sd / sqrt(count); for one seed the metric's own, None where it has none.
    `bias` is by how much the mean may be too high whatever the number of seeds.
    """

    mean: float
    sd: float | None
    count: int
    error: float | None
    text: str = ""
    bold: bool = False
    note: str = ""
    bias: float = 0.0


@dataclass(frozen=True)
class Row:
    """A group: values of the settings that differ, number of seeds, and a cell per metric."""

    settings: tuple[Any, ...]
    seeds: int
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True)
class ComparisonTable:
    """The table: keys of the settings that differ, metrics that some group has, rows and notes."""

    settings: tuple[str, ...]
    metrics: tuple[Metric, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    @property
    def header(self) -> list[str]:
        """Column names: settings, seeds, metrics with units."""
        names = [
            m.name if m.unit is None or m.unit in m.name else f"{m.name}, {m.unit}"
            for m in self.metrics
        ]
        return [*(key.replace("_", " ") for key in self.settings), "seeds", *names]

    @property
    def grid(self) -> list[list[tuple[str, bool]]]:
        """Text of each cell below the header, and whether it is bold."""
        marks, rows = self.marks, []
        for row in self.rows:
            words = ["-" if value is None else str(value) for value in row.settings]
            cells = [(c.text + marks[c.note], c.bold) if c else ("-", False) for c in row.cells]
            rows.append([*((word, False) for word in [*words, str(row.seeds)]), *cells])
        return rows

    @property
    def marks(self) -> dict[str, str]:
        """Footnote mark of each note of a cell."""
        notes = dict.fromkeys(c.note for row in self.rows for c in row.cells if c and c.note)
        return {"": "", **{note: f" [{i}]" for i, note in enumerate(notes, 1)}}

    @property
    def footnotes(self) -> list[str]:
        """Notes of cells with their marks, then notes of the table."""
        return [f"{mark[1:]} {note}" for note, mark in self.marks.items() if note] + [*self.notes]


def rank(
    runs: Sequence[Run | str | Path], metrics: Sequence[Metric] = COMPARED_METRICS
) -> ComparisonTable:
    """Compare runs in a table of what `evaluate` wrote. Where some are not evaluated, or their evaluation is of other
    weights than they have now, it also has the validation metrics of all, at the epoch of their weights.

    Raises UserError where none is evaluated and no epoch is finished, and where runs or evaluated images are not
    comparable.
    """
    unique = unique_runs(runs)
    evaluated, pending = current_evaluations(unique)
    results: dict[Run, Evaluation] = {**evaluated}
    if len(evaluated) < len(unique):
        metrics = [*VALIDATION_METRICS, *metrics]
        results = {run: {**saved_epoch(run), **evaluated.get(run, {})} for run in unique}
    require_equal({run: comparability(run) for run in unique}, "leave one out")
    if evaluated:
        remedy = "evaluate both with one --split, --limit and --seed"
        require_equal(evaluated_images(evaluated), remedy)

    groups = list(group_by_settings(unique).values())
    counted = [
        one_run_per_seed(
            sorted((run for run in group if results.get(run)), key=lambda run: run not in evaluated)
        )
        for group in groups
    ]
    evaluations = [[results[run] for run in group] for group in counted]
    present = [m for m in metrics if any(evaluations_with(m, group) for group in evaluations)]
    if not present:
        run, reason = next(iter(pending.items()))
        raise UserError(f"there is no evaluation to compare; {run}: {reason}")
    columns = [metric_cells(metric, evaluations) for metric in present]
    settings = [run_settings(group[0]) for group in groups]
    keys = differing_settings(settings)
    rows = [
        Row(
            tuple(values.get(k) for k in keys),
            len(counted[i]),
            tuple(cells[i] for cells in columns),
        )
        for i, values in enumerate(settings)
    ]
    used = {run for group in counted for run in group}
    notes = [
        *legend_notes([cell for cells in columns for cell in cells if cell]),
        *(
            f"not counted (same settings and seed as another run): {run}"
            for run in unique
            if results.get(run) and run not in used
        ),
        *pending.values(),
    ]
    return ComparisonTable(tuple(keys), tuple(present), tuple(rows), tuple(notes))


def current_evaluations(runs: Sequence[Run]) -> tuple[dict[Run, Evaluation], dict[Run, str]]:
    """The evaluations of the weights that the runs have now; and why the other runs have none, with what to do."""
    evaluated: dict[Run, Evaluation] = {}
    pending: dict[Run, str] = {}
    for run in runs:
        if not run.file("evaluation.json").is_file():
            pending[run] = f"not evaluated yet: vaekit evaluate {run.arguments}"
        elif run.weights_path.is_file() and is_stale(run.evaluation, weights_sha256(run)):
            pending[run] = f"evaluation {STALE}: vaekit evaluate {run.arguments}"
        else:
            evaluated[run] = {**LEGACY_DEFAULTS, **run.evaluation}
    return evaluated, pending


def saved_epoch(run: Run) -> Evaluation:
    """The validation metrics of the epoch that the weights of a run are of, with its trained prior."""
    epoch = find_epoch(run) if run.prior == "trained" else {}
    return {m.key: epoch.get(m.key) for m in VALIDATION_METRICS} if epoch else {}


def evaluated_images(evaluations: Mapping[Run, Evaluation]) -> dict[Run, dict[str, Any]]:
    """Which images were evaluated: split, number, and, where some run used a subset, the seed that chose it."""
    subset = False
    for run, e in evaluations.items():
        total = run.section("data").get("images", {}).get(e.get("split"))
        subset |= any(e.get(key) not in (None, 0, total) for key in ("images", "nll_images"))
    keys = {"split": "split", "number of images": "images"}
    keys |= {"seed that chose the images": "seed"} if subset else {}
    return {run: {what: e.get(key) for what, key in keys.items()} for run, e in evaluations.items()}


def one_run_per_seed(runs: Sequence[Run]) -> list[Run]:
    """The first run of each seed: a repeated seed is no independent sample."""
    seeds = [(run.blueprint.seed, run.section("training").get("seed")) for run in runs]
    return [run for i, run in enumerate(runs) if seeds.index(seeds[i]) == i]


def differing_settings(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys of the settings in the groups' names, and the model where there are several or no other key."""
    names = [settings_name(each, settings) for each in settings]
    keys = dict.fromkeys(key for each in settings for key in each if key != "model")
    named = [
        k
        for k in keys
        if [settings_name({**each, k: None}, settings) for each in settings] != names
    ]
    several = len({each["model"] for each in settings}) > 1
    return ["model", *named] if several or not named else named


def legend_notes(cells: Sequence[Cell]) -> list[str]:
    """Explain sd and bold, where there are any."""
    bold = [cell for cell in cells if cell.bold]
    notes = []
    if any(cell.sd is not None for cell in cells):
        notes.append("mean ± standard deviation over seeds")
    if bold:
        notes.append(
            "bold: better than every other row, by more than the 95% error of the difference"
        )
    if any(cell.sd is None for cell in bold):
        notes.append("bold with one seed is for that run only: seeds may differ by more")
    return notes


def metric_value(evaluation: Evaluation, key: str | None) -> float | None:
    """The number under `key`; None where it is missing or not a number."""
    value: Any = evaluation.get(key or "")
    return float(value) if type(value) in (int, float) else None


def evaluations_with(metric: Metric, evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """The evaluations that have the metric."""
    return [e for e in evaluations if metric_value(e, metric.key) is not None]


def metric_cells(metric: Metric, groups: Sequence[Sequence[Evaluation]]) -> list[Cell | None]:
    """The cells of a metric, one per group, with text, bold and notes."""
    available = [evaluations_with(metric, group) for group in groups]
    cells = [make_cell(metric, group) for group in available]
    differ = len({dependency_note(metric, [e]) for group in available for e in group}) > 1
    best = None if differ else best_cell(cells, metric.better)
    texts = format_cells(cells, metric.digits)
    annotated: list[Cell | None] = []
    for i, cell in enumerate(cells):
        notes = [dependency_note(metric, available[i])] if differ else []
        if len(available[i]) < len(groups[i]):
            notes.append(f"{len(available[i])} of {len(groups[i])} seeds")
        if cell is not None and metric.key == "nll" and cell.bias > NLL_BIAS:
            notes.append(f"may be {cell.bias:.2f} too high")
        note = ", ".join(notes)
        annotated.append(cell and replace(cell, text=texts[i], bold=i == best, note=note))
    return annotated


def dependency_note(metric: Metric, evaluations: Sequence[Evaluation]) -> str:
    """The values of what the metric depends on, such as "samples 1000"."""
    values = {key: dict.fromkeys(e.get(key) for e in evaluations) for key in metric.depends_on}
    return ", ".join(
        f"{key.replace('_', ' ')} {' and '.join(map(str, distinct))}"
        for key, distinct in values.items()
        if [*distinct] != [None]
    )


def make_cell(metric: Metric, evaluations: Sequence[Evaluation]) -> Cell | None:
    """Mean, sd and standard error of the mean over evaluations; None without any."""
    values = [float(e[metric.key]) for e in evaluations]
    if not values:
        return None
    bias = statistics.fmean(possible_bias(metric, e) for e in evaluations)
    if len(values) >= 2:
        sd = statistics.stdev(values)  # exactly 0 of equal values, unlike numpy's
        mean, count = statistics.fmean(values), len(values)
        return Cell(mean, sd, count, sd / math.sqrt(count), bias=bias)
    return Cell(values[0], None, 1, metric_value(evaluations[0], metric.error_key), bias=bias)


def possible_bias(metric: Metric, evaluation: Evaluation) -> float:
    """By how much the metric, a multiple of the NLL, may be too high; 0 where that is not known."""
    bias, nll = (metric_value(evaluation, key) for key in (metric.bias_key, "nll"))
    return bias * abs(float(evaluation[metric.key]) / nll) if bias and nll else 0.0


def best_cell(cells: Sequence[Cell | None], better: str | None) -> int | None:
    """Index of the cell that is significantly better than every other; None where there is none."""
    available = {i: cell for i, cell in enumerate(cells) if cell is not None}
    if better is None or len(available) < 2:
        return None
    sign = 1 if better == "higher" else -1
    best = max(available, key=lambda i: sign * available[i].mean)
    significant = [
        significantly_different(available[best], cell) for i, cell in available.items() if i != best
    ]
    return best if all(significant) else None


def significantly_different(a: Cell, b: Cell) -> bool:
    """Welch's test: |mean_a - mean_b| - max(bias) > t(0.975, v) sqrt(e_a^2 + e_b^2), v = (e_a^2 + e_b^2)^2 /
    (e_a^4 / (n_a - 1) + e_b^4 / (n_b - 1)), or infinite for two runs with their own errors.

    False where an error is unknown or both are 0, or only one is over seeds: one run has no variance over seeds.
    """
    from scipy.stats import t

    if a.error is None or b.error is None or (a.sd is None) != (b.sd is None):
        return False
    variance = a.error**2 + b.error**2
    if variance == 0:
        return False
    parts = [c.error**4 / (c.count - 1) for c in (a, b) if c.error and c.sd]
    freedom = variance**2 / sum(parts) if parts else math.inf
    difference = abs(a.mean - b.mean) - max(a.bias, b.bias)
    return difference > float(t.ppf(0.975, freedom)) * math.sqrt(variance)


def format_cells(cells: Sequence[Cell | None], digits: int) -> list[str]:
    """Format "mean ± sd", padded so that digits align."""
    means = ["" if c is None else f"{c.mean:z.{digits}f}" for c in cells]
    sds = ["" if c is None or c.sd is None else f"{c.sd:.{digits}f}" for c in cells]
    mean_width, sd_width = max(map(len, means)), max(map(len, sds))
    empty = PAD * (sd_width and sd_width + 3)
    tails = [" ± " + sd.rjust(sd_width, PAD) if sd else empty for sd in sds]
    return [mean.rjust(mean_width, PAD) + tail for mean, tail in zip(means, tails, strict=True)]


def as_terminal(table: ComparisonTable) -> Table:
    """The table for the terminal; with many metrics transposed, one column per group."""
    from rich.table import Table
    from rich.text import Text

    shown = Table(caption=Text("\n".join(table.footnotes)), caption_justify="left")
    texts = [[Text(text, style="bold" if bold else "") for text, bold in row] for row in table.grid]
    lines = [list(map(Text, table.header)), *texts]
    if len(table.metrics) > MAX_COLUMNS:
        lines = list(map(list, zip(*lines, strict=True)))
    first, *rest = lines
    for name in first:
        right = name.plain == "seeds" and len(table.metrics) <= MAX_COLUMNS
        shown.add_column(name, justify="right" if right else "left", overflow="fold")
    for line in rest:
        shown.add_row(*line)
    return shown


def as_markdown(table: ComparisonTable) -> str:
    """The table in Markdown, the notes below it."""

    def escaped(text: str) -> str:
        return markdown(text.replace(PAD, ""))

    rows = [
        [escaped(name) for name in table.header],
        ["---"] * len(table.settings) + ["---:"] * (1 + len(table.metrics)),
        *([f"**{escaped(t)}**" if bold else escaped(t) for t, bold in row] for row in table.grid),
    ]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([*lines, *(f"\n{escaped(note)}" for note in table.footnotes), ""])


def as_latex(table: ComparisonTable) -> str:
    """The table in LaTeX (booktabs), the notes below it."""

    def line(row: Sequence[tuple[str, bool]]) -> str:
        texts = (rf"\textbf{{{latex(t)}}}" if bold else latex(t) for t, bold in row)
        return " & ".join(texts) + r" \\"

    header = line([(name, False) for name in table.header])
    columns = "l" * len(table.settings) + "r" + "l" * len(table.metrics)
    return "\n".join(
        [
            r"% needs \usepackage{booktabs}",
            rf"\begin{{tabular}}{{{columns}}}",
            *(r"\toprule", header, r"\midrule", *map(line, table.grid), r"\bottomrule"),
            r"\end{tabular}",
            *(rf"\par{{\footnotesize {latex(note)}\par}}" for note in table.footnotes),
            "",
        ]
    )


def as_csv(table: ComparisonTable) -> str:
    """The table in CSV with all digits: per metric mean, standard deviation, count, standard error and note."""
    parts = ("mean", "sd", "count", "error", "note")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [f"{metric.key}_{part}" for metric in table.metrics for part in parts]
    writer.writerow(map(csv_cell, [*table.settings, "seeds", *names]))
    for row in table.rows:
        cells = [vars(c) if c else {"count": 0} for c in row.cells]
        values = [cell.get(part) for cell in cells for part in parts]
        writer.writerow(map(csv_cell, [*row.settings, row.seeds, *values]))
    return text.getvalue()


WRITERS: dict[str, Callable[[ComparisonTable], str]] = {
    ".md": as_markdown,
    ".csv": as_csv,
    ".tex": as_latex,
}


def write(table: ComparisonTable, path: str | Path) -> Path:
    """Write the table atomically, in the format of the file's ending. Raises UserError."""
    path = Path(path)
    require_output(path, WRITERS)
    write_bytes(path, WRITERS[path.suffix.lower()](table).encode())
    return path
