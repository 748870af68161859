"""The data sets by name: read from small files in the true format, downloaded from a server that fails at times; and
the real ones, where they are."""

import dataclasses
import gzip
import hashlib
import io
import json
import multiprocessing
import os
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

from loopback import Server
from vaekit import UserError, load_data
from vaekit.data.sources import catalog as shelf
from vaekit.data.sources import download, named
from vaekit.data.sources.formats import read_amat, read_cifar, read_mat
from vaekit.data.sources.locations import find
from vaekit.support.console import Shown

CHANCE = np.random.default_rng(0)
REAL = os.environ.get("VAEKIT_DATA")  # before a test hides it
# Python before 3.11.4 knows no filter; later ones warn without.
SAFELY = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
CLASSES = ("ant", "bass", "BACKGROUND_Google")


def random_bytes(*shape) -> np.ndarray:
    return CHANCE.integers(0, 256, shape, dtype=np.uint8)


def idx_bytes(array: np.ndarray) -> bytes:
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def idx_files() -> tuple[dict[str, bytes], list[np.ndarray]]:
    parts = {"train": random_bytes(60_000, 3, 2), "t10k": random_bytes(20, 3, 2)}
    files = {}
    for part, images in parts.items():
        labels = CHANCE.integers(0, 10, len(images), dtype=np.uint8)
        files[f"{part}-images-idx3-ubyte.gz"] = gzip.compress(idx_bytes(images), 1)
        files[f"{part}-labels-idx1-ubyte.gz"] = gzip.compress(idx_bytes(labels), 1)
    train = parts["train"][:, None]
    return files, [train[:50_000], train[50_000:], parts["t10k"][:, None]]


def amat_files() -> tuple[dict[str, bytes], list[np.ndarray]]:
    bits = [random_bytes(count, 784) % 2 for count in (5, 3, 2)]
    files = {
        f"binarized_mnist_{part}.amat": "".join(
            " ".join(map(str, row)) + "\n" for row in array
        ).encode()
        for part, array in zip(("train", "valid", "test"), bits, strict=True)
    }
    return files, [255 * array.reshape(-1, 1, 28, 28) for array in bits]


def frey_files() -> tuple[dict[str, bytes], list[np.ndarray]]:
    frames = random_bytes(1965, 28, 20)
    file = io.BytesIO()
    scipy.io.savemat(file, {"ff": frames.reshape(1965, 560).T})
    shuffled = frames[np.random.default_rng(777).permutation(1965)][:, None]
    return {"frey_rawface.mat": file.getvalue()}, np.split(shuffled, [1565, 1765])


def tar_bytes(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, content in members.items():
            about = tarfile.TarInfo(name)
            about.size = len(content)
            archive.addfile(about, io.BytesIO(content))
    return file.getvalue()


def cifar_files() -> tuple[dict[str, bytes], list[np.ndarray]]:
    names = [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]
    images = {name: random_bytes(20, 3, 32, 32) for name in names}
    members = {"cifar-10-batches-bin/readme.html": b"<html>"}
    for name, array in images.items():
        labels = CHANCE.integers(0, 10, (20, 1), dtype=np.uint8)
        records = np.concatenate([labels, array.reshape(20, -1)], axis=1)
        members[f"cifar-10-batches-bin/{name}.bin"] = records.tobytes()
    train = np.concatenate([images[name] for name in names[:5]])
    return {"cifar-10-binary.tar.gz": tar_bytes(members)}, [
        train[:90],
        train[90:],
        images["test_batch"],
    ]


def jpeg(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "jpeg")
    return file.getvalue()


def caltech_members() -> dict[str, bytes]:
    members = {}
    for name in CLASSES:
        for n in range(1, 11):
            pixels = random_bytes(12, 10) if n == 3 else random_bytes(12, 10, 3)  # some are grey
            members[f"101_ObjectCategories/{name}/image_{n:04d}.jpg"] = jpeg(pixels)
    return {**members, "101_ObjectCategories/BACKGROUND_Google/tmp": b"stray"}


def caltech_files() -> tuple[dict[str, bytes], list[np.ndarray]]:
    members = caltech_members()
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("caltech-101/101_ObjectCategories.tar.gz", tar_bytes(members))
        archive.writestr("caltech-101/Annotations.tar", b"not read")
        archive.writestr("__MACOSX/caltech-101/._x.jpg", b"not read")
    images = [
        np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).transpose(2, 0, 1)
        for name, content in members.items()
        if name.endswith(".jpg") and "BACKGROUND" not in name
    ]
    return {"caltech-101.zip": file.getvalue()}, [np.stack(images)]


