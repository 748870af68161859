"""`encode` images to a table of latents, ELBO and NLL, and `decode` latents of such a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data import Dataset, EvalSplit, Split, eval_split, reload
from ..data import load as load_data
from ..data.dataset import get_split
from ..data.sources.images import extensions, image_files, read_images
from ..data.stored import SPLITS
from ..likelihood.elbo import ELBO_SAMPLES, image_chunks
from ..likelihood.importance import measure_nll
from ..model.distributions import stddev
from ..model.graph import VAE
from ..runs.data import evaluation_images
from ..runs.directory import Run
from ..runs.load import load
from ..support.console import ProgressBar
from ..support.devices import fast_float32, resolve_device, seeded
from ..support.errors import UserError, printable, require, require_count, require_seed
from .generation import latent_sizes, repeat_label
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
    """Encode images: a table with one row per image; columns of latents are (N, D), the others (N,).

    Columns: `split`, `index` (from 0 in its split), `path` and `label` where known; of each latent `<name>_mean`,
    `<name>_scale` (standard deviation) and `<name>_sample`; `elbo` (from at most 10 samples) and `nll` (from
    `samples`), nats; and `rank`, 1 for the image of the highest NLL, the most unusual one. These three are left out
    where the posterior has no density.

    `data` is the run's own data set by default, whose `split` (or "all") is encoded; or another data set; or image
    files and folders, all of `label` where the model is conditional on labels. Raises UserError.
    """
    require_count("samples", samples)
    require_seed(seed)
    run, torch_device, bar = Run.of(run), resolve_device(device), ProgressBar(progress)
    model = load(run).to(torch_device)
    parts = images_by_split(run, data, split, label, data_dir, bar.log)
    tables = []
    for name, (images, files) in parts.items():
        with torch.no_grad(), seeded(seed, torch_device), fast_float32(torch_device):
            encoded = encode_images(model, images.to(torch_device), samples, bar)
        count = len(images)
        origin: Table = {"split": np.full(count, name), "index": np.arange(count)}
        if files:
            origin["path"] = np.array([printable(file) for file in files])
        if images.labels is not None:
            origin["label"] = images.labels.numpy()
        tables.append(origin | encoded)
    table: Table = {key: np.concatenate([part[key] for part in tables]) for key in tables[0]}
    if "nll" in table:
        order = np.argsort(-table["nll"], kind="stable")
        table["rank"] = np.empty(len(order), np.int64)
        table["rank"][order] = np.arange(1, len(order) + 1)
    return table


def images_by_split(
    run: Run,
    data: Any,
    split: str,
    label: int | None,
    data_dir: str | Path | None,
    log: Callable[[str], None],
) -> dict[str, tuple[EvalSplit, Sequence[Path]]]:
    """The images to encode, with their files where known, by split."""
    recorded, shape = run.data, run.blueprint.shape
    fit = "crop" if run.source is None else run.source.fit
    paths = [Path(data)] if isinstance(data, str | Path) else data
    if isinstance(paths, Sequence):
        paths = [Path(path) for path in paths]
        require(len(paths) > 0, "there are no images to encode")
    if isinstance(paths, list) and all(map(is_image_path, paths)):
        if label is not None:
            repeat_label(run.blueprint, 1, label)
        files = image_files(paths)
        images = read_images(files, shape, log, fit)
        labels = None if label is None else repeat_label(run.blueprint, len(images), label)
        return {"files": (eval_split(Split(images, labels), recorded.binarisation), files)}
    require(label is None, "--label is only for image files; a data set has its own labels")
    names = SPLITS if split == "all" else (split,)
    if data is None:
        own = reload(run.source, data_dir, str(run))
        return {name: (evaluation_images(run, name, own, None), ()) for name in names}
    if isinstance(data, Dataset):
        dataset = data
    else:
        require(len(paths) == 1, "pass image files and folders of images, or one data set")
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
        f"the images of {dataset.name!r} are {dataset.shape} (C, H, W), but the model's are {shape}",
    )
    classes = run.blueprint.classes
    if run.blueprint.settings.condition == "label":
        for name in names:
            labels = get_split(dataset, name).labels
            require(
                labels is not None and int(labels.max()) < classes,
                f"the model is conditional on labels 0 to {classes - 1}, which {dataset.name!r} does not have",
            )
    return {
        name: (eval_split(get_split(dataset, name), recorded.binarisation), ()) for name in names
    }


def is_image_path(path: Path) -> bool:
    """Whether a path is an image file or a folder that directly contains some; a .npy file is a data set."""
    if path.is_dir():
        return any(file.suffix.lower() in extensions() for file in path.iterdir())
    return path.suffix.lower() in extensions() - {".npy"}


def encode_images(model: VAE, images: EvalSplit, samples: int, bar: ProgressBar) -> Table:
    """The columns of `encode` that the model computes."""
    columns: dict[str, list[Tensor]] = {}

    def add(name: str, values: Tensor) -> None:
        columns.setdefault(name, []).append(values.cpu())

    elbo_samples = min(samples, ELBO_SAMPLES)
    has_density = model.blueprint.settings.posterior != "deterministic"
    elbos = []
    for chunk in bar.track(image_chunks(model, images, elbo_samples), "ELBO"):
        batch = images[chunk]
        for name, q in model.posteriors(model.given(batch.images, batch.labels)).items():
            add(f"{name}_mean", q.mean)
            add(f"{name}_scale", stddev(q))
        inference = model(batch.images, batch.labels, samples=(elbo_samples,))
        for name, latent in inference.latents.items():
            add(f"{name}_sample", latent.z[0])
        elbos.append((inference.log_likelihood - inference.kl).mean(0).cpu())
    table: Table = {name: torch.cat(parts).numpy() for name, parts in columns.items()}
    if has_density:
        estimate = measure_nll(model, images, samples, bar)
        table["elbo"] = torch.cat(elbos).numpy()
        table["nll"] = (-estimate.log_mean).numpy()
    return table


def decode(
    run: Run | str | Path, latents: Table, column: str = "mean", label: int | None = None
) -> Tensor:
    """Mean pixels (N, C, H, W) of the latents in a table: one from `encode`, or with a column (N, D) for each latent by
    its name. `column` is mean or sample. Labels are the column `label`, or all `label`. Raises UserError.
    """
    run = Run.of(run)
    model = load(run)
    fixed = {}
    for name, dim in latent_sizes(model.blueprint).items():
        values = latents.get(f"{name}_{column}", latents.get(name))
        if values is None:
            raise UserError(
                f"there is no column {name}_{column} or {name}; the columns are {', '.join(latents)}"
            )
        require(
            values.ndim == 2 and values.shape[1] == dim and values.dtype.kind in "iuf",
            f"the latent {name} has {dim} dimensions, but its column is {values.dtype} {values.shape}",
        )
        with np.errstate(over="ignore"):
            fixed[name] = torch.from_numpy(values.astype(np.float32))
        require(
            bool(fixed[name].isfinite().all()), f"the latent {name} has values that are not finite"
        )
    count = len(next(iter(fixed.values())))
    require(count > 0, "there are no latents to decode")
    require(
        all(len(z) == count for z in fixed.values()), "the columns of the latents differ in length"
    )
    labels = None
    condition = model.blueprint.settings.condition
    require(
        not condition.startswith("quadrants"),
        "a model that completes images cannot decode latents alone; use `vaekit generate`",
    )
    if label is not None:
        labels = repeat_label(model.blueprint, count, label)
    elif condition == "label":
        if "label" not in latents:
            raise UserError("the model is conditional on labels: pass --label")
        label_column, classes = latents["label"], model.blueprint.classes
        require(
            label_column.shape == (count,)
            and label_column.dtype.kind in "iuf"
            and bool(np.isin(label_column, np.arange(classes)).all()),
            f"the column label must have a label of 0 to {classes - 1} for each latent",
        )
        labels = torch.from_numpy(label_column.astype(np.int64))
    return decode_latents(model, fixed, labels)
