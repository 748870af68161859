"""A training that is killed goes on to the last bit; what is kept is whole; nobody else writes meanwhile."""

import dataclasses
import math
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from conftest import random_dataset, timeless
from vaekit import Run, UserError, build, resume, train
from vaekit.settings.training import TrainConfig
from vaekit.training.checkpoint import Keeper, Stopped
from vaekit.training.loop import Epoch
from vaekit.training.step import Adam, learning_rate

HERE = Path(__file__).parent
SMALL = {"latent_dim": 2, "hidden_dim": 8}
CASES = {
    "vae": ("vae", {}, {}),
    "everything": (
        "convvae",
        {"channels": 4, "normalisation": "batch", "dropout": 0.2},
        {"ema": 0.9, "kl_warmup": 1.5, "clip_gradient": 5.0, "lr_warmup": 0.5, "skip_spikes": 1.2},
    ),
    "rmsprop": ("vae", {}, {"optimizer": "rmsprop", "schedule": "constant"}),
    "adagrad": ("vae", {}, {"optimizer": "adagrad", "weight_decay": 1e-3}),
    "adamw": ("vae", {}, {"optimizer": "adamw", "weight_decay": 1e-2, "patience": 1}),
    "bfloat16": ("vae", {}, {"precision": "bfloat16"}),
    "gmvae": ("gmvae", {"clusters": 3, "start_epochs": 2}, {}),
    "hvampprior": ("hvampprior", {"components": 4}, {"kl_warmup": 1.0}),
    "mmdvae": ("mmdvae", {"posterior": "deterministic"}, {}),
}


@pytest.fixture(autouse=True)
def saving_may_take_all_the_time(monkeypatch):
    monkeypatch.setattr("vaekit.training.checkpoint.SHARE", math.inf)


class Killed(BaseException):
    """What no code of vaekit's catches."""


def begin(out, case="vae", **more):
    name, settings, training = CASES[case]
    data = random_dataset()
    model = build(name, data, **{**SMALL, **settings})
    training = {"epochs": 3, "batch_size": 8, "state_every": 1e-9, "seed": 5, **training, **more}
    return data, lambda: train(model, data, out=out, progress=False, **training)


def outcome(run):
    """Weights, and metrics without what time it took."""
    run = Run.of(run)
    return (run.path / "model.safetensors").read_bytes(), timeless(run), run.load_state()


def same(one, other, fields=None):
    """Fails unless two runs came to the same; of the metrics, those fields alone."""
    weights, metrics, state = zip(outcome(one), outcome(other), strict=True)
    for line, its in zip(*metrics, strict=True):
        for key in fields & line.keys() if fields else line.keys() | its.keys():
            assert line[key] == its[key], (line["epoch"], key)
    assert len(metrics[0]) == len(metrics[1])
    assert weights[0] == weights[1]
    a, b = state
    assert a.tensors.keys() == b.tensors.keys()
    for name in a.tensors:
        assert torch.equal(a.tensors[name].nan_to_num(7), b.tensors[name].nan_to_num(7)), name
    assert {**a.numbers, "seconds": 0} == {**b.numbers, "seconds": 0}


def killed_often(work, again, monkeypatch, seed):
    """Do `work`, and `again` until it ends, killed before and after a random saving of the state each time."""
    chance, saved = random.Random(seed), Keeper.keep

    def keep(self, learner):
        if chance.random() < 0.15:
            raise Killed
        saved(self, learner)
        if chance.random() < 0.15:
            raise Killed

    kills = 0
    with monkeypatch.context() as patch:
        patch.setattr(Keeper, "keep", keep)
        while True:
            try:
                work()
                return kills
            except Killed:
                kills += 1
                work = again


