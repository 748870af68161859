"""Image files as a data set: decoded once into a file of pixels, which is loaded into memory or read on demand."""

from __future__ import annotations

import itertools
import os
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ...settings.data import Pages, PreprocessConfig, SourceConfig
from ...support.console import ProgressBar
from ...support.errors import UserError, printable, require
from ..assemble import dataset_from_store
from ..cache import cache_path, cached_file, cached_record, digest_of
from ..dataset import Dataset
from ..formats.images import (
    MAX_FILE_BYTES,
    BadImage,
    Depth,
    ImageInfo,
    ImageSpec,
    decode,
    ignore_pillow_warnings,
    inspect_image,
)
from ..image_table import table_bytes
from ..stored import CHUNK_BYTES, Chunk, ImageStore, open_store, write_store
from ..values import Facts, ValueInspector
from .files import (
    ARCHIVES,
    ImageSource,
    PageSource,
    leave_out_broken_links,
    open_source,
    tables_beside,
)
from .layout import Layout, check_splits, read_layout

DEFAULT_SIZE = 64
MAX_UNRESIZED_PIXELS = 512 * 512
BATCH_BYTES, BATCH_FILES = 2**22, 200
QUEUED_BYTES = 2**27  # of files waiting to be decoded
SMALL_FILE = 8192  # bytes; files smaller than this on average are decoded in one thread
T = TypeVar("T")
DECODER_VERSION = 4  # increment when the same files would be decoded to other pixels


def load_images(
    source: ImageSource,
    settings: SourceConfig,
    name: str,
    bar: ProgressBar,
    leave_out: Sequence[str] = (),
    classes: Sequence[str] | None = None,
) -> Dataset:
    """Load the data set of image files: decoded the first time, then from the cache. Raises UserError as `read_layout`
    does, and for images that cannot be read unless `skip_bad`. `classes` as in `dataset_from_store`."""
    leave_out_broken_links(source, settings.skip_bad, bar)
    form = {key: getattr(settings, key) for key in ("size", "fit", "colour")}
    pages = PageSource(source, settings.pages)
    layout = cache(lambda: read_layout(pages, leave_out))  # read once, and not if all is cached

    def find_spec() -> ImageSpec:
        return resolve_spec(pages, layout(), settings, bar)

    key = store_key(source, settings.pages, leave_out)
    spec = cached_record(name, [key, form], ImageSpec, find_spec)

    def make(path: Path) -> None:
        write_decoded(pages, layout(), settings, name, path, bar, spec)

    store = open_store(cached_file(name, [key, asdict(spec)], make, bar), bar)
    metadata = store.metadata
    if metadata.bad and not settings.skip_bad:
        raise bad_images_error(source, metadata.bad, metadata.bad_names, len(store.images))
    dataset = dataset_from_store(store, settings, name, source.path, classes)
    beside = [] if source.tables or dataset.classes else tables_beside(source.path)
    if not beside:
        return dataset
    told = f"{printable(beside[0])} beside this folder is not read; --data {printable(source.path.parent)} would"
    return replace(dataset, reading=(*dataset.reading, told))


def store_key(source: ImageSource, pages: Pages | None, leave_out: Sequence[str] = ()) -> Any:
    """What decoded images depend on beside the ImageSpec."""
    return [digest_of(source.key), pages, list(leave_out), DECODER_VERSION]


def decoded_images(
    path: Path, pages: Pages | None, specs: Iterable[ImageSpec]
) -> Iterator[tuple[ImageSpec, ImageStore]]:
    """Yield the images of a folder or an archive as earlier calls of `load_images` have decoded them, all of them, to
    those of the specs that they have."""
    if not (path.is_dir() or path.name.lower().endswith(ARCHIVES)):
        return
    path = path.resolve()
    key = store_key(open_source(path), pages)
    for spec in specs:
        stored = cache_path(source_name(path), [key, asdict(spec)])
        if stored.exists():
            yield spec, open_store(stored)


def source_name(path: Path) -> str:
    """The name of the data set of a folder, an archive or a Parquet file."""
    return re.sub(r"(\.parquet|\.zip|\.tgz|\.tar(\.\w+)?)$", "", path.name, flags=re.IGNORECASE)


def prepare(
    source: ImageSource, settings: PreprocessConfig, name: str, out: Path, bar: ProgressBar
) -> None:
    """Decode image files into the file `out`. Raises UserError as `load_images`."""
    pages = PageSource(source, settings.pages)
    layout = read_layout(pages)
    spec = resolve_spec(pages, layout, settings, bar)
    write_decoded(pages, layout, settings, name, out, bar, spec)


