"""Loading the data set that a run was trained on."""

from __future__ import annotations

from pathlib import Path

from ..data import Dataset, EvalSplit, eval_split, reload
from ..data.dataset import get_split
from ..support.errors import require
from .directory import Run


def reload_data(run: Run, data_dir: str | Path | None = None) -> Dataset:
    """Load the data set of a run again, with its classes numbered as the run has them. Raises UserError."""
    return reload(run.source, data_dir, str(run), run.section("data").get("classes"))


def load_run_data(run: Run, data: Dataset | None, data_dir: str | Path | None) -> Dataset:
    """The data set that a run was trained on, from `data_dir` if its files have moved. Raises UserError for another."""
    if data is None:
        data = reload_data(run, data_dir)
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
