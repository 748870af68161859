"""Image files as a data set: decoded once into a file of pixels, which is loaded into memory or read on demand."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from ...settings.data import PreprocessConfig, SourceConfig
from ...support.console import ProgressBar
from ...support.errors import UserError, printable, require
from ..cache import cached_file
from ..dataset import Dataset, Split
from ..formats.images import (
    MAX_FILE_BYTES,
    BadImage,
    ImageInfo,
    ImageSpec,
    decode,
    ignore_pillow_warnings,
    inspect_image,
)
from ..splits import split_rows
from ..stored import Chunk, ImageStore, open_store, write_store
from .files import ImageSource
from .layout import Layout, check_splits, read_layout

DEFAULT_SIZE = 64
MAX_UNRESIZED_PIXELS = 512 * 512
MAX_BYTES_IN_MEMORY = 2**31  # of pixels, for `in_memory` auto
BATCH_BYTES, BATCH_FILES = 2**22, 200
QUEUED_BYTES = 2**27  # of files waiting to be decoded
CHUNK_BYTES = 2**24
SMALL_FILE = 8192  # bytes; files smaller than this on average are decoded in one thread
T = TypeVar("T")
DECODER_VERSION = 1  # increment when the same files would be decoded to other pixels


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
    key = {
        "source": source.key,
        "form": {key: getattr(settings, key) for key in ("size", "fit", "colour")},
        "leave_out": list(leave_out),
        "version": DECODER_VERSION,
    }

    def make(path: Path) -> None:
        prepare(source, settings, name, path, bar, leave_out)

    store = open_store(cached_file(name, key, make, bar), bar)
    metadata = store.metadata
    if metadata.bad and not settings.skip_bad:
        raise bad_images_error(source, metadata.bad, metadata.bad_names, len(store.images))
    return dataset_from_store(store, settings, name, source.path, classes)


def prepare(
    source: ImageSource,
    settings: PreprocessConfig,
    name: str,
    out: Path,
    bar: ProgressBar,
    leave_out: Sequence[str] = (),
) -> None:
    """Decode image files into the file `out`, in parallel and in bounded memory. Raises UserError as `load_images`."""
    layout = read_layout(source, leave_out)
    bar.log(f"decoding {len(layout.names):,} images of {printable(source.path)}, once")
    spec = resolve_spec(source, layout, settings, bar)
    bad: list[str] = []
    chunks = decode_all(source, layout, spec, bad, settings.skip_bad, bar)
    write_store(out, name, layout.classes, (spec.channels, spec.height, spec.width), chunks, bad)
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
    """The channels and size to convert images to: from the settings, or else from the images."""
    size = settings.height_width
    grey = settings.colour == "grey"
    if size is None or settings.colour == "auto":
        results = decode_files(source, layout.names, inspect_image, bar, "inspecting images")
        infos = [info for _, info in results if not isinstance(info, BadImage)]
        if settings.colour == "auto":
            grey = all(info.grey for info in infos)
        size = size or common_size(infos, printable(source.path), bar)
    return ImageSpec(1 if grey else 3, *size, settings.fit)


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
    skip_bad: bool,
    bar: ProgressBar,
) -> Iterator[Chunk]:
    """Yield chunks of pixels (n, C, H, W), labels (n,) and split indices (n,), in order; unreadable images are appended
    to `bad`.

    Raises UserError at the end, if any image was bad and `skip_bad` is off, or if a split or class has none left.
    """
    index = {name: i for i, name in enumerate(layout.names)}
    pending: list[np.ndarray] = []
    decoded: list[int] = []

    def chunk() -> Chunk:
        rows = decoded[-len(pending) :]
        labels = None if layout.labels is None else layout.labels[rows]
        return np.stack(pending), labels, layout.split_index[rows]

    image_bytes = spec.channels * spec.height * spec.width
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
    """Yield (name, function(content) or the BadImage that it raised); content None means a file over MAX_FILE_BYTES."""
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


def dataset_from_store(
    store: ImageStore,
    settings: SourceConfig,
    name: str,
    source: Path,
    classes: Sequence[str] | None = None,
) -> Dataset:
    """The data set of an image store decoded from `source`, in memory or on disk. Its classes are numbered in the order
    of `classes`, if these are their names, else as `class_order` has it. Raises UserError."""
    labels, names = store.labels, store.metadata.classes
    if labels is not None and names is not None:
        order = list(classes or ()) if set(classes or ()) == set(names) else class_order(names)
        numbers = {name: number for number, name in enumerate(order)}
        labels, names = torch.tensor([numbers[name] for name in names])[labels], order
    rows = split_rows(store.split_index.numpy(), labels, settings, printable(source))
    pixels = store.images
    large = pixels.shape.numel() > MAX_BYTES_IN_MEMORY
    on_disk = settings.in_memory == "no" or (settings.in_memory == "auto" and large)
    all_images = Split(pixels, labels)
    digest = hashlib.sha256(json.dumps([store.metadata.sha256, pixels.shape]).encode())
    for split in rows:
        digest.update(split.numpy().tobytes())
    if labels is not None:
        digest.update(labels.numpy().tobytes())
    return Dataset.from_splits(
        name,
        map(all_images.take if on_disk else all_images.__getitem__, rows),
        classes=None if names is None else tuple(names),
        black_and_white=store.metadata.black_and_white,
        digest=digest.hexdigest(),
    )


def class_order(names: Sequence[str]) -> list[str]:
    """Class names in the order of their numbers: by value where all are whole numbers, else as they are."""
    if all(name.isdecimal() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return list(names)
