"""Objectives: functions of an Inference, to be maximised, in nats per image.

Each carries how many samples it wants (`samples`) and takes `warmup`, by which a training multiplies the KL while it
warms up: a number or 0-d tensor in [0, 1], or those by the latents' names; only at 1 is the value a bound on log p(x).
"""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from ..support import distributed as ranks
from ..support.errors import UserError, closest, require, require_count
from .distributions import gaussian, independent
from .graph import Inference, Latent
from .mmd import Kernel, squared_mmd

# Of the KL: one for all latents, or by their names; "cluster" is the part of it that a mixture's components have.
Weight = Tensor | float | Mapping[str, Tensor | float]


class Objective(Protocol):
    @property
    def samples(self) -> tuple[int, ...]:
        """Leading sample dimensions to draw for it: () or (K,)."""

    def __call__(self, inference: Inference, warmup: Weight = 1.0) -> Tensor:
        """Inference -> (B,)."""


@dataclass(frozen=True)
class elbo:
    """E[log p(x | z)] - beta KL(q || p), with the KL in closed form where there is one.

    `beta` is a number, or numbers by the latents' names. Kingma and Welling 2014, eq. 10; beta: Higgins et al. 2017.
    """

    beta: float | Mapping[str, float] = 1.0
    samples: tuple[int, ...] = ()

    def __call__(self, inference: Inference, warmup: Weight = 1.0) -> Tensor:
        if isinstance(self.beta, Mapping):
            for name in self.beta:
                there = [*inference.latents, "cluster"]
                require(name in there, f"beta names {name!r}; the latents are {', '.join(there)}")
        value = inference.log_likelihood
        for name, latent in inference.latents.items():
            value = value - weighed(name, latent, latent.kl, self.beta, warmup)
        return value.mean(0) if self.samples else value


@dataclass(frozen=True)
class capacity:
    """E[log p(x | z)] - beta |KL(q || p) - warmup nats|: holds the KL at a number of nats that rises while it warms up.

    Burgess et al. 2018, eq. 8 (their gamma is beta), for each image.
    """

    nats: float
    beta: float = 100.0
    samples: tuple[int, ...] = ()

    def __call__(self, inference: Inference, warmup: Weight = 1.0) -> Tensor:
        require(not isinstance(warmup, Mapping), "a capacity holds the KL of all latents together")
        held = (inference.kl - warmup * self.nats).abs()  # type: ignore[operator]
        value = inference.log_likelihood - self.beta * held
        return value.mean(0) if self.samples else value


@dataclass(frozen=True)
class iwae:
    """log 1/K sum_k w_k, with w = p(x, z_k) / q(z_k | x): at most log p(x) on average, and closer as K grows.

    Burda et al. 2016, eq. 8. While the KL warms up, log w = log p(x | z) + warmup log p(z) / q(z | x).
    `gradient` "dreg" has the same mean, with less noise for the posterior's weights (Tucker et al. 2019, eq. 8); it
    raises UserError for a hierarchy, where it would not, and while the KL warms up. It scales what flows back through
    the Inference's z: use that Inference for nothing else.
    """

    k: int
    gradient: Literal["plain", "dreg"] = "plain"

    def __post_init__(self) -> None:
        require_count("k", self.k)
        require(
            self.gradient in ("plain", "dreg"),
            f"gradient is {self.gradient!r}; it must be plain or dreg",
        )

    @property
    def samples(self) -> tuple[int, ...]:
        return (self.k,)

    def __call__(self, inference: Inference, warmup: Weight = 1.0) -> Tensor:
        if self.gradient == "dreg":
            require(
                isinstance(warmup, Tensor | float) and float(warmup) == 1.0,
                "doubly reparameterised gradients hold for the whole bound alone; leave out --kl-warmup",
            )
            return self.doubly_reparameterised(inference)
        log_weight = inference.log_likelihood
        for name, latent in inference.latents.items():
            log_weight = log_weight - weighed(name, latent, -latent.log_ratio, warmup)
        return torch.logsumexp(log_weight, 0) - math.log(self.k)

    def doubly_reparameterised(self, inference: Inference) -> Tensor:
        """The bound, with the gradient of sum_k v_k log w_k for the decoder and the prior, and of sum_k v_k^2 log w_k
        through z alone for the posterior, where v_k = w_k / sum w."""
        require(
            len(inference.latents) == 1,
            "doubly reparameterised gradients hold for one latent, and this model has "
            f"{len(inference.latents)}; choose --gradient plain",
        )
        (latent,) = inference.latents.values()
        log_q = detached(latent.posterior).log_prob(latent.z)
        log_weight = inference.log_likelihood + latent.prior.log_prob(latent.z) - log_q
        share = log_weight.detach().softmax(0)
        if latent.z.requires_grad:
            latent.z.register_hook(lambda gradient: gradient * share.unsqueeze(-1))
        surrogate = (share * log_weight).sum(0)
        bound = torch.logsumexp(log_weight, 0) - math.log(self.k)
        return bound.detach() + surrogate - surrogate.detach()


