"""What a second process brings, and whether a model of compute against communication foresees it.

    python benchmarks/scale.py [--models vae vampprior] [--processes 2] [--rounds 5]

One process with all threads, against several with a thread each, over loopback; the same batch of 100, and one of 100 a
process. In each round the processes also do a step's parts alone: its computation without the sum of gradients, and
that sum.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from speed import print_row, processor

import vaekit
from vaekit.model.build import objective_of
from vaekit.settings.catalog import MODELS
from vaekit.support import distributed as ranks
from vaekit.support.devices import fast_training
from vaekit.training.learner import Learner
from vaekit.training.loop import train_epochs

CPU = torch.device("cpu")
STEPS = 40


def worker(name: str, batch: int, rounds: int) -> None:
    """Times of a step, each part alone, as JSON from the first process."""
    data = vaekit.load_data("mnist")
    data = dataclasses.replace(
        data, train=data.train[: batch * STEPS], validation=data.validation[:1]
    )
    with ranks.joined(CPU), fast_training(CPU):
        join = ranks.join
        whole, alone, summing = list[float](), list[float](), list[float]()
        for turn in range(rounds + 1):
            for kind, times in (("whole", whole), ("alone", alone)):
                ranks.join = join if kind == "whole" else lambda model, share, wish: wish
                model = vaekit.build(name, data)
                config = dataclasses.replace(
                    MODELS[name].training, epochs=1, batch_size=batch, compile="no", kl_warmup=0.0
                )
                learner = Learner(model, config, CPU)
                ((epoch, _),) = train_epochs(
                    learner, data, objective_of(model.blueprint), "dynamic"
                )
                times.append(batch / epoch.images_per_second if turn else 0.0)
            summing.append(seconds(partial(join, model, 1.0, 0.0)) if ranks.count() > 1 else 0.0)
        if ranks.number() == 0:
            found = [statistics.median(times[1:]) for times in (whole, alone, summing)]
            print(json.dumps([*found, 4 * sum(p.numel() for p in model.parameters())]))


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    for _ in range(STEPS):
        work()
    return (time.perf_counter() - started) / STEPS


def measured(name: str, processes: int, threads: int, batch: int, rounds: int) -> list[float]:
    """Seconds of a step, of its computation, of its sum of gradients; bytes of these."""
    script = [str(Path(__file__)), "--worker", name, str(batch), "--rounds", str(rounds)]
    command = [sys.executable, *script]
    if processes > 1:
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
        command = [sys.executable, *launch, str(processes), *script]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--models", nargs="+", choices=MODELS, default=["vae", "convvae", "vampprior"]
    )
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--worker", nargs=2, metavar=("MODEL", "BATCH"))
    given = parser.parse_args()
    if given.worker:
        return worker(given.worker[0], int(given.worker[1]), given.rounds)
    n, cores = given.processes, torch.get_num_threads()
    print(f"{time.strftime('%Y-%m-%d')}, {processor()}, {cores} cores, torch {torch.__version__}\n")
    columns = [
        "model",
        "batch",
        f"1 process, {cores} threads: ms",
        f"{n} processes: ms",
        "images/s of one, of all",
    ]
    columns += ["computing, ms", "summing, ms", "MB", "foreseen, ms", "off by"]
    print_row(columns)
    print_row(["---"] * len(columns))
    for name in given.models:
        for batch in (100, 100 * n):
            one, *_ = measured(name, 1, cores, batch, given.rounds)
            several, alone, summing, size = measured(name, n, cores // n, batch, given.rounds)
            foreseen = alone + summing
            times = [f"{1e3 * t:.2f}" for t in (one, several, alone, summing, foreseen)]
            speeds = f"{batch / one:,.0f}, {batch / several:,.0f}"
            print_row(
                [
                    name,
                    str(batch),
                    *times[:2],
                    speeds,
                    *times[2:4],
                    f"{size / 1e6:.1f}",
                    times[4],
                    f"{several / foreseen - 1:+.0%}",
                ]
            )
    return None


if __name__ == "__main__":
    main()
