"""Published results and the trainings that reproduce them, and `reproduce`, which carries one out.

For comparability the binarisation of MNIST (fixed or dynamic), the metric (ELBO, or NLL with its number of samples) and
the split are those of the source, or the entry states the differences.
"""

from __future__ import annotations

import math
import numbers
import os
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from filelock import FileLock

from ..evaluation.metrics import METRIC_GROUPS
from ..runs.directory import Run
from ..support.atomic import atomic_write, parse_json, write_json
from ..support.console import ProgressBar
from ..support.errors import UserError, did_you_mean, is_whole, require, require_count
from ..support.version import __version__
from ..training.plan import Plan

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class PublishedResult:
    """A published result, and the training that should reproduce it.

    `metric` is a key of evaluation.json; a reproduction may be worse than the published `value` by `tolerance`, in the
    metric's unit. `source` is the publication, and `differences` states what this training does otherwise.
    """

    description: str
    source: str
    metric: str
    value: float
    tolerance: float
    better: Literal["higher", "lower"]
    plan: Mapping[str, Any]
    samples: int = 5000
    differences: str = ""
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    folder: str = ""  # of its runs, where it shares them with another result

    def is_reached(self, ours: float) -> bool:
        """Whether `ours` is no worse than the published value by more than the tolerance."""
        gain = ours - self.value if self.better == "higher" else self.value - ours
        return gain >= -self.tolerance


AEVB = "Kingma and Welling 2014, Figure 2, at 10^7 training samples, read from its curves"
AEVB_INITIAL = "weights are initialised as torch does, not from N(0, 0.01)"
# Their results in docs/results/ were measured before there was `mean`.
LINEAR_MEAN = {"mean": "linear"}
AEVB_FREY = AEVB_INITIAL + "; means are not squashed by a sigmoid; scales stay above 1/256"
# Weight decay 1/N is the prior N(0, I) of all weights: the paper takes the MAP estimate.
ADAGRAD = {"optimizer": "adagrad", "learning_rate": 0.02, "weight_decay": 2e-5}
ADAM = {"schedule": "cosine"}
FREY_ADAGRAD = {"optimizer": "adagrad", "learning_rate": 0.01, "weight_decay": 7.3e-4}
NOVICE = "NoviceStone/VAE, its curves of the test ELBO, at the best epoch"
VAMP = "Exemplar VAE, Norouzi et al. 2020, Table 1 (mean of its runs)"
RERUN = "a rerun of jmtomczak/vae_vampprior in 2026"
IWAE = "Burda et al. 2016, Table 1"


def aevb_results() -> dict[str, PublishedResult]:
    """Results of Kingma and Welling 2014."""
    results = {}
    for dim, value in {3: -138.0, 5: -124.1, 10: -108.5, 20: -104.8, 200: -103.9}.items():
        for name, changes, tolerance in (("", ADAGRAD, 1.5), ("-adam", ADAM, 0.0)):
            results[f"aevb-mnist-{dim}{name}"] = PublishedResult(
                f"784-500-{dim}, {'Adam' if name else 'Adagrad and weight decay'}, grey pixels",
                AEVB, "elbo", value, tolerance, "higher",
                {"preset": "aevb-mnist", "latent_dim": dim, "epochs": 200, **changes},
                differences="whether the paper's MNIST was binarised is not stated; " + AEVB_INITIAL,
            )  # fmt: skip
    for dim, value in {2: 823.0, 5: 1044.0, 10: 1171.0, 20: 1200.0}.items():
        for name, changes in (("", FREY_ADAGRAD), ("-adam", ADAM)):
            results[f"aevb-frey-{dim}{name}"] = PublishedResult(
                f"560-200-{dim}, {'Adam' if name else 'Adagrad and weight decay'}, Gaussian pixels",
                AEVB, "elbo", value, 0.05 * value, "higher",
                {"preset": "aevb-freyface", "data": "freyface:aevb", "latent_dim": dim, "epochs": 7326, "seed": 0,
                 **LINEAR_MEAN, **changes},
                differences=AEVB_FREY,
            )  # fmt: skip
    for images, samples, value in ((1000, "5 x 10^6", -143.4), (50_000, "6 x 10^7", -138.0)):
        results[f"aevb-likelihood-{images}"] = PublishedResult(
            f"784-100-3 from {images:,} digits, Adagrad and weight decay, grey pixels",
            f"Kingma and Welling 2014, Figure 3, at {samples} training samples, read from its curves",
            "nll", -value, 1.5, "lower",
            {"preset": "aevb-mnist", "data": "mnist:1000" if images == 1000 else "mnist", "latent_dim": 3,
             "encoder": "100", "decoder": "100", "epochs": 5000 if images == 1000 else 1200,
             **ADAGRAD, "weight_decay": 1 / images},
            evaluation={"metrics": ("elbo", "nll"), "estimator": "hmc", "limit": 1000},
            differences="whether the paper's MNIST was binarised is not stated; HMC starts from annealed chains, and "
            "its density estimate is truncated at the tails; " + AEVB_INITIAL,
        )  # fmt: skip
    return results


