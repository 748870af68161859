"""Named data sets: read from small files in the original formats, downloaded from a server that sometimes fails; and
the real data sets, where available."""

import dataclasses
import gzip
import hashlib
import io
import json
import multiprocessing
import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch

from loopback import Server
from made_files import (
    EXTRACT_OPTIONS,
    MAKERS,
    caltech_members,
    idx_files,
    png,
    tar_bytes,
)
from vaekit import UserError, load_data
from vaekit.data.formats import hashes
from vaekit.data.formats.published import read_amat, read_cifar, read_mat
from vaekit.data.sources import catalog, download, named
from vaekit.data.sources.locations import find_local
from vaekit.support.console import ProgressBar

REAL = os.environ.get("VAEKIT_DATA")  # before a test hides it


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def no_local_data(monkeypatch, tmp_path):
    """Hide the data on this machine, and shorten the timeout."""
    monkeypatch.delenv("VAEKIT_DATA", raising=False)
    monkeypatch.setenv("VAEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "READ_TIMEOUT", 1)


@pytest.fixture
def offered(server, monkeypatch):
    """offered(name) puts small files of a data set on the server, in place of the real ones; returns their pixels."""

    def offer(name):
        files, images = MAKERS[name]()
        server.files.update(files)
        remote_files = tuple(
            catalog.RemoteFile(
                file,
                (server.address + "gone/" + file, server.address + file),
                "sha256:" + hashlib.sha256(content).hexdigest(),
                None if name == "omniglot28" else len(content),  # which is not published
            )
            for file, content in files.items()
        )
        entry = dataclasses.replace(catalog.CATALOG[name], files=remote_files)
        monkeypatch.setitem(catalog.CATALOG, name, entry)
        monkeypatch.setattr(named, "IDX_MD5", {key: {} for key in named.IDX_MD5})
        monkeypatch.setattr(named, "CIFAR_MD5", {})
        return images

    return offer


def pixels(data) -> list[np.ndarray]:
    return [split.images[:].numpy() for split in data.splits.values()]


def same_images(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two arrays have the same images, in any order."""
    rows = [sorted(image.tobytes() for image in array) for array in (first, second)]
    return rows[0] == rows[1]


def check_pixels(data, expected) -> None:
    splits = pixels(data)
    if len(expected) == 1:  # split by seed
        assert same_images(np.concatenate(splits), expected[0])
    else:
        assert all(map(np.array_equal, splits, expected))


@pytest.mark.parametrize("name", [name for name in MAKERS if name != "mnist"])
@pytest.mark.parametrize(
    "failures", [[], ["cut"], ["cut", "cut-now", "cut"], ["cut", "no-range"]], ids=str
)
def test_a_data_set_is_downloaded_once(name, failures, server, offered, tmp_path):
    expected = offered(name)
    for file in catalog.CATALOG[name].files:
        server.failures[file.name] = list(failures)
    for _ in catalog.CATALOG[name].files if "cut-now" in failures else ():
        # Nothing more is received, but the partial file stays.
        with pytest.raises(UserError, match="was interrupted after"):
            load_data(name, progress=False)
    data = load_data(name, progress=False)
    check_pixels(data, expected)
    if failures:
        assert any(requested for _, requested in server.requests), "no range was requested"
    folder = tmp_path / "cache" / "data" / name
    names = {path.name for path in folder.iterdir()}
    assert names == {file.name for file in catalog.CATALOG[name].files}
    count = len(server.requests)
    check_pixels(load_data(name, progress=False), expected)
    assert len(server.requests) == count, "downloaded again"
    assert load_data(name.upper(), progress=False).sha256() == data.sha256()


def test_a_download_resumes_after_the_received_bytes(server, offered):
    """Each request starts where the last was interrupted: at half, then at half of the rest."""
    offered("freyface")
    size = len(server.files["frey_rawface.mat"])
    server.failures["frey_rawface.mat"] = ["cut", "cut"]
    load_data("freyface", progress=False)
    starts = [requested for name, requested in server.requests if name == "frey_rawface.mat"]
    assert starts == [None, f"bytes={size // 2}-", f"bytes={size // 2 + (size - size // 2) // 2}-"]


@pytest.mark.parametrize(
    ("failures", "message"),
    [
        ([404], "the server answers 404 Not Found"),
        ([403], "the server answers 403 Forbidden"),
        ([503], "the server answers 503"),
        (["html"], "the server sends a web page instead of the file"),
        (["other"], "its hash differs"),
        (["cut-now"] * 5, "was interrupted after 0 of"),
        (["hang"], "the server does not answer"),
    ],
    ids=str,
)
def test_a_server_that_fails_is_reported_in_one_line(failures, message, server, offered, tmp_path):
    offered("freyface")
    server.failures["frey_rawface.mat"] = failures
    with pytest.raises(UserError, match=message) as caught:
        load_data("freyface", progress=False)
    folder = tmp_path / "cache" / "data" / "freyface"
    text = str(caught.value)
    assert "\n" not in text
    assert f"put it at {folder / 'frey_rawface.mat'}" in text
    assert "gone/frey_rawface.mat" in text  # the other URL failed too
    assert not folder.exists() or not list(folder.iterdir())  # no bad partial file stays


@pytest.mark.parametrize("failure", ["wrong-range", 416])
def test_a_server_that_answers_with_the_wrong_range(failure, server, offered):
    expected = offered("freyface")
    server.failures["frey_rawface.mat"] = ["cut", failure]
    if failure == 416:
        with pytest.raises(UserError, match="does not have that byte range of the file"):
            load_data("freyface", progress=False)
    check_pixels(load_data("freyface", progress=False), expected)
    ranges = [requested for name, requested in server.requests if name == "frey_rawface.mat"]
    assert len(ranges) == (
        2 if failure == "wrong-range" else 3
    )  # a file sent from its start is used


def test_a_partial_file_of_another_file_is_replaced(server, offered, tmp_path):
    expected = offered("freyface")
    folder = tmp_path / "cache" / "data" / "freyface"
    folder.mkdir(parents=True)
    (folder / "frey_rawface.mat.part").write_bytes(b"x" * 1000)
    check_pixels(load_data("freyface", progress=False), expected)
    (folder / "frey_rawface.mat").unlink()
    (folder / "frey_rawface.mat.part").write_bytes(b"x" * 2_000_000)  # longer than the file
    check_pixels(load_data("freyface", progress=False), expected)
    # A complete file that was not yet renamed into place is not downloaded again.
    (folder / "frey_rawface.mat").rename(folder / "frey_rawface.mat.part")
    count = len(server.requests)
    check_pixels(load_data("freyface", progress=False), expected)
    assert len(server.requests) == count


def test_offline_says_which_file_to_put_where(tmp_path):
    """The server is closed."""
    server = Server()
    server.close()
    file = catalog.RemoteFile("a.mat", (server.address + "a.mat",), "sha256:0", 3)
    with pytest.raises(UserError, match="are you offline") as caught:
        download.fetch(file, tmp_path, ProgressBar(False))
    assert f"put it at {tmp_path / 'a.mat'}" in str(caught.value)


def test_a_full_disk_leaves_no_partial_file(server, offered, tmp_path, monkeypatch):
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

    def full(path, mode="r", *args, **kwargs):
        file = opened(path, mode, *args, **kwargs)
        return Full(file) if path.suffix == ".part" and mode in ("wb", "ab") else file

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OSError, match="No space left") as caught:
        load_data("cifar10", progress=False)
    assert caught.value.filename.endswith("cifar-10-binary.tar.gz.part")
    assert not list((tmp_path / "cache").rglob("*.part"))


def fetch_in_a_process(file, folder):
    download.fetch(file, folder, ProgressBar(False))


def test_two_processes_download_once(server, offered, tmp_path):
    offered("cifar10")
    (file,) = catalog.CATALOG["cifar10"].files
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=fetch_in_a_process, args=(file, tmp_path)) for _ in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    assert [name for name, _ in server.requests].count(file.name) == 1
    assert (tmp_path / file.name).read_bytes() == server.files[file.name]


def test_get_downloads_mnist_into_an_explicit_folder(server, offered, tmp_path):
    from vaekit.data.sources.locations import download_dataset

    offered("mnist")
    assert download_dataset("mnist", None).startswith("mnist is in ")
    assert not server.requests
    assert (
        download_dataset("MNIST", str(tmp_path / "new"))
        == f"mnist is in {tmp_path / 'new' / 'mnist'}"
    )
    assert len(list((tmp_path / "new" / "mnist").iterdir())) == 4
    count = len(server.requests)
    assert (
        download_dataset("mnist", str(tmp_path / "new"))
        == f"mnist is in {tmp_path / 'new' / 'mnist'}"
    )
    assert len(server.requests) == count


def test_downloads_go_to_data_dir(server, offered, tmp_path, monkeypatch):
    expected = offered("freyface")
    for data_dir in (tmp_path / "a", tmp_path / "b"):
        data_dir.mkdir()
    data = load_data("freyface", tmp_path / "a", progress=False)
    assert (tmp_path / "a" / "freyface" / "frey_rawface.mat").exists()
    assert data.source.data_dir == str(tmp_path / "a")
    monkeypatch.setenv("VAEKIT_DATA", str(tmp_path / "b"))
    check_pixels(load_data("freyface", progress=False), expected)
    assert (tmp_path / "b" / "freyface" / "frey_rawface.mat").exists()
    (tmp_path / "b" / "freyface").rename(
        tmp_path / "b" / "Frey_Face"
    )  # case and underscores are ignored
    assert find_local("freyface") == tmp_path / "b" / "Frey_Face"
    count = len(server.requests)
    load_data("freyface", tmp_path / "a" / "freyface", progress=False)  # the folder itself
    assert len(server.requests) == count


# Damaged archives and files


def write_folder(tmp_path, name, files) -> Path:
    folder = tmp_path / name
    folder.mkdir()
    for file, content in files.items():
        (folder / file).write_bytes(content)
    return folder


@pytest.mark.parametrize("name", MAKERS)
def test_a_changed_file_is_refused(name, offered, server, tmp_path, monkeypatch):
    """Detected by its hash; for MNIST's IDX files, by the hash of their unpacked content."""
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
    folder = write_folder(tmp_path, "d", files)
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
        contents = {Path(m.name).name: archive.extractfile(m).read() for m in archive}
    return {name: content for name, content in contents.items() if name.endswith(".bin")}


def test_cifar_is_read_from_unpacked_files(offered, server, tmp_path):
    expected = offered("cifar10")
    (content,) = server.files.values()
    folder = tmp_path / "d"
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        archive.extractall(folder, **EXTRACT_OPTIONS)
    check_pixels(load_data("cifar10", folder, progress=False), expected)
    check_pixels(load_data("cifar10", folder / "cifar-10-batches-bin", progress=False), expected)
    (folder / "cifar-10-batches-bin" / "data_batch_3.bin").unlink()
    with pytest.raises(UserError, match=r"lacks data_batch_3\.bin"):
        load_data("cifar10", folder, progress=False)


def test_caltech_is_read_from_each_archive_or_unpacked(offered, server, tmp_path):
    expected = offered("caltech101")
    write_folder(tmp_path, "zip", server.files)
    members = caltech_members()
    write_folder(tmp_path, "tar", {"101_ObjectCategories.tar.gz": tar_bytes(members)})
    with tarfile.open(tmp_path / "tar" / "101_ObjectCategories.tar.gz") as archive:
        archive.extractall(tmp_path / "open", **EXTRACT_OPTIONS)
    data = load_data("caltech101", tmp_path / "zip", progress=False)
    assert data.classes == ("ant", "bass")
    assert data.shape == (3, 12, 10)
    check_pixels(data, expected)
    more = load_data("caltech101:background", tmp_path / "zip", progress=False)
    assert more.classes == ("BACKGROUND_Google", "ant", "bass")
    assert sum(map(len, more.splits.values())) == 30
    for kind in ("tar", "open"):  # other random pixels, the same layout
        other = load_data("caltech101", tmp_path / kind, progress=False)
        assert (other.classes, sum(map(len, other.splits.values()))) == (data.classes, 20)


def archive_with(kind: str, name: str, link: bool) -> bytes:
    file = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(file, "w") as archive:
            info = zipfile.ZipInfo(name)
            if link:
                info.external_attr = 0o120777 << 16
            archive.writestr("good/a.png", png())
            archive.writestr(info, "/etc/passwd")
        return file.getvalue()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        info = tarfile.TarInfo("good/a.png")
        info.size = len(png())
        archive.addfile(info, io.BytesIO(png()))
        info = tarfile.TarInfo(name)
        if link:
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(info)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
@pytest.mark.parametrize(
    ("name", "link", "message"),
    [
        ("../../evil.png", False, "path outside it"),
        ("/tmp/evil.png", False, "path outside it"),
        ("a/../../evil.png", False, "path outside it"),
        ("..\\evil.png", False, "path outside it"),
        ("link.png", True, "a link"),
    ],
)
def test_an_archive_with_paths_outside_it_is_refused(kind, name, link, message, tmp_path):
    path = tmp_path / f"images.{kind}"
    path.write_bytes(archive_with(kind, name, link))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=message) as caught:
        load_data(path, progress=False)
    assert "\n" not in str(caught.value)
    assert sorted(p for p in tmp_path.rglob("*") if "cache" not in p.parts) == before
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"gg": np.zeros((560, 5), np.uint8)}, "no variable 'ff'"),
        ({}, "no variable 'ff'"),
        ({"ff": np.zeros((560, 5))}, "'ff' is not a matrix of bytes"),
        ({"ff": np.zeros((2, 3, 4), np.uint8)}, "'ff' is not a matrix of bytes"),
        ({"ff": "text"}, "'ff' is not a matrix of bytes"),
    ],
)
def test_a_mat_file_without_the_matrix_is_refused(content, message, tmp_path):
    path = tmp_path / "f.mat"
    scipy.io.savemat(path, content)
    with pytest.raises(UserError, match=message) as caught:
        read_mat(path, "ff", hashes.file_digest(path, "md5:"))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_mat_file_of_another_hash_reaches_the_reader(tmp_path, monkeypatch):
    """SciPy's reader can crash the process."""
    monkeypatch.setattr(scipy.io, "loadmat", lambda *_, **__: pytest.fail("the reader was called"))
    path = tmp_path / "f.mat"
    path.write_bytes(b"MATLAB 5.0 MAT-file" + bytes(200))
    with pytest.raises(UserError, match="hash differs"):
        read_mat(path, "ff", "md5:5aeb024d42b8a6091f30e5eb18c8a48d")
    with pytest.raises(UserError, match="is missing"):
        read_mat(tmp_path / "none.mat", "ff", "md5:0")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"0 1 0\n1 0\n", "not 3 per line"),
        (b"0 1 2\n", "not a text of 0 and 1"),
        (b"0 1 x\n", "not a text of 0 and 1"),
        (b"", "not 3 per line"),
        (b"0 1 1", "not 3 per line"),
    ],
)
def test_a_bad_amat_file_is_refused(content, message, tmp_path):
    path = tmp_path / "f.amat"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_amat(path, 3)
    path.write_bytes(b"0 1 1 \n1 0 1\n")
    assert read_amat(path, 3).tolist() == [[0, 1, 1], [1, 0, 1]]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "not 3,073"), (b"\x00" * 3072, "not 3,073"), (b"\x0a" * 3073, "labels above 9")],
)
def test_a_bad_cifar_file_is_refused(content, message):
    with pytest.raises(UserError, match=message):
        read_cifar(content, "x.bin")


