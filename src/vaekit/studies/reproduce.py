"""Published figures and the trainings that reproduce them: data, and `reproduce`, which carries one out.

What may stand beside what: the binarisation of MNIST (fixed once, or drawn anew), ELBO or NLL and from how many
samples, and the split are those of the source, or the row says how they differ.
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

from filelock import FileLock

from ..evaluation.metrics import METRICS
from ..runs.directory import Run
from ..support.atomic import parse_json, replacing, write_json
from ..support.console import Shown
from ..support.errors import UserError, closest, is_whole, require, require_count
from ..training.plan import Plan

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Published:
    """A published figure, and the training that should reach it.

    `figure` is a key of evaluation.json, whose published `value` ours may miss by `tolerance`, in its unit, in the
    direction that is worse; `source` says where it was read, and `differs` what is not as there.
    """

    what: str
    source: str
    figure: str
    value: float
    tolerance: float
    better: Literal["higher", "lower"]
    plan: Mapping[str, Any]
    samples: int = 5000
    differs: str = ""
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    folder: str = ""  # of its runs, where another row has the same

    def reached(self, ours: float) -> bool:
        gain = ours - self.value if self.better == "higher" else self.value - ours
        return gain >= -self.tolerance


AEVB = "Kingma and Welling 2014, Figure 2, at 10^7 training samples, read from its curves"
AEVB_INITIAL = "weights start as torch's, not from N(0, 0.01)"
AEVB_FREY = AEVB_INITIAL + "; means are not squashed by a sigmoid; scales stay above 1/256"
# Weight decay 1/N is the prior N(0, I) of all weights, of which the paper finds the most probable ones.
ADAGRAD = {"optimizer": "adagrad", "learning_rate": 0.02, "weight_decay": 2e-5}
ADAM = {"schedule": "cosine"}
FREY_ADAGRAD = {"optimizer": "adagrad", "learning_rate": 0.01, "weight_decay": 7.3e-4}
NOVICE = "NoviceStone/VAE, its curves of the test ELBO, at the best epoch"
VAMP = "Exemplar VAE, Norouzi et al. 2020, Table 1 (mean of its runs)"
RERUN = "a rerun of jmtomczak/vae_vampprior in 2026"
IWAE = "Burda et al. 2016, Table 1"


def aevb_rows() -> dict[str, Published]:
    rows = {}
    for dim, value in {3: -138.0, 5: -124.1, 10: -108.5, 20: -104.8, 200: -103.9}.items():
        for name, changes, tolerance in (("", ADAGRAD, 1.5), ("-adam", ADAM, 0.0)):
            rows[f"aevb-mnist-{dim}{name}"] = Published(
                f"784-500-{dim}, {'Adam' if name else 'Adagrad and weight decay'}, grey pixels",
                AEVB, "elbo", value, tolerance, "higher",
                {"preset": "aevb-mnist", "latent_dim": dim, "epochs": 200, **changes},
                differs="whether the paper's MNIST was binarised is not stated; " + AEVB_INITIAL,
            )  # fmt: skip
    for dim, value in {2: 823.0, 5: 1044.0, 10: 1171.0, 20: 1200.0}.items():
        for name, changes in (("", FREY_ADAGRAD), ("-adam", ADAM)):
            rows[f"aevb-frey-{dim}{name}"] = Published(
                f"560-200-{dim}, {'Adam' if name else 'Adagrad and weight decay'}, Gaussian pixels",
                AEVB, "elbo", value, 0.05 * value, "higher",
                {"preset": "aevb-freyface", "data": "freyface:aevb", "latent_dim": dim, "epochs": 7326, "seed": 0,
                 **changes},
                differs=AEVB_FREY,
            )  # fmt: skip
    for images, samples, value in ((1000, "5 x 10^6", -143.4), (50_000, "6 x 10^7", -138.0)):
        rows[f"aevb-likelihood-{images}"] = Published(
            f"784-100-3 from {images:,} digits, Adagrad and weight decay, grey pixels",
            f"Kingma and Welling 2014, Figure 3, at {samples} training samples, read from its curves",
            "nll", -value, 1.5, "lower",
            {"preset": "aevb-mnist", "data": "mnist:1000" if images == 1000 else "mnist", "latent_dim": 3,
             "encoder": "100", "decoder": "100", "epochs": 5000 if images == 1000 else 1200,
             **ADAGRAD, "weight_decay": 1 / images},
            evaluation={"metrics": ("elbo", "nll"), "estimator": "hmc", "limit": 1000},
            differs="whether the paper's MNIST was binarised is not stated; HMC starts from annealed chains, and its "
            "density is cut off at the tails; " + AEVB_INITIAL,
        )  # fmt: skip
    return rows


def seed_rows() -> dict[str, Published]:
    rows = {}
    for dim, value in {2: -148.3, 5: -118.6, 10: -103.5, 20: -100.0}.items():
        rows[f"novicestone-mnist-{dim}"] = Published(
            f"784-500-{dim}, grey pixels, 200 epochs", NOVICE, "elbo", value, 0.0, "higher",
            {"preset": "aevb-mnist", "latent_dim": dim, "epochs": 200, **ADAM},
            differs="50,000 training images, not 60,000; the learning rate falls along a cosine",
            folder=f"aevb-mnist-{dim}-adam",
        )  # fmt: skip
    for dim, value in {2: 820.0, 5: 1005.0, 10: 1200.0, 20: 1225.0}.items():
        rows[f"novicestone-frey-{dim}"] = Published(
            f"560-200-{dim}, Gaussian pixels, 2,000 epochs", NOVICE, "elbo", value, 0.0, "higher",
            {"preset": "aevb-freyface", "data": "freyface:aevb", "latent_dim": dim, "epochs": 2000, "seed": 0, **ADAM},
            differs="1,365 training images, not 1,565; the learning rate falls along a cosine; scales stay above "
            "1/256; means are not squashed by a sigmoid",
        )  # fmt: skip
    for dim, value in {2: 2.2650, 5: 1.2810, 10: 0.6702, 20: 0.4377}.items():
        rows[f"novicestone-frey-{dim}-error"] = replace(
            rows[f"novicestone-frey-{dim}"],
            what=f"560-200-{dim}, squared error of an image's pixels",
            source="NoviceStone/VAE, its README",
            figure="squared_error",
            value=value,
            better="lower",
            evaluation={"metrics": ("elbo", "reconstruction")},
            folder=f"novicestone-frey-{dim}",
        )
    koenig = {
        "mnist": {"-vae": -143.7, "": -142.3, "-hvae": -140.5, "-hvamp": -139.5},
        "fashion": {"-vae": -258.0, "": -258.0, "-hvae": -256.0, "-hvamp": -255.5},
    }
    for kind, values in koenig.items():
        for name, value in values.items():
            rows[f"vampprior-tf2{name}-{kind}"] = Published(
                f"its model of 2 latent dimensions at network size 16, {kind}",
                "mk017/VAE-VampPrior-tf2, its curves", "elbo", value, 0.0, "higher",
                {"preset": f"vampprior-tf2{name}", "data": "fashionmnist" if kind == "fashion" else "mnist",
                 "network_size": 16.0},
                differs="theirs is of the last epoch on the test images; 50,000 training images, not 60,000",
            )  # fmt: skip
    return rows


def vampprior_rows() -> dict[str, Published]:
    rows = {}
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
            rows[f"{model}-{kind}"] = Published(
                f"{model}, gated layers of 300, 40 latent dimensions a level, {data}",
                source, "nll", value, 0.3, "lower",
                {"preset": presets[model], "data": data, "learning_rate": 2e-3, "schedule": "cosine", **prior},
                differs="plain Adam whose learning rate falls from 2e-3 along a cosine, not one of scaled gradients at "
                "5e-4; scales are not clipped",
            )  # fmt: skip
    return rows


def iwae_rows() -> dict[str, Published]:
    return {
        f"iwae-{k}": Published(
            f"784-200-200-50, K = {k}, 3,280 epochs in batches of 20", IWAE, "nll", value, 0.2, "lower",
            {"preset": "iwae-paper", "samples": k},
            differs="the learning rate falls by a cosine, not in 8 stages; 50,000 training images, not 59,600",
        )
        for k, value in {1: 86.76, 5: 85.54, 50: 84.78}.items()
    }  # fmt: skip


def other_rows() -> dict[str, Published]:
    rows = {
        f"cvae-{given}": Published(
            f"from {given} quadrants of a digit to the rest, 100 samples",
            "Sohn et al. 2015, Table 1, from memory, not read", "nll", value, tolerance, "lower",
            {"preset": "cvae-quadrants", "condition": f"quadrants:{given}"}, samples=100,
            differs="sizes of layers are from memory too",
        )
        for given, value, tolerance in ((1, 63.91, 1.0), (2, 44.73, 1.0), (3, 20.95, 1.0))
    }  # fmt: skip
    for clusters, value in ((10, 0.8231), (16, 0.8782)):
        rows[f"gmvae-{clusters}"] = Published(
            f"gmvae with {clusters} clusters, many-to-one", "Dilokthanakul et al. 2016, arXiv v2, M = 10, from memory",
            "many_to_one", value, 0.0, "higher", {"model": "gmvae", "clusters": clusters, "epochs": 20},
            differs="dense layers, w of 2 dimensions, clusters started from the codes of a plain VAE",
            evaluation={"metrics": ("elbo", "clusters")},
        )  # fmt: skip
    rows["mmdvae-mnist"] = Published(
        "MMD-VAE, log-likelihood by annealed importance sampling", "Zhao et al. 2017, from memory", "nll", 80.76, 1.0,
        "lower", {"model": "mmdvae", "epochs": 50},
        evaluation={"metrics": ("nll",), "estimator": "ais", "limit": 100},
        differs="dense layers of 500, not convolutions; 100 test images",
    )  # fmt: skip
    return rows


ROWS: dict[str, Published] = {
    **aevb_rows(),
    **seed_rows(),
    **vampprior_rows(),
    **iwae_rows(),
    **other_rows(),
}
REPORT = Path("docs/results/reproduction.md")
HEADER = """# Published figures, ours beside them

