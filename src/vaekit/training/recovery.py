"""Recovery from a loss that is not finite: find the cause, restore the checkpoint, continue with smaller steps."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch

from ..data import Dataset
from ..data.dataset import Batch, ResolvedBinarisation
from ..model.graph import VAE
from ..model.objectives import Objective
from ..settings.training import TrainConfig
from ..support import distributed
from ..support.errors import UserError
from .checkpoint import Checkpointer, NonFiniteLoss
from .learner import Learner, Position
from .loop import Epoch, train_epochs

MAX_RECOVERIES = 3  # per run
RATE_FACTOR = 0.5
CLIP_FACTOR = 2.0  # relative to the median norm of the gradient
TERMS = ("objective", "log-likelihood", "KL")


@dataclass(frozen=True)
class NonFinite:
    """What is not finite, at which step, whether smaller steps may help, and the median gradient norm until then."""

    text: str
    step: int | None = None
    recoverable: bool = True
    norm: float | None = None


class NonFiniteFound(Exception):
    """Raised by an Inspector at the first value that is not finite."""

    def __init__(self, report: NonFinite) -> None:
        super().__init__(report.text)
        self.report = report


class Inspector:
    """Inspects a learner after each step for the first value that is not finite."""

    def __init__(self, learner: Learner) -> None:
        self.learner, self.norms = learner, list[float]()
        self.batch: Batch | None = None

    def track(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches, with an inspection after the step of each."""
        for batch in batches:
            self.inspect()
            self.batch = batch
            yield batch
        self.inspect()

    def inspect(self) -> None:
        """Inspect the last step. Raises NonFiniteFound."""
        if self.batch is None:
            return
        problem, self.batch = self.find_non_finite(self.batch), None
        if distributed.all_reduce_number(problem is not None):
            text, recoverable = problem or ("a value is not finite in another process", True)
            norm = statistics.median(self.norms) if self.norms else None
            raise NonFiniteFound(NonFinite(text, self.learner.position.batch, recoverable, norm))

    def find_non_finite(self, batch: Batch) -> tuple[str, bool] | None:
        """What is not finite in the last step, and whether smaller steps may help; or None."""
        learner = self.learner
        term = non_finite_term(learner)
        bad = (~batch.images.float().isfinite()).flatten(1).any(1)
        if term and bad.any():
            rows = learner.rows[learner.position.batch - 1]
            row = int(distributed.local_rows(rows)[bad][0])
            return f"training image {row} has pixels that are not finite", False
        if term:
            return f"the {term} is not finite", True
        gradients = {n: p.grad for n, p in learner.model.named_parameters() if p.grad is not None}
        for name, gradient in gradients.items():
            if not gradient.isfinite().all():
                return f"the gradient of {name} is not finite", True
        for name, parameter in learner.model.named_parameters():
            if not parameter.isfinite().all():
                return f"the update of {name} is not finite", True
        self.norms.append(float(torch.nn.utils.get_total_norm(gradients.values())))
        return None


def non_finite_term(learner: Learner) -> str | None:
    """The term that makes the objective not finite, or the objective itself; None where it is finite."""
    finite = learner.totals.isfinite().tolist()
    if finite[0]:
        return None  # the KL of a deterministic posterior is never finite
    return next((TERMS[i] for i in (1, 2) if not finite[i]), TERMS[0])


def train_with_recovery(
    learner: Learner,
    data: Dataset,
    objective: Objective,
    binarisation: ResolvedBinarisation,
    checkpointer: Checkpointer,
    track: Callable[[Iterable[Batch]], Iterable[Batch]] = iter,
    log: Callable[[str], None] = lambda text: None,
    on_rewind: Callable[[], None] = lambda: None,
) -> Iterator[tuple[Epoch, VAE]]:
    """`train_epochs` with checkpoints, which it restores where the loss is not finite; it then calls `on_rewind`, and
    epochs may be yielded again.

    Raises UserError where that does not help, after yielding a last epoch with NaN metrics.
    """
    parts = data, objective, binarisation
    while True:
        try:
            for epoch, model in train_epochs(
                learner, *parts, lambda batches: track(checkpointer.track(learner, batches)), log
            ):
                if not math.isfinite(epoch.train_objective + epoch.validation_objective):
                    raise NonFiniteLoss(epoch.epoch)
                yield epoch, model
                checkpointer.on_epoch_end(learner)
            checkpointer.save(learner)
            return
        except NonFiniteLoss as error:
            number: int = error.args[0]
        log(f"the loss is not finite in epoch {number}; searching for the step ...")
        state = checkpointer.run.load_state()
        learner.restore(state)
        report = diagnose(learner, *parts, number)
        learner.restore(state)
        where = "" if report.step is None else f", step {report.step}"
        if not report.recoverable or len(learner.position.recovered) >= MAX_RECOVERIES:
            yield empty_epoch(number), learner.output_model
            raise UserError(
                f"the loss is not finite at epoch {number}{where}: {report.text}; "
                + (
                    smaller_steps(learner.config, learner.position)
                    if report.recoverable
                    else "correct the data"
                )
                + f" (the run so far is in {checkpointer.run})"
            )
        reduce_step_size(learner, report, number)
        checkpointer.save(learner)
        on_rewind()
        at = learner.position
        log(
            f"warning: epoch {number}{where}: {report.text}; resuming from step {at.batch} of epoch {at.epoch + 1} "
            f"with {at.rate_factor:g} times the learning rate and gradients clipped at {at.clip_gradient:g}"
        )


def smaller_steps(config: TrainConfig, at: Position) -> str:
    """Advice: a learning rate and a gradient clipping well below those of this position."""
    rate = min(0.1 * at.rate_factor * config.learning_rate, TrainConfig.learning_rate)
    clip = 100.0 if at.clip_gradient is None else 0.1 * at.clip_gradient
    rate, clip = (float(f"{value:.2g}") for value in (rate, clip))
    return f"try --learning-rate {rate:g}, or --clip-gradient {clip:g}"


def reduce_step_size(learner: Learner, report: NonFinite, epoch: int) -> None:
    """Lower the learning rate and the gradient clipping from here on, and record that."""
    at = learner.position
    at.rate_factor *= RATE_FACTOR
    clips = [] if report.norm is None else [CLIP_FACTOR * report.norm]
    if at.clip_gradient is not None:
        clips.append(RATE_FACTOR * at.clip_gradient)
    at.clip_gradient = float(f"{min(clips, default=100.0):.3g}")
    cause: dict[str, Any] = {"epoch": epoch, "step": report.step, "what": report.text}
    at.recovered.append(cause | {"rate_factor": at.rate_factor, "clip_gradient": at.clip_gradient})


def diagnose(
    learner: Learner,
    data: Dataset,
    objective: Objective,
    binarisation: ResolvedBinarisation,
    epoch: int,
) -> NonFinite:
    """Repeat the training up to the epoch that was not finite, inspecting each step."""
    inspector = Inspector(learner)
    try:
        for again, _ in train_epochs(learner, data, objective, binarisation, inspector.track):
            if not math.isfinite(again.validation_objective):
                return NonFinite(
                    "the validation objective is not finite, but that of the training is"
                )
            if again.epoch >= epoch:
                break
    except NonFiniteFound as error:
        return error.report
    return NonFinite("it was finite when repeated")


def empty_epoch(epoch: int) -> Epoch:
    """An epoch whose metrics are NaN."""
    metrics: dict[str, Any] = {field.name: math.nan for field in fields(Epoch)}
    return Epoch(**metrics | {"epoch": epoch, "best": False, "skipped_steps": 0})
