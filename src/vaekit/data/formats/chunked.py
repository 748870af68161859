"""Arrays in HDF5 and zarr files, through `h5py` and `zarr`: read slice by slice, never whole.

A path names the file and may name an array or a group inside: `scans.h5:/raw/images`. Such files are data, not
programs: links to other files, virtual arrays and filters that are loaded from elsewhere are refused.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ...support.errors import UserError, printable, require, unreadable
from ..cache import stat_key

HDF5, ZARR = (".h5", ".hdf5"), (".zarr", ".zarr.zip")
INSIDE = re.compile(r"(.+\.(?:h5|hdf5|zarr|zarr\.zip))(?::([\\/].*)?)?", re.IGNORECASE | re.DOTALL)
# gzip, shuffle, fletcher32, szip, nbit, scaleoffset of HDF5 itself, LZF of h5py; others are libraries to load.
HDF5_FILTERS = {1, 2, 3, 4, 5, 6, 32000}
# Codecs of zarr that only compress numbers; others may run code, such as pickle.
ZARR_CODECS = {
    "bytes", "vlen-utf8", "transpose", "crc32c", "sharding_indexed", "blosc", "gzip", "zstd",
    *(prefix + name for prefix in ("", "numcodecs.") for name in (
        "zlib", "bz2", "lzma", "lz4", "delta", "shuffle", "fixedscaleoffset", "quantize"
    )),
}  # fmt: skip
# Attributes by which some programs store other values than they mean (the CF conventions of netCDF).
CONVENTIONS = ("scale_factor", "add_offset", "_FillValue", "missing_value")
MAX_ARRAYS = 10_000
MAX_DEPTH = 32  # groups in groups
MAX_LISTED = 6
MAX_BYTES_ANYWAY = 2**28  # an array may be this large, however little of it is stored
MAX_RATIO = 1000  # of an array's bytes to those stored
MAX_CHUNK_BYTES = 2**30
Roles = Callable[[list[str]], Mapping[str, tuple[str, str]] | None]


class ChunkedArray:
    """An array in a file, of which a slice reads only its part. Reading raises UserError where the file is damaged."""

    def __init__(self, array: Any, where: str) -> None:
        self.array, self.where = array, where
        self.shape = shape_of(array)
        dtype = np.dtype(array.dtype)
        self.dtype = dtype.newbyteorder("=") if dtype.kind in "buif" else np.dtype(object)
        self.not_applied = [name for name in CONVENTIONS if name in array.attrs]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> np.ndarray:
        with read_errors(self.where):
            return np.asarray(self.array[key]).astype(self.dtype, copy=False)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)


@contextlib.contextmanager
def read_errors(where: str) -> Iterator[None]:
    """Turn errors of the libraries, which raise anything on damaged files, into a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        system = isinstance(error, FileNotFoundError | PermissionError) and error.errno is not None
        if system:  # zarr has errors of its own of this kind, for what is damaged
            raise
        raise unreadable(where, error) from None


def split_path(path: Path) -> tuple[Path, str] | None:
    """The file and the path inside it ("" for all of it); None for any other path. The colon of a Windows drive is
    none that divides: it has no extension before it."""
    match = INSIDE.fullmatch(str(path))
    if match is None:
        return None
    inside = PurePosixPath((match[2] or "").replace("\\", "/").strip("/"))
    return Path(match[1]), "/".join(inside.parts)


def is_chunked(path: Path) -> bool:
    """Whether a path is that of an HDF5 or zarr file, or of something inside one."""
    return split_path(path) is not None


def file_of(path: Path) -> Path:
    """The file of a path that may lead into it."""
    parts = split_path(path)
    return path if parts is None else parts[0]


def check_inside(path: Path) -> None:
    """Raise UserError for a path that leads out of its file again."""
    parts = split_path(path)
    require(
        parts is None or ".." not in PurePosixPath(parts[1]).parts,
        f"{printable(path)} has .. inside the file; give the path from its root",
    )


def files_key(path: Path) -> list[Any]:
    """A JSON value that changes with the content: the files of a zarr folder, or the one file."""
    file = file_of(path)
    return [[name, *stat_key(status)] for name, status in sorted(_files(file))]


