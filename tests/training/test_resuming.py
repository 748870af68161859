"""An interrupted training resumes bit for bit; checkpoints are intact; a run has one writer at a time."""

import dataclasses
import math
import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from conftest import random_dataset, small_settings, timeless
from vaekit import Run, UserError, build, resume, train
from vaekit.settings.training import TrainConfig
from vaekit.training.checkpoint import Checkpointer, TrainingStopped
from vaekit.training.loop import Epoch
from vaekit.training.monitor import movie_frames
from vaekit.training.step import Adam, learning_rate

HERE = Path(__file__).parents[1]
SMALL = {"latent_dim": 2, "hidden_dim": 8}
CASES = {
    "vae": ("vae", {}, {}),
    "everything": (
        "convvae",
        {"channels": 4, "normalisation": "batch", "dropout": 0.2},
        {"ema": 0.9, "kl_warmup": 1.5, "clip_gradient": 5.0, "lr_warmup": 0.5, "skip_spikes": 1.2},
    ),
    "augmented": ("convvae", {"channels": 4}, {"augment": "hflip,vflip,shift=2,crop=1"}),
    "augmented gmvae": ("gmvae", {"clusters": 3, "start_epochs": 1}, {"augment": "shift=2"}),
    "rmsprop": ("vae", {}, {"optimizer": "rmsprop", "schedule": "constant"}),
    "adagrad": ("vae", {}, {"optimizer": "adagrad", "weight_decay": 1e-3}),
    "adamw": ("vae", {}, {"optimizer": "adamw", "weight_decay": 1e-2, "patience": 1}),
    "bfloat16": ("vae", {}, {"precision": "bfloat16", "allow_slow": True}),
    "gmvae": ("gmvae", {"clusters": 3, "start_epochs": 2}, {}),
    "hvampprior": ("hvampprior", {"components": 4}, {"kl_warmup": 1.0}),
    "flows": ("vae", {"prior": "flow", "posterior": "flow", "flow_dim": 8}, {"ema": 0.9}),
    "mmdvae": ("mmdvae", {"posterior": "deterministic"}, {}),
    "deepvae": ("deepvae", small_settings("deepvae"), {"ema": 0.9, "skip_spikes": 1.5}),
    "steps": ("vae", {}, {"steps": 15, "ema": 0.9, "kl_warmup": 0.5}),
}


@pytest.fixture(autouse=True)
def saving_may_take_all_the_time(monkeypatch):
    monkeypatch.setattr("vaekit.training.checkpoint.MAX_TIME_SHARE", math.inf)


@pytest.fixture(autouse=True)
def epochs_of_two_passes(monkeypatch):
    """With steps: three a pass, so that the last epoch of 15 is cut."""
    monkeypatch.setattr("vaekit.settings.training.MIN_STEPS_PER_EPOCH", 5)


class Interrupted(BaseException):
    """An exception that vaekit never catches."""


def prepare(out, case="vae", **more):
    """The data of a case, and a function that trains it in `out`."""
    name, settings, training = CASES[case]
    data = random_dataset()
    sizes = {} if name == "deepvae" else SMALL
    model = build(name, data, **{**sizes, **settings})
    length = {} if "steps" in training else {"epochs": 3}
    training = {**length, "batch_size": 8, "state_every": 1e-9, "seed": 5, **training, **more}
    return data, lambda: train(model, data, out=out, progress=False, **training)


def outcome(run):
    """Weights, metrics without times, and the checkpoint."""
    run = Run.of(run)
    return (run.path / "model.safetensors").read_bytes(), timeless(run), run.load_state()


def assert_same(one, other, fields=None):
    """Fails unless two runs have equal weights, states and metrics (of the metrics only `fields`, if any)."""
    weights, metrics, state = zip(outcome(one), outcome(other), strict=True)
    for a, b in zip(*metrics, strict=True):
        for key in fields & a.keys() if fields else a.keys() | b.keys():
            assert a[key] == b[key], (a["epoch"], key)
    assert len(metrics[0]) == len(metrics[1])
    assert weights[0] == weights[1]
    a, b = state
    assert a.tensors.keys() == b.tensors.keys()
    for name in a.tensors:
        assert torch.equal(a.tensors[name].nan_to_num(7), b.tensors[name].nan_to_num(7)), name
    assert {**a.scalars, "seconds": 0} == {**b.scalars, "seconds": 0}


def interrupt_repeatedly(work, again, monkeypatch, seed):
    """Do `work`, then `again` until it ends, interrupted before or after saving random checkpoints; count these."""
    rng, save = random.Random(seed), Checkpointer.save

    def save_or_raise(self, learner):
        if rng.random() < 0.15:
            raise Interrupted
        save(self, learner)
        if rng.random() < 0.15:
            raise Interrupted

    interruptions = 0
    with monkeypatch.context() as patch:
        patch.setattr(Checkpointer, "save", save_or_raise)
        while True:
            try:
                work()
                return interruptions
            except Interrupted:
                interruptions += 1
                work = again