@dataclass(frozen=True)
class infovae:
    """log p(x | z) - (1 - alpha) KL(q(z | x) || p) - (alpha + lambda - 1) MMD^2(q(z), p).

    Zhao et al. 2019, eq. 6. `lambda_` multiplies MMD^2 against nats summed over pixels. q(z) are the batch's codes; as
    many are drawn from p. At alpha = 1 the KL is left out, so that q may be one point. Raises UserError for several
    latents and for a learned prior, which would get no gradient from the MMD.
    """

    alpha: float = 0.0
    lambda_: float = 1000.0
    kernel: Kernel = "rbf"
    biased: bool = False
    samples: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        kernels = get_args(Kernel)
        require(
            self.kernel in kernels,
            f"there is no kernel {self.kernel!r}{closest(self.kernel, kernels)} (there are: {', '.join(kernels)})",
        )

    def __call__(self, inference: Inference, warmup: Weight = 1.0) -> Tensor:
        require(len(inference.latents) == 1, "infovae holds for models with one latent")
        ((name, latent),) = inference.latents.items()
        require(
            not latent.prior.mean.requires_grad,
            "infovae draws from the prior, which gives a learned one no gradient; choose --prior standard or mixture",
        )
        value = inference.log_likelihood
        if self.alpha != 1:
            value = value - (1 - self.alpha) * weighed(name, latent, latent.kl, warmup)
        drawn = latent.prior.expand(latent.z.shape[:-1]).sample()
        codes, drawn = ranks.whole(latent.z), ranks.whole(drawn)
        distance = squared_mmd(codes, drawn, self.kernel, self.biased)
        value = value - (self.alpha + self.lambda_ - 1) * distance[..., None]
        return value.mean(0) if self.samples else value


def weighed(name: str, latent: Latent, kl: Tensor, *weights: Weight) -> Tensor:
    """A latent's `kl` times the product of its weights, the part of its cluster by the weights of "cluster"."""
    whole = cluster = 1.0
    apart = False
    for weight in weights:
        own = weight.get(name, 1.0) if isinstance(weight, Mapping) else weight
        whole = whole * own  # type: ignore[assignment]
        if isinstance(weight, Mapping) and "cluster" in weight:
            own, apart = weight["cluster"], True
        cluster = cluster * own  # type: ignore[assignment]
    return whole * kl + (cluster - whole) * latent.cluster_kl if apart else whole * kl


def detached(posterior: object) -> Independent:
    """A diagonal Gaussian whose parameters get no gradient."""
    assert isinstance(posterior, Independent)
    assert isinstance(posterior.base_dist, Normal)
    base = posterior.base_dist
    return independent(gaussian(base.loc.detach(), base.scale.detach()), 1)


def from_text(text: str) -> Objective:
    """The objective that `repr` wrote so. Raises UserError where that is none of these."""
    kinds = {kind.__name__: kind for kind in (elbo, capacity, iwae, infovae)}
    try:
        call: Any = ast.parse(text, mode="eval").body
        settings = {given.arg: ast.literal_eval(given.value) for given in call.keywords}
        return kinds[call.func.id](**settings)
    except (
        SyntaxError,
        ValueError,
        TypeError,
        AttributeError,
        KeyError,
        RecursionError,
        MemoryError,
    ):
        raise UserError(
            f"the objective {text!r} is none of vaekit's; give it as `objective`"
        ) from None
