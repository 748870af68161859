"""Where downloads and decoded images are kept, and how two processes share the work."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock
import platformdirs

from ..support.console import Shown


def cache_dir() -> Path:
    """The folder that the environment variable VAEKIT_CACHE names, or else the user's own for caches."""
    named = os.environ.get("VAEKIT_CACHE")
    return Path(named).expanduser() if named else Path(platformdirs.user_cache_dir("vaekit"))


@contextlib.contextmanager
def locked(path: Path, shown: Shown) -> Iterator[None]:
    """One process at a time makes `path`; another waits, and says so. A killed one lets go."""
    name = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:16]
    folder = cache_dir() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / f"{name}.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        shown.say(f"waiting for another process that makes {path.name}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def cached(stem: str, source: Any, make: Callable[[Path], None], shown: Shown) -> Path:
    """The file made from `source`, anything that JSON can say; made where it is not there yet."""
    digest = hashlib.sha256(json.dumps(source, sort_keys=True).encode()).hexdigest()[:16]
    clean = re.sub(r"[^\w.-]+", "-", stem).encode()[:120].decode(errors="ignore")
    path = cache_dir() / "decoded" / f"{clean}-{digest}.safetensors"
    if not path.exists():
        with locked(path, shown):
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                for left in path.parent.glob(f"{path.name}.*.part"):
                    left.unlink()  # of a process that was killed
                make(path)
    return path
