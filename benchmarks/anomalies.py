"""How well every score finds odd images, beside scikit-learn's detectors: AUROC by pair, and false alarms.

    python benchmarks/anomalies.py [--tasks fashion digits ...] [--seeds 0 1 2] [--minutes 5] [--hours 4]
                                   [--icons FOLDER]

A task trains a model on normal images, for at most --minutes, and compares its test images with one or several sets of
odd ones. Each task and seed is a record in docs/results/anomalies/, and is skipped where that is there already, so that
a second call goes on. No new one begins after --hours. The table of all records is written to
docs/results/anomalies.md. The data sets are those in the folder that VAEKIT_DATA names. FOLDER is made by icons.py.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from speedrun import machine
from torch import Tensor

import vaekit
from vaekit import Dataset, Run, Split
from vaekit.data import EvalSplit, eval_split
from vaekit.data.splits import random_rows
from vaekit.evaluation.anomaly_scores import SCORES, ScoreContext, default_score, why_not
from vaekit.evaluation.conformal import p_values
from vaekit.settings.analysis import AnomalyConfig
from vaekit.support.atomic import write_bytes, write_json
from vaekit.support.console import ProgressBar

RESULTS = Path("docs/results")
FALSE_ALARMS = 0.05
COMPONENTS, NEIGHBOURS = 50, 5  # of the baselines
BASELINES = ("IsolationForest on PCA", "k-NN on pixels")
DIGITS = (9, 2, 7)  # left out, by seed
LEFT_OUT = 5  # classes of Caltech, another choice for each seed
Record = dict[str, Any]
Odd = dict[str, Split]


@dataclass(frozen=True)
class Task:
    """Normal images and sets of odd ones from `load(seed, icons)`, the model with its settings, and the most epochs."""

    load: Callable[[int, str | None], tuple[Dataset, Odd]]
    model: str
    settings: dict[str, Any] = field(default_factory=dict)
    epochs: int = 100
    learning_rate: float | None = None


def without_labels(data: Dataset) -> Dataset:
    return Dataset.from_splits(
        data.name,
        (Split(split.images[:]) for split in data.splits.values()),
        black_and_white=data.black_and_white,
        value_range=data.value_range,
    )


def fashion(seed: int, icons: str | None) -> tuple[Dataset, Odd]:
    data = vaekit.load_data("fashionmnist", progress=False, train_images=20_000)
    return without_labels(data), {"digits": vaekit.load_data("mnist", progress=False).test}


def digits(seed: int, icons: str | None) -> tuple[Dataset, Odd]:
    data = vaekit.load_data("mnist", progress=False, train_images=20_000)
    return without_labels(data), {"clothes": vaekit.load_data("fashionmnist", progress=False).test}


def chosen(split: Split, classes: Sequence[int], inside: bool) -> Split:
    """The images of these classes, or the others."""
    assert split.labels is not None
    member = torch.isin(split.labels, torch.tensor(classes))
    return split.take((member == inside).nonzero().flatten())


def left_out(data: Dataset, classes: Sequence[int]) -> tuple[Dataset, Split]:
    """A data set without some classes, and all of their images."""
    rest = data.with_splits((chosen(s, classes, False) for s in data.splits.values()), digest=None)
    odd = torch.cat([chosen(s, classes, True).images[:] for s in data.splits.values()])
    return without_labels(rest), Split(odd)


def digit_left_out(seed: int, icons: str | None) -> tuple[Dataset, Odd]:
    data = vaekit.load_data("mnist", progress=False, train_images=20_000)
    rest, _ = left_out(data, [DIGITS[seed % 3]])
    return rest, {"a digit left out": chosen(data.test, [DIGITS[seed % 3]], True)}


def load_caltech() -> Dataset:
    folder = Path(os.environ.get("VAEKIT_DATA", "."))
    return vaekit.load_data(folder / "caltech101-21.zip", size=64, progress=False)


def caltech_left_out(seed: int, icons: str | None) -> tuple[Dataset, Odd]:
    data = load_caltech()
    classes = np.random.default_rng(seed).permutation(data.class_count)[:LEFT_OUT].tolist()
    rest, odd = left_out(data, classes)
    return rest, {"classes left out": odd}


def caltech(seed: int, icons: str | None) -> tuple[Dataset, Odd]:
    data = load_caltech()
    images = data.test.images[:]
    odd = {name: Split(corrupt(name, images, seed)) for name in CORRUPTIONS}
    if icons:
        odd["drawings"] = vaekit.load_data(icons, size=64, progress=False, colour="rgb").test
    return without_labels(data), odd


CORRUPTIONS = ("noise", "blur", "occlusion")


def corrupt(kind: str, images: Tensor, seed: int) -> Tensor:
    """Images (N, C, H, W), uint8, with Gaussian noise of 15 levels, blurred by 1 pixel, or with a grey square of a
    quarter of the side at a random place."""
    x, rng = images.numpy().astype(np.float64), np.random.default_rng(seed)
    if kind == "noise":
        x = x + rng.normal(0, 15, x.shape)
    elif kind == "blur":
        x = gaussian_filter(x, (0, 0, 1, 1))
    else:
        side = x.shape[-1] // 4
        for image in x:
            top, left = (rng.integers(0, n - side) for n in x.shape[-2:])
            image[:, top : top + side, left : left + side] = 127
    return torch.from_numpy(x.round().clip(0, 255).astype(np.uint8))


GREY = {"likelihood": "logistic", "latent_dim": 32}
PHOTOS = {"latent_dim": 64}
TASKS = {
    "clothes": Task(fashion, "convvae", GREY),
    "digits": Task(digits, "convvae", {"latent_dim": 20}),
    "digit": Task(digit_left_out, "convvae", {"latent_dim": 20}),
    "classes": Task(caltech_left_out, "convvae", PHOTOS, 400, 3e-3),
    "photos": Task(caltech, "convvae", PHOTOS, 400, 3e-3),
}
NORMAL = {
    "clothes": "Fashion-MNIST, grey",
    "digits": "MNIST, binarised",
    "digit": "MNIST without a digit, binarised",
    "classes": f"Caltech without {LEFT_OUT} of 21 classes",
    "photos": "Caltech, 21 classes",
}


def train(task: Task, data: Dataset, seed: int, minutes: float, folder: Path) -> Run:
    """Train for at most so many minutes, which a trial of one epoch predicts."""

    def fit(out: str, epochs: int) -> Run:
        model = vaekit.build(task.model, data, seed=seed, **task.settings)
        return vaekit.train(
            model,
            data,
            out=folder / out,
            epochs=epochs,
            seed=seed,
            learning_rate=task.learning_rate or 1e-3,
            progress=False,
        )

    started = time.perf_counter()
    fit("trial", 1)
    seconds = time.perf_counter() - started
    return fit("run", max(1, min(task.epochs, int(60 * minutes / seconds))))


def detector_scores(
    run: Run, train: EvalSplit, sets: dict[str, EvalSplit], seed: int, config: AnomalyConfig
) -> tuple[dict[str, dict[str, np.ndarray]], str]:
    """The scores of each set of images by each detector, and the name of vaekit's default score."""
    model, quiet = vaekit.load(run), ProgressBar(False)
    levels = 2 if run.data.binarisation != "none" else run.data.value_range.levels
    training = ScoreContext(
        model, train.take(torch.arange(min(1000, len(train)))), levels, config, quiet
    )
    contexts = {
        name: ScoreContext(model, images, levels, config, quiet, training)
        for name, images in sets.items()
    }
    with torch.no_grad():
        found: dict[str, dict[str, np.ndarray]] = {
            score: {name: entry.function(context) for name, context in contexts.items()}
            for score, entry in SCORES.items()
            if not why_not(score, model, levels)
        }
    pixels = {name: flat(images) for name, images in sets.items()}
    known = flat(train)
    parts = min(COMPONENTS, *known.shape)
    forest = make_pipeline(PCA(parts, random_state=seed), IsolationForest(random_state=seed))
    forest.fit(known)
    neighbours = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(known))).fit(known)
    found["IsolationForest on PCA"] = {n: -forest.score_samples(x) for n, x in pixels.items()}
    found["k-NN on pixels"] = {n: neighbours.kneighbors(x)[0].mean(1) for n, x in pixels.items()}
    return found, default_score(model, levels, False)[0]


