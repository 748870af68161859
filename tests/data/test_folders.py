"""Folders of images with tables, groups, anomalies, links and duplicates: read as what they are, or refused."""

import json
import os
import re
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from image_folders import all_images, load, save_image, save_images
from vaekit import UserError, build, evaluate, train
from vaekit.data.duplicates import find_duplicates
from vaekit.data.sources.inputs import find_image_files
from vaekit.data.splits import held_out_groups, split_rows
from vaekit.data.summary import prepare_file
from vaekit.settings.data import PreprocessConfig, SourceConfig


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("VAEKIT_CACHE", str(tmp_path_factory.mktemp("cache")))


def by_name(data) -> dict[str, tuple[str, str | None]]:
    """The split and class of each image, by the name of its file."""
    found = {}
    for name, split in data.splits.items():
        labels = [None] * len(split) if split.labels is None else split.labels.tolist()
        for file, label in zip(split.table.names, labels, strict=True):
            found[file] = (name, None if label is None else data.classes[label])
    return found


def check_pixels(data, arrays: dict[str, np.ndarray]) -> None:
    """Every image of the data set is that of the file which its table names."""
    for split in data.splits.values():
        for image, name in zip(split[:].images, split.table.names, strict=True):
            assert np.array_equal(image[0].numpy(), arrays[name])


