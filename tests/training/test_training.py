"""The training loop: reproducibility, selection of the best epoch, settings, messages and progress."""

import dataclasses
import io
import json
import math

import pytest
import torch
from rich.console import Console
from rich.text import Text

from conftest import random_dataset, timeless
from vaekit import Run, UserError, build, load, resume, train
from vaekit.data import Split, eval_split
from vaekit.data.dataset import binarise
from vaekit.likelihood.validation import validate
from vaekit.model.mmd import squared_mmd
from vaekit.model.objectives import elbo, infovae, iwae
from vaekit.settings.training import TrainConfig
from vaekit.support import distributed
from vaekit.support.console import format_duration
from vaekit.support.devices import seeded
from vaekit.training.learner import Learner
from vaekit.training.loop import train_epochs
from vaekit.training.progress import TrainingProgress
from vaekit.training.step import kl_warmup_weight, learning_rate, make_optimizer

CPU = torch.device("cpu")


def fit(out, data=None, model="vae", settings=None, **training):
    data = data or random_dataset()
    built = build(
        model, data, **{"latent_dim": 2, "hidden_dim": 8, "channels": 4, **(settings or {})}
    )
    return train(built, data, out=out, progress=False, **{"epochs": 3, "batch_size": 8, **training})


@pytest.mark.parametrize("model", ["vae", "convvae"])
def test_two_trainings_from_one_seed_are_the_same(tmp_path, model):
    options = {"model": model, "settings": {"dropout": 0.2}, "kl_warmup": 1.0, "ema": 0.9}
    first = fit(tmp_path / "a", seed=3, **options)
    torch.rand(17)  # whatever the state of the generator
    second = fit(tmp_path / "b", seed=3, **options)
    other = fit(tmp_path / "c", seed=4, **options)
    assert timeless(first) == timeless(second) != timeless(other)
    weights = [(run.path / "model.safetensors").read_bytes() for run in (first, second, other)]
    assert weights[0] == weights[1] != weights[2]


def test_it_learns(tmp_path):
    run = fit(tmp_path / "a", epochs=30, learning_rate=1e-2)
    assert run.metrics[-1]["validation_elbo"] > run.metrics[0]["validation_elbo"] + 5


def loop(data, config, objective=None, model=None, **settings):
    model = model or build("vae", data, **{"latent_dim": 2, "hidden_dim": 8, **settings})
    return model, train_epochs(Learner(model, config, CPU), data, objective or elbo(), "dynamic")


def test_two_epochs_are_adam_by_hand():
    """Every image once per epoch, in a new order, with dropout, re-binarised, and a cosine learning rate."""
    data = random_dataset(kind="grey")
    data = dataclasses.replace(data, black_and_white=True)
    config = TrainConfig(epochs=2, batch_size=8, learning_rate=1e-2, seed=4)
    orders = []

    def track(batches):
        batches = list(batches)
        orders.append(torch.cat([batch.images for batch in batches]))
        return batches

    model = build("vae", data, latent_dim=2, hidden_dim=8, dropout=0.3)
    by_hand = build("vae", data, latent_dim=2, hidden_dim=8, dropout=0.3)
    *_, last = train_epochs(Learner(model, config, CPU), data, elbo(), "dynamic", track)

    optimizer = torch.optim.Adam(by_hand.parameters())
    torch.manual_seed(4)
    step, steps = 0, 2 * math.ceil(len(data.train) / 8)
    for epoch in range(2):
        order = torch.randperm(len(data.train))
        assert torch.equal(data.train.images[order], orders[epoch])
        for batch in order.split(8):
            step += 1
            optimizer.param_groups[0]["lr"] = 1e-2 * 0.5 * (1 + math.cos(math.pi * step / steps))
            images = data.train.images[batch]
            inference = by_hand(binarise(images).float())
            optimizer.zero_grad()
            (inference.kl - inference.log_likelihood).mean().backward()
            optimizer.step()
    assert not torch.equal(orders[0], orders[1])
    for key, value in by_hand.state_dict().items():
        assert torch.allclose(model.state_dict()[key], value, rtol=1e-4, atol=1e-6), key
    assert last[1] is model


