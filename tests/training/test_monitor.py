"""Monitoring of a training: pictures, movie and TensorBoard log are right, and the training is unaffected."""

import dataclasses
import json
import math
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import random_dataset, timeless
from vaekit import UserError, build, elbo, load, resume, train
from vaekit.data import eval_split
from vaekit.inference.generation import fixed_samples
from vaekit.support.errors import python_names
from vaekit.training.monitor import (
    MOVIE_FRAMES,
    frame_steps,
    movie_frames,
    untrained_log_likelihood,
)


def fit(out, model="vae", data=None, **settings):
    data = data or random_dataset()
    sizes = {"latent_dim": 2, "hidden_dim": 8, "dropout": 0.2}
    sizes |= {"components": 4} if "vamp" in model else {}
    settings = {"epochs": 3, "batch_size": 5, "progress": False, **settings}
    return train(build(model, data, **sizes), data, out=out, **settings)


@pytest.mark.parametrize("model", ["vae", "cvae", "vampprior"])
def test_monitoring_does_not_change_a_training(tmp_path, model):
    plain = fit(tmp_path / "a", model)
    monitored = fit(tmp_path / "b", model, pictures_every=1, record=True, tensorboard=True)
    assert timeless(plain) == timeless(monitored)
    assert plain.weights_path.read_bytes() == monitored.weights_path.read_bytes()


def test_frames_are_dense_at_first_then_sparse():
    for steps in (1, 2, 10, 500, 10_000, 10**6):
        frames = sorted(frame_steps(steps))
        assert frames[0] == 0
        assert frames[-1] == steps
        assert len(frames) <= MOVIE_FRAMES + 1
    gaps = np.diff(sorted(frame_steps(10_000)))
    assert gaps[0] == 1
    assert (np.diff(gaps) >= 0).all()


def test_the_movie_shows_the_same_samples_from_the_first_step_to_the_last(tmp_path):
    run = fit(tmp_path / "run", record=True)
    frames = movie_frames(run)
    steps = [int(frame.stem.removeprefix("step-")) for frame in frames]
    assert steps == sorted(frame_steps(12))
    with Image.open(run.pictures / "progress.gif") as movie:
        assert movie.n_frames == len(frames)
        times = []
        for i in range(movie.n_frames):
            movie.seek(i)
            times.append(movie.info["duration"])
    assert set(times[:-1]) == {250}
    assert times[-1] == 1250
    first, last = (np.asarray(Image.open(frame)).astype(int) for frame in (frames[0], frames[-1]))
    assert first.shape == last.shape
    assert np.abs(first - last).max() > 20


def test_a_movie_ends_where_a_training_stops_early(tmp_path):
    run = fit(tmp_path / "run", record=True, epochs=50, patience=2, learning_rate=1.0)
    epochs = len(run.metrics)
    assert epochs < 50
    assert movie_frames(run)[-1].stem == f"step-{4 * epochs:09d}"


def test_pictures_are_drawn_every_n_epochs(tmp_path):
    run = fit(tmp_path / "run", pictures_every=2, epochs=5)
    names = sorted(path.name for path in (run.pictures / "epochs").iterdir())
    assert names == [
        f"{name}-{epoch:04d}.png" for name in ("reconstructions", "samples") for epoch in (2, 4)
    ]
    with pytest.raises(UserError, match="pictures_every is 0"):
        fit(tmp_path / "other", pictures_every=0)
    assert not (tmp_path / "other").exists()


def test_pictures_while_training_are_of_validation_images(tmp_path, monkeypatch):
    from vaekit.training import monitor

    drawn = []
    monkeypatch.setattr(monitor, "draw_epoch", lambda run, model, x, bands, epoch: drawn.append(x))
    data = random_dataset()
    fit(tmp_path / "run", data=data, pictures_every=1, epochs=1)
    images = eval_split(data.validation, "dynamic")[:].images
    assert all((image == images).flatten(1).all(1).any() for image in drawn[0].images)
    assert drawn[0].labels.tolist()[:3] == [0, 1, 2]


