"""Sources of image files: a folder, a .zip or a .tar archive, each read sequentially in a fixed order."""

from __future__ import annotations

import contextlib
import os
import stat
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import IO, Any, Protocol

from ...settings.data import Pages
from ...support.console import ProgressBar
from ...support.errors import printable, require
from ..cache import stat_key
from ..formats.archives import archive_errors, check_member, complete_members
from ..formats.images import MAX_FILE_BYTES, BadImage, extensions, ignore_pillow_warnings
from ..formats.pages import EXTENSIONS, file_of_page, images_of, open_pages, pack, page_name

MAX_STACK_BYTES = 2**30  # of a file of pages or slices
MAX_DEPTH = 100  # folders in folders
MAX_VISITS = 100  # of a folder, by different links
TAR_EXTENSIONS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
ARCHIVES = (".zip", *TAR_EXTENSIONS)
TABLES = ("metadata.csv", "metadata.jsonl", "labels.csv", "labels.tsv")  # tables of images
TABLE_NAMES = (*TABLES, "metadata.parquet")  # of which the last is only named
WINDOWS = (0, 10, 11)  # systems of zip archives: MS-DOS, NTFS, VFAT


@dataclass(frozen=True)
class Entry:
    """An image file: its name relative to the source, with "/" between folders; `stamp` changes with its content."""

    name: str
    size: int
    stamp: str


class ImageSource(Protocol):
    """Image files in a fixed order."""

    path: Path

    @property
    def entries(self) -> list[Entry]: ...

    @property
    def tables(self) -> list[Entry]:
        """The files beside the images that may tell their labels, by their names."""
        ...

    @property
    def folders(self) -> set[str]: ...

    @property
    def key(self) -> Any:
        """A JSON value that changes whenever the files do."""
        ...

    def read(self, names: Collection[str]) -> Iterator[tuple[str, bytes | None]]:
        """Yield (name, content) of these files, in the order of the entries and tables; None where `is_too_large`."""
        ...


def open_source(path: Path) -> ImageSource:
    """Open a folder, an archive or an image file. Raises UserError if it is none of these, or damaged."""
    if path.is_dir():
        return Folder(path)
    if has_image_extension(path.name):
        return SingleFile(path)
    name = path.name.lower()
    if name.endswith(".zip"):
        return Zip(path)
    require(
        name.endswith(TAR_EXTENSIONS),
        f"{printable(path)} is not a folder of images or a .zip or .tar.gz archive of one",
    )
    return Tar(path)


def is_image(name: str) -> bool:
    """Whether a name is that of an image file, without a hidden part (such as the ._ copies of macOS)."""
    return has_image_extension(name) and not is_hidden(name)


def has_image_extension(name: str) -> bool:
    return name[name.rfind(".") :].lower() in extensions() or name.lower().endswith(".nii.gz")


def is_too_large(entry: Entry) -> bool:
    """Whether an image file is too large to read: stacks and volumes may be larger than others."""
    if entry.size <= MAX_FILE_BYTES:
        return False
    stack = entry.name.lower().endswith((".tif", ".tiff", ".nii", ".nii.gz"))
    return not stack or entry.size > MAX_STACK_BYTES


def is_table(name: str) -> bool:
    """Whether a name is that of a table of images, such as metadata.csv, without a hidden part."""
    base = name[name.rfind("/") + 1 :].lower()
    return base in TABLE_NAMES and not is_hidden(name)


def tables_beside(folder: Path) -> list[str]:
    """The names of the tables of labels beside a folder, which may be of its images."""
    names = ("labels.csv", "labels.tsv")
    return [n for n in names if folder.is_dir() and (folder.parent / n).is_file()]


def is_hidden(name: str) -> bool:
    path = f"/{name.removeprefix('./')}/"
    return "/." in path or "/__MACOSX/" in path


def check_unique_names(archive: Path, entries: list[Entry]) -> None:
    """Raise UserError for two members of one name, of which only the last could be read."""
    seen = set[str]()
    for entry in entries:
        require(
            entry.name not in seen,
            f"{printable(archive)} has two files called {printable(entry.name)!r}; create the archive again",
        )
        seen.add(entry.name)


def file_entry(name: str, status: os.stat_result) -> Entry:
    # The values of `stat_key`, faster: there may be a million files.
    return Entry(name, status.st_size, f"{status.st_mtime_ns} {status.st_ctime_ns}")


