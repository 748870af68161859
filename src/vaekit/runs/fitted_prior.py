"""The fitted prior of a run, RUN/fitted_prior.safetensors: its tensors, and how, to which weights, it was fitted; and
the graph with it in place of the prior of its first latent."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

import safetensors.torch
import torch
from torch import nn

from ..model.graph import VAE
from ..model.priors import FullMixture, LearnedMixture, VampPrior
from ..settings.analysis import FitPriorConfig
from ..settings.model import ClusterConfig
from ..support.atomic import parse_json, write_bytes
from ..support.errors import UserError, one_line, record_from_dict, require
from .directory import Run
from .schema import FittedPriorRecord
from .weights import DAMAGE, check_fit, read_header

RECORD = "fitted_prior"  # its key in the metadata of the file
MAX_FULL_DIM = 128  # of full covariances


def first_latent(model: VAE) -> str:
    """The latent whose prior is fitted: the first in sampling order, so z, or the top one of a hierarchy."""
    return next(iter(model.prior))


def with_prior(model: VAE, prior: nn.Module) -> VAE:
    """The model with another prior of its first latent; all other parts are shared."""
    priors = {**dict(model.prior.items()), first_latent(model): prior}
    posteriors = dict(model.posterior.items())
    return VAE(priors, posteriors, model.decoder, model.blueprint, model.condition)


def check_fittable(model: VAE, settings: FitPriorConfig) -> None:
    """Raise UserError where no prior, or none of this kind, can be fitted to the model."""
    blueprint, kind = model.blueprint, settings.prior
    require(
        not isinstance(blueprint.settings, ClusterConfig),
        f"the prior of a {blueprint.model} is its clusters; fit one to another model",
    )
    latent = first_latent(model)
    require(
        "y" not in getattr(model.prior[latent], "given", ()),
        f"the prior of {latent} is conditional, and a fitted one would be the same for all conditions; choose a model "
        "with another --prior",
    )
    require(
        kind != "vampprior"
        or (blueprint.settings.posterior == "gaussian" and model.condition is None),
        "--prior vampprior is a mixture of Gaussian posteriors given an image alone, which this model does not have; "
        "choose gmm, learned-mixture or flow",
    )


def build_fitted(model: VAE, settings: FitPriorConfig, dim: int) -> nn.Module:
    """A prior over `dim` dimensions by its settings, whose `components` are known, with initial values. Raises
    UserError where there is none."""
    kind, components = settings.prior, settings.components or 1
    if kind == "flow":
        from ..model.flows import FlowPrior

        return FlowPrior(dim, settings.flow, settings.flow_steps, settings.flow_dim)
    if kind == "learned-mixture":
        return LearnedMixture(components, dim)
    if kind == "vampprior":
        return VampPrior(model.posterior[first_latent(model)], components, model.blueprint.shape)
    require(
        dim <= MAX_FULL_DIM,
        f"--prior gmm has full covariances, for latents of up to {MAX_FULL_DIM} dimensions, and this one has {dim}; "
        "choose learned-mixture or flow",
    )
    return FullMixture(components, dim)


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
