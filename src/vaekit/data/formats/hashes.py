"""The hash of a file, which says whether it is the original."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ...support.errors import printable, require


def file_digest(path: Path, like: str) -> str:
    """The hash of a file as `algorithm:hex`, with the algorithm of `like`."""
    algorithm = like.partition(":")[0]
    with path.open("rb") as file:
        return f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()}"


def check_file(path: Path, digest: str) -> Path:
    """Return `path`. Raises UserError unless the file exists and has this hash."""
    require(path.is_file(), f"{printable(path)} is missing; put the data set's file there")
    require(
        file_digest(path, digest) == digest,
        f"{printable(path)} is not the original file (its hash differs); remove it, and get it again",
    )
    return path
