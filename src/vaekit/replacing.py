"""Files that are replaced in one step: a kill or a full disk leaves the old one or the new one, whole."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


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
