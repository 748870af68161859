"""Heads, modules from a network's output to a distribution; `Conditional`, a network with its head; mixtures."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import (
    Categorical,
    Distribution,
    Independent,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
    constraints,
)

from ..support.errors import UserError

Family = Callable[..., Distribution]  # of tensors


class Conditional(nn.Module):
    """p(. | given) = head(network(given values)): values by name -> Distribution."""

    def __init__(self, given: tuple[str, ...], network: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.given = given
        self.network = network
        self.head = head

    def forward(self, values: dict[str, Tensor | None]) -> Distribution:
        return self.head(as_float32(self.network(*(values[name] for name in self.given))))


def as_float32(output: Tensor) -> Tensor:
    """A network's output for a density, for which bfloat16, in which networks may compute, is too coarse."""
    return output.float() if output.dtype == torch.bfloat16 else output


class Head(nn.Module):
    """`family(output)` of a network with `outputs` per element, whose last `event_dim` dimensions are one event."""

    def __init__(self, family: Family, event_dim: int, outputs: int = 1) -> None:
        super().__init__()
        self.family: Family = family
        self.event_dim, self.outputs = event_dim, outputs

    def forward(self, output: Tensor) -> Distribution:
        return independent(self.family(output), self.event_dim)


class MixtureHead(nn.Module):
    """A mixture of `components` diagonal Gaussians with equal weights over a latent vector: loc and scale of cluster k
    are the k-th part of the output."""

    started: Tensor

    def __init__(self, components: int) -> None:
        super().__init__()
        self.components = components
        self.gaussian = posterior_head()
        self.outputs = self.gaussian.outputs * components
        # 1 once the clusters have been initialised or trained, so that they are not initialised again.
        self.register_buffer("started", torch.zeros(()))

    def forward(self, output: Tensor) -> Distribution:
        parts = self.gaussian(output.unflatten(-1, (self.components, -1))).base_dist
        return GaussianMixture(parts.loc, parts.scale)


class LocationScaleHead(nn.Module):
    """`family(loc, scale)` per element, with loc = output + center; or, with `center` None, loc = sigmoid(output).

    The scale is `floor + softplus(.)` of a second output (`scale` "each") or of one learned number ("shared"), or the
    number `scale`. A learned scale starts at `initial`. `event_dim` trailing dimensions are one event; the network's
    outputs are split along the first of them.
    """

    fixed: Tensor

    def __init__(
        self,
        family: Family,
        event_dim: int,
        scale: Literal["each", "shared"] | float,
        initial: float,
        floor: float,
        center: float | None = 0.0,
    ) -> None:
        super().__init__()
        self.family: Family = family
        self.event_dim = event_dim
        self.floor = floor
        self.center = center
        self.outputs = 2 if scale == "each" else 1
        # softplus(offset) = initial - floor, so that an output of 0 means `initial`.
        self.offset = math.log(math.expm1(initial - floor))
        self.shared = nn.Parameter(torch.zeros(())) if scale == "shared" else None
        if not isinstance(scale, str):
            self.register_buffer("fixed", torch.tensor(float(scale)), persistent=False)

    def forward(self, output: Tensor) -> Distribution:
        raw: Tensor | None = self.shared
        if self.outputs == 2:
            output, raw = output.chunk(2, dim=-self.event_dim)
        scale = (self.fixed if raw is None else self.positive(raw)).expand_as(output)
        loc = output.sigmoid() if self.center is None else output + self.center
        return independent(self.family(loc, scale), self.event_dim)

    def positive(self, raw: Tensor) -> Tensor:
        return self.floor + F.softplus(raw + self.offset)


def gaussian(loc: Tensor, scale: Tensor) -> Distribution:
    return Normal(loc, scale, validate_args=False)


def posterior_head() -> LocationScaleHead:
    """A diagonal Gaussian over a latent vector, with scales of at least 1e-4, at first 1."""
    return LocationScaleHead(gaussian, event_dim=1, scale="each", initial=1.0, floor=1e-4)


def independent(distribution: Distribution, event_dim: int) -> Independent:
    return Independent(distribution, event_dim, validate_args=False)