def write_decoded(
    source: PageSource,
    layout: Layout,
    settings: PreprocessConfig,
    name: str,
    out: Path,
    bar: ProgressBar,
    spec: ImageSpec,
) -> None:
    """Decode images into the file `out`, in parallel and in bounded memory. Raises UserError as `load_images`."""
    bar.log(f"decoding {len(layout.names):,} images of {printable(source.path)}, once")
    bad: list[str] = []
    good: list[int] = []
    inspector = ValueInspector(printable(source.path))
    chunks = decode_all(source, layout, spec, bad, good, settings.skip_bad, bar, inspector)
    shape = (spec.channels, spec.height, spec.width)

    def facts() -> Facts:
        if spec.depth == "uint8":  # extents tell of images that are almost black
            return Facts(high=float(inspector.high)) if inspector.high <= 1 else Facts()
        return inspector.facts(spec.depth)

    def table() -> np.ndarray:
        columns = {key: [values[i] for i in good] for key, values in layout.columns.items()}
        return table_bytes([layout.names[i] for i in good], layout.skip, columns)

    write_store(
        out, name, layout.classes, shape, chunks, bad, spec.depth, facts, table, layout.reading
    )
    if bad:
        bar.log(f"left out {len(bad):,} images that cannot be read, first {bad[0]}")


def bad_images_error(source: ImageSource, bad: int, names: Sequence[str], good: int) -> UserError:
    return UserError(
        f"{printable(source.path)}: {bad:,} of {bad + good:,} images cannot be read, first {names[0]}; repair or "
        "remove them, or leave them out with --skip-bad"
    )


def resolve_spec(
    source: ImageSource, layout: Layout, settings: PreprocessConfig, bar: ProgressBar
) -> ImageSpec:
    """The channels, size and type of values to convert images to: from the settings, or else from the images."""
    size, inferred = settings.height_width, settings.colour == "auto"
    all_inspected = size is None or inferred
    if all_inspected:
        results = decode_files(source, layout.names, inspect_image, bar, "inspecting images")
        infos = {name: info for name, info in results if not isinstance(info, BadImage)}
    else:  # the first that can be read tells the type of all
        each = decode_each(inspect_image, source.read(set(layout.names)))
        readable = ((name, info) for name, info in each if not isinstance(info, BadImage))
        infos = dict(itertools.islice(readable, 1))
    where = printable(source.path)
    channels = common_channels(infos, where) if inferred else 1 if settings.colour == "grey" else 3
    depth = common_depth(infos, where)
    size = size or common_size([*infos.values()], where, bar)
    fits = all_inspected and all((i.height, i.width) == size for i in infos.values())
    return ImageSpec(channels, *size, "exact" if fits else settings.fit, depth)


def common_channels(infos: Mapping[str, ImageInfo], where: str) -> int:
    """The channels of images: 3 for grey and colour, else those of all. Raises UserError where these differ."""
    counts = {info.channels: name for name, info in infos.items()}
    if len(counts) <= 1:
        return next(iter(counts), 3)
    names = ", ".join(
        f"{printable(name)} has {count}" for count, name in sorted(counts.items())[:3]
    )
    require(
        set(counts) == {1, 3},
        f"{where}: images differ in their channels ({names}); give all the same",
    )
    return 3


def common_depth(infos: Mapping[str, ImageInfo], where: str) -> Depth:
    """The type of the values of images. Raises UserError where they differ: of one scale they cannot be, unless some
    are int16 and others fractions, as volumes of which only some have a slope."""
    found = {info.depth: name for name, info in infos.items()}
    if {*found} == {"int16", "float32"}:
        return "float32"
    names = ", ".join(f"{printable(name)} has {depth}" for depth, name in sorted(found.items()))
    require(
        len(found) <= 1,
        f"{where}: images differ in the type of their values ({names}); convert them to one",
    )
    return next(iter(found), "uint8")


