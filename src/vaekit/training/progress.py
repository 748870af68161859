"""What is shown of work that takes time: of a training one live line on a terminal, or one plain line an epoch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

import rich.progress
from rich.table import Column
from rich.text import Text

from ..settings.training import TrainConfig
from ..support.console import Shown, clock

if TYPE_CHECKING:
    from ..data.dataset import Batch
    from .loop import Epoch


T = TypeVar("T")


class Line(rich.progress.ProgressColumn):
    """Time left, then the task's description; on a narrow terminal the end goes, with an ellipsis."""

    def __init__(self) -> None:
        super().__init__(table_column=Column(no_wrap=True, overflow="ellipsis"))

    def render(self, task: rich.progress.Task) -> Text:
        left = task.time_remaining
        return Text(f"{'-:--' if left is None else clock(left)} left  {task.description}")


class Progress:
    """A context manager; `track` goes around the batches of each epoch, `show` takes its record."""

    def __init__(self, config: TrainConfig, images: int, enabled: bool) -> None:
        self.epochs = config.epochs
        shown = Shown(enabled)
        self.console, self.live, self.say = shown.console, shown.live, shown.say
        columns: list[rich.progress.ProgressColumn] = [Line()]
        if self.console.width >= 100:
            columns.append(rich.progress.BarColumn(bar_width=15))
        self.bar = rich.progress.Progress(*columns, console=self.console, disable=not self.live)
        self.task = self.bar.add_task(
            f"epoch 1/{self.epochs}", total=config.steps(images) * config.epochs
        )
        self.steps, self.shown, self.seconds = config.steps(images), 0, 0.0

    def go_on(self, epoch: int, batch: int) -> None:
        """Begin after so many epochs and steps."""
        self.bar.update(self.task, completed=epoch * self.steps + batch)

    def __enter__(self) -> Progress:
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
        for batch in batches:
            yield batch
            if self.live:
                self.bar.advance(self.task)

    def show(self, epoch: Epoch) -> None:
        digits = 1 if self.live else 2
        line = f"epoch {epoch.epoch}/{self.epochs}  {epoch.images_per_second:,.0f} images/s  "
        if math.isnan(epoch.validation_kl):  # a posterior of one point has no ELBO
            line += (
                f"objective train {epoch.train_objective:.{digits}f} "
                f"valid {epoch.validation_objective:.{digits}f}"
            )
        else:
            line += (
                f"ELBO train {epoch.train_elbo:.{digits}f} valid {epoch.validation_elbo:.{digits}f} "
                f"KL {epoch.validation_kl:.{digits}f}"
            )
        if self.live:
            self.bar.update(self.task, description=line)
        else:
            self.seconds, self.shown = self.seconds + epoch.seconds, self.shown + 1
            left = self.seconds / self.shown * (self.epochs - epoch.epoch)
            self.console.print(f"{line}  {clock(left)} left")
