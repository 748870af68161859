"""The compiled step against the eager one, bfloat16 against float32, and the cost of a step."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import vaekit.training.compiled
from conftest import random_dataset, small_settings
from vaekit import UserError, build, load, train
from vaekit.data.augment import augmentation_of
from vaekit.model.build import objective_of
from vaekit.model.objectives import elbo, iwae
from vaekit.settings.catalog import MODELS
from vaekit.settings.training import TrainConfig
from vaekit.training.compiled import compile_step, trace
from vaekit.training.learner import Learner
from vaekit.training.loop import train_epochs
from vaekit.training.preflight import check_training
from vaekit.training.step import Loss

CPU = torch.device("cpu")
SMALL = {"latent_dim": 3, "hidden_dim": 16}


def small(name):
    """Settings of a small model."""
    if name == "deepvae":
        return small_settings(name)
    return SMALL | ({"components": 7} if "vamp" in name else {})


def loss_of(name, data, objective=None, **settings):
    """The training loss of a model, re-binarised at every step where its likelihood is Bernoulli."""
    model = build(name, data, **small(name), **settings).train()
    binarisation = data.binarisation("auto", model.blueprint.settings.likelihood)
    return Loss(model, objective or objective_of(model.blueprint), binarisation)


def grey():
    return dataclasses.replace(random_dataset(kind="grey", count=180), black_and_white=True)


def trained(data, model, config, objective=None):
    """Training objective of each epoch, the weights afterwards, and the log lines."""
    lines = []
    learner = Learner(model, config, CPU)
    epochs = train_epochs(learner, data, objective or elbo(), "dynamic", log=lines.append)
    values = [epoch.train_objective for epoch, _ in epochs]
    return values, [p.detach().clone() for p in model.parameters()], lines


@pytest.mark.long
@pytest.mark.parametrize("name", ["vae", "hvampprior"])
def test_100_compiled_steps_have_the_loss_of_eager_ones(name):
    """To 1e-4, with a smaller last batch, dropout, running statistics, gradient clipping, a KL warm-up and
    augmentation."""
    data, results = grey(), []
    for choice in ("yes", "no"):
        settings = {} if "vamp" in name else {"normalisation": "batch"}
        model = build(name, data, dropout=0.1, **small(name), **settings)
        config = TrainConfig(
            epochs=12,
            batch_size=7,
            kl_warmup=4.0,
            clip_gradient=5.0,
            ema=0.9,
            compile=choice,
            augment="hflip,shift=1",
        )
        assert config.steps_per_epoch(len(data.train)) * config.epochs >= 100
        results.append(trained(data, model, config))
    (compiled, weights, lines), (eager, expected, no_lines) = results
    assert compiled == pytest.approx(eager, rel=1e-4)
    assert lines == ["compiling the training step (once) ..."]
    assert no_lines == []
    for a, b in zip(weights, expected, strict=True):
        assert (a - b).norm() <= 1e-2 * b.norm() + 1e-4


@pytest.mark.long
@pytest.mark.parametrize("likelihood", ["logistic", "logistic-mixture"])
@pytest.mark.parametrize(
    ("name", "shape", "kind"), [("vae", (1, 6, 5), "deep"), ("convvae", (3, 8, 8), "grey")]
)
def test_a_compiled_step_of_discrete_pixels_has_the_loss_of_an_eager_one(
    name, shape, kind, likelihood
):
    data = random_dataset(shape, kind, count=60)
    results = []
    for choice in ("yes", "no"):
        model = build(name, data, likelihood=likelihood, **small(name))
        assert model.blueprint.settings.levels == data.levels
        learner = Learner(model, TrainConfig(epochs=2, batch_size=10, compile=choice), CPU)
        lines = []
        epochs = train_epochs(learner, data, elbo(), "none", log=lines.append)
        results.append([epoch.train_objective for epoch, _ in epochs])
        assert not any("not compiled" in line for line in lines)
    assert results[0] == pytest.approx(results[1], rel=1e-4)


def test_every_model_is_traced_as_one_graph():
    """Tracing with fake tensors fails where a value would be read back."""
    data = grey()
    for name in MODELS:
        loss = loss_of(name, data)
        graph, _ = trace(loss, data.train[:8], 1.0)
        assert len(graph.graph.nodes) > 50, name
    deep = random_dataset(kind="deep")
    trace(loss_of("vae", deep), deep.train[:8], 1.0)
    colour = random_dataset((3, 8, 8), "grey")
    mixture = loss_of("convvae", colour, likelihood="logistic-mixture", channels=2)
    trace(mixture, colour.train[:8], 1.0)
    trace(loss_of("deepvae", data, elbo(samples=(2,), free_bits=0.1)), data.train[:8], 1.0)


EVERY_AUGMENTATION = (
    "hflip,vflip,rotate90,shift=2,crop=2,brightness=0.2,contrast=0.2,saturation=0.2"
)


def augmented_loss(kind):
    """The loss of a convvae with every augmentation, and its data."""
    data = random_dataset((3, 8, 8), kind)
    model = build("convvae", data, latent_dim=2, hidden_dim=8, channels=2).train()
    return Loss(model, elbo(), augment=augmentation_of(EVERY_AUGMENTATION, data)), data


@pytest.mark.parametrize("kind", ["grey", "float"])
def test_a_traced_step_augments_as_the_eager_one(kind):
    loss, data = augmented_loss(kind)
    graph, inputs = trace(loss, data.train[:8], 1.0)
    torch.manual_seed(5)
    traced = graph(*inputs)[0]
    torch.manual_seed(5)
    assert torch.allclose(traced, loss.backward(data.train[:8], 1.0), rtol=1e-5)
    assert not torch.allclose(traced, loss.backward(data.train[:8], 1.0), rtol=1e-5)  # drawn anew


@pytest.mark.long
@pytest.mark.parametrize("kind", ["grey", "float"])
def test_every_augmentation_compiles(kind):
    loss, data = augmented_loss(kind)
    step = compile_step(loss, data.train[:8], 1.0)
    assert step != loss.backward  # the gradients were compared
    results = []
    for each in (step, loss.backward):
        torch.manual_seed(5)
        results.append(each(data.train[:8], 1.0))
    assert torch.allclose(*results, rtol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("name", MODELS)
def test_every_model_compiles(name):
    data, lines = grey(), []
    loss = loss_of(name, data, elbo(free_bits=0.1) if name == "deepvae" else None)
    backward = compile_step(loss, data.train[:8], 1.0, lines.append)
    assert lines == ["compiling the training step (once) ..."]  # the gradients were compared
    assert backward != loss.backward


@pytest.mark.long
def test_normalisation_dropout_and_frozen_weights_compile():
    """Running statistics are updated as in eager steps, and frozen weights get no gradient."""
    data, losses = grey(), []
    for _ in range(2):
        loss = loss_of("vae", data, iwae(3), normalisation="batch", dropout=0.2)
        loss.model.decoder.network.unfold.weight.requires_grad_(False)
        losses.append(loss)
    first, second = losses
    backward = compile_step(first, data.train[:8], 1.0)
    for loss, step in ((first, backward), (second, second.backward)):
        torch.manual_seed(5)
        for _ in range(3):
            loss.zero_grad()
            step(data.train[:8], 1.0)
    assert backward != first.backward
    assert first.model.decoder.network.unfold.weight.grad is None
    for a, b in zip(first.buffers(), second.buffers(), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert a.grad is b.grad is None or torch.allclose(a.grad, b.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("fault", ["no compiler", "wrong gradients"])
def test_without_a_compiler_the_training_is_eager_and_logs_a_note(fault, monkeypatch):
    def no_compiler(*arguments):
        raise RuntimeError("no g++ here\nand many more lines")

    class Wrong:
        def __init__(self, loss, *rest):
            self.loss = loss

        def __call__(self, batch, warmup):
            means = self.loss.backward(batch, warmup)
            next(self.loss.parameters()).grad.mul_(1.01)
            return means

    monkeypatch.setattr(
        vaekit.training.compiled, "CompiledStep", no_compiler if fault == "no compiler" else Wrong
    )
    data = grey()
    config = TrainConfig(epochs=1, batch_size=8)
    results = [
        trained(data, build("vae", data, **SMALL), dataclasses.replace(config, compile=choice))
        for choice in ("yes", "no")
    ]
    assert results[0][0] == results[1][0]
    reason = "no g++ here" if fault == "no compiler" else "the compiled step gives different"
    assert results[0][2][1].startswith(
        f"note: the training step is not compiled, so training is slower: {reason}"
    )


def test_compiling_is_decided_by_the_number_of_steps():
    config = TrainConfig(epochs=40, batch_size=100)
    assert config.compiles(50_000)
    assert not config.compiles(49_900)
    assert not dataclasses.replace(config, compile="no").compiles(50_000)
    assert dataclasses.replace(config, compile="yes").compiles(1)


class Calls(TorchDispatchMode):
    """Records the names of torch's operator calls."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def test_a_step_never_synchronises_and_makes_few_calls():
    """The calls of an epoch of 16 steps minus those of 8, which cancels calls made once per epoch."""
    counts = {}
    for name in MODELS:
        for steps in (8, 16):
            data = dataclasses.replace(random_dataset(count=16 * 4), black_and_white=True)
            data = dataclasses.replace(data, train=data.train[: steps * 2])
            model = build(name, data, **small(name))
            extras = {"kl_warmup": 0.5, "ema": 0.9, "clip_gradient": 1.0}
            extras["augment"] = "hflip,vflip,shift=1,crop=1"
            config = TrainConfig(epochs=1, batch_size=2, compile="no", **extras)
            learner = Learner(model, config, CPU)
            loop = train_epochs(learner, data, objective_of(model.blueprint), "dynamic")
            with Calls() as calls:
                next(loop)
            counts[steps] = calls.names
        per_step = {
            op: (counts[16].count(op) - counts[8].count(op)) / 8 for op in sorted(set(counts[16]))
        }
        assert per_step.get("aten._local_scalar_dense.default", 0) == 0, name
        assert 0 < sum(per_step.values()) <= 600, (name, sum(per_step.values()))