MAKERS = {
    "mnist": idx_files,
    "fashionmnist": idx_files,
    "binarizedmnist": amat_files,
    "freyface": frey_files,
    "cifar10": cifar_files,
    "caltech101": caltech_files,
}


@pytest.fixture
def server():
    found = Server()
    yield found
    found.close()


@pytest.fixture(autouse=True)
def nothing_here(monkeypatch, tmp_path):
    """No data on this machine, and no long waiting."""
    monkeypatch.delenv("VAEKIT_DATA", raising=False)
    monkeypatch.setenv("VAEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "READ", 1)


@pytest.fixture
def offered(server, monkeypatch):
    """offered(name) puts small files of a data set on the server, in place of the real ones, and gives their pixels."""

    def offer(name):
        files, images = MAKERS[name]()
        server.files.update(files)
        found = tuple(
            shelf.File(
                file,
                (server.address + "gone/" + file, server.address + file),
                "sha256:" + hashlib.sha256(content).hexdigest(),
                len(content),
            )
            for file, content in files.items()
        )
        entry = dataclasses.replace(shelf.SHELVES[name], files=found)
        monkeypatch.setitem(shelf.SHELVES, name, entry)
        monkeypatch.setattr(named, "IDX_MD5", {key: {} for key in named.IDX_MD5})
        monkeypatch.setattr(named, "CIFAR_MD5", {})
        return images

    return offer


def pixels(data) -> list[np.ndarray]:
    return [split.images[:].numpy() for split in data.splits.values()]


def same_images(first: np.ndarray, second: np.ndarray) -> bool:
    """The same images, in any order."""
    rows = [sorted(image.tobytes() for image in array) for array in (first, second)]
    return rows[0] == rows[1]


def check_pixels(data, expected) -> None:
    found = pixels(data)
    if len(expected) == 1:  # split by seed
        assert same_images(np.concatenate(found), expected[0])
    else:
        assert all(map(np.array_equal, found, expected))


@pytest.mark.parametrize(
    "name", ["fashionmnist", "binarizedmnist", "freyface", "cifar10", "caltech101"]
)
@pytest.mark.parametrize(
    "failures", [[], ["cut"], ["cut", "cut-now", "cut"], ["cut", "no-range"]], ids=str
)
def test_it_is_downloaded_read_and_then_at_home(name, failures, server, offered, tmp_path):
    expected = offered(name)
    for file in shelf.SHELVES[name].files:
        server.failures[file.name] = list(failures)
    for _ in shelf.SHELVES[name].files if "cut-now" in failures else ():
        # Nothing more comes, but what did is kept.
        with pytest.raises(UserError, match="broke off after"):
            load_data(name, progress=False)
    data = load_data(name, progress=False)
    check_pixels(data, expected)
    if failures:
        assert any(wanted for _, wanted in server.seen), "no range was asked for"
    folder = tmp_path / "cache" / "data" / name
    left = {path.name for path in folder.iterdir()}
    assert left == {file.name for file in shelf.SHELVES[name].files}
    count = len(server.seen)
    check_pixels(load_data(name, progress=False), expected)
    assert len(server.seen) == count, "downloaded again"
    assert load_data(name.upper(), progress=False).sha256() == data.sha256()


def test_what_has_come_is_not_fetched_again(server, offered):
    """Each request starts where the last broke off: half, then half of the rest."""
    offered("freyface")
    size = len(server.files["frey_rawface.mat"])
    server.failures["frey_rawface.mat"] = ["cut", "cut"]
    load_data("freyface", progress=False)
    starts = [wanted for name, wanted in server.seen if name == "frey_rawface.mat"]
    assert starts == [None, f"bytes={size // 2}-", f"bytes={size // 2 + (size - size // 2) // 2}-"]


@pytest.mark.parametrize(
    ("failures", "said"),
    [
        ([404], "it answers 404 Not Found"),
        ([403], "it answers 403 Forbidden"),
        ([503], "it answers 503"),
        (["html"], "it sends a web page in place of the file"),
        (["other"], "its hash differs"),
        (["cut-now"] * 5, "broke off after 0 of"),
        (["hang"], "it does not answer"),
    ],
    ids=str,
)
def test_a_server_that_fails_is_named_in_one_line(failures, said, server, offered, tmp_path):
    offered("freyface")
    server.failures["frey_rawface.mat"] = failures
    with pytest.raises(UserError, match=said) as caught:
        load_data("freyface", progress=False)
    folder = tmp_path / "cache" / "data" / "freyface"
    message = str(caught.value)
    assert "\n" not in message
    assert f"put it at {folder / 'frey_rawface.mat'}" in message
    assert "gone/frey_rawface.mat" in message  # the other address failed too
    assert not folder.exists() or not list(
        folder.iterdir()
    )  # nothing that is wrong is gone on with


@pytest.mark.parametrize("failure", ["wrong-range", 416])
def test_a_server_that_confuses_its_ranges(failure, server, offered):
    expected = offered("freyface")
    server.failures["frey_rawface.mat"] = ["cut", failure]
    if failure == 416:
        with pytest.raises(UserError, match="it has no such part of the file"):
            load_data("freyface", progress=False)
    check_pixels(load_data("freyface", progress=False), expected)
    asked = [wanted for name, wanted in server.seen if name == "frey_rawface.mat"]
    assert len(asked) == (2 if failure == "wrong-range" else 3)  # what came from the start was kept


def test_a_part_of_something_else_is_started_again(server, offered, tmp_path):
    expected = offered("freyface")
    folder = tmp_path / "cache" / "data" / "freyface"
    folder.mkdir(parents=True)
    (folder / "frey_rawface.mat.part").write_bytes(b"x" * 1000)
    check_pixels(load_data("freyface", progress=False), expected)
    (folder / "frey_rawface.mat").unlink()
    (folder / "frey_rawface.mat.part").write_bytes(b"x" * 2_000_000)  # longer than the file
    check_pixels(load_data("freyface", progress=False), expected)
    # What has come whole, but was not yet put in place, is not fetched again.
    (folder / "frey_rawface.mat").rename(folder / "frey_rawface.mat.part")
    count = len(server.seen)
    check_pixels(load_data("freyface", progress=False), expected)
    assert len(server.seen) == count


def test_offline_says_which_file_to_put_where(tmp_path):
    """The server does not exist (any more)."""
    server = Server()
    server.close()
    file = shelf.File("a.mat", (server.address + "a.mat",), "sha256:0", 3)
    with pytest.raises(UserError, match="are you offline") as caught:
        download.fetch(file, tmp_path, Shown(False))
    assert f"put it at {tmp_path / 'a.mat'}" in str(caught.value)


def test_a_full_disk_leaves_no_part(server, offered, tmp_path, monkeypatch):
    offered("cifar10")
    opened = Path.open

    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, block):
            self.file.write(block[:10])
            raise OSError(28, "No space left on device")

    def full(path, mode="r", *rest, **more):
        file = opened(path, mode, *rest, **more)
        return Full(file) if path.suffix == ".part" and mode in ("wb", "ab") else file

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OSError, match="No space left") as caught:
        load_data("cifar10", progress=False)
    assert caught.value.filename.endswith("cifar-10-binary.tar.gz.part")
    assert not list((tmp_path / "cache").rglob("*.part"))


