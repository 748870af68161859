"""The pictures that a run can give, by name: `draw(run, "latents")`."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..pictures import Movie, save
from ..runs.directory import Run
from ..settings.analysis import PlotConfig
from ..support.errors import closest, override, require
from .names import PICTURES, DoesNotApply
from .scene import Scene

__all__ = ["PICTURES", "Scene", "draw", "draw_each", "write_each"]


def draw(
    run: Run | str | Path, *names: str, data_dir: str | Path | None = None, **settings: Any
) -> dict[str, Figure | Movie]:
    """Pictures of a run by name (see PICTURES), all that apply where none is named: matplotlib figures, and movies of
    several, by the names that `vaekit plot` gives their files.

    `settings` are the fields of PlotConfig. The run need not have its data any more. Raises UserError for an unknown
    name, and for a picture that does not apply to the model.
    """
    scene = Scene.of(run, override(PlotConfig(), settings, "draw()"), data_dir)
    return dict(pair for name, pair in draw_each(scene, names))


def draw_each(
    scene: Scene, names: tuple[str, ...]
) -> Iterator[tuple[str, tuple[str, Figure | Movie]]]:
    """As `draw`, one after the other: (name, (file's name, picture))."""
    for name in names:
        require(
            name in PICTURES,
            f"there is no picture {name!r}{closest(name, PICTURES)} (`vaekit plot --list` names them)",
        )
    for name in names or PICTURES:
        module, _, function = PICTURES[name].home.partition(":")
        try:
            found = getattr(import_module(f".{module}", __package__), function)(scene)
        except DoesNotApply:
            if names:
                raise
            continue
        for pair in found.items():
            yield name, pair


def write_each(
    scene: Scene, names: tuple[str, ...], folder: Path, kind: str = "png"
) -> Iterator[Path]:
    """Draw pictures as `draw_each`, and write each to a file in `folder`, which is made: of `kind`, a movie as GIF."""
    for _, (name, picture) in draw_each(scene, names):
        folder.mkdir(parents=True, exist_ok=True)
        ending = "gif" if isinstance(picture, Movie) else kind
        yield save(picture, folder / f"{name}.{ending}")