def flat(images: EvalSplit) -> np.ndarray:
    return images[:].images.flatten(1).numpy()


def measure(name: str, seed: int, args: argparse.Namespace) -> Record:
    """Train a task's model and compare all detectors on its pairs."""
    task, started = TASKS[name], time.perf_counter()
    data, odd = task.load(seed, args.icons)
    if args.images:
        data = data.with_splits(
            (s.take(random_rows(len(s), args.images, seed)) for s in data.splits.values()),
            digest=None,
        )
    with tempfile.TemporaryDirectory() as folder:
        run = train(task, data, seed, args.minutes, Path(folder))
        binarisation = run.data.binarisation

        def part(split: Split, count: int) -> EvalSplit:
            return eval_split(split.take(random_rows(len(split), count, seed)), binarisation)

        sets = {
            "validation": part(data.validation, args.limit),
            "test": part(data.test, args.limit),
        }
        sets |= {key: part(split, args.limit) for key, split in odd.items()}
        config = AnomalyConfig(seed=seed, samples=args.samples)
        found, default = detector_scores(run, part(data.train, 10_000), sets, seed, config)
        about = machine(run)
        epochs = len(run.metrics)
    detectors: Record = {}
    for detector, scores in found.items():
        flagged = {
            key: p_values(s, scores["validation"]) <= FALSE_ALARMS for key, s in scores.items()
        }
        detectors[detector] = {
            "false_alarms": float(flagged["test"].mean()),
            "auroc": {key: auroc(scores["test"], scores[key]) for key in odd},
            "found": {key: float(flagged[key].mean()) for key in odd},
        }
    return {
        "task": name,
        "seed": seed,
        "default": default,
        "detectors": detectors,
        "images": {key: len(images) for key, images in sets.items()},
        "training_images": len(data.train),
        "epochs": epochs,
        "minutes": args.minutes,
        "seconds": round(time.perf_counter() - started),
        "date": time.strftime("%Y-%m-%d"),
        "machine": about,
    }


