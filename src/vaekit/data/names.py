"""The data sets by name."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

from ..checks import UserError, closest, require
from .dataset import Dataset, Split
from .idx import read_idx

# md5 of the unpacked files.
MNIST_FILES = {
    "train-images-idx3-ubyte.gz": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte.gz": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte.gz": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte.gz": "27ae3e4e09519cfbb04c329615203637",
}


def mnist(data_dir: Path | None) -> Dataset:
    """Handwritten digits, 28 x 28 (LeCun, Cortes and Burges): 50,000 / 10,000 / 10,000, the last 10,000 of the
    training file being the validation images. Inside the package."""
    folder = data_dir or Path(__file__).parent / "mnist"
    train_images, train_labels, test_images, test_labels = (
        read_idx(folder / name, 1 if "labels" in name else 3, md5)
        for name, md5 in MNIST_FILES.items()
    )
    train = Split(train_images[:, None], train_labels.long())
    return Dataset(
        "mnist",
        train=train[:50_000],
        validation=train[50_000:],
        test=Split(test_images[:, None], test_labels.long()),
        classes=tuple("0123456789"),
        black_and_white=True,
    )


DATASETS: dict[str, Callable[[Path | None], Dataset]] = {"mnist": mnist}


def load(name: str = "mnist", data_dir: str | Path | None = None) -> Dataset:
    """The data set called `name`.

    Its files are looked for in `data_dir` or a folder of its name therein, or likewise in the folder that the
    environment variable VAEKIT_DATA names, else inside the package.
    Raises UserError for an unknown name, a missing or a damaged file.
    """
    if name not in DATASETS:
        raise UserError(
            f"there is no data set {name!r}{closest(name, DATASETS)} (data sets: {', '.join(DATASETS)})"
        )
    folder = None
    if data_dir is not None:
        folder = Path(data_dir).expanduser().resolve()
        require(folder.is_dir(), f"the data folder {data_dir} does not exist")
        folder = folder / name if (folder / name).is_dir() else folder
    elif os.environ.get("VAEKIT_DATA"):
        shared = Path(os.environ["VAEKIT_DATA"]).expanduser() / name
        folder = shared if shared.is_dir() else None
    dataset = DATASETS[name](folder)
    return dataclasses.replace(dataset, data_dir=None if data_dir is None else str(folder))
