"""Atomic replacement of files: an interruption or a full disk leaves either the old or the new one intact."""

from __future__ import annotations

import contextlib
import json
import math
import os
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from .errors import UserError, one_line

MAX_DEPTH = 16  # levels of objects and lists in a JSON file


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """A new file to write, which replaces `path` on success and is removed on failure.

    An OSError in writing names `path`; one from a file that is read meanwhile is left unchanged.
    """
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")  # unique for each writer
    try:
        with part.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        fsync_folder(path.parent)
    except OSError as error:
        if error.filename not in (None, str(part)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        part.unlink(missing_ok=True)


def fsync_folder(folder: Path) -> None:
    """Make new names in a folder survive a power failure, where the system can."""
    if os.name == "posix":
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def parse_json(content: bytes, where: str) -> dict[str, Any]:
    """Parse a JSON object; NaN and infinities, which JSON lacks, become null.

    Raises UserError, which names `where`, for anything else, for numbers beyond those of floats, and for values nested
    more than MAX_DEPTH deep.
    """
    try:
        parsed = json.loads(
            content, parse_constant=lambda _: None, parse_float=_finite, parse_int=_whole
        )
        _check_depth(parsed, MAX_DEPTH)
    except RecursionError:
        raise UserError(f"{where} is damaged (its values are nested too deep)") from None
    except ValueError as error:
        raise UserError(f"{where} is damaged ({one_line(error)})") from None
    if not isinstance(parsed, dict):
        raise UserError(f"{where} is damaged (not a JSON object)")
    return parsed


def _finite(text: str) -> float:
    if math.isinf(float(text)):
        raise ValueError(f"the number {text[:20]} is too large")
    return float(text)


def _whole(text: str) -> int:
    _finite(text)
    return int(text)


def _check_depth(value: Any, levels: int) -> None:
    """Raise ValueError where `value` has more than so many levels of objects and lists."""
    if isinstance(value, dict | list):
        if levels == 0:
            raise ValueError("its values are nested too deep")
        for part in value.values() if isinstance(value, dict) else value:
            _check_depth(part, levels - 1)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a JSON file atomically; values that JSON lacks are written as text."""
    write_bytes(path, json_bytes(content))


def json_bytes(content: Mapping[str, Any]) -> bytes:
    """The content of a JSON file; values that JSON lacks become text."""
    return (json.dumps(content, indent=2, default=str, allow_nan=False) + "\n").encode()


def as_json(settings: Any) -> dict[str, Any]:
    """The values of a dataclass after a round trip through JSON."""
    return json.loads(json.dumps(asdict(settings)))


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file atomically."""
    with atomic_write(path) as file:
        file.write(content)
