"""A step's loss and its gradients as one compiled graph, which is faster than torch's calls one by one."""

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
from .step import Loss, flat

# Relative; what a wrong graph gives differs by far more.
AGREES = {"float32": 1e-3, "bfloat16": 5e-2}

Backward = Callable[[Batch, Weight], Tensor]


def compiled(
    loss: Loss, batch: Batch, warmup: Weight, say: Callable[[str], None] = lambda text: None
) -> Backward:
    """What `loss.backward` does, by one graph for all batches of the size of `batch`; a batch of another size goes the
    plain way, as all do where there is no compiler, or where what it makes is wrong. Then that is said.

    The noise is that of the plain way, so both give the same numbers but for rounding.
    """
    say("compiling the step, once ...")
    try:
        graph = Graph(loss, batch, warmup)
        with unchanged(loss):
            plain = [loss.backward(batch, warmup), *gradients(loss)]
        with unchanged(loss):
            found = [graph(batch, warmup), *gradients(loss)]
        limit = AGREES[loss.precision]
        if not all(agree(a, b, limit) for a, b in zip(found, plain, strict=True)):
            raise RuntimeError("what the compiler made gives other gradients")
    except Exception as error:  # of any compiler, for whatever reason: there is another way
        reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
        say(
            f"note: the step is not compiled, so training is slower: {reason} (--compile no leaves it out)"
        )
        return loss.backward
    finally:
        loss.zero_grad()

    def backward(now: Batch, warmup: Weight) -> Tensor:
        way = graph if now.images.shape == batch.images.shape else loss.backward
        return way(now, warmup)

    return backward


class Graph:
    """The compiled step: sets the gradients of a batch and returns its means, as `Loss.backward` does.

    It reads the weights, and the tensors of `warmup`, where they were when it was made: they may change in place alone.
    """

    def __init__(self, loss: Loss, batch: Batch, warmup: Weight) -> None:
        from torch._inductor import compile as compile_graph

        self.learned = [p for p in loss.parameters() if p.requires_grad]
        graph, inputs = trace(loss, batch, warmup)
        self.rest = inputs[2:]
        # What the processor can do is known; trying it out with the compiler takes a third of the time.
        options: dict[str, Any] = {"fallback_random": True, "cpp.vec_isa_ok": True}
        if batch.images.is_cuda:
            options["triton.cudagraphs"] = True
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the compiler's about itself
            self.run: Callable[..., Any] = compile_graph(graph, inputs, options)

    def __call__(self, batch: Batch, warmup: Weight) -> Tensor:
        for parameter in self.learned:
            parameter.grad = None  # so that its memory serves again
        with torch.no_grad():
            means, *found = self.run(batch.images, batch.labels, *self.rest)
        for parameter, gradient in zip(self.learned, found, strict=True):
            parameter.grad = gradient
        return means


def trace(loss: Loss, batch: Batch, warmup: Weight) -> tuple[torch.fx.GraphModule, list[Any]]:
    """torch's calls of a step as a graph: images, labels, and all that it reads -> means and gradients; with its
    inputs. They are recorded with tensors that have no numbers: nothing can depend on these, or read them back."""
    from torch.fx.experimental.proxy_tensor import make_fx

    named = dict(loss.named_parameters())
    learned = {name: p for name, p in named.items() if p.requires_grad}
    fixed = {name: p for name, p in named.items() if name not in learned}
    rest, structure = tree_flatten((learned, {**fixed, **dict(loss.named_buffers())}, warmup))

    def step(images: Tensor, labels: Tensor | None, *rest: Any) -> tuple[Tensor | None, ...]:
        learned, fixed, warmup = tree_unflatten(list(rest), structure)
        values = {**learned, **fixed}
        value, means = torch.func.functional_call(loss, values, (images, labels, warmup))
        wanted = list(learned.values())
        return (means, *torch.autograd.grad(value, wanted, allow_unused=True))

    inputs = [batch.images, batch.labels, *rest]
    table = {torch.ops.aten.addmm.default: add_after}
    return make_fx(step, table, tracing_mode="fake")(*inputs), inputs


def add_after(bias: Tensor, x: Tensor, y: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """A dense layer's bias added to the product, where the compiler joins it to what follows: in the layer itself it is
    copied to all rows first. (As a row, since the compiler would put x @ y + bias together again.)"""
    return (alpha * torch.mm(x, y)).unsqueeze(0).add(beta * bias).squeeze(0)


@contextmanager
def unchanged(loss: Loss) -> Iterator[None]:
    """Noise from one seed inside; afterwards noise and buffers as before."""
    before = [buffer.clone() for buffer in loss.buffers()]
    try:
        with seeded(0, next(loss.parameters()).device):
            yield
    finally:
        for buffer, value in zip(loss.buffers(), before, strict=True):
            buffer.copy_(value)


def gradients(loss: Loss) -> list[Tensor | None]:
    """Copies, since a graph may write into the same memory at its next step; in the order that Adam reads them in."""
    return [None if p.grad is None else flat(p.grad).clone() for p in loss.parameters()]


def agree(a: Tensor | None, b: Tensor | None, limit: float) -> bool:
    if a is None or b is None:
        return a is b
    a, b = a.nan_to_num(), b.nan_to_num()  # the KL of a deterministic posterior, say
    return bool((a - b).norm() <= limit * b.norm() + 1e-6)
