"""The formats of single data sets: text of bits (.amat), MATLAB, CIFAR-10's records."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np

from ...support.errors import printable, require
from .download import check_file
from .files import check_member, damaged, to_the_end

CIFAR_FILES = (*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin")
CIFAR_RECORD = 1 + 3 * 32 * 32  # a label, then red, green and blue
LARGEST = 2**28


def read_amat(path: Path, pixels: int) -> np.ndarray:
    """Bits as text, a line an image: (N, pixels), uint8, 0 or 1. Raises UserError."""
    content = np.frombuffer(path.read_bytes(), np.uint8)
    digits = content[content > 32] - ord("0")
    where = printable(path)
    require(
        bool((digits <= 1).all()), f"{where} is no text of 0 and 1; it is damaged, get it again"
    )
    lines = int((content == ord("\n")).sum())
    require(
        len(digits) > 0 and len(digits) == lines * pixels,
        f"{where} has {len(digits):,} numbers in {lines:,} lines, not {pixels} in each; it is damaged, get it again",
    )
    return digits.reshape(-1, pixels)


def read_mat(path: Path, key: str, digest: str) -> np.ndarray:
    """The matrix `key` of a MATLAB file, uint8. Raises UserError.

    SciPy's reader can crash the process on a damaged file (docs/design/0014): only one of a known hash gets to it.
    """
    from scipy.io import loadmat

    found = loadmat(check_file(path, digest), variable_names=[key])
    where = printable(path)
    require(key in found, f"{where} has no variable {key!r}; get the original file")
    matrix = found[key]
    require(
        isinstance(matrix, np.ndarray) and matrix.dtype == np.uint8 and matrix.ndim == 2,
        f"{where}: {key!r} is no matrix of bytes; get the original file",
    )
    return matrix


def read_cifar(content: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 3, 32, 32) and labels (N,) of one file of CIFAR-10's binary version. Raises UserError."""
    require(
        len(content) > 0 and len(content) % CIFAR_RECORD == 0,
        f"{where} has {len(content):,} bytes, not {CIFAR_RECORD:,} for each image; it is damaged, get it again",
    )
    records = np.frombuffer(content, np.uint8).reshape(-1, CIFAR_RECORD)
    labels = records[:, 0].astype(np.int64)
    require(bool((labels < 10).all()), f"{where} has labels above 9; it is damaged, get it again")
    return records[:, 1:].reshape(-1, 3, 32, 32), labels


def cifar_contents(folder: Path) -> dict[str, bytes]:
    """CIFAR-10's files by name, from the archive as it is downloaded or unpacked. Raises UserError."""
    archive = folder / "cifar-10-binary.tar.gz"
    found: dict[str, bytes] = {}
    if archive.exists():
        with damaged(archive), tarfile.open(archive) as members:
            for member in to_the_end(members):
                check_member(archive, member.name, member.issym() or member.islnk())
                name = Path(member.name).name
                content = members.extractfile(member) if name in CIFAR_FILES else None
                if content is not None and member.size <= LARGEST:
                    found[name] = content.read()
        where = printable(archive)
    else:
        inside = folder / "cifar-10-batches-bin"
        place = inside if inside.is_dir() else folder
        found = {n: (place / n).read_bytes() for n in CIFAR_FILES if (place / n).is_file()}
        where = printable(place)
    missing = [name for name in CIFAR_FILES if name not in found]
    require(not missing, f"{where} lacks {', '.join(missing)}; get the data set again")
    return found