def replaced_system_results() -> dict[str, PublishedResult]:
    """Results of the repositories that vaekit replaces."""
    results = {}
    for dim, value in {2: -148.3, 5: -118.6, 10: -103.5, 20: -100.0}.items():
        results[f"novicestone-mnist-{dim}"] = PublishedResult(
            f"784-500-{dim}, grey pixels, 200 epochs", NOVICE, "elbo", value, 0.0, "higher",
            {"preset": "aevb-mnist", "latent_dim": dim, "epochs": 200, **ADAM},
            differences="50,000 training images, not 60,000; cosine schedule of the learning rate",
            folder=f"aevb-mnist-{dim}-adam",
        )  # fmt: skip
    for dim, value in {2: 820.0, 5: 1005.0, 10: 1200.0, 20: 1225.0}.items():
        results[f"novicestone-frey-{dim}"] = PublishedResult(
            f"560-200-{dim}, Gaussian pixels, 2,000 epochs", NOVICE, "elbo", value, 0.0, "higher",
            {"preset": "aevb-freyface", "data": "freyface:aevb", "latent_dim": dim, "epochs": 2000, "seed": 0,
             **LINEAR_MEAN, **ADAM},
            differences="1,365 training images, not 1,565; cosine schedule of the learning rate; scales stay above "
            "1/256; means are not squashed by a sigmoid",
        )  # fmt: skip
    for dim, value in {2: 2.2650, 5: 1.2810, 10: 0.6702, 20: 0.4377}.items():
        results[f"novicestone-frey-{dim}-error"] = replace(
            results[f"novicestone-frey-{dim}"],
            description=f"560-200-{dim}, squared error per image",
            source="NoviceStone/VAE, its README",
            metric="squared_error",
            value=value,
            better="lower",
            evaluation={"metrics": ("elbo", "reconstruction")},
            folder=f"novicestone-frey-{dim}",
        )
    vampprior_tf2 = {
        "mnist": {"-vae": -143.7, "": -142.3, "-hvae": -140.5, "-hvamp": -139.5},
        "fashion": {"-vae": -258.0, "": -258.0, "-hvae": -256.0, "-hvamp": -255.5},
    }
    for kind, values in vampprior_tf2.items():
        for name, value in values.items():
            results[f"vampprior-tf2{name}-{kind}"] = PublishedResult(
                f"its model with 2 latent dimensions at network size 16, {kind}",
                "mk017/VAE-VampPrior-tf2, its curves", "elbo", value, 0.0, "higher",
                {"preset": f"vampprior-tf2{name}", "data": "fashionmnist" if kind == "fashion" else "mnist",
                 "network_size": 16.0},
                differences="theirs is the test value of the last epoch; 50,000 training images, not 60,000",
            )  # fmt: skip
    return results


