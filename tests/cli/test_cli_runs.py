"""The verbs that look at runs, as users call them: files where they belong, and one line for every mistake."""

import math
import shutil

import pytest
import torch
from PIL import Image

from vaekit import Run, load
from vaekit.gallery.catalog import PICTURES
from vaekit.inference.tables import read_table


@pytest.fixture
def run(small_run, tmp_path):
    """A copy of a run on a machine that has not its data set."""
    path = tmp_path / "run"
    shutil.copytree(small_run, path)
    config = (path / "config.json").read_text()
    (path / "config.json").write_text(config.replace('"data": "mnist"', '"data": "/gone/photos"'))
    return path


def test_pictures_are_listed_without_a_run(vaekit):
    code, out, err = vaekit("plot", "--list")
    assert (code, err) == (0, "")
    assert all(name in out for name in PICTURES)


def test_pictures_are_drawn_where_the_data_are_not(vaekit, run, tmp_path, monkeypatch):
    monkeypatch.setattr("vaekit.gallery.latents.ROTATION_FRAMES", 2)
    monkeypatch.setattr("vaekit.gallery.latents.SLICE_FRAMES", 9)
    code, out, err = vaekit("plot", run, "latents", "manifold", "curves", "--grid", 4)
    assert (code, err) == (0, "")
    names = [line.rpartition("/")[2] for line in out.splitlines()]
    assert names == [
        "latents-z.png", "latents-z-turning.gif", "manifold.png", "manifold-slices.gif", "curves.png",
        "curves-samples.png",
    ]  # fmt: skip
    assert {path.name for path in (run / "pictures").iterdir()} == set(names)
    with Image.open(run / "pictures" / "latents-z-turning.gif") as movie:
        assert movie.n_frames == 2
    for name in PICTURES.keys() - {"curves", "latents"}:
        monkeypatch.delitem(PICTURES, name)
    code, out, err = vaekit("report", run, "--out", tmp_path / "r.html")
    assert (code, err) == (0, "")
    assert (tmp_path / "r.html").stat().st_size > 10_000


def test_measuring_names_the_missing_data(vaekit, run):
    assert '"data": "/gone/photos"' in (run / "config.json").read_text()
    for verb in (["evaluate"], ["encode", "--out", "a.csv"], ["reconstruct"]):
        code, _, err = vaekit(verb[0], run, *verb[1:])
        assert code == 2
        assert err.count("\n") == 1
        assert "/gone/photos" in err


def test_a_run_without_picture_data_names_both(vaekit, run):
    (run / "picture_data.safetensors").unlink()
    code, _, err = vaekit("plot", run)
    assert code == 2
    assert err.count("\n") == 1
    assert "/gone/photos" in err
    assert "picture_data.safetensors" in err


@pytest.mark.parametrize("ending", ["svg", "pdf"])
def test_pictures_come_as_vectors_and_elsewhere(vaekit, run, tmp_path, ending):
    code, out, _ = vaekit(
        "plot", run, "curves", "--format", ending, "--out", tmp_path / "new" / "folder"
    )
    assert code == 0
    assert out.splitlines()[0] == str(tmp_path / "new" / "folder" / f"curves.{ending}")
    head = (tmp_path / "new" / "folder" / f"curves.{ending}").read_bytes()[:100]
    assert head.startswith(b"%PDF" if ending == "pdf" else b"<?xml")


def test_codes_are_written_and_decoded(vaekit, small_run, small_mnist, tmp_path):
    code, out, _ = vaekit("encode", small_run, "--samples", 2, "--out", "codes.csv")
    assert code == 0
    assert out.startswith("codes.csv: 200 images, split, index, label, z_mean")
    assert len(read_table(tmp_path / "codes.csv")["rank"]) == 200
    code, out, _ = vaekit("decode", small_run, "codes.csv", "--out", "images")
    assert (code, out) == (0, "images: uint8, values from 0 to 255, rounded to whole numbers\n")
    assert len(list((tmp_path / "images").iterdir())) == 200
    code, out, _ = vaekit("encode", small_run, "images/007.png", "--samples", 2, "--out", "one.npz")
    assert code == 0
    assert read_table(tmp_path / "one.npz")["path"].tolist() == ["images/007.png"]


