"""A reader for each named data set."""

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

from ...settings.data import EIGHT_BITS, SourceConfig
from ...support.console import ProgressBar
from ...support.errors import printable, require
from ..dataset import Dataset, Split
from ..formats.archives import archive_errors
from ..formats.hashes import check_file
from ..formats.idx import find_idx, read_idx_files
from ..formats.published import cifar_contents, read_amat, read_cifar, read_mat
from ..splits import complete_splits
from . import catalog
from .arrays import dataset_from_arrays, open_arrays
from .files import Folder, ImageSource, Tar
from .image_files import load_images
from .omniglot import omniglot, omniglot28

# md5 of the unpacked files, since repackaged copies differ only in their compression.
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
# md5 of CIFAR-10's unpacked files, the same in three projects.
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


def load_idx(folder: Path, name: str) -> Dataset:
    """MNIST (LeCun, Cortes and Burges) or Fashion-MNIST (Xiao, Rasul and Vollgraf 2017): 50,000 / 10,000 / 10,000; the
    validation images are the last 10,000 of the training file."""
    files = find_idx(folder)
    assert files is not None
    splits = read_idx_files(files, IDX_MD5[name])
    train = splits["train"]
    return Dataset(
        name, train[:50_000], train[50_000:], splits["test"], CLASSES[name], black_and_white=True
    )


def mnist(folder: Path, variant: str, settings: SourceConfig, bar: ProgressBar) -> Dataset:
    return load_idx(folder, "mnist")


def fashionmnist(folder: Path, variant: str, settings: SourceConfig, bar: ProgressBar) -> Dataset:
    return load_idx(folder, "fashionmnist")


