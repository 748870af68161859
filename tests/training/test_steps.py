"""A training of a number of steps: how many there are, of which images, and what schedules and resuming make of it."""

import dataclasses
from collections import Counter

import pytest
import torch

from conftest import random_dataset, timeless
from vaekit import Plan, UserError, build, resume, train
from vaekit.runs.directory import Run
from vaekit.settings.model import ClusterConfig, LadderConfig, ModelConfig
from vaekit.settings.training import TrainConfig
from vaekit.training.learner import Learner
from vaekit.training.step import Adam

IMAGES = 20  # training images of random_dataset
PART = "vaekit.settings.training.MIN_STEPS_PER_EPOCH"


def trained(out, data=None, **settings):
    data = data or random_dataset()
    model = build("vae", data, latent_dim=2, hidden_dim=8)
    settings = {"batch_size": 8, **settings}
    return train(model, data, out=out, progress=False, **settings)


@pytest.fixture
def steps_made(monkeypatch):
    """The learning rate of every step."""
    made, step = [], Adam.step

    def counted(self, closure=None):
        made.append(self.param_groups[0]["lr"])
        return step(self, closure)

    monkeypatch.setattr(Adam, "step", counted)
    return made


@pytest.mark.parametrize(
    ("steps", "batch", "shortest", "epochs"),
    [
        (1, 8, 100, 1),  # less than one pass
        (3, 8, 1, 1),  # exactly one pass
        (15, 8, 5, 3),  # epochs of two passes, the last one cut
        (12, 8, 6, 2),  # and not cut
        (7, 100, 3, 3),  # one batch per pass
    ],
)
def test_a_training_has_exactly_its_steps_and_its_cosine_ends_with_them(
    tmp_path, monkeypatch, steps_made, steps, batch, shortest, epochs
):
    monkeypatch.setattr(PART, shortest)
    run = trained(tmp_path / "a", steps=steps, batch_size=batch)
    assert len(steps_made) == steps
    assert len(run.metrics) == run.training.epochs == epochs
    assert run.training.steps == steps
    if steps > 1:
        assert steps_made[-1] == pytest.approx(0, abs=1e-12)
        assert steps_made == sorted(steps_made, reverse=True)
    else:
        assert steps_made == [TrainConfig.learning_rate]  # a cosine of one step is constant


def test_steps_that_are_whole_passes_give_the_weights_of_as_many_epochs(tmp_path, monkeypatch):
    monkeypatch.setattr(PART, 1)
    by_steps, by_epochs = trained(tmp_path / "a", steps=9), trained(tmp_path / "b", epochs=3)
    assert timeless(by_steps) == timeless(by_epochs)
    files = [(run.path / "model.safetensors").read_bytes() for run in (by_steps, by_epochs)]
    assert files[0] == files[1]


def test_every_pass_of_an_epoch_has_each_image_once_and_the_last_epoch_is_cut(monkeypatch):
    monkeypatch.setattr(PART, 5)
    model = build("vae", random_dataset(), latent_dim=2, hidden_dim=8)
    config = TrainConfig(steps=9, batch_size=8).resolve(model.blueprint.settings, IMAGES)
    learner = Learner(model, config, torch.device("cpu"))
    learner.begin_epoch(IMAGES)
    assert [len(rows) for rows in learner.rows] == [8, 8, 4, 8, 8, 4]
    for one in (learner.rows[:3], learner.rows[3:]):
        assert Counter(torch.cat(one).tolist()) == Counter(range(IMAGES))
    assert not torch.equal(torch.cat(learner.rows[:3]), torch.cat(learner.rows[3:]))
    learner.position.batch = 6
    learner.end_epoch(0.0, steps=6)
    learner.begin_epoch(IMAGES)
    assert [len(rows) for rows in learner.rows] == [8, 8, 4]