def refused(path, message: str, **options) -> str:
    with pytest.raises(UserError, match=message) as caught:
        load(path, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert text.isprintable()
    return text


# Archives and links


def zip_with(path: Path, names, system: int) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, source in names.items():
            info = zipfile.ZipInfo(name)
            info.create_system = system
            archive.writestr(info, source.read_bytes() if source else b"")


@pytest.mark.parametrize("system", [0, 3])
def test_backslashes_in_a_zip_of_powershell_are_folders(system, tmp_path):
    arrays = save_images(tmp_path / "d", [f"{k}/{i}.png" for k in "ab" for i in range(5)])
    names = {"photos\\" + n.replace("/", "\\"): tmp_path / "d" / n for n in arrays}
    zip_with(tmp_path / "w.zip", {"photos\\a\\": None, **names}, system)
    data = load(tmp_path / "w.zip")
    assert data.classes == ("a", "b")
    check_pixels(data, {f"photos/{name}": array for name, array in arrays.items()})


def test_a_backslash_in_a_name_of_a_unix_zip_is_no_folder(tmp_path):
    save_images(tmp_path / "d", [f"{i}.png" for i in range(5)])
    files = {f"d/x\\{i}.png": tmp_path / "d" / f"{i}.png" for i in range(5)}
    zip_with(tmp_path / "u.zip", files, 3)
    assert load(tmp_path / "u.zip").classes is None


@pytest.mark.parametrize("name", ["..\\1.png", "\\1.png", "C:\\1.png"])
def test_a_backslash_path_outside_a_zip_is_refused(name, tmp_path):
    save_image(tmp_path / "1.png")
    zip_with(tmp_path / "w.zip", {name: tmp_path / "1.png"}, 0)
    refused(tmp_path / "w.zip", "unsafe member")


@pytest.mark.parametrize("link", ["cat/lost.png", "cat/lost", "lost", "cat/notes.txt"])
def test_a_broken_link_is_named_and_refused_unless_skipped(link, tmp_path, capfd):
    save_images(tmp_path / "d", [f"{k}/{i}.png" for k in ("cat", "dog") for i in range(4)])
    (tmp_path / "d" / link).symlink_to(tmp_path / "nowhere")
    text = refused(tmp_path / "d", re.escape(f"{link} is a broken link; remove it"))
    assert "skip_bad" in text
    from vaekit import load_data

    for _ in range(2):  # decoded, and from the cache
        data = load_data(tmp_path / "d", skip_bad=True)
        assert len(all_images(data)) == 8
        assert f"left out 1 broken link, first {link}" in capfd.readouterr().err
    with pytest.raises(UserError, match="is a broken link"):
        find_image_files([tmp_path / "d"])
    with pytest.raises(UserError, match="is a broken link"):
        prepare_file(tmp_path / "d", PreprocessConfig(), tmp_path / "d.safetensors")


def test_a_link_to_itself_is_broken_and_a_hidden_one_is_ignored(tmp_path):
    save_images(tmp_path / "d", [f"{i}.png" for i in range(4)])
    (tmp_path / "d" / ".x.png").symlink_to("nowhere")
    assert len(all_images(load(tmp_path / "d"))) == 4
    (tmp_path / "d" / "x.png").symlink_to("x.png")
    refused(tmp_path / "d", r"x\.png is a broken link")


# Class folders with gaps


def mvtec(folder: Path) -> dict[str, np.ndarray]:
    """Write a category of MVTec-AD; returns the pixels of its images, not of its masks."""
    names = [f"train/good/{i:03}.png" for i in range(10)]
    names += [f"test/{k}/{i:03}.png" for k in ("broken", "good", "scratch") for i in range(3)]
    arrays = save_images(folder, names)
    masks = [f"ground_truth/{k}/{i:03}_mask.png" for k in ("broken", "scratch") for i in range(3)]
    save_images(folder, masks, level=255)
    (folder / "readme.txt").write_text("x")
    return arrays


def test_class_folders_that_test_lacks_are_fine(tmp_path):
    names = [f"train/{k}/{i}.png" for k in "abc" for i in range(5)]
    save_images(tmp_path, [*names, "test/b/1.png"])
    assert load(tmp_path).test.labels.tolist() == [1]


@pytest.mark.parametrize("kind", ["folder", "wrapped", "zip"])
def test_mvtec_is_read_without_its_masks_and_with_its_defects(kind, tmp_path):
    folder = tmp_path / "d" / "bottle"
    arrays, path = mvtec(folder), folder
    if kind == "wrapped":
        path, arrays = tmp_path / "d", {f"bottle/{name}": a for name, a in arrays.items()}
    if kind == "zip":
        path = tmp_path / "bottle.zip"
        zip_with(path, {str(f.relative_to(folder)): f for f in folder.rglob("*.png")}, 3)
    data = load(path)
    assert data.classes == ("good", "broken", "scratch")  # those of train first
    assert data.class_count == 3
    assert len(data.train) + len(data.validation) == 10
    assert data.train.labels.unique().tolist() == data.validation.labels.unique().tolist() == [0]
    assert data.test.labels.bincount().tolist() == [3, 3, 3]
    assert len(all_images(data)) == 19
    check_pixels(data, arrays)
    for name, (split, label) in by_name(data).items():
        parts = name.removeprefix("bottle/").split("/")
        assert label == parts[1]
        assert (split == "test") == (parts[0] == "test")
    assert data.reading[0] == (
        "read as the layout of MVTec-AD: train has normal images alone (good), test also broken, scratch; the 6 masks "
        "in ground_truth are left out"
    )


def test_masks_are_not_encoded(tmp_path):
    mvtec(tmp_path / "bottle")
    files = find_image_files([tmp_path / "bottle"], ["good", "broken", "scratch"])
    assert len(files) == 19
    assert set(files.classes) == {"good", "broken", "scratch"}


def test_a_folder_ground_truth_elsewhere_is_a_class(tmp_path):
    save_images(tmp_path, [f"{k}/{i}.png" for k in ("ground_truth", "good") for i in range(4)])
    assert load(tmp_path).classes == ("good", "ground_truth")


def test_defects_without_masks_are_read_but_other_new_classes_refused(tmp_path):
    for folder, normal in (("a", "good"), ("b", "cat")):
        names = [f"train/{normal}/{i}.png" for i in range(4)]
        save_images(tmp_path / folder, [*names, f"test/{normal}/1.png", "test/bad/1.png"])
    assert load(tmp_path / "a").classes == ("good", "bad")
    refused(tmp_path / "b", "test has the class 'bad', of which train has no images; add some")


@pytest.mark.parametrize("prefix", ["", "mvtec/"])
def test_several_categories_are_refused(prefix, tmp_path):
    for name in ("bottle", "cable"):
        mvtec(tmp_path / "d" / f"{prefix}{name}")
    text = refused(
        tmp_path / "d", r"has folders with train and test of their own \(bottle, cable\)"
    )
    assert f"{tmp_path / 'd'}/{prefix}bottle" in text


def test_folders_of_classes_with_train_and_test_in_each_are_refused(tmp_path):
    save_images(tmp_path, [f"{k}/{s}/1.png" for k in ("cat", "dog") for s in ("train", "test")])
    refused(tmp_path, "train and test of their own")


def test_training_and_evaluation_cope_with_classes_of_test_alone(tmp_path):
    mvtec(tmp_path / "bottle")
    data = load(tmp_path / "bottle")
    options = {"latent_dim": 2, "hidden_dim": 8}
    run = train(
        build("vae", data, **options),
        data,
        epochs=1,
        batch_size=5,
        out=tmp_path / "run",
        progress=False,
    )
    result = evaluate(run, data, metrics=("elbo", "probes", "clusters", "frechet"), samples=10)
    reasons = json.dumps(result)
    assert np.isfinite(result["elbo"])
    assert reasons.count("only one label") == 3
    with pytest.raises(UserError, match="the class broken, which condition label cannot learn"):
        train(build("cvae", data, **options), data, epochs=1, out=tmp_path / "c", progress=False)
    assert not (tmp_path / "c").exists()


# Tables


def write_lines(path: Path, *lines: str, encoding="utf-8") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("\n".join(lines).encode(encoding))


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.parametrize("packed", [False, True])
def test_an_imagefolder_with_metadata_per_split(kind, packed, tmp_path):
    arrays = {}
    for split, count in (("train", 12), ("test", 4)):
        names = [f"{split}/{'deep/' * (i % 2)}{i}.png" for i in range(count)]
        arrays |= save_images(tmp_path / "hf", names)
        rows = [
            {"file_name": n.partition("/")[2], "label": ["dog", "cat"][i % 2], "text": f"é, {i}"}
            for i, n in enumerate(names)
        ]
        if kind == "csv":
            lines = [f'{r["label"]},"{r["text"]}",{r["file_name"]}' for r in reversed(rows)]
            write_lines(tmp_path / "hf" / split / "metadata.csv", "label,text,file_name", *lines)
        else:
            lines = map(json.dumps, reversed(rows))
            write_lines(tmp_path / "hf" / split / "metadata.jsonl", *lines)
    path = tmp_path / "hf"
    if packed:
        path = tmp_path / "hf.tar.gz"
        with tarfile.open(path, "w:gz") as archive:
            archive.add(tmp_path / "hf", ".")
        arrays = {f"./{name}": array for name, array in arrays.items()}
    data = load(path)
    assert data.classes == ("cat", "dog")
    assert len(data.test) == 4
    check_pixels(data, arrays)
    for split in data.splits.values():
        assert split.table.columns == ["text"]
        texts = zip(split.table.names, split.labels.tolist(), split.table["text"], strict=True)
        for name, label, text in texts:
            number = int(Path(name).stem)
            assert (data.classes[label], text) == (["dog", "cat"][number % 2], f"é, {number}")
    assert any("labels from 'label', kept: text" in sentence for sentence in data.reading)


def test_metadata_at_the_root_with_a_column_of_splits(tmp_path):
    names = [f"images/{i}.png" for i in range(10)]
    save_images(tmp_path, names)
    splits = ["train"] * 6 + ["validation"] * 2 + ["test"] * 2
    rows = [
        {"file_name": n, "label": 10 - i, "split": s}
        for i, (n, s) in enumerate(zip(names, splits, strict=True))
    ]
    rows = [{**row, "label": [10.0, 2, 3][i % 3] if i < 6 else 2} for i, row in enumerate(rows)]
    write_lines(tmp_path / "metadata.jsonl", *map(json.dumps, rows))
    data = load(tmp_path)
    assert data.classes == ("2", "3", "10")  # by value, and 10.0 is 10
    assert {n: s for n, (s, _) in by_name(data).items()} == dict(zip(names, splits, strict=True))


def test_metadata_without_labels_keeps_captions_and_the_classes_of_folders(tmp_path):
    names = [f"{k}/{i}.png" for k in ("cat", "dog") for i in range(4)]
    save_images(tmp_path, names)
    write_lines(tmp_path / "metadata.csv", "file_name,text", *(f"{n},a {n}" for n in names))
    data = load(tmp_path)
    assert data.classes == ("cat", "dog")
    assert data.train.table["text"] == [f"a {name}" for name in data.train.table.names]


def test_the_labels_of_a_table_win_over_folders_and_that_is_said(tmp_path):
    names = [f"{k}/{i}.png" for k in ("monday", "tuesday") for i in range(4)]
    save_images(tmp_path, names)
    rows = [f"{n},{'ab'[i % 2]}" for i, n in enumerate(names)]
    write_lines(tmp_path / "metadata.csv", "file_name,label", *rows)
    data = load(tmp_path)
    assert data.classes == ("a", "b")
    assert {n: k for n, (_, k) in by_name(data).items()} == dict(row.split(",") for row in rows)
    assert data.reading[-1].startswith("the names of the folders are no classes")


def test_measurements_are_kept_as_a_column_and_are_no_classes(tmp_path):
    save_images(tmp_path, [f"{i}.png" for i in range(5)])
    rows = [f"{i}.png,{i}.5" for i in range(5)]
    write_lines(tmp_path / "labels.csv", "file,label", *rows)
    data = load(tmp_path)
    assert data.classes is None
    assert data.train.table["label"] == [f"{Path(n).stem}.5" for n in data.train.table.names]
    assert data.reading[-1].startswith("the labels are measurements")


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("labels.csv", ["file_name,label", "{}.png,{}"]),
        ("labels.csv", ["{}.png,{}"]),  # no header
        ("labels.csv", ["id,breed", "{},{}"]),  # without extension
        ("labels.csv", ["\ufeffimage;label", "{}.png;{}"]),  # as spreadsheets write it
        ("labels.csv", ["Class,Filename", '"{1}","images\\{0}.png"']),
        ("labels.csv", [",image,label", "7,./images/{}.png,{}"]),
        ("labels.tsv", ["name\tlabel", "{}.png\t{}", "\t"]),
        ("LABELS.CSV", ["file , label\r", "{}.png , {}\r"]),
    ],
)
@pytest.mark.parametrize("inside", [False, True])
def test_labels_of_a_flat_folder(name, lines, inside, tmp_path):
    folder = "" if inside and "images" not in lines[-1] else "images/"
    arrays = save_images(tmp_path, [f"{folder}{i}.png" for i in range(9)])
    header = [line for line in lines if "{" not in line and line != "\t"]
    row = next(line for line in lines if "{" in line)
    rows = [row.format(i, [10, 9, "x"][i % 3]) for i in reversed(range(9))]
    write_lines(tmp_path / name, *header, *rows, "")
    data = load(tmp_path)
    assert data.classes == ("10", "9", "x")
    check_pixels(data, arrays)
    for file, (_, label) in by_name(data).items():
        assert label == ["10", "9", "x"][int(Path(file).stem) % 3]


