"""Regression tests of the data wing: faults that no other test would notice."""

import io
import json
import tarfile
import threading
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from image_folders import all_images, load, save_images
from made_files import MAKERS, idx_bytes, png, tar_bytes
from vaekit import Split, UserError, build, evaluate, load_data, train
from vaekit.data import eval_split, stored
from vaekit.data.formats import images
from vaekit.data.formats.images import BadImage, ImageSpec, decode, inspect_image
from vaekit.data.sources import image_files, inputs, named
from vaekit.data.sources.inputs import find_image_files, read_images
from vaekit.data.stored import open_store
from vaekit.inference.generation import load_inputs
from vaekit.runs.directory import Run
from vaekit.support.console import ProgressBar

RNG = np.random.default_rng(7)


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path_factory):
    path = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("VAEKIT_CACHE", str(path))
    return path / "decoded"


def save_labelled_images(folder, classes, count=6, shape=(6, 5)) -> None:
    """Write images whose pixels tell their class: 50 grey levels per class, plus noise of 20."""
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            noise = RNG.integers(0, 20, shape, dtype=np.uint8)
            Image.fromarray(noise + np.uint8(50 * label)).save(folder / name / f"{i}.png")


def check_labels(data, classes, left_out=()) -> None:
    """Check that the labels are the classes that the pixels of `save_labelled_images` tell."""
    assert data.classes == tuple(sorted(set(classes) - set(left_out)))
    for split in data.splits.values():
        batch = split[:]
        means = batch.images.flatten(1).float().mean(1)
        expected = [classes.index(data.classes[label]) for label in batch.labels]
        assert (means // 50).int().tolist() == expected


CLASSES = ["B", "a", "c"]  # upper case first, as Python sorts


@pytest.mark.parametrize("small_file", [0, 10**9], ids=["parallel", "serial"])
@pytest.mark.parametrize("bad", [[], ["B/0.png", "B/3.png", "c/5.png"]], ids=["", "bad"])
@pytest.mark.parametrize("where", ["yes", "no"])
def test_labels_belong_to_their_images(small_file, bad, where, tmp_path, monkeypatch):
    monkeypatch.setattr(image_files, "SMALL_FILE", small_file)
    monkeypatch.setattr(image_files, "BATCH_FILES", 2)
    monkeypatch.setattr(image_files, "CHUNK_BYTES", 90)
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    save_labelled_images(tmp_path / "d", CLASSES)
    for name in bad:
        (tmp_path / "d" / name).write_bytes(b"x")
    data = load(tmp_path / "d", skip_bad=True, in_memory=where)
    assert len(all_images(data)) == 18 - len(bad)
    check_labels(data, CLASSES)


def test_the_order_of_images_does_not_depend_on_threads(tmp_path, monkeypatch):
    save_images(tmp_path / "d", [f"{i:03d}.png" for i in range(60)])
    expected = load(tmp_path / "d").sha256()
    monkeypatch.setattr(image_files, "SMALL_FILE", 0)
    monkeypatch.setattr(image_files, "BATCH_FILES", 2)
    monkeypatch.setenv("VAEKIT_CACHE", str(tmp_path / "cache"))
    assert load(tmp_path / "d").sha256() == expected


def test_labels_of_an_unsorted_archive(tmp_path):
    save_labelled_images(tmp_path / "d", CLASSES)
    files = sorted((tmp_path / "d").rglob("*.png"), key=lambda path: path.name)
    with tarfile.open(tmp_path / "d.tar", "w") as archive:
        for file in files[::-1]:
            archive.add(file, file.relative_to(tmp_path / "d"))
    check_labels(load(tmp_path / "d.tar"), CLASSES)


@pytest.mark.parametrize("split_folders", [False, True])
def test_labels_without_a_class_that_is_left_out(split_folders, tmp_path):
    from vaekit.data.sources.files import Folder
    from vaekit.data.sources.image_files import load_images
    from vaekit.settings.data import SourceConfig
    from vaekit.support.console import ProgressBar

    for split in ("train", "test") if split_folders else ("",):
        save_labelled_images(tmp_path / "d" / split, CLASSES)
    source = Folder(tmp_path / "d")
    data = load_images(source, SourceConfig(), "d", ProgressBar(False), leave_out=["B"])
    assert sum(map(len, data.splits.values())) == (24 if split_folders else 12)
    check_labels(data, CLASSES, ["B"])
    if split_folders:
        assert len(data.test) == 12


def test_labels_of_cifar(tmp_path, monkeypatch):
    """The red channel of each image tells its label."""
    monkeypatch.setattr(named, "CIFAR_MD5", {})
    labels = {}
    for name in [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]:
        labels[name] = RNG.integers(0, 10, 20, dtype=np.uint8)
        records = np.zeros((20, 3073), np.uint8)
        records[:, 0] = labels[name]
        records[:, 1:1025] = labels[name][:, None] * 20
        (tmp_path / f"{name}.bin").write_bytes(records.tobytes())
    data = load_data("cifar10", tmp_path, progress=False)
    for split in data.splits.values():
        assert torch.equal(split.images[:, 0, 3, 3].long() // 20, split.labels)
        assert (split.images[:, 1:] == 0).all()
    assert data.test.labels.tolist() == labels["test_batch"].tolist()


def test_eval_split_applies_the_threshold():
    split = Split(torch.tensor([0, 127, 128, 255], dtype=torch.uint8).view(1, 1, 2, 2))
    assert eval_split(split, "threshold")[:].images.flatten().tolist() == [0, 0, 1, 1]
    assert eval_split(split, "none")[:].images.flatten().tolist() == pytest.approx(
        [0, 127 / 255, 128 / 255, 1]
    )


@pytest.mark.parametrize("change", [{"fit": "stretch"}, {"colour": "rgb"}, {"size": "5"}])
def test_the_cache_depends_on_the_settings(change, tmp_path):
    save_labelled_images(tmp_path / "d", CLASSES, shape=(9, 4))
    plain, other = load(tmp_path / "d", size="6"), load(tmp_path / "d", **{"size": "6", **change})
    assert plain.shape != other.shape or not np.array_equal(all_images(plain), all_images(other))
    assert plain.sha256() != other.sha256()


def test_the_cache_distinguishes_folders(tmp_path):
    """Folders of the same name, with files of the same names, sizes and times, as from a reproducible archive."""
    import os

    for version, level in (("v1", 10), ("v2", 200)):
        for i in range(5):
            path = tmp_path / version / "set" / f"{i}.bmp"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((4, 4), level, np.uint8)).save(path)
            os.utime(path, (0, 0))
    assert (all_images(load(tmp_path / "v1" / "set")) == 10).all()
    assert (all_images(load(tmp_path / "v2" / "set")) == 200).all()
    Image.fromarray(np.full((4, 4), 99, np.uint8)).save(tmp_path / "v1" / "set" / "0.bmp")
    os.utime(tmp_path / "v1" / "set" / "0.bmp", (0, 0))
    assert 99 in all_images(load(tmp_path / "v1" / "set"))


def test_a_changed_zip_is_read_again(tmp_path):
    for level in (10, 200):
        with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
            for i in range(4):
                file = io.BytesIO()
                Image.fromarray(np.full((4, 4), level, np.uint8)).save(file, "bmp")
                archive.writestr(zipfile.ZipInfo(f"{i}.bmp"), file.getvalue())
        assert (all_images(load(tmp_path / "d.zip")) == level).all()


def test_a_changed_array_file_is_read_again(tmp_path):
    for level in (10, 200):
        np.save(tmp_path / "x.npy", np.full((9, 4, 4), level, np.uint8))
        assert (all_images(load(tmp_path / "x.npy", in_memory="no")) == level).all()


@pytest.mark.parametrize("in_memory", ["yes", "no"])
@pytest.mark.parametrize("source", ["images", "array file", "array", "prepared"])
def test_a_flipped_byte_of_a_file_of_images_is_noticed(tmp_path, cache, source, in_memory):
    """Wherever the pixels come from, and whether or not they stay on disk."""
    if source.startswith("array"):
        data = np.random.default_rng(0).integers(0, 256, (20, 4, 4), np.uint8)
        if source == "array file":
            np.save(tmp_path / "d.npy", data)
            data = tmp_path / "d.npy"
    else:
        data = tmp_path / "d"
        save_labelled_images(data, CLASSES)
    load(data, in_memory=in_memory)
    files = [*cache.glob("*.safetensors")]
    if not files:
        pytest.skip("arrays in memory have no file")
    (path,) = files
    if source == "prepared":
        data = path = path.rename(tmp_path / "e.safetensors")
    content = bytearray(path.read_bytes())
    content[open_store(path).images.offset + 7] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="the hash of its pixels differs"):
        load(data, in_memory=in_memory)


