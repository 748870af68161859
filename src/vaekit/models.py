"""From settings to a graph and its objective: one short function a builder. Load a trained model from its run."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from torch import nn

from .compute import seeded
from .config import (
    MODELS,
    Blueprint,
    Likelihood,
    ModelConfig,
    UserError,
    model_entry,
    override,
    require,
    require_seed,
)
from .data import Dataset
from .distributions import (
    BernoulliHead,
    Conditional,
    LocationScaleHead,
    gaussian_head,
    logistic_head,
    posterior_head,
)
from .networks import MLP, Chain, ConvDecoder, ConvEncoder, Flatten, Unflatten, halvings
from .objectives import Objective, elbo
from .priors import StandardNormal
from .runs import Run, load_weights
from .vae import VAE

__all__ = ["MODELS", "build", "build_from", "load", "objective_of"]


def build(name: str, data: Dataset | tuple[int, int, int], seed: int = 0, **settings: Any) -> VAE:
    """A model by its name in MODELS, with the settings of ModelConfig, its weights drawn from `seed`.

    `data` is a data set, whose pixels also choose the likelihood, or an image shape (C, H, W); of a shape alone,
    the likelihood is bernoulli for one channel and logistic for more.
    Raises UserError for an unknown name or setting, or a setting out of range.
    """
    config = override(model_entry(name).settings, settings, f"model {name!r}")
    shape = data.shape if isinstance(data, Dataset) else data
    require(
        isinstance(shape, (tuple, list))
        and len(shape) == 3
        and all(isinstance(n, int) and n >= 1 for n in shape),
        f"the image shape is {shape}; it must be (channels, height, width), such as (1, 28, 28)",
    )
    if config.likelihood == "auto":
        by_channels: Likelihood = "bernoulli" if shape[0] == 1 else "logistic"
        natural = data.likelihood if isinstance(data, Dataset) else by_channels
        config = dataclasses.replace(config, likelihood=natural)
    require_seed(seed)
    return build_from(Blueprint(name, (shape[0], shape[1], shape[2]), config, int(seed)))


def build_from(blueprint: Blueprint) -> VAE:
    """The model that a blueprint describes."""
    settings = blueprint.settings
    networks = {"dense": _dense_networks, "conv": _conv_networks}[settings.network]
    with seeded(blueprint.seed):
        posterior, likelihood = posterior_head(), likelihood_head(settings)
        encoder, decoder = networks(blueprint, posterior.outputs, likelihood.outputs)
    return VAE(
        prior={"z": StandardNormal(settings.latent_dim)},
        posterior={"z": Conditional(("x",), encoder, posterior)},
        decoder=Conditional(("z",), decoder, likelihood),
        blueprint=blueprint,
    )


def objective_of(blueprint: Blueprint) -> Objective:
    """What a model of this blueprint is trained on unless told otherwise."""
    return elbo()


def likelihood_head(settings: ModelConfig) -> BernoulliHead | LocationScaleHead:
    """The head of the pixels that the settings name."""
    if settings.likelihood == "bernoulli":
        return BernoulliHead(event_dim=3)
    if settings.likelihood == "gaussian":
        return gaussian_head(settings.scale or "shared")
    if settings.likelihood == "logistic":
        return logistic_head(settings.scale or "each")
    raise UserError("the likelihood is 'auto'; build the model with `build`, which settles it")


def _dense_networks(
    blueprint: Blueprint, latent_outputs: int, pixel_outputs: int
) -> tuple[nn.Module, nn.Module]:
    s, (channels, height, width) = blueprint.settings, blueprint.shape
    hidden = [s.hidden_dim] * s.num_layers
    image = (pixel_outputs * channels, height, width)
    encoder = MLP(
        channels * height * width, hidden, latent_outputs * s.latent_dim, s.activation, s.dropout
    )
    decoder = MLP(s.latent_dim, hidden, math.prod(image), s.activation, s.dropout)
    return Chain(Flatten(), encoder), Chain(decoder, Unflatten(image))


def _conv_networks(
    blueprint: Blueprint, latent_outputs: int, pixel_outputs: int
) -> tuple[nn.Module, nn.Module]:
    s, (channels, height, width) = blueprint.settings, blueprint.shape
    depth = s.num_layers or max(1, len(halvings(height, width)) - 1)
    wide = [s.channels * 2**level for level in range(depth)]
    encoder = ConvEncoder(
        blueprint.shape, wide, s.hidden_dim, latent_outputs * s.latent_dim, s.activation, s.dropout
    )
    decoder = ConvDecoder(
        s.latent_dim, wide, s.hidden_dim, (pixel_outputs * channels, height, width),
        s.activation, s.dropout,
    )  # fmt: skip
    return encoder, decoder


def load(run: Run | str | Path) -> VAE:
    """The trained model of a run directory, on the CPU, in evaluation mode.

    Raises UserError where the directory, its config.json or its weights are missing, damaged or do not agree.
    """
    run = Run.of(run)
    model = build_from(run.blueprint)
    load_weights(model, run.weights_path)
    return model.eval()
