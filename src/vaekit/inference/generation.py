"""Images from a trained model: samples from its prior, decoded latents, reconstructions and completions."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..data import Split, eval_split
from ..data.dataset import Batch
from ..data.sources.inputs import ImageFiles, find_image_files, read_images
from ..data.splits import evenly_spaced
from ..likelihood.latent_use import batch_size, lists_groups
from ..model.conditions import Quadrants
from ..model.graph import VAE, Values
from ..runs.data import evaluation_images
from ..runs.directory import Run
from ..settings.data import Pages
from ..settings.model import Blueprint, ClusterConfig
from ..support.console import ProgressBar
from ..support.devices import eval_mode, seeded
from ..support.errors import UserError, printable, require, require_count, require_seed
from .latent_space import decode_latents

MAX_INPUTS = 1000  # given images in one picture


Temperature = float | str | Mapping[str, float]  # a str as of `temperatures`, a Mapping by latent


def check_sampling(count: int, seed: int) -> None:
    """Raise UserError unless these are valid settings of sampling."""
    require_count("count", count, largest=2**20)
    require_seed(seed)


def temperatures(model: VAE, chosen: Temperature) -> float | Mapping[str, float]:
    """The temperature of all latents, or of each by its name, from a number or from text such as "0.7" or
    "4=0.6,z8_1=0", which names the latents of a resolution, or one, 1 for others. Raises UserError."""
    if isinstance(chosen, str) and "=" in chosen:
        chosen = by_latent(model, chosen)
    if isinstance(chosen, Mapping):
        unknown = next((name for name in chosen if name not in model.prior), None)
        require(unknown is None, f"--temperature: there is no latent {unknown!r}{named(model)}")
        return {name: number_of(value) for name, value in chosen.items()}
    return number_of(chosen)


def by_latent(model: VAE, text: str) -> dict[str, float]:
    """The temperatures of text such as "4=0.6,z8_1=0", by latent. Raises UserError."""
    found: dict[str, float] = {}
    for part in text.split(","):
        key, equals, value = (word.strip() for word in part.partition("="))
        of_size = [name for name in model.prior if re.fullmatch(rf"z{re.escape(key)}_\d+", name)]
        names = [key] if key in model.prior else of_size
        require(
            bool(equals and names),
            f"--temperature {printable(text)}: {printable(part)} names no latent{named(model)}",
        )
        require(
            not found.keys() & set(names),
            f"--temperature {printable(text)}: {names[0]} has a temperature twice",
        )
        found |= dict.fromkeys(names, number_of(value))
    return found


def named(model: VAE) -> str:
    """The latents of a model in a message, by resolution where they are groups."""
    names = [*model.prior]
    sizes = [*dict.fromkeys(name[1:].partition("_")[0] for name in names if "_" in name)]
    of_sizes = f", or {', '.join(sizes)} for all of a resolution" * bool(sizes)
    return f"; the latents are {', '.join(names)}{of_sizes}: write {(sizes or names)[0]}=0.7"


def number_of(temperature: float | str) -> float:
    """A temperature as a number. Raises UserError."""
    try:
        number = float(temperature)
    except ValueError:
        number = math.nan
    require(
        0 <= number < math.inf,
        f"--temperature is {printable(str(temperature))}; it must be 0 or a positive number",
    )
    return number


@torch.no_grad()
def generate(
    model: VAE,
    count: int = 64,
    temperature: Temperature = 1.0,
    seed: int = 0,
    label: int | None = None,
    cluster: int | None = None,
) -> Tensor:
    """Mean pixels (count, C, H, W) in [0, 1] of samples from the prior, optionally of one label or one cluster.

    A model conditional on labels gets each label in turn where `label` is None. A temperature below 1 samples closer to
    the mean of the prior (or of the cluster): cleaner images, less varied; see `temperatures`. Raises UserError.
    """
    check_sampling(count, seed)
    chosen = temperatures(model, temperature)
    device = next(model.parameters()).device
    labels = class_labels(model, count, label)
    labels = None if labels is None else labels.to(device)
    with seeded(seed, device):
        clusters = None if cluster is None else torch.full((count,), cluster, device=device)
        parts = sample_values(model, count, labels, chosen, clusters)
        return torch.cat([model.decoder(values).mean for values in parts])


def sample_values(
    model: VAE,
    count: int,
    labels: Tensor | None,
    temperature: float | Mapping[str, float],
    clusters: Tensor | None,
) -> Iterator[Values]:
    """Yield what `model.sample` decodes, at once, or in batches where the feature maps between latents are large."""
    size = batch_size(model) if lists_groups(model) else count
    for rows in torch.arange(count).split(size):
        y, cluster = (None if each is None else each[rows] for each in (labels, clusters))
        yield model.sample_latents(len(rows), y, temperature, cluster)


def generate_by_class(
    model: VAE, columns: int, classes: Sequence[str], temperature: Temperature = 1.0, seed: int = 0
) -> tuple[Tensor, list[str]]:
    """A row of `columns` samples for each label of a model conditional on labels, or each cluster of a gmvae, and the
    rows' names, of labels from `classes`. All rows have the same noise, so that images of a column differ in the label
    or cluster alone."""
    settings = model.blueprint.settings
    if isinstance(settings, ClusterConfig):
        rows = [
            generate(model, columns, temperature, seed, cluster=k) for k in range(settings.clusters)
        ]
        return torch.cat(rows), [f"cluster {k}" for k in range(len(rows))]
    rows = [
        generate(model, columns, temperature, seed, label=k) for k in range(model.blueprint.classes)
    ]
    return torch.cat(rows), list(classes[: len(rows)])


def has_classes_or_clusters(model: VAE) -> bool:
    """Whether `generate_by_class` applies: the model has clusters or is conditional on labels."""
    settings = model.blueprint.settings
    return isinstance(settings, ClusterConfig) or settings.condition == "label"


def class_labels(model: VAE, count: int, label: int | None) -> Tensor | None:
    """The labels (count,) to generate with: all `label`, or each in turn; None for an unconditional model."""
    condition = model.blueprint.settings.condition
    require(
        condition in ("none", "label"),
        "the model completes images and takes neither --label nor --latent",
    )
    if label is not None:
        return repeat_label(model.blueprint, count, label)
    return torch.arange(count) % model.blueprint.classes if condition == "label" else None


def repeat_label(blueprint: Blueprint, count: int, label: int) -> Tensor:
    """`label` repeated `count` times, (count,). Raises UserError where the model does not have it."""
    require(
        blueprint.settings.condition == "label",
        f"--label needs a model with --condition label; this {blueprint.model} has none",
    )
    require(
        0 <= label < blueprint.classes,
        f"--label is {label}; the model's labels are 0 to {blueprint.classes - 1}",
    )
    return torch.full((count,), label)


@torch.no_grad()
def completions(
    model: VAE, images: Tensor, count: int = 8, temperature: Temperature = 1.0, seed: int = 0
) -> Tensor:
    """For each image of (N, C, H, W): its visible part (the rest grey), `count` completions, the image itself.

    For a model conditional on quadrants. Returns (N (count + 2), C, H, W). Raises UserError.
    """
    condition = model.condition
    if not isinstance(condition, Quadrants):
        raise UserError("the model does not complete images; train it with --condition quadrants:1")
    check_sampling(count, seed)
    visible = images * condition.mask + 0.5 * (1 - condition.mask)
    with seeded(seed):
        repeated = images.repeat_interleave(count, 0)
        completed = model.sample(len(repeated), repeated, temperatures(model, temperature)).mean
    rows = [visible[:, None], completed.unflatten(0, (len(images), count)), images[:, None]]
    return torch.cat(rows, dim=1).flatten(0, 1)


@torch.no_grad()
def fixed_samples(model: VAE, count: int, images: Tensor) -> Tensor:
    """Samples (count, C, H, W) from the same noise at every call, to follow a model in training; completions of
    `images` where the model completes images."""
    with eval_mode(model), seeded(0, images.device):
        if isinstance(model.condition, Quadrants):
            return model.sample(count, images[torch.arange(count) % len(images)]).mean
        return generate(model, count)


@torch.no_grad()
def decode_point(model: VAE, point: str, label: int | None = None) -> Tensor:
    """Mean pixels (1, C, H, W) of one latent, given as comma-separated numbers (z1, then z2, where there are two).

    Raises UserError.
    """
    try:
        numbers = [float(number) for number in point.split(",")]
    except ValueError:
        raise UserError(f"--latent {point!r} is not a list of numbers such as 0.3,-1.2") from None
    settings, sizes = model.blueprint.settings, latent_sizes(model.blueprint)
    dim = sum(sizes.values())
    require(
        len(numbers) == dim and all(map(math.isfinite, numbers)),
        f"--latent {point!r} has {len(numbers)} numbers; the model's latent needs {dim}, all finite",
    )
    require(
        settings.condition != "label" or label is not None,
        "--latent needs a --label too: the model is conditional on it",
    )
    parts = torch.tensor([numbers]).split(list(sizes.values()), dim=1)
    latents = dict(zip(sizes, parts, strict=True))
    return model.decode(class_labels(model, 1, label), **latents).mean


def latent_sizes(blueprint: Blueprint) -> dict[str, int]:
    """The dimensions of the decoder's latents, by name."""
    return blueprint.settings.latent_sizes(blueprint.shape)