@pytest.mark.parametrize("case", CASES)
def test_killed_again_and_again_it_ends_as_if_nothing_had_happened(tmp_path, monkeypatch, case):
    _, unbroken = begin(tmp_path / "a", case)
    unbroken()
    data, broken = begin(tmp_path / "b", case)

    def again():
        torch.rand(17)  # another process has drawn other noise
        if not (tmp_path / "b" / "state.safetensors").exists():  # killed before the first
            (tmp_path / "b").rename(tmp_path / f"b{random.random()}")
            return begin(tmp_path / "b", case)[1]()
        return resume(tmp_path / "b", data, progress=False)

    assert killed_often(broken, again, monkeypatch, seed=1) >= 2
    same(tmp_path / "a", tmp_path / "b")


def test_the_state_is_needed_for_that(tmp_path, monkeypatch):
    """The comparison can fail: with the moments of the optimiser, the noise or the order left out, it does."""
    for forgotten in ("optimizer.", "noise.", "epoch.order"):
        _, unbroken = begin(tmp_path / "a")
        data, broken = begin(tmp_path / "b")
        run = unbroken()
        stop_after(monkeypatch, 4, broken)
        state = Run(tmp_path / "b").load_state()
        if forgotten == "epoch.order":
            state.tensors[forgotten] = state.tensors[forgotten].flip(0)
        else:
            for name in [n for n in state.tensors if n.startswith(forgotten)]:
                del state.tensors[name]
        Run(tmp_path / "b").save_state(state)
        resume(tmp_path / "b", data, progress=False)
        assert outcome(run)[0] != outcome(tmp_path / "b")[0], forgotten
        for name in "ab":
            (tmp_path / name).rename(tmp_path / (name + forgotten))


def stop_after(monkeypatch, steps, work):
    """Do `work` until so many states were kept, then end as a kill would."""
    saved, count = Keeper.keep, 0

    def keep(self, learner):
        nonlocal count
        saved(self, learner)
        count += 1
        if count > steps:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Keeper, "keep", keep)
        with pytest.raises(Killed):
            work()


def test_a_finished_run_goes_on_to_more_epochs(tmp_path):
    data, work = begin(tmp_path / "a", schedule="constant")
    run = work()
    resume(run, data, epochs=5, progress=False)
    _, longer = begin(tmp_path / "b", schedule="constant", epochs=5)
    longer()
    same(tmp_path / "a", tmp_path / "b", {f.name for f in dataclasses.fields(Epoch)})
    assert Run(run.path).training.epochs == 5
    before = outcome(run)
    resume(run, data, progress=False)  # nothing is left to do
    assert outcome(run)[:2] == before[:2]
    with pytest.raises(UserError, match="has 5 already; give a larger number"):
        resume(run, data, epochs=4, progress=False)
    assert Run(run.path).training.epochs == 5


def test_what_cannot_go_on_is_said(tmp_path, monkeypatch):
    data, work = begin(tmp_path / "a")
    run = work()
    state = tmp_path / "a" / "state.safetensors"
    whole = state.read_bytes()
    changed = whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:]
    for damage, said in [
        (whole[:1000], "is damaged"),
        (b"", "is damaged"),
        (changed, "is damaged .its hash differs"),
        (None, "is missing"),
    ]:
        state.unlink()
        if damage is not None:
            state.write_bytes(damage)
        with pytest.raises(UserError, match=said):
            resume(run, data, progress=False)
        state.write_bytes(whole)
    lines = run.path / "metrics.jsonl"
    kept = lines.read_bytes()
    lines.write_bytes(kept.split(b"\n")[0] + b"\n")
    with pytest.raises(UserError, match="lacks some of the 3 epochs"):
        resume(run, data, progress=False)
    lines.write_bytes(kept)
    other = random_dataset(count=40)
    with pytest.raises(UserError, match="is not the one"):
        resume(run, other, progress=False)
    _, wider = begin(tmp_path / "b")
    wider = train(
        build("vae", data, latent_dim=3, hidden_dim=8),
        data,
        out=tmp_path / "b",
        epochs=1,
        progress=False,
    )
    (wider.path / "state.safetensors").write_bytes(whole)
    with pytest.raises(UserError, match="does not fit the training"):
        resume(wider, data, progress=False)


