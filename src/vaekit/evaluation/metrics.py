"""The metrics that `evaluate` gives: name, unit, meaning, and which is better. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from .verdicts import evaluation_warnings, verdict

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Metric:
    """A number of evaluation.json by its key.

    `error_key` is the key of its standard error from sampling within one run. The error from the images is not part of
    it: runs evaluated on the same images share that error, and it cancels in their difference. `bias_key` is the key of
    what the NLL, of which the metric is a multiple, may be too high by in every run.
    `depends_on` are the keys of what the metric depends on besides the run: values compare only where these are equal.
    `null_reason` says why it may be null though others of its group are not.
    """

    key: str
    name: str
    unit: str | None = None
    description: str = ""
    better: Literal["higher", "lower"] | None = None
    digits: int = 2
    error_key: str | None = None
    bias_key: str | None = None
    depends_on: tuple[str, ...] = ()
    null_reason: str = ""


SAMPLING_SETTINGS = ("samples", "estimator", "nll_images", "temperatures", "precision")
CLASSIFIER_SETTINGS = ("classifier_weights", "frechet_images")
NO_DENSITY = "the posterior is one point, which has no density"
TOO_FEW_IMAGES = "it takes 2 images"
NOT_GAUSSIAN = "the posterior is no diagonal Gaussian, or there is one image"
COMPLETES_IMAGES = "the model completes images"
METRIC_GROUPS: dict[str, tuple[Metric, ...]] = {
    "elbo": (
        Metric("elbo", "ELBO", "nats", "lower bound on log p(x); higher is better", "higher",
               null_reason=NO_DENSITY),
        Metric("log_likelihood", "log-likelihood", "nats", "E[log p(x | z)], the reconstruction term of the ELBO"),
        Metric("kl", "KL", "nats", "KL(q || p), subtracted in the ELBO: information in the latent",
               null_reason=NO_DENSITY),
        Metric("active_units", "active units", None, "latent dimensions that respond to the image", digits=0,
               null_reason="it takes 2 images, and 2 samples where a latent depends on another"),
        Metric("minimum_scale", "minimum scale", "pixels in [0, 1]", "smallest scale of a Gaussian pixel", digits=4),
        Metric("share_at_floor", "pixels at the floor", "share", "pixels whose scale is the smallest allowed",
               digits=3),
    ),
    "nll": (
        Metric("nll", "NLL", "nats", "-log p(x); lower is better", "lower",
               error_key="nll_standard_error", bias_key="nll_bias", depends_on=SAMPLING_SETTINGS),
        Metric("nll_standard_error", "NLL error, samples", "nats", "from the samples, their bias included: the NLL is "
               "within twice this", digits=3, null_reason="one sample gives no standard error, nor does HMC"),
        Metric("nll_bias", "NLL bias", "nats", "by how much the NLL may be too high; more samples reduce it", digits=3,
               null_reason="one sample gives no standard error, nor does HMC"),
        Metric("nll_image_standard_error", "NLL error, images", "nats", "standard error from the images", digits=3,
               null_reason=TOO_FEW_IMAGES),
        Metric("bits_per_dim", "bits/dim", "bits", "NLL per pixel and channel", "lower", 4, bias_key="nll_bias",
               depends_on=SAMPLING_SETTINGS, null_reason="the likelihood is not of discrete pixels"),
        Metric("effective_samples", "effective samples", None, "mean effective sample size", digits=1,
               depends_on=SAMPLING_SETTINGS, null_reason="HMC has no weights"),
    ),
    "aggregate": (
        Metric("mutual_information", "mutual information", "nats",
               "between image and latent: at most the logarithm of the number of images",
               depends_on=("aggregate_images",), null_reason=NOT_GAUSSIAN),
        Metric("marginal_kl", "marginal KL", "nats", "KL(q(z) || p(z)) of the aggregate posterior; lower is better",
               "lower", depends_on=("aggregate_images",), null_reason=NOT_GAUSSIAN),
        Metric("mmd", "MMD to the prior", None, "squared, of the aggregate posterior; near 0 is good", "lower", 5,
               null_reason=TOO_FEW_IMAGES),
    ),
    "reconstruction": (
        Metric("squared_error", "squared error", None, "of reconstructions, summed over pixels; lower is better",
               "lower"),
        Metric("psnr", "PSNR", "dB", "peak signal-to-noise ratio of reconstructions; higher is better", "higher",
               null_reason="there is no error"),
        Metric("ssim", "SSIM", None, "structural similarity of reconstructions, at most 1", "higher", 4,
               null_reason="images have under 11 pixels a side, or some pixels are given"),
    ),
    "probes": (
        Metric("linear_probe", "linear probe", "share", "accuracy of logistic regression on the latents", "higher", 4,
               depends_on=("probe_images",)),
        Metric("knn", "5-NN", "share", "5-NN accuracy on the latents", "higher", 4, depends_on=("probe_images",)),
    ),
    "clusters": (
        Metric("many_to_one", "clusters, many-to-one", "share",
               "accuracy if each cluster takes its most common label", "higher", 4, depends_on=("clusters",)),
        Metric("hungarian", "clusters, Hungarian", "share", "accuracy if clusters and labels are matched one-to-one",
               "higher", 4, depends_on=("clusters",)),
        Metric("nmi", "NMI", None, "normalised mutual information of cluster and label", "higher", 4,
               depends_on=("clusters",)),
        Metric("ari", "ARI", None, "adjusted Rand index, 0 by chance", "higher", 4, depends_on=("clusters",)),
    ),
    "frechet": (
        Metric("frechet_samples", "Frechet, samples", None, "distance of samples in the features of a classifier",
               "lower", depends_on=CLASSIFIER_SETTINGS, null_reason=COMPLETES_IMAGES),
        Metric("frechet_reconstructions", "Frechet, reconstructions", None, "the same, of reconstructions", "lower",
               depends_on=CLASSIFIER_SETTINGS),
        Metric("frechet_training", "Frechet, training images", None, "baseline: the same number of real images",
               depends_on=CLASSIFIER_SETTINGS, null_reason="these are the training images"),
        Metric("class_distance", "class distance", None,
               "between the class frequencies of samples and images, by the classifier", "lower", 4,
               depends_on=CLASSIFIER_SETTINGS, null_reason=COMPLETES_IMAGES),
    ),
    "gap": (
        Metric("elbo_train", "ELBO of training images", "nats", "of as many training images",
               depends_on=("images",)),
        Metric("elbo_gap", "ELBO gap", "nats", "overfitting (ELBO of training images minus that of the split)"),
    ),
}  # fmt: skip
METRICS: tuple[Metric, ...] = tuple(metric for group in METRIC_GROUPS.values() for metric in group)
# The columns of a comparison of runs; parts of other metrics are left out.
COMPARED_METRICS = tuple(
    metric
    for metric in METRICS
    if metric.key
    not in (
        "nll_standard_error",
        "nll_bias",
        "nll_image_standard_error",
        "frechet_training",
        "elbo_train",
    )
)


# What the text beside a number needs.
SHOWN_WITH = {
    "nll": ("samples", "nll_images"),
    "frechet_samples": (
        "classifier",
        "classifier_accuracy",
        "classifier_weights",
        "frechet_images",
    ),
    "many_to_one": ("clusters",),
    "mutual_information": ("mutual_information_limit",),
}


def metric_rows(e: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Each number of an evaluation, name, value and meaning, and warnings about them."""
    return number_rows(e) + [("warning", "", text) for text in evaluation_warnings(e)]


