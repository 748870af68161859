"""Errors for users, and validation of their input. Imports no torch."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import numbers
import re
import reprlib
import typing
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Settings = TypeVar("Settings", bound="DataclassInstance")
_REPR = reprlib.Repr()
_REPR.maxstring = 60


# A command, which stays as it is, or a flag.
FLAG = re.compile(r"vaekit [a-z][^`;:,)]*|(?<![\w-])--([a-z][a-z-]*)")
_on_command_line = False  # whether the caller is the command line rather than Python


@contextlib.contextmanager
def command_line_messages() -> Iterator[None]:
    """Name settings by their flags in messages, as the command line does; otherwise they have their Python names."""
    global _on_command_line
    _on_command_line, before = True, _on_command_line
    try:
        yield
    finally:
        _on_command_line = before


def for_caller(message: str, in_python: str | None = None) -> str:
    """A message that names settings by flags, in the language of the caller: in Python `in_python`, or with names such
    as batch_size for --batch-size."""
    if _on_command_line:
        return message
    return python_names(message if in_python is None else in_python)


def python_names(message: str) -> str:
    """A message with the Python names of the settings that it names by flags."""
    return FLAG.sub(lambda m: m[1].replace("-", "_") if m[1] else m[0], message)


class UserError(ValueError):
    """Invalid input; the message is one line, what is wrong and what to do. The command line exits with code 2.

    Messages are written with flags, --batch-size; callers from Python read batch_size.
    """

    def __str__(self) -> str:
        return for_caller(super().__str__())


class MetricUnavailable(Exception):
    """A metric cannot be computed for a run; the message is the reason."""

    def __str__(self) -> str:
        return for_caller(super().__str__())


def require(condition: bool, message: str) -> None:
    """Raise UserError with `message` unless `condition` holds (a NaN never does)."""
    if not condition:
        raise UserError(message)


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """`; did you mean ...?` for a mistyped word, or an empty text."""
    matches = difflib.get_close_matches(word, list(words), n=1)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def flag_name(field: str) -> str:
    """The command line flag of a settings field."""
    return "--" + field.replace("_", "-")


def one_line(text: object) -> str:
    """A message, such as another library's error, without line breaks."""
    return " ".join(str(text).split())


def reason(error: BaseException) -> str:
    """Why another library failed, on one line: its message, or the type of the error where it has none."""
    return one_line(error) or type(error).__name__


def unreadable(where: str, error: BaseException) -> UserError:
    """The error of a file, called `where`, that a library cannot read."""
    return UserError(
        f"{where} cannot be read ({reason(error)}): it is damaged, or another kind of file; get or create it again"
    )


def printable(name: object) -> str:
    """A file's name on one line, in characters that can be printed."""
    text = str(name).encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def shown(value: object) -> str:
    """A value from a file, shortened to one line for a message."""
    return _REPR.repr(value)


def require_folder(path: Path) -> None:
    """Raise UserError unless the folder of a file to write exists."""
    require(path.parent.is_dir(), f"cannot write {path}: its folder does not exist")


def is_whole(value: Any) -> bool:
    """Whether a value is an integer; a bool is not."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def require_count(name: str, value: Any, largest: int = 2**31, smallest: int = 1) -> None:
    """Raise UserError unless `value` is a whole number from `smallest` to `largest`."""
    require(is_whole(value), f"{flag_name(name)} is {shown(value)}; it must be a whole number")
    require(value >= smallest, f"{flag_name(name)} is {value}; it must be at least {smallest}")
    require(value <= largest, f"{flag_name(name)} is {value}; it must be at most {largest:,}")


def require_seed(value: Any, name: str = "seed") -> None:
    """Raise UserError unless `value` can seed every generator."""
    require(
        is_whole(value) and 0 <= value < 2**63,
        f"{flag_name(name)} is {shown(value)}; it must be 0 or a positive whole number",
    )


def parse_duration(text: str, name: str) -> float:
    """The seconds in "90s", "30m" or "1.5h". Raises UserError for other texts."""
    units = {"s": 1, "m": 60, "h": 3600}
    try:
        seconds = float(text[:-1]) * units[text[-1:]]
    except (KeyError, ValueError):
        seconds = 0.0
    require(0 < seconds < 1e9, f"{name} {text} is not a duration; give one such as 30m or 2h")
    return seconds


def parse_memory(text: str) -> int:
    """The bytes in "500MB" or "2GB". Raises UserError for other texts."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) *([kmgt])i?b?", text.strip().lower())
    if match is None or float(match[1]) == 0:
        raise UserError(f"--memory {text} is not a size; give one such as 500MB or 2GB")
    return int(float(match[1]) * 1024 ** (1 + "kmgt".index(match[2])))


