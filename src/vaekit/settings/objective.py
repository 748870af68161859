"""The settings of an objective, as frozen dataclasses with one sentence a field. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from ..support.errors import flag_name, require, require_count

OBJECTIVE_SETTINGS = {
    "elbo": ("beta", "capacity", "free_bits"),
    "iwae": ("gradient",),
    "infovae": ("alpha", "mmd_weight", "kernel", "mmd"),
}


@dataclass(frozen=True)
class ObjectiveConfig:
    """Settings of the objective, which is maximised."""

    objective: Literal["elbo", "iwae", "infovae"] = "elbo"
    """elbo, iwae (importance-weighted bound with K = --samples), or infovae (ELBO with an MMD term)."""
    samples: int = 1
    """Samples of the latents per image and step; K of iwae."""
    beta: float | None = None
    """Weight of the KL (elbo), 1 by default; of |KL - capacity|, 100 by default."""
    capacity: float | None = None
    """Target the KL at this many nats, by beta |KL - capacity|; it rises from 0 over --kl-warmup (elbo). Of each image
    where the KL has a closed form, else of the mean over the batch."""
    free_bits: float = 0.0
    """Nats per latent that cost nothing: a KL whose mean over the batch is below counts as this many (elbo)."""
    gradient: Literal["plain", "dreg"] = "plain"
    """Gradient of iwae: plain, or doubly reparameterised, whose noise falls as K grows (one latent, no
    VampPrior)."""
    alpha: float = 0.0
    """alpha of infovae: the KL has weight 1 - alpha; 1 leaves it out."""
    mmd_weight: float = 1000.0
    """lambda of infovae: the squared MMD has weight alpha + lambda - 1."""
    kernel: Literal["rbf", "reference", "median", "imq"] = "rbf"
    """Kernel of the MMD in d dimensions: rbf exp(-|x-y|^2/2d); reference, that of the paper's code,
    exp(-|x-y|^2/d^2); median, rbf with the median distance as width; imq, inverse multiquadratic."""
    mmd: Literal["unbiased", "biased"] = "unbiased"
    """Estimator of the squared MMD; the biased one is never negative."""

    def __post_init__(self) -> None:
        require_count("samples", self.samples)
        for name in ("beta", "capacity", "free_bits", "mmd_weight"):
            value = getattr(self, name)
            require(
                value is None or 0 <= value < math.inf,
                f"{flag_name(name)} is {value}; it must be 0 or a positive number",
            )
        require(
            not (self.free_bits and self.capacity is not None),
            "--free-bits has no effect with --capacity, which holds the KL itself; leave one of them out",
        )
        require(self.alpha <= 1, f"--alpha is {self.alpha}; it must be at most 1")
        require(
            self.alpha + self.mmd_weight >= 1,
            f"--mmd-weight is {self.mmd_weight}; with --alpha {self.alpha} it must be at least "
            f"{1 - self.alpha:g}, or the MMD would be maximised",
        )

    def resolve(self, defaults: ObjectiveConfig) -> ObjectiveConfig:
        """Drop what the model's `defaults` set for another objective, or for a KL without capacity.

        Raises UserError for settings that were chosen and have no effect.
        """
        meant = {"objective", "samples", *OBJECTIVE_SETTINGS[self.objective]}
        plain: dict[str, Any] = {}
        for field in fields(self):
            given, own = getattr(self, field.name), getattr(defaults, field.name)
            if field.name not in meant and given != field.default:
                require(
                    given == own,
                    f"{flag_name(field.name)} {given} has no effect for --objective {self.objective}; leave it out",
                )
                plain[field.name] = field.default
        if self.capacity is not None and defaults.capacity is None and self.beta == defaults.beta:
            plain["beta"] = None
        return replace(self, **plain)