def binarizedmnist(folder: Path, variant: str, settings: SourceConfig, bar: ProgressBar) -> Dataset:
    """MNIST with fixed binarisation, each pixel sampled once (H. Larochelle and I. Murray 2011)."""
    packed, files = folder / "packed.npz", catalog.CATALOG["binarizedmnist"].files
    if packed.exists():
        arrays = {
            split: (unpack_bits(rows, printable(packed)), None)
            for split, (rows, _) in open_arrays(packed, mapped=False).items()
        }
        dataset = dataset_from_arrays(arrays, settings, "binarizedmnist", printable(packed))
        for split, file in zip(dataset.splits.values(), files, strict=True):
            digest = hashlib.sha256(amat_text(split[:].images // 255)).hexdigest()
            require(
                f"sha256:{digest}" == file.digest,
                f"{printable(packed)} does not have the bits of {file.name} (their hash differs); remove it, and get "
                "it again",
            )
        return dataclasses.replace(dataset, value_range=EIGHT_BITS, reading=())
    splits = []
    for file in files:
        bits = read_amat(check_file(folder / file.name, file.digest), 784)
        splits.append(Split(torch.from_numpy(255 * bits).view(-1, 1, 28, 28)))
    return Dataset.from_splits("binarizedmnist", splits, black_and_white=True)


def unpack_bits(rows: np.ndarray, where: str) -> np.ndarray:
    """Images (N, 1, 28, 28), 0 or 1, of rows of 98 bytes of bits. Raises UserError."""
    require(
        rows.dtype == np.uint8 and rows.shape[1:] == (98,),
        f"{where} is not of rows of 98 bytes; remove it, and get it again",
    )
    return np.unpackbits(rows, axis=1).reshape(-1, 1, 28, 28)


def amat_text(bits: torch.Tensor) -> bytes:
    """Format bits (N, ...) as the .amat text in which the data set is published."""
    text = np.full((len(bits), bits[0].numel(), 2), ord(" "), np.uint8)
    text[..., 0] = bits.flatten(1).numpy() + ord("0")
    text[:, -1, 1] = ord("\n")
    return text.tobytes()


def freyface(folder: Path, variant: str, settings: SourceConfig, bar: ProgressBar) -> Dataset:
    """Frey faces, 1,965 frames of a video. Shuffled with a fixed seed: 1,565 / 200 / 200 (Tomczak and Welling 2018);
    variant aevb: 1,365 / 200 / 400, the 1,565 and 400 of work after Kingma and Welling, with 200 of the 1,565 for
    validation; variant ordered: 1,572 / 196 / 197 in the order of the video."""
    (file,) = catalog.CATALOG["freyface"].files
    frames = read_mat(folder / file.name, "ff", file.digest).T
    images = torch.from_numpy(np.ascontiguousarray(frames)).view(-1, 1, 28, 20)
    sizes = FREY_SIZES[variant]
    if variant != "ordered":
        images = images[torch.from_numpy(np.random.default_rng(FREY_SEED).permutation(len(images)))]
    return Dataset.from_splits("freyface", map(Split, images.split(sizes)))


def cifar10(folder: Path, variant: str, settings: SourceConfig, bar: ProgressBar) -> Dataset:
    """CIFAR-10 (Krizhevsky 2009), binary version: 45,000 / 5,000 / 10,000; the validation images are the last of the
    fifth training file."""
    batches = []
    for name, content in sorted(cifar_contents(folder).items()):
        where = f"{printable(folder)}: {name}"
        md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
        require(
            CIFAR_MD5.get(name, md5) == md5,
            f"{where} is not the original file (its hash differs); remove it, and get it again",
        )
        batches.append(read_cifar(content, where))
    images, labels = (torch.from_numpy(np.concatenate(a)) for a in zip(*batches, strict=True))
    test = len(batches[-1][1])
    train = Split(images[:-test], labels[:-test])
    held_out = len(train) // 10
    return Dataset(
        "cifar10",
        train[:-held_out],
        train[-held_out:],
        Split(images[-test:], labels[-test:]),
        CLASSES["cifar10"],
    )


def caltech101(folder: Path, variant: str, settings: SourceConfig, bar: ProgressBar) -> Dataset:
    """Caltech-101 (Fei-Fei, Fergus and Perona 2004): photographs of various sizes, split by seed."""
    unpacked = folder / "101_ObjectCategories"
    inner, outer = folder / "101_ObjectCategories.tar.gz", folder / "caltech-101.zip"
    source: ImageSource
    if unpacked.is_dir():
        source = Folder(unpacked)
    elif inner.exists():
        source = Tar(inner)
    else:
        digest = catalog.CATALOG["caltech101"].files[0].digest
        checked = cache(
            lambda: check_file(outer, digest)
        )  # hashed once, however often it is opened
        source = Tar(outer, lambda: open_member(checked(), "101_ObjectCategories.tar.gz"))
    leave_out = () if variant == "background" else (BACKGROUND,)
    return load_images(source, settings, "caltech101", bar, leave_out)


def open_member(path: Path, name: str) -> Any:
    """Open a file in the .zip archive of Caltech-101. Raises UserError."""
    with archive_errors(path), zipfile.ZipFile(path) as archive:
        members = [member for member in archive.namelist() if member.endswith("/" + name)]
        require(len(members) == 1, f"{printable(path)} has no {name}; get it again")
        return archive.open(members[0])


def digits(folder: Path, variant: str, settings: SourceConfig, bar: ProgressBar) -> Dataset:
    """The digits of scikit-learn: 1,797 of 8 x 8 pixels with 17 levels, split by seed."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(np.round(bunch.images * (255 / 16)).astype(np.uint8))[:, None]
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    splits = complete_splits({"train": Split(images, labels)}, settings, "digits")
    return Dataset.from_splits("digits", splits, classes=CLASSES["mnist"], black_and_white=True)


Reader = Callable[[Path, str, SourceConfig, ProgressBar], Dataset]
READERS: dict[str, Reader] = {
    reader.__name__: reader
    for reader in (
        mnist, binarizedmnist, fashionmnist, freyface, cifar10, caltech101, omniglot, omniglot28, digits
    )
}  # fmt: skip