def test_the_training_metrics_are_those_of_the_batches():
    """At a learning rate of almost 0, the epoch's ELBO is that of the initial model."""
    data = random_dataset(count=3000)
    model, epochs = loop(data, TrainConfig(epochs=1, batch_size=64, learning_rate=1e-12))
    epoch, _ = next(epochs)
    with torch.no_grad():
        images = eval_split(data.train, "dynamic")[:].images
        inference = model(images, samples=(50,))
        kl, log_likelihood = inference.kl.mean().item(), inference.log_likelihood.mean().item()
    assert epoch.kl == pytest.approx(kl, rel=1e-4)
    assert epoch.train_log_likelihood == pytest.approx(log_likelihood, abs=0.1)
    assert epoch.train_elbo == pytest.approx(epoch.train_log_likelihood - epoch.kl)


def test_validation_uses_fixed_binarisation_and_restores_the_generators():
    data = random_dataset(count=90)
    model = build("vae", data, latent_dim=2, hidden_dim=8, dropout=0.5)
    split = eval_split(data.validation, "dynamic")
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first = validate(model, iwae(5), split)
    assert torch.equal(torch.rand(3), expected)
    assert validate(model, iwae(5), split) == first
    assert model.training
    assert validate(model.eval(), iwae(5), split) == first  # dropout was off
    assert first[0] > first[1] - first[2]  # IWAE is above the ELBO


def test_the_best_epoch_is_by_the_objective_of_the_run_and_after_the_warm_up():
    """The best ELBO may occur while the weight of the KL is small; such weights are not saved."""
    data = random_dataset()
    config = TrainConfig(epochs=6, batch_size=8, kl_warmup=4.0, learning_rate=1e-2)
    _, epochs = loop(data, config, elbo(beta=3.0))
    records = [epoch for epoch, _ in epochs]
    assert [epoch.best for epoch in records[:3]] == [False] * 3
    assert [epoch.kl_weight for epoch in records] == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])
    running = -math.inf
    for epoch in records[3:]:
        assert epoch.best == (epoch.validation_objective > running)
        running = max(running, epoch.validation_objective)
    for epoch in records:
        expected = epoch.validation_log_likelihood - 3 * epoch.validation_kl
        assert epoch.validation_objective == pytest.approx(expected, rel=1e-5)


def test_the_best_epoch_follows_the_objective_even_where_the_elbo_falls():
    class Worse:
        samples = ()

        def __call__(self, inference, warmup=1.0):
            return -inference.log_likelihood

    config = TrainConfig(epochs=5, batch_size=8, learning_rate=1e-2, schedule="constant")
    _, epochs = loop(random_dataset(), config, Worse())
    records = [epoch for epoch, _ in epochs]
    assert records[-1].validation_elbo < records[0].validation_elbo
    assert records[-1].best


def test_a_kl_warm_up_starts_without_kl():
    data = random_dataset()
    model = build("vae", data, latent_dim=2, hidden_dim=8)
    x = eval_split(data.train, "dynamic")[:].images
    inference = model(x)
    assert torch.equal(elbo()(inference, 0.0), inference.log_likelihood)
    assert torch.equal(elbo()(inference, torch.ones(())), inference.log_likelihood - inference.kl)
    many = model(x, samples=(4,))
    average = many.log_likelihood.logsumexp(0) - math.log(4)
    assert torch.allclose(iwae(4)(many, 0.0), average)


def test_the_best_weights_and_numbered_ones_are_saved(tmp_path):
    data = random_dataset()
    run = fit(tmp_path / "a", data, epochs=12, learning_rate=0.05, save_every=5)
    best = [epoch for epoch in run.metrics if epoch["best"]][-1]
    model = load(run)
    objective, *_ = validate(model, elbo(), eval_split(data.validation, "dynamic"))
    assert objective == pytest.approx(best["validation_objective"], rel=1e-5)
    assert {p.name for p in run.path.glob("*.safetensors")} == {
        "picture_data.safetensors",
        "model.safetensors",
        "model-0005.safetensors",
        "model-0010.safetensors",
        "state.safetensors",
    }


