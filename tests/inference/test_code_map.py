"""The map of encoded images: which are kept and where they are; tables for pandas, with paths."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import random_dataset
from image_folders import save_images
from vaekit import UserError, build, load_data, train
from vaekit.inference import code_map
from vaekit.inference.code_map import Thumbnails, project
from vaekit.inference.encoding import encode
from vaekit.inference.tables import Table, read_table, write_table
from vaekit.pictures import image_map, save
from vaekit.pictures.maps import FRAME, GAP, place, shown_rows


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    data = random_dataset()
    model = build("vae", data, latent_dim=2, hidden_dim=8)
    out = tmp_path_factory.mktemp("runs") / "run"
    return train(model, data, out=out, epochs=1, progress=False)


def test_a_cell_shows_the_image_that_is_nearest_to_its_centre():
    position = np.array([[0.3, 0.0], [0.1, 0.1], [1.9, 1.0], [2.6, 0.0], [-0.6, 0.0]])
    assert shown_rows(position, 3).tolist() == [[1, -1, -1], [-1, -1, 2], [-1, -1, -1]]


def test_images_are_placed_with_the_first_cells_at_the_bottom_in_frames_of_their_colour():
    pixels = np.stack([np.zeros((2, 3, 1)), np.full((2, 3, 1), 0.5)])
    drawn = place(pixels, np.array([[0, -1], [-1, 1]]), np.array([[1.0, 0, 0], [0, 1.0, 0]]))
    height, width = 2 + 2 * FRAME + GAP, 3 + 2 * FRAME + GAP
    assert drawn.shape == (2 * height, 2 * width, 3)
    assert (drawn[height + FRAME : height + FRAME + 2, FRAME : FRAME + 3] == 0).all()
    assert (drawn[height, 0] == (1, 0, 0)).all()
    assert (drawn[FRAME : FRAME + 2, width + FRAME : width + FRAME + 3] == 0.5).all()
    assert (drawn[0, width] == (0, 1, 0)).all()
    assert (drawn[:height, :width] == 1).all()


def test_of_many_images_every_second_or_fourth_is_kept_whatever_the_parts(monkeypatch):
    monkeypatch.setattr(code_map, "MAX_IMAGES", 6)
    images = torch.arange(21.0)[:, None, None, None].expand(21, 1, 4, 4)
    for sizes in ([21], [5, 1, 9, 6], [1] * 21):
        kept = Thumbnails()
        for part in images.split(sizes):
            kept.add(part)
        assert kept.rows.tolist() == [0, 4, 8, 12, 16, 20]
        assert kept.images[:, 0, 0, 0].tolist() == kept.rows.tolist()
        assert kept.seen == 21


def test_small_versions_are_means_of_pixels():
    kept = Thumbnails()
    kept.add(torch.arange(96.0 * 50).reshape(1, 1, 96, 50))
    assert kept.images.shape == (1, 1, 48, 25)
    assert float(kept.images[0, 0, 0, 0]) == (0 + 1 + 50 + 51) / 4


def test_codes_of_two_dimensions_are_the_points_and_others_are_projected():
    codes = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
    points, names, how = project(codes[:, :2], "z", "auto")
    assert np.array_equal(points, codes[:, :2].numpy())
    assert (names, how) == (("z[0]", "z[1]"), "")
    points, names, how = project(codes, "z", "pca")
    centred = codes - codes.mean(0)
    expected = torch.linalg.svdvals(centred)[:2].square() / 12
    assert points.var(0).tolist() == pytest.approx(expected.tolist(), rel=1e-4)
    assert names[0].startswith("PC 1, ")
    assert how == "PCA of "
    points, names, how = project(codes, "z", "auto")
    assert (points.shape, names, how) == ((12, 2), ("", ""), "t-SNE of ")
    for few in (codes[:1], codes[:3], codes[:5, :1]):
        assert project(few, "z", "auto")[0].shape == (len(few), 2)


def test_a_map_is_drawn_with_the_table_and_has_its_classes(run, tmp_path):
    table = encode(run, random_dataset(), samples=2, picture=tmp_path / "map.png")
    assert len(table["index"]) == 20
    with Image.open(tmp_path / "map.png") as picture:
        assert min(picture.size) > 100
    encode(run, random_dataset(), samples=2, picture=tmp_path / "pca.svg", projection="pca")
    assert "20 images by PCA of z" in (tmp_path / "pca.svg").read_text()


def test_images_of_many_channels_and_without_labels_are_mapped(tmp_path):
    images, points = torch.rand(9, 5, 4, 4), np.random.default_rng(0).normal(size=(9, 2))
    save(image_map(points, images, title="$nine"), tmp_path / "map.png")
    save(image_map(points[:1], images[:1, :1]), tmp_path / "one.png")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"picture": "map.csv"}, "cannot write map.csv: its ending must be"),
        ({"picture": "no/map.png"}, "its folder does not exist"),
        ({"picture": "map.png", "projection": "mds"}, "projection mds is none of auto, pca"),
        ({"picture": "map.png", "projection": "umap"}, "pip install 'vaekit.umap.'"),
    ],
)
def test_a_map_that_cannot_be_drawn_is_refused_before_anything_is_computed(
    run, monkeypatch, tmp_path, options, message
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(code_map, "find_spec", lambda name: None)
    monkeypatch.setattr("vaekit.inference.encoding.load", lambda *_: pytest.fail("loaded"))
    with pytest.raises(UserError, match=message):
        encode(run, random_dataset(), **options)
    assert not any(tmp_path.iterdir())


def test_a_table_of_a_runs_own_image_files_has_paths_classes_and_splits(tmp_path):
    names = [f"{kind}/{i}.png" for kind in ("cats", "dogs") for i in range(10)]
    save_images(tmp_path / "photos", names)
    data = load_data(tmp_path / "photos", progress=False)
    model = build("vae", data, latent_dim=2, hidden_dim=8)
    run = train(model, data, out=tmp_path / "run", epochs=1, progress=False)
    table = encode(run, split="all", samples=2)
    assert {*table["path"]} == {str(tmp_path / "photos" / name) for name in names}
    assert [path.split("/")[-2] for path in table["path"]] == table["class"].tolist()
    assert {*table["split"]} == {"train", "validation", "test"}
    back = read_table(write_table(table, tmp_path / "codes.csv"))
    assert {*back} == {*table}
    assert back["path"].tolist() == table["path"].tolist()


def test_a_table_becomes_a_data_frame_with_the_columns_of_csv(run):
    pandas = pytest.importorskip("pandas")
    table = encode(run, random_dataset(), samples=2)
    frame = table.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert len(frame) == 20
    assert {"split", "label", "z_mean_0", "z_mean_1", "nll", "rank"} <= {*frame.columns}
    assert frame["z_mean_1"].tolist() == table["z_mean"][:, 1].tolist()
    assert frame.sort_values("rank")["nll"].is_monotonic_decreasing


def test_without_pandas_the_package_to_install_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match=r"needs pandas: pip install 'vaekit\[pandas\]'"):
        Table(a=np.zeros(2)).to_pandas()
