"""Presets: every experiment of the replaced systems by name, with the weights that its source has."""

import dataclasses

import pytest
import torch

from vaekit import UserError, train
from vaekit.model.build import build, build_from, make_objective
from vaekit.model.pixels import likelihood_head
from vaekit.settings.model import Blueprint, ModelConfig
from vaekit.settings.presets import PRESETS, as_table, preset


def blueprint(found):
    settings = found.entry.settings
    if settings.likelihood == "auto":
        settings = dataclasses.replace(settings, likelihood="bernoulli")
    return Blueprint(found.model, found.shape, settings, 0, classes=10)


@pytest.mark.parametrize("name", PRESETS)
def test_it_has_as_many_weights_as_its_source(name):
    found = PRESETS[name]
    with torch.device("meta"):
        model = build_from(blueprint(found))
    assert sum(p.numel() for p in model.parameters()) == found.parameters
    make_objective(found.entry.objective, model.blueprint.settings)


def test_every_experiment_of_the_replaced_systems_is_there():
    for name in [
        "aevb-mnist", "aevb-freyface", "keras-mnist", "keras-cifar10", "keras-caltech101-92", "keras-caltech101-94",
        "keras-caltech101-128",
        "vampprior-tf2", "vampprior-tf2-vae", "vampprior-tf2-hvae", "vampprior-tf2-hvamp", "tensorflow-vae",
        "tensorflow-cvae", "tensorflow-infovae", "tensorflow-mmdvae", "vampprior-paper", "iwae-paper",
        *(f"vae-gmvae-model{n}" for n in range(1, 6)),
    ]:  # fmt: skip
        assert name in PRESETS
    assert as_table().row_count == len(PRESETS)


def test_a_variance_became_a_standard_deviation():
    """--sigma 0.001 of VAE-GMVAE is the variance in 0.5 / sigma."""
    assert preset("vae-gmvae-model1").entry.settings.scale == pytest.approx(0.0316227766)
    assert preset("vae-gmvae-model3").entry.settings.scale == pytest.approx(0.1)


def test_the_squared_error_of_the_originals_is_its_log_likelihood():
    """MMD-VAE's mean squared error + MMD, times 3072 pixels, is the sum + 3072 MMD."""
    found = preset("tensorflow-mmdvae")
    model = build(found.model, found.shape, **dataclasses.asdict(found.entry.settings))
    x, z = torch.rand(2, 3, 32, 32), torch.randn(2, 200)
    likelihood = model.decode(z=z)
    square = ((x - likelihood.mean) ** 2).sum((1, 2, 3))
    other = torch.rand(2, 3, 32, 32)
    gap = likelihood.log_prob(other) - likelihood.log_prob(x)
    assert torch.allclose(gap, square - ((other - likelihood.mean) ** 2).sum((1, 2, 3)), atol=1e-2)
    assert found.entry.objective.mmd_weight == 3 * 32 * 32


@pytest.mark.parametrize("name", [
    "aevb-freyface", *(f"vae-gmvae-model{n}" for n in range(1, 6)), "tensorflow-infovae", "tensorflow-mmdvae",
])  # fmt: skip
def test_gaussian_means_are_squashed_as_in_the_originals(name):
    """x | z ~ N(sigmoid(output), sigma): with an output of +-30 the means are 0 and 1."""
    settings = PRESETS[name].entry.settings
    outputs = torch.full((1, 2 if settings.scale == "each" else 1, 2, 2), 30.0)
    outputs[0, 0, 0] = -30.0
    pixels = likelihood_head(settings, 1)(outputs)
    assert torch.allclose(pixels.mean[0, 0], torch.tensor([[0.0, 0.0], [1.0, 1.0]]), atol=1e-6)
    assert "squashed" not in PRESETS[name].differs


