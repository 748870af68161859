"""Parquet files of embedded images: splits by name, classes from the table, streamed, and what is refused."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from image_folders import all_images, load, save_image
from vaekit import UserError
from vaekit.data.sources.inputs import find_image_files, read_images
from vaekit.data.sources.parquet import ParquetSource, file_splits
from vaekit.data.summary import prepare_file
from vaekit.settings.data import PreprocessConfig
from vaekit.support.console import ProgressBar

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
RNG = np.random.default_rng(8)
IMAGES = RNG.integers(0, 256, (12, 6, 5, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("VAEKIT_CACHE", str(tmp_path_factory.mktemp("cache")))


def png(array: np.ndarray) -> bytes:
    Image.fromarray(array).save(stream := io.BytesIO(), "PNG")
    return stream.getvalue()


CONTENTS = [png(image) for image in IMAGES]


def write(path, contents=CONTENTS, *, structs=True, names=None, group=None, **columns):
    """Write images, as {bytes, path} or bytes, and other columns; `names` are those of a ClassLabel `label`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [{"bytes": c, "path": f"{i}.png"} if structs else c for i, c in enumerate(contents)]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()}) if structs else pa.binary()
    table = pa.table({"image": pa.array(cells, kind), **columns})
    if names is not None:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        text = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": text})
    pq.write_table(table, path, row_group_size=group)
    return path


def by_image(data) -> dict[bytes, str]:
    """The class of each image of all splits, by its pixels."""
    return {
        image.numpy().tobytes(): data.classes[label]
        for split in data.splits.values()
        for image, label in zip(split.images[:], split.labels.tolist(), strict=True)
    }


def expected_classes(texts) -> dict[bytes, str]:
    return {
        image.transpose(2, 0, 1).tobytes(): text for image, text in zip(IMAGES, texts, strict=True)
    }


@pytest.mark.parametrize("structs", [True, False])
@pytest.mark.parametrize("group", [None, 5])
def test_every_image_is_read_with_its_label(structs, group, tmp_path):
    labels = np.arange(12) % 3
    path = write(tmp_path / "x.parquet", structs=structs, group=group, label=labels)
    data = load(path)
    assert data.classes == ("0", "1", "2")
    assert by_image(data) == expected_classes([str(n) for n in labels])
    assert load(tmp_path).sha256() == data.sha256()


@pytest.mark.parametrize(
    ("labels", "names", "texts", "classes"),
    [
        ([2, 0] * 6, ["zebra", "yak", "ant"], ["ant", "zebra"] * 6, ("zebra", "ant")),
        ([1, 0] * 6, {"1": "b", "0": "a"}, ["b", "a"] * 6, ("a", "b")),
        (["no", "yes"] * 6, None, ["no", "yes"] * 6, ("no", "yes")),
        (["10", "9"] * 6, None, ["10", "9"] * 6, ("9", "10")),
        ([True, False] * 6, None, ["1", "0"] * 6, ("0", "1")),
        (pa.array(["b", "a"] * 6).dictionary_encode(), None, ["b", "a"] * 6, ("a", "b")),
    ],
)
def test_classes_have_the_names_of_the_table(labels, names, texts, classes, tmp_path):
    write(tmp_path / "x.parquet", names=names, label=labels)
    data = load(tmp_path)
    assert data.classes == classes
    assert by_image(data) == expected_classes(texts)


@pytest.mark.parametrize("folder", ["", "data"])
def test_splits_are_those_of_the_names(folder, tmp_path):
    for name, rows in (
        ("train-00000-of-00002", slice(0, 4)),
        ("train-00001-of-00002", slice(4, 8)),
        ("validation-00000-of-00001", slice(8, 10)),
        ("test-00000-of-00001", slice(10, 12)),
    ):
        write(tmp_path / folder / f"{name}.parquet", CONTENTS[rows], group=3)
    data = load(tmp_path)
    assert [len(s) for s in data.splits.values()] == [8, 2, 2]
    np.testing.assert_array_equal(all_images(data), IMAGES.transpose(0, 3, 1, 2))
    assert data.classes is None
    (tmp_path / folder / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(UserError, match="lacks file 1 of the 2 files train-"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a.parquet", "b.parquet"], [0, 0]),
        (["test.parquet"], [0]),
        (["test.parquet", "train.parquet"], [2, 0]),
        (["x_val.parquet", "x_train.parquet"], [1, 0]),
    ],
)
def test_the_split_of_a_file(names, expected):
    assert file_splits("x", names) == expected


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (["train.parquet", "b.parquet"], "the name of b.parquet does not tell its split"),
        (["test.parquet", "val.parquet"], "no training images"),
        (["train-test.parquet", "train.parquet"], "does not tell its split"),
    ],
)
def test_names_that_tell_no_split_are_refused(names, match):
    with pytest.raises(UserError, match=match):
        file_splits("x", names)


def test_only_the_rows_asked_for_are_read(tmp_path):
    path = write(tmp_path / "x.parquet", group=5)
    source = ParquetSource(path, [path])
    assert len(source.entries) == 12
    asked = [f"x.parquet row {i}" for i in (3, 4, 11)]
    assert [*source.read(asked)] == [
        (n, CONTENTS[i]) for n, i in zip(asked, (3, 4, 11), strict=True)
    ]


