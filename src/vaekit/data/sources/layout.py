"""The layout of an image folder: the split and the class of each image, from the names of its folders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from ...support.errors import UserError, printable, require
from ..stored import SPLITS
from .files import ImageSource

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training", "train_data"), 0),
    **dict.fromkeys(("val", "valid", "validation", "validation_data"), 1),
    **dict.fromkeys(("test", "testing", "test_data"), 2),
}


@dataclass(frozen=True)
class Layout:
    """The image files in order, and for each its index into SPLITS and its index into `classes`, both (N,)."""

    names: list[str]
    split_index: np.ndarray
    labels: np.ndarray | None
    classes: list[str] | None


def read_layout(source: ImageSource, leave_out: Sequence[str] = ()) -> Layout:
    """Read the layout: folders train (train_data, ...), test, ... with a folder per class each; a folder per class; or
    images at any depth. The first folder is the class, whatever is below it. Classes in `leave_out` are left out.

    Raises UserError for no images, a class folder without images, images outside the class folders, a test class that
    is not in train.
    """
    where = printable(source.path)
    names = [entry.name for entry in source.entries]
    require(len(names) >= 1, f"{where} has no image files (.png, .jpg or another format of Pillow)")
    paths = [PurePosixPath(name).parts for name in names]
    folders = [PurePosixPath(name).parts for name in source.folders]
    while min(map(len, paths)) > 1 and len({f[0] for f in folders if f}) == 1:
        paths, folders = [path[1:] for path in paths], [f[1:] for f in folders]

    tops = {f[0] for f in folders if f}
    has_splits = bool(tops) and all(top.lower() in SPLIT_NAMES for top in tops)
    splits = {SPLIT_NAMES[top.lower()] for top in tops if top.lower() in SPLIT_NAMES}
    require(
        has_splits or not {0, 2} <= splits,
        f"{where} has other folders beside train and test ({', '.join(sorted(map(printable, tops)))}); move the others "
        "away, or into these",
    )
    split_index = np.zeros(len(names), np.uint8)
    if has_splits:
        require(
            all(len(path) > 1 for path in paths),
            f"{where} has images beside its folders {', '.join(sorted(tops))}; move them into these",
        )
        split_index = np.array([SPLIT_NAMES[path[0].lower()] for path in paths], np.uint8)
        require(
            bool((split_index == 0).any()),
            f"{where} has validation or test images, but no training images; add a folder train",
        )
        filled = {path[:n] for path in paths for n in (1, 2)}
        check_not_empty(where, sorted({f[:2] for f in folders if f} - filled))
        paths, folders = [path[1:] for path in paths], [f[1:] for f in folders]

    in_class = np.array([len(path) > 1 for path in paths])
    if not in_class.any():
        return Layout(names, split_index, None, None)
    check_not_empty(where, sorted({f[:1] for f in folders if f} - {path[:1] for path in paths}))
    if not in_class.all():
        stray = names[int(np.flatnonzero(~in_class)[0])]
        raise UserError(
            f"{where} has {int((~in_class).sum()):,} images outside the class folders, such as {printable(stray)}; "
            "move them into a class folder, or use no class folders"
        )
    class_names = [path[0] for path in paths]
    rows = [i for i, name in enumerate(class_names) if name not in leave_out]
    require(len(rows) >= 1, f"{where} has only images of the excluded {', '.join(leave_out)}")
    classes = sorted({class_names[i] for i in rows})
    class_index = {name: k for k, name in enumerate(classes)}
    labels = np.array([class_index[class_names[i]] for i in rows], np.int64)
    layout = Layout([names[i] for i in rows], split_index[rows], labels, classes)
    check_splits(where, layout, slice(None))
    return layout


def check_splits(where: str, layout: Layout, rows: slice | list[int]) -> None:
    """Raise UserError unless these rows (the readable images, or all) cover every split of the layout, and the train
    split covers every class."""
    split_index = layout.split_index[rows]
    for split in sorted(set(layout.split_index.tolist()) - set(split_index.tolist())):
        raise UserError(f"{where}: none of the images in {SPLITS[split]} can be read")
    if layout.labels is None or layout.classes is None:
        return
    labels = layout.labels[rows]
    train_labels = set(labels[split_index == 0].tolist())
    for split in (1, 2):
        for label in sorted(set(labels[split_index == split].tolist()) - train_labels):
            name = printable(layout.classes[label])
            raise UserError(
                f"{where}: {SPLITS[split]} has the class {name!r}, of which train has no images"
            )


def check_not_empty(where: str, empty: Sequence[tuple[str, ...]]) -> None:
    """Raise UserError if there are folders of a split or class without images."""
    if empty:
        name = printable("/".join(empty[0]))
        raise UserError(f"{where}: the folder {name} has no images; add some, or remove it")
