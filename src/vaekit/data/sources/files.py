"""Where image files lie: a folder, a .zip or a .tar archive, all read in one go and in one order."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import tarfile
import zipfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import IO, Any, Protocol

from ...support.errors import UserError, one_line, printable, require
from .images import MOST_BYTES, endings

TAR_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


@dataclass(frozen=True)
class Entry:
    """An image file by its name below the source, with "/" between folders; `stamp` changes where its content does."""

    name: str
    size: int
    stamp: str


class Source(Protocol):
    """Image files in a fixed order."""

    path: Path

    @property
    def entries(self) -> list[Entry]: ...

    @property
    def folders(self) -> set[str]: ...

    @property
    def key(self) -> Any:
        """What differs where the files do; JSON can say it."""
        ...

    def read(self, names: Collection[str]) -> Iterator[tuple[str, bytes | None]]:
        """The content of these files, in the order of the entries; None for one of over MOST_BYTES."""
        ...


def open_source(path: Path) -> Source:
    """Raises UserError for what is no folder or archive, or a damaged one."""
    if path.is_dir():
        return Folder(path)
    name = path.name.lower()
    if name.endswith(".zip"):
        return Zip(path)
    require(
        name.endswith(TAR_ENDINGS),
        f"{printable(path)} is no folder of images, and no .zip or .tar.gz of one",
    )
    return Tar(path)


def is_image(name: str) -> bool:
    """Whether a name is that of an image file, none of it hidden (as the ._ copies that macOS makes are)."""
    return has_ending(name) and not is_hidden(name)


def has_ending(name: str) -> bool:
    return name[name.rfind(".") :].lower() in endings()


def is_hidden(name: str) -> bool:
    path = f"/{name.removeprefix('./')}/"
    return "/." in path or "/__MACOSX/" in path


def check_member(archive: Path, name: str, is_link: bool) -> None:
    """UserError for a member that would lie, or point, outside its archive."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    drive = bool(parts) and re.fullmatch("[A-Za-z]:", parts[0]) is not None
    outside = name.startswith("/") or ".." in parts or drive
    require(
        not outside and not is_link,
        f"{printable(archive)} has the member {printable(name)!r}, a "
        f"{'link' if is_link else 'path out of it'}; nothing was read: get the archive again from a source you trust",
    )


def check_names(archive: Path, entries: list[Entry]) -> None:
    """UserError for two members of one name, of which only the last could be read."""
    seen = set[str]()
    for entry in entries:
        require(
            entry.name not in seen,
            f"{printable(archive)} has two files called {printable(entry.name)!r}; pack it again",
        )
        seen.add(entry.name)


class Folder:
    """Image files at any depth below a folder, by name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: list[Entry] = []
        self.folders: set[str] = set()
        self._walk(path, "", set())

    @property
    def key(self) -> Any:
        return [str(self.path), entries_key(self)]

    def _walk(self, folder: Path, below: str, above: set[tuple[int, int]]) -> None:
        here = folder.stat()
        key = (here.st_dev, here.st_ino)
        if key in above:  # a link to a folder that it lies in
            return
        with os.scandir(folder) as found:
            children = sorted(found, key=lambda child: child.name)
        for child in children:
            if child.name.startswith(".") or child.name == "__MACOSX":
                continue  # as is_hidden says, but there may be a million of them
            name = below + child.name
            if child.is_dir():
                self.folders.add(name)
                self._walk(Path(child.path), name + "/", above | {key})
            elif has_ending(name) and child.is_file():
                about = child.stat()
                # Modification times can be set, and often are; change times cannot.
                stamp = f"{about.st_mtime_ns} {about.st_ctime_ns}"
                self.entries.append(Entry(name, about.st_size, stamp))

    def read(self, names: Collection[str]) -> Iterator[tuple[str, bytes | None]]:
        for entry in self.entries:
            if entry.name in names:
                large = entry.size > MOST_BYTES
                yield entry.name, None if large else (self.path / entry.name).read_bytes()


class Zip:
    """Image files in a .zip archive, read in place."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: list[Entry] = []
        self.folders: set[str] = set()
        with damaged(path), zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                check_member(path, member.filename, stat.S_ISLNK(member.external_attr >> 16))
                if member.is_dir():
                    self.folders.add(member.filename.rstrip("/"))
                elif is_image(member.filename):
                    entry = Entry(member.filename, member.file_size, str(member.CRC))
                    self.entries.append(entry)
        check_names(path, self.entries)
        self.folders = with_parents(self.folders, self.entries)

    @property
    def key(self) -> Any:
        return entries_key(self)

    def read(self, names: Collection[str]) -> Iterator[tuple[str, bytes | None]]:
        with damaged(self.path), zipfile.ZipFile(self.path) as archive:
            for entry in self.entries:
                if entry.name in names:
                    yield entry.name, None if entry.size > MOST_BYTES else archive.read(entry.name)


class Tar:
    """Image files in a .tar archive, compressed or not, which `opened` gives; read in place, from front to end."""

    def __init__(self, path: Path, opened: Callable[[], IO[bytes]] | None = None) -> None:
        self.path = path
        self.opened = opened or (lambda: path.open("rb"))

    @property
    def key(self) -> Any:
        about = self.path.stat()  # to list its files is to read it all
        return [str(self.path), about.st_size, about.st_mtime_ns, about.st_ctime_ns]

    @property
    def entries(self) -> list[Entry]:
        return self._listed[0]

    @property
    def folders(self) -> set[str]:
        return self._listed[1]

    @cached_property
    def _listed(self) -> tuple[list[Entry], set[str]]:
        entries, folders = [], set()
        with self._members() as (_, members):
            for member in members:
                check_member(self.path, member.name, member.issym() or member.islnk())
                if member.isdir():
                    folders.add(member.name)
                elif member.isreg() and is_image(member.name):
                    entries.append(Entry(member.name, member.size, str(member.mtime)))
        check_names(self.path, entries)
        return entries, with_parents(folders, entries)

    def read(self, names: Collection[str]) -> Iterator[tuple[str, bytes | None]]:
        with self._members() as (archive, members):
            for member in members:
                content = archive.extractfile(member) if member.name in names else None
                if content is not None:
                    yield member.name, None if member.size > MOST_BYTES else content.read()

    @contextlib.contextmanager
    def _members(self) -> Iterator[tuple[tarfile.TarFile, Iterator[tarfile.TarInfo]]]:
        with damaged(self.path), self.opened() as file, tarfile.open(fileobj=file) as archive:
            yield archive, to_the_end(archive)


def to_the_end(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members; ValueError where the archive was cut off, of which tarfile says nothing between two members."""
    yield from archive
    assert archive.fileobj is not None
    archive.fileobj.seek(archive.offset)
    if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise ValueError("it is cut off")


def entries_key(source: Source) -> Any:
    return [[[e.name, e.size, e.stamp] for e in source.entries], sorted(source.folders)]


def with_parents(folders: set[str], entries: list[Entry]) -> set[str]:
    """All folders of an archive, which need not list them, without hidden ones."""
    every = folders | {str(p) for e in entries for p in PurePosixPath(e.name).parents}
    return {f for f in every if f != "." and not is_hidden(f)}


@contextlib.contextmanager
def damaged(path: Path) -> Iterator[None]:
    """What a library says of an archive becomes a UserError."""
    try:
        yield
    except (UserError, FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # libraries raise anything on damaged files
        reason = one_line(error) or type(error).__name__
        raise UserError(f"{printable(path)} is damaged ({reason}); get it again") from None
