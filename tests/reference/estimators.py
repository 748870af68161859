"""Estimators of log p(x) and of what the latents hold, from their papers."""

import numpy as np

from . import densities as d
from .models import log_density, log_weights

STEP = 1e-30  # of complex derivatives


def importance(log_w):
    """log 1/S sum w per image from log weights (S, B): Burda et al. 2016, eq. 8, whose negative is the NLL."""
    return d.logsumexp(log_w, axis=0) - np.log(len(log_w))


def effective_samples(log_w):
    """(sum w)^2 / sum w^2 per image. Kong 1992."""
    w = np.exp(log_w - log_w.max(0))
    return w.sum(0) ** 2 / (w**2).sum(0)


def normalised_gradient(run_at):
    """sum_k w~_k d log w_k per image (B,), the gradient of Burda et al. 2016, section 3, along the direction in which
    `run_at(t)`, a Pass, moves the parameters (t complex)."""
    log_w = log_weights(run_at(1j * STEP))
    w = np.exp(log_w.real - d.logsumexp(log_w.real, axis=0))
    return (w * log_w.imag / STEP).sum(0)


def doubly_reparameterised(model_at, x, labels, noise):
    """The gradient of Tucker et al. 2019, eq. 8, of a model of one latent, along the direction in which `model_at(t)`
    moves all parameters (t complex): decoder and prior sum_k w~_k d log w_k; posterior sum_k w~_k^2 (d log w_k / d z_k)
    (d z_k / d phi), with q's own parameters held fixed in log w. (B,)"""
    fixed, moved = model_at(0.0), model_at(1j * STEP)
    y = fixed.given(x, labels)
    q, dq = fixed.posterior("z", x, y), moved.posterior("z", x, y)
    z = q[0] + q[1] * noise["z"]
    dim = z.shape[-1]

    def log_w(model, z):
        log_prior = log_density(model.prior_of("z", y, dim=dim), z)
        return model.log_likelihood(x, {"z": z}, y) + log_prior - log_density(q, z)

    value = log_w(fixed, z)
    w = np.exp(value - d.logsumexp(value, axis=0))
    generative = log_w(moved, z).imag / STEP
    dz = (dq[0] + dq[1] * noise["z"]).imag / STEP
    through_z = log_w(fixed, z + 1j * STEP * dz).imag / STEP
    return (w * generative).sum(0) + (w**2 * through_z).sum(0)


class Joint:
    """log p(z) and log p(x | z) of a model as functions of all its latents, concatenated, z (K, B, D)."""

    def __init__(self, model, x, labels, dims):
        self.model, self.x, self.y, self.dims = model, x, model.given(x, labels), dims

    def log_prior(self, z):
        total, values = 0.0, {}
        for name, part in self.split(z).items():
            p = self.model.prior_of(name, self.y, self.model.above(values), part.shape[-1])
            total, values[name] = total + log_density(p, part), part
        return total

    def log_likelihood(self, z):
        return self.model.log_likelihood(self.x, self.split(z), self.y)

    def split(self, z):
        parts = np.split(z, np.cumsum(self.dims)[:-1], axis=-1)
        return dict(zip(self.model.latents, parts, strict=True))

    def gradients(self, z):
        """Of log p(z) and log p(x | z) with respect to z, both (K, B, D)."""
        columns = []
        for i in range(z.shape[-1]):
            moved = z + 1j * STEP * np.eye(z.shape[-1])[i]
            columns.append([self.log_prior(moved).imag, self.log_likelihood(moved).imag])
        return np.moveaxis(np.array(columns), 0, -1) / STEP


def annealed(joint, z, noise, pilots, temperatures, leapfrogs, initial_step=0.5, target=0.65):
    """Log weights of annealed importance sampling, (K, B), from samples z (K, B, D) of the prior.

    log w = sum_t (beta_t - beta_t-1) log p(x | z_t) (Neal 2001, section 2, for p_t(z) = p(z) p(x | z)^beta_t), where
    z_t follows from z_t-1 by a Hamiltonian transition that leaves p_t-1 invariant (Neal 2011, sections 2.3 and 3.2:
    half a step for the momentum, then whole steps for position and momentum, half a step at the end; accepted with
    probability exp(H - H')). beta_t = (t / T)^4. `noise`, for each temperature: uniform (K, B, 1) that make each
    trajectory's step 0.8 to 1.2 times the image's, momenta (K, B, D), uniform (K, B) for the acceptance. The first
    `pilots` chains adapt the image's step towards their `target` rate (Wu et al. 2017).
    """
    betas = (np.arange(temperatures + 1) / temperatures) ** 4
    step = np.full((z.shape[1], 1), initial_step)
    log_w = np.zeros(z.shape[:2])
    for t, (uniform, start, accept) in enumerate(noise):
        beta = betas[t]

        def force(z, beta=beta):
            prior, likelihood = joint.gradients(z)
            return prior + beta * likelihood

        def energy(z, momentum, beta=beta):
            return (momentum**2).sum(-1) / 2 - joint.log_prior(z) - beta * joint.log_likelihood(z)

        size = step * (0.8 + 0.4 * uniform)
        end, momentum = z, start
        for _ in range(leapfrogs):
            momentum = momentum + size / 2 * force(end)
            end = end + size * momentum
            momentum = momentum + size / 2 * force(end)
        probability = np.minimum(1, np.exp(energy(z, start) - energy(end, momentum)))
        z = np.where((accept < probability)[..., None], end, z)
        step = step * np.exp(0.5 * (probability[:pilots].mean(0) - target))[:, None]
        log_w += (betas[t + 1] - beta) * joint.log_likelihood(z)
    return log_w


def quadrature(joint, half=9.0, points=241):
    """log p(x) per image of a model with two latent dimensions: the trapezoid rule over a square."""
    line = np.linspace(-half, half, points)
    grid = np.stack(np.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 1, 2)
    log_joint = joint.log_prior(grid) + joint.log_likelihood(grid)
    return d.logsumexp(log_joint, axis=0) + 2 * np.log(line[1] - line[0])


def aggregate(z, q, log_p):
    """Hoffman and Johnson 2016, eq. 6, from one sample z_n (N, D) of each image's q = (mean, std) and its log p(z_n):
    (mutual information, marginal KL), with q(z) = 1/N sum_n q(z | x_n)."""
    own = d.log_normal(z, *q).sum(-1)
    every = d.log_normal(z[:, None], q[0][None], q[1][None]).sum(-1)
    log_q = d.logsumexp(every) - np.log(len(z))
    return (own - log_q).mean(), (log_q - log_p).mean()


def active_units(means, threshold=0.01):
    """Burda et al. 2016, section 5: units u with Cov_x(E[u | x]) above 0.01; means (N, D)."""
    return int((means.var(0) > threshold).sum())


def responsibilities(z, p):
    """p(k | z) = pi_k N(z; k) / sum_j pi_j N(z; j), averaged over the samples z (S, B, D): (B, K)."""
    joint = d.log_mixture_parts(z, *p)
    return np.exp(joint - d.logsumexp(joint)[..., None]).mean(0)
