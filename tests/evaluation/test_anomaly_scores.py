"""Scores of odd images: exact on a linear-Gaussian model, per-pixel parts that add up, and lossless lengths."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

from linear_gaussian import SHAPE, linear_vae, log_marginal
from model_cases import LIKELIHOODS, images, labels, small
from vaekit import build
from vaekit.data import EvalSplit, Split
from vaekit.evaluation.anomaly_scores import (
    SCORES,
    ScoreContext,
    compressed_bits,
    default_score,
    encodings,
    log_pixels,
    mahalanobis,
    pixel_maps,
    why_not,
)
from vaekit.settings.analysis import AnomalyConfig
from vaekit.support.console import ProgressBar
from vaekit.support.devices import seeded

QUIET = ProgressBar(False)


def context(model, x, training=None, levels=256, **settings):
    split = EvalSplit(Split(x, labels(len(x)) % max(1, model.blueprint.classes)), "none")
    return ScoreContext(model, split, levels, AnomalyConfig(**settings), QUIET, training)


def noise(count, shape=SHAPE, seed=0):
    with seeded(seed):
        return torch.rand(count, *shape)


def score(name, *arguments, **settings):
    with torch.no_grad():
        return SCORES[name].function(context(*arguments, **settings))


def test_the_nll_and_what_follows_from_it_are_exact_at_the_exact_posterior():
    model, x = linear_vae(3), noise(7)
    exact = -log_marginal(x, 3).numpy()
    assert np.allclose(score("nll", model, x, samples=5), exact, atol=1e-4)
    training = context(model, noise(30, seed=1), samples=5)
    typical = -log_marginal(noise(30, seed=1), 3).numpy().mean()
    found = score("typicality", model, x, training, samples=5)
    assert np.allclose(found, np.abs(exact - typical), atol=1e-4)
    assert (exact < typical).any()  # what is unusually likely is odd too
    with torch.no_grad():
        corrected = score("complexity-corrected", model, x, samples=5)
        lengths = compressed_bits(context(model, x).images, 256, QUIET)
    assert np.allclose(corrected, (exact / math.log(2) - lengths) / 6, atol=1e-4)


def test_the_latent_score_is_the_mahalanobis_distance_from_the_aggregate_posterior():
    """Of images of the model itself the aggregate posterior is the prior, N(0, I): the distance of a mean m is |m|. The
    covariance of 20,000 samples is within 3 % in each direction but for 1 in 10,000 seeds."""
    model = linear_vae(2)
    with torch.no_grad(), seeded(5):
        training = context(model, model.sample(20_000).sample())
        x = noise(9, seed=2) * 4
        q = model.posterior["z"]({"x": x})
    assert np.allclose(score("latent", model, x, training), q.mean.norm(dim=1), rtol=0.05)


def test_the_mahalanobis_distance_of_a_known_covariance():
    corners = np.array([[a, b] for a in (-1.0, 1.0) for b in (-1.0, 1.0)])
    samples = np.tile(corners, (2000, 1)) @ np.array([[2.0, 0.0], [1.5, 0.5]]) + 3  # rows z A
    covariance = np.array([[2.0, 0.0], [1.5, 0.5]]).T @ np.array([[2.0, 0.0], [1.5, 0.5]])
    codes = np.array([[3.0, 3.0], [5.0, 3.0], [2.0, 4.0]])
    exact = [math.sqrt((c - 3) @ np.linalg.solve(covariance, c - 3)) for c in codes]
    assert np.allclose(mahalanobis(codes, samples), exact, rtol=0.02)


def test_the_reconstruction_error_is_the_mean_of_its_map():
    model, x = linear_vae(2), noise(5)
    with torch.no_grad():
        error = (model.reconstruct(x).mean - x).square()
        maps = pixel_maps(context(model, x), "reconstruction")
    assert torch.allclose(maps, error.mean(1), atol=1e-6)
    assert np.allclose(score("reconstruction", model, x), error.mean((1, 2, 3)), atol=1e-6)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_what_pixels_add_to_the_nll_is_all_of_the_reconstruction_term(likelihood):
    model = build("vae", (3, 4, 5), latent_dim=2, hidden_dim=8, likelihood=likelihood)
    x = images(4, (3, 4, 5), likelihood)
    with torch.no_grad():
        inference = model(x, samples=(2,))
        each = log_pixels(inference.likelihood, x)
        assert each.shape == (2, 4, 4, 5)
        assert torch.allclose(each.sum((-2, -1)), inference.log_likelihood, rtol=1e-4)
        maps = pixel_maps(context(model, x), "nll")
    assert maps.shape == (4, 4, 5)


@pytest.mark.parametrize("name", ["quadrants", "quadrants of a logistic mixture"])
def test_given_pixels_add_nothing(name):
    model = small(name)
    x = images(3, model.blueprint.shape)
    with torch.no_grad():
        inference = model(x, x, samples=(2,))
        each = log_pixels(inference.likelihood, x)
        maps = pixel_maps(context(model, x), "reconstruction")
        values = score("reconstruction", model, x)
    assert torch.allclose(each.sum((-2, -1)), inference.log_likelihood, rtol=1e-4)
    given = model.condition.mask[0] > 0
    assert given.any()
    assert (each[..., given] == 0).all()
    assert (maps[:, given] == 0).all()
    assert np.allclose(values, maps[:, ~given].mean(1), rtol=1e-4)


@pytest.mark.parametrize(
    ("shape", "levels"),
    [((1, 9, 7), 2), ((1, 9, 7), 17), ((3, 9, 7), 256), ((2, 9, 7), 256), ((3, 9, 7), 4096)],
)
def test_every_compressed_file_has_all_of_the_image(shape, levels):
    x = (noise(1, shape)[0] * (levels - 1)).round() / (levels - 1)
    files = encodings(x, levels)
    assert len(files) == (2 if levels <= 256 else 1)
    for file in files:
        found = np.asarray(Image.open(io.BytesIO(file))).astype(int)
        found = found[..., 0] if found.ndim == 3 and shape[0] != 3 else found  # grey as WebP
        found = found.transpose(2, 0, 1) if found.ndim == 3 else found.reshape(shape)
        found = found // found.max() if levels == 2 else found
        assert (found == (x * (levels - 1)).round().int().numpy()).all()


def test_the_correction_is_large_for_noise_and_small_for_a_constant_image():
    """At the same likelihood a constant image is the odder one: that likelihood is low for so simple an image."""
    x = torch.stack([torch.full((3, 16, 16), 0.2), noise(1, (3, 16, 16))[0]])
    x = (x * 255).round() / 255
    model = build("vae", (3, 16, 16), latent_dim=2, hidden_dim=4, likelihood="logistic")
    both = context(model, x)
    constant, random = compressed_bits(both.images, 256, QUIET) / (3 * 16 * 16)
    assert constant < 1
    assert 8 <= random < 10
    both.__dict__["nll"] = np.full(2, 1000.0)
    found = SCORES["complexity-corrected"].function(both)
    assert found[0] - found[1] == pytest.approx(random - constant)


@pytest.mark.parametrize(
    ("name", "settings", "levels", "missing"),
    [
        ("vae", {}, 2, set()),
        ("vae", {"likelihood": "logistic"}, 256, set()),
        ("vae", {"likelihood": "bernoulli"}, 256, {"complexity-corrected"}),
        ("vae", {"likelihood": "gaussian"}, None, {"complexity-corrected"}),
        ("flow posterior", {}, 2, {"likelihood-regret"}),
        ("quadrants", {}, 2, {"complexity-corrected"}),
        (
            "deterministic mmdvae",
            {},
            2,
            {"nll", "complexity-corrected", "likelihood-regret", "typicality"},
        ),
    ],
)
def test_scores_that_a_model_does_not_have(name, settings, levels, missing):
    model = small(name, **settings)
    assert {score for score in SCORES if why_not(score, model, levels)} == missing


@pytest.mark.parametrize(
    ("name", "settings", "levels", "good", "chosen"),
    [
        ("vae", {}, 2, False, "nll"),
        ("vae", {}, 2, True, "reconstruction"),
        ("convvae", {"likelihood": "logistic"}, 256, False, "complexity-corrected"),
        ("vae", {"likelihood": "gaussian"}, None, False, "likelihood-regret"),
        ("flow posterior", {"likelihood": "gaussian"}, None, False, "typicality"),
        ("deterministic mmdvae", {}, 2, False, "reconstruction"),
    ],
)
def test_the_default_follows_from_data_and_model_and_can_be_computed(
    name, settings, levels, good, chosen
):
    model = small(name, **settings)
    found, reason = default_score(model, levels, good)
    assert found == chosen
    assert reason
    assert not why_not(found, model, levels)


@pytest.mark.parametrize("name", ["hvampprior", "gmvae", "cvae", "deepvae", "flow posterior"])
def test_every_model_has_every_score_that_applies(name):
    model = small(name)
    x = images(6, model.blueprint.shape)
    training = context(model, images(9, model.blueprint.shape), samples=3)
    for each, entry in SCORES.items():
        if not why_not(each, model, 2):
            found = score(each, model, x, training, 2, samples=3, steps=2)
            assert found.shape == (6,)
            assert np.isfinite(found).all()
            maps = pixel_maps(context(model, x), entry.map)
            assert maps.shape == (6, *model.blueprint.shape[1:])
