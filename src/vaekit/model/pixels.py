"""Distributions of pixels: the heads of the decoder, and distributions that torch lacks or computes less exactly."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Distribution, Independent, constraints

from ..settings.model import Mean, ModelConfig, Scale
from ..support.errors import UserError
from .distributions import Head, LocationScaleHead, gaussian

CENTERS = {"linear": 0.5, "sigmoid": None}  # an output of 0 is grey either way
SCALE_FLOOR = 1 / 256  # of a Gaussian pixel: one level of an 8-bit image


def likelihood_head(settings: ModelConfig) -> Head | LocationScaleHead:
    """The decoder's head for the likelihood of the settings."""
    if settings.likelihood == "bernoulli":
        return Head(bernoulli, 3)
    if settings.likelihood == "continuous-bernoulli":
        return Head(continuous_bernoulli, 3)
    if settings.likelihood == "gaussian":
        return gaussian_head(settings.scale or "shared", settings.mean)
    levels = settings.levels or 256
    if settings.likelihood == "logistic":
        return logistic_head(settings.scale or "each", settings.mean, levels)
    if settings.likelihood == "categorical":
        return Head(partial(categorical, levels=levels), 3, levels)
    raise UserError("the likelihood is 'auto'; make the model with `build`, which chooses one")


def bernoulli(logits: Tensor) -> Distribution:
    """log p(x) = x log p + (1 - x) log(1 - p), p = sigmoid(logits). For grey x in [0, 1] this relaxation is E[log p(b)]
    of bits b ~ Bernoulli(x)."""
    return Bernoulli(logits=logits, validate_args=False)


def continuous_bernoulli(logits: Tensor) -> Distribution:
    """p(x) = C(p) p^x (1 - p)^(1 - x), a density on [0, 1], p = sigmoid(logits). Loaiza-Ganem and Cunningham 2019,
    eq. 5."""
    return StableContinuousBernoulli(logits=logits, validate_args=False)


def categorical(output: Tensor, levels: int) -> Distribution:
    """A softmax over the L levels of each pixel: (..., L C, H, W) -> (..., C, H, W)."""
    return CategoricalPixels(output.unflatten(-3, (-1, levels)).movedim(-3, -1))


def gaussian_head(scale: Scale, mean: Mean = "linear") -> LocationScaleHead:
    """Gaussian pixels. Without the floor of a learned scale, the density is unbounded on pixels that never change."""
    return LocationScaleHead(gaussian, 3, scale, 0.25, SCALE_FLOOR, CENTERS[mean])


def logistic_head(scale: Scale, mean: Mean = "linear", levels: int = 256) -> LocationScaleHead:
    """Discretised logistic pixels. The floor of a learned scale, a quarter of a level, is for float32: at any scale the
    probabilities are at most 1."""
    family, floor = partial(DiscretisedLogistic, levels=levels), 0.255 / (levels - 1)
    return LocationScaleHead(family, 3, scale, max(0.1, 2 * floor), floor, CENTERS[mean])


class StableContinuousBernoulli(torch.distributions.ContinuousBernoulli):
    """torch's, computed from logits l; from probabilities the error in float32 is about 0.01 nats per pixel at l = 15.
    log p(x) = x l - softplus(l) + log(l / tanh(l / 2)), E[x] = 1 / (1 - e^-l) - 1 / l,
    Var[x] = 1 / l^2 - 1 / (4 sinh^2(l / 2)).
    """

    def log_prob(self, value: Tensor) -> Tensor:
        small, square = self.logits.abs() < 0.1, self.logits**2
        safe = torch.where(small, 1.0, self.logits)
        series = math.log(2) + square * (1 / 12 - square * (7 / 1440 - square * 31 / 90720))
        normaliser = torch.where(small, series, torch.log(safe / torch.tanh(safe / 2)))
        # torch's softplus drops log1p(exp(-l)) above its threshold, 20 by default: 2e-9.
        return value * self.logits - F.softplus(self.logits, threshold=40) + normaliser

    @property
    def mean(self) -> Tensor:
        small, square = self.logits.abs() < 0.1, self.logits**2
        safe = torch.where(small, 1.0, self.logits)
        series = 0.5 + self.logits * (1 / 12 - square * (1 / 720 - square / 30240))
        return torch.where(small, series, -1 / torch.expm1(-safe) - 1 / safe)

    @property
    def variance(self) -> Tensor:
        square, large = self.logits**2, self.logits.abs().clamp(min=0.5)
        series = 1 / 12 - square / 240 + square**2 / 6048 - square**3 / 172_800
        series = series + square**4 / 5_322_240
        return torch.where(large > 0.5, large**-2 - (2 * torch.sinh(large / 2)) ** -2, series)

    def icdf(self, value: Tensor) -> Tensor:
        """x = -log(1 - u (1 - e^l)) / l where l < 0; elsewhere by symmetry, so that nothing overflows."""
        size, negative = self.logits.abs().clamp(min=1e-6), self.logits < 0
        u = torch.where(negative, value, 1 - value)
        x = -torch.log1p(u * torch.expm1(-size)) / size
        return torch.where(negative, x, 1 - x)