def test_ema_is_what_is_validated_and_saved(tmp_path):
    data = random_dataset()
    config = TrainConfig(epochs=2, batch_size=8, ema=0.9, learning_rate=1e-2)
    model, epochs = loop(data, config)
    *_, (_, averaged) = epochs
    # By hand: step i of t has the weight 0.9^(t - i), relative to the sum of all; the initial weights have none.
    again = build("vae", data, latent_dim=2, hidden_dim=8)
    sums, total = [torch.zeros_like(p) for p in again.parameters()], 0.0

    def track(batches):
        nonlocal sums, total
        for batch in batches:
            yield batch
            sums = [0.9 * a + p.detach() for a, p in zip(sums, again.parameters(), strict=True)]
            total = 0.9 * total + 1

    plain = dataclasses.replace(config, ema=None)
    for _ in train_epochs(Learner(again, plain, CPU), data, elbo(), "dynamic", track):
        pass
    averages = [a / total for a in sums]
    for average, parameter in zip(averages, averaged.parameters(), strict=True):
        assert torch.allclose(average, parameter, atol=1e-6)
    assert any(
        not torch.allclose(a, b)
        for a, b in zip(averaged.parameters(), model.parameters(), strict=True)
    )


def test_patience_stops_early(tmp_path):
    run = fit(tmp_path / "a", epochs=200, learning_rate=0.5, schedule="constant", patience=3)
    best = [epoch["epoch"] for epoch in run.metrics if epoch["best"]][-1]
    assert len(run.metrics) == best + 3 < 200


def test_patience_does_not_count_the_warm_up(tmp_path):
    run = fit(tmp_path / "a", epochs=12, kl_warmup=8.0, patience=2, learning_rate=0.5)
    assert len(run.metrics) > 8


def test_weight_decay_reaches_the_optimizer():
    model = build("vae", (1, 4, 4))
    for name in ("adam", "adamw", "adagrad", "rmsprop"):
        optimizer = make_optimizer(model, TrainConfig(optimizer=name, weight_decay=0.25))
        assert {group["weight_decay"] for group in optimizer.param_groups} == {0.25}


@pytest.mark.parametrize(
    ("name", "theirs"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)]
)
def test_adam_is_that_of_torch(name, theirs):
    """In any memory format, with decay, with a changing rate, and for weights without gradients at first."""
    settings = TrainConfig(optimizer=name, weight_decay=0.25)
    models = [build("convvae", (3, 16, 16), latent_dim=2, seed=0) for _ in range(2)]
    models[0].to(memory_format=torch.channels_last)
    assert not all(p.is_contiguous() for p in models[0].parameters())
    ours = make_optimizer(models[0], settings)
    optimizers = [ours, theirs(models[1].parameters(), weight_decay=0.25)]
    for step in range(5):
        torch.manual_seed(step)
        rate = 0.01 / (1 + step)
        gradients = [torch.randn_like(p) for p in models[1].parameters()]
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.param_groups[0]["lr"] = rate
            for i, (p, gradient) in enumerate(zip(model.parameters(), gradients, strict=True)):
                p.grad = None if i == 3 and step < 2 else torch.empty_like(p).copy_(gradient)
            optimizer.step()
    for ours, theirs in zip(*(model.parameters() for model in models), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-7)


def test_the_best_epoch_is_after_the_learning_rate_warm_up():
    _, epochs = loop(random_dataset(), TrainConfig(epochs=4, batch_size=8, lr_warmup=3.0))
    assert [epoch.best for epoch, _ in epochs][:2] == [False, False]


def test_init_starts_from_the_weights_of_a_run(tmp_path):
    first = fit(tmp_path / "a", epochs=20, learning_rate=1e-2)
    data = random_dataset()
    model = build("vae", data, latent_dim=2, hidden_dim=8, seed=9)
    second = train(
        model, data, out=tmp_path / "b", init=first, epochs=1, learning_rate=1e-12, progress=False
    )
    for key, value in load(first).state_dict().items():
        assert torch.allclose(load(second).state_dict()[key], value, atol=1e-8)
    other = build("vae", data, latent_dim=3, hidden_dim=8)
    with pytest.raises(UserError, match="does not fit"):
        train(other, data, out=tmp_path / "c", init=first, progress=False)
    assert not (tmp_path / "c").exists()


