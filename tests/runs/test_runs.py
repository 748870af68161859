"""Run directories: never overwritten, intact at any moment, damage reported in one line."""

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from conftest import random_dataset
from vaekit import Run, UserError, build, load, resume, train
from vaekit.settings.training import TrainConfig
from vaekit.studies.curves import run_settings
from vaekit.support.atomic import write_bytes, write_json

GOLDEN = Path(__file__).parents[1] / "golden"


def test_default_names_count_up_and_never_collide(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        runs = list(pool.map(lambda _: str(Run.create(None, "vae-mnist", {})), range(20)))
    assert sorted(runs) == sorted(f"runs/vae-mnist-{n}" for n in range(1, 21))


def test_an_out_that_is_not_utf_8_is_refused_before_training(tmp_path):
    with pytest.raises(UserError, match=r"out .*a\\udcff is not UTF-8"):
        Run.create(tmp_path / os.fsdecode(b"a\xff"), "", {})
    assert not list(tmp_path.iterdir())


def test_an_existing_out_is_refused_and_left_unchanged(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    (tmp_path / "file").write_text("precious")
    for name in ("mine", "file"):
        with pytest.raises(UserError, match="exists already"):
            Run.create(tmp_path / name, "", {})
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="exists already"):
        Run.create(tmp_path / "empty", "", {})
    assert Run.create(tmp_path / "a" / "deep", "", {}).path.is_dir()


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_bytes(path, b"half")
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_write_replaces_the_file_atomically(tmp_path):
    """A reader that has the old file open still reads it in full."""
    path = tmp_path / "a.json"
    write_bytes(path, b"old")
    with path.open("rb") as reader:
        write_bytes(path, b"new")
        assert reader.read() == b"old"
    assert path.read_bytes() == b"new"


def test_a_full_disk_leaves_no_empty_run_behind(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        Run.create(tmp_path / "a", "", {})
    assert not list(tmp_path.iterdir())


def test_concurrent_writers_of_one_file_do_not_interfere(tmp_path):
    path = tmp_path / "a.json"
    contents = [{"writer": n, "text": str(n) * 10_000} for n in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda content: [write_json(path, content) for _ in range(20)], contents))
    assert json.loads(path.read_text()) in contents
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_config_records_everything(small_run):
    config = Run(small_run).config
    assert config["format"] == 2
    assert set(config["versions"]) == {"vaekit", "torch", "python", "git"}
    assert config["model"]["settings"]["likelihood"] == "bernoulli"
    assert config["data"]["binarisation"] == "dynamic"
    assert len(config["data"]["sha256"]) == 64
    assert config["data"]["images"] == {"train": 600, "validation": 200, "test": 200}
    assert config["training"] == asdict(TrainConfig(epochs=2, kl_warmup=0.0, compile="no"))
    assert config["objective"] == "elbo(beta=1.0, samples=())"
    assert config["init"] is None
    assert config["device"] == "cpu"
    assert config["model"]["seed"] == 0
    assert isinstance(config["command"], list)


def test_metrics_has_a_line_per_epoch(small_run):
    metrics = Run(small_run).metrics
    assert [epoch["epoch"] for epoch in metrics] == [1, 2]
    for epoch in metrics:
        assert epoch["train_elbo"] == pytest.approx(epoch["train_log_likelihood"] - epoch["kl"])
        assert epoch["images_per_second"] > 0


@pytest.fixture
def copy(small_run, tmp_path):
    return shutil.copytree(small_run, tmp_path / "copy")


def test_a_copied_directory_alone_rebuilds_the_model(copy, small_run):
    assert not load(copy).training  # ready to use: dropout is off
    first, second = load(small_run).state_dict(), load(copy).state_dict()
    assert all(torch.equal(value, second[key]) for key, value in first.items())


def edit(**changes):
    def change(run):
        config = json.loads((run / "config.json").read_text())
        for path, value in changes.items():
            *parents, last = path.split("__")
            target = config
            for key in parents:
                target = target[key]
            if value is None:
                del target[last]
            else:
                target[last] = value
        (run / "config.json").write_text(json.dumps(config))

    return change


def truncate(name, size):
    return lambda run: (run / name).write_bytes((run / name).read_bytes()[:size])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: (run / "config.json").unlink(), "is not a run directory"),
        (truncate("config.json", 100), "is damaged"),
        (lambda run: (run / "config.json").write_bytes(b"\xff\xfe\x00"), "is damaged"),
        (lambda run: (run / "config.json").write_text("[" * 100_000), "is damaged"),
        (lambda run: (run / "config.json").write_text("[1]"), "not a JSON object"),
        (edit(format=3), "use a newer vaekit"),
        (edit(format=None), "has format None"),
        (edit(format=True), "has format True"),
        (edit(model__seed=-1), "seed is -1"),
        (edit(model__settings__latent_dim=10**30), "at most"),
        (edit(model__shape=[10**30, 1, 1]), "must be \\[C, H, W\\]"),
        (edit(model=None), "config.json lacks 'model'"),
        (edit(model__name="vea"), "did you mean 'vae'"),
        (edit(model__shape=[28, 28]), "must be \\[C, H, W\\]"),
        (edit(model__settings__latent_dim="3"), "latent_dim is '3'; it must be a whole number"),
        (edit(model__settings__latent_dim=None), "lacks the setting 'latent_dim'"),
        (edit(model__settings__colour=1), "no setting 'colour'"),
        (edit(model__settings__latent_dim=4), "does not fit the model: .* has shape"),
        (edit(model__settings__num_layers=3), "does not fit the model: only the model has"),
        (lambda run: (run / "model.safetensors").unlink(), "is missing"),
        (truncate("model.safetensors", 1000), "is damaged"),
        (truncate("model.safetensors", 0), "is damaged"),
        (lambda run: (run / "model.safetensors").write_bytes(b"\xff" * 500), "is damaged"),
    ],
)
def test_damage_is_reported_in_one_line(copy, damage, message):
    damage(copy)
    with pytest.raises(UserError, match=message) as caught:
        load(copy)
    assert "\n" not in str(caught.value)
    assert str(copy) in str(caught.value) or "vea" in str(caught.value)


