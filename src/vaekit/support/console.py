"""Log lines and progress bars on the standard error."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import rich.progress
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from .errors import for_caller
from .escaping import CONTROLS, escape_controls

T = TypeVar("T")


class PlainConsole(Console):
    """A console that prints text as it is, without markup and emoji codes, but control characters as escapes."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **settings)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            plain = segment.control or not CONTROLS.search(segment.text)
            yield segment if plain else Segment(escape_controls(segment.text), segment.style)


class ProgressBar:
    """Log lines and progress bars on the standard error; nothing unless enabled."""

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self.console = PlainConsole(stderr=True, soft_wrap=True, quiet=not enabled)
        self.live = self.console.is_terminal and enabled

    def log(self, text: str) -> None:
        """Print a line, in the language of the caller."""
        self.console.print(for_caller(text))

    def track(self, steps: Iterable[T], description: str, total: int | None = None) -> Iterable[T]:
        """The steps, with a bar and the time left on a terminal."""
        return rich.progress.track(
            steps, description, total, console=self.console, disable=not self.live, transient=True
        )

    def download(self, description: str, total: int | None, done: int) -> rich.progress.Progress:
        """The bar of a download of which `done` bytes exist already; the caller updates its only task."""
        columns = (
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(bar_width=15),
            rich.progress.DownloadColumn(),
            rich.progress.TransferSpeedColumn(),
            rich.progress.TimeRemainingColumn(),
        )
        bar = rich.progress.Progress(
            *columns, console=self.console, disable=not self.live, transient=True
        )
        bar.add_task(description, total=total, completed=done)
        return bar


def format_duration(seconds: float) -> str:
    """Seconds as 1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
