"""`plan`: what it sees, that its file is carried out as it says, and that its steps fit the time."""

import math
import tomllib

import numpy as np
import pytest
from PIL import Image

import vaekit as api
from conftest import random_dataset
from image_folders import save_image, save_images
from vaekit import Run, UserError, load_data, plan
from vaekit.settings import planning
from vaekit.settings.training import TrainConfig
from vaekit.studies import proposal
from vaekit.studies.proposal import Speed, fit_steps


@pytest.fixture(autouse=True)
def short_measurement(monkeypatch):
    monkeypatch.setattr(proposal, "MEASURED_SECONDS", 0.0)
    monkeypatch.setattr(proposal, "bfloat16_slowdown", lambda: 2.0)


@pytest.fixture
def speed(monkeypatch):
    """Replaces the measurement: call it with the seconds of a step by model."""

    def use(**seconds):
        def measure(dataset, choices, device):
            step = seconds[choices["model"].value]
            return planning.Choice("float32", "no"), Speed(step, 0.0), TrainConfig(steps=1)

        monkeypatch.setattr(proposal, "measure", measure)

    return use


@pytest.fixture
def photos(tmp_path):
    """Two classes of colour images of different sizes, of which one is an exact copy."""
    folder = tmp_path / "photos"
    save_images(folder, [f"cat/{i}.png" for i in range(22)], shape=(40, 60, 3))
    save_image(folder / "dog/1.png", shape=(70, 50, 3))
    (folder / "cat/copy.png").write_bytes((folder / "cat/3.png").read_bytes())
    return folder


def values(path):
    return tomllib.loads(path.read_text())


def test_a_plan_is_a_file_with_a_reason_for_every_setting(photos, tmp_path, speed):
    speed(deepvae=1.0, convvae=0.1)
    found = plan(photos, 1.0, out=tmp_path / "p.toml", progress=False)
    lines = (tmp_path / "p.toml").read_text().splitlines()
    written = values(tmp_path / "p.toml")
    assert written == {name: choice.value for name, choice in found.choices.items()}
    assert written["model"] == "convvae"  # 54 steps of a deepvae are too few
    assert (written["data"], written["size"]) == (str(photos), "32")
    for at, line in enumerate(lines):
        assert len(line) < 125
        if " = " in line and not line.startswith("#"):
            assert lines[at - 1].startswith("# ")
    text = " ".join(line.removeprefix("# ") for line in lines)
    for part in ("32 x 32 pixels, colour, 256 levels, 2 classes", "only 20 training images",
                 "1 image is an exact copy"):  # fmt: skip
        assert part in text
    assert found.plan.settings.likelihood == "logistic-mixture"
    with pytest.raises(UserError, match=r"p.toml exists already"):
        plan(photos, 1.0, out=tmp_path / "p.toml", progress=False)


@pytest.mark.parametrize(("step", "model"), [(0.05, "deepvae"), (1.0, "convvae")])
def test_a_slow_model_is_proposed_only_where_enough_steps_fit(photos, speed, step, model):
    speed(deepvae=step, convvae=step)
    assert plan(photos, 1.0, progress=False).choices["model"].value == model


def test_the_steps_fit_the_time_and_grow_with_it():
    """At 0.02 s a step and 1 s for each validation: an epoch of 100 steps takes 3 s."""
    config = TrainConfig(steps=1, batch_size=10)
    speed = Speed(step=0.02, validation=1.0)
    share = planning.STEPS_SHARE
    steps, seconds = fit_steps(speed, config, images=1000, seconds=300.0)
    exact = share * 300 / 0.03
    assert exact * 0.9 < steps <= exact
    assert seconds == pytest.approx(steps * 0.03 / share)
    assert seconds <= 300
    assert fit_steps(speed, config, 1000, 600.0)[0] == pytest.approx(2 * steps, rel=0.05)
    assert fit_steps(speed, config, 1000, 0.001)[0] == 1
    most = planning.MOST_PASSES * math.ceil(15 / 10)  # of a tiny set
    assert fit_steps(speed, config, 15, 1e6)[0] == most


def test_the_command_writes_a_plan_that_train_carries_out(vaekit, tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "bits").mkdir()
    for i in range(30):
        array = (rng.random((8, 8)) > 0.5).astype(np.uint8) * 255
        Image.fromarray(array).save(tmp_path / "bits" / f"{i}.png")
    code, out, err = vaekit("plan", "bits", "--minutes", "0.02")
    assert code == 0
    assert out.startswith("# A plan of vaekit")
    assert out.endswith("written to plan.toml; next: vaekit train --config plan.toml\n")
    planned = values(tmp_path / "plan.toml")
    assert (planned["model"], planned["likelihood"]) == ("convvae", "bernoulli")
    code, _, err = vaekit("train", "--config", "plan.toml", "--channels", "2", "--out", "run")
    assert code == 0, err
    run = Run("run")
    assert run.training.steps == planned["steps"]
    assert run.training.batch_size == planned["batch_size"]
    assert (run.blueprint.model, run.blueprint.settings.channels) == ("convvae", 2)
    assert vaekit("plan", "bits")[0] == 2  # plan.toml exists


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere/",), "there is no file or folder nowhere"),
        (("mnsit",), "there is no data set or folder 'mnsit'; did you mean 'mnist'?"),
        (("mnist", "--minutes", "0"), "--minutes is 0.0; it must be a positive number"),
        (("mnist", "--out", "plan.txt"), "--out plan.txt must end in .toml"),
        (("mnist", "--out", "a/b.toml"), "cannot write a/b.toml: its folder does not exist"),
        (("mnist", "--device", "cuda:99"), "--device cuda:99 is not available"),
    ],
)
def test_a_plan_that_cannot_be_is_one_line(vaekit, tmp_path, arguments, message):
    code, out, err = vaekit("plan", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"vaekit: {message}")
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_data_set_in_memory_has_a_plan_without_its_name(speed):
    speed(convvae=0.1, vae=0.1)
    found = plan(random_dataset((1, 10, 9), "float"), progress=False)
    assert "data" not in found.choices
    assert found.choices["likelihood"].value == "gaussian"
    assert api.plan is plan


def test_large_arrays_are_planned_at_a_smaller_size(tmp_path, speed):
    speed(convvae=0.1)
    rng = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", rng.integers(0, 256, (30, 96, 128), dtype=np.uint8))
    found = plan(tmp_path / "x.npy", progress=False)
    assert found.choices["size"].value == "48x64"
    again = load_data(tmp_path / "x.npy", size="48x64", progress=False)
    assert again.shape == (1, 48, 64)
    assert "48 x 64 pixels" in found.seen[0]
    given = plan(tmp_path / "x.npy", progress=False, size="24x32")
    assert given.choices["size"] == planning.Choice("24x32", "as given")