def test_a_folder_of_four_idx_files_is_a_data_set(tmp_path):
    files, images = idx_files()
    renamed = {f"emnist-{name.replace('t10k', 'test')}": content for name, content in files.items()}
    folder = write_folder(tmp_path, "letters", renamed)
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
    assert (
        data.train.images[..., 0] == 0
    ).all()  # the left bar: the width of 20 of 28 becomes 23 of 32
    assert load_data("freyface", size="28x20", progress=False).sha256() == plain.sha256()


def test_a_variant_is_part_of_the_name(offered):
    offered("freyface")
    ordered = load_data("freyface:ordered", progress=False)
    assert [len(split) for split in ordered.splits.values()] == [1572, 196, 197]
    shuffled = load_data("freyface", progress=False)
    assert same_images(np.concatenate(pixels(ordered)), np.concatenate(pixels(shuffled)))
    aevb = load_data("freyface:aevb", progress=False)
    assert [len(split) for split in aevb.splits.values()] == [1365, 200, 400]
    halves = torch.cat([shuffled.validation.images, shuffled.test.images])
    assert torch.equal(aevb.test.images, halves)
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


@pytest.mark.parametrize("name", catalog.CATALOG)
def test_the_catalog_entries_are_complete(name):
    """Each data set has a reader, and its files have valid hashes and URLs."""
    entry = catalog.CATALOG[name]
    assert name in named.READERS
    for file in entry.files:
        algorithm, _, digits = file.digest.partition(":")
        assert len(digits) == {"sha256": 64, "md5": 32}[algorithm]
        assert int(digits, 16) > 0
        assert file.urls
        assert all(url.endswith(file.name) or "/content" in url for url in file.urls)
    json.dumps(dataclasses.asdict(entry), default=dict)


