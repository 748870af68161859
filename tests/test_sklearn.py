"""The estimators follow scikit-learn's conventions, and their densities and clusters are those of the models."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, make_blobs
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score, roc_auc_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import check_clustering, parametrize_with_checks

from vaekit import UserError
from vaekit.data.dataset import Batch
from vaekit.likelihood.clusters import batch_responsibilities
from vaekit.sklearn import VAEClusterer, VAETransformer

EXAMPLE = Path(__file__).parent.parent / "examples" / "anomalies.py"
TINY = {"latent_dim": 2, "hidden_dim": 8, "epochs": 2, "samples": 5}


# scikit-learn's check clusters 50 points in 2 dimensions, and requires an adjusted Rand index above 0.4.
CLUSTERER = VAEClusterer(
    3, latent_dim=2, hidden_dim=16, epochs=10, learning_rate=3e-3, settings={"start_epochs": 60}, samples=5
)  # fmt: skip


@parametrize_with_checks([VAETransformer(**TINY)])
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


@pytest.mark.long
@parametrize_with_checks([CLUSTERER])
def test_scikit_learns_own_checks_of_a_clusterer(estimator, check):
    check(estimator)


@pytest.mark.long
def test_a_clusterer_passes_scikit_learns_clustering_check():
    check_clustering("VAEClusterer", CLUSTERER)


@pytest.fixture(scope="module")
def digits():
    images, labels = load_digits(return_X_y=True)
    return images[:900], labels[:900]


@pytest.fixture(scope="module")
def fitted(digits):
    return VAETransformer(
        latent_dim=8, hidden_dim=64, epochs=20, batch_size=25, learning_rate=5e-3, random_state=0
    ).fit(digits[0])


LONGER = [pytest.param(name, marks=pytest.mark.long) for name in ("hvae", "vampprior")]


@pytest.mark.parametrize("model", ["vae", "gmvae", *LONGER])
def test_the_density_in_the_units_of_the_data_integrates_to_1(model):
    """One-dimensional x; within 3 %, from 400 samples per x."""
    rows = np.random.default_rng(0).normal(50, 200, (300, 1))
    settings = {"components": 5} if model == "vampprior" else {}
    settings |= {"clusters": 3, "start_epochs": 1} if model == "gmvae" else {}
    density = VAETransformer(
        model,
        hidden_dim=16,
        epochs=30,
        batch_size=15,
        learning_rate=3e-3,
        settings=settings,
        samples=400,
        random_state=1,
    ).fit(rows)
    grid = np.linspace(-3000, 3000, 601)[:, None]
    total = np.exp(density.score_samples(grid)).sum() * 10.0
    assert total == pytest.approx(1, abs=0.03)
    assert density.score(rows) == pytest.approx(density.score_samples(rows).mean())


def test_a_rows_results_do_not_depend_on_the_others(fitted, digits):
    rows = digits[0][:60]
    alone = np.concatenate([fitted.score_samples(rows[i : i + 1]) for i in (0, 7, 50)])
    np.testing.assert_allclose(fitted.score_samples(rows)[[0, 7, 50]], alone, rtol=1e-10)


def test_a_rows_density_under_flows_does_not_depend_on_the_others(digits):
    flows = {"prior": "flow", "posterior": "flow", "flow_dim": 8, "flow_steps": 2}
    rows = digits[0][:60]
    fitted = VAETransformer(settings=flows, **TINY).fit(rows)
    alone = fitted.score_samples(rows[7:8])
    np.testing.assert_allclose(fitted.score_samples(rows)[7:8], alone, rtol=1e-10)


def test_codes_decode_to_similar_images(fitted, digits):
    rows = digits[0]
    reconstructions = fitted.inverse_transform(fitted.transform(rows))
    assert reconstructions.shape == rows.shape
    assert ((reconstructions - rows) ** 2).mean() < 0.5 * rows.var(axis=0).mean()
    with pytest.raises(ValueError, match="Z has 3 columns, but the latents have 8 dimensions"):
        fitted.inverse_transform(np.zeros((2, 3)))


def test_samples_follow_their_seed_and_the_data(fitted, digits):
    rows = digits[0]
    samples = fitted.sample(4000, random_state=3)
    np.testing.assert_array_equal(samples, fitted.sample(4000, random_state=3))
    assert np.abs(samples.mean(0) - rows.mean(0)).mean() < 1  # of 16 grey levels
    means = fitted.sample(4000, random_state=3, noise=False)
    assert means.var() < samples.var()


def test_noise_is_less_likely_than_digits(fitted, digits):
    rows = load_digits().data[900:1100]
    noise = np.random.default_rng(0).permuted(rows, axis=1)
    scores = fitted.score_samples(np.concatenate([rows, noise]))
    assert roc_auc_score([1] * len(rows) + [0] * len(noise), scores) > 0.99


@pytest.mark.long
def test_in_a_pipeline_and_a_grid_search(digits):
    rows, labels = digits[0][:300], digits[1][:300]
    coder = VAETransformer(hidden_dim=32, epochs=12, learning_rate=1e-2, random_state=0)
    classify = make_pipeline(coder, LogisticRegression(max_iter=500))
    search = GridSearchCV(classify, {"vaetransformer__latent_dim": [1, 8]}, cv=2, refit=False)
    search.fit(rows, labels)
    assert search.best_params_ == {"vaetransformer__latent_dim": 8}
    assert search.best_score_ > 0.5
    coder.set_params(samples=5)
    by_density = GridSearchCV(coder, {"latent_dim": [1, 8]}, cv=2, refit=False).fit(rows)
    assert by_density.best_params_ == {"latent_dim": 8}


@pytest.mark.long
def test_clusters_are_those_of_the_mixture():
    rows, labels = make_blobs(300, 5, centers=3, random_state=0)
    mixture = VAEClusterer(3, latent_dim=2, hidden_dim=32, epochs=60, random_state=0).fit(rows)
    assert adjusted_rand_score(labels, mixture.labels_) > 0.9
    assert (np.diff(np.bincount(mixture.labels_)) <= 0).all()
    mixture.samples = 400
    probabilities = mixture.predict_proba(rows)
    np.testing.assert_allclose(probabilities.sum(1), 1)
    images = mixture._scaled(rows).unflatten(1, mixture.model_.blueprint.shape)
    torch.manual_seed(0)
    with torch.no_grad():
        expected = batch_responsibilities(mixture.model_, Batch(images), 400).numpy()[
            :, mixture.order_
        ]
    assert np.abs(probabilities - expected).max() < 0.1  # five standard errors
    assert np.abs(probabilities - expected).mean() < 0.01


def test_bernoulli_pixels_are_binary(digits):
    bits = VAETransformer(settings={"likelihood": "bernoulli"}, **TINY).fit(digits[0])
    grey = digits[0][:50]
    np.testing.assert_array_equal(
        bits.score_samples(grey), bits.score_samples(np.where(grey > 8, 16.0, 0.0))
    )
    assert bits.score(grey) < 0  # a probability
    assert set(np.unique(bits.sample(5))) <= {0.0, 16.0}


def test_convolutional_models_use_the_image_shape(digits):
    conv = VAETransformer(
        "convvae", image_shape=(1, 8, 8), settings={"channels": 4, "num_layers": 1}, **TINY
    )
    assert conv.fit_transform(digits[0][:100]).shape == (100, 2)


def test_fit_keeps_the_global_random_state():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    VAETransformer(**TINY).fit(np.eye(6))
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_shape": (1, 8, 9)}, r"image_shape is \(1, 8, 9\), which is not \(C, H, W\) of 64"),
        ({"model": "cvae"}, "conditional on labels, and the data set has none"),
        ({"model": "vea"}, "no model 'vea'.*did you mean 'vae'"),
        ({"validation_fraction": 1.0}, "validation_fraction is 1.0; it must lie between"),
        ({"samples": 0}, "samples is 0; it must be at least 1"),
        ({"settings": {"latents": 3}}, "has no setting 'latents'"),
        ({"training": {"epocs": 3}}, "has no setting 'epocs'"),
    ],
)
def test_bad_settings_are_refused(digits, settings, message):
    with pytest.raises(ValueError, match=message):
        VAETransformer(**{**TINY, **settings}).fit(digits[0])
    with pytest.raises(ValueError, match="a vae has no clusters; choose gmvae or convgmvae"):
        VAEClusterer(model="vae").fit(digits[0])


def test_without_a_density_there_is_no_score(digits):
    deterministic = VAETransformer("mmdvae", settings={"posterior": "deterministic"}, **TINY)
    with pytest.raises(ValueError, match="has no density"):
        deterministic.fit(digits[0]).score_samples(digits[0])


def test_the_example_of_anomalies(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), "--epochs", "1"])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert names == ["vaekit", "IsolationForest", "GaussianMixture", "KernelDensity"]


def test_a_deep_hierarchy_is_an_estimator_without_latent_dim(digits):
    settings = {"groups": "1x1:2 2x1:1", "channels": 4}
    deep = VAETransformer("deepvae", image_shape=(1, 8, 8), settings=settings, epochs=1)
    codes = deep.fit(digits[0][:60]).transform(digits[0][:5])
    assert codes.shape == (5, 6)
    assert deep.inverse_transform(codes).shape == (5, 64)
    assert np.isfinite(deep.score_samples(digits[0][:3])).all()
    with pytest.raises(UserError, match="latent_dim has no effect"):
        VAETransformer("deepvae", image_shape=(1, 8, 8), latent_dim=3).fit(digits[0][:60])