class Folder:
    """Image files at any depth below a folder, in order of name; `broken` names the links to nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: list[Entry] = []
        self.tables: list[Entry] = []
        self.broken: list[str] = []
        self.folders: set[str] = set()
        self.visits: Counter[tuple[int, int]] = Counter()  # of each folder, by device and inode
        self._walk(path, "", set())

    @property
    def key(self) -> Any:
        return [str(self.path), entries_key(self)]

    def _walk(self, folder: Path, prefix: str, ancestors: set[tuple[int, int]]) -> None:
        status = folder.stat()
        key = (status.st_dev, status.st_ino)
        if key in ancestors:  # a link to a folder above it
            return
        self.visits[key] += 1
        require(
            len(ancestors) < MAX_DEPTH and self.visits[key] <= MAX_VISITS,
            f"{printable(self.path)} has folders nested more than {MAX_DEPTH} deep, or one reached by more than "
            f"{MAX_VISITS} links: {printable(prefix[:80])}; leave these out",
        )
        with os.scandir(folder) as scan:
            children = sorted(scan, key=lambda child: child.name)
        for child in children:
            if child.name.startswith(".") or child.name == "__MACOSX":
                continue  # as is_hidden, but faster: there may be a million files
            name = prefix + child.name
            if child.is_symlink() and not os.path.exists(child.path):
                self.broken.append(name)
                continue
            if child.is_dir():
                self.folders.add(name)
                self._walk(Path(child.path), name + "/", ancestors | {key})
                continue
            image = has_image_extension(name)
            if (image or child.name.lower() in TABLE_NAMES) and child.is_file():
                entry = file_entry(name, child.stat())
                (self.entries if image else self.tables).append(entry)

    def read(self, names: Collection[str]) -> Iterator[tuple[str, bytes | None]]:
        for entry in (*self.entries, *self.tables):
            if entry.name in names:
                content = None if is_too_large(entry) else (self.path / entry.name).read_bytes()
                yield entry.name, content


class SingleFile:
    """One image file, which may have several pages."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries = [file_entry(path.name, path.stat())]
        self.tables: list[Entry] = []
        self.folders = set[str]()

    @property
    def key(self) -> Any:
        return [str(self.path), entries_key(self)]

    def read(self, names: Collection[str]) -> Iterator[tuple[str, bytes | None]]:
        for entry in self.entries:
            if entry.name in names:
                yield entry.name, None if is_too_large(entry) else self.path.read_bytes()


