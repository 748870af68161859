"""`evaluate`: measure a trained model on a split: likelihoods, latents, reconstructions, samples, clusters."""

from __future__ import annotations

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

from ..data import Dataset, EvalSplit, eval_split
from ..data.splits import random_rows
from ..inference.generation import latent_sizes
from ..likelihood.aggregate import measure_aggregate
from ..likelihood.annealing import (
    HMC_SAMPLES,
    PILOT_CHAINS,
    annealed_log_weights,
    check_dimensions,
    reciprocal_log_likelihood,
)
from ..likelihood.elbo import ELBO_SAMPLES, image_chunks, measure_elbo, modelled_pixels
from ..likelihood.importance import ImportanceEstimate, measure_nll, row_bytes
from ..model.graph import VAE
from ..runs.data import load_run_data, run_images
from ..runs.directory import Run
from ..runs.fitted_prior import fitted_prior_sha256, read_record
from ..runs.load import is_stale, load_trained, weights_sha256
from ..settings.analysis import EvaluateConfig
from ..settings.model import DISCRETE
from ..support.atomic import as_json, write_json
from ..support.console import ProgressBar
from ..support.devices import fast_float32, resolve_device, seeded
from ..support.errors import MetricUnavailable, UserError, require, with_changes
from . import baselines
from .frechet import frechet, load_or_train_classifier
from .metrics import METRIC_GROUPS, NO_DENSITY
from .probes import measure_clusters, measure_probes, measure_reconstruction, posterior_means
from .verdicts import evaluation_warnings

TIME_BUDGET = 120.0  # seconds for ELBO and NLL together
# Training images that probes and clusters are fitted to; images that aggregate, reconstruction and frechet use.
MAX_IMAGES = 10_000
# Nats by which bfloat16 may change the mean NLL, on so many images with at most so many samples.
BFLOAT16_TOLERANCE, BFLOAT16_IMAGES, BFLOAT16_SAMPLES = 0.1, 50, 100
TIMED_ROWS = 2000  # images x samples of the trial that predicts the time of the NLL
PRIOR_SAMPLES = 5000
PRIOR_DIMENSIONS = 5  # above, samples of the prior hardly ever meet a posterior
ANNEALED_IMAGES, ANNEALED_CHAINS, ANNEALED_BATCH, ANNEALED_BYTES = 100, 16, 100, 2**30


@dataclass
class EvaluationContext:
    """Inputs of all measurements: a run's model, its data set, the images to evaluate on and the settings."""

    run: Run
    model: VAE
    data: Dataset
    images: EvalSplit
    rows: Tensor  # of the images in the split, (N,)
    config: EvaluateConfig
    device: torch.device
    bar: ProgressBar
    started: float

    @property
    def has_density(self) -> bool:
        """Whether the posterior has a density."""
        return self.model.blueprint.settings.posterior != "deterministic"

    @property
    def labels(self) -> np.ndarray:
        """Labels (N,) of the images. Raises MetricUnavailable where the data set has none."""
        if self.images.labels is None or self.data.train.labels is None:
            raise MetricUnavailable("the data set has no labels")
        return self.images.labels.cpu().numpy()

    @property
    def has_photos(self) -> bool:
        """See `are_photos`."""
        return baselines.are_photos(self.data, self.run.data.binarisation)

    @cached_property
    def class_shares(self) -> dict[str, Any]:
        """See `class_shares`; {} without labels."""
        train, labels = self.data.train.labels, self.images.labels
        return {} if train is None or labels is None else baselines.class_shares(train, labels)

    def first(self, count: int) -> EvalSplit:
        """The first `count` of the images to evaluate on, or all."""
        return self.images.take(torch.arange(min(count, len(self.images))))

    def training_images(self, count: int) -> EvalSplit:
        """`count` random training images, or all, chosen by the seed."""
        split = self.data.train
        rows = random_rows(len(split), count, self.config.seed + 1)
        return eval_split(split.take(rows), self.run.data.binarisation).to(self.device)

    @cached_property
    def latents(self) -> np.ndarray:
        """Posterior means (N, D) of the images."""
        return posterior_means(self.model, self.images)

    @cached_property
    def training_latents(self) -> tuple[np.ndarray, np.ndarray]:
        """Posterior means (N, D) of training images, and their labels (N,)."""
        train = self.training_images(MAX_IMAGES)
        assert train.labels is not None
        return posterior_means(self.model, train), train.labels.cpu().numpy()