def test_files_of_images_are_checked_without_assertions_too(tmp_path, cache):
    """The module as `python -O` compiles it refuses every file that lacks something."""
    save_labelled_images(tmp_path / "d", CLASSES)
    load(tmp_path / "d")
    (path,) = cache.glob("*.safetensors")
    code = compile(Path(stored.__file__).read_text(), "stored", "exec", optimize=1)
    optimised = {"__name__": stored.__name__, "__package__": stored.__package__}
    exec(code, optimised)
    assert optimised["open_store"](path).metadata.format == stored.FORMAT
    tensors, count = safetensors.torch.load_file(path), len(open_store(path).labels)
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    of_format_9 = {**json.loads(metadata["vaekit"]), "format": 9}
    for changes, entries in [
        ({"parts": torch.full((count,), 3, dtype=torch.uint8)}, metadata),
        ({"parts": torch.zeros(count, dtype=torch.int64)}, metadata),
        ({"parts": torch.zeros(count - 1, dtype=torch.uint8)}, metadata),
        ({"labels": torch.zeros(count)}, metadata),
        ({"labels": torch.zeros(count - 1, dtype=torch.int64)}, metadata),
        ({"images": tensors["images"][0]}, metadata),
        ({"hashes": torch.zeros(count - 1, 16, dtype=torch.uint8)}, metadata),
        ({"table": torch.zeros(5)}, metadata),
        ({}, {"vaekit": json.dumps(of_format_9)}),
    ]:
        safetensors.torch.save_file({**tensors, **changes}, tmp_path / "x", entries)
        with pytest.raises(UserError, match=r"is damaged \(unexpected tensors or metadata\)"):
            optimised["open_store"](tmp_path / "x")


