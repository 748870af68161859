"""Settings of evaluation, sweeps and pictures, as frozen dataclasses with one sentence per field. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ..support.errors import (
    flag_name,
    parse_memory,
    printable,
    require,
    require_count,
    require_seed,
)
from .model import FLOW_SETTINGS, FlowKind
from .training import Precision

MetricGroup = Literal[
    "elbo", "nll", "aggregate", "reconstruction", "probes", "clusters", "frechet", "gap"
]

AnomalyScore = Literal[
    "nll", "complexity-corrected", "likelihood-regret", "latent", "reconstruction", "typicality"
]

# Settings that only one estimator has.
ESTIMATOR_SETTINGS = {"temperatures": "ais", "precision": "importance", "memory": "importance"}


@dataclass(frozen=True)
class EvaluateConfig:
    """Settings of an evaluation."""

    split: Literal["train", "validation", "test"] = "test"
    """Split to evaluate on."""
    metrics: tuple[MetricGroup, ...] = ()
    """Groups of metrics; default: all that the run and its data allow."""
    samples: int = 1000
    """Samples per image for the NLL by importance sampling; ais has 16 chains, hmc 50 samples."""
    limit: int | None = None
    """Evaluate on this many images, chosen by the seed; default: the ELBO on all, the NLL on as many as take two
    minutes, by ais and hmc on 100."""
    estimator: Literal["importance", "ais", "hmc"] = "importance"
    """Estimator of the NLL: importance sampling; ais, annealed importance sampling, which needs no posterior and is
    slower; hmc, that of Kingma and Welling 2014, for at most 5 latent dimensions."""
    temperatures: int = 1000
    """Temperatures of ais from the prior to the posterior; more make the bound tighter."""
    precision: Precision = "float32"
    """Precision of the decoder for the NLL by importance sampling; bfloat16 is faster on processors that have it."""
    memory: str = "1GB"
    """Maximum memory for it."""
    seed: int = 0
    """Random seed of the samples and of the choice of images."""
    device: str = "auto"
    """Device: auto, cpu, cuda, cuda:1, mps."""

    def __post_init__(self) -> None:
        for name in ("samples", "temperatures"):
            require_count(name, getattr(self, name))
        if self.limit is not None:
            require_count("limit", self.limit)
        for name, estimator in ESTIMATOR_SETTINGS.items():
            value, default = getattr(self, name), getattr(EvaluateConfig, name)
            require(
                value == default or self.estimator == estimator,
                f"--{name} {value} needs --estimator {estimator}; leave it out",
            )
        require_seed(self.seed)
        parse_memory(self.memory)


@dataclass(frozen=True)
class FitPriorConfig:
    """Settings of a prior that is fitted to the codes of the training images after the training."""

    prior: Literal["gmm", "learned-mixture", "vampprior", "flow"] = "gmm"
    """Density to fit: gmm, a mixture of Gaussians with full covariances, by expectation-maximisation; learned-mixture,
    of diagonal ones; vampprior, the mixture of posteriors of learned pseudo-inputs; flow, a normalising flow."""
    components: int | None = None
    """Components of a mixture (gmm: 1, 2, 4 ... until the validation codes fit no better; learned-mixture: 100),
    pseudo-inputs of a vampprior (500)."""
    flow: FlowKind = "affine-coupling"
    """Transforms of a flow, as of `vaekit train`."""
    flow_steps: int = 4
    """Number of transforms of a flow."""
    flow_dim: int = 256
    """Units of each of the two hidden layers of a transform of a flow."""
    epochs: int = 100
    """Passes over the training images, at most; not of a gmm."""
    learning_rate: float | None = None
    """Learning rate of Adam; by default 0.001 for a flow, 0.01 for a learned-mixture, 0.05 for a vampprior."""
    patience: int = 10
    """Stop after this many epochs in which the validation codes fitted no better; the best density is kept."""
    seed: int = 0
    """Random seed of initial values, samples and order."""
    device: str = "auto"
    """Device: auto, cpu, cuda, cuda:1, mps."""

    def __post_init__(self) -> None:
        limits = {"components": 2**16, "flow_steps": 100, "flow_dim": 2**20}
        for name in ("components", "flow_steps", "flow_dim", "epochs", "patience"):
            if getattr(self, name) is not None:
                require_count(name, getattr(self, name), largest=limits.get(name, 2**31))
        require(
            self.learning_rate is None or 0 < self.learning_rate <= 1,
            f"--learning-rate is {self.learning_rate}; it must be above 0, at most 1",
        )
        require_seed(self.seed)
        unused = {"flow": ("components",), "gmm": ("epochs", "learning_rate", "patience")}
        without = unused.get(self.prior, ()) + (() if self.prior == "flow" else FLOW_SETTINGS)
        for name in without:
            require(
                getattr(self, name) == getattr(FitPriorConfig, name),
                f"{flag_name(name)} has no effect with --prior {self.prior}; leave it out, or choose another --prior",
            )


@dataclass(frozen=True)
class AnomalyConfig:
    """Settings of a search for odd images."""

    score: Literal["auto", AnomalyScore] = "auto"
    """Score of each image, higher for an odder one (docs/anomalies.md explains them); auto: chosen by the kind of data
    and model, and said."""
    false_alarms: float = 0.05
    """Share of images like the validation images that may be flagged."""
    samples: int = 100
    """Importance samples per image for the NLL."""
    steps: int = 50
    """Optimisation steps of likelihood-regret."""
    limit: int = 1000
    """Compare with at most this many validation images, and as many training images, chosen by the seed."""
    normal: tuple[str, ...] = ()
    """Classes that are not odd, for AUROC and average precision; default: good or normal where there is one, else those
    that the model was trained on."""
    top: int = 20
    """Number of the oddest images in the pictures."""
    seed: int = 0
    """Random seed of the samples and of the choice of images."""
    device: str = "auto"
    """Device: auto, cpu, cuda, cuda:1, mps."""

    def __post_init__(self) -> None:
        for name in ("samples", "steps", "limit"):
            require_count(name, getattr(self, name))
        require_count("top", self.top, largest=200)
        require_seed(self.seed)
        require(
            0 < self.false_alarms < 1,
            f"--false-alarms is {self.false_alarms}; it must be a share between 0 and 1, such as 0.05",
        )


@dataclass(frozen=True)
class SweepConfig:
    """How the runs of a sweep are evaluated."""

    split: Literal["validation", "test"] = "validation"
    """Split to evaluate on: choose settings on validation images, then evaluate the chosen ones on test images."""
    metrics: tuple[MetricGroup, ...] = ("elbo", "nll", "reconstruction")
    """Groups of metrics; see `vaekit evaluate --help`."""
    nll_samples: int = 1000
    """Importance samples per image for the NLL."""
    limit: int | None = 1000
    """Evaluate on this many images, chosen by a fixed seed; None for all."""
    training_curves: bool = False
    """Draw the training ELBO too in compare.png, solid; the validation ELBO is then dashed."""

    def __post_init__(self) -> None:
        require_count("nll_samples", self.nll_samples)
        if self.limit is not None:
            require_count("limit", self.limit)

    @property
    def evaluation(self) -> dict[str, Any]:
        """The fields of EvaluateConfig."""
        return {
            "split": self.split,
            "metrics": self.metrics,
            "samples": self.nll_samples,
            "limit": 2**31 if self.limit is None else self.limit,
        }


@dataclass(frozen=True)
class PlotConfig:
    """Settings of the pictures of a run."""

    projection: Literal["auto", "pca", "tsne", "umap"] = "auto"
    """Projection of latents of more than 3 dimensions; auto: pca beside tsne (umap needs
    pip install 'vaekit[umap]')."""
    grid: int = 20
    """Images per row of the manifold."""
    range: float | None = None
    """Decode the manifold on a linear grid from -range to range, instead of at quantiles of the prior."""
    images: tuple[int, ...] = ()
    """Indices of test images for traversals, interpolations and analogies, and for the plane (through three) of the
    manifold of more than 3 dimensions; default: of different classes."""
    label: str | int | None = None
    """Class to decode with, by name or number, where the model is conditional on labels."""
    invert: Literal["auto", "yes", "no"] = "auto"
    """Invert the manifold (dark on white); auto: for binarised images."""
    bands: str | None = None
    """Bands (channels) to show as red, green and blue, as 3,2,1; one is grey, two are magenta and green; default: of
    more than 3 the principal components."""
    seed: int = 0
    """Random seed of samples and of t-SNE."""

    def __post_init__(self) -> None:
        parse_bands(self.bands)
        require(2 <= self.grid <= 100, f"--grid is {self.grid}; it must be 2 to 100")
        require(
            self.range is None or 0 < self.range <= 1e6,
            f"--range is {self.range}; it must be a positive number, at most a million",
        )
        require_seed(self.seed)


def parse_bands(text: str | None) -> tuple[int, ...]:
    """The bands of "3,2,1", counted from 1; () of None. Raises UserError."""
    if text is None:
        return ()
    parts = [part.strip() for part in text.split(",")]
    good = 1 <= len(parts) <= 3 and all(p.isascii() and p.isdecimal() for p in parts)
    bands = tuple(int(p) for p in parts if len(p) < 10) if good else ()
    require(
        len(bands) == len(parts) == len(set(bands)) and min(bands) >= 1,
        f"--bands {printable(text)[:40]} are not one to three different bands, counted from 1, such as 3,2,1",
    )
    return bands
