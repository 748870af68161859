"""What keeping its state, for --resume, takes of a training at its default settings.

    python benchmarks/saving.py [--models vae hvampprior] [--epochs 30]

Of a whole `train` on MNIST: the time inside Keeper.keep (looking for NaN, copying, hashing, writing, fsync), and what
asking the clock at each step takes, measured apart over 100,000 steps of nothing.
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
from vaekit.training.checkpoint import Keeper, Signals
from vaekit.training.learner import Learner

STEPS = 100_000


class Clocked:
    """Takes the time of each saving while it is entered."""

    def __enter__(self) -> list[float]:
        self.keep, taken = Keeper.keep, list[float]()

        def keep(keeper: Keeper, learner: Learner) -> None:
            started = time.perf_counter()
            self.keep(keeper, learner)
            taken.append(time.perf_counter() - started)

        Keeper.keep = keep  # type: ignore[method-assign,assignment]
        return taken

    def __exit__(self, *error: object) -> None:
        Keeper.keep = self.keep  # type: ignore[method-assign]


def asking(run: Run, learner: Learner) -> float:
    """Seconds that a step takes to find out whether it is time to save."""
    keeper = Keeper(run, 1e6, Signals())
    started = time.perf_counter()
    for _ in keeper.track(learner, [()] * STEPS):  # type: ignore[list-item]
        pass
    return (time.perf_counter() - started) / STEPS


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--epochs", type=int, default=30)
    given = parser.parse_args()
    print(
        f"{time.strftime('%Y-%m-%d')}, {processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"{given.epochs} epochs\n"
    )
    print_row(
        ["model", "training, s", "states", "MB", "s a state", "asking, us a step", "of the time"]
    )
    print_row(["---"] * 7)
    data = vaekit.load_data("mnist")
    for name in given.models:
        model = vaekit.build(name, data)
        with tempfile.TemporaryDirectory() as folder, Clocked() as taken:
            started = time.perf_counter()
            run = vaekit.train(
                model, data, out=Path(folder) / "run", epochs=given.epochs, progress=False
            )
            seconds = time.perf_counter() - started
            size = (run.path / STATE).stat().st_size
            each = asking(run, Learner(model, run.training, torch.device("cpu")))
            steps = given.epochs * run.training.steps(len(data.train))
        share = (sum(taken) + steps * each) / seconds
        print_row(
            [
                name,
                f"{seconds:.0f}",
                str(len(taken)),
                f"{size / 1e6:.1f}",
                f"{sum(taken) / len(taken):.3f}",
                f"{1e6 * each:.1f}",
                f"{share:.2%}",
            ]
        )


if __name__ == "__main__":
    main()
