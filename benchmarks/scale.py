"""Speed of data-parallel training with several processes, and the error of a model of compute and communication.

    python benchmarks/scale.py [--models vae vampprior] [--processes 2] [--rounds 5]

One process with all threads is compared with several of one thread each over loopback, at a total batch of 100 and at
100 per process. In each round the processes also run the two parts of a step separately: the computation without the
all-reduce of the gradients, and the all-reduce.
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
from vaekit.support import distributed
from vaekit.support.devices import fast_training
from vaekit.training.learner import Learner
from vaekit.training.loop import train_epochs

CPU = torch.device("cpu")
STEPS = 40


def worker(name: str, batch: int, rounds: int) -> None:
    """Print the times of a step and of its two parts as JSON, from rank 0."""
    data = vaekit.load_data("mnist")
    data = dataclasses.replace(
        data, train=data.train[: batch * STEPS], validation=data.validation[:1]
    )
    with distributed.process_group(CPU), fast_training(CPU):
        all_reduce = distributed.all_reduce_gradients
        step, computing, summing = list[float](), list[float](), list[float]()
        for round_ in range(rounds + 1):
            for kind, times in (("step", step), ("computing", computing)):
                distributed.all_reduce_gradients = (
                    all_reduce if kind == "step" else lambda model, weight, request: request
                )
                model = vaekit.build(name, data)
                config = dataclasses.replace(
                    MODELS[name].training, epochs=1, batch_size=batch, compile="no", kl_warmup=0.0
                )
                learner = Learner(model, config, CPU)
                ((epoch, _),) = train_epochs(
                    learner, data, objective_of(model.blueprint), "dynamic"
                )
                times.append(batch / epoch.images_per_second if round_ else 0.0)
            summing.append(
                seconds(partial(all_reduce, model, 1.0, 0.0))
                if distributed.world_size() > 1
                else 0.0
            )
        if distributed.rank() == 0:
            medians = [statistics.median(times[1:]) for times in (step, computing, summing)]
            print(json.dumps([*medians, 4 * sum(p.numel() for p in model.parameters())]))


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    for _ in range(STEPS):
        work()
    return (time.perf_counter() - started) / STEPS


def measure(name: str, processes: int, threads: int, batch: int, rounds: int) -> list[float]:
    """Seconds per step, of its computation and of its all-reduce; bytes of the gradients."""
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
    args = parser.parse_args()
    if args.worker:
        return worker(args.worker[0], int(args.worker[1]), args.rounds)
    n, cores = args.processes, torch.get_num_threads()
    print(f"{time.strftime('%Y-%m-%d')}, {processor()}, {cores} cores, torch {torch.__version__}\n")
    columns = [
        "model",
        "batch",
        f"1 process, {cores} threads: ms",
        f"{n} processes: ms",
        f"images/s: 1 process, {n} processes",
    ]
    columns += ["computing, ms", "summing, ms", "MB", "predicted, ms", "error"]
    print_row(columns)
    print_row(["---"] * len(columns))
    for name in args.models:
        for batch in (100, 100 * n):
            one, *_ = measure(name, 1, cores, batch, args.rounds)
            several, computing, summing, size = measure(name, n, cores // n, batch, args.rounds)
            predicted = computing + summing
            times = [f"{1e3 * t:.2f}" for t in (one, several, computing, summing, predicted)]
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
                    f"{several / predicted - 1:+.0%}",
                ]
            )
    return None


if __name__ == "__main__":
    main()
