"""Pictures of a training: curves and the recording."""

from __future__ import annotations

from .. import pictures
from ..training.monitor import training_movie
from .catalog import PictureUnavailable
from .context import Figures, PictureContext


def curves(context: PictureContext) -> Figures:
    """Draw the metrics by epoch, and the ELBO by training samples seen."""
    metrics, name = context.run.metrics, context.run.path.name
    if not metrics:
        raise PictureUnavailable(f"{context.run} has no finished epoch")
    figures: Figures = {"curves": pictures.curves(metrics, title=name)}
    if metrics[-1].get("validation_elbo") is not None:
        images = context.run.section("data")["images"]["train"]
        figures["curves-samples"] = pictures.samples_seen(metrics, images, title=name)
    return figures


def progress(context: PictureContext) -> Figures:
    """The recording of a training, of the frames so far."""
    movie = training_movie(context.run)
    if movie is None:
        raise PictureUnavailable("the run has no recording; train with `vaekit train --record`")
    return {"progress": movie}
