"""The progress display of a training: one live line on a terminal, else one plain line per epoch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING

import rich.progress
from rich.table import Column
from rich.text import Text

from ..settings.training import TrainConfig
from ..support.console import ProgressBar, format_duration

if TYPE_CHECKING:
    from ..data.dataset import Batch
    from .loop import Epoch


class TimeLeftColumn(rich.progress.ProgressColumn):
    """Time left, then the task's description, shortened with an ellipsis on a narrow terminal."""

    def __init__(self) -> None:
        super().__init__(table_column=Column(no_wrap=True, overflow="ellipsis"))

    def render(self, task: rich.progress.Task) -> Text:
        left = task.time_remaining
        return Text(f"{'-:--' if left is None else format_duration(left)} left  {task.description}")


class TrainingProgress:
    """A context manager that shows progress: `track` wraps the batches of each epoch, `on_epoch` takes its metrics."""

    def __init__(
        self, config: TrainConfig, images: int, enabled: bool, nats_per_bit: float | None = None
    ) -> None:
        """`nats_per_bit`: the nats of an image that are one bit/dim, in which the ELBO is then shown."""
        self.epochs, self.nats_per_bit = config.epochs, nats_per_bit
        self.train = "train" if config.augment is None else "train (augmented)"
        output = ProgressBar(enabled)
        self.console, self.live, self.log = output.console, output.live, output.log
        columns: list[rich.progress.ProgressColumn] = [TimeLeftColumn()]
        if self.console.width >= 100:
            columns.append(rich.progress.BarColumn(bar_width=15))
        self.bar = rich.progress.Progress(*columns, console=self.console, disable=not self.live)
        self.task = self.bar.add_task(f"epoch 1/{self.epochs}", total=config.total_steps(images))
        self.length = config.total_steps(images) / config.steps_per_epoch(images)  # in epochs
        self.timed_epochs, self.seconds = 0, 0.0

    def seek(self, steps: int) -> None:
        """Set the position, in steps."""
        self.bar.update(self.task, completed=steps)

    def __enter__(self) -> TrainingProgress:
        self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.stop()

    def track(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches, each of which advances the bar."""
        for batch in batches:
            yield batch
            if self.live:
                self.bar.advance(self.task)

    def on_epoch(self, epoch: Epoch) -> None:
        """Show the metrics of an epoch."""
        digits = 1 if self.live else 2
        line = f"epoch {epoch.epoch}/{self.epochs}  {epoch.images_per_second:,.0f} images/s  "
        if math.isnan(epoch.validation_kl):  # a deterministic posterior has no ELBO
            line += (
                f"objective {self.train} {epoch.train_objective:.{digits}f} "
                f"valid {epoch.validation_objective:.{digits}f}"
            )
        elif self.nats_per_bit is not None:
            train, valid = (
                -e / self.nats_per_bit for e in (epoch.train_elbo, epoch.validation_elbo)
            )
            line += (
                f"bits/dim {self.train} {train:.3f} valid {valid:.3f} "
                f"KL {epoch.validation_kl:.{digits}f}"
            )
        else:
            line += (
                f"ELBO {self.train} {epoch.train_elbo:.{digits}f} valid {epoch.validation_elbo:.{digits}f} "
                f"KL {epoch.validation_kl:.{digits}f}"
            )
        if self.live:
            self.bar.update(self.task, description=line)
        else:
            self.seconds, self.timed_epochs = self.seconds + epoch.seconds, self.timed_epochs + 1
            left = self.seconds / self.timed_epochs * max(0.0, self.length - epoch.epoch)
            self.console.print(f"{line}  {format_duration(left)} left")
