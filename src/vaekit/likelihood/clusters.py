"""Cluster responsibilities: p(cluster | x) of the components of a mixture prior."""

from __future__ import annotations

import torch
from torch import Tensor

from ..data import EvalSplit
from ..data.dataset import Batch
from ..model.distributions import GaussianMixture
from ..model.graph import VAE
from ..support.devices import seeded
from ..support.errors import UserError

BATCH_SIZE = 500
SAMPLES = 10  # of the latents per image


@torch.no_grad()
def responsibilities(
    model: VAE, images: EvalSplit, samples: int = SAMPLES, seed: int = 0
) -> Tensor:
    """p(cluster | x) per image, (N, K): the mean of the exact p(cluster | latents) over samples of the latents.

    The same images in the same order, on the model's device, have the same values wherever they are asked for.
    """
    device = next(model.parameters()).device
    images, starts = images.to(device), range(0, len(images), BATCH_SIZE)
    with seeded(seed, device):
        return torch.cat(
            [batch_responsibilities(model, images[i : i + BATCH_SIZE], samples) for i in starts]
        )


def batch_responsibilities(model: VAE, batch: Batch, samples: int) -> Tensor:
    """The same of one batch, (B, K). Raises UserError where the prior is not a mixture."""
    values = model.given(batch.images, batch.labels)
    latents = model.infer(values, (samples, len(batch))).values()
    mixtures = [(v.prior, v.z) for v in latents if isinstance(v.prior, GaussianMixture)]
    if not mixtures:
        raise UserError(
            f"a {model.blueprint.model} has no clusters: its prior is not a mixture; train gmvae, or another model "
            "with --prior learned-mixture"
        )
    ((prior, z),) = mixtures
    return prior.log_responsibilities(z).exp().mean(0)
