"""Formats of single data sets: bits as text (.amat), MATLAB matrices, CIFAR-10 records."""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...support.errors import printable, require
from .archives import archive_errors, check_member, complete_members
from .hashes import check_file

CIFAR_FILES = (*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin")
CIFAR_RECORD = 1 + 3 * 32 * 32  # a label, then red, green and blue
MAX_MEMBER_BYTES = 2**28


def read_amat(path: Path, pixels: int) -> np.ndarray:
    """Read bits as text, one line per image: (N, pixels), uint8, 0 or 1. Raises UserError."""
    content = np.frombuffer(path.read_bytes(), np.uint8)
    digits = content[content > 32] - ord("0")
    where = printable(path)
    require(
        bool((digits <= 1).all()),
        f"{where} is not a text of 0 and 1; it is damaged, get it again",
    )
    lines = int((content == ord("\n")).sum())
    require(
        len(digits) > 0 and len(digits) == lines * pixels,
        f"{where} has {len(digits):,} numbers in {lines:,} lines, not {pixels} per line; it is damaged, get it again",
    )
    return digits.reshape(-1, pixels)


def read_mat(path: Path, key: str, digest: str) -> np.ndarray:
    """Read the matrix `key` of a MATLAB file, uint8. Raises UserError."""
    (matrix,) = read_mat_variables(path, digest, [key])
    require(
        matrix.dtype == np.uint8 and matrix.ndim == 2,
        f"{printable(path)}: {key!r} is not a matrix of bytes; get the original file",
    )
    return matrix


def read_mat_variables(path: Path, digest: str, keys: Sequence[str]) -> list[np.ndarray]:
    """Read arrays of a MATLAB file. Raises UserError.

    SciPy's reader can crash the process on a damaged file (docs/design/0014), so it only reads a file of known hash.
    """
    from scipy.io import loadmat

    variables = loadmat(check_file(path, digest), variable_names=keys)
    where = printable(path)
    for key in keys:
        require(key in variables, f"{where} has no variable {key!r}; get the original file")
    return [np.asarray(variables[key]) for key in keys]


def read_cifar(content: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Parse one file of CIFAR-10's binary version: images (N, 3, 32, 32) and labels (N,). Raises UserError."""
    require(
        len(content) > 0 and len(content) % CIFAR_RECORD == 0,
        f"{where} has {len(content):,} bytes, not {CIFAR_RECORD:,} per image; it is damaged, get it again",
    )
    records = np.frombuffer(content, np.uint8).reshape(-1, CIFAR_RECORD)
    labels = records[:, 0].astype(np.int64)
    require(bool((labels < 10).all()), f"{where} has labels above 9; it is damaged, get it again")
    return records[:, 1:].reshape(-1, 3, 32, 32), labels


def cifar_contents(folder: Path) -> dict[str, bytes]:
    """Read CIFAR-10's files, content by name, from the downloaded archive or unpacked. Raises UserError."""
    archive = folder / "cifar-10-binary.tar.gz"
    contents: dict[str, bytes] = {}
    if archive.exists():
        with archive_errors(archive), tarfile.open(archive) as members:
            for member in complete_members(members):
                check_member(archive, member.name, member.issym() or member.islnk())
                name = Path(member.name).name
                file = members.extractfile(member) if name in CIFAR_FILES else None
                if file is not None and member.size <= MAX_MEMBER_BYTES:
                    contents[name] = file.read()
        where = printable(archive)
    else:
        subfolder = folder / "cifar-10-batches-bin"
        parent = subfolder if subfolder.is_dir() else folder
        contents = {n: (parent / n).read_bytes() for n in CIFAR_FILES if (parent / n).is_file()}
        where = printable(parent)
    missing = [name for name in CIFAR_FILES if name not in contents]
    require(not missing, f"{where} lacks {', '.join(missing)}; get the data set again")
    return contents
