"""`vaekit report`: one HTML file with the settings, results and pictures of a run."""

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

from ..evaluation.metrics import describe_images, metric_rows
from ..pictures import Movie
from ..pictures.writing import render_frames, render_image
from ..runs.directory import Run, require_output
from ..runs.fitted_prior import read_record
from ..runs.load import STALE, find_epoch, is_stale
from ..runs.schema import FittedPriorRecord
from ..settings.analysis import PlotConfig
from ..settings.catalog import MODELS
from ..support.atomic import write_bytes
from ..support.errors import UserError
from .catalog import PICTURES
from .context import PictureContext
from .draw import iterate_pictures

MAX_PICTURE_BYTES = 4_500_000  # of all pictures together, in base64
MAX_LOSSLESS_BYTES = 200_000  # larger pictures are compressed with loss
MAX_SIDE = 4096  # pixels
REQUIRED_KEYS = {"split", "images", "samples", "likelihood", "binarisation"}
SETTINGS = ("model", "training", "data")


@dataclass(frozen=True)
class EmbeddedPicture:
    """A picture of the page as a data URI; `source` is None where it does not fit."""

    file: str
    source: str | None


def report(
    run: Run | str | Path, out: str | Path | None = None, data_dir: str | Path | None = None
) -> Path:
    """Write a self-contained RUN/report.html (or `out`). Raises UserError for a run without weights."""
    run = Run.of(run)
    path = run.file("report.html") if out is None else Path(out)
    require_output(path, (".html", ".htm"))
    context = PictureContext.of(run, PlotConfig(), data_dir)
    metrics, evaluation = run.metrics, read_evaluation(run)
    stale = evaluation is not None and is_stale(evaluation, context.sha256)
    page = Environment(
        loader=PackageLoader("vaekit.gallery", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = page.get_template("report.html.jinja").render(
        name=run.path.resolve().name,
        path=run.arguments,
        config=run.config,
        summary=MODELS[run.blueprint.model].summary if run.blueprint.model in MODELS else "",
        command=" ".join(map(str, run.config.get("command", []))),
        tiles=headline_results(
            metrics,
            find_epoch(run),
            None if stale else evaluation,
            read_record(run) if run.prior == "fitted" else None,
        ),
        warnings=[(e["epoch"], w) for e in metrics for w in e.get("warnings", [])],
        stale=STALE if stale else "",
        evaluation=evaluation and (describe_images(evaluation), metric_rows(evaluation)),
        sections=[
            (name, PICTURES[name].summary, embedded)
            for name, embedded in embedded_pictures(context).items()
        ],
        settings={part: settings_rows(run.section(part)) for part in SETTINGS},
    )
    write_bytes(path, text.encode(errors="backslashreplace"))
    return path


def headline_results(
    metrics: list[dict[str, Any]],
    epoch: dict[str, Any],
    evaluation: dict[str, Any] | None,
    fitted: FittedPriorRecord | None = None,
) -> list[tuple[str, str]]:
    """Label and value of the most important results; `epoch` is that of the weights, `fitted` of the fitted prior."""
    if not metrics:
        return []
    shown = "best" if epoch.get("best") else "weights of"
    tiles = [("epochs", f"{len(metrics)}" + (f", {shown} {epoch['epoch']}" if epoch else ""))]
    elbo = epoch.get("validation_elbo")
    if elbo is not None:
        tiles.append(("validation ELBO, nats", f"{elbo:.2f}"))
    if fitted is not None and fitted.elbo_fitted is not None:
        tiles.append(("with the fitted prior", f"{fitted.elbo_fitted:.2f}"))
    if evaluation is not None and evaluation["nll"] is not None:
        tiles.append((f"NLL, {evaluation['split']} images, nats", f"{evaluation['nll']:.2f}"))
    measured = [epoch for epoch in metrics if epoch.get("active_units") is not None]
    if measured:
        tiles.append(
            ("active units", f"{measured[-1]['active_units']} of {measured[-1]['latent_units']}")
        )
    seconds = sum(epoch.get("seconds") or 0 for epoch in metrics)
    return [
        *tiles,
        ("training", f"{seconds:.0f} s" if seconds < 180 else f"{seconds / 60:.0f} min"),
    ]


def read_evaluation(run: Run) -> dict[str, Any] | None:
    """The run's evaluation.json; None where it is missing or incomplete."""
    try:
        evaluation = run.evaluation
    except UserError:
        return None
    complete = all(evaluation.get(key) is not None for key in REQUIRED_KEYS)
    return evaluation if complete and "nll" in evaluation else None


def settings_rows(section: dict[str, Any]) -> list[tuple[str, str]]:
    """A section of config.json as names and values, nested ones too."""
    rows: list[tuple[str, str]] = []
    for key, value in section.items():
        if isinstance(value, dict):
            rows += [(f"{key}: {name}", nested) for name, nested in settings_rows(value)]
        else:
            rows.append((key, value if isinstance(value, str) else json.dumps(value)))
    return rows


def embedded_pictures(context: PictureContext) -> dict[str, list[EmbeddedPicture]]:
    """Pictures by name in PICTURES; once the page is full, without `source`."""
    embedded: dict[str, list[EmbeddedPicture]] = {}
    total = 0
    for name, (file, picture) in iterate_pictures(context, ()):
        content = encode_movie(picture) if isinstance(picture, Movie) else encode_figure(picture)
        encoded = base64.b64encode(content).decode()
        fits = total + len(encoded) <= MAX_PICTURE_BYTES
        total += len(encoded) if fits else 0
        source = f"data:image/webp;base64,{encoded}" if fits else None
        embedded.setdefault(name, []).append(EmbeddedPicture(file, source))
    return embedded


def encode_figure(figure: Figure) -> bytes:
    """Encode a figure as WebP, lossless unless that is large and lossy compression is smaller."""
    image = render_image(figure)
    encodings: list[bytes] = []
    for options in ({"lossless": True}, {"quality": 80}, {"quality": 50}):
        encodings.append(encode_webp([image], options))
        if len(encodings[-1]) <= MAX_LOSSLESS_BYTES:
            return encodings[-1]
    return min(encodings, key=len)


def encode_movie(movie: Movie) -> bytes:
    """Encode a movie as WebP, at most 520 pixels a side."""
    images, times = render_frames(movie)
    largest = max(images[0].size)
    scale = min(1.0, 520 / largest)
    size = (round(images[0].width * scale), round(images[0].height * scale))
    return encode_webp(
        [image.resize(size, Image.Resampling.LANCZOS) for image in images],
        {"quality": 60, "duration": times},
    )


def encode_webp(images: list[Image.Image], options: dict[str, Any]) -> bytes:
    """Encode images, shrunk to MAX_SIDE, as one WebP; several as an animation."""
    for image in images:
        image.thumbnail((MAX_SIDE, MAX_SIDE))
    content, (first, *rest) = io.BytesIO(), images
    first.save(content, "WEBP", save_all=bool(rest), append_images=rest, loop=0, **options)
    return content.getvalue()
