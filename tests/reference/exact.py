"""vaekit's estimators of log p(x) on models of two latent dimensions, beside the reference's quadrature."""

import numpy as np
import torch

from reference import estimators, models, objectives
from reference.compare import QUIET
from reference.pairs import BATCH, Pair
from vaekit.data.dataset import Batch
from vaekit.likelihood.annealing import annealed_log_weights, reciprocal_log_likelihood
from vaekit.likelihood.importance import measure_nll

# Two latent dimensions in all.
SIZES = {"latent_dim": 2, "hidden_dim": 6, "channels": 2, "clusters": 4}
TWO_LEVELS = SIZES | {"latent_dim": 1, "top_dim": 1, "w_dim": 1}


def pair(name, seed):
    """A posterior that is wrong, and yet near enough to the prior for importance sampling to miss nothing."""
    two = any(part in name for part in ("hvae", "hvamp", "gmvae"))
    return Pair(name, seed, sizes=TWO_LEVELS if two else SIZES, posterior_spread=0.4)


def log_likelihood(both):
    joint = estimators.Joint(both.ours, both.x, both.labels, list(both.dims.values()))
    return estimators.quadrature(joint)


def nll(name, seed):
    """The mean of log p(x) over images, and for each estimator its error and its standard error, nats."""
    both = pair(name, seed)
    exact, batch = log_likelihood(both), Batch(both.tx, both.ty)
    torch.manual_seed(seed)
    found = {"log p(x)": exact.mean()}
    with torch.no_grad():
        estimate = measure_nll(both.theirs, both.images, 20_000, QUIET)
    relative = (estimate.log_mean_square - 2 * estimate.log_mean).exp().numpy() - 1
    found["importance"] = error(estimate.log_mean.numpy(), exact, relative / 20_000)
    log_w = annealed_log_weights(both.theirs, batch, 200, 30, 3).numpy()
    relative = np.exp(log_w - log_w.max(0))
    relative = relative.var(0, ddof=1) / relative.mean(0) ** 2
    found["AIS"] = error(estimators.importance(log_w), exact, relative / 200)
    repeats = [reciprocal_log_likelihood(both.theirs, batch, 50, 30, 10).numpy() for _ in range(4)]
    found["HMC"] = error(np.mean(repeats, 0), exact, np.var(repeats, 0, ddof=1) / 4)
    return found


def error(estimate, exact, variance):
    return (estimate - exact).mean(), np.sqrt(variance.sum()) / BATCH


def gmvae_bounds(seed, samples=2000):
    """Of a gmvae, means over images and samples: log p(x), the bound, and the bound with the conditional prior term as
    Dilokthanakul et al. 2016 estimate it."""
    both = pair("gmvae", seed)
    rng = np.random.default_rng([both.seed, 6])
    noise = {name: rng.normal(size=(samples, BATCH, dim)) for name, dim in both.dims.items()}
    run = models.infer(both.ours, both.x, both.labels, noise)
    bounds = [objectives.gmvae(run, analytic=analytic).mean() for analytic in (False, True)]
    return log_likelihood(both).mean(), *bounds