def test_learning_rates():
    config = TrainConfig(epochs=11, learning_rate=1.0, lr_warmup=1.0)
    assert learning_rate(0.25, config) == 0.25
    assert learning_rate(1.0, config) == 1.0
    assert learning_rate(6.0, config) == pytest.approx(0.5)
    assert learning_rate(11.0, config) == pytest.approx(0.0)
    constant = dataclasses.replace(config, schedule="constant")
    assert learning_rate(0.5, constant) == 0.5
    assert learning_rate(9.0, constant) == 1.0


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "adagrad", "rmsprop"])
def test_every_optimizer_trains(tmp_path, optimizer):
    run = fit(tmp_path / "a", optimizer=optimizer, weight_decay=0.01, epochs=10, learning_rate=1e-2)
    assert run.metrics[-1]["train_elbo"] > run.metrics[0]["train_elbo"]


def test_gradients_are_clipped():
    data = random_dataset()
    config = TrainConfig(epochs=1, batch_size=8, clip_gradient=1e-3, learning_rate=1.0)
    model, epochs = loop(data, config)
    norms = []
    parameters = list(model.parameters())
    original = torch.optim.Adam.step

    def step(self, *args, **kwargs):
        norms.append(torch.stack([p.grad.norm() for p in parameters]).norm().item())
        return original(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", step)
        next(epochs)
    assert max(norms) <= 1e-3 * 1.001


def test_a_loss_that_is_not_finite_stops_the_run_with_a_message(tmp_path):
    data = random_dataset(kind="float")
    data.train.images[3, 0, 0, 0] = math.nan
    with pytest.raises(UserError, match="not finite at epoch 1"):
        fit(tmp_path / "a", data)
    (epoch,) = Run(tmp_path / "a").metrics
    assert epoch["train_elbo"] is None
    assert not (tmp_path / "a" / "model.safetensors").exists()


def test_a_state_that_lacks_tensors_is_refused():
    model = build("vae", random_dataset(), latent_dim=2, hidden_dim=4)
    learner = Learner(model, TrainConfig(), torch.device("cpu"))
    state = learner.state()
    del state.tensors["epoch.order"]
    with pytest.raises(UserError, match="does not fit the training"):
        learner.restore(state)


def test_a_step_does_not_synchronise_the_device():
    """The totals are read once per epoch, whatever the number of steps."""
    data = random_dataset(count=300)

    def synchronisations(batch_size):
        # torch's fused Adam reads its step counters, which are on the CPU.
        settings = {"optimizer": "rmsprop", "ema": 0.9, "kl_warmup": 1.5, "clip_gradient": 1.0}
        _, epochs = loop(data, TrainConfig(epochs=2, batch_size=batch_size, **settings))
        next(epochs)
        with torch.profiler.profile() as profile:
            next(epochs)
        counts = {e.key: e.count for e in profile.key_averages()}
        return counts.get("aten::_local_scalar_dense", 0), counts.get("aten::item", 0)

    assert synchronisations(10) == synchronisations(50)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"epochs": -1}, "epochs is -1"),
        ({"learning_rate": -1.0}, "positive"),
        ({"learning_rate": math.nan}, "positive"),
        ({"learning_rate": math.inf}, "positive"),
        ({"batch_size": 0}, "at least 1"),
        ({"kl_warmup": 3.0}, "kl_warmup is 3.0 but epochs is 3"),
        ({"lr_warmup": 3.0}, "lr_warmup is 3.0 but epochs is 3"),
        ({"ema": 1.0}, "between 0 and 1"),
        ({"patience": 0}, "at least 1"),
        ({"seed": -1}, "seed is -1"),
        ({"batch_size": 10**20}, "at most"),
        ({"device": "gpu"}, "is not a device"),
        ({"device": "cuda:99"}, "not available on this machine"),
        ({"epoch": 3}, "did you mean 'epochs'"),
        ({"optimizer": "sgd"}, "adam or adamw"),
        ({"binarisation": "dithered"}, "dynamic or threshold"),
        ({"name": "a/b"}, "folder's name"),
    ],
)
def test_bad_settings_are_refused_and_nothing_is_created(tmp_path, options, message):
    with pytest.raises(UserError, match=message) as caught:
        fit(tmp_path / "a", **options)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_model_and_data_that_do_not_fit_are_refused(tmp_path):
    data = random_dataset()
    model = build("vae", (1, 8, 8))
    with pytest.raises(UserError, match="the model is for images of shape"):
        train(model, data, out=tmp_path / "a")
    floats = random_dataset(kind="float")
    with pytest.raises(UserError, match="256 levels"):
        train(build("vae", floats, likelihood="logistic"), floats, out=tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_discrete_pixels_need_data_of_the_model_s_levels(tmp_path):
    deep, grey = random_dataset(kind="deep"), random_dataset(kind="grey")
    between = dataclasses.replace(random_dataset(kind="float"), value_range=deep.value_range)
    for data, levels, message in (
        (
            deep,
            256,
            "pixels of 256 levels, but those of 'random' have 4,096; build it with (--)?levels 4096",
        ),
        (
            grey,
            4096,
            "pixels of 4,096 levels, but those of 'random' have 256; build it with (--)?levels 256",
        ),
        (between, 4096, "its pixels lie between its 4,096 levels"),
    ):
        model = build("vae", data, likelihood="logistic", levels=levels)
        with pytest.raises(UserError, match=message) as caught:
            train(model, data, out=tmp_path / "a")
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="too few for pixels of 4,096 levels"):
        train(build("vae", deep), deep, out=tmp_path / "a", precision="bfloat16")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["bits", "grey", "float", "deep"])