def vampprior_results() -> dict[str, PublishedResult]:
    """Results of VampPrior models."""
    results = {}
    sets = {
        "dynamic": ("mnist", VAMP, {"vae": 84.45, "vampprior": 82.43, "hvae": 82.39, "hvampprior": 81.56}),
        "static": ("binarizedmnist", RERUN, {"vae": 88.5, "vampprior": 85.8, "hvae": 85.98, "hvampprior": 84.89}),
        "fashion": ("fashionmnist", VAMP, {"vae": 228.70, "vampprior": 227.35, "hvae": 227.37, "hvampprior": 226.72}),
    }  # fmt: skip
    presets = {
        "vae": "vampprior-paper-vae",
        "vampprior": "vampprior-paper",
        "hvae": "vampprior-paper-hvae",
        "hvampprior": "vampprior-paper-hvae",
    }
    for kind, (data, source, values) in sets.items():
        for model, value in values.items():
            prior = {"prior": "standard"} if model == "hvae" else {}
            results[f"{model}-{kind}"] = PublishedResult(
                f"{model}, gated layers of 300, 40 latent dimensions per level, {data}",
                source, "nll", value, 0.3, "lower",
                {"preset": presets[model], "data": data, "learning_rate": 2e-3, "schedule": "cosine", **prior},
                differences="plain Adam with a cosine schedule from 2e-3, not one with normalised gradients at 5e-4; "
                "scales are not clipped",
            )  # fmt: skip
    return results


def iwae_results() -> dict[str, PublishedResult]:
    """Results of Burda et al. 2016."""
    return {
        f"iwae-{k}": PublishedResult(
            f"784-200-200-50, K = {k}, 3,280 epochs in batches of 20", IWAE, "nll", value, 0.2, "lower",
            {"preset": "iwae-paper", "samples": k},
            differences="cosine schedule of the learning rate, not 8 stages; 50,000 training images, not 59,600",
        )
        for k, value in {1: 86.76, 5: 85.54, 50: 84.78}.items()
    }  # fmt: skip


def other_results() -> dict[str, PublishedResult]:
    """Results of conditional, clustering and MMD models."""
    results = {
        f"cvae-{given}": PublishedResult(
            f"completing a digit from {given} quadrants, 100 samples",
            "Sohn et al. 2015, Table 1, from memory, not read", "nll", value, tolerance, "lower",
            {"preset": "cvae-quadrants", "condition": f"quadrants:{given}"}, samples=100,
            differences="layer sizes are from memory too",
        )
        for given, value, tolerance in ((1, 63.91, 1.0), (2, 44.73, 1.0), (3, 20.95, 1.0))
    }  # fmt: skip
    for clusters, value in ((10, 0.8231), (16, 0.8782)):
        results[f"gmvae-{clusters}"] = PublishedResult(
            f"gmvae with {clusters} clusters, many-to-one", "Dilokthanakul et al. 2016, arXiv v2, M = 10, from memory",
            "many_to_one", value, 0.0, "higher", {"model": "gmvae", "clusters": clusters, "epochs": 20},
            differences="dense layers, w of 2 dimensions, clusters initialised from the codes of a plain VAE",
            evaluation={"metrics": ("elbo", "clusters")},
        )  # fmt: skip
    results["mmdvae-mnist"] = PublishedResult(
        "MMD-VAE, log-likelihood by annealed importance sampling", "Zhao et al. 2017, from memory", "nll", 80.76, 1.0,
        "lower", {"model": "mmdvae", "epochs": 50},
        evaluation={"metrics": ("nll",), "estimator": "ais", "limit": 100},
        differences="dense layers of 500, not convolutions; 100 test images",
    )  # fmt: skip
    return results


