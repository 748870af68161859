"""The last state of a training, from which it goes on after a kill; and how it stops when it is told to."""

from __future__ import annotations

import os
import shlex
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from filelock import FileLock, Timeout

from ..data.dataset import Batch
from ..runs.directory import Run
from ..support import distributed as ranks
from ..support.errors import UserError
from .learner import Learner

# Ctrl-C; what `kill` and a job's end send; a terminal that closes; what a scheduler is told to send before the end.
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
WITHIN_EPOCH = 10  # times as long as from one epoch's end to another
SHARE = 0.02  # of the time, at most, that goes into saving
KEEP, STOP = 1.0, 2.0**20


class Stopped(KeyboardInterrupt):
    """A training was told to stop, and has kept its state; `signal` is the number of what told it."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.signal = number


class Diverged(Exception):
    """The loss or the weights are not finite, in an epoch of the number given."""


class Signals:
    """A context manager that notes the first signal to stop; Ctrl-C again stops at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for name in SIGNALS:
                number = getattr(signal, name, None)
                # nohup lets a program outlive its terminal by ignoring SIGHUP.
                if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                    self.before[number] = signal.signal(number, self.note)
        return self

    def note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
        if number == signal.SIGINT:
            os.write(2, b"\nstopping after this step (Ctrl-C again: at once)\n")

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


class Keeper:
    """Keeps the last state of a training: `track` goes around the batches of an epoch, `pause` between two epochs.

    What a process wishes for before a step, `ranks.join` makes known to all, who do it after the step.
    """

    def __init__(self, run: Run, every: float, signals: Signals) -> None:
        """`every`: seconds from one state to the next, at the end of an epoch."""
        self.run, self.every, self.signals = run, every, signals
        self.saved, self.took = time.monotonic(), 0.0

    def track(self, learner: Learner, batches: Iterable[Batch]) -> Iterator[Batch]:
        first = True
        for batch in batches:
            if not first:
                self.grant(learner, learner.wish)
            first = False
            learner.wish = self.wish(WITHIN_EPOCH * self.every)
            yield batch

    def pause(self, learner: Learner) -> None:
        """Between two epochs."""
        self.grant(learner, ranks.agree(self.wish(self.every)))

    def wish(self, every: float) -> float:
        """What it is time for, as a number; wishes add up."""
        if self.signals.received is not None:
            return STOP
        due = time.monotonic() - self.saved >= max(every, self.took / SHARE)
        return KEEP if due and ranks.number() == 0 else 0.0

    def grant(self, learner: Learner, wish: float) -> None:
        """Raises Stopped where it is time to stop."""
        if wish:
            self.keep(learner)
        if wish >= STOP:
            at = learner.at
            where = f"step {at.batch} of epoch {at.epoch + 1}" if at.batch else f"epoch {at.epoch}"
            raise Stopped(
                f"stopped after {where}; to go on: vaekit train --resume {shlex.quote(str(self.run))}",
                self.signals.received or signal.SIGTERM,
            )

    def keep(self, learner: Learner) -> None:
        """Raises Diverged rather than keep a state that is broken."""
        started = time.monotonic()
        if ranks.agree(not learner.finite()):
            raise Diverged(learner.at.epoch + 1)
        state = learner.state()
        ranks.first(lambda: self.run.save_state(state))
        self.saved = time.monotonic()
        self.took = self.saved - started


@contextmanager
def keeping(run: Run, every: float) -> Iterator[Keeper]:
    """A keeper, while no other process may train in the run. Raises UserError where one does."""
    lock = FileLock(run.path / ".lock", timeout=0)

    def hold() -> None:
        try:
            lock.acquire()
        except Timeout:
            raise UserError(
                f"another process is training in {run}; wait for it, or stop it"
            ) from None

        for name in ("*.safetensors", "metrics.jsonl", "config.json"):
            for part in run.path.glob(f"{name}.*.part"):  # of a training that was killed
                part.unlink()

    ranks.first(hold)
    with Signals() as signals:
        try:
            yield Keeper(run, every, signals)
        finally:
            lock.release()
