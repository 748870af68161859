"""Images to pass through a trained model: all of the given files, folders, archives or arrays, in their order."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...settings.data import EIGHT_BITS, ChannelAxis, Pages, PreprocessConfig, ValueRange
from ...support.console import ProgressBar
from ...support.errors import UserError, printable, require
from ..assemble import MAX_BYTES_IN_MEMORY
from ..dataset import Split
from ..formats.chunked import file_of, is_chunked
from ..formats.idx import find_idx, read_idx_files
from ..formats.images import (
    BadImage,
    Depth,
    ImageInfo,
    ImageSpec,
    array_depth,
    decode,
    inspect_image,
    resize_images,
)
from ..formats.pages import file_of_page
from ..stored import ImageStore, chunk_slices, image_extents, open_store
from ..values import check_part, converter, is_plain, on_levels, to_pixels
from .arrays import ArraySplits, as_labels, number_classes, open_arrays, parse_array_names
from .files import (
    ARCHIVES,
    Entry,
    Folder,
    ImageSource,
    PageSource,
    is_too_large,
    leave_out_broken_links,
    open_source,
)
from .image_files import decode_each, decode_files, decoded_images
from .layout import SPLIT_NAMES, mask_names
from .metadata import read_metadata
from .parquet import ParquetSource, find_parquet

ARRAYS = (".npy", ".npz", ".safetensors")
MAX_LOGGED = 10  # converted files named one by one; of more, only their number


class Files:
    """The given image files, and those at any depth below given folders, without hidden ones and without repeats."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.path = paths[0]
        self.folders = set[str]()
        self.key = [str(path) for path in paths]
        self.given = dict[str, Path]()  # of each file: the path that it was found by
        self.labels = dict[str, str]()  # of each file with a row in a table of its folder
        self.entries: list[Entry] = []
        self.tables: list[Entry] = []
        for path in paths:
            require(path.exists(), f"there is no image {printable(path)}")
            if path.is_dir():
                source = Folder(path)
                leave_out_broken_links(source, False, ProgressBar(False))
                masks = mask_names(source)
                entries = [e for e in source.entries if e.name not in masks]
                table = read_metadata(source, [e.name for e in entries])
                if table is not None and table.labels is not None:
                    names = [str(path / e.name) for e in entries]
                    self.labels |= zip(names, table.labels, strict=True)
                found = [Entry(str(path / e.name), e.size, e.stamp) for e in entries]
                require(len(found) >= 1, f"the folder {printable(path)} has no image files")
            else:
                require(path.is_file(), f"{printable(path)} is neither a file nor a folder")
                found = [Entry(str(path), path.stat().st_size, "")]
            self.entries += [entry for entry in found if entry.name not in self.given]
            self.given = {**dict.fromkeys((entry.name for entry in found), path), **self.given}

    def read(self, names: Collection[str]) -> Iterator[tuple[str, bytes | None]]:
        for entry in self.entries:
            if entry.name in names:
                yield entry.name, None if is_too_large(entry) else Path(entry.name).read_bytes()


@dataclass(frozen=True)
class ImageFiles:
    """Image files of a source, and the class of each by the name of its folder ("" where there is none). `folder` is
    the one folder or archive that was given, `pages` the setting of files with several pages."""

    source: ImageSource
    names: list[str]
    classes: list[str]
    folder: Path | None = None
    pages: Pages | None = None

    def __len__(self) -> int:
        return len(self.names)

    def take(self, rows: Sequence[int]) -> ImageFiles:
        """The files of these rows."""
        names, classes = ([column[i] for i in rows] for column in (self.names, self.classes))
        return replace(self, names=names, classes=classes)