def with_changes(settings: Settings, changes: Mapping[str, Any], owner: str) -> Settings:
    """`settings` with some fields replaced. Raises UserError for an unknown name or a value of another type."""
    return settings_from_dict(type(settings), {**dataclasses.asdict(settings), **changes}, owner)


def settings_from_dict(kind: type[Settings], values: Mapping[str, Any], owner: str) -> Settings:
    """A dataclass from JSON values. Raises UserError, naming `owner`, for unknown and missing keys and wrong types."""
    fields = _type_hints(kind)
    for name in values:
        if name not in fields:
            raise UserError(f"{owner} has no setting {shown(name)}{did_you_mean(name, fields)}")
    for name in fields:
        require(name in values, f"{owner} lacks the setting {name!r}")
    return kind(**{name: _checked(fields[name], values[name], name, owner) for name in values})


def record_from_dict(kind: type[Settings], values: Any, owner: str) -> Settings:
    """A dataclass from the JSON object of a file, whose unknown keys are ignored: a later version may have added them.

    Raises UserError, naming `owner`, for another JSON value, missing keys without a default, and wrong types.
    """
    if not isinstance(values, dict):
        raise UserError(f"{owner} is {shown(values)}; it must be an object")
    hints, known = _type_hints(kind), {}
    for field in dataclasses.fields(kind):
        if field.name in values:
            value = values[field.name]
            known[field.name] = _checked(hints[field.name], value, field.name, owner)
        elif field.default is field.default_factory is dataclasses.MISSING:
            raise UserError(f"{owner} lacks {field.name!r}")
    try:
        return kind(**known)
    except UserError as error:
        raise UserError(f"{owner}: {error}") from None


def _checked(annotation: Any, value: Any, name: str, owner: str) -> Any:
    converted = _convert(annotation, value)
    if converted is _WRONG:
        raise UserError(f"{owner}: {name} is {shown(value)}; it must be {_describe(annotation)}")
    return converted


_WRONG = object()
_type_hints = cache(
    typing.get_type_hints
)  # evaluates texts: slow, where it is for each line of a file


def _convert(annotation: Any, value: Any) -> Any:
    """`value` as the annotated type (an int serves as a float), or _WRONG."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any:
        return value
    if origin is Literal:
        return value if value in arguments else _WRONG
    if origin in (tuple, list):  # of any length
        if not isinstance(value, list | tuple):
            return _WRONG
        parts = origin(_convert(arguments[0], part) for part in value)
        return _WRONG if any(part is _WRONG for part in parts) else parts
    if origin is dict:  # of text
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            return _WRONG
        entries = {key: _convert(arguments[1], part) for key, part in value.items()}
        return _WRONG if any(part is _WRONG for part in entries.values()) else entries
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        return record_from_dict(annotation, value, annotation.__name__)
    if arguments:  # a union
        for argument in arguments:
            converted = _convert(argument, value)
            if converted is not _WRONG:
                return converted
        return _WRONG
    if isinstance(value, bool):
        return value if annotation is bool else _WRONG
    if annotation is float and isinstance(value, numbers.Real):
        try:
            return float(value)
        except OverflowError:
            return _WRONG
    if annotation is int and is_whole(value):
        return int(value)
    return value if type(value) is annotation else _WRONG


def _describe(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return " or ".join(map(str, arguments))
    if origin in (tuple, list):
        return f"a list, each {_describe(arguments[0])}"
    if origin is dict:
        return "an object" + (
            "" if arguments[1] is Any else f", each value {_describe(arguments[1])}"
        )
    if arguments:
        return " or ".join(map(_describe, arguments))
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    return names.get(annotation, "null")
