"""Plotting functions: the arrays drawn. No display is needed."""

import numpy as np
import pytest
import torch
from PIL import Image

from vaekit import UserError
from vaekit.inference.generation import decode_point, generate, reconstruct
from vaekit.pictures import (
    Movie,
    Panel,
    cluster_bars,
    comparison,
    confusion,
    contact_sheet,
    curves,
    heat_maps,
    image_grid,
    pairs,
    samples_seen,
    save,
    scatter,
    scatter_3d,
)
from vaekit.pictures.grids import GAP
from vaekit.runs.load import load


def canvas(figure):
    return figure.axes[0].images[0].get_array()


def test_a_contact_sheet_has_rows_of_ten_and_a_name_below_each_image():
    figure = contact_sheet(torch.rand(13, 1, 4, 4), [f"image {i}" for i in range(13)])
    rows, columns = figure.axes[0].get_subplotspec().get_gridspec().get_geometry()
    assert (rows, columns) == (2, 10)
    assert [axes.texts[0].get_text() for axes in figure.axes[:13]] == [
        f"image {i}" for i in range(13)
    ]
    assert sum(len(axes.images) for axes in figure.axes) == 13
    few = contact_sheet(torch.rand(3, 1, 4, 4), ["a", "b", "c"])
    assert few.axes[0].get_subplotspec().get_gridspec().get_geometry() == (1, 3)


def test_a_contact_sheet_shows_wide_and_large_images_and_all_of_its_title():
    wide = contact_sheet(torch.rand(8, 1, 20, 140), [""] * 8)
    assert wide.axes[0].get_subplotspec().get_gridspec().get_geometry() == (4, 2)
    assert [axes.images[0].get_interpolation() for axes in wide.axes] == ["nearest"] * 8
    large = contact_sheet(torch.rand(2, 3, 300, 300), ["", ""])
    assert large.axes[0].images[0].get_interpolation() == "antialiased"
    one = contact_sheet(torch.rand(1, 20, 5, 4), [""])
    one.canvas.draw()
    title = one._suptitle.get_window_extent()
    assert "of 20 bands" in one.get_suptitle()
    assert title.x0 >= 0
    assert title.x1 <= one.bbox.width


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_draws_each_image_in_its_place(channels):
    images = torch.rand(5, channels, 4, 6)
    drawn = canvas(image_grid(images, columns=3))
    assert drawn.shape == (2 * 4 + GAP, 3 * 6 + 2 * GAP, 3)
    for i, image in enumerate(images):
        top, left = i // 3 * (4 + GAP), i % 3 * (6 + GAP)
        found = np.moveaxis(drawn[top : top + 4, left : left + 6], -1, 0)
        assert np.allclose(found, image.expand(3, 4, 6), atol=1e-7)
    assert (drawn[4 + GAP :, 2 * (6 + GAP) :] == 1).all()  # no sixth image


def test_pairs_are_framed_inputs_above_reconstructions():
    inputs, outputs = torch.zeros(3, 1, 4, 4), torch.full((3, 1, 4, 4), 0.5)
    figure = pairs(inputs, outputs, columns=2)
    drawn = canvas(figure)
    rows = [drawn[GAP + row * (4 + GAP), GAP, 0] for row in range(4)]
    assert rows == [0, 0.5, 0, 0.5]
    assert [text.get_text() for text in figure.axes[0].texts] == ["input", "reconstruction"] * 2
    # A frame of another colour around each input, none around a reconstruction or an empty position.
    frames = [drawn[GAP + row * (4 + GAP) - 1, GAP + 1] for row in range(4)]
    assert [bool(np.ptp(frame)) for frame in frames] == [True, False, True, False]
    assert not np.ptp(drawn[GAP + 2 * (4 + GAP) - 1, GAP + 4 + GAP])


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_heat_maps_are_below_input_and_reconstruction_and_share_one_scale(channels):
    inputs, reconstructions = torch.rand(2, 3, channels, 4, 6)
    maps = torch.stack([torch.zeros(4, 6), torch.full((4, 6), 0.5), torch.ones(4, 6)])
    figure = heat_maps(inputs, reconstructions, maps, columns=2)
    drawn = canvas(figure)
    assert drawn.shape[:2] == (6 * (4 + GAP) - GAP, 2 * (6 + GAP) - GAP)
    assert [text.get_text() for text in figure.axes[0].texts] == [
        *["input", "reconstruction", "odd pixels"] * 2
    ]
    if channels == 3:
        assert np.allclose(drawn[:4, :6], inputs[0].permute(1, 2, 0), atol=1e-6)
    row = 2 * (4 + GAP)
    black, middle, bright = drawn[row, 0], drawn[row, 6 + GAP], drawn[row + 3 * (4 + GAP), 0]
    assert black.sum() < 0.1 < middle.sum() < bright.sum()
    assert (drawn[:4, :6] < 1).any()
    assert (drawn[-4:, 6 + GAP :] == 1).all()  # no fourth image


