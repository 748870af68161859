"""`encode` images to a table of latents, ELBO and NLL, and `decode` latents of such a table."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data import Dataset, EvalSplit, Split, eval_split
from ..data import load as load_data
from ..data.assemble import MAX_BYTES_IN_MEMORY
from ..data.dataset import get_split
from ..data.formats.chunked import file_of
from ..data.sources.inputs import find_image_files, is_array_path, read_arrays, read_images
from ..data.stored import SPLITS
from ..data.values import is_plain
from ..likelihood.elbo import ELBO_SAMPLES, image_chunks
from ..likelihood.importance import measure_nll
from ..model.graph import VAE
from ..runs.data import load_run_data
from ..runs.directory import Run, pad_with_numbers
from ..runs.load import load
from ..settings.data import ChannelAxis, Pages
from ..support.console import ProgressBar
from ..support.devices import fast_float32, resolve_device, seeded
from ..support.errors import UserError, printable, require, require_count, require_seed
from .code_map import Projection, Thumbnails, check_map, draw_code_map
from .generation import file_labels, image_fit, image_pages, latent_sizes
from .latent_space import decode_latents
from .tables import Columns, Table


def encode(
    run: Run | str | Path,
    data: Dataset | str | Path | Sequence[Path] | None = None,
    split: str | None = None,
    samples: int = 100,
    seed: int = 0,
    label: int | str | None = None,
    data_dir: str | Path | None = None,
    device: str = "auto",
    progress: bool = False,
    pages: Pages | None = None,
    channel_axis: ChannelAxis = "auto",
    picture: str | Path | None = None,
    projection: Projection = "auto",
) -> Table:
    """Encode images: a table with one row per image; columns of latents are (N, D), the others (N,).

    Columns: `split`; `index`, from 0 in its split or in the source; `path` of image files; `label` and `class`, its
    name, where known; of each latent `<name>_mean`, `<name>_scale` (standard deviation) and `<name>_sample`; `elbo`
    (from at most 10 samples) and `nll` (from `samples`), nats; and `rank`, 1 for the image of the highest NLL, the most
    unusual one. These three are left out where the posterior has no density.

    `data` is the run's own data set by default, or a Dataset or the name of one, of which `split` is encoded ("test" by
    default, or "all"). Or it is a path, or several: image files, and folders and archives of them, whose class is that
    of their folder, or `label` (a number or a name); or a file of arrays. All of these are encoded; `pages` and
    `channel_axis` tell how files of several pages and arrays are read, as for `load_data`.

    `picture` is a file to draw a map to: small versions of the images where their codes lie, in the two dimensions that
    these have, or by `projection`: auto (t-SNE), pca, tsne or umap. Raises UserError.
    """
    require_count("samples", samples)
    require_seed(seed)
    if picture is not None:
        check_map(Path(picture), projection)
    run, torch_device, bar = Run.of(run), resolve_device(device), ProgressBar(progress)
    model = load(run).to(torch_device)
    tables, thumbnails = [], Thumbnails() if picture is not None else None
    for origin, images in images_to_encode(
        run, data, split, label, data_dir, bar, pages, channel_axis
    ):
        with torch.no_grad(), seeded(seed, torch_device), fast_float32(torch_device):
            encoded = encode_images(model, images.to(torch_device), samples, bar, thumbnails)
        tables.append(origin | encoded)
    table = Table({key: np.concatenate([part[key] for part in tables]) for key in tables[0]})
    if "nll" in table:
        order = np.argsort(-table["nll"], kind="stable")
        table["rank"] = np.empty(len(order), np.int64)
        table["rank"][order] = np.arange(1, len(order) + 1)
    if picture is not None and thumbnails is not None:
        from ..pictures import save

        save(draw_code_map(run, model, table, thumbnails, projection), Path(picture))
    return table


def images_to_encode(
    run: Run,
    data: Any,
    split: str | None,
    label: int | str | None,
    data_dir: str | Path | None,
    bar: ProgressBar,
    pages: Pages | None = None,
    channel_axis: ChannelAxis = "auto",
) -> Iterator[tuple[Columns, EvalSplit]]:
    """Yield the images to encode in parts, each with the columns that say where its images come from."""
    shape = run.blueprint.shape
    named = isinstance(data, str) and not file_of(Path(data)).exists()
    if data is None or isinstance(data, Dataset) or named:
        require(label is None, "--label is only for image files; a data set has its own labels")
        if named:
            size, colour = f"{shape[1]}x{shape[2]}", "grey" if shape[0] == 1 else "rgb"
            data = load_data(data, data_dir, size=size, fit=image_fit(run), colour=colour)
        yield from split_parts(run, data, split or "test", data_dir)
        return
    paths = [Path(path) for path in ([data] if isinstance(data, str | Path) else data)]
    require(len(paths) > 0, "there are no images to encode")
    require(
        split in (None, "all"),
        f"--split {split} is for data sets; all of your own files are encoded",
    )
    if not any(file_of(path).exists() and is_array_path(path) for path in paths):
        yield from file_parts(run, paths, label, bar, pages or image_pages(run))
        return
    require(len(paths) == 1, "pass image files and folders of images, or one file of arrays")
    require(label is None, "--label is only for image files; arrays have their own labels")
    for name, start, part, classes in read_arrays(
        paths[0], shape, image_fit(run), run.data.value_range, bar, channel_axis
    ):
        yield labelled_part(run, name, start, part, classes, printable(paths[0]))


def split_parts(
    run: Run, data: Dataset | None, split: str, data_dir: str | Path | None
) -> Iterator[tuple[Columns, EvalSplit]]:
    """Yield a split of a data set, or all of them; of the run's own data set by default."""
    dataset, shape = (
        load_run_data(run, None, data_dir) if data is None else data,
        run.blueprint.shape,
    )
    require(
        dataset.shape == shape,
        f"the images of {dataset.name!r} are {dataset.shape} (C, H, W), but the model's are {shape}",
    )
    given, known = dataset.value_range, run.data.value_range
    require(
        (given.low, given.high) == (known.low, known.high) or (is_plain(given) and is_plain(known)),
        f"the values of {dataset.name!r} were read from {given.low:g} to {given.high:g}, those of the model's data "
        f"from {known.low:g} to {known.high:g}; load the data with --range={known.low:g},{known.high:g}",
    )
    folder = None if dataset.source is None else Path(dataset.source.data)
    for name in SPLITS if split == "all" else (split,):
        images = get_split(dataset, name)
        yield labelled_part(run, name, 0, images, dataset.classes, repr(dataset.name), folder)


