"""Which component of a mixture prior an image belongs to: p(cluster | x)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..data import Frozen
from ..data.dataset import Batch
from ..model.distributions import GaussianMixture
from ..model.graph import VAE
from ..support.errors import UserError

BATCH = 500


@torch.no_grad()
def responsibilities(model: VAE, images: Frozen, samples: int) -> Tensor:
    """p(cluster | x) of each image, (N, K): the mean over draws of the latents of the exact p(cluster | latents)."""
    starts = range(0, len(images), BATCH)
    return torch.cat(
        [batch_responsibilities(model, images[i : i + BATCH], samples) for i in starts]
    )


def batch_responsibilities(model: VAE, batch: Batch, samples: int) -> Tensor:
    """The same of images in memory, (B, K). Raises UserError where the prior is no mixture."""
    values = model.given(batch.images, batch.labels)
    latents = model.infer(values, (samples, len(batch))).values()
    found = [v for v in latents if isinstance(v.prior, GaussianMixture)]
    if not found:
        raise UserError(
            f"a {model.blueprint.model} has no clusters: its prior is no mixture; train gmvae, or another model "
            "with --prior learned-mixture"
        )
    (latent,) = found
    prior = latent.prior
    assert isinstance(prior, GaussianMixture)
    return prior.log_responsibilities(latent.z).exp().mean(0)
