"""The figures that `evaluate` gives: name, unit, meaning, and which is better. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Figure:
    """A number of evaluation.json by its key.

    `error` is the key of its standard error from its draws within one run. The error from the images is no part of it:
    runs measured on the same images share that, so it leaves a difference.
    `depends` are keys of what the figure depends on besides the run: figures compare only where these are the same.
    `null` says why it may be null though others of its metric are not.
    """

    key: str
    name: str
    unit: str | None = None
    what: str = ""
    better: Literal["higher", "lower"] | None = None
    digits: int = 2
    error: str | None = None
    depends: tuple[str, ...] = ()
    null: str = ""


SAMPLED = ("samples", "estimator", "nll_images", "temperatures", "precision")
FEATURES = ("classifier_weights", "frechet_images")
POINT = "the posterior is one point, which has no density"
ALONE = "it takes 2 images"
UNKNOWN = "the posterior is no diagonal Gaussian, or there is one image"
HIDDEN = "the model completes images"
METRICS: dict[str, tuple[Figure, ...]] = {
    "elbo": (
        Figure("elbo", "ELBO", "nats", "lower bound on log p(x); higher is better", "higher", null=POINT),
        Figure("log_likelihood", "log-likelihood", "nats", "the ELBO's first part: how well images are redrawn"),
        Figure("kl", "KL", "nats", "the ELBO's second part, subtracted: what the latent carries", null=POINT),
        Figure("active_units", "active units", None, "latent dimensions that respond to the image", digits=0,
               null=ALONE),
        Figure("minimum_scale", "smallest scale", "pixels in [0, 1]", "of a Gaussian pixel", digits=4),
        Figure("share_at_floor", "pixels at it", "share", "whose scale is the smallest allowed", digits=3),
    ),
    "nll": (
        Figure("nll", "NLL", "nats", "-log p(x), in expectation an upper bound of it; lower is better", "lower",
               error="nll_standard_error", depends=SAMPLED),
        Figure("nll_standard_error", "NLL error, samples", "nats", "standard error from the draws", digits=3,
               null="one sample does not say how far others would be, nor does HMC"),
        Figure("nll_image_standard_error", "NLL error, images", "nats", "standard error from the images", digits=3,
               null=ALONE),
        Figure("bits_per_dim", "bits/dim", "bits", "NLL per pixel and channel", "lower", 4, depends=SAMPLED,
               null="the likelihood is not of discrete pixels"),
        Figure("effective_samples", "effective samples", None, "draws that the weights are worth, a mean", digits=1,
               depends=SAMPLED, null="HMC has no weights"),
    ),
    "aggregate": (
        Figure("mutual_information", "mutual information", "nats",
               "of image and latent: at most the logarithm of how many images", depends=("aggregate_images",),
               null=UNKNOWN),
        Figure("marginal_kl", "marginal KL", "nats", "from all images' latents to the prior; lower is better", "lower",
               depends=("aggregate_images",), null=UNKNOWN),
        Figure("mmd", "MMD to the prior", None, "squared, from all images' latents; near 0 is good", "lower", 5,
               null=ALONE),
    ),
    "reconstruction": (
        Figure("squared_error", "squared error", None, "of images redrawn, summed over pixels; lower is better",
               "lower"),
        Figure("psnr", "PSNR", "dB", "of the same; higher is better", "higher", null="there is no error"),
        Figure("ssim", "SSIM", None, "structural similarity, 1 for the same image", "higher", 4,
               null="images have under 11 pixels a side, or some pixels are given"),
    ),
    "probes": (
        Figure("linear_probe", "linear probe", "share", "of labels right by logistic regression on the latent",
               "higher", 4, depends=("probe_images",)),
        Figure("knn", "k-NN", "share", "of labels right by the 5 nearest latents", "higher", 4,
               depends=("probe_images",)),
    ),
    "clusters": (
        Figure("many_to_one", "clusters, many-to-one", "share", "right where a cluster has its commonest label",
               "higher", 4, depends=("clusters",)),
        Figure("hungarian", "clusters, Hungarian", "share", "right where a label has one cluster", "higher", 4,
               depends=("clusters",)),
        Figure("nmi", "NMI", None, "normalised mutual information of cluster and label", "higher", 4,
               depends=("clusters",)),
        Figure("ari", "ARI", None, "adjusted Rand index, 0 by chance", "higher", 4, depends=("clusters",)),
    ),
    "frechet": (
        Figure("frechet_samples", "Frechet, samples", None, "distance in features of a small classifier", "lower",
               depends=FEATURES, null=HIDDEN),
        Figure("frechet_reconstructions", "Frechet, reconstructions", None, "the same", "lower", depends=FEATURES),
        Figure("frechet_training", "Frechet, training images", None, "the same: what as many real images come to",
               depends=FEATURES, null="these are the training images"),
        Figure("class_distance", "class distance", None, "of the samples' classes from the images', by the classifier",
               "lower", 4, depends=FEATURES, null=HIDDEN),
    ),
    "gap": (
        Figure("elbo_train", "ELBO of training images", "nats", "as many of them", depends=("images",)),
        Figure("elbo_gap", "gap to training images", "nats", "how far their ELBO lies above: what is learned by heart"),
    ),
}  # fmt: skip
FIGURES: tuple[Figure, ...] = tuple(figure for figures in METRICS.values() for figure in figures)
# What stands in a table of runs: the parts of the others are left out.
COMPARED = tuple(
    figure
    for figure in FIGURES
    if figure.key
    not in ("nll_standard_error", "nll_image_standard_error", "frechet_training", "elbo_train")
)


def described(e: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Each number of an evaluation with its name and what it is."""
    rows = []
    for figures in METRICS.values():
        for figure in figures:
            value = e.get(figure.key)
            if value is None:
                continue
            shown = f"{value:,.{figure.digits}f}"
            if figure.key == "active_units":
                shown += f" of {e['latent_units']}"
            unit = f"{figure.unit}; " if figure.unit not in (None, "share") else ""
            rows.append((figure.name, shown, f"{unit}{figure.what}{detail(figure, e)}"))
    return rows


