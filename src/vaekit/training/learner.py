"""The state of a training: everything that a step changes, so that it resumes bit for bit."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..model.graph import VAE
from ..runs.directory import TrainingState
from ..settings.training import TrainConfig
from ..support import distributed
from ..support.devices import epoch_totals
from ..support.errors import UserError, one_line, require
from .step import make_optimizer

# From one process to the next; torch's generator of the CPU takes only the lowest 32 bits of a seed.
SEED_STRIDE = 0x9E3779B1
DOES_NOT_FIT = "the state does not fit the training; restore it, or train again"
# What an optimiser keeps for each parameter.
ADAM = {"step", "exp_avg", "exp_avg_sq"}
MOMENTS = {
    "adam": ADAM,
    "adamw": ADAM,
    "adagrad": {"step", "sum"},
    "rmsprop": {"step", "square_avg"},
}


@dataclass
class Position:
    """The progress of a training: everything but tensors that a step or an epoch changes.

    `epoch`: finished epochs; `batch`: finished steps of the next one, and `seconds` they took; `cut`: steps by which
    finished epochs were shorter than an epoch; `since_best`: epochs since the best, after all warm-ups. `skipped`:
    steps of this epoch left out because the gradient's norm far exceeded `usual_norm`. `recovered`: recoveries from a
    loss that was not finite, which set `rate_factor` and `clip_gradient`. `compiled`: whether the step is; None before
    that is known.
    """

    epoch: int = 0
    batch: int = 0
    cut: int = 0
    seconds: float = 0.0
    best: float = -math.inf
    since_best: int = 0
    skipped: int = 0
    usual_norm: float | None = None
    rate_factor: float = 1.0
    clip_gradient: float | None = None
    recovered: list[dict[str, Any]] = field(default_factory=list)
    compiled: bool | None = None

    def steps(self, per_epoch: int) -> int:
        """Finished steps of the training, of whose epochs each has `per_epoch` steps, or was cut."""
        return self.epoch * per_epoch + self.batch - self.cut


class Learner:
    """A model with its optimiser, average, generators and position; `state` copies all of it, `restore` sets it.

    `full_model`: the model whose weights are saved, where the trained one is a part of it. `order`: permutations of the
    images, one for each pass of this epoch; `rows`: the images of each of its steps; `totals`: objective,
    log-likelihood and KL, summed over its images so far.
    """

    def __init__(
        self, model: VAE, config: TrainConfig, device: torch.device, full_model: VAE | None = None
    ) -> None:
        # The memory format in which convolutions are fastest.
        model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model, self.full_model, self.config, self.device = (
            model,
            full_model or model,
            config,
            device,
        )
        self.optimizer = make_optimizer(model, config)
        self.average = None if config.ema is None else copy.deepcopy(model)
        self.kl_weight = torch.ones((), device=device)
        self.position = Position(clip_gradient=config.clip_gradient)
        self.order = torch.zeros(0, dtype=torch.int64)
        self.rows: list[Tensor] = []
        self.totals = epoch_totals(device)
        self.started = self.allow_inexact = False
        self.rng_states: dict[str, Tensor] = {}
        self.request = 0.0  # see checkpoint.Checkpointer

    @property
    def output_model(self) -> VAE:
        """The model that is validated and saved."""
        return self.model if self.average is None else self.average

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or `patience` epochs have passed without a better one."""
        at, config = self.position, self.config
        out_of_patience = config.patience is not None and at.since_best >= config.patience
        return at.epoch >= config.epochs or out_of_patience

    def resolve_compiled(self, compiled: bool) -> None:
        """Record whether the step is compiled. Raises UserError where it was and now is not, unless `allow_inexact`."""
        require(
            compiled or not self.position.compiled or self.allow_inexact,
            "the training step was compiled so far and cannot be compiled here, which changes the last digits; pass "
            "--allow-inexact to resume nevertheless",
        )
        self.position.compiled = compiled

    def start(self) -> None:
        """Set the generators, from the seed or the restored state, and broadcast the weights of the first process."""
        saved, rank, processes = self.rng_states, distributed.rank(), distributed.world_size()
        torch.manual_seed(self.config.seed + rank * SEED_STRIDE)
        if f"{processes - 1}.cpu" in saved and f"{processes}.cpu" not in saved:
            try:
                torch.set_rng_state(saved[f"{rank}.cpu"])
                if f"{rank}.device" in saved:
                    set_device_rng_state(self.device, saved[f"{rank}.device"])
            except (RuntimeError, TypeError, KeyError) as error:
                raise UserError(f"{DOES_NOT_FIT} ({one_line(error)})") from None
        elif saved:  # by another number of processes: a seed not used before
            torch.manual_seed(self.config.seed + rank * SEED_STRIDE + 1 + self.position.epoch)
        self.started = True
        for tensor in self.full_model.state_dict().values():
            distributed.broadcast(tensor)

    def begin_epoch(self, images: int) -> None:
        """Draw the order of an epoch's images, unless the epoch is resumed; the last one is cut after `steps`."""
        at, config = self.position, self.config
        passes, steps = config.passes(images), config.steps_per_epoch(images)
        if at.batch:
            require(
                at.batch < steps
                and torch.equal(
                    self.order.sort().values.cpu(), torch.arange(images).repeat_interleave(passes)
                ),
                f"{DOES_NOT_FIT} (it is of other images)",
            )
        else:
            order = torch.cat([torch.randperm(images) for _ in range(passes)])
            self.order = distributed.broadcast(order.to(self.device))
            self.totals.zero_()
            at.seconds, at.skipped = 0.0, 0
        each_pass = self.order.split(images)
        self.rows = [rows for order in each_pass for rows in order.split(config.batch_size)]
        if config.steps is not None:
            del self.rows[config.steps - at.steps(steps) + at.batch :]

    def end_epoch(self, objective: float, steps: int) -> bool:
        """Count an epoch, of `steps` if it is not cut, with its validation objective; return whether it is the best so
        far.

        Epochs before the end of the warm-ups are never the best: their weights are trained for an easier objective.
        """
        at = self.position
        at.cut += steps - at.batch
        at.epoch, at.batch = at.epoch + 1, 0
        best = at.epoch >= self.config.warmup and objective > at.best
        if best:
            at.best, at.since_best = objective, 0
        elif at.epoch > self.config.warmup:
            at.since_best += 1
        return best

    def is_spike(self, factor: float) -> bool:
        """Whether the gradient's norm exceeds `factor` times the usual one, a moving average over about 100 steps."""
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients))
        usual = self.position.usual_norm
        if usual is not None and not norm <= factor * usual:
            self.position.skipped += 1
            return True
        self.position.usual_norm = norm if usual is None else usual + (norm - usual) / 100
        return False

    def state(self) -> TrainingState:
        """A copy of the state in CPU memory."""
        totals = distributed.all_reduce(self.totals.clone())
        tensors = {"epoch.order": self.order, "epoch.totals": totals}
        noise = self.rng_states
        if self.started:
            noise = {
                f"{i}.cpu": s for i, s in enumerate(distributed.all_gather(torch.get_rng_state()))
            }
            if self.device.type != "cpu":
                states = distributed.all_gather(get_device_rng_state(self.device))
                noise |= {f"{i}.device": state for i, state in enumerate(states)}
        tensors |= prefixed("noise", noise) | prefixed("model", self.full_model.state_dict())
        if self.average is not None:
            tensors |= prefixed("average", self.average.state_dict())
        for i, parameter in enumerate(self.model.parameters()):
            tensors |= prefixed(f"optimizer.{i}", self.optimizer.state.get(parameter, {}))
        copies = {name: t.detach().to("cpu", copy=True) for name, t in tensors.items()}
        return TrainingState(copies, copy.deepcopy(vars(self.position)))

    @torch.no_grad()
    def restore(self, state: TrainingState) -> None:
        """Set everything to a state. Raises UserError where the state is of another training."""
        try:
            self.position = Position(**copy.deepcopy(state.scalars))
            self.order = state.tensors["epoch.order"].to(self.device)
            self.totals.zero_()
            if distributed.rank() == 0:  # the sum over all processes
                self.totals.copy_(state.tensors["epoch.totals"])
            copy_into(self.full_model, state.part("model"))
            if self.average is not None:
                copy_into(self.average, state.part("average"))
            self.optimizer.state.clear()
            for i, parameter in enumerate(self.model.parameters()):
                moments = state.part(f"optimizer.{i}")
                if moments or self.config.optimizer == "adagrad":
                    names, shapes = moments.keys(), {tuple(v.shape) for v in moments.values()}
                    require(
                        names == MOMENTS[self.config.optimizer]
                        and shapes <= {(), tuple(parameter.shape)},
                        f"{DOES_NOT_FIT} (the values of its optimiser are of another kind)",
                    )
                    self.optimizer.state[parameter] = {
                        name: like_parameter(parameter, value) for name, value in moments.items()
                    }
        except (KeyError, TypeError, RuntimeError) as error:
            raise UserError(f"{DOES_NOT_FIT} ({one_line(error)})") from None
        self.rng_states, self.started = state.part("noise"), False

    def finite(self) -> bool:
        """Whether the weights and the objective so far contain no infinity and no NaN."""
        weights = torch.stack([p.isfinite().all() for p in self.model.parameters()])
        return bool(weights.all() & self.totals[0].isfinite())


def prefixed(part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with `part.` before their names."""
    return {f"{part}.{name}": tensor for name, tensor in tensors.items()}


def copy_into(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy into the module's own tensors, which a compiled step holds. Raises UserError where they do not fit."""
    require_same_shapes(module, tensors)
    for name, value in module.state_dict().items():
        value.copy_(tensors[name])


def require_same_shapes(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Raise UserError unless these tensors are those of the module, which may be on the meta device."""
    shapes = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    require(
        shapes == {name: tuple(value.shape) for name, value in tensors.items()},
        f"{DOES_NOT_FIT} (it is of another model)",
    )


def like_parameter(parameter: Tensor, value: Tensor) -> Tensor:
    """An optimiser's value for a parameter, in the memory format of the parameter."""
    if value.shape != parameter.shape:
        return value.to(parameter.device)
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def get_device_rng_state(device: torch.device) -> Tensor:
    return torch.mps.get_rng_state() if device.type == "mps" else torch.cuda.get_rng_state(device)


def set_device_rng_state(device: torch.device, state: Tensor) -> None:
    if device.type == "mps":
        torch.mps.set_rng_state(state)
    else:
        torch.cuda.set_rng_state(state, device)
