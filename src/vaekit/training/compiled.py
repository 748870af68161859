"""The training step, loss and gradients, as one compiled graph, which is faster than eager mode."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..data.dataset import Batch
from ..model.objectives import Weight
from ..support.devices import seeded
from .step import Loss, in_memory_order

# Relative difference of means and gradients; a wrong graph differs by far more.
TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}

Backward = Callable[[Batch, Weight], Tensor]


def compile_step(
    loss: Loss, batch: Batch, warmup: Weight, log: Callable[[str], None] = lambda text: None
) -> Backward:
    """`loss.backward`, compiled for batches of the size of `batch`; batches of another size run eagerly. So do all, and
    `log` gets a note, where there is no compiler or its graph gives wrong gradients.

    The noise is that of eager mode, so both give the same values up to rounding.
    """
    log("compiling the training step (once) ...")
    try:
        graph = CompiledStep(loss, batch, warmup)
        with restored_afterwards(loss):
            eager = [loss.backward(batch, warmup), *copied_gradients(loss)]
        with restored_afterwards(loss):
            compiled = [graph(batch, warmup), *copied_gradients(loss)]
        limit = TOLERANCE[loss.precision]
        if not all(close_enough(a, b, limit) for a, b in zip(compiled, eager, strict=True)):
            raise RuntimeError("the compiled step gives different gradients")
    except Exception as error:  # whatever the compiler raises: eager mode always works
        reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
        log(
            f"note: the training step is not compiled, so training is slower: {reason} (--compile no skips this)"
        )
        return loss.backward
    finally:
        loss.zero_grad()

    def backward(current: Batch, warmup: Weight) -> Tensor:
        step = graph if current.images.shape == batch.images.shape else loss.backward
        return step(current, warmup)

    return backward


class CompiledStep:
    """The compiled step: sets the gradients of a batch and returns its means, as `Loss.backward` does.

    It holds references to the weights and the tensors of `warmup`: they may change in place only.
    """

    def __init__(self, loss: Loss, batch: Batch, warmup: Weight) -> None:
        from torch._inductor import compile as compile_graph

        self.trainable = [p for p in loss.parameters() if p.requires_grad]
        graph, inputs = trace(loss, batch, warmup)
        self.other_inputs = inputs[2:]
        # Skips a test of the vector instructions, which takes a third of the compile time.
        options: dict[str, Any] = {"fallback_random": True, "cpp.vec_isa_ok": True}
        if batch.images.is_cuda:
            options["triton.cudagraphs"] = True
        else:
            # Channels last makes what follows a convolution slow on CPUs: 1.3 times the time of a convvae's step, and
            # 2.2 times with a logistic-mixture.
            options["layout_optimization"] = False
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # internal to the compiler
            self.run: Callable[..., Any] = compile_graph(graph, inputs, options)

    def __call__(self, batch: Batch, warmup: Weight) -> Tensor:
        for parameter in self.trainable:
            parameter.grad = None  # so that its memory is reused
        with torch.no_grad():
            means, *gradients = self.run(batch.images, batch.labels, *self.other_inputs)
        for parameter, gradient in zip(self.trainable, gradients, strict=True):
            parameter.grad = gradient
        return means


def trace(loss: Loss, batch: Batch, warmup: Weight) -> tuple[torch.fx.GraphModule, list[Any]]:
    """The graph of a step, (images, labels, weights, buffers, warmup) -> (means, gradients), and its inputs.

    It is traced with fake tensors, which have no values that the graph could depend on or read back.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    named = dict(loss.named_parameters())
    trainable = {name: p for name, p in named.items() if p.requires_grad}
    fixed = {name: p for name, p in named.items() if name not in trainable}
    others, structure = tree_flatten((trainable, {**fixed, **dict(loss.named_buffers())}, warmup))

    def step(images: Tensor, labels: Tensor | None, *others: Any) -> tuple[Tensor | None, ...]:
        trainable, fixed, warmup = tree_unflatten(list(others), structure)
        values = {**trainable, **fixed}
        value, means = torch.func.functional_call(loss, values, (images, labels, warmup))
        gradients = torch.autograd.grad(value, list(trainable.values()), allow_unused=True)
        return (means, *gradients)

    inputs = [batch.images, batch.labels, *others]
    decompositions = {torch.ops.aten.addmm.default: addmm_unfused}
    return make_fx(step, decompositions, tracing_mode="fake")(*inputs), inputs


def addmm_unfused(
    bias: Tensor, x: Tensor, y: Tensor, *, beta: float = 1, alpha: float = 1
) -> Tensor:
    """addmm as a product and an addition, which the compiler fuses with what follows; addmm itself copies the bias to
    all rows first. (The extra dimension keeps the compiler from making x @ y + bias an addmm again.)"""
    return (alpha * torch.mm(x, y)).unsqueeze(0).add(beta * bias).squeeze(0)


@contextmanager
def restored_afterwards(loss: Loss) -> Iterator[None]:
    """Seed the generators inside; restore generators and buffers afterwards."""
    before = [buffer.clone() for buffer in loss.buffers()]
    try:
        with seeded(0, next(loss.parameters()).device):
            yield
    finally:
        for buffer, value in zip(loss.buffers(), before, strict=True):
            buffer.copy_(value)


def copied_gradients(loss: Loss) -> list[Tensor | None]:
    """Copies of the gradients in the memory order that Adam reads: a graph may reuse their memory at its next step."""
    return [None if p.grad is None else in_memory_order(p.grad).clone() for p in loss.parameters()]


def close_enough(a: Tensor | None, b: Tensor | None, limit: float) -> bool:
    """Whether the relative difference in norm is within `limit`; None is close to None alone."""
    if a is None or b is None:
        return a is b
    a, b = a.nan_to_num(), b.nan_to_num()  # such as the KL of a deterministic posterior
    return bool((a - b).norm() <= limit * b.norm() + 1e-6)
