"""Pictures of runs: the arrays drawn, for every model, without a display and without the data set."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from scipy.stats import norm

from conftest import random_dataset
from model_cases import CASES
from vaekit import Run, UserError, build, load, train
from vaekit.data import eval_split
from vaekit.data.splits import balanced_rows, evenly_spaced
from vaekit.gallery import latents as latent_pictures
from vaekit.gallery.catalog import PICTURES
from vaekit.gallery.context import PictureContext
from vaekit.gallery.draw import draw
from vaekit.inference.generation import analogies, completions, generate, reconstruct
from vaekit.inference.latent_space import decode_latents, principal_axes
from vaekit.inference.picture_data import load_or_create
from vaekit.pictures import Movie, save
from vaekit.pictures.grids import GAP
from vaekit.runs.load import load_trained
from vaekit.settings.analysis import PlotConfig

H, W = 6, 5
DIMS = {"vae": 2, "convvae": 1, "hvae": 1, "cvae": 3, "gmvae": 4, "vampprior": 2}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of each case, trained for two epochs; its data set is not stored anywhere."""
    trained = {}

    def get(case):
        if case not in trained:
            data = random_dataset()
            model, extra = CASES[case]
            sizes = {"latent_dim": DIMS.get(case, 4), "hidden_dim": 8, "channels": 4}
            sizes |= {"top_dim": 1} if case == "hvae" else {}
            extra = {k: v for k, v in extra.items() if k != "pseudo_inputs"}
            extra |= {"components": 5} if "vamp" in case else {}
            extra |= {"start_epochs": 1, "clusters": 3} if "gmvae" in case else {}
            trained[case] = train(
                build(model, data, **sizes, **extra), data, out=tmp_path_factory.mktemp("runs") / "run",
                epochs=2, batch_size=10, progress=False, record=True,
            )  # fmt: skip
        return trained[case]

    return get


@pytest.fixture(autouse=True)
def few_frames(monkeypatch):
    monkeypatch.setattr(latent_pictures, "ROTATION_FRAMES", 2)
    monkeypatch.setattr(latent_pictures, "SLICE_FRAMES", 9)
    monkeypatch.delenv("DISPLAY", raising=False)


def tiles(figure, columns, inverted=False, framed=False, height=H, width=W):
    """The images of a grid figure (N, height, width), first channel."""
    drawn = np.asarray(figure.axes[0].images[0].get_array())[..., 0]
    drawn = drawn[GAP:-GAP, GAP:-GAP] if framed else drawn
    rows = (drawn.shape[0] + GAP) // (height + GAP)
    images = [
        drawn[
            r * (height + GAP) : r * (height + GAP) + height,
            c * (width + GAP) : c * (width + GAP) + width,
        ]
        for r in range(rows)
        for c in range(columns)
    ]
    images = torch.from_numpy(np.stack(images)).float()
    return 1 - images if inverted else images


# One of each kind; the others draw the same kinds of pictures.
KINDS = ["vae", "cvae", "gmvae", "deterministic mmdvae"]
OTHERS = ["quadrants", "hvampprior", "hvae", "convvae", "vampprior", "learned-mixture"]


@pytest.mark.parametrize(
    "case", [*KINDS, *(pytest.param(case, marks=pytest.mark.long) for case in OTHERS)]
)
def test_every_picture_that_applies_is_drawn_and_written(case, runs, tmp_path):
    run = runs(case)
    figures = draw(run, grid=4)
    always = {"curves", "reconstructions", "reconstructions-train", "samples", "progress"}
    assert always <= set(figures)
    if case == "quadrants":
        assert not {"manifold", "traversals", "interpolations", "analogies"} & set(figures)
    else:
        assert {"manifold", "traversals", "interpolations"} <= set(figures)
    assert {f"latents-{name}" for name in load(run).prior} <= set(figures)
    assert ("analogies" in figures) == (case == "cvae")
    assert ("pseudo-inputs" in figures) == ("vamp" in case)
    assert ("confusion" in figures) == (
        case in ("gmvae", "vampprior", "hvampprior", "learned-mixture")
    )
    assert ("latents-both" in figures) == (case == "hvae")
    assert ("curves-samples" in figures) == (case != "deterministic mmdvae")
    for name, picture in figures.items():
        assert isinstance(picture, Figure | Movie)
        path = save(picture, tmp_path / (name + (".gif" if isinstance(picture, Movie) else ".png")))
        with Image.open(path) as image:
            assert min(image.size) > 50, name
            assert len(np.unique(np.asarray(image.convert("L")))) > 2, name
            if isinstance(picture, Movie):
                assert image.n_frames == len(picture.frames)


