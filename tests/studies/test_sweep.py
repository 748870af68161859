"""Sweeps: every combination is trained, and interruptions and failures do not change the table."""

import csv
import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock

from vaekit import Run, UserError
from vaekit.cli.words import expand_grid, run_name
from vaekit.settings.analysis import SweepConfig
from vaekit.studies import sweep as module
from vaekit.studies.sweep import SweepIncomplete, summarise, sweep
from vaekit.training.plan import Plan

pytestmark = pytest.mark.usefixtures("short_evaluation")

FLAGS = [
    "--data",
    "digits",
    "--latent-dim",
    "2,3",
    "--seed",
    "0,1",
    "--epochs",
    "12",
    "--hidden-dim",
    "16",
]
SMALL = {"data": "digits", "epochs": 1, "hidden_dim": 8, "latent_dim": 2}
QUICK = {"metrics": ("elbo",), "limit": 20}


def plans(**changes):
    return {f"seed-{seed}": Plan.of("vae", **{**SMALL, "seed": seed, **changes}) for seed in (0, 1)}


def test_every_combination_once():
    found = list(
        expand_grid(["sweep", "vae,hvae", "--seed=0,1", "--latent-dim", "5", "--name", "a,b"])
    )
    assert [taken for taken, _ in found] == [
        {"model": model, "seed": seed} for model in ("vae", "hvae") for seed in ("0", "1")
    ]
    assert found[1][1] == ["sweep", "vae", "--seed=1", "--latent-dim", "5", "--name", "a,b"]
    assert len(list(expand_grid(["sweep", "vae", "--seed", "1,1, 2,"]))) == 2
    assert len(list(expand_grid(["sweep", "vae", "--augment", "hflip,shift=2"]))) == 1
    with pytest.raises(UserError, match="seed , has no value"):
        list(expand_grid(["sweep", "vae", "--seed", ","]))
    with pytest.raises(UserError, match="seed is given twice"):
        list(expand_grid(["sweep", "vae", "--seed", "1", "--seed=2"]))
    assert list(expand_grid(["sweep", "vae"])) == [({}, ["sweep", "vae"])]


@pytest.mark.parametrize("words", [["--two-encoders", "True,False"], ["--two_encoders=true,false"]])
def test_a_boolean_flag_takes_a_list(words):
    found = list(expand_grid(["sweep", "gmvae", *words, "--seed", "1"]))
    assert [each for _, each in found] == [
        ["sweep", "gmvae", "--two-encoders", "--seed", "1"],
        ["sweep", "gmvae", "--no-two-encoders", "--seed", "1"],
    ]
    assert [taken["two-encoders"].lower() for taken, _ in found] == ["true", "false"]


@pytest.mark.parametrize(
    "flag",
    [
        *("--out", "--name", "--init", "--preset", "--data-dir"),
        *("--split", "--metrics", "--nll-samples", "--limit"),
    ],
)
def test_commas_of_these_flags_do_not_expand(flag):
    words = ["sweep", "vae", flag, "elbo,nll"]
    assert list(expand_grid(words)) == [({}, words)]


def test_run_names_are_folder_names():
    assert run_name({"latent-dim": "5", "seed": "0"}) == "latent-dim-5_seed-0"
    assert run_name({"encoder": "32@3/2 500:tanh"}) == "encoder-32-3-2-500-tanh"


def test_a_plan_has_its_settings():
    plan = Plan.of("iwae", latent_dim=3, samples=7, epochs=2, data="digits")
    assert (plan.settings.latent_dim, plan.objective.samples, plan.training.epochs) == (3, 7, 2)
    assert Plan.of(preset="aevb-mnist").settings.activation == "tanh"
    with pytest.raises(UserError, match="did you mean 'latent_dim'"):
        Plan.of("vae", latent_dims=3)
    with pytest.raises(UserError, match="epochs is 0"):
        Plan.of("vae", epochs=0)


