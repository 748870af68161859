"""Names of a package that are imported when first used, so that `vaekit --help` does not wait for torch."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def names_of(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package: each name's module in it, as "module:other" where the name there is another."""

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home, _, other = homes[name].partition(":")
        return getattr(import_module(f".{home}", package), other or name)

    return find