def test_the_training_values_of_a_cut_epoch_are_means_over_its_own_images(tmp_path, monkeypatch):
    """With weights that hardly move, all epochs have about the same values, however long they are."""
    monkeypatch.setattr(PART, 60)
    run = trained(tmp_path / "a", steps=90, learning_rate=1e-9)
    full, cut = run.metrics
    assert cut["train_elbo"] == pytest.approx(full["train_elbo"], rel=0.05)


def test_a_finished_training_resumes_to_more_steps_and_makes_just_these(
    tmp_path, monkeypatch, steps_made
):
    """Its last epoch was cut; the epochs after it are whole again, and the cosine ends at the new end."""
    monkeypatch.setattr(PART, 5)
    data = random_dataset()
    run = trained(tmp_path / "a", data, steps=8)
    resume(run, data, steps=21, progress=False)
    assert len(steps_made) == 21
    assert steps_made[7] == pytest.approx(0, abs=1e-12)
    assert steps_made[8] > steps_made[-1] == pytest.approx(0, abs=1e-12)
    assert [epoch["epoch"] for epoch in Run(run.path).metrics] == [1, 2, 3, 4, 5]
    assert (Run(run.path).training.steps, Run(run.path).training.epochs) == (21, 5)
    with pytest.raises(UserError, match=r"steps is 20, but .* has 21 steps already"):
        resume(run, data, steps=20, progress=False)
    with pytest.raises(UserError, match="is a number of steps; pass steps, not epochs"):
        resume(run, data, epochs=9, progress=False)
    by_epochs = trained(tmp_path / "b", data, epochs=1)
    with pytest.raises(UserError, match="is a number of epochs; pass epochs, not steps"):
        resume(by_epochs, data, steps=9, progress=False)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [(ModelConfig(), 0.0), (ClusterConfig(), 1.0), (LadderConfig(), 0.4)],
)
def test_the_default_warm_up_of_the_kl_is_a_share_of_the_steps(settings, expected):
    """100 steps an epoch; 200 steps are two epochs."""
    config = TrainConfig(steps=200, batch_size=10).resolve(settings, 1000)
    assert (config.epochs, config.kl_warmup) == (2, pytest.approx(expected))


def test_both_lengths_are_refused_and_a_warm_up_must_end_before_the_steps(tmp_path):
    both = "epochs and steps are both lengths of a training; give one of them"
    with pytest.raises(UserError, match=both):
        trained(tmp_path / "a", epochs=2, steps=10)
    with pytest.raises(UserError, match=both):
        Plan.of("vae", epochs=2, steps=10)
    with pytest.raises(UserError, match=r"kl_warmup is 1.0 but steps 50 are 0.49 epochs"):
        trained(tmp_path / "a", steps=50, kl_warmup=1.0)
    assert not (tmp_path / "a").exists()
    assert Plan.of(preset="aevb-mnist", steps=10).training.steps == 10


def test_a_plan_of_steps_is_recorded_and_is_the_same_training_when_repeated(tmp_path, small_mnist):
    plan = Plan.of("vae", steps=4, latent_dim=2, hidden_dim=8)
    runs = [plan.train(str(tmp_path / name), progress=False) for name in "ab"]
    assert timeless(runs[0]) == timeless(runs[1])
    recorded = dataclasses.asdict(runs[0].training)
    assert (recorded["steps"], recorded["epochs"]) == (4, 1)


def test_the_command_line_takes_one_length_and_says_what_an_epoch_is(vaekit, small_mnist):
    small = ("--hidden-dim", "8", "--latent-dim", "2")
    code, _, err = vaekit("train", "vae", *small, "--steps", "5", "--out", "a")
    assert code == 0
    assert "5 steps: 1 epoch of " in err
    for verb in ("train", "sweep"):
        code, _, err = vaekit(verb, "vae", "--epochs=3", "--steps", "5", "--out", "b")
        assert (code, err) == (
            2,
            "vaekit: --epochs and --steps are both lengths of a training; give one of them\n",
        )
    code, _, err = vaekit("train", "--resume", "a", "--steps", "7")
    assert code == 0
    assert Run("a").training.steps == 7