class Zip:
    """Image files in a .zip archive, read in place.

    Windows PowerShell writes backslashes between folders: they are folders in archives of Windows, and where no member
    has a slash.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: list[Entry] = []
        self.tables: list[Entry] = []
        self.folders: set[str] = set()
        self.members: dict[str, zipfile.ZipInfo] = {}  # by name, with "/" between folders
        with archive_errors(path), zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            no_slashes = not any("/" in member.filename for member in members)
            for member in members:
                name = member.filename
                if no_slashes or member.create_system in WINDOWS:
                    name = name.replace("\\", "/")
                check_member(path, name, stat.S_ISLNK(member.external_attr >> 16))
                if name.endswith("/"):
                    self.folders.add(name.rstrip("/"))
                    continue
                image = is_image(name)
                if image or is_table(name):
                    entry = Entry(name, member.file_size, str(member.CRC))
                    (self.entries if image else self.tables).append(entry)
                    self.members[name] = member
        check_unique_names(path, [*self.entries, *self.tables])
        self.folders = with_parents(self.folders, self.entries)

    @property
    def key(self) -> Any:
        return entries_key(self)

    def read(self, names: Collection[str]) -> Iterator[tuple[str, bytes | None]]:
        with archive_errors(self.path), zipfile.ZipFile(self.path) as archive:
            for entry in (*self.entries, *self.tables):
                if entry.name in names:
                    large = is_too_large(entry)
                    yield entry.name, None if large else archive.read(self.members[entry.name])


class Tar:
    """Image files in a .tar archive, compressed or not, opened by `open_file`; read in place, sequentially."""

    def __init__(self, path: Path, open_file: Callable[[], IO[bytes]] | None = None) -> None:
        self.path = path
        self.open_file = open_file or (lambda: path.open("rb"))

    @property
    def key(self) -> Any:
        # Not its entries: listing them would read the whole archive.
        return [str(self.path), *stat_key(self.path.stat())]

    @property
    def entries(self) -> list[Entry]:
        return self._listed[0]

    @property
    def tables(self) -> list[Entry]:
        return self._listed[1]

    @property
    def folders(self) -> set[str]:
        return self._listed[2]

    @cached_property
    def _listed(self) -> tuple[list[Entry], list[Entry], set[str]]:
        entries: list[Entry] = []
        tables: list[Entry] = []
        folders = set()
        with self._members() as (_, members):
            for member in members:
                check_member(self.path, member.name, member.issym() or member.islnk())
                if member.isdir():
                    folders.add(member.name)
                elif member.isreg() and ((image := is_image(member.name)) or is_table(member.name)):
                    entry = Entry(member.name, member.size, str(member.mtime))
                    (entries if image else tables).append(entry)
        check_unique_names(self.path, [*entries, *tables])
        return entries, tables, with_parents(folders, entries)

    def read(self, names: Collection[str]) -> Iterator[tuple[str, bytes | None]]:
        with self._members() as (archive, members):
            for member in members:
                content = archive.extractfile(member) if member.name in names else None
                if content is not None:
                    entry = Entry(member.name, member.size, "")
                    yield member.name, None if is_too_large(entry) else content.read()

    @contextlib.contextmanager
    def _members(self) -> Iterator[tuple[tarfile.TarFile, Iterator[tarfile.TarInfo]]]:
        with (
            archive_errors(self.path),
            self.open_file() as file,
            tarfile.open(fileobj=file) as archive,
        ):
            yield archive, complete_members(archive)


def entries_key(source: ImageSource) -> Any:
    """A key that changes with the entries, tables and folders of a source."""
    files = [[e.name, e.size, e.stamp] for e in (*source.entries, *source.tables)]
    return [files, sorted(source.folders)]


def leave_out_broken_links(source: ImageSource, skip_bad: bool, bar: ProgressBar) -> None:
    """Log the links of a folder that lead nowhere. Raises UserError where there are, unless `skip_bad`."""
    broken = getattr(source, "broken", [])
    if not broken:
        return
    first, count = printable(broken[0]), len(broken)
    others = f" ({count:,} are)" if count > 1 else ""
    require(
        skip_bad,
        f"{printable(source.path)}: {first} is a broken link{others}; remove it, or leave it out with --skip-bad",
    )
    bar.log(f"left out {count:,} broken link{'s' if count > 1 else ''}, first {first}")


def with_parents(folders: set[str], entries: list[Entry]) -> set[str]:
    """All folders of an archive, also those it does not list, without hidden ones."""
    parents = {str(p) for e in entries for p in PurePosixPath(e.name).parents}
    return {f for f in folders | parents if f != "." and not is_hidden(f)}


class PageSource:
    """The images of a source of files by the setting `pages`: with "all", one for each page of a file, called as
    "stack.tif page 1"; else one for each file, and a UserError for a file of several pages without a setting."""

    def __init__(self, source: ImageSource, pages: Pages | None) -> None:
        self.source, self.pages, self.path = source, pages, source.path

    @property
    def folders(self) -> set[str]:
        return self.source.folders

    @property
    def tables(self) -> list[Entry]:
        return self.source.tables

    @property
    def broken(self) -> list[str]:
        return getattr(self.source, "broken", [])

    @property
    def layout(self) -> Any:
        """The layout of a source that knows its own, None for others."""
        return getattr(self.source, "layout", None)

    @property
    def key(self) -> Any:
        return [self.source.key, self.pages]

    @property
    def entries(self) -> list[Entry]:
        if self.pages != "all":
            return self.source.entries
        return [
            Entry(name, entry.size // len(names), entry.stamp)
            for entry in self.source.entries
            for names in [self._names.get(entry.name, [entry.name])]
            for name in names
        ]

    @cached_property
    def _names(self) -> dict[str, list[str]]:
        """The names of the pages of each file that has several; reads the files that may."""
        if self.pages != "all":
            return {}
        names = [e.name for e in self.source.entries if e.name.lower().endswith(EXTENSIONS)]
        with ignore_pillow_warnings():
            contents = self.source.read(set(names))
            counts = {name: self._count(name, content) for name, content in contents}
        return {
            name: [page_name(name, i + 1) for i in range(count)]
            for name, count in counts.items()
            if count > 1
        }

    @staticmethod
    def _count(name: str, content: bytes | None) -> int:
        try:
            file = None if content is None else open_pages(name, content)
            return 1 if file is None else file.count
        except BadImage:  # said when it is decoded
            return 1

    def read(self, names: Collection[str]) -> Iterator[tuple[str, bytes | None]]:
        for name, content in self.source.read({file_of_page(name) for name in names}):
            if content is None:
                yield name, None
                continue
            try:
                file = open_pages(name, content)
                images = [] if file is None else images_of(name, file, self.pages)
                if file is not None and len(images) > 1 and name not in self._names:
                    raise BadImage(
                        f"it has {len(images):,} {file.noun}, which its name does not tell"
                    )
            except BadImage as error:
                file, images = None, []
                content = pack(error)
            pages = self._names.get(name, [name])
            if file is None:
                yield from ((page, content) for page in pages if page in names)
            else:
                for page, image in zip(pages, images, strict=True):
                    if page in names:
                        yield page, pack(image)
