"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..data import Dataset, Frozen, freeze
from ..data.dataset import Batch, Settled
from ..data.feeding import batches
from ..model.build import decoded_numbers
from ..model.graph import VAE
from ..model.objectives import Objective, Weight
from ..support import distributed as ranks
from ..support.devices import evaluating, seeded
from .compiled import compiled
from .learner import Learner
from .step import Loss, learning_rate, update_average, warming, zeros

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
    skipped_steps: int
    images_per_second: float
    seconds: float


def train_epochs(
    learner: Learner,
    data: Dataset,
    objective: Objective,
    binarisation: Settled,
    track: Callable[[Iterable[Batch]], Iterable[Batch]] = iter,
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[tuple[Epoch, VAE]]:
    """Train a model from where its learner is, yielding after each epoch its record and the model to save (the average
    where `ema` is set).

    `track` wraps the batches of an epoch: between two of them the learner's state can be kept, and the training left.
    `say` takes a line about compiling. Seeds torch's global generator: all noise follows from the seed, so that two
    trainings on one machine are the same, provided that nobody else draws from it.
    """
    model, optimizer, config = learner.model, learner.optimizer, learner.config
    at, kl_weight, average = learner.at, learner.kl_weight, learner.average
    train = data.train.to(learner.device)
    validation = freeze(data.validation.to(learner.device), binarisation)
    steps = config.steps(len(train))
    warmup = warming(model, config, kl_weight)
    loss = Loss(model.train(), objective, binarisation, config.precision)
    backward: Callable[[Batch, Weight], Tensor] = loss.backward
    if config.compiles(len(train)) and at.compiled is not False:
        first = train[ranks.part(torch.arange(min(config.batch_size, len(train))))]
        backward = compiled(loss, first, warmup, say)
        learner.settle_compiled(backward != loss.backward)
    learner.begin()

    while not learner.finished:
        learner.begin_epoch(len(train))
        started = time.perf_counter() - at.seconds
        model.train()
        rows = learner.order.split(config.batch_size)
        for batch in track(batches(train, map(ranks.part, rows[at.batch :]))):
            done = (at.epoch * steps + at.batch + 1) / steps
            for group in optimizer.param_groups:
                group["lr"] = at.rate_factor * learning_rate(done, config)
            if config.kl_warmup:
                kl_weight.fill_(min(1.0, done / config.kl_warmup))

            here = ranks.weight(rows[at.batch])
            learner.totals.add_(backward(batch, warmup), alpha=here)
            if ranks.count() > 1:
                learner.wish = ranks.join(model, here / len(rows[at.batch]), learner.wish)
            if config.skip_spikes is None or not learner.spike(config.skip_spikes):
                if at.clip_gradient is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), at.clip_gradient)
                optimizer.step()
            if average is not None and config.ema is not None:
                update_average(average, model, config.ema)
            at.batch, at.seconds = at.batch + 1, time.perf_counter() - started
        # Reading the totals waits for the device, so the time is that of the whole epoch.
        totals = ranks.add_up(learner.totals.clone()) / len(train)
        train_objective, log_likelihood, kl = totals.tolist()
        trained = time.perf_counter() - started

        validated = validate(Loss(learner.kept, objective), validation)
        best = learner.end_epoch(validated[0])
        yield (
            Epoch(
                epoch=at.epoch,
                train_objective=train_objective,
                train_elbo=log_likelihood - kl,
                train_log_likelihood=log_likelihood,
                kl=kl,
                validation_elbo=validated[1] - validated[2],
                validation_log_likelihood=validated[1],
                validation_kl=validated[2],
                validation_objective=validated[0],
                best=best,
                learning_rate=optimizer.param_groups[0]["lr"],
                kl_weight=float(kl_weight),
                skipped_steps=at.skipped,
                images_per_second=len(train) / trained,
                seconds=time.perf_counter() - started,
            ),
            learner.kept,
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