def test_two_processes_do_not_train_in_one_run(tmp_path):
    data, work = begin(tmp_path / "a")
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
def test_a_signal_ends_the_step_keeps_the_state_and_says_how_to_go_on(tmp_path, monkeypatch, name):
    _, unbroken = begin(tmp_path / "a")
    unbroken()
    number, saved, steps = getattr(signal, name), Keeper.wish, 0
    ignored = signal.signal(number, signal.default_int_handler)  # by nohup, say
    data, work = begin(tmp_path / "b", state_every=1000.0)

    def wish(self, every):
        nonlocal steps
        steps += 1
        if steps == 4:
            os.kill(os.getpid(), number)
        return saved(self, every)

    with monkeypatch.context() as patch:
        patch.setattr(Keeper, "wish", wish)
        with pytest.raises(Stopped, match="to go on: vaekit train --resume") as stop:
            work()
    assert stop.value.signal == number
    assert signal.signal(number, ignored) is signal.default_int_handler
    resume(tmp_path / "b", data, progress=False)
    same(tmp_path / "a", tmp_path / "b")


def test_a_loss_that_breaks_once_goes_on_slower(tmp_path, monkeypatch):
    """The sixth step breaks the weights, unless its rate is another: the step is named, and the run ends well."""
    data, work = begin(tmp_path / "a", state_every=1000.0)
    config = TrainConfig(epochs=3, batch_size=8)
    steps = config.steps(len(data.train))
    rate, step = learning_rate(6 / steps, config), Adam.step

    def broken(self, closure=None):
        found = step(self, closure)
        if self.param_groups[0]["lr"] == rate:
            self.param_groups[0]["params"][0].data.fill_(math.nan)
        return found

    monkeypatch.setattr(Adam, "step", broken)
    run = work()
    assert [epoch["epoch"] for epoch in run.metrics] == [1, 2, 3]  # none of them twice
    (epoch,) = [epoch for epoch in run.metrics if "recovered" in epoch]
    (found,) = epoch["recovered"]
    assert found["step"] == (6 - 1) % steps + 1
    assert found["epoch"] == epoch["epoch"] == (6 - 1) // steps + 1
    assert "the update of" in found["what"]
    assert found["rate_factor"] == 0.5
    assert found["clip_gradient"] > 0
    assert math.isfinite(run.metrics[-1]["train_objective"])
    assert run.metrics[-1]["learning_rate"] == pytest.approx(0.5 * learning_rate(3, config))


def test_a_pixel_that_is_no_number_is_named(tmp_path):
    data = random_dataset(kind="float")
    data.train.images[3, 0, 0, 0] = math.nan
    model = build("vae", data, **SMALL)
    with pytest.raises(UserError, match="training image 3 has pixels that are not finite; mend"):
        train(model, data, out=tmp_path / "a", epochs=2, batch_size=8, progress=False)


def test_weights_that_are_no_numbers_are_refused_at_the_start(tmp_path):
    data, _ = begin(tmp_path / "a")
    model = build("vae", data, **SMALL)
    with torch.no_grad():
        next(model.decoder.parameters()).fill_(math.inf)
    with pytest.raises(UserError, match=r"the weights decoder.* are not finite to begin with"):
        train(model, data, out=tmp_path / "a", epochs=2, progress=False)


def test_spikes_are_left_out_and_counted(tmp_path):
    _, work = begin(tmp_path / "a", skip_spikes=1.01, epochs=5)
    run = work()
    assert sum(epoch["skipped_steps"] for epoch in run.metrics) > 0
    _, plain = begin(tmp_path / "b", epochs=5)
    assert sum(epoch["skipped_steps"] for epoch in plain().metrics) == 0


