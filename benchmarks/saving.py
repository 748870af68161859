"""Cost of saving the training state for --resume, as a share of a training at default settings.

    python benchmarks/saving.py [--models vae hvampprior] [--epochs 30]

For a complete `train` on MNIST: the time inside Checkpointer.save (checking for NaN, copying, hashing, writing, fsync),
and the time to read the clock at each step, measured separately over 100,000 empty steps.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from speed import print_row, processor

import vaekit
from vaekit.runs.directory import STATE, Run
from vaekit.settings.catalog import MODELS
from vaekit.training.checkpoint import Checkpointer, StopSignals
from vaekit.training.learner import Learner

STEPS = 100_000


class SaveTimer:
    """A context manager that records the seconds of every Checkpointer.save."""

    def __enter__(self) -> list[float]:
        self.save, times = Checkpointer.save, list[float]()

        def timed_save(checkpointer: Checkpointer, learner: Learner) -> None:
            started = time.perf_counter()
            self.save(checkpointer, learner)
            times.append(time.perf_counter() - started)

        Checkpointer.save = timed_save  # type: ignore[method-assign,assignment]
        return times

    def __exit__(self, *error: object) -> None:
        Checkpointer.save = self.save  # type: ignore[method-assign]


def clock_seconds(run: Run, learner: Learner) -> float:
    """Seconds per step to check whether a state is due."""
    checkpointer = Checkpointer(run, 1e6, StopSignals())
    started = time.perf_counter()
    for _ in checkpointer.track(learner, [()] * STEPS):  # type: ignore[list-item]
        pass
    return (time.perf_counter() - started) / STEPS


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--epochs", type=int, default=30)
    args = parser.parse_args()
    print(
        f"{time.strftime('%Y-%m-%d')}, {processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"{args.epochs} epochs\n"
    )
    print_row(
        [
            "model",
            "training, s",
            "states",
            "MB",
            "s per state",
            "clock, us per step",
            "share of the time",
        ]
    )
    print_row(["---"] * 7)
    data = vaekit.load_data("mnist")
    for name in args.models:
        model = vaekit.build(name, data)
        with tempfile.TemporaryDirectory() as folder, SaveTimer() as times:
            started = time.perf_counter()
            run = vaekit.train(
                model, data, out=Path(folder) / "run", epochs=args.epochs, progress=False
            )
            seconds = time.perf_counter() - started
            size = (run.path / STATE).stat().st_size
            clock = clock_seconds(run, Learner(model, run.training, torch.device("cpu")))
            steps = run.training.total_steps(len(data.train))
        share = (sum(times) + steps * clock) / seconds
        print_row(
            [
                name,
                f"{seconds:.0f}",
                str(len(times)),
                f"{size / 1e6:.1f}",
                f"{sum(times) / len(times):.3f}",
                f"{1e6 * clock:.1f}",
                f"{share:.2%}",
            ]
        )


if __name__ == "__main__":
    main()
