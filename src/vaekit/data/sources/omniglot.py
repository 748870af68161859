"""Omniglot: the official archives of drawn characters, and the file of Burda et al. (2016) with 28 x 28 pixels."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...settings.data import UNIT_RANGE, SourceConfig
from ...support.console import ProgressBar
from ...support.errors import printable, require
from ..dataset import Dataset, Split
from ..formats.hashes import check_file
from ..formats.published import read_mat_variables
from . import catalog
from .files import Entry, Folder, ImageSource, Zip
from .image_files import load_images
from .layout import OMNIGLOT_PARTS, Layout

# alphabet / character / number of the character _ number of its drawing
DRAWING = re.compile(r"([^/]+)/(character\d+)/(\d+)_(\d+)\.png")
DRAWINGS = 20  # of each character
TEST_DRAWINGS = 5
# Of the drawings that are not for testing, as many as Burda et al. (2016) hold out of 24,345.
VALIDATION_SHARE = 1345 / 24345
SEED = 777
BURDA_SEED, BURDA_VALIDATION = 123, 1345


class Drawings:
    """The drawings of both parts of Omniglot, as one source of image files whose layout is known; labels are characters
    or `alphabets`. Raises UserError where the files are not those of Omniglot."""

    def __init__(self, folder: Path, alphabets: bool) -> None:
        self.path, self.alphabets = folder, alphabets
        self.parts: dict[str, ImageSource] = {}
        for part, file in zip(OMNIGLOT_PARTS, catalog.CATALOG["omniglot"].files, strict=True):
            archive = folder / file.name
            self.parts[part] = (
                Zip(check_file(archive, file.digest))
                if archive.exists() or not (folder / part).is_dir()
                else Folder(folder / part)
            )
        self.folders, self.tables = set[str](), list[Entry]()

    @cached_property
    def entries(self) -> list[Entry]:
        return [
            replace(entry, name=f"{part}:{entry.name}")
            for part, source in self.parts.items()
            for entry in source.entries
        ]

    @property
    def key(self) -> Any:
        return [[source.key for source in self.parts.values()], self.alphabets, SEED]

    def read(self, names: Collection[str]) -> Iterator[tuple[str, bytes | None]]:
        for part, source in self.parts.items():
            own = {n.removeprefix(f"{part}:") for n in names if n.startswith(f"{part}:")}
            yield from ((f"{part}:{name}", content) for name, content in source.read(own))

    @cached_property
    def layout(self) -> Layout:
        """Each character's drawings in the splits of `split_drawings`. Raises UserError."""
        names = [entry.name for entry in self.entries]
        characters = [self.character(name) for name in names]
        classes = sorted(set(characters))
        index = {character: k for k, character in enumerate(classes)}
        labels = np.array([index[character] for character in characters], np.int64)
        self.check(names, labels, classes)
        splits = split_drawings(labels)
        if self.alphabets:
            alphabets = [character.split("/")[0] for character in classes]
            classes = sorted(set(alphabets))
            labels = np.array([classes.index(name) for name in alphabets])[labels]
        return Layout(names, splits, labels, classes)

    def character(self, name: str) -> str:
        """The alphabet and the character of a file. Raises UserError where its folders are others than Omniglot's."""
        part, _, path = name.partition(":")
        match = DRAWING.fullmatch(path.removeprefix(f"{part}/"))  # the folder in an archive
        require(
            match is not None,
            f"{printable(self.path)}: {printable(name)} is not ALPHABET/characterNN/NNNN_NN.png, as the files of "
            "Omniglot are called; get the data set again",
        )
        assert match is not None
        return f"{match[1]}/{match[2]}"

    def check(self, names: list[str], labels: np.ndarray, classes: list[str]) -> None:
        """Raise UserError unless each character has its 20 drawings, with one number that no other character has."""
        where, numbers = printable(self.path), defaultdict[str, set[int]](set)
        require(len(names) > 0, f"{where} has no drawings; get the data set again")
        for name, label in zip(names, labels.tolist(), strict=True):
            numbers[name.rsplit("/", 1)[1].split("_")[0]].add(label)
        for k in np.flatnonzero(np.bincount(labels) != DRAWINGS)[:1].tolist():
            require(
                False,
                f"{where}: {printable(classes[k])} has {int((labels == k).sum())} drawings, not {DRAWINGS}; get the "
                "data set again",
            )
        mixed = [number for number, found in numbers.items() if len(found) > 1]
        require(
            not mixed and len(numbers) == len(classes),
            f"{where}: the numbers of the characters in the names of the files"
            f"{f' ({mixed[0]})' if mixed else ''} are not those of the folders; get the data set again",
        )