class GaussianMixture(Distribution):
    """p(z) = sum_k p(cluster = k) N(z; loc_k, scale_k^2), of K diagonal Gaussians.

    loc and scale are (..., K, D); `logits` (..., K), without which the weights are equal. With `tril` (..., K, D, D),
    lower triangular, the covariances are tril tril^T, and scale is their diagonals' square root.
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}  # noqa: RUF012

    def __init__(
        self,
        loc: Tensor,
        scale: Tensor,
        logits: Tensor | None = None,
        tril: Tensor | None = None,
    ) -> None:
        self.loc, self.scale, self.tril = loc, scale, tril
        logits = loc.new_zeros(loc.shape[:-1]) if logits is None else logits
        self.logits = logits.log_softmax(-1)
        super().__init__(loc.shape[:-2], loc.shape[-1:], validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> GaussianMixture:
        shape = (*batch_shape, *self.loc.shape[-2:])
        logits = self.logits.expand(shape[:-1])
        tril = None if self.tril is None else self.tril.expand(*shape, shape[-1])
        return GaussianMixture(self.loc.expand(shape), self.scale.expand(shape), logits, tril)

    def log_joint(self, z: Tensor) -> Tensor:
        """log p(z, cluster) of every cluster: (..., D) -> (..., K), nats."""
        deviations = self.scale
        if self.tril is not None:
            deviations = self.tril.diagonal(dim1=-2, dim2=-1)
            square = self.mahalanobis(z, self.tril)
        elif self.loc.ndim == 2 and z.device.type != "mps":
            # |z - loc|^2 / scale^2 by matrix products: many times faster for hundreds of components. In float64, since
            # the expanded square cancels too many digits of float32.
            z, loc, precision = z.double(), self.loc.double(), self.scale.double() ** -2
            square = z**2 @ precision.mT - 2 * z @ (loc * precision).mT
            square = (square + (loc**2 * precision).sum(-1)).to(self.loc.dtype)
        else:
            square = (((z.unsqueeze(-2) - self.loc) / self.scale) ** 2).sum(-1)
        constant = deviations.log().sum(-1) + 0.5 * math.log(2 * math.pi) * self.loc.shape[-1]
        return self.logits - constant - 0.5 * square

    def mahalanobis(self, z: Tensor, tril: Tensor) -> Tensor:
        """|tril^-1 (z - loc)|^2 of every cluster: (..., D) -> (..., K); one after the other, for the sake of memory."""
        eye = torch.eye(z.shape[-1], dtype=tril.dtype, device=tril.device)
        inverse = torch.linalg.solve_triangular(tril, eye, upper=False)
        whitened = (
            torch.einsum("...ij,...j->...i", inverse[..., k, :, :], z - self.loc[..., k, :])
            for k in range(self.loc.shape[-2])
        )
        return torch.stack([(each**2).sum(-1) for each in whitened], dim=-1)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.log_joint(value).logsumexp(-1)

    def log_responsibilities(self, z: Tensor) -> Tensor:
        """log p(cluster | z) by Bayes' rule: (..., D) -> (..., K)."""
        return self.log_joint(z).log_softmax(-1)

    @property
    def mean(self) -> Tensor:
        return (self.logits.exp().unsqueeze(-1) * self.loc).sum(-2)

    @property
    def variance(self) -> Tensor:
        second = self.loc**2 + self.scale**2
        return (self.logits.exp().unsqueeze(-1) * second).sum(-2) - self.mean**2

    def component(self, cluster: Tensor) -> Distribution:
        """The Gaussians of these clusters: indices (...) -> batch shape (...)."""
        index = cluster[..., None, None].expand(*cluster.shape, 1, self.loc.shape[-1])
        loc, scale = (
            t.expand(*cluster.shape, *t.shape[-2:]).gather(-2, index).squeeze(-2)
            for t in (self.loc, self.scale)
        )
        if self.tril is None:
            return independent(gaussian(loc, scale), 1)
        rows = index.unsqueeze(-1).expand(*index.shape, index.shape[-1])
        tril = self.tril.expand(*cluster.shape, *self.tril.shape[-3:]).gather(-3, rows).squeeze(-3)
        return MultivariateNormal(loc, scale_tril=tril, validate_args=False)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        with torch.no_grad():
            cluster = Categorical(logits=self.logits, validate_args=False).sample(sample_shape)
            return self.component(cluster).sample()


def stddev(p: Distribution) -> Tensor:
    """The standard deviation; NaN of a distribution that does not implement it."""
    try:
        return p.stddev
    except NotImplementedError:
        return torch.full_like(p.mean, torch.nan)


def sample_with_temperature(
    p: Distribution, temperature: float = 1.0, cluster: Tensor | None = None
) -> Tensor:
    """A sample, pulled towards the mean by a temperature below 1. A mixture's is pulled to the mean of its component,
    a random one or that of `cluster` (an index per batch element); a flow's base is pulled, before its transform.
    Raises UserError for an index out of range."""
    if isinstance(p, TransformedDistribution):
        z = sample_with_temperature(p.base_dist, temperature)
        return reduce(lambda value, transform: transform(value), p.transforms, z)
    if isinstance(p, GaussianMixture):
        largest = p.logits.shape[-1] - 1
        if cluster is None:
            cluster = Categorical(logits=p.logits, validate_args=False).sample()
        elif outside := [k for k in cluster.tolist() if not 0 <= k <= largest]:
            raise UserError(f"the clusters are 0 to {largest}, not {outside[0]}")
        p = p.component(cluster)
    return p.mean + temperature * (p.sample() - p.mean)


class Deterministic(Distribution):
    """A point mass at loc. It has no density: log_prob is NaN."""

    arg_constraints = {"loc": constraints.real}  # noqa: RUF012
    has_rsample = True

    def __init__(self, loc: Tensor) -> None:
        self.loc = loc
        super().__init__(loc.shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Deterministic:
        return Deterministic(self.loc.expand(batch_shape))

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        return self.loc.expand(self._extended_shape(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        return torch.full_like(value, math.nan)

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        return torch.zeros_like(self.loc)
