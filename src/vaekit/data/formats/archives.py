"""Archives (.zip, .tar) from anybody: what is refused, and errors of their libraries."""

from __future__ import annotations

import contextlib
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from ...support.errors import UserError, printable, reason, require


def check_member(archive: Path, name: str, is_link: bool) -> None:
    """Raise UserError for a link, or a member whose path leads outside the archive."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    drive = bool(parts) and re.fullmatch("[A-Za-z]:", parts[0]) is not None
    outside = name.startswith("/") or ".." in parts or drive
    require(
        not outside and not is_link,
        f"{printable(archive)} has the unsafe member {printable(name)!r}, a "
        f"{'link' if is_link else 'path outside it'}; nothing was read: get the archive again from a source you trust",
    )


def complete_members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the members; raises ValueError for an archive truncated between two members, which tarfile accepts."""
    yield from archive
    assert archive.fileobj is not None
    archive.fileobj.seek(archive.offset)
    if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise ValueError("it is truncated")


@contextlib.contextmanager
def archive_errors(path: Path) -> Iterator[None]:
    """Turn errors of archive libraries into a UserError."""
    try:
        yield
    except (UserError, FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # libraries raise anything on damaged files
        raise UserError(f"{printable(path)} is damaged ({reason(error)}); get it again") from None
