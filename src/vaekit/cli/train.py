"""The commands that train: train, sweep, reproduce."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from tyro.conf import Positional

from ..settings.analysis import SweepConfig
from ..settings.catalog import ModelEntry, model_entry
from ..settings.data import DataConfig, PreprocessConfig
from ..settings.model import DISCRETE, LadderConfig
from ..settings.objective import ObjectiveConfig
from ..settings.training import MonitorConfig, TrainConfig
from ..support.errors import parse_duration, require
from ..training.plan import Plan
from . import words
from .words import DataArgument, print_text

if TYPE_CHECKING:
    from ..runs.directory import Run

FORM = PreprocessConfig()
TRAIN_HELP = """{summary}

For example:
  vaekit train {name}
  vaekit train {name} {one} --epochs 20 --seed 1
  vaekit train {name} --data photos/ --size 64 --steps 5000
  vaekit train {name} --likelihood gaussian --scale 0.1 --name grey
  vaekit train {name} --kl-warmup 10 --optimizer adamw --patience 10 --out runs/mine
  vaekit train {name} --record --pictures-every 5 --tensorboard

Args:
    out: Run directory to create, instead of runs/<model>-<data>-<n>; it must not exist.
    run_name: Becomes part of the folder's name.
    init: Run directory whose weights to start from.
"""


SWEEP_HELP = """{summary}

A grid of trainings: a setting with commas takes each of its values in turn. --out, --name, --init and the flags of
the evaluation hold for the whole sweep.

For example:
  vaekit sweep {name} {several} --seed 0,1,2
  vaekit sweep {name} --learning-rate 1e-3,3e-4 --epochs 20 --out runs/rates

Args:
    out: Folder of the runs, instead of runs/<model>-<data>-sweep; the same command again resumes the sweep.
    run_name: Becomes part of the folder's name.
    init: Run directory whose weights to start from.
"""


SweepRequest = tuple[Plan, SweepConfig, str | None, str]  # plan, evaluation, --out and --name


def size_examples(entry: ModelEntry) -> tuple[str, str]:
    """The flag of a model's size with one value, and with several."""
    if isinstance(entry.settings, LadderConfig):
        return "--channels 32", "--channels 16,32,48"
    return "--latent-dim 2", "--latent-dim 2,5,10,20"


def make_train(name: str, entry: ModelEntry) -> Callable[..., None]:
    def train(
        model: Any = entry.settings,
        objective: ObjectiveConfig = entry.objective,
        data: DataConfig = entry.data,
        training: TrainConfig = entry.training,
        monitor: MonitorConfig = MonitorConfig(),  # noqa: B008
        out: str | None = None,
        run_name: Annotated[str, tyro.conf.arg(name="name")] = "",
        init: str | None = None,
    ) -> None:
        plan = Plan(name, model, objective, data, training, monitor, init, entry.objective)
        run_training(plan, out, run_name)

    train.__annotations__["model"] = type(entry.settings)
    train.__doc__ = TRAIN_HELP.format(name=name, summary=entry.summary, one=size_examples(entry)[0])
    return train


def make_sweep(name: str, entry: ModelEntry, requests: list[SweepRequest]) -> Callable[..., None]:
    """Like make_train, with the flags of SweepConfig; each call appends a request to `requests`."""

    def sweep(
        model: Any = entry.settings,
        objective: ObjectiveConfig = entry.objective,
        data: DataConfig = entry.data,
        training: TrainConfig = entry.training,
        monitor: MonitorConfig = MonitorConfig(),  # noqa: B008
        measure: SweepConfig = SweepConfig(),  # noqa: B008
        out: str | None = None,
        run_name: Annotated[str, tyro.conf.arg(name="name")] = "",
        init: str | None = None,
    ) -> None:
        plan = Plan(name, model, objective, data, training, monitor, init, entry.objective)
        requests.append((plan, measure, out, run_name))

    sweep.__annotations__["model"] = type(entry.settings)
    sweep.__doc__ = SWEEP_HELP.format(
        name=name, summary=entry.summary, several=size_examples(entry)[1]
    )
    return sweep


def sweep(arguments: list[str], read: Callable[[list[str], list[SweepRequest]], None]) -> None:
    """Train and evaluate every combination of the settings with several values; `read` parses a command line."""
    requests: list[SweepRequest] = []
    plans: dict[str, Plan] = {}
    for grid, each in words.expand_grid(arguments):
        if "model" in grid:
            model_entry(grid["model"])
        read(each, requests)
        if len(requests) <= len(plans):
            return  # it was --help
        name = words.run_name(grid) or requests[-1][0].model
        require(
            name not in plans,
            f"two of the runs would have the one folder {name}; make a sweep of each",
        )
        plans[name] = requests[-1][0]
    from ..studies.compare import as_terminal, rank
    from ..studies.sweep import SweepIncomplete
    from ..studies.sweep import sweep as carry_out_all
    from ..support.console import PlainConsole

    plan, measure, out, name = requests[0]
    models = "-".join(dict.fromkeys(each.model for each in plans.values()))
    stem = "-".join(filter(None, (models, Path(plan.data.data).stem, name, "sweep")))
    folder = Path(out or f"runs/{stem}")
    failed = None
    try:
        runs = carry_out_all(
            plans, folder, training_curves=measure.training_curves, **measure.evaluation
        )
    except SweepIncomplete as error:
        runs, failed = error.runs, error
    if runs:
        PlainConsole().print(as_terminal(rank(runs)))
        print_text(f"written to {folder}/compare.md, compare.csv and compare.png")
    if failed:
        raise failed