def test_a_squashed_mean_has_the_density_of_a_gaussian_around_the_sigmoid():
    output, x = torch.linspace(-3, 3, 12).view(1, 1, 3, 4), torch.rand(1, 1, 3, 4)
    found = likelihood_head(ModelConfig(likelihood="gaussian", scale=0.3, mean="sigmoid"), 1)(
        output
    )
    expected = torch.distributions.Normal(1 / (1 + (-output).exp()), 0.3).log_prob(x).sum()
    assert torch.allclose(found.log_prob(x), expected)
    with pytest.raises(UserError, match="mean has no effect for a bernoulli"):
        ModelConfig(likelihood="bernoulli", mean="sigmoid")


def test_unknown_presets_are_named():
    with pytest.raises(UserError, match="did you mean 'aevb-mnist'"):
        preset("aevb-mnits")


# Epochs, batch, learning rate, optimiser, patience, KL warm-up and seed of each source.
TRAINING = {
    "aevb-mnist": (200, 100, 1e-3, "adam", None, None, 0),
    "aevb-freyface": (2000, 100, 1e-3, "adam", None, None, 777),
    "vae-gmvae-model1": (300, 64, 1e-3, "adam", 5, 0, 0),
    "vae-gmvae-model2": (300, 64, 1e-3, "adam", 5, 0, 0),
    "vae-gmvae-model3": (300, 64, 1e-4, "adam", 5, 0, 0),
    "vae-gmvae-model4": (300, 64, 1e-4, "adam", None, 0, 0),
    "vae-gmvae-model5": (300, 64, 1e-3, "adam", None, 0, 0),
    "keras-mnist": (60, 256, 1e-3, "rmsprop", None, None, 0),
    "keras-cifar10": (15, 256, 1e-3, "rmsprop", None, None, 0),
    "keras-caltech101-94": (100, 256, 1e-3, "rmsprop", None, None, 0),
    "keras-caltech101-92": (100, 256, 1e-3, "rmsprop", None, None, 0),
    "keras-caltech101-128": (300, 256, 1e-3, "rmsprop", None, None, 0),
    **dict.fromkeys(
        ["vampprior-tf2", "vampprior-tf2-vae", "vampprior-tf2-hvae", "vampprior-tf2-hvamp"],
        (250, 256, 1e-4, "adam", None, None, 0),
    ),
    "tensorflow-vae": (30, 64, 1e-4, "adam", None, None, 0),
    "tensorflow-cvae": (30, 64, 1e-4, "adam", None, None, 0),
    "tensorflow-infovae": (30, 64, 1e-3, "adam", None, None, 0),
    "tensorflow-mmdvae": (30, 64, 1e-3, "adam", None, None, 0),
    **dict.fromkeys(
        ["vampprior-paper", "vampprior-paper-vae", "vampprior-paper-hvae"],
        (2000, 100, 5e-4, "adam", 50, 100, 0),
    ),
    "iwae-paper": (3280, 20, 1e-3, "adam", None, None, 0),
    "cvae-quadrants": (50, 100, 1e-3, "adam", None, None, 0),
    "gmvae-paper": (100, 50, 1e-4, "adam", None, 0, 0),
}


@pytest.mark.parametrize("name", PRESETS)
def test_it_is_trained_as_in_its_source(name):
    t = PRESETS[name].entry.training
    assert (
        t.epochs, t.batch_size, t.learning_rate, t.optimizer, t.patience, t.kl_warmup, t.seed
    ) == TRAINING[name]  # fmt: skip
    assert t.schedule == ("cosine" if name == "iwae-paper" else "constant")
    settings = PRESETS[name].entry.settings
    assert getattr(settings, "start_epochs", 0) == 0  # no original starts its clusters


def test_a_preset_trains(tmp_path, small_mnist):
    entry = preset("vae-gmvae-model4").entry
    model = build("gmvae", small_mnist, **{**dataclasses.asdict(entry.settings), "start_epochs": 1})
    run = train(model, small_mnist, out=tmp_path / "a", epochs=1, kl_warmup=0.0, progress=False)
    assert run.blueprint.settings.scale == pytest.approx(0.1)