def detail(figure: Figure, e: Mapping[str, Any]) -> str:
    """What a number depends on, in words."""
    if figure.key == "nll":
        some = e.get("nll_images", 0) < e.get("images", 0)
        subset = f", of {e['nll_images']:,} of the images" if some else ""
        how = {"ais": "chains annealed from the prior", "hmc": "draws by HMC and a density"}
        drawn = "sample" if e["samples"] == 1 else "samples"
        return f" ({e['samples']:,} {how.get(e.get('estimator', ''), drawn)}{subset})"
    if figure.key == "frechet_samples":
        right, weights = e["classifier_accuracy"], e["classifier_weights"]
        return f", one of {e['classifier']} with {right:.1%} right ({weights}); {e['frechet_images']:,} images"
    if figure.key == "many_to_one":
        return f"; {e['clusters']}"
    if figure.key == "mutual_information":
        return f" ({e['mutual_information_limit']:.2f})"
    return ""


def curve(e: Mapping[str, Any]) -> str:
    """How the NLL falls with the samples, on one line; empty where that is not known."""
    found = e.get("nll_by_samples") or {}
    points = [f"{int(k):,}: {value:.2f}" for k, value in found.items()]
    return "NLL by samples  " + "  ".join(points) if len(points) > 1 else ""


def measured_on(e: Mapping[str, Any]) -> str:
    """Which images were measured, and how their pixels were read."""
    pixels = {
        "dynamic": "binarised once, from a fixed seed",
        "threshold": "cut at one half",
        "none": "grey, as probabilities" if e["likelihood"] == "bernoulli" else "as they are",
    }[e["binarisation"]]
    images = "image" if e["images"] == 1 else "images"
    return f"{e['images']:,} {e['split']} {images}, {e['likelihood']} pixels, {pixels}"


def as_table(e: Mapping[str, Any]) -> Table:
    """An evaluation as a table for the screen, with what each number means."""
    from rich.table import Table

    table = Table(title=measured_on(e), title_justify="left", caption_justify="left")
    table.add_column("")
    table.add_column("value", justify="right")
    table.add_column("what it is", overflow="fold")
    for row in described(e):
        table.add_row(*row)
    if not table.rows:
        table.show_header, table.box = False, None
    names = {figure.key: figure.name for figure in FIGURES}
    missing = [
        f"no {names.get(name, name)}: {reason}" for name, reason in (e.get("missing") or {}).items()
    ]
    table.caption = "\n".join([*filter(None, [curve(e)]), *missing]) or None
    return table