def run_training(plan: Plan, out: str | None, name: str) -> None:
    print_result(plan.train(out, name))


def plan(
    data: DataArgument,
    form: PreprocessConfig = FORM,
    minutes: float = 10.0,
    group_by: str | None = None,
    device: str = "auto",
    data_dir: str | None = None,
    out: str = "plan.toml",
) -> None:
    """Propose a training for your images and this machine, as a file to read, change and carry out.

    It looks at the images (number, sizes, levels, classes, copies), measures some steps here, and chooses model, size,
    latents, likelihood, batch, precision and the number of steps, each with its reason.

    For example:
      vaekit plan photos/
      vaekit plan photos/ --minutes 60 --size 32 --out long.toml
      vaekit train --config plan.toml
      vaekit train --config plan.toml --steps 20000

    Args:
        data: Your images: a folder, an archive or arrays (see `vaekit train`); or the name of a data set.
        minutes: Time that the training may take.
        group_by: Keep images of one folder (by its level from 1) or metadata column together, as `vaekit train` does.
        device: Device to train on: auto, cpu, cuda, cuda:1, mps.
        data_dir: Folder with the named data set's files.
        out: File to write, .toml; it must not exist.
    """
    from ..studies.proposal import plan as propose

    settings = {**asdict(form), "group_by": group_by, "data_dir": data_dir}
    proposal = propose(data, minutes, out=out, device=device, **settings)
    print_text(proposal.toml().rstrip("\n"))
    print_text(f"\nwritten to {out}; next: vaekit train --config {shlex.quote(out)}")


def resume(
    resume: Annotated[str, tyro.conf.arg(metavar="RUN")],
    epochs: int | None = None,
    steps: int | None = None,
    allow_inexact: bool = False,
    data_dir: str | None = None,
) -> None:
    """Resume a training after an interruption, from its last checkpoint: the result is bit for bit the same.

    For example:
      vaekit train --resume runs/vae-mnist-1
      vaekit train --resume runs/vae-mnist-1 --epochs 100    continue a finished training

    Args:
        resume: Run directory.
        epochs: New total number of epochs, for which the schedules are then computed.
        steps: New total number of steps, of a training with --steps.
        allow_inexact: Resume even where the step was compiled and cannot be here, which changes the last digits.
        data_dir: Folder that holds the data set's files.
    """
    from ..training.job import resume as go_on

    run = go_on(resume, epochs=epochs, steps=steps, allow_inexact=allow_inexact, data_dir=data_dir)
    print_result(run)


def print_result(run: Run) -> None:
    """Print the result of a training, in the first of several processes only."""
    if os.environ.get("RANK", "0") != "0":
        return
    best = run.best
    found = best["validation_elbo"]
    print_text(
        f"{run}: best at epoch {best['epoch']}, "
        + ("" if found is None else f"validation ELBO {found:.2f} nats {bits_text(run, found)}")
        + f"(binarisation {run.data.binarisation})"
    )
    print_text(f"next: vaekit evaluate {run.arguments}  or  vaekit plot {run.arguments}")


def bits_text(run: Run, elbo: float) -> str:
    """An ELBO as bits/dim, where all pixels are modelled and have levels."""
    settings, dims = run.blueprint.settings, math.prod(run.blueprint.shape)
    discrete = settings.likelihood in DISCRETE and not settings.condition.startswith("quadrants")
    return f"= {-elbo / (dims * math.log(2)):.3f} bits/dim " if discrete else ""


def reproduce(
    row: Annotated[str, Positional, tyro.conf.arg(metavar="[ROW]")] = "",
    seeds: int = 1,
    budget: str | None = None,
    out: str = "runs/reproduce",
    report: str | None = None,
) -> None:
    """Reproduce a published result and report how close it comes; without ROW, list them.

    For example:
      vaekit reproduce
      vaekit reproduce aevb-mnist-20 --seeds 3
      vaekit reproduce vae-dynamic --budget 30m

    Args:
        row: Name of the published result.
        seeds: Number of trainings, with the seeds 0, 1 ...
        budget: Training time for all of them, such as 30m or 2h, to which they are shortened; timing the first epoch
            and the evaluation come on top.
        out: Folder of the runs; existing runs are kept.
        report: File to append a line to; docs/results/reproduction.md where that folder exists, else
            OUT/reproduction.md.
    """
    from ..studies import reproduce
    from ..support.console import PlainConsole

    console = PlainConsole()
    if not row:
        console.print(reproduce.as_table())
        return
    wanted = reproduce.published_result(row)
    seconds = None if budget is None else parse_duration(budget, "--budget")
    if report is None:
        here = reproduce.REPORT.parent.is_dir()
        report = str(reproduce.REPORT if here else Path(out) / reproduce.REPORT.name)
    reproduce.check_report(Path(report))
    outcome = reproduce.reproduce(row, seeds, seconds, out)
    said = "within" if outcome.within_tolerance else "NOT within"
    print_text(
        f"{row}: {wanted.metric} {outcome.formatted}; published {wanted.value:g} ({wanted.source}); {said} the "
        f"tolerance of {wanted.tolerance:g}"
    )
    if wanted.differences:
        print_text(f"differs: {wanted.differences}")
    reproduce.append_to_report(outcome, Path(report))
    print_text(f"added to {report}")
