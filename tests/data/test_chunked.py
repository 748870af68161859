"""HDF5 and zarr files: which of their arrays are read, in slices, and what is refused."""

import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from image_folders import load
from vaekit import UserError, build, encode, load_data, train
from vaekit.data.formats import chunked
from vaekit.data.formats.chunked import select_arrays, split_path
from vaekit.data.loading import reload
from vaekit.data.sources.arrays import open_arrays, parse_array_names
from vaekit.data.sources.inputs import is_array_path, read_arrays

RNG = np.random.default_rng(6)
IMAGES = RNG.integers(0, 256, (20, 6, 5), dtype=np.uint8)
LABELS = np.arange(20) % 4


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("VAEKIT_CACHE", str(tmp_path_factory.mktemp("cache")))


def write(path: Path, arrays: dict[str, np.ndarray], **options) -> Path:
    """Write arrays by their paths in a file of the format that its name tells."""
    if path.suffix == ".h5":
        h5py = pytest.importorskip("h5py")
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                file.create_dataset(name, data=array, **options)
        return path
    zarr = pytest.importorskip("zarr")
    store = zarr.storage.ZipStore(path, mode="w") if path.suffix == ".zip" else str(path)
    group = zarr.open_group(store, mode="w", zarr_format=options.pop("zarr_format", 3))
    for name, array in arrays.items():
        folder, _, leaf = name.rpartition("/")
        parent = group.require_group(folder) if folder else group
        parent.create_array(leaf, data=array, **options)
    group.store.close()
    return path


KINDS = ["x.h5", "x.zarr", "x.zarr.zip"]
kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.mark.parametrize(
    ("path", "file", "inside"),
    [
        ("a/x.h5:/images", "a/x.h5", "images"),
        ("x.HDF5:/raw/images/", "x.HDF5", "raw/images"),
        ("x.h5", "x.h5", ""),
        ("x.h5:", "x.h5", ""),
        ("x.zarr:/", "x.zarr", ""),
        ("x.zarr.zip:/0", "x.zarr.zip", "0"),
        (r"C:\data\x.h5", r"C:\data\x.h5", ""),
        (r"C:\data\x.h5:\raw\images", r"C:\data\x.h5", "raw/images"),
        ("C:/data/x.h5:/images", "C:/data/x.h5", "images"),
    ],
)
def test_the_path_of_an_array_in_a_file(path, file, inside):
    assert split_path(Path(path)) == (Path(file), inside)


@pytest.mark.parametrize("path", ["x.npy", "mnist:1000", r"C:\x.npy", "x.h5.npy", "x.h5x:/a", "h5"])
def test_other_paths_are_left_alone(path):
    assert split_path(Path(path)) is None


@kinds
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float32", "float64", ">u2", "bool"])
def test_slices_are_the_arrays_written(kind, dtype, tmp_path):
    array = (IMAGES > 99) if dtype == "bool" else IMAGES.astype(dtype)
    path = write(tmp_path / kind, {"images": array, "labels": LABELS})
    images, labels = open_arrays(path, mapped=True)["train"]
    assert (images.shape, images.dtype, len(images)) == (
        array.shape,
        array.dtype.newbyteorder("="),
        20,
    )
    for rows in (slice(0, 1), slice(7, 13), slice(18, 40), slice(None)):
        assert isinstance(images[rows], np.ndarray)
        assert images[rows].dtype == images.dtype
        np.testing.assert_array_equal(images[rows], array[rows])
        np.testing.assert_array_equal(labels[rows], LABELS[rows])


@kinds
def test_a_file_is_a_data_set(kind, tmp_path):
    path = write(tmp_path / kind, {"images": IMAGES, "labels": LABELS})
    expected = load((IMAGES, LABELS))
    for given in (path, f"{path}:/images", f"{path}:/"):
        data = load(given)
        assert data.sha256() == expected.sha256()
        assert data.name == path.stem
        assert load(given, in_memory="no").shape == (1, 6, 5)
    moved = tmp_path / "moved"
    moved.mkdir()
    source = load(f"{path}:/images").source
    assert source.data == f"{path}:/images"
    path.rename(moved / kind)
    assert reload(source, moved, "run").sha256() == expected.sha256()


