"""Log densities in NumPy float64, each written from its paper.

All are elementwise unless they say otherwise; sums over dimensions and pixels are the caller's. Every function accepts
complex arguments, so that Im f(x + ih) / h with h = 1e-30 is its derivative to float64 precision (Squire and Trapp
1998).
"""

import numpy as np

LOG_2PI = np.log(2 * np.pi)


def softplus(x):
    """log(1 + exp(x))."""
    positive = np.real(x) > 0
    return np.where(positive, x, 0) + np.log1p(np.exp(np.where(positive, -x, x)))


def sigmoid(x):
    return np.exp(-softplus(-x))


def logsumexp(x, axis=-1):
    top = np.max(np.real(x), axis=axis, keepdims=True)
    return np.squeeze(top, axis) + np.log(np.sum(np.exp(x - top), axis=axis))


def log_normal(x, mean, std):
    """log N(x; mean, std^2)."""
    return -0.5 * (LOG_2PI + 2 * np.log(std) + ((x - mean) / std) ** 2)


def kl_standard(mean, std):
    """KL(N(mean, std^2) || N(0, 1)). Kingma and Welling 2014, appendix B."""
    return -0.5 * (1 + np.log(std**2) - mean**2 - std**2)


def kl_normal(mean, std, prior_mean, prior_std):
    """KL(N(mean, std^2) || N(prior_mean, prior_std^2)), as the expectation of the log ratio:
    E[(z - prior_mean)^2] = std^2 + (mean - prior_mean)^2."""
    second = std**2 + (mean - prior_mean) ** 2
    entropy = 0.5 * (LOG_2PI + 1) + np.log(std)
    cross_entropy = 0.5 * (LOG_2PI + 2 * np.log(prior_std) + second / prior_std**2)
    return cross_entropy - entropy


def log_mixture_parts(z, log_weights, mean, std):
    """log pi_k + log N(z; mean_k, std_k^2) of vectors: z (..., D), mean and std (..., K, D) -> (..., K)."""
    return log_weights + log_normal(z[..., None, :], mean, std).sum(-1)


def log_bernoulli(x, logits):
    """x log p + (1 - x) log(1 - p), p = sigmoid(logits). Kingma and Welling 2014, eq. 11."""
    return -x * softplus(-logits) - (1 - x) * softplus(logits)


def log_continuous_bernoulli(x, logits):
    """Loaiza-Ganem and Cunningham 2019, section 3: p(x) proportional to lambda^x (1 - lambda)^(1 - x) on [0, 1], that
    is to exp(x logits), whose integral is (exp(logits) - 1) / logits."""
    positive = np.real(logits) > 0
    # With l = logits, exp(x l) / ((e^l - 1) / l) = exp((x - 1) l) / ((1 - e^-l) / l): the one that cannot overflow.
    down = np.where(positive, -logits, logits)
    near = np.abs(down) < 1e-3
    safe = np.where(near, 1.0, down)
    series = 1 + down / 2 + down**2 / 6 + down**3 / 24 + down**4 / 120
    exprel = np.where(near, series, np.expm1(safe) / safe)
    return (x - positive) * logits - np.log(exprel)


def continuous_bernoulli_moments(logits):
    """Mean and variance of Loaiza-Ganem and Cunningham 2019's density: by 200-point Gauss-Legendre quadrature on the
    part of [0, 1] that holds all but exp(-60) of the mass."""
    nodes, weights = np.polynomial.legendre.leggauss(200)
    width = np.minimum(1, 60 / np.maximum(np.abs(logits), 1e-300))[..., None]
    distance = width * (nodes + 1) / 2
    x = np.where(logits[..., None] > 0, 1 - distance, distance)
    p = weights * np.exp(log_continuous_bernoulli(x, logits[..., None]))
    p /= p.sum(-1, keepdims=True)
    mean = (p * x).sum(-1)
    return mean, (p * (x - mean[..., None]) ** 2).sum(-1)


def continuous_bernoulli_cdf(x, logits):
    """The integral of exp(x logits), divided by that over [0, 1]."""
    size, flipped = np.abs(logits), np.where(logits > 0, 1 - x, x)
    from_the_dense_end = np.expm1(-flipped * size) / np.expm1(-size)
    return np.where(logits > 0, 1 - from_the_dense_end, from_the_dense_end)


def mixture_moments(log_weights, mean, std):
    """Mean and variance (D,) of sum_k pi_k N(mean_k, std_k^2), by the laws of total expectation and variance."""
    pi = np.exp(log_weights)
    centre = pi @ mean
    return centre, pi @ std**2 + pi @ (mean - centre) ** 2


def discretised_logistic_mean(mean, scale):
    """The sum of k / 255 times the probability of level k."""
    levels = np.arange(256) / 255
    return (
        np.exp(log_discretised_logistic(levels, mean[..., None], scale[..., None])) * levels
    ).sum(-1)


def log_discretised_logistic(x, mean, scale):
    """Salimans et al. 2017, section 2.1, for levels x = k / 255: the mass of a logistic variable between x - 1/510 and
    x + 1/510; of level 0 from -inf, of level 255 to inf."""
    upper = (x + 1 / 510 - mean) / scale
    lower = (x - 1 / 510 - mean) / scale
    # The mass is s(upper) - s(lower) = s(-lower) - s(-upper): in the upper tail the second loses no digits.
    flip = np.real(upper + lower) > 0
    a, b = np.where(flip, -lower, upper), np.where(flip, -upper, lower)
    log_a, log_b = -softplus(-a), -softplus(-b)
    between = log_a + np.log(-np.expm1(log_b - log_a))
    return np.where(
        x < 1 / 510, -softplus(-upper), np.where(x > 1 - 1 / 510, -softplus(lower), between)
    )


def log_logistic_mixture(x, logits, mean, scale, coefficients):
    """Salimans et al. 2017, eqs. 2 and 3, of a pixel of C channels, the last axis, for levels from 0 to 1 rather than
    -1 to 1: x (..., C), logits (..., K), mean and scale (..., K, C); coefficients (..., K) by (channel, one before)."""
    parts = logits - logsumexp(logits)[..., None]
    for c in range(x.shape[-1]):
        given = mean[..., c]
        for (channel, before), weight in coefficients.items():
            if channel == c:
                given = given + weight * (x[..., before, None] - 0.5)
        parts = parts + log_discretised_logistic(x[..., c, None], given, scale[..., c])
    return logsumexp(parts)


def log_categorical(x, logits):
    """log softmax over 256 levels: x = k / 255 (...), logits (..., 256)."""
    level = np.broadcast_to(np.rint(x * 255).astype(int), logits.shape[:-1])
    chosen = np.take_along_axis(logits, level[..., None], -1)[..., 0]
    return chosen - logsumexp(logits)


def positive(raw, initial, floor):
    """The scale of a head: floor + log(1 + exp(raw + c)), with c such that raw = 0 gives `initial`."""
    return floor + softplus(raw + np.log(np.exp(initial - floor) - 1))