# The real data sets

real = pytest.mark.skipif(not REAL, reason="VAEKIT_DATA is not set to a folder with the real data")


def load_real(name, monkeypatch):
    monkeypatch.setenv("VAEKIT_DATA", REAL)
    if find_local(name) is None:
        pytest.skip(f"no {name} in VAEKIT_DATA")
    return load_data(name, progress=False)


@real
def test_real_fashion_mnist(monkeypatch):
    data = load_real("fashionmnist", monkeypatch)
    assert [len(split) for split in data.splits.values()] == [50_000, 10_000, 10_000]
    x = torch.cat([data.train.images, data.validation.images]).float() / 255
    assert x.mean().item() == pytest.approx(0.2860, abs=5e-5)
    assert x.std().item() == pytest.approx(0.3530, abs=5e-5)
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
    # These files are the original text, byte for byte, or their hashes would be refused: so the packed bits are those
    # of the data set, in order.
    assert load_data("binarizedmnist", tmp_path, progress=False).sha256() == data.sha256()


@real
def test_real_frey_faces(monkeypatch):
    data = load_real("freyface", monkeypatch)
    assert [len(split) for split in data.splits.values()] == [1565, 200, 200]
    assert data.shape == (1, 28, 20)
    assert data.likelihood == "logistic"
    # Neighbouring rows of a face are similar; with height and width swapped they would not be.
    differences = [
        (x[:, 1:] - x[:, :-1]).abs().mean()
        for x in (data.train.images.float().view(-1, *size) for size in ((28, 20), (20, 28)))
    ]
    assert differences[0] < 0.6 * differences[1]
