"""`load`: a data set by name, by path, or from images in memory."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..settings.data import UNIT_RANGE, SourceConfig
from ..support.console import ProgressBar
from ..support.errors import (
    UserError,
    did_you_mean,
    flag_name,
    for_caller,
    printable,
    require,
    with_changes,
)
from .assemble import dataset_from_store
from .cache import cached_file
from .dataset import Dataset, Split
from .formats.chunked import check_inside, file_of, is_chunked, split_path
from .formats.idx import find_idx, read_idx_files
from .formats.images import ImageSpec, resize_images
from .sources import catalog
from .sources.arrays import load_array_file, parse_array_names, split_chunks
from .sources.files import ARCHIVES, has_image_extension
from .sources.image_files import load_images, source_name
from .sources.locations import find_subfolder, locate
from .sources.named import READERS
from .sources.objects import dataset_from_objects
from .sources.parquet import open_images
from .splits import complete_splits, take_subsets
from .stored import open_store, write_store
from .values import Facts, on_levels


def load(
    data: Any = "mnist",
    data_dir: str | Path | None = None,
    progress: bool = True,
    classes: Sequence[str] | None = None,
    **settings: Any,
) -> Dataset:
    """Load the data set `data`: a name (`vaekit data list`), a path to your own images, or images in memory.

    A path: a folder of images at any depth, optionally in folders by split and class; a .zip or .tar.gz of one; a .npy
    or .npz file; an HDF5 or zarr file, or an array in it, as file.h5:/images; Parquet files of images; one image file
    of several pages; a folder of four IDX files; a file written by `vaekit data prepare`. In memory: an array or tensor
    (N, H, W), (N, H, W, C) or (N, C, H, W), a pair of one and labels, a map-style dataset of PyTorch, whose items are
    images, pairs or dicts, or a dict of any of these by train, validation and test. `settings` are the fields of
    SourceConfig; `channels` is short for `channel_axis`. Class folders are numbered in the order of `classes`, by
    default by name, or by value where all names are whole numbers.

    A named data set's files are searched in `data_dir` or its subfolder of that name, else likewise in the folder that
    the environment variable VAEKIT_DATA names, else in vaekit's cache; missing files are downloaded.
    Raises UserError for an unknown name, missing or damaged files, or images that do not form a data set.
    """
    bar = ProgressBar(progress)
    folder = None if data_dir is None else str(Path(data_dir).expanduser().resolve())
    size = settings.get("size")
    if isinstance(size, int | tuple | list):  # 64 or (48, 64)
        settings["size"] = "x".join(map(str, [size] if isinstance(size, int) else size))
    if "channels" in settings:
        settings["channel_axis"] = settings.pop("channels")
    if isinstance(settings.get("range"), tuple | list):  # (0, 4095)
        settings["range"] = ",".join(map(str, settings["range"]))
    if not isinstance(data, str | Path):
        config = with_changes(SourceConfig(), settings, "load_data()")
        return finished(dataset_from_objects(data, config, bar), config, bar)
    given = {"data": str(data), "data_dir": folder, **settings}
    config = with_changes(SourceConfig(), given, "load_data()")
    by_name = isinstance(data, str) or not data.exists()
    named = catalog.parse_name(str(data)) if by_name else None
    if named is None:
        path = find_path(str(data), data_dir)
        config = dataclasses.replace(config, data=str(path.resolve()), data_dir=None)
        dataset = finished(load_path(path.resolve(), config, bar, classes), config, bar)
    else:
        dataset = load_named(*named, config, data_dir, bar)
    return dataclasses.replace(dataset, source=config)


def load_named(
    name: str, variant: str, settings: SourceConfig, data_dir: str | Path | None, bar: ProgressBar
) -> Dataset:
    """Load a named data set; a variant that is a number is one of training images. Raises UserError."""
    if variant.isdecimal():
        count = settings.train_images
        require(
            count in (None, int(variant)),
            f"--data {name}:{variant} and --train-images {count} are different numbers of images; give one of them",
        )
        settings, variant = dataclasses.replace(settings, train_images=int(variant)), ""
    files = locate(name, data_dir, bar)
    dataset = READERS[name](files, variant, settings, bar)
    # The name wins over a folder of the same name.
    folder = find_subfolder(Path(data_dir or ".").expanduser(), name)
    if folder is not None and folder.resolve() != files.resolve():
        other = printable(folder.name)
        text = f"the data set {name}, not the folder {other} here; name that ./{other}"
        dataset = dataclasses.replace(dataset, reading=(*dataset.reading, text))
    return finished(dataset, settings, bar, ordered=not catalog.CATALOG[name].seeded)


def finished(
    dataset: Dataset, settings: SourceConfig, bar: ProgressBar, ordered: bool = False
) -> Dataset:
    """The data set with the number, size and place of its images that the settings want; says how it was read. Raises
    UserError."""
    check_grouped(dataset, settings)
    for sentence in dataset.reading:
        bar.log(sentence)
    dataset = take_subsets(dataset, settings, ordered)
    return stored_on_disk(resized(dataset, settings), settings, bar)


def reload(
    source: SourceConfig | None,
    data_dir: str | Path | None,
    run: str,
    classes: Sequence[str] | None = None,
) -> Dataset:
    """Load the data set of a run again, from `data_dir` if it has moved, with the run's `classes` in their order.

    Raises UserError for a run on arrays.
    """
    if source is None:
        where = f"{run} was trained on arrays"
        in_memory = f"{where} in the memory of a Python program, which are not in a file"
        raise UserError(for_caller(in_memory, f"{where}; pass them as `data`"))
    settings = {f.name: getattr(source, f.name) for f in dataclasses.fields(SourceConfig)}
    if data_dir is not None:
        settings["data_dir"] = data_dir
        if catalog.parse_name(source.data) is None:
            # A path: `data_dir` is the folder itself or its parent.
            file, inside = split_path(Path(source.data)) or (Path(source.data), "")
            child = Path(data_dir).expanduser() / file.name
            moved = child if child.exists() else data_dir
            settings["data"] = f"{moved}:/{inside}" if inside else str(moved)
            settings["data_dir"] = None
    return load(**settings, classes=classes)


def find_path(data: str, data_dir: str | Path | None) -> Path:
    """The path of the user's own images, relative to `data_dir` if given. Raises UserError."""
    path = Path(data).expanduser()
    if data_dir is not None:
        base = Path(data_dir).expanduser()
        require(base.exists(), f"the data folder {printable(data_dir)} does not exist")
        path = base / path
    check_inside(path)
    file = file_of(path)
    require(
        (file.exists() and data.strip() != "") or bool(path.suffix) or os.sep in data,
        f"there is no data set or folder {printable(data)!r}{did_you_mean(data, catalog.CATALOG)} (data sets: "
        f"{', '.join(catalog.CATALOG)})",
    )
    require(file.exists(), f"there is no file or folder {printable(file)}")
    # A pipe or a device may never end.
    require(file.is_file() or file.is_dir(), f"{printable(file)} is neither a file nor a folder")
    return path


