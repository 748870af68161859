"""The plan of `vaekit plan` beside a model's defaults, on five data sets: validation bits/dim after the same time.

    python benchmarks/plans.py --seconds 600 --icons FOLDER [--sets mnist caltech101] [--seeds 0 1 2]

Both are trained for as many steps as fit the time, measured in the same way, on images of the size that the plan
chooses; so the defaults, too, end their schedules in time. The value is -ELBO of the best epoch in bits per pixel
value, an upper bound. Where the plan alone has black and white pixels, whose bits/dim cannot be compared with those of
grey ones, it is trained with the likelihood of the defaults. What is done is kept in --out, so that a second call goes
on; the table is written to --report. FOLDER is made by icons.py; other files are searched in the folder that
VAEKIT_DATA names. On a busy machine the times, and so the numbers of steps, mean little.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

import vaekit
from vaekit import Plan
from vaekit.settings.model import DISCRETE
from vaekit.studies.proposal import fit_steps, load_for_plan, measured
from vaekit.support.atomic import write_bytes, write_json
from vaekit.support.console import format_duration
from vaekit.support.devices import describe_machine, resolve_device
from vaekit.support.errors import require

# Name -> a named data set, or a file in the folder of VAEKIT_DATA.
SETS = {
    "mnist": "mnist",
    "cifar10": "cifar10-jpeg.zip",
    "caltech101": "caltech101-21.zip",
    "icons": "",
    "freyface": "freyface",
}
REPORT = Path("docs/results/plans.md")
Record = dict[str, Any]


def plans_of(data: str, seconds: float, models: list[str], folder: Path) -> dict[str, Plan]:
    """What to train on a data set: the plan, which is written to `folder`, and each model's defaults."""
    dataset, choices = load_for_plan(data, {}, progress=False)
    proposal = vaekit.plan(dataset, seconds / 60)
    write_bytes(folder / "plan.toml", proposal.toml().encode())
    plans = {"plan": proposal.plan}
    if plans["plan"].settings.likelihood == "bernoulli" and dataset.likelihood in DISCRETE:
        plans["plan"] = plans["plan"].changed({"likelihood": dataset.likelihood})
    for model in models:
        default = Plan.of(model, **{name: choice.value for name, choice in choices.items()})
        trial = default.changed({"compile": "no", "steps": 2**30})
        speed, config = measured(trial, dataset)
        steps, _ = fit_steps(speed, config, len(dataset.train), seconds)
        plans[model] = default.changed({"steps": steps})
    return plans


def train(plan: Plan, seed: int, folder: Path) -> Record:
    """Train a plan, and write its record to `folder`."""
    started = time.perf_counter()
    run = plan.changed({"seed": seed}).train(str(folder / f"run-{time.time_ns()}"), progress=False)
    seconds, training = time.perf_counter() - started, plan.training
    shape = run.blueprint.shape
    record = {
        "bits_per_dim": -run.best["validation_elbo"] / math.prod(shape) / math.log(2),
        "seconds": seconds,
        "what": f"{plan.model}, {run.blueprint.settings.likelihood}, batch {training.batch_size}, "
        f"{training.precision}, {training.steps:,} steps, best at epoch {run.best['epoch']} of {run.training.epochs}",
        "images": f"{run.config['data']['images']['train']:,} of {' x '.join(map(str, shape))}",
    }
    write_json(folder / "record.json", record)
    return record


def records_of(name: str, data: str, arguments: argparse.Namespace) -> dict[str, list[Record]]:
    """The records of plan and defaults on one set, by seed; those that are missing are trained."""
    folder = arguments.out / f"{name}-{arguments.seconds:g}"
    kinds, plans = ["plan", *arguments.defaults], dict[str, Plan]()
    records: dict[str, list[Record]] = {kind: [] for kind in kinds}
    for seed in arguments.seeds:
        for kind in kinds:
            place = folder / kind / str(seed)
            place.mkdir(parents=True, exist_ok=True)
            if (place / "record.json").exists():
                record = json.loads((place / "record.json").read_text())
            else:
                plans = plans or plans_of(data, arguments.seconds, arguments.defaults, folder)
                record = train(plans[kind], seed, place)
            print(f"{name} {kind} {seed}: {record['bits_per_dim']:.4f}", file=sys.stderr)
            records[kind].append(record)
    return records


def mean_bits(records: list[Record]) -> float:
    return statistics.mean(record["bits_per_dim"] for record in records)


def page(results: dict[str, dict[str, list[Record]]], seconds: float) -> str:
    """The page with the table of all sets."""
    rows, ahead = [], 0
    for name, records in results.items():
        for kind, each in records.items():
            bits = [record["bits_per_dim"] for record in each]
            deviation = f" ± {statistics.stdev(bits):.3f}" if len(bits) > 1 else ""
            took = format_duration(statistics.mean(record["seconds"] for record in each))
            bits_cell, first = f"{mean_bits(each):.3f}{deviation}", each[0]
            rows.append(
                f"| {name}: {first['images']} | {kind} | {bits_cell} | {took} | {first['what']} |"
            )
        others = [mean_bits(each) for kind, each in records.items() if kind != "plan"]
        ahead += mean_bits(records["plan"]) < min(others)
    machine = describe_machine(resolve_device("auto"))
    return f"""# Plans beside defaults

The training that `vaekit plan` proposes for {seconds:g} seconds, and a model's defaults for as many steps as fit the
same time, on the same images: validation bits/dim (-ELBO of the best epoch), lower is better. They compare within a set
only.

`python {shlex.join(sys.argv)}`, {time.strftime("%Y-%m-%d")}, {machine}, torch {torch.__version__}

| training images | trained by | bits/dim | time | what (first seed) |
|---|---|---|---|---|
{chr(10).join(rows)}

The plan is ahead on {ahead} of {len(results)} sets.
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, required=True, help="for each training")
    parser.add_argument("--icons", help="folder of drawings, made by icons.py")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=[*SETS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--defaults", nargs="+", choices=vaekit.MODELS, default=["convvae"])
    parser.add_argument("--out", type=Path, default=Path("runs/plans"), help="folder of the runs")
    parser.add_argument("--report", type=Path, default=REPORT)
    arguments = parser.parse_args()
    require(
        arguments.icons is not None or "icons" not in arguments.sets, "icons need --icons FOLDER"
    )
    results = {}
    for name in arguments.sets:
        data = arguments.icons if name == "icons" else SETS[name]
        if data.endswith(".zip"):
            data = str(Path(os.environ.get("VAEKIT_DATA", ".")) / data)
        results[name] = records_of(name, data, arguments)
        write_bytes(arguments.report, page(results, arguments.seconds).encode())
    print(arguments.report.read_text())


if __name__ == "__main__":
    main()