def test_labels_beside_the_given_folder_are_not_read_but_named(tmp_path):
    save_images(tmp_path, [f"images/{i}.png" for i in range(6)])
    write_lines(tmp_path / "labels.csv", *GOOD)
    data = load(tmp_path / "images")
    assert data.classes is None
    told = f"labels.csv beside this folder is not read; --data {tmp_path} would"
    assert data.reading == (told,)
    assert load(tmp_path).classes == ("a",)


@pytest.mark.parametrize("packed", [False, True])
def test_labels_of_a_table_are_those_of_images_to_encode(packed, tmp_path):
    names = [f"images/{i}.png" for i in range(4)]
    save_images(tmp_path / "d", names)
    write_lines(tmp_path / "d" / "labels.csv", *(f"{i},{'ab'[i % 2]}" for i in range(4)))
    path = tmp_path / "d"
    if packed:
        path = tmp_path / "d.zip"
        zip_with(path, {n: tmp_path / "d" / n for n in [*names, "labels.csv"]}, 3)
    assert find_image_files([path], ["a", "b"]).classes == ["a", "b", "a", "b"]


def test_a_third_column_without_header_is_the_split(tmp_path):
    save_images(tmp_path, [f"{i}.png" for i in range(6)])
    rows = [f"{i}.png,k,{'test' if i > 3 else 'train'}" for i in range(6)]
    write_lines(tmp_path / "labels.csv", *rows)
    data = load(tmp_path)
    assert sorted(data.test.table.names) == ["4.png", "5.png"]