def test_every_kind_of_pixel_trains(tmp_path, kind):
    run = fit(tmp_path / "a", random_dataset(kind=kind))
    assert run.section("data")["binarisation"] == ("dynamic" if kind == "bits" else "none")
    json.dumps(run.metrics, allow_nan=False)


def test_plain_progress_is_one_line_per_epoch(tmp_path, capsys):
    data = random_dataset()
    train(build("vae", data, hidden_dim=8), data, out=tmp_path / "a", epochs=2, batch_size=8)
    lines = [x for x in capsys.readouterr().err.splitlines() if not x.startswith("warning")]
    assert len(lines) == 3
    assert "bernoulli pixels, binarisation dynamic, on cpu" in lines[0]
    assert lines[2].startswith("epoch 2/2")
    for word in ("images/s", "ELBO train", "valid", "KL", "left"):
        assert word in lines[1]


@pytest.mark.parametrize(("kind", "model"), [("grey", "vae"), ("grey", "mmdvae"), ("float", "vae")])
def test_the_line_of_pixels_with_levels_has_bits_per_dim(tmp_path, capsys, kind, model):
    """-ELBO / (pixels ln 2); a density has no bits, nor has an objective that is no ELBO."""
    data = random_dataset(kind=kind)
    settings = {"posterior": "deterministic"} if model == "mmdvae" else {}
    run = train(
        build(model, data, hidden_dim=8, **settings), data, out=tmp_path / "a", epochs=1, batch_size=8,
    )  # fmt: skip
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("epoch 1/1")]
    (epoch,) = run.metrics
    if kind == "grey" and model == "vae":
        bits = [-epoch[key] / (30 * math.log(2)) for key in ("train_elbo", "validation_elbo")]
        assert f"bits/dim train {bits[0]:.3f} valid {bits[1]:.3f} KL" in line
        assert "ELBO" not in line
    else:
        assert "bits/dim" not in line


