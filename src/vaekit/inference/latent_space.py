"""Latent space: decode points, interpolate, the prior as a Gaussian mixture, projections to 2-D."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.distributions import (
    Categorical,
    Distribution,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
)

from ..likelihood.latent_use import batch_size
from ..model.distributions import GaussianMixture
from ..model.graph import VAE
from ..support.devices import seeded
from ..support.errors import UserError

KDE_SAMPLES = 2048
NO_UMAP = "--projection umap needs umap-learn: pip install 'vaekit[umap]'"
ANCESTRAL_SAMPLES = 64  # samples of the latents above, whose priors make up the mixture


def decoder_latents(model: VAE) -> list[str]:
    """Names of the decoder's latents, in the order of sampling."""
    given = getattr(model.decoder, "given", tuple(model.prior))
    return [name for name in model.prior if name in given]


@torch.no_grad()
def decode_latents(model: VAE, fixed: Mapping[str, Tensor], labels: Tensor | None = None) -> Tensor:
    """Mean pixels (N, C, H, W) of latents (N, D) by name; latents not in `fixed` are at the mean of their prior."""
    count = len(next(iter(fixed.values())))
    images = []
    for rows in torch.arange(count).split(batch_size(model)):
        values = model.given(None, None if labels is None else labels[rows])
        for name, prior in model.prior.items():
            if name in fixed:
                values[name] = fixed[name][rows]
            else:
                values[name] = prior(values).expand((len(rows),)).mean
        images.append(model.decoder(values).mean)
    return torch.cat(images)


def interpolate(a: Tensor, b: Tensor, steps: int, spherical: bool = False) -> Tensor:
    """Interpolation from a to b, both (D,), in equal steps: (steps, D). Linear or, with the angle between a and b,
    spherical: sin((1 - t) angle) / sin(angle) a + sin(t angle) / sin(angle) b (Shoemake 1985)."""
    t = torch.linspace(0, 1, steps, dtype=a.dtype)[:, None]
    linear = (1 - t) * a + t * b
    lengths = a.norm() * b.norm()
    if not spherical or lengths == 0:
        return linear
    angle = (a @ b / lengths).clamp(-1, 1).arccos()
    if angle.sin() < 1e-4:  # the same direction, or opposite ones, which have no unique arc
        return linear
    return ((1 - t) * angle).sin() / angle.sin() * a + (t * angle).sin() / angle.sin() * b


@dataclass(frozen=True)
class PriorMixture:
    """The prior of one latent as a mixture of M diagonal Gaussians: `loc` and `scale` (M, D), `logits` (M,); or of ones
    with covariances tril tril^T, `tril` (M, D, D).

    It mixes over samples of the latents above it and over labels; a prior of another kind is approximated by a kernel
    density of about 2,000 samples. `centres` (K, D): means of the components of a mixture prior, given the latents
    above at their means; else None.
    """

    loc: Tensor
    scale: Tensor
    logits: Tensor
    centres: Tensor | None
    tril: Tensor | None = None

    def sample(self, count: int, seed: int = 0) -> Tensor:
        """Samples (count, D)."""
        with seeded(seed):
            chosen = Categorical(logits=self.logits).sample((count,))
            noise = torch.randn(count, self.loc.shape[1])
        if self.tril is None:
            return self.loc[chosen] + self.scale[chosen] * noise
        return self.loc[chosen] + (self.tril[chosen] @ noise.unsqueeze(-1)).squeeze(-1)

    def project(self, axes: Tensor, centre: Tensor) -> Distribution:
        """The density of (z - centre) axes, with axes (D, 2): a mixture of projected Gaussians, so this is exact."""
        loc = (self.loc - centre) @ axes
        if self.tril is None:
            covariance = torch.einsum("di,md,dj->mij", axes, self.scale**2, axes)
        else:
            covariance = (axes.mT @ self.tril) @ (axes.mT @ self.tril).mT
        covariance = covariance + 1e-6 * torch.eye(axes.shape[1])
        parts = MultivariateNormal(loc, covariance, validate_args=False)
        weights = Categorical(logits=self.logits, validate_args=False)
        return MixtureSameFamily(weights, parts, validate_args=False)


@torch.no_grad()
def prior_mixture(model: VAE, latent: str, y: Tensor | None = None, seed: int = 0) -> PriorMixture:
    """The prior of the latent named `latent`, averaged over conditions y (N,), by default over all labels."""
    classes = model.blueprint.classes
    if y is None and classes:  # all equally often
        y = torch.arange(classes).repeat(-(-ANCESTRAL_SAMPLES // classes))
    count = ANCESTRAL_SAMPLES if y is None else len(y)
    sampled, at_mean = model.given(None, y), model.given(None, y)
    with seeded(seed):
        for name, prior in model.prior.items():
            p, p_at_mean = prior(sampled), prior(at_mean)
            if name == latent:
                break
            sampled[name] = p.expand((count,)).sample()
            at_mean[name] = p_at_mean.expand((count,)).mean
    centres = tril = None
    if isinstance(p, GaussianMixture):
        loc, scale, logits, tril = p.loc, p.scale, p.logits, p.tril
        centres = p_at_mean.loc if p_at_mean.loc.ndim == 2 else p_at_mean.loc[0]
    elif isinstance(p, Independent) and isinstance(p.base_dist, Normal):
        loc, scale = p.base_dist.loc, p.base_dist.scale
        logits = loc.new_zeros(loc.shape[:-1])
    else:  # a kernel density with Scott's bandwidth
        with seeded(seed):
            loc = p.expand((KDE_SAMPLES // count, count)).sample().flatten(0, 1)
        scale = (loc.std(0) * len(loc) ** (-1 / (loc.shape[-1] + 4))).expand_as(loc)
        logits = loc.new_zeros(len(loc))
    dim = loc.shape[-1]
    return PriorMixture(
        loc.detach().reshape(-1, dim),
        scale.detach().reshape(-1, dim),
        logits.detach().reshape(-1).log_softmax(0),
        None if centres is None else centres.detach(),
        None if tril is None else tril.detach().reshape(-1, dim, dim),
    )


def principal_axes(codes: Tensor, count: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """PCA of codes (N, D): their mean (D,), the first `count` axes (D, count), fewer where there are fewer codes or
    dimensions, and their shares of the variance (count,)."""
    from sklearn.decomposition import PCA

    pca = PCA(min(count, *codes.shape), svd_solver="full").fit(codes.numpy())
    shares = torch.from_numpy(pca.explained_variance_ratio_)
    return torch.from_numpy(pca.mean_).float(), torch.from_numpy(pca.components_.T).float(), shares


def neighbour_embedding(codes: Tensor, method: str, seed: int = 0) -> np.ndarray:
    """Embedding (N, 2) of codes (N, D) by t-SNE or UMAP. Raises UserError where umap-learn is not installed."""
    points, seed = codes.numpy(), seed % 2**32
    if method == "umap":
        try:
            from umap import UMAP
        except ImportError:
            raise UserError(NO_UMAP) from None
        return UMAP(
            n_neighbors=min(30, len(points) - 1), random_state=seed, n_jobs=1
        ).fit_transform(points)
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(points) - 1) / 3)
    return TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(points)
