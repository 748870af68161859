"""`anomalies`: tables, thresholds and detection agree with what they are computed from; bad input is one line."""

import csv
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score

from conftest import random_dataset
from image_folders import RNG
from vaekit import Run, UserError, anomalies, build, load, load_data, train
from vaekit.cli import main as cli
from vaekit.data import Dataset, Split
from vaekit.evaluation.anomaly_scores import SCORES
from vaekit.evaluation.conformal import p_values, threshold
from vaekit.gallery.anomalies import as_text, default_folder, sentences, write_anomalies

SIDE = 8


def save(path, cut=False):
    """A grey image: a bright square with noise; or with a dark line, whose mask is returned."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image, mask = RNG.integers(0, 40, (SIDE, SIDE)), np.zeros((SIDE, SIDE), np.uint8)
    image[1:7, 1:7] += 150
    if cut:
        mask[RNG.integers(2, 6), 1:7] = 255
        image[mask > 0] = 0
    Image.fromarray(image.astype(np.uint8)).save(path)
    return mask


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Images in the layout of MVTec-AD."""
    root = tmp_path_factory.mktemp("data") / "parts"
    for i in range(50):
        save(root / "train" / "good" / f"{i:03}.png")
    for i in range(8):
        save(root / "test" / "good" / f"{i:03}.png")
        mask = save(root / "test" / "cut" / f"{i:03}.png", cut=True)
        path = root / "ground_truth" / "cut" / f"{i:03}_mask.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(path)
    return root


@pytest.fixture(scope="module")
def run(parts, tmp_path_factory):
    data = load_data(parts, progress=False, validation_share=0.5)
    model = build("vae", data, latent_dim=2, hidden_dim=16)
    out = tmp_path_factory.mktemp("runs") / "run"
    return train(model, data, out=out, epochs=4, batch_size=5, progress=False)


@pytest.fixture(scope="module")
def found(run, parts):
    return anomalies(run, parts, top=3)


def test_the_oddest_image_comes_first_with_its_p_value(found, run):
    table, summary = found.table, found.summary
    assert table["rank"].tolist() == [*range(1, 17)]
    assert (np.diff(table["score"]) <= 0).all()
    validation = anomalies(
        run, load_data(run.source.data, progress=False, validation_share=0.5), split="validation"
    )
    calibration = validation.table["score"]
    assert summary["validation_images"] == len(calibration) == 25
    assert np.allclose(table["p_value"], p_values(table["score"], calibration))
    assert summary["threshold"] == pytest.approx(threshold(calibration, 0.05))
    assert (table["flagged"] == (table["score"] > summary["threshold"])).all()
    assert summary["flagged"] == table["flagged"].sum()
    assert validation.summary["flagged"] <= 1  # of themselves, 1 of 25 at most


def test_detection_is_that_of_scikit_learn(found):
    table, summary = found.table, found.summary
    assert set(table["class"]) == {"good", "cut"}
    odd = table["class"] == "cut"
    assert (table["odd"] == odd).all()
    assert summary["normal_classes"] == ["good"]
    assert (summary["normal_images"], summary["odd_images"]) == (8, 8)
    assert summary["auroc"] == pytest.approx(roc_auc_score(odd, table["score"]))
    assert summary["average_precision"] == pytest.approx(
        average_precision_score(odd, table["score"])
    )
    assert summary["found"] == table["flagged"][odd].mean()
    assert summary["normal_flagged"] == table["flagged"][~odd].mean()
    assert summary["auroc"] > 0.9


def test_odd_pixels_are_compared_with_their_masks(run, parts, found):
    every = anomalies(run, parts, top=16)
    masks = np.zeros((16, SIDE, SIDE), bool)
    for row, path in enumerate(every.table["path"]):
        if "cut" in path:
            file = path.replace("/test/", "/ground_truth/").replace(".png", "_mask.png")
            masks[row] = np.asarray(Image.open(file)) > 0
    expected = roc_auc_score(masks.ravel(), every.maps.numpy().ravel())
    assert found.summary["pixel_auroc"] == pytest.approx(expected)
    assert expected > 0.8


def test_the_pictures_show_the_first_rows(found):
    first = [np.asarray(Image.open(path)) / 255 for path in found.table["path"][:3]]
    assert np.allclose(found.images[:, 0], first, atol=1e-6)
    error = (found.images - found.reconstructions).square().mean(1)
    assert torch.allclose(found.maps, error, atol=1e-6)


def test_files_and_text_say_the_same(found, run, tmp_path):
    files = [path.name for path in write_anomalies(found, run, tmp_path / "new" / "out")]
    assert files == [f"reconstruction{end}" for end in (".csv", ".json", ".png", "-maps.png")]
    folder = tmp_path / "new" / "out"
    rows = list(csv.DictReader((folder / files[0]).read_text().splitlines()))
    stored = json.loads((folder / files[1]).read_text())
    for row, line, score in zip(rows, stored["table"], found.table["score"], strict=True):
        assert float(row["score"]) == pytest.approx(score)
        assert line["score"] == score
        assert row["flagged"] == str(line["flagged"])
        assert row["path"] == line["path"]
    assert stored["auroc"] == found.summary["auroc"]
    assert len(as_text(found).rows) == 10
    text = " ".join(sentences(found.summary))
    assert "25 validation images" in text
    assert "chose the best of 4 epochs" in text
    assert "AUROC of pixels" in text
    assert default_folder(run, ["a/b c.zip"]).name == "b-c.zip"


