"""Print the tables of docs/results/truth.md, the largest differences between vaekit and the reference."""

import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from reference import exact, heads
from reference.compare import densities, estimates, gradients, objective_values
from reference.pairs import CASES, Pair
from vaekit.settings.catalog import MODELS

SEEDS = (0, 1, 2)


def print_table(*columns):
    print(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")


def row(name, *values):
    print(f"| {name} | {' | '.join(values)} |", flush=True)


def number(value):
    return f"{value:.0e}".replace("e-0", "e-")


def worst(found):
    return max(value for each in found for value in each.values())


def models_table():
    print_table(
        "model",
        "densities",
        "objectives",
        "gradients",
        "estimators",
        "densities, float32",
        "objectives, float32",
    )
    for name in CASES:
        double = [Pair(name, seed) for seed in SEEDS]
        single = [Pair(name, seed, torch.float32) for seed in SEEDS]
        checks = [(check, double) for check in (densities, objective_values, gradients, estimates)]
        checks += [(densities, single), (objective_values, single)]
        row(name, *(number(worst(map(check, pairs))) for check, pairs in checks))


def heads_table():
    print_table("distribution", "float64", "float32")
    found = [
        [heads.differences(seed, dtype) for seed in SEEDS]
        for dtype in (torch.float64, torch.float32)
    ]
    for name in found[0][0]:
        row(name, *(number(max(each[name] for each in runs)) for runs in found))


def nll_table():
    print_table("model", "log p(x) by quadrature", "importance sampling", "annealing", "HMC")
    for name in MODELS:
        runs = [exact.nll(name, seed) for seed in SEEDS]
        cells = [f"{np.mean([run['log p(x)'] for run in runs]):.3f}"]
        for estimator in ("importance", "AIS", "HMC"):
            errors, spread = zip(*(run[estimator] for run in runs), strict=True)
            cells.append(f"{np.mean(errors):+.3f} ± {np.linalg.norm(spread) / len(runs):.3f}")
        row(name, *cells)


def gmvae_table():
    print_table(
        "gmvae", "log p(x) by quadrature", "ELBO", "with the paper's conditional prior term"
    )
    for seed in SEEDS:
        row(f"seed {seed}", *(f"{value:.3f}" for value in exact.gmvae_bounds(seed)))


if __name__ == "__main__":
    models_table()
    heads_table()
    nll_table()
    gmvae_table()
