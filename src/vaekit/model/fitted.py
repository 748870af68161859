"""Priors fitted to the codes of a trained model: a graph with another prior of its first latent."""

from __future__ import annotations

from torch import nn

from ..settings.analysis import FitPriorConfig
from ..settings.model import ClusterConfig
from ..support.errors import require
from .graph import VAE
from .priors import FullMixture, LearnedMixture, VampPrior

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
        from .flows import FlowPrior

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