def test_points_are_the_encoded_means(runs):
    run = runs("vae")
    figure = draw(run, "latents")["latents-z"]
    (axes,) = figure.axes
    drawn = np.concatenate(
        [c.get_offsets() for c in axes.collections if len(c.get_offsets()) == 20]
    )
    data = random_dataset()
    with torch.no_grad():
        q = load(run).posterior["z"]({"x": eval_split(data.test, "dynamic")[:].images, "y": None})
    assert np.allclose(sorted(map(tuple, drawn)), sorted(map(tuple, q.mean.numpy())), atol=1e-5)
    # Each point has the colour of its class.
    colours = axes.collections[0].get_facecolors()[:, :3]
    labels = {}
    for point, colour in zip(drawn, colours, strict=True):
        row = int(np.abs(q.mean.numpy() - point).sum(1).argmin())
        labels.setdefault(int(data.test.labels[row]), set()).add(tuple(np.round(colour, 3)))
    assert all(len(found) == 1 for found in labels.values())
    assert len({found.pop() for found in labels.values()}) == len(labels) == 3
    assert [text.get_text() for text in figure.legends[0].get_texts()][:3] == ["0", "1", "2"]
    assert axes.get_xlabel() == "z[0]"
    assert axes.get_ylabel() == "z[1]"


def test_three_dimensions_are_three_planes_and_a_rotation(runs):
    run = runs("cvae")
    found = draw(run, "latents")
    codes = load_or_create(run, load_trained(run)).codes["z"].numpy()
    panels = found["latents-z"].axes
    for axes, (i, j) in zip(panels, ((0, 1), (0, 2), (1, 2)), strict=True):
        drawn = axes.collections[0].get_offsets()
        assert np.allclose(
            sorted(map(tuple, drawn)), sorted(map(tuple, codes[:, [i, j]])), atol=1e-6
        )
    assert [frame.axes[0].azim for frame in found["latents-z-turning"].frames] == [0, 180]


def test_projections_are_of_the_codes(runs):
    run = runs("gmvae")
    for projection, count in (("auto", 2), ("pca", 1), ("tsne", 1)):
        figure = draw(run, "latents", projection=projection)["latents-z"]
        assert len(figure.axes) == count
    axes = draw(run, "latents", projection="pca")["latents-z"].axes[0]
    codes = load_or_create(run, load_trained(run)).codes["z"].numpy()
    centred = codes - codes.mean(0)
    drawn = np.asarray(axes.collections[0].get_offsets())
    first = np.linalg.eigh(np.cov(centred.T))[1][:, -1]
    assert np.allclose(sorted(np.abs(drawn[:, 0])), sorted(np.abs(centred @ first)), atol=1e-4)


def test_prior_contours_enclose_their_masses(runs):
    """The contours of N(0, I) are circles with radius sqrt(-2 log(1 - mass)), from 5,000 samples within 0.25."""
    axes = draw(runs("vae"), "latents")["latents-z"].axes[0]
    (contours,) = (c for c in axes.collections if hasattr(c, "levels"))
    assert len(contours.levels) == 3
    axes_limits = np.array([axes.get_xlim(), axes.get_ylim()])
    assert (axes_limits[:, 0] < -3).all()
    for path, mass in zip(contours.get_paths(), (0.99, 0.9, 0.5), strict=True):
        radii = np.linalg.norm(path.vertices, axis=1)
        assert abs(np.median(radii) - np.sqrt(-2 * np.log(1 - mass))) < 0.25


def test_the_diamonds_are_the_components_of_a_vampprior(runs):
    run = runs("vampprior")
    axes = draw(run, "latents")["latents-z"].axes[0]
    model = load(run)
    with torch.no_grad():
        loc = model.prior["z"]({"x": None, "y": None}).loc
    marks = axes.collections[-1].get_offsets()
    assert np.allclose(marks, loc.numpy(), atol=1e-5)


def test_each_corner_of_the_manifold_is_its_latent_decoded(runs):
    run = runs("vae")
    model = load(run)
    found = tiles(draw(run, "manifold", grid=4)["manifold"], 4, inverted=True)
    edge = float(norm.ppf(0.875))
    for tile, z in (
        (0, (-edge, edge)),
        (3, (edge, edge)),
        (12, (-edge, -edge)),
        (15, (edge, -edge)),
    ):
        with torch.no_grad():
            image = model.decode(z=torch.tensor([z])).mean[0, 0]
        assert torch.allclose(found[tile], image, atol=1e-5)
    linear = tiles(draw(run, "manifold", grid=3, range=2.0, invert="no")["manifold"], 3)
    with torch.no_grad():
        image = model.decode(z=torch.tensor([[0.0, 2.0]])).mean[0, 0]
    assert torch.allclose(linear[1], image, atol=1e-5)


def test_the_manifold_of_another_prior_is_at_its_quantiles(runs):
    run = runs("vampprior")
    context = PictureContext.of(run, PlotConfig(grid=4))
    prior = context.prior("z")
    found = latent_pictures.grid_values(context, "z", prior, 0, 4)
    draws = prior.sample(50_000, seed=9)[:, 0]
    below = [(draws < x).float().mean() for x in found]
    assert np.allclose(below, [0.125, 0.375, 0.625, 0.875], atol=0.03)


