"""How each of the data sets by name is read."""

from __future__ import annotations

import dataclasses
import hashlib
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...settings.data import SourceConfig
from ...support.console import Shown
from ...support.errors import printable, require
from ..dataset import Dataset, Split
from ..splits import hold_back_missing
from . import catalog as shelf
from .arrays import load_array_file
from .download import check_file
from .files import Folder, Source, Tar, damaged
from .formats import cifar_contents, read_amat, read_cifar, read_mat
from .idx import find_idx, read_idx_folder
from .image_files import load_images

# md5 of the unpacked files, as shared by whoever packed them anew.
IDX_MD5 = {
    "mnist": {
        "train-images": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels": "a25bea736e30d166cdddb491f175f624",
        "test-images": "2646ac647ad5339dbf082846283269ea",
        "test-labels": "27ae3e4e09519cfbb04c329615203637",
    },
    "fashionmnist": {
        "train-images": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train-labels": "9018921c3c673c538a1fc5bad174d6f9",
        "test-images": "8181f5470baa50b63fa0f6fddb340f0a",
        "test-labels": "15d484375f8d13e6eb1aabb0c3f46965",
    },
}
CLASSES = {
    "mnist": tuple("0123456789"),
    "fashionmnist": (
        "T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"
    ),
    "cifar10": (
        "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"
    ),
}  # fmt: skip
# md5 of CIFAR-10's unpacked files, on which three projects agree.
CIFAR_MD5 = {
    "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
    "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
    "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
    "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
    "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
    "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
}
BACKGROUND = "BACKGROUND_Google"
FREY_SEED = 777
FREY_SIZES = {"": [1565, 200, 200], "aevb": [1365, 200, 400], "ordered": [1572, 196, 197]}


def idx(folder: Path, name: str) -> Dataset:
    """MNIST (LeCun, Cortes and Burges) or Fashion-MNIST (Xiao, Rasul and Vollgraf 2017): 50,000 / 10,000 / 10,000, the
    last 10,000 of the training file being the validation images."""
    found = find_idx(folder)
    assert found is not None
    splits = read_idx_folder(found, IDX_MD5[name])
    train = splits["train"]
    return Dataset(
        name, train[:50_000], train[50_000:], splits["test"], CLASSES[name], black_and_white=True
    )


def mnist(folder: Path, variant: str, settings: SourceConfig, shown: Shown) -> Dataset:
    whole = idx(folder, "mnist")
    return dataclasses.replace(whole, train=whole.train[:1000]) if variant == "1000" else whole


def fashionmnist(folder: Path, variant: str, settings: SourceConfig, shown: Shown) -> Dataset:
    return idx(folder, "fashionmnist")


