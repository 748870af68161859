"""Draw the pictures of a run by name: `draw(run, "latents")`."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..pictures import Movie, save
from ..pictures.writing import PictureExists
from ..runs.directory import Run
from ..settings.analysis import PlotConfig
from ..support.errors import did_you_mean, require, with_changes
from .catalog import PICTURES, PictureUnavailable
from .context import PictureContext


def draw(
    run: Run | str | Path, *names: str, data_dir: str | Path | None = None, **settings: Any
) -> dict[str, Figure | Movie]:
    """Draw pictures of a run by name (see PICTURES), by default all that apply: matplotlib figures and movies, keyed by
    the names that `vaekit plot` gives their files.

    `settings` are the fields of PlotConfig. The data set is not needed. Raises UserError for an unknown name, and for a
    picture that does not apply to the model.
    """
    context = PictureContext.of(run, with_changes(PlotConfig(), settings, "draw()"), data_dir)
    return dict(pair for name, pair in iterate_pictures(context, names))


def iterate_pictures(
    context: PictureContext, names: tuple[str, ...]
) -> Iterator[tuple[str, tuple[str, Figure | Movie]]]:
    """Draw pictures one at a time, as `draw` does: (name, (file name, picture))."""
    for name in names:
        require(
            name in PICTURES,
            f"there is no picture {name!r}{did_you_mean(name, PICTURES)} (`vaekit plot --list` lists them)",
        )
    for name in names or PICTURES:
        module, _, function = PICTURES[name].function.partition(":")
        try:
            figures = getattr(import_module(f".{module}", __package__), function)(context)
        except PictureUnavailable:
            if names:
                raise
            continue
        for pair in figures.items():
            yield name, pair


def write_pictures(
    context: PictureContext,
    names: tuple[str, ...],
    folder: Path,
    kind: str = "png",
    overwrite: bool = True,
) -> Iterator[Path]:
    """Draw pictures as `iterate_pictures` does and write each into `folder`, created if missing: figures as `kind`,
    movies as GIF.

    Unless `overwrite`, raises UserError at the end where there were other pictures of the same names, which it kept.
    """
    kept = []
    for _, (name, picture) in iterate_pictures(context, names):
        folder.mkdir(parents=True, exist_ok=True)
        ending = "gif" if isinstance(picture, Movie) else kind
        path = folder / context.run.file(f"{name}.{ending}").name
        try:
            yield save(picture, path, overwrite)
        except PictureExists:
            kept.append(path)
    if kept:
        more = f" and {len(kept) - 1} more" if len(kept) > 1 else ""
        raise PictureExists(f"{kept[0]}{more}")