def test_bfloat16_gives_nearly_the_loss_of_float32():
    data = grey()
    loss = loss_of("vae", data)
    low = Loss(loss.model, loss.objective, loss.binarisation, "bfloat16")
    values = []
    for each in (loss, low):
        torch.manual_seed(0)
        values.append(each(data.train.images[:40])[0])
    assert values[1].dtype == torch.float32
    assert values[0] != values[1]
    assert values[1].item() == pytest.approx(values[0].item(), rel=1e-2)


def test_bfloat16_affects_only_the_networks():
    """Densities and their parameters are float32, and so are the gradients."""
    data = grey()
    model = build("vae", data, **SMALL)
    with torch.autocast("cpu", torch.bfloat16):
        inference = model(torch.rand(4, *data.shape))
    latent = inference.latents["z"]
    for tensor in (latent.z, latent.posterior.mean, inference.log_likelihood, inference.kl):
        assert tensor.dtype == torch.float32
    Loss(model, elbo(), "dynamic", "bfloat16").backward(data.train[:8], 1.0)
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())


def test_bfloat16_that_changes_the_loss_is_refused(monkeypatch):
    data = grey()
    model = build("vae", data, likelihood="gaussian", scale=0.01, **SMALL)
    config = TrainConfig(precision="bfloat16", batch_size=10, allow_slow=True)
    check_training(model, elbo(), data, config, 1.0)
    monkeypatch.setattr("vaekit.training.preflight.BFLOAT16_TOLERANCE", 1e-9)
    check_training(model, elbo(), data, TrainConfig(batch_size=10), 1.0)
    with pytest.raises(UserError, match="leave out precision bfloat16"):
        check_training(model, elbo(), data, config, 1.0)