def auroc(normal: np.ndarray, odd: np.ndarray) -> float:
    truth = np.repeat([0, 1], [len(normal), len(odd)])
    return float(roc_auc_score(truth, np.concatenate([normal, odd])))


def mean_and_sd(values: Sequence[float]) -> str:
    """Text of the mean; "" of no values."""
    sd = f" (sd {statistics.stdev(values):.3f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{sd}" if values else ""


def tables(records: Sequence[Record]) -> list[str]:
    """The lines of the page: AUROC of each pair by detector, where vaekit loses, and false alarms."""
    columns: list[str] = [*SCORES, *BASELINES]
    heads = [["trained on", "odd", *columns, "seeds"], ["trained on", *columns, "seeds"]]
    aurocs, alarms = ([line(head), line(["---"] * len(head))] for head in heads)
    losses: list[str] = []
    for task in [name for name in TASKS if any(r["task"] == name for r in records)]:
        own = [r for r in records if r["task"] == task]
        default = own[0]["default"]
        for odd in dict.fromkeys(key for r in own for key in r["images"]):
            having = [r for r in own if odd in r["images"]]
            if odd in ("validation", "test"):
                continue
            values = {c: of_detector(having, c, "auroc", odd) for c in columns}
            means = {c: statistics.mean(v) for c, v in values.items() if v}
            best = max(means, key=means.__getitem__)
            cells = [
                f"{'**' * (c == best)}{mean_and_sd(values[c])}{'**' * (c == best)}{' *' * (c == default)}"
                for c in columns
            ]
            aurocs.append(line([NORMAL[task], odd, *cells, str(len(having))]))
            losses += lost(f"{NORMAL[task]}, {odd}", means, default)
        shares = [mean_and_sd(of_detector(own, c, "false_alarms")) for c in columns]
        alarms.append(line([NORMAL[task], *shares, str(len(own))]))
    losses = losses or ["- Nowhere in this table."]
    parts = ["## AUROC", "", *aurocs, "", "## Where vaekit loses", "", *losses]
    return [*parts, "", f"## False alarms at {FALSE_ALARMS:.0%}", "", *alarms]


