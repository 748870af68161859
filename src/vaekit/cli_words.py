"""Words of the command line that stand for several."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

# Flags whose value is one text, commas and all.
WHOLE = ("--out", "--name", "--init", "--preset", "--data-dir")


def combinations(arguments: list[str]) -> Iterator[tuple[dict[str, str], list[str]]]:
    """Every way to take one of the values that have commas, as in `sweep vae --seed 0,1`: what was taken by flag (and
    `model`), and the arguments so."""
    choices: list[tuple[str, list[str]]] = []  # of each argument: its flag and its values
    flag = ""
    for place, word in enumerate(arguments):
        name, joined, value = word.partition("=") if word.startswith("--") else (flag, "", word)
        if word.startswith("--") and not joined:
            flag, values = word, [word]
        else:
            flag = name if joined else flag
            key = flag or ("model" if place == 1 else "")
            splits = key != "" and key not in WHOLE and "," in value
            parts = list(dict.fromkeys(filter(None, value.split(",")))) if splits else [value]
            values = [f"{name}={part}" if joined else part for part in parts]
        choices.append((flag or "model", values))
    for chosen in itertools.product(*(values for _, values in choices)):
        taken = {
            name.removeprefix("--"): word.rpartition("=")[2]
            for (name, values), word in zip(choices, chosen, strict=True)
            if len(values) > 1
        }
        yield taken, list(chosen)
