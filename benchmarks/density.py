"""The NLL of vaekit's models beside published ones, from the records in docs/results and published.csv.

    python benchmarks/density.py                  # writes docs/results/density.md
    python benchmarks/density.py --add NAME RUN ...

`--add` first records evaluated runs of one command with several seeds, in docs/results/density/NAME.json: `vaekit
evaluate RUN --metrics elbo nll --samples 5000 --limit 10000` before it. Nothing in the table is typed by hand: what is
in no record is "not measured".
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import shlex
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from speedrun import machine

from vaekit import MODELS, Run, build
from vaekit.studies.reproduce import PUBLISHED_RESULTS
from vaekit.support.atomic import write_bytes, write_json
from vaekit.support.errors import UserError, require
from vaekit.training.plan import Plan

RESULTS, PUBLISHED = Path("docs/results"), Path(__file__).parent / "published.csv"
MNIST = "dynamic MNIST"
# The records of docs/results/models.md and mnist.md: file name without seed -> command.
MODEL_RECORDS = {
    "models": {
        "vae": "vae --epochs 20",
        "vae40": "vae --latent-dim 40 --epochs 20",
        "vae-wide": "vae --hidden-dim 850 --epochs 20",
        "vampprior": "vampprior --epochs 20",
        "vampprior-wide": "vampprior --hidden-dim 850 --epochs 20",
        "hvae": "hvae --epochs 20",
        "hvae10": "hvae --latent-dim 10 --top-dim 10 --epochs 20",
        "hvampprior": "hvampprior --epochs 20",
        "hvamp10": "hvampprior --latent-dim 10 --top-dim 10 --epochs 20",
        "mixturevae": "mixturevae --epochs 20",
        "iwae": "iwae --epochs 20",
        "gmvae": "gmvae --epochs 20",
        "convgmvae": "convgmvae --epochs 20",
        "convvae": "convvae --epochs 20",
        "betavae": "betavae --epochs 20",
        "infovae": "infovae --epochs 20",
        "mmdvae": "mmdvae --epochs 20",
    },
    "mnist": {"vae": "vae --epochs 50", "convvae": "convvae --epochs 50"},
}
REPRODUCED = {"dynamic": MNIST, "static": "static MNIST", "fashion": "dynamic Fashion-MNIST"}
RULES = """\
- **Dynamic MNIST**: each pixel of a training image is drawn anew, with the grey value as its probability, whenever the
  image is used; test images are drawn once. Static MNIST is one fixed drawing: the same model is 2 to 4 nats worse
  there, since it overfits. Pixels cut at one half are a third, much easier data set. No figure of one may stand beside
  another's.
- vaekit trains on 50,000 images and chooses weights on 10,000 others, as the VampPrior and Exemplar papers do. Rows
  with 59,600 or 60,000 training images gain a few tenths of a nat by them.
- **NLL** is from importance sampling; more samples make it lower. 5,000 are the rule. "Bound": a negative ELBO, which
  is above the NLL, by 3 to 6 nats for one level of 40 latents.
