"""Data sets: `load("mnist")` or `load("photos/")` gives a Dataset of 8-bit or float pixels, in three splits."""

from typing import TYPE_CHECKING

from ..support.lazy import lazy_names

if TYPE_CHECKING:
    from .dataset import Dataset, EvalSplit, Split, eval_split, pixels
    from .loading import load, reload

_HOME = {
    "Dataset": "dataset",
    "EvalSplit": "dataset",
    "Split": "dataset",
    "eval_split": "dataset",
    "pixels": "dataset",
    "load": "loading",
    "reload": "loading",
}
__all__ = [*_HOME]
__getattr__ = lazy_names(__name__, _HOME)
