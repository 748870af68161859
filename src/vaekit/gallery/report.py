"""`vaekit report`: one HTML file that says how a run was made, what it came to, and shows it."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from matplotlib.figure import Figure
from PIL import Image

from ..evaluation.metrics import described, measured_on
from ..pictures import Movie
from ..pictures.writing import pixels, rendered
from ..runs.directory import Run
from ..settings.analysis import PlotConfig
from ..settings.catalog import MODELS
from ..support.atomic import write
from ..support.errors import UserError, require_folder
from .draw import draw_each
from .names import PICTURES
from .scene import Scene

BUDGET = 4_500_000  # bytes of all pictures, in base64
LARGE = 200_000  # bytes of a picture, from which on it is kept less exactly
WIDEST = 4096  # pixels of a side
READ = {"nll", "split", "images", "samples", "likelihood", "binarisation"}
SETTINGS = ("model", "training", "data")


@dataclass(frozen=True)
class Drawn:
    """A picture in the page; without `source` it is too large for it."""

    file: str
    source: str | None


def report(
    run: Run | str | Path, out: str | Path | None = None, data_dir: str | Path | None = None
) -> Path:
    """Write RUN/report.html (or `out`), which holds all that it shows. Raises UserError for a run without weights."""
    run = Run.of(run)
    path = run.path / "report.html" if out is None else Path(out)
    require_folder(path)
    scene = Scene.of(run, PlotConfig(), data_dir)
    metrics, evaluation = run.metrics, read_evaluation(run)
    page = Environment(
        loader=PackageLoader("vaekit.gallery", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = page.get_template("report.html.jinja").render(
        name=run.path.resolve().name,
        path=str(run),
        config=run.config,
        summary=MODELS[run.blueprint.model].summary if run.blueprint.model in MODELS else "",
        command=" ".join(map(str, run.config.get("command", []))),
        tiles=tiles(metrics, evaluation),
        warnings=[(e["epoch"], w) for e in metrics for w in e.get("warnings", [])],
        measured=evaluation and (measured_on(evaluation), described(evaluation)),
        sections=[(name, PICTURES[name].summary, shown) for name, shown in sections(scene).items()],
        settings={part: settings(run.section(part)) for part in SETTINGS},
    )
    write(path, text.encode())
    return path


def tiles(
    metrics: list[dict[str, Any]], evaluation: dict[str, Any] | None
) -> list[tuple[str, str]]:
    """The first numbers to look at."""
    if not metrics:
        return []
    best = [epoch for epoch in metrics if epoch.get("best")] or metrics
    found = [("epochs", f"{len(metrics)}, best {best[-1]['epoch']}")]
    elbo = best[-1].get("validation_elbo")
    if elbo is not None:
        found.append(("validation ELBO, nats", f"{elbo:.2f}"))
    if evaluation is not None and evaluation["nll"] is not None:
        found.append((f"NLL, {evaluation['split']} images, nats", f"{evaluation['nll']:.2f}"))
    examined = [epoch for epoch in metrics if epoch.get("active_units") is not None]
    if examined:
        found.append(
            ("active units", f"{examined[-1]['active_units']} of {examined[-1]['latent_units']}")
        )
    seconds = sum(epoch.get("seconds", 0) for epoch in metrics)
    return [
        *found,
        ("training", f"{seconds:.0f} s" if seconds < 180 else f"{seconds / 60:.0f} min"),
    ]


def read_evaluation(run: Run) -> dict[str, Any] | None:
    """What `evaluate` measured; None where it was not run, or the file is not whole."""
    try:
        found = run.evaluation
    except UserError:
        return None
    return found if found.keys() >= READ else None


def settings(section: dict[str, Any]) -> list[tuple[str, str]]:
    """A part of config.json as names and values, what lies deeper too."""
    rows: list[tuple[str, str]] = []
    for key, value in section.items():
        if isinstance(value, dict):
            rows += [(f"{key}: {name}", deeper) for name, deeper in settings(value)]
        else:
            rows.append((key, value if isinstance(value, str) else json.dumps(value)))
    return rows


def sections(scene: Scene) -> dict[str, list[Drawn]]:
    """The pictures by their name in PICTURES, as long as the page has room."""
    found: dict[str, list[Drawn]] = {}
    spent = 0
    for name, (file, picture) in draw_each(scene, ()):
        content = moving(picture) if isinstance(picture, Movie) else still(picture)
        encoded = base64.b64encode(content).decode()
        room = spent + len(encoded) <= BUDGET
        spent += len(encoded) if room else 0
        source = f"data:image/webp;base64,{encoded}" if room else None
        found.setdefault(name, []).append(Drawn(file, source))
    return found


def still(figure: Figure) -> bytes:
    """A figure as WebP, exact unless that is large and another way is smaller."""
    image = pixels(figure)
    found: list[bytes] = []
    for options in ({"lossless": True}, {"quality": 80}, {"quality": 50}):
        found.append(webp([image], options))
        if len(found[-1]) <= LARGE:
            return found[-1]
    return min(found, key=len)


def moving(movie: Movie) -> bytes:
    """A movie as WebP, half as large a side."""
    images, times = rendered(movie)
    largest = max(images[0].size)
    share = min(1.0, 520 / largest)
    size = (round(images[0].width * share), round(images[0].height * share))
    return webp(
        [image.resize(size, Image.Resampling.LANCZOS) for image in images],
        {"quality": 60, "duration": times},
    )


def webp(images: list[Image.Image], options: dict[str, Any]) -> bytes:
    for image in images:
        image.thumbnail((WIDEST, WIDEST))
    content, (first, *rest) = io.BytesIO(), images
    first.save(content, "WEBP", save_all=bool(rest), append_images=rest, loop=0, **options)
    return content.getvalue()
