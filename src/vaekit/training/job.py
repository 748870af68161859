"""A training in its run directory: from the start or from its last state, watched, kept, and rescued."""

from __future__ import annotations

import dataclasses
import math
import re
import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from ..data import Dataset
from ..data.dataset import Batch, Settled
from ..inference import kept_images as exhibits
from ..model.build import build_from, objective_of
from ..model.graph import VAE
from ..model.objectives import Objective, elbo, from_text
from ..runs.data import run_data
from ..runs.directory import STATE, Run, State, describe, load_weights
from ..runs.load import load
from ..settings.catalog import model_entry
from ..settings.data import DataConfig
from ..settings.model import ClusterConfig
from ..settings.training import TrainConfig, WatchConfig
from ..support import distributed as ranks
from ..support.devices import fast_training, find_device
from ..support.errors import UserError, override, require
from . import cluster_start as starts
from .checkpoint import Keeper, keeping
from .learner import Learner, fill
from .monitor import Watch, check_watch
from .preflight import check, settle_pixels
from .progress import Progress
from .recovery import rescued
from .step import warming


@dataclass(frozen=True)
class Job:
    """A training in its run directory, and all that it needs."""

    run: Run
    model: VAE
    data: Dataset
    config: TrainConfig
    watch: WatchConfig
    objective: Objective
    binarisation: Settled
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
    """Train a model on a data set and keep it in a run directory, which is returned.

    `settings` are the fields of TrainConfig, and those of WatchConfig, what to draw and log meanwhile; `out` is the
    directory (runs/<model>-<data>-<n> by default, with `name` before the number); `init` is a run to take the first
    weights from. The best weights on validation are saved as they come, for `vaekit.load(run)`; `model` itself ends
    with the last ones. The state is saved now and then, from which `resume` goes on after a kill. Raises UserError for
    bad settings, a taken `out`, or a loss that is not finite again and again; and Stopped, a KeyboardInterrupt, where
    the process was told to stop.
    """
    watching = {f.name: settings.pop(f.name) for f in fields(WatchConfig) if f.name in settings}
    watched = check_watch(override(WatchConfig(), watching, "train()"))
    config = override(model_entry(model.blueprint.model).training, settings, "train()")
    config = config.settle(model.blueprint.settings)
    # A run that goes on later is to compute as it did before.
    compiles = config.compiles(len(data.train))
    config = dataclasses.replace(config, compile="yes" if compiles else "no")
    chosen = override(DataConfig(), {"binarisation": binarisation}, "train()").binarisation
    settled = settle_pixels(model.blueprint, data, chosen)
    objective = objective or objective_of(model.blueprint)
    check(model, objective, data, config, warming(model, config, torch.zeros(())))
    if init is not None:
        init = Run.of(init)
        load_weights(model, init.weights_path)
    for part, parameter in model.named_parameters():
        finite = bool(parameter.isfinite().all())
        require(finite, f"the weights {part} are not finite to begin with")
    with ranks.joined(find_device(config.device)) as device:
        check_ranks(model, out)
        about = {
            "data": {**data.describe(), "binarisation": settled},
            "training": dataclasses.asdict(config),
            "watch": dataclasses.asdict(watched),
            "objective": repr(objective),
            "device": str(device),
            "init": None if init is None else str(init),
        }

        def create() -> Run:
            if out is not None and ranks.restarted() and (Path(out) / STATE).is_file():
                return Run(out)
            return Run.create(out, folder_stem(model, data, name), describe(model.blueprint, about))

        run = Run(ranks.first(create))
        job = Job(run, model, data, config, watched, objective, settled, device)
        with keeping(run, config.state_every) as keeper:
            state = run.load_state() if (run.path / STATE).is_file() else None
            return carry_out(job, keeper, progress, state)


def resume(
    run: Run | str | Path,
    data: Dataset | None = None,
    *,
    epochs: int | None = None,
    objective: Objective | None = None,
    allow_inexact: bool = False,
    data_dir: str | Path | None = None,
    progress: bool = True,
) -> Run:
    """Go on with a training that was killed or stopped, from its last state: it ends as if nothing had happened.

    `epochs` is a new number of epochs; the schedules are then those of a training of so many (so a cosine's rate
    rises again where a finished run goes on). `data` and `objective` are those of before, and need to be given only
    where they were arrays, or an objective of your own. Raises UserError where there is no state, where another
    process trains in the run, or where the step was compiled and cannot be here, which changes the last digits,
    unless `allow_inexact`; and as `train` does.
    """
    run = Run.of(run)
    config = run.training
    with (
        ranks.joined(find_device(config.device)) as device,
        keeping(run, config.state_every) as keeper,
    ):
        state = run.load_state()
        if epochs is not None and epochs != config.epochs:
            config = dataclasses.replace(config, epochs=epochs)
            done = state.numbers.get("epoch", 0)
            require(
                epochs >= done,
                f"--epochs is {epochs}, and {run} has {done} already; give a larger number",
            )
            ranks.first(lambda: run.change("training", dataclasses.asdict(config)))
        data = run_data(run, data, data_dir)
        model = build_from(run.blueprint)
        check_ranks(model, run.path)
        objective = objective or from_text(str(run.config.get("objective")))
        binarisation = settle_pixels(model.blueprint, data, run.data.binarisation)
        job = Job(run, model, data, config, check_watch(run.watch), objective, binarisation, device)
        return carry_out(job, keeper, progress, state, allow_inexact)


def check_ranks(model: VAE, out: str | Path | None) -> None:
    """UserError where several processes cannot train this together."""
    if ranks.count() == 1:
        return
    require(
        model.blueprint.settings.normalisation != "batch",
        "--normalisation batch is of one process, as others would have statistics of their own; choose layer",
    )
    require(out is not None, "under torchrun, say --out, so that a restart finds the run again")