class MaskedPixels(Distribution):
    """Images whose pixels are random where `mask` is 1, and those of `visible` elsewhere."""

    arg_constraints = {}  # noqa: RUF012

    def __init__(self, pixels: Independent, mask: Tensor, visible: Tensor) -> None:
        self.base_dist, self.mask, self.visible = pixels.base_dist, mask, visible
        super().__init__(pixels.batch_shape, pixels.event_shape, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Nats, summed over the random pixels."""
        return (self.base_dist.log_prob(value) * self.mask).sum((-3, -2, -1))

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        return torch.where(self.mask > 0, self.base_dist.sample(sample_shape), self.visible)

    @property
    def mean(self) -> Tensor:
        return torch.where(self.mask > 0, self.base_dist.mean, self.visible)


class CategoricalPixels(Distribution):
    """A variable on the L levels k / (L - 1), from 0 to 1, with logits (..., L)."""

    arg_constraints = {"logits": constraints.real_vector}  # noqa: RUF012

    def __init__(self, logits: Tensor) -> None:
        self.logits, self.levels = logits, logits.shape[-1]
        super().__init__(logits.shape[:-1], validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> CategoricalPixels:
        return CategoricalPixels(self.logits.expand(*batch_shape, self.levels))

    def log_prob(self, value: Tensor) -> Tensor:
        """Nats; value on the levels."""
        level = (value * (self.levels - 1)).round().long().expand(self.batch_shape)
        log_p = self.logits.log_softmax(-1)
        return log_p.gather(-1, level.unsqueeze(-1)).squeeze(-1)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        with torch.no_grad():
            level = Categorical(logits=self.logits, validate_args=False).sample(sample_shape)
            return level.to(self.logits.dtype) / (self.levels - 1)

    @property
    def mean(self) -> Tensor:
        p = self.logits.softmax(-1)
        return p @ torch.linspace(0, 1, self.levels, dtype=p.dtype, device=p.device)


class DiscretisedLogistic(Distribution):
    """A logistic variable rounded to the L levels k / (L - 1), from 0 to 1; the end levels include the tails.

    P(x) = sigmoid((x + half - loc) / scale) - sigmoid((x - half - loc) / scale), half = 1 / (2 L - 2).
    Kingma et al. 2016 (IAF), eq. 18; Salimans et al. 2017 (PixelCNN++), section 2.1.
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}  # noqa: RUF012

    def __init__(self, loc: Tensor, scale: Tensor, levels: int = 256) -> None:
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        self.levels = levels
        super().__init__(self.loc.shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> DiscretisedLogistic:
        loc, scale = self.loc.expand(batch_shape), self.scale.expand(batch_shape)
        return DiscretisedLogistic(loc, scale, self.levels)

    def log_prob(self, value: Tensor) -> Tensor:
        """Nats; value on the levels."""
        x, loc, steps = value, self.loc, self.levels - 1
        half = 0.5 / steps
        if self.levels > 256:
            # Float32 has too few digits for value + half, so take value - loc: first the whole level minus a number of
            # few digits, which is exact, then the small rest of loc.
            coarse = (loc.detach() * 128).round() / 128
            x = ((x * steps).round() - coarse * steps - (loc - coarse) * steps) / steps
            loc = torch.zeros_like(loc)
        upper = (x + half - loc) / self.scale
        lower = (x - half - loc) / self.scale
        # log(sigmoid(b) - sigmoid(a)) = log sigmoid(b) + log sigmoid(-a) + log(1 - e^(a - b)) is exact far out in the
        # tails too; b - a is the width of a level, not a difference of floats.
        first, last = value < half, value > 1 - half
        log_upper = torch.where(last, 0.0, F.logsigmoid(upper))
        log_lower = torch.where(first, 0.0, F.logsigmoid(-lower))
        width = torch.where(first | last, 0.0, torch.log(-torch.expm1(-2 * half / self.scale)))
        return log_upper + log_lower + width

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        shape = self._extended_shape(sample_shape)
        with torch.no_grad():
            uniform = torch.rand(shape, dtype=self.loc.dtype, device=self.loc.device)
            # eps: at exactly 0 or 1 the logit is infinite.
            x = self.loc + self.scale * torch.logit(uniform, eps=1e-7)
            return (x * (self.levels - 1)).round().clamp(0, self.levels - 1) / (self.levels - 1)

    @property
    def mean(self) -> Tensor:
        """E[x] = sum over levels of P(x >= level) / (L - 1). Above 256 levels, the integral of P(x >= t) over t: off by
        at most half a level, and by 0.056 of one at scales from a quarter of a level."""
        if self.levels > 256:
            low, high = -self.loc.abs() / self.scale, -(self.loc - 1).abs() / self.scale
            return self.loc.clamp(0, 1) + self.scale * (F.softplus(low) - F.softplus(high))
        total = torch.zeros_like(self.loc)
        for level in range(1, self.levels):
            total += torch.sigmoid((self.loc - (level - 0.5) / (self.levels - 1)) / self.scale)
        return total / (self.levels - 1)