GOOD = [f"{i}.png,a" for i in range(6)]
JSON = [json.dumps({"file_name": f"{i}.png", "label": 1}) for i in range(6)]


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("labels.csv", [*GOOD, "7.png,b"], r"labels\.csv, line 7: there is no image '7\.png'"),
        ("labels.csv", ["6.png,a", *GOOD], r"line 1: there is no image '6\.png'"),  # is no header
        ("labels.csv", GOOD[1:], r"0\.png has no row in labels\.csv"),
        ("labels.csv", [*GOOD, "3,b"], r"line 7: a second row of '3', after line 4"),
        ("labels.csv", [*GOOD[1:], "0.png,"], r"0\.png has no label"),
        ("labels.csv", [*GOOD[1:], "0.png"], "line 6 has 1 cells, the first 2"),
        ("labels.csv", [f"{row},x" for row in GOOD], r"0\.png has the split 'x'"),
        ("labels.csv", ["id,mel,nv", *(f"{i},0,1" for i in range(6))], "has no header|call the one with the classes"),
        ("labels.csv", ["file,class,target", *(f"{i},0,1" for i in range(6))], "the columns class and target"),
        ("labels.csv", ["file,label,label", *(f"{i},0,1" for i in range(6))], "two columns are called 'label'"),
        ("labels.csv", [str(i) for i in range(6)], "has one column"),
        ("labels.csv", [], "is empty"),
        ("labels.csv", ["file,label", *GOOD[1:], "0.png," + "x" * 300], "has 300 characters"),
        ("labels.csv", ["file,label", '"0.png,a'], "unexpected end of data"),
        ("labels.csv", ["../x/0.png,a", *GOOD[1:]], "there is no image"),
        ("metadata.csv", ["file_name,label", *GOOD[1:], "0,a"], "there is no image '0'"),
        ("metadata.csv", ["file_name,label", *GOOD, "a\x1b[31m.png,a"], "there is no image"),
        ("metadata.csv", ["file_name,label", *GOOD, ",a"], "line 8 has no file_name"),
        ("metadata.csv", ["file_name,split", *(f"{i}.png,test" for i in range(6))], "no training images"),
        ("metadata.jsonl", JSON[1:], r"0\.png has no row"),
        ("metadata.jsonl", [*JSON, JSON[0]], "a second row"),
        ("metadata.jsonl", [*JSON[1:], '{"file_name": "0.png", "label": null}'], r"0\.png has no label"),
        ("metadata.jsonl", [*JSON[1:], "{"], "line 6 is not JSON"),
        ("metadata.jsonl", [*JSON[1:], "[1]"], "line 6 is not a JSON object"),
        ("metadata.jsonl", [*JSON[1:], "[" * 100000], "line 6 is not JSON"),
        ("metadata.parquet", ["x"], "save it as metadata.csv"),
    ],
)  # fmt: skip
def test_a_table_that_does_not_fit_is_refused(name, lines, message, tmp_path):
    save_images(tmp_path / "d", [f"{i}.png" for i in range(6)])
    write_lines(tmp_path / "d" / name, *lines)
    refused(tmp_path / "d", message)


