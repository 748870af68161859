"""Images of 2, 4 and 12 channels from training to the explorer, and back to the units of their data."""

import base64
from unittest import mock

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image

from vaekit import UserError, build, decode, encode, evaluate, load_data, train
from vaekit.cli import main as cli
from vaekit.explorer.server import make_app
from vaekit.explorer.session import ExplorerSession
from vaekit.gallery.context import PictureContext
from vaekit.inference.picture_data import run_bands
from vaekit.inference.tables import write_table
from vaekit.runs.data import load_run_data
from vaekit.settings.analysis import PlotConfig

KINDS = [(2, np.uint16), (4, np.uint8), (12, np.float32)]
SIDE = 16


def values(channels, dtype, count=60):
    """Images (N, C, H, W): stripes and spots, in all channels differently, of 8 bits, 12 bits or -300 to 4000."""
    generator = np.random.default_rng(channels)
    x = np.linspace(0, 6, SIDE) + generator.random((count, 1, 1, 1)) * 6
    y = np.linspace(0, 5, SIDE)[:, None] + generator.random((count, 1, 1, 1)) * 5
    weight = generator.random((channels, 1, 1))
    images = weight * np.sin(x) ** 2 + (1 - weight) * np.cos(y) ** 2
    images = (images - images.min()) / (images.max() - images.min())
    if dtype == np.float32:
        return (images * 4300 - 300).astype(dtype)
    return (images * (255 if dtype == np.uint8 else 4095)).round().astype(dtype)


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: f"{kind[0]} of {kind[1].__name__}")
def run(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("channels")
    labels = np.arange(60) % 3
    np.savez(folder / "data.npz", images=values(*request.param), labels=labels)
    data = load_data(folder / "data.npz")
    model = build("vae", data, latent_dim=2, hidden_dim=8)
    pictures = {"pictures_every": 1, "tensorboard": True, "progress": False}
    return train(model, data, out=folder / "run", epochs=1, batch_size=20, **pictures)


def vaekit(*arguments):
    """Run a command in this process."""
    with mock.patch("sys.argv", ["vaekit", *map(str, arguments)]):
        cli.main()


def decoded_file(run, tmp_path, name, *arguments):
    codes = write_table({"z": np.random.default_rng(0).normal(size=(4, 2))}, tmp_path / "z.npz")
    out = tmp_path / name
    vaekit("decode", str(run.path), str(codes), "--out", str(out), *arguments)
    return out, decode(run, {"z": np.load(codes)["z"]})


def test_every_metric_is_a_number(run):
    found = evaluate(run, samples=2, limit=6)
    names = ("elbo", "nll", "squared_error", "psnr", "ssim", "linear_probe", "frechet_samples")
    assert all(np.isfinite(found[name]) for name in names)
    table = encode(run, samples=2)
    assert table["z_mean"].shape == (6, 2)


def test_every_picture_shows_the_bands_that_it_names(run, tmp_path, capsys):
    channels = run.blueprint.shape[0]
    context = PictureContext.of(run, PlotConfig())
    x = context.picture_data.batches["test"].images
    assert x.shape[1:] == run.blueprint.shape
    names = ["samples", "manifold", "interpolations"]
    vaekit("plot", run.path, *names, "--out", tmp_path / "all", "--grid", 3)
    assert {path.stem for path in (tmp_path / "all").iterdir()} == {*names}
    assert sorted(path.stem for path in (run.path / "pictures/epochs").iterdir()) == [
        "reconstructions-0001",
        "samples-0001",
    ]
    # All pictures of a run have the same bands.
    stored = run_bands(run, None, x[:1])
    assert torch.equal(stored.weights, context.bands.weights)
    assert stored.text == context.bands.text
    first = "principal components 1, 2, 3" if channels > 3 else "bands 1, 2"
    assert stored.text.startswith(first)
    with pytest.raises(UserError, match=f"the images have {channels} bands"):
        PictureContext.of(run, PlotConfig(bands="1,99"))
    for verb in (["generate", "--count", "4"], ["reconstruct", "--count", "3"]):
        vaekit(verb[0], str(run.path), *verb[1:], "--bands", "2")
        assert "bands-2" in capsys.readouterr().out


def test_the_explorer_sends_images_as_they_are_shown_and_takes_none(run):
    session = ExplorerSession(run, bands="2,1")
    client = TestClient(
        make_app([session], "secret"),
        "http://127.0.0.1",
        headers={"authorization": "token secret"},
    )
    shown = client.get("/api/runs").json()["runs"][0]
    channels = run.blueprint.shape[0]
    assert shown["shape"] == [channels, SIDE, SIDE]
    assert shown["shown_shape"] == [3, SIDE, SIDE]
    assert shown["bands"] == f"bands 2, 1 of {channels} as magenta, green"
    assert shown["argument"].endswith("--bands 2,1")
    found = client.get("/api/runs/0/test/0").json()
    levels = np.frombuffer(base64.b64decode(found["pixels"]), np.uint8).reshape(3, SIDE, SIDE)
    image = session.test_image(0)[0][0]
    assert np.array_equal(levels, (image[[1, 0, 1]] * 255).round().to(torch.uint8))
    answer = client.post("/api/runs/0/encode", json={"image": "aaaa"})
    assert answer.status_code == 400
    assert f"the model takes images of {channels} channels" in answer.json()["detail"]


def test_decoded_arrays_and_files_are_in_the_units_of_the_data(run, tmp_path, capsys):
    pytest.importorskip("tifffile")
    from tifffile import imread

    value_range, dtype = run.data.value_range, run.data.value_range.dtype
    folder, x = decoded_file(run, tmp_path, "images")
    original = x.permute(0, 2, 3, 1).double().numpy() * (value_range.high - value_range.low)
    original = np.clip(original + value_range.low, value_range.low, value_range.high)
    found = np.stack([imread(path) for path in sorted(folder.iterdir())])
    assert found.dtype == dtype
    off = 0.5 if dtype != "float32" else 1e-7 * 4300
    assert np.abs(found - original).max() <= off
    assert f"{dtype}, values from {value_range.low:g} to" in capsys.readouterr().out
    data = load_run_data(run, None, None)
    assert data.value_range == value_range


@pytest.mark.parametrize("name", ["decoded.npz", "decoded.npy"])
def test_what_decode_writes_encode_reads_right(run, tmp_path, name):
    path, x = decoded_file(run, tmp_path, name)
    found = encode(run, path, samples=2)
    from vaekit.data.sources.inputs import read_arrays

    (part,) = [
        part
        for _, _, part, _ in read_arrays(path, run.blueprint.shape, "crop", run.data.value_range)
    ]
    assert (part.images - x.clamp(0, 1)).abs().max() <= 2e-7
    assert len(found["nll"]) == 4


def test_pictures_of_data_sets_name_their_bands(run, tmp_path, capsys):
    data = run.path.parent / "data.npz"
    out = tmp_path / "show.png"
    vaekit("data", "show", str(data), "--bands", "2", "--count", "4", "--out", str(out))
    with Image.open(out) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert np.ptp(pixels, axis=2).max() == 0  # one band is grey
    vaekit("data", "show", str(data), "--count", "4", "--out", str(out))
    with Image.open(out) as image:
        assert np.ptp(np.asarray(image.convert("RGB")).astype(int), axis=2).max() > 10
