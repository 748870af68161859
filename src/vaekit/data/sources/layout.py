"""The layout of an image folder: the split and the class of each image, from the names of its folders or a table."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

import numpy as np

from ...support.errors import UserError, printable, require
from ..dataset import check_class_count
from ..stored import SPLITS
from .files import ImageSource
from .metadata import Metadata, read_metadata

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training", "train_data"), 0),
    **dict.fromkeys(("val", "valid", "validation", "validation_data"), 1),
    **dict.fromkeys(("test", "testing", "test_data"), 2),
}
NORMAL, MASKS = "good", "ground_truth"  # folders of MVTec-AD
OMNIGLOT_PARTS = ("images_background", "images_evaluation")
Parts = tuple[str, ...]  # of a path


@dataclass(frozen=True)
class Layout:
    """The image files in order, and for each its index into SPLITS and its index into `classes`, both (N,).

    `skip`: the number of folders at the start of every name that are neither class nor group: one that holds all, and
    train or test. `columns`: further values of each image, by name. `gaps`: whether classes may occur in test alone.
    `reading` says how the layout was read.
    """

    names: list[str]
    split_index: np.ndarray
    labels: np.ndarray | None
    classes: list[str] | None
    skip: int = 0
    columns: dict[str, list[str]] = field(default_factory=dict)
    gaps: bool = False
    reading: tuple[str, ...] = ()


def read_layout(source: ImageSource, leave_out: Sequence[str] = ()) -> Layout:
    """Read the layout: folders train (train_data, ...), test, ... with a folder per class each; a folder per class; or
    images at any depth. The first folder is the class, whatever is below it. A table (metadata.csv, labels.csv) may
    give labels and splits instead. In the layout of MVTec-AD, train has the class good alone, and the masks in
    ground_truth are left out. Classes in `leave_out` are left out.

    Raises UserError for no images, a class folder without images, images outside the class folders, a test class that
    is not in train, and several data sets in folders of their own.
    """
    known: Layout | None = getattr(source, "layout", None)
    if known is not None:  # of a source that is no folder
        return known
    where = printable(source.path)
    names = [entry.name for entry in source.entries]
    require(len(names) >= 1, f"{where} has no image files (.png, .jpg or another format of Pillow)")
    paths = [PurePosixPath(name).parts for name in names]
    folders = [f for f in (PurePosixPath(name).parts for name in source.folders) if f]
    skip = wrapping_folders(paths, folders)
    inside = paths[0][:skip]
    paths, folders = [path[skip:] for path in paths], [f[skip:] for f in folders if len(f) > skip]
    refuse_several_sets(where, inside, folders)
    reading = describe_alphabets(where, paths)
    gaps = is_anomaly_set(paths, folders)
    if gaps:
        kept = [i for i, path in enumerate(paths) if path[0].lower() != MASKS]
        reading.append(describe_anomaly_set(paths, len(paths) - len(kept)))
        names, paths = [names[i] for i in kept], [paths[i] for i in kept]
        folders = [f for f in folders if f[0].lower() != MASKS]
    table = read_metadata(source, names) or Metadata(None, None, {}, ())
    reading += table.reading

    has_splits = are_splits(f[0] for f in folders)
    split_index = np.zeros(len(names), np.uint8)
    if has_splits:
        split_index = splits_of_folders(where, paths, folders, table.labels is not None)
        paths, folders = [path[1:] for path in paths], [f[1:] for f in folders if len(f) > 1]
    elif table.splits is None:
        refuse_other_folders(where, {f[0] for f in folders})
    if table.splits is not None:
        split_index = splits_of_table(
            where, names, table.splits, split_index if has_splits else None
        )
    require(
        bool((split_index == 0).any()),
        f"{where} has validation or test images, but no training images; add a folder train",
    )
    skip += has_splits

    class_names = table.labels
    if class_names is None:
        class_names = classes_of_folders(where, names, paths, folders)
    elif any(len(path) > 1 for path in paths):
        reading.append("the names of the folders are no classes, since the table gives labels")
    layout = Layout(
        names, split_index, None, None, skip, table.columns, gaps and class_names is not None, tuple(reading)
    )  # fmt: skip
    return layout if class_names is None else with_classes(where, layout, class_names, leave_out)


def with_classes(
    where: str, layout: Layout, class_names: Sequence[str], leave_out: Sequence[str]
) -> Layout:
    """The layout with the class of each of its images, without the classes in `leave_out`. Raises UserError as
    `check_splits`, for too many classes, and where nothing is left."""
    rows = [i for i, name in enumerate(class_names) if name not in leave_out]
    require(len(rows) >= 1, f"{where} has only images of the excluded {', '.join(leave_out)}")
    classes = sorted({class_names[i] for i in rows})
    check_class_count(len(classes), where)
    class_index = {name: k for k, name in enumerate(classes)}
    layout = replace(
        layout,
        names=[layout.names[i] for i in rows],
        split_index=layout.split_index[rows],
        labels=np.array([class_index[class_names[i]] for i in rows], np.int64),
        classes=classes,
        columns={key: [values[i] for i in rows] for key, values in layout.columns.items()},
    )
    check_splits(where, layout, slice(None))
    return layout


def wrapping_folders(paths: Sequence[Parts], folders: Sequence[Parts]) -> int:
    """The number of folders, one in the other, that hold everything."""
    depth, shortest = 0, min(map(len, paths))
    while shortest - depth > 1 and len({f[depth] for f in folders if len(f) > depth}) == 1:
        depth += 1
    return depth


def describe_alphabets(where: str, paths: Sequence[Parts]) -> list[str]:
    """A sentence on the classes of a part of Omniglot, an alphabet's folder with folders character01, ... Raises
    UserError for both of its parts, whose names are no classes."""
    parts = sorted({path[0] for path in paths if path[0].startswith(OMNIGLOT_PARTS)})
    require(
        len(parts) < 2,
        f"{where} has the parts of Omniglot ({', '.join(map(printable, parts))}), which are no classes; name one of "
        f"them, or read both by --data omniglot --data-dir {where}",
    )
    if not all(len(path) == 3 and re.fullmatch(r"character\d+", path[1]) for path in paths):
        return []
    return ["classes are the alphabets, the first folders; the characters in them are none"]


def are_splits(tops: Iterable[str]) -> bool:
    """Whether all of these folders, and at least one, are called train, validation or test."""
    names = {top.lower() for top in tops}
    return bool(names) and names <= SPLIT_NAMES.keys()


def refuse_several_sets(where: str, inside: Parts, folders: Sequence[Parts]) -> None:
    """Raise UserError where a folder that is neither train nor test has folders train and test."""
    splits: dict[str, set[int]] = {}
    for f in folders:
        if len(f) > 1 and f[0].lower() not in SPLIT_NAMES and f[1].lower() in SPLIT_NAMES:
            splits.setdefault(f[0], set()).add(SPLIT_NAMES[f[1].lower()])
    sets = sorted(top for top, found in splits.items() if {0, 2} <= found)
    if sets:
        choice = printable("/".join([*inside, sets[0]]))
        raise UserError(
            f"{where} has folders with train and test of their own ({', '.join(map(printable, sets[:5]))}"
            f"{' ...' if len(sets) > 5 else ''}); choose one, such as --data {where}/{choice} (of an archive, once "
            "it is unpacked)"
        )


def is_anomaly_set(paths: Sequence[Parts], folders: Sequence[Parts]) -> bool:
    """Whether a layout is that of MVTec-AD: train has the class good alone, test others too, or there are masks."""
    tops = {f[0].lower() for f in folders}
    splits = tops - {MASKS}
    if not are_splits(splits) or not {0, 2} <= {SPLIT_NAMES[top] for top in splits}:
        return False
    classes: dict[int, set[str]] = {0: set(), 1: set(), 2: set()}
    for path in paths:
        if path[0].lower() in SPLIT_NAMES:
            classes[SPLIT_NAMES[path[0].lower()]].add(path[1].lower() if len(path) > 2 else "")
    return classes[0] == {NORMAL} and (MASKS in tops or not classes[2] <= {NORMAL, ""})


def mask_names(source: ImageSource) -> set[str]:
    """The names of the masks in the layout of MVTec-AD; none in others."""
    names = [entry.name for entry in source.entries]
    if not names:
        return set()
    paths = [PurePosixPath(name).parts for name in names]
    folders = [PurePosixPath(name).parts for name in source.folders]
    skip = wrapping_folders(paths, folders)
    paths, folders = [path[skip:] for path in paths], [f[skip:] for f in folders if len(f) > skip]
    if not is_anomaly_set(paths, folders):
        return set()
    return {n for n, path in zip(names, paths, strict=True) if path[0].lower() == MASKS}


def describe_anomaly_set(paths: Sequence[Parts], masks: int) -> str:
    of_train = {p[1] for p in paths if SPLIT_NAMES.get(p[0].lower()) == 0}
    others = sorted({p[1] for p in paths if p[0].lower() in SPLIT_NAMES and len(p) > 2} - of_train)
    text = "read as the layout of MVTec-AD: train has normal images alone (good)"
    if others:
        text += f", test also {', '.join(map(printable, others[:10]))}{' ...' if len(others) > 10 else ''}"
    return text + (f"; the {masks:,} masks in ground_truth are left out" if masks else "")


def refuse_other_folders(where: str, tops: set[str]) -> None:
    """Raise UserError where there are folders beside train and test."""
    splits = {SPLIT_NAMES[top.lower()] for top in tops if top.lower() in SPLIT_NAMES}
    require(
        not {0, 2} <= splits,
        f"{where} has other folders beside train and test ({', '.join(sorted(map(printable, tops)))}); move the others "
        "away, or into these",
    )


def splits_of_folders(
    where: str, paths: Sequence[Parts], folders: Sequence[Parts], labelled: bool
) -> np.ndarray:
    """The index into SPLITS of each image by its folder, (N,). Raises UserError for images beside these folders, and
    for empty ones; folders in them may be empty where `labelled`, by a table."""
    tops = sorted({printable(f[0]) for f in folders})
    require(
        all(len(path) > 1 for path in paths),
        f"{where} has images beside its folders {', '.join(tops)}; move them into these",
    )
    depths = (1,) if labelled else (1, 2)
    filled = {path[:n] for path in paths for n in depths}
    check_not_empty(where, sorted({f[: depths[-1]] for f in folders} - filled))
    return np.array([SPLIT_NAMES[path[0].lower()] for path in paths], np.uint8)


def splits_of_table(
    where: str, names: Sequence[str], splits: Sequence[str], of_folders: np.ndarray | None
) -> np.ndarray:
    """The index into SPLITS of each image by its row in a table, (N,). Raises UserError for other words, and where the
    folder says otherwise."""
    for name, split in zip(names, splits, strict=True):
        require(
            split.lower() in SPLIT_NAMES,
            f"{where}: {printable(name)} has the split {printable(split)[:60]!r}; it must be train, validation or test",
        )
    index = np.array([SPLIT_NAMES[split.lower()] for split in splits], np.uint8)
    if of_folders is not None and (index != of_folders).any():
        i = int(np.flatnonzero(index != of_folders)[0])
        raise UserError(
            f"{where}: {printable(names[i])} is {SPLITS[index[i]]} in its row, but in a folder of "
            f"{SPLITS[of_folders[i]]} images; correct the row, or move the image"
        )
    return index


def classes_of_folders(
    where: str, names: Sequence[str], paths: Sequence[Parts], folders: Sequence[Parts]
) -> list[str] | None:
    """The class of each image, the name of its first folder; None without folders. Raises UserError for an empty class
    folder, and for images outside the class folders."""
    outside = [i for i, path in enumerate(paths) if len(path) == 1]
    if len(outside) == len(paths):
        return None
    check_not_empty(where, sorted({f[:1] for f in folders} - {path[:1] for path in paths}))
    if outside:
        raise UserError(
            f"{where} has {len(outside):,} images outside the class folders, such as {printable(names[outside[0]])}; "
            "move them into a class folder, or use no class folders"
        )
    return [path[0] for path in paths]


def check_splits(where: str, layout: Layout, rows: slice | list[int]) -> None:
    """Raise UserError unless these rows (the readable images, or all) cover every split of the layout, and the train
    split covers every class."""
    split_index = layout.split_index[rows]
    for split in sorted(set(layout.split_index.tolist()) - set(split_index.tolist())):
        raise UserError(f"{where}: none of the images in {SPLITS[split]} can be read")
    if layout.labels is None or layout.classes is None or layout.gaps:
        return
    labels = layout.labels[rows]
    train_labels = set(labels[split_index == 0].tolist())
    for split in (1, 2):
        for label in sorted(set(labels[split_index == split].tolist()) - train_labels):
            name = printable(layout.classes[label])
            raise UserError(
                f"{where}: {SPLITS[split]} has the class {name!r}, of which train has no images; add some, or move the "
                "class away"
            )


def check_not_empty(where: str, empty: Sequence[Parts]) -> None:
    """Raise UserError if there are folders of a split or class without images."""
    if empty:
        name = printable("/".join(empty[0]))
        raise UserError(f"{where}: the folder {name} has no images; add some, or remove it")
