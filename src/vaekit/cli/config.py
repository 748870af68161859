"""`--config FILE.toml`: the settings of a file as flags, which those on the command line override."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..support.errors import UserError, did_you_mean, flag_name, one_line, printable, require, shown
from .errors import Verbs, known_settings
from .words import flags_of, normalise_flag

CONFIGURED = ("train", "sweep")  # the commands with --config
# Keys that are arguments without a flag, by the command.
ARGUMENT = {"train": "model", "sweep": "model"}
MAX_BYTES = 2**20


@dataclass(frozen=True)
class Config:
    """The flags that come from a file."""

    path: str
    flags: frozenset[str]

    def locate(self, message: str) -> str:
        """The message of an error, after the name of the file where it is about a flag of it."""
        mentioned = re.match(r"--[\w-]+", message)
        from_file = mentioned is not None and mentioned[0] in self.flags
        return f"{printable(self.path)}: {message}" if from_file else message


def expand_config(verbs: Verbs, arguments: Sequence[str]) -> tuple[list[str], Config | None]:
    """The arguments with the settings of `--config FILE` in its place, but for those that are given beside it.

    Raises UserError for a file that cannot be read, a key that is no setting, and a value that no flag can have.
    """
    words = [normalise_flag(word) for word in arguments]
    given = flags_of(words)
    if "--config" not in given:
        return list(arguments), None
    require(given.count("--config") == 1, "--config is given twice; choose one")
    verb = words[0]
    require(
        verb in CONFIGURED, f"`vaekit {verb}` has no --config; {' and '.join(CONFIGURED)} have it"
    )
    require(
        "--resume" not in given,
        "--config cannot be combined with --resume: model and settings are those of the run",
    )
    at = next(i for i, word in enumerate(words) if word.split("=")[0] == "--config")
    _, joined, path = words[at].partition("=")
    rest = words[1:at] + words[at + (1 if joined else 2) :]
    path = path if joined else "".join(words[at + 1 : at + 2])
    require(path not in ("", "-") and not path.startswith("--"), "--config lacks its file")
    values = read_config(path)
    argument = ARGUMENT[verb]
    known = {argument: "str"} | known_settings(verbs, verb)
    del known["config"]
    for key, value in values.items():
        require(
            key in known,
            f"{printable(path)}: {shown(key)} is no setting of `vaekit {verb}`{did_you_mean(key, known)}",
        )
        check_kind(value, known[key], f"{printable(path)}: {key}")
    if not {"--epochs", "--steps"}.isdisjoint(given):  # one length replaces the other
        values = {key: value for key, value in values.items() if key not in ("epochs", "steps")}
    name = values.pop(argument, None)
    if name is not None and (not rest or rest[0].startswith("-")) and "--preset" not in given:
        rest = [str(name), *rest]
    flags: dict[str, list[str]] = {}
    for key, value in values.items():
        flag = flag_name(key)
        if flag not in given and flag.replace("--", "--no-", 1) not in given:
            flags[flag] = as_flag(flag, value)
    place = 1 if rest and not rest[0].startswith("-") else 0
    inserted = [word for each in flags.values() for word in each]
    return [verb, *rest[:place], *inserted, *rest[place:]], Config(path, frozenset(flags))


def read_config(path: str) -> dict[str, Any]:
    """The values of a TOML file by key, with "_" for "-". Raises UserError."""
    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        require(
            len(content) <= MAX_BYTES,
            f"--config {printable(path)} is too large for a file of settings",
        )
        values = tomllib.loads(content.decode())
    except OSError as error:
        raise UserError(f"cannot read --config {printable(path)}: {error.strerror}") from None
    except ValueError as error:  # also of a text that is not UTF-8
        raise UserError(f"--config {printable(path)} is not TOML: {one_line(error)}") from None
    return {key.replace("-", "_"): value for key, value in values.items()}


def check_kind(value: Any, kind: str, where: str) -> None:
    """Raise UserError, which names `where`, for a value that no flag of this type can have; the flag itself tells
    texts and numbers apart."""
    wanted = "true or false" if kind == "bool" else "a list" if kind.startswith("tuple") else ""
    good = isinstance(value, {"true or false": bool, "a list": list}.get(wanted, str | int | float))
    good &= wanted == "true or false" or not isinstance(value, bool)
    parts = value if isinstance(value, list) else []
    good &= all(
        isinstance(part, str | int | float) and not isinstance(part, bool) for part in parts
    )
    require(good, f"{where} is {shown(value)}; it must be {wanted or 'a text or a number'}")


def as_flag(name: str, value: Any) -> list[str]:
    """A flag with its value, in words of the command line."""
    if isinstance(value, bool):
        return [name if value else name.replace("--", "--no-", 1)]
    if isinstance(value, list):
        return [name, *map(str, value)]
    return [f"{name}={value}"]
