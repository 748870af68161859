"""Normalising flows: a prior, and the head of a posterior, with exact densities by the change of variables.

Built of zuko's transforms, in the direction in which training needs one pass: a prior maps latents to noise, a
posterior noise to latents. The other direction takes one pass of couplings, and one per dimension of autoregressive
transforms. Derivation and tests: docs/maths/flows.md.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Transform, TransformedDistribution

from ..settings.model import FlowKind
from ..support.errors import require
from .distributions import posterior_head
from .networks.hidden import LayerStyle, concat, hidden_layers
from .networks.layers import Layer
from .priors import StandardNormal

validates = Distribution._validate_args
import zuko  # noqa: E402

# zuko switches off the validation of all distributions of the process: not ours to do.
Distribution.set_default_validate_args(validates)

BINS = 8  # of a spline
INITIAL = 0.01  # factor of the last layers' initial weights


class Flow(TransformedDistribution):
    """z = f(e) with e from the diagonal Gaussian `base_dist`: log p(z) = log p(e) - log |det df/de|, where f is one of
    `transforms` of vectors after the other. Rezende and Mohamed 2015, eq. 5.

    `mean` is f(mean of the base), not the expectation, which has no closed form; there is no variance. `rsample` keeps
    its log-density, so that log_prob of the same tensor takes no inversion; an expanded Flow shares it.
    """

    drawn: list[Tensor]

    def __init__(self, base: Distribution, transforms: list[Transform]) -> None:
        super().__init__(base, transforms, validate_args=False)
        self.drawn = []

    def expand(self, batch_shape: Any, _instance: Any = None) -> Flow:
        flow = Flow(self.base_dist.expand(batch_shape), self.transforms)
        flow.drawn = self.drawn
        return flow

    @property
    def mean(self) -> Tensor:
        z = self.base_dist.mean
        with full_precision(z):
            for transform in self.transforms:
                z = transform(z)
        return z

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        z = self.base_dist.rsample(sample_shape)
        log_prob = self.base_dist.log_prob(z)
        transform: Any
        with full_precision(z):
            for transform in self.transforms:
                z, log_det = transform.call_and_ladj(z)
                log_prob = log_prob - log_det
        self.drawn[:] = z, log_prob
        return z

    def log_prob(self, value: Tensor) -> Tensor:
        if self.drawn and value is self.drawn[0]:
            return self.drawn[1]
        batch = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        value, total = value.expand(*batch, -1), value.new_zeros(batch)
        transform: Any
        with full_precision(value):
            for transform in reversed(self.transforms):
                value, log_det = transform.inv.call_and_ladj(value)
                total = total + log_det
        return self.base_dist.log_prob(value) + total


def full_precision(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """No bfloat16 inside, which is too coarse for a density."""
    kind = x.device.type
    return (
        torch.autocast(kind, enabled=False)
        if torch.is_autocast_enabled(kind)
        else contextlib.nullcontext()
    )


class FlowPrior(nn.Module):
    """p(z) = N(f(z); 0, I) |det df/dz|, at first N(0, I) but for about a hundredth; of y too where it has `context`
    dimensions. Dinh et al. 2017, eq. 2; as the prior of a VAE: Chen et al. 2017."""

    def __init__(self, dim: int, kind: FlowKind, steps: int, units: int, context: int = 0) -> None:
        super().__init__()
        self.given = ("y",) if context else ()
        self.base = StandardNormal(dim)
        self.steps = flow_steps(dim, kind, steps, units, context)

    def forward(self, values: dict[str, Tensor | None]) -> Flow:
        base, y = self.base(values), values["y"] if self.given else None
        if y is not None:
            base = base.expand(y.shape[:-1])
        return Flow(base, [step(y).inv for step in self.steps][::-1])


class FlowHead(nn.Module):
    """f_c(e) with e from a diagonal Gaussian: loc and scale of e and the context c of the transforms are the thirds of
    the network's output. Autoregressive: Kingma et al. 2016, algorithm 1."""

    outputs = 3

    def __init__(self, dim: int, kind: FlowKind, steps: int, units: int) -> None:
        super().__init__()
        self.gaussian = posterior_head()
        self.steps = flow_steps(dim, kind, steps, units, dim)

    def forward(self, output: Tensor) -> Flow:
        size = output.shape[-1] // self.outputs
        parameters, context = output.split((2 * size, size), -1)
        return Flow(self.gaussian(parameters), [step(context) for step in self.steps])


