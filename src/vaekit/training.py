"""The training loop, and `train`, which keeps what it yields in a run directory."""

from __future__ import annotations

import copy
import dataclasses
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import exhibits, starts
from .catalog import model_entry
from .checks import override, require
from .compiling import compiled
from .compute import evaluating, fast_training, find_device, seeded
from .config import ClusterConfig, TrainConfig, WatchConfig
from .data import Dataset, Frozen, freeze
from .data.dataset import Batch, Settled
from .data.feeding import batches
from .data.settings import DataConfig
from .fitness import check, settle_pixels
from .models import decoded_numbers, load, objective_of
from .objectives import Objective, Weight, elbo
from .progress import Progress
from .runs import Run, describe, load_weights
from .stepping import Loss, learning_rate, make_optimizer, update_average, warming, zeros
from .vae import VAE
from .watching import Watch, check_watch

VALIDATION_BATCH = 1000
VALIDATION_NUMBERS = 2**25  # that the decoder gives for a batch: 128 MB in float32
VALIDATION_SEED = 1


@dataclass(frozen=True)
class Epoch:
    """What one pass over the training images came to. ELBO and its parts in nats per image.

    The training values are means over the epoch, while the weights changed; `kl` is the training KL. All but the
    objectives are NaN (null in metrics.jsonl) where the posterior has no density.
    `validation_objective` is what the best weights are chosen by: the run's own objective, fully warmed up.
    """

    epoch: int
    train_objective: float
    train_elbo: float
    train_log_likelihood: float
    kl: float
    validation_elbo: float
    validation_log_likelihood: float
    validation_kl: float
    validation_objective: float
    best: bool
    learning_rate: float
    kl_weight: float
    images_per_second: float
    seconds: float


