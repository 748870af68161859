"""Many trainings in one folder, one after the other; a sweep that was killed goes on where it was."""

from __future__ import annotations

import re
import shutil
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from ..evaluation.evaluate import evaluate, measured_alike
from ..evaluation.metrics import METRICS
from ..pictures import save
from ..runs.directory import Run
from ..settings.analysis import EvaluateConfig
from ..support.atomic import parse_json, plain, write_json
from ..support.console import Shown, clock
from ..support.errors import UserError, override, printable, require
from ..training.job import resume
from ..training.plan import Plan
from .compare import rank, write
from .curves import compare

if TYPE_CHECKING:
    from rich.table import Table


def sweep(
    plans: Mapping[str, Plan], out: str | Path, progress: bool = True, **evaluation: Any
) -> list[Run]:
    """Train and evaluate each plan in the folder `out`, by its name there, and write their table and figure.

    What was done before is kept: a run whose training had not ended goes on, all others stay as they are.
    `evaluation` are the fields of EvaluateConfig. Raises UserError for a folder that has other runs by these names,
    or that another process is at; and Unfinished, after all others, where a training or a measurement failed.
    """
    require(len(plans) >= 1, "there is nothing to train")
    for name in plans:
        fits = re.fullmatch(r"[\w.+ -]{1,240}", name) and not name.startswith(".")
        require(bool(fits), f"the name {printable(name)!r} of a run is not one of a plain folder")
    check_alike({name: plain(plan) for name, plan in plans.items()})
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


class Unfinished(UserError):
    """Some runs of a sweep failed; `runs` are the others."""

    def __init__(self, message: str, runs: list[Run]) -> None:
        super().__init__(message)
        self.runs = runs


def check_alike(plans: Mapping[str, dict[str, Any]]) -> None:
    """Raise UserError where plans, as JSON has them, are of different things."""
    things = [
        [plan["data"], plan["settings"]["likelihood"], plan["settings"]["condition"]]
        for plan in plans.values()
    ]
    require(
        all(thing == things[0] for thing in things),
        "the runs of a sweep must have the same data, binarisation, likelihood and condition, or their figures are of "
        "different things; make a sweep of each, with its own --out",
    )


def carry_out(
    plans: Mapping[str, Plan],
    folder: Path,
    measure: EvaluateConfig,
    progress: bool,
    shown: Shown,
) -> list[Run]:
    every = agreed(plans, folder)
    write_json(folder / "sweep.json", {"runs": every})
    states, failed = dict.fromkeys(plans, "to come"), dict[str, str]()
    runs, times = list[Run](), list[float]()  # seconds of the trainings
    for number, (name, plan) in enumerate(plans.items(), 1):
        shown.say(f"run {number}/{len(plans)}: {name}")
        started, there = time.perf_counter(), (folder / name).exists()
        try:
            run = done(plan, folder / name, measure, progress)
            states[name] = state_of(run)
        except UserError as error:
            states[name] = failed[name] = str(error)
            continue
        runs.append(run)
        times += [] if there else [time.perf_counter() - started]
        if shown.enabled:
            to_come = [name for name in list(plans)[number:] if not (folder / name).exists()]
            left = statistics.mean(times) * len(to_come) if times else 0.0
            shown.console.print(as_table(states, left), markup=True)
    if runs:
        # Those of an earlier command too, where they were measured alike.
        others = [Run(folder / name) for name in every if (folder / name).is_dir()]
        tell([run for run in others if evaluated(run, measure)], folder, shown)
    if failed:
        name, reason = next(iter(failed.items()))
        raise Unfinished(
            f"{len(failed)} of {len(plans)} runs failed, the first, {name}: {reason}", runs
        )
    return runs


def done(plan: Plan, final: Path, measure: EvaluateConfig, progress: bool) -> Run:
    """The run trained and measured; what was done before is kept."""
    if not final.exists():
        part = final.with_name(f"{final.name}.part")  # there already where a training was killed
        if not went_on(part, progress):
            shutil.rmtree(part, ignore_errors=True)
            plan.train(str(part), progress=progress)
        part.rename(final)
    run = Run(final)
    if not evaluated(run, measure):
        evaluate(run, progress=progress, **asdict(measure))
    return run


def went_on(part: Path, progress: bool) -> bool:
    """Whether a training that was killed could be ended from its last state."""
    try:
        Run(part).load_state()
    except UserError:
        return False
    resume(part, progress=progress)
    return True


def tell(runs: list[Run], folder: Path, shown: Shown) -> None:
    """Write the table and the figure of the runs."""
    table = rank(runs)
    write(table, folder / "compare.md")
    write(table, folder / "compare.csv")
    try:
        save(compare(runs), folder / "compare.png")
    except UserError as reason:  # models without an ELBO have a table all the same
        shown.say(f"no figure: {reason}")


def agreed(plans: Mapping[str, Plan], folder: Path) -> dict[str, Any]:
    """All runs of the folder by name, those of before too; UserError where one by the same name has other settings."""
    file = folder / "sweep.json"
    before = parse_json(file.read_bytes(), str(file)).get("runs", {}) if file.exists() else {}
    require(isinstance(before, dict), f"{file} is damaged; choose --out, or remove the folder")
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
    check_alike({**before, **mine})
    return {**before, **mine}


def evaluated(run: Run, wanted: EvaluateConfig) -> bool:
    """Whether the run was measured so already."""
    found = measured_alike(run, wanted)
    return set(wanted.metrics or METRICS) <= set(found.get("metrics", ()))


def state_of(run: Run) -> str:
    """What a run came to, in a line."""
    metrics, best = run.metrics, run.best
    found, seconds = best["validation_elbo"], sum(epoch["seconds"] for epoch in metrics)
    elbo = "" if found is None else f"validation ELBO {found:.2f}, "
    return f"{elbo}best of {len(metrics)} epochs {best['epoch']}, {clock(seconds)}"


def as_table(states: Mapping[str, str], left: float) -> Table:
    """How far a sweep is, for the screen."""
    from rich.table import Table

    table = Table(caption=f"about {clock(left)} left" if left else None, caption_justify="left")
    table.add_column("run")
    table.add_column("", overflow="fold")
    for name, state in states.items():
        table.add_row(name, state)
    return table