def line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def of_detector(records: Sequence[Record], detector: str, *keys: str) -> list[float]:
    """A value of a detector, by its keys, in each record that has it."""
    found = [r["detectors"][detector] for r in records if detector in r["detectors"]]
    return [reduce(dict.__getitem__, keys, each) for each in found]


def lost(pair: str, means: dict[str, float], default: str) -> list[str]:
    """A line where a detector of scikit-learn is better than the default score, or than all of vaekit's."""
    baseline = max(BASELINES, key=means.__getitem__)
    ours = max((c for c in means if c not in BASELINES), key=means.__getitem__)
    if means[baseline] > means[ours]:
        return [
            f"- {pair}: every score, to {baseline} ({means[baseline]:.3f}; best {ours}, {means[ours]:.3f})"
        ]
    if means[baseline] > means[default]:
        return [
            f"- {pair}: the default {default} ({means[default]:.3f}), to {baseline} ({means[baseline]:.3f})"
        ]
    return []


INTRODUCTION = """\
# Odd images

AUROC of odd images against held-out images of the training's kind, by every score of
[`vaekit anomalies`](../anomalies.md) and two detectors of scikit-learn: an isolation forest on {components} principal
components, and the mean distance to the {neighbours} nearest of 10,000 training images, pixel by pixel. 0.5 is chance;
below it odd images rank as usual. Means over seeds, with their standard deviation (a seed is another training,
and where classes are left out another choice). The best is bold; * marks what `--score auto` chooses, by a rule for
which no result here was used. A score that the model does not have is blank.

Not compared: detectors with networks that were trained on other images, such as PatchCore (Roth et al. 2022), which are
another league on MVTec-AD.

    {command}
"""
NOTES = """\

A false alarm is a held-out image of the training's kind ({images}) that is flagged at {alarms:.0%}. Their share is at
most that in expectation where validation images had no part in the training; here they chose the epoch.
"""


def page(records: Sequence[Record]) -> str:
    """docs/results/anomalies.md."""
    command = (
        "python benchmarks/anomalies.py --minutes " + f"{records[0]['minutes']:g} --icons FOLDER"
    )
    text = INTRODUCTION.format(components=COMPONENTS, neighbours=NEIGHBOURS, command=command)
    images = ", ".join(sorted({f"{r['images']['test']:,}" for r in records}))
    about = sorted({f"- {r['date']}, {r['machine']}" for r in records})
    parts = [
        text,
        *tables(records),
        NOTES.format(alarms=FALSE_ALARMS, images=images),
        "## Machine",
        "",
        *about,
    ]
    return "\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=[*TASKS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=5.0, help="of each training, at most")
    parser.add_argument("--hours", type=float, default=24.0, help="after which no new part begins")
    parser.add_argument("--limit", type=int, default=300, help="images of each kind")
    parser.add_argument("--samples", type=int, default=100, help="importance samples per image")
    parser.add_argument(
        "--images", type=int, default=None, help="of each split, for a trial of the script"
    )
    parser.add_argument("--icons", default=None, help="folder of drawings, of icons.py")
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help="folder for anomalies.md and anomalies/"
    )
    args = parser.parse_args()
    folder, started = args.out / "anomalies", time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        for name in args.tasks:
            path = folder / f"{name}-{seed}.json"
            if path.exists() or time.perf_counter() - started > 3600 * args.hours:
                continue
            write_json(path, measure(name, seed, args))
            print(f"{path}: {json.loads(path.read_text())['seconds']} s", flush=True)
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    if records:
        write_bytes(args.out / "anomalies.md", page(records).encode())
        print("\n".join(tables(records)))


if __name__ == "__main__":
    main()