def test_a_short_training_and_imbalanced_classes_are_warned_of_once_at_the_start(
    tmp_path, capsys, monkeypatch
):
    data, labels = random_dataset(), torch.tensor([0] * 18 + [1, 2])
    data = dataclasses.replace(data, train=Split(data.train.images, labels))
    monkeypatch.setattr("vaekit.support.warnings.MIN_STEPS", 7)

    def warnings_of(model, epochs):
        built = build(model, data, hidden_dim=8, latent_dim=2)
        out = tmp_path / f"{model}-{epochs}"
        run = train(built, data, out=out, epochs=epochs, batch_size=8)
        lines = capsys.readouterr().err.splitlines()
        return run, [x for x in lines if "training steps" in x or "imbalanced" in x]

    run, lines = warnings_of("cvae", 2)
    assert lines == [
        "warning: 6 training steps are few: under 7 a network is far from what it can learn; pass steps 7 or more",
        "warning: the classes are imbalanced: 0 has 18 training images, 1 1; a model conditional on them draws rare "
        "classes poorly: add images of these, or take fewer of the others",
    ]
    monkeypatch.setattr("vaekit.support.warnings.MIN_STEPS", 100)
    resume(run, data, epochs=3)
    assert "training steps" not in capsys.readouterr().err
    monkeypatch.setattr("vaekit.support.warnings.MIN_STEPS", 7)
    assert warnings_of("vae", 3)[1] == []


def test_time_left_is_the_mean_time_of_an_epoch_times_those_left(capsys):
    data = random_dataset()
    _, epochs = loop(data, TrainConfig(epochs=1, batch_size=8))
    ((epoch, _),) = epochs
    progress = TrainingProgress(TrainConfig(epochs=10), 100, True)
    progress.on_epoch(dataclasses.replace(epoch, seconds=10.0))
    progress.on_epoch(dataclasses.replace(epoch, epoch=2, seconds=20.0))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].endswith("1:30 left")
    assert lines[1].endswith("2:00 left")
    assert format_duration(3723) == "1:02:03"


@pytest.mark.parametrize("width", [70, 80, 120])
def test_the_live_line_fits_the_terminal_and_shows_the_time_left(width):
    data = random_dataset()
    _, epochs = loop(data, TrainConfig(epochs=1, batch_size=8))
    ((epoch, _),) = epochs
    progress = TrainingProgress(TrainConfig(epochs=50), 50_000, True)
    screen = Console(file=io.StringIO(), force_terminal=True, width=width)
    progress.console = progress.bar.live.console = screen
    progress.live = True
    progress.bar.disable = False
    values = {"train_elbo": -110.23, "validation_elbo": -109.11, "validation_kl": 24.53}
    progress.on_epoch(dataclasses.replace(epoch, epoch=12, images_per_second=25_123.4, **values))
    screen.print(progress.bar.get_renderable())
    (line,) = [part for part in screen.file.getvalue().splitlines() if part.strip()]
    text = Text.from_ansi(line).plain.rstrip()
    assert text.startswith("-:-- left  epoch 12/50  25,123 images/s  ELBO train -110.2 valid")
    assert len(text) <= width
    if width >= 80:
        assert "KL 24.5" in text
    else:
        assert text.endswith("…")


@pytest.mark.parametrize("size", [1, 19])
def test_batch_normalisation_refuses_a_batch_of_one(tmp_path, size):
    """random_dataset has 20 training images."""
    data = random_dataset()
    model = build("vae", data, latent_dim=2, hidden_dim=8, normalisation="batch")
    with pytest.raises(UserError, match="choose another batch_size"):
        train(model, data, out=tmp_path / "a", epochs=1, batch_size=size, progress=False)
    assert not (tmp_path / "a").exists()


def test_the_average_of_a_batch_normalised_model_has_its_statistics(tmp_path):
    data = random_dataset()
    model = build("vae", data, latent_dim=2, hidden_dim=8, normalisation="batch")
    run = train(model, data, out=tmp_path / "a", epochs=2, ema=0.9, progress=False)
    saved = dict(load(run).named_buffers())
    for name, buffer in model.named_buffers():
        if "running" in name:
            assert torch.allclose(buffer, saved[name], atol=1), name
            assert not torch.equal(saved[name], torch.zeros_like(buffer)), name