PUBLISHED_RESULTS: dict[str, PublishedResult] = {
    **aevb_results(),
    **replaced_system_results(),
    **vampprior_results(),
    **iwae_results(),
    **other_results(),
}
REPORT = Path("docs/results/reproduction.md")
HEADER = """# Published and reproduced results

Each line is one `vaekit reproduce ROW`, evaluated on the test images; `vaekit reproduce` lists the rows with their
sources. Within: no worse than the published value by more than the tolerance.

| date | row | metric | ours | seeds | published | tolerance | within | epochs | version | machine |
|---|---|---|---|---|---|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Reproduction:
    """Result of a reproduction: the metric of each seed, and the epochs trained."""

    name: str
    values: tuple[float, ...]
    epochs: int
    planned_epochs: int  # epochs without a budget

    @property
    def mean(self) -> float:
        return statistics.mean(self.values)

    @property
    def within_tolerance(self) -> bool:
        return PUBLISHED_RESULTS[self.name].is_reached(self.mean)

    @property
    def formatted(self) -> str:
        """Mean ± standard deviation over seeds, with at least the decimals of the published value."""
        _, _, decimals = f"{PUBLISHED_RESULTS[self.name].value:g}".partition(".")
        digits = max(2, len(decimals))
        sd = f" ± {statistics.stdev(self.values):.{digits}f}" if len(self.values) > 1 else ""
        return f"{self.mean:.{digits}f}{sd}"


def reproduce(
    name: str,
    seeds: int = 1,
    budget: float | None = None,
    out: str | Path = "runs/reproduce",
    progress: bool = True,
) -> Reproduction:
    """Train an entry of PUBLISHED_RESULTS with the seeds 0, 1 ... in OUT/<name>, and evaluate it on the test images.

    `budget`, in seconds for all seeds together, shortens the training to the epochs that fit; timing the first epoch
    and the evaluation come on top. Existing runs are reused. Raises UserError for an unknown name, a bad budget or
    number of seeds, and where a run lacks the metric.
    """
    from .sweep import sweep

    published = published_result(name)
    require_count("seeds", seeds, largest=1000)
    require(
        budget is None or (is_number(budget) and 0 < budget < math.inf),
        f"--budget is {budget!r} seconds; it must be a positive number",
    )
    plan = Plan.of(**published.plan)
    planned_epochs = plan.training.epochs
    folder = Path(out) / (published.folder or name)
    if budget is not None:
        plan = fit_to_budget(plan, budget / seeds, folder, ProgressBar(progress))
    plans = {
        f"seed-{seed}": plan.changed({"seed": plan.training.seed + seed}) for seed in range(seeds)
    }
    if plan.training.epochs < planned_epochs:
        plans = {f"{key}-epochs-{plan.training.epochs}": each for key, each in plans.items()}
    metrics = ("elbo", "nll") if published.metric in ("nll", "bits_per_dim") else ("elbo",)
    settings: dict[str, Any] = {"metrics": metrics, "samples": published.samples, "limit": 10_000}
    runs = sweep(plans, folder, progress, split="test", **{**settings, **published.evaluation})
    values = [required_metric(run, published.metric) for run in runs]
    return Reproduction(name, tuple(values), plan.training.epochs, planned_epochs)


def required_metric(run: Run, key: str) -> float:
    """A metric of an evaluated run. Raises UserError with the reason where it is null."""
    evaluation = run.evaluation
    if evaluation[key] is None:
        (group,) = (
            name for name in METRIC_GROUPS if key in (metric.key for metric in METRIC_GROUPS[name])
        )
        missing = evaluation.get("missing", {})
        reason = missing.get(key) or missing.get(group) or "evaluation.json gives no reason"
        raise UserError(f"{run} has no {key} to compare with the published value: {reason}")
    return evaluation[key]


def is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def published_result(name: str) -> PublishedResult:
    """The published result called `name`. Raises UserError with the closest name."""
    if name not in PUBLISHED_RESULTS:
        suggestion = did_you_mean(name, PUBLISHED_RESULTS)
        raise UserError(
            f"there is no published result {name!r}{suggestion}; `vaekit reproduce` lists them"
        )
    return PUBLISHED_RESULTS[name]


def fit_to_budget(plan: Plan, seconds: float, folder: Path, bar: ProgressBar) -> Plan:
    """Shorten the plan to a training time, to the epochs stored for it in budgets.json, so that runs resume."""
    file = folder / "budgets.json"
    stored = parse_json(file.read_bytes(), str(file)) if file.exists() else {}
    earlier = {key: epochs for key, epochs in stored.items() if is_whole(epochs) and epochs >= 1}
    epochs = earlier.get(str(seconds))
    short = shorten_plan(plan, seconds, bar) if epochs is None else with_epochs(plan, epochs)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(file, {**earlier, str(seconds): short.training.epochs})
    return short


def shorten_plan(plan: Plan, seconds: float, bar: ProgressBar) -> Plan:
    """Shorten the plan to the epochs that fit, by timing one epoch; warm-ups shrink in proportion."""
    with tempfile.TemporaryDirectory() as folder:
        trial = plan.changed({"epochs": 1, "kl_warmup": 0.0, "lr_warmup": 0.0})
        run = trial.train(str(Path(folder) / "trial"), progress=False)
        epoch_seconds = run.metrics[-1]["seconds"]
    training = plan.training
    epochs = max(1, int(min(training.epochs, seconds / epoch_seconds)))
    if epochs < training.epochs:
        bar.log(
            f"{epochs:,} of {training.epochs:,} epochs fit the budget ({epoch_seconds:.1f} s each); cosine schedule"
        )
    return with_epochs(plan, epochs)


def with_epochs(plan: Plan, epochs: int) -> Plan:
    """The plan with fewer epochs, warm-ups shortened in proportion, and a cosine schedule."""
    training = plan.training
    if epochs >= training.epochs:
        return plan
    share = epochs / training.epochs
    short = replace(
        training,
        epochs=epochs,
        schedule="cosine",
        kl_warmup=training.kl_warmup and training.kl_warmup * share,
        lr_warmup=training.lr_warmup * share,
    )
    return replace(plan, training=short)


def check_report(report: Path) -> None:
    """Raise UserError where the report cannot be appended to."""
    require(
        report.suffix.lower() in (".md", ".txt"),
        f"--report {report} is not a text file; its ending must be .md or .txt",
    )
    try:
        require(
            report.is_file() or not report.exists(),
            f"{report} is not a file; choose another --report",
        )
        if report.exists():
            report.read_text(encoding="utf-8")
        folder = next(folder for folder in report.absolute().parents if folder.exists())
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(f"cannot append to {report} ({reason}); choose another --report") from None


def append_to_report(outcome: Reproduction, report: Path) -> None:
    """Append a line to the report, which is created with HEADER where missing."""
    published = PUBLISHED_RESULTS[outcome.name]
    epochs = (
        f"{outcome.epochs:,}"
        if outcome.epochs == outcome.planned_epochs
        else f"{outcome.epochs:,} of {outcome.planned_epochs:,}"
    )
    cells = [
        time.strftime("%Y-%m-%d"),
        f"`{outcome.name}`",
        published.metric,
        f"**{outcome.formatted}**",
        str(len(outcome.values)),
        f"{published.value:g}",
        f"{published.tolerance:g}",
        "yes" if outcome.within_tolerance else "no",
        epochs,
        __version__,
        f"{os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}",
    ]
    report.parent.mkdir(parents=True, exist_ok=True)
    # Two concurrent writers would lose a line.
    with FileLock(report.with_name(f".{report.name}.lock")):
        content = (report.read_bytes() if report.exists() else b"") or HEADER.encode()
        if not content.endswith(b"\n"):
            content += b"\n"
        with atomic_write(report) as file:
            file.write(content + f"| {' | '.join(cells)} |\n".encode())


def as_table() -> Table:
    """All published results, for the terminal."""
    from rich.table import Table

    table = Table(title="vaekit reproduce ROW", title_justify="left")
    for column in ("row", "published", "description"):
        table.add_column(column, no_wrap=column == "row", overflow="fold")
    for name, result in PUBLISHED_RESULTS.items():
        published = f"{result.metric} {result.value:g}"
        table.add_row(name, published, f"{result.description} ({result.source})")
    return table