def test_names_are_at_their_rows_and_columns_and_not_cut():
    figure = image_grid(
        torch.rand(6, 1, 8, 8), 3, ["first row", "second"], ["a", "", "c"], title="a title, longer than the images"
    )  # fmt: skip
    axes = figure.axes[0]
    positions = {text.get_text(): text.get_position() for text in axes.texts}
    assert positions["first row"][1] == 4
    assert positions["second"][1] == 4 + 8 + GAP
    assert positions["a"][0] == 4
    assert positions["c"][0] == 4 + 2 * (8 + GAP)
    figure.draw_without_rendering()
    for text in [*axes.texts, *figure.texts]:
        box = text.get_window_extent()
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= figure.bbox.width
        assert box.y1 <= figure.bbox.height


def test_inverted_images_show_black_as_white():
    images = torch.rand(2, 1, 4, 4)
    assert np.allclose(canvas(image_grid(images, 2, invert=True))[:, :4, 0], 1 - images[0, 0])


@pytest.mark.parametrize(
    ("side", "count", "columns"), [(28, 4, 2), (1, 4, 2), (128, 9, 3), (600, 9, 3), (28, 900, 30)]
)
def test_grids_fit_a_screen(side, count, columns):
    width, height = image_grid(torch.zeros(count, 1, side, side), columns).get_size_inches() * 100
    assert 50 <= width <= max(1600, side * columns)
    assert width == pytest.approx(height, abs=2)