def find_image_files(
    paths: Sequence[Path], classes: Collection[str] = (), pages: Pages | None = None
) -> ImageFiles:
    """The image files given as files, folders or one archive; `classes` are the names that the model knows, `pages` is
    the setting of files with several pages.

    The class of a file is that of a table (metadata.csv, labels.csv) in the given folder, else the first of its folders
    that is one of `classes`, else the first folder below the given one. Raises UserError for a missing path, a folder
    without images, and a table that does not fit them.
    """
    labels: Mapping[str, str] = {}
    if len(paths) == 1 and paths[0].is_file() and paths[0].name.lower().endswith(ARCHIVES):
        source = PageSource(open_source(paths[0]), pages)
        masks = mask_names(source)
        names = [entry.name for entry in source.entries if entry.name not in masks]
        require(len(names) >= 1, f"{printable(paths[0])} has no image files")
        folders = [PurePath(name).parts[:-1] for name in names]
        while all(f and f[0] == folders[0][0] and f[0] not in classes for f in folders):
            folders = [f[1:] for f in folders]  # the folder that was packed
        inside = [(parts, "") for parts in folders]
        table = read_metadata(source, names)
        if table is not None and table.labels is not None:
            labels = dict(zip(names, table.labels, strict=True))
    elif len(paths) == 1 and paths[0].exists() and (tables := find_parquet(paths[0])):
        return table_images(PageSource(ParquetSource(paths[0], tables), pages))
    else:
        files = Files(paths)
        source = PageSource(files, pages)
        names = [entry.name for entry in source.entries]
        labels = files.labels
        inside = []
        for name in names:
            path = files.given[file_of_page(name)]
            folder = path if path.is_dir() else path.parent
            parts = PurePath(name).relative_to(folder).parts[:-1]
            inside.append((parts, folder.resolve().name))
    found = [
        labels.get(file_of_page(name)) or labels.get(name) or class_of(*each, classes)
        for name, each in zip(names, inside, strict=True)
    ]
    return ImageFiles(source, names, found, paths[0] if len(paths) == 1 else None, pages)


def table_images(source: PageSource) -> ImageFiles:
    """The images of Parquet files, with the classes that these tell."""
    layout = source.layout
    assert layout is not None
    classes = [""] * len(layout.names)
    if layout.labels is not None and layout.classes is not None:
        classes = [layout.classes[label] for label in layout.labels]
    return ImageFiles(source, layout.names, classes)


def class_of(inside: Sequence[str], outside: str, classes: Collection[str]) -> str:
    """The class of an image from the folders `inside` what was given and the one `outside` that contains it."""
    known = [name for name in (*inside, outside) if name in classes]
    others = [name for name in inside if name.lower() not in SPLIT_NAMES]
    return next(iter([*known, *others]), "")


def run_depth(value_range: ValueRange) -> Depth:
    """The type of the values of image files for a model whose data had a range."""
    depth = "uint8" if is_plain(value_range) else array_depth(np.dtype(value_range.dtype))
    return "float32" if depth == "int16" else depth  # which takes both


def depth_of_files(files: ImageFiles, value_range: ValueRange) -> Depth:
    """The type of the values of image files for a model: that of its data where the first file has it, else 8 bits for
    a model that takes these."""
    depth, own = run_depth(value_range), array_depth(np.dtype(value_range.dtype))
    if depth == own:
        return own
    contents = files.source.read(set(files.names[:1]))
    info = next(decode_each(inspect_image, contents))[1]
    return own if isinstance(info, ImageInfo) and info.depth == own else depth


def read_images(
    files: ImageFiles,
    shape: tuple[int, int, int],
    bar: ProgressBar,
    fit: str = "crop",
    value_range: ValueRange = EIGHT_BITS,
) -> Tensor:
    """Decode image files as pixels (N, C, H, W) of a shape (C, H, W), uint8 or float32 in [0, 1], for a model whose
    data had a range; log which were converted.

    Raises UserError for a file that is not an image, or whose values are of another type.
    """
    spec = ImageSpec(*shape, fit=fit, depth=depth_of_files(files, value_range))
    decoded = decoded_values(files, spec)
    if decoded is not None:
        values, may_be_resized = decoded
        return pixels_of_run(values, files, value_range, bar, [*range(len(files))] * may_be_resized)
    spec = replace(spec, rounded=True)
    values = np.empty((len(files), *shape), spec.depth)
    converted: dict[str, str] = {}

    def read(content: bytes) -> tuple[str, np.ndarray]:
        info = inspect_image(content)
        changes = []
        if {info.channels, spec.channels} == {1, 3}:
            changes.append("grey to colour" if info.channels == 1 else "colour to grey")
        if (info.height, info.width) != (spec.height, spec.width):
            size = f"{spec.width} x {spec.height}"
            changes.append(f"{info.width} x {info.height} to {size} pixels")
        if (info.depth, spec.depth) == ("uint16", "uint8"):
            changes.append("16 to 8 bits")
        return ", ".join(changes), decode(content, spec)

    rows = {name: i for i, name in enumerate(files.names)}
    results = decode_files(
        files.source, files.names, read, bar, "decoding images", values[0].nbytes
    )
    for name, result in results:
        if isinstance(result, BadImage):
            raise UserError(f"{printable(name)} cannot be read: {result}")
        change, values[rows[name]] = result
        if change:
            converted[name] = change
    log_conversions(converted, len(files), bar.log)
    resized = [rows[name] for name in converted]
    return pixels_of_run(values, files, value_range, bar, resized)


