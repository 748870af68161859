"""A training in its run directory, new or resumed: with checkpoints, monitoring and recovery."""

from __future__ import annotations

import dataclasses
import math
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from ..data import Dataset
from ..data.dataset import Batch, ResolvedBinarisation
from ..inference import picture_data
from ..likelihood.elbo import nats_per_bit
from ..model.build import build_from, objective_of
from ..model.graph import VAE
from ..model.objectives import Objective, elbo, from_text
from ..runs.data import load_run_data
from ..runs.directory import STATE, Run, TrainingState, run_config
from ..runs.load import build_on_meta, load_trained, read_weights
from ..settings.catalog import model_entry
from ..settings.data import DataConfig
from ..settings.model import ClusterConfig
from ..settings.training import MonitorConfig, TrainConfig, require_one_length
from ..support import distributed
from ..support.devices import fast_training, resolve_device
from ..support.errors import UserError, require, with_changes
from . import cluster_start
from .checkpoint import Checkpointer, checkpointing
from .learner import Learner, Position, copy_into, require_same_shapes
from .monitor import Monitor, check_monitor
from .preflight import (
    check_augmentation,
    check_training,
    resolve_binarisation,
    training_warnings,
)
from .progress import TrainingProgress
from .recovery import train_with_recovery
from .step import kl_warmup_weight


@dataclass(frozen=True)
class Job:
    """A training: its run directory, model, data and settings."""

    run: Run
    model: VAE
    data: Dataset
    config: TrainConfig
    monitor: MonitorConfig
    objective: Objective
    binarisation: ResolvedBinarisation
    device: torch.device


def train(
    model: VAE,
    data: Dataset,
    *,
    objective: Objective | None = None,
    out: str | Path | None = None,
    name: str = "",
    init: Run | str | Path | None = None,
    binarisation: str = "auto",
    progress: bool = True,
    **settings: Any,
) -> Run:
    """Train a model on a data set, save it in a run directory, and return the run.

    `settings` are the fields of TrainConfig and of MonitorConfig; `out` is the directory (runs/<model>-<data>-<n> by
    default, with `name` before the number); `init` is a run whose weights to start from. The best weights on
    validation are saved, for `vaekit.load(run)`; `model` itself ends with the last ones. Checkpoints are saved
    regularly; `resume` continues from the last one after an interruption. Raises UserError for bad settings, an
    existing `out`, or a loss that repeatedly is not finite; and TrainingStopped, a KeyboardInterrupt, when a signal
    stops it.
    """
    config, monitor = resolve_settings(model, len(data.train), settings)
    requested = with_changes(DataConfig(), {"binarisation": binarisation}, "train()").binarisation
    resolved = resolve_binarisation(model.blueprint, data, requested)
    check_augmentation(config.augment, data, resolved)
    objective = objective or objective_of(model.blueprint)
    check_training(model, objective, data, config, kl_warmup_weight(model, config, torch.zeros(())))
    if init is not None:
        init = Run.of(init)
        read_weights(init, model)
    for key, parameter in model.named_parameters():
        finite = bool(parameter.isfinite().all())
        require(finite, f"the initial weights {key} are not finite; start from other weights")
    with distributed.process_group(resolve_device(config.device)) as device:
        check_distributed(model, out)
        sections = {
            "data": {**data.describe(), "binarisation": resolved},
            "training": dataclasses.asdict(config),
            "monitor": dataclasses.asdict(monitor),
            "objective": repr(objective),
            "device": str(device),
            "init": None if init is None else str(init),
        }
        content = run_config(model.blueprint, sections)
        Run.check_config(content, model.blueprint)

        def create() -> Run:
            if out is not None and distributed.is_restart() and (Path(out) / STATE).is_file():
                return Run(out)
            return Run.create(out, folder_stem(model, data, name), content)

        run = Run(distributed.on_rank_zero(create))
        job = Job(run, model, data, config, monitor, objective, resolved, device)
        with checkpointing(run, config.state_every) as checkpointer:
            state = run.load_state() if (run.path / STATE).is_file() else None
            return run_job(job, checkpointer, progress, state)


def resolve_settings(
    model: VAE, images: int, settings: Mapping[str, Any]
) -> tuple[TrainConfig, MonitorConfig]:
    """The settings of a training on so many images, with those that depend on the model or the data resolved."""
    names = {f.name for f in fields(MonitorConfig)}
    changes = {name: value for name, value in settings.items() if name in names}
    monitor = check_monitor(with_changes(MonitorConfig(), changes, "train()"))
    require_one_length([name for name, value in settings.items() if value is not None])
    changes = {name: value for name, value in settings.items() if name not in names}
    config = with_changes(model_entry(model.blueprint.model).training, changes, "train()")
    config = config.resolve(model.blueprint.settings, images)
    # Resolved once, so that a resumed run computes as before.
    return dataclasses.replace(config, compile="yes" if config.compiles(images) else "no"), monitor


