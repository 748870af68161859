"""The parts of a training step: the loss, the optimiser, and the schedules."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..data import pixels
from ..data.dataset import Batch, ResolvedBinarisation
from ..model.graph import VAE
from ..model.objectives import Objective, Weight
from ..settings.training import Precision, TrainConfig
from ..support.errors import require


class Loss(nn.Module):
    """A model with its objective: forward returns the loss of a batch and its means (objective, log-likelihood, KL).

    `augment`, then `binarisation` are applied to the images first. Only the networks run in bfloat16; their outputs are
    converted to float32 before any density is computed (see distributions.Conditional).
    """

    def __init__(
        self,
        model: VAE,
        objective: Objective,
        binarisation: ResolvedBinarisation = "none",
        precision: Precision = "float32",
        augment: Callable[[Tensor], Tensor] = lambda images: images,
    ) -> None:
        super().__init__()
        self.augment = augment
        self.model = model
        self.objective = objective
        self.binarisation: ResolvedBinarisation = binarisation
        self.precision: Precision = precision

    def forward(
        self, images: Tensor, y: Tensor | None = None, warmup: Weight = 1.0
    ) -> tuple[Tensor, Tensor]:
        x = pixels(self.augment(images), self.binarisation)
        bfloat16 = self.precision == "bfloat16"
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bfloat16):
            inference = self.model(x, y, samples=self.objective.samples)
        value = self.objective(inference, warmup)
        mean, log_likelihood, kl = value.mean(), inference.log_likelihood, inference.kl
        with torch.no_grad():
            means = torch.stack([mean, log_likelihood.mean(), kl.mean()])
        return -mean, means

    def backward(self, batch: Batch, warmup: Weight) -> Tensor:
        """Set the gradients of the loss of a batch, replacing old ones, and return the means."""
        self.zero_grad()
        value, means = self(batch.images, batch.labels, warmup)
        value.backward()
        return means


def kl_warmup_weight(model: VAE, config: TrainConfig, kl_weight: Tensor) -> Weight:
    """The factor of the KL for the objective: `kl_weight`, a tensor that changes in place, for what warms up, else 1.

    Raises UserError where no latent has the name `kl_warmup_of`.
    """
    if not config.kl_warmup:
        return 1.0
    if config.kl_warmup_of == "all":
        return kl_weight
    names = [*model.prior, "cluster"]
    require(
        config.kl_warmup_of in names,
        f"--kl-warmup-of is {config.kl_warmup_of!r}; it must be all, or one of {', '.join(names)}",
    )
    return {config.kl_warmup_of: kl_weight}


def learning_rate(epochs: float, config: TrainConfig, step: float = 0.0) -> float:
    """The learning rate of the step of length `step` that ends after `epochs`, fractional numbers. A cosine of one
    step, at whose end it is 0, is constant."""
    length = config.epochs if config.steps is None else config.steps * step
    if epochs < config.lr_warmup:
        return config.learning_rate * epochs / config.lr_warmup
    if config.schedule == "constant" or length - config.lr_warmup <= step:
        return config.learning_rate
    progress = (epochs - config.lr_warmup) / (length - config.lr_warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


class Adam(torch.optim.Adam):
    """torch's fused Adam with less Python overhead, and without copies of weights in channels-last."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        group = self.param_groups[0]
        trainable = [p for p in group["params"] if p.grad is not None]
        states = [self.state[p] for p in trainable]
        if closure is not None or not all(states):  # torch creates them at its first step
            return super().step(closure)
        steps = [state["step"] for state in states]
        torch._foreach_add_(steps, 1)
        update = torch._fused_adamw_ if group["decoupled_weight_decay"] else torch._fused_adam_
        update(
            [in_memory_order(p) for p in trainable],
            [in_memory_order(p.grad) for p in trainable],
            [in_memory_order(state["exp_avg"]) for state in states],
            [in_memory_order(state["exp_avg_sq"]) for state in states],
            [],
            steps,
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )
        return None


def in_memory_order(tensor: Tensor) -> Tensor:
    """A contiguous view of the tensor's memory; of any other layout the fused update makes a copy."""
    return tensor if tensor.is_contiguous() else tensor.as_strided((tensor.numel(),), (1,))


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimiser of the settings, with the fused update where torch has one."""
    common: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    parameters = model.parameters()
    if config.optimizer == "rmsprop":
        return torch.optim.RMSprop(parameters, **common)
    if config.optimizer == "adagrad":
        on_cpu = next(model.parameters()).device.type == "cpu"
        return torch.optim.Adagrad(parameters, fused=on_cpu, **common)
    decoupled = config.optimizer == "adamw"
    return Adam(parameters, fused=True, decoupled_weight_decay=decoupled, **common)


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """The exponential average over steps 1 to `step`, without the initial weights (debiased as Adam's, Kingma and Ba
    2015, section 3). (torch's AveragedModel reads a counter back at every step.)"""
    for mean, parameter in zip(average.parameters(), model.parameters(), strict=True):
        mean.lerp_(parameter, (1 - decay) / (1 - decay**step))
    for averaged, buffer in zip(average.buffers(), model.buffers(), strict=True):
        averaged.copy_(buffer)  # running statistics of batch normalisation are averages already
