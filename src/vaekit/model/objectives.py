"""Objectives: functions of an Inference, to be maximised, in nats per image.

`samples` are the sample dimensions that an objective needs; `warmup` is the weight of the KL during KL warm-up: a
number or 0-d tensor in [0, 1], or several by latent name. Only at 1 is the value a bound on log p(x).
"""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor
from torch.distributions import Independent

from ..support import distributed
from ..support.errors import UserError, did_you_mean, for_caller, require, require_count, shown
from .distributions import gaussian, independent
from .graph import Inference, Latent
from .mmd import Kernel, squared_mmd

# Of the KL: one for all latents, or by latent name; "cluster" is that of `Latent.cluster_kl`.
Weight = Tensor | float | Mapping[str, Tensor | float]


class Objective(Protocol):
    @property
    def samples(self) -> tuple[int, ...]:
        """The sample dimensions of the Inference that it needs: () or (K,)."""

    def __call__(self, inference: Inference, warmup: Weight = 1.0) -> Tensor:
        """Inference -> (B,)."""


@dataclass(frozen=True)
class elbo:
    """E[log p(x | z)] - beta KL(q || p), with the KL in closed form where there is one. `beta`: a number, or several by
    latent name. Kingma and Welling 2014, eq. 10; beta: Higgins et al. 2017.

    With `free_bits`, nats per latent, the KL of each counts as max(free_bits, its mean over the batch, of all
    processes), so that below it has no gradient: Kingma et al. 2016 (IAF), appendix C.8.
    """

    beta: float | Mapping[str, float] = 1.0
    samples: tuple[int, ...] = ()
    free_bits: float = 0.0

    def __repr__(self) -> str:  # that of runs before free bits, where there are none
        free = f", free_bits={self.free_bits!r}" if self.free_bits else ""
        return f"elbo(beta={self.beta!r}, samples={self.samples!r}{free})"

    def __call__(self, inference: Inference, warmup: Weight = 1.0) -> Tensor:
        if isinstance(self.beta, Mapping):
            names = [*inference.latents, "cluster"]
            for name in self.beta:
                require(name in names, f"beta names {name!r}; the latents are {', '.join(names)}")
        parts = [w for w in (self.beta, warmup) if isinstance(w, Mapping) and "cluster" in w]
        require(
            not (self.free_bits and parts),
            "--free-bits is for the whole KL of a latent, not for its part of cluster; leave out one of them",
        )
        value = inference.log_likelihood
        for name, latent in inference.latents.items():
            kl = latent.kl
            if self.free_bits:
                enough = distributed.batch_mean(kl) > self.free_bits
                kl = torch.where(enough, kl, self.free_bits)
            value = value - weighted_kl(name, latent, kl, self.beta, warmup)
        return value.mean(0) if self.samples else value


@dataclass(frozen=True)
class capacity:
    """E[log p(x | z)] - beta |KL(q || p) - warmup nats|, per image: holds the KL at a number of nats that rises during
    KL warm-up. Burgess et al. 2018, eq. 8 (their gamma is beta). A KL that is estimated from draws (of mixtures, of
    flows and of several latents) is held on average over the batch.
    """

    nats: float
    beta: float = 100.0
    samples: tuple[int, ...] = ()

    def __call__(self, inference: Inference, warmup: Weight = 1.0) -> Tensor:
        require(not isinstance(warmup, Mapping), "a capacity holds the KL of all latents together")
        excess = inference.kl - warmup * self.nats  # type: ignore[operator]
        (latent, *others) = inference.latents.values()
        estimated = not all(isinstance(p, Independent) for p in (latent.prior, latent.posterior))
        sign = excess.detach()
        if others or estimated:
            # The sign of an image's own draw would penalise the variance of the draws.
            sign = distributed.all_reduce(sign.sum())
        value = inference.log_likelihood - self.beta * sign.sign() * excess
        return value.mean(0) if self.samples else value


