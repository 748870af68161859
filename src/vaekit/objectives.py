"""Objectives: functions of an Inference, to be maximised, in nats per image.

Each carries how many samples it wants (`samples`) and takes `warmup`, a number or 0-d tensor in [0, 1] by which
a training multiplies the KL while it warms up; only at 1 is the value a bound on log p(x).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .config import require_count
from .vae import Inference


class Objective(Protocol):
    @property
    def samples(self) -> tuple[int, ...]:
        """Leading sample dimensions to draw for it: () or (K,)."""

    def __call__(self, inference: Inference, warmup: Tensor | float = 1.0) -> Tensor:
        """Inference -> (B,)."""


@dataclass(frozen=True)
class elbo:
    """E[log p(x | z)] - beta KL(q || p), with the KL in closed form where there is one.

    `beta` is a number, or numbers by the latents' names. Kingma and Welling 2014, eq. 10; beta: Higgins et al. 2017.
    """

    beta: float | Mapping[str, float] = 1.0
    samples: tuple[int, ...] = ()

    def __call__(self, inference: Inference, warmup: Tensor | float = 1.0) -> Tensor:
        value = inference.log_likelihood
        for name, latent in inference.latents.items():
            beta = self.beta[name] if isinstance(self.beta, Mapping) else self.beta
            value = value - (beta * warmup) * latent.kl
        return value.mean(0) if self.samples else value


@dataclass(frozen=True)
class iwae:
    """log 1/K sum_k w_k, with w = p(x, z_k) / q(z_k | x): at most log p(x) on average, and closer as K grows.

    Burda et al. 2016, eq. 8. While the KL warms up, log w = log p(x | z) + warmup log p(z) / q(z | x).
    """

    k: int

    def __post_init__(self) -> None:
        require_count("k", self.k)

    @property
    def samples(self) -> tuple[int, ...]:
        return (self.k,)

    def __call__(self, inference: Inference, warmup: Tensor | float = 1.0) -> Tensor:
        log_likelihood = inference.log_likelihood
        log_weight = log_likelihood + warmup * (inference.log_weight - log_likelihood)
        return torch.logsumexp(log_weight, 0) - math.log(self.k)