def test_slices_of_a_latent_of_three_dimensions(runs):
    run = runs("cvae")
    found = draw(run, "manifold", grid=4, label=2)
    model = load(run)
    depths = norm.ppf((np.arange(9) + 0.5) / 9)
    assert len(found["manifold-slices"].frames) == 9
    last = tiles(found["manifold-slices"].frames[-1], 4, inverted=True)
    edge = float(norm.ppf(0.875))
    with torch.no_grad():
        z = torch.tensor([[edge, edge, float(depths[-1])]])
        image = model.decode(torch.tensor([2]), z=z).mean[0, 0]
    assert torch.allclose(last[3], image, atol=1e-5)
    # The figure: five slices of 4 x 4 with a white column between; the first at the third depth.
    grid = tiles(found["manifold"], 5 * 5 - 1, inverted=True)
    with torch.no_grad():
        z = torch.tensor([[-edge, edge, float(depths[2])]])
        image = model.decode(torch.tensor([2]), z=z).mean[0, 0]
    assert torch.allclose(grid[0], image, atol=1e-5)


def test_the_plane_goes_through_the_three_images(runs):
    run = runs("gmvae")
    chosen = (7, 3, 12)
    figure = draw(run, "manifold", grid=7, images=chosen)["manifold"]
    found = tiles(figure, 7, inverted=True, framed=True)
    # 7 images per side: 4 steps from image to image, one before and one after.
    before, span = (7 - 1 - 4) // 2, 4
    positions = [
        (6 - before - j * span) * 7 + before + i * span for i, j in ((0, 0), (1, 0), (0, 1))
    ]
    model, x = load(run), eval_split(random_dataset().test, "dynamic")[torch.tensor(chosen)].images
    reconstructed = reconstruct(model, x)[:, 0]
    for i, image in zip(positions, reconstructed, strict=True):
        assert torch.allclose(found[i], image, atol=1e-5)
        top, left = GAP + i // 7 * (H + GAP), GAP + i % 7 * (W + GAP)
        frame = np.asarray(figure.axes[0].images[0].get_array())[top - 1, left - 1]
        assert not np.allclose(frame, 1)


def test_traversals_vary_one_dimension_the_most_informative_first(runs):
    run = runs("deterministic mmdvae")
    figure = draw(run, "traversals", images=(4,))["traversals"]
    found, picture_data, model = (
        tiles(figure, 11),
        load_or_create(run, load_trained(run)),
        load(run),
    )
    variances = picture_data.codes["z"].var(0, correction=0)
    order = variances.argsort(descending=True)
    assert [text.get_text() for text in figure.axes[0].texts] == [f"z[{d}]" for d in order]
    z = picture_data.codes["z"][4].repeat(11, 1)
    z[:, order[1]] = torch.linspace(-3, 3, 11)
    with torch.no_grad():
        assert torch.allclose(found[11:22], model.decode(z=z).mean[:, 0], atol=1e-5)


def test_traversals_are_ordered_by_kl(runs):
    run = runs("vae")
    kl = load_or_create(run, load_trained(run)).kl["z"]
    names = [text.get_text() for text in draw(run, "traversals")["traversals"].axes[0].texts]
    assert names == [f"z[{d}]  {kl[d]:.2f} nats" for d in kl.argsort(descending=True)]


def test_interpolations_lead_from_image_to_image(runs):
    run = runs("vae")
    figure = draw(run, "interpolations", images=(2, 9, 5))["interpolations"]
    found = tiles(figure, 13, framed=True)
    assert len(found) == 2 * 2 * 13
    x = eval_split(random_dataset().test, "dynamic")[torch.tensor([2, 9, 5])].images
    reconstructed = reconstruct(load(run), x)[:, 0]
    for row, (a, b) in enumerate([(0, 1), (0, 1), (1, 2), (1, 2)]):
        line = found[13 * row : 13 * (row + 1)]
        assert torch.allclose(line[0], x[a, 0], atol=1e-6)
        assert torch.allclose(line[12], x[b, 0], atol=1e-6)
        assert torch.allclose(line[1], reconstructed[a], atol=1e-5)
        assert torch.allclose(line[11], reconstructed[b], atol=1e-5)
    middle = load_or_create(run, load_trained(run)).codes["z"][[2, 9]].mean(0, keepdim=True)
    with torch.no_grad():
        assert torch.allclose(found[6], load(run).decode(z=middle).mean[0, 0], atol=1e-5)


