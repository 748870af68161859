"""log p(x) by Hamiltonian Monte Carlo over a model's latents, which asks for no density of the posterior."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution, MultivariateNormal

from ..data.dataset import Batch
from ..model.graph import VAE, Values
from ..support.errors import require

ACCEPTANCE = 0.65  # that step sizes are chosen for, as by Wu et al. 2017
FIRST_STEP = 0.5
PILOTS = 4  # chains that choose the step sizes of the others
HMC_DIMENSIONS = 5
DRAWS = 50  # of an image's posterior, as in the paper

Track = Callable[[Iterable[int]], Iterable[int]]


@torch.no_grad()
def annealed_log_weights(
    model: VAE,
    batch: Batch,
    chains: int = 16,
    temperatures: int = 1000,
    leapfrogs: int = 5,
    track: Track = iter,
) -> Tensor:
    """Log weights of annealed importance sampling (chains, B), nats, float64 on the CPU: E[weight] = p(x).

    log w = sum_t (beta_t - beta_{t-1}) log p(x | z_t), where z_0 ~ p(z) and a step of Hamiltonian Monte Carlo, which
    leaves p(z) p(x | z)^beta_{t-1} as it is, makes z_t of z_{t-1}; z are all latents. So log mean_chains w is, in
    expectation, a lower bound on log p(x) whatever the settings, and more temperatures tighten it.

    Each image has its own step size, which PILOTS further chains adapt as they go; they are left out of the result, so
    the sizes do not depend on the chains that are kept, and E[weight] = p(x) is exact. `model` is in evaluation mode;
    noise comes from torch's generators; `track` goes around the temperatures.
    Neal 2001, "Annealed importance sampling"; Wu et al. 2017, "On the quantitative analysis of decoder-based
    generative models".
    """
    joint = Joint(model, batch)
    z = joint.sample(PILOTS + chains)
    return anneal(joint, z, PILOTS, temperatures, leapfrogs, track)[1][PILOTS:]


def check_dimensions(count: int) -> None:
    """Raise UserError where the latents have more dimensions than a density can be fitted in."""
    require(
        count <= HMC_DIMENSIONS,
        f"--estimator hmc holds for at most {HMC_DIMENSIONS} latent dimensions; choose ais",
    )


@torch.no_grad()
def reciprocal_log_likelihood(
    model: VAE,
    batch: Batch,
    draws: int = DRAWS,
    temperatures: int = 100,
    apart: int = 25,
    leapfrogs: int = 5,
    track: Track = iter,
) -> Tensor:
    """log p(x) of each image (B,), nats, float64 on the CPU, by 1 / p(x) = E[q(z) / (p(z) p(x | z))] over the posterior
    p(z | x), where q is any density.

    `draws` chains for each image are annealed from the prior and resampled by their weights, so that each mode has its
    share of them, whatever the encoder says. After `apart` more steps of Hamiltonian Monte Carlo q is fitted to where
    they are: a Gaussian with full covariance over all latents, cut off where p(x, z) is below its 10 % quantile, which
    bounds the ratio (Robert and Wraith 2009). `apart` steps later the mean is taken.

    `model` is in evaluation mode; noise comes from torch's generators; `track` goes around the temperatures. Raises
    UserError above HMC_DIMENSIONS dimensions of latents altogether. Kingma and Welling 2014, appendix D.
    """
    joint = Joint(model, batch)
    z = joint.sample(draws)
    check_dimensions(z.shape[-1])
    point, log_weights, step = anneal(joint, z, draws, temperatures, leapfrogs, track)
    weights = log_weights.softmax(0).nan_to_num(1).T
    chosen = torch.multinomial(weights, draws, replacement=True).T.to(z.device)
    point = Point(*(torch.take_along_dim(field, beside(chosen, field), 0) for field in point))
    for _ in range(apart):
        point, probability = transition(joint, point, 1.0, step, leapfrogs)
        step = adapted(step, probability.mean(0))
    gaussian, lowest = fitted(point.z), point.log_joint.quantile(0.1, dim=0)
    for _ in range(apart):
        point, _ = transition(joint, point, 1.0, step, leapfrogs)
    log_ratio = gaussian.log_prob(point.z.cpu().double()) - point.log_joint
    log_ratio = torch.where(point.log_joint < lowest, -math.inf, log_ratio)
    # What is left of the Gaussian, from as many draws at once as there are chains.
    inside = [joint.at(gaussian.sample((draws,)).to(z)).log_joint >= lowest for _ in range(10)]
    log_share = torch.cat(inside).double().mean(0).log()
    return log_share + math.log(draws) - log_ratio.logsumexp(0)


class Point(NamedTuple):
    """All latents of a batch side by side, z (K, B, D), log p(z) and log p(x | z), each (K, B) in nats, and the
    gradients of these two with respect to z."""

    z: Tensor
    log_prior: Tensor
    log_likelihood: Tensor
    prior_gradient: Tensor
    likelihood_gradient: Tensor

    @property
    def log_joint(self) -> Tensor:
        """log p(x, z), (K, B), in float64 on the CPU."""
        return (self.log_prior + self.log_likelihood).cpu().double()


class Joint:
    """p(z) and p(x | z) of a batch of images x, as functions of all latents side by side, z (K, B, D).

    The first latent's prior knows nothing that changes, so it is asked once: a VampPrior encodes its pseudo-inputs.
    """

    def __init__(self, model: VAE, batch: Batch) -> None:
        self.x, self.decoder = batch.images, model.decoder
        self.given = model.given(batch.images, batch.labels)
        (first, prior), *others = model.prior.items()
        known = prior(self.given)
        self.priors: dict[str, Callable[[Values], Distribution]] = {
            first: lambda _: known,
            **dict(others),
        }

    def sample(self, count: int) -> Tensor:
        """Draws from the prior, (count, B, D)."""
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
        log_likelihood = self.decoder(values).log_prob(self.x)
        # One each, so that a new temperature asks for no new pass; and none of the weights.
        (prior_gradient,) = torch.autograd.grad(log_prior.sum(), z)
        (likelihood_gradient,) = torch.autograd.grad(log_likelihood.sum(), z)
        return Point(
            z.detach(),
            log_prior.detach(),
            log_likelihood.detach(),
            prior_gradient,
            likelihood_gradient,
        )


def anneal(
    joint: Joint, z: Tensor, pilots: int, temperatures: int, leapfrogs: int, track: Track
) -> tuple[Point, Tensor, Tensor]:
    """Where chains from prior draws z (K, B, D) come to at the posterior, their log weights (K, B), float64 on the CPU,
    and each image's step size (B, 1), adapted to its first `pilots` chains."""
    point = joint.at(z)
    step = torch.full_like(z[0, :, :1], FIRST_STEP)
    betas = inverse_temperatures(temperatures)
    log_weights = torch.zeros(z.shape[:-1], dtype=torch.float64)
    for t in track(range(temperatures)):
        point, probability = transition(joint, point, betas[t], step, leapfrogs)
        step = adapted(step, probability[:pilots].mean(0))
        log_weights += (betas[t + 1] - betas[t]) * point.log_likelihood.cpu().double()
    return point, log_weights, step


