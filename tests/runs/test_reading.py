"""A run directory from anywhere is read safely: each bad value ends in one line, at a cost bounded by the files."""

import dataclasses
import itertools
import json
import os
import random
import shutil
import time

import pytest
import torch

import hostile
from conftest import random_dataset
from vaekit import Run, UserError, build, draw, evaluate, load, load_data, resume, train
from vaekit.evaluation.metrics import METRICS
from vaekit.explorer.server import open_sessions
from vaekit.gallery.report import headline_results
from vaekit.likelihood.latent_use import KEYS, LatentUse
from vaekit.runs.directory import STATE
from vaekit.runs.schema import EpochRecord, EvaluationFile, StateRecord
from vaekit.studies.sweep import summarise
from vaekit.training.learner import Position
from vaekit.training.loop import Epoch
from vaekit.training.recovery import empty_epoch

FILES = [*hostile.READERS]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return hostile.small_run(tmp_path_factory.mktemp("reading") / "run")


@pytest.fixture
def copy(run, tmp_path):
    return shutil.copytree(run, tmp_path / "copy")


def read(name, copy):
    """Read a file of the run as the commands do; but a report of a damaged evaluation.json says "not evaluated"."""
    if name == "evaluation.json":
        _ = Run(copy).evaluation
    else:
        hostile.READERS[name](copy)


def all_cases(run, name):
    make = hostile.json_cases if name in hostile.JSON_FILES else hostile.tensor_cases
    return make(run, name)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.filterwarnings("ignore")
def test_some_hostile_values_and_mutations_end_in_one_line(run, tmp_path, name):
    if name == "model.safetensors":
        cases = hostile.mutated_cases(run, name, 20, seed=1)
    else:
        rng = random.Random(name)
        chosen = (
            case
            for case in all_cases(run, name)
            if rng.random() < (0.002 if name == STATE else 0.006)
        )
        cases = itertools.chain(chosen, hostile.mutated_cases(run, name, 10, seed=1))
    hostile.read_cases(run, tmp_path, name, cases).check()


@pytest.mark.long
@pytest.mark.parametrize("name", FILES)
@pytest.mark.filterwarnings("ignore")
def test_every_value_of_every_file_replaced_ends_in_one_line(run, tmp_path, name):
    hostile.in_a_process(run, tmp_path, name, all_cases(run, name)).check()


@pytest.mark.long
@pytest.mark.parametrize("name", FILES)
@pytest.mark.filterwarnings("ignore")
def test_a_hundred_thousand_mutated_files_end_in_one_line(run, tmp_path, name):
    count = 100_000 // len(FILES)
    outcome = hostile.in_a_process(run, tmp_path, name, hostile.mutated_cases(run, name, count, 0))
    outcome.check()
    assert outcome.refused > count / 2


def set_json(name, path, value):
    def change(copy):
        *lines, last = (
            (copy / name).read_text().splitlines()
            if name.endswith("l")
            else [(copy / name).read_text()]
        )
        changed = hostile.replaced(json.loads(last), path, value)
        (copy / name).write_text("\n".join([*lines, hostile.as_text(changed)]) + "\n")

    return change


def set_state(**changes):
    def change(copy):
        tensors, metadata = hostile.read_tensors(copy / STATE)
        text = json.dumps(json.loads(metadata["state"]) | changes)
        (copy / STATE).write_bytes(hostile.packed(tensors, {"state": text}, STATE))

    return change


def set_tensor(name, key, change_tensor):
    def change(copy):
        tensors, metadata = hostile.read_tensors(copy / name)
        tensors[key] = change_tensor(tensors[key]).contiguous()
        (copy / name).write_bytes(hostile.packed(tensors, metadata, name))

    return change


