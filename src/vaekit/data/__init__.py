"""Data sets: `load("mnist")`, `load("photos/")` -> Dataset(train, validation, test), of 8-bit pixels or floats."""

from typing import TYPE_CHECKING

from ..support.lazy import names_of

if TYPE_CHECKING:
    from .dataset import Dataset, Frozen, Split, freeze, pixels
    from .loading import load, load_again

_HOME = {
    "Dataset": "dataset",
    "Frozen": "dataset",
    "Split": "dataset",
    "freeze": "dataset",
    "pixels": "dataset",
    "load": "loading",
    "load_again": "loading",
}
__all__ = [*_HOME]
__getattr__ = names_of(__name__, _HOME)
