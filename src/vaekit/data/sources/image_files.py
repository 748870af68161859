"""Image files as a data set: decoded once into a file of pixels, which is then in memory or read as needed."""

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

from ...settings.data import FormConfig, SourceConfig
from ...support.console import Shown
from ...support.errors import UserError, printable, require
from ..cache import cached
from ..dataset import Dataset, Split
from ..splits import split_rows
from ..stored import Store, open_store, write_store
from .files import Source
from .images import MOST_BYTES, BadImage, Form, Look, decode, look, quiet
from .layout import Layout, check_parts, lay_out

DEFAULT_SIZE = 64
LARGEST_AS_IT_IS = 512 * 512
MEMORY = 2**31  # bytes of pixels that `in_memory` auto holds there
BATCH_BYTES, BATCH_FILES = 2**22, 200
QUEUED_BYTES = 2**27  # of files that wait to be decoded
CHUNK_BYTES = 2**24
SMALL_FILE = 8192
T = TypeVar("T")
Chunk = tuple[np.ndarray, np.ndarray | None, np.ndarray]
DECODED = 1  # goes up when the same files would be decoded to other pixels


def load_images(
    source: Source, settings: SourceConfig, name: str, shown: Shown, leave_out: Sequence[str] = ()
) -> Dataset:
    """The data set of image files; decoded at first, then from the cache. Raises UserError for what `lay_out`
    refuses, and for images that cannot be read unless `skip_bad`."""
    form = {key: getattr(settings, key) for key in ("size", "fit", "colour")}
    key = {"source": source.key, "form": form, "leave_out": list(leave_out), "version": DECODED}

    def make(path: Path) -> None:
        prepare(source, settings, name, path, shown, leave_out)

    store = open_store(cached(name, key, make, shown))
    if store.about.bad and not settings.skip_bad:
        raise refuse_bad(source, store.about.bad, store.about.bad_names, len(store.parts))
    return as_dataset(store, settings, name, source.path)


def prepare(
    source: Source,
    settings: FormConfig,
    name: str,
    out: Path,
    shown: Shown,
    leave_out: Sequence[str] = (),
) -> None:
    """Decode image files into the file `out`, in parallel and in bounded memory. Raises as `load_images`."""
    layout = lay_out(source, leave_out)
    shown.say(f"decoding {len(layout.names):,} images of {printable(source.path)}, once")
    form = settle_form(source, layout, settings, shown)
    bad: list[str] = []
    chunks = decode_all(source, layout, form, bad, settings.skip_bad, shown)
    write_store(out, name, layout.classes, (form.channels, form.height, form.width), chunks, bad)
    if bad:
        shown.say(f"left out {len(bad):,} images that cannot be read, first {bad[0]}")


def refuse_bad(source: Source, bad: int, names: Sequence[str], good: int) -> UserError:
    return UserError(
        f"{printable(source.path)}: {bad:,} of {bad + good:,} images cannot be read, first {names[0]}; mend or remove "
        "them, or leave them out with --skip-bad"
    )


def settle_form(source: Source, layout: Layout, settings: FormConfig, shown: Shown) -> Form:
    """Colours and size to bring images to: as the settings say, or else as the images are."""
    size = settings.height_width
    grey = settings.colour == "grey"
    if size is None or settings.colour == "auto":
        seen = [
            found
            for _, found in attempts(source, layout.names, look, shown, "looking at images")
            if not isinstance(found, BadImage)
        ]
        if settings.colour == "auto":
            grey = all(found.grey for found in seen)
        size = size or common_size(seen, printable(source.path), shown)
    return Form(1 if grey else 3, *size, settings.fit)


def common_size(seen: Sequence[Look], where: str, shown: Shown) -> tuple[int, int]:
    """(height, width) of all images, or what to bring them to where they differ."""
    sizes = Counter((found.height, found.width) for found in seen)
    if len(sizes) == 1:
        ((height, width),) = sizes
        require(
            height * width <= LARGEST_AS_IT_IS,
            f"the images of {where} are {width} x {height} pixels; say how large to take them, such as --size 128",
        )
        return height, width
    if sizes:
        shown.say(
            f"images of {len(sizes):,} sizes are taken to {DEFAULT_SIZE} x {DEFAULT_SIZE} pixels; --size chooses, "
            "--fit says how"
        )
    return DEFAULT_SIZE, DEFAULT_SIZE


