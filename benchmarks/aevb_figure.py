"""Figure 2 of Kingma and Welling 2014, lower bound by training samples evaluated, with our curves added.

    python benchmarks/aevb_figure.py [--runs runs/reproduce] [--out docs/pictures/aevb]

Reads the runs of `vaekit reproduce aevb-mnist-3` and the other rows of that name. The paper's values were digitised
from the figure, to about 0.2 nats for MNIST and 3 for Frey faces.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vaekit.pictures import save
from vaekit.runs.directory import Run

SAMPLES = [10.0**power for power in (6, 6.5, 7, 7.5, 8)]
# By data set and latent dimensions: test and training bound, nats per image.
PAPER: dict[str, dict[int, tuple[list[float], list[float]]]] = {
    "mnist": {
        3: ([-152.9, -143.4, -138.0, -134.8, -133.4], [-155.3, -144.4, -138.3, -133.7, -130.3]),
        5: ([-138.9, -128.9, -124.1, -120.9, -119.1], [-141.0, -129.4, -123.7, -119.6, -116.5]),
        10: ([-128.3, -115.4, -108.5, -105.2, -103.7], [-129.6, -115.4, -107.7, -103.4, -100.7]),
        20: ([-124.2, -112.1, -104.8, -101.7, -100.2], [-126.3, -112.2, -104.2, -100.4, -98.2]),
        200: ([-119.9, -108.4, -103.9, -101.6, -100.3], [-121.8, -108.4, -103.4, -100.4, -98.4]),
    },
    "frey": {
        2: ([673, 777, 823, 855, 872], [664, 777, 835, 880, 935]),
        5: ([761, 937, 1044, 1093, 1115], [729, 942, 1076, 1161, 1234]),
        10: ([792, 954, 1171, 1285, 1307], [758, 960, 1217, 1374, 1463]),
        20: ([754, 986, 1200, 1284, 1312], [715, 979, 1255, 1381, 1488]),
    },
}
LIMITS = {"mnist": (-150, -90), "frey": (600, 1500)}


def average_bins(
    samples: Sequence[float], values: Sequence[float]
) -> tuple[list[float], list[float]]:
    """The curve averaged in twenty bins per power of ten."""
    bins = [int(20 * math.log10(x)) for x in samples]
    rows = {bin_: [i for i, b in enumerate(bins) if b == bin_] for bin_ in set(bins)}

    def means(numbers: Sequence[float]) -> list[float]:
        return [statistics.mean(numbers[i] for i in rows[bin_]) for bin_ in sorted(rows)]

    return means(samples), means(values)


def draw(axes: Axes, name: str, dim: int, runs: Path) -> None:
    test, train = PAPER[name][dim]
    axes.plot(SAMPLES, train, "--", color="0.6", label="paper, training images")
    axes.plot(SAMPLES, test, "-", color="0.4", label="paper, test images")
    for kind, colour in (("", "tab:blue"), ("-adam", "tab:orange")):
        folder = runs / f"aevb-{name}-{dim}{kind}" / "seed-0"
        if not (folder / "metrics.jsonl").is_file():
            continue
        run = Run(folder)
        images = run.section("data")["images"]["train"]
        samples = [epoch["epoch"] * images for epoch in run.metrics]
        optimizer = "ours, Adam" if kind else "ours, Adagrad as in the paper"
        for key, style, split in (
            ("train_elbo", "--", "training"),
            ("validation_elbo", "-", "validation"),
        ):
            curve = average_bins(samples, [epoch[key] for epoch in run.metrics])
            axes.plot(*curve, style, color=colour, lw=1.2, label=f"{optimizer}, {split} images")
    axes.set_xscale("log")
    axes.set_xlim(1e5, 1e8)
    axes.set_ylim(*LIMITS[name])
    axes.set_title(f"$N_z$ = {dim}")
    axes.set_xlabel("training samples evaluated")
    axes.grid(alpha=0.2)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/reproduce"))
    parser.add_argument("--out", default="docs/pictures/aevb")
    args = parser.parse_args()
    for name, rows in PAPER.items():
        figure = Figure(figsize=(3.2 * len(rows), 4), layout="constrained")
        panels = figure.subplots(1, len(rows), sharey=True)
        for axes, dim in zip(panels, rows, strict=True):
            draw(axes, name, dim, args.runs)
        panels[0].set_ylabel("lower bound, nats per image")
        legend = {
            label: handle
            for axes in panels
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(
            legend.values(), legend.keys(), loc="outside lower center", ncols=3, frameon=False
        )
        print(save(figure, Path(f"{args.out}-{name}.png")))


if __name__ == "__main__":
    main()