def test_clusters_are_rows_the_most_confident_images_first(runs):
    run = runs("gmvae")
    found = draw(run, "clusters", "confusion", "samples")
    picture_data, data = (
        load_or_create(run, load_trained(run)),
        eval_split(random_dataset().test, "dynamic"),
    )
    rows = picture_data.clusters[:, 1].topk(10).indices
    drawn = tiles(found["clusters"], 10)[10:20]
    expected = data[rows].images[:, 0].clone()
    expected[picture_data.clusters.argmax(1)[rows] != 1] = (
        1.0  # white where the image belongs to another cluster
    )
    assert torch.allclose(drawn, expected, atol=1e-6)
    sizes = picture_data.clusters.argmax(1).bincount(minlength=3)
    names = [text.get_text() for text in found["clusters"].axes[0].texts]
    assert names == [f"cluster {k}: {n} images" for k, n in enumerate(sizes.tolist())]
    bars = found["clusters-bars"]
    heights = [[bar.get_height() for bar in axes.patches] for axes in bars.axes if axes.patches]
    shown = np.asarray(bars.axes[0].images[0].get_array())
    assert np.array_equal(shown, data[torch.nonzero(data.labels == 0)[0]].images[0, 0])
    stored = picture_data.rows["test"]
    first = [int(torch.nonzero(data.labels == k)[0]) for k in range(3)]
    assert all(row in stored for row in first)
    assert np.allclose(heights[:3], picture_data.clusters[first].numpy(), atol=1e-6)
    counts = np.zeros((3, 3), int)
    np.add.at(counts, (picture_data.clusters.argmax(1).numpy(), data.labels.numpy()), 1)
    texts = {text.get_text() for text in found["confusion"].axes[0].texts}
    assert texts == {str(n) for n in counts.flatten() if n}
    names = [text.get_text() for text in found["samples-clusters"].axes[0].texts]
    assert all("p = 0.33" in name for name in names)


def test_reconstructions_of_each_class_are_beside_their_inputs(runs):
    run = runs("vae")
    found = tiles(draw(run, "reconstructions")["reconstructions-classes"], 2 * 4 + 1)
    data = eval_split(random_dataset().test, "dynamic")
    counts = data.labels.bincount()
    per_class = min(10, int(counts.min()))
    assert per_class == 4
    rows = torch.nonzero(data.labels == 1)[:per_class, 0]
    x = data[rows].images
    line = found[9:18]
    assert torch.allclose(line[:4], x[:, 0], atol=1e-6)
    assert (line[4] == 1).all()
    assert torch.allclose(line[5:], reconstruct(load(run), x)[:, 0], atol=1e-5)


def test_pseudo_inputs_are_ordered_by_use(runs):
    run = runs("vampprior")
    model, picture_data = load(run), load_or_create(run, load_trained(run))
    drawn = tiles(draw(run, "pseudo-inputs")["pseudo-inputs"], 10)[:5]
    order = picture_data.component_shares.argsort(descending=True)
    assert torch.allclose(drawn, model.prior["z"].pseudo_inputs[order][:, 0].detach(), atol=1e-6)


def test_curves_show_the_metrics(runs):
    run = runs("vae")
    figure, metrics = draw(run, "curves")["curves"], run.metrics
    assert list(figure.axes[0].lines[0].get_ydata()) == [e["train_elbo"] for e in metrics]
    assert list(figure.axes[0].lines[1].get_ydata()) == [e["validation_elbo"] for e in metrics]
    assert list(figure.axes[3].lines[0].get_ydata()) == [e["active_units"] for e in metrics]
    table = np.asarray(figure.axes[4].collections[0].get_array())
    kl = np.array([e["kl_per_dimension"]["z"] for e in metrics]).T
    assert np.allclose(table, kl[np.argsort(-kl[:, -1])])
    by_samples = draw(run, "curves")["curves-samples"].axes[0]
    assert by_samples.get_xscale() == "log"
    assert list(by_samples.lines[0].get_xdata()) == [20, 40]


def test_curves_of_a_gmvae_show_the_parts_of_the_kl(runs):
    run = runs("gmvae")
    axes, metrics = draw(run, "curves")["curves"].axes, run.metrics
    lines = {line.get_label(): [*line.get_ydata()] for line in axes[2].lines}
    for name in ("conditional_prior", "w", "cluster"):
        label = f"validation, {name.replace('_', ' ')}"
        assert lines[label] == [epoch["kl_parts"][name] for epoch in metrics]
    assert "of z to the prior's marginals" in axes[4].get_title()
    dimensions = metrics[0]["latent_units"]
    assert axes[4].collections[0].get_array().shape == (dimensions, len(metrics))


def test_curves_of_a_run_without_latent_use(runs, tmp_path):
    import json

    run = Run(shutil.copytree(runs("vae").path, tmp_path / "old"))
    keys = ("active_units", "latent_units", "kl_per_dimension", "warnings")
    lines = [{k: v for k, v in e.items() if k not in keys} for e in run.metrics]
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert len(draw(run, "curves")["curves"].axes) == 3


