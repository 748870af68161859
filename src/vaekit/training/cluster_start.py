"""Initialisation of the clusters of a gmvae: from groups in the codes of a plain VAE.

From random heads most clusters merge. Alternatives, and the effect of each part: docs/design/0011.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

from ..data import Split
from ..data.dataset import ResolvedBinarisation, pixels
from ..model.distributions import Conditional, MixtureHead
from ..model.graph import VAE
from ..model.networks.encoders import MLP
from ..model.priors import StandardNormal
from ..settings.model import ClusterConfig
from ..support.errors import require

PRETRAINING_BETA = 0.1  # of the plain VAE, whose codes then hold more information than at beta = 1
MAX_IMAGES = 20_000
MIN_COMPONENTS = 50  # of the fine mixture, and at least two per cluster
MIN_SCALE = 0.05
BATCH_SIZE = 1000


def without_clusters(model: VAE) -> VAE:
    """A plain VAE of the posterior and decoder of z, which are shared, with a standard normal prior."""
    settings = model.blueprint.settings
    return VAE(
        prior={"z": StandardNormal(settings.latent_dim)},
        posterior={"z": model.posterior["z"]},
        decoder=model.decoder,
        blueprint=model.blueprint,
        condition=model.condition,
    )


def cluster_head(model: VAE) -> MixtureHead:
    """The mixture head of the prior of z of a model with clusters."""
    prior = model.prior["z"]
    assert isinstance(prior, Conditional)
    assert isinstance(prior.head, MixtureHead)
    return prior.head


def check_clusters(model: VAE, images: int) -> None:
    """Raises UserError where there are too few images to find the clusters in."""
    settings = model.blueprint.settings
    if isinstance(settings, ClusterConfig) and settings.start_epochs:
        available = min(images, MAX_IMAGES)
        require(
            settings.clusters < available,
            f"--clusters is {settings.clusters}, but there are {available:,} training images to find them in; "
            "--start-epochs 0 starts from random clusters",
        )


def start_clusters(
    model: VAE, images: Split, binarisation: ResolvedBinarisation, seed: int
) -> None:
    """Set the mixture's components, for every w, to groups of the codes of the first 20,000 images.

    A fine mixture of Gaussians with full covariances is fitted to the codes, and its most overlapping components are
    joined until one group per cluster is left.
    """
    settings = model.blueprint.settings
    assert isinstance(settings, ClusterConfig)
    codes = posterior_means(model, images, binarisation)
    require(
        bool(np.isfinite(codes).all()),
        "the plain VAE's loss is not finite; try a smaller --learning-rate",
    )
    groups = join_components(fine_mixture(codes, settings.clusters, seed), settings.clusters)
    weights = groups / groups.sum(0)
    loc = weights.T @ codes
    variance = weights.T @ codes**2 - loc**2
    scale = np.sqrt(variance.clip(MIN_SCALE**2))
    set_heads(model, torch.from_numpy(loc), torch.from_numpy(scale))


@torch.no_grad()
def posterior_means(model: VAE, images: Split, binarisation: ResolvedBinarisation) -> np.ndarray:
    """Means of q(z | x) of the first 20,000 images: (N, D), float64. Dynamic binarisation is left out."""
    fixed: ResolvedBinarisation = "none" if binarisation == "dynamic" else binarisation
    model.eval()
    chunks = []
    end = min(len(images), MAX_IMAGES)
    for start in range(0, end, BATCH_SIZE):
        batch = images[start : min(start + BATCH_SIZE, end)]
        values = model.given(pixels(batch.images, fixed), batch.labels)
        chunks.append(model.posterior["z"](values).mean.cpu().double())
    return torch.cat(chunks).numpy()


def fine_mixture(codes: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    """Responsibilities p(component | code), (N, C), of a Gaussian mixture with more components than clusters."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture
    from threadpoolctl import threadpool_limits

    target = max(MIN_COMPONENTS, 2 * clusters)
    components = max(clusters, min(target, len(codes) // 20))
    # The matrices are small: several threads are slower than one, by far on busy cores.
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)  # a rough fit will do
        mixture = GaussianMixture(
            components, covariance_type="full", reg_covar=1e-4, random_state=seed % 2**32
        )
        return mixture.fit(codes).predict_proba(codes)


def join_components(responsibilities: np.ndarray, clusters: int) -> np.ndarray:
    """Join the two components i and j that overlap most, by sum r_i r_j / (sum r_i sum r_j), until `clusters` are left:
    (N, C) -> (N, clusters)."""
    r = responsibilities.copy()
    while r.shape[1] > clusters:
        size = r.sum(0) + 1e-12
        overlap = (r.T @ r) / np.outer(size, size)
        np.fill_diagonal(overlap, -1)
        i, j = divmod(int(overlap.argmax()), len(size))
        r[:, i] += r[:, j]
        r = np.delete(r, j, axis=1)
    return r


@torch.no_grad()
def set_heads(model: VAE, loc: Tensor, scale: Tensor) -> None:
    """Make p(z | w, cluster = k) = N(loc_k, scale_k^2) for every w; loc and scale: (K, D)."""
    head, network = cluster_head(model).gaussian, model.prior["z"].network
    assert isinstance(network, MLP)
    last = network.last
    last.weight.zero_()
    raw = torch.log(torch.expm1(scale - head.floor)) - head.offset
    last.bias.copy_(torch.cat([loc, raw], dim=1).flatten())
