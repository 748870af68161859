"""Many trainings in one folder, one after the other; a sweep that was killed goes on where it was."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from .checks import UserError, override, require
from .comparing import compare
from .evaluation import evaluate, measured_alike
from .figures import METRICS
from .options import EvaluateConfig
from .pictures import save
from .plans import Plan
from .progress import Shown, clock
from .ranking import rank, write
from .runs import Run, parse_json, plain, write_json

if TYPE_CHECKING:
    from rich.table import Table


def sweep(
    plans: Mapping[str, Plan], out: str | Path, progress: bool = True, **evaluation: Any
) -> list[Run]:
    """Train and evaluate each plan in the folder `out`, by its name there, and write their table and figure.

    What was done before is kept: a run whose training had not ended is trained again, all others stay as they are.
    `evaluation` are the fields of EvaluateConfig. Raises UserError for a folder that has other runs by these names,
    or that another process is at; and, after all others, where a training failed.
    """
    require(len(plans) >= 1, "there is nothing to train")
    for what in (lambda p: p.data, lambda p: (p.settings.likelihood, p.settings.condition)):
        require(
            len(set(map(what, plans.values()))) == 1,
            "the runs of a sweep must have the same data, binarisation and likelihood, or their figures are of "
            "different things; make a sweep of each",
        )
    folder, shown = Path(out), Shown(progress)
    measure = override(EvaluateConfig(split="validation"), evaluation, "sweep()")
    require(folder.is_dir() or not folder.exists(), f"--out {folder} is a file; choose a folder")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            return carry_out(plans, folder, measure, progress, shown)
    except Timeout:
        raise UserError(
            f"another sweep is at work in {folder}; wait for it, or choose --out"
        ) from None


def carry_out(
    plans: Mapping[str, Plan],
    folder: Path,
    measure: EvaluateConfig,
    progress: bool,
    shown: Shown,
) -> list[Run]:
    every = agreed(plans, folder)
    write_json(folder / "sweep.json", {"runs": every})
    started, states = time.perf_counter(), dict.fromkeys(plans, "to come")
    failed: dict[str, str] = {}
    runs = []
    for number, (name, plan) in enumerate(plans.items()):
        final, part = folder / name, folder / f"{name}.part"
        shown.say(f"run {number + 1}/{len(plans)}: {name}")
        if not final.exists():
            shutil.rmtree(part, ignore_errors=True)  # of a training that was killed
            try:
                plan.train(str(part), progress=progress)
            except UserError as error:
                states[name] = failed[name] = str(error)
                continue
            part.rename(final)
        run = Run(final)
        if not evaluated(run, measure):
            evaluate(run, progress=progress, **asdict(measure))
        runs.append(run)
        states[name] = state_of(run)
        if shown.enabled:
            done = time.perf_counter() - started
            shown.console.print(
                as_table(states, done / (number + 1) * (len(plans) - number - 1)), markup=True
            )
    if runs:
        # Those of an earlier command too, where they were measured alike.
        others = [Run(folder / name) for name in every if (folder / name).is_dir()]
        together = [run for run in others if evaluated(run, measure)]
        table = rank(together)
        write(table, folder / "compare.md")
        write(table, folder / "compare.csv")
        draw(together, folder / "compare.png", shown)
    for name, reason in failed.items():
        raise UserError(
            f"{len(failed)} of {len(plans)} trainings failed, the first, {name}: {reason}"
        )
    return runs


def agreed(plans: Mapping[str, Plan], folder: Path) -> dict[str, Any]:
    """All runs of the folder by name, those of before too; UserError where one by the same name has other settings."""
    file = folder / "sweep.json"
    before = parse_json(file.read_bytes(), str(file)).get("runs", {}) if file.exists() else {}
    mine = {name: plain(plan) for name, plan in plans.items()}
    for name, plan in mine.items():
        there = before.get(name)
        if there is None:
            require(
                not (folder / name).exists(),
                f"{folder / name} exists and is of no sweep; choose --out",
            )
        require(
            there is None or there == plan,
            f"{folder} has another sweep, whose {name} has other settings; choose --out",
        )
    return {**before, **mine}


def evaluated(run: Run, wanted: EvaluateConfig) -> bool:
    """Whether the run was measured so already."""
    found = measured_alike(run, wanted)
    return set(wanted.metrics or METRICS) <= set(found.get("metrics", ()))


def state_of(run: Run) -> str:
    """What a run came to, in a line."""
    found, seconds = run.best["validation_elbo"], sum(epoch["seconds"] for epoch in run.metrics)
    elbo = "" if found is None else f"validation ELBO {found:.2f}, "
    return f"{elbo}best of {len(run.metrics)} epochs {run.best['epoch']}, {clock(seconds)}"


def as_table(states: Mapping[str, str], left: float) -> Table:
    """How far a sweep is, for the screen."""
    from rich.table import Table

    table = Table(caption=f"about {clock(left)} left" if left else None, caption_justify="left")
    table.add_column("run")
    table.add_column("", overflow="fold")
    for name, state in states.items():
        table.add_row(name, state)
    return table


def draw(runs: list[Run], path: Path, shown: Shown) -> None:
    try:
        save(compare(runs), path)
    except UserError as reason:  # models without an ELBO have a table all the same
        shown.say(f"no figure: {reason}")