def evaluate(
    run: Run | str | Path,
    data: Dataset | None = None,
    data_dir: str | Path | None = None,
    progress: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    """Evaluate a run: return its metrics (described in vaekit.evaluation.metrics) and write RUN/evaluation.json, or
    evaluation-last.json of `Run(path, weights="last")`, evaluation-fitted.json of `Run(path, prior="fitted")`.

    `settings` are the fields of EvaluateConfig. Without `limit`, ELBO and NLL are of as many images, chosen by `seed`,
    as take about two minutes. `data` replaces loading the run's data set by its name. Metrics that cannot be computed
    are null, and `missing` says why, by metric or group of metrics; where a model completes images, likelihoods are of
    the hidden pixels alone. Raises UserError for a missing or damaged run, another data set, bad settings, and where
    bfloat16 changes the NLL.
    """
    config = with_changes(EvaluateConfig(), settings, "evaluate()")
    run, device, bar = Run.of(run), resolve_device(config.device), ProgressBar(progress)
    trained = load_trained(run)
    model = trained.model.to(device)
    groups: tuple[str, ...] = tuple(dict.fromkeys(config.metrics)) or tuple(METRIC_GROUPS)
    if config.estimator == "hmc" and "nll" in groups:
        check_dimensions(sum(latent_sizes(model.blueprint).values()))
    data = load_run_data(run, data, data_dir)
    images = run_images(run, data, config.split)
    rows = random_rows(len(images), config.limit, config.seed)
    images = images.take(rows).to(device)
    started = time.perf_counter()
    context = EvaluationContext(run, model, data, images, rows, config, device, bar, started)
    previous = earlier_evaluation(run, config, trained.sha256)
    result: dict[str, Any] = {"images": len(images), "nll_images": 0, "samples": config.samples}
    result |= previous
    result |= {
        metric.key: None
        for name, group in METRIC_GROUPS.items()
        for metric in group
        if name in groups or not previous
    }
    replaced = {*groups, *(metric.key for name in groups for metric in METRIC_GROUPS[name])}
    missing = {k: why for k, why in previous.get("missing", {}).items() if k not in replaced}
    with torch.no_grad(), fast_float32(device):
        if config.precision == "bfloat16" and "nll" in groups and context.has_density:
            check_bfloat16(context)
        missing |= measure_groups(context, groups, result)
    evaluated = {*groups, *previous.get("metrics", ())}
    result |= {
        "missing": missing,
        "settings": comparable_settings(config),
        "weights": trained.sha256,
        **prior_facts(run),
        "metrics": [name for name in METRIC_GROUPS if name in evaluated],
        "units": {m.key: m.unit for group in METRIC_GROUPS.values() for m in group if m.unit},
        "estimator": config.estimator,
        "temperatures": config.temperatures if config.estimator == "ais" else None,
        "precision": config.precision,
        "split": config.split,
        "likelihood": model.blueprint.settings.likelihood,
        "binarisation": run.data.binarisation,
        "seed": config.seed,
        "seconds": time.perf_counter() - started,
        "warnings": evaluation_warnings(result),
    }
    write_json(run.file("evaluation.json"), result)
    for warning in result["warnings"]:
        bar.log(f"warning: {warning}")
    return result


def prior_facts(run: Run) -> dict[str, Any]:
    """What the prior is; of a fitted one also the hash of its file, of which `weights` is a hash too."""
    if run.prior == "trained":
        return {}
    return {"prior": f"fitted {read_record(run).name}", "prior_sha256": fitted_prior_sha256(run)}


def check_bfloat16(context: EvaluationContext) -> None:
    """Raises UserError where the decoder in bfloat16 changes the NLL of some images, with the same noise."""
    config, means = context.config, list[float]()
    images, samples = context.first(BFLOAT16_IMAGES), min(config.samples, BFLOAT16_SAMPLES)
    for precision in ("float32", "bfloat16"):
        with seeded(config.seed, context.device):
            estimate = measure_nll(
                context.model, images, samples, ProgressBar(False), config.memory, precision
            )
        means.append(float(estimate.log_mean.mean()))
    difference = abs(means[1] - means[0])
    require(
        difference <= BFLOAT16_TOLERANCE,
        f"in bfloat16 the NLL of {len(images)} images is off by {difference:.3g} nats, more than {BFLOAT16_TOLERANCE}; "
        "leave out --precision bfloat16",
    )


def measure_groups(
    context: EvaluationContext, groups: tuple[str, ...], result: dict[str, Any]
) -> dict[str, str]:
    """Add the metrics of these groups to `result`, and return why some are null, by metric or group.

    Every group starts from the same seed. Raises UserError for a metric that is not finite.
    """
    missing: dict[str, str] = {}
    for name in groups:
        with seeded(context.config.seed, context.device):
            try:
                result |= MEASUREMENTS[name](context, result)
            except MetricUnavailable as reason:
                missing[name] = str(reason)
            else:
                missing |= {
                    metric.key: metric.null_reason
                    for metric in METRIC_GROUPS[name]
                    if metric.null_reason and result[metric.key] is None
                }
        for metric in METRIC_GROUPS[name]:
            require(
                result[metric.key] is None or math.isfinite(result[metric.key]),
                f"the {metric.name} of {context.run} is not finite: its training diverged, or its weights are damaged",
            )
    return missing


def comparable_settings(config: EvaluateConfig) -> dict[str, Any]:
    """The settings without `metrics`, as JSON reads them back."""
    return {key: value for key, value in as_json(config).items() if key != "metrics"}


def earlier_evaluation(
    run: Run, config: EvaluateConfig, sha256: str | None = None
) -> dict[str, Any]:
    """The stored evaluation of the weights with this hash, by default those in the run directory, with the same
    settings; {} where there is none."""
    try:
        stored, weights = run.evaluation, sha256 or weights_sha256(run)
    except UserError:  # there is none, or it is damaged: it is written anew
        return {}
    valid = isinstance(stored.get("missing"), dict) and isinstance(stored.get("metrics"), list)
    same = stored.get("settings") == comparable_settings(config)
    return stored if valid and same and not is_stale(stored, weights) else {}


def elbo_metrics(context: EvaluationContext, result: dict[str, Any]) -> dict[str, Any]:
    """ELBO, its terms and the active units, on all images or as many as half the time budget allows."""
    model, images = context.model, context.images
    samples = min(context.config.samples, ELBO_SAMPLES)
    quiet, (chunk, *_) = ProgressBar(False), image_chunks(model, images, samples)
    count = affordable_images(
        context,
        "ELBO",
        lambda trial: measure_elbo(model, trial, samples, quiet),
        chunk.stop - chunk.start,
        TIME_BUDGET / 2,
    )
    estimate = measure_elbo(model, context.first(count), samples, context.bar)
    return {**asdict(estimate), "images": count}


def nll_metrics(context: EvaluationContext, result: dict[str, Any]) -> dict[str, Any]:
    """The NLL by the chosen estimator, its standard errors, and bits/dim where pixels are discrete."""
    config, model = context.config, context.model
    if config.estimator != "importance":
        return chain_nll_metrics(context)
    if not context.has_density:
        raise MetricUnavailable(NO_DENSITY + "; --estimator ais needs none")

    def measure(images: EvalSplit, bar: ProgressBar, prior_samples: int = 0) -> ImportanceEstimate:
        return measure_nll(
            model, images, config.samples, bar, config.memory, config.precision, prior_samples
        )

    count = affordable_images(
        context,
        f"NLL ({config.samples:,} samples per image)",
        lambda trial: measure(trial, ProgressBar(False)),
        max(1, TIMED_ROWS // config.samples),
        TIME_BUDGET - min(TIME_BUDGET / 2, time.perf_counter() - context.started),
    )
    few = sum(latent_sizes(model.blueprint).values()) <= PRIOR_DIMENSIONS
    prior_fits = few and len(model.prior) == 1 and model.condition is None
    estimate = measure(context.first(count), context.bar, PRIOR_SAMPLES if prior_fits else 0)
    return {
        **nll_statistics(context, -estimate.log_mean),
        **sampling_errors(estimate),
        "nll_by_samples": {str(k): -float(means.mean()) for k, means in estimate.curve.items()},
    }


def sampling_errors(estimate: ImportanceEstimate) -> dict[str, Any]:
    """How far the NLL may be off because of its samples. `low_ess_images`: with an effective sample size below 10, or a
    tenth of fewer than 100 samples."""
    effective = estimate.effective_samples
    return {
        "nll_standard_error": estimate.error,
        "nll_bias": estimate.bias,
        "effective_samples": float(effective.mean()),
        "low_ess_images": int((effective < min(10, estimate.samples / 10)).sum()),
    }


def nll_statistics(context: EvaluationContext, nll: Tensor) -> dict[str, Any]:
    """Metrics of NLLs (N,), nats; errors from sampling are None."""
    settings, mean, count = context.model.blueprint.settings, float(nll.mean()), len(nll)
    discrete = settings.likelihood in DISCRETE or context.run.data.binarisation != "none"
    discrete = discrete or (settings.likelihood == "bernoulli" and has_bits(context, count))
    return {
        "nll": mean,
        "nll_standard_error": None,
        "nll_bias": None,
        "effective_samples": None,
        "low_ess_images": None,
        "nll_image_standard_error": float(nll.std()) / math.sqrt(count) if count > 1 else None,
        "bits_per_dim": mean / (modelled_pixels(context.model) * math.log(2)) if discrete else None,
        "nll_images": count,
        **(likelihood_baselines(context, count) if discrete else {}),
    }


def likelihood_baselines(context: EvaluationContext, count: int) -> dict[str, Any]:
    return baselines.of_likelihood(
        context.model, context.first(count), context.training_images, context.has_photos
    )


def has_bits(context: EvaluationContext, count: int) -> bool:
    """Whether all pixels of the first images are 0 or 1."""
    images = context.first(count)
    parts = (images[part].images for part in image_chunks(context.model, images, 1))
    return all(bool(((x == 0) | (x == 1)).all()) for x in parts)


def chain_nll_metrics(context: EvaluationContext) -> dict[str, Any]:
    """The NLL by AIS or HMC, whose chains count as samples, on `limit` images (100 by default)."""
    config, model = context.config, context.model
    count = min(len(context.images), config.limit or ANNEALED_IMAGES)
    images = context.first(count)
    chains = HMC_SAMPLES if config.estimator == "hmc" else ANNEALED_CHAINS + PILOT_CHAINS
    # What the gradients of a chain take, the outputs of all layers, as far as these are large.
    fitting = ANNEALED_BYTES // (row_bytes(model, images) * chains)
    size = max(1, min(ANNEALED_BATCH, fitting))
    batches = [images[start : start + size] for start in range(0, count, size)]

    def track(steps: Any) -> Any:
        return context.bar.track(steps, "annealing")

    if config.estimator == "hmc":
        parts = [reciprocal_log_likelihood(model, batch, track=track).cpu() for batch in batches]
        return {**nll_statistics(context, -torch.cat(parts)), "samples": HMC_SAMPLES}
    weights = torch.cat(
        [
            annealed_log_weights(
                model, batch, ANNEALED_CHAINS, config.temperatures, track=track
            ).cpu()
            for batch in batches
        ],
        dim=1,
    )
    estimate = ImportanceEstimate.of(weights)
    return {
        **nll_statistics(context, -estimate.log_mean),
        **sampling_errors(estimate),
        "samples": ANNEALED_CHAINS,
    }


def aggregate_metrics(context: EvaluationContext, result: dict[str, Any]) -> dict[str, Any]:
    return measure_aggregate(context.model, context.first(MAX_IMAGES))


def reconstruction_metrics(context: EvaluationContext, result: dict[str, Any]) -> dict[str, Any]:
    model, images = context.model, context.first(MAX_IMAGES)
    beside = baselines.of_reconstructions(
        model, images, context.training_images, context.has_photos, context.config.seed
    )
    return measure_reconstruction(model, images) | beside


def require_unseen_labels(context: EvaluationContext) -> None:
    """Raise MetricUnavailable where labels or training images would leak into probes and clusters."""
    if context.model.blueprint.settings.condition == "label":
        raise MetricUnavailable("the posterior is conditioned on the label")
    if context.config.split == "train":
        raise MetricUnavailable("probes and clusters are fitted to the training images")


def probe_metrics(context: EvaluationContext, result: dict[str, Any]) -> dict[str, Any]:
    require_unseen_labels(context)
    labels, (train_latents, train_labels) = context.labels, context.training_latents
    if len(np.unique(train_labels)) < 2:
        raise MetricUnavailable("the training images have only one label")
    measured = measure_probes((train_latents, train_labels), (context.latents, labels))
    return measured | context.class_shares


def cluster_metrics(context: EvaluationContext, result: dict[str, Any]) -> dict[str, Any]:
    require_unseen_labels(context)
    labels = context.labels
    if len(labels) < 2:
        raise MetricUnavailable("clustering needs at least 2 images")
    order = context.rows.argsort()  # that of the split, as in `cluster`
    measured = measure_clusters(
        context.model,
        context.images.take(order),
        context.latents[order.numpy()],
        context.training_latents,
        labels[order.numpy()],
        context.config.seed,
    )
    return measured | context.class_shares


def frechet_metrics(context: EvaluationContext, result: dict[str, Any]) -> dict[str, Any]:
    config, data = context.config, context.data
    try:
        classifier = load_or_train_classifier(data, context.device, context.bar)
    except UserError as error:
        raise MetricUnavailable(str(error)) from None
    binarisation = context.run.data.binarisation
    count = min(len(context.images), MAX_IMAGES)
    if count < 2:
        raise MetricUnavailable("a Frechet distance needs at least 2 images")
    found = frechet(context.model, data, config.split, classifier, binarisation, count, config.seed)
    return asdict(found) | context.class_shares


def gap_metrics(context: EvaluationContext, result: dict[str, Any]) -> dict[str, Any]:
    """The ELBO of the same number of training images, and its difference to that of the split."""
    if not context.has_density:
        raise MetricUnavailable(NO_DENSITY)
    if context.config.split == "train":
        raise MetricUnavailable("these are the training images")
    evaluated = result if result["elbo"] is not None else elbo_metrics(context, result)
    train = context.training_images(min(evaluated["images"], len(context.data.train)))
    estimate = measure_elbo(context.model, train, ELBO_SAMPLES, context.bar)
    assert estimate.elbo is not None
    return {"elbo_train": estimate.elbo, "elbo_gap": estimate.elbo - evaluated["elbo"]}


def affordable_images(
    context: EvaluationContext,
    name: str,
    measure: Callable[[EvalSplit], object],
    trial_count: int,
    budget: float,
) -> int:
    """How many of the images `measure` can take in `budget` seconds, from timing it on `trial_count` of them; all where
    a limit is set. Logs the number and the expected time."""
    total, times = len(context.images), list[float]()
    trial_count = min(trial_count, total)
    if context.config.limit is not None and not context.bar.enabled:
        return total
    trial = context.first(trial_count)
    while len(times) < 4 and sum(times) < 1:
        started = time.perf_counter()
        with seeded(0, context.device):
            measure(trial)
        times.append(time.perf_counter() - started)
    seconds = min(times) / trial_count
    count = total if context.config.limit is not None else images_within(total, seconds, budget)
    context.bar.log(f"{name}: {count:,} of {total:,} images, about {count * seconds:.0f} s")
    if count < total:
        minutes = total * seconds / 60
        context.bar.log(
            f"(all {total:,} images would take about {minutes:.0f} min; pass --limit {total} to use all)"
        )
    return count


def images_within(total: int, seconds_per_image: float, budget: float) -> int:
    """How many of `total` images fit `budget` seconds: all, else a multiple of 100 where above 100."""
    fitting = min(total, max(1, round(budget / seconds_per_image)))
    return fitting if fitting == total else fitting // 100 * 100 or fitting


MEASUREMENTS: dict[str, Callable[[EvaluationContext, dict[str, Any]], dict[str, Any]]] = {
    "elbo": elbo_metrics,
    "nll": nll_metrics,
    "aggregate": aggregate_metrics,
    "reconstruction": reconstruction_metrics,
    "probes": probe_metrics,
    "clusters": cluster_metrics,
    "frechet": frechet_metrics,
    "gap": gap_metrics,
}