def test_images_are_encoded_with_their_classes(tmp_path):
    path = write(tmp_path / "x.parquet", label=["b", "a"] * 6)
    files = find_image_files([path], ["a", "b"])
    assert files.classes == ["b", "a"] * 6
    images = read_images(files.take([5, 0]), (3, 6, 5), ProgressBar(False))
    np.testing.assert_array_equal(images, IMAGES[[5, 0]].transpose(0, 3, 1, 2))


def test_unreadable_images_are_named_or_skipped(tmp_path):
    write(tmp_path / "x.parquet", [*CONTENTS[:10], b"hello", None], structs=False)
    with pytest.raises(UserError, match=r"2 of 12 images cannot be read, first x\.parquet row 10"):
        load(tmp_path)
    assert sum(map(len, load(tmp_path, skip_bad=True).splits.values())) == 10


def struct(**fields):
    return pa.array([fields] * 3)


@pytest.mark.parametrize(
    ("columns", "match"),
    [
        ({"a": [1, 2, 3]}, "no column of embedded images"),
        ({"image": ["a.png"] * 3}, "no column of embedded images"),
        ({"image": pa.array([[b"a"]] * 3)}, "no column of embedded images"),
        ({"a": [b"a"] * 3, "b": [b"b"] * 3}, "several columns of embedded images"),
        ({"image": struct(bytes=b"a"), "label": [1.5] * 3}, "labels of type double"),
        ({"image": struct(bytes=b"a"), "label": [1, None, 2]}, "1 labels are missing"),
        ({"image": struct(bytes=b"a"), "label": [1, -1, 2]}, "has the label -1, which is no class"),
        ({"image": struct(bytes=b"a"), "label": [1] * 3, "labels": [1] * 3}, "several columns of labels"),
        ({"image": struct(bytes=b"a"), "label": pa.array([[1]] * 3)}, "labels of type list"),
        ({"image": pa.array([], pa.binary())}, "no rows"),
    ],
)  # fmt: skip
def test_other_tables_are_refused_in_one_line(columns, match, tmp_path):
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    with pytest.raises(UserError, match=match) as caught:
        load(tmp_path / "x.parquet")
    assert "\n" not in str(caught.value)


def test_paths_instead_of_images_are_refused(tmp_path):
    save_image(tmp_path / "secret.png")
    secret = str(tmp_path / "secret.png")
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    cells = pa.array([{"bytes": None, "path": secret}] * 5, kind)
    (tmp_path / "d").mkdir()
    pq.write_table(pa.table({"image": cells}), tmp_path / "d" / "x.parquet")
    with pytest.raises(UserError, match=r"row 0: its image is the path .* without bytes"):
        load(tmp_path / "d", skip_bad=True)


def test_damaged_files_are_refused_in_one_line(tmp_path):
    path = write(tmp_path / "x.parquet", label=np.arange(12) % 3)
    content = path.read_bytes()
    broken = bytearray(content)
    broken[100:2000] = RNG.bytes(1900)
    for damaged in (b"", b"PAR1", content[:-20], content[:300] + content[-300:], b"hello" * 9):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"x\.parquet cannot be read") as caught:
            load(path)
        assert "\n" not in str(caught.value)
    path.write_bytes(broken)
    with pytest.raises(UserError) as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_images_in_files_beside_a_table_are_not_ignored(tmp_path):
    write(tmp_path / "x.parquet")
    save_image(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"has Parquet files and image files, such as a\.png"):
        load(tmp_path)
    (tmp_path / "x.parquet").rename(tmp_path / "metadata.parquet")
    with pytest.raises(UserError, match=r"metadata\.parquet cannot be read"):
        load(tmp_path)


def test_unlabelled_tests_are_refused_and_unlabelled_sets_read(tmp_path):
    write(tmp_path / "train.parquet", label=[-1] * 12)
    assert load(tmp_path).classes is None
    write(tmp_path / "train.parquet", label=[1, 0] * 6)
    write(tmp_path / "test.parquet", label=[-1] * 12)
    with pytest.raises(UserError, match="has the label -1"):
        load(tmp_path)
    write(tmp_path / "test.parquet", label=["a"] * 12)
    with pytest.raises(UserError, match="its files differ in their labels"):
        load(tmp_path)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    write(tmp_path / "x.parquet")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match=r"needs pyarrow: pip install 'vaekit\[parquet\]'"):
        load(tmp_path)


def test_they_are_prepared_like_image_files(tmp_path):
    path = write(tmp_path / "train.parquet", label=pa.array(["cat", "dog"] * 6))
    told = prepare_file(path, PreprocessConfig(), tmp_path / "d.safetensors")
    assert "12 images of 6 x 5 pixels, 3 channels" in told
    prepared, read = load(tmp_path / "d.safetensors"), load(path)
    assert by_image(prepared) == by_image(read) == expected_classes(["cat", "dog"] * 6)