def fetch_in_a_process(file, folder):
    download.fetch(file, folder, Shown(False))


def test_two_processes_download_once(server, offered, tmp_path):
    offered("cifar10")
    (file,) = shelf.SHELVES["cifar10"].files
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=fetch_in_a_process, args=(file, tmp_path)) for _ in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    assert [name for name, _ in server.seen].count(file.name) == 1
    assert (tmp_path / file.name).read_bytes() == server.files[file.name]


def test_get_puts_mnist_where_it_is_told_to(server, offered, tmp_path):
    from vaekit.data.sources.locations import get

    offered("mnist")
    assert get("mnist", None).startswith("mnist is in ")
    assert not server.seen
    assert get("MNIST", str(tmp_path / "new")) == f"mnist is in {tmp_path / 'new' / 'mnist'}"
    assert len(list((tmp_path / "new" / "mnist").iterdir())) == 4
    count = len(server.seen)
    assert get("mnist", str(tmp_path / "new")) == f"mnist is in {tmp_path / 'new' / 'mnist'}"
    assert len(server.seen) == count


def test_data_dir_gets_the_files(server, offered, tmp_path, monkeypatch):
    expected = offered("freyface")
    for data_dir in (tmp_path / "a", tmp_path / "b"):
        data_dir.mkdir()
    data = load_data("freyface", tmp_path / "a", progress=False)
    assert (tmp_path / "a" / "freyface" / "frey_rawface.mat").exists()
    assert data.source.data_dir == str(tmp_path / "a")
    monkeypatch.setenv("VAEKIT_DATA", str(tmp_path / "b"))
    check_pixels(load_data("freyface", progress=False), expected)
    assert (tmp_path / "b" / "freyface" / "frey_rawface.mat").exists()
    (tmp_path / "b" / "freyface").rename(tmp_path / "b" / "Frey_Face")  # however it is spelt
    assert find("freyface") == tmp_path / "b" / "Frey_Face"
    count = len(server.seen)
    load_data("freyface", tmp_path / "a" / "freyface", progress=False)  # the folder itself
    assert len(server.seen) == count