def decoded_values(files: ImageFiles, spec: ImageSpec) -> tuple[np.ndarray, bool] | None:
    """The values of image files (N, C, H, W) as loading their folder as a data set has decoded them, and whether some
    may be resized; None if it has not."""
    if files.folder is None:
        return None
    depths: tuple[Depth, ...] = ("float32", "int16") if spec.depth == "float32" else (spec.depth,)
    specs = [
        replace(spec, fit=fit, depth=depth)
        for fit, depth in itertools.product((spec.fit, "exact"), depths)
    ]
    inside = files.folder.is_dir()
    for each, store in decoded_images(files.folder, files.pages, specs):
        names = [] if store.table is None else store.table.names
        rows = {str(files.folder / n) if inside else n: row for row, n in enumerate(names)}
        if all(name in rows for name in files.names):
            numbers = torch.tensor([rows[name] for name in files.names])
            return store.images.read_values(numbers), each.fit != "exact"
    return None


def pixels_of_run(
    values: np.ndarray,
    files: ImageFiles,
    value_range: ValueRange,
    bar: ProgressBar,
    resized: list[int],
) -> Tensor:
    """Pixels of the values of image files, of which some rows are `resized`. Raises UserError where they are of another
    scale."""
    where = printable(files.source.path)
    if values.dtype != np.uint8 or not is_plain(value_range):
        log_clipped(values, value_range, where, bar.log)
    elif value_range.high == 1 and value_range.levels == 2 and values.max() == 1:
        bar.log(f"{where}: all values are 0 or 1, read as black and white")
        values *= 255
    pixels = to_pixels(torch.from_numpy(values), value_range)
    pixels[resized] = on_levels(pixels[resized], value_range)
    return pixels


def log_clipped(
    values: np.ndarray, value_range: ValueRange, where: str, log: Callable[[str], None]
) -> None:
    """Log how many images have values outside of the range. Raises UserError where these are of another scale."""
    lows, highs = image_extents(values).T
    # Integers of the model's own type, and any in a range to 1, are of its scale, however dark.
    own = values.dtype.kind in "iu" and values.dtype == value_range.dtype
    sentence = check_part(
        lows,
        highs,
        value_range,
        where,
        strict=True,
        may_be_dark=own or (is_plain(value_range) and value_range.high == 1),
        advice="give values of the scale of the model's data",
    )
    if sentence:
        log(sentence)


def log_conversions(converted: dict[str, str], total: int, log: Callable[[str], None]) -> None:
    """Log each converted file, or the kinds of conversion of many."""
    if len(converted) <= MAX_LOGGED:
        for name, change in converted.items():
            log(f"{printable(name)}: converted {change}")
        return
    kinds = Counter(converted.values()).most_common()
    rest = f" and {len(kinds) - 3} other ways" if len(kinds) > 3 else ""
    log(
        f"{len(converted):,} of {total:,} images converted: "
        + "; ".join(f"{change} ({count:,})" for change, count in kinds[:3])
        + rest
    )


def is_array_path(path: Path) -> bool:
    """Whether a path is a file of arrays or of `vaekit data prepare`, or a folder of IDX or array files."""
    if not path.is_dir() or is_chunked(path):
        return path.suffix.lower() in ARRAYS or is_chunked(path)
    names = [file.stem for file in path.glob("*.npy")]
    return parse_array_names(names) is not None or find_idx(path) is not None


