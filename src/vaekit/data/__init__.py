"""Data sets by name: `load("mnist")` -> Dataset(train, validation, test), whole in memory as 8-bit pixels."""

from .dataset import Dataset, Split, freeze, pixels
from .names import DATASETS, load

__all__ = ["DATASETS", "Dataset", "Split", "freeze", "load", "pixels"]