def transition(
    joint: Joint, point: Point, beta: float, step: Tensor, leapfrogs: int
) -> tuple[Point, Tensor]:
    """One step of Hamiltonian Monte Carlo, which leaves p(z) p(x | z)^beta as it is, and the probabilities (K, B) with
    which it was accepted.

    `step` is the step size of each image (B, 1), of which a trajectory has 80 to 120 %, at random: of one length, it
    may end again and again where it began. Neal 2011, "MCMC using Hamiltonian dynamics".
    """
    step = step * (0.8 + 0.4 * torch.rand_like(point.z[..., :1]))
    start = momentum = torch.randn_like(point.z)
    end = point
    momentum = momentum + 0.5 * step * (end.prior_gradient + beta * end.likelihood_gradient)
    for left in reversed(range(leapfrogs)):
        end = joint.at(end.z + step * momentum)
        kick = step if left else 0.5 * step
        momentum = momentum + kick * (end.prior_gradient + beta * end.likelihood_gradient)
    gained = end.log_prior - point.log_prior + beta * (end.log_likelihood - point.log_likelihood)
    lost = 0.5 * (momentum**2 - start**2).sum(-1)
    # Where a trajectory left the range of floats there is a NaN: it is not accepted.
    probability = (gained - lost).clamp(max=0).exp().nan_to_num(0)
    accepted = torch.rand_like(probability) < probability
    kept = (
        torch.where(beside(accepted, new), new, old) for new, old in zip(end, point, strict=True)
    )
    return Point(*kept), probability


def beside(value: Tensor, field: Tensor) -> Tensor:
    """What is said of each chain and image (K, B), beside a field (K, B) or (K, B, D)."""
    return value if field.ndim == 2 else value.unsqueeze(-1)


def adapted(step: Tensor, probability: Tensor) -> Tensor:
    """Step sizes (..., 1), longer where more than ACCEPTANCE is accepted (...), shorter where less."""
    return step * (0.5 * (probability - ACCEPTANCE)).exp().unsqueeze(-1)


def inverse_temperatures(count: int) -> list[float]:
    """beta_t = (t / count)^4, t = 0 ... count.

    Where the likelihood rules, log p(x | z) has variance D / (2 beta^2), so steps should grow with beta. On models of
    MNIST the bound is 20 to 45 % closer than by the sigmoid of Wu et al. 2017, which is as slow at the end as at first.
    """
    return [(t / count) ** 4 for t in range(count + 1)]


def fitted(draws: Tensor) -> MultivariateNormal:
    """A Gaussian over z for each image from its draws (K, B, D), in float64 on the CPU."""
    draws = draws.cpu().double()
    centred = draws - draws.mean(0)
    covariance = torch.einsum("kbi,kbj->bij", centred, centred) / (len(draws) - 1)
    # Of draws that are NaN it is NaN, and so is what follows.
    factor, _ = torch.linalg.cholesky_ex(covariance)
    return MultivariateNormal(draws.mean(0), scale_tril=factor, validate_args=False)
