"""What the files of a run directory hold: the JSON objects as dataclasses, the tensors as a table of types and shapes.

A file may come from anywhere, so that every value is checked before it is used. The settings in config.json have their
own dataclasses in `settings`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..settings.analysis import FitPriorConfig
from ..settings.data import MAX_CLASSES, DataRecord
from ..support.errors import UserError, printable, record_from_dict, require, shown

FLOATS = ("F64", "F32", "F16", "BF16")
Headers = Mapping[str, tuple[str, tuple[int, ...]]]  # the type and the shape of tensors, by name


@dataclass(frozen=True)
class Versions:
    """What wrote the run; the object "versions" of config.json."""

    vaekit: str
    torch: str = ""
    python: str = ""
    git: str | None = None


@dataclass(frozen=True)
class ConfigFile:
    """config.json, but for the settings of model, training and monitor."""

    model: dict[str, Any]
    data: dict[str, Any]
    training: dict[str, Any]
    versions: dict[str, Any]
    created: str
    command: tuple[str, ...]
    objective: str | None = None
    device: str | None = None
    init: str | None = None


@dataclass(frozen=True)
class ImageCounts:
    """The images of each split; the object "images" of the data in config.json."""

    train: int
    validation: int
    test: int

    def __post_init__(self) -> None:
        for count in vars(self).values():
            require(1 <= count < 2**48, f"{count} images; there must be at least 1")


@dataclass(frozen=True)
class DataSection(DataRecord):
    """The object "data" of config.json, but for the source."""

    images: dict[str, Any] = field(kw_only=True)
    classes: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        count = len(self.classes or ())
        require(count <= MAX_CLASSES, f"{count:,} classes; there may be {MAX_CLASSES:,}")


@dataclass(frozen=True)
class EpochRecord:
    """A line of metrics.jsonl; null where a number is not finite or does not apply.

    `augmented`: whether the training values are of augmented images.
    """

    epoch: int
    validation_elbo: float | None
    seconds: float | None = None
    best: bool = False
    train_objective: float | None = None
    train_elbo: float | None = None
    train_log_likelihood: float | None = None
    kl: float | None = None
    validation_log_likelihood: float | None = None
    validation_kl: float | None = None
    validation_objective: float | None = None
    learning_rate: float | None = None
    kl_weight: float | None = None
    images_per_second: float | None = None
    skipped_steps: int | None = None
    active_units: int | None = None
    latent_units: int = 0
    kl_per_dimension: dict[str, tuple[float | None, ...]] | None = None
    marginal_kl_per_dimension: dict[str, tuple[float | None, ...]] | None = None
    kl_parts: dict[str, float | None] | None = None
    kl_per_latent: dict[str, float | None] | None = None
    active_per_latent: dict[str, int] | None = None
    components_used: int | None = None
    components_told_apart: float | None = None
    components: int | None = None
    share_at_floor: float | None = None
    augmented: bool = False
    warnings: tuple[str, ...] = ()
    recovered: tuple[dict[str, Any], ...] = ()

    def __post_init__(self) -> None:
        require(0 < self.epoch < 2**31, f"epoch is {self.epoch}; epochs count from 1")
        require(
            0 <= (self.seconds or 0) < 1e12, f"seconds are {self.seconds}; a time is not negative"
        )


# Keys of metrics.jsonl that an epoch whose latents were measured has.
LATENT_USE = {
    "validation_kl",
    "active_units",
    "latent_units",
    "kl_per_dimension",
    "components_used",
    "components_told_apart",
    "components",
    "share_at_floor",
}


@dataclass(frozen=True)
class EvaluationFile:
    """evaluation.json: what the numbers are of, and the numbers; null where one is not available."""

    split: Literal["train", "validation", "test"] | None = None
    images: int | None = None
    samples: int | None = None
    likelihood: str | None = None
    binarisation: Literal["dynamic", "threshold", "none"] | None = None
    nll_images: int = 0
    estimator: str = ""
    precision: str = ""
    temperatures: int | None = None
    seed: int | None = None
    seconds: float | None = None
    weights: str | None = None
    prior: str | None = None
    prior_sha256: str | None = None
    settings: dict[str, Any] | None = None
    metrics: tuple[str, ...] | None = None
    missing: dict[str, str] | None = None
    units: dict[str, str] | None = None
    warnings: tuple[str, ...] | None = None
    elbo: float | None = None
    log_likelihood: float | None = None
    kl: float | None = None
    active_units: int | None = None
    latent_units: int | None = None
    kl_per_dimension: dict[str, tuple[float | None, ...]] | None = None
    kl_per_latent: dict[str, float | None] | None = None
    active_per_latent: dict[str, int] | None = None
    minimum_scale: float | None = None
    share_at_floor: float | None = None
    nll: float | None = None
    nll_standard_error: float | None = None
    nll_image_standard_error: float | None = None
    nll_bias: float | None = None
    low_ess_images: int | None = None
    nll_by_samples: dict[str, float] | None = None
    bits_per_dim: float | None = None
    effective_samples: float | None = None
    aggregate_of: str | None = None
    aggregate_images: int | None = None
    mutual_information: float | None = None
    mutual_information_limit: float | None = None
    marginal_kl: float | None = None
    mmd: float | None = None
    squared_error: float | None = None
    psnr: float | None = None
    ssim: float | None = None
    reconstructed_images: int | None = None
    mean_image_squared_error: float | None = None
    mean_image_psnr: float | None = None
    pca_squared_error: float | None = None
    pca_psnr: float | None = None
    pca_components: int | None = None
    pca_images: int | None = None
    baseline_images: int | None = None
    jpeg_bits_per_dim: float | None = None
    jpeg_psnr: float | None = None
    jpeg_images: int | None = None
    png_bits_per_dim: float | None = None
    png_images: int | None = None
    independent_pixels_nll: float | None = None
    probe_images: int | None = None
    linear_probe: float | None = None
    knn: float | None = None
    clusters: str | None = None
    cluster_images: int | None = None
    largest_cluster: float | None = None
    class_ratio: float | None = None
    majority_share: float | None = None
    many_to_one: float | None = None
    hungarian: float | None = None
    most_confident: float | None = None
    nmi: float | None = None
    ari: float | None = None
    classifier: str | None = None
    classifier_accuracy: float | None = None
    classifier_weights: str | None = None
    frechet_images: int | None = None
    frechet_samples: float | None = None
    frechet_reconstructions: float | None = None
    frechet_training: float | None = None
    class_distance: float | None = None
    elbo_train: float | None = None
    elbo_gap: float | None = None

    def __post_init__(self) -> None:
        for name in ("images", "samples"):
            value = getattr(self, name)
            require(value is None or 1 <= value < 2**48, f"{name} are {value}; there is at least 1")
        curve = self.nll_by_samples or {}
        require(
            all(count.isdecimal() and len(count) < 12 for count in curve),
            f"nll_by_samples is {shown(curve)}; its keys must be numbers of samples",
        )


@dataclass(frozen=True)
class FittedPriorRecord:
    """What a fitted prior is: its settings, with `components` resolved, its latent and the dimensions of that, the
    SHA-256 of the weights that made the codes; and means over the validation images, nats: the ELBO with the trained
    prior and with this one, null where the posterior has no density, and the log-density of codes under both."""

    weights: str
    latent: str
    dim: int
    settings: dict[str, Any]
    images: int
    validation_images: int
    elbo_trained: float | None
    elbo_fitted: float | None
    log_density_trained: float
    log_density_fitted: float

    def __post_init__(self) -> None:
        require(1 <= self.dim < 2**24, f"dim is {self.dim}; it must be at least 1")

    @property
    def config(self) -> FitPriorConfig:
        """The settings. Raises UserError for wrong ones."""
        return record_from_dict(FitPriorConfig, self.settings, "settings")

    @property
    def name(self) -> str:
        """What it is, in words."""
        config = self.config
        if config.prior == "flow":
            return f"flow ({config.flow}, {config.flow_steps} steps)"
        return f"{config.prior} ({config.components} components)"


@dataclass(frozen=True)
class StateRecord:
    """The progress of a training in state.safetensors (see training.learner.Position)."""

    epoch: int
    batch: int
    seconds: float
    best: float
    since_best: int
    cut: int = 0
    skipped: int = 0
    usual_norm: float | None = None
    rate_factor: float = 1.0
    clip_gradient: float | None = None
    recovered: tuple[dict[str, Any], ...] = ()
    compiled: bool | None = None

    def __post_init__(self) -> None:
        for name in ("epoch", "batch", "since_best", "cut", "skipped"):
            value = getattr(self, name)
            require(0 <= value < 2**48, f"{name} is {value}; it must be 0 or a positive number")
        require(0 <= self.seconds < 1e12, f"seconds are {self.seconds}; a time is not negative")
        for name in ("rate_factor", "clip_gradient"):
            value = getattr(self, name)
            require(
                value is None or 0 < value < math.inf,
                f"{name} is {value}; it must be a positive number",
            )
        require(not math.isnan(self.best), "best is not a number")
        require(
            all(type(each.get("epoch")) is int for each in self.recovered),
            f"recovered is {shown(self.recovered)}; each recovery has its epoch",
        )


# Picture data: the types of each tensor, and its sizes; a letter is the same size wherever it stands, L is the
# dimension of the latent that the name ends with. Those of OPTIONAL may be missing.
PICTURE_TENSORS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "code_rows": (("I64",), ("N",)),
    "code_labels": (("I64",), ("N",)),
    "use": (FLOATS, ("K",)),
    "clusters": (FLOATS, ("N", "K")),
    "codes.*": (FLOATS, ("N", "L")),
    "scales.*": (FLOATS, ("N", "L")),
    "kl.*": (FLOATS, ("L",)),
    **{
        f"{kind}.{split}": (types, (split, *sizes))
        for split in ("train", "test")
        for kind, types, sizes in [
            ("images", ("U8", *FLOATS), ("C", "H", "W")),
            ("labels", ("I64",), ()),
            ("rows", ("I64",), ()),
        ]
    },
}
OPTIONAL = {"code_labels", "use", "clusters", "labels.train", "labels.test"}


def check_picture_tensors(
    headers: Headers,
    latents: Mapping[str, int],
    shape: tuple[int, int, int],
    coded: Collection[str],
) -> None:
    """Raise UserError unless these are the tensors of PICTURE_TENSORS, for a model with these latents and images, and
    perhaps others of a later version. The file has the codes of the latents `coded`."""
    expected = {
        name.replace("*", latent): (
            types,
            tuple(str(latents[latent]) if s == "L" else s for s in sizes),
        )
        for name, (types, sizes) in PICTURE_TENSORS.items()
        for latent in (latents if name == "kl.*" else coded if "*" in name else [""])
    }
    for name in expected.keys() - OPTIONAL - headers.keys():
        raise UserError(f"{name} is missing")
    known = {str(size): size for size in latents.values()}
    known |= dict(zip("CHW", shape, strict=True))
    kinds = {name.partition(".")[0] for name in PICTURE_TENSORS}
    for name, (kind, sizes) in headers.items():
        if name.partition(".")[0] not in kinds:
            continue
        types, letters = expected.get(name, ((), ()))
        wanted = tuple(known.setdefault(s, n) for s, n in zip(letters, sizes, strict=False))
        require(
            kind in types and len(sizes) == len(letters) and sizes == wanted and 0 not in sizes,
            f"{name} has type {kind} and shape {shown(list(sizes))}, which do not fit the model or its other tensors"
            if types
            else f"{shown(name)} is unknown",
        )


def check_weights(found: Headers, expected: Headers) -> None:
    """Raise UserError unless the tensors of a file are those of a model, with their shapes and kinds of numbers."""
    for name in sorted(expected.keys() ^ found.keys()):
        owner = "the model has" if name in expected else "the file has"
        raise UserError(f"only {owner} {printable(name)[:200]}")
    for name, (kind, shape) in expected.items():
        other, found_shape = found[name]
        require(shape == found_shape, f"{name} has shape {shown(found_shape)}, not {shown(shape)}")
        require(kind == other or {kind, other} <= {*FLOATS}, f"{name} has type {other}, not {kind}")
