"""The words of the command line: arguments that several verbs share, and values with commas that stand for several."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from ..support.errors import UserError
from ..support.escaping import escape_controls

RunArgument = Annotated[str, Positional, tyro.conf.arg(metavar="RUN")]
DataArgument = Annotated[str, Positional, tyro.conf.arg(metavar="DATA")]
WeightsArgument = Annotated[str, tyro.conf.arg(metavar="best|last|EPOCH")]
PriorArgument = Literal["trained", "fitted"]

# Flags of the whole sweep, and flags whose value may contain commas.
NOT_SWEPT = (
    *("--out", "--name", "--init", "--preset", "--data-dir", "--augment"),
    *("--split", "--metrics", "--nll-samples", "--limit"),
)


def expand_grid(arguments: list[str]) -> Iterator[tuple[dict[str, str], list[str]]]:
    """Yield every combination of the values with commas, as in `sweep vae --seed 0,1`: the chosen value by flag (and
    `model`), and the arguments with it. Raises UserError for a flag without a value, or given twice."""
    arguments = [normalise_flag(word) for word in arguments]
    given = flags_of(arguments)
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
        splits = key != "" and key not in NOT_SWEPT and "," in value
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
                choices.pop()  # a switch has no value
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


def flags_of(arguments: Sequence[str]) -> list[str]:
    """The flags among arguments, without their values."""
    return [normalise_flag(word).partition("=")[0] for word in arguments if word.startswith("--")]


def normalise_flag(word: str) -> str:
    """A flag with "-" for "_", which the command line also accepts."""
    flag, joined, value = word.partition("=")
    return flag.replace("_", "-") + joined + value if word.startswith("--") else word


def run_name(grid: Mapping[str, str]) -> str:
    """A folder name from the settings that distinguish a run: latent-dim-5_seed-0."""
    parts = [f"{key}-{re.sub(r'[^A-Za-z0-9.+-]+', '-', value)}" for key, value in grid.items()]
    return "_".join(parts)


def print_text(text: object) -> None:
    """Print text on the standard output, control characters as escapes."""
    print(escape_controls(text), flush=True)


def print_stderr(text: str) -> None:
    print(escape_controls(text), file=sys.stderr)