# Archives and files that are wrong


def put(tmp_path, name, files) -> Path:
    folder = tmp_path / name
    folder.mkdir()
    for file, content in files.items():
        (folder / file).write_bytes(content)
    return folder


@pytest.mark.parametrize("name", MAKERS)
def test_a_changed_file_is_refused(name, offered, server, tmp_path, monkeypatch):
    """By its hash; MNIST's IDX files by those of their content."""
    offered(name)
    files = server.files
    if name in named.IDX_MD5:
        files = {key.removesuffix(".gz"): gzip.decompress(value) for key, value in files.items()}
        digests = {
            key.replace("t10k", "test").rsplit("-", 2)[0]: hashlib.md5(content).hexdigest()
            for key, content in files.items()
        }
        monkeypatch.setattr(named, "IDX_MD5", {name: digests})
    if name == "cifar10":
        files = unpacked(files)
        digests = {key: hashlib.md5(content).hexdigest() for key, content in files.items()}
        monkeypatch.setattr(named, "CIFAR_MD5", digests)
    folder = put(tmp_path, "d", files)
    changed = folder / sorted(files)[0]
    content = bytearray(changed.read_bytes())
    content[len(content) // 2] ^= 1
    changed.write_bytes(content)
    with pytest.raises(UserError, match="hash differs") as caught:
        load_data(name, folder, progress=False)
    assert changed.name in str(caught.value)


def unpacked(files) -> dict[str, bytes]:
    (content,) = files.values()
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        found = {Path(m.name).name: archive.extractfile(m).read() for m in archive}
    return {name: content for name, content in found.items() if name.endswith(".bin")}


def test_unpacked_files_serve_as_well(offered, server, tmp_path):
    expected = offered("cifar10")
    (content,) = server.files.values()
    folder = tmp_path / "d"
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        archive.extractall(folder, **SAFELY)
    check_pixels(load_data("cifar10", folder, progress=False), expected)
    check_pixels(load_data("cifar10", folder / "cifar-10-batches-bin", progress=False), expected)
    (folder / "cifar-10-batches-bin" / "data_batch_3.bin").unlink()
    with pytest.raises(UserError, match=r"lacks data_batch_3\.bin"):
        load_data("cifar10", folder, progress=False)


def test_caltech_in_all_its_wrappings(offered, server, tmp_path):
    expected = offered("caltech101")
    put(tmp_path, "zip", server.files)
    members = caltech_members()
    put(tmp_path, "tar", {"101_ObjectCategories.tar.gz": tar_bytes(members)})
    with tarfile.open(tmp_path / "tar" / "101_ObjectCategories.tar.gz") as archive:
        archive.extractall(tmp_path / "open", **SAFELY)
    data = load_data("caltech101", tmp_path / "zip", progress=False)
    assert data.classes == ("ant", "bass")
    assert data.shape == (3, 12, 10)
    check_pixels(data, expected)
    more = load_data("caltech101:background", tmp_path / "zip", progress=False)
    assert more.classes == ("BACKGROUND_Google", "ant", "bass")
    assert sum(map(len, more.splits.values())) == 30
    for wrapping in ("tar", "open"):  # other random pixels, the same layout
        found = load_data("caltech101", tmp_path / wrapping, progress=False)
        assert (found.classes, sum(map(len, found.splits.values()))) == (data.classes, 20)


def archive_with(kind: str, name: str, link: bool) -> bytes:
    file = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(file, "w") as archive:
            about = zipfile.ZipInfo(name)
            if link:
                about.external_attr = 0o120777 << 16
            archive.writestr("good/a.png", png())
            archive.writestr(about, "/etc/passwd")
        return file.getvalue()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        about = tarfile.TarInfo("good/a.png")
        about.size = len(png())
        archive.addfile(about, io.BytesIO(png()))
        about = tarfile.TarInfo(name)
        if link:
            about.type, about.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(about)
    return file.getvalue()


def png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(file, "png")
    return file.getvalue()


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
@pytest.mark.parametrize(
    ("name", "link", "said"),
    [
        ("../../evil.png", False, "path out of it"),
        ("/tmp/evil.png", False, "path out of it"),
        ("a/../../evil.png", False, "path out of it"),
        ("..\\evil.png", False, "path out of it"),
        ("link.png", True, "a link"),
    ],
)
def test_an_archive_that_reaches_out_of_itself_is_refused(kind, name, link, said, tmp_path):
    path = tmp_path / f"images.{kind}"
    path.write_bytes(archive_with(kind, name, link))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=said) as caught:
        load_data(path, progress=False)
    assert "\n" not in str(caught.value)
    assert sorted(p for p in tmp_path.rglob("*") if "cache" not in p.parts) == before
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"gg": np.zeros((560, 5), np.uint8)}, "no variable 'ff'"),
        ({}, "no variable 'ff'"),
        ({"ff": np.zeros((560, 5))}, "'ff' is no matrix of bytes"),
        ({"ff": np.zeros((2, 3, 4), np.uint8)}, "'ff' is no matrix of bytes"),
        ({"ff": "text"}, "'ff' is no matrix of bytes"),
    ],
)
def test_a_mat_file_without_the_matrix_is_named(content, said, tmp_path):
    path = tmp_path / "f.mat"
    scipy.io.savemat(path, content)
    with pytest.raises(UserError, match=said) as caught:
        read_mat(path, "ff", download.file_digest(path, "md5:"))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_other_mat_file_gets_to_the_reader(tmp_path, monkeypatch):
    """It can crash the process."""
    monkeypatch.setattr(scipy.io, "loadmat", lambda *_, **__: pytest.fail("it did"))
    path = tmp_path / "f.mat"
    path.write_bytes(b"MATLAB 5.0 MAT-file" + bytes(200))
    with pytest.raises(UserError, match="hash differs"):
        read_mat(path, "ff", "md5:5aeb024d42b8a6091f30e5eb18c8a48d")
    with pytest.raises(UserError, match="is missing"):
        read_mat(tmp_path / "none.mat", "ff", "md5:0")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"0 1 0\n1 0\n", "not 3 in each"),
        (b"0 1 2\n", "no text of 0 and 1"),
        (b"0 1 x\n", "no text of 0 and 1"),
        (b"", "not 3 in each"),
        (b"0 1 1", "not 3 in each"),
    ],
)
def test_a_bad_amat_file_is_named(content, said, tmp_path):
    path = tmp_path / "f.amat"
    path.write_bytes(content)
    with pytest.raises(UserError, match=said):
        read_amat(path, 3)
    path.write_bytes(b"0 1 1 \n1 0 1\n")
    assert read_amat(path, 3).tolist() == [[0, 1, 1], [1, 0, 1]]


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "not 3,073"), (b"\x00" * 3072, "not 3,073"), (b"\x0a" * 3073, "labels above 9")],
)
def test_a_bad_cifar_file_is_named(content, said):
    with pytest.raises(UserError, match=said):
        read_cifar(content, "x.bin")