def test_the_kl_of_one_latent_or_of_the_cluster_warms_up(tmp_path):
    """kl_warmup_weight() returns the factors for the objective; a run with it records the weight."""
    model = build("gmvae", (1, 6, 5), latent_dim=2, clusters=3, hidden_dim=8)
    weight = torch.tensor(0.25)
    assert kl_warmup_weight(model, TrainConfig(), weight) == 1.0
    assert kl_warmup_weight(model, TrainConfig(kl_warmup=2.0), weight) is weight
    of = kl_warmup_weight(model, TrainConfig(kl_warmup=2.0, kl_warmup_of="cluster"), weight)
    assert of == {"cluster": weight}
    with pytest.raises(UserError, match="all, or one of w, z, cluster"):
        kl_warmup_weight(model, TrainConfig(kl_warmup=2.0, kl_warmup_of="z2"), weight)
    data = random_dataset()
    plain = build("vae", data, latent_dim=2, hidden_dim=8)
    with pytest.raises(UserError, match="needs a prior with components"):
        train(plain, data, out=tmp_path / "a", epochs=3, kl_warmup=1.0, kl_warmup_of="cluster")
    assert not (tmp_path / "a").exists()
    started = build("gmvae", data, latent_dim=2, clusters=3, hidden_dim=8, start_epochs=1)
    run = train(started, data, out=tmp_path / "b", epochs=2, kl_warmup_of="cluster", progress=False)
    assert run.metrics[-1]["kl_weight"] == 1


def test_the_kl_of_z_warms_up_with_that_of_its_clusters():
    """At weight 0 of z the objective has the KL of w alone."""
    model = build("gmvae", (1, 6, 5), latent_dim=2, clusters=3, hidden_dim=8)
    config = TrainConfig(kl_warmup=2.0, kl_warmup_of="z")
    inference = model(torch.rand(4, 1, 6, 5))
    for objective, kl in ((elbo(), "kl"), (iwae(1), "log_ratio")):
        inference = model(torch.rand(4, 1, 6, 5), samples=objective.samples)
        of_w = inference.latents["w"]
        expected = inference.log_likelihood - (of_w.kl if kl == "kl" else -of_w.log_ratio)
        found = objective(inference, kl_warmup_weight(model, config, torch.zeros(())))
        assert torch.allclose(found, expected.reshape(found.shape))


def test_a_training_of_one_step_moves_the_weights():
    """The cosine, 0 at its last step, has no other here; of two steps the last still has rate 0."""
    data = random_dataset()
    config = TrainConfig(epochs=1, batch_size=len(data.train))
    model, epochs = loop(data, config)
    before = [p.detach().clone() for p in model.parameters()]
    (((epoch, _),)) = list(epochs)
    assert epoch.learning_rate == config.learning_rate
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    two = TrainConfig(epochs=2)
    assert [learning_rate(n, two, 1.0) for n in (1, 2)] == [pytest.approx(5e-4), 0.0]


@pytest.mark.parametrize("objective", [infovae(), infovae(alpha=1, biased=True)])
def test_the_validation_of_infovae_does_not_depend_on_the_batch(objective, monkeypatch):
    """80 images decoded 16 at a time have the objective of 80 at once."""
    data = random_dataset(count=240)
    model = build("vae", data, latent_dim=4, hidden_dim=8)
    split = eval_split(data.validation, "dynamic")
    whole = validate(model, objective, split)
    assert whole[0] < whole[1]
    monkeypatch.setattr("vaekit.likelihood.validation.MAX_NUMBERS", 16 * 30)
    assert validate(model, objective, split) == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize(
    "objective", [infovae(), infovae(0.5, samples=(2,)), infovae(1, biased=True)]
)
def test_the_validation_of_infovae_is_that_of_its_groups(objective, monkeypatch):
    """Of 80 images in groups of 27, 27 and 26, in place of four batches of 20: their objectives, weighted by size."""
    data = random_dataset(count=240)
    model = build("vae", data, latent_dim=4, hidden_dim=8).eval()
    split = eval_split(data.validation, "dynamic")
    monkeypatch.setattr("vaekit.likelihood.validation.BATCH", 80)
    found = validate(model, objective, split)
    with seeded(1), torch.no_grad():
        batch = split[:]
        inference = model(batch.images, batch.labels, objective.samples)
        expected = objective(inference).mean()
    assert found[0] == pytest.approx(float(expected), rel=1e-5)
    monkeypatch.setattr("vaekit.likelihood.validation.BATCH", 27)
    drawn = []
    monkeypatch.setattr(
        "vaekit.likelihood.validation.squared_mmd",
        lambda x, y, *options: drawn.append(x.shape[-2]) or squared_mmd(x, y, *options),
    )
    assert math.isfinite(validate(model, objective, split)[0])
    assert drawn == [27, 27, 26]


