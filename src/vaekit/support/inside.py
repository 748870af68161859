"""Reading the files of a folder that may come from anywhere: no link leads out of it, no device or pipe is opened."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from .errors import printable, require

MAX_JSON_BYTES = 2**24  # a file or a line; parsing takes up to 20 times as much memory


def path_inside(folder: Path, name: str) -> Path:
    """The path of `name` in a folder, which need not exist.

    Raises UserError where symbolic links lead out of the folder or nowhere, and for a device, a pipe or a socket.
    """
    path = folder / name
    real, root = os.path.realpath(path), os.path.realpath(folder)
    require(
        real.startswith(os.path.join(root, "")),
        f"{printable(path)} is a link out of {printable(folder)}, which is not followed; replace it by a copy",
    )
    try:
        mode = os.lstat(real).st_mode
    except FileNotFoundError:
        mode = stat.S_IFREG if not path.is_symlink() else stat.S_IFLNK
    require(
        stat.S_ISREG(mode) or stat.S_ISDIR(mode),
        f"{printable(path)} is not a file (a device, a pipe or a link that leads nowhere); remove it",
    )
    return path


def read_inside(folder: Path, name: str, limit: int = MAX_JSON_BYTES) -> bytes:
    """The content of a file in a folder. Raises UserError as `path_inside`, and for more than `limit` bytes."""
    path = path_inside(folder, name)
    with path.open("rb") as file:
        content = file.read(limit + 1)
    require(
        len(content) <= limit,
        f"{printable(path)} is larger than {limit >> 20} MB, so it is not what its name says; restore it",
    )
    return content
