"""Small models of every kind, for tests that go through all of them."""

from typing import get_args

import pytest
import torch

from vaekit import MODELS, build
from vaekit.settings.model import NOT_OF_LADDERS, LadderConfig, Likelihood

SHAPES = [(1, 28, 28), (1, 28, 20), (3, 32, 32), (3, 94, 94), (1, 7, 5), (1, 1, 1), (3, 64, 48)]
LIKELIHOODS = [x for x in get_args(Likelihood) if x != "auto"]


CLASSES = 4
VAMP = {"pseudo_inputs": "noise", "components": 5}
FLOW = {"flow_steps": 2, "flow_dim": 8}


# Every model of the table, and variants by its settings: (model, settings).
CASES = {
    **{name: (name, VAMP if "vamp" in name else {}) for name in MODELS},
    "learned-mixture": ("vae", {"prior": "learned-mixture", "components": 3}),
    "conditional prior": ("cvae", {"prior": "conditional"}),
    "quadrants": ("cvae", {"condition": "quadrants:2"}),
    "convolutional cvae": ("cvae", {"network": "conv"}),
    "convolutional quadrants": (
        "cvae",
        {"condition": "quadrants:1", "network": "conv", "prior": "conditional"},
    ),
    "convolutional hvampprior": ("hvampprior", {**VAMP, "network": "conv"}),
    "hvae of labels": ("hvae", {"condition": "label", "prior": "conditional", "top_dim": 2}),
    "gmvae of labels": ("gmvae", {"condition": "label", "w_dim": 2}),
    "hvae of quadrants": ("hvae", {"condition": "quadrants:3"}),
    "deterministic mmdvae": ("mmdvae", {"posterior": "deterministic"}),
    "logistic mixture": ("convvae", {"likelihood": "logistic-mixture"}),
    "quadrants of a logistic mixture": (
        "cvae",
        {"condition": "quadrants:2", "likelihood": "logistic-mixture"},
    ),
    "batch normalisation": ("convvae", {"normalisation": "batch"}),
    "layer normalisation": ("convgmvae", {"normalisation": "layer"}),
    "residual": ("convvae", {"network": "resnet"}),
    "residual cvae": (
        "cvae",
        {"network": "resnet", "normalisation": "weight", "blocks": 1, "prior": "conditional"},
    ),
    "residual quadrants": (
        "cvae",
        {"network": "resnet", "condition": "quadrants:1", "num_layers": 2, "blocks": 1},
    ),
    "residual hvampprior": (
        "hvampprior",
        {**VAMP, "network": "resnet", "normalisation": "group", "blocks": 1},
    ),
    "two encoders": ("hvae", {"two_encoders": True}),
    "flow prior": ("vae", {**FLOW, "prior": "flow"}),
    "spline flow prior": ("vae", {**FLOW, "prior": "flow", "flow": "spline-coupling"}),
    "autoregressive flow prior of labels": (
        "cvae",
        {**FLOW, "prior": "flow", "flow": "affine-autoregressive"},
    ),
    "hvae with a flow prior": ("hvae", {**FLOW, "prior": "flow", "top_dim": 2}),
    "flow posterior": ("vae", {**FLOW, "posterior": "flow", "flow": "affine-autoregressive"}),
    "flow posteriors and prior": (
        "hvae",
        {**FLOW, "prior": "flow", "posterior": "flow", "top_dim": 4, "two_encoders": True},
    ),
    "gmvae with flow posteriors": (
        "gmvae",
        {**FLOW, "posterior": "flow", "flow": "spline-autoregressive"},
    ),
    "deepvae of labels": (
        "deepvae",
        {"condition": "label", "groups": "1x1:3 2x1:2", "patch_size": 2},
    ),
    "deepvae of one position": ("deepvae", {"groups": "1x1:2"}),
    "deepvae with a flow prior": ("deepvae", {**FLOW, "prior": "flow", "groups": "1x1:3 2x1:2"}),
    "deepvae with a vampprior": ("deepvae", {**VAMP, "prior": "vampprior", "groups": "1x2:2"}),
}


NO_DENSITY = "a deterministic posterior has no density"


def small(name, shape=(1, 9, 6), **settings):
    """A small model; `settings` that a deep hierarchy refuses are left out there, and `latent_dim` is that of its two
    groups."""
    model, extra = CASES.get(name, (name, {}))
    sizes = {"latent_dim": 3, "hidden_dim": 16, "channels": 4}
    if isinstance(MODELS[model].settings, LadderConfig):
        sizes = {"channels": 8}
        if dim := settings.pop("latent_dim", None):
            extra = {**extra, "groups": f"1x2:{dim}"}
        settings = {key: value for key, value in settings.items() if key not in NOT_OF_LADDERS}
    return build(model, shape, **{"classes": CLASSES, **sizes, **extra, **settings})


def images(count, shape, likelihood="bernoulli"):
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(count, *shape, generator=generator)
    return x.round() if likelihood == "bernoulli" else (x * 255).round() / 255


def labels(count):
    return torch.arange(count) % CLASSES


def given(model, count):
    """The condition of `sample`: labels, or images to complete."""
    if model.blueprint.settings.condition.startswith("quadrants"):
        return images(count, model.blueprint.shape)
    return labels(count)


def skip_without_density(model):
    if model.blueprint.settings.posterior == "deterministic":
        pytest.skip(NO_DENSITY)
