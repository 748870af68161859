"""Quality of the latent: reconstruction errors, probes for labels, agreement of clusters with labels."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..data import EvalSplit
from ..likelihood.clusters import responsibilities
from ..likelihood.elbo import modelled_pixels
from ..likelihood.latent_use import batch_size, code_posteriors
from ..model.conditions import Quadrants
from ..model.graph import VAE
from ..model.priors import FixedMixture, FullMixture, LearnedMixture
from ..settings.model import ClusterConfig
from ..support.errors import MetricUnavailable
from .baselines import psnr
from .clustering import agreement

NEIGHBOURS = 5
MAX_DIMENSIONS, KEPT_DIMENSIONS = 500, 100  # of latents; of more, so many principal components
SSIM_WINDOW, SSIM_SCALE = 11, 1.5  # pixels


@torch.no_grad()
def measure_reconstruction(model: VAE, images: EvalSplit) -> dict[str, Any]:
    """Errors of reconstructions, the mean pixels at the posterior means: squared_error summed over pixels and channels,
    a mean over images; psnr, -10 log10 of the mean squared error per pixel, dB; ssim (Wang et al. 2004), None for
    images smaller than its window and for models that complete images."""
    squared_error, total_ssim = 0.0, 0.0
    # A model that completes images reconstructs the hidden pixels alone.
    completes = isinstance(model.condition, Quadrants)
    has_ssim = not completes and min(model.blueprint.shape[1:]) >= SSIM_WINDOW
    size = batch_size(model)
    for start in range(0, len(images), size):
        batch = images[start : start + size]
        reconstructions = model.reconstruct(batch.images, batch.labels).mean
        squared_error += float((reconstructions - batch.images).square().sum())
        if has_ssim:
            total_ssim += float(structural_similarity(reconstructions, batch.images).sum())
    mean = squared_error / len(images)
    return {
        "squared_error": mean,
        "psnr": psnr(mean, modelled_pixels(model)),
        "ssim": total_ssim / len(images) if has_ssim else None,
        "reconstructed_images": len(images),
    }


def structural_similarity(x: Tensor, y: Tensor) -> Tensor:
    """SSIM of images in [0, 1], (B, C, H, W) -> (B,), a mean over all windows that lie within the image and over
    channels. Wang et al. 2004, eq. 13, section III-C: 11 x 11 Gaussian weights of scale 1.5, K1 = 0.01, K2 = 0.03."""
    offsets = torch.arange(SSIM_WINDOW, dtype=x.dtype, device=x.device) - SSIM_WINDOW // 2
    line = torch.exp(-(offsets**2) / (2 * SSIM_SCALE**2))
    window = torch.outer(line, line)[None, None] / line.sum() ** 2
    moments = torch.stack([x, y, x * x, y * y, x * y]).flatten(0, 2).unsqueeze(1)
    weighted = F.conv2d(moments, window).unflatten(0, (5, *x.shape[:2])).squeeze(3)
    mean_x, mean_y, xx, yy, xy = weighted
    products, squares = mean_x * mean_y, mean_x**2 + mean_y**2
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * products + c1) * (2 * (xy - products) + c2)
    return (similarity / ((squares + c1) * (xx + yy - squares + c2))).mean((-3, -2, -1))


@torch.no_grad()
def posterior_means(model: VAE, images: EvalSplit) -> np.ndarray:
    """Posterior means of all latents, or the top groups of a deep hierarchy, concatenated: (N, D)."""
    size, parts = batch_size(model), []
    for start in range(0, len(images), size):
        batch = images[start : start + size]
        posteriors = code_posteriors(model, model.given(batch.images, batch.labels))
        means = [q.mean for q in posteriors.values()]
        parts.append(torch.cat(means, -1).cpu())
    return torch.cat(parts).double().numpy()


def measure_probes(
    train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]
) -> dict[str, Any]:
    """Accuracy of logistic regression and of 5 nearest neighbours, fitted to `train` and measured on `test`, which are
    latents (N, D) and labels (N,); see `few_dimensions`."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    test_latents, train = few_dimensions(test[0], train)
    linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    neighbours = KNeighborsClassifier(min(NEIGHBOURS, len(train[0])))
    return {
        "linear_probe": float(linear.fit(*train).score(test_latents, test[1])),
        "knn": float(neighbours.fit(*train).score(test_latents, test[1])),
        "probe_images": len(train[0]),
    }


def few_dimensions(
    latents: np.ndarray, train: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """The principal components of latents (N, D) of more than MAX_DIMENSIONS, with which probes and the covariances of
    clusters would take minutes and more images than there are; those of `train`, latents and labels, for both."""
    from sklearn.decomposition import PCA

    if latents.shape[1] <= MAX_DIMENSIONS:
        return latents, train
    count = min(KEPT_DIMENSIONS, len(train[0]))
    pca = PCA(count, svd_solver="full").fit(train[0])
    return pca.transform(latents), (pca.transform(train[0]), train[1])


def measure_clusters(
    model: VAE,
    images: EvalSplit,
    latents: np.ndarray,
    train: tuple[np.ndarray, np.ndarray],
    labels: np.ndarray,
    seed: int,
) -> dict[str, Any]:
    """Agreement of clusters with labels, its fields by name. Clusters are the components of a mixture prior, or of a
    Gaussian mixture, with as many components as classes, fitted to `train`: latents (N, D) and labels (N,). The numbers
    are those of `cluster` with the same seed, where the images are the whole split in its order."""
    from sklearn.mixture import GaussianMixture

    settings = model.blueprint.settings
    mixtures = (FixedMixture, LearnedMixture, FullMixture)
    has_mixture = isinstance(settings, ClusterConfig) or any(
        isinstance(prior, mixtures) for prior in model.prior.values()
    )
    if has_mixture:
        probabilities = responsibilities(model, images, seed=seed).cpu().numpy()
    else:
        latents, (train_latents, train_labels) = few_dimensions(latents, train)
        classes = len(np.unique(train_labels))
        if classes < 2:
            raise MetricUnavailable("the training images have only one label")
        mixture = GaussianMixture(classes, random_state=seed % 2**32, reg_covar=1e-4)
        probabilities = mixture.fit(train_latents).predict_proba(latents)
    assigned, confidence = probabilities.argmax(1), probabilities.max(1)
    count = probabilities.shape[1]
    return {
        **asdict(agreement(assigned, confidence, labels, count)),
        "clusters": f"{count} of the prior"
        if has_mixture
        else f"{count} Gaussians fitted to the latent",
        "cluster_images": len(labels),
        "largest_cluster": float(np.bincount(assigned).max() / len(labels)),
    }
