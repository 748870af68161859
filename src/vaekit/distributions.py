"""Heads, which turn a network's output into a distribution, and `Conditional`, a network with its head."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution, Independent, Normal, constraints

SCALE_FLOOR = 1 / 256  # of a Gaussian pixel: one level of an 8-bit image


class Conditional(nn.Module):
    """p(. | given) = head(network(the given values)): values by name -> Distribution."""

    def __init__(self, given: tuple[str, ...], network: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.given = given
        self.network = network
        self.head = head

    def forward(self, values: dict[str, Tensor | None]) -> Distribution:
        return self.head(self.network(*(values[name] for name in self.given)))


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


class LocationScaleHead(nn.Module):
    """`family(loc, scale)` for each element, with loc = output + center.

    The scale is `floor + softplus(.)` of a second output where `scale` is "each", of one learned number where
    it is "shared", or a given number. A learned scale starts at `initial`.
    `event_dim` trailing dimensions are one draw; a network's outputs are split along the first of these.
    """

    fixed: Tensor

    def __init__(
        self,
        family: Callable[[Tensor, Tensor], Distribution],
        event_dim: int,
        scale: Literal["each", "shared"] | float,
        initial: float,
        floor: float,
        center: float = 0.0,
    ) -> None:
        super().__init__()
        self.family: Callable[[Tensor, Tensor], Distribution] = family
        self.event_dim = event_dim
        self.floor = floor
        self.center = center
        self.outputs = 2 if scale == "each" else 1
        # softplus(offset) = initial - floor, so that a network that says 0 means `initial`.
        self.offset = math.log(math.expm1(initial - floor))
        self.shared = nn.Parameter(torch.zeros(())) if scale == "shared" else None
        if not isinstance(scale, str):
            self.register_buffer("fixed", torch.tensor(float(scale)), persistent=False)

    def forward(self, output: Tensor) -> Distribution:
        if self.outputs == 2:
            loc, raw = output.chunk(2, dim=-self.event_dim)
            scale = self.positive(raw)
        elif self.shared is not None:
            loc, scale = output, self.positive(self.shared).expand_as(output)
        else:
            loc, scale = output, self.fixed.expand_as(output)
        return independent(self.family(loc + self.center, scale), self.event_dim)

    def positive(self, raw: Tensor) -> Tensor:
        return self.floor + F.softplus(raw + self.offset)


def gaussian(loc: Tensor, scale: Tensor) -> Distribution:
    return Normal(loc, scale, validate_args=False)


def posterior_head() -> LocationScaleHead:
    """A diagonal Gaussian over a latent vector, its scales at least 1e-4 and 1 at first."""
    return LocationScaleHead(gaussian, event_dim=1, scale="each", initial=1.0, floor=1e-4)


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


def independent(distribution: Distribution, event_dim: int) -> Distribution:
    return Independent(distribution, event_dim, validate_args=False)


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