def labelled_part(
    run: Run,
    name: str,
    start: int,
    images: Split,
    classes: Sequence[str] | None,
    where: str,
    folder: Path | None = None,
) -> tuple[Columns, EvalSplit]:
    """Images with their columns: split, index from `start`, path of image files (in `folder`, where that is one), label
    as the run numbers it, class name. `classes` are the names of the images' own labels. Raises UserError where a
    conditional model does not have these labels."""
    columns: Columns = {"split": np.full(len(images), name)}
    columns["index"] = np.arange(start, start + len(images))
    if images.table is not None:
        inside = folder is not None and folder.is_dir()
        files = (folder / file if folder and inside else file for file in images.table.names)
        columns["path"] = np.array([printable(file) for file in files])
    labels, own = images.labels, run.class_names
    recorded = bool(run.section("data").get("classes"))
    names = None
    if labels is not None and (classes or recorded):
        texts = pad_with_numbers(classes or own, int(labels.max()) + 1)
        names = [texts[k] for k in labels.tolist()]
    if labels is not None and names and classes and recorded and [*classes] != own:
        numbers = {text: number for number, text in enumerate(own)}
        known = all(text in numbers for text in set(names))
        labels = torch.tensor([numbers[text] for text in names]) if known else None
    count = run.blueprint.classes
    require(
        run.blueprint.settings.condition != "label"
        or (labels is not None and int(labels.max()) < count),
        f"the model is conditional on labels 0 to {count - 1}, which {where} does not have",
    )
    if labels is not None:
        columns["label"] = labels.numpy()
    if names is not None and (labels is None or names != [*map(str, labels.tolist())]):
        columns["class"] = np.array(names)
    return columns, eval_split(Split(images.images, labels), run.data.binarisation)