def _files(path: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Names and statuses of the files of a file or folder. Raises UserError for links, which may lead anywhere."""
    if path.is_file():
        yield str(path), path.stat()
        return
    with os.scandir(path) as scan:
        for entry in scan:
            require(
                not entry.is_symlink() and (entry.is_file() or entry.is_dir()),
                f"{printable(entry.path)} is a link, or no file; a zarr folder must hold its files itself",
            )
            if entry.is_dir():
                yield from _files(Path(entry.path))
            else:
                yield entry.path, entry.stat()


def select_arrays(path: Path, roles: Roles) -> dict[str, Any]:
    """The arrays of a path by names that `roles` understands: those of a group whose names it understands, or the only
    array with three axes or more, or the one that the path names; with the labels beside it.

    Raises UserError, with the arrays that there are, where these are not clear.
    """
    parts = split_path(path)
    assert parts is not None
    file, inside = parts
    require(file.exists(), f"there is no file or folder {printable(file)}")
    with read_errors(printable(file)):
        opened = open_hdf5 if file.name.lower().endswith(HDF5) else open_zarr
        arrays = dict(sorted(opened(file, inside).items()))
        return _selected(file, inside, arrays, roles)


def _selected(file: Path, inside: str, arrays: Mapping[str, Any], roles: Roles) -> dict[str, Any]:
    where = printable(file)
    if inside in arrays:
        return _with_labels(where, arrays, inside, roles)
    direct = {
        name: a
        for name, a in arrays.items()
        if _parent(name) == inside and (is_numeric(a) or is_text_of_labels(name, a, roles))
    }
    if roles([_leaf(name) for name in direct]):
        return {_leaf(name): checked(where, name, array, roles) for name, array in direct.items()}
    images = [name for name, a in arrays.items() if len(shape_of(a)) >= 3 and is_numeric(a)]
    if len(images) == 1:
        return _with_labels(where, arrays, images[0], roles)
    listed = [f"/{printable(n)} {shape_of(a)} {a.dtype}" for n, a in arrays.items()]
    more = f" and {len(listed) - MAX_LISTED} more" if len(listed) > MAX_LISTED else ""
    group = f"{where}:/{printable(inside)}" if inside else where
    raise UserError(
        f"{group} has {'several arrays' if images else 'no array of images'}: "
        f"{', '.join(listed[:MAX_LISTED]) or '(none)'}{more}; choose one with three axes or more, as "
        f"--data {where}:/{printable(images[0]) if images else 'images'}"
    )


def _parent(name: str) -> str:
    return name.rpartition("/")[0]


def _leaf(name: str) -> str:
    return name.rpartition("/")[2]


def shape_of(array: Any) -> tuple[int, ...]:
    return tuple(map(int, array.shape or ()))  # None, of an empty array of HDF5


def is_numeric(array: Any) -> bool:
    return array.dtype.kind in "buif"


def is_text_of_labels(name: str, array: Any, roles: Roles) -> bool:
    """Whether an array holds a text for each image, and is called as labels are."""
    found = roles([_leaf(name), "train_images"])
    role = None if found is None else found[_leaf(name)][1]
    return role == "labels" and array.dtype.kind in "SUOT" and len(shape_of(array)) == 1


def _with_labels(where: str, arrays: Mapping[str, Any], name: str, roles: Roles) -> dict[str, Any]:
    """An array as "images", and "labels" where its group has labels that belong to it."""

    def role(other: str) -> tuple[str, str]:
        for others in ([], ["train_images"]):
            found = roles([_leaf(other), *others])
            if found:
                return found[_leaf(other)]
        return ("train", "")

    wanted = (role(name)[0], "labels")
    beside = [n for n in arrays if n != name and _parent(n) == _parent(name)]
    labels = [n for n in beside if role(n) == wanted]
    selected = {"images": checked(where, name, arrays[name])}
    if len(labels) == 1:
        selected["labels"] = checked(where, labels[0], arrays[labels[0]], roles)
    return selected


def checked(where: str, name: str, array: Any, roles: Roles | None = None) -> ChunkedArray:
    """An array that is safe to read; with `roles`, labels may be texts. Raises UserError."""
    where, shape = f"{where}:/{printable(name)}", shape_of(array)
    text = roles is not None and is_text_of_labels(name, array, roles)
    require(
        (is_numeric(array) or text) and len(shape) >= 1 and math.prod(shape) > 0,
        f"{where} has the shape {shape} and type {array.dtype}; images and labels must be numbers",
    )
    result = ChunkedArray(array, where)
    stored, chunk = (_check_hdf5 if hasattr(array, "is_virtual") else _check_zarr)(array, where)
    require(
        result.nbytes <= max(MAX_BYTES_ANYWAY, MAX_RATIO * stored)
        and math.prod(chunk) * result.dtype.itemsize <= MAX_CHUNK_BYTES,
        f"{where} has the shape {result.shape} in chunks of {chunk}, but only {stored:,} bytes are stored; if this is "
        "intended, store it without compression, in chunks of a few images",
    )
    return result


# HDF5


def open_hdf5(path: Path, inside: str) -> dict[str, Any]:
    """All arrays of an HDF5 file by path, below the group `inside`; those beside it, where it is an array.

    Raises UserError for a damaged file, or where there is no such thing inside, or only a link.
    """
    where = printable(path)
    try:
        import h5py
    except ImportError:
        raise UserError(f"{where} needs h5py: pip install 'vaekit[science]'") from None
    require(path.is_file(), f"{where} is not a file")
    parent = node = h5py.File(path, "r")
    names = PurePosixPath(inside).parts
    for depth, name in enumerate(names):
        label = f"{where}:/{printable('/'.join(names[: depth + 1]))}"
        parent, node = node, _hard_child(node, name, label)
    is_array = isinstance(node, h5py.Dataset)
    prefix = "".join(f"{name}/" for name in (names[:-1] if is_array else names))
    found: dict[str, Any] = {}
    _walk_hdf5(h5py, parent if is_array else node, prefix, found, set(), where)
    return found


def _hard_child(group: Any, name: str, where: str) -> Any:
    """The array or group of a name, in the file itself. Raises UserError."""
    link = group.get(name, getlink=True) if hasattr(group, "keys") else None
    if link is None:
        names = (
            ", ".join(map(printable, list(group)[:MAX_LISTED])) if hasattr(group, "keys") else ""
        )
        raise UserError(f"there is no {where}; there are: {names or '(none)'}")
    require(
        type(link).__name__ == "HardLink",
        f"{where} is a link to {printable(getattr(link, 'path', '?'))}, and only what is in the file itself is read; "
        "give the path of the array itself",
    )
    return group[name]


def _walk_hdf5(
    h5py: Any, group: Any, prefix: str, found: dict[str, Any], seen: set[int], where: str
) -> None:
    address = h5py.h5o.get_info(group.id).addr
    if address in seen:
        return
    seen.add(address)
    require(
        len(found) + len(seen) <= MAX_ARRAYS and prefix.count("/") <= MAX_DEPTH,
        f"{where} has over {MAX_ARRAYS:,} arrays and groups, or too deep ones; name one, as --data {where}:/images",
    )
    for name in group:
        if type(group.get(name, getlink=True)).__name__ != "HardLink":
            continue
        child = group[name]
        if isinstance(child, h5py.Dataset):
            found[prefix + name] = child
        elif isinstance(child, h5py.Group):
            _walk_hdf5(h5py, child, f"{prefix}{name}/", found, seen, where)


def _check_hdf5(array: Any, where: str) -> tuple[int, tuple[int, ...]]:
    """The stored bytes and the shape of a chunk. Raises UserError for values in other files, and unknown filters."""
    require(
        not array.is_virtual and not array.external,
        f"{where} has its values in other files, which are not read; copy them into one file",
    )
    properties = array.id.get_create_plist()
    filters = [properties.get_filter(i) for i in range(properties.get_nfilters())]
    for number, _, _, name in filters:
        require(
            number in HDF5_FILTERS,
            f"{where} is compressed by {printable(name.decode(errors='replace'))[:40]!r}, which HDF5 itself cannot "
            "read; compress it by gzip, or not at all",
        )
    return array.id.get_storage_size(), array.chunks or (1,)


# Zarr


def open_zarr(path: Path, inside: str) -> dict[str, Any]:
    """As `open_hdf5`, of a zarr folder or a zip file of one, in format 2 or 3."""
    where = printable(path)
    try:
        import zarr
    except ImportError:
        raise UserError(f"{where} needs zarr: pip install 'vaekit[science]'") from None
    require(
        path.is_dir() or path.name.lower().endswith(".zip"),
        f"{where} is not a zarr folder, or a .zarr.zip file",
    )
    total = sum(status.st_size for _, status in _files(path))
    if path.is_dir():
        store: Any = zarr.storage.LocalStore(path, read_only=True)
    else:
        store = zarr.storage.ZipStore(path, mode="r", read_only=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other files in the folder
        root = zarr.open(store=store, mode="r")
        if isinstance(root, zarr.Array):
            found = {"": _Zarr(root, total)}
        else:
            members = root.members(max_depth=MAX_DEPTH)
            found = {n: _Zarr(m, total) for n, m in members if isinstance(m, zarr.Array)}
    below = {n: a for n, a in found.items() if n.startswith(f"{inside}/") or not inside}
    if inside in found:
        return {n: a for n, a in found.items() if _parent(n) == _parent(inside)}
    names = ", ".join(printable(name) for name in [*found][:MAX_LISTED])
    require(
        bool(below) or not inside,
        f"there is no {where}:/{printable(inside)}; there are: {names or '(none)'}",
    )
    return below


class _Zarr:
    """A zarr array, and the bytes of all files of its folder."""

    def __init__(self, array: Any, stored: int) -> None:
        self.array, self.stored = array, stored
        self.shape, self.dtype, self.attrs = array.shape, np.dtype(array.dtype), array.attrs

    def __getitem__(self, key: Any) -> Any:
        return self.array[key]


def _check_zarr(array: _Zarr, where: str) -> tuple[int, tuple[int, ...]]:
    """The stored bytes and the shape of a chunk. Raises UserError for codecs that do more than compress."""
    metadata = array.array.metadata.to_dict()
    keys = ("codecs", "filters", "compressor")
    for name in _codec_names([metadata.get(key) for key in keys]):
        require(
            name in ZARR_CODECS,
            f"{where} is stored by {printable(name)[:40]!r}, which is not read; store it by zstd, blosc or gzip",
        )
    shape = array.array.shards or array.array.chunks
    return array.stored, tuple(map(int, shape))


def _codec_names(value: Any) -> Iterator[str]:
    """The names of codecs in zarr's metadata, also those inside others."""
    if isinstance(value, list | tuple):
        for item in value:
            yield from _codec_names(item)
    elif isinstance(value, dict):
        name = value.get("name", value.get("id"))
        if name is not None:
            yield str(name)
        configuration = value.get("configuration", {})
        if isinstance(configuration, dict):
            yield from _codec_names([configuration.get(k) for k in ("codecs", "index_codecs")])
