"""The verbs that train: train, sweep, reproduce."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from tyro.conf import Positional

from ..settings.analysis import SweepConfig
from ..settings.catalog import ModelEntry, model_entry
from ..settings.data import DataConfig
from ..settings.objective import ObjectiveConfig
from ..settings.training import TrainConfig, WatchConfig
from ..support.errors import parse_duration, require
from ..training.plan import Plan
from . import words as cli_words

if TYPE_CHECKING:
    from ..runs.directory import Run

TRAIN_HELP = """{summary}

For example:
  vaekit train {name}
  vaekit train {name} --latent-dim 2 --epochs 20 --seed 1
  vaekit train {name} --likelihood gaussian --scale 0.1 --name grey
  vaekit train {name} --kl-warmup 10 --optimizer adamw --patience 10 --out runs/mine
  vaekit train {name} --record --pictures-every 5 --tensorboard

Args:
    out: Run directory to make, instead of runs/<model>-<data>-<n>; never one that exists.
    run_name: Goes into the folder's name.
    init: Run directory whose weights to start from.
"""


SWEEP_HELP = """{summary}

Many trainings: a setting with commas takes each of its values in turn; --out, --name, --init and the flags of
measuring are of the whole sweep.

For example:
  vaekit sweep {name} --latent-dim 2,5,10,20 --seed 0,1,2
  vaekit sweep {name} --learning-rate 1e-3,3e-4 --epochs 20 --out runs/rates

Args:
    out: Folder of the runs, instead of runs/<model>-<data>-sweep; the same command again goes on where it was.
    run_name: Goes into the folder's name.
    init: Run directory whose weights to start from.
"""


Asked = tuple[Plan, SweepConfig, str | None, str]  # a plan, how to measure, --out and --name


def make_train(name: str, entry: ModelEntry) -> Callable[..., None]:
    def train(
        model: Any = entry.settings,
        objective: ObjectiveConfig = entry.objective,
        data: DataConfig = entry.data,
        training: TrainConfig = entry.training,
        watch: WatchConfig = WatchConfig(),  # noqa: B008
        out: str | None = None,
        run_name: Annotated[str, tyro.conf.arg(name="name")] = "",
        init: str | None = None,
    ) -> None:
        plan = Plan(name, model, objective, data, training, watch, init, entry.objective)
        carry_out(plan, out, run_name)

    train.__annotations__["model"] = type(entry.settings)
    train.__doc__ = TRAIN_HELP.format(name=name, summary=entry.summary)
    return train


def make_sweep(name: str, entry: ModelEntry, found: list[Asked]) -> Callable[..., None]:
    """The same flags and those of SweepConfig; what they ask for is added to `found`."""

    def sweep(
        model: Any = entry.settings,
        objective: ObjectiveConfig = entry.objective,
        data: DataConfig = entry.data,
        training: TrainConfig = entry.training,
        watch: WatchConfig = WatchConfig(),  # noqa: B008
        measure: SweepConfig = SweepConfig(),  # noqa: B008
        out: str | None = None,
        run_name: Annotated[str, tyro.conf.arg(name="name")] = "",
        init: str | None = None,
    ) -> None:
        plan = Plan(name, model, objective, data, training, watch, init, entry.objective)
        found.append((plan, measure, out, run_name))

    sweep.__annotations__["model"] = type(entry.settings)
    sweep.__doc__ = SWEEP_HELP.format(name=name, summary=entry.summary)
    return sweep


def sweep(arguments: list[str], read: Callable[[list[str], list[Asked]], None]) -> None:
    """Train and measure every combination of the settings that have several values; `read` takes the command line."""
    found: list[Asked] = []
    plans: dict[str, Plan] = {}
    for grid, each in cli_words.combinations(arguments):
        if "model" in grid:
            model_entry(grid["model"])
        read(each, found)
        if len(found) <= len(plans):
            return  # it was --help
        name = cli_words.named(grid) or found[-1][0].model
        require(
            name not in plans,
            f"two of the runs would have the one folder {name}; make a sweep of each",
        )
        plans[name] = found[-1][0]
    from rich.console import Console

    from ..studies.compare import as_terminal, rank
    from ..studies.sweep import Unfinished
    from ..studies.sweep import sweep as carry_out_all

    plan, measure, out, name = found[0]
    models = "-".join(dict.fromkeys(each.model for each in plans.values()))
    stem = "-".join(filter(None, (models, Path(plan.data.data).stem, name, "sweep")))
    folder = Path(out or f"runs/{stem}")
    failed = None
    try:
        runs = carry_out_all(plans, folder, **measure.evaluation)
    except Unfinished as error:
        runs, failed = error.runs, error
    if runs:
        Console(highlight=False).print(as_terminal(rank(runs)))
        print(f"written to {folder}/compare.md, compare.csv and compare.png")
    if failed:
        raise failed


def carry_out(plan: Plan, out: str | None, name: str) -> None:
    tell(plan.train(out, name))


def resume(
    resume: Annotated[str, tyro.conf.arg(metavar="RUN")],
    epochs: int | None = None,
    allow_inexact: bool = False,
    data_dir: str | None = None,
) -> None:
    """Go on with a training that was killed or stopped: it ends as if nothing had happened, to the last bit.

    For example:
      vaekit train --resume runs/vae-mnist-1
      vaekit train --resume runs/vae-mnist-1 --epochs 100    a finished training goes on

    Args:
        resume: Run directory.
        epochs: Passes over the training images, those of before counted; the schedules are then those of so many.
        allow_inexact: Go on where the step was compiled and cannot be here, which changes the last digits.
        data_dir: Folder that holds the data set's files.
    """
    from ..training.job import resume as go_on

    tell(go_on(resume, epochs=epochs, allow_inexact=allow_inexact, data_dir=data_dir))


def tell(run: Run) -> None:
    """Print what a training came to; of several processes the first one's is enough."""
    if os.environ.get("RANK", "0") != "0":
        return
    best = run.best
    found = best["validation_elbo"]
    print(
        f"{run}: best at epoch {best['epoch']}, "
        + ("" if found is None else f"validation ELBO {found:.2f} nats ")
        + f"(binarisation {run.data.binarisation})"
    )
    print(f"next: vaekit evaluate {run}  or  vaekit plot {run}")