LONGER = {"augmented gmvae", "rmsprop", "adagrad", "hvampprior", "mmdvae"}


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=pytest.mark.long) if c in LONGER else c for c in CASES]
)
def test_a_training_interrupted_repeatedly_equals_an_uninterrupted_one(tmp_path, monkeypatch, case):
    _, uninterrupted = prepare(tmp_path / "a", case)
    uninterrupted()
    data, interrupted = prepare(tmp_path / "b", case)

    def again():
        torch.rand(17)  # the generators of another process are in another state
        if not (tmp_path / "b" / "state.safetensors").exists():  # interrupted before the first
            (tmp_path / "b").rename(tmp_path / f"b{random.random()}")
            return prepare(tmp_path / "b", case)[1]()
        return resume(tmp_path / "b", data, progress=False)

    assert interrupt_repeatedly(interrupted, again, monkeypatch, seed=1) >= 2
    assert_same(tmp_path / "a", tmp_path / "b")


def test_resuming_needs_all_parts_of_the_state(tmp_path, monkeypatch):
    """The comparison fails without the moments of the optimiser, the generators or the order of the images."""
    for removed in ("optimizer.", "noise.", "epoch.order"):
        _, uninterrupted = prepare(tmp_path / "a")
        data, interrupted = prepare(tmp_path / "b")
        run = uninterrupted()
        stop_after(monkeypatch, 4, interrupted)
        state = Run(tmp_path / "b").load_state()
        if removed == "epoch.order":
            state.tensors[removed] = state.tensors[removed].flip(0)
        else:
            for name in [n for n in state.tensors if n.startswith(removed)]:
                del state.tensors[name]
        Run(tmp_path / "b").save_state(state)
        resume(tmp_path / "b", data, progress=False)
        assert outcome(run)[0] != outcome(tmp_path / "b")[0], removed
        for name in "ab":
            (tmp_path / name).rename(tmp_path / (name + removed))


def stop_after(monkeypatch, steps, work):
    """Do `work`, interrupted once `steps` checkpoints have been saved after the first."""
    save, count = Checkpointer.save, 0

    def save_and_count(self, learner):
        nonlocal count
        save(self, learner)
        count += 1
        if count > steps:
            raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(Checkpointer, "save", save_and_count)
        with pytest.raises(Interrupted):
            work()


def test_a_finished_run_resumes_to_more_epochs(tmp_path):
    data, work = prepare(tmp_path / "a", schedule="constant")
    run = work()
    resume(run, data, epochs=5, progress=False)
    _, longer = prepare(tmp_path / "b", schedule="constant", epochs=5)
    longer()
    assert_same(tmp_path / "a", tmp_path / "b", {f.name for f in dataclasses.fields(Epoch)})
    assert Run(run.path).training.epochs == 5
    before = outcome(run)
    resume(run, data, progress=False)  # nothing left to do
    assert outcome(run)[:2] == before[:2]
    with pytest.raises(UserError, match="has 5 epochs already; pass a larger number"):
        resume(run, data, epochs=4, progress=False)
    assert Run(run.path).training.epochs == 5


def test_runs_that_cannot_resume_are_refused(tmp_path, monkeypatch):
    data, work = prepare(tmp_path / "a")
    run = work()
    state = tmp_path / "a" / "state.safetensors"
    intact = state.read_bytes()
    changed = intact[:-9] + bytes([intact[-9] ^ 1]) + intact[-8:]
    for damage, message in [
        (intact[:1000], "is damaged"),
        (b"", "is damaged"),
        (changed, "is damaged .its hash differs"),
        (None, "is missing"),
    ]:
        state.unlink()
        if damage is not None:
            state.write_bytes(damage)
        with pytest.raises(UserError, match=message):
            resume(run, data, progress=False)
        state.write_bytes(intact)
    lines = run.path / "metrics.jsonl"
    content = lines.read_bytes()
    lines.write_bytes(content.split(b"\n")[0] + b"\n")
    with pytest.raises(UserError, match="lacks some of the 3 epochs"):
        resume(run, data, progress=False)
    lines.write_bytes(content)
    other = random_dataset(count=40)
    with pytest.raises(UserError, match="is not the one"):
        resume(run, other, progress=False)
    wider = train(
        build("vae", data, latent_dim=3, hidden_dim=8),
        data,
        out=tmp_path / "b",
        epochs=1,
        progress=False,
    )
    (wider.path / "state.safetensors").write_bytes(intact)
    with pytest.raises(UserError, match="does not fit the training"):
        resume(wider, data, progress=False)