@pytest.mark.parametrize(
    ("names", "settings", "message"),
    [
        (("latent",), {}, "there is no picture 'latent'; did you mean 'latents'"),
        (("clusters",), {}, "clusters need a mixture prior"),
        (("analogies",), {}, "analogies need a model with condition label"),
        (("pseudo-inputs",), {}, "pseudo-inputs need a model with prior vampprior"),
        (("traversals",), {"images": (20,)}, "images 20 is not one of the test images .* 0 to 19"),
        (("traversals",), {"images": (-1,)}, "images -1 is not one"),
        (("manifold",), {"grid": 1}, "grid is 1; it must be 2 to 100"),
        (("manifold",), {"range": 0.0}, "range is 0.0; it must be a positive number"),
        (("manifold",), {"range": float("nan")}, "range is nan"),
        (("manifold",), {"label": 1}, "label needs a model with condition label"),
        (("manifold",), {"grd": 3}, "has no setting 'grd'; did you mean 'grid'"),
        (("traversals",), {"images": ("a",)}, "images is .*; it must be a list, each a whole number"),
    ],
)  # fmt: skip
def test_bad_names_and_settings_are_refused(names, settings, message, runs):
    with pytest.raises(UserError, match=message):
        draw(runs("vae"), *names, **settings)


def test_a_label_out_of_range_is_refused(runs):
    for picture in ("manifold", "traversals"):
        with pytest.raises(UserError, match="label is 3; the model's labels are 0 to 2"):
            draw(runs("cvae"), picture, label=3)


def test_every_picture_has_a_summary_and_a_function():
    assert all(picture.summary and ":" in picture.function for picture in PICTURES.values())


def fit(out, model="vae", data=None, **settings):
    data = data or random_dataset()
    sizes = {"latent_dim": 2, "hidden_dim": 8, **settings}
    return train(build(model, data, **sizes), data, out=out, epochs=1, batch_size=5, progress=False)


@pytest.mark.parametrize("model", ["cvae", "gmvae"])
def test_rows_are_of_the_test_split_where_not_all_codes_are_stored(tmp_path, monkeypatch, model):
    monkeypatch.setattr("vaekit.inference.picture_data.MAX_CODES", 7)
    data = random_dataset()
    extra = {"clusters": 2, "start_epochs": 0} if model == "gmvae" else {}
    run = fit(tmp_path / "run", model, data, **extra)
    picture_data, rows, x = (
        load_or_create(run, load_trained(run)),
        evenly_spaced(20, 7),
        eval_split(data.test, "dynamic"),
    )
    assert torch.equal(picture_data.code_rows, rows)
    assert torch.equal(picture_data.code_labels, data.test.labels[rows])
    assert set(picture_data.rows["test"].tolist()) <= set(rows.tolist())
    assert torch.equal(picture_data.batches["test"].images, x[picture_data.rows["test"]].images)
    chosen = rows[[5, 2]]
    images = tuple(chosen.tolist())
    context = PictureContext.of(run, PlotConfig(images=images))
    assert torch.equal(context.codes(chosen)["z"], picture_data.codes["z"][[5, 2]])
    assert torch.equal(context.images(chosen), x[chosen].images)
    if model == "gmvae":
        found = tiles(draw(run, "clusters")["clusters"], 7)
        best = picture_data.clusters[:, 0].topk(7).indices
        own = picture_data.clusters.argmax(1)[best] == 0
        assert torch.allclose(found[:7][own], x[rows[best]].images[own, 0], atol=1e-6)
        return
    assert torch.equal(context.labels(chosen), data.test.labels[chosen])
    found = tiles(draw(run, "analogies", images=images)["analogies"], 4, framed=True)
    expected = analogies(load(run), x[chosen].images, data.test.labels[chosen])[:, 0]
    assert len(found) == 8
    assert torch.allclose(found, expected, atol=1e-5)
    found = tiles(draw(run, "interpolations", images=images)["interpolations"], 13, framed=True)
    middle = picture_data.codes["z"][[5, 2]].mean(0, keepdim=True)
    with torch.no_grad():
        expected = load(run).decode(data.test.labels[chosen[:1]], z=middle).mean[0, 0]
    assert torch.allclose(found[6], expected, atol=1e-5)


def test_picture_data_are_of_the_best_weights(tmp_path):
    data = random_dataset()
    run = train(
        build("vae", data, latent_dim=2, hidden_dim=8), data, out=tmp_path / "run", epochs=50, batch_size=5,
        learning_rate=1.0, patience=2, progress=False,
    )  # fmt: skip
    assert not run.metrics[-1]["best"]
    with torch.no_grad():
        q = load(run).posterior["z"]({"x": eval_split(data.test, "dynamic")[:].images, "y": None})
    assert torch.allclose(load_or_create(run, load_trained(run)).codes["z"], q.mean, atol=1e-5)


