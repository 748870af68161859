"""Data sets: `load("mnist")`, `load("photos/")` -> Dataset(train, validation, test), of 8-bit pixels or floats."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

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


def __getattr__(name: str) -> Any:
    # Names are imported when first used: `vaekit data list` does not wait for torch.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
