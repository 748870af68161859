"""log p(x) from Hamiltonian Monte Carlo over a model's latents, without any posterior density."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from .checks import require
from .data.dataset import Batch
from .vae import VAE, Values

ACCEPTANCE = 0.65  # that step sizes aim at: best in many dimensions (Neal 2011, section 5.4.4)
GAIN = 0.2  # of the logarithm of a step size, for acceptance above what it aims at
FIRST_STEP = 0.5  # of prior draws, whose scale is about 1
PILOTS = 4  # chains that choose the step sizes
STEEPNESS = 4.0  # of the temperatures' sigmoid (Wu et al. 2017)
HMC_DIMENSIONS = 5


class Point(NamedTuple):
    """All latents of a batch side by side, z (K, B, D), with log p(z) and log p(x | z), each (K, B) in nats, and
    the gradients of these two."""

    z: Tensor
    log_prior: Tensor
    log_likelihood: Tensor
    prior_gradient: Tensor
    likelihood_gradient: Tensor


class Joint:
    """log p(z) + log p(x | z) of a batch of images x as a function of all latents side by side, z (K, B, D).

    The first latent's prior knows nothing that changes, so it is asked once: a VampPrior encodes hundreds of
    pseudo-inputs.
    """

    def __init__(self, model: VAE, batch: Batch) -> None:
        self.model, self.x = model, batch.images
        self.given = model.given(batch.images, batch.labels)
        (first, prior), *others = model.prior.items()
        with torch.no_grad():
            known = prior(self.given)
        self.priors: dict[str, Callable[[Values], Distribution]] = {
            first: lambda _: known,
            **dict(others),
        }

    @torch.no_grad()
    def sample(self, count: int) -> Tensor:
        """Draws from the prior: (count, B, D)."""
        values = {**self.given}
        drawn = []
        for name, prior in self.priors.items():
            z = values[name] = prior(values).expand((count, len(self.x))).sample()
            drawn.append(z)
        return torch.cat(drawn, dim=-1)

    @torch.enable_grad()
    def at(self, z: Tensor) -> Point:
        z = z.detach().requires_grad_()
        values, rest = {**self.given}, z
        log_prior = z.new_zeros(())
        for name, prior in self.priors.items():
            p = prior(values)
            size = p.event_shape.numel()
            latent, rest = rest[..., :size], rest[..., size:]
            values[name] = latent
            log_prior = log_prior + p.log_prob(latent)
        log_likelihood = self.model.decoder(values).log_prob(self.x)
        # Of the latents alone: the weights' gradients are neither computed nor kept.
        gradients = (torch.autograd.grad(log.sum(), z)[0] for log in (log_prior, log_likelihood))
        return Point(z.detach(), log_prior.detach(), log_likelihood.detach(), *gradients)


def transition(
    joint: Joint, point: Point, beta: float, step: Tensor, leapfrogs: int
) -> tuple[Point, Tensor]:
    """One step of Hamiltonian Monte Carlo that leaves p(z) p(x | z)^beta as it is, and the acceptance probabilities
    (K, B). Neal 2011, "MCMC using Hamiltonian dynamics".

    `step` (B, 1) is the leapfrogs' step size for each image; a fifth more or less, at random, keeps trajectories from
    closing on themselves.
    """

    def force(at: Point) -> Tensor:
        return at.prior_gradient + beta * at.likelihood_gradient

    start = momentum = torch.randn_like(point.z)
    step = step * (0.8 + 0.4 * torch.rand_like(point.z[..., :1]))
    new = point
    momentum = momentum + 0.5 * step * force(new)
    for left in reversed(range(leapfrogs)):
        new = joint.at(new.z + step * momentum)
        momentum = momentum + (step if left else 0.5 * step) * force(new)
    gained = new.log_prior - point.log_prior + beta * (new.log_likelihood - point.log_likelihood)
    lost = 0.5 * (momentum**2 - start**2).sum(-1)
    # A trajectory that left the floats' range has NaN here, and is rejected.
    probability = (gained - lost).clamp(max=0).exp().nan_to_num(0)
    accepted = torch.rand_like(probability) < probability
    kept = (
        torch.where(accepted.view(*accepted.shape, *[1] * (b.ndim - 2)), b, a)
        for a, b in zip(point, new, strict=True)
    )
    return Point(*kept), probability


def adapted(step: Tensor, probability: Tensor) -> Tensor:
    """Each image's step size (B, 1), larger where its chains (K, B) accept more than ACCEPTANCE, or smaller."""
    return step * (GAIN * (probability.mean(0) - ACCEPTANCE)).exp().unsqueeze(-1)


def inverse_temperatures(count: int) -> list[float]:
    """0 = beta_0 < ... < beta_count = 1 on a sigmoid, which goes slowly near both ends (Wu et al. 2017)."""
    values = [math.tanh(STEEPNESS * (t / count - 0.5)) for t in range(count + 1)]
    return [(v - values[0]) / (values[-1] - values[0]) for v in values]


@torch.no_grad()
def annealed_log_weights(
    model: VAE,
    batch: Batch,
    chains: int = 16,
    temperatures: int = 1000,
    leapfrogs: int = 10,
    track: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> Tensor:
    joint = Joint(model, batch)
    point = joint.at(joint.sample(PILOTS + chains))
    step = torch.full_like(point.z[0, :, :1], FIRST_STEP)
    betas = inverse_temperatures(temperatures)
    log_weights = torch.zeros(point.log_likelihood.shape, dtype=torch.float64)
    for t in track(range(temperatures)):
        point, probability = transition(joint, point, betas[t], step, leapfrogs)
        step = adapted(step, probability[:PILOTS])
        log_weights += (betas[t + 1] - betas[t]) * point.log_likelihood.cpu().double()
    return log_weights[PILOTS:]


@torch.no_grad()
def reciprocal_log_likelihood(
    model: VAE,
    batch: Batch,
    draws: int = 50,
    burn_in: int = 50,
    apart: int = 20,
    leapfrogs: int = 10,
    track: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> Tensor:
    joint = Joint(model, batch)
    found = model.infer({**joint.given}, (draws, len(batch)))
    z = torch.cat([latent.z for latent in found.values()], dim=-1)
    require(
        z.shape[-1] <= HMC_DIMENSIONS,
        f"--estimator hmc holds for at most {HMC_DIMENSIONS} latent dimensions; choose ais",
    )
    point = joint.at(z)
    step = torch.full_like(z[0, :, :1], FIRST_STEP)
    for t in track(range(burn_in + apart)):
        if t == burn_in:
            fitted = point.z
        point, probability = transition(joint, point, 1.0, step, leapfrogs)
        if t < burn_in:
            step = adapted(step, probability)
    ratios = log_gaussian(fitted, point.z) - (point.log_prior + point.log_likelihood).cpu().double()
    return math.log(draws) - ratios.logsumexp(0)


def log_gaussian(draws: Tensor, z: Tensor) -> Tensor:
    draws, z = draws.cpu().double(), z.cpu().double()
    centred = draws - draws.mean(0)
    covariance = torch.einsum("kbi,kbj->bij", centred, centred) / (len(draws) - 1)
    return torch.distributions.MultivariateNormal(draws.mean(0), covariance).log_prob(z)
