"""Ways through a latent space: decoding chosen points, paths between them, the prior's shape, and maps of it in 2-D."""

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

KERNELS = 2000
ANCESTORS = 64  # draws of the latents above, of which a prior's mixture is made


def free_latents(model: VAE) -> list[str]:
    """The latents that the decoder is given, in the order in which they are drawn."""
    given = getattr(model.decoder, "given", tuple(model.prior))
    return [name for name in model.prior if name in given]


@torch.no_grad()
def decode_latents(model: VAE, fixed: Mapping[str, Tensor], labels: Tensor | None = None) -> Tensor:
    """Mean pixels (N, C, H, W) of latents (N, D) by name; those not given are at their prior's mean."""
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


def between(a: Tensor, b: Tensor, steps: int, spherical: bool = False) -> Tensor:
    """From a to b, both (D,), in equal steps: (steps, D). On a straight line, or, with the angle between a and b,
    sin((1 - t) angle) / sin(angle) a + sin(t angle) / sin(angle) b (Shoemake 1985)."""
    t = torch.linspace(0, 1, steps, dtype=a.dtype)[:, None]
    straight = (1 - t) * a + t * b
    lengths = a.norm() * b.norm()
    if not spherical or lengths == 0:
        return straight
    angle = (a @ b / lengths).clamp(-1, 1).arccos()
    if angle.sin() < 1e-4:  # one direction, or opposite ones, between which no arc is the shortest
        return straight
    return ((1 - t) * angle).sin() / angle.sin() * a + (t * angle).sin() / angle.sin() * b


@dataclass(frozen=True)
class PriorShape:
    """The prior of one latent as a mixture of M diagonal Gaussians: `loc` and `scale` (M, D), `logits` (M,).

    Over draws of what stands above it, a latent or a label; of another distribution a kernel density of 2,000 draws.
    `centres` (K, D) are those of its own components, where it is a mixture, the latents above at their mean.
    """

    loc: Tensor
    scale: Tensor
    logits: Tensor
    centres: Tensor | None

    def draws(self, count: int, seed: int = 0) -> Tensor:
        """(count, D)."""
        with seeded(seed):
            chosen = Categorical(logits=self.logits).sample((count,))
            return self.loc[chosen] + self.scale[chosen] * torch.randn(count, self.loc.shape[1])

    def project(self, axes: Tensor, centre: Tensor) -> Distribution:
        """The density of (z - centre) axes, with axes (D, 2): a projected Gaussian is one, so this is exact."""
        loc = (self.loc - centre) @ axes
        covariance = torch.einsum("di,md,dj->mij", axes, self.scale**2, axes)
        covariance = covariance + 1e-6 * torch.eye(axes.shape[1])
        parts = MultivariateNormal(loc, covariance, validate_args=False)
        weights = Categorical(logits=self.logits, validate_args=False)
        return MixtureSameFamily(weights, parts, validate_args=False)


@torch.no_grad()
def prior_shape(model: VAE, latent: str, y: Tensor | None = None, seed: int = 0) -> PriorShape:
    """The prior of a latent, by its name, over conditions y (N,), or over all labels."""
    classes = model.blueprint.classes
    if y is None and classes:  # each as often
        y = torch.arange(classes).repeat(-(-ANCESTORS // classes))
    count = ANCESTORS if y is None else len(y)
    drawn, middle = model.given(None, y), model.given(None, y)
    with seeded(seed):
        for name, prior in model.prior.items():
            p, at_mean = prior(drawn), prior(middle)
            if name == latent:
                break
            drawn[name] = p.expand((count,)).sample()
            middle[name] = at_mean.expand((count,)).mean
    centres = None
    if isinstance(p, GaussianMixture):
        loc, scale, logits = p.loc, p.scale, p.logits
        centres = at_mean.loc if at_mean.loc.ndim == 2 else at_mean.loc[0]
    elif isinstance(p, Independent) and isinstance(p.base_dist, Normal):
        loc, scale = p.base_dist.loc, p.base_dist.scale
        logits = loc.new_zeros(loc.shape[:-1])
    else:  # a kernel density, with Scott's bandwidth
        with seeded(seed):
            loc = p.expand((KERNELS,) if y is None else (count,)).sample()
        scale = (loc.std(0) * len(loc) ** (-1 / (loc.shape[-1] + 4))).expand_as(loc)
        logits = loc.new_zeros(len(loc))
    dim = loc.shape[-1]
    return PriorShape(
        loc.detach().reshape(-1, dim),
        scale.detach().reshape(-1, dim),
        logits.detach().reshape(-1).log_softmax(0),
        None if centres is None else centres.detach(),
    )


def principal_axes(codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Centre (D,), the two axes (D, 2) along which codes (N, D) vary most, and the shares of the variance (2,)."""
    from sklearn.decomposition import PCA

    pca = PCA(n_components=2, svd_solver="full").fit(codes.numpy())
    shares = torch.from_numpy(pca.explained_variance_ratio_)
    return torch.from_numpy(pca.mean_).float(), torch.from_numpy(pca.components_.T).float(), shares


def neighbour_map(codes: Tensor, method: str, seed: int = 0) -> np.ndarray:
    """Codes (N, D) in 2-D so that neighbours stay neighbours, by t-SNE or UMAP: (N, 2). Raises UserError where the
    package of UMAP is missing."""
    points, seed = codes.numpy(), seed % 2**32
    if method == "umap":
        try:
            from umap import UMAP
        except ImportError:
            raise UserError("--projection umap needs: pip install 'vaekit[umap]'") from None
        return UMAP(
            n_neighbors=min(30, len(points) - 1), random_state=seed, n_jobs=1
        ).fit_transform(points)
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(points) - 1) / 3)
    return TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(points)
