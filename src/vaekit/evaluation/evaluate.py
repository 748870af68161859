"""One call measures a trained model on a split: likelihoods, latents, images redrawn and new, clusters."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data import Dataset, Frozen, freeze
from ..inference.generation import latent_sizes
from ..likelihood.aggregate import measure_aggregate
from ..likelihood.annealing import (
    DRAWS,
    annealed_log_weights,
    check_dimensions,
    reciprocal_log_likelihood,
)
from ..likelihood.elbo import ELBO_SAMPLES, chunked, measure_elbo, random_pixels
from ..likelihood.importance import LogMeans, measure_nll
from ..model.graph import VAE
from ..runs.data import chosen_rows, run_data, run_images
from ..runs.directory import Run
from ..runs.load import load
from ..settings.analysis import EvaluateConfig
from ..settings.model import DISCRETE
from ..support.atomic import plain, write_json
from ..support.console import Shown
from ..support.devices import fast_float32, find_device, seeded
from ..support.errors import Missing, UserError, override, require
from .frechet import classifier_of, frechet
from .metrics import METRICS, POINT
from .probes import codes, measure_clusters, measure_probes, measure_reconstruction

TIME_BUDGET = 120.0
LEARNED_IMAGES = 10_000  # training images that probes and clusters learn from
TIMED_ROWS = 2000  # images x samples
ANNEALED_IMAGES, ANNEALED_CHAINS, ANNEALED_BATCH = 100, 16, 100


@dataclass
class Subject:
    """What is measured: a run's model on the chosen images of a split, and what its data set has besides."""

    run: Run
    model: VAE
    data: Dataset
    images: Frozen
    config: EvaluateConfig
    device: torch.device
    shown: Shown
    started: float

    @property
    def dense(self) -> bool:
        """Whether the posterior has a density."""
        return self.model.blueprint.settings.posterior != "deterministic"

    @property
    def labels(self) -> np.ndarray:
        if self.images.labels is None or self.data.train.labels is None:
            raise Missing("the data set has no labels")
        return self.images.labels.cpu().numpy()

    def first(self, count: int) -> Frozen:
        """The first of the chosen images, or all."""
        return self.images.take(torch.arange(min(count, len(self.images))))

    def training_images(self, count: int) -> Frozen:
        """That many training images, or all, chosen by the seed."""
        split = self.data.train
        rows = chosen_rows(len(split), count, self.config.seed + 1)
        return freeze(split.take(rows), self.run.data.binarisation).to(self.device)

    @cached_property
    def latents(self) -> np.ndarray:
        return codes(self.model, self.images)

    @cached_property
    def learned(self) -> tuple[np.ndarray, np.ndarray]:
        """Latents of training images, and their labels."""
        train = self.training_images(LEARNED_IMAGES)
        assert train.labels is not None
        return codes(self.model, train), train.labels.cpu().numpy()