def test_a_plan_trains_with_all_its_settings(tmp_path):
    first = Plan.of("vae", **SMALL).train(str(tmp_path / "a"), progress=False)
    plan = Plan.of("vae", **SMALL, seed=4, binarisation="threshold", pictures_every=1)
    plan = dataclasses.replace(plan, init=str(first.path))
    run = plan.train(str(tmp_path / "b"), progress=False)
    assert str(first.path) in str(run.config["init"])
    assert run.data.binarisation == "threshold"
    assert run.blueprint.seed == run.section("training")["seed"] == 4
    assert any((run.path / "pictures" / "epochs").iterdir())


def test_sweep_flags_set_the_evaluation():
    assert SweepConfig(nll_samples=7, metrics=("nll",)).evaluation == {
        "split": "validation",
        "metrics": ("nll",),
        "samples": 7,
        "limit": 1000,
    }
    assert SweepConfig(limit=None).evaluation["limit"] >= 10**9  # all images


def test_the_summary_of_a_run_is_of_its_best_epoch(tmp_path):
    found = [(True, -30.0), (True, -20.0), (False, -25.0)]
    lines = [
        json.dumps({"epoch": i, "best": best, "validation_elbo": elbo, "seconds": 1.0}) + "\n"
        for i, (best, elbo) in enumerate(found, 1)
    ]
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    assert summarise(Run(tmp_path)).startswith("validation ELBO -20.00, best epoch 2 of 3,")


def test_an_interrupted_training_without_state_starts_again(tmp_path):
    part = tmp_path / "seed-0.part"
    part.mkdir()
    (part / "metrics.jsonl").write_text("cut")
    (run,) = sweep({"seed-0": plans()["seed-0"]}, tmp_path, progress=False, **QUICK)
    assert run.evaluation["elbo"] < 0
    assert not part.exists()


def test_finished_work_is_reused(tmp_path, monkeypatch):
    sweep(plans(), tmp_path / "s", progress=False, **QUICK)
    weights = sorted((tmp_path / "s").glob("*/model.safetensors"))
    before = [file.stat().st_mtime_ns for file in weights]
    table = (tmp_path / "s" / "compare.csv").read_text()
    (tmp_path / "s" / "seed-1" / "evaluation.json").unlink()
    evaluated = []
    real = module.evaluate
    monkeypatch.setattr(
        module,
        "evaluate",
        lambda run, **options: evaluated.append(str(run)) or real(run, **options),
    )
    runs = sweep(plans(), tmp_path / "s", progress=False, **QUICK)
    assert evaluated == [str(tmp_path / "s" / "seed-1")]
    assert [run.path.name for run in runs] == ["seed-0", "seed-1"]
    assert [file.stat().st_mtime_ns for file in weights] == before
    assert (tmp_path / "s" / "compare.csv").read_text() == table
    # Other evaluation settings evaluate again, without training.
    sweep(plans(), tmp_path / "s", progress=False, **{**QUICK, "limit": 30})
    assert len(evaluated) == 3
    found = Run(tmp_path / "s" / "seed-0").evaluation
    assert (found["images"], found["split"]) == (30, "validation")
    further = {"metrics": ("elbo", "reconstruction"), "limit": 30}
    sweep(plans(), tmp_path / "s", progress=False, **further)
    assert Run(tmp_path / "s" / "seed-0").evaluation["squared_error"] > 0
    assert [file.stat().st_mtime_ns for file in weights] == before


def test_a_sweep_of_an_earlier_version_is_resumed(tmp_path):
    sweep(plans(), tmp_path, progress=False, **QUICK)
    file = tmp_path / "sweep.json"
    current = json.loads(file.read_text())
    old_keys = {"monitor": "watch", "default_objective": "own"}
    runs = {
        name: {old_keys.get(key, key): value for key, value in plan.items()}
        for name, plan in json.loads(file.read_text())["runs"].items()
    }
    assert all({"watch", "own"} <= plan.keys() for plan in runs.values())
    assert all(plan["settings"].pop("levels", 0) is None for plan in runs.values())
    file.write_text(json.dumps({"runs": runs}))
    weights = sorted(tmp_path.glob("*/model.safetensors"))
    before = [path.stat().st_mtime_ns for path in weights]
    resumed = sweep(plans(), tmp_path, progress=False, **QUICK)
    assert [run.path.name for run in resumed] == ["seed-0", "seed-1"]
    assert [path.stat().st_mtime_ns for path in weights] == before
    assert json.loads(file.read_text()) == current
    file.write_text(json.dumps({"runs": runs}))
    with pytest.raises(UserError, match="another sweep, whose seed-0 has other settings"):
        sweep(plans(pictures_every=1), tmp_path, progress=False, **QUICK)