def flow_steps(dim: int, kind: FlowKind, steps: int, units: int, context: int) -> nn.ModuleList:
    """`steps` modules from a context (..., context), or None where that is 0, to a transform of vectors (..., dim).
    Raises UserError for a coupling in one dimension."""
    univariate, _, scheme = kind.partition("-")
    require(
        dim > 1 or scheme == "autoregressive",
        f"--flow {kind} transforms one half of a latent given the other, and this latent has one dimension; choose "
        "--flow spline-autoregressive",
    )
    step = Coupling if scheme == "coupling" else Autoregressive
    spline = univariate == "spline"
    return nn.ModuleList(step(dim, context, units, spline, i % 2 == 1) for i in range(steps))


class Step(nn.Module):
    """A transform, at first nearly the identity. Each element is affine (Dinh et al. 2017) or a rational-quadratic
    spline on [-5, 5] (Durkan et al. 2019), with parameters from a network of two hidden layers.
    """

    def __init__(self, network: nn.Sequential, last: nn.Linear, spline: bool) -> None:
        super().__init__()
        self.network, self.last, self.spline = network, last, spline
        with torch.no_grad():
            # Parameters of 0 are those of the identity. At exactly 0 the hidden layers would have no gradient.
            last.weight.mul_(INITIAL)
            last.bias.zero_()

    def elements(self, context: Tensor | None, x: Tensor) -> Transform:
        """The transforms of the elements, given x, that depend on it."""
        inputs = (x,) if context is None else (x, context)
        parameters = self.last(self.network(concat(*inputs))).unflatten(
            -1, (-1, count(self.spline))
        )
        if not self.spline:
            elements = zuko.transforms.MonotonicAffineTransform(*parameters.unbind(-1))
        else:
            sizes = (BINS, BINS, BINS - 1)
            elements = zuko.transforms.MonotonicRQSTransform(*parameters.split(sizes, -1))
        return zuko.transforms.DependentTransform(elements, 1)


def count(spline: bool) -> int:
    """How many parameters an element's transform has."""
    return 3 * BINS - 1 if spline else 2


class Coupling(Step):
    """y_a = x_a, y_b = f(x_b; x_a): a is the first half of the dimensions, or the last. Dinh et al. 2017, eq. 4."""

    def __init__(self, dim: int, context: int, units: int, spline: bool, flip: bool) -> None:
        first = dim // 2
        given, changed = (dim - first, first) if flip else (first, dim - first)
        network, width = hidden_layers(given + context, (Layer(units),) * 2, LayerStyle())
        super().__init__(network, nn.Linear(width, changed * count(spline)), spline)
        self.first, self.flip = first, flip

    def forward(self, c: Tensor | None = None) -> Transform:
        return Halves(partial(self.elements, c), self.first, self.flip)


class Halves(zuko.transforms.CouplingTransform):
    """zuko's, of slices: the indices of its mask depend on the mask's values, which a traced graph does not know."""

    def __init__(self, meta: Callable[[Tensor], Transform], first: int, flip: bool) -> None:
        Transform.__init__(self)
        self.meta, self.first, self.flip = meta, first, flip

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, last = x[..., : self.first], x[..., self.first :]
        return (last, first) if self.flip else (first, last)

    def merge(self, x_a: Tensor, x_b: Tensor, shape: torch.Size) -> Tensor:
        return torch.cat((x_b, x_a) if self.flip else (x_a, x_b), -1)


class Autoregressive(Step):
    """y_i = f(x_i; x_1 ... x_(i-1)), or in the opposite order, by a masked network (Germain et al. 2015)."""

    def __init__(self, dim: int, context: int, units: int, spline: bool, flip: bool) -> None:
        order = torch.arange(dim).flip(0) if flip else torch.arange(dim)
        # A hidden unit of degree d knows the context and the inputs before the d-th.
        degree = torch.arange(units) * dim // units
        before = torch.cat([order + 1, torch.zeros(context, dtype=order.dtype)])
        after = order.repeat_interleave(count(spline))
        masks = [degree[:, None] >= before, degree[:, None] >= degree, after[:, None] >= degree]
        first, second, last = map(zuko.nn.MaskedLinear, masks)
        for layer in (first, second, last):  # the masks follow from the sizes
            layer.register_buffer("mask", layer.mask, persistent=False)
        super().__init__(nn.Sequential(first, nn.SiLU(), second, nn.SiLU()), last, spline)
        self.dim = dim

    def forward(self, c: Tensor | None = None) -> Transform:
        return zuko.transforms.AutoregressiveTransform(partial(self.elements, c), self.dim)
