"""The data that a run was trained on, found again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..data import Dataset, Frozen, freeze, load_again
from ..data.dataset import choose_split
from ..support.errors import require
from .directory import Run


def run_data(run: Run, data: Dataset | None, data_dir: str | Path | None) -> Dataset:
    """The data set that a run was trained on, whose files or folder may now be at `data_dir`."""
    if data is None:
        data = load_again(run.source, data_dir, str(run))
    require(
        data.sha256() == run.data.sha256,
        f"the data set {data.name!r} found here is not the one {run} was trained on (its hash differs)",
    )
    return data


def run_images(run: Run, data: Dataset, split: str) -> Frozen:
    """A split of a run's data set as its model is measured on it."""
    return freeze(choose_split(data, split), run.data.binarisation)


def chosen_rows(count: int, limit: int | None, seed: int) -> Tensor:
    """`limit` of `count` rows, or all, in an order of the seed's."""
    order = np.random.default_rng(seed).permutation(count)
    return torch.from_numpy(order[:limit])


def evaluation_images(
    run: Run, split: str, data: Dataset | None, data_dir: str | Path | None
) -> Frozen:
    """The frozen images of a split of the run's data set."""
    return run_images(run, run_data(run, data, data_dir), split)
