"""Images given to a trained model: all are used, and each row and each label belongs to what it names."""

import json
import shutil
import sys
import zipfile

import numpy as np
import pytest
import torch

from image_folders import save_image, save_images
from vaekit import Run, UserError, build, decode, encode, load, load_data, train
from vaekit.cli.main import main
from vaekit.data.sources import inputs
from vaekit.evaluation.clustering import as_table, cluster
from vaekit.gallery.context import PictureContext
from vaekit.inference.generation import load_inputs
from vaekit.runs.data import reload_data
from vaekit.settings.analysis import PlotConfig
from vaekit.support.console import ProgressBar

ANIMALS = {"cat": 5, "dog": 5, "panda": 5}
QUIET = ProgressBar(False)


def photos(folder, classes=ANIMALS):
    """A folder of category folders, with a hidden file in each and a folder below one."""
    for name, count in classes.items():
        save_images(folder / name, [f"{i}.png" for i in range(count - 1)] + ["more/last.png"])
        save_image(folder / name / ".hidden.png")
        save_image(folder / name / "._0.png")
    return folder


def fit(out, folder, model="cvae", **settings):
    data = load_data(folder, progress=False)
    settings = {"latent_dim": 2, "hidden_dim": 4, **settings}
    return train(build(model, data, **settings), data, out=out, epochs=1, progress=False)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("animals")


@pytest.fixture(scope="module")
def run(place):
    return fit(place / "run", photos(place / "photos"))


def vaekit(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["vaekit", *map(str, arguments)])
    main()


def test_all_images_of_category_folders_are_encoded_with_path_and_class(run, place):
    table = encode(run, place / "photos", samples=2)
    paths = [
        str(place / "photos" / name / file)
        for name in ANIMALS
        for file in (*(f"{i}.png" for i in range(4)), "more/last.png")
    ]
    assert table["path"].tolist() == paths
    assert table["class"].tolist() == [name for name in ANIMALS for _ in range(5)]
    assert table["label"].tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert table["index"].tolist() == list(range(15))
    one = encode(run, place / "photos" / "panda" / "2.png", samples=2)
    row = paths.index(one["path"][0])
    assert one["label"].tolist() == [2]
    assert np.allclose(one["z_mean"][0], table["z_mean"][row], atol=1e-5)
    assert encode(run, place / "photos" / "dog", samples=2)["class"].tolist() == ["dog"] * 5


def test_category_folders_are_reconstructed_with_their_labels(run, place, monkeypatch, capsys):
    batch = load_inputs(run, [place / "photos"], "test", None, None, QUIET)
    assert batch.labels.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert load_inputs(run, [place / "photos"], "test", 3, None, QUIET).labels.tolist() == [0, 1, 2]
    assert load_inputs(run, [place / "photos"], "test", 3, None, QUIET, "dog").labels[0] == 1
    monkeypatch.chdir(place)
    vaekit(monkeypatch, "reconstruct", "run", "photos", "--out", "pairs.png")
    assert (place / "pairs.png").is_file()
    other = photos(place / "other", {"zebra": 1, "cat": 1})
    with pytest.raises(UserError, match=r"after its classes \(zebra is none\)"):
        load_inputs(run, [other], "test", None, None, QUIET)


def test_an_archive_is_read_as_its_folder(run, place):
    with zipfile.ZipFile(place / "photos.zip", "w") as archive:
        for file in sorted((place / "photos").rglob("*.png")):
            archive.write(file, file.relative_to(place))
    table, expected = (encode(run, place / p, samples=2) for p in ("photos.zip", "photos"))
    assert table["class"].tolist() == expected["class"].tolist()
    assert np.array_equal(table["z_mean"], expected["z_mean"])


def test_every_row_of_an_array_is_encoded_in_its_order(place, run):
    images = np.random.default_rng(0).integers(0, 256, (30, 6, 5), dtype=np.uint8)
    np.savez(place / "own.npz", images=images, labels=np.arange(30) % 3)
    table = encode(run, place / "own.npz", samples=2)
    assert table["index"].tolist() == list(range(30))
    assert table["class"].tolist() == ["cat", "dog", "panda"] * 10
    model = load(run)
    given = model.given(torch.from_numpy(images)[:, None] / 255, torch.arange(30) % 3)
    assert np.allclose(table["z_mean"], model.posteriors(given)["z"].mean.detach(), atol=1e-5)
    with pytest.raises(UserError, match="all of your own files are encoded"):
        encode(run, place / "own.npz", split="train")
    np.savez(place / "two.npz", x_train=images[:20], x_test=images[20:])
    unlabelled = fit(place / "vae", place / "photos", "vae")
    table = encode(unlabelled, place / "two.npz", samples=2)
    assert table["split"].tolist() == ["train"] * 20 + ["test"] * 10
    assert table["index"].tolist() == [*range(20), *range(10)]
    np.save(place / "large.npy", images)
    inputs_limit, inputs.MAX_BYTES_IN_MEMORY = inputs.MAX_BYTES_IN_MEMORY, 7 * 30
    try:
        table = encode(unlabelled, place / "large.npy", samples=2)
    finally:
        inputs.MAX_BYTES_IN_MEMORY = inputs_limit
    assert table["index"].tolist() == list(range(30))