def resume(
    run: Run | str | Path,
    data: Dataset | None = None,
    *,
    epochs: int | None = None,
    steps: int | None = None,
    objective: Objective | None = None,
    allow_inexact: bool = False,
    data_dir: str | Path | None = None,
    progress: bool = True,
) -> Run:
    """Resume an interrupted training from its last checkpoint; the result is that of an uninterrupted one, bit for bit.

    `epochs`, or `steps` for a training of --steps, is a new total, to which all schedules adapt (a finished run thus
    returns to a higher rate of its cosine). `data` and `objective` are needed only where the data were arrays or the
    objective is your own. Raises UserError where there is no checkpoint, where another process trains in the run, or
    where the step was compiled and cannot be here, which changes the last digits, unless `allow_inexact`; and as
    `train` does."""
    run = Run.of(run)
    config = run.training
    with (
        distributed.process_group(resolve_device(config.device)) as device,
        checkpointing(run, config.state_every) as checkpointer,
    ):
        state = run.load_state()
        data = load_run_data(run, data, data_dir)
        longer = with_length(run, state, len(data.train), epochs, steps)
        if longer != config:
            config = longer
            distributed.on_rank_zero(
                lambda: run.update_config("training", dataclasses.asdict(config))
            )
        require_same_shapes(build_on_meta(run.blueprint), state.part("model"))
        model = build_from(run.blueprint)
        check_distributed(model, run.path)
        objective = objective or from_text(str(run.config.get("objective")))
        binarisation = resolve_binarisation(model.blueprint, data, run.data.binarisation)
        check_augmentation(config.augment, data, binarisation)
        job = Job(
            run, model, data, config, check_monitor(run.monitor), objective, binarisation, device
        )
        return run_job(job, checkpointer, progress, state, allow_inexact)


def with_length(
    run: Run, state: TrainingState, images: int, epochs: int | None, steps: int | None
) -> TrainConfig:
    """The training settings of a run with a new total of epochs or of steps, whichever it has, or as they are.

    Raises UserError for the other one, and where the training is longer already.
    """
    config, at = run.training, Position(**state.scalars)
    given = {"epochs": epochs, "steps": steps}
    done = {"epochs": at.epoch, "steps": at.steps(config.steps_per_epoch(images))}
    own, other = ("epochs", "steps") if config.steps is None else ("steps", "epochs")
    require(
        given[other] is None,
        f"the length of {run} is a number of {own}; pass --{own}, not --{other}",
    )
    total = given[own]
    if total is None:
        return config
    require(
        total >= done[own],
        f"--{own} is {total}, but {run} has {done[own]} {own} already; pass a larger number",
    )
    if own == "epochs":
        return dataclasses.replace(config, epochs=total)
    return config.with_steps(total, images, at.cut)


def check_distributed(model: VAE, out: str | Path | None) -> None:
    """Raises UserError where several processes cannot train this model together."""
    if distributed.world_size() == 1:
        return
    require(
        model.blueprint.settings.normalisation != "batch",
        "--normalisation batch needs a single process, as statistics are not shared; choose --normalisation layer",
    )
    require(out is not None, "torchrun needs --out, so that a restart finds the run; pass --out")


def run_job(
    job: Job,
    checkpointer: Checkpointer,
    progress: bool,
    state: TrainingState | None = None,
    allow_inexact: bool = False,
) -> Run:
    """Train to the end, from the start or from a state."""
    run, model, data, config = job.run, job.model, job.data, job.config
    with (
        TrainingProgress(
            config, len(data.train), progress and distributed.rank() == 0, nats_per_bit(model)
        ) as bar,
        fast_training(job.device) as trim_memory,
    ):
        bar.log(
            f"{model.blueprint.model} on {data.name}, {model.blueprint.settings.likelihood} pixels, "
            f"binarisation {job.binarisation}, on {job.device}, in {run}"
        )
        if config.steps is not None:
            bar.log(describe_steps(config, len(data.train)))
        if config.augment is not None:
            bar.log(
                f"training images are augmented ({config.augment}), and training values are of augmented images; "
                "validation images stay as they are"
            )
        if job.binarisation == "dynamic" and not data.black_and_white:
            bar.log(
                "note: grey pixels are binarised; build the model from the data set itself to keep them"
            )
        if state is None:
            for warning in training_warnings(model.blueprint, data, config):
                bar.log(f"warning: {warning}")
        if isinstance(model.blueprint.settings, ClusterConfig):
            state = pretrain_clusters(job, checkpointer, bar, state)
        learner = Learner(model, config, job.device)
        learner.allow_inexact = allow_inexact
        start_learner(learner, checkpointer, state)
        try:
            if distributed.rank() == 0:
                train_and_monitor(job, learner, checkpointer, bar, trim_memory)
            else:  # only the first process writes
                for _ in train_with_recovery(
                    learner, data, job.objective, job.binarisation, checkpointer
                ):
                    trim_memory()
        except OSError as error:
            raise UserError(
                f"{error.filename or run}: {error.strerror or error}; the saved files are intact; solve this, then: "
                f"vaekit train --resume {shlex.quote(str(run))}"
            ) from None
        distributed.all_reduce_number(0.0)  # the other processes wait for the first
    return run


