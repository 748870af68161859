"""Mutated files are read or refused in one line, without a traceback, a hang or excessive memory."""

import gzip
import hashlib
import io
import multiprocessing
import random
import resource
import signal
import tarfile
import tempfile
import warnings
import zipfile
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pyarrow.parquet
import pytest
import scipy.io
import tifffile
from PIL import Image

from made_files import idx_bytes
from mutations import mutate
from vaekit import UserError, load_data
from vaekit.data.formats.idx import read_idx
from vaekit.data.formats.images import BadImage, ImageSpec, decode, inspect_image
from vaekit.data.formats.published import read_mat

RNG = np.random.default_rng(3)
MEMORY = 500 * 2**20  # bytes that a process may grow by
SECONDS = 20  # per file


def image_file(kind: str) -> bytes:
    file = io.BytesIO()
    image = Image.fromarray(RNG.integers(0, 256, (9, 8, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"exif": exif} if kind in ("jpeg", "png", "webp", "tiff") else {}
    image.save(file, kind, **options)
    return file.getvalue()


def mat_file(compressed: bool) -> bytes:
    file = io.BytesIO()
    content = {
        "ff": RNG.integers(0, 256, (56, 30), dtype=np.uint8),
        "names": np.array(["a", "b"], object),
    }
    scipy.io.savemat(file, content, do_compression=compressed)
    return file.getvalue()


def npz_file(compressed: bool) -> bytes:
    file = io.BytesIO()
    arrays = {"images": RNG.integers(0, 256, (6, 5, 5), dtype=np.uint8), "labels": np.arange(6)}
    (np.savez_compressed if compressed else np.savez)(file, **arrays)
    return file.getvalue()


def npy_file() -> bytes:
    file = io.BytesIO()
    np.save(file, RNG.random((6, 5, 5)))
    return file.getvalue()


def archive(kind: str) -> bytes:
    file = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
            for i in range(4):
                packed.writestr(f"{'ab'[i % 2]}/{i}.png", image_file("png"))
    else:
        with tarfile.open(fileobj=file, mode="w:gz" if kind == "tar.gz" else "w") as packed:
            for i in range(4):
                member, content = tarfile.TarInfo(f"{'ab'[i % 2]}/{i}.png"), image_file("png")
                member.size = len(content)
                packed.addfile(member, io.BytesIO(content))
    return file.getvalue()


def science_file(kind: str) -> bytes:
    """A stack, a volume, or a table of images, of 16 bits or in colour."""
    array = RNG.integers(0, 4096, (6, 8, 7)).astype(np.uint16)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a.{kind}"
        if kind == "tif":
            tifffile.imwrite(path, array, photometric="minisblack", compression="zlib")
        elif kind == "nii.gz":
            nibabel.save(nibabel.Nifti1Image(array.astype(np.int16), np.eye(4)), path)
        elif kind == "h5":
            with h5py.File(path, "w") as file:
                file.create_dataset("images", data=array, chunks=(2, 8, 7), compression="gzip")
        else:
            images = [{"bytes": image_file("png"), "path": f"{i}.png"} for i in range(6)]
            pyarrow.parquet.write_table(pyarrow.table({"image": images, "label": [0, 1] * 3}), path)
        return path.read_bytes()


IDX = idx_bytes(RNG.integers(0, 256, (5, 4, 3), dtype=np.uint8))
FAMILIES = {
    "idx": {"a": IDX, "a.gz": gzip.compress(IDX)},
    "mat": {"a.mat": mat_file(False), "b.mat": mat_file(True)},
    "npz": {"a.npz": npz_file(False), "b.npz": npz_file(True), "c.npy": npy_file()},
    "image": {kind: image_file(kind) for kind in ("png", "jpeg", "gif", "bmp", "tiff", "webp", "ppm", "tga", "ico")},
    "science": {f"a.{kind}": science_file(kind) for kind in ("tif", "nii.gz", "h5", "parquet")},
    "archive": {f"a.{kind}": archive(kind) for kind in ("zip", "tar", "tar.gz")},
}  # fmt: skip


DIGESTS = {
    name: f"md5:{hashlib.md5(content).hexdigest()}" for name, content in FAMILIES["mat"].items()
}


def read_file(family, name, content, folder):
    """Read one file as vaekit does."""
    if family == "image":
        inspect_image(content)
        decode(content, ImageSpec(3, 8, 8))
        return
    path = folder / name
    path.write_bytes(content)
    if family == "idx":
        read_idx(path, 3)
    elif family == "mat":
        read_mat(path, "ff", DIGESTS[name])
    else:
        load_data(path, progress=False, pages="all" if family == "science" else None)


def fuzz(family, count, folder, report):
    """Read `count` mutated files of a family; put into the queue `report` how many were read, the number of different
    messages, the growth in memory (bytes), and the failure, if any. Runs in its own process."""
    rng = random.Random(family)
    read, messages = 0, set()
    try:
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name, content in FAMILIES[family].items():
                read_file(family, name, content, folder)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            for _ in range(count):
                name, content = rng.choice(list(FAMILIES[family].items()))
                for _ in range(rng.randrange(1, 4)):
                    content = mutate(content or b"x", rng)
                signal.alarm(SECONDS)
                try:
                    read_file(family, name, content, folder)
                    read += 1
                except (UserError, BadImage) as error:
                    messages.add(str(error).replace(str(folder), ""))
                signal.alarm(0)
            assert not [text for text in messages if "\n" in text]
        grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        report.put((read, len(messages), grown, None))
    except BaseException as error:
        (folder / "failing").write_bytes(content)
        report.put(
            (read, len(messages), 0, f"{type(error).__name__}: {error} in {folder / 'failing'}")
        )


def run(family, count, folder):
    """Run `fuzz` in a process, and check its report."""
    context = multiprocessing.get_context("fork")
    report = context.Queue()
    process = context.Process(target=fuzz, args=(family, count, folder, report))
    process.start()
    while process.is_alive() and report.empty():
        process.join(0.05)
    assert not report.empty(), f"the process died with exit code {process.exitcode}"
    read, messages, grown, failure = report.get()
    process.join()
    assert failure is None
    assert process.exitcode == 0
    assert read > 0 or family == "mat"  # some mutations leave a file readable
    assert messages > 0
    assert grown < MEMORY


@pytest.mark.parametrize("family", FAMILIES)
def test_a_few_mutated_files(family, tmp_path):
    run(family, 150, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("family", FAMILIES)
def test_ten_thousand_mutated_files(family, tmp_path):
    run(family, 10_000, tmp_path)
