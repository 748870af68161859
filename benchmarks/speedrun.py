"""How soon does a VAE reach a published number? Wall-clock of `vaekit train` to a level of the test NLL or ELBO.

    python benchmarks/speedrun.py 90 [--seeds 1 2 3] [--out runs/speedrun]

Runs the record's command for each seed, one after the other, and measures what came out. The rules are in
docs/speedrun.md: time counts from the start of the process to its end, the compiler's cache empty, validation included;
the measurement of the test images comes afterwards and does not count.
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from speed import matrix_rate, processor

from vaekit import Run, evaluate

FAST = "--precision bfloat16 --batch-size 200 --lr-warmup 0.3"
SMALL = "vampprior --latent-dim 20 --hidden-dim 400 --num-layers 1 --components 100"
TWO_LEVELS = (
    "hvampprior --latent-dim 40 --top-dim 40 --hidden-dim 400 --num-layers 1 --components 300 "
    "--learning-rate 5e-3 --clip-gradient 30"
)
# Level -> the arguments of `vaekit train`. A level named "elbo..." is of the test ELBO with 20 latents.
RECORDS = {
    "elbo-100": f"{SMALL} --epochs 4 --learning-rate 1e-2 --compile no {FAST}",
    "95": f"{SMALL} --epochs 5 --learning-rate 1e-2 --compile no {FAST}",
    "90": f"vampprior --latent-dim 40 --hidden-dim 500 --num-layers 1 --components 200 --epochs 11 "
    f"--learning-rate 1e-2 --compile no {FAST}",
    "86.76": f"{TWO_LEVELS} --epochs 17 --kl-warmup 3 --compile no {FAST}",
    "84.5": f"{TWO_LEVELS} --epochs 65 --kl-warmup 5 --compile yes {FAST}",
}


@dataclass(frozen=True)
class Attempt:
    """One training and what it came to, nats."""

    level: str
    seed: int
    seconds: float
    elbo: float
    nll: float | None


def train(level: str, seed: int, run: Path) -> float:
    """Seconds from the start of the process to its end."""
    command = [sys.executable, "-m", "vaekit", "train", *shlex.split(RECORDS[level])]
    command += ["--seed", str(seed), "--out", str(run)]
    with tempfile.TemporaryDirectory() as cache:
        started = time.perf_counter()
        subprocess.run(command, check=True, env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache})
        return time.perf_counter() - started


def measure(level: str, seed: int, seconds: float, run: Path) -> Attempt:
    settings: dict[str, Any] = {"metrics": ("elbo",)}
    if not level.startswith("elbo"):
        settings = {"metrics": ("elbo", "nll"), "samples": 5000, "limit": 10_000}
    found = evaluate(run, **settings)
    return Attempt(level, seed, round(seconds, 1), found["elbo"], found.get("nll"))


def report(level: str, found: list[Attempt], out: Path) -> str:
    """The record as markdown: what was run, where, what came out, and how each training went."""
    by_elbo = level.startswith("elbo")
    values = [a.elbo if by_elbo else a.nll for a in found]
    mean = statistics.mean(value for value in values if value is not None)
    limit = float(level.removeprefix("elbo"))
    first = Run(out / f"{level}-{found[0].seed}")
    held = mean >= limit if by_elbo else mean <= limit
    lines = [
        f"# {level}: {max(a.seconds for a in found):.0f} s" if held else f"# {level}: not reached",
        "",
        f"{time.strftime('%Y-%m-%d')}, {processor()}, {torch.get_num_threads()} threads, "
        f"{matrix_rate() / 1e9:.0f} GFLOP/s in float32 (100x784 @ 784x500), torch {torch.__version__}, "
        f"revision {first.config['versions']['git']}",
        "",
        f"    vaekit train {RECORDS[level]} --seed SEED",
        "",
        f"| seed | seconds | test {'ELBO' if by_elbo else 'NLL (5,000 draws, 10,000 images)'}, nats |",
        "|---|---|---|",
        *(f"| {a.seed} | {a.seconds:.1f} | {v:.3f} |" for a, v in zip(found, values, strict=True)),
        f"| slowest, mean | {max(a.seconds for a in found):.1f} | {mean:.3f} |",
        "",
        "Epoch, seconds of training, validation objective, of each seed:",
        "",
    ]
    for a in found:
        epochs = Run(out / f"{level}-{a.seed}").metrics
        lines.append(f"    seed {a.seed}")
        seconds = 0.0
        for epoch in epochs:
            seconds += epoch["seconds"]
            shown = f"{epoch['epoch']:4}  {seconds:7.1f}  {epoch['validation_objective']:8.2f}"
            lines.append(f"    {shown}")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("level", choices=RECORDS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--out", type=Path, default=Path("runs/speedrun"))
    parser.add_argument("--report", type=Path, default=Path("docs/results/speedrun"))
    given = parser.parse_args()
    runs = {seed: given.out / f"{given.level}-{seed}" for seed in given.seeds}
    # All trainings first: measuring would leave the machine hot, and the page cache other.
    seconds = {seed: train(given.level, seed, run) for seed, run in runs.items()}
    found = []
    for seed, run in runs.items():
        found.append(measure(given.level, seed, seconds[seed], run))
        print(found[-1], flush=True)
    text = report(given.level, found, given.out)
    given.report.mkdir(parents=True, exist_ok=True)
    (given.report / f"{given.level}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
