"""Words of the command line that stand for several."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping

from .checks import UserError

# Flags that are of the whole sweep, or whose value is one text, commas and all.
WHOLE = (
    *("--out", "--name", "--init", "--preset", "--data-dir"),
    *("--split", "--metrics", "--nll-samples", "--limit"),
)


def combinations(arguments: list[str]) -> Iterator[tuple[dict[str, str], list[str]]]:
    """Every way to take one of the values that have commas, as in `sweep vae --seed 0,1`: what was taken by flag (and
    `model`), and the arguments so. Raises UserError for a flag without a value, or given twice."""
    arguments = [dashed(word) for word in arguments]
    given = [word.partition("=")[0] for word in arguments if word.startswith("--")]
    for name in given:
        if given.count(name) > 1:
            raise UserError(f"{name} is given twice; give its values as one, with commas")
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
            several = dict.fromkeys(part.strip() for part in value.split(",") if part.strip())
            parts = list(several) if splits else [value]
            if not parts:
                raise UserError(f"{key} {value} has no value; give one, or several with commas")
            values = [f"{name}={part}" if joined else part for part in parts]
        choices.append((flag or "model", values))
    for chosen in itertools.product(*(values for _, values in choices)):
        taken = {
            name.removeprefix("--"): word.rpartition("=")[2]
            for (name, values), word in zip(choices, chosen, strict=True)
            if len(values) > 1
        }
        yield taken, list(chosen)


def dashed(word: str) -> str:
    """A flag with - for _, as the command line also takes it."""
    flag, joined, value = word.partition("=")
    return flag.replace("_", "-") + joined + value if word.startswith("--") else word


def named(grid: Mapping[str, str]) -> str:
    """A folder's name from the settings that tell runs apart: latent-dim-5_seed-0."""
    parts = [f"{key}-{re.sub(r'[^A-Za-z0-9.+-]+', '-', value)}" for key, value in grid.items()]
    return "_".join(parts)
