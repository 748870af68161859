"""Baselines against NumPy and files, and what figures are worth beside them."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import random_dataset
from vaekit import build, evaluate, train
from vaekit.data import EvalSplit, Split
from vaekit.evaluation import baselines, metrics
from vaekit.evaluation.probes import measure_reconstruction
from vaekit.evaluation.verdicts import evaluation_warnings, verdict


def split(images: np.ndarray) -> EvalSplit:
    return EvalSplit(Split(torch.from_numpy(images)), "none")


def noise(count: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((count, *shape)).astype(np.float32)


def test_the_mean_image_and_pca_are_those_of_numpy():
    train, test = noise(40, 1, 4, 3).round(), noise(15, 1, 4, 3, seed=1).round()
    found = baselines.measure_linear(split(train), split(test), 8, seed=0)
    x, y = train.reshape(40, 12).astype(np.float64), test.reshape(15, 12).astype(np.float64)
    mean = x.mean(0)
    axes = np.linalg.svd(x - mean, full_matrices=False)[2][:8]
    projected = (y - mean) @ axes.T @ axes + mean
    assert projected.min() < -0.1  # so that clipping matters
    projected = projected.clip(0, 1)
    of_mean, of_pca = (((y - each) ** 2).sum(1).mean() for each in (mean, projected))
    assert found["mean_image_squared_error"] == pytest.approx(of_mean, rel=1e-5)
    assert found["pca_squared_error"] == pytest.approx(of_pca, rel=1e-5)
    assert found["pca_psnr"] == pytest.approx(-10 * math.log10(of_pca / 12), rel=1e-5)
    assert (found["pca_components"], found["pca_images"]) == (8, 40)


def test_pca_of_all_dimensions_reconstructs_exactly_and_has_no_more_than_there_are():
    train = noise(40, 1, 4, 3)
    found = baselines.measure_linear(split(train), split(train), 500, seed=0)
    assert found["pca_components"] == 12
    assert found["pca_squared_error"] < 1e-9
    few = baselines.measure_linear(split(train[:5]), split(train), 500, seed=0)
    assert few["pca_components"] == 4
    assert few["pca_squared_error"] < few["mean_image_squared_error"]


def test_independent_pixels_by_hand(monkeypatch):
    """One pixel, white in 3 of 4 training images: p = 4/6."""
    monkeypatch.setattr(baselines, "BATCH_NUMBERS", 1)
    train = np.array([1, 1, 1, 0], np.float32).reshape(4, 1, 1, 1)
    test = np.array([1, 0], np.float32).reshape(2, 1, 1, 1)
    found = baselines.measure_independent_pixels(split(train), split(test))[
        "independent_pixels_nll"
    ]
    assert found == pytest.approx(-(math.log(4 / 6) + math.log(2 / 6)) / 2)


@pytest.mark.parametrize("channels", [1, 3])
def test_bits_of_files_are_their_bytes_and_png_is_lossless(channels, monkeypatch):
    files = []
    compress = baselines.compress
    monkeypatch.setattr(
        baselines, "compress", lambda *a, **k: files.append(compress(*a, **k)) or files[-1]
    )
    pixels = np.random.default_rng(0).integers(0, 256, (3, channels, 8, 9), np.uint8)
    found = baselines.measure_png(split(pixels))
    assert found["png_bits_per_dim"] == 8 * sum(map(len, files)) / pixels.size
    for file, image in zip(files, pixels, strict=True):
        back = np.asarray(Image.open(io.BytesIO(file))).reshape(8, 9, channels)
        assert (back == image.transpose(1, 2, 0)).all()
    files.clear()
    found = baselines.measure_jpeg(split(pixels))
    assert found["jpeg_bits_per_dim"] == 8 * sum(map(len, files)) / pixels.size
    decoded = np.stack([np.asarray(Image.open(io.BytesIO(file))) for file in files])
    originals = pixels.transpose(0, 2, 3, 1).reshape(decoded.shape) / 255
    error = ((decoded / 255 - originals) ** 2).mean()
    assert found["jpeg_psnr"] == pytest.approx(-10 * math.log10(error))


def test_flat_images_take_fewer_bits_than_noise():
    flat = baselines.measure_png(split(np.full((2, 1, 16, 16), 9, np.uint8)))
    noisy = np.random.default_rng(0).integers(0, 256, (2, 1, 16, 16), np.uint8)
    assert (
        flat["png_bits_per_dim"] < 3 < 8 < baselines.measure_png(split(noisy))["png_bits_per_dim"]
    )


def fit(tmp_path, data, model="vae", **settings):
    built = build(model, data, latent_dim=2, hidden_dim=8, **settings)
    return train(built, data, out=tmp_path / "run", epochs=1, progress=False)


@pytest.mark.parametrize(
    ("kind", "settings", "expected"),
    [
        ("grey", {}, {"pca_psnr", "png_bits_per_dim"}),
        ("bits", {}, {"pca_psnr", "independent_pixels_nll"}),
        ("float", {}, {"pca_psnr"}),
        ("deep", {}, {"pca_psnr"}),
        ("grey", {"likelihood": "gaussian"}, {"pca_psnr"}),
        ("bits", {"condition": "quadrants:1"}, set()),
    ],
)
def test_baselines_are_those_of_the_pixels(tmp_path, kind, settings, expected):
    data = random_dataset(kind=kind)
    model = "cvae" if "condition" in settings else "vae"
    result = evaluate(
        fit(tmp_path, data, model, **settings), data, metrics=("nll", "reconstruction"), samples=2
    )
    keys = {"pca_psnr", "png_bits_per_dim", "independent_pixels_nll", "jpeg_psnr"}
    assert keys & result.keys() == expected
    if expected:
        assert (result["pca_components"], result["baseline_images"]) == (2, 20)


def test_large_photos_have_a_jpeg_beside_them(tmp_path, monkeypatch):
    monkeypatch.setattr(baselines, "CODEC_NUMBERS", 1)
    monkeypatch.setattr(baselines, "MAX_NUMBERS", 3 * 64 * 64)
    data = random_dataset((3, 64, 64), "grey")
    result = evaluate(fit(tmp_path, data), data, metrics=("reconstruction",))
    assert (result["jpeg_images"], result["pca_images"], result["baseline_images"]) == (10, 10, 10)
    assert "(10 of them), a JPEG of " in verdict("psnr", result)


def test_a_model_of_the_mean_image_is_poor_and_pca_itself_good(tmp_path):
    """A decoder that ignores its latent and gives the mean image."""
    data = random_dataset(kind="float")
    model = build("vae", data, latent_dim=2, hidden_dim=8)
    mean = data.train.images.mean(0)
    with torch.no_grad():
        last = model.decoder.network.unfold
        last.weight.zero_()
        last.bias.copy_(mean.flatten() - 0.5)  # an output of 0 is grey
    images = EvalSplit(data.test, "none")
    found = measure_reconstruction(model, images) | baselines.of_reconstructions(
        model, images, lambda count: EvalSplit(data.train, "none"), False, 0
    )
    assert found["psnr"] == pytest.approx(found["mean_image_psnr"], rel=1e-4)
    assert verdict("psnr", {**found, "psnr": found["mean_image_psnr"]}).startswith("Poor: PCA of 2")
    assert verdict("psnr", {**found, "psnr": found["pca_psnr"]}).startswith("Good: ")


@pytest.mark.parametrize(
    ("key", "e", "expected"),
    [
        ("psnr", {"psnr": 19.0, "pca_psnr": 18.0, "mean_image_psnr": 12.0}, "Good"),
        ("psnr", {"psnr": 17.0, "pca_psnr": 18.0, "mean_image_psnr": 12.0}, "Fair"),
        ("psnr", {"psnr": 12.0, "pca_psnr": 18.0, "mean_image_psnr": 12.0}, "Poor"),
        ("squared_error", {"squared_error": 3.0, "pca_squared_error": 4.0, "mean_image_squared_error": 9.0}, "Good"),
        ("squared_error", {"squared_error": 5.0, "pca_squared_error": 4.0, "mean_image_squared_error": 9.0}, "Fair"),
        ("bits_per_dim", {"bits_per_dim": 4.0, "png_bits_per_dim": 4.1}, "Good: PNG files of the same images take"),
        ("bits_per_dim", {"bits_per_dim": 4.2, "png_bits_per_dim": 4.1, "png_images": 5, "nll_images": 9},
         "Poor: PNG files of the same images (5 of them)"),
        ("nll", {"nll": 90.0, "independent_pixels_nll": 206.0}, "Good: of independent pixels it is 206.00"),
        ("elbo", {"elbo": -210.0, "independent_pixels_nll": 206.0}, "Poor: of independent pixels it is -206.00"),
        ("knn", {"knn": 0.6, "majority_share": 0.5}, "Good: naming always the largest class has 0.5000"),
        ("linear_probe", {"linear_probe": 0.5, "majority_share": 0.5}, "Poor"),
        ("frechet_samples", {"frechet_samples": 30.0, "frechet_training": 20.0}, "Good: 1.5 times"),
        ("frechet_samples", {"frechet_samples": 90.0, "frechet_training": 20.0}, "Fair: 4.5 times"),
        ("frechet_samples", {"frechet_samples": 340.0, "frechet_training": 20.0}, "Poor: 17.0 times"),
        ("frechet_training", {"frechet_training": 20.0}, ""),
        ("psnr", {"psnr": 19.0}, ""),
        ("kl", {"kl": 19.0}, ""),
        ("nll", {"nll": None, "independent_pixels_nll": 206.0}, ""),
    ],
)  # fmt: skip
def test_a_figure_is_good_fair_or_poor_beside_its_baseline(key, e, expected):
    text = verdict(key, e)
    assert text.startswith(expected)
    assert bool(text) == bool(expected)


HEALTHY = {
    "nll": 90.0, "nll_images": 1000, "nll_bias": 0.01, "low_ess_images": 0, "nll_image_standard_error": 0.5,
    "mutual_information": 5.0, "mutual_information_limit": 9.2, "linear_probe": 0.9, "class_ratio": 1.2,
    "majority_share": 0.11, "largest_cluster": 0.2, "clusters": "10 of the prior", "frechet_reconstructions": 3.0,
    "frechet_images": 2000, "classifier_accuracy": 0.98,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"nll_bias": 0.2}, "the NLL may be 0.20 nats too high"),
        ({"low_ess_images": 12, "estimator": "ais"}, "try more --temperatures"),
        ({"nll_images": 20}, "the NLL is of only 20 images"),
        ({"mutual_information": 9.0}, "the mutual information is at its ceiling"),
        ({"class_ratio": 30.0}, "the classes are imbalanced, 30 to 1"),
        ({"class_ratio": 30.0, "linear_probe": None, "many_to_one": 0.5}, "the classes are imbalanced"),
        ({"largest_cluster": 0.97}, "train with more --start-epochs"),
        ({"largest_cluster": 0.97, "clusters": "10 Gaussians fitted to the latent"}, "try gmvae"),
        ({"frechet_images": 200}, "the Frechet distances are of only 200 images"),
        ({"classifier_accuracy": 0.4}, "the classifier of the Frechet distances is right for only 40%"),
    ],
)  # fmt: skip
def test_each_weak_figure_of_an_evaluation_is_warned_of_alone(change, text):
    (warning,) = evaluation_warnings({**HEALTHY, **change})
    assert text in warning
    assert metrics.metric_rows({**HEALTHY, **change, "samples": 9})[-1] == ("warning", "", warning)


def test_a_healthy_evaluation_has_no_warnings_nor_one_without_numbers():
    assert evaluation_warnings(HEALTHY) == []
    assert evaluation_warnings({}) == []
    assert evaluation_warnings(dict.fromkeys(HEALTHY)) == []
