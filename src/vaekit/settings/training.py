"""The settings of a training, as frozen dataclasses with one sentence a field. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal

from ..support.errors import flag_name, printable, require, require_count, require_seed
from .augment import parse_augmentation
from .model import ClusterConfig, LadderConfig, ModelConfig

Precision = Literal["float32", "bfloat16"]
MIN_STEPS_PER_EPOCH = 100  # with --steps, so that validating a small set takes little of the time
# Compiling takes as much time as it saves in this many steps of a small network.
MIN_STEPS_TO_COMPILE = 20_000


@dataclass(frozen=True)
class TrainConfig:
    """Settings of the training."""

    epochs: int = 50
    """Number of epochs."""
    steps: int | None = None
    """Number of steps, instead of --epochs: the last epoch ends with them. An epoch then has at least 100 steps, of a
    small set several passes over the training images."""
    batch_size: int = 100
    """Batch size."""
    augment: str | None = None
    """Random changes of the training images at each step, such as hflip,shift=2: hflip, vflip, rotate90, shift=N and
    crop=N (pixels), brightness=S, contrast=S, saturation=S (0 to 1)."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    optimizer: Literal["adam", "adamw", "adagrad", "rmsprop"] = "adam"
    """Optimiser."""
    weight_decay: float = 0.0
    """Weight decay (decoupled for adamw, an L2 penalty for the others)."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Schedule of the learning rate after its warm-up: cosine falls to 0 at the last step (of several)."""
    lr_warmup: float = 0.0
    """Epochs over which the learning rate rises linearly from 0."""
    kl_warmup: float | None = None
    """Epochs over which the weight of the KL rises linearly from 0 to its final value; default: none, but half of all
    epochs, at most 10, for models with clusters, and a fifth, at most 10, for deep hierarchies."""
    kl_warmup_of: str = "all"
    """Latent whose KL warms up, such as z2; or cluster, the part of a mixture's KL that belongs to its components."""
    clip_gradient: float | None = None
    """Clip the gradient at this norm."""
    patience: int | None = None
    """Stop early after this many epochs without a better validation objective (counted after all warm-ups)."""
    ema: float | None = None
    """Decay of an exponential moving average of the weights, such as 0.999, which is then validated and saved
    (debiased: the initial weights are no part of it)."""
    save_every: int | None = None
    """Also save numbered weights every N epochs."""
    state_every: float = 30.0
    """Seconds between checkpoints for --resume, saved after an epoch; within an epoch ten times as many."""
    skip_spikes: float | None = None
    """Skip steps whose gradient norm is more than N times the usual one, such as 10."""
    seed: int = 0
    """Random seed of the order of the images and of all noise; on the command line also of the initial weights."""
    device: str = "auto"
    """Device: auto, cpu, cuda, cuda:1, mps."""
    precision: Precision = "float32"
    """Precision of the networks in training; bfloat16 is faster on GPUs and new CPUs. The rest stays float32."""
    allow_slow: bool = False
    """Train in bfloat16 also where the processor has no instructions for it, many times slower than in float32."""
    compile: Literal["auto", "yes", "no"] = "auto"
    """Compile the training step: about 10 s, once, then each step is faster. auto: from 20,000 steps on."""

    def __post_init__(self) -> None:
        for name in ("epochs", "steps", "batch_size", "patience", "save_every"):
            if getattr(self, name) is not None:
                require_count(name, getattr(self, name))
        for name in ("learning_rate", "clip_gradient", "state_every", "skip_spikes"):
            value = getattr(self, name)
            require(
                value is None or 0 < value < math.inf,
                f"{flag_name(name)} is {value}; it must be a positive number",
            )
        for name in ("weight_decay", "lr_warmup", "kl_warmup"):
            value = getattr(self, name)
            require(
                value is None or 0 <= value < math.inf,
                f"{flag_name(name)} is {value}; it must be 0 or a positive number",
            )
        if self.steps is None:
            self._check_warmups(self.epochs, f"--epochs is {self.epochs}")
        require(
            self.ema is None or 0 < self.ema < 1,
            f"--ema is {self.ema}; it must be between 0 and 1, such as 0.999",
        )
        require(
            self.kl_warmup_of == "all" or self.kl_warmup != 0,
            f"--kl-warmup-of {printable(self.kl_warmup_of)[:40]} needs a --kl-warmup, in epochs",
        )
        require(
            self.precision == "bfloat16" or not self.allow_slow,
            "--allow-slow has no effect without --precision bfloat16; leave it out",
        )
        if self.augment is not None:
            parse_augmentation(self.augment)
        require_seed(self.seed)

    def _check_warmups(self, epochs: float, length: str) -> None:
        """Raise UserError unless every warm-up ends before so many epochs, the `length` of the training in words."""
        for name in ("lr_warmup", "kl_warmup"):
            value = getattr(self, name)
            require(
                value is None or value < epochs,
                f"{flag_name(name)} is {value} but {length}: no epoch would follow the warm-up and no weights would be "
                "kept; shorten it",
            )

    def passes(self, images: int) -> int:
        """Passes over so many training images per epoch: one, or with `steps` enough for MIN_STEPS_PER_EPOCH steps."""
        return 1 if self.steps is None else -(-MIN_STEPS_PER_EPOCH // self._steps_per_pass(images))

    def steps_per_epoch(self, images: int) -> int:
        """Steps of an epoch that is not cut; the last batch of each pass may be smaller."""
        return self.passes(images) * self._steps_per_pass(images)

    def total_steps(self, images: int) -> int:
        """Steps of the whole training."""
        return self.steps or self.epochs * self.steps_per_epoch(images)

    def _steps_per_pass(self, images: int) -> int:
        return -(-images // self.batch_size)

    def compiles(self, images: int) -> bool:
        """Whether to compile the step of a training on this many images."""
        pays = self.total_steps(images) >= MIN_STEPS_TO_COMPILE
        return self.compile == "yes" or (self.compile == "auto" and pays)

    @property
    def warmup(self) -> float:
        """Epochs until every warm-up has ended."""
        return max(self.kl_warmup or 0.0, self.lr_warmup)

    def resolve(self, model: ModelConfig, images: int) -> TrainConfig:
        """The settings for a training on so many images: with the epochs that `steps` take, the default KL warm-up of
        the model, if none is chosen, and the augmentation in the order in which it is applied.

        Raises UserError for a warm-up that is longer than `steps`.
        """
        epochs = self.total_steps(images) / self.steps_per_epoch(images)
        if self.steps is not None:
            self._check_warmups(epochs, f"--steps {self.steps} are {epochs:.3g} epochs")
        augment = None if self.augment is None else str(parse_augmentation(self.augment))
        kl_warmup = self.kl_warmup
        if kl_warmup is None:
            shares = {ClusterConfig: 2, LadderConfig: 5}
            share = next((n for kind, n in shares.items() if isinstance(model, kind)), math.inf)
            kl_warmup = min(10.0, epochs / share)
        return replace(self, epochs=math.ceil(epochs), kl_warmup=kl_warmup, augment=augment)

    def with_steps(self, steps: int, images: int, cut: int = 0) -> TrainConfig:
        """The settings with another number of `steps`, where epochs so far were `cut` by some in all."""
        return replace(self, steps=steps, epochs=-(-(steps + cut) // self.steps_per_epoch(images)))


def require_one_length(given: Collection[str]) -> None:
    """Raise UserError where both lengths are among the names of the settings that were chosen."""
    require(
        not {"epochs", "steps"} <= set(given),
        "--epochs and --steps are both lengths of a training; give one of them",
    )


@dataclass(frozen=True)
class MonitorConfig:
    """What is drawn and logged during training."""

    pictures_every: int | None = None
    """Draw reconstructions and samples every N epochs, into RUN/pictures/epochs."""
    record: bool = False
    """Record the same samples from the first step to the last: RUN/pictures/progress.gif."""
    tensorboard: bool = False
    """Write RUN/tensorboard, for `tensorboard --logdir RUN` (pip install 'vaekit[tensorboard]')."""

    def __post_init__(self) -> None:
        if self.pictures_every is not None:
            require_count("pictures_every", self.pictures_every)
