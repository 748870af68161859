"""The objectives, each (B,) in nats per image and to be maximised, from their papers. `run` is a models.Pass."""

from functools import partial

import numpy as np

from . import densities as d
from .models import log_density, log_weights


def kl(z, q, p):
    """KL(q || p), in closed form between Gaussians (Kingma and Welling 2014, appendix B), else from the sample z."""
    if len(p) == 2:
        return d.kl_normal(*q, *p).sum(-1)
    return log_density(q, z) - log_density(p, z)


def mean_over_samples(value):
    return value if value.ndim == 1 else value.mean(tuple(range(value.ndim - 1)))


def elbo(run, beta=1.0, warmup=1.0):
    """Kingma and Welling 2014, eq. 3 and 10; times beta, Higgins et al. 2017, eq. 4; in a hierarchy the sum over levels
    (Tomczak and Welling 2018, section 4). Warm-up: Bowman et al. 2016, section 3.1."""
    total = sum(kl(*latent) for latent in run.latents.values())
    return mean_over_samples(run.log_likelihood - beta * warmup * total)


def free_bits(run, nats):
    """Kingma et al. 2016, appendix C.8: each latent's KL is at least `nats`, on average over the batch."""
    value = run.log_likelihood
    for latent in run.latents.values():
        each = kl(*latent)
        value = value - (each if np.real(each).mean() > nats else nats)
    return mean_over_samples(value)


def capacity(run, gamma, capacity, warmup=1.0):
    """Burgess et al. 2018, eq. 8: E_q log p(x | z) - gamma |KL - C|, C rising linearly; of a KL that is drawn, |KL - C|
    is of its mean over the batch, as the mean of |KL - C| would grow with the variance of the draws."""
    excess = sum(kl(*latent) for latent in run.latents.values()) - capacity * warmup
    drawn = len(run.latents) > 1 or any(len(p) != 2 for _, _, p in run.latents.values())
    sign = np.sign(np.real(excess).sum() if drawn else np.real(excess))
    return mean_over_samples(run.log_likelihood - gamma * sign * excess)


def gmvae(run, weights=(1.0, 1.0, 1.0), analytic=False):
    """Dilokthanakul et al. 2016, section 3.2: reconstruction, conditional prior, w prior and z prior (of the cluster),
    with `weights` for the last three, and p(c | z, w) by Bayes' rule.

    `analytic`: the conditional prior term as the paper estimates it, KL(q(z | x) || p(z | w, c)) in closed form,
    averaged over p(c | z, w) at a sample z. Since c depends on that z, this is not the expectation of the log ratio.
    """
    (z, qz, (log_pi, mean, std)), (_, qw, pw) = run.latents["z"], run.latents["w"]
    joint = d.log_mixture_parts(z, log_pi, mean, std)
    log_r = joint - d.logsumexp(joint)[..., None]
    r = np.exp(log_r)
    if analytic:
        expanded = [part[..., None, :] for part in qz]
        ratio = d.kl_normal(*expanded, mean, std).sum(-1)
    else:
        ratio = log_density(qz, z)[..., None] - (joint - log_pi)
    conditional = (r * ratio).sum(-1)
    w_prior = d.kl_normal(*qw, *pw).sum(-1)
    z_prior = (r * (log_r - log_pi)).sum(-1)
    terms = [a * term for a, term in zip(weights, (conditional, w_prior, z_prior), strict=True)]
    return mean_over_samples(run.log_likelihood - sum(terms))


def iwae(run):
    """Burda et al. 2016, eq. 8: log 1/K sum_k w_k, over the first axis."""
    log_w = log_weights(run)
    return d.logsumexp(log_w, axis=0) - np.log(len(log_w))


KERNELS = {
    # Kernel of squared distances s in D dimensions.
    "rbf": lambda s, dim: np.exp(-s / (2 * dim)),
    "reference": lambda s, dim: np.exp(
        -s / dim**2
    ),  # compute_kernel of the code of Zhao et al. 2019
    "imq": lambda s, dim: (
        2 * dim / (2 * dim + s)
    ),  # Tolstikhin et al. 2018, section 4, for a standard normal
}


def squared_mmd(x, y, kernel, biased=False):
    """Gretton et al. 2012: the unbiased estimate (eq. 3, Lemma 6) averages k(x_i, x_j) over i != j, the biased one
    (eq. 5) over all pairs. One pair at a time."""

    def mean(a, b, without_diagonal):
        pairs = [
            kernel(((u - v) ** 2).sum())
            for i, u in enumerate(a)
            for j, v in enumerate(b)
            if not (without_diagonal and i == j)
        ]
        return sum(pairs) / len(pairs)

    return mean(x, x, not biased) + mean(y, y, not biased) - 2 * mean(x, y, False)


def median_kernel(x, y):
    """exp(-s / m), m the (lower) median of the squared distances between x and y, of which no gradient is taken: the
    heuristic of Gretton et al. 2012, section 8."""
    squares = np.sort(np.real((x[:, None] - y) ** 2).sum(-1), axis=None)
    return lambda s: np.exp(-s / squares[(len(squares) - 1) // 2])


def infovae(run, prior_samples, alpha, mmd_weight, kernel="rbf", biased=False, warmup=1.0):
    """Zhao et al. 2019, eq. 6: E log p(x | z) - (1 - alpha) KL - (alpha + lambda - 1) MMD^2 between the codes of the
    batch and `prior_samples`, with lambda = mmd_weight."""
    z, q, p = run.latents["z"]
    dim = z.shape[-1]
    function = (
        median_kernel(z, prior_samples) if kernel == "median" else partial(KERNELS[kernel], dim=dim)
    )
    mmd = squared_mmd(z, prior_samples, function, biased)
    value = run.log_likelihood - (alpha + mmd_weight - 1) * mmd
    if alpha != 1:
        value = value - (1 - alpha) * warmup * kl(z, q, p)
    return mean_over_samples(value)