def test_two_processes_do_not_train_in_one_run(tmp_path):
    data, work = prepare(tmp_path / "a")
    run = work()
    before = outcome(run)
    with (
        FileLock(run.path / ".lock"),
        pytest.raises(UserError, match="another process is training in"),
    ):
        resume(run, data, epochs=9, progress=False)
    assert outcome(run)[:2] == before[:2]
    assert Run(run.path).training.epochs == 3


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP"])
def test_a_signal_ends_the_step_saves_the_state_and_tells_how_to_resume(
    tmp_path, monkeypatch, name
):
    _, uninterrupted = prepare(tmp_path / "a")
    uninterrupted()
    number, requested, steps = getattr(signal, name), Checkpointer.requested, 0
    ignored = signal.signal(number, signal.default_int_handler)  # such as by nohup
    data, work = prepare(tmp_path / "b", state_every=1000.0)

    def requested_and_signalled(self, interval):
        nonlocal steps
        steps += 1
        if steps == 4:
            os.kill(os.getpid(), number)
        return requested(self, interval)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpointer, "requested", requested_and_signalled)
        with pytest.raises(TrainingStopped, match="to resume: vaekit train --resume") as stop:
            work()
    assert stop.value.signal == number
    assert signal.signal(number, ignored) is signal.default_int_handler
    resume(tmp_path / "b", data, progress=False)
    assert_same(tmp_path / "a", tmp_path / "b")


def test_a_loss_that_is_not_finite_once_continues_with_smaller_steps(tmp_path, monkeypatch):
    """The sixth step makes weights NaN, unless its learning rate is lowered: it is named, and the run completes."""
    data, work = prepare(tmp_path / "a", state_every=1000.0)
    config = TrainConfig(epochs=3, batch_size=8)
    steps = config.steps_per_epoch(len(data.train))
    rate, step = learning_rate(6 / steps, config), Adam.step

    def faulty(self, closure=None):
        result = step(self, closure)
        if self.param_groups[0]["lr"] == rate:
            self.param_groups[0]["params"][0].data.fill_(math.nan)
        return result

    monkeypatch.setattr(Adam, "step", faulty)
    run = work()
    assert [epoch["epoch"] for epoch in run.metrics] == [1, 2, 3]  # each once
    (epoch,) = [epoch for epoch in run.metrics if "recovered" in epoch]
    (recovery,) = epoch["recovered"]
    assert recovery["step"] == (6 - 1) % steps + 1
    assert recovery["epoch"] == epoch["epoch"] == (6 - 1) // steps + 1
    assert "the update of" in recovery["what"]
    assert recovery["rate_factor"] == 0.5
    assert recovery["clip_gradient"] > 0
    assert math.isfinite(run.metrics[-1]["train_objective"])
    assert run.metrics[-1]["learning_rate"] == pytest.approx(0.5 * learning_rate(3, config))


def test_after_a_recovery_within_an_epoch_the_movie_continues_at_its_step(tmp_path, monkeypatch):
    data, work = prepare(tmp_path / "a", record=True)
    config, step, calls = TrainConfig(epochs=3, batch_size=8), Adam.step, []

    def faulty(self, closure=None):
        result = step(self, closure)
        calls.append(self.param_groups[0]["lr"])
        if len(calls) == 5:  # the second of three steps of an epoch
            self.param_groups[0]["params"][0].data.fill_(math.nan)
        return result

    monkeypatch.setattr(Adam, "step", faulty)
    run = work()
    assert sum("recovered" in epoch for epoch in run.metrics) == 1
    frames = [int(path.stem.removeprefix("step-")) for path in movie_frames(run)]
    assert frames == [*range(config.epochs * config.steps_per_epoch(len(data.train)) + 1)]


def test_an_image_with_a_nan_pixel_is_named(tmp_path):
    data = random_dataset(kind="float")
    data.train.images[3, 0, 0, 0] = math.nan
    model = build("vae", data, **SMALL)
    with pytest.raises(UserError, match="training image 3 has pixels that are not finite; correct"):
        train(model, data, out=tmp_path / "a", epochs=2, batch_size=8, progress=False)


def test_the_advice_after_failed_recoveries_is_smaller_than_what_failed(tmp_path, monkeypatch):
    """Every third step makes weights NaN, whatever its size."""
    step, calls = Adam.step, []

    def faulty(self, closure=None):
        result = step(self, closure)
        calls.append(1)
        if len(calls) % 3 == 0:
            self.param_groups[0]["params"][0].data.fill_(math.nan)
        return result

    monkeypatch.setattr(Adam, "step", faulty)
    _, work = prepare(tmp_path / "a", clip_gradient=5.0)
    with pytest.raises(UserError, match="not finite") as caught:
        work()
    last = Run(tmp_path / "a").load_state().scalars
    pattern = r"try learning_rate ([\d.e-]+), or clip_gradient ([\d.e-]+) "
    rate, clip = map(float, re.search(pattern, str(caught.value)).groups())
    assert rate < last["rate_factor"] * TrainConfig().learning_rate
    assert clip < last["clip_gradient"] <= 5.0