def reproduce(
    row: Annotated[str, Positional, tyro.conf.arg(metavar="[ROW]")] = "",
    seeds: int = 1,
    budget: str | None = None,
    out: str = "runs/reproduce",
    report: str | None = None,
) -> None:
    """Train and measure what a paper published, and say how close it comes; without ROW, list what there is.

    For example:
      vaekit reproduce
      vaekit reproduce aevb-mnist-20 --seeds 3
      vaekit reproduce vae-dynamic --budget 30m

    Args:
        row: Which.
        seeds: Trainings, of the seeds 0, 1 ...
        budget: Time of training, for all of them, such as 30m or 2h, to which they are shortened; the epoch that is
            timed first and the measuring come on top.
        out: Folder of the runs; what is there already is kept.
        report: File to add a line to; docs/results/reproduction.md where that folder is, else OUT/reproduction.md.
    """
    from rich.console import Console

    from ..studies import reproduce as reproductions

    console = Console(highlight=False)
    if not row:
        console.print(reproductions.as_table())
        return
    wanted = reproductions.published(row)
    seconds = None if budget is None else parse_duration(budget, "--budget")
    if report is None:
        here = reproductions.REPORT.parent.is_dir()
        report = str(reproductions.REPORT if here else Path(out) / reproductions.REPORT.name)
    reproductions.check_report(Path(report))
    outcome = reproductions.reproduce(row, seeds, seconds, out)
    said = "within" if outcome.within else "NOT within"
    print(
        f"{row}: {wanted.figure} {outcome.written}; published {wanted.value:g} ({wanted.source}); {said} the tolerance "
        f"of {wanted.tolerance:g}"
    )
    if wanted.differs:
        print(f"differs: {wanted.differs}")
    reproductions.append(outcome, Path(report))
    print(f"added to {report}")