def evaluate(
    run: Run | str | Path,
    data: Dataset | None = None,
    data_dir: str | Path | None = None,
    progress: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    """Measure a run; the figures (vaekit.evaluation.metrics says what each is), also written to RUN/evaluation.json.

    `settings` are the fields of EvaluateConfig. Without `limit` the ELBO is of all images, and the NLL of as many,
    chosen by `seed`, as take two minutes here. `data` stands in for loading the run's data set by its name. Figures
    that cannot be had are null, and `missing` says why, by metric or figure; of a model of hidden pixels, likelihoods
    are of these alone. Raises UserError for a missing or damaged run, another data set, bad settings.
    """
    config = override(EvaluateConfig(), settings, "evaluate()")
    run, where, shown = Run.of(run), find_device(config.device), Shown(progress)
    model = load(run).to(where)
    require(
        all(bool(weight.isfinite().all()) for weight in model.parameters()),
        f"the weights of {run} are not finite: its training diverged, or they are damaged",
    )
    wanted: tuple[str, ...] = tuple(dict.fromkeys(config.metrics)) or tuple(METRICS)
    if config.estimator == "hmc" and "nll" in wanted:
        check_dimensions(sum(latent_sizes(model.blueprint).values()))
    data = run_data(run, data, data_dir)
    images, binarisation = run_images(run, data, config.split), run.data.binarisation
    chosen = images.take(chosen_rows(len(images), config.limit, config.seed)).to(where)
    started = time.perf_counter()
    subject = Subject(run, model, data, chosen, config, where, shown, started)
    before = measured_alike(run, config)
    result: dict[str, Any] = {"images": len(chosen), "nll_images": 0, "samples": config.samples}
    result |= before
    result |= {f.key: None for m in METRICS for f in METRICS[m] if m in wanted or not before}
    asked = {*wanted, *(f.key for m in wanted for f in METRICS[m])}
    missing = {m: why for m, why in before.get("missing", {}).items() if m not in asked}
    with torch.no_grad(), fast_float32(where):
        for name in wanted:
            with seeded(config.seed, where):
                try:
                    result |= MEASURES[name](subject, result)
                except Missing as reason:
                    missing[name] = str(reason)
                else:
                    nulls = [f for f in METRICS[name] if f.null and result[f.key] is None]
                    missing |= {figure.key: figure.null for figure in nulls}
            for figure in METRICS[name]:
                require(
                    result[figure.key] is None or math.isfinite(result[figure.key]),
                    f"the {figure.name} of {run} is not finite: its training diverged, or its weights are damaged",
                )
    result |= {
        "missing": missing,
        "settings": how(config),
        "weights": weights_hash(run),
        "metrics": [m for m in METRICS if m in wanted or m in before.get("metrics", ())],
        "units": {f.key: f.unit for figures in METRICS.values() for f in figures if f.unit},
        "estimator": config.estimator,
        "temperatures": config.temperatures if config.estimator == "ais" else None,
        "precision": config.precision,
        "split": config.split,
        "likelihood": model.blueprint.settings.likelihood,
        "binarisation": binarisation,
        "seed": config.seed,
        "seconds": time.perf_counter() - started,
    }
    write_json(run.path / "evaluation.json", result)
    return result


def how(config: EvaluateConfig) -> dict[str, Any]:
    """The settings but which metrics, as JSON gives them back."""
    return {key: value for key, value in plain(config).items() if key != "metrics"}


def measured_alike(run: Run, config: EvaluateConfig) -> dict[str, Any]:
    """What was measured of these weights with the same settings before; else nothing."""
    try:
        before, weights = run.evaluation, weights_hash(run)
    except UserError:  # there is none, or it is damaged: it is written anew
        return {}
    whole = isinstance(before.get("missing"), dict) and isinstance(before.get("metrics"), list)
    alike = before.get("settings") == how(config) and before.get("weights") == weights
    return before if whole and alike else {}


def weights_hash(run: Run) -> str:
    """sha256 of the file of weights. Raises UserError where there is none."""
    require(run.weights_path.is_file(), f"{run.weights_path} is missing; train the model again")
    return hashlib.sha256(run.weights_path.read_bytes()).hexdigest()


def elbo_figures(subject: Subject, result: dict[str, Any]) -> dict[str, Any]:
    """ELBO parts of all images that were chosen, or of those that time allows."""
    model, images = subject.model, subject.images
    draws = min(subject.config.samples, ELBO_SAMPLES)
    quiet, (first, *_) = Shown(False), chunked(model, images, draws)
    few = first.stop - first.start
    count = affordable(
        subject, "ELBO", lambda some: measure_elbo(model, some, draws, quiet), few, TIME_BUDGET / 2
    )
    found = measure_elbo(model, subject.first(count), draws, subject.shown)
    return {**asdict(found), "images": count}


def nll_figures(subject: Subject, result: dict[str, Any]) -> dict[str, Any]:
    """The NLL by the estimator that was chosen, its errors, and per pixel in bits where pixels are discrete."""
    config, model = subject.config, subject.model
    if config.estimator != "importance":
        return other_estimators(subject)
    if not subject.dense:
        raise Missing(POINT + "; --estimator ais needs none")

    def measure(some: Frozen, shown: Shown) -> LogMeans:
        return measure_nll(model, some, config.samples, shown, config.memory, config.precision)

    count = affordable(
        subject,
        f"NLL from {config.samples:,} samples",
        lambda some: measure(some, Shown(False)),
        max(1, TIMED_ROWS // config.samples),
        TIME_BUDGET - min(TIME_BUDGET / 2, time.perf_counter() - subject.started),
    )
    found = measure(subject.first(count), subject.shown)
    return {
        **nll_of(subject, -found.first, found.standard_error),
        "effective_samples": found.effective_samples,
        "nll_by_samples": {str(k): -float(means.mean()) for k, means in found.curve.items()},
    }


def nll_of(subject: Subject, nll: Tensor, error: float | None) -> dict[str, Any]:
    """The figures of NLLs (N,) whose mean has this standard error from the draws."""
    settings, mean, count = subject.model.blueprint.settings, float(nll.mean()), len(nll)
    discrete = settings.likelihood in DISCRETE or subject.run.data.binarisation != "none"
    return {
        "nll": mean,
        "nll_standard_error": error,
        "nll_image_standard_error": float(nll.std()) / math.sqrt(count) if count > 1 else None,
        "bits_per_dim": mean / (random_pixels(subject.model) * math.log(2)) if discrete else None,
        "nll_images": count,
    }


def other_estimators(subject: Subject) -> dict[str, Any]:
    """The NLL of a hundred images, or `limit`, by annealing or by HMC; their chains stand for samples."""
    config, model = subject.config, subject.model
    count = min(len(subject.images), config.limit or ANNEALED_IMAGES)
    few = subject.first(count)
    starts = range(0, count, ANNEALED_BATCH)
    batches = [few[start : start + ANNEALED_BATCH] for start in starts]

    def track(steps: Any) -> Any:
        return subject.shown.track(steps, "annealing")

    if config.estimator == "hmc":
        found = [reciprocal_log_likelihood(model, batch, track=track).cpu() for batch in batches]
        return {**nll_of(subject, -torch.cat(found), None), "samples": DRAWS}
    weights = torch.cat(
        [
            annealed_log_weights(
                model, batch, ANNEALED_CHAINS, config.temperatures, track=track
            ).cpu()
            for batch in batches
        ],
        dim=1,
    )
    means = LogMeans.of(weights)
    return {
        **nll_of(subject, -means.first, means.standard_error),
        "effective_samples": means.effective_samples,
        "samples": ANNEALED_CHAINS,
    }


def aggregate_figures(subject: Subject, result: dict[str, Any]) -> dict[str, Any]:
    return measure_aggregate(subject.model, subject.first(LEARNED_IMAGES))


def reconstruction_figures(subject: Subject, result: dict[str, Any]) -> dict[str, Any]:
    return measure_reconstruction(subject.model, subject.first(LEARNED_IMAGES))


def check_blind(subject: Subject) -> None:
    """Raise Missing where labels could be told from more than the latents of new images."""
    if subject.model.blueprint.settings.condition == "label":
        raise Missing("the posterior is given the label")
    if subject.config.split == "train":
        raise Missing("they learn from the training images")


def probe_figures(subject: Subject, result: dict[str, Any]) -> dict[str, Any]:
    check_blind(subject)
    labels, (latents, known) = subject.labels, subject.learned
    if len(np.unique(known)) < 2:
        raise Missing("the training images have one label")
    return measure_probes((latents, known), (subject.latents, labels))


def cluster_figures(subject: Subject, result: dict[str, Any]) -> dict[str, Any]:
    check_blind(subject)
    labels = subject.labels
    if len(labels) < 2:
        raise Missing("one image has no clusters")
    return measure_clusters(
        subject.model, subject.images, subject.latents, subject.learned, labels, subject.config.seed
    )


def frechet_figures(subject: Subject, result: dict[str, Any]) -> dict[str, Any]:
    config, data = subject.config, subject.data
    try:
        classifier = classifier_of(data, subject.device, subject.shown)
    except UserError as error:
        raise Missing(str(error)) from None
    binarisation = subject.run.data.binarisation
    count = min(len(subject.images), LEARNED_IMAGES)
    if count < 2:
        raise Missing("a distance needs 2 images")
    return asdict(
        frechet(subject.model, data, config.split, classifier, binarisation, count, config.seed)
    )


def gap_figures(subject: Subject, result: dict[str, Any]) -> dict[str, Any]:
    """The ELBO of as many training images, and how far it lies above."""
    if not subject.dense:
        raise Missing(POINT)
    if subject.config.split == "train":
        raise Missing("these are the training images")
    own = result if result["elbo"] is not None else elbo_figures(subject, result)
    train = subject.training_images(min(own["images"], len(subject.data.train)))
    bound = measure_elbo(subject.model, train, ELBO_SAMPLES, subject.shown)
    assert bound.elbo is not None
    return {"elbo_train": bound.elbo, "elbo_gap": bound.elbo - own["elbo"]}


def affordable(
    subject: Subject, what: str, each: Callable[[Frozen], object], few: int, budget: float
) -> int:
    """How many of the images `each` can take in `budget` seconds, from timing it with a few; all where there is a
    limit. Says so."""
    count, times = len(subject.images), list[float]()
    few = min(few, count)
    if subject.config.limit is not None and not subject.shown.enabled:
        return count
    some = subject.first(few)
    while len(times) < 4 and sum(times) < 1:
        started = time.perf_counter()
        with seeded(0, subject.device):
            each(some)
        times.append(time.perf_counter() - started)
    seconds = min(times) / few
    fitting = count if subject.config.limit is not None else in_time(count, seconds, budget)
    subject.shown.say(f"{what} of {fitting:,} of {count:,} images: about {fitting * seconds:.0f} s")
    if fitting < count:
        whole = count * seconds / 60
        subject.shown.say(f"(all would take {whole:.0f} min; --limit {count} does it)")
    return fitting


def in_time(count: int, each: float, seconds: float) -> int:
    """How many of `count` fit, as a round number."""
    fitting = min(count, max(1, round(seconds / each)))
    return fitting if fitting == count else fitting // 100 * 100 or fitting


MEASURES: dict[str, Callable[[Subject, dict[str, Any]], dict[str, Any]]] = {
    "elbo": elbo_figures,
    "nll": nll_figures,
    "aggregate": aggregate_figures,
    "reconstruction": reconstruction_figures,
    "probes": probe_figures,
    "clusters": cluster_figures,
    "frechet": frechet_figures,
    "gap": gap_figures,
}
