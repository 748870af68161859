"""Where to compute, and how fast a float32 matrix product may be had there."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn

from .errors import UserError

TRAINING_KEEPS = 2**28  # bytes


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """A model in evaluation mode, and afterwards in the mode that it was in."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def find_device(name: str) -> torch.device:
    """auto (CUDA, else Apple's MPS, else the CPU), cpu, cuda, cuda:1, mps. UserError where it is not there."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(
            f"--device {name} is no device; use auto, cpu, cuda, cuda:1 or mps"
        ) from None
    there = {
        "cpu": True,
        "cuda": (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not there.get(device.type, False):
        raise UserError(
            f"--device {name} is not on this machine; --device auto takes what is there"
        )
    return device


@contextlib.contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Noise from `seed` inside; outside, all noise goes on as if none had been drawn.

    Touches the generators of the CPU and of `device` alone: torch.manual_seed would seed those of every GPU.
    """
    device = device or torch.device("cpu")
    before = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        gpu = torch.cuda.get_rng_state(device)
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        gpu = torch.mps.get_rng_state()
        torch.mps.manual_seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(before)
        if device.type == "cuda":
            torch.cuda.set_rng_state(gpu, device)
        elif device.type == "mps":
            torch.mps.set_rng_state(gpu)


@contextlib.contextmanager
def fast_float32(device: torch.device) -> Iterator[None]:
    """Let matrix products take oneDNN's route, twice as fast on some CPUs, where it is float32 still.

    The setting permits bfloat16 inside, which some processors then use: a product checked against float64 decides.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    if matmul_error(device) > 1e-5:
        torch.set_float32_matmul_precision(before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextlib.contextmanager
def memory_kept(limit: int) -> Iterator[Callable[[], None]]:
    """Keep freed memory for the next tensors inside, where the C library is glibc; gives what to call now and then, so
    that no more than `limit` bytes are kept.

    It gives blocks of some megabytes back to the system at once, which then clears each page anew: up to a third of the
    time of work that makes and drops such tensors. What it keeps can break into pieces that fit nothing, and so grow
    by megabytes an image: hence the limit. Afterwards its bounds are those that it comes to by itself at most.
    """
    try:
        library = ctypes.CDLL(None)
        library.mallopt, library.malloc_trim  # noqa: B018
        before = resident()
    except (AttributeError, OSError, TypeError):  # another C library, another system
        yield lambda: None
        return

    def tidy() -> None:
        if resident() - before > limit:
            library.malloc_trim(0)

    trim, from_system = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, whose largest is 2^25
    library.mallopt(trim, 2**27)
    library.mallopt(from_system, 2**25)
    try:
        yield tidy
    finally:
        library.mallopt(trim, 2**26)
        library.malloc_trim(0)


@contextlib.contextmanager
def fast_training(device: torch.device) -> Iterator[Callable[[], None]]:
    """What a training computes inside: `fast_float32`, and `memory_kept`; gives what to call after each epoch."""
    with fast_float32(device), memory_kept(TRAINING_KEEPS) as tidy:
        yield tidy


def resident() -> int:
    """Bytes of memory that this process has, on Linux."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * mmap.PAGESIZE


def matmul_error(device: torch.device) -> float:
    """Largest error of a float32 product, relative to its largest element (float32 proper: below 1e-6)."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(256, 256, generator=generator) for _ in range(2))
    exact = a.double() @ b.double()
    product = (a.to(device) @ b.to(device)).cpu()
    return float((product - exact).abs().max() / exact.abs().max())
