"""Train and evaluate many plans in one folder; an interrupted sweep resumes where it stopped."""

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

from ..evaluation.evaluate import earlier_evaluation, evaluate
from ..evaluation.metrics import METRIC_GROUPS
from ..pictures import save
from ..runs.directory import ADDED_SETTINGS, Run, with_added
from ..settings.analysis import EvaluateConfig
from ..support.atomic import as_json, parse_json, write_json
from ..support.console import ProgressBar, format_duration
from ..support.errors import UserError, printable, require, with_changes
from ..training.job import resume
from ..training.plan import Plan
from .compare import rank, write
from .curves import compare

if TYPE_CHECKING:
    from rich.table import Table

OLD_KEYS = {"watch": "monitor", "own": "default_objective"}  # of sweep.json before November 2026


def sweep(
    plans: Mapping[str, Plan],
    out: str | Path,
    progress: bool = True,
    training_curves: bool = False,
    **evaluation: Any,
) -> list[Run]:
    """Train and evaluate each plan as run `out`/name, and write the comparison table and figure, on request with
    `training_curves`.

    Finished runs are reused and an interrupted training resumes. `evaluation` are the fields of EvaluateConfig. Raises
    UserError for a folder that has other runs by these names, or that another process uses; SweepIncomplete, after all
    other runs, where a training or an evaluation failed.
    """
    require(len(plans) >= 1, "there are no runs to train")
    for name in plans:
        valid = re.fullmatch(r"[\w.+ -]{1,240}", name) and not name.startswith(".")
        require(bool(valid), f"the run name {printable(name)!r} is not a plain folder name")
    require_comparable({name: as_json(plan) for name, plan in plans.items()})
    folder, bar = Path(out), ProgressBar(progress)
    measure = with_changes(EvaluateConfig(split="validation"), evaluation, "sweep()")
    require(folder.is_dir() or not folder.exists(), f"--out {folder} is a file; choose a folder")
    require(
        not (folder / "config.json").exists(),
        f"--out {folder} is a run directory; choose a folder for the runs of the sweep",
    )
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            return run_plans(plans, folder, measure, progress, bar, training_curves)
    except Timeout:
        raise UserError(
            f"another sweep is running in {folder}; wait for it, or choose another --out"
        ) from None


class SweepIncomplete(UserError):
    """Some runs of a sweep failed; `runs` are those that succeeded."""

    def __init__(self, message: str, runs: list[Run]) -> None:
        super().__init__(message)
        self.runs = runs


def require_comparable(plans: Mapping[str, dict[str, Any]]) -> None:
    """Raise UserError unless the plans, as JSON, have the same data, likelihood and condition."""
    facts = [
        [plan["data"], plan["settings"]["likelihood"], plan["settings"]["condition"]]
        for plan in plans.values()
    ]
    require(
        all(each == facts[0] for each in facts),
        "the runs of a sweep must have the same data, binarisation, likelihood and condition to be comparable; make a "
        "sweep of each, with its own --out",
    )


def run_plans(
    plans: Mapping[str, Plan],
    folder: Path,
    measure: EvaluateConfig,
    progress: bool,
    bar: ProgressBar,
    training_curves: bool,
) -> list[Run]:
    """Train and evaluate the plans one after the other. Raises SweepIncomplete where some failed."""
    all_plans = merge_with_earlier(plans, folder)
    write_json(folder / "sweep.json", {"runs": all_plans})
    states, failed = dict.fromkeys(plans, "pending"), dict[str, str]()
    runs, times = list[Run](), list[float]()  # seconds of the trainings
    for number, (name, plan) in enumerate(plans.items(), 1):
        bar.log(f"run {number}/{len(plans)}: {name}")
        started, trained = time.perf_counter(), (folder / name).exists()
        try:
            run = train_and_evaluate(plan, folder / name, measure, progress)
            states[name] = summarise(run)
        except UserError as error:
            states[name] = failed[name] = str(error)
            continue
        runs.append(run)
        times += [] if trained else [time.perf_counter() - started]
        if bar.enabled:
            pending = [name for name in list(plans)[number:] if not (folder / name).exists()]
            remaining = statistics.mean(times) * len(pending) if times else 0.0
            bar.console.print(as_table(states, remaining))
    if runs:
        # Includes runs of earlier commands with the same evaluation.
        existing = [Run(folder / name) for name in all_plans if (folder / name).is_dir()]
        evaluated = [run for run in existing if is_evaluated(run, measure)]
        write_comparison(evaluated, folder, bar, training_curves)
    if failed:
        name, reason = next(iter(failed.items()))
        raise SweepIncomplete(
            f"{len(failed)} of {len(plans)} runs failed, the first, {name}: {reason}", runs
        )
    return runs