Each line is of one `vaekit reproduce ROW`, on the test images; `vaekit reproduce` lists the rows with their sources.
Within: no worse than the published figure by more than the tolerance.

| date | row | figure | ours | seeds | published | tolerance | within | epochs | version | machine |
|---|---|---|---|---|---|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Outcome:
    """What a reproduction came to: our figure of each seed, and how long each was trained."""

    name: str
    values: tuple[float, ...]
    epochs: int
    whole: int  # epochs of the plan, of which fewer may have fitted

    @property
    def mean(self) -> float:
        return statistics.mean(self.values)

    @property
    def within(self) -> bool:
        return ROWS[self.name].reached(self.mean)

    @property
    def written(self) -> str:
        _, _, decimals = f"{ROWS[self.name].value:g}".partition(".")
        digits = max(2, len(decimals))
        spread = f" ± {statistics.stdev(self.values):.{digits}f}" if len(self.values) > 1 else ""
        return f"{self.mean:.{digits}f}{spread}"


def reproduce(
    name: str,
    seeds: int = 1,
    budget: float | None = None,
    out: str | Path = "runs/reproduce",
    progress: bool = True,
) -> Outcome:
    """Train a row of ROWS with the seeds 0, 1 ... in OUT/<row>, and measure it on the test images.

    `budget`, in seconds, shortens the training to the epochs that fit it, all seeds together; the epoch that is timed
    first and the measuring come on top. What was done before is kept. Raises UserError for an unknown row, for a budget
    or a number of seeds that is none, and where a run has no such figure.
    """
    from .sweep import sweep

    row = published(name)
    require_count("seeds", seeds, largest=1000)
    require(
        budget is None or (is_number(budget) and 0 < budget < math.inf),
        f"--budget is {budget!r} seconds; it must be a positive number",
    )
    plan = Plan.of(**row.plan)
    whole = plan.training.epochs
    folder = Path(out) / (row.folder or name)
    if budget is not None:
        plan = once_shortened(plan, budget / seeds, folder, Shown(progress))
    plans = {
        f"seed-{seed}": plan.changed({"seed": plan.training.seed + seed}) for seed in range(seeds)
    }
    if plan.training.epochs < whole:
        plans = {f"{key}-epochs-{plan.training.epochs}": each for key, each in plans.items()}
    metrics = ("elbo", "nll") if row.figure in ("nll", "bits_per_dim") else ("elbo",)
    settings: dict[str, Any] = {"metrics": metrics, "samples": row.samples, "limit": 10_000}
    runs = sweep(plans, folder, progress, split="test", **{**settings, **row.evaluation})
    values = [figure_of(run, row.figure) for run in runs]
    return Outcome(name, tuple(values), plan.training.epochs, whole)


