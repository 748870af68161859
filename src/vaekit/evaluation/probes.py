"""What the latent is good for: images redrawn from it, labels found from it, clusters in it."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data import Frozen
from ..likelihood.clusters import responsibilities
from ..likelihood.elbo import random_pixels
from ..likelihood.latent_use import batch_size
from ..model.conditions import Quadrants
from ..model.graph import VAE
from ..settings.model import ClusterConfig
from .clustering import agreement

NEIGHBOURS = 5
SSIM_WINDOW = 11  # pixels that a Gaussian of scale 1.5 takes


@torch.no_grad()
def measure_reconstruction(model: VAE, images: Frozen) -> dict[str, Any]:
    """Of images redrawn from the means of their latents, as the mean of their pixels: squared_error summed over pixels
    and channels, a mean over images; psnr, -10 log10 of the mean squared error of a pixel, dB; ssim (Wang et al. 2004),
    null of images smaller than its window, and where pixels are given."""
    from torchmetrics.functional.image import structural_similarity_index_measure as similarity

    squares, alike = 0.0, 0.0
    # Where pixels are given, errors are of the others.
    whole = not isinstance(model.condition, Quadrants)
    large = whole and min(model.blueprint.shape[1:]) >= SSIM_WINDOW
    size = batch_size(model)
    for start in range(0, len(images), size):
        batch = images[start : start + size]
        redrawn = model.reconstruct(batch.images, batch.labels).mean
        squares += float((redrawn - batch.images).square().sum())
        if large:
            found = similarity(redrawn, batch.images, data_range=1.0, reduction="sum")
            assert isinstance(found, Tensor)
            alike += float(found)
    each = squares / len(images)
    return {
        "squared_error": each,
        "psnr": -10 * math.log10(each / random_pixels(model)) if each > 0 else None,
        "ssim": alike / len(images) if large else None,
    }


@torch.no_grad()
def codes(model: VAE, images: Frozen) -> np.ndarray:
    """The means of all latents side by side: (N, D)."""
    size, found = batch_size(model), []
    for start in range(0, len(images), size):
        batch = images[start : start + size]
        means = [q.mean for q in model.posteriors(model.given(batch.images, batch.labels)).values()]
        found.append(torch.cat(means, -1).cpu())
    return torch.cat(found).double().numpy()


def measure_probes(
    train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]
) -> dict[str, Any]:
    """Share of labels found from latents (N, D): by logistic regression, and by the majority of the 5 nearest; both
    learn from `train`, latents and labels."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    near = KNeighborsClassifier(min(NEIGHBOURS, len(train[0])))
    return {
        "linear_probe": float(linear.fit(*train).score(*test)),
        "knn": float(near.fit(*train).score(*test)),
        "probe_images": len(train[0]),
    }


def measure_clusters(
    model: VAE,
    images: Frozen,
    latents: np.ndarray,
    train: tuple[np.ndarray, np.ndarray],
    labels: np.ndarray,
    seed: int,
) -> dict[str, Any]:
    """How well clusters agree with labels, which they do not see: the components of the model's own mixture, or of as
    many Gaussians as the training images have classes, fitted to their latents: `train`, latents and labels. The fields
    of Agreement."""
    from sklearn.mixture import GaussianMixture

    settings = model.blueprint.settings
    own = isinstance(settings, ClusterConfig) or settings.prior in ("mixture", "learned-mixture")
    if own:
        probabilities = responsibilities(model, images, 10).cpu().numpy()
    else:
        learned, known = train
        classes = len(np.unique(known))
        mixture = GaussianMixture(classes, random_state=seed % 2**32, reg_covar=1e-4)
        probabilities = mixture.fit(learned).predict_proba(latents)
    assigned, surest = probabilities.argmax(1), probabilities.max(1)
    count = probabilities.shape[1]
    found = asdict(agreement(assigned, surest, labels, count))
    return {
        **found,
        "clusters": f"{count} of the prior" if own else f"{count} Gaussians fitted to the latent",
    }
