"""Distributions of pixels: heads of the decoder, and what torch has not, or not exactly enough."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import (
    Bernoulli,
    Categorical,
    ContinuousBernoulli,
    Distribution,
    Independent,
    constraints,
)

from .distributions import LocationScaleHead, gaussian, independent

SCALE_FLOOR = 1 / 256  # of a Gaussian pixel: one level of an 8-bit image


class BernoulliHead(nn.Module):
    """p(x) = x^p (1 - x)^(1 - p) for each element, p = sigmoid(output).

    `event_dim` trailing dimensions are one draw (1 for a vector, 3 for an image).
    Grey x in [0, 1] gives the relaxation x log p + (1 - x) log(1 - p), a bound on what a binarised x gives.
    """

    outputs = 1  # what the head takes from the network for each element

    def __init__(self, event_dim: int) -> None:
        super().__init__()
        self.event_dim = event_dim

    def forward(self, output: Tensor) -> Distribution:
        return independent(Bernoulli(logits=output, validate_args=False), self.event_dim)


class ContinuousBernoulliHead(nn.Module):
    """p(x) = C(p) x^p (1 - x)^(1 - p), a density of x in [0, 1], p = sigmoid(output). Loaiza-Ganem and
    Cunningham 2019, eq. 5."""

    outputs = 1

    def forward(self, output: Tensor) -> Distribution:
        return independent(ContinuousPixels(logits=output, validate_args=False), 3)


class CategoricalHead(nn.Module):
    """Each pixel one of 256 levels, their probabilities free of each other."""

    outputs = 256

    def forward(self, output: Tensor) -> Distribution:
        levels = output.unflatten(-3, (-1, self.outputs)).movedim(-3, -1)
        return independent(CategoricalLevels(levels), 3)


def gaussian_head(scale: Literal["each", "shared"] | float) -> LocationScaleHead:
    """Gaussian pixels. Without a floor under a learned scale the density rises without bound on
    pixels that never change."""
    return LocationScaleHead(
        gaussian, event_dim=3, scale=scale, initial=0.25, floor=SCALE_FLOOR, center=0.5
    )


def logistic_head(scale: Literal["each", "shared"] | float) -> LocationScaleHead:
    """Discretised logistic pixels, whose probabilities stay below 1 whatever the scale; the floor of 1e-3, a
    quarter of a level, is there for float32."""
    return LocationScaleHead(
        DiscretisedLogistic, event_dim=3, scale=scale, initial=0.1, floor=1e-3, center=0.5
    )


class ContinuousPixels(ContinuousBernoulli):
    """torch's, with the density and mean from logits l: from probabilities they lose digits where |l| is large, some
    0.01 nats a pixel in float32 at l = 15.

    log p(x) = x l - softplus(l) + log(l / tanh(l / 2)), E[x] = 1 / (1 - e^-l) - 1 / l.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        small = self.logits.abs() < 1e-2
        safe = torch.where(small, 1.0, self.logits)
        series = math.log(2) + self.logits**2 / 12
        normaliser = torch.where(small, series, torch.log(safe / torch.tanh(safe / 2)))
        return value * self.logits - F.softplus(self.logits) + normaliser

    @property
    def mean(self) -> Tensor:
        small = self.logits.abs() < 1e-2
        safe = torch.where(small, 1.0, self.logits)
        return torch.where(small, 0.5 + self.logits / 12, -1 / torch.expm1(-safe) - 1 / safe)


class Hidden(Distribution):
    """Images of which only the pixels where `mask` is 1 are random; the others are those of `visible`."""

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


class CategoricalLevels(Distribution):
    """A variable on 0/255, 1/255 ... 255/255, with the logits (..., 256) of each."""

    arg_constraints = {"logits": constraints.real_vector}  # noqa: RUF012
    levels = 256

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits
        super().__init__(logits.shape[:-1], validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> CategoricalLevels:
        return CategoricalLevels(self.logits.expand(*batch_shape, self.levels))

    def log_prob(self, value: Tensor) -> Tensor:
        """Nats; value on the levels k/255."""
        level = (value * (self.levels - 1)).round().long().expand(self.batch_shape)
        log_p = self.logits.log_softmax(-1)
        return log_p.gather(-1, level.unsqueeze(-1)).squeeze(-1)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        with torch.no_grad():
            level = Categorical(logits=self.logits, validate_args=False).sample(sample_shape)
            return level.to(self.logits.dtype) / (self.levels - 1)

    @property
    def mean(self) -> Tensor:
        level = torch.linspace(
            0, 1, self.levels, dtype=self.logits.dtype, device=self.logits.device
        )
        return self.logits.softmax(-1) @ level


class DiscretisedLogistic(Distribution):
    """A logistic variable rounded to 0/255, 1/255 ... 255/255; the end levels take the tails.

    P(x) = sigmoid((x + 1/510 - loc) / scale) - sigmoid((x - 1/510 - loc) / scale).
    Kingma et al. 2016 (IAF), eq. 18; Salimans et al. 2017 (PixelCNN++), section 2.1.
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}  # noqa: RUF012
    levels = 256

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        super().__init__(self.loc.shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> DiscretisedLogistic:
        return DiscretisedLogistic(self.loc.expand(batch_shape), self.scale.expand(batch_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Nats; value on the levels k/255."""
        half = 0.5 / (self.levels - 1)
        upper = (value + half - self.loc) / self.scale
        lower = (value - half - self.loc) / self.scale
        # log(sigmoid(b) - sigmoid(a)) = log sigmoid(b) + log sigmoid(-a) + log(1 - e^(a - b))
        # loses no digits, however far out both are; b - a is the width of a level, not a difference of floats.
        first, last = value < half, value > 1 - half
        log_upper = torch.where(last, 0.0, F.logsigmoid(upper))
        log_lower = torch.where(first, 0.0, F.logsigmoid(-lower))
        width = torch.where(first | last, 0.0, torch.log(-torch.expm1(-2 * half / self.scale)))
        return log_upper + log_lower + width

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        shape = self._extended_shape(sample_shape)
        with torch.no_grad():
            # Not quite 0 or 1, where the logit is infinite.
            uniform = torch.rand(shape, dtype=self.loc.dtype, device=self.loc.device)
            draw = self.loc + self.scale * torch.logit(uniform, eps=1e-7)
            return (draw * (self.levels - 1)).round().clamp(0, self.levels - 1) / (self.levels - 1)

    @property
    def mean(self) -> Tensor:
        """E[x] = sum over levels of P(x >= level) / 255."""
        total = torch.zeros_like(self.loc)
        for level in range(1, self.levels):
            total += torch.sigmoid((self.loc - (level - 0.5) / (self.levels - 1)) / self.scale)
        return total / (self.levels - 1)