def test_a_table_in_another_encoding_is_refused(tmp_path):
    save_images(tmp_path, [f"{i}.png" for i in range(3)])
    write_lines(tmp_path / "labels.csv", "0,é", "1,b", "2,b", encoding="latin-1")
    refused(tmp_path, "not text in UTF-8")


def test_ambiguous_names_in_a_table_are_refused(tmp_path):
    save_images(tmp_path, [f"{k}/{i}.png" for k in "ab" for i in range(3)])
    write_lines(tmp_path / "labels.csv", *(f"{i}.png,x" for i in range(3)))
    refused(tmp_path, r"there is no image '0\.png' \(or several\)")


def test_a_row_and_a_folder_of_different_splits_are_refused(tmp_path):
    names = [f"{s}/{i}.png" for s in ("train", "test") for i in range(3)]
    save_images(tmp_path, names)
    write_lines(tmp_path / "metadata.csv", "file_name,split", *(f"{n},train" for n in names))
    refused(tmp_path, r"test/0\.png is train in its row, but in a folder of test images")


def test_metadata_of_something_else_is_left_and_that_is_said(tmp_path):
    save_images(tmp_path, [f"{i}.png" for i in range(4)])
    write_lines(tmp_path / "metadata.csv", "key,value", "a,b")
    data = load(tmp_path)
    assert data.reading == ("metadata.csv is not read: it has no column file_name",)
    assert len(all_images(data)) == 4