def test_fixed_samples_repeat_their_noise_and_restore_the_generators():
    model = build("vae", (1, 6, 5), hidden_dim=8, dropout=0.5).train()
    state = torch.random.get_rng_state()
    first = fixed_samples(
        model, 5, torch.rand(3, 1, 6, 5, generator=torch.Generator().manual_seed(0))
    )
    assert torch.equal(state, torch.random.get_rng_state())
    assert model.training
    torch.rand(7)
    assert torch.equal(first, fixed_samples(model, 5, torch.zeros(3, 1, 6, 5)))


def test_models_that_complete_images_are_monitored_too(tmp_path):
    data = random_dataset()
    model = build("cvae", data, condition="quadrants:1", latent_dim=2, hidden_dim=8)
    run = train(
        model, data, out=tmp_path / "run", epochs=1, batch_size=5, progress=False, record=True,
        pictures_every=1, tensorboard=True,
    )  # fmt: skip
    assert (run.pictures / "progress.gif").is_file()


@pytest.fixture(scope="module")
def tensorboard(tmp_path_factory):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    data = dataclasses.replace(random_dataset(), classes=("zero", "one", "two"))
    run = fit(tmp_path_factory.mktemp("tensorboard") / "run", data=data, tensorboard=True)
    events = EventAccumulator(
        str(run.path / "tensorboard"), {"images": 0, "histograms": 0, "scalars": 0}
    )
    return run, data, events.Reload()


def test_tensorboard_has_the_values_of_the_metrics(tensorboard):
    run, _, events = tensorboard
    tags = {
        "validation_elbo": "ELBO/validation",
        "kl": "KL/train",
        "active_units": "latents/active units",
    }
    for key, tag in tags.items():
        points = [(point.step, point.value) for point in events.Scalars(tag)]
        known = [(epoch["epoch"], epoch[key]) for epoch in run.metrics if key in epoch]
        assert np.allclose(points, known)
        assert len(known) >= 2


def test_tensorboard_has_histograms_images_and_the_graph(tensorboard):
    run, _, events = tensorboard
    tags = events.Tags()
    names = {f"parameters/{name}" for name, _ in load(run).named_parameters()}
    assert names <= set(tags["histograms"])
    assert {"latents/z means", "latents/z scales", "KL per dimension/z"} <= set(tags["histograms"])
    assert set(tags["images"]) == {"reconstructions", "samples"}
    assert tags["graph"]
    nodes = {node.name.split("/")[0] for node in events.Graph().node}
    assert "TracedElbo" in nodes


def test_the_projector_has_codes_labels_and_pictures(tensorboard):
    run, data, _ = tensorboard
    folder = run.path / "tensorboard"
    config = (folder / "projector_config.pbtxt").read_text()
    assert "test_z" in config
    (projector,) = folder.glob("*/test_z")
    points = np.loadtxt(projector / "tensors.tsv", delimiter="\t")
    with torch.no_grad():
        q = load(run).posterior["z"]({"x": eval_split(data.test, "dynamic")[:].images, "y": None})
    assert np.allclose(points[:, :2], q.mean.numpy(), atol=1e-4)
    assert (points[:, 2] == 0).all()  # padded to three dimensions
    header, *lines = (projector / "metadata.tsv").read_text().splitlines()
    assert header == "label\tindex"
    names = [data.classes[label] for label in data.test.labels.tolist()]
    assert len(names) == 20
    assert lines == [f"{name}\t{i}" for i, name in enumerate(names)]
    with Image.open(projector / "sprite.png") as sprite:
        first = np.asarray(sprite.convert("L"))[:6, :5] / 255
    x = eval_split(data.test, "dynamic")[:1].images[0, 0].numpy()
    assert np.allclose(first, 1 - x, atol=0.01)  # dark on white


