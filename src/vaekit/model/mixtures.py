"""The arithmetic of discretised logistic pixels, and mixtures of them that couple the channels of a pixel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, constraints

from .distributions import LocationScaleHead

MAX_GIVEN = 3  # channels before it that a channel is conditioned on: all of them in up to four
POINTS, MULTIPLIER = 16, 5  # of the lattice of `LogisticMixture.mean`
EXACT_LEVELS = 16  # up to which the mean of a component is summed over the levels


class LogisticMixture(Distribution):
    """Pixels that are mixtures of discretised logistic variables, with one component for all channels of a pixel.

    p(x) = prod over pixels of sum_k pi_k prod_c P(x_c; loc_kc + sum_d a_kcd (x_(c - d) - 1/2), scale_kc), where P is
    that of DiscretisedLogistic and d = 1 ... min(c, 3): a channel is conditioned on the three before it.

    logits (..., K, H, W), loc and scale (..., K, C, H, W), coefficients a (..., P, H, W) with P numbers per component:
    those of d = 1 of all channels that have one, then of d = 2, d = 3. Salimans et al. 2017 (PixelCNN++), section 2.2,
    whose pixels are in [-1, 1] and have three channels.
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}  # noqa: RUF012

    def __init__(
        self, logits: Tensor, loc: Tensor, scale: Tensor, coefficients: Tensor, levels: int = 256
    ) -> None:
        self.logits = logits.log_softmax(-3)
        self.loc, self.scale, self.coefficients = loc, scale, coefficients
        self.levels = levels
        super().__init__(loc.shape[:-4], loc.shape[-3:], validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> LogisticMixture:
        logits = self.logits.expand(*batch_shape, *self.logits.shape[-3:])
        parts = (self.loc, self.scale, self.coefficients)
        loc, scale, coefficients = (t.expand(*batch_shape, *t.shape[-4:]) for t in parts)
        return LogisticMixture(logits, loc, scale, coefficients, self.levels)

    def log_prob(self, value: Tensor) -> Tensor:
        """Nats, summed over pixels; value on the levels, (..., C, H, W)."""
        return self.log_prob_of_pixels(value).sum((-3, -2, -1))

    def log_prob_of_pixels(self, value: Tensor) -> Tensor:
        """Nats of each pixel, all of its channels together: (..., C, H, W) -> (..., 1, H, W)."""
        x = value.unsqueeze(-4)
        centers = [self.center(c, x.unbind(-3)) for c in range(self.event_shape[0])]
        loc = torch.stack(torch.broadcast_tensors(*centers), dim=-3)
        parts = log_discretised_logistic(x, loc, self.scale, self.levels)
        return (self.logits + parts.sum(-3)).logsumexp(-3, keepdim=True)

    def center(self, c: int, x: Sequence[Tensor]) -> Tensor:
        """The location of channel c given those before it, each (..., H, W) or (..., K, H, W): (..., K, H, W)."""
        center = self.loc.select(-3, c)
        for distance in range(1, min(c, MAX_GIVEN) + 1):
            index = first_coefficient(self.event_shape[0], distance) + c - distance
            center = center + self.coefficients.select(-3, index) * (x[c - distance] - 0.5)
        return center

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        with torch.no_grad():
            weights = Categorical(logits=self.logits.movedim(-3, -1), validate_args=False)
            chosen = self.component(weights.sample(sample_shape))
            x: list[Tensor] = []
            for c in range(self.event_shape[0]):
                center, scale = chosen.center(c, x), chosen.scale.select(-3, c)
                # eps: at exactly 0 or 1 the logit is infinite.
                noise = torch.logit(torch.rand_like(center), eps=1e-7)
                x.append(nearest_level(center + scale * noise, self.levels))
            return torch.stack(x, dim=-3).squeeze(-4)

    def component(self, index: Tensor) -> LogisticMixture:
        """The mixture of one component a pixel: indices (..., H, W)."""
        batch, size = index.shape[:-2], index.shape[-2:]
        index = index[..., None, None, :, :]
        loc, scale, coefficients = (
            t.expand(*batch, *t.shape[-4:]).gather(-4, index.expand(*batch, 1, *t.shape[-3:]))
            for t in (self.loc, self.scale, self.coefficients)
        )
        logits = loc.new_zeros(*batch, 1, *size)
        return LogisticMixture(logits, loc, scale, coefficients, self.levels)

    @property
    def mean(self) -> Tensor:
        """E[x], in [0, 1]: exact for one channel, and for the first of several, but for the error of
        `discretised_logistic_mean`.

        The expectation over the channels before is a mean over a lattice of 16 equally likely points, on which each
        component's channels are drawn: for 8 bits off by less than a level (root mean square over components).
        """
        channels = self.event_shape[0]
        points = POINTS if channels > 1 else 1
        means = [torch.zeros_like(self.logits) for _ in range(channels)]
        for point in range(points):
            x: list[Tensor] = []
            for c, mean in enumerate(means):
                center, scale = self.center(c, x), self.scale.select(-3, c)
                mean += discretised_logistic_mean(center, scale, self.levels, EXACT_LEVELS)
                u = ((point * MULTIPLIER**c) % points + 0.5) / points
                x.append((center + math.log(u / (1 - u)) * scale).clamp(0, 1))
        weights = self.logits.exp() / points
        return torch.stack([(weights * mean).sum(-3) for mean in means], dim=-3).clamp(max=1)


class LogisticMixtureHead(nn.Module):
    """A LogisticMixture of `components` from a network with `channels_out` outputs per pixel: K logits, C locations and
    C scales of each component (by `logistic`), and the coefficients, through a tanh.

    Outputs of 0 are locations spread evenly over [0, 1]: with equal components all would learn the same.
    """

    offset: Tensor

    def __init__(
        self, components: int, channels: int, levels: int, logistic: LocationScaleHead
    ) -> None:
        super().__init__()
        self.components, self.levels, self.logistic = components, levels, logistic
        last = min(channels, MAX_GIVEN + 1)
        self.sizes = 1, 2 * channels, first_coefficient(channels, last)  # of a component
        self.channels_out = components * sum(self.sizes)
        place = (torch.arange(components) + 0.5) / components
        place = place.logit() if logistic.center is None else place - logistic.center
        offset = torch.zeros(components, 2, channels, 1, 1)
        offset[:, 0] = place.view(-1, 1, 1, 1)
        self.register_buffer("offset", offset.flatten(1, 2), persistent=False)

    def forward(self, output: Tensor) -> Distribution:
        parts = output.split([self.components * size for size in self.sizes], dim=-3)
        logits, pixels, coefficients = (
            part.unflatten(-3, (self.components, size))
            for part, size in zip(parts, self.sizes, strict=True)
        )
        pixels = self.logistic(pixels + self.offset).base_dist
        logits = logits.squeeze(-3)
        return LogisticMixture(logits, pixels.loc, pixels.scale, coefficients.tanh(), self.levels)


def first_coefficient(channels: int, distance: int) -> int:
    """The number of pairs of channels at a smaller distance: where the coefficients of this distance start."""
    return (distance - 1) * channels - distance * (distance - 1) // 2


def nearest_level(x: Tensor, levels: int) -> Tensor:
    return (x * (levels - 1)).round().clamp(0, levels - 1) / (levels - 1)


def log_discretised_logistic(value: Tensor, loc: Tensor, scale: Tensor, levels: int) -> Tensor:
    """log(sigmoid((x + half - loc) / scale) - sigmoid((x - half - loc) / scale)), nats, half = 1 / (2 L - 2), of values
    on the levels k / (L - 1); the end levels include the tails."""
    x, steps = value, levels - 1
    half = 0.5 / steps
    if levels > 256:
        # Float32 has too few digits for value + half, so take value - loc: first the whole level minus a number of
        # few digits, which is exact, then the small rest of loc.
        coarse = (loc.detach() * 128).round() / 128
        x = ((x * steps).round() - coarse * steps - (loc - coarse) * steps) / steps
        loc = torch.zeros_like(loc)
    upper = (x + half - loc) / scale
    lower = (x - half - loc) / scale
    # log(sigmoid(b) - sigmoid(a)) = log sigmoid(b) + log sigmoid(-a) + log(1 - e^(a - b)) is exact far out in the
    # tails too; b - a is the width of a level, not a difference of floats.
    first, last = value < half, value > 1 - half
    log_upper = torch.where(last, 0.0, F.logsigmoid(upper))
    log_lower = torch.where(first, 0.0, F.logsigmoid(-lower))
    width = torch.where(first | last, 0.0, torch.log(-torch.expm1(-2 * half / scale)))
    return log_upper + log_lower + width


def discretised_logistic_mean(
    loc: Tensor, scale: Tensor, levels: int, exact_levels: int = 256
) -> Tensor:
    """E[x] = sum over levels of P(x >= level) / (L - 1). Above `exact_levels`, the integral of P(x >= t) over t: off by
    at most half a level, and by 0.056 of one at scales from a quarter of a level."""
    if levels > exact_levels:
        low, high = -loc.abs() / scale, -(loc - 1).abs() / scale
        return loc.clamp(0, 1) + scale * (F.softplus(low) - F.softplus(high))
    total = torch.zeros_like(loc)
    for level in range(1, levels):
        total += torch.sigmoid((loc - (level - 0.5) / (levels - 1)) / scale)
    return total / (levels - 1)
