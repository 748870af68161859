"""What is done about a loss that is not finite: find the step and the number that broke, go back, and go on slower."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch

from ..data import Dataset
from ..data.dataset import Batch, Settled
from ..model.graph import VAE
from ..model.objectives import Objective
from ..support import distributed as ranks
from ..support.errors import UserError
from .checkpoint import Diverged, Keeper
from .learner import Learner
from .loop import Epoch, train_epochs

RECOVERIES = 3  # of a run, at most
SLOWER = 0.5
CLIP = 2.0  # times the usual norm of the gradient
TERMS = ("objective", "log-likelihood", "KL")


@dataclass(frozen=True)
class Finding:
    """What broke, where, and whether going on slower may help; the usual norm of the gradient until then."""

    text: str
    step: int | None = None
    helps: bool = True
    norm: float | None = None


class Found(Exception):
    """An Inspector has found what it looks for."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.text)
        self.finding = finding


class Inspector:
    """Looks at a learner after each of its steps, for the first number that is not finite."""

    def __init__(self, learner: Learner) -> None:
        self.learner, self.norms = learner, list[float]()
        self.batch: Batch | None = None

    def track(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        for batch in batches:
            self.look()
            self.batch = batch
            yield batch
        self.look()

    def look(self) -> None:
        """Raises Found."""
        if self.batch is None:
            return
        found, self.batch = self.find(self.batch), None
        if ranks.agree(found is not None):
            text, helps = found or ("something is not finite in another process", True)
            norm = statistics.median(self.norms) if self.norms else None
            raise Found(Finding(text, self.learner.at.batch, helps, norm))

    def find(self, batch: Batch) -> tuple[str, bool] | None:
        """What of the last step is not finite, and whether going on slower may help."""
        learner = self.learner
        term = broken_term(learner)
        bad = (~batch.images.float().isfinite()).flatten(1).any(1)
        if term and bad.any():
            rows = learner.order.split(learner.config.batch_size)[learner.at.batch - 1]
            row = int(ranks.part(rows)[bad][0])
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


def broken_term(learner: Learner) -> str | None:
    """What of the objective is not finite, the part that it comes from if it is one."""
    finite = learner.totals.isfinite().tolist()
    if finite[0]:
        return None  # the KL of a deterministic posterior never is
    return next((TERMS[i] for i in (1, 2) if not finite[i]), TERMS[0])


def rescued(
    learner: Learner,
    data: Dataset,
    objective: Objective,
    binarisation: Settled,
    keeper: Keeper,
    track: Callable[[Iterable[Batch]], Iterable[Batch]] = iter,
    say: Callable[[str], None] = lambda text: None,
    gone_back: Callable[[], None] = lambda: None,
) -> Iterator[tuple[Epoch, VAE]]:
    """`train_epochs`, whose state is kept, and which goes back to it where the loss is not finite, and says so by
    `gone_back`: epochs that were yielded may come again.

    Raises UserError where that does not help; the last record is then of an epoch without numbers.
    """
    parts = data, objective, binarisation
    while True:
        try:
            for epoch, kept in train_epochs(
                learner, *parts, lambda batches: track(keeper.track(learner, batches)), say
            ):
                if not math.isfinite(epoch.train_objective + epoch.validation_objective):
                    raise Diverged(epoch.epoch)
                yield epoch, kept
                keeper.pause(learner)
            keeper.keep(learner)
            return
        except Diverged as error:
            number: int = error.args[0]
        say(f"the loss is not finite in epoch {number}; looking for the step ...")
        state = keeper.run.load_state()
        learner.restore(state)
        finding = diagnose(learner, *parts, number)
        learner.restore(state)
        where = "" if finding.step is None else f", step {finding.step}"
        if not finding.helps or len(learner.at.recovered) >= RECOVERIES:
            yield nothing(number), learner.kept
            raise UserError(
                f"the loss is not finite at epoch {number}{where}: {finding.text}; "
                + (
                    "try a smaller --learning-rate, or --clip-gradient 100"
                    if finding.helps
                    else "mend the data"
                )
                + f" (the run so far is in {keeper.run})"
            )
        slow_down(learner, finding, number)
        keeper.keep(learner)
        gone_back()
        say(
            f"warning: epoch {number}{where}: {finding.text}; back to step {learner.at.batch} of epoch "
            f"{learner.at.epoch + 1}, with {learner.at.rate_factor:g} of the learning rate and gradients clipped at "
            f"{learner.at.clip_gradient:g}"
        )


def slow_down(learner: Learner, finding: Finding, epoch: int) -> None:
    """A smaller rate and shorter gradients from here on, and a record of it."""
    at = learner.at
    at.rate_factor *= SLOWER
    clips = [] if finding.norm is None else [CLIP * finding.norm]
    if at.clip_gradient is not None:
        clips.append(SLOWER * at.clip_gradient)
    at.clip_gradient = float(f"{min(clips, default=100.0):.3g}")
    about: dict[str, Any] = {"epoch": epoch, "step": finding.step, "what": finding.text}
    at.recovered.append(about | {"rate_factor": at.rate_factor, "clip_gradient": at.clip_gradient})


def diagnose(
    learner: Learner, data: Dataset, objective: Objective, binarisation: Settled, epoch: int
) -> Finding:
    """Train again up to an epoch that broke, looking at each step."""
    inspector = Inspector(learner)
    try:
        for again, _ in train_epochs(learner, data, objective, binarisation, inspector.track):
            if not math.isfinite(again.validation_objective):
                return Finding("the validation objective is not finite, where the training's is")
            if again.epoch >= epoch:
                break
    except Found as found:
        return found.finding
    return Finding("another time it was finite")


def nothing(epoch: int) -> Epoch:
    """The record of an epoch that came to nothing."""
    numbers: dict[str, Any] = {field.name: math.nan for field in fields(Epoch)}
    return Epoch(**numbers | {"epoch": epoch, "best": False, "skipped_steps": 0})