def test_a_folder_of_another_sweep_is_refused(tmp_path):
    one = {"seed-0": plans()["seed-0"]}
    sweep(one, tmp_path / "s", progress=False, **QUICK)
    with pytest.raises(UserError, match="another sweep, whose seed-0 has other settings"):
        sweep(plans(epochs=2), tmp_path / "s", progress=False, **QUICK)
    (tmp_path / "t" / "seed-0").mkdir(parents=True)
    with pytest.raises(UserError, match="is not part of a sweep"):
        sweep(one, tmp_path / "t", progress=False, **QUICK)
    assert list((tmp_path / "t" / "seed-0").iterdir()) == []
    with (
        FileLock(tmp_path / "s" / ".lock"),
        pytest.raises(UserError, match="another sweep is running"),
    ):
        sweep(one, tmp_path / "s", progress=False, **QUICK)


def test_a_training_that_fails_does_not_stop_the_others(tmp_path):
    found = {
        "bad": Plan.of("vae", **SMALL, learning_rate=1e30, optimizer="rmsprop"),
        "good": plans()["seed-0"],
    }
    with pytest.raises(
        UserError, match="1 of 2 runs failed, the first, bad: the loss is not finite"
    ):
        sweep(found, tmp_path / "s", progress=False, **QUICK)
    assert Run(tmp_path / "s" / "good").evaluation["elbo"] < 0
    assert (tmp_path / "s" / "compare.md").exists()


@pytest.mark.parametrize("damage", ["weights", "cut", "epochs"])
def test_an_evaluation_that_fails_does_not_stop_the_others(tmp_path, damage):
    first, second = plans()
    sweep({first: plans()[first]}, tmp_path, progress=False, **QUICK)
    weights = tmp_path / first / "model.safetensors"
    if damage == "weights":
        weights.unlink()
    elif damage == "cut":
        weights.write_bytes(weights.read_bytes()[:100])
    else:
        (tmp_path / first / "metrics.jsonl").write_text("")
    with pytest.raises(SweepIncomplete, match=f"1 of 2 runs failed, the first, {first}") as error:
        sweep(plans(), tmp_path, progress=False, **QUICK)
    assert [run.path.name for run in error.value.runs] == [second]


def test_the_command_prints_finished_runs_where_others_fail(vaekit):
    code, out, err = vaekit(
        *("sweep", "vae", "--data", "digits", "--epochs", 1, "--hidden_dim", 8, "--out", "s"),
        *("--learning-rate", "1e-3,1e30", "--optimizer", "rmsprop", "--metrics", "elbo"),
    )
    assert code == 2
    assert "ELBO" in out
    assert "written to s/compare.md" in out
    assert "1 of 2 runs failed" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["vae,vea"], "did you mean 'vae'"),
        (["vae", "--latent_dim", "2,3", "--latent-dim", "4"], "--latent-dim is given twice"),
        (["vae", "--decoder", "16", "--encoder", "8@3/2,8@3 2"], "the one folder encoder-8-3-2"),
        (["vae,cvae"], "must have the same data, binarisation, likelihood and condition"),
    ],
)
def test_a_bad_list_is_refused_before_any_training(vaekit, tmp_path, arguments, message):
    code, _, err = vaekit("sweep", *arguments, "--data", "digits")
    assert code == 2
    assert message in err
    assert not (tmp_path / "runs").exists()