@torch.no_grad()
def reconstruct(
    model: VAE, images: Tensor, labels: Tensor | None = None, groups: int | None = None
) -> Tensor:
    """Reconstructions of images in [0, 1]: mean pixels (N, C, H, W) at the posterior means of the latents, or of the
    first `groups` of them, the others at the means of their priors. Raises UserError."""
    require(
        model.blueprint.settings.condition != "label" or labels is not None,
        "the model is conditional on labels: pass --label",
    )
    check_groups(model, groups)
    parts = []
    for rows in torch.arange(len(images)).split(batch_size(model)):
        given = None if labels is None else labels[rows]
        values = model.given(images[rows], given)
        if groups is None:
            parts.append(model.reconstruct(images[rows], given).mean)
            continue
        codes = {name: q.mean for name, q in model.posteriors(values, groups).items()}
        parts.append(decode_latents(model, codes, given))
    return torch.cat(parts)


def check_groups(model: VAE, groups: int | None) -> None:
    """Raise UserError unless a model has this many latents, of several, and can decode them."""
    if groups is None:
        return
    count = len(model.prior)
    require(
        count > 1,
        f"--groups is for models with several latents; this {model.blueprint.model} has one",
    )
    require(1 <= groups <= count, f"--groups is {groups}; the model has 1 to {count} of them")
    require(
        not model.blueprint.settings.condition.startswith("quadrants"),
        "a model that completes images cannot decode latents alone; leave out --groups",
    )