def test_the_hash_depends_on_the_settings_and_labels(tmp_path):
    save_labelled_images(tmp_path / "d", ["a", "b"])
    hashes = {load(tmp_path / "d", **s).sha256() for s in ({}, {"size": "3"}, {"colour": "rgb"})}
    from vaekit.data.summary import prepare_file
    from vaekit.settings.data import PreprocessConfig

    prepare_file(tmp_path / "d", PreprocessConfig(), tmp_path / "d.safetensors")
    prepared = [
        load(tmp_path / "d.safetensors", **s).sha256()
        for s in ({}, {"size": "3"}, {"colour": "rgb"})
    ]
    assert len(hashes) == len(set(prepared)) == 3
    before = load(tmp_path / "d").sha256()
    # The same image in another class.
    (tmp_path / "d" / "a" / "0.png").rename(tmp_path / "d" / "b" / "a0.png")
    assert load(tmp_path / "d").sha256() != before


@pytest.mark.parametrize("rows", [[], [3], [0, 1, 2], [5, 4, 4, 9], [17, 0, 1, 2, 7, 8]])
def test_rows_from_a_file_equal_rows_in_memory(rows, tmp_path):
    save_labelled_images(tmp_path / "d", CLASSES)
    in_memory, in_file = (
        load(tmp_path / "d", in_memory=where, test_share=0.01, validation_share=0.01)
        for where in ("yes", "no")
    )
    indices = torch.tensor([row % len(in_memory.train) for row in rows], dtype=torch.int64)
    assert torch.equal(in_file.train[indices].images, in_memory.train[indices].images)
    assert torch.equal(in_file.train.take(indices)[:].images, in_memory.train[indices].images)


