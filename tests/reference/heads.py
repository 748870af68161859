"""vaekit's distributions alone beside the reference's densities, at moderate and at saturated parameters."""

import numpy as np
import torch

from reference import densities as d
from reference.compare import difference
from reference.pairs import as_float32
from vaekit.likelihood.importance import log_likelihood
from vaekit.model.distributions import GaussianMixture, gaussian, independent
from vaekit.model.pixels import (
    CategoricalPixels,
    DiscretisedLogistic,
    bernoulli,
    continuous_bernoulli,
)


def differences(seed, dtype):
    """By name of a density: the largest difference over a few thousand values."""
    rng = np.random.default_rng([seed, 5])

    def draw(low, high, *shape):
        return as_float32(rng.uniform(low, high, size=shape or (2000,)))

    def t(array):
        return torch.tensor(array, dtype=dtype)

    found = {}
    tiny = as_float32(10 ** draw(-6, -1) * rng.choice([-1, 1], size=2000))
    for name, logits in {
        "logits within 8": draw(-8, 8),
        "logits within 100": draw(-100, 100),
        "logits within 0.1": tiny,
    }.items():
        bits, grey = np.rint(draw(0, 1)), draw(0, 1)
        found[f"Bernoulli, {name}"] = difference(
            bernoulli(t(logits)).log_prob(t(bits)), d.log_bernoulli(bits, logits)
        )
        theirs = continuous_bernoulli(t(logits))
        ours = d.log_continuous_bernoulli(grey, logits)
        found[f"continuous Bernoulli, {name}"] = difference(theirs.log_prob(t(grey)), ours)
        mean, variance = d.continuous_bernoulli_moments(logits)
        found[f"continuous Bernoulli, mean, {name}"] = difference(theirs.mean, mean)
        found[f"continuous Bernoulli, variance, {name}"] = difference(theirs.variance, variance)
        quantile = theirs.icdf(t(grey)).double().numpy()
        found[f"continuous Bernoulli, distribution of draws, {name}"] = difference(
            d.continuous_bernoulli_cdf(quantile, logits), grey
        )
        images = logits.reshape(20, 100, 1, 1), bits.reshape(20, 100, 1, 1)
        fast = log_likelihood(independent(bernoulli(t(images[0])), 3), t(images[1]))
        found[f"Bernoulli, sum over pixels, {name}"] = difference(
            fast, d.log_bernoulli(*images[::-1]).sum((1, 2, 3))
        )
    levels = rng.integers(256, size=2000) / 255
    levels[:200] = rng.integers(2, size=200)
    for name, loc, scale in (
        ("scale 0.01 to 1", draw(0, 1), draw(0.01, 1)),
        ("scale 0.001, means far away", draw(-2, 3), draw(1e-3, 2e-3)),
        ("scale 1 to 1000", draw(-50, 50), draw(1, 1000)),
    ):
        theirs = DiscretisedLogistic(t(loc), t(scale))
        ours = d.log_discretised_logistic(levels, loc, scale)
        found[f"discretised logistic, {name}"] = difference(theirs.log_prob(t(levels)), ours)
        mean = d.discretised_logistic_mean(loc, scale)
        found[f"discretised logistic, mean, {name}"] = difference(theirs.mean, mean)
    x, loc, scale = draw(-5, 5), draw(-5, 5), draw(1e-2, 5)
    found["Gaussian"] = difference(
        gaussian(t(loc), t(scale)).log_prob(t(x)), d.log_normal(x, loc, scale)
    )
    logits = draw(-60, 60, 200, 256)
    theirs = CategoricalPixels(t(logits)).log_prob(t(levels[:200]))
    found["categorical"] = difference(theirs, d.log_categorical(levels[:200], logits))
    for name, reach in (("near", 2), ("30 standard deviations away", 60)):
        z, loc, scale = draw(-reach, reach, 300, 5), draw(-2, 2, 40, 5), draw(0.5, 2, 40, 5)
        weights = draw(-3, 3, 40)
        log_weights = weights - d.logsumexp(weights)
        mixture, each = (
            GaussianMixture(t(a), t(b), t(weights))
            for a, b in ((loc, scale), (loc[None], scale[None]))
        )
        ours = d.logsumexp(d.log_mixture_parts(z, log_weights, loc, scale))
        moments = torch.stack([mixture.mean, mixture.variance])
        found[f"mixture of 40 Gaussians, mean and variance, {name}"] = difference(
            moments, np.stack(d.mixture_moments(log_weights, loc, scale))
        )
        found[f"mixture of 40 Gaussians, {name}"] = difference(mixture.log_prob(t(z)), ours)
        found[f"mixture of 40 Gaussians per image, {name}"] = difference(each.log_prob(t(z)), ours)
    return found