def test_images_not_stored_come_from_the_data_set_or_are_named(
    tmp_path, monkeypatch, small_run, small_mnist
):
    run = Run(shutil.copytree(small_run, tmp_path / "run"))
    (run.path / "picture_data.safetensors").unlink()
    monkeypatch.setattr("vaekit.inference.picture_data.MAX_IMAGES", 20)
    stored = load_or_create(run, load_trained(run)).rows["test"].tolist()
    row = next(row for row in range(200) if row not in stored)
    found = tiles(
        draw(run, "interpolations", images=(row, stored[0]))["interpolations"], 13, framed=True, height=28, width=28
    )  # fmt: skip
    assert torch.allclose(
        found[0],
        eval_split(small_mnist.test, "dynamic")[torch.tensor([row])].images[0, 0],
        atol=1e-6,
    )
    config = (run.path / "config.json").read_text()
    (run.path / "config.json").write_text(
        config.replace('"data": "mnist"', '"data": "/gone/photos"')
    )
    with pytest.raises(UserError, match=rf"does not store test image {row} .* /gone/photos"):
        draw(Run(run.path), "interpolations", images=(row, stored[0]))


def test_samples_follow_seed_prior_cluster_and_label(tmp_path, runs):
    run = fit(tmp_path / "g", "gmvae", clusters=3, start_epochs=0)
    model, found = load(run), draw(run, "samples", seed=3)
    assert torch.allclose(
        tiles(found["samples"], 10), generate(model, 100, seed=3)[:, 0], atol=1e-6
    )
    rows = tiles(found["samples-clusters"], 10)
    for k in range(3):
        assert torch.allclose(
            rows[10 * k : 10 * k + 10], generate(model, 10, seed=3, cluster=k)[:, 0], atol=1e-6
        )
    use = load_or_create(run, load_trained(run)).clusters.argmax(1).bincount(minlength=3) / 20
    names = [text.get_text() for text in found["samples-clusters"].axes[0].texts]
    assert [name.rpartition(", ")[2] for name in names] == [f"{share:.0%} of test" for share in use]
    model, rows = load(runs("cvae")), tiles(draw(runs("cvae"), "samples")["samples"], 10)
    for k in range(3):
        assert torch.allclose(
            rows[10 * k : 10 * k + 10], generate(model, 10, label=k)[:, 0], atol=1e-6
        )
    model, batch = (
        load(runs("quadrants")),
        load_or_create(runs("quadrants"), load_trained(runs("quadrants"))).batches["test"],
    )
    x = batch.images[balanced_rows(batch.labels, len(batch), 10)]
    found = tiles(draw(runs("quadrants"), "samples")["samples"], 10)
    assert torch.allclose(found, completions(model, x, 8)[:, 0], atol=1e-6)


def test_a_conditional_gmvae_has_a_row_per_label(tmp_path):
    run = fit(tmp_path / "run", "gmvae", condition="label", clusters=5, start_epochs=0)
    rows, model = tiles(draw(run, "samples")["samples"], 10), load(run)
    assert len(rows) == 30
    for k in range(3):
        assert torch.allclose(
            rows[10 * k : 10 * k + 10], generate(model, 10, label=k)[:, 0], atol=1e-6
        )


def test_of_many_pseudo_inputs_the_most_used_are_drawn(tmp_path):
    run = fit(tmp_path / "run", "vampprior", components=120, pseudo_inputs="noise")
    model, use = load(run), load_or_create(run, load_trained(run)).component_shares
    found = tiles(draw(run, "pseudo-inputs")["pseudo-inputs"], 10)
    assert len(found) == 100
    assert torch.allclose(
        found[0], model.prior["z"].pseudo_inputs[use.argmax()][0].detach(), atol=1e-6
    )


def test_of_many_clusters_rows_are_as_long_as_images_are_stored(tmp_path, monkeypatch):
    monkeypatch.setattr("vaekit.inference.picture_data.MAX_IMAGES", 3)
    monkeypatch.setattr("vaekit.inference.picture_data.MAX_BYTES", 2 * 30 * 30)
    run = fit(tmp_path / "run", prior="learned-mixture", components=30)
    picture_data = load_or_create(run, load_trained(run))
    figure = draw(run, "clusters")["clusters"]
    assert len(figure.axes[0].texts) == 30
    columns = (figure.axes[0].images[0].get_array().shape[1] + GAP) // (W + GAP)
    assert columns < 10
    found = tiles(figure, columns)
    x = eval_split(random_dataset().test, "dynamic")
    most_confident = picture_data.clusters.argmax(0)  # image of each cluster
    k = next(k for k in range(30) if picture_data.clusters[most_confident[k]].argmax() == k)
    best = int(most_confident[k])
    assert torch.allclose(found[columns * k], x[torch.tensor([best])].images[0, 0], atol=1e-6)