def test_a_file_that_is_truncated_while_it_is_read(tmp_path, cache):
    save_labelled_images(tmp_path / "d", CLASSES)
    data = load(tmp_path / "d", in_memory="no")
    (path,) = cache.glob("*.safetensors")
    with path.open("r+b") as file:
        file.truncate(data.train.images.offset + 20)
    with pytest.raises(UserError, match="was truncated"):
        data.train[:]


def test_a_data_set_is_binary_only_if_all_images_are(tmp_path, monkeypatch):
    monkeypatch.setattr(image_files, "CHUNK_BYTES", 1)
    for i in range(6):
        array = 255 * RNG.integers(0, 2, (4, 4), dtype=np.uint8)
        if i == 0:
            array[0, 0] = 7
        (tmp_path / "d").mkdir(exist_ok=True)
        Image.fromarray(array).save(tmp_path / "d" / f"{i}.png")
    assert load(tmp_path / "d").likelihood == "logistic"
    binary = 255 * RNG.integers(0, 2, (9, 4, 4), dtype=np.uint8)
    grey = binary // 2
    assert load({"train": binary, "test": grey}).likelihood == "logistic"
    assert load({"train": binary, "test": binary}).likelihood == "bernoulli"


def test_given_splits_stay_in_a_file(tmp_path):
    arrays = {
        f"x_{split}": np.full((5, 4, 4), level, np.uint8)
        for split, level in (("train", 9), ("val", 99), ("test", 199))
    }
    np.savez(tmp_path / "d.npz", **arrays)
    data = load(tmp_path / "d.npz", in_memory="no")
    assert [int(split[:].images.max()) for split in data.splits.values()] == [9, 99, 199]
    with pytest.raises(UserError, match="no labels for test; give labels for every split"):
        load({"train": (arrays["x_train"], [0] * 5), "test": arrays["x_test"]}, in_memory="no")


def test_the_images_held_out_by_default(tmp_path):
    """They depend on the seed within each class; every reported result depends on the default ones."""
    array = np.arange(60, dtype=np.uint8).repeat(16).reshape(60, 4, 4) + 2
    labels = np.arange(60) // 20
    test = load((array, labels)).test
    assert sorted(test.images[:, 0, 0, 0].tolist()) == HELD_OUT
    others = [load((array, labels), split_seed=seed).test for seed in range(1, 4)]
    for label in range(3):
        chosen = {tuple(t.images[t.labels == label][:, 0, 0, 0].tolist()) for t in (test, *others)}
        assert len(chosen) > 1


HELD_OUT = [4, 5, 36, 41, 50, 53]


def test_idx_folders_are_split_by_class(tmp_path):
    array = RNG.integers(0, 256, (40, 3, 3), dtype=np.uint8)
    labels = np.repeat(np.arange(4, dtype=np.uint8), 10)
    for part in ("train", "t10k"):
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(idx_bytes(array))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    data = load(tmp_path, validation_share=0.2)
    assert data.validation.labels.bincount().tolist() == [2] * 4
    (tmp_path / "emnist-a-train-images-idx3-ubyte").write_bytes(idx_bytes(array))
    with pytest.raises(UserError, match="several data sets"):
        load(tmp_path)


