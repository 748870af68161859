"""What the folders that images lie in say: which images are for training, and of which class each is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from ...support.errors import UserError, printable, require
from ..stored import PARTS
from .files import Source

PART_NAMES = {
    **dict.fromkeys(("train", "training", "train_data"), 0),
    **dict.fromkeys(("val", "valid", "validation", "validation_data"), 1),
    **dict.fromkeys(("test", "testing", "test_data"), 2),
}


@dataclass(frozen=True)
class Layout:
    """The image files in order, the index of each one's part in PARTS and of its class in `classes`."""

    names: list[str]
    parts: np.ndarray
    labels: np.ndarray | None
    classes: list[str] | None


def lay_out(source: Source, leave_out: Sequence[str] = ()) -> Layout:
    """Any of: train (train_data, ...) and test folders, each with a folder a class; a folder a class; images at any
    depth. A class is the first folder, whatever lies deeper. Classes named in `leave_out` are left out.

    Raises UserError for no images, a class folder without any, images beside class folders, a test class that is not
    in train.
    """
    where = printable(source.path)
    names = [entry.name for entry in source.entries]
    require(len(names) >= 1, f"{where} has no image files (.png, .jpg and what else Pillow reads)")
    paths = [PurePosixPath(name).parts for name in names]
    folders = [PurePosixPath(name).parts for name in source.folders]
    while min(map(len, paths)) > 1 and len({f[0] for f in folders if f}) == 1:
        paths, folders = [path[1:] for path in paths], [f[1:] for f in folders]

    tops = {f[0] for f in folders if f}
    divided = bool(tops) and all(top.lower() in PART_NAMES for top in tops)
    known = {PART_NAMES[top.lower()] for top in tops if top.lower() in PART_NAMES}
    require(
        divided or not {0, 2} <= known,
        f"{where} has train and test folders and others beside them ({', '.join(sorted(map(printable, tops)))}); move "
        "these away, or into them",
    )
    parts = np.zeros(len(names), np.uint8)
    if divided:
        require(
            all(len(path) > 1 for path in paths),
            f"{where} has images beside its folders {', '.join(sorted(tops))}; move them into these",
        )
        parts = np.array([PART_NAMES[path[0].lower()] for path in paths], np.uint8)
        require(
            bool((parts == 0).any()), f"{where} has a folder of test images, but none to train on"
        )
        there = {path[:n] for path in paths for n in (1, 2)}
        check_classes(where, sorted({f[:2] for f in folders if f} - there))
        paths, folders = [path[1:] for path in paths], [f[1:] for f in folders]

    classed = np.array([len(path) > 1 for path in paths])
    if not classed.any():
        return Layout(names, parts, None, None)
    check_classes(where, sorted({f[:1] for f in folders if f} - {path[:1] for path in paths}))
    if not classed.all():
        stray = names[int(np.flatnonzero(~classed)[0])]
        raise UserError(
            f"{where} has {int((~classed).sum()):,} images in no class folder, such as {printable(stray)}; move them "
            "into one, or all into none"
        )
    of = [path[0] for path in paths]
    kept = [i for i, name in enumerate(of) if name not in leave_out]
    require(len(kept) >= 1, f"{where} has no images but of {', '.join(leave_out)}")
    classes = sorted({of[i] for i in kept})
    number = {name: k for k, name in enumerate(classes)}
    labels = np.array([number[of[i]] for i in kept], np.int64)
    parts = parts[kept]
    layout = Layout([names[i] for i in kept], parts, labels, classes)
    check_parts(where, layout, slice(None))
    return layout


def check_parts(where: str, layout: Layout, rows: slice | list[int]) -> None:
    """UserError unless these images, all or what could be read of them, have every part that the source has, and in
    train every class."""
    parts = layout.parts[rows]
    for part in sorted(set(layout.parts.tolist()) - set(parts.tolist())):
        raise UserError(f"{where}: none of the images in {PARTS[part]} can be read")
    if layout.labels is None or layout.classes is None:
        return
    labels = layout.labels[rows]
    known = set(labels[parts == 0].tolist())
    for part in (1, 2):
        for label in sorted(set(labels[parts == part].tolist()) - known):
            name = printable(layout.classes[label])
            raise UserError(
                f"{where}: {PARTS[part]} has the class {name!r}, of which train has no images"
            )


def check_classes(where: str, empty: Sequence[tuple[str, ...]]) -> None:
    """UserError if there are class folders without images."""
    if empty:
        named = printable("/".join(empty[0]))
        raise UserError(f"{where}: the folder {named} has no images; put some there, or remove it")