def figure_of(run: Run, key: str) -> float:
    """A figure of an evaluated run; UserError says why it has none."""
    found = run.evaluation
    if found[key] is None:
        (metric,) = (name for name in METRICS if key in (figure.key for figure in METRICS[name]))
        missing = found.get("missing", {})
        reason = missing.get(key) or missing.get(metric) or "evaluation.json does not say why"
        raise UserError(
            f"{run} has no {key}, so nothing to stand beside the published one: {reason}"
        )
    return found[key]


def is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def published(name: str) -> Published:
    """The row called `name`; UserError names the closest one."""
    if name not in ROWS:
        raise UserError(
            f"there is no row {name!r}{closest(name, ROWS)}; `vaekit reproduce` lists them"
        )
    return ROWS[name]


def once_shortened(plan: Plan, seconds: float, folder: Path, shown: Shown) -> Plan:
    """The plan shortened as it was before for as many seconds, so that what was begun goes on."""
    file = folder / "budgets.json"
    found = parse_json(file.read_bytes(), str(file)) if file.exists() else {}
    before = {key: epochs for key, epochs in found.items() if is_whole(epochs) and epochs >= 1}
    known = before.get(str(seconds))
    short = shortened(plan, seconds, shown) if known is None else with_epochs(plan, known)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(file, {**before, str(seconds): short.training.epochs})
    return short