def test_traversals_span_a_learned_prior(runs):
    run = runs("learned-mixture")
    model, picture_data = load(run), load_or_create(run, load_trained(run))
    figure, d = (
        draw(run, "traversals", images=(4,))["traversals"],
        int(picture_data.kl["z"].argmax()),
    )
    draws = PictureContext.of(run, PlotConfig()).prior("z").sample(10_000)[:, d]
    z = picture_data.codes["z"][[4]].clone()
    z[:, d] = draws.quantile(0.002)
    with torch.no_grad():
        assert torch.allclose(tiles(figure, 11)[0], model.decode(z=z).mean[0, 0], atol=1e-5)


def test_latents_below_a_traversed_one_follow_it(runs):
    run = runs("hvae")
    figure = draw(run, "traversals", images=(4,))["traversals"]
    row = [text.get_text().split()[0] for text in figure.axes[0].texts].index("z2[0]")
    expected = decode_latents(load(run), {"z2": torch.linspace(-3, 3, 11)[:, None]})[:, 0]
    assert torch.allclose(tiles(figure, 11)[11 * row : 11 * row + 11], expected, atol=1e-5)


def test_of_many_dimensions_the_title_gives_the_number_traversed(tmp_path):
    run = fit(tmp_path / "run", latent_dim=30)
    figure = draw(run, "traversals")["traversals"]
    assert len(figure.axes[0].texts) == 20
    assert "each of the 20 most informative of 30 dimensions varied" in figure.texts[0].get_text()


def test_interpolations_are_linear_and_spherical(runs, monkeypatch):
    seen, real = [], latent_pictures.interpolate
    monkeypatch.setattr(
        latent_pictures,
        "interpolate",
        lambda a, b, n, spherical: seen.append(spherical) or real(a, b, n, spherical),
    )
    draw(runs("vae"), "interpolations", images=(2, 9))
    assert seen == [False, True]
    with pytest.raises(UserError, match="interpolations need two images"):
        draw(runs("vae"), "interpolations", images=(4,))
    assert "interpolations" not in draw(runs("vae"), grid=2, images=(4,))


def test_a_scatter_of_a_subset_has_its_labels(tmp_path, monkeypatch):
    monkeypatch.setattr(latent_pictures, "MAX_EMBEDDED_POINTS", 7)
    seen, data, rows = [], random_dataset(), evenly_spaced(20, 7)

    def spy(name):
        real = getattr(latent_pictures.pictures, name)
        return lambda points, labels, *rest: (
            seen.append((points, labels)) or real(points, labels, *rest)
        )

    for name in ("scatter", "scatter_3d"):
        monkeypatch.setattr(latent_pictures.pictures, name, spy(name))
    for dim in (5, 3):
        run = fit(tmp_path / str(dim), data=data, latent_dim=dim)
        draw(run, "latents", projection="pca")
        points, labels = seen[-1]
        assert labels.tolist() == data.test.labels[rows].tolist()
        codes = load_or_create(run, load_trained(run)).codes["z"]
        if dim == 3:
            assert np.allclose(points, codes[rows])
        else:
            centre, axes, _ = principal_axes(codes)
            assert np.allclose(points[0].points, ((codes - centre) @ axes)[rows], atol=1e-5)


def test_centres_are_projected_with_the_points(runs):
    run = runs("learned-mixture")
    context = PictureContext.of(run, PlotConfig())
    axes = draw(run, "latents", projection="pca")["latents-z"].axes[0]
    centre, directions, _ = principal_axes(context.picture_data.codes["z"])
    expected = (context.prior("z").centres - centre) @ directions
    assert np.allclose(axes.collections[-1].get_offsets(), expected, atol=1e-5)


def test_both_levels_of_one_dimension_share_a_picture(runs):
    axes = draw(runs("hvae"), "latents")["latents-both"].axes[0]
    codes = load_or_create(runs("hvae"), load_trained(runs("hvae"))).codes
    drawn = np.asarray(axes.collections[0].get_offsets())
    expected = torch.cat([codes["z2"], codes["z1"]], dim=1).numpy()
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("z2", "z1")
    assert np.allclose(sorted(map(tuple, drawn)), sorted(map(tuple, expected)), atol=1e-6)


def test_a_manifold_has_its_coordinates_at_the_sides(runs):
    figure = draw(runs("vae"), "manifold", grid=3, range=2.0)["manifold"]
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["2.00", "0.00", "-2.00", "-2.00", "0.00", "2.00"]
    between = np.asarray(
        draw(runs("cvae"), "manifold", grid=4)["manifold"].axes[0].images[0].get_array()
    )
    assert (between[:H, 4 * (W + GAP) : 4 * (W + GAP) + W] == 1).all()


def test_grey_images_are_not_inverted(tmp_path):
    run = fit(tmp_path / "run", data=random_dataset(kind="grey"))
    assert not PictureContext.of(run, PlotConfig()).inverted
    assert PictureContext.of(run, PlotConfig(invert="yes")).inverted