def test_the_row_of_a_skipped_link_may_stay(tmp_path):
    save_images(tmp_path, [f"{i}.png" for i in range(5)])
    (tmp_path / "5.png").symlink_to("nowhere")
    write_lines(tmp_path / "labels.csv", *GOOD)
    assert len(all_images(load(tmp_path, skip_bad=True))) == 5


def test_rows_stay_with_their_images_when_one_is_bad(tmp_path):
    arrays = save_images(tmp_path, [f"{i}.png" for i in range(8)])
    write_lines(tmp_path / "labels.csv", "file,label,who", *(f"{i},{i % 2},p{i}" for i in range(8)))
    (tmp_path / "2.png").write_bytes(b"x")
    data = load(tmp_path, skip_bad=True)
    check_pixels(data, arrays)
    for split in data.splits.values():
        numbers = [int(Path(n).stem) for n in split.table.names]
        assert split.table["who"] == [f"p{n}" for n in numbers]
        assert split.labels.tolist() == [n % 2 for n in numbers]


def test_a_changed_table_is_read_again(tmp_path):
    save_images(tmp_path, [f"{i}.png" for i in range(6)])
    write_lines(tmp_path / "labels.csv", *GOOD)
    assert load(tmp_path).classes == ("a",)
    write_lines(tmp_path / "labels.csv", *(row.replace("a", "b") for row in GOOD))
    assert load(tmp_path).classes == ("b",)


# Groups


def patients(folder: Path, count=20, frames=5) -> None:
    """Frames of patients, half of them ill, in folders by class and patient, with a table of hospitals."""
    names = [
        f"{('ill', 'well')[p % 2]}/p{p}/{i}.png"
        for p in range(count)
        for i in range(1 + (p + frames) % frames)
    ]
    save_images(folder, names)
    rows = [f"{n},h{int(n.split('/')[1][1:]) // 2}" for n in names]
    write_lines(folder / "metadata.csv", "file_name,hospital", *rows)


