"""Comparison curves: means and bands over seeds, names by differing settings, errors for incomparable runs."""

import dataclasses

import numpy as np
import pytest

from conftest import random_dataset
from vaekit import Run, UserError, build, train
from vaekit.studies.curves import compare, group_by_settings


def fit(out, model="vae", data=None, seed=0, epochs=3, **settings):
    data = data or random_dataset()
    sizes = {"latent_dim": 2, "hidden_dim": 8, **settings}
    return train(
        build(model, data, seed=seed, **sizes), data, out=out, epochs=epochs, batch_size=5, seed=seed, progress=False
    )  # fmt: skip


def test_seeds_are_one_line_with_their_mean_and_band(tmp_path):
    runs = [fit(tmp_path / str(seed), seed=seed) for seed in range(3)]
    figure = compare(runs)
    values = np.array([[e["validation_elbo"] for e in run.metrics] for run in runs])
    left, right = figure.axes
    (line,) = left.lines
    assert np.allclose(line.get_ydata(), values.mean(0))
    assert list(line.get_xdata()) == [1, 2, 3]
    (band,) = left.collections
    heights = band.get_paths()[0].vertices[:, 1]
    sd = values.std(0, ddof=1)
    assert heights.max() == pytest.approx((values.mean(0) + sd).max())
    assert heights.min() == pytest.approx((values.mean(0) - sd).min())
    assert list(right.lines[0].get_xdata()) == [20, 40, 60]
    assert right.get_xscale() == "log"
    assert figure.legends[0].get_texts()[0].get_text() == "vae (3 runs)"


def test_training_curves_are_solid_and_validation_curves_dashed(tmp_path):
    runs = [fit(tmp_path / "a"), fit(tmp_path / "b", seed=1), fit(tmp_path / "c", latent_dim=3)]
    figure = compare(runs, training_curves=True)
    train, validation, other_train, other_validation = figure.axes[0].lines
    assert [line.get_linestyle() for line in figure.axes[0].lines] == ["-", "--"] * 2
    assert train.get_color() == validation.get_color() != other_train.get_color()
    keys = ("train_elbo", "validation_elbo")
    values = {key: np.array([[e[key] for e in run.metrics] for run in runs]) for key in keys}
    assert np.allclose(train.get_ydata(), values["train_elbo"][:2].mean(0))
    assert np.allclose(validation.get_ydata(), values["validation_elbo"][:2].mean(0))
    assert np.allclose(other_train.get_ydata(), values["train_elbo"][2])
    assert np.allclose(other_validation.get_ydata(), values["validation_elbo"][2])
    assert len(figure.legends[0].get_texts()) == 2


def test_names_give_the_settings_that_differ(tmp_path):
    runs = [
        fit(tmp_path / "a"),
        fit(tmp_path / "b", seed=1),
        fit(tmp_path / "c", latent_dim=3),
        fit(tmp_path / "d", "hvae", top_dim=2),
    ]
    groups = group_by_settings(runs)
    assert {name: len(group) for name, group in groups.items()} == {
        "vae: latent dim 2": 2,
        "vae: latent dim 3": 1,
        "hvae: latent dim 2, top dim 2": 1,
    }


def test_groups_with_too_long_names_are_named_by_folder(tmp_path):
    other = {
        "encoder": "8:tanh 8:tanh",
        "decoder": "8:tanh 8:tanh",
        "activation": "tanh",
        "dropout": 0.125,
    }
    runs = [fit(tmp_path / "plain"), fit(tmp_path / "long", **other, hidden_dim=500)]
    assert list(group_by_settings(runs)) == [f"vae ({run})" for run in runs]


def test_a_mean_is_as_long_as_the_shortest_run(tmp_path):
    runs = [fit(tmp_path / "a"), fit(tmp_path / "b", seed=1)]
    path = runs[1].path / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    assert len(compare([runs[0], Run(runs[1].path)]).axes[0].lines[0].get_xdata()) == 2


def test_incomparable_likelihoods_are_refused(tmp_path):
    data = random_dataset()
    grey = random_dataset(kind="grey")
    first = fit(tmp_path / "a")
    for name, other, message in [
        (
            "b",
            fit(tmp_path / "b", data=dataclasses.replace(grey, name="grey")),
            "the data set of one is grey",
        ),
        (
            "c",
            fit(tmp_path / "c", likelihood="continuous-bernoulli"),
            "the binarisation of one is none",
        ),
    ]:
        with pytest.raises(UserError, match=f"{name} and .* cannot be compared: {message}"):
            compare([first, other])
    gaussian = fit(tmp_path / "d", data=grey, likelihood="gaussian")
    logistic = fit(tmp_path / "e", data=grey, likelihood="logistic")
    with pytest.raises(UserError, match="the likelihood of one is logistic, of the other gaussian"):
        compare([gaussian, logistic])
    with pytest.raises(UserError, match="there are no runs"):
        compare([])
    assert data.name == "random"


def test_a_run_without_an_elbo_is_not_compared(tmp_path):
    with pytest.raises(UserError, match="has no ELBO to compare"):
        compare([fit(tmp_path / "a", "mmdvae", posterior="deterministic")])


def test_a_repeated_run_counts_once_and_init_is_a_setting(tmp_path):
    first = fit(tmp_path / "a")
    assert (
        len(compare([first, tmp_path / "a", str(tmp_path / "a" / ".." / "a")]).axes[0].lines) == 1
    )
    data = random_dataset()
    other = train(
        build("vae", data, latent_dim=2, hidden_dim=8), data, out=tmp_path / "c", epochs=3, batch_size=5,
        init=first, progress=False,
    )  # fmt: skip
    assert len(group_by_settings([first, other])) == 2


def test_samples_seen_are_training_images(tmp_path):
    data = random_dataset()
    data = dataclasses.replace(data, test=data.test[:7], validation=data.validation[:9])
    assert list(compare([fit(tmp_path / "a", data=data)]).axes[1].lines[0].get_xdata()) == [
        20,
        40,
        60,
    ]


def test_other_images_under_the_same_name_are_not_compared(tmp_path):
    data = random_dataset()
    other = dataclasses.replace(data, train=data.test, test=data.train)
    with pytest.raises(UserError, match="the data set of one is random"):
        compare([fit(tmp_path / "a", data=data), fit(tmp_path / "b", data=other)])


def test_other_conditions_are_not_compared(tmp_path):
    runs = [
        fit(tmp_path / c[-1], "cvae", condition=c) for c in ("label", "quadrants:1", "quadrants:3")
    ]
    for first, second in ((0, 1), (1, 2)):
        with pytest.raises(UserError, match="the condition of one is quadrants"):
            compare([runs[first], runs[second]])
    with pytest.raises(UserError, match="the condition of one is label, of the other none"):
        compare([fit(tmp_path / "plain"), runs[0]])


def test_the_device_is_not_a_setting(tmp_path):
    first, second = fit(tmp_path / "a"), fit(tmp_path / "b", seed=1)
    config = (second.path / "config.json").read_text()
    (second.path / "config.json").write_text(
        config.replace('"device": "auto"', '"device": "cuda:1"')
    )
    assert list(group_by_settings([first, Run(second.path)])) == ["vae"]


def test_model_specific_settings_are_not_in_names(tmp_path):
    runs = [fit(tmp_path / "a"), fit(tmp_path / "b", "mixturevae")]
    assert list(group_by_settings(runs)) == ["vae", "mixturevae"]