def test_bfloat16_is_refused_on_a_cpu_that_emulates_it(tmp_path, monkeypatch):
    """Unless it is forced; nothing is written."""
    data = grey()
    model = build("vae", data, likelihood="gaussian", scale=0.01, **SMALL)
    monkeypatch.setattr("vaekit.training.preflight.bfloat16_slowdown", lambda: 9.0)
    options = {"precision": "bfloat16", "epochs": 1, "device": "cpu", "progress": False}
    with pytest.raises(
        UserError, match=r"no instructions for bfloat16: .* 9.0 times .* allow_slow"
    ):
        train(model, data, out=tmp_path / "a", **options)
    assert not (tmp_path / "a").exists()
    assert train(model, data, out=tmp_path / "a", allow_slow=True, **options).training.allow_slow
    with pytest.raises(UserError, match="allow_slow has no effect without precision bfloat16"):
        train(model, data, out=tmp_path / "b", allow_slow=True)


def test_a_run_records_compilation_and_precision(tmp_path):
    data = grey()
    model = build("vae", data, **SMALL)
    options = {"precision": "bfloat16", "allow_slow": True}
    run = train(model, data, epochs=2, out=tmp_path / "run", progress=False, **options)
    settings = run.section("training")
    assert (settings["compile"], settings["precision"]) == ("no", "bfloat16")
    assert all(value.dtype == torch.float32 for value in load(run).state_dict().values())


def test_tensors_are_compared_by_the_relative_norm_of_their_difference():
    close, a = vaekit.training.compiled.close_enough, torch.ones(4)
    assert close(a * 1.001, a, 0.01)
    assert not close(a * 1.1, a, 0.01)
    assert close(None, None, 0.01)
    assert not close(a, None, 0.01)
    assert not close(None, a, 0.01)