def number_rows(e: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Each number of an evaluation: name, value, and its meaning, with whether it is good where that is known."""
    rows = []
    for group in METRIC_GROUPS.values():
        for metric in group:
            value = e.get(metric.key)
            if value is None:
                continue
            shown = f"{value:,.{metric.digits}f}"
            if metric.key == "active_units" and e.get("latent_units") is not None:
                shown += f" of {e['latent_units']}"
            unit = f"{metric.unit}; " if metric.unit not in (None, "share") else ""
            judged = verdict(metric.key, e)
            meaning = f"{unit}{metric.description}{dependency_text(metric, e)}"
            rows.append((metric.name, shown, f"{meaning}. {judged}" if judged else meaning))
            if metric.key == "kl":
                rows += latent_rows(e)
    return rows


def latent_rows(e: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The KL of each latent of a deep hierarchy, and how many of its dimensions are active."""
    active = e.get("active_per_latent") or {}
    return [
        (
            f"KL of {name}",
            "-" if kl is None else f"{kl:,.2f}",
            "nats" + (f"; {active[name]:,} active units" if name in active else ""),
        )
        for name, kl in (e.get("kl_per_latent") or {}).items()
    ]


def dependency_text(metric: Metric, e: Mapping[str, Any]) -> str:
    """What a number depends on, in words."""
    if any(e.get(key) is None for key in SHOWN_WITH.get(metric.key, ())):
        return ""  # a file that was written by hand
    if metric.key == "nll":
        some = e.get("nll_images", 0) < (e.get("images") or 0)
        subset = f", of {e['nll_images']:,} of the images" if some else ""
        how = {"ais": "chains annealed from the prior", "hmc": "HMC samples and a density"}
        drawn = "sample" if e["samples"] == 1 else "samples"
        bound = "; in expectation an upper bound"
        if e.get("estimator") == "hmc":
            bound = "; in expectation a lower bound if the chains have converged"
        return f" ({e['samples']:,} {how.get(e.get('estimator', ''), drawn)}{subset}{bound})"
    if metric.key == "frechet_samples":
        right, weights = e["classifier_accuracy"], e["classifier_weights"]
        return (
            f": {e['classifier']}, accuracy {right:.1%} ({weights}); {e['frechet_images']:,} images"
        )
    if metric.key == "many_to_one":
        images = e.get("cluster_images")  # not in older files
        return f"; {e['clusters']}" + (f"; {images:,} images" if images else "")
    if metric.key == "mutual_information":
        return f" ({e['mutual_information_limit']:.2f})"
    return ""


def nll_curve_text(e: Mapping[str, Any]) -> str:
    """How the NLL falls with the samples, on one line; empty where that is not known."""
    found = e.get("nll_by_samples") or {}
    points = [f"{int(k):,}: {value:.2f}" for k, value in found.items()]
    return "NLL by samples  " + "  ".join(points) if len(points) > 1 else ""


def describe_images(e: Mapping[str, Any]) -> str:
    """Which images were evaluated, and how their pixels were read."""
    pixels = {
        "dynamic": "binarised once, from a fixed seed",
        "threshold": "thresholded at one half",
        "none": "grey, as probabilities" if e["likelihood"] == "bernoulli" else "as they are",
    }[e["binarisation"]]
    images = "image" if e["images"] == 1 else "images"
    prior = f", prior: {e['prior']}" if e.get("prior") else ""
    return f"{e['images']:,} {e['split']} {images}, {e['likelihood']} pixels, {pixels}{prior}"


def as_table(e: Mapping[str, Any]) -> Table:
    """An evaluation as a table for the terminal, with the meaning of each number."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=describe_images(e), title_justify="left", caption_justify="left")
    table.add_column("")
    table.add_column("value", justify="right")
    table.add_column("meaning", overflow="fold")
    for row in number_rows(e):
        table.add_row(*map(Text, row))  # "E[log p(x | z)]" is no markup
    if not table.rows:
        table.show_header, table.box = False, None
    names = {metric.key: metric.name for metric in METRICS}
    missing = [
        f"no {names.get(name, name)}: {reason}" for name, reason in (e.get("missing") or {}).items()
    ]
    table.caption = "\n".join([*filter(None, [nll_curve_text(e)]), *missing]) or None
    return table