def test_many_classes_get_other_markers_and_the_rarest_are_grouped():
    from vaekit.pictures.scatters import group_points

    for classes in (2, 10, 20):
        groups = group_points(200, np.arange(200) % classes, None)
        assert len({(group.colour, group.marker) for group in groups}) == classes
        assert all(group.mask.sum() == 200 // classes for group in groups)
    labels = np.concatenate([np.repeat(np.arange(10), 10), np.arange(10, 101)])
    other, *named = group_points(len(labels), labels, [f"class {i}" for i in range(101)])
    assert other.name == "91 other classes"
    assert other.mask.sum() == 91
    assert [group.name for group in named] == [f"class {i}" for i in range(10)]


def test_a_class_named_like_a_formula_is_drawn():
    panel = Panel(np.random.default_rng(0).normal(size=(30, 2)), "$a_{b$", ("$x", "y"))
    figure = scatter([panel], np.arange(30) % 2, ["$\\frac$", "cats"], "50 $ and % {")
    figure.draw_without_rendering()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["\\$\\frac\\$", "cats"]


def test_curves_draw_the_metrics():
    keys = ["train_elbo", "validation_elbo", "train_log_likelihood", "validation_log_likelihood"]
    metrics = [
        {"epoch": n, "kl": n, "validation_kl": 2 * n, **dict.fromkeys(keys, -n)} for n in (1, 2, 3)
    ]
    figure = curves(metrics)
    assert len(figure.axes) == 3
    lines = figure.axes[2].lines
    assert list(lines[0].get_ydata()) == [1, 2, 3]
    assert list(lines[1].get_ydata()) == [2, 4, 6]


def test_unknown_endings_and_bad_paths_are_refused(tmp_path):
    figure = image_grid(torch.rand(1, 1, 4, 4), 1)
    for name in ("a.png", "a.pdf", "a.svg"):
        assert save(figure, tmp_path / name).stat().st_size > 0
    with pytest.raises(UserError, match=r"cannot write .*a\.xyz"):
        save(figure, tmp_path / "a.xyz")
    (tmp_path / "folder.png").mkdir()
    for name in ("noext", "folder.png"):
        with pytest.raises(UserError, match="name a file such as"):
            save(figure, tmp_path / name)
    with pytest.raises(UserError, match="its folder does not exist"):
        save(figure, tmp_path / "nowhere" / "a.png")


def test_generated_images_come_from_the_prior_and_the_seed(small_run):
    model = load(small_run)
    torch.manual_seed(7)
    first = generate(model, count=3, seed=1)
    assert torch.equal(first, generate(model, count=3, seed=1))
    assert not torch.equal(first, generate(model, count=3, seed=2))
    cold = generate(model, count=2, temperature=0.0)
    assert torch.allclose(cold[0], decode_point(model, "0,0,0")[0], atol=1e-6)
    for bad in ("count is 0", 0), ("temperature is nan", float("nan")):
        with pytest.raises(UserError, match=bad[0]):
            generate(model, **({"count": 0} if bad[1] == 0 else {"temperature": bad[1]}))


def test_a_point_is_decoded(small_run):
    model = load(small_run)
    image = decode_point(model, "0.5,-1,2e-1")
    with torch.no_grad():
        expected = torch.sigmoid(model.decoder.network(torch.tensor([[0.5, -1.0, 0.2]])))
    assert torch.allclose(image, expected)
    for text, message in [("1,2", "has 2 numbers"), ("1,x,3", "not a list"), ("1,nan,3", "finite")]:
        with pytest.raises(UserError, match=message):
            decode_point(model, text)


def test_reconstructions_are_decoded_posterior_means(small_run):
    model, x = load(small_run), torch.rand(2, 1, 28, 28)
    with torch.no_grad():
        mean = model.posterior["z"]({"x": x, "y": None}).mean
        expected = torch.sigmoid(model.decoder.network(mean))
    assert torch.allclose(reconstruct(model, x), expected)


def test_the_cells_of_a_confusion_are_at_cluster_and_label():
    axes = confusion(np.array([[5, 0, 1], [0, 2, 2]]), ["a", "b", "c"]).axes[0]
    found = {text.get_position(): text.get_text() for text in axes.texts}
    assert found == {(0, 0): "5", (2, 0): "1", (1, 1): "2", (2, 1): "2"}
    assert np.allclose(axes.images[0].get_array(), [[5 / 6, 0, 1 / 6], [0, 0.5, 0.5]])
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("label", "cluster")


def test_cluster_bars_are_beside_input_and_reconstruction():
    figure = cluster_bars(
        torch.zeros(2, 1, 4, 4), torch.ones(2, 1, 4, 4), np.array([[0.1, 0.9], [0.8, 0.2]])
    )
    assert figure.axes[0].images[0].get_array().max() == 0
    assert figure.axes[1].images[0].get_array().min() == 1
    assert [bar.get_height() for bar in figure.axes[2].patches] == [0.1, 0.9]


def test_the_best_epoch_is_marked_and_dimensions_are_named():
    metrics = [
        {
            "epoch": n, "best": n < 4, "train_elbo": -n, "validation_elbo": -2 * n, "active_units": 1,
            "latent_units": 2, "kl_per_dimension": {"z": [1.0, n]},
        }
        for n in range(1, 6)
    ]  # fmt: skip
    figure = curves(metrics)
    assert list(figure.axes[0].lines[2].get_xdata()) == [3, 3]
    assert [label.get_text() for label in figure.axes[4].get_yticklabels()] == ["z[1]", "z[0]"]
    lines = samples_seen(metrics, 10).axes[0].lines
    assert list(lines[0].get_ydata()) == [-1, -2, -3, -4, -5]
    assert list(lines[1].get_ydata()) == [-2, -4, -6, -8, -10]


def test_one_epoch_is_visible_and_its_axis_has_integers():
    metrics = [{"epoch": 1, "train_elbo": -3.0, "validation_elbo": -2.0}]
    for figure in (curves(metrics), comparison({"a": [(metrics, 10)]})):
        assert figure.axes[0].lines[0].get_marker() == "."
        figure.draw_without_rendering()
        assert all(tick == int(tick) for tick in figure.axes[0].get_xticks())


def test_column_names_that_are_too_wide_are_rotated():
    images = torch.rand(4, 1, 8, 8)
    for names, angle in (
        (["a", "b", "c", "d"], 0),
        (["a", "very long name, longer than its image", "c", "d"], 90),
    ):
        figure = image_grid(images, 4, column_names=names)
        figure.draw_without_rendering()
        assert {text.get_rotation() for text in figure.axes[0].texts} == {angle}
        assert all(
            text.get_window_extent().y1 <= figure.bbox.height for text in figure.axes[0].texts
        )


def test_characters_missing_from_the_font_do_not_warn(tmp_path):
    panel = Panel(np.random.default_rng(0).normal(size=(30, 2)))
    figure = scatter([panel], np.arange(30) % 2, ["\u65e5\u672c\u8a9e", "cats"])
    save(figure, tmp_path / "a.png")


def test_crowded_class_names_are_left_out():
    points = np.random.default_rng(0).normal(size=(300, 2))
    crowded = scatter([Panel(points)], np.arange(300) % 10)
    assert len(crowded.axes[0].texts) < 10
    apart = points + 50 * np.stack([np.arange(300) % 10, np.zeros(300)], axis=1)
    assert len(scatter([Panel(apart)], np.arange(300) % 10).axes[0].texts) == 10


def test_3d_points_have_the_colours_of_their_classes():
    points = np.random.default_rng(0).normal(size=(30, 3))
    axes = scatter_3d(points, np.arange(30) % 3, azimuth=20, name="w").axes[0]
    assert len(axes.collections) == 3
    assert axes.azim == 20
    assert axes.get_zlabel() == "w[2]"


def test_frames_of_a_movie_have_one_size(tmp_path):
    frames = [image_grid(torch.zeros(1, 1, 40, 4), 1, title="x" * n) for n in (1, 30)]
    path = save(Movie(frames, 0.1, hold=0.5), tmp_path / "a.gif")
    with Image.open(path) as movie:
        assert movie.n_frames == 2
        assert movie.width >= 100
        movie.seek(1)
        assert movie.info["duration"] == 600