def test_other_weights_have_other_names_and_another_sentence(run, parts, tmp_path):
    last = anomalies(Run(run.path, "last"), parts, score="nll", samples=3)
    assert "had no part in the training" in " ".join(sentences(last.summary))
    files = [path.name for path in write_anomalies(last, Run(run.path, "last"), tmp_path)]
    assert files[0] == "nll-last.csv"


def test_the_runs_own_test_images_are_those_of_the_folder(run, parts, found):
    own = anomalies(run, top=3)
    assert own.summary == found.summary
    assert anomalies(run, parts / "test", top=3).summary == found.summary


@pytest.mark.parametrize("name", SCORES)
def test_every_score_finds_a_cut(run, parts, name):
    result = anomalies(run, parts, score=name, samples=10, steps=5)
    assert result.summary["score"] == name
    assert result.summary["reason"] == "it was asked for"
    assert np.isfinite(result.table["score"]).all()
    assert result.maps.shape == (16, SIDE, SIDE)
    again = anomalies(run, parts, score=name, samples=10, steps=5)
    assert (again.table["score"] == result.table["score"]).all()


def test_classes_that_are_normal(run, parts, found):
    named = anomalies(run, parts, normal=("cut",))
    assert named.summary["auroc"] == pytest.approx(1 - found.summary["auroc"])
    one = anomalies(run, parts / "test" / "cut")
    assert one.summary["auroc"] is None
    assert one.summary["odd_images"] in (None, 8)
    with pytest.raises(
        UserError, match="normal goood: no image is of this class; did you mean 'good'"
    ):
        anomalies(run, parts, normal=("goood",))


def test_images_in_memory_and_without_labels(tmp_path):
    data = random_dataset(kind="float")
    bare = Dataset(
        "bare",
        *(Split(split.images) for split in data.splits.values()),
        value_range=data.value_range,
    )
    run = train(build("vae", bare, latent_dim=2, hidden_dim=4), bare, out=tmp_path / "run", epochs=1,
                batch_size=10, progress=False)  # fmt: skip
    result = anomalies(run, data=bare, steps=2, false_alarms=0.2)
    assert "odd" not in result.table
    assert result.table["split"].tolist() == ["test"] * 20
    assert result.summary["auroc"] is None
    np.save(tmp_path / "new.npy", data.test.images.numpy())
    arrays = anomalies(run, tmp_path / "new.npy", data=bare, steps=2, false_alarms=0.2)
    assert np.allclose(arrays.table["score"], result.table["score"], atol=1e-4)
    with pytest.raises(UserError, match="normal needs classes, and these images have none"):
        anomalies(run, data=bare, normal=("a",), steps=2, false_alarms=0.2)


def test_an_image_that_cannot_be_scored_is_an_error(run, parts, monkeypatch):
    broken = dict.fromkeys(
        SCORES, SCORES["nll"].__class__(lambda c: np.full(len(c.images), np.nan), "", "nll")
    )
    monkeypatch.setattr("vaekit.evaluation.anomalies.SCORES", broken)
    with pytest.raises(UserError, match=r"is not a number: the training of .* diverged"):
        anomalies(run, parts)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--false-alarms", "0.01"], "needs 99 validation images or more, and there are 25"),
        (["--false-alarms", "0"], "--false-alarms is 0.0; it must be a share between 0 and 1"),
        (["--limit", "10"], "there are 10; give --false-alarms 0.091, or a larger --limit"),
        (["--score", "odd"], "--score is 'odd'; it must be one of auto, nll"),
        (["--samples", "0"], "--samples is 0; it must be at least 1"),
        (["--top", "1000"], "--top is 1000; it must be at most 200"),
        (["--split", "train"], "--split train is for data sets"),
        (["--out", "{run}/config.json"], "config.json is a file; name a folder"),
        (["--out", "{run}/config.json/new"], "config.json is a file; name another folder"),
        (["--bands", "9"], "--bands 9: the images have 1 band"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(run, parts, capsys, monkeypatch, words, message):
    words = [word.format(run=run.path) for word in words]
    images = [str(parts)]
    monkeypatch.setattr(sys, "argv", ["vaekit", "anomalies", str(run.path), *images, *words])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("vaekit: ")
    assert message in last
    assert not (run.path / "anomalies").exists()


def test_the_command_writes_and_prints(run, parts, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(
        sys,
        "argv",
        ["vaekit", "anomalies", str(run.path), str(parts), "--out", str(tmp_path / "o")],
    )
    cli.main()
    shown = capsys.readouterr()
    assert "since in the layout of MVTec-AD" in shown.err
    assert "of 16 images flagged" in shown.out
    assert len(list((tmp_path / "o").iterdir())) == 4
    assert load(run).blueprint.shape == (1, SIDE, SIDE)