@pytest.mark.parametrize(("by", "level"), [("2", -2), ("hospital", None)])
@pytest.mark.parametrize("kind", ["folder", "tar", "safetensors"])
def test_a_group_is_in_one_part(by, level, kind, tmp_path):
    patients(tmp_path / "d")
    path = tmp_path / "d"
    if kind == "safetensors":
        path = tmp_path / "d.safetensors"
        prepare_file(tmp_path / "d", PreprocessConfig(), path)
    elif kind == "tar":
        path = tmp_path / "d.tar"
        with tarfile.open(path, "w") as archive:
            archive.add(tmp_path / "d", "./photos")
    seen = set()
    for seed in range(5):
        data = load(path, group_by=by, split_seed=seed, test_share=0.2, validation_share=0.2)
        parts = []
        for split in data.splits.values():
            table = split.table
            folders = [name.split("/") for name in table.names]
            parts.append({f[level] for f in folders} if level else set(table[by]))
        assert all(parts)
        assert sum(map(len, parts)) == len(set.union(*parts))
        assert data.train.labels.unique().tolist() == [0, 1]
        again = load(path, group_by=by, split_seed=seed, test_share=0.2, validation_share=0.2)
        assert again.sha256() == data.sha256()
        seen.add(data.sha256())
    assert len(seen) == 5


def test_groups_have_about_the_share_and_each_is_as_likely():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(200), rng.integers(1, 20, 200))
    settings = SourceConfig(test_share=0.2, validation_share=0.1)
    index = np.zeros(len(groups), np.uint8)
    held = np.zeros(200)
    for seed in range(200):
        mask = held_out_groups(groups, None, 0.2, [seed], 1, "x")
        assert abs(mask.mean() - 0.2) < 0.01
        held[np.unique(groups[mask])] += 1
        assert not set(groups[mask]) & set(groups[~mask])
    expected, deviation = 200 * 0.2, np.sqrt(200 * 0.2 * 0.8)
    assert np.abs(held - expected).max() < 5 * deviation
    train, validation, test = split_rows(index, None, settings, "x", list(map(str, groups)))
    assert len(test) / len(groups) == pytest.approx(0.2, abs=0.01)
    assert len(validation) / (len(groups) - len(test)) == pytest.approx(0.1, abs=0.01)
    assert sorted(torch.cat([train, validation, test]).tolist()) == list(range(len(groups)))


def test_a_group_larger_than_the_share_stays_in_training():
    groups = np.array([0] * 900 + [1] * 50 + [2] * 50 + [3] * 10)
    for seed in range(20):
        mask = held_out_groups(groups, None, 0.1, [seed], 1, "x")
        assert not mask[0]


@pytest.mark.parametrize(
    ("by", "message"),
    [
        ("1", r"too few groups \(2\)"),
        ("3", r"p0/0\.png of .* is in fewer than 3 folders"),
        ("patient", r"no metadata of that name \(it has hospital\)"),
        ("0", "it must be the level of a folder, from 1"),
        (" ", "it must be the level of a folder"),
    ],
)
def test_groups_that_cannot_be_are_refused(by, message, tmp_path):
    patients(tmp_path)
    refused(tmp_path, message, group_by=by)


def test_groups_of_classes_of_their_own_are_refused(tmp_path):
    save_images(tmp_path, [f"{k}/{i}.png" for k in "abcdef" for i in range(4)])
    refused(tmp_path, "too few groups .* images of every class", group_by="1")


def test_a_group_in_train_and_test_of_the_source_is_refused(tmp_path):
    names = [f"train/p{p}/{i}.png" for p in range(5) for i in range(2)]
    save_images(tmp_path, [*names, "test/p3/7.png"])
    refused(
        tmp_path, "the group 'p3' in its (test|train) and its (test|train) images", group_by="1"
    )