@kinds
def test_named_parts_and_nested_arrays(kind, tmp_path):
    path = write(
        tmp_path / kind,
        {"raw/x_train": IMAGES, "raw/y_train": LABELS, "raw/x_test": IMAGES[:3], "raw/y_test": LABELS[:3],
         "single/volume": IMAGES[:9], "single/labels": LABELS[:9], "single/ids": np.arange(9.0)},
    )  # fmt: skip
    data = load(f"{path}:/raw")
    assert len(data.test) == 3
    np.testing.assert_array_equal(data.test.images[:, 0], IMAGES[:3])
    one = open_arrays(Path(f"{path}:/raw/x_test"), True)["train"]
    np.testing.assert_array_equal(one[0][:], IMAGES[:3])
    np.testing.assert_array_equal(one[1][:], LABELS[:3])
    images, labels = open_arrays(Path(f"{path}:/single"), True)["train"]
    np.testing.assert_array_equal(images[:], IMAGES[:9])
    np.testing.assert_array_equal(labels[:], LABELS[:9])
    with pytest.raises(UserError, match=r"several arrays: /raw/x_test \(3, 6, 5\) uint8") as caught:
        load(path)
    assert f"as --data {path}:/raw/x_t" in caught.value.args[0]
    for inside in ("nothing", "raw/nothing", "raw/x_train/deeper"):
        with pytest.raises(UserError, match=f"there is no .*{inside}; there are: "):
            load(f"{path}:/{inside}")
    with pytest.raises(UserError, match=r"has \.\. inside the file"):
        load(f"{path}:/raw/../single/volume")


@kinds
def test_a_changed_file_is_read_again(kind, tmp_path):
    path = tmp_path / kind
    write(path, {"images": IMAGES})
    before = load(path, in_memory="no").sha256()
    write(path, {"images": 255 - IMAGES})
    after = load(path, in_memory="no")
    assert before != after.sha256() == load(path, in_memory="no").sha256()
    total = sum(int(split.images[:].sum()) for split in after.splits.values())
    assert total == (255 - IMAGES).sum(dtype=int)


@kinds
def test_only_slices_are_read(kind, tmp_path, monkeypatch):
    path = write(tmp_path / kind, {"images": IMAGES})
    rows = []
    read = chunked.ChunkedArray.__getitem__
    monkeypatch.setattr(
        chunked.ChunkedArray, "__getitem__", lambda self, key: rows.append(key) or read(self, key)
    )
    images, _ = open_arrays(path, mapped=True)["train"]
    assert rows == []
    assert images[2:4].shape == (2, 6, 5)
    assert rows == [slice(2, 4)]


@kinds
def test_arrays_are_encoded_like_others(kind, tmp_path):
    path = write(tmp_path / kind, {"a/images": IMAGES, "b/images": IMAGES})
    given = Path(f"{path}:/a/images")
    assert is_array_path(given)
    ((name, start, part, _),) = read_arrays(given, (1, 6, 5), "crop")
    assert (name, start) == ("all", 0)
    np.testing.assert_array_equal(part.images[:, 0], torch.from_numpy(IMAGES))


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "gzip", "shuffle": True, "fletcher32": True},
        {"compression": "lzf"},
        {"chunks": (3, 6, 5)},
    ],
)
def test_builtin_filters_of_hdf5_are_read(options, tmp_path):
    path = write(tmp_path / "x.h5", {"images": IMAGES}, **options)
    np.testing.assert_array_equal(open_arrays(path, True)["train"][0][:], IMAGES)


@pytest.mark.parametrize("options", [{"zarr_format": 2}, {"shards": (10, 6, 5), "chunks": (5, 3, 5)}])  # fmt: skip
def test_formats_and_shards_of_zarr_are_read(options, tmp_path):
    path = write(tmp_path / "x.zarr", {"images": IMAGES}, **options)
    np.testing.assert_array_equal(open_arrays(path, True)["train"][0][:], IMAGES)


def test_a_zarr_array_at_the_root_is_read(tmp_path):
    zarr = pytest.importorskip("zarr")
    zarr.create_array(str(tmp_path / "x.zarr"), data=IMAGES)
    np.testing.assert_array_equal(open_arrays(tmp_path / "x.zarr", True)["train"][0][:], IMAGES)


