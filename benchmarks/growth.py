"""Scaling of vaekit's step time with batch size, latent dimensions, samples, image side and number of images.

    python benchmarks/growth.py [--rounds 5] [--out docs/results/growth.png]

The model is `vae` at its defaults, uncompiled, on MNIST; images of other sizes are noise. The values of a series are
timed in turn, one short epoch each. The slope is fitted to the second half of the points on logarithmic axes; at 1, the
time is proportional.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from in_torch import dataset
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from tasks import mnist

import vaekit
from vaekit.pictures import save
from vaekit.pictures.style import BLUE
from vaekit.settings.catalog import MODELS
from vaekit.support.devices import fast_training
from vaekit.support.errors import require_folder
from vaekit.training.learner import Learner
from vaekit.training.loop import train_epochs

BATCH, STEPS = 100, 20
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Setting:
    """The sizes of one training to time."""

    batch: int = BATCH
    latent: int = 20
    samples: int | None = None  # of iwae; None is the ELBO
    side: int = 28
    images: int | None = None  # per epoch; STEPS batches by default

    @property
    def count(self) -> int:
        return self.images or STEPS * self.batch

    def epochs(self) -> Iterator[float]:
        """Training seconds of each epoch."""
        if self.side == 28:
            data = dataset(*mnist(self.count))
        else:
            size = (self.count, self.side, self.side)
            noise = np.random.default_rng(0).integers(0, 256, size, np.uint8)
            data = dataset(noise, np.zeros(self.count, np.int64))
        model = vaekit.build("vae", data, latent_dim=self.latent)
        objective = vaekit.elbo() if self.samples is None else vaekit.iwae(self.samples)
        config = replace(
            MODELS["vae"].training,
            epochs=2**31,
            batch_size=self.batch,
            schedule="constant",
            kl_warmup=0.0,
            compile="no",
        )
        for epoch, _ in train_epochs(Learner(model, config, CPU), data, objective, "dynamic"):
            yield self.count / epoch.images_per_second


@dataclass(frozen=True)
class Series:
    """Settings that differ in one value."""

    title: str
    unit: str
    settings: dict[int, Setting]

    def times(self, rounds: int) -> list[float]:
        """Median time of each setting: milliseconds per step, or seconds per epoch."""
        loops = [setting.epochs() for setting in self.settings.values()]
        for loop in loops:
            next(loop)
        times = [[next(loop) for loop in loops] for _ in range(rounds)]
        medians = [statistics.median(column) for column in zip(*times, strict=True)]
        return medians if self.unit == "s per epoch" else [1e3 * t / STEPS for t in medians]


MS = "ms per step"
SERIES = [
    Series("batch size", MS, {n: Setting(batch=n) for n in (25, 50, 100, 200, 400, 800)}),
    Series("latent dimensions", MS, {2**n: Setting(latent=2**n) for n in range(1, 10)}),
    Series("samples K (iwae)", MS, {2**n: Setting(samples=2**n) for n in range(7)}),
    Series("image side, pixels", MS, {n: Setting(side=n) for n in (14, 20, 28, 40, 56, 80, 112)}),
    Series(
        "training images",
        "s per epoch",
        {n: Setting(images=n) for n in (1000, 2000, 5000, 10_000, 20_000, 50_000)},
    ),
]


def slope(values: Sequence[float], times: Sequence[float]) -> float:
    """Slope of the second half of the points on logarithmic axes."""
    half = len(values) // 2
    return float(np.polyfit(np.log(values[half:]), np.log(times[half:]), 1)[0])


def draw(axes: Axes, series: Series, times: Sequence[float]) -> None:
    values = list(series.settings)
    axes.plot(values, times, color=BLUE, marker=".")
    axes.set(xscale="log", yscale="log", xlabel=series.title)
    axes.set_title(f"{series.unit}, slope {slope(values, times):.2f}", fontsize=10)
    ticks = values if len(values) < 7 else values[::2]
    axes.set_xticks(ticks, [f"{n // 1000}k" if n >= 1000 else str(n) for n in ticks], fontsize=8)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(min(times) / 1.5, max(times) * 1.5)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.3)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("docs/results/growth.png"))
    args = parser.parse_args()
    require_folder(args.out)
    figure = Figure(figsize=(14, 2.9), dpi=100, layout="constrained")
    for axes, series in zip(figure.subplots(1, len(SERIES)), SERIES, strict=True):
        with fast_training(CPU):
            times = series.times(args.rounds)
        values = list(series.settings)
        print("|", " | ".join([series.title, *(f"{n:,}" for n in values), "slope"]), "|")
        print("|---" * (len(values) + 2) + "|")
        print(
            "|",
            " | ".join([series.unit, *(f"{t:.3g}" for t in times), f"{slope(values, times):.2f}"]),
            "|\n",
        )
        draw(axes, series, times)
    print(save(figure, args.out))


if __name__ == "__main__":
    main()
