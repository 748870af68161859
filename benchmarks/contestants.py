"""One contestant of the race in a process of its own, for `speed.py`.

    python benchmarks/contestants.py vaekit dense --steps 200

It builds and warms up, compilation included, prints "ready" and how many weights it has, and then answers each line it
reads: "memory" with the most bytes it has ever had resident, any other with the seconds of one short epoch.
Libraries are imported where they are used alone, so that the memory is a contestant's own.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import vaekit

# The settings of a training that make each of vaekit's contestants.
VAEKIT: dict[str, dict[str, Any]] = {
    "vaekit": {"compile": "yes"},
    "plain": {"compile": "no"},
    "bfloat16": {"compile": "yes", "precision": "bfloat16"},
}
# What a contestant needs besides vaekit's own dependencies.
NEEDS = {"jax": "jax", "pythae": "pythae"}


@dataclass(frozen=True)
class Task:
    """What every contestant does. `dynamic`: the bits are drawn anew at each step; the pixels are grey elsewhere, and
    always with the tutorial and pythae, whose users do so."""

    batch: int
    rate: float
    dynamic: bool
    others: tuple[str, ...]

    @property
    def contestants(self) -> tuple[str, ...]:
        return (*VAEKIT, *self.others)


TASKS = {
    "dense": Task(100, 1e-3, True, ("tutorial", "pythae", "jax")),
    "conv": Task(256, 1e-4, False, ("eager", "jax")),
    "vampprior": Task(100, 5e-4, True, ("eager", "pythae", "jax")),
    "hvampprior": Task(100, 5e-4, True, ("eager", "pythae", "jax")),
    "gmvae": Task(100, 1e-3, True, ("eager", "jax")),
}


def mnist(count: int) -> tuple[np.ndarray, np.ndarray]:
    """So many training images (N, 28, 28), uint8, and their labels, from the start again after 50,000."""
    folder = Path(vaekit.__file__).parent / "data" / "mnist"
    with gzip.open(folder / "train-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)
    with gzip.open(folder / "train-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8)
    rows = np.arange(count) % 50_000
    return images[rows], labels[rows].astype(np.int64)


def start(name: str, model: str, steps: int) -> tuple[int, Iterator[Any]]:
    """How many weights a contestant has, and its loop, an epoch at each `next`."""
    images, labels = mnist(steps * TASKS[model].batch)
    if name == "jax":
        import in_jax

        return in_jax.train_epochs(model, images)
    if name == "pythae":
        import in_pythae

        return in_pythae.train_epochs(model, images, labels)
    import in_torch

    if name == "tutorial":
        return in_torch.tutorial_epochs(images, labels)
    if name == "eager":
        return in_torch.eager_epochs(model, images)
    return in_torch.vaekit_epochs(model, images, labels, VAEKIT[name])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("name", choices=[*VAEKIT, "tutorial", "eager", *NEEDS])
    parser.add_argument("model", choices=TASKS)
    parser.add_argument("--steps", type=int, default=200)
    given = parser.parse_args()
    if given.name not in TASKS[given.model].contestants:
        parser.error(f"{given.name} does not race with {given.model}")

    def answer(*words: object) -> None:
        print(*words, file=sys.__stdout__, flush=True)

    with contextlib.redirect_stdout(sys.stderr):  # what libraries print
        weights, epochs = start(given.name, given.model, given.steps)
        for _ in range(2):
            next(epochs)
        answer("ready", weights)
        for line in sys.stdin:
            if line.strip() == "memory":
                answer(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
            else:
                started = time.perf_counter()
                next(epochs)
                answer(time.perf_counter() - started)


if __name__ == "__main__":
    main()