def load_path(
    path: Path, settings: SourceConfig, bar: ProgressBar, classes: Sequence[str] | None = None
) -> Dataset:
    """Load the data set of a file or a folder. Raises UserError."""
    extension = path.suffix.lower()
    if is_chunked(path):
        return load_array_file(path, settings, bar)
    if extension == ".safetensors":
        return dataset_from_store(open_store(path, bar), settings, path.stem, path, classes)
    if path.is_dir():
        idx_files = find_idx(path)
        if idx_files is not None:
            splits = complete_splits(read_idx_files(idx_files), settings, printable(path))
            return Dataset.from_splits(path.name, splits)
        array_names = [file.stem for file in path.glob("*.npy")]
        if parse_array_names(array_names):
            return load_array_file(path, settings, bar)
    elif extension in (".npy", ".npz"):
        return load_array_file(path, settings, bar)
    require(
        path.is_dir()
        or has_image_extension(path.name)
        or path.name.lower().endswith((".parquet", *ARCHIVES)),
        f"{printable(path)} is not a folder of images, an image file, or a .zip, .tar.gz, .npy, .npz, .h5, .zarr, "
        ".parquet or .safetensors file of images",
    )
    return load_images(open_images(path), settings, source_name(path), bar, classes=classes)


def check_grouped(dataset: Dataset, settings: SourceConfig) -> None:
    """Raise UserError where images are to be split by groups, but have neither files nor metadata."""
    require(
        settings.group_by is None or dataset.train.table is not None,
        f"--group-by {printable(settings.group_by)} needs image files in folders, or with metadata; {dataset.name!r} "
        "has none",
    )


def resized(dataset: Dataset, settings: SourceConfig) -> Dataset:
    """The data set with its images in the size and colour of the settings. Raises UserError."""
    channels, height, width = dataset.shape
    size = settings.height_width or (height, width)
    new_channels = {"auto": channels, "grey": 1, "rgb": 3}[settings.colour]
    if (new_channels, *size) == dataset.shape:
        return dataset
    spec = ImageSpec(new_channels, *size, settings.fit)
    splits = []
    for split in dataset.splits.values():
        require(
            isinstance(split.images, Tensor),
            f"--size and --colour need arrays in memory; those of {dataset.name!r} are not: resize them, or give "
            f"{flag_name('in_memory')} yes",
        )
        require(
            settings.colour == "auto" or channels in (1, 3),
            f"--colour needs grey or colour images; those of {dataset.name!r} have {channels} channels",
        )
        assert isinstance(split.images, Tensor)
        images = on_levels(resize_images(split.images, spec), dataset.value_range)
        splits.append(Split(images, split.labels, split.table))
    return dataset.with_splits(splits, digest=None)


def stored_on_disk(dataset: Dataset, settings: SourceConfig, bar: ProgressBar) -> Dataset:
    """The data set with its pixels in a cached file, if `in_memory` is "no". Raises UserError."""
    if settings.in_memory != "no" or not isinstance(dataset.train.images, Tensor):
        return dataset
    digest, stored = dataset.sha256(), str(dataset.train.images.dtype).removeprefix("torch.")
    facts = Facts(stored, stored)

    def make(path: Path) -> None:
        chunks = split_chunks(dataset.splits)
        write_store(path, dataset.name, None, dataset.shape, chunks, [], stored, lambda: facts)

    store = open_store(cached_file(dataset.name, [digest], make, bar), bar)
    images = store.images if stored == "uint8" else store.images.with_range(UNIT_RANGE)
    row_ranges = torch.arange(len(images)).split([len(s) for s in dataset.splits.values()])
    splits = [
        Split(images.take(rows), split.labels)
        for rows, split in zip(row_ranges, dataset.splits.values(), strict=True)
    ]
    return dataset.with_splits(splits, digest=digest)
