"""Likelihood regret: by how much the ELBO of an image rises when its posterior is optimised for this image alone."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from ..data import EvalSplit
from ..data.dataset import Batch
from ..model.distributions import gaussian, independent
from ..model.graph import VAE, Values
from ..support.console import ProgressBar
from ..support.devices import eval_mode, seeded
from ..support.errors import require
from .aggregate import is_gaussian
from .elbo import image_chunks
from .importance import prepare_for_inference

STEPS, SAMPLES = 50, 2  # of the optimisation; samples per image and step
GROUPS = 16  # of SAMPLES, by which both posteriors are compared at the end
RATE = 0.4  # of Adam, in standard deviations of the encoder's posterior
SEED = 3


class ShiftedPosterior(nn.Module):
    """The encoder's posterior N(loc, scale^2) with numbers of each image, N(loc + scale shift, (scale e^stretch)^2):
    at 0 the encoder's own. `shift` and `stretch` are (B, D); of one latent this is every diagonal Gaussian."""

    def __init__(self, posterior: nn.Module, shift: Tensor, stretch: Tensor, fixed: bool) -> None:
        """`fixed`: the posterior depends on the images alone, so that it is computed once."""
        super().__init__()
        self.posterior = posterior
        self.shift, self.stretch = nn.Parameter(shift), nn.Parameter(stretch)
        self.fixed = fixed
        self.known: Any = None

    def forward(self, values: Values) -> Distribution:
        q = self.known or self.posterior(values).base_dist
        if self.fixed and self.known is None:
            self.known = q = gaussian(q.loc.detach(), q.scale.detach())
        return independent(gaussian(q.loc + q.scale * self.shift, q.scale * self.stretch.exp()), 1)


def check_regret(model: VAE, batch: Batch) -> None:
    """Raise UserError where the posteriors, given this batch, are not Gaussians that can be shifted."""
    with torch.no_grad():
        posteriors = model.posteriors(model.given(batch.images, batch.labels))
    require(
        all(is_gaussian(q) for q in posteriors.values()),
        f"likelihood regret optimises Gaussian posteriors, and those of this {model.blueprint.model} are "
        f"{model.blueprint.settings.posterior}; choose another --score",
    )


def likelihood_regret(
    model: VAE, images: EvalSplit, bar: ProgressBar, steps: int = STEPS, seed: int = SEED
) -> Tensor:
    """max_q ELBO(x; q) - ELBO(x; q of the encoder) of every image, nats, (N,), float64, on the CPU. Xiao et al. 2020
    ("Likelihood Regret"), with the parameters of q optimised rather than the encoder's weights.

    Adam takes `steps` steps for a batch at once, whose images do not affect each other. The maximum is over the
    encoder's posterior and the optimised one, compared by the same noise: it is never negative. Of several latents the
    family is that of `ShiftedPosterior`, which keeps how a latent depends on those above it. Raises UserError for
    posteriors that are not Gaussian.
    """
    parts = []
    with eval_mode(model):
        if len(images):
            check_regret(model, images[:1])
        prepared = prepare_for_inference(model, "float32")
        for chunk in bar.track(image_chunks(model, images, SAMPLES), "likelihood regret"):
            batch = images[chunk]
            with seeded(seed, images.device):
                optimised = optimise_posteriors(prepared, batch, steps)
            gain = mean_elbo(optimised, batch, seed) - mean_elbo(prepared, batch, seed)
            parts.append(gain.nan_to_num(0.0, posinf=0.0, neginf=0.0).clamp(min=0))
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)


def optimise_posteriors(model: VAE, batch: Batch, steps: int) -> VAE:
    """The model with posteriors that maximise the ELBO of each image of a batch, starting from the encoder's."""
    with torch.no_grad():
        latents = model.infer(model.given(batch.images, batch.labels), (1, len(batch)))
    shifted: dict[str, ShiftedPosterior] = {}
    for name, latent in latents.items():
        posterior, zeros = model.posterior[name], torch.zeros_like(latent.z[0])
        fixed = not set(latents) & set(getattr(posterior, "given", latents))
        shifted[name] = ShiftedPosterior(posterior, zeros, zeros.clone(), fixed)
    priors: dict[str, nn.Module] = dict(model.prior.items())
    optimised = VAE(priors, shifted, model.decoder, model.blueprint, model.condition).eval()
    numbers = [number for q in shifted.values() for number in q.parameters(recurse=False)]
    optimizer = torch.optim.Adam(numbers, lr=RATE)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = RATE * (1 + math.cos(math.pi * step / steps)) / 2
        with torch.enable_grad():
            # Of the numbers alone: the weights get no gradient, and images do not meet in a sum.
            gradients = torch.autograd.grad(-elbo_of(optimised, batch).sum(), numbers)
        for number, gradient in zip(numbers, gradients, strict=True):
            number.grad = gradient.nan_to_num(0.0, posinf=0.0, neginf=0.0)
        optimizer.step()
    return optimised


def elbo_of(model: VAE, batch: Batch) -> Tensor:
    """The ELBO from SAMPLES samples, (B,)."""
    inference = model(batch.images, batch.labels, samples=(SAMPLES,))
    return (inference.log_likelihood - inference.kl).mean(0)


@torch.no_grad()
def mean_elbo(model: VAE, batch: Batch, seed: int) -> Tensor:
    """The ELBO from GROUPS groups of samples, (B,), float64: of the same noise for one seed."""
    with seeded(seed + 1, batch.images.device):
        return torch.stack([elbo_of(model, batch).cpu().double() for _ in range(GROUPS)]).mean(0)