def read_arrays(
    path: Path,
    shape: tuple[int, int, int],
    fit: str,
    value_range: ValueRange = EIGHT_BITS,
    bar: ProgressBar | None = None,
    channel_axis: ChannelAxis = "auto",
) -> Iterator[tuple[str, int, Split, list[str] | None]]:
    """Yield all images of a path of `is_array_path`, in their order and in bounded memory, for a model whose images had
    a shape and a range of values: the name of their split, the row of the first in it, images (n, C, H, W) of the shape
    with labels where the source has them, and class names.

    Raises UserError for images that cannot be converted to the shape, or whose values are of another scale.
    """
    where, log = printable(path), (bar or ProgressBar(False)).log
    file = file_of(path)
    require(file.is_file() or file.is_dir(), f"{where} is neither a file nor a folder")
    arrays: Mapping[str, tuple[Any, Any]]
    if path.suffix.lower() == ".safetensors":
        yield from read_store(open_store(path), shape, fit, value_range, log)
        return
    if path.is_dir() and (idx := find_idx(path)) is not None:
        read = read_idx_files(idx).items()
        arrays = {name: (s.images, s.labels) for name, s in read}
        settings = PreprocessConfig(channel_axis="first")
    else:
        arrays = open_arrays(path, mapped=True)
        settings = PreprocessConfig(channel_axis=channel_axis)
    images = ArraySplits({name: x for name, (x, _) in arrays.items()}, settings, where, shape)
    convert = converter(images.facts, value_range, where, log)
    classes = None
    if all(y is not None for _, y in arrays.values()):
        arrays, classes = number_classes(arrays, where)
    for name, (_, labels) in arrays.items():
        count = images.count(name)
        y = None if labels is None else as_labels(labels, count, where)
        for chunk in chunk_slices(count, 4 * math.prod(images.shape), MAX_BYTES_IN_MEMORY):
            values = images.read(name, chunk)
            if not is_plain(value_range):
                log_clipped(values, value_range, where, log)
            x = with_shape(convert(values), shape, fit, where, value_range)
            part = Split(x, None if y is None else y[chunk])
            yield (
                name if len(arrays) > 1 else "all",
                chunk.start,
                part,
                None if classes is None else [*classes],
            )


def read_store(
    store: ImageStore,
    shape: tuple[int, int, int],
    fit: str,
    value_range: ValueRange,
    log: Callable[[str], None],
) -> Iterator[tuple[str, int, Split, list[str] | None]]:
    """Yield all images of a file of `vaekit data prepare`, as `read_arrays` does."""
    where, facts = printable(store.path), store.metadata.facts
    plain = is_plain(value_range) and facts.stored == "uint8"
    same = facts.dtype == value_range.dtype
    require(
        same or is_plain(value_range) == (facts.stored == "uint8"),
        f"{where} has {facts.dtype} values, but the model's data were {value_range.dtype} values; give the same",
    )
    found, images = store.rows_by_split(), store.images.with_range(value_range)
    image_bytes = 4 * math.prod(images.file_shape[1:])  # of pixels in float32
    for name, rows in found.items():
        for chunk in chunk_slices(len(rows), image_bytes, MAX_BYTES_IN_MEMORY):
            some = rows[chunk]
            if not plain:
                log_clipped(images.read_values(some), value_range, where, log)
            x = with_shape(images[some], shape, fit, where, value_range)
            part = Split(x, None if store.labels is None else store.labels[some])
            yield name if len(found) > 1 else "all", chunk.start, part, store.metadata.classes


def with_shape(
    images: Tensor, shape: tuple[int, int, int], fit: str, where: str, value_range: ValueRange
) -> Tensor:
    """Images (N, C, H, W) in the shape (C, H, W), of the levels of a range. Raises UserError where they cannot be
    converted."""
    if tuple(images.shape[1:]) == shape:
        return images
    require(
        images.shape[1] == shape[0] or (images.shape[1] in (1, 3) and shape[0] in (1, 3)),
        f"the images of {where} are {tuple(images.shape[1:])} (C, H, W), but the model's are {shape}; only grey and "
        "colour images are converted to each other",
    )
    return on_levels(resize_images(images, ImageSpec(*shape, fit=fit)), value_range)
