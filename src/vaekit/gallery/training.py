"""Pictures of how a model was trained."""

from __future__ import annotations

from .. import pictures
from ..training.monitor import film_of
from .names import DoesNotApply
from .scene import Figures, Scene


def curves(scene: Scene) -> Figures:
    """By epoch, and the bound by samples seen."""
    metrics, name = scene.run.metrics, scene.run.path.name
    if not metrics:
        raise DoesNotApply(f"{scene.run} has no finished epoch")
    found: Figures = {"curves": pictures.curves(metrics, title=name)}
    if metrics[-1].get("validation_elbo") is not None:
        images = scene.run.section("data")["images"]["train"]
        found["curves-samples"] = pictures.samples_seen(metrics, images, title=name)
    return found


def progress(scene: Scene) -> Figures:
    """The film of a training, of the frames so far."""
    film = film_of(scene.run)
    if film is None:
        raise DoesNotApply("the run was not filmed; `vaekit train --record` does")
    return {"progress": film}
