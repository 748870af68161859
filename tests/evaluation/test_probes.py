"""Reconstruction, probes and clusters against numbers by hand or scikit-learn."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from conftest import random_dataset
from vaekit import build, load
from vaekit.data import eval_split
from vaekit.evaluation.clustering import agreement
from vaekit.evaluation.probes import (
    measure_clusters,
    measure_probes,
    measure_reconstruction,
    posterior_means,
    structural_similarity,
)


def test_errors_are_summed_over_pixels_and_averaged_over_images(small_run, small_mnist):
    model, images = load(small_run), eval_split(small_mnist.test, "dynamic")
    found = measure_reconstruction(model, images)
    with torch.no_grad():
        x = images[:].images
        reconstructions = model.reconstruct(x).mean
    assert found["squared_error"] == pytest.approx(
        float(((reconstructions - x) ** 2).flatten(1).sum(1).mean()), rel=1e-5
    )
    assert found["psnr"] == pytest.approx(
        -10 * math.log10(float(((reconstructions - x) ** 2).mean())), rel=1e-5
    )
    pairs = zip(reconstructions.double().numpy(), x.double().numpy(), strict=True)
    assert found["ssim"] == pytest.approx(np.mean([ssim_by_filters(*p) for p in pairs]), rel=1e-4)


def ssim_by_filters(x, y):
    """SSIM of images (C, H, W) as scikit-image computes it: Gaussian filters, the border cut off, a mean over
    channels."""
    values = []
    for a, b in zip(x, y, strict=True):
        ma, mb, aa, bb, ab = (
            gaussian_filter(v, 1.5, truncate=3.5)[5:-5, 5:-5] for v in (a, b, a * a, b * b, a * b)
        )
        va, vb, vab = aa - ma * ma, bb - mb * mb, ab - ma * mb
        c1, c2 = 1e-4, 9e-4
        one = (2 * ma * mb + c1) * (2 * vab + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
        values.append(one.mean())
    return float(np.mean(values))


@pytest.mark.parametrize("shape", [(1, 11, 11), (1, 28, 28), (3, 12, 40)])
def test_ssim_is_that_of_wang(shape):
    """Of the windows within the image alone, also in float32, where most windows are of one colour."""
    rng = np.random.default_rng(0)
    x = rng.random((4, *shape))
    y = np.clip(x + 0.2 * rng.normal(size=x.shape), 0, 1)
    x[2:], y[2:] = x[2:].round(), (y[2:] > 0.9).round()
    x[3], y[3] = 0, 0
    y[3, :, 5, 5] = 1
    expected = [ssim_by_filters(*pair) for pair in zip(x, y, strict=True)]
    x, y = torch.tensor(x), torch.tensor(y)
    assert np.allclose(structural_similarity(x, y), expected, atol=1e-12)
    assert np.allclose(structural_similarity(x.float(), y.float()), expected, atol=1e-5)
    assert torch.allclose(structural_similarity(x, x), torch.ones(4, dtype=x.dtype))


def test_ssim_by_windows_one_by_one():
    """A stroke and the same one pixel lower; torchmetrics 1.9 gives 0.7567 (with its padded border)."""
    x = np.zeros((16, 13))
    x[4:12, 6] = 1
    y = np.roll(x, 1, axis=0) * 0.8
    line = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    weight = np.outer(line, line) / line.sum() ** 2
    values = []
    for i in range(16 - 10):
        for j in range(13 - 10):
            a, b = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
            ma, mb = (weight * a).sum(), (weight * b).sum()
            va, vb = (weight * (a - ma) ** 2).sum(), (weight * (b - mb) ** 2).sum()
            vab = (weight * (a - ma) * (b - mb)).sum()
            values.append(
                (2 * ma * mb + 1e-4) * (2 * vab + 9e-4) / (ma**2 + mb**2 + 1e-4) / (va + vb + 9e-4)
            )
    ssim = structural_similarity(torch.tensor(x)[None, None], torch.tensor(y)[None, None]).item()
    assert ssim == pytest.approx(np.mean(values), abs=1e-12)
    assert ssim == pytest.approx(0.875055062595567, abs=1e-9)


def test_ssim_agrees_with_scikit_image():
    metrics = pytest.importorskip("skimage.metrics")
    rng = np.random.default_rng(1)
    x, y = rng.random((2, 3, 20, 17))
    expected = metrics.structural_similarity(
        x, y, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
        channel_axis=0,
    )  # fmt: skip
    found = structural_similarity(torch.tensor(x)[None], torch.tensor(y)[None])
    assert found.item() == pytest.approx(expected, abs=1e-12)


def test_small_images_have_no_ssim():
    data = random_dataset()
    model = build("vae", data, latent_dim=2, hidden_dim=8).eval()
    found = measure_reconstruction(model, eval_split(data.test, "dynamic"))
    assert found["ssim"] is None
    assert found["squared_error"] > 0


def test_codes_are_posterior_means(small_run, small_mnist):
    model, images = load(small_run), eval_split(small_mnist.test, "dynamic")
    with torch.no_grad():
        means = model.posterior["z"]({"x": images[:].images, "y": None}).mean
    assert np.allclose(posterior_means(model, images), means, atol=1e-5)


def test_probes_find_labels_in_latents_that_have_them_and_in_no_others():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 2000)
    separated = np.eye(4)[labels] * 5 + rng.normal(size=(2000, 4))
    noise = rng.normal(size=(2000, 4))
    ring = np.stack([labels % 2 * 3 + 1.0, np.zeros(2000)], 1) * rng.choice([-1, 1], (2000, 1))
    split = slice(0, 1000), slice(1000, 2000)

    def probe(latents, labels):
        return measure_probes(*((latents[part], labels[part]) for part in split))

    assert min(probe(separated, labels)[key] for key in ("linear_probe", "knn")) > 0.98
    # A quarter by chance, with a standard deviation of 0.014: above 0.33 for less than 1 seed in 10,000.
    assert max(probe(noise, labels)[key] for key in ("linear_probe", "knn")) < 0.33
    # Two classes on both sides of zero, which neighbours distinguish and no linear classifier does.
    assert probe(ring, labels % 2)["knn"] > 0.99
    assert probe(ring, labels % 2)["linear_probe"] < 0.8


def test_probes_are_fitted_to_the_first_set_and_measured_on_the_second():
    labels = np.arange(400) % 4
    latents = np.eye(4)[labels] * 9 + np.random.default_rng(0).normal(size=(400, 4))
    wrong = np.where(np.arange(400) < 100, (labels + 1) % 4, labels)
    found = measure_probes((latents, labels), (latents, wrong))
    assert found["linear_probe"] == pytest.approx(0.75, abs=0.01)
    assert found["knn"] == pytest.approx(0.75, abs=0.01)


def test_five_neighbours_vote():
    line = np.arange(5.0)[:, None], np.array([0, 1, 1, 1, 0])
    assert measure_probes(line, (np.zeros((1, 1)), np.array([1])))["knn"] == 1


def test_agreement_is_scikit_learns():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 5, 500)
    assigned = np.where(rng.random(500) < 0.7, labels, rng.integers(0, 7, 500))
    found = agreement(assigned, rng.random(500), labels, 7)
    assert found.nmi == pytest.approx(normalized_mutual_info_score(labels, assigned))
    assert found.ari == pytest.approx(adjusted_rand_score(labels, assigned))
    most_common = sum(np.bincount(labels[assigned == k]).max() for k in range(7))
    assert found.many_to_one == pytest.approx(most_common / 500)


def test_other_models_are_clustered_by_gaussians_on_the_latent():
    data = random_dataset()
    model = build("vae", data, latent_dim=2, hidden_dim=8).eval()
    images = eval_split(data.test, "dynamic")
    labels = np.arange(len(images)) % 2
    latents = np.where(labels[:, None], 4.0, -4.0) + np.random.default_rng(0).normal(
        size=(len(images), 2)
    )
    found = measure_clusters(model, images, latents, (latents, labels), labels, 0)
    assert found["hungarian"] == found["many_to_one"] == 1
    assert found["nmi"] == pytest.approx(1)
    assert found["clusters"] == "2 Gaussians fitted to the latent"


def test_gaussians_are_fitted_to_the_training_images():
    data = random_dataset()
    model, images = build("vae", data, latent_dim=2, hidden_dim=8), eval_split(data.test, "dynamic")
    labels, noise = np.arange(20) % 2, np.random.default_rng(0).normal(size=(20, 2))
    train = np.where(labels[:, None], 20.0, -20.0) + noise
    one_side = np.where(labels[:, None], 30.0, 15.0) + noise  # all in one of the clusters
    found = measure_clusters(model, images, one_side, (train, labels), labels, 0)
    assert found["many_to_one"] == 0.5


def test_the_mixture_of_the_prior_is_used(tmp_path):
    data = random_dataset()
    settings = {"latent_dim": 2, "hidden_dim": 8, "clusters": 3, "start_epochs": 0}
    model = build("gmvae", data, **settings).eval()
    images = eval_split(data.test, "dynamic")
    latents = posterior_means(model, images)
    labels = np.arange(len(images)) % 2
    found = measure_clusters(model, images, latents, (latents, labels), labels, 0)
    assert found["clusters"] == "3 of the prior"
    assert math.isfinite(found["ari"])
