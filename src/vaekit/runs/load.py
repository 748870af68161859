"""Loading a trained model from its run directory, with the hash of its weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..model.build import BUILDERS, build_from, build_graph
from ..model.graph import VAE
from ..settings.model import Blueprint
from ..support.errors import UserError, one_line, require
from .directory import Run
from .fitted_prior import combined_hash, fitted_prior_sha256, load_fitted_prior
from .weights import (
    check_fit,
    copy_weights,
    kinds_and_shapes,
    load_weights,
    require_fit,
    weights_bytes,
)

STALE = "of earlier weights: evaluate again"  # marks such an evaluation


@dataclass(frozen=True)
class TrainedModel:
    """A model, and the SHA-256 of the weights that it has (with a fitted prior, of both): what is computed with it is
    stored under this hash, since the file of the weights may have been replaced meanwhile."""

    model: VAE
    sha256: str


def load(run: Run | str | Path) -> VAE:
    """The trained model of a run directory, on the CPU, in evaluation mode; `Run(path, "last")` has its last weights,
    `Run(path, prior="fitted")` the prior that was fitted to its codes.

    Raises UserError where the directory, its config.json or its weights are missing, damaged, not finite or do not
    agree.
    """
    return load_trained(run).model


def load_trained(run: Run | str | Path) -> TrainedModel:
    """The model, as `load` gives it, and the hash of the bytes that its weights were read from."""
    run = Run.of(run)
    # Before memory is allocated: config.json may ask for more than its weights justify.
    skeleton = build_on_meta(run.blueprint)
    if run.weights == "last":
        last, _ = last_weights(run)
        check_fit(skeleton, kinds_and_shapes(last), run.weights_path)
        model = build_from(run.blueprint)
        sha256 = copy_last(run, last, model)
    else:
        require_weights(run)
        require_fit(skeleton, run.weights_path)
        model = build_from(run.blueprint)
        sha256 = load_weights(model, run.weights_path)
    require(
        all(bool(weight.isfinite().all()) for weight in model.state_dict().values()),
        f"the weights of {run} are not finite: its training diverged, or they are damaged; train again",
    )
    if run.prior == "fitted":
        return TrainedModel(*load_fitted_prior(run, model.eval(), sha256))
    return TrainedModel(model.eval(), sha256)


def read_weights(run: Run, model: VAE) -> str:
    """Read the chosen weights of a run into a model, and return their hash (see weights_sha256). Raises UserError."""
    if run.weights == "last":
        return copy_last(run, last_weights(run)[0], model)
    require_weights(run)
    return load_weights(model, run.weights_path)


def copy_last(run: Run, weights: Mapping[str, Tensor], model: VAE) -> str:
    """Set a model's weights to the last ones of a run, and return their hash (see weights_sha256). Raises UserError."""
    copy_weights(model, weights, run.weights_path)
    return hashlib.sha256(weights_bytes(weights)).hexdigest()


def weights_sha256(run: Run) -> str:
    """SHA-256 of the chosen weights in the run directory now: of their file; of the last, of the file they would make;
    with a fitted prior, of both.

    Raises UserError where they are missing.
    """
    if run.weights == "last":
        sha256 = hashlib.sha256(weights_bytes(last_weights(run)[0])).hexdigest()
    else:
        require_weights(run)
        with run.weights_path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return combined_hash(sha256, fitted_prior_sha256(run)) if run.prior == "fitted" else sha256


def require_weights(run: Run) -> None:
    """Raise UserError where the chosen weights are not saved."""
    if run.weights == "best":
        saved = "the run has not saved any weights yet"
    else:
        epochs = sorted(
            file.stem.removeprefix("model-") for file in run.path.glob("model-*.safetensors")
        )
        there = ", ".join(
            ["best", "last", *(each.lstrip("0") for each in epochs if each.isdecimal())]
        )
        saved = f"there are --weights {there} (`vaekit train --save-every N` saves those of every Nth epoch)"
    require(run.weights_path.is_file(), f"{run.weights_path} is missing; {saved}")


def last_weights(run: Run) -> tuple[dict[str, Tensor], int]:
    """The weights in the last checkpoint of the training (their moving average where there is one), by name, and its
    number of finished epochs. Raises UserError where no epoch is finished."""
    state = run.load_state()
    # A state without a finished epoch may be of the pretraining of clusters.
    epoch = (
        state.scalars.get("epoch") if (run.path / "metrics.jsonl").is_file() and run.metrics else 0
    )
    if type(epoch) is not int or epoch < 1:
        raise UserError(f"{run} has no last weights: its checkpoint is of no finished epoch")
    return state.part("average") or state.part("model"), epoch


def epoch_of_weights(run: Run) -> dict[str, Any]:
    """The line of metrics.jsonl of the chosen weights. Raises UserError where it is missing."""
    if run.weights == "best":
        return run.best
    epoch = last_weights(run)[1] if run.weights == "last" else int(run.weights)
    lines = [line for line in run.metrics if line.get("epoch") == epoch]
    require(len(lines) > 0, f"{run.path / 'metrics.jsonl'} lacks epoch {epoch}")
    return lines[0]


def find_epoch(run: Run) -> dict[str, Any]:
    """As epoch_of_weights; {} where that is not known."""
    try:
        return epoch_of_weights(run)
    except UserError:
        return {}


def is_stale(evaluation: Mapping[str, Any], sha256: str) -> bool:
    """Whether an evaluation is not of the weights with this hash, but such as of those before a resumed training."""
    return evaluation.get("weights") != sha256


def build_on_meta(blueprint: Blueprint) -> VAE:
    """The model that a blueprint describes, on torch's meta device: its tensors have shapes, but no memory.

    Raises UserError for sizes that no tensor has.
    """
    if blueprint.model in BUILDERS:  # a registered builder may compute with numbers
        return build_from(blueprint)
    try:
        with torch.device("meta"):
            return build_graph(blueprint)
    except (RuntimeError, OverflowError) as error:
        raise UserError(f"no model has the sizes of its settings ({one_line(error)})") from None
