"""Checkpoints of a training, from which it resumes after an interruption, and the signals that stop it."""

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
from ..support import distributed
from ..support.errors import UserError
from .learner import Learner

# Ctrl-C; `kill` and the end of a job; a closed terminal; the advance notice of a scheduler.
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
WITHIN_EPOCH_FACTOR = 10  # factor of the interval between checkpoints within an epoch
MAX_TIME_SHARE = 0.02  # of the time that saving may take
# Requests are summed over the processes: a sum of STOP or more means that one of them has to stop.
SAVE, STOP = 1.0, 2.0**20


class TrainingStopped(KeyboardInterrupt):
    """The training was stopped by the signal number `signal`, after saving a checkpoint."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.signal = number


class NonFiniteLoss(Exception):
    """The loss or the weights are not finite; the argument is the number of the epoch."""


class StopSignals:
    """A context manager that records the first stop signal; a second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self.previous_handlers: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for name in SIGNALS:
                number = getattr(signal, name, None)
                # nohup lets a program outlive its terminal by ignoring SIGHUP.
                if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                    self.previous_handlers[number] = signal.signal(number, self.handle)
        return self

    def handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
        if number == signal.SIGINT:
            os.write(2, b"\nstopping after this step (Ctrl-C again: at once)\n")

    def __exit__(self, *error: object) -> None:
        for number, handler in self.previous_handlers.items():
            signal.signal(number, handler)


class Checkpointer:
    """Saves checkpoints of a training: `track` wraps the batches of an epoch, `on_epoch_end` follows each epoch.

    `distributed.all_reduce_gradients` sums the requests that processes make before a step; all fulfil them after it.
    """

    def __init__(self, run: Run, interval: float, signals: StopSignals) -> None:
        """`interval`: seconds between checkpoints at the ends of epochs."""
        self.run, self.interval, self.signals = run, interval, signals
        self.last_saved, self.save_seconds = time.monotonic(), 0.0

    def track(self, learner: Learner, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches, with requests made before each step and fulfilled after it."""
        first = True
        for batch in batches:
            if not first:
                self.fulfil(learner, learner.request)
            first = False
            learner.request = self.requested(WITHIN_EPOCH_FACTOR * self.interval)
            yield batch

    def on_epoch_end(self, learner: Learner) -> None:
        """Save or stop after an epoch where that is due."""
        self.fulfil(learner, distributed.all_reduce_number(self.requested(self.interval)))

    def requested(self, interval: float) -> float:
        """What this process requests now: STOP, SAVE or 0."""
        if self.signals.received is not None:
            return STOP
        due = time.monotonic() - self.last_saved >= max(
            interval, self.save_seconds / MAX_TIME_SHARE
        )
        return SAVE if due and distributed.rank() == 0 else 0.0

    def fulfil(self, learner: Learner, request: float) -> None:
        """Save on any request; raises TrainingStopped where the sum of requests contains STOP."""
        if request:
            self.save(learner)
        if request >= STOP:
            at = learner.position
            where = f"step {at.batch} of epoch {at.epoch + 1}" if at.batch else f"epoch {at.epoch}"
            raise TrainingStopped(
                f"stopped after {where}; to resume: vaekit train --resume {shlex.quote(str(self.run))}",
                self.signals.received or signal.SIGTERM,
            )

    def save(self, learner: Learner) -> None:
        """Save the learner's state. Raises NonFiniteLoss, and saves nothing, where it is not finite."""
        started = time.monotonic()
        if distributed.all_reduce_number(not learner.finite()):
            raise NonFiniteLoss(learner.position.epoch + 1)
        state = learner.state()
        distributed.on_rank_zero(lambda: self.run.save_state(state))
        self.last_saved = time.monotonic()
        self.save_seconds = self.last_saved - started


@contextmanager
def checkpointing(run: Run, interval: float) -> Iterator[Checkpointer]:
    """A checkpointer that holds the lock of the run. Raises UserError where another process holds it."""
    lock = FileLock(run.inside(".lock"), timeout=0)

    def acquire_lock() -> None:
        try:
            lock.acquire()
        except Timeout:
            raise UserError(
                f"another process is training in {run}; wait for it, or stop it"
            ) from None

        for name in ("*.safetensors", "metrics.jsonl", "config.json"):
            for part in run.path.glob(f"{name}.*.part"):  # left by a killed training
                part.unlink()

    distributed.on_rank_zero(acquire_lock)
    with StopSignals() as signals:
        try:
            yield Checkpointer(run, interval, signals)
        finally:
            lock.release()
