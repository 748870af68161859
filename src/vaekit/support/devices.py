"""Devices, seeded generators, fast float32 matrix products, and the memory of the C library."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from .errors import UserError

TRAINING_MEMORY_LIMIT = 2**28  # bytes of freed memory
of_thread = threading.local()  # its `generator`, inside own_generator
DRAWING = {
    *(torch.rand, torch.randn, torch.randint, torch.randperm, torch.normal, torch.bernoulli),
    *(torch.multinomial, torch.Tensor.uniform_, torch.Tensor.normal_, torch.Tensor.random_),
}


@contextlib.contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode inside, and restore its mode afterwards."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def resolve_device(name: str) -> torch.device:
    """The device of a name: auto (CUDA, else Apple's MPS, else the CPU), cpu, cuda, cuda:1, mps. Raises UserError where
    it is not available."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(
            f"--device {name} is not a device; use auto, cpu, cuda, cuda:1 or mps"
        ) from None
    available = {
        "cpu": True,
        "cuda": (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not available.get(device.type, False):
        raise UserError(f"--device {name} is not available on this machine; use --device auto")
    return device


@contextlib.contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Seed the generators inside, and restore their states afterwards.

    Only those of the CPU and of `device`: torch.manual_seed would seed those of every GPU. Inside `own_generator`, that
    of the thread instead of the CPU's.
    """
    device = device or torch.device("cpu")
    generator = getattr(of_thread, "generator", torch.default_generator)
    before = generator.get_state()
    generator.manual_seed(seed)
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
        generator.set_state(before)
        if device.type == "cuda":
            torch.cuda.set_rng_state(gpu, device)
        elif device.type == "mps":
            torch.mps.set_rng_state(gpu)


class GivesGenerator(TorchFunctionMode):
    """Gives the thread's generator to every function that draws numbers on the CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in DRAWING:
            kwargs = {"generator": of_thread.generator} | kwargs
        return func(*args, **kwargs)


@contextlib.contextmanager
def own_generator() -> Iterator[None]:
    """Let this thread draw from a generator of its own inside, and `seeded` seed that one.

    torch's distributions draw from the generator that all threads of a process share, so what one thread draws after
    seeding it would depend on the others. For the CPU only.
    """
    of_thread.generator = torch.Generator()
    of_thread.generator.seed()
    try:
        with GivesGenerator():
            yield
    finally:
        del of_thread.generator


@contextlib.contextmanager
def fast_float32(device: torch.device) -> Iterator[None]:
    """Let oneDNN compute matrix products, twice as fast on some CPUs, where that is still float32.

    The setting permits bfloat16, which some processors then use: a product compared with float64 decides.
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
def keep_freed_memory(limit: int) -> Iterator[Callable[[], None]]:
    """Let glibc keep freed memory for later tensors inside; yields a function, to call regularly, that returns memory
    above `limit` bytes to the system.

    By default glibc returns blocks of some megabytes at once, and the system clears each page again: up to a third of
    the time of work that allocates and frees such tensors. Memory that it keeps can become fragmented, and so grow by
    megabytes per image: hence the limit. Afterwards the thresholds are the largest that glibc itself would choose.
    """
    try:
        library = ctypes.CDLL(None)
        library.mallopt, library.malloc_trim  # noqa: B018
        before = resident_bytes()
    except (AttributeError, OSError, TypeError):  # another C library, another system
        yield lambda: None
        return

    def trim_memory() -> None:
        if resident_bytes() - before > limit:
            library.malloc_trim(0)

    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD (2^25 at most)
    library.mallopt(trim_threshold, 2**27)
    library.mallopt(mmap_threshold, 2**25)
    try:
        yield trim_memory
    finally:
        library.mallopt(trim_threshold, 2**26)
        library.malloc_trim(0)


@contextlib.contextmanager
def fast_training(device: torch.device) -> Iterator[Callable[[], None]]:
    """`fast_float32` and `keep_freed_memory` for a training; yields the function to call after each epoch."""
    with fast_float32(device), keep_freed_memory(TRAINING_MEMORY_LIMIT) as trim_memory:
        yield trim_memory


def resident_bytes() -> int:
    """Resident memory of this process in bytes, on Linux."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * mmap.PAGESIZE


def bfloat16_slowdown() -> float:
    """The time of a matrix product in bfloat16 on the CPU, relative to that in float32: under 1 where the processor has
    instructions for it, else from 3 (AVX-512) to 100."""
    seconds = []
    for dtype in (torch.float32, torch.bfloat16):
        a, times = torch.ones(256, 256, dtype=dtype), []
        for _ in range(7):
            started = time.perf_counter()
            a @ a
            times.append(time.perf_counter() - started)
        seconds.append(min(times))
    return seconds[1] / seconds[0]


def matmul_error(device: torch.device) -> float:
    """Maximum error of a float32 product, relative to its largest element (below 1e-6 for true float32)."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(256, 256, generator=generator) for _ in range(2))
    exact = a.double() @ b.double()
    product = (a.to(device) @ b.to(device)).cpu()
    return float((product - exact).abs().max() / exact.abs().max())


def describe_machine(device: torch.device) -> str:
    """Cores, memory and GPU of this machine in words."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    words = [f"{cores} core{'s' * (cores != 1)}"]
    with contextlib.suppress(AttributeError, ValueError, OSError):  # not on Windows
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        words.append(f"{memory / 2**30:.1f} GB of memory")
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        words.append(f"{gpu.name} with {gpu.total_memory / 2**30:.0f} GB")
    else:
        words.append("GPU of Apple" if device.type == "mps" else "no GPU in use")
    return ", ".join(words)


def epoch_totals(device: torch.device) -> torch.Tensor:
    """Zeros in which to sum over an epoch: float64, except on MPS, which lacks it."""
    return torch.zeros(3, device=device, dtype=None if device.type == "mps" else torch.float64)
