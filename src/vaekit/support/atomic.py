"""Files that are replaced in one step: a kill or a full disk leaves the old one or the new one, whole."""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from .errors import UserError, one_line


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file to write, which takes the place of `path` when all went well; else nothing is left of it.

    An OSError of writing names `path`; one of another file, which the content came from, stays as it is.
    """
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")  # two writers do not meet
    try:
        with part.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        settle(path.parent)
    except OSError as error:
        if error.filename not in (None, str(part)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        part.unlink(missing_ok=True)


def settle(folder: Path) -> None:
    """See to it that new names in a folder outlast a power failure, where the system can."""
    if os.name == "posix":
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def parse_json(content: bytes, where: str) -> dict[str, Any]:
    """A JSON object; UserError names `where` it is not one."""
    try:
        parsed = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is damaged ({one_line(error)})") from None
    if not isinstance(parsed, dict):
        raise UserError(f"{where} is damaged (no JSON object)")
    return parsed


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=2, default=str, allow_nan=False)
    write(path, (text + "\n").encode())


def plain(settings: Any) -> dict[str, Any]:
    """A dataclass as JSON gives it back."""
    return json.loads(json.dumps(asdict(settings)))


def write(path: Path, content: bytes) -> None:
    """Replace a file in one step: at any moment the old or the new content is there whole."""
    with replacing(path) as file:
        file.write(content)
