"""Pictures and the report of a deep hierarchy, from what its run stores, without its data set."""

import json

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from conftest import random_dataset, small_settings
from vaekit import build, load, train
from vaekit.gallery.context import PictureContext
from vaekit.gallery.draw import draw
from vaekit.gallery.latents import informative_latents
from vaekit.gallery.report import report
from vaekit.inference.generation import reconstruct
from vaekit.pictures.charts import latent_bars
from vaekit.settings.analysis import PlotConfig


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Trained with what draws during a training; codes are stored of all groups but the last."""
    data = random_dataset(shape=(1, 8, 8))
    settings = small_settings("deepvae", groups="1x2:3 2x1:4 4x1:80", condition="label")
    model = build("deepvae", data, **settings)
    return train(
        model, data, out=tmp_path_factory.mktemp("runs") / "deep", epochs=2, batch_size=20, progress=False,
        record=True, tensorboard=True, pictures_every=1, ema=0.9, skip_spikes=10.0,
    )  # fmt: skip


@pytest.fixture
def context(run):
    return PictureContext.of(run, PlotConfig(grid=3))


def test_groups_are_drawn_by_their_number_with_their_nats(run):
    figures = draw(run, "groups", grid=2)
    assert {*figures} == {"groups", "groups-kl"}
    assert all(figure.axes for figure in figures.values())


@pytest.mark.long
def test_every_picture_is_drawn(run):
    figures = draw(run, grid=2, projection="pca")
    expected = {
        "curves",
        "groups",
        "groups-kl",
        "manifold",
        "traversals",
        "interpolations",
        "samples",
    }
    assert expected | {"analogies", "progress", "latents-z1_0"} <= {*figures}
    assert "latents-z4_0" not in figures
    assert all(figure.axes for figure in figures.values() if isinstance(figure, Figure))


@pytest.mark.long
def test_the_report_has_them(run):
    page = report(run).read_text()
    assert "z1_0" in page
    assert page.count("data:image/webp") > 10


def test_an_epoch_and_the_picture_data_stay_small(run):
    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    assert max(map(len, lines)) < 2000
    assert [*json.loads(lines[-1])["kl_per_latent"]] == ["z1_0", "z1_1", "z2_0", "z4_0"]
    assert (run.path / "picture_data.safetensors").stat().st_size < 100_000


@torch.no_grad()
def test_codes_of_all_groups_follow_from_the_images(context, run):
    rows = context.start_rows(4)
    codes, stored = context.codes(rows), context.picture_data.codes
    assert [*codes] == ["z1_0", "z1_1", "z2_0", "z4_0"]
    for name, each in stored.items():
        at = context.picture_data.positions(rows)
        assert torch.allclose(codes[name], each[at], atol=1e-5)
    labels = context.labels(rows)
    images = context.model.decode(labels, **codes).mean
    assert torch.allclose(images, reconstruct(load(run), context.images(rows), labels), atol=1e-5)


def test_the_most_informative_groups_are_traversed(context):
    for name, nats in (("z1_0", 0.0), ("z1_1", 5.0), ("z2_0", 9.0)):
        kl = context.picture_data.kl[name]
        kl.fill_(nats / len(kl))
    assert informative_latents(context, 4) == ["z1_1", "z2_0"]  # z1_0 has under a hundredth
    assert informative_latents(context, 1) == ["z2_0"]


def test_bars_have_one_colour_for_a_resolution_and_their_nats():
    figure = latent_bars({"z4_0": 1.0, "z4_1": 2.5, "z8_0": 4.0})
    bars = figure.axes[0].patches
    assert [bar.get_height() for bar in bars] == [1.0, 2.5, 4.0]
    colours = [bar.get_facecolor() for bar in bars]
    assert colours[0] == colours[1] != colours[2]
    assert [np.round(bar.get_x() + bar.get_width() / 2) for bar in bars] == [0, 1, 2]
    texts = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert texts == ["z4: 3.5 nats", "z8: 4.0 nats"]