def shortened(plan: Plan, seconds: float, shown: Shown) -> Plan:
    """The plan with as many epochs as fit, by the time of one; warm-ups shrink with it."""
    with tempfile.TemporaryDirectory() as folder:
        trial = plan.changed({"epochs": 1, "kl_warmup": 0.0, "lr_warmup": 0.0})
        run = trial.train(str(Path(folder) / "trial"), progress=False)
        each = run.metrics[-1]["seconds"]
    training = plan.training
    epochs = max(1, int(min(training.epochs, seconds / each)))
    if epochs < training.epochs:
        shown.say(
            f"{epochs:,} of {training.epochs:,} epochs fit ({each:.1f} s each), on a cosine schedule"
        )
    return with_epochs(plan, epochs)


def with_epochs(plan: Plan, epochs: int) -> Plan:
    """The plan with fewer epochs, its warm-ups shortened alike, its learning rate falling to 0."""
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
    """Raise UserError where no line could be added to the report."""
    try:
        require(
            report.is_file() or not report.exists(), f"{report} is no file; --report names a file"
        )
        if report.exists():
            report.read_text(encoding="utf-8")
        folder = next(folder for folder in report.absolute().parents if folder.exists())
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "what is there is no UTF-8"
        raise UserError(
            f"no line can be added to {report} ({reason}); choose another --report"
        ) from None


def append(outcome: Outcome, report: Path) -> None:
    """Add a line to the report, which is begun where it is not there."""
    import torch

    from ..support.version import __version__

    row = ROWS[outcome.name]
    epochs = (
        f"{outcome.epochs:,}"
        if outcome.epochs == outcome.whole
        else f"{outcome.epochs:,} of {outcome.whole:,}"
    )
    cells = [
        time.strftime("%Y-%m-%d"),
        f"`{outcome.name}`",
        row.figure,
        f"**{outcome.written}**",
        str(len(outcome.values)),
        f"{row.value:g}",
        f"{row.tolerance:g}",
        "yes" if outcome.within else "no",
        epochs,
        __version__,
        f"{os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}",
    ]
    report.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(report.with_name(f".{report.name}.lock")):  # two that read it lose a line
        before = (report.read_bytes() if report.exists() else b"") or HEADER.encode()
        if not before.endswith(b"\n"):
            before += b"\n"
        with replacing(report) as file:
            file.write(before + f"| {' | '.join(cells)} |\n".encode())


def as_table() -> Table:
    """All rows, for the screen."""
    from rich.table import Table

    table = Table(title="vaekit reproduce ROW", title_justify="left")
    for column in ("row", "published", "what"):
        table.add_column(column, no_wrap=column == "row", overflow="fold")
    for name, row in ROWS.items():
        table.add_row(name, f"{row.figure} {row.value:g}", f"{row.what} ({row.source})")
    return table
