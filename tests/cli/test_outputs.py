"""What commands write: never over the files of a run, never silently over other pictures, and large enough to see."""

import inspect
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vaekit import Run, load
from vaekit.cli.main import VERBS
from vaekit.pictures import image_grid, save


@pytest.fixture
def run(small_run, tmp_path, small_mnist):
    path = shutil.copytree(small_run, tmp_path / "run")
    (path / "clusters-test.csv").write_text("index,cluster,probability,label\n")
    return path


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


OWN_FILE, ENDING = "it is a file of the run itself", "its ending must be"
FOLDER, NAME_A_FOLDER = "its folder does not exist", "name a folder"
REFUSED = [
    (["report", "run", "--out", "run/config.json"], ENDING),
    (["report", "run", "--out", "run/model.safetensors"], ENDING),
    (["report", "run", "--out", "report.pdf"], ENDING),
    (["report", "run", "--out", "no/report.html"], FOLDER),
    (["generate", "run", "--out", "run/config.json"], ENDING),
    (["generate", "run", "--out", "no/a.png"], FOLDER),
    (["reconstruct", "run", "--out", "run/state.safetensors"], ENDING),
    (["encode", "run", "--out", "run/clusters-test.csv"], OWN_FILE),
    (["encode", "run", "--out", "run/config.json"], "its ending must be"),
    (["encode", "run", "--out", "no/codes.csv"], FOLDER),
    (["encode", "run", "--out", "codes.csv", "--picture", "run/config.json"], ENDING),
    (["encode", "run", "--picture", "no/map.png"], FOLDER),
    (["decode", "run", "codes.csv", "--out", "run/metrics.jsonl"], ENDING),
    (["decode", "run", "codes.csv", "--out", "no/a.npz"], FOLDER),
    (["decode", "run", "codes.csv", "--out", "run"], "name a new folder"),
    (["plot", "run", "--out", "run/config.json"], NAME_A_FOLDER),
    (["anomalies", "run", "--out", "run/config.json"], NAME_A_FOLDER),
    (["export", "run", "--onnx", "run/config.json"], NAME_A_FOLDER),
    (["export", "run", "--torch", "run/config.json"], NAME_A_FOLDER),
    (["compare", "run", "--out", "run/clusters-test.csv"], OWN_FILE),
    (["compare", "run", "--out", "run/evaluation.json"], ENDING),
    (["data", "show", "mnist", "--out", "run/config.json"], ENDING),
    (["data", "prepare", "run", "--out", "run/model.safetensors"], "exists already"),
    (["reproduce", "vae-dynamic", "--report", "run/config.json"], ENDING),
    (["plan", "mnist", "--out", "run/config.json"], "must end in .toml"),
    (["train", "vae", "--out", "run"], "exists already"),
    (["sweep", "vae", "--seed", "0,1", "--out", "run"], "is a run directory"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_no_command_writes_over_the_files_of_a_run(vaekit, run, monkeypatch, arguments, message):
    """Refused before anything is loaded or computed."""
    for name in ("encoding.load", "encoding.load_trained"):
        monkeypatch.setattr(
            f"vaekit.inference.{name}", lambda *_: pytest.fail("loaded"), raising=False
        )
    before = contents(run)
    code, out, err = vaekit(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert contents(run) == before
    assert {path.name for path in Path().iterdir()} == {"run"}


def test_every_command_that_writes_where_it_is_told_is_in_that_list():
    flags = {"out", "onnx", "torch", "report"}
    writing = {n for n, verb in VERBS.items() if flags & set(inspect.signature(verb).parameters)}
    assert (writing - {"demo"}) | {"train", "sweep"} == {
        " ".join(a[:2]) if a[0] == "data" else a[0] for a, _ in REFUSED
    }


def test_every_command_that_takes_a_run_takes_weights():
    parameters = {name: set(inspect.signature(verb).parameters) for name, verb in VERBS.items()}
    taking = {name for name, names in parameters.items() if names & {"run", "runs"}}
    assert {"evaluate", "explore", "decode"} < taking
    assert all("weights" in parameters[name] for name in taking)


def test_pictures_of_different_commands_and_seeds_have_different_names(vaekit, run):
    commands = [
        ("plot", "run", "samples"),
        ("generate", "run"),
        ("generate", "run", "--seed", 1, "--temperature", 0.5, "--count", 9),
        ("generate", "run", "--latent", "0,0.5,-1"),
        ("reconstruct", "run"),
        ("reconstruct", "run", "--weights", "last"),
    ]
    written = []
    for command in commands:
        code, out, err = vaekit(*command)
        assert (code, err) == (0, "")
        written += [Path(line).name for line in out.split()]
    assert written == [
        "samples.png",
        "generated-seed-0.png",
        "generated-count-9-temperature-0.5-seed-1.png",
        "generated-latent-0,0.5,-1.png",
        "reconstructed-test.png",
        "reconstructed-test-last.png",
    ]


LONG = pytest.mark.long


@pytest.mark.parametrize(
    "kind", ["png", pytest.param("svg", marks=LONG), pytest.param("pdf", marks=LONG)]
)
def test_another_picture_is_replaced_only_on_request(vaekit, run, kind):
    commands = [
        ("generate", "run", "--out", f"a.{kind}", "--count", 4),
        ("plot", "run", "samples", "--out", "folder", "--format", kind),
    ]
    for command in commands:
        assert vaekit(*command)[0] == 0
        assert vaekit(*command)[0] == 0  # the same picture again
    files = [Path(f"a.{kind}"), Path(f"folder/samples.{kind}")]
    first = [file.read_bytes() for file in files]
    model = load(run)
    with torch.no_grad():
        next(model.decoder.parameters()).mul_(2)
    Run(run).save_weights(model)
    for command in commands:
        code, out, err = vaekit(*command)
        assert (code, out) == (2, "")
        assert "a different picture exists already and was kept; pass --overwrite" in err
    assert [file.read_bytes() for file in files] == first
    for command in commands:
        assert vaekit(*command, "--overwrite")[0] == 0
    assert all(file.read_bytes() != old for file, old in zip(files, first, strict=True))


def test_plot_writes_the_pictures_that_are_new_and_names_those_that_it_kept(vaekit, run):
    folder = run / "pictures"
    folder.mkdir(exist_ok=True)
    for name in ("samples.png", "curves.png"):
        (folder / name).write_bytes(b"mine")
    code, _, err = vaekit("plot", run, "samples", "curves")
    assert code == 2
    assert (folder / "samples.png").read_bytes() == b"mine"
    assert (folder / "curves-samples.png").exists()
    assert "samples.png and 1 more: a different picture exists" in err


@pytest.mark.parametrize("side", [1, 5, 28, 64, 200])
def test_tiny_pictures_are_scaled_up_by_whole_factors(tmp_path, side):
    image = torch.rand(1, 1, side, side, generator=torch.Generator().manual_seed(0))
    with Image.open(save(image_grid(image, 1), tmp_path / "a.png")) as picture:
        drawn = np.asarray(picture.convert("L"))
    factor = len(drawn) // side
    assert drawn.shape == (factor * side, factor * side)
    assert 160 < len(drawn) <= 320
    expected = np.kron(image[0, 0].numpy(), np.ones((factor, factor)))
    assert np.abs(drawn / 255 - expected).max() < 0.01