def test_ambiguous_shapes_of_arrays():
    first = RNG.integers(0, 256, (5, 3, 7, 3), dtype=np.uint8)  # either axis could be the channels
    with pytest.raises(UserError, match="say which with channel_axis first or last"):
        load(first)
    assert load(first, channel_axis="first").shape == (3, 7, 3)
    assert load(first, channels="last").shape == (3, 3, 7)
    assert load(first[:, :1]).shape == (1, 7, 3)
    assert load(RNG.integers(0, 256, (5, 8, 8, 4), dtype=np.uint8)).shape == (4, 8, 8)


def test_rows_of_98_bytes_are_not_taken_for_packed_bits(tmp_path):
    np.save(tmp_path / "d.npy", RNG.integers(0, 256, (30, 98), dtype=np.uint8))
    with pytest.raises(UserError, match=r"an array of shape \(30, 98\); images are \(N, H, W\)"):
        load(tmp_path / "d.npy")


@pytest.mark.parametrize("where", ["yes", "no"])
def test_a_dark_chunk_of_grey_images_is_not_binary(where, tmp_path, monkeypatch):
    """Read in chunks, one of which has no pixel above 1."""
    monkeypatch.setattr("vaekit.data.stored.CHUNK_BYTES", 80)
    array = RNG.integers(0, 256, (20, 4, 4), dtype=np.uint8)
    array[5:10] //= 128
    np.save(tmp_path / "x.npy", array)
    assert sorted(
        a.tobytes() for a in all_images(load(tmp_path / "x.npy", in_memory=where))
    ) == sorted(a.tobytes() for a in array[:, None])


def test_zeros_and_ones_are_binary():
    for kind in (np.uint8, np.int64):
        data = load(RNG.integers(0, 2, (9, 4, 4)).astype(kind))
        assert data.likelihood == "bernoulli"
        assert data.train.images.unique().tolist() == [0, 255]


def test_a_run_remembers_its_data_dir_and_fit(tmp_path, monkeypatch):
    monkeypatch.delenv("VAEKIT_DATA", raising=False)
    monkeypatch.setattr(named, "IDX_MD5", {key: {} for key in named.IDX_MD5})
    folder = tmp_path / "sets" / "fashionmnist"
    folder.mkdir(parents=True)
    files, _ = MAKERS["fashionmnist"]()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    data = load_data("fashionmnist", tmp_path / "sets", progress=False)
    run = train(
        build("vae", data, latent_dim=1, hidden_dim=2),
        data,
        out=tmp_path / "a",
        epochs=1,
        batch_size=10000,
        progress=False,
    )
    assert evaluate(run, metrics=("elbo",), limit=5)["images"] == 5

    save_labelled_images(tmp_path / "d", CLASSES, shape=(8, 8))
    data = load(tmp_path / "d", fit="letterbox")
    run = train(
        build("vae", data, latent_dim=1, hidden_dim=2),
        data,
        out=tmp_path / "b",
        epochs=1,
        progress=False,
    )
    wide = np.full((8, 32), 255, np.uint8)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    (x,) = load_inputs(
        Run(run.path), [tmp_path / "wide.png"], "test", 1, None, ProgressBar(False)
    ).images
    assert (x[0, :2] == 0).all()
    assert (x[0, 4] == 1).all()
    labels = load_inputs(Run(run.path), (), "train", 3, None, print).labels
    assert labels.tolist() == [0, 1, 2]  # evenly spaced over a split sorted by class