def test_the_command_stops_and_goes_on(vaekit, small_mnist, monkeypatch, tmp_path):
    options = ["--hidden-dim", "8", "--epochs", "3", "--record", "--pictures-every", "1"]
    assert vaekit("train", "vae", *options, "--out", "a")[0] == 0
    wish, steps = Keeper.wish, 0

    def signalled(self, every):
        nonlocal steps
        steps += 1
        if steps == 9:  # the second epoch's third step
            os.kill(os.getpid(), signal.SIGTERM)
        return wish(self, every)

    with monkeypatch.context() as patch:
        patch.setattr(Keeper, "wish", signalled)
        code, _, err = vaekit("train", "vae", *options, "--out", "b c")
    assert code == 128 + signal.SIGTERM
    assert err.splitlines()[-1] == (
        "vaekit: stopped after step 2 of epoch 2; to go on: vaekit train --resume 'b c'"
    )
    code, out, err = vaekit("train", "--resume", "b c")
    assert code == 0
    assert "b c: best at epoch 3" in out
    assert [line.split()[1] for line in err.splitlines() if line.startswith("epoch")] == [
        "2/3",
        "3/3",
    ]
    same(tmp_path / "a", tmp_path / "b c")
    pictures = [
        {p.relative_to(run): p.read_bytes() for p in run.rglob("*.png")}
        for run in (tmp_path / "a" / "pictures", tmp_path / "b c" / "pictures")
    ]
    assert pictures[0] == pictures[1]
    assert len(pictures[0]) > 6


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--resume", "a", "--batch-size", "5"],
            "--batch-size does not go with --resume: model and",
        ),
        (["vae", "--resume", "a"], "vae does not go with --resume"),
        (["--resume"], "--resume lacks its value"),
        (["--resume", "a"], "there is no run directory a"),
        (["--resume", "a", "--epochs", "x"], "--epochs has a value that is not a whole number"),
    ],
)
def test_what_does_not_go_with_resume_is_said_in_one_line(vaekit, words, said):
    code, _, err = vaekit("train", *words)
    assert code == 2
    assert said in err
    assert err.count("\n") == 1


def test_sigkill_at_random_moments(tmp_path):
    """In brief; `python tests/kills.py MODEL` does it a hundred times."""
    command = [sys.executable, HERE / "kills.py", "vae", "--kills", "10", "--epochs", "20"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "10 kills" in done.stdout, done.stdout + done.stderr
    assert "weights and metrics are the same" in done.stdout


@pytest.mark.long
@pytest.mark.parametrize("model", ["vae", "gmvae", "hvampprior"])
def test_sigkill_a_hundred_times(model):
    command = [sys.executable, HERE / "kills.py", model]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert "100 kills" in done.stdout, done.stdout + done.stderr
    assert "weights and metrics are the same" in done.stdout


def test_a_step_that_cannot_be_compiled_any_more_is_refused(tmp_path, monkeypatch):
    data, work = begin(tmp_path / "a", compile="yes")
    # A compiler that makes what the plain way computes.
    monkeypatch.setattr(
        "vaekit.training.loop.compiled", lambda loss, *_: lambda *a: loss.backward(*a)
    )
    run = work()
    monkeypatch.setattr("vaekit.training.loop.compiled", lambda loss, *_: loss.backward)
    with pytest.raises(
        UserError, match="cannot be, which changes the last digits; --allow-inexact"
    ):
        resume(run, data, epochs=4, progress=False)
    assert len(resume(run, data, allow_inexact=True, progress=False).metrics) == 4
    # And where it could not be at first, it stays so.
    _, plain = begin(tmp_path / "b", compile="yes")
    run = plain()
    monkeypatch.setattr("vaekit.training.loop.compiled", lambda *_: pytest.fail("it compiles"))
    assert len(resume(run, data, epochs=4, progress=False).metrics) == 4