PICTURES = hostile.FILE_NAME


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("config.json", set_json("config.json", ("versions",), None), "versions is None; it must be an object"),
        ("config.json", set_json("config.json", ("data", "classes"), 5), "classes is 5; it must be a list, each text"),
        ("config.json", set_json("config.json", ("data", "images"), [1]), "images is .1.; it must be an object"),
        ("config.json", set_json("config.json", ("command",), 3), "command is 3; it must be a list"),
        ("config.json", set_json("config.json", ("data", "source"), "NESTED"), "nested too deep"),
        ("metrics.jsonl", set_json("metrics.jsonl", ("kl",), 10**400), "damaged .the number 1.* is too large"),
        ("metrics.jsonl", set_json("metrics.jsonl", ("seconds",), "1"), "seconds is '1'; it must be a number or null"),
        ("metrics.jsonl", set_json("metrics.jsonl", ("kl_per_dimension", "z"), [1.0]), "has another number of dim"),
        ("metrics.jsonl", set_json("metrics.jsonl", ("warnings",), 1), "warnings is 1; it must be a list"),
        ("evaluation.json", set_json("evaluation.json", ("nll",), "90"), "nll is '90'; it must be a number or null"),
        (STATE, set_state(epoch=-5), "epoch is -5; it must be 0 or a positive number"),
        (STATE, set_state(epoch=1.5), "epoch is 1.5; it must be a whole number"),
        (STATE, set_state(best=None), "best is None; it must be a number"),
        (STATE, set_tensor(STATE, "noise.0.cpu", lambda t: t[:9]), "the state does not fit the training"),
        (STATE, set_tensor(STATE, "optimizer.0.step", lambda t: t.expand(7)), "its optimiser are of another kind"),
        (PICTURES, set_tensor(PICTURES, "codes.z", lambda t: t[:, :1]), r"codes.z has type F32 and shape .30, 1."),
        (PICTURES, set_tensor(PICTURES, "code_labels", lambda t: t + 10**8), "code_labels has values that are not pos"),
        (PICTURES, set_tensor(PICTURES, "rows.test", lambda t: t.float()), "rows.test has type F32"),
        (PICTURES, set_tensor(PICTURES, "scales.z", lambda t: t / 0), "scales.z has values that are not possible"),
    ],
)  # fmt: skip
def test_bad_values_are_named_in_one_line(copy, name, damage, message):
    damage(copy)
    with pytest.raises(UserError, match=message) as caught:
        read(name, copy)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [{"hidden_dim": 30_000}, {"hidden_dim": 2**20}, {"prior": "mixture", "components": 2**20, "latent_dim": 2**20},
     {"encoder": "1@1000000 1", "network": "conv"}, {"encoder": "5 " * 10**6}],
)  # fmt: skip
def test_nothing_is_allocated_for_a_model_that_the_weights_do_not_fit(copy, monkeypatch, settings):
    monkeypatch.setattr("vaekit.runs.load.build_from", lambda _: pytest.fail("it is allocated"))
    for key, value in settings.items():
        set_json("config.json", ("model", "settings", key), value)(copy)
    with pytest.raises(UserError):
        load(copy)


def test_memory_of_a_conditional_model_grows_with_its_weights(copy):
    """2^18 classes took a matrix of 2^18 x 2^18 numbers."""
    data = random_dataset((1, 2, 2))
    model = build("cvae", data, classes=2**18, hidden_dim=1, latent_dim=1)
    y = torch.tensor([0, 2**18 - 1])
    assert model.condition(None, y).argmax(1).equal(y)
    assert model.condition(None, y).sum(1).tolist() == [1, 1]


@pytest.mark.parametrize("name", FILES)
def test_a_link_out_of_the_run_is_not_followed(copy, tmp_path, name):
    outside = shutil.move(copy / name, tmp_path / "outside")
    before = outside.read_bytes()
    (copy / name).symlink_to(outside)
    with pytest.raises(UserError, match=r"is a link out of .*, which is not followed"):
        hostile.READERS[name](copy)
    if name == "metrics.jsonl":
        with pytest.raises(UserError, match="is a link out of"):
            Run(copy).append_metrics({"epoch": 3})
    assert outside.read_bytes() == before
    (copy / name).unlink()
    shutil.move(outside, copy / "elsewhere")
    (copy / name).symlink_to("elsewhere")  # a link within the run
    hostile.READERS[name](copy)


def test_a_lock_or_a_movie_is_not_written_outside_the_run(copy, tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("precious")
    (copy / ".lock").unlink(missing_ok=True)
    (copy / ".lock").symlink_to(outside)
    with pytest.raises(UserError, match="lock is a link out of"):
        resume(copy, random_dataset((1, 12, 12), count=90), epochs=4, progress=False)
    assert outside.read_text() == "precious"
    (copy / "pictures").mkdir()
    (copy / "pictures" / "progress").symlink_to(tmp_path)
    with pytest.raises(UserError, match="progress is a link out of"):
        Run(copy).picture_folder("progress")


def test_the_folder_of_pictures_is_not_a_link_out_of_the_run(copy, tmp_path):
    (tmp_path / "outside").mkdir()
    (copy / "pictures").symlink_to(tmp_path / "outside")
    with pytest.raises(UserError, match="is a link out of"):
        _ = Run(copy).pictures
    (copy / "pictures").unlink()
    (copy / "pictures" / "progress").mkdir(parents=True)
    (copy / "pictures" / "progress" / "step-1.png").symlink_to("/dev/zero")
    with pytest.raises(UserError, match="is a link out of"):
        draw(copy, "progress")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["pipe", "zero", "loop", "folder"])
def test_pipes_devices_loops_and_folders_are_refused_at_once(copy, name, kind):
    (copy / name).unlink()
    if kind == "pipe":
        os.mkfifo(copy / name)
    elif kind == "folder":
        (copy / name).mkdir()
    else:
        (copy / name).symlink_to("/dev/zero" if kind == "zero" else name)
    started = time.perf_counter()
    with pytest.raises(UserError):
        read(name, copy)
    assert time.perf_counter() - started < 5


