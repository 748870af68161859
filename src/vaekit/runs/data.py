"""Loading the data set that a run was trained on."""

from __future__ import annotations

from pathlib import Path

from ..data import Dataset, EvalSplit, eval_split, reload
from ..data.dataset import get_split
from ..support.errors import require
from .directory import Run


def load_run_data(run: Run, data: Dataset | None, data_dir: str | Path | None) -> Dataset:
    """The data set that a run was trained on, from `data_dir` if its files have moved. Raises UserError for another."""
    if data is None:
        data = reload(run.source, data_dir, str(run))
    require(
        data.sha256() == run.data.sha256,
        f"the data set {data.name!r} found here is not the one {run} was trained on (its hash differs); find the "
        "original data",
    )
    return data


def run_images(run: Run, data: Dataset, split: str) -> EvalSplit:
    """A split of a run's data set with the binarisation of the run, fixed."""
    return eval_split(get_split(data, split), run.data.binarisation)


def evaluation_images(
    run: Run, split: str, data: Dataset | None, data_dir: str | Path | None
) -> EvalSplit:
    """A split of the run's data set with fixed binarisation, loaded."""
    return run_images(run, load_run_data(run, data, data_dir), split)
