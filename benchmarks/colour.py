"""Models of colour images after the same time: bits/dim, reconstructions of held-out images, samples.

    python benchmarks/colour.py cifar10 --minutes 60 [--models convvae resnet deepvae] [--seed 1] [--test]
    python benchmarks/colour.py icons --data FOLDER --minutes 10

Trains each configuration in turn with `vaekit train`, with as many epochs as end within the time, from the start of the
process to its end, which a short trial has predicted; then evaluates it on the validation images, with --test also on
the test images. Writes the table, the log of each training and pictures. What is done is kept in --out: a second call
resumes a training that was interrupted, and skips what is done. The time of a resumed training is the sum of its epochs
and of one start. FOLDER for icons is made by icons.py.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from speedrun import epoch_log, machine

import vaekit
from vaekit import Run
from vaekit.settings.model import DISCRETE
from vaekit.support.atomic import write_bytes, write_json
from vaekit.support.errors import require

VAEKIT = [sys.executable, "-m", "vaekit"]
# Name -> arguments of `vaekit train`, each with the learning rate and precision that short trainings found best.
CONFIGURATIONS = {
    "convvae": "convvae --latent-dim 128 --learning-rate 3e-3 --precision bfloat16",
    "convvae-mixture": "convvae --latent-dim 128 --learning-rate 3e-3 --likelihood logistic-mixture --logistics 3 "
    "--precision bfloat16",
    "resnet": "convvae --network resnet --channels 64 --latent-dim 128 --learning-rate 2e-3 --batch-size 50 "
    "--clip-gradient 200 --precision bfloat16",
    "deepvae": "deepvae --likelihood logistic --precision bfloat16",
    "deepvae-mixture": "deepvae --precision bfloat16",
}
TRIAL_IMAGES = 4000  # for training
Images = dict[str, int]  # the number of each split
Record = dict[str, Any]  # what is known of a configuration, in JSON
METRICS = ("elbo", "reconstruction", "frechet")
TEMPERATURES = (1.0, 0.7)
RECONSTRUCTIONS, SAMPLES = 20, 40  # images in a picture


@dataclass(frozen=True)
class Source:
    """A data set of the benchmark: its file or folder in the folder that VAEKIT_DATA names, its size, a remark."""

    file: str
    size: str
    remark: str


SOURCES = {
    "cifar10": Source(
        "cifar10-jpeg.zip",
        "32",
        "The files are JPEG copies of CIFAR-10: no figure here may be compared with published ones.",
    ),
    "caltech": Source("caltech101-21.zip", "64", "21 of the 101 classes of Caltech-101."),
    "icons": Source(
        "icons",
        "64",
        "Drawings of a Debian package, which `python benchmarks/icons.py FOLDER` writes.",
    ),
}


def affordable_epochs(minutes: float, start: float, epoch: float) -> int:
    """Epochs of `epoch` seconds that end within the minutes after a start of `start` seconds. Raises UserError for
    none."""
    epochs = math.floor((60 * minutes - start) / epoch)
    require(
        epochs >= 1,
        f"an epoch takes {epoch:.0f} s and the start {start:.0f} s: give more than {minutes:g} minutes",
    )
    return epochs


def trial(command: Sequence[str], images: Images, run: Path) -> tuple[float, float]:
    """Train two epochs on at most TRIAL_IMAGES of the training images, and as large a part of the validation images.
    Returns the predicted seconds of a start, compiling included, and of an epoch."""
    share = min(1.0, TRIAL_IMAGES / images["train"])
    command = [*command, "--epochs", "2", "--out", str(run)]
    if share < 1:
        held_out = str(max(1, round(share * images["validation"])))
        command += ["--train-images", str(TRIAL_IMAGES), "--validation-images", held_out]
    shutil.rmtree(run, ignore_errors=True)
    seconds = timed(command)
    _, second = Run(run).metrics
    return seconds - 2 * second["seconds"], second["seconds"] / share


def timed(command: Sequence[str]) -> float:
    """Seconds from the start of a process to its end."""
    started = time.perf_counter()
    subprocess.run([*VAEKIT, *command], check=True)
    return time.perf_counter() - started


def train(
    command: Sequence[str], minutes: float, images: Images, folder: Path, record: Record
) -> None:
    """Train a run to its end, or resume it, and add its epochs and its seconds to the record."""
    run = folder / "run"
    if "epochs" not in record:
        start, epoch = trial(command, images, folder / "trial")
        record |= {"start": start, "epochs": affordable_epochs(minutes, start, epoch)}
        write_json(folder / "record.json", record)
    if (run / "state.safetensors").exists():
        timed(["train", "--resume", str(run)])
        record["resumed"] = True
        record["seconds"] = record["start"] + sum(e["seconds"] for e in Run(run).metrics)
    else:
        shutil.rmtree(run, ignore_errors=True)
        record["seconds"] = timed([*command, "--epochs", str(record["epochs"]), "--out", str(run)])


def measure(run: Path, split: str) -> Record:
    """The metrics of METRICS that exist, with bits/dim of the ELBO."""
    metrics = vaekit.evaluate(run, split=split, metrics=METRICS)
    blueprint = Run(run).blueprint
    dimensions = math.prod(blueprint.shape)
    discrete = metrics["likelihood"] in DISCRETE
    bits = -metrics["elbo"] / (dimensions * math.log(2)) if discrete else None
    keys = ("psnr", "ssim", "frechet_samples", "frechet_reconstructions", "frechet_training")
    return {"bits": bits, "images": metrics["images"], **{key: metrics[key] for key in keys}}


def draw(run: Path, out: Path) -> list[Path]:
    """Write the pictures of a run, as OUT-*.webp: reconstructions of validation images, samples by temperature."""
    commands = {
        "reconstructions": ["reconstruct", str(run), "--split", "validation", "--count", str(RECONSTRUCTIONS)],
        **{
            f"samples-{t:g}": ["generate", str(run), "--count", str(SAMPLES), "--temperature", str(t)]
            for t in TEMPERATURES
        },
    }  # fmt: skip
    paths = []
    for name, command in commands.items():
        with tempfile.TemporaryDirectory() as folder:
            picture = Path(folder) / "picture.png"
            subprocess.run([*VAEKIT, *command, "--out", str(picture)], check=True)
            content = io.BytesIO()
            Image.open(picture).convert("RGB").save(content, "webp", quality=85)
        paths.append(out.with_name(f"{out.name}-{name}.webp"))
        write_bytes(paths[-1], content.getvalue())
    return paths


def complete(name: str, data: str, images: Images, args: argparse.Namespace, folder: Path) -> None:
    """Train, measure and draw a configuration, as far as its record in the folder lacks it."""
    path, run, source = folder / "record.json", folder / "run", SOURCES[args.dataset]
    record: Record = json.loads(path.read_text()) if path.exists() else {}
    settings = [*shlex.split(CONFIGURATIONS[name]), "--size", source.size, "--seed", str(args.seed)]
    record |= {"name": name, "command": shlex.join(["train", *settings, "--data", source.file])}
    if "seconds" not in record:
        train(["train", *settings, "--data", data], args.minutes, images, folder, record)
        model = vaekit.load(run)
        speeds = [epoch["images_per_second"] for epoch in Run(run).metrics]
        record |= {
            "parameters": sum(p.numel() for p in model.parameters()),
            "images_per_second": statistics.median(speeds),
            "date": time.strftime("%Y-%m-%d"),
            "machine": machine(Run(run)),
        }
        write_json(path, record)
    for split in ("validation", "test") if args.test else ("validation",):
        if split not in record:
            record[split] = measure(run, split)
            write_json(path, record)
    if "pictures" not in record:
        stem = f"colour-{args.dataset}-{args.minutes:g}-{name}"
        record["pictures"] = [p.name for p in draw(run, args.pictures / stem)]
        write_json(path, record)


def cell(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def table(records: Sequence[Record], split: str) -> list[str]:
    """The lines of a markdown table of the records that are measured on a split."""
    lines = [
        f"| model | bits/dim (ELBO), {split} | PSNR, dB | SSIM | Frechet, samples | Frechet, reconstructions | "
        "parameters | images/s | epochs | minutes |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for record in records:
        m = record.get(split)
        if m is not None:
            lines.append(
                f"| `{record['name']}` | {cell(m['bits'], 3)} | {cell(m['psnr'], 2)} | {cell(m['ssim'], 3)} | "
                f"{cell(m['frechet_samples'], 2)} | {cell(m['frechet_reconstructions'], 2)} | "
                f"{record['parameters']:,} | {record['images_per_second']:,.0f} | {record['epochs']} | "
                f"{record['seconds'] / 60:.1f}{' (resumed)' if record.get('resumed') else ''} |"
            )
    return lines


def report(dataset: str, sections: dict[float, list[Record]], out: Path) -> str:
    """The results of a data set as markdown: for each time, the tables, the commands, the pictures, the logs."""
    lines = [f"# Colour images: {dataset}", "", SOURCES[dataset].remark]
    lines += ["Frechet distances are in the features of an own classifier of this data set's labels, not in those of "
              "Inception. One seed: differences that are small beside those between seeds say nothing."]  # fmt: skip
    for minutes, records in sorted(sections.items()):
        lines += ["", f"## {minutes:g} minutes", ""]
        for split in ("validation", "test"):
            if any(split in record for record in records):
                lines += [*table(records, split), ""]
        for record in records:
            baseline = record["validation"]["frechet_training"]
            lines += [f"### {record['name']}, {minutes:g} minutes", ""]
            lines += [f"{record['date']}, {record['machine']}", ""]
            lines += [f"    vaekit {record['command']} --epochs {record['epochs']}", ""]
            if baseline is not None:
                lines += [f"Frechet distance of as many training images: {baseline:.2f}.", ""]
            lines += [f"![{p}](../pictures/{p})" for p in record["pictures"]]
            lines += ["", "Epoch, seconds of training, validation objective in nats:", ""]
            lines += epoch_log(Run(out / f"{dataset}-{minutes:g}" / record["name"] / "run"))
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("dataset", choices=SOURCES)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--models", nargs="+", choices=CONFIGURATIONS, default=list(CONFIGURATIONS))
    parser.add_argument("--data", help="its files, if not in the folder that VAEKIT_DATA names")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--test", action="store_true", help="evaluate on the test images too")
    parser.add_argument("--out", type=Path, default=Path("runs/colour"))
    parser.add_argument("--report", type=Path, default=Path("docs/results"))
    parser.add_argument("--pictures", type=Path, default=Path("docs/pictures"))
    args = parser.parse_args()
    for folder in (args.report, args.pictures):
        folder.mkdir(parents=True, exist_ok=True)
    source = SOURCES[args.dataset]
    data = args.data or str(Path(os.environ.get("VAEKIT_DATA", ".")) / source.file)
    # Read once beforehand, so that no training decodes the files.
    splits = vaekit.load_data(data, size=source.size).splits
    images = {name: len(split) for name, split in splits.items()}
    for name in args.models:
        folder = args.out / f"{args.dataset}-{args.minutes:g}" / name
        folder.mkdir(parents=True, exist_ok=True)
        complete(name, data, images, args, folder)
    sections: dict[float, list[Record]] = {}
    for path in sorted(args.out.glob(f"{args.dataset}-*/*/record.json")):
        record = json.loads(path.read_text())
        if "pictures" in record:
            sections.setdefault(float(path.parts[-3].split("-")[1]), []).append(record)
    text = report(args.dataset, sections, args.out)
    write_bytes(args.report / f"colour-{args.dataset}.md", text.encode())
    print(text)


if __name__ == "__main__":
    main()