@torch.no_grad()
def analogies(model: VAE, images: Tensor, labels: Tensor | None) -> Tensor:
    """For each image of (N, C, H, W): itself, and its latents decoded with each label: (N (1 + classes), C, H, W).

    For a model conditional on labels; `labels` (N,) are the images' own. Raises UserError.
    """
    classes = model.blueprint.classes
    require(
        model.blueprint.settings.condition == "label",
        "--analogies need a model with --condition label, such as cvae",
    )
    require(
        labels is not None,
        "the model is conditional on labels: pass --label",
    )
    rows = [images]
    for label in range(classes):
        rows.append(model.reconstruct(images, labels, torch.full((len(images),), label)).mean)
    return torch.stack(rows, dim=1).flatten(0, 1)


def load_inputs(
    run: Run,
    paths: Sequence[Path],
    split: str,
    count: int | None,
    data_dir: str | Path | None,
    bar: ProgressBar,
    label: int | str | None = None,
) -> Batch:
    """Images to reconstruct, `count` of them evenly spaced (since image folders are sorted by class): of a split, 40 by
    default; or of given files, folders and archives, all up to MAX_INPUTS by default, preprocessed like the run's data.
    These have the class `label`, or that of their folders. Raises UserError."""
    require_count("count", 1 if count is None else count, largest=2**20)
    if not paths:
        split_images = evaluation_images(run, split, None, data_dir)
        return split_images[evenly_spaced(len(split_images), 40 if count is None else count)]
    files = find_image_files(paths, run.class_names, image_pages(run))
    rows = evenly_spaced(len(files), MAX_INPUTS if count is None else count).tolist()
    if len(rows) < len(files):
        bar.log(
            f"{len(rows):,} of {len(files):,} images, evenly spaced; --count chooses another number"
        )
    files = files.take(rows)
    labels = file_labels(run, files, label)
    images = read_images(files, run.blueprint.shape, bar, image_fit(run), run.data.value_range)
    return eval_split(Split(images, labels), run.data.binarisation)[:]


def image_fit(run: Run) -> str:
    """How images of another aspect ratio are resized for the model of a run."""
    return "crop" if run.source is None else run.source.fit


def image_pages(run: Run) -> Pages | None:
    """The setting of a run for image files with several pages; all pages of a run on grey images that had none."""
    pages = None if run.source is None else run.source.pages
    return pages or ("all" if run.blueprint.shape[0] == 1 else None)


def file_labels(run: Run, files: ImageFiles, label: int | str | None) -> Tensor | None:
    """The labels (N,) of image files: all `label`, or by their folders; None where the model does not need them and not
    all folders are classes of the run. Raises UserError where it does."""
    if label is not None:
        return torch.full((len(files),), run.label_number(label))
    names = {name: number for number, name in enumerate(run.class_names)}
    unknown = next((i for i, name in enumerate(files.classes) if name not in names), None)
    if unknown is None:
        return torch.tensor([names[name] for name in files.classes])
    folder = files.classes[unknown]
    require(
        run.blueprint.settings.condition != "label",
        "the model is conditional on labels: pass --label, or images in folders named after its classes"
        + f" ({printable(folder)} is none)" * bool(folder),
    )
    return None