def test_more_than_8_bits():
    grey = np.array([[0, 51, 102], [153, 204, 255]], np.uint8)
    for array, kind, depth in [
        ((grey / np.float32(255)).astype(np.float32), "tiff", "float32"),
        (-grey.astype(np.float32), "tiff", "float32"),
        (grey.astype(np.int32) * 257, "tiff", "float32"),
        (257 * grey.astype(np.uint16) - 5 * (grey > 0).astype(np.uint16), "png", "uint16"),
        (257 * grey.astype(np.uint16) - 5 * (grey > 0).astype(np.uint16), "tiff", "uint16"),
    ]:
        file = io.BytesIO()
        Image.fromarray(array).save(file, kind)
        content = file.getvalue()
        assert inspect_image(content).depth == depth
        read = decode(content, ImageSpec(1, 2, 3, depth=depth))
        assert read.dtype == depth
        assert np.array_equal(read[0], array)
        if depth == "uint16":  # for a model of 8-bit images
            assert np.array_equal(decode(content, ImageSpec(1, 2, 3, rounded=True))[0], grey)
        else:
            with pytest.raises(BadImage, match=f"its values are {array.dtype}, not uint8"):
                decode(content, ImageSpec(1, 2, 3))
    with pytest.raises(BadImage, match="its values are uint8, not uint16"):
        decode(png(), ImageSpec(1, 2, 3, depth="uint16"))


@pytest.mark.parametrize("dtype", ["<i2", ">i2", "<u2", ">u2"])
def test_arrays_of_16_bits_in_a_folder_keep_their_type_and_values(tmp_path, dtype):
    array = RNG.integers(100, 9000, (6, 4, 5)).astype(dtype)
    for i, image in enumerate(array):
        np.save(tmp_path / f"{i}.npy", image)
    data = load(tmp_path)
    values = data.value_range
    assert values.dtype == np.dtype(dtype).name
    read = [
        (values.low + x.double() * (values.high - values.low)).round()
        for split in data.splits.values()
        for x in split.images
    ]
    names = [name for split in data.splits.values() for name in split.table.names]
    expected = [np.load(tmp_path / name).clip(values.low, values.high) for name in names]
    assert np.array_equal(torch.stack(read)[:, 0], expected)


def test_volumes_with_and_without_a_slope_are_one_data_set(tmp_path):
    """int16 values are among those of float32; uint16 values and fractions are refused as of two scales."""
    array = RNG.integers(-100, 9000, (6, 4, 5)).astype(np.int16)
    for i, image in enumerate(array):
        np.save(tmp_path / f"{i}.npy", image if i % 2 else image + np.float32(0.5))
    data = load(tmp_path)
    assert (data.value_range.dtype, data.value_range.levels) == ("float32", None)
    np.save(tmp_path / "0.npy", array[0].astype(np.uint16))
    with pytest.raises(UserError, match="images differ in the type of their values"):
        load(tmp_path)