def test_runs_are_compared(vaekit, small_run, tmp_path):
    code, out, _ = vaekit("compare", small_run, small_run, "--out", "both.png")
    assert code == 0
    assert "validation ELBO" in out
    assert f"notevaluatedyet:vaekitevaluate{small_run}" in "".join(
        out.split()
    )  # in lines of any width
    assert out.endswith("both.png\n")
    assert (tmp_path / "both.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("plot", "lacks RUN"),
        ("plot nowhere", "there is no run directory nowhere"),
        ("plot RUN latent", "there is no picture 'latent'; did you mean 'latents'"),
        ("plot RUN analogies", "analogies need a model with --condition label"),
        ("plot RUN --format gif", "--format is 'gif'; it must be one of png, svg, pdf"),
        ("plot RUN --grid 0", "--grid is 0; it must be 2 to 100"),
        ("plot RUN --range -1", "--range is -1.0; it must be a positive number"),
        (
            "plot RUN --projction pca",
            "there is no flag --projction here; did you mean '--projection'",
        ),
        ("plot RUN traversals --images 5000", "--images 5000 is not one of the test images"),
        ("plot RUN --images x", "--images"),
        ("plot RUN --out FILE", "FILE"),
        ("report RUN --out no/r.html", "no/r.html"),
        ("encode RUN", "lacks --out"),
        (
            "encode RUN --out a.txt",
            "a.txt is not a table file; its ending must be one of .npz, .csv, .parquet",
        ),
        ("encode RUN --out no/a.csv", "no/a.csv: its folder does not exist"),
        ("encode RUN missing.png --out a.csv", "there is no file or folder missing.png"),
        ("encode RUN nothing --out a.csv", "nothing"),
        ("encode RUN FILE --out a.csv", "FILE"),
        ("encode RUN --label 3 --out a.csv", "--label is only for image files"),
        ("encode RUN --samples 0 --out a.csv", "--samples is 0"),
        ("decode RUN", "lacks FILE"),
        ("decode RUN missing.csv --out b", "there is no file missing.csv"),
        ("decode RUN FILE --out b", "its ending must be one of .npz"),
        ("decode RUN codes.csv", "lacks --out"),
        ("compare", "there are no runs to compare"),
        ("compare RUN nowhere", "there is no run directory nowhere"),
        ("compare RUN --out a.xyz", "its ending must be one of"),
        ("train vae --pictures-every 0", "--pictures-every is 0; it must be at least 1"),
        ("train vae --recrd", "there is no flag --recrd here; did you mean '--record'"),
    ],
)
def test_mistakes_are_one_line(vaekit, small_run, small_mnist, tmp_path, words, said):
    (tmp_path / "FILE").write_text("no table")
    code, _, err = vaekit(*(str(small_run) if word == "RUN" else word for word in words.split()))
    assert code == 2
    assert err.count("\n") == 1, err
    assert said in err
    assert {path.name for path in tmp_path.iterdir()} == {"FILE"}


@pytest.mark.parametrize(
    "words",
    [
        ("generate", "RUN"),
        ("generate", "RUN", "--latent", "0,0,0"),
        ("reconstruct", "RUN"),
        ("encode", "RUN", "--out", "codes.csv"),
        ("decode", "RUN", "codes.csv", "--out", "pictures"),
        ("plot", "RUN", "samples"),
        ("evaluate", "RUN"),
    ],
    ids=" ".join,
)
def test_weights_that_are_not_finite_are_refused(vaekit, small_run, small_mnist, tmp_path, words):
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    model = load(run)
    with torch.no_grad():
        next(model.decoder.parameters())[0] = math.nan
    Run(run).save_weights(model)
    (tmp_path / "codes.csv").write_text("z_0,z_1,z_2\n0,0,0\n")
    before = sorted(tmp_path.rglob("*"))
    code, _, err = vaekit(*(run if word == "RUN" else word for word in words))
    assert code == 2
    assert "are not finite: its training diverged, or they are damaged; train again" in err
    assert err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before