def test_labels_unknown_to_the_model_are_named(tmp_path):
    data = random_dataset()
    model = build("vae", (1, H, W), latent_dim=2, hidden_dim=8)
    run = train(model, data, out=tmp_path / "run", epochs=1, batch_size=5, progress=False)
    found = draw(run, "reconstructions", "latents")
    names = [text.get_text() for text in found["reconstructions-classes"].axes[0].texts]
    assert names[:3] == ["0", "1", "2"]


def test_a_label_and_its_name_are_those_of_the_image(tmp_path):
    data = dataclasses.replace(random_dataset(), classes=("a", "b", "c"))
    run = fit(tmp_path / "run", "cvae", data)
    names = [
        text.get_text()
        for text in draw(run, "reconstructions")["reconstructions-classes"].axes[0].texts
    ]
    assert names[:3] == ["a", "b", "c"]
    row, other = (int(torch.nonzero(data.test.labels == k)[0]) for k in (2, 1))
    context = PictureContext.of(run, PlotConfig(label=0))
    assert context.labels(torch.tensor([row])).tolist() == [0]
    found = tiles(
        draw(run, "interpolations", images=(row, other))["interpolations"], 13, framed=True
    )
    with torch.no_grad():
        expected = (
            load(run)
            .decode(torch.tensor([2]), z=context.picture_data.codes["z"][[other]])
            .mean[0, 0]
        )
    assert torch.allclose(found[11], expected, atol=1e-6)
    title = draw(run, "manifold", grid=2, label=1)["manifold"].texts[0].get_text()
    assert ", label b" in title


def test_the_prior_of_a_label_is_conditional_on_it(tmp_path):
    run = fit(tmp_path / "run", "cvae", prior="conditional")
    context, model = PictureContext.of(run, PlotConfig()), load(run)
    for label in (0, 2):
        with torch.no_grad():
            expected = model.prior["z"](model.given(None, torch.tensor([label]))).mean
        assert torch.allclose(context.prior("z", label).loc, expected.expand(64, -1), atol=1e-6)
    assert len(context.prior("z").loc.mul(1e4).round().unique(dim=0)) == 3


def test_the_prior_of_completions_is_over_images(tmp_path):
    run = fit(tmp_path / "run", "cvae", condition="quadrants:1")
    assert len(PictureContext.of(run, PlotConfig()).prior("z").loc.unique(dim=0)) > 5


def test_few_test_images_have_no_scatter_of_latents(tmp_path):
    data = random_dataset()
    data = dataclasses.replace(data, test=data.test[:2])
    for dim in (1, 2, 6):
        run = fit(tmp_path / str(dim), data=data, latent_dim=dim)
        assert "latents-z" not in draw(run, grid=2)
        with pytest.raises(UserError, match="latents need at least 5 test images"):
            draw(run, "latents")


def test_identical_codes_are_drawn_without_projection(tmp_path):
    """scikit-learn's t-SNE fails on them."""
    data = random_dataset()
    model = build("vae", data, latent_dim=5, hidden_dim=8)
    with torch.no_grad():
        model.posterior["z"].network.head.last.weight.zero_()
    run = train(
        model,
        data,
        out=tmp_path / "run",
        epochs=1,
        batch_size=5,
        learning_rate=1e-30,
        progress=False,
    )
    figure = draw(run, "latents")["latents-z"]
    assert len(figure.axes) == 1
    assert "identical" in figure.get_suptitle()


def test_a_prior_of_another_family_is_a_kernel_density():
    """A kernel density of Gamma samples: its mass below 2 is that of the Gamma, within 0.04."""
    from vaekit.inference.latent_space import prior_mixture

    class Gammas(torch.nn.Module):
        def forward(self, values):
            return torch.distributions.Independent(
                torch.distributions.Gamma(torch.full((2,), 3.0), 1.0), 1
            )

    model = build("vae", (1, H, W), latent_dim=2, hidden_dim=8)
    model.prior["z"] = Gammas()
    grid = torch.cartesian_prod(torch.linspace(-2, 15, 90), torch.linspace(-2, 15, 90))
    density = prior_mixture(model, "z").project(torch.eye(2), torch.zeros(2)).log_prob(grid).exp()
    below = float(density[grid[:, 0] < 2].sum() / density.sum())
    assert abs(below - 0.3233) < 0.04


def test_each_image_is_above_its_own_reconstruction(runs):
    run = runs("vae")
    batch = load_or_create(run, load_trained(run)).batches["test"]
    x = batch.images[balanced_rows(batch.labels, len(batch), 20)]
    found = tiles(draw(run, "reconstructions")["reconstructions"], 10, framed=True)
    reconstructed = reconstruct(load(run), x)[:, 0]
    for row, expected in enumerate((x[:10, 0], reconstructed[:10], x[10:, 0], reconstructed[10:])):
        assert torch.allclose(found[10 * row : 10 * row + 10], expected, atol=1e-5)