def train_and_evaluate(plan: Plan, final: Path, measure: EvaluateConfig, progress: bool) -> Run:
    """Train and evaluate a plan, reusing or resuming earlier work."""
    if not final.exists():
        part = final.with_name(f"{final.name}.part")  # exists after an interruption
        if not resume_partial(part, progress):
            shutil.rmtree(part, ignore_errors=True)
            plan.train(str(part), progress=progress)
        part.rename(final)
    run = Run(final)
    if not is_evaluated(run, measure):
        evaluate(run, progress=progress, **asdict(measure))
    return run


def resume_partial(part: Path, progress: bool) -> bool:
    """Resume an interrupted training to its end; False where it has no saved state."""
    try:
        Run(part).load_state()
    except UserError:
        return False
    resume(part, progress=progress)
    return True


def write_comparison(
    runs: list[Run], folder: Path, bar: ProgressBar, training_curves: bool
) -> None:
    """Write the comparison table and figure of the runs."""
    table = rank(runs)
    write(table, folder / "compare.md")
    write(table, folder / "compare.csv")
    try:
        save(compare(runs, training_curves), folder / "compare.png")
    except UserError as reason:  # models without an ELBO only have a table
        bar.log(f"no figure: {reason}")


def merge_with_earlier(plans: Mapping[str, Plan], folder: Path) -> dict[str, Any]:
    """Plans of the folder by name, earlier ones too. Raises UserError where a name has other settings."""
    file = folder / "sweep.json"
    earlier = parse_json(file.read_bytes(), str(file)).get("runs", {}) if file.exists() else {}
    require(
        isinstance(earlier, dict), f"{file} is damaged; choose another --out, or remove the folder"
    )
    earlier = {name: with_new_keys(plan) for name, plan in earlier.items()}
    new = {name: as_json(plan) for name, plan in plans.items()}
    for name, plan in new.items():
        known = earlier.get(name)
        if known is None:
            require(
                not (folder / name).exists(),
                f"{folder / name} exists but is not part of a sweep; choose another --out",
            )
        require(
            known is None or known == plan,
            f"{folder} has another sweep, whose {name} has other settings; choose another --out",
        )
    require_comparable({**earlier, **new})
    return {**earlier, **new}


def with_new_keys(plan: Any) -> Any:
    """A plan of sweep.json with its old keys renamed, and the defaults of settings that it lacks."""
    if not isinstance(plan, dict):
        return plan
    plan = {OLD_KEYS.get(key, key): value for key, value in plan.items()}
    for part in ADDED_SETTINGS:
        if isinstance(plan.get(part), dict):
            plan[part] = with_added(part, plan[part])
    return plan


def is_evaluated(run: Run, requested: EvaluateConfig) -> bool:
    """Whether the run has an evaluation with these settings and at least these metrics."""
    earlier = earlier_evaluation(run, requested)
    return set(requested.metrics or METRIC_GROUPS) <= set(earlier.get("metrics", ()))


def summarise(run: Run) -> str:
    """Result of a run in one line."""
    metrics, best = run.metrics, run.best
    value, seconds = best["validation_elbo"], sum(epoch.get("seconds") or 0 for epoch in metrics)
    elbo = "" if value is None else f"validation ELBO {value:.2f}, "
    return f"{elbo}best epoch {best['epoch']} of {len(metrics)}, {format_duration(seconds)}"


def as_table(states: Mapping[str, str], remaining: float) -> Table:
    """Progress of a sweep for the terminal: the state of each run, and the remaining seconds."""
    from rich.table import Table

    table = Table(
        caption=f"about {format_duration(remaining)} left" if remaining else None,
        caption_justify="left",
    )
    table.add_column("run")
    table.add_column("state", overflow="fold")
    for name, state in states.items():
        table.add_row(name, state)
    return table