def test_bad_settings_are_refused_before_the_first_training(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    process = start("--latent-dim", "2,zero", "--epochs", "1")
    _, err = process.communicate()
    assert process.returncode == 2
    assert b"--latent-dim has a value that is not a whole number" in err
    assert not Path("runs").exists()


def start(*flags, folder=None):
    return subprocess.Popen(
        [sys.executable, "-m", "vaekit", "sweep", "vae", *flags],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def run_and_kill(folder, condition):
    """Run a sweep and SIGKILL it once `condition` holds of its folder, or shortly after."""
    process = start(*FLAGS, folder=folder)
    out = folder / "runs" / "vae-digits-sweep"
    while process.poll() is None and not condition(out):
        time.sleep(0.005)
    time.sleep(random.random() / 20)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.long
def test_two_interruptions_do_not_change_the_table(tmp_path):
    broken, intact = tmp_path / "broken", tmp_path / "intact"
    for folder in (broken, intact):
        folder.mkdir()
    run_and_kill(broken, lambda out: (out / "latent-dim-2_seed-1.part" / "metrics.jsonl").exists())
    assert not (broken / "runs" / "vae-digits-sweep" / "latent-dim-2_seed-1").exists()
    run_and_kill(broken, lambda out: (out / "latent-dim-3_seed-0").exists())
    for folder in (broken, intact):
        process = start(*FLAGS, folder=folder)
        _, err = process.communicate()
        assert process.returncode == 0, err
    results = [folder / "runs" / "vae-digits-sweep" for folder in (broken, intact)]
    tables = [(result / "compare.csv").read_text() for result in results]
    assert tables[0] == tables[1]
    rows = list(csv.DictReader(tables[0].splitlines()))
    assert [row["latent_dim"] for row in rows] == ["2", "3"]
    assert all(row["nll_count"] == "2" and float(row["nll_sd"]) > 0 for row in rows)
    assert not list(results[0].glob("*.part"))
    runs = json.loads((results[0] / "sweep.json").read_text())["runs"]
    assert list(runs) == [f"latent-dim-{d}_seed-{s}" for d in (2, 3) for s in (0, 1)]


def test_incomparable_runs_are_refused_before_the_first_training(tmp_path):
    mixed = {
        "a": Plan.of("vae", **SMALL),
        "b": Plan.of("vae", **SMALL, likelihood="gaussian"),
    }
    with pytest.raises(
        UserError, match="must have the same data, binarisation, likelihood and condition"
    ):
        sweep(mixed, tmp_path / "s", progress=False, **QUICK)
    assert not (tmp_path / "s").exists()
    sweep({"a": mixed["a"]}, tmp_path / "s", progress=False, **QUICK)
    with pytest.raises(UserError, match="must have the same data"):
        sweep({"b": mixed["b"]}, tmp_path / "s", progress=False, **QUICK)
    assert not (tmp_path / "s" / "b").exists()
    sweep(plans(), tmp_path / "s", progress=False, **QUICK)


def test_a_sweep_grows_by_runs_with_the_same_evaluation(tmp_path):
    both = plans()
    for name, limit, count in (("seed-0", 20, "1"), ("seed-1", 20, "2"), ("seed-0", 30, "1")):
        sweep({name: both[name]}, tmp_path, progress=False, **{**QUICK, "limit": limit})
        (row,) = csv.DictReader((tmp_path / "compare.csv").read_text().splitlines())
        assert row["elbo_count"] == count


def test_a_preset_fits_only_its_own_model():
    assert Plan.of("vae", preset="aevb-mnist") == Plan.of(preset="aevb-mnist")
    with pytest.raises(UserError, match="aevb-mnist is of the model vae, not convvae"):
        Plan.of("convvae", preset="aevb-mnist")


@pytest.mark.parametrize("name", ["../out", "a/b", "", ".", "..", ".lock", "a\0b", "x" * 300])
def test_an_invalid_run_name_is_refused(name, tmp_path):
    with pytest.raises(UserError, match="plain folder"):
        sweep({name: plans()["seed-0"]}, tmp_path / "s", progress=False)
    assert not (tmp_path / "s").exists()