def test_labels_of_other_data_are_matched_by_name(run, place):
    other = load_data(photos(place / "fewer", {"dog": 4, "panda": 4}), progress=False)
    assert set(encode(run, other, split="all", samples=2)["label"].tolist()) == {1, 2}
    new = load_data(photos(place / "zoo", {"dog": 4, "zebra": 4}), progress=False)
    with pytest.raises(UserError, match="'zoo' does not have"):
        encode(run, new, split="all", samples=2)


def test_a_class_is_chosen_by_its_name(run, place, monkeypatch, capsys):
    z = {"z": np.zeros((2, 2))}
    named = decode(run, z, label="panda")
    assert torch.equal(named, decode(run, z, label=2))
    assert torch.equal(named, decode(run, {**z, "class": np.array(["panda"] * 2)}))
    assert not torch.equal(named, decode(run, z, label="cat"))
    assert PictureContext.of(run, PlotConfig(label="panda")).settings.label == 2
    monkeypatch.chdir(place)
    vaekit(monkeypatch, "generate", "run", "--label", "panda", "--out", "a.png")
    with pytest.raises(SystemExit):
        vaekit(monkeypatch, "generate", "run", "--label", "pandas")
    line = capsys.readouterr().err
    assert "--label is pandas; the model's labels are 0 to 2: cat, dog, panda; did you mean" in line


def test_classes_are_shown_by_their_names(run, place, monkeypatch):
    shown = []
    monkeypatch.setattr(
        "vaekit.pictures.image_grid",
        lambda x, n, names=None, column_names=None, **k: shown.append(names or column_names),
    )
    monkeypatch.setattr("vaekit.pictures.save", lambda figure, path, *rest: path)
    monkeypatch.chdir(place)
    vaekit(monkeypatch, "generate", "run")
    vaekit(monkeypatch, "reconstruct", "run", "--analogies")
    assert shown == [["cat", "dog", "panda"], ["image", "cat", "dog", "panda"]]
    gmvae = fit(place / "gmvae", place / "photos", "gmvae", start_epochs=0, clusters=2, w_dim=2)
    result = cluster(gmvae, "train")
    assert [name for name in result["label_names"] if name] == [
        ["cat", "dog", "panda"][k] for k in result["labels"] if k is not None
    ]
    assert set(as_table(result).columns[2].cells) <= {"cat", "dog", "panda", "-"}
    header, first, *_ = (gmvae.path / "clusters-train.csv").read_text().splitlines()
    assert header.endswith(",label,class")
    assert first.split(",")[4] == ["cat", "dog", "panda"][int(first.split(",")[3])]


def test_numeric_class_folders_are_numbered_by_value_but_an_older_run_keeps_its_numbers(tmp_path):
    folder = photos(tmp_path / "digits", {str(n): 3 for n in (1, 2, 10)})
    data = load_data(folder, progress=False)
    assert data.classes == ("1", "2", "10")
    new = fit(tmp_path / "new", folder)
    older = load_data(folder, progress=False, classes=["1", "10", "2"])  # as text, as before
    assert older.classes == ("1", "10", "2")
    config = json.loads((new.path / "config.json").read_text())
    config["data"] |= {"classes": list(older.classes), "sha256": older.sha256()}
    shutil.copytree(new.path, tmp_path / "old")
    (tmp_path / "old" / "config.json").write_text(json.dumps(config))
    old = Run(tmp_path / "old")
    again = reload_data(old)
    assert again.sha256() == old.data.sha256 != data.sha256()
    assert torch.equal(again.train.labels, older.train.labels)
    # A name comes before a number: "10" is the folder 10.
    assert new.label_number("10") == 2
    assert old.label_number("10") == 1
    assert new.label_number("0") == new.label_number(0) == 0
    assert encode(old, folder / "10", samples=1)["label"].tolist() == [1] * 3