- Sums over pixels, means over images, in nats.
- **An autoregressive decoder** draws each pixel given the others; such models are another class, and named.
- A standard deviation is over seeds of the training, not over images. Published rows seldom state their seeds.
- Machines differ: seconds of different hardware say little.
- **From** tells how a published figure is known: read (in the paper, its code or its log), second-hand (in somebody
  else's table or summary), or memory (to be checked). Its blank cells are what was not stated, or not noted.
- Models of p(x | label), such as `cvae`, have another, lower NLL and are left out.
"""


@dataclass(frozen=True)
class Row:
    """A line of the table; None for what is not known. `seconds` is of one training."""

    data: str
    model: str
    nll: float | None
    sd: float | None = None
    seeds: int | None = None
    samples: int | None = None
    images: int | None = None
    parameters: int | None = None
    seconds: float | None = None
    hardware: str = ""
    source: str = ""
    origin: str = ""
    note: str = ""
    ours: bool = True

    @property
    def line(self) -> str:
        spread = "" if self.sd is None else f" (sd {self.sd:.2f})"
        nll = "not measured" if self.nll is None else f"{self.nll:.2f}{spread}"
        samples = number(self.samples)
        if self.ours and self.images not in (None, 10_000):
            samples += f", {number(self.images)} images"
        cells = [f"**{self.model}**" if self.ours else self.model, nll, number(self.seeds), samples]
        cells += [
            number(self.parameters),
            number(self.seconds),
            self.hardware,
            self.source,
            self.origin,
            self.note,
        ]
        return "| " + " | ".join(cells) + " |"


def number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def mean_and_sd(values: Sequence[float]) -> tuple[float, float | None]:
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None


def parse_command(text: str) -> Plan:
    """The plan of the arguments of `vaekit train`: MODEL, or --preset NAME, and flags with a value each."""
    model, *words = shlex.split(text) if not text.startswith("--") else ["", *shlex.split(text)]
    flags = dict(zip(words[::2], words[1::2], strict=True))
    changes: dict[str, Any] = {}
    for flag, value in flags.items():
        name = flag.removeprefix("--").replace("-", "_")
        if name in ("seed", "out", "data", "data_dir"):
            continue
        kind = (
            int
            if re.fullmatch(r"\d+", value)
            else float
            if re.fullmatch(r"[\d.e-]+", value)
            else str
        )
        changes[name] = kind(value)
    preset = changes.pop("preset", "")
    try:
        return Plan.of(model, preset, **changes)
    except UserError:  # a text that looks like a number
        texts = {name: str(value) for name, value in changes.items()}
        return Plan.of(
            model,
            preset,
            **{k: texts[k] if k in ("encoder", "decoder") else v for k, v in changes.items()},
        )


def count_parameters(plan: Plan) -> int:
    """The number of weights of a plan's model on 28 x 28 grey pixels, as the code has it today."""
    settings = asdict(plan.settings)
    if settings["prior"] == "vampprior":  # whose pseudo-inputs would need the images
        settings["pseudo_inputs"] = "noise"
    model = build(plan.model, (1, 28, 28), **settings)
    return sum(weight.numel() for weight in model.parameters())


def model_rows(results: Path) -> Iterator[Row]:
    """The rows of the evaluations in docs/results/models and mnist, which do not record the time of training."""
    for folder, commands in MODEL_RECORDS.items():
        page = (results / f"{folder}.md").read_text()
        hardware = re.search(r"\d+ cores of [^,]*", page)
        require(hardware is not None, f"{folder}.md does not say its machine")
        assert hardware is not None
        for stem, command in commands.items():
            pattern = re.compile(rf"{re.escape(stem)}-s?\d+\.json")
            paths = [
                p for p in sorted((results / folder).glob("*.json")) if pattern.fullmatch(p.name)
            ]
            require(len(paths) > 0, f"{results / folder} has no record of {stem}")
            records = [json.loads(path.read_text()) for path in paths]
            check(records, folder, stem)
            yield summary(MNIST, command, records, hardware[0], f"[{folder}.md]({folder}.md)")


def check(records: Iterable[Mapping[str, Any]], folder: str, stem: str) -> None:
    """Raise UserError unless all records are NLLs of dynamically binarised test images, as vaekit evaluates them."""
    for record in records:
        good = (record["split"], record["binarisation"], record["likelihood"]) == (
            "test",
            "dynamic",
            "bernoulli",
        )
        require(
            good and record["nll"] is not None,
            f"{folder}/{stem} is no NLL of dynamic MNIST's test images",
        )


def summary(
    data: str, command: str, records: Sequence[Mapping[str, Any]], hardware: str, source: str
) -> Row:
    """The row of several seeds of a command."""
    mean, sd = mean_and_sd([record["nll"] for record in records])
    plan = parse_command(command)
    objective = plan.objective
    bound = objective.objective in ("elbo", "iwae") and objective.beta in (None, 1)
    note = "" if bound else "maximises no bound on the NLL"
    return Row(data, f"`{command}`", mean, sd, len(records), records[0]["samples"],
               min(record["nll_images"] for record in records), count_parameters(plan),
               None, hardware, source, note=note)  # fmt: skip


def speedrun_rows(results: Path) -> Iterator[Row]:
    """The rows of the speedrun's reports with an NLL."""
    for path in sorted((results / "speedrun").glob("*.md")):
        text = path.read_text()
        command = re.search(r"^ {4}vaekit train (.*)$", text, re.MULTILINE)
        lines = re.findall(r"^\| (\d+) \| ([\d.]+) \| ([\d.]+) \|$", text, re.MULTILINE)
        if command is None or "NLL (5,000 samples, 10,000 images)" not in text:
            continue
        require(len(lines) > 0, f"{path} has no seeds")
        mean, sd = mean_and_sd([float(nll) for _, _, nll in lines])
        _, hardware = text.split("\n")[2].split(" in float32")[0].split(", ", 1)
        words = command[1].removesuffix(" --seed SEED")
        yield Row(MNIST, f"`{words}`", mean, sd, len(lines), 5000, 10_000,
                  count_parameters(parse_command(words)), max(float(s) for _, s, _ in lines), hardware,
                  f"[speedrun {path.stem}](speedrun/{path.name})", note="slowest of the seeds")  # fmt: skip


def reproduction_rows(results: Path) -> Iterator[Row]:
    """The rows of docs/results/reproduction.md with the VampPrior paper's networks, the longest training of each."""
    best: dict[str, list[str]] = {}
    for line in (results / "reproduction.md").read_text().split("\n"):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        match = (
            re.fullmatch(r"`\w+-(dynamic|static|fashion)`", cells[1]) if len(cells) == 11 else None
        )
        if match is not None and cells[2] == "nll":
            name = cells[1].strip("`")
            if name not in best or epochs(cells) > epochs(best[name]):
                best[name] = cells
    for name, cells in best.items():
        published = PUBLISHED_RESULTS[name]
        mean, _, sd = cells[3].strip("*").partition(" ± ")
        yield Row(REPRODUCED[name.split("-")[1]], f"`vaekit reproduce {name}`",
                  float(mean), float(sd) if sd else None, int(cells[4]), published.samples, 10_000,
                  count_parameters(Plan.of(**published.plan)), None, cells[10],
                  "[reproduction.md](reproduction.md)",
                  note=f"{published.description.rsplit(',', 1)[0].split(', ', 1)[1]}; {cells[8]} epochs")  # fmt: skip


def epochs(cells: Sequence[str]) -> int:
    return int(cells[8].split(" of ")[0].replace(",", ""))


def added_rows(results: Path) -> Iterator[Row]:
    """The rows of the records that `--add` writes."""
    for path in sorted((results / "density").glob("*.json")):
        record = json.loads(path.read_text())
        seeds = record["seeds"]
        mean, sd = mean_and_sd([seed["nll"] for seed in seeds])
        yield Row(record["data"], f"`{record['command']}`", mean, sd, len(seeds), seeds[0]["samples"],
                  min(seed["images"] for seed in seeds), record["parameters"],
                  max(seed["seconds"] for seed in seeds), record["hardware"],
                  f"[{path.name}](density/{path.name})", note=record["date"])  # fmt: skip


def published_rows() -> Iterator[Row]:
    with PUBLISHED.open(newline="") as file:
        for line in csv.DictReader(file):
            known = {
                key: float(line[key]) if line[key] else None
                for key in ("sd", "samples", "parameters", "seconds")
            }
            notes = [line["note"], "bound" if line["bound"] else ""]
            yield Row(line["data"], line["model"], float(line["nll"]), hardware=line["hardware"], source=line["source"],
                      origin=line["origin"], note="; ".join(filter(None, notes)), ours=False,
                      **known)  # type: ignore[arg-type]  # fmt: skip


def unmeasured_rows(rows: Sequence[Row]) -> Iterator[Row]:
    """A row for each model that no row is of, and for each data set without a row of vaekit's."""
    named = {
        re.split(r"[` ]+", row.model)[1] for row in rows if row.ours and row.model.startswith("`")
    }
    for name in MODELS:
        if name not in named and MODELS[name].settings.condition == "none":
            yield Row(MNIST, f"`{name}`", None)
    for data in dict.fromkeys(row.data for row in published_rows()):
        if data not in {row.data for row in rows}:
            yield Row(data, "vaekit", None)


def record_runs(name: str, runs: Sequence[Path], out: Path) -> Path:
    """Write the record of evaluated runs that differ in their seeds alone. Raises UserError."""
    seeds, plans = [], set[str]()
    for path in runs:
        run = Run(path)
        found, settings = run.evaluation, run.config
        require(
            found.get("split") == "test" and found.get("nll") is not None,
            f"{path} has no NLL of test images",
        )
        seconds = sum(epoch["seconds"] for epoch in run.metrics)
        seeds.append({"seed": run.training.seed, "nll": found["nll"], "elbo": found["elbo"],
                      "samples": found["samples"], "images": found["nll_images"], "seconds": seconds})  # fmt: skip
        fixed = {**settings["training"], "seed": None}
        plans.add(
            json.dumps(
                [settings["model"] | {"seed": None}, fixed, settings["data"]["name"]],
                sort_keys=True,
            )
        )
    require(len(plans) == 1, "the runs differ in more than their seeds")
    require(len({seed["seed"] for seed in seeds}) == len(seeds), "two runs have the same seed")
    run = Run(runs[0])
    words = [word for word in run.config["command"][1:] if word != "train"]
    kept = [
        w for i, w in enumerate(words) if not {w, words[i - 1]} & {"--seed", "--out", "--data-dir"}
    ]
    binarised = run.data.binarisation
    names = {"mnist": "MNIST", "fashionmnist": "Fashion-MNIST", "binarizedmnist": "static MNIST"}
    data = names.get(run.data.name, run.data.name)
    if run.data.name in ("mnist", "fashionmnist"):
        data = f"{binarised} {data}"
    record = {
        "command": shlex.join(kept),
        "data": "Omniglot" if run.data.name == "omniglot28" else data,
        "parameters": count_parameters(
            Plan.of(run.blueprint.model, **asdict(run.blueprint.settings))
        ),
        "hardware": machine(run).split(" in float32")[0],
        "date": time.strftime("%Y-%m-%d"),
        "seeds": seeds,
    }
    path = out / "density" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, record)
    return path