@dataclass(frozen=True)
class iwae:
    """log 1/K sum_k w_k, w = p(x, z_k) / q(z_k | x): in expectation a lower bound on log p(x), tighter for larger K.

    Burda et al. 2016, eq. 8. During KL warm-up log w = log p(x | z) + warmup log p(z) / q(z | x). The doubly
    reparameterised `gradient` "dreg" has the same mean and less variance for the posterior (Tucker et al. 2019, eq. 8);
    it raises UserError for a hierarchy and during KL warm-up, where it does not hold. With a VampPrior, which shares
    the posterior's weights, it has more variance. It scales the gradient through the Inference's z, so do not use that
    Inference again.
    """

    k: int
    gradient: Literal["plain", "dreg"] = "plain"

    def __post_init__(self) -> None:
        require_count("k", self.k)
        if self.gradient not in ("plain", "dreg"):
            raise UserError(f"gradient is {self.gradient!r}; it must be plain or dreg")

    @property
    def samples(self) -> tuple[int, ...]:
        return (self.k,)

    def __call__(self, inference: Inference, warmup: Weight = 1.0) -> Tensor:
        if self.gradient == "dreg":
            require(
                isinstance(warmup, Tensor | float) and float(warmup) == 1.0,
                "doubly reparameterised gradients do not hold during KL warm-up; leave out --kl-warmup",
            )
            return self.doubly_reparameterised(inference)
        log_weight = inference.log_likelihood
        for name, latent in inference.latents.items():
            log_weight = log_weight - weighted_kl(name, latent, -latent.log_ratio, warmup)
        return torch.logsumexp(log_weight, 0) - math.log(self.k)

    def doubly_reparameterised(self, inference: Inference) -> Tensor:
        """The bound, whose gradient is that of sum_k v_k log w_k for decoder and prior, and that of sum_k v_k^2 log w_k
        through z alone for the posterior, with v_k = w_k / sum w."""
        require(
            len(inference.latents) == 1,
            "doubly reparameterised gradients hold for one latent, and this model has "
            f"{len(inference.latents)}; choose --gradient plain",
        )
        (latent,) = inference.latents.values()
        q: Any = latent.posterior
        require(
            isinstance(q, Independent),
            "doubly reparameterised gradients need a Gaussian posterior; choose --gradient plain",
        )
        detached = independent(gaussian(q.base_dist.loc.detach(), q.base_dist.scale.detach()), 1)
        log_q = detached.log_prob(latent.z)
        log_weight = inference.log_likelihood + latent.prior.log_prob(latent.z) - log_q
        weight = log_weight.detach().softmax(0)
        if latent.z.requires_grad:
            latent.z.register_hook(lambda gradient: gradient * weight.unsqueeze(-1))
        surrogate = (weight * log_weight).sum(0)
        bound = torch.logsumexp(log_weight, 0) - math.log(self.k)
        return bound.detach() + surrogate - surrogate.detach()


@dataclass(frozen=True)
class infovae:
    """log p(x | z) - (1 - alpha) KL(q(z | x) || p) - (alpha + lambda - 1) MMD^2(q(z), p). Zhao et al. 2019, eq. 6.

    The MMD is of the batch's z and as many samples of p; `lambda_` weighs it against nats summed over pixels. At alpha
    = 1 the KL is left out, so that q may be deterministic. Raises UserError for several latents and for a learned
    prior, which would get no gradient from the MMD.
    """

    alpha: float = 0.0
    lambda_: float = 1000.0
    kernel: Kernel = "rbf"
    biased: bool = False
    samples: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        kernels = get_args(Kernel)
        hint = f"{did_you_mean(self.kernel, kernels)} (kernels: {', '.join(kernels)})"
        require(self.kernel in kernels, f"there is no kernel {self.kernel!r}{hint}")

    def __call__(self, inference: Inference, warmup: Weight = 1.0) -> Tensor:
        require(len(inference.latents) == 1, "infovae holds for models with one latent")
        ((name, latent),) = inference.latents.items()
        require(
            not latent.prior.mean.requires_grad,
            "infovae gives a learned prior no gradient; choose --prior standard or mixture",
        )
        value = inference.log_likelihood
        if self.alpha != 1:
            value = value - (1 - self.alpha) * weighted_kl(name, latent, latent.kl, warmup)
        prior_z = latent.prior.expand(latent.z.shape[:-1]).sample()
        z, prior_z = map(distributed.all_gather_latents, (latent.z, prior_z))
        distance = squared_mmd(z, prior_z, self.kernel, self.biased)
        value = value - (self.alpha + self.lambda_ - 1) * distance[..., None]
        return value.mean(0) if self.samples else value


def weighted_kl(name: str, latent: Latent, kl: Tensor, *weights: Weight) -> Tensor:
    """A latent's `kl` times the product of its weights, and its `cluster_kl` times that of the weights of "cluster"."""
    total = cluster_total = 1.0
    separate = False
    for weight in weights:
        own = weight.get(name, 1.0) if isinstance(weight, Mapping) else weight
        total = total * own  # type: ignore[assignment]
        if isinstance(weight, Mapping) and "cluster" in weight:
            own, separate = weight["cluster"], True
        cluster_total = cluster_total * own  # type: ignore[assignment]
    return total * kl + (cluster_total - total) * latent.cluster_kl if separate else total * kl


def from_text(text: str) -> Objective:
    """The objective whose `repr` is `text`. Raises UserError where it is not one of these."""
    kinds = {kind.__name__: kind for kind in (elbo, capacity, iwae, infovae)}
    try:
        call: Any = ast.parse(text, mode="eval").body
        settings = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
        return kinds[call.func.id](**settings)
    except Exception:  # of many types: of the parser, of missing attributes, of the constructors
        message = f"{shown(text)} is not an objective of vaekit"
        raise UserError(for_caller(message, f"{message}; pass it as `objective`")) from None