def test_four_idx_files_are_a_data_set_by_their_folder(tmp_path):
    files, images = idx_files()
    renamed = {f"emnist-{name.replace('t10k', 'test')}": content for name, content in files.items()}
    folder = put(tmp_path, "letters", renamed)
    data = load_data(folder, validation_share=0.25, progress=False)
    assert [len(split) for split in data.splits.values()] == [45_000, 15_000, 20]
    assert same_images(
        np.concatenate(pixels(data)[:2])[:, 0], np.concatenate([images[0], images[1]])[:, 0]
    )
    assert np.array_equal(pixels(data)[2], images[2])
    next(folder.glob("*test-labels*")).unlink()
    with pytest.raises(UserError, match="none called test-labels"):
        load_data(folder, progress=False)


def test_sizes_and_colours_of_a_named_data_set(offered):
    offered("freyface")
    plain = load_data("freyface", progress=False)
    data = load_data("freyface", size="32", colour="rgb", fit="letterbox", progress=False)
    assert data.shape == (3, 32, 32)
    assert (data.train.images[..., 0] == 0).all()  # the bar at the left: 20 of 28 is 23 of 32
    assert load_data("freyface", size="28x20", progress=False).sha256() == plain.sha256()


def test_a_variant_is_by_name(offered):
    offered("freyface")
    ordered = load_data("freyface:ordered", progress=False)
    assert [len(split) for split in ordered.splits.values()] == [1572, 196, 197]
    shuffled = load_data("freyface", progress=False)
    assert same_images(np.concatenate(pixels(ordered)), np.concatenate(pixels(shuffled)))
    of_paper = load_data("freyface:aevb", progress=False)
    assert [len(split) for split in of_paper.splits.values()] == [1365, 200, 400]
    halves = torch.cat([shuffled.validation.images, shuffled.test.images])
    assert torch.equal(of_paper.test.images, halves)
    with pytest.raises(UserError, match="did you mean 'ordered'"):
        load_data("freyface:orderd")