@pytest.mark.parametrize("package", ["h5py", "zarr"])
def test_a_missing_package_is_named(package, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    path = tmp_path / ("x.h5" if package == "h5py" else "x.zarr")
    path.write_bytes(b"") if package == "h5py" else path.mkdir()
    with pytest.raises(UserError, match=rf"needs {package}: pip install 'vaekit\[science\]'"):
        load(path)


# Hostile files


def refused(path, match: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_links_and_values_in_other_files_are_not_followed(tmp_path):
    h5py = pytest.importorskip("h5py")
    secret = write(tmp_path / "secret.h5", {"images": IMAGES})
    (tmp_path / "raw.bin").write_bytes(IMAGES.tobytes())
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["external"] = h5py.ExternalLink(str(secret), "/images")
        file["group"] = h5py.ExternalLink(str(secret), "/")
        file["soft"] = h5py.SoftLink("/external")
        layout = h5py.VirtualLayout(IMAGES.shape, IMAGES.dtype)
        layout[:] = h5py.VirtualSource(str(secret), "images", IMAGES.shape)
        file.create_virtual_dataset("virtual", layout)
        raw = [(str(tmp_path / "raw.bin"), 0, IMAGES.nbytes)]
        file.create_dataset("raw", IMAGES.shape, IMAGES.dtype, external=raw)
        file["loop/back"] = file["/"]
    for name in ("external", "soft", "group", "group/images"):
        refused(f"{path}:/{name}", "is a link to .*give the path of the array itself")
    for name in ("virtual", "raw"):
        refused(f"{path}:/{name}", "has its values in other files")
    refused(path, "several arrays: /raw .* /virtual ")
    with h5py.File(tmp_path / "y.h5", "w") as file:
        file.create_dataset("images", IMAGES.shape, IMAGES.dtype, external=raw)
    refused(tmp_path / "y.h5", "has its values in other files")


def test_a_filter_from_elsewhere_is_not_loaded(tmp_path):
    path = write(tmp_path / "x.h5", {"images": IMAGES}, compression="gzip")
    content = path.read_bytes()
    # The filter pipeline message: its first filter's number, then the length of its name.
    start = content.index(b"\x01\x00\x08\x00\x01\x00\x01\x00deflate\0")
    path.write_bytes(content[:start] + b"\x0f\x7d" + content[start + 2 :])
    refused(path, "is compressed by 'deflate', which HDF5 itself cannot read")


def change_metadata(path: Path, **changes) -> None:
    name = next(n for n in ("zarr.json", ".zarray") if (path / n).exists())
    metadata = json.loads((path / name).read_text())
    (path / name).write_text(json.dumps(metadata | changes))


def test_codecs_of_zarr_that_run_code_are_refused(tmp_path):
    path = write(tmp_path / "x.zarr", {"images": IMAGES}, zarr_format=2)
    for changes in (
        {"filters": [{"id": "delta", "dtype": "|u1"}, {"id": "pickle"}]},
        {"compressor": {"id": "pickle"}},
        {"filters": [{"id": "json2"}]},
    ):
        change_metadata(path / "images", **{"filters": None, "compressor": None} | changes)
        refused(path, "cannot be read")  # by zarr itself
    change_metadata(path / "images", filters=[{"id": "base64"}], compressor=None)
    refused(path, "is stored by 'base64', which is not read")
    codecs = [{"name": "bytes", "configuration": {"endian": "little"}}]
    path = write(tmp_path / "y.zarr", {"images": IMAGES})
    change_metadata(path / "images", codecs=[*codecs, {"name": "numcodecs.pickle", "configuration": {}}])  # fmt: skip
    refused(path, "cannot be read")
    inner = [*codecs, {"name": "numcodecs.fletcher32", "configuration": {}}]
    shards = {"chunk_shape": [10, 6, 5], "codecs": inner, "index_codecs": codecs, "index_location": "end"}  # fmt: skip
    change_metadata(path / "images", codecs=[{"name": "sharding_indexed", "configuration": shards}])
    refused(path, r"is stored by 'numcodecs\.fletcher32'")


def test_a_zarr_folder_with_links_is_refused(tmp_path):
    path = write(tmp_path / "x.zarr", {"images": IMAGES})
    link = path / "images" / "c" / "link"
    for target in ("/dev/zero", __file__, tmp_path):
        os.symlink(target, link)
        refused(path, "is a link, or no file")
        link.unlink()


@kinds
@pytest.mark.parametrize(
    ("array", "match"),
    [
        (np.zeros((0, 6, 5), np.uint8), r"has the shape \(0, 6, 5\)"),
        (np.zeros((4, 6, 5), np.complex64), "type complex64"),
        (np.float32(3), r"\(\) "),
        (np.zeros(9), "no array of images"),
    ],
)
def test_arrays_that_are_no_images_are_refused(kind, array, match, tmp_path):
    path = write(tmp_path / kind, {"things": np.asarray(array)})
    with pytest.raises(UserError) as caught:
        load(f"{path}:/things" if "no array" not in match else path)
    assert __import__("re").search(match, str(caught.value)), caught.value
    assert "\n" not in str(caught.value)


def test_compound_and_text_arrays_are_refused(tmp_path):
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["compound"] = np.zeros((3, 4, 4), [("a", "u1"), ("b", "f4")])
        file.create_dataset("text", (3, 4, 4), h5py.string_dtype())
        file.create_dataset("references", (3, 4, 4), h5py.ref_dtype)
        file.create_dataset("empty", data=h5py.Empty("f4"))
        file["named/images"] = IMAGES
        file["named/labels"] = ["a"] * 20
    for name in ("compound", "text", "references", "empty"):
        refused(f"{path}:/{name}", "images and labels must be numbers")
    assert load_data(f"{path}:/named/images", progress=False).classes == ("a",)


def test_huge_declared_arrays_are_refused(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("images", (2**40, 28, 28), "u1", chunks=(1, 28, 28))
        file.create_dataset(
            "chunk/images", (1, 4, 4), "u1", chunks=(1, 2**16, 2**15), maxshape=(None, None, None)
        )
    for name in ("images", "chunk/images"):
        refused(f"{tmp_path / 'x.h5'}:/{name}", "bytes are stored")
    path = write(tmp_path / "y.zarr", {"images": IMAGES})
    change_metadata(path / "images", shape=[2**40, 6, 5])
    refused(path, "bytes are stored")


@kinds
def test_damaged_files_are_refused_in_one_line(kind, tmp_path):
    path = write(tmp_path / kind, {"images": IMAGES, "labels": LABELS})
    if path.is_dir():
        (path / "images" / "zarr.json").write_text("{")
        refused(f"{path}:/images", "cannot be read")
        (path / "images" / "zarr.json").unlink()
        refused(f"{path}:/images", "there is no")
        return
    content = path.read_bytes()
    for damaged in (b"", content[:8], content[: len(content) // 2], b"hello", RNG.bytes(999)):
        path.write_bytes(damaged)
        refused(path, "cannot be read")


def test_damaged_chunks_are_refused_in_one_line(tmp_path):
    path = write(tmp_path / "x.h5", {"images": IMAGES}, compression="gzip", fletcher32=True)
    content = bytearray(path.read_bytes())
    start = content.index(b"\x78\x5e") if b"\x78\x5e" in content else content.index(b"\x78\x9c")
    content[start + 20 : start + 60] = bytes(40)
    path.write_bytes(content)
    refused(path, "x.h5:/images cannot be read")
    folder = write(tmp_path / "y.zarr", {"images": IMAGES})
    chunk = next(p for p in (folder / "images" / "c").rglob("*") if p.is_file())
    chunk.write_bytes(chunk.read_bytes()[:20])
    refused(folder, "y.zarr:/images cannot be read")


def test_a_zip_that_is_no_zarr_is_refused(tmp_path):
    pytest.importorskip("zarr")
    with zipfile.ZipFile(tmp_path / "x.zarr.zip", "w") as archive:
        archive.writestr("a.txt", "hello")
    refused(tmp_path / "x.zarr.zip", "cannot be read")
    (tmp_path / "x.zarr").write_text("hello")
    refused(tmp_path / "x.zarr", "is not a zarr folder")
    (tmp_path / "x.h5").mkdir()
    refused(tmp_path / "x.h5", "is not a file")


def test_a_group_that_repeats_without_end_is_read_once(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["a/images"] = IMAGES
        file["a/again"] = file["a"]
        file["a/root"] = file["/"]
    selected = select_arrays(tmp_path / "x.h5", parse_array_names)
    np.testing.assert_array_equal(selected["images"][:], IMAGES)


@pytest.mark.parametrize("kind", ["h5", "zarr", "npz"])
@pytest.mark.parametrize("in_memory", ["yes", "no"])
def test_texts_are_names_of_classes(kind, in_memory, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (24, 6, 5), dtype=np.uint8)
    texts = ["cat", "dög", "ant"] * 8
    path = tmp_path / f"a.{kind}"
    if kind == "h5":
        h5py = pytest.importorskip("h5py")
        with h5py.File(path, "w") as file:
            file["images"] = images
            file.create_dataset("labels", data=texts, dtype=h5py.string_dtype())
    elif kind == "zarr":
        group = pytest.importorskip("zarr").open_group(str(path), mode="w")
        group.create_array("images", data=images)
        group.create_array("labels", shape=(24,), dtype=str)[:] = np.array(texts)
    else:
        np.savez(path, images=images, labels=np.array(texts))
    data = load_data(path, in_memory=in_memory, progress=False)
    assert data.classes == ("ant", "cat", "dög")
    known = {image.tobytes(): text for image, text in zip(images, texts, strict=True)}
    for split in data.splits.values():
        for image, label in zip(split.images[:].numpy(), split.labels.tolist(), strict=True):
            assert known[image.tobytes()] == data.classes[label]
    model = build("cvae", data, latent_dim=2, hidden_dim=4)
    run = train(model, data, out=tmp_path / "run", epochs=1, progress=False)
    table = encode(run, path, samples=2)
    assert table["class"].tolist() == texts
    assert table["label"].tolist() == [data.classes.index(text) for text in texts]


def test_attributes_that_scale_values_are_said_not_to_be_applied(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        array = file.create_dataset("images", data=np.arange(720, dtype=np.int16).reshape(9, 10, 8))
        array.attrs.update({"scale_factor": 0.1, "_FillValue": np.int16(-1), "units": "K"})
    for in_memory in ("yes", "no"):
        data = load_data(tmp_path / "a.h5", in_memory=in_memory, progress=False)
        assert data.reading[0].endswith("; its attributes scale_factor, _FillValue are not applied")