def test_initial_weights_that_are_not_finite_are_refused(tmp_path):
    data, _ = prepare(tmp_path / "a")
    model = build("vae", data, **SMALL)
    with torch.no_grad():
        next(model.decoder.parameters()).fill_(math.inf)
    with pytest.raises(UserError, match=r"the initial weights decoder.* are not finite"):
        train(model, data, out=tmp_path / "a", epochs=2, progress=False)


def test_spikes_are_skipped_and_counted(tmp_path):
    _, work = prepare(tmp_path / "a", skip_spikes=1.01, epochs=5)
    run = work()
    assert sum(epoch["skipped_steps"] for epoch in run.metrics) > 0
    _, plain = prepare(tmp_path / "b", epochs=5)
    assert sum(epoch["skipped_steps"] for epoch in plain().metrics) == 0


def test_the_command_stops_and_resumes(vaekit, small_mnist, monkeypatch, tmp_path):
    options = ["--hidden-dim", "8", "--epochs", "3", "--record", "--pictures-every", "1"]
    assert vaekit("train", "vae", *options, "--out", "a")[0] == 0
    requested, steps = Checkpointer.requested, 0

    def requested_and_signalled(self, interval):
        nonlocal steps
        steps += 1
        if steps == 9:  # the second epoch's third step
            os.kill(os.getpid(), signal.SIGTERM)
        return requested(self, interval)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpointer, "requested", requested_and_signalled)
        code, _, err = vaekit("train", "vae", *options, "--out", "b c")
    assert code == 128 + signal.SIGTERM
    assert err.splitlines()[-1] == (
        "vaekit: stopped after step 2 of epoch 2; to resume: vaekit train --resume 'b c'"
    )
    code, out, err = vaekit("train", "--resume", "b c")
    assert code == 0
    assert "b c: best at epoch 3" in out
    assert [line.split()[1] for line in err.splitlines() if line.startswith("epoch")] == [
        "2/3",
        "3/3",
    ]
    assert_same(tmp_path / "a", tmp_path / "b c")
    pictures = [
        {p.relative_to(run): p.read_bytes() for p in run.rglob("*.png")}
        for run in (tmp_path / "a" / "pictures", tmp_path / "b c" / "pictures")
    ]
    assert pictures[0] == pictures[1]
    assert len(pictures[0]) > 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--resume", "a", "--batch-size", "5"],
            "--batch-size cannot be combined with --resume: model and",
        ),
        (["vae", "--resume", "a"], "vae cannot be combined with --resume"),
        (["--resume"], "--resume lacks its value"),
        (["--resume", "a"], "there is no run directory a"),
        (["--resume", "a", "--epochs", "x"], "--epochs has a value that is not a whole number"),
    ],
)
def test_options_that_do_not_go_with_resume_are_refused_in_one_line(vaekit, arguments, message):
    code, _, err = vaekit("train", *arguments)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


def test_sigkill_at_random_moments(tmp_path):
    """A short version of `python tests/kills.py MODEL`, which kills a hundred times."""
    command = [sys.executable, HERE / "kills.py", "vae", "--kills", "4", "--epochs", "12"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "vae: 4 kills" in done.stdout, done.stdout + done.stderr
    assert "weights and metrics are the same" in done.stdout


@pytest.mark.long
@pytest.mark.parametrize("model", ["vae", "gmvae", "hvampprior"])
def test_sigkill_a_hundred_times(model):
    command = [sys.executable, HERE / "kills.py", model]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert "100 kills" in done.stdout, done.stdout + done.stderr
    assert "weights and metrics are the same" in done.stdout


def test_a_step_that_can_no_longer_be_compiled_is_refused(tmp_path, monkeypatch):
    data, work = prepare(tmp_path / "a", compile="yes")
    # A compiler whose result is the eager step.
    monkeypatch.setattr(
        "vaekit.training.loop.compile_step", lambda loss, *_: lambda *a: loss.backward(*a)
    )
    run = work()
    monkeypatch.setattr("vaekit.training.loop.compile_step", lambda loss, *_: loss.backward)
    with pytest.raises(
        UserError,
        match="cannot be compiled here, which changes the last digits; pass allow_inexact",
    ):
        resume(run, data, epochs=4, progress=False)
    assert len(resume(run, data, allow_inexact=True, progress=False).metrics) == 4
    # A run that was not compiled at first stays so.
    _, plain = prepare(tmp_path / "b", compile="yes")
    run = plain()
    monkeypatch.setattr("vaekit.training.loop.compile_step", lambda *_: pytest.fail("it compiles"))
    assert len(resume(run, data, epochs=4, progress=False).metrics) == 4