def test_without_tensorboard_no_run_is_created(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(UserError, match=r"tensorboard needs: pip install 'vaekit\[tensorboard\]'"):
        fit(tmp_path / "run", tensorboard=True)
    assert not (tmp_path / "run").exists()


def test_latent_use_is_not_measured_where_the_loss_is_not_finite(tmp_path):
    with pytest.raises(UserError, match="not finite"):
        fit(tmp_path / "run", learning_rate=1e30)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert "active_units" not in json.loads(lines[-1])


def test_of_short_epochs_the_first_the_last_and_some_are_measured(tmp_path, monkeypatch):
    monkeypatch.setattr("vaekit.training.monitor.MIN_STEPS_BETWEEN", 12)  # an epoch has 4
    run = fit(tmp_path / "run", epochs=8)
    assert [epoch["epoch"] for epoch in run.metrics if "active_units" in epoch] == [1, 3, 6, 8]
    from vaekit.gallery.draw import draw

    axes = draw(run, "curves")["curves"].axes
    assert list(axes[3].lines[0].get_xdata()) == [1, 3, 6, 8]
    assert axes[4].get_xlim() == (0.5, 8.5)


def test_the_last_step_of_uneven_epochs_is_recorded(tmp_path):
    run = fit(tmp_path / "run", record=True, batch_size=6)  # 4 steps of 20 images
    assert [int(frame.stem.removeprefix("step-")) for frame in movie_frames(run)] == sorted(
        frame_steps(12)
    )


def test_fixed_samples_are_without_dropout_and_the_same_at_each_call():
    model = build(
        "cvae", random_dataset(), condition="quadrants:1", latent_dim=2, hidden_dim=8, dropout=0.5
    )
    x = torch.rand(3, 1, 6, 5)
    assert torch.equal(fixed_samples(model.train(), 5, x), fixed_samples(model.eval(), 5, x))
    plain = build("vae", (1, 6, 5), latent_dim=2, hidden_dim=8, dropout=0.5)
    assert torch.equal(fixed_samples(plain.train(), 5, x), fixed_samples(plain.eval(), 5, x))


def test_latent_use_is_measured_on_the_saved_weights(tmp_path):
    from vaekit.data.splits import evenly_spaced
    from vaekit.likelihood.latent_use import MAX_IMAGES, measure_latent_use

    data = random_dataset()
    run = fit(tmp_path / "run", data=data, ema=0.9, epochs=2)
    assert run.metrics[-1]["best"]
    sample = eval_split(data.validation.take(evenly_spaced(20, MAX_IMAGES)), "dynamic")
    assert measure_latent_use(load(run), sample).kl_per_dimension["z"] == pytest.approx(
        run.metrics[-1]["kl_per_dimension"]["z"]
    )


@pytest.mark.parametrize("shape", [(1, 12, 3), (2, 4, 4), (3, 5, 9)])
def test_the_projector_takes_images_of_any_shape(tmp_path, shape):
    pytest.importorskip("tensorboard")
    run = fit(
        tmp_path / "run", data=random_dataset(shape, kind="float"), epochs=1, tensorboard=True
    )
    (sprite,) = (run.path / "tensorboard").glob("*/*/sprite.png")
    with Image.open(sprite) as image:
        assert image.width % max(shape[1:]) == 0


def test_every_scalar_has_its_own_tag(tensorboard):
    from vaekit.training.tensorboard import SCALARS

    run, _, events = tensorboard
    for key, tag in SCALARS.items():
        part, _, rest = key.partition("_")
        if part in ("train", "validation"):
            assert tag.lower() == f"{rest.replace('_', '-')}/{part}"
        known = [
            (epoch["epoch"], epoch[key]) for epoch in run.metrics if epoch.get(key) is not None
        ]
        if known:
            assert np.allclose(
                [(p.step, p.value) for p in events.Scalars(tag)], known, rtol=1e-5
            ), key
    assert events.Histograms("latents/z scales")[0].histogram_value.min > 0
    assert events.Histograms("latents/z means")[0].histogram_value.min < 0


def test_the_projectors_indices_are_rows_of_the_test_split(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    monkeypatch.setattr("vaekit.training.monitor.MAX_IMAGES", 3)
    run = fit(tmp_path / "run", epochs=1, tensorboard=True)
    (file,) = (run.path / "tensorboard").glob("*/*/metadata.tsv")
    assert [line.split("\t")[1] for line in file.read_text().splitlines()[1:]] == ["0", "9", "19"]


def test_latent_use_is_measured_on_many_images_and_pictures_show_few(tmp_path, monkeypatch):
    from vaekit.training import monitor

    measured, drawn = [], []
    measure = monitor.measure_latent_use
    monkeypatch.setattr(
        monitor, "measure_latent_use", lambda model, x: measured.append(len(x)) or measure(model, x)
    )
    import vaekit.pictures as pictures

    pairs = pictures.pairs
    monkeypatch.setattr(
        pictures, "pairs", lambda above, below, **k: drawn.append(above) or pairs(above, below, **k)
    )
    data = random_dataset(count=120)
    fit(tmp_path / "run", data=data, epochs=1, pictures_every=1)
    assert measured == [40]
    images = eval_split(data.validation, "dynamic")[:].images
    (above,) = drawn
    assert len(above) == 20
    assert all((image == images).flatten(1).all(1).any() for image in above)


def test_the_sprite_of_grey_images_is_not_inverted(tmp_path):
    pytest.importorskip("tensorboard")
    data = random_dataset(kind="grey")
    run = fit(tmp_path / "run", data=data, epochs=1, tensorboard=True)
    (sprite,) = (run.path / "tensorboard").glob("*/*/sprite.png")
    with Image.open(sprite) as image:
        first = np.asarray(image.convert("L"))[:6, :5]
    assert np.abs(first - data.test.images[0, 0].numpy().astype(int)).max() <= 2


def test_a_training_worse_than_none_is_warned_of_once_with_a_remedy(tmp_path, capsys):
    """At a learning rate of 10 the ELBO is finite, and thousands of nats below that of the initial weights."""
    data = random_dataset()
    model = build("vae", data, latent_dim=2, hidden_dim=8)
    options = {"batch_size": 8, "clip_gradient": 5.0, "progress": True}
    run = train(model, data, out=tmp_path / "a", epochs=3, learning_rate=10.0, **options)
    (text,) = [t for epoch in run.metrics for t in epoch.get("warnings", []) if "diverged" in t]
    assert text.endswith("; try --learning-rate 0.001, or --clip-gradient 0.5")
    assert f"untrained model has about {-30 * math.log(2):.4g}" in text  # 30 pixels of one bit
    assert python_names(text) in capsys.readouterr().err
    resumed = resume(run, data, epochs=5, progress=False)
    assert sum("diverged" in t for epoch in resumed.metrics for t in epoch.get("warnings", [])) == 1


@pytest.mark.parametrize(
    ("likelihood", "expected"),
    [
        ("bernoulli", -30 * math.log(2)),
        ("categorical", -30 * math.log(256)),
        ("continuous-bernoulli", 0.0),
        ("gaussian", -30 * (math.log(0.25) + 0.5 * math.log(2 * math.pi) + 0.5 * (0.5 / 0.25) ** 2)),
    ],
)  # fmt: skip
def test_what_an_untrained_model_knows_of_black_images(likelihood, expected):
    model = build("vae", (1, 6, 5), likelihood=likelihood, latent_dim=2, hidden_dim=8)
    found = untrained_log_likelihood(model, torch.zeros(3, 1, 6, 5))
    assert found == pytest.approx(expected, abs=1e-4)


def test_a_large_kl_is_no_divergence_where_the_objective_does_not_weigh_it(tmp_path):
    """At beta 0 the codes may lie far from the prior; with it weighed, the same ELBO is worse than no training."""
    data = random_dataset()
    model = build("vae", data, latent_dim=2, hidden_dim=8)
    with torch.no_grad():
        model.posterior["z"].network.head.last.bias[:2] = 30.0  # a KL of about 900 nats
    for beta, warned in ((0.0, False), (1.0, True)):
        out = tmp_path / str(beta)
        options = {"epochs": 1, "learning_rate": 1e-6, "progress": False}
        run = train(model, data, objective=elbo(beta), out=out, **options)
        assert any("diverged" in t for t in run.metrics[0]["warnings"]) == warned
