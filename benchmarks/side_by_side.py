"""Interleaved timing of training loops, so that other load on the machine affects all alike, and their table."""

from __future__ import annotations

import argparse
import dataclasses
import platform
import statistics
import time
from collections.abc import Iterator

import torch

import vaekit
from vaekit.data.dataset import ResolvedBinarisation
from vaekit.model.objectives import Objective
from vaekit.settings.training import TrainConfig
from vaekit.support.devices import fast_training
from vaekit.training.learner import Learner
from vaekit.training.loop import train_epochs


def training_loop(
    model: vaekit.VAE,
    data: vaekit.Dataset,
    config: TrainConfig,
    objective: Objective,
    binarisation: ResolvedBinarisation,
) -> Iterator[None]:
    """vaekit's training loop, one epoch at each `next`; validation is reduced to one image."""
    data = dataclasses.replace(data, validation=data.validation[:1])
    device = torch.device("cpu")
    loop = train_epochs(Learner(model, config, device), data, objective, binarisation)
    while True:
        with fast_training(device):
            next(loop)
        yield


def parse_rounds(description: str, default: int) -> int:
    """The --rounds of the command line."""
    parser = argparse.ArgumentParser(description=description.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=default)
    return parser.parse_args().rounds


def compare(loops: dict[str, Iterator[None]], images: int, rounds: int) -> None:
    """Print the images/s of loops that train on `images` images at each `next`, and the ratios to the first loop."""
    speeds: dict[str, list[float]] = {name: [] for name in loops}
    for round_ in range(rounds + 1):
        for name, loop in loops.items():
            started = time.perf_counter()
            next(loop)
            if round_:  # the first is a warm-up
                speeds[name].append(images / (time.perf_counter() - started))

    print(f"{time.strftime('%Y-%m-%d')}, {platform.processor() or platform.machine()}, ", end="")
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, {rounds} rounds\n")
    first = next(iter(speeds))
    print(f"| loop | images/s (median) | lowest | highest | ratio to {first} |")
    print("|---|---|---|---|---|")
    baseline = statistics.median(speeds[first])
    for name, values in speeds.items():
        median = statistics.median(values)
        extremes = f"{min(values):,.0f} | {max(values):,.0f}"
        print(f"| {name} | {median:,.0f} | {extremes} | {median / baseline:.2f} |")
