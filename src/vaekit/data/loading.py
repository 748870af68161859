"""`load`: a data set by name, by path, or of what a program has in memory."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..settings.data import SourceConfig
from ..support.console import Shown
from ..support.errors import UserError, closest, override, printable, require
from .cache import cached
from .dataset import Dataset, Split
from .sources import catalog as shelf
from .sources.arrays import array_names, chunks, from_objects, load_array_file
from .sources.files import TAR_ENDINGS, open_source
from .sources.idx import find_idx, read_idx_folder
from .sources.image_files import as_dataset, load_images
from .sources.images import Form, refit
from .sources.locations import place
from .sources.named import READERS
from .splits import hold_back_missing
from .stored import open_store, write_store


def load(
    data: Any = "mnist", data_dir: str | Path | None = None, progress: bool = True, **settings: Any
) -> Dataset:
    """The data set `data`: one by name (`vaekit data list`), a path to one's own images, or images in memory.

    A path: a folder of images, at any depth, by class and by train and test or not; a .zip or .tar.gz of one; a .npy
    or .npz file; four IDX files; what `vaekit data prepare` wrote. In memory: an array or tensor (N, H, W),
    (N, H, W, C) or (N, C, H, W), a pair of one and labels, a dict of these by train, validation and test, or a
    map-style dataset. `settings` are the fields of SourceConfig.

    A named data set's files are looked for in `data_dir` or a folder of its name therein, or likewise in the folder
    that the environment variable VAEKIT_DATA names, else in vaekit's cache; what is missing is downloaded.
    Raises UserError for an unknown name, missing or damaged files, images that make no data set.
    """
    shown = Shown(progress)
    folder = None if data_dir is None else str(Path(data_dir).expanduser().resolve())
    size = settings.get("size")
    if isinstance(size, int | tuple | list):  # as one writes it in Python: 64, (48, 64)
        settings["size"] = "x".join(map(str, [size] if isinstance(size, int) else size))
    if not isinstance(data, str | Path):
        config = override(SourceConfig(), settings, "load_data()")
        return kept(formed(from_objects(data, config), config), config, shown)
    given = {"data": str(data), "data_dir": folder, **settings}
    config = override(SourceConfig(), given, "load_data()")
    by_name = isinstance(data, str) or not data.exists()
    named = shelf.find_name(str(data)) if by_name else None
    if named is None:
        path = find_path(str(data), data_dir)
        config = dataclasses.replace(config, data=str(path.resolve()), data_dir=None)
        dataset = load_path(path.resolve(), config, shown)
    else:
        name, variant = named
        dataset = READERS[name](place(name, data_dir, shown), variant, config, shown)
    dataset = kept(formed(dataset, config), config, shown)
    return dataclasses.replace(dataset, source=config)


def load_again(source: SourceConfig | None, data_dir: str | Path | None, run: str) -> Dataset:
    """The data set that a run was trained on; `data_dir` is where it lies now, if not where it was."""
    if source is None:
        raise UserError(f"{run} was trained on arrays; pass them as `data`, in Python")
    settings = {f.name: getattr(source, f.name) for f in dataclasses.fields(SourceConfig)}
    if data_dir is not None:
        settings["data_dir"] = data_dir
        if (
            shelf.find_name(source.data) is None
        ):  # one's own images: the folder itself, or where it lies
            below = Path(data_dir).expanduser() / Path(source.data).name
            settings["data"] = str(below if below.exists() else data_dir)
            settings["data_dir"] = None
    return load(**settings)


def find_path(data: str, data_dir: str | Path | None) -> Path:
    """Where one's own images are: at a path, or below `data_dir`. Raises UserError."""
    path = Path(data).expanduser()
    if data_dir is not None:
        base = Path(data_dir).expanduser()
        require(base.exists(), f"the data folder {printable(data_dir)} does not exist")
        path = base / path
    require(
        (path.exists() and data.strip() != "") or bool(path.suffix) or os.sep in data,
        f"there is no data set or folder {printable(data)!r}{closest(data, shelf.SHELVES)} (data sets: "
        f"{', '.join(shelf.SHELVES)})",
    )
    require(path.exists(), f"there is no file or folder {printable(path)}")
    return path


def load_path(path: Path, settings: SourceConfig, shown: Shown) -> Dataset:
    """The data set of a file or a folder. Raises UserError."""
    ending = path.suffix.lower()
    if ending == ".safetensors":
        return as_dataset(open_store(path), settings, path.stem, path)
    if path.is_dir():
        found = find_idx(path)
        if found is not None:
            splits = hold_back_missing(read_idx_folder(found), settings, printable(path))
            return Dataset.of(path.name, splits)
        arrays = [file.stem for file in path.glob("*.npy")]
        if array_names(arrays):
            return load_array_file(path, settings, shown)
    elif ending in (".npy", ".npz"):
        return load_array_file(path, settings, shown)
    known = path.is_dir() or path.name.lower().endswith((".zip", *TAR_ENDINGS))
    require(
        known,
        f"{printable(path)} is no folder of images, and no .zip, .tar.gz, .npy, .npz or .safetensors file of them",
    )
    name = re.sub(r"(\.zip|\.tgz|\.tar(\.\w+)?)$", "", path.name, flags=re.IGNORECASE)
    return load_images(open_source(path), settings, name, shown)


def formed(dataset: Dataset, settings: SourceConfig) -> Dataset:
    """The data set with its images in the size and colours that the settings ask for."""
    channels, height, width = dataset.shape
    wanted = settings.height_width or (height, width)
    colours = {"auto": channels, "grey": 1, "rgb": 3}[settings.colour]
    if (colours, *wanted) == dataset.shape:
        return dataset
    form = Form(colours, *wanted, settings.fit)
    splits = []
    for split in dataset.splits.values():
        require(
            isinstance(split.images, Tensor)
            and split.images.dtype == torch.uint8
            and channels in (1, 3),
            f"--size and --colour are for 8-bit images in grey or colour that are in memory; {dataset.name!r} is not",
        )
        assert isinstance(split.images, Tensor)
        splits.append(Split(refit(split.images, form), split.labels))
    return dataset.with_splits(splits, digest=None)


def kept(dataset: Dataset, settings: SourceConfig, shown: Shown) -> Dataset:
    """The data set with its pixels in a file, if that is asked for."""
    if settings.in_memory != "no" or not isinstance(dataset.train.images, Tensor):
        return dataset
    require(
        dataset.train.images.dtype == torch.uint8,
        "--in-memory no is for 8-bit pixels; these are floats",
    )
    digest = dataset.sha256()

    def make(path: Path) -> None:
        write_store(path, dataset.name, None, dataset.shape, chunks(dataset.splits), [])

    store = open_store(cached(dataset.name, [digest], make, shown))
    parts = torch.arange(len(store.images)).split([len(s) for s in dataset.splits.values()])
    splits = [
        Split(store.images.take(rows), split.labels)
        for rows, split in zip(parts, dataset.splits.values(), strict=True)
    ]
    return dataset.with_splits(splits, digest=digest)
