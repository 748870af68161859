"""The settings of a training, as frozen dataclasses with one sentence a field. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from ..support.errors import flag, require, require_count, require_seed
from .model import ClusterConfig, ModelConfig

Precision = Literal["float32", "bfloat16"]
# Steps of a small network that save as much time as compiling takes.
COMPILING_PAYS = 20_000


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training."""

    epochs: int = 50
    """Passes over the training images."""
    batch_size: int = 100
    """Images a step."""
    learning_rate: float = 1e-3
    """Learning rate at its highest."""
    optimizer: Literal["adam", "adamw", "adagrad", "rmsprop"] = "adam"
    """Optimiser."""
    weight_decay: float = 0.0
    """Weight decay (decoupled for adamw, an L2 penalty for the others)."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """How the learning rate goes on after its warm-up: cosine falls to 0 at the last step."""
    lr_warmup: float = 0.0
    """Epochs over which the learning rate rises from 0."""
    kl_warmup: float | None = None
    """Epochs over which the weight of the KL rises from 0 to its final value; none by default, but half of
    all, at most 10, for a model with clusters."""
    kl_warmup_of: str = "all"
    """Which latent's KL warms up, such as z2; or cluster, the part of a mixture's components."""
    clip_gradient: float | None = None
    """Largest norm of the gradient; a longer one is scaled down."""
    patience: int | None = None
    """Stop after this many epochs without a better validation objective (counted after all warm-ups)."""
    ema: float | None = None
    """Decay of an exponential moving average of the weights, such as 0.999, that is validated and saved."""
    save_every: int | None = None
    """Also keep numbered weights every N epochs."""
    state_every: float = 30.0
    """Seconds from one saved state to the next, for --resume, at the end of an epoch; ten times as many within one."""
    skip_spikes: float | None = None
    """Leave out steps whose gradient is more than N times as long as usual, such as 10."""
    seed: int = 0
    """Seed of the order of the images and all noise; on the command line of the first weights too."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    precision: Precision = "float32"
    """Of the networks while they train; bfloat16 is faster on GPUs and new CPUs. All else stays float32."""
    compile: Literal["auto", "yes", "no"] = "auto"
    """Compile the training step: some ten seconds once, then each step is faster. auto: from 20,000 steps on."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "patience", "save_every"):
            if getattr(self, name) is not None:
                require_count(name, getattr(self, name))
        for name in ("learning_rate", "clip_gradient", "state_every", "skip_spikes"):
            value = getattr(self, name)
            require(
                value is None or 0 < value < math.inf,
                f"{flag(name)} is {value}; it must be a positive number",
            )
        for name in ("weight_decay", "lr_warmup", "kl_warmup"):
            value = getattr(self, name)
            require(
                value is None or 0 <= value < math.inf,
                f"{flag(name)} is {value}; it must be 0 or a positive number",
            )
        for name in ("lr_warmup", "kl_warmup"):
            value = getattr(self, name)
            require(
                value is None or value < self.epochs,
                f"{flag(name)} is {value} but --epochs is {self.epochs}: no epoch would follow the "
                "warm-up and no weights would be kept; shorten it",
            )
        require(
            self.ema is None or 0 < self.ema < 1,
            f"--ema is {self.ema}; it must be between 0 and 1, such as 0.999",
        )
        require(
            self.kl_warmup_of == "all" or self.kl_warmup != 0,
            f"--kl-warmup-of {self.kl_warmup_of} needs a --kl-warmup, in epochs",
        )
        require_seed(self.seed)

    def steps(self, images: int) -> int:
        """Steps of an epoch, of which the last may have fewer images."""
        return -(-images // self.batch_size)

    def compiles(self, images: int) -> bool:
        """Whether to compile a training on so many images."""
        pays = self.steps(images) * self.epochs >= COMPILING_PAYS
        return self.compile == "yes" or (self.compile == "auto" and pays)

    @property
    def warmup(self) -> float:
        """Epochs until every warm-up has ended."""
        return max(self.kl_warmup or 0.0, self.lr_warmup)

    def settle(self, model: ModelConfig) -> TrainConfig:
        """With the warm-up that a model of these settings has where none is chosen."""
        if self.kl_warmup is not None:
            return self
        clusters = isinstance(model, ClusterConfig)
        return replace(self, kl_warmup=min(10.0, self.epochs / 2) if clusters else 0.0)


@dataclass(frozen=True)
class WatchConfig:
    """What is drawn and logged while a model trains."""

    pictures_every: int | None = None
    """Draw images above their reconstructions, and samples, every N epochs, into RUN/pictures/epochs."""
    record: bool = False
    """Film the same samples from the first step to the last: RUN/pictures/progress.gif."""
    tensorboard: bool = False
    """Write RUN/tensorboard, for `tensorboard --logdir RUN` (pip install 'vaekit[tensorboard]')."""

    def __post_init__(self) -> None:
        if self.pictures_every is not None:
            require_count("pictures_every", self.pictures_every)