def common_size(infos: Sequence[ImageInfo], where: str, bar: ProgressBar) -> tuple[int, int]:
    """(height, width) of all images, or the default size where they differ. Raises UserError for large images."""
    sizes = Counter((info.height, info.width) for info in infos)
    if len(sizes) == 1:
        ((height, width),) = sizes
        require(
            height * width <= MAX_UNRESIZED_PIXELS,
            f"the images of {where} are {width} x {height} pixels; choose a size to resize them to, such as --size 128",
        )
        return height, width
    if sizes:
        bar.log(
            f"{len(sizes):,} different sizes: resizing to {DEFAULT_SIZE} x {DEFAULT_SIZE} (change with --size, --fit)"
        )
    return DEFAULT_SIZE, DEFAULT_SIZE


def decode_all(
    source: ImageSource,
    layout: Layout,
    spec: ImageSpec,
    bad: list[str],
    decoded: list[int],
    skip_bad: bool,
    bar: ProgressBar,
    inspector: ValueInspector,
) -> Iterator[Chunk]:
    """Yield chunks of values (n, C, H, W), labels (n,) and split indices (n,), in order; unreadable images are appended
    to `bad`, the rows of the others to `decoded`, and values pass through the inspector.

    Raises UserError at the end, if any image was bad and `skip_bad` is off, or if a split or class has none left.
    """
    index = {name: i for i, name in enumerate(layout.names)}
    pending: list[np.ndarray] = []

    def chunk() -> Chunk:
        rows = decoded[-len(pending) :]
        labels = None if layout.labels is None else layout.labels[rows]
        values = np.stack(pending)
        inspector.add(values)
        return values, labels, layout.split_index[rows]

    image_bytes = spec.channels * spec.height * spec.width * np.dtype(spec.depth).itemsize
    function = partial(decode, spec=spec)
    results = decode_files(source, layout.names, function, bar, "decoding images", image_bytes)
    for name, result in results:
        if isinstance(result, BadImage):
            bad.append(f"{printable(name)} ({result})")
            continue
        pending.append(result)
        decoded.append(index[name])
        if len(pending) * image_bytes >= CHUNK_BYTES:
            yield chunk()
            pending = []
    if bad and (not skip_bad or not decoded):
        raise bad_images_error(source, len(bad), bad, len(decoded))
    check_splits(printable(source.path), layout, decoded)
    if pending:
        yield chunk()


def decode_files(
    source: ImageSource,
    names: Sequence[str],
    function: Callable[[bytes], T],
    bar: ProgressBar,
    description: str,
    result_bytes: int = 1,
) -> Iterator[tuple[str, T | BadImage]]:
    """Yield (name, function(content)) for each file, in order: in threads, since Pillow releases the GIL, and in
    bounded memory. `result_bytes` is the size of each result."""
    contents = bar.track(source.read(set(names)), description, len(names))
    with ignore_pillow_warnings():
        if sum(entry.size for entry in source.entries) < SMALL_FILE * len(source.entries):
            # The overhead of threads would exceed the work.
            yield from decode_each(function, contents)
            return
        workers = os.cpu_count() or 1
        queue: deque[tuple[int, Future[list[tuple[str, T | BadImage]]]]] = deque()
        queued = 0
        with ThreadPoolExecutor(workers) as pool:
            for batch, size in batch_files(contents, CHUNK_BYTES // result_bytes):
                queue.append(
                    (size, pool.submit(lambda batch: list(decode_each(function, batch)), batch))
                )
                queued += size
                while len(queue) > workers or queued > QUEUED_BYTES:
                    size, future = queue.popleft()
                    yield from future.result()
                    queued -= size
            for _, future in queue:
                yield from future.result()


def decode_each(
    function: Callable[[bytes], T], contents: Iterable[tuple[str, bytes | None]]
) -> Iterator[tuple[str, T | BadImage]]:
    """Yield (name, function(content) or the BadImage that it raised); content None means one that `is_too_large`."""
    for name, content in contents:
        try:
            if content is None:
                raise BadImage(f"it is over {MAX_FILE_BYTES >> 20} MB")
            result: T | BadImage = function(content)
        except BadImage as error:
            result = error
        yield name, result


def batch_files(
    contents: Iterable[tuple[str, bytes | None]], max_files: int
) -> Iterator[tuple[list[tuple[str, bytes | None]], int]]:
    """Yield batches of files, large enough for a thread and of at most `max_files`, with their sizes in bytes."""
    batch: list[tuple[str, bytes | None]] = []
    size = 0
    for name, content in contents:
        batch.append((name, content))
        size += len(content or b"")
        if size > BATCH_BYTES or len(batch) >= min(BATCH_FILES, max_files):
            yield batch, size
            batch, size = [], 0
    if batch:
        yield batch, size