def test_int16_files_to_encode_are_decoded_once_and_floats_may_have_the_same_units(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("VAEKIT_CACHE", str(tmp_path / "cache"))
    array = RNG.integers(-100, 9000, (6, 4, 5)).astype(np.int16)
    folder = tmp_path / "d"
    folder.mkdir()
    for i, image in enumerate(array):
        np.save(folder / f"{i}.npy", image)
    values = load(folder).value_range
    expected = ((array - values.low) / (values.high - values.low)).clip(0, 1)

    def read() -> np.ndarray:
        files = find_image_files([folder])
        return read_images(files, (1, 4, 5), ProgressBar(True), value_range=values)[:, 0].numpy()

    with monkeypatch.context() as patch:
        patch.setattr(inputs, "decode", None)
        assert np.allclose(read(), expected, atol=1e-6)
    for dtype in (np.int16, np.float32):
        np.save(folder / "0.npy", array[0].astype(dtype))
        assert np.allclose(read(), expected, atol=1e-6)
    assert "8 bits" not in capsys.readouterr().err


def test_pil_images_of_a_dataset_are_converted_like_files():
    grey = RNG.integers(0, 255, (4, 5), dtype=np.uint8)  # 255 * 257 + 3 is above 16 bits
    deep = [Image.fromarray(grey.astype(np.uint16) * 257 + 3)] * 4
    read = all_images(load(deep))[:, 0]
    span = grey.max() - grey.min()
    assert np.allclose(read, (grey.astype(float) - grey.min()) / span, atol=1e-7)
    transparent = np.zeros((4, 5, 4), np.uint8)
    assert (all_images(load([Image.fromarray(transparent)] * 4)) == 255).all()
    assert load([Image.fromarray(grey > 99)] * 4).shape == (1, 4, 5)
    assert load([(image, "cat") for image in deep]).classes == ("cat",)
    assert load([(image, None) for image in deep]).class_count == 0
    assert load((torch.rand(5, 1, 4, 4).bfloat16(), [0, 1, 0, 1, 0])).likelihood == "gaussian"
    with pytest.raises(UserError, match="do not form an array"):
        load((np.zeros((3, 4, 4), np.uint8), [[0], [1, 2], [0]]))


@pytest.mark.parametrize("unreadable", [["test/b/0.png"], ["train/b/0.png", "train/b/1.png"]])
def test_bad_images_may_not_leave_a_split_or_class_empty(unreadable, tmp_path):
    save_images(
        tmp_path / "d",
        [f"train/{k}/{i}.png" for k in "ab" for i in range(2 if k == "b" else 5)]
        + ["test/b/0.png"],
    )
    for name in unreadable:
        (tmp_path / "d" / name).write_bytes(b"x")
    with pytest.raises(UserError, match=r"none of the images in test|of which train has no images"):
        load(tmp_path / "d", skip_bad=True)


def test_a_rare_class_stays_in_train(tmp_path):
    save_images(tmp_path / "d", [f"{k}/{i}.png" for k in "ab" for i in range(9)] + ["rare/0.png"])
    for seed in range(30):
        assert 2 in load(tmp_path / "d", split_seed=seed).train.labels


def test_a_label_that_is_missing_in_train(tmp_path):
    array = np.zeros((6, 4, 4), np.uint8)
    with pytest.raises(UserError, match="test has the class '7', of which train has no images"):
        load({"train": (array, [0, 1] * 3), "test": (array, [0, 1, 0, 1, 0, 7])})


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_two_members_of_one_name(kind, tmp_path):
    path = tmp_path / f"d.{kind}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind == "zip":
            with zipfile.ZipFile(path, "w") as archive:
                for name in ("a.png", "b.png", "a.png", "c.png"):
                    archive.writestr(name, png())
        else:
            with tarfile.open(path, "w") as archive:
                for name in ("a.png", "b.png", "a.png", "c.png"):
                    info = tarfile.TarInfo(name)
                    info.size = len(png())
                    archive.addfile(info, io.BytesIO(png()))
    with pytest.raises(UserError, match=r"two files called 'a\.png'"):
        load(path)


def test_a_folder_in_a_zip_with_the_name_of_an_image(tmp_path):
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        archive.writestr("x.png/", b"")
        archive.writestr("x.png", png())
    with pytest.raises(UserError, match="has 1 training images"):
        load(tmp_path / "d.zip")


def test_files_over_the_size_limit_are_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 1000)
    monkeypatch.setattr("vaekit.data.sources.files.MAX_FILE_BYTES", 1000)
    content = png() + bytes(2000)
    (tmp_path / "d").mkdir()
    for i in range(4):
        (tmp_path / "d" / f"{i}.png").write_bytes(content if i == 1 else png())
    (tmp_path / "d.tar.gz").write_bytes(
        tar_bytes({f"{i}.png": content if i == 1 else png() for i in range(4)})
    )
    with zipfile.ZipFile(tmp_path / "d.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(4):
            archive.writestr(f"{i}.png", content if i == 1 else png())
    for name in ("d", "d.zip", "d.tar.gz"):
        with pytest.raises(
            UserError, match=r"1 of 4 images cannot be read, first 1\.png \(it is over"
        ):
            load(tmp_path / name)


def test_an_idx_file_that_declares_a_huge_size(tmp_path):
    import gzip

    from vaekit.data.formats.idx import read_idx

    header = bytes([0, 0, 8, 3]) + (2**20).to_bytes(4, "big") + (2**10).to_bytes(4, "big") * 2
    (tmp_path / "a.gz").write_bytes(gzip.compress(header + bytes(10)))
    with pytest.raises(UserError, match="but has fewer"):
        read_idx(tmp_path / "a.gz", 3)


def test_large_images_are_refused_without_a_warning(tmp_path):
    file = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(file, "png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (tmp_path / "d").mkdir()
        for i in range(3):
            (tmp_path / "d" / f"{i}.png").write_bytes(file.getvalue())
        with pytest.raises(UserError, match="10000 x 10000 pixels, too many to decode"):
            load(tmp_path / "d")


def test_a_png_is_inspected_without_decoding_it(monkeypatch):
    content = png()
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
    assert inspect_image(content).channels == 1


def test_a_permission_error_names_the_file(tmp_path, monkeypatch):
    from pathlib import Path

    save_labelled_images(tmp_path / "d", ["a"])
    read_bytes = Path.read_bytes

    def denied(path):
        if path.name == "3.png":
            raise PermissionError(13, "Permission denied", str(path))
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(PermissionError) as caught:
        load(tmp_path / "d", size="6", colour="grey")
    assert caught.value.filename.endswith("3.png")


def test_the_lock_is_released(tmp_path):
    save_labelled_images(tmp_path / "d", ["a", "b"])
    load(tmp_path / "d")
    loaded = []
    thread = threading.Thread(target=lambda: loaded.append(load(tmp_path / "d", size="3")))
    thread.start()
    thread.join(20)
    assert loaded


def test_long_names_of_folders(tmp_path):
    folder = tmp_path / ("画" * 75)
    save_labelled_images(folder, ["a", "b"])
    assert load(folder).class_count == 2


def test_train_and_test_folders_beside_others(tmp_path):
    save_images(
        tmp_path / "d", [f"{k}/{i}.png" for k in ("train", "test", "extra") for i in range(3)]
    )
    with pytest.raises(UserError, match="has other folders beside train and test"):
        load(tmp_path / "d")
    (tmp_path / "e" / "train" / "b" / "notes").mkdir(parents=True)  # below a class: ignored
    save_images(tmp_path / "e", [f"{k}/b/{i}.png" for k in ("train", "test") for i in range(3)])
    assert len(load(tmp_path / "e").test) == 3


def test_mistyped_names_and_locations(tmp_path, monkeypatch):
    monkeypatch.delenv("VAEKIT_DATA", raising=False)
    with pytest.raises(UserError, match="did you mean 'mnist'"):
        load("mnits", data_dir=tmp_path)
    with pytest.raises(UserError, match="there is no data set or folder ''"):
        load("")
    assert load("mnist", data_dir=tmp_path).name == "mnist"  # the package's own
    from pathlib import Path

    assert load(Path("mnist")).name == "mnist"
    save_labelled_images(tmp_path / "d", ["a", "b"])
    assert load("d", data_dir=tmp_path).class_count == 2
    assert (
        load(tmp_path / "d", size=3).shape == load(tmp_path / "d", size=(3, 3)).shape == (1, 3, 3)
    )


def test_digits_are_binarised():
    assert load("digits").likelihood == "bernoulli"


def test_a_packed_file_with_other_bits_is_refused(tmp_path):
    bits = {
        key: RNG.integers(0, 256, (9, 98), dtype=np.uint8) for key in ("train", "valid", "test")
    }
    np.savez(tmp_path / "packed.npz", **bits)
    with pytest.raises(UserError, match="does not have the bits of binarized_mnist_train"):
        load("binarizedmnist", data_dir=tmp_path)


def test_class_names_belong_to_their_images():
    from vaekit.data.summary import sample_images

    labels = RNG.permutation(30) % 3
    array = (10 + 50 * labels).astype(np.uint8)[:, None, None].repeat(4, 1).repeat(4, 2)
    x, names = sample_images(load((array, labels)), "train", 9)
    assert names == sorted(names)
    assert [str(int(image.mean() * 255 // 50)) for image in x] == names
