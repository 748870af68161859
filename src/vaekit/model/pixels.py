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
from .mixtures import (
    LogisticMixture,
    LogisticMixtureHead,
    discretised_logistic_mean,
    log_discretised_logistic,
    nearest_level,
)

CENTERS = {"linear": 0.5, "sigmoid": None}  # an output of 0 is grey either way
SCALE_FLOOR = 1 / 256  # of a Gaussian pixel: one level of an 8-bit image


PixelHead = Head | LocationScaleHead | LogisticMixtureHead


def likelihood_head(settings: ModelConfig, channels: int) -> PixelHead:
    """The decoder's head for the likelihood of the settings and images of C channels."""
    if settings.likelihood == "bernoulli":
        return Head(bernoulli, 3)
    if settings.likelihood == "continuous-bernoulli":
        return Head(continuous_bernoulli, 3)
    if settings.likelihood == "gaussian":
        return gaussian_head(settings.scale or "shared", settings.mean)
    levels = settings.levels or 256
    if settings.likelihood == "logistic":
        return logistic_head(settings.scale or "each", settings.mean, levels)
    if settings.likelihood == "logistic-mixture":
        logistic = logistic_head("each", settings.mean, levels)
        return LogisticMixtureHead(settings.logistics or 10, channels, levels, logistic)
    if settings.likelihood == "categorical":
        return Head(partial(categorical, levels=levels), 3, levels)
    raise UserError("the likelihood is 'auto'; make the model with `build`, which chooses one")


def decoder_channels(settings: ModelConfig, channels: int) -> int:
    """How many numbers per pixel of C channels the decoder's network gives to that head."""
    head = likelihood_head(settings, channels)
    if isinstance(head, LogisticMixtureHead):
        return head.channels_out
    return head.outputs * channels


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

    def __init__(
        self, pixels: Independent | LogisticMixture, mask: Tensor, visible: Tensor
    ) -> None:
        self.pixels, self.mask, self.visible = pixels, mask, visible
        super().__init__(pixels.batch_shape, pixels.event_shape, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Nats, summed over the random pixels."""
        if isinstance(self.pixels, LogisticMixture):
            each = self.pixels.log_prob_of_pixels(value)
        else:
            each = self.pixels.base_dist.log_prob(value)
        return (each * self.mask).sum((-3, -2, -1))

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        return torch.where(self.mask > 0, self.pixels.sample(sample_shape), self.visible)

    @property
    def mean(self) -> Tensor:
        return torch.where(self.mask > 0, self.pixels.mean, self.visible)


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
        return log_discretised_logistic(value, self.loc, self.scale, self.levels)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        shape = self._extended_shape(sample_shape)
        with torch.no_grad():
            uniform = torch.rand(shape, dtype=self.loc.dtype, device=self.loc.device)
            # eps: at exactly 0 or 1 the logit is infinite.
            x = self.loc + self.scale * torch.logit(uniform, eps=1e-7)
            return nearest_level(x, self.levels)

    @property
    def mean(self) -> Tensor:
        return discretised_logistic_mean(self.loc, self.scale, self.levels)
