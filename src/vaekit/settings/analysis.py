"""The settings of what is done with runs, as frozen dataclasses with one sentence a field. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ..support.errors import parse_memory, require, require_count, require_seed
from .training import Precision

Metric = Literal[
    "elbo", "nll", "aggregate", "reconstruction", "probes", "clusters", "frechet", "gap"
]

# Settings that one estimator alone has, and which.
ESTIMATORS_OWN = {"temperatures": "ais", "precision": "importance", "memory": "importance"}


@dataclass(frozen=True)
class EvaluateConfig:
    """What to measure of a run, and how."""

    split: Literal["train", "validation", "test"] = "test"
    """Images to measure on."""
    metrics: tuple[Metric, ...] = ()
    """What to measure; all by default, but what the run or its data cannot give."""
    samples: int = 1000
    """Draws an image for the NLL by importance sampling; ais has 16 chains, hmc 50 draws."""
    limit: int | None = None
    """Measure on this many images, chosen by the seed; without it the ELBO is of all, and the NLL of as many
    as take two minutes, by ais and hmc of 100."""
    estimator: Literal["importance", "ais", "hmc"] = "importance"
    """Of the NLL: importance sampling; ais, annealed importance sampling, which needs no posterior and is slower;
    hmc, that of Kingma and Welling 2014, for at most 5 latent dimensions."""
    temperatures: int = 1000
    """Steps of ais from the prior to the posterior; more make it tighter."""
    precision: Precision = "float32"
    """Of the decoder, for the NLL by importance sampling; bfloat16 is faster on processors that have it."""
    memory: str = "1GB"
    """Most memory to take for it."""
    seed: int = 0
    """Seed of the draws, and of the choice of images."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""

    def __post_init__(self) -> None:
        for name in ("samples", "temperatures"):
            require_count(name, getattr(self, name))
        if self.limit is not None:
            require_count("limit", self.limit)
        for name, estimator in ESTIMATORS_OWN.items():
            value, default = getattr(self, name), getattr(EvaluateConfig, name)
            require(
                value == default or self.estimator == estimator,
                f"--{name} {value} is of --estimator {estimator}; leave it out",
            )
        require_seed(self.seed)
        parse_memory(self.memory)


@dataclass(frozen=True)
class SweepConfig:
    """How the runs of a sweep are measured."""

    split: Literal["validation", "test"] = "validation"
    """Images to measure on: choose settings on the validation images, and measure the chosen on the test images."""
    metrics: tuple[Metric, ...] = ("elbo", "nll", "reconstruction")
    """What to measure; see `vaekit evaluate --help`."""
    nll_samples: int = 1000
    """Draws an image for the NLL."""
    limit: int | None = 1000
    """Measure on this many images, chosen by a fixed seed; None for all."""

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
    """How pictures of a run are drawn."""

    projection: Literal["auto", "pca", "tsne", "umap"] = "auto"
    """How latents of more than 3 dimensions are drawn in 2; auto: pca beside tsne (umap needs
    pip install 'vaekit[umap]')."""
    grid: int = 20
    """Images in a row of the manifold."""
    range: float | None = None
    """Decode the manifold on a linear grid from -range to range, rather than at equal shares of the prior."""
    images: tuple[int, ...] = ()
    """Test images, numbers from 0, that traversals, interpolations and analogies start from, and that the manifold
    of more than 3 dimensions goes through (three); by default of different classes."""
    label: int | None = None
    """Label to decode with, where the model is conditional on it."""
    invert: Literal["auto", "yes", "no"] = "auto"
    """Draw the manifold dark on white; auto: of black-and-white images."""
    seed: int = 0
    """Seed of samples and of t-SNE."""

    def __post_init__(self) -> None:
        require(2 <= self.grid <= 100, f"--grid is {self.grid}; it must be 2 to 100")
        require(
            self.range is None or 0 < self.range <= 1e6,
            f"--range is {self.range}; it must be a positive number, at most a million",
        )
        require_seed(self.seed)