def train_epochs(
    model: VAE,
    data: Dataset,
    config: TrainConfig,
    objective: Objective,
    binarisation: Settled,
    device: torch.device,
    track: Callable[[Iterable[Batch]], Iterable[Batch]] = iter,
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[tuple[Epoch, VAE]]:
    """Train a model, yielding after each epoch its record and the model to save (the average where `ema` is set).

    `track` wraps the batches of an epoch, to show progress; `say` takes a line about compiling. Seeds torch's global
    generator: all noise follows from `config.seed`, so that two trainings on one machine are the same, provided that
    nobody else draws from it.
    """
    torch.manual_seed(config.seed)
    # The layout that convolutions are fastest in.
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    train, validation = data.train.to(device), freeze(data.validation.to(device), binarisation)
    steps = config.steps(len(train))
    optimizer = make_optimizer(model, config)
    average = None if config.ema is None else copy.deepcopy(model)
    kl_weight = torch.ones((), device=device)
    warmup = warming(model, config, kl_weight)
    loss = Loss(model.train(), objective, binarisation, config.precision)
    backward: Callable[[Batch, Weight], Tensor] = loss.backward
    if config.compiles(len(train)):
        backward = compiled(loss, train[: config.batch_size], warmup, say)
    best, step = -math.inf, 0

    for epoch in range(1, config.epochs + 1):
        started = time.perf_counter()
        totals = zeros(3, device)
        order = torch.randperm(len(train)).to(device)
        model.train()
        for batch in track(batches(train, order.split(config.batch_size))):
            step += 1
            rate = learning_rate(step / steps, config)
            for group in optimizer.param_groups:
                group["lr"] = rate
            if config.kl_warmup:
                kl_weight.fill_(min(1.0, step / steps / config.kl_warmup))

            totals.add_(backward(batch, warmup), alpha=len(batch))
            if config.clip_gradient is not None:
                nn.utils.clip_grad_norm_(model.parameters(), config.clip_gradient)
            optimizer.step()
            if average is not None and config.ema is not None:
                update_average(average, model, config.ema)
        # Reading the totals waits for the device, so the time is that of the whole epoch.
        train_objective, log_likelihood, kl = (totals / len(train)).tolist()
        trained = time.perf_counter() - started

        kept = model if average is None else average
        validated = validate(Loss(kept, objective), validation)
        # Before the warm-ups end, a good value may belong to an objective that is easier than the real one.
        counted = epoch >= config.warmup
        is_best = counted and validated[0] > best
        best = validated[0] if is_best else best
        yield (
            Epoch(
                epoch=epoch,
                train_objective=train_objective,
                train_elbo=log_likelihood - kl,
                train_log_likelihood=log_likelihood,
                kl=kl,
                validation_elbo=validated[1] - validated[2],
                validation_log_likelihood=validated[1],
                validation_kl=validated[2],
                validation_objective=validated[0],
                best=is_best,
                learning_rate=rate,
                kl_weight=float(kl_weight),
                images_per_second=len(train) / trained,
                seconds=time.perf_counter() - started,
            ),
            kept,
        )


@torch.no_grad()
def validate(loss: Loss, split: Frozen) -> list[float]:
    """Mean objective, log-likelihood and KL over a frozen split, nats per image.

    The noise is the same at each call, so that two epochs differ by their weights alone, and the training's own
    noise goes on as if nothing had been drawn.
    """
    device = split.device
    with evaluating(loss.model), seeded(VALIDATION_SEED, device):
        totals = zeros(3, device)
        each = decoded_numbers(loss.model.blueprint) * math.prod(loss.objective.samples)
        size = max(1, min(VALIDATION_BATCH, VALIDATION_NUMBERS // each))
        for start in range(0, len(split), size):
            batch = split[start : start + size]
            totals += loss(batch.images, batch.labels)[1] * len(batch)
    return (totals / len(split)).tolist()


def find_clusters(
    model: VAE,
    data: Dataset,
    config: TrainConfig,
    binarisation: Settled,
    device: torch.device,
    shown: Progress,
) -> None:
    """Train the posterior and decoder of z as a plain VAE, and start the clusters from its codes: once a model, and
    not where no epochs are for it."""
    settings, head = model.blueprint.settings, starts.cluster_head(model)
    assert isinstance(settings, ClusterConfig)
    if settings.start_epochs and not head.started:
        epochs = settings.start_epochs
        shown.say(f"first {epochs} epochs as a plain VAE, from whose codes the clusters start")
        plain = dataclasses.replace(
            config,
            epochs=epochs,
            schedule="constant",
            lr_warmup=0.0,
            kl_warmup=0.0,
            kl_warmup_of="all",
            ema=None,
            compile="no",
        )
        start = starts.without_clusters(model)
        for epoch, _ in train_epochs(start, data, plain, elbo(starts.BETA), binarisation, device):
            shown.say(
                f"start {epoch.epoch}/{epochs}  {epoch.images_per_second:,.0f} images/s  "
                f"log-likelihood {epoch.validation_log_likelihood:.2f} KL {epoch.validation_kl:.2f}"
            )
        starts.start_clusters(model, data.train.to(device), binarisation, config.seed)
    head.started.fill_(1)


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
    with the last ones. Raises UserError for bad settings, a taken `out`, or a loss that is no longer finite.
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
    device = find_device(config.device)
    objective = objective or objective_of(model.blueprint)
    check(model, objective, data, config, warming(model, config, torch.zeros(())))
    if init is not None:
        init = Run.of(init)
        load_weights(model, init.weights_path)
    about = {
        "data": {**data.describe(), "binarisation": settled},
        "training": dataclasses.asdict(config),
        "objective": repr(objective),
        "device": str(device),
        "init": None if init is None else str(init),
    }
    run = Run.create(out, folder_stem(model, data, name), describe(model.blueprint, about))

    since_best = 0
    with Progress(config, len(data.train), progress) as shown, fast_training(device) as tidy:
        shown.say(
            f"{model.blueprint.model} on {data.name}, {model.blueprint.settings.likelihood} pixels, "
            f"binarisation {settled}, on {device}, in {run}"
        )
        if settled == "dynamic" and not data.black_and_white:
            shown.say(
                "note: greys are made black or white; build the model from the data set itself to keep them"
            )
        if isinstance(model.blueprint.settings, ClusterConfig):
            find_clusters(model, data, config, settled, device, shown)
        model.to(device)
        watch = Watch(run, model, data, settled, device, config, watched)
        loop = train_epochs(
            model, data, config, objective, settled, device,
            lambda batches: shown.track(watch.track(batches)), shown.say,
        )  # fmt: skip
        for epoch, kept in loop:
            tidy()
            finite = math.isfinite(epoch.train_objective + epoch.validation_objective)
            if epoch.best:
                run.save_weights(kept)
                since_best = 0
            elif epoch.epoch > config.warmup:
                since_best += 1
            if config.save_every and epoch.epoch % config.save_every == 0:
                run.save_weights(kept, f"model-{epoch.epoch:04d}")
            seen = watch.look(epoch, kept) if finite else {}
            run.append_metrics(dataclasses.asdict(epoch) | seen)
            shown.show(epoch)
            for warning in seen.get("warnings", []):
                shown.say(f"warning: {warning}")
            require(
                finite,
                f"the loss is not finite at epoch {epoch.epoch}; try a smaller --learning-rate, or "
                f"--clip-gradient 100 (the run so far is in {run})",
            )
            if config.patience and since_best >= config.patience:
                break
        best = load(run).to(device).eval()
        exhibits.keep(run, best, data)
        watch.finish(best)
    return run


def folder_stem(model: VAE, data: Dataset, name: str) -> str:
    """A run's folder but for its number. Raises UserError for a `name` that is no part of one."""
    require(
        re.fullmatch(r"[\w.+-]*", name) is not None,
        f"--name {name!r} goes into a folder's name; use letters, digits, '-', '_', '.' and '+'",
    )
    data_name = re.sub(r"[^\w.+-]+", "-", data.name)
    return "-".join(part for part in (model.blueprint.model, data_name, name) if part)