def describe_steps(config: TrainConfig, images: int) -> str:
    """A training of so many steps in words."""
    passes, length = config.passes(images), config.steps_per_epoch(images)
    over = f"{passes} passes over the {images:,} training images" if passes > 1 else "one pass"
    cut = "" if config.total_steps(images) % length == 0 else ", the last one cut"
    total, epochs = f"{config.steps:,} step{'s' * (config.steps != 1)}", config.epochs
    return f"{total}: {epochs} epoch{'s' * (epochs != 1)} of {length} steps, {over}{cut}"


def train_and_monitor(
    job: Job,
    learner: Learner,
    checkpointer: Checkpointer,
    bar: TrainingProgress,
    trim_memory: Callable[[], None],
) -> None:
    """Train to the end; save, monitor and report each epoch."""
    run, config, at = job.run, job.config, learner.position
    steps = config.steps_per_epoch(len(job.data.train))
    monitor = Monitor(
        run,
        job.model,
        job.data,
        job.binarisation,
        config,
        job.monitor,
        job.device,
        history=run.truncate_metrics(at.epoch),
        steps_done=at.steps(steps),
    )
    bar.seek(at.steps(steps))

    def on_rewind() -> None:
        at = learner.position
        run.truncate_metrics(at.epoch)
        monitor.rewind(at.steps(steps))
        bar.seek(at.steps(steps))

    def track(batches: Iterable[Batch]) -> Iterable[Batch]:
        return bar.track(monitor.track(batches))

    for epoch, trained in train_with_recovery(
        learner, job.data, job.objective, job.binarisation, checkpointer, track, bar.log, on_rewind
    ):
        trim_memory()
        if epoch.best:
            run.save_weights(trained)
        if config.save_every and epoch.epoch % config.save_every == 0:
            run.save_weights(trained, f"model-{epoch.epoch:04d}")
        finite = math.isfinite(epoch.train_objective)
        monitored = monitor.on_epoch(epoch, trained) if finite else {}
        recovered = [each for each in learner.position.recovered if each["epoch"] == epoch.epoch]
        if recovered:
            monitored = monitored | {"recovered": recovered}
        if config.augment is not None:
            monitored = monitored | {"augmented": True}
        run.append_metrics(dataclasses.asdict(epoch) | monitored)
        if finite:
            bar.on_epoch(epoch)
        for warning in monitored.get("warnings", []):
            bar.log(f"warning: {warning}")
    best = load_trained(run)
    best.model.to(job.device)
    picture_data.create(run, best, job.data)
    monitor.finish(best.model)


def start_learner(
    learner: Learner, checkpointer: Checkpointer, state: TrainingState | None
) -> None:
    """Restore the learner from a state, or save its initial one."""
    if state is not None:
        learner.restore(state)
    else:
        checkpointer.save(learner)


def pretrain_clusters(
    job: Job, checkpointer: Checkpointer, bar: TrainingProgress, state: TrainingState | None
) -> TrainingState | None:
    """Pretrain the posterior and decoder of z as a plain VAE and initialise the clusters from its codes, unless done.

    Skips the pretraining where `start_epochs` is 0. Returns the state to resume the main training from, or None.
    """
    model, config = job.model, job.config
    settings, head = model.blueprint.settings, cluster_start.cluster_head(model)
    assert isinstance(settings, ClusterConfig)
    if state is not None:
        copy_into(model, state.part("model"))
    if head.started:
        return state
    if settings.start_epochs:
        epochs = settings.start_epochs
        bar.log(
            f"pretraining for {epochs} epochs as a plain VAE, to initialise the clusters from its codes"
        )
        pretraining = dataclasses.replace(
            config,
            epochs=epochs,
            steps=None,
            schedule="constant",
            lr_warmup=0.0,
            kl_warmup=0.0,
            kl_warmup_of="all",
            patience=None,
            ema=None,
            compile="no",
        )
        learner = Learner(
            cluster_start.without_clusters(model), pretraining, job.device, full_model=model
        )
        start_learner(learner, checkpointer, state)
        objective = elbo(cluster_start.PRETRAINING_BETA)
        for epoch, _ in train_with_recovery(
            learner, job.data, objective, job.binarisation, checkpointer, iter, bar.log
        ):
            bar.log(
                f"pretraining {epoch.epoch}/{epochs}  {epoch.images_per_second:,.0f} images/s  "
                f"log-likelihood {epoch.validation_log_likelihood:.2f} KL {epoch.validation_kl:.2f}"
            )
        cluster_start.start_clusters(
            model, job.data.train.to(job.device), job.binarisation, config.seed
        )
    head.started.fill_(1)
    return None


def folder_stem(model: VAE, data: Dataset, name: str) -> str:
    """The name of a run's folder without its number. Raises UserError for a `name` with other characters."""
    require(
        re.fullmatch(r"[\w.+-]*", name) is not None,
        f"--name {name!r} becomes part of a folder's name; use letters, digits, '-', '_', '.' and '+'",
    )
    data_name = re.sub(r"[^\w.+-]+", "-", data.name)
    return "-".join(part for part in (model.blueprint.model, data_name, name) if part)
