"""The training loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..data import Dataset, eval_split
from ..data.augment import augmentation_of
from ..data.dataset import Batch, ResolvedBinarisation
from ..data.prefetch import batches
from ..likelihood.validation import validate
from ..model.graph import VAE
from ..model.objectives import Objective, Weight
from ..support import distributed
from .compiled import compile_step
from .learner import Learner
from .step import Loss, kl_warmup_weight, learning_rate, update_average


@dataclass(frozen=True)
class Epoch:
    """The metrics of one epoch: a pass over the training images, or several (TrainConfig.steps). ELBO and its terms in
    nats per image.

    The training values are means over the epoch, of augmented images if any, while the weights changed; `kl` is the
    training KL. All but the objectives are NaN (null in metrics.jsonl) where the posterior has no density.
    `validation_objective`, the run's own objective without warm-up, selects the best weights.
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
    binarisation: ResolvedBinarisation,
    track: Callable[[Iterable[Batch]], Iterable[Batch]] = iter,
    log: Callable[[str], None] = lambda text: None,
) -> Iterator[tuple[Epoch, VAE]]:
    """Train from the learner's position; yield after each epoch its metrics and the model to save (the average with
    `ema`).

    `track` wraps the batches of an epoch; between two of them the learner's state may be saved and the training left.
    `log` takes a line about compiling. Seeds torch's global generator: all noise follows from the seed, so that two
    trainings on one machine are the same, provided that nothing else draws from it.
    """
    model, optimizer, config = learner.model, learner.optimizer, learner.config
    at, kl_weight, average = learner.position, learner.kl_weight, learner.average
    train = data.train.to(learner.device)
    validation = eval_split(data.validation.to(learner.device), binarisation)
    steps = config.steps_per_epoch(len(train))
    warmup = kl_warmup_weight(model, config, kl_weight)
    augment = augmentation_of(config.augment, data)
    loss = Loss(model.train(), objective, binarisation, config.precision, augment)
    backward: Callable[[Batch, Weight], Tensor] = loss.backward
    if config.compiles(len(train)) and at.compiled is not False:
        first = train[distributed.local_rows(torch.arange(min(config.batch_size, len(train))))]
        backward = compile_step(loss, first, warmup, log)
        learner.resolve_compiled(backward != loss.backward)
    learner.start()

    while not learner.finished:
        learner.begin_epoch(len(train))
        started = time.perf_counter() - at.seconds
        model.train()
        rows = learner.rows
        for batch in track(batches(train, map(distributed.local_rows, rows[at.batch :]))):
            done = (at.steps(steps) + 1) / steps
            for group in optimizer.param_groups:
                group["lr"] = at.rate_factor * learning_rate(done, config, 1 / steps)
            if config.kl_warmup:
                kl_weight.fill_(min(1.0, done / config.kl_warmup))

            local = distributed.local_count(rows[at.batch])
            with distributed.rows_in_batch(local):
                learner.totals.add_(backward(batch, warmup), alpha=local)
            if distributed.world_size() > 1:
                learner.request = distributed.all_reduce_gradients(
                    model, local / len(rows[at.batch]), learner.request
                )
            if config.skip_spikes is None or not learner.is_spike(config.skip_spikes):
                if at.clip_gradient is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), at.clip_gradient)
                optimizer.step()
            if average is not None and config.ema is not None:
                update_average(average, model, config.ema, at.steps(steps) + 1)
            at.batch, at.seconds = at.batch + 1, time.perf_counter() - started
        # Reading the totals synchronises the device, so the time covers the whole epoch.
        images = sum(map(len, rows))
        totals = distributed.all_reduce(learner.totals.clone()) / images
        train_objective, log_likelihood, kl = totals.tolist()
        trained = time.perf_counter() - started

        validated = validate(learner.output_model, objective, validation)
        best = learner.end_epoch(validated[0], steps)
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
                images_per_second=images / trained,
                seconds=time.perf_counter() - started,
            ),
            learner.output_model,
        )