def test_image_folders_that_are_nested_or_linked_without_end_are_refused(tmp_path):
    here = tmp_path / "deep"
    here.mkdir()
    opened = os.open(here, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=opened)
        inner = os.open("d", os.O_RDONLY, dir_fd=opened)
        os.close(opened)
        opened = inner
    os.close(opened)
    bomb = tmp_path / "bomb"
    for i in range(12):
        (bomb / str(i)).mkdir(parents=True)
        for name in "ab":
            (bomb / str(i) / name).symlink_to(bomb / str(i + 1))
    os.mkfifo(tmp_path / "pipe.npy")
    for source in (here, bomb / "0", tmp_path / "pipe.npy", "/dev/zero"):
        started = time.perf_counter()
        with pytest.raises(
            UserError, match=r"nested more than|reached by more than|is neither a file nor"
        ):
            load_data(source, progress=False)
        assert time.perf_counter() - started < 5
    shutil.rmtree(bomb)
    os.system(f"rm -rf {here}")  # shutil's function is recursive


def test_the_schema_has_everything_that_is_written():
    def names(kind):
        return {f.name for f in dataclasses.fields(kind)}

    keys = {KEYS.get(name, name) for name in names(LatentUse)}
    assert names(Epoch) | keys | {"warnings", "recovered", "augmented"} == names(EpochRecord)
    assert names(Position) == names(StateRecord)
    assert {metric.key for metric in METRICS} <= names(EvaluationFile)
    others = ("error_key", "bias_key")
    assert {getattr(m, key) for m in METRICS for key in others} - {None} <= names(EvaluationFile)
    assert {key for metric in METRICS for key in metric.depends_on} <= names(EvaluationFile)


def test_the_epochs_of_a_training_that_ended_without_finite_losses_are_read(copy):
    (copy / "metrics.jsonl").unlink()
    run = Run(copy)
    for epoch in (dataclasses.replace(empty_epoch(1), best=True, seconds=2.0), empty_epoch(2)):
        run.append_metrics(dataclasses.asdict(epoch) | {"kl_parts": {"w": float("nan")}})
    assert run.metrics[1]["seconds"] is run.metrics[1]["kl_parts"]["w"] is None
    assert dict(headline_results(run.metrics, run.best, None))["training"] == "2 s"
    assert summarise(run).endswith("best epoch 1 of 2, 0:02")


def test_one_bad_run_does_not_keep_others_from_the_explorer(run, copy):
    set_json("config.json", ("versions",), None)(copy)
    lines = []
    (session,) = open_sessions([run, copy], None, lines.append)
    assert session.run.path == run
    (line,) = lines
    assert line.startswith("left out: ")
    assert "versions is None" in line
    with pytest.raises(UserError, match="versions is None"):
        open_sessions([copy], None, lines.append)


def test_a_config_that_could_not_be_read_back_is_refused_before_training(tmp_path):
    data = random_dataset()
    model = build("vae", data, hidden_dim=4)
    for change, message in [
        ({"seed": 2**63}, "seed is"),
        ({"model": "lost"}, "there is no model 'lost'"),
        ({"classes": 2**20 + 1}, "classes are 1048577"),
    ]:
        model.blueprint = dataclasses.replace(model.blueprint, **change)
        with pytest.raises(UserError, match=message):
            train(model, data, out=tmp_path / "run", epochs=1, progress=False)
        assert not (tmp_path / "run").exists()
        model = build("vae", data, hidden_dim=4)


@pytest.mark.parametrize("kind", ["int64", "uint64", "float64"])
def test_large_labels_are_classes_numbered_in_order(tmp_path, kind):
    """Such as dates; a cvae of them trains, loads and is evaluated, and their values are the names of the classes."""
    dates = [20261127, 19991231, 2**62]
    images = random_dataset(kind="grey", count=60).train.images.repeat(3, 1, 1, 1).numpy()
    labels = torch.tensor(dates * 20).numpy().astype(kind)
    data = load_data((images, labels), progress=False)
    assert data.classes == ("19991231", "20261127", str(2**62))
    assert set(data.train.labels.tolist()) == {0, 1, 2}
    model = build("cvae", data, hidden_dim=4, latent_dim=2)
    out = train(model, data, out=tmp_path / "run", epochs=1, progress=False)
    assert load(out).blueprint.classes == 3
    assert out.config["data"]["classes"] == [*data.classes]
    assert evaluate(out, data, metrics=("elbo",))["elbo"] < 0


def test_labels_that_are_no_numbers_of_classes_are_refused():
    images = torch.zeros(3, 1, 2, 2, dtype=torch.uint8)
    split = dataclasses.replace(
        random_dataset().train, images=images, labels=torch.tensor([0, 1, 2**20])
    )
    data = random_dataset((1, 2, 2))
    with pytest.raises(
        UserError, match="a label is 1,048,576, but must be below 1,048,576; number the classes"
    ):
        dataclasses.replace(data, train=split)
    with pytest.raises(UserError, match="labels must be 0 or more"):
        load_data((images.repeat(4, 1, 1, 1), [-1, 2**40, 3] * 4), progress=False)
