"""Several processes that train one model, each on its part of every batch: torchrun -m vaekit train ...

A process alone needs none of this: everything here then does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .errors import UserError


def count() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def number() -> int:
    """Which of them this is, from 0, which alone writes to the run."""
    return dist.get_rank() if dist.is_initialized() else 0


def restarted() -> bool:
    """Whether torchrun starts the processes again, after one of them has failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


@contextmanager
def joined(device: torch.device) -> Iterator[torch.device]:
    """Join the other processes that torchrun has started, if it has; gives the device of this one.

    Over gloo, NCCL where the devices are GPUs.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    store, rank, world = next(dist.rendezvous("env://"))
    # torchrun keeps its store over a restart, and with it the addresses of processes that are no more.
    store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
    dist.init_process_group(
        backend, store=store, rank=rank, world_size=world, timeout=timedelta(minutes=10)
    )
    try:
        yield device
    finally:
        dist.destroy_process_group()


def part(rows: Tensor) -> Tensor:
    """This process's rows of a batch; one, of no weight, where there are fewer rows than processes."""
    if count() == 1:
        return rows
    mine = rows.tensor_split(count())[number()]
    return mine if len(mine) else rows[:1]


def weight(rows: Tensor) -> int:
    """How many rows of a batch are this process's."""
    return len(rows) if count() == 1 else len(rows.tensor_split(count())[number()])


def join(model: nn.Module, share: float, wish: float) -> float:
    """Make the gradients those of the whole batch, of which this process had a share; gives the sum of all wishes."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    together = torch.cat(
        [share * g.flatten() for g in gradients] + [gradients[0].new_tensor([wish])]
    )
    dist.all_reduce(together)
    for gradient, found in zip(
        gradients, together.split([g.numel() for g in gradients] + [1]), strict=False
    ):
        gradient.copy_(found.view(gradient.shape))
    return float(together[-1])


def add_up(tensor: Tensor) -> Tensor:
    """Makes a tensor the sum of everybody's."""
    if count() > 1:
        dist.all_reduce(tensor)
    return tensor


def agree(wish: float) -> float:
    """The sum of everybody's wishes."""
    return wish if count() == 1 else float(add_up(torch.tensor([wish], device=home())))


def share(tensor: Tensor) -> Tensor:
    """Makes a tensor that of the first process."""
    if count() > 1:
        dist.broadcast(tensor, 0)
    return tensor


def gather(tensor: Tensor) -> list[Tensor]:
    """Everybody's tensors, which are of one shape."""
    if count() == 1:
        return [tensor]
    there = tensor.to(home())
    found = [torch.empty_like(there) for _ in range(count())]
    dist.all_gather(found, there)
    return [each.to(tensor.device) for each in found]


def whole(z: Tensor) -> Tensor:
    """The codes of the whole batch, (..., B, D), of those that each process has: what is computed of them has, after
    `join`, the gradient that it has in one process. Without gradients, z itself: all validate the same images."""
    if count() == 1 or not torch.is_grad_enabled():
        return z
    sizes = [int(size) for size in gather(torch.tensor(z.shape[-2]))]
    padded = nn.functional.pad(z.detach(), (0, 0, 0, max(sizes) - z.shape[-2]))
    parts = [found[..., :size, :] for found, size in zip(gather(padded), sizes, strict=True)]
    scale = sum(sizes) / z.shape[-2]
    parts[number()] = z.detach() + scale * (z - z.detach())
    return torch.cat(parts, dim=-2)


def home() -> torch.device:
    """Where tensors must lie to be sent."""
    if dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def first(work: Callable[[], object]) -> str:
    """Have the first process do something, and tell all what it came to, as text; its UserError is theirs too."""
    if count() == 1:
        return str(work())
    text = ""
    if number() == 0:
        try:
            text = f"+{work()}"
        except (UserError, OSError) as error:
            text = f"-{error}"
    content = torch.tensor(list(text.encode()), dtype=torch.uint8, device=home())
    size = share(torch.tensor([len(content)], device=home()))
    content = share(content if text else content.new_zeros(int(size)))
    text = bytes(content.tolist()).decode()
    if text[0] == "-":
        raise UserError(text[1:])
    return text[1:]
