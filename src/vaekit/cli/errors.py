"""Errors of the command line: one line that says what is wrong and what was probably meant."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from ..settings.analysis import SweepConfig
from ..settings.catalog import MODELS, model_entry
from ..settings.data import DataConfig
from ..settings.objective import ObjectiveConfig
from ..settings.training import MonitorConfig, TrainConfig
from ..support.errors import UserError, did_you_mean, flag_name

Verbs = Mapping[str, Callable[..., None]]  # all but train and sweep: "evaluate", "data get"
TRAINING_VERBS = ("train", "sweep")
VERB_GROUPS = (*TRAINING_VERBS, "data")
RESUME_FLAGS = "--epochs, --steps, --data-dir and --allow-inexact"


def explain_parse_error(verbs: Verbs, arguments: list[str], event: Any) -> None:
    """Raise UserError with one line for what tyro could not parse (its own message is a box of several lines)."""
    kind = type(event).__name__
    verb = arguments[0] if arguments else ""
    words = [
        word for word in arguments[: 2 if verb in VERB_GROUPS else 1] if not word.startswith("-")
    ]
    if verb == "data":
        verb = " ".join(words)
    page = f"see `{' '.join(['vaekit', *words])} --help`"
    if kind == "UnrecognizedArgs" and is_resume(arguments):
        raise UserError(
            f"{event.tokens[0]} cannot be combined with --resume: model and settings are those of the run; only "
            f"{RESUME_FLAGS} may be given"
        )
    if kind == "UnrecognizedArgs":
        word = event.tokens[0]
        if word.startswith("-"):
            known = known_flags(verbs, verb)
            if word in known:
                raise UserError(f"{word} stands before the model's name; {page}")
            raise UserError(f"there is no flag {word} here{did_you_mean(word, known)}; {page}")
        if verb in TRAINING_VERBS and arguments[1:2] == [word]:
            model_entry(word)
        names = list(dict.fromkeys([*TRAINING_VERBS, *(name.split()[0] for name in verbs)]))
        if verb == f"data {word}":
            names = [name.split()[1] for name in verbs if name.startswith("data ")]
        if verb in (word, f"data {word}"):
            there = ", ".join(names)
            raise UserError(
                f"there is no command {word!r}{did_you_mean(word, names)} (there are: {there})"
            )
        raise UserError(f"{word!r} is one argument too many; {page}")
    if kind == "InvalidChoice":
        choices = ", ".join(map(str, event.choices))
        named = event.argument.display_name()
        raise UserError(f"{named} is {event.value!r}; it must be one of {choices}")
    if kind == "MissingSubcommand":
        names = list(event.subcommand_spec.parser_from_name)
        raise UserError(f"`vaekit {verb}` needs one of: {', '.join(names)}")
    if kind == "MissingArgs":
        missing = ", ".join(x.arg.lowered.metavar or "" for x in event.missing_arguments)
        raise UserError(f"`vaekit {verb}` lacks {missing}; {page}")
    if kind == "BadValue":
        raise UserError(f"{event.argument.display_name()} lacks its value; {page}")
    if kind == "InstantiationFailure" and event.argument is not None:
        lowered = event.argument.lowered
        wanted = str(lowered.metavar).replace("{None}|", "").replace("INT", "a whole number")
        wanted = wanted.replace("FLOAT", "a number").replace("|", " or ")
        named = event.argument.display_name()
        raise UserError(f"{named} has a value that is not {wanted}; {page}")
    if kind == "InstantiationFailure":
        raise UserError(event.message)


def is_resume(arguments: list[str]) -> bool:
    """Whether the arguments resume a training."""
    given = [word.split("=")[0] for word in arguments]
    return given[:1] == ["train"] and "--resume" in given


def known_flags(verbs: Verbs, verb: str) -> list[str]:
    """The flags of a command, for suggestions."""
    return [flag_name(name) for name in known_settings(verbs, verb)]


def known_settings(verbs: Verbs, verb: str) -> dict[str, str]:
    """The types of the settings of a command, as written in Python, by the names of their flags."""
    types: dict[str, str] = {}
    if verb in TRAINING_VERBS:
        kinds: list[Any] = list({type(entry.settings) for entry in MODELS.values()})
        kinds += [ObjectiveConfig, DataConfig, TrainConfig, MonitorConfig]
        kinds += [SweepConfig] if verb == "sweep" else []
        types |= {field.name: str(field.type) for kind in kinds for field in fields(kind)}
        return types | dict.fromkeys(("out", "name", "init", "preset", "config"), "str")
    if verb not in verbs:
        return {}
    for name, parameter in inspect.signature(verbs[verb], eval_str=True).parameters.items():
        kind = parameter.annotation
        if is_dataclass(kind):
            types |= {field.name: str(field.type) for field in fields(kind)}
        else:
            types[name] = getattr(kind, "__name__", str(kind))
    return types