def binarizedmnist(folder: Path, variant: str, settings: SourceConfig, shown: Shown) -> Dataset:
    """MNIST's digits with each pixel drawn black or white once, by H. Larochelle and I. Murray (2011)."""
    packed, files = folder / "packed.npz", shelf.SHELVES["binarizedmnist"].files
    if packed.exists():
        dataset = load_array_file(packed, settings, shown)
        for split, file in zip(dataset.splits.values(), files, strict=True):
            digest = hashlib.sha256(amat_text(split[:].images // 255)).hexdigest()
            require(
                f"sha256:{digest}" == file.digest,
                f"{printable(packed)} has not the bits of {file.name} (their hash differs); remove it, get it again",
            )
        return dataclasses.replace(dataset, name="binarizedmnist")
    splits = []
    for file in files:
        bits = read_amat(check_file(folder / file.name, file.digest), 784)
        splits.append(Split(torch.from_numpy(255 * bits).view(-1, 1, 28, 28)))
    return Dataset.of("binarizedmnist", splits, black_and_white=True)


def amat_text(bits: torch.Tensor) -> bytes:
    """Bits (N, ...) as the text that the data set is published as."""
    text = np.full((len(bits), bits[0].numel(), 2), ord(" "), np.uint8)
    text[..., 0] = bits.flatten(1).numpy() + ord("0")
    text[:, -1, 1] = ord("\n")
    return text.tobytes()


def freyface(folder: Path, variant: str, settings: SourceConfig, shown: Shown) -> Dataset:
    """B. Frey's face, 1,965 frames of a video: 1,565 drawn by a fixed seed to train on, as Kingma and Welling's
    followers have it, the other 400 halved (Tomczak and Welling 2018), or, aevb, all to test on, with 200 of the 1,565
    to validate on; or, ordered, 1,572 / 196 / 197."""
    (file,) = shelf.SHELVES["freyface"].files
    frames = read_mat(folder / file.name, "ff", file.digest).T
    images = torch.from_numpy(np.ascontiguousarray(frames)).view(-1, 1, 28, 20)
    sizes = FREY_SIZES[variant]
    if variant != "ordered":
        images = images[torch.from_numpy(np.random.default_rng(FREY_SEED).permutation(len(images)))]
    return Dataset.of("freyface", map(Split, images.split(sizes)))


def cifar10(folder: Path, variant: str, settings: SourceConfig, shown: Shown) -> Dataset:
    """CIFAR-10 (Krizhevsky 2009), binary version: 45,000 / 5,000 / 10,000, the validation images being the last of the
    fifth training file."""
    parts = []
    for name, content in sorted(cifar_contents(folder).items()):
        where = f"{printable(folder)}: {name}"
        md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
        require(
            CIFAR_MD5.get(name, md5) == md5,
            f"{where} is not the original file (its hash differs); remove it, and get it again",
        )
        parts.append(read_cifar(content, where))
    images, labels = (torch.from_numpy(np.concatenate(found)) for found in zip(*parts, strict=True))
    test = len(parts[-1][1])
    train = Split(images[:-test], labels[:-test])
    held = len(train) // 10
    return Dataset(
        "cifar10",
        train[:-held],
        train[-held:],
        Split(images[-test:], labels[-test:]),
        CLASSES["cifar10"],
    )


def caltech101(folder: Path, variant: str, settings: SourceConfig, shown: Shown) -> Dataset:
    """Caltech-101 (Fei-Fei, Fergus and Perona 2004): photographs of mixed sizes, split by seed."""
    unpacked = folder / "101_ObjectCategories"
    packed, whole = folder / "101_ObjectCategories.tar.gz", folder / "caltech-101.zip"
    source: Source
    if unpacked.is_dir():
        source = Folder(unpacked)
    elif packed.exists():
        source = Tar(packed)
    else:
        digest = shelf.SHELVES["caltech101"].files[0].digest
        checked = cache(lambda: check_file(whole, digest))  # once, however often it is opened
        source = Tar(whole, lambda: inside(checked(), "101_ObjectCategories.tar.gz"))
    leave_out = () if variant == "background" else (BACKGROUND,)
    return load_images(source, settings, "caltech101", shown, leave_out)


def inside(path: Path, name: str) -> Any:
    """A file in the .zip archive of Caltech-101, opened."""
    with damaged(path), zipfile.ZipFile(path) as archive:
        members = [member for member in archive.namelist() if member.endswith("/" + name)]
        require(len(members) == 1, f"{printable(path)} has no {name}; get it again")
        return archive.open(members[0])


def digits(folder: Path, variant: str, settings: SourceConfig, shown: Shown) -> Dataset:
    """The digits that come with scikit-learn: 1,797 of 8 x 8 pixels on 17 levels, split by seed."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.from_numpy(np.round(found.images * (255 / 16)).astype(np.uint8))[:, None]
    labels = torch.from_numpy(found.target.astype(np.int64))
    splits = hold_back_missing({"train": Split(images, labels)}, settings, "digits")
    return Dataset.of("digits", splits, classes=CLASSES["mnist"], black_and_white=True)


Reader = Callable[[Path, str, SourceConfig, Shown], Dataset]
READERS: dict[str, Reader] = {
    reader.__name__: reader
    for reader in (mnist, binarizedmnist, fashionmnist, freyface, cifar10, caltech101, digits)
}