def decode_all(
    source: Source, layout: Layout, form: Form, bad: list[str], skip_bad: bool, shown: Shown
) -> Iterator[Chunk]:
    """Pixels (n, C, H, W), labels (n,) and parts (n,) of the images, in order; what cannot be read goes to `bad`.

    Raises UserError in the end, if any was bad and may not be, or if too little is left.
    """
    index = {name: i for i, name in enumerate(layout.names)}
    good: list[np.ndarray] = []
    read: list[int] = []

    def chunk() -> Chunk:
        rows = read[-len(good) :]
        labels = None if layout.labels is None else layout.labels[rows]
        return np.stack(good), labels, layout.parts[rows]

    each = form.channels * form.height * form.width
    use = partial(decode, form=form)
    for name, found in attempts(source, layout.names, use, shown, "reading images", each):
        if isinstance(found, BadImage):
            bad.append(f"{printable(name)} ({found})")
            continue
        good.append(found)
        read.append(index[name])
        if len(good) * each >= CHUNK_BYTES:
            yield chunk()
            good = []
    if bad and (not skip_bad or not read):
        raise refuse_bad(source, len(bad), bad, len(read))
    check_parts(printable(source.path), layout, read)
    if good:
        yield chunk()


def attempts(
    source: Source,
    names: Sequence[str],
    use: Callable[[bytes], T],
    shown: Shown,
    what: str,
    each: int = 1,
) -> Iterator[tuple[str, T | BadImage]]:
    """What `use` makes of each file, of `each` bytes, in order: in parallel, as Pillow's work lets other threads run,
    and in bounded memory."""
    contents = shown.track(source.read(set(names)), what, len(names))
    with quiet():
        if sum(entry.size for entry in source.entries) < SMALL_FILE * len(source.entries):
            # Threads would wait for each other more than they work.
            yield from attempt(use, contents)
            return
        workers = os.cpu_count() or 1
        waiting: deque[tuple[int, Future[list[tuple[str, T | BadImage]]]]] = deque()
        queued = 0
        with ThreadPoolExecutor(workers) as pool:
            for batch, size in in_batches(contents, CHUNK_BYTES // each):
                waiting.append((size, pool.submit(lambda batch: list(attempt(use, batch)), batch)))
                queued += size
                while len(waiting) > workers or queued > QUEUED_BYTES:
                    size, done = waiting.popleft()
                    yield from done.result()
                    queued -= size
            for _, done in waiting:
                yield from done.result()


def attempt(
    use: Callable[[bytes], T], contents: Iterable[tuple[str, bytes | None]]
) -> Iterator[tuple[str, T | BadImage]]:
    for name, content in contents:
        try:
            if content is None:
                raise BadImage(f"it is over {MOST_BYTES >> 20} MB")
            found: T | BadImage = use(content)
        except BadImage as error:
            found = error
        yield name, found


def in_batches(
    contents: Iterable[tuple[str, bytes | None]], most: int
) -> Iterator[tuple[list[tuple[str, bytes | None]], int]]:
    """Files, as many at a time as are worth a thread's while, but not over `most`; and their bytes."""
    batch: list[tuple[str, bytes | None]] = []
    size = 0
    for name, content in contents:
        batch.append((name, content))
        size += len(content or b"")
        if size > BATCH_BYTES or len(batch) >= min(BATCH_FILES, most):
            yield batch, size
            batch, size = [], 0
    if batch:
        yield batch, size


def as_dataset(store: Store, settings: SourceConfig, name: str, source: Path) -> Dataset:
    """The three splits of a file of images that were decoded from `source`, in memory or not."""
    rows = split_rows(store.parts.numpy(), store.labels, settings, printable(source))
    pixels = store.images
    large = pixels.shape.numel() > MEMORY
    on_disk = settings.in_memory == "no" or (settings.in_memory == "auto" and large)
    require(
        on_disk or pixels.sha256() == store.about.sha256,
        f"{printable(store.path)} is damaged (its pixels have another hash); remove it, and make it again",
    )
    everything = Split(pixels, store.labels)
    digest = hashlib.sha256(json.dumps([store.about.sha256, pixels.shape]).encode())
    for split in rows:
        digest.update(split.numpy().tobytes())
    if store.labels is not None:
        digest.update(store.labels.numpy().tobytes())
    classes = store.about.classes
    return Dataset.of(
        name,
        map(everything.take if on_disk else everything.__getitem__, rows),
        classes=None if classes is None else tuple(classes),
        black_and_white=store.about.black_and_white,
        digest=digest.hexdigest(),
    )
