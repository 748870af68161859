"""Words of the command line that stand for several."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping

from ..support.errors import UserError

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
    choices: list[list[tuple[str, str, list[str]]]] = []  # of each argument: flag, value, words
    flag = ""
    for place, word in enumerate(arguments):
        is_flag = word.startswith("--")
        name, joined, value = word.partition("=") if is_flag else (flag, "", word)
        if is_flag and not joined:
            flag = word
            choices.append([(flag, "", [word])])
            continue
        key = name or ("model" if place == 1 else "")
        splits = key != "" and key not in WHOLE and "," in value
        several = dict.fromkeys(part.strip() for part in value.split(",") if part.strip())
        parts = list(several) if splits else [value]
        if not parts:
            raise UserError(f"{key} {value} has no value; give one, or several with commas")
        if (
            splits
            and key.startswith("--")
            and {part.lower() for part in parts} <= {"true", "false"}
        ):
            if not joined:
                choices.pop()  # a switch has no value: its name says which
            switches = {"true": key, "false": key.replace("--", "--no-", 1)}
            choices.append([(key, part, [switches[part.lower()]]) for part in parts])
        else:
            choices.append([(key, part, [f"{name}={part}" if joined else part]) for part in parts])
        flag = name
    for chosen in itertools.product(*choices):
        taken = {
            key.removeprefix("--"): part
            for several, (key, part, _) in zip(choices, chosen, strict=True)
            if len(several) > 1
        }
        yield taken, [word for _, _, words in chosen for word in words]


def dashed(word: str) -> str:
    """A flag with - for _, as the command line also takes it."""
    flag, joined, value = word.partition("=")
    return flag.replace("_", "-") + joined + value if word.startswith("--") else word


def named(grid: Mapping[str, str]) -> str:
    """A folder's name from the settings that tell runs apart: latent-dim-5_seed-0."""
    parts = [f"{key}-{re.sub(r'[^A-Za-z0-9.+-]+', '-', value)}" for key, value in grid.items()]
    return "_".join(parts)