def file_parts(
    run: Run,
    paths: Sequence[Path],
    label: int | str | None,
    bar: ProgressBar,
    pages: Pages | None,
) -> Iterator[tuple[Columns, EvalSplit]]:
    """Yield the images of files, folders and an archive, in parts that fit into memory."""
    files, shape = find_image_files(paths, run.class_names, pages), run.blueprint.shape
    labels, size = file_labels(run, files, label), max(1, MAX_BYTES_IN_MEMORY // math.prod(shape))
    for rows in torch.arange(len(files)).split(size):
        part = files.take(rows.tolist())
        images = read_images(part, shape, bar, image_fit(run), run.data.value_range)
        columns: Columns = {"split": np.full(len(part), "files"), "index": rows.numpy()}
        columns["path"] = np.array([printable(name) for name in part.names])
        part_labels = None if labels is None else labels[rows]
        names = part.classes
        if part_labels is not None:
            columns["label"] = part_labels.numpy()
            names = [run.class_names[k] for k in part_labels.tolist()]
        if any(files.classes) or label is not None:
            columns["class"] = np.array(names)
        yield columns, eval_split(Split(images, part_labels), run.data.binarisation)


def encode_images(
    model: VAE,
    images: EvalSplit,
    samples: int,
    bar: ProgressBar,
    thumbnails: Thumbnails | None = None,
) -> Columns:
    """The columns of `encode` that the model computes; `thumbnails` of the images are kept on request."""
    columns: dict[str, list[Tensor]] = {}

    def add(name: str, values: Tensor) -> None:
        columns.setdefault(name, []).append(values.cpu())

    elbo_samples = min(samples, ELBO_SAMPLES)
    has_density = model.blueprint.settings.posterior != "deterministic"
    elbos = []
    for chunk in bar.track(image_chunks(model, images, elbo_samples), "ELBO"):
        batch = images[chunk]
        if thumbnails is not None:
            thumbnails.add(batch.images)
        for name, q in model.posteriors(model.given(batch.images, batch.labels)).items():
            add(f"{name}_mean", q.mean)
            with suppress(NotImplementedError):  # of a flow
                add(f"{name}_scale", q.stddev)
        inference = model(batch.images, batch.labels, samples=(elbo_samples,))
        for name, latent in inference.latents.items():
            add(f"{name}_sample", latent.z[0])
        elbos.append((inference.log_likelihood - inference.kl).mean(0).cpu())
    table: Columns = {name: torch.cat(parts).numpy() for name, parts in columns.items()}
    if has_density:
        estimate = measure_nll(model, images, samples, bar)
        table["elbo"] = torch.cat(elbos).numpy()
        table["nll"] = (-estimate.log_mean).numpy()
    return table


def decode(
    run: Run | str | Path,
    latents: Mapping[str, np.ndarray],
    column: str = "mean",
    label: int | str | None = None,
) -> Tensor:
    """Mean pixels (N, C, H, W) of the latents in a table: one from `encode`, or with a column (N, D) for each latent by
    its name; of a deep hierarchy, latents below the top groups may be missing and are then at the means of their
    priors. `column` is mean or sample. Labels are all `label`, or the column `label` or `class`, by number or name.
    Raises UserError.
    """
    run = Run.of(run)
    model = load(run)
    fixed = {}
    sizes = latent_sizes(model.blueprint)
    required = model.blueprint.settings.top_groups(model.blueprint.shape) or sizes
    for name, dim in sizes.items():
        values = latents.get(f"{name}_{column}", latents.get(name))
        if values is None and name not in required:
            continue
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
        labels = torch.full((count,), run.label_number(label))
    elif condition == "label":
        labels = column_labels(run, latents, count)
    return decode_latents(model, fixed, labels)


def column_labels(run: Run, latents: Mapping[str, np.ndarray], count: int) -> Tensor:
    """The labels (N,) of a table, by its column `label` or `class`: numbers or names. Raises UserError."""
    column = latents.get("label", latents.get("class"))
    if column is None:
        raise UserError("the model is conditional on labels: pass --label")
    names, classes = run.class_names, run.blueprint.classes
    if column.dtype.kind in "UO" and column.shape == (count,) and set(column) <= {*names}:
        column = np.array([names.index(name) for name in column])
    require(
        column.shape == (count,)
        and column.dtype.kind in "iuf"
        and bool(np.isin(column, np.arange(classes)).all()),
        f"the column label must have a label of 0 to {classes - 1} for each latent, or the name of a class",
    )
    return torch.from_numpy(column.astype(np.int64))