def test_digits_need_no_file():
    data = load_data("digits", progress=False)
    assert data.shape == (1, 8, 8)
    assert sum(map(len, data.splits.values())) == 1797
    assert data.train.images.unique().tolist() == [round(255 * k / 16) for k in range(17)]
    counts = [split.labels.bincount(minlength=10) for split in data.splits.values()]
    share = counts[2] / sum(counts)
    assert ((share - 0.1).abs() < 0.01).all()


@pytest.mark.parametrize("name", shelf.SHELVES)
def test_the_table_says_what_is_read(name):
    """Sizes, classes and hashes of the table; the readers are one each."""
    entry = shelf.SHELVES[name]
    assert name in named.READERS
    for file in entry.files:
        kind, _, digits = file.digest.partition(":")
        assert len(digits) == {"sha256": 64, "md5": 32}[kind]
        assert int(digits, 16) > 0
        assert file.addresses
        assert all(
            address.endswith(file.name) or "/content" in address for address in file.addresses
        )
    json.dumps(dataclasses.asdict(entry), default=dict)


# The real ones

real = pytest.mark.skipif(not REAL, reason="VAEKIT_DATA names no folder with the real data")


def load_real(name, monkeypatch):
    monkeypatch.setenv("VAEKIT_DATA", REAL)
    if find(name) is None:
        pytest.skip(f"no {name} in VAEKIT_DATA")
    return load_data(name, progress=False)


@real
def test_real_fashion_mnist(monkeypatch):
    data = load_real("fashionmnist", monkeypatch)
    assert [len(split) for split in data.splits.values()] == [50_000, 10_000, 10_000]
    everything = torch.cat([data.train.images, data.validation.images]).float() / 255
    assert everything.mean().item() == pytest.approx(0.2860, abs=5e-5)
    assert everything.std().item() == pytest.approx(0.3530, abs=5e-5)
    assert (
        data.train.labels.bincount().tolist() == (6000 - data.validation.labels.bincount()).tolist()
    )
    assert data.classes[int(data.train.labels[0])] == "ankle boot"
    assert data.likelihood == "bernoulli"


@real
def test_real_binarized_mnist_and_its_text_form(monkeypatch, tmp_path):
    data = load_real("binarizedmnist", monkeypatch)
    assert [len(split) for split in data.splits.values()] == [50_000, 10_000, 10_000]
    means = [split.images.float().mean().item() / 255 for split in data.splits.values()]
    assert means == pytest.approx([0.130562, 0.131127, 0.132512], abs=1e-6)
    for name, split in zip(("train", "valid", "test"), data.splits.values(), strict=True):
        text = named.amat_text(split.images // 255)
        (tmp_path / f"binarized_mnist_{name}.amat").write_bytes(text)
    # These are the original text files to the last byte, or their published hashes would be refused: the packed
    # bits are the data set's, row by row.
    assert load_data("binarizedmnist", tmp_path, progress=False).sha256() == data.sha256()


@real
def test_real_frey_faces(monkeypatch):
    data = load_real("freyface", monkeypatch)
    assert [len(split) for split in data.splits.values()] == [1565, 200, 200]
    assert data.shape == (1, 28, 20)
    assert data.likelihood == "logistic"
    # Rows of a face are alike; were height and width confused, they would not be.
    gaps = [
        (found[:, 1:] - found[:, :-1]).abs().mean()
        for found in (data.train.images.float().view(-1, *size) for size in ((28, 20), (20, 28)))
    ]
    assert gaps[0] < 0.6 * gaps[1]
