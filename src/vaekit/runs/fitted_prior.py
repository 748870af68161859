"""The fitted prior of a run, RUN/fitted_prior.safetensors: its tensors, and how, to which weights, it was fitted."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

import safetensors.torch
import torch
from torch import nn

from ..model.fitted import build_fitted, check_fittable, with_prior
from ..model.graph import VAE
from ..support.atomic import parse_json, write_bytes
from ..support.errors import UserError, one_line, record_from_dict, require
from .directory import Run
from .schema import FittedPriorRecord
from .weights import DAMAGE, check_fit, read_header

RECORD = "fitted_prior"  # its key in the metadata of the file


def save_fitted_prior(run: Run, prior: nn.Module, record: FittedPriorRecord) -> None:
    """Write the fitted prior of a run, in place of an earlier one."""
    tensors = {name: t.cpu().contiguous() for name, t in prior.state_dict().items()}
    metadata = {RECORD: json.dumps(asdict(record), allow_nan=False)}
    write_bytes(run.fitted_prior_path, safetensors.torch.save(tensors, metadata))


def read_record(run: Run) -> FittedPriorRecord:
    """The record of the run's fitted prior. Raises UserError where there is none, or it is damaged."""
    path = run.fitted_prior_path
    require(
        path.is_file(),
        f"{run} has no fitted prior; first: vaekit fit-prior {run.weights_arguments}",
    )
    try:
        with safetensors.safe_open(path, "pt") as file:
            content = (file.metadata() or {}).get(RECORD, "")
    except DAMAGE as error:
        raise damaged(run, error) from None
    try:
        record = record_from_dict(FittedPriorRecord, parse_json(content.encode(), "record"), "it")
        _ = record.config
    except UserError as error:
        raise damaged(run, error) from None
    return record


def load_fitted_prior(run: Run, model: VAE, weights: str) -> tuple[VAE, str]:
    """A run's model with the fitted prior, and the hash of both, where `weights` is that of its weights.

    Raises UserError where the prior is missing, damaged, not finite, or fitted to the codes of other weights.
    """
    path, record = run.fitted_prior_path, read_record(run)
    require(
        record.weights == weights,
        f"{path} was fitted to the codes of earlier weights; fit again: vaekit fit-prior {run.weights_arguments}",
    )
    config = record.config
    check_fittable(model, config)
    content = path.read_bytes()
    try:
        with torch.device("meta"):  # before memory is allocated
            skeleton = build_fitted(model, config, record.dim)
        check_fit(skeleton, read_header(path), path)
        prior = build_fitted(model, config, record.dim)
        prior.load_state_dict(safetensors.torch.load(content))
    except (*DAMAGE, RuntimeError) as error:
        raise damaged(run, error) from None
    require(
        all(bool(tensor.isfinite().all()) for tensor in prior.state_dict().values()),
        f"{path} is not finite; fit again: vaekit fit-prior {run.weights_arguments}",
    )
    return with_prior(model, prior).eval(), combined_hash(
        weights, hashlib.sha256(content).hexdigest()
    )


def fitted_prior_sha256(run: Run) -> str:
    """SHA-256 of the file of the fitted prior. Raises UserError where there is none."""
    path = run.fitted_prior_path
    require(
        path.is_file(),
        f"{run} has no fitted prior; first: vaekit fit-prior {run.weights_arguments}",
    )
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def combined_hash(weights: str, prior: str) -> str:
    """The hash of a model with a fitted prior, by those of the two files."""
    return hashlib.sha256(f"{weights} {prior}".encode()).hexdigest()


def damaged(run: Run, error: Exception) -> UserError:
    return UserError(
        f"{run.fitted_prior_path} is damaged ({one_line(error)}); fit again: vaekit fit-prior "
        f"{run.weights_arguments}"
    )
