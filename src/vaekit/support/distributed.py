"""Data parallelism: processes that train one model, each on its part of every batch: torchrun -m vaekit train ...

In a single process these functions do nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .errors import UserError


def world_size() -> int:
    """The number of processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The index of this process; only process 0 writes to the run."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_restart() -> bool:
    """Whether torchrun has restarted the processes after one of them failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


@contextmanager
def process_group(device: torch.device) -> Iterator[torch.device]:
    """Join the other processes that torchrun has started, if any; yields the device of this one.

    The backend is NCCL on GPUs, else gloo.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    store, rank, world = next(dist.rendezvous("env://"))
    # torchrun's store outlives a restart, and so do the addresses of ended processes in it.
    store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
    dist.init_process_group(
        backend, store=store, rank=rank, world_size=world, timeout=timedelta(minutes=10)
    )
    try:
        yield device
        if backend == "gloo":
            # Its threads release the tensors of the last call meanwhile; one that does so while the interpreter ends
            # aborts the process.
            dist.barrier()
    finally:
        dist.destroy_process_group()


def local_rows(rows: Tensor) -> Tensor:
    """This process's rows of a batch; one row, of weight 0, where there are fewer rows than processes."""
    if world_size() == 1:
        return rows
    mine = rows.tensor_split(world_size())[rank()]
    return mine if len(mine) else rows[:1]


def local_count(rows: Tensor) -> int:
    """The number of this process's rows of a batch."""
    return len(rows) if world_size() == 1 else len(rows.tensor_split(world_size())[rank()])


_rows_in_batch: ContextVar[int | None] = ContextVar("rows_in_batch", default=None)


@contextmanager
def rows_in_batch(count: int) -> Iterator[None]:
    """Inside, only the first `count` of this process's rows are of the batch; see `local_rows`."""
    token = _rows_in_batch.set(count)
    try:
        yield
    finally:
        _rows_in_batch.reset(token)


def all_reduce_gradients(model: nn.Module, weight: float, request: float) -> float:
    """Replace the gradients by their weighted sum over the processes, and return the sum of their requests.

    `weight`: this process's fraction of the batch; `request`: see training.checkpoint.Checkpointer.
    """
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    together = torch.cat(
        [weight * g.flatten() for g in gradients] + [gradients[0].new_tensor([request])]
    )
    dist.all_reduce(together)
    for gradient, total in zip(
        gradients, together.split([g.numel() for g in gradients] + [1]), strict=False
    ):
        gradient.copy_(total.view(gradient.shape))
    return float(together[-1])


def all_reduce(tensor: Tensor) -> Tensor:
    """Replace a tensor by its sum over the processes."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def all_reduce_number(value: float) -> float:
    """The sum of a number over the processes."""
    if world_size() == 1:
        return value
    return float(all_reduce(torch.tensor([value], device=communication_device())))


def broadcast(tensor: Tensor) -> Tensor:
    """Replace a tensor by that of the first process."""
    if world_size() > 1:
        dist.broadcast(tensor, 0)
    return tensor


def all_gather(tensor: Tensor) -> list[Tensor]:
    """The tensors of all processes, which have one shape."""
    if world_size() == 1:
        return [tensor]
    local = tensor.to(communication_device())
    gathered = [torch.empty_like(local) for _ in range(world_size())]
    dist.all_gather(gathered, local)
    return [each.to(tensor.device) for each in gathered]


def all_gather_latents(z: Tensor) -> Tensor:
    """The codes of the whole batch, (..., B, D), from those of each process. After `all_reduce_gradients` a loss of
    them has the gradient of a single process. Without gradients, z itself: all validate the same images."""
    if world_size() == 1 or not torch.is_grad_enabled():
        return z
    z = z[..., : _rows_in_batch.get(), :]
    count = z.shape[-2]
    sizes = [int(size) for size in all_gather(torch.tensor(count))]
    padded = nn.functional.pad(z.detach(), (0, 0, 0, max(sizes) - count))
    parts = [codes[..., :size, :] for codes, size in zip(all_gather(padded), sizes, strict=True)]
    if count:
        parts[rank()] = z.detach() + sum(sizes) / count * (z - z.detach())
    return torch.cat(parts, dim=-2)


def batch_mean(values: Tensor) -> Tensor:
    """The mean, without its gradient, of values (..., B) over the batch, of which each process has a part. Where no
    gradients are taken, that of this process: all validate the same images."""
    if world_size() == 1 or not torch.is_grad_enabled():
        return values.detach().mean()
    values = values.detach()[..., : _rows_in_batch.get()]
    total, count = all_reduce(torch.stack([values.sum(), values.new_tensor(values.numel())]))
    return total / count


def communication_device() -> torch.device:
    """The device whose tensors the backend can send."""
    if dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def on_rank_zero(work: Callable[[], object]) -> str:
    """Do something in the first process; all return its result as text, or raise its UserError."""
    if world_size() == 1:
        return str(work())
    text = ""
    if rank() == 0:
        try:
            text = f"+{work()}"
        except (UserError, OSError) as error:
            text = f"-{error}"
    content = torch.tensor(list(text.encode()), dtype=torch.uint8, device=communication_device())
    size = broadcast(torch.tensor([len(content)], device=communication_device()))
    content = broadcast(content if text else content.new_zeros(int(size)))
    text = bytes(content.tolist()).decode()
    if text[0] == "-":
        raise UserError(text[1:])
    return text[1:]