def test_metrics_cut_off_by_an_interruption_are_read(copy):
    with (copy / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "train_el')
    assert len(Run(copy).metrics) == 2
    first, second, _ = (copy / "metrics.jsonl").read_bytes().split(b"\n")
    for damage in (b"5", b"\xff\xfe", b"[" * 100_000):
        (copy / "metrics.jsonl").write_bytes(b"\n".join([first, damage, second, b""]))
        with pytest.raises(UserError, match=r"metrics\.jsonl, line 2 is damaged"):
            _ = Run(copy).metrics


# Log-likelihood and KL of four images, summed, by the vaekit that made the run.
FORMATS = {
    "format-2/vae": (-84.74906921386719, 0.0819263905286789),
    "format-2/hvampprior": (-86.93890380859375, 0.5686364769935608),
    "format-2/gmvae": (-85.91349792480469, 1006.1421508789062),
}


@pytest.mark.parametrize("name", FORMATS)
def test_runs_of_each_format_load_unchanged(name):
    """Format 2 is that of 0.1.0. These runs are from before checkpoints, and resuming them is refused. (Format 1, which
    was never released, is refused.)"""
    run = Run(GOLDEN / name)
    torch.manual_seed(0)
    with torch.no_grad():
        inference = load(run)(random_dataset().test[:4].images.float() / 255)
    sums = inference.log_likelihood.sum().item(), inference.kl.sum().item()
    assert sums == pytest.approx(FORMATS[name], rel=1e-4)
    assert [epoch["epoch"] for epoch in run.metrics] == [1, 2]
    with pytest.raises(
        UserError, match="has saved no checkpoint; train again, or start a new training from its"
    ):
        run.load_state()


@pytest.mark.parametrize(
    ("number", "remedy"), [(1, "train the model again"), (3, "a newer vaekit")]
)
def test_runs_of_other_formats_are_refused(tmp_path, number, remedy):
    shutil.copytree(GOLDEN / "format-2" / "vae", tmp_path / "a")
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    (tmp_path / "a" / "config.json").write_text(json.dumps({**config, "format": number}))
    with pytest.raises(UserError, match=f"has format {number}, but .* reads 2; .*{remedy}"):
        load(tmp_path / "a")


def test_monitoring_settings_of_an_earlier_version_are_read(copy):
    file = copy / "config.json"
    config = json.loads(file.read_text())
    config["monitor"]["pictures_every"] = 3
    for name in ("monitor", "watch"):
        config[name] = config.pop("monitor")
        file.write_text(json.dumps(config))
        assert Run(copy).monitor.pictures_every == 3
    del config["watch"]
    file.write_text(json.dumps(config))
    with pytest.raises(UserError, match="'monitor'"):
        _ = Run(copy).monitor


def test_settings_of_the_training_are_checked_except_those_added_later(copy):
    """A missing setting is an error: resuming with its default could change the result."""
    config = json.loads((copy / "config.json").read_text())
    for change, message in [
        (("batch_size", None), "config.json lacks the setting 'batch_size'"),
        (("batch_size", "8"), "batch_size is '8'; it must be a whole number"),
        (("batch_size", 0), "batch_size is 0; it must be at least 1"),
        (("bach_size", 8), "no setting 'bach_size'; did you mean 'batch_size'"),
    ]:
        training = {k: v for k, v in config["training"].items() if change != (k, None)}
        training |= {change[0]: change[1]} if change[1] is not None else {}
        (copy / "config.json").write_text(json.dumps({**config, "training": training}))
        with pytest.raises(UserError, match=message):
            _ = Run(copy).training
    assert Run(GOLDEN / "format-2" / "vae").training.state_every == 30


@pytest.mark.parametrize(("likelihood", "levels"), [("logistic", 256), ("gaussian", None)])
def test_discrete_pixels_of_older_runs_have_256_levels(likelihood, levels, tmp_path):
    data = random_dataset(kind="grey")
    model = build("vae", data, latent_dim=2, hidden_dim=8, likelihood=likelihood)
    run = train(model, data, out=tmp_path / "run", epochs=1, progress=False)
    config = json.loads((run.path / "config.json").read_text())
    assert config["model"]["settings"].pop("levels") == levels
    older = shutil.copytree(run.path, tmp_path / "older")
    (older / "config.json").write_text(json.dumps(config))
    assert Run(older).blueprint == run.blueprint
    assert run_settings(Run(older)) == run_settings(run)
    z = torch.randn(3, 2)
    assert torch.equal(load(older).decode(None, z=z).mean, load(run).decode(None, z=z).mean)
    resume(older, epochs=2, data=data, progress=False)
