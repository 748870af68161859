"""The cache folder of downloads and decoded images, and its locks between processes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import filelock
import platformdirs

from ..support.atomic import write_bytes
from ..support.console import ProgressBar
from ..support.errors import UserError, record_from_dict

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Record = TypeVar("Record", bound="DataclassInstance")


def cache_dir() -> Path:
    """The folder in the environment variable VAEKIT_CACHE, or else the user's cache folder."""
    named = os.environ.get("VAEKIT_CACHE")
    return Path(named).expanduser() if named else Path(platformdirs.user_cache_dir("vaekit"))


def stat_key(status: os.stat_result) -> list[int]:
    """Numbers that change with the content of a file: programs often set the modification time, but not the change
    time."""
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


@contextlib.contextmanager
def cache_lock(path: Path, bar: ProgressBar) -> Iterator[None]:
    """Let one process at a time create `path`; another logs that it waits. A killed process releases the lock."""
    name = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:16]
    folder = cache_dir() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / f"{name}.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        bar.log(f"waiting for another process to create {path.name}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def digest_of(source: Any) -> str:
    """The hash of a JSON value."""
    return hashlib.sha256(json.dumps(source, sort_keys=True).encode()).hexdigest()


def cache_path(stem: str, source: Any, name: str = "decoded/{}.safetensors") -> Path:
    """The file in the cache of `source` (any JSON value that identifies it)."""
    digest = digest_of(source)[:16]
    clean = re.sub(r"[^\w.-]+", "-", stem).encode()[:120].decode(errors="ignore")
    return cache_dir() / name.format(f"{clean}-{digest}")


def cached_file(stem: str, source: Any, make: Callable[[Path], None], bar: ProgressBar) -> Path:
    """The cached file of `source`; `make` creates it if it does not exist."""
    path = cache_path(stem, source)
    if not path.exists():
        with cache_lock(path, bar):
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                for partial in path.parent.glob(f"{path.name}.*.part"):
                    partial.unlink()  # left by a killed process
                make(path)
    return path


def cached_record(stem: str, source: Any, kind: type[Record], find: Callable[[], Record]) -> Record:
    """The cached dataclass of `source`; `find` finds it if there is none, or a damaged one."""
    path = cache_path(stem, source, "inspected/{}.json")
    try:
        return record_from_dict(kind, json.loads(path.read_bytes()), str(path))
    except (OSError, ValueError, RecursionError, UserError):
        record = find()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, json.dumps(asdict(record)).encode())
    return record