def report(rows: Sequence[Row]) -> str:
    """The tables by data set, best first, as markdown."""
    lines = ["# Density: vaekit's models and published ones", ""]
    lines += ["`python benchmarks/density.py` makes this page from the records in docs/results and from",
              "benchmarks/published.csv. vaekit's rows are in bold. Seconds are of one training; where none are given,",
              "the record has none.", "",
              "## What may be compared", "", RULES]  # fmt: skip
    for data in dict.fromkeys(row.data for row in sorted(rows, key=lambda row: row.data != MNIST)):
        lines += [f"## {data}", "",
                  "| model | test NLL, nats | seeds | samples | parameters | seconds | hardware | source | from "
                  "| note |",
                  "|---|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
        own = [row for row in rows if row.data == data]
        lines += [row.line for row in sorted(own, key=lambda row: (row.nll is None, row.nll or 0))]
        lines.append("")
    return "\n".join(lines)


def all_rows(results: Path) -> list[Row]:
    sources = (model_rows, speedrun_rows, reproduction_rows, added_rows)
    rows = [row for source in sources for row in source(results)]
    return [*rows, *unmeasured_rows(rows), *published_rows()]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--add", nargs="+", metavar=("NAME", "RUN"))
    args = parser.parse_args()
    if args.add:
        name, *runs = args.add
        require(len(runs) > 0, "--add NAME needs the runs after it")
        print(record_runs(name, [Path(run) for run in runs], RESULTS))
    write_bytes(RESULTS / "density.md", report(all_rows(RESULTS)).encode())
    print(RESULTS / "density.md")


if __name__ == "__main__":
    main()
