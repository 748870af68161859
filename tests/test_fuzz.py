"""Mutated files: a data set or one line, never a traceback, a hang, or a memory full of what is not there."""

import gzip
import hashlib
import io
import multiprocessing
import random
import resource
import signal
import tarfile
import warnings
import zipfile

import numpy as np
import pytest
import scipy.io
from PIL import Image

from test_long import mutate
from test_named import idx_bytes
from vaekit import UserError, load_data
from vaekit.data.sources.formats import read_mat
from vaekit.data.sources.idx import read_idx
from vaekit.data.sources.images import BadImage, Form, decode, look

CHANCE = np.random.default_rng(3)
MEMORY = 500 * 2**20
SECONDS = 20  # for one file


def packed_images(kind: str) -> bytes:
    file = io.BytesIO()
    image = Image.fromarray(CHANCE.integers(0, 256, (9, 8, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    more = {"exif": exif} if kind in ("jpeg", "png", "webp", "tiff") else {}
    image.save(file, kind, **more)
    return file.getvalue()


def mat_file(compressed: bool) -> bytes:
    file = io.BytesIO()
    content = {
        "ff": CHANCE.integers(0, 256, (56, 30), dtype=np.uint8),
        "names": np.array(["a", "b"], object),
    }
    scipy.io.savemat(file, content, do_compression=compressed)
    return file.getvalue()


def array_file(packed: bool) -> bytes:
    file = io.BytesIO()
    arrays = {"images": CHANCE.integers(0, 256, (6, 4, 3), dtype=np.uint8), "labels": np.arange(6)}
    (np.savez_compressed if packed else np.savez)(file, **arrays)
    return file.getvalue()


def one_array() -> bytes:
    file = io.BytesIO()
    np.save(file, CHANCE.random((6, 4, 3)))
    return file.getvalue()


def archive(kind: str) -> bytes:
    file = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as found:
            for i in range(4):
                found.writestr(f"{'ab'[i % 2]}/{i}.png", packed_images("png"))
    else:
        with tarfile.open(fileobj=file, mode="w:gz" if kind == "tar.gz" else "w") as found:
            for i in range(4):
                about, content = tarfile.TarInfo(f"{'ab'[i % 2]}/{i}.png"), packed_images("png")
                about.size = len(content)
                found.addfile(about, io.BytesIO(content))
    return file.getvalue()


IDX = idx_bytes(CHANCE.integers(0, 256, (5, 4, 3), dtype=np.uint8))
FAMILIES = {
    "idx": {"a": IDX, "a.gz": gzip.compress(IDX)},
    "mat": {"a.mat": mat_file(False), "b.mat": mat_file(True)},
    "npz": {"a.npz": array_file(False), "b.npz": array_file(True), "c.npy": one_array()},
    "image": {kind: packed_images(kind) for kind in ("png", "jpeg", "gif", "bmp", "tiff", "webp", "ppm", "tga", "ico")},
    "archive": {f"a.{kind}": archive(kind) for kind in ("zip", "tar", "tar.gz")},
}  # fmt: skip


DIGESTS = {
    name: f"md5:{hashlib.md5(content).hexdigest()}" for name, content in FAMILIES["mat"].items()
}


def use(family, name, content, folder):
    """Read one file as vaekit would."""
    if family == "image":
        look(content)
        decode(content, Form(3, 8, 8))
        return
    path = folder / name
    path.write_bytes(content)
    if family == "idx":
        read_idx(path, 3)
    elif family == "mat":
        read_mat(path, "ff", DIGESTS[name])
    else:
        load_data(path, progress=False)


def fuzz(family, count, folder, report):
    """In a process of its own: `report` hears how many files were read, how many refused, and the memory used."""
    chance = random.Random(family)
    read, said = 0, set()
    try:
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name, content in FAMILIES[family].items():
                use(family, name, content, folder)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            for _ in range(count):
                name, content = chance.choice(list(FAMILIES[family].items()))
                for _ in range(chance.randrange(1, 4)):
                    content = mutate(content or b"x", chance)
                signal.alarm(SECONDS)
                try:
                    use(family, name, content, folder)
                    read += 1
                except (UserError, BadImage) as error:
                    said.add(str(error).replace(str(folder), ""))
                signal.alarm(0)
            assert not [text for text in said if "\n" in text]
        grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        report.put((read, len(said), grown, None))
    except BaseException as error:
        (folder / "failing").write_bytes(content)
        report.put((read, len(said), 0, f"{type(error).__name__}: {error} in {folder / 'failing'}"))


def run(family, count, folder):
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
    assert read > 0 or family == "mat"  # some mutations leave a file what it was
    assert messages > 0
    assert grown < MEMORY


@pytest.mark.parametrize("family", FAMILIES)
def test_a_few_mutated_files(family, tmp_path):
    run(family, 150, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("family", FAMILIES)
def test_ten_thousand_mutated_files(family, tmp_path):
    run(family, 10_000, tmp_path)
