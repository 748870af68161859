"""A model while it learns: everything that a step changes, so that a training can go on from it to the last bit."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..model.graph import VAE
from ..runs.directory import State
from ..settings.training import TrainConfig
from ..support import distributed as ranks
from ..support.errors import UserError, one_line, require
from .step import make_optimizer, zeros

OTHER_SEED = 2**40  # from one process to the next


@dataclass
class Position:
    """Where a training is: what else than tensors a step or an epoch changes.

    `epoch`: epochs finished; `batch`: steps of the next one that are done, and the `seconds` that they took;
    `since_best`: epochs since the best, after all warm-ups. `skipped`: steps of this epoch that were left out, as the
    gradient's norm was so much above the `usual_norm`. `rate_factor` and `clip_gradient` are what `recovered` came to:
    the losses that were not finite. `compiled`: whether the step is; None before that is known.
    """

    epoch: int = 0
    batch: int = 0
    seconds: float = 0.0
    best: float = -math.inf
    since_best: int = 0
    skipped: int = 0
    usual_norm: float | None = None
    rate_factor: float = 1.0
    clip_gradient: float | None = None
    recovered: list[dict[str, Any]] = field(default_factory=list)
    compiled: bool | None = None


class Learner:
    """`whole` is what `state` keeps the weights of, where the model that learns is a part of it.

    `totals`: objective, log-likelihood and KL, summed over the images of this epoch so far; `order`: of its images.
    """

    def __init__(
        self, model: VAE, config: TrainConfig, device: torch.device, whole: VAE | None = None
    ) -> None:
        # The layout that convolutions are fastest in.
        model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model, self.whole, self.config, self.device = model, whole or model, config, device
        self.optimizer = make_optimizer(model, config)
        self.average = None if config.ema is None else copy.deepcopy(model)
        self.kl_weight = torch.ones((), device=device)
        self.at = Position(clip_gradient=config.clip_gradient)
        self.order = torch.zeros(0, dtype=torch.int64)
        self.totals = zeros(3, device)
        self.begun = self.allow_inexact = False
        self.noise: dict[str, Tensor] = {}
        self.wish = 0.0  # see keeping.Keeper

    @property
    def kept(self) -> VAE:
        """The model that is validated and saved."""
        return self.model if self.average is None else self.average

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or so many without a better one that patience has an end."""
        at, config = self.at, self.config
        impatient = config.patience is not None and at.since_best >= config.patience
        return at.epoch >= config.epochs or impatient

    def settle_compiled(self, found: bool) -> None:
        """Raises UserError where the step was compiled so far and cannot be any more, unless `allow_inexact`."""
        require(
            found or not self.at.compiled or self.allow_inexact,
            "the step was compiled so far, and here it cannot be, which changes the last digits; --allow-inexact goes "
            "on all the same",
        )
        self.at.compiled = found

    def begin(self) -> None:
        """Set the generators: from the seed, or as they were in the state that was restored; and have all processes
        begin with the weights of the first."""
        kept, number = self.noise, ranks.number()
        torch.manual_seed(self.config.seed + number * OTHER_SEED)
        if f"{ranks.count() - 1}.cpu" in kept and f"{ranks.count()}.cpu" not in kept:
            torch.set_rng_state(kept[f"{number}.cpu"])
            if f"{number}.device" in kept:
                set_device_noise(self.device, kept[f"{number}.device"])
        elif kept:  # of another number of processes: noise that was not there before
            torch.manual_seed(self.config.seed + number * OTHER_SEED + 1 + self.at.epoch)
        self.begun = True
        for tensor in self.whole.state_dict().values():
            ranks.share(tensor)

    def begin_epoch(self, images: int) -> None:
        """Draw the order of an epoch's images, unless it is one that goes on."""
        if self.at.batch == 0:
            self.order = ranks.share(torch.randperm(images).to(self.device))
            self.totals.zero_()
            self.at.seconds, self.at.skipped = 0.0, 0

    def end_epoch(self, objective: float) -> bool:
        """Count an epoch with its validation objective; whether it is the best so far.

        Before the warm-ups end, a good value may belong to an objective that is easier than the real one.
        """
        at = self.at
        at.epoch, at.batch = at.epoch + 1, 0
        best = at.epoch >= self.config.warmup and objective > at.best
        if best:
            at.best, at.since_best = objective, 0
        elif at.epoch > self.config.warmup:
            at.since_best += 1
        return best

    def spike(self, factor: float) -> bool:
        """Whether the gradient's norm is above `factor` times the usual one, the mean of the last hundred or so."""
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients))
        usual = self.at.usual_norm
        if usual is not None and not norm <= factor * usual:
            self.at.skipped += 1
            return True
        self.at.usual_norm = norm if usual is None else usual + (norm - usual) / 100
        return False

    def state(self) -> State:
        """A copy in the memory of the CPU."""
        totals = ranks.add_up(self.totals.clone())
        tensors = {"epoch.order": self.order, "epoch.totals": totals}
        noise = self.noise
        if self.begun:
            noise = {f"{i}.cpu": s for i, s in enumerate(ranks.gather(torch.get_rng_state()))}
            if self.device.type != "cpu":
                states = ranks.gather(get_device_noise(self.device))
                noise |= {f"{i}.device": state for i, state in enumerate(states)}
        tensors |= named("noise", noise) | named("model", self.whole.state_dict())
        if self.average is not None:
            tensors |= named("average", self.average.state_dict())
        for i, parameter in enumerate(self.model.parameters()):
            tensors |= named(f"optimizer.{i}", self.optimizer.state.get(parameter, {}))
        copies = {name: t.detach().to("cpu", copy=True) for name, t in tensors.items()}
        return State(copies, copy.deepcopy(vars(self.at)))

    @torch.no_grad()
    def restore(self, state: State) -> None:
        """Go back, or on, to a state. Raises UserError where it is of another training."""
        try:
            self.at = Position(**copy.deepcopy(state.numbers))
            self.order = state.tensors["epoch.order"].to(self.device)
            self.totals.zero_()
            if ranks.number() == 0:  # what all had summed up until then
                self.totals.copy_(state.tensors["epoch.totals"])
            fill(self.whole, state.part("model"))
            if self.average is not None:
                fill(self.average, state.part("average"))
            self.optimizer.state.clear()
            for i, parameter in enumerate(self.model.parameters()):
                moments = state.part(f"optimizer.{i}")
                if moments:
                    self.optimizer.state[parameter] = {
                        name: like(parameter, value) for name, value in moments.items()
                    }
        except (KeyError, TypeError, RuntimeError) as error:
            raise UserError(
                f"the state does not fit the training ({one_line(error)}); restore it, or train again"
            ) from None
        self.noise, self.begun = state.part("noise"), False

    def finite(self) -> bool:
        """Whether the weights and the objective so far have no infinity and no NaN."""
        weights = torch.stack([p.isfinite().all() for p in self.model.parameters()])
        return bool(weights.all() & self.totals[0].isfinite())


def named(part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{part}.{name}": tensor for name, tensor in tensors.items()}


def fill(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy into the memory that the weights have, where a compiled step reads them. UserError where they do not fit."""
    there = module.state_dict()
    fits = {name: tuple(value.shape) for name, value in there.items()}
    require(
        fits == {name: tuple(value.shape) for name, value in tensors.items()},
        "the state does not fit the training: it is of another model",
    )
    for name, value in there.items():
        value.copy_(tensors[name])


def like(parameter: Tensor, value: Tensor) -> Tensor:
    """What an optimiser keeps of a parameter, in the parameter's own layout."""
    if value.shape != parameter.shape:
        return value.to(parameter.device)
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def get_device_noise(device: torch.device) -> Tensor:
    return torch.mps.get_rng_state() if device.type == "mps" else torch.cuda.get_rng_state(device)


def set_device_noise(device: torch.device, state: Tensor) -> None:
    if device.type == "mps":
        torch.mps.set_rng_state(state)
    else:
        torch.cuda.set_rng_state(state, device)