def test_groups_need_files(tmp_path):
    refused(np.zeros((9, 4, 4), np.uint8), "needs image files in folders", group_by="1")
    refused("digits", "needs image files in folders", group_by="1")


def test_a_run_loads_the_same_groups_again(tmp_path):
    patients(tmp_path / "d")
    data = load(tmp_path / "d", group_by="hospital", split_seed=3)
    model = build("vae", data, latent_dim=2, hidden_dim=8)
    run = train(model, data, epochs=1, out=tmp_path / "run", progress=False)
    assert run.source.group_by == "hospital"
    result = evaluate(run, metrics=("elbo",))  # refuses other data
    assert np.isfinite(result["elbo"])
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    del config["data"]["source"]["group_by"]  # a run of before
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    from vaekit import Run

    assert Run(tmp_path / "run").source.group_by is None


# Duplicates


def test_duplicates_between_splits_are_named(tmp_path):
    names = [
        f"{s}/{k}/{i}.png"
        for s in ("train", "val", "test")
        for k in ("cat", "dog")
        for i in range(4)
    ]
    arrays = save_images(tmp_path / "d", names)
    for file, twin in (
        ("train/cat/2.png", "test/dog/1.png"),
        ("train/dog/0.png", "test/dog/3.png"),
        ("val/cat/0.png", "test/cat/0.png"),
    ):
        Image.fromarray(arrays[file]).save(tmp_path / "d" / twin, compress_level=0)  # other bytes
    assert find_duplicates(load(tmp_path / "d")) == [
        "2 images of test are also in train, first test/dog/1.png = train/cat/2.png",
        "1 image of test is also in validation, first test/cat/0.png = val/cat/0.png",
    ]
    assert find_duplicates(load(tmp_path / "d", in_memory="no")) == find_duplicates(
        load(tmp_path / "d")
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("in_memory", ["yes", "no"])
def test_duplicates_in_arrays_are_rows(dtype, in_memory):
    if dtype == np.float32 and in_memory == "no":
        pytest.skip("only bytes are stored")
    rng = np.random.default_rng(0)
    x = (rng.random((30, 1, 4, 4)) * (255 if dtype == np.uint8 else 1)).astype(dtype)
    test = x[[20, 21, 22]].copy()
    train_images = x[:20].copy()
    test[1] = train_images[7]
    data = load({"train": train_images, "validation": x[25:], "test": test}, in_memory=in_memory)
    assert find_duplicates(data) == [
        "1 image of test is also in train, first row 1 of test = row 7 of train"
    ]


def test_repeats_within_a_split_are_no_duplicates(tmp_path):
    x = np.arange(30, dtype=np.uint8).repeat(16).reshape(30, 1, 4, 4)
    data = load(
        {"train": np.concatenate([x[:10], x[:10]]), "validation": x[10:12], "test": x[12:20]}
    )
    assert find_duplicates(data) == []


def test_a_table_follows_the_rows_of_its_split(tmp_path):
    arrays = save_images(tmp_path, [f"{i}.png" for i in range(12)])
    train_images = load(tmp_path).train
    part = train_images.take(torch.tensor([3, 1]))
    assert part.table.names == [train_images.table.names[3], train_images.table.names[1]]
    for image, name in zip(part.images, part.table.names, strict=True):
        assert np.array_equal(image[0].numpy(), arrays[name])
    with pytest.raises(UserError, match="there is no column 'text'"):
        part.table["text"]


def test_file_names_that_are_not_text_are_kept(tmp_path):
    save_images(tmp_path, [f"{i}.png" for i in range(4)])
    os.rename(tmp_path / "0.png", os.fsencode(tmp_path) + b"/\xff.png")
    names = {n for s in load(tmp_path).splits.values() for n in s.table.names}
    assert names == {os.fsdecode(b"\xff.png"), "1.png", "2.png", "3.png"}