def carry_out(
    job: Job,
    keeper: Keeper,
    progress: bool,
    state: State | None = None,
    allow_inexact: bool = False,
) -> Run:
    """Train, from the start or from a state, to the end."""
    run, model, data, config = job.run, job.model, job.data, job.config
    with (
        Progress(config, len(data.train), progress and ranks.number() == 0) as shown,
        fast_training(job.device) as tidy,
    ):
        shown.say(
            f"{model.blueprint.model} on {data.name}, {model.blueprint.settings.likelihood} pixels, "
            f"binarisation {job.binarisation}, on {job.device}, in {run}"
        )
        if job.binarisation == "dynamic" and not data.black_and_white:
            shown.say(
                "note: greys are made black or white; build the model from the data set itself to keep them"
            )
        if isinstance(model.blueprint.settings, ClusterConfig):
            state = find_clusters(job, keeper, shown, state)
        learner = Learner(model, config, job.device)
        learner.allow_inexact = allow_inexact
        begin(learner, keeper, state)
        try:
            if ranks.number() == 0:
                follow(job, learner, keeper, shown, tidy)
            else:  # the first process alone writes
                for _ in rescued(learner, data, job.objective, job.binarisation, keeper):
                    tidy()
        except OSError as error:
            raise UserError(
                f"{error.filename or run}: {error.strerror or error}; what was saved before is whole; mend that, then: "
                f"vaekit train --resume {shlex.quote(str(run))}"
            ) from None
        ranks.agree(0.0)  # the others' work ends when the first's does
    return run


def follow(
    job: Job, learner: Learner, keeper: Keeper, shown: Progress, tidy: Callable[[], None]
) -> None:
    """Train to the end, and keep, look at and show what each epoch comes to."""
    run, config, at = job.run, job.config, learner.at
    steps = config.steps(len(job.data.train))
    watch = Watch(job, run.cut_metrics(at.epoch), at.epoch * steps + at.batch)
    shown.go_on(at.epoch, at.batch)

    def gone_back() -> None:
        at = learner.at
        run.cut_metrics(at.epoch)
        watch.go_back(at.epoch * steps + at.batch)
        shown.go_on(at.epoch, at.batch)

    def track(batches: Iterable[Batch]) -> Iterable[Batch]:
        return shown.track(watch.track(batches))

    for epoch, kept in rescued(
        learner, job.data, job.objective, job.binarisation, keeper, track, shown.say, gone_back
    ):
        tidy()
        if epoch.best:
            run.save_weights(kept)
        if config.save_every and epoch.epoch % config.save_every == 0:
            run.save_weights(kept, f"model-{epoch.epoch:04d}")
        finite = math.isfinite(epoch.train_objective)
        seen = watch.look(epoch, kept) if finite else {}
        recovered = [each for each in learner.at.recovered if each["epoch"] == epoch.epoch]
        if recovered:
            seen = seen | {"recovered": recovered}
        run.append_metrics(dataclasses.asdict(epoch) | seen)
        if finite:
            shown.show(epoch)
        for warning in seen.get("warnings", []):
            shown.say(f"warning: {warning}")
    best = load(run).to(job.device).eval()
    exhibits.keep(run, best, job.data)
    watch.finish(best)


def begin(learner: Learner, keeper: Keeper, state: State | None) -> None:
    """Go on from a state, or keep the first one."""
    if state is not None:
        learner.restore(state)
    else:
        keeper.keep(learner)


def find_clusters(job: Job, keeper: Keeper, shown: Progress, state: State | None) -> State | None:
    """Train the posterior and decoder of z as a plain VAE, and start the clusters from its codes: once a model, and
    not where no epochs are for it. Gives what is left of a state: that of the training after this one."""
    model, config = job.model, job.config
    settings, head = model.blueprint.settings, starts.cluster_head(model)
    assert isinstance(settings, ClusterConfig)
    if state is not None:
        fill(model, state.part("model"))
    if head.started:
        return state
    if settings.start_epochs:
        epochs = settings.start_epochs
        shown.say(f"first {epochs} epochs as a plain VAE, from whose codes the clusters start")
        plain = dataclasses.replace(
            config,
            epochs=epochs,
            schedule="constant",
            lr_warmup=0.0,
            kl_warmup=0.0,
            kl_warmup_of="all",
            patience=None,
            ema=None,
            compile="no",
        )
        learner = Learner(starts.without_clusters(model), plain, job.device, whole=model)
        begin(learner, keeper, state)
        objective = elbo(starts.BETA)
        for epoch, _ in rescued(
            learner, job.data, objective, job.binarisation, keeper, iter, shown.say
        ):
            shown.say(
                f"start {epoch.epoch}/{epochs}  {epoch.images_per_second:,.0f} images/s  "
                f"log-likelihood {epoch.validation_log_likelihood:.2f} KL {epoch.validation_kl:.2f}"
            )
        starts.start_clusters(model, job.data.train.to(job.device), job.binarisation, config.seed)
    head.started.fill_(1)
    return None


def folder_stem(model: VAE, data: Dataset, name: str) -> str:
    """A run's folder but for its number. Raises UserError for a `name` that is no part of one."""
    require(
        re.fullmatch(r"[\w.+-]*", name) is not None,
        f"--name {name!r} goes into a folder's name; use letters, digits, '-', '_', '.' and '+'",
    )
    data_name = re.sub(r"[^\w.+-]+", "-", data.name)
    return "-".join(part for part in (model.blueprint.model, data_name, name) if part)