def test_a_function_is_an_objective(tmp_path):
    def halved(inference, warmup=1.0):
        return inference.log_likelihood - 0.5 * warmup * inference.kl

    data = random_dataset()
    model = build("vae", data, latent_dim=2, hidden_dim=8)
    with pytest.raises(UserError, match="give it an attribute `samples`"):
        train(model, data, out=tmp_path / "a", objective=halved)
    halved.samples = ()
    run = train(model, data, out=tmp_path / "a", objective=halved, epochs=1, progress=False)
    last = run.metrics[-1]
    half = last["validation_log_likelihood"] - 0.5 * last["validation_kl"]
    assert last["validation_objective"] == pytest.approx(half)


@pytest.mark.parametrize("objective", [elbo(), iwae(3), infovae()])
def test_a_deterministic_posterior_needs_an_objective_without_its_density(tmp_path, objective):
    data = random_dataset()
    model = build("vae", data, latent_dim=2, hidden_dim=8, posterior="deterministic")
    with pytest.raises(UserError, match="no density"):
        train(model, data, out=tmp_path / "a", objective=objective)
    assert not (tmp_path / "a").exists()


def test_infovae_needs_batches_of_two_or_more(tmp_path):
    data = random_dataset()
    model = build("infovae", data, latent_dim=2, hidden_dim=8)
    for size in (1, 19):
        with pytest.raises(UserError, match="objective infovae cannot have a batch of one"):
            train(model, data, out=tmp_path / "a", batch_size=size)


def test_a_model_has_its_own_default_training_settings(tmp_path):
    data = random_dataset()
    model = build("gmvae", data, latent_dim=2, clusters=3, hidden_dim=8, start_epochs=0)
    run = train(model, data, out=tmp_path / "a", epochs=3, progress=False)
    assert run.config["training"]["kl_warmup"] == 1.5
    assert not run.metrics[0]["best"]
    assert TrainConfig(epochs=50).resolve(model.blueprint.settings, 100).kl_warmup == 10
    assert (
        TrainConfig(epochs=50).resolve(build("vae", (1, 4, 4)).blueprint.settings, 100).kl_warmup
        == 0
    )
    assert TrainConfig(kl_warmup=3.0).resolve(model.blueprint.settings, 100).kl_warmup == 3


def test_an_average_of_a_vampprior_follows_its_own_posterior(tmp_path):
    """deepcopy for the average must not leave the copied prior with the original's posterior."""
    import copy

    model = build("vampprior", (1, 6, 5), latent_dim=2, components=3, pseudo_inputs="noise")
    other = copy.deepcopy(model)
    assert other.prior["z"].shared[0] is other.posterior["z"]
    assert model.prior["z"].shared[0] is model.posterior["z"]


def test_another_objective_is_trained_validated_and_recorded(tmp_path):
    run = fit(tmp_path / "a", objective=iwae(3))
    assert run.config["objective"] == "iwae(k=3, gradient='plain')"
    last = run.metrics[-1]
    assert last["validation_objective"] > last["validation_elbo"]


def test_each_process_has_noise_of_its_own(monkeypatch):
    """On the CPU, whose generator takes only the lowest 32 bits of a seed; of nearby seeds too."""
    data, noise = random_dataset(), []
    learner = Learner(build("vae", data, latent_dim=2), TrainConfig(), CPU)
    for rank in range(16):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        for seed in range(4):
            learner.config = TrainConfig(seed=seed)
            learner.start()
            noise.append(tuple(torch.rand(4).tolist()))
    assert len(set(noise)) == 64
