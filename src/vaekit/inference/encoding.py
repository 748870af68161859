"""Images to latents, what a run says of each image, and back: `vaekit encode` and `vaekit decode`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data import Dataset, Frozen, Split, freeze, load_again
from ..data import load as load_data
from ..data.dataset import choose_split
from ..data.sources.images import endings, image_files, read_images
from ..data.stored import PARTS
from ..likelihood.elbo import ELBO_SAMPLES, chunked
from ..likelihood.importance import measure_nll
from ..model.distributions import stddev
from ..model.graph import VAE
from ..runs.data import evaluation_images
from ..runs.directory import Run
from ..runs.load import load
from ..support.console import Shown
from ..support.devices import fast_float32, find_device, seeded
from ..support.errors import UserError, printable, require, require_count, require_seed
from .generation import latent_sizes, same_label
from .latent_space import decode_latents
from .tables import Table


def encode(
    run: Run | str | Path,
    data: Dataset | str | Path | Sequence[Path] | None = None,
    split: str = "test",
    samples: int = 100,
    seed: int = 0,
    label: int | None = None,
    data_dir: str | Path | None = None,
    device: str = "auto",
    progress: bool = False,
) -> Table:
    """What a run says of each image, column by column; a column of latents is (N, D), the others are (N,).

    `split`, `index` (from 0 in its split), `path` and `label` where there are any; of each latent `<name>_mean`,
    `<name>_scale` (standard deviation) and `<name>_sample`, a draw; `elbo` (from at most 10 draws) and `nll` (from
    `samples`), nats; and `rank`, 1 for the image of the highest NLL, the most unusual one. These three are left out
    where the posterior has no density.

    `data` is the run's own data set by default, whose `split` (or "all") is encoded; or another data set; or image
    files and folders, all of `label` where the model is conditional on it. Raises UserError.
    """
    require_count("samples", samples)
    require_seed(seed)
    run, where, shown = Run.of(run), find_device(device), Shown(progress)
    model = load(run).to(where)
    parts = image_parts(run, data, split, label, data_dir, shown.say)
    tables = []
    for name, (images, files) in parts.items():
        with torch.no_grad(), seeded(seed, where), fast_float32(where):
            found = encode_images(model, images.to(where), samples, shown)
        count = len(images)
        about: Table = {"split": np.full(count, name), "index": np.arange(count)}
        if files:
            about["path"] = np.array([printable(file) for file in files])
        if images.labels is not None:
            about["label"] = images.labels.numpy()
        tables.append(about | found)
    table: Table = {key: np.concatenate([part[key] for part in tables]) for key in tables[0]}
    if "nll" in table:
        order = np.argsort(-table["nll"], kind="stable")
        table["rank"] = np.empty(len(order), np.int64)
        table["rank"][order] = np.arange(1, len(order) + 1)
    return table


def image_parts(
    run: Run,
    data: Any,
    split: str,
    label: int | None,
    data_dir: str | Path | None,
    notice: Callable[[str], None],
) -> dict[str, tuple[Frozen, Sequence[Path]]]:
    """The images to encode by the name of their split, and the files that they came from, where these are known."""
    recorded, shape = run.data, run.blueprint.shape
    fit = "crop" if run.source is None else run.source.fit
    paths = [Path(data)] if isinstance(data, str | Path) else data
    if isinstance(paths, Sequence):
        paths = [Path(path) for path in paths]
        require(len(paths) > 0, "there are no images to encode")
    if isinstance(paths, list) and all(map(is_images, paths)):
        if label is not None:
            same_label(run.blueprint, 1, label)
        files = image_files(paths)
        images = read_images(files, shape, notice, fit)
        labels = None if label is None else same_label(run.blueprint, len(images), label)
        return {"files": (freeze(Split(images, labels), recorded.binarisation), files)}
    require(label is None, "--label is that of image files; data sets have theirs")
    names = PARTS if split == "all" else (split,)
    if data is None:
        own = load_again(run.source, data_dir, str(run))
        return {name: (evaluation_images(run, name, own, None), ()) for name in names}
    if isinstance(data, Dataset):
        dataset = data
    else:
        require(len(paths) == 1, "give image files and folders of them, or one data set")
        colour = "grey" if shape[0] == 1 else "rgb"
        dataset = load_data(
            data if isinstance(data, str) else paths[0],
            data_dir,
            size=f"{shape[1]}x{shape[2]}",
            fit=fit,
            colour=colour,
        )
    require(
        dataset.shape == shape,
        f"the images of {dataset.name!r} are {dataset.shape} (C, H, W), and the model's {shape}",
    )
    classes = run.blueprint.classes
    if run.blueprint.settings.condition == "label":
        for name in names:
            labels = choose_split(dataset, name).labels
            require(
                labels is not None and int(labels.max()) < classes,
                f"the model is conditional on labels of 0 to {classes - 1}, which {dataset.name!r} has not",
            )
    return {
        name: (freeze(choose_split(dataset, name), recorded.binarisation), ()) for name in names
    }


def is_images(path: Path) -> bool:
    """Whether a path is an image file, or a folder with image files right in it; a .npy file is a data set."""
    if path.is_dir():
        return any(file.suffix.lower() in endings() for file in path.iterdir())
    return path.suffix.lower() in endings() - {".npy"}


def encode_images(model: VAE, images: Frozen, samples: int, shown: Shown) -> Table:
    """The columns of `encode` that a model gives."""
    columns: dict[str, list[Tensor]] = {}

    def add(name: str, values: Tensor) -> None:
        columns.setdefault(name, []).append(values.cpu())

    draws = min(samples, ELBO_SAMPLES)
    has_density = model.blueprint.settings.posterior != "deterministic"
    bounds = []
    for chunk in shown.track(chunked(model, images, draws), "ELBO"):
        batch = images[chunk]
        for name, q in model.posteriors(model.given(batch.images, batch.labels)).items():
            add(f"{name}_mean", q.mean)
            add(f"{name}_scale", stddev(q))
        inference = model(batch.images, batch.labels, samples=(draws,))
        for name, latent in inference.latents.items():
            add(f"{name}_sample", latent.z[0])
        bounds.append((inference.log_likelihood - inference.kl).mean(0).cpu())
    table: Table = {name: torch.cat(parts).numpy() for name, parts in columns.items()}
    if has_density:
        means = measure_nll(model, images, samples, shown)
        table["elbo"] = torch.cat(bounds).numpy()
        table["nll"] = (-means.first).numpy()
    return table


def decode(
    run: Run | str | Path, latents: Table, column: str = "mean", label: int | None = None
) -> Tensor:
    """Mean pixels (N, C, H, W) of the latents in a table as `encode` gives it, or with a column (N, D) for each latent
    by its own name; `column` chooses mean or sample. Labels are its column `label`, or all `label`. Raises UserError.
    """
    run = Run.of(run)
    model = load(run)
    fixed = {}
    for name, dim in latent_sizes(model.blueprint).items():
        found = latents.get(f"{name}_{column}", latents.get(name))
        if found is None:
            there = ", ".join(latents)
            raise UserError(
                f"there is no column {name}_{column} and none {name} (there are: {there})"
            )
        require(
            found.ndim == 2 and found.shape[1] == dim and found.dtype.kind in "iuf",
            f"the latent {name} has {dim} dimensions, and its column is {found.dtype} {found.shape}",
        )
        with np.errstate(over="ignore"):
            fixed[name] = torch.from_numpy(found.astype(np.float32))
        require(
            bool(fixed[name].isfinite().all()), f"the latent {name} has numbers that are not finite"
        )
    count = len(next(iter(fixed.values())))
    require(count > 0, "there are no latents to decode")
    require(all(len(z) == count for z in fixed.values()), "the latents' columns differ in length")
    labels = None
    condition = model.blueprint.settings.condition
    require(
        not condition.startswith("quadrants"),
        "a model that completes images decodes no latents alone",
    )
    if label is not None:
        labels = same_label(model.blueprint, count, label)
    elif condition == "label":
        if "label" not in latents:
            raise UserError("the model is conditional on labels: give --label")
        given_labels, classes = latents["label"], model.blueprint.classes
        require(
            given_labels.shape == (count,)
            and given_labels.dtype.kind in "iuf"
            and bool(np.isin(given_labels, np.arange(classes)).all()),
            f"the column label must have a label of 0 to {classes - 1} for each latent",
        )
        labels = torch.from_numpy(given_labels.astype(np.int64))
    return decode_latents(model, fixed, labels)