def split_drawings(labels: np.ndarray) -> np.ndarray:
    """The index into SPLITS of each drawing, (N,): of each character 5 drawings for testing, at random with a fixed
    seed; of the others about one of 18 for validation."""
    generator = np.random.default_rng(SEED)
    order = np.lexsort((generator.random(len(labels)), labels))
    index = np.zeros(len(labels), np.uint8)
    index[order.reshape(-1, DRAWINGS)[:, :TEST_DRAWINGS]] = 2
    rest = np.flatnonzero(index == 0)
    held_out = generator.permutation(len(rest))[: round(VALIDATION_SHARE * len(rest))]
    index[rest[held_out]] = 1
    return index


def omniglot(folder: Path, variant: str, settings: SourceConfig, bar: ProgressBar) -> Dataset:
    """Omniglot (Lake, Salakhutdinov and Tenenbaum 2015), both official parts: 32,460 drawings of 105 x 105 pixels,
    resized to 28 x 28 by default, with white ink on black. Each character has 5 of its 20 drawings in the test images:
    23,000 / 1,345 / 8,115, the sizes of Burda et al. but for 45. Classes are the 1,623 characters, or the alphabets."""
    form = SourceConfig(
        size=settings.size or "28", colour="grey", fit=settings.fit, in_memory="yes"
    )
    drawn = load_images(Drawings(folder, variant == "alphabets"), form, "omniglot", bar)
    splits, generator = [], np.random.default_rng(SEED)
    for split in drawn.splits.values():
        assert isinstance(split.images, torch.Tensor)
        assert split.labels is not None
        # Shuffled, so that the first ones are of all alphabets.
        rows = torch.from_numpy(generator.permutation(len(split)))
        splits.append(Split(255 - split.images[rows], split.labels[rows]))
    return Dataset.from_splits("omniglot", splits, classes=drawn.classes, black_and_white=True)


def omniglot28(folder: Path, variant: str, settings: SourceConfig, bar: ProgressBar) -> Dataset:
    """The 28 x 28 Omniglot of Burda, Grosse and Salakhutdinov (2016), split as in their code: 23,000 / 1,345 / 8,070.
    Pixels are probabilities of ink; classes are the 50 alphabets, without names."""
    (file,) = catalog.CATALOG["omniglot28"].files
    path = folder / file.name
    keys = ("data", "target", "testdata", "testtarget")
    train, train_target, test, test_target = read_mat_variables(path, file.digest, keys)
    where = printable(path)
    rest, tested = burda_split(train, train_target, where), burda_split(test, test_target, where)
    order = np.random.RandomState(BURDA_SEED).permutation(len(rest))
    require(
        len(rest) > BURDA_VALIDATION,
        f"{where} has {len(rest):,} training images, too few; get the original file",
    )
    first, last = (
        rest.take(torch.from_numpy(rows))
        for rows in np.split(order, [len(order) - BURDA_VALIDATION])
    )
    return Dataset("omniglot28", first, last, tested, black_and_white=True, value_range=UNIT_RANGE)


def burda_split(images: np.ndarray, target: np.ndarray, where: str) -> Split:
    """The images of a matrix (784, N), a column of pixels by columns each, and their classes, one-hot in (K, N). Raises
    UserError."""
    require(
        images.ndim == target.ndim == 2
        and images.dtype.kind in "buf"
        and target.dtype.kind in "buif"
        and len(images) == 784
        and images.shape[1] == target.shape[1] > 0
        and bool((target.sum(axis=0) == 1).all() and np.isin(target, (0, 1)).all()),
        f"{where} does not have matrices of 784 pixels and one-hot classes; get the original file",
    )
    require(
        bool(((images >= 0) & (images <= 1)).all()),
        f"{where} has pixels outside 0 to 1; get the original file",
    )
    pixels = images.T.reshape(-1, 1, 28, 28).swapaxes(2, 3).astype(np.float32)
    return Split(
        torch.from_numpy(np.ascontiguousarray(pixels)),
        torch.from_numpy(target.argmax(axis=0).astype(np.int64)),
    )
