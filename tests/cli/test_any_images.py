"""Data of scientists, from files to images in the units of the files, through all commands."""

import numpy as np
import pytest
import torch

from vaekit import Run, load, load_data
from vaekit.data import assemble
from vaekit.data.sources import arrays
from vaekit.data.stored import StoredImages
from vaekit.explorer.session import ExplorerSession
from vaekit.inference.latent_space import decode_latents
from vaekit.inference.writing import undo

SIDE, COUNT = 16, 30


def scenes(channels, low, high, dtype):
    """Images (N, H, W, C) of waves, from low to high, each channel different."""
    rng = np.random.default_rng(channels)
    x = np.linspace(0, 6, SIDE) + 6 * rng.random((COUNT, 1, 1, 1))
    y = np.linspace(0, 5, SIDE)[:, None] + 5 * rng.random((COUNT, 1, 1, 1))
    waves = np.sin(x + rng.random((channels, 1, 1))) * np.cos(
        y * (1 + rng.random((channels, 1, 1)))
    )
    waves = (waves - waves.min()) / np.ptp(waves)
    return np.moveaxis(low + (high - low) * waves, 1, -1).astype(dtype)


def satellite(folder):
    """Twelve bands of reflectance, floats."""
    images = scenes(12, -0.02, 1.31, np.float32)
    np.savez(folder / "bands.npz", images=images, labels=np.arange(COUNT) % 2)
    return folder / "bands.npz", [], images.transpose(0, 3, 1, 2)


def stacks(folder):
    """Files of three pages of 16 bits, which are three channels, in class folders."""
    tifffile = pytest.importorskip("tifffile")
    images = scenes(3, 100, 4095, np.uint16).transpose(0, 3, 1, 2)
    for i, image in enumerate(images):
        (folder / "stacks" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        path = folder / "stacks" / "ab"[i % 2] / f"{i:02d}.tif"
        tifffile.imwrite(path, image, photometric="minisblack")
    return folder / "stacks", ["--pages", "channels"], images


def microscopy(folder):
    """Files of two channels of 12 bits."""
    tifffile = pytest.importorskip("tifffile")
    images = scenes(2, 0, 4095, np.uint16)
    (folder / "cells").mkdir()
    for i, image in enumerate(images):
        tifffile.imwrite(folder / "cells" / f"{i:02d}.tif", image, planarconfig="contig")
    return folder / "cells", [], images.transpose(0, 3, 1, 2)


def large(folder):
    """An HDF5 file larger than the limit of memory, of signed values."""
    h5py = pytest.importorskip("h5py")
    images = scenes(1, -1024, 3071, np.int16)[..., 0]
    with h5py.File(folder / "scans.h5", "w") as file:
        file.create_dataset("ct/images", data=images, chunks=(4, SIDE, SIDE), compression="gzip")
    return f"{folder}/scans.h5:/ct/images", [], images[:, None]


@pytest.mark.parametrize("make", [satellite, stacks, microscopy, large], ids=lambda f: f.__name__)
def test_data_of_scientists_go_all_the_way_and_back(make, vaekit, tmp_path, monkeypatch):
    path, flags, source = make(tmp_path)
    if make is large:
        for module in (arrays, assemble):
            monkeypatch.setattr(module, "MAX_BYTES_IN_MEMORY", source.nbytes // 2)

    def call(*arguments):
        code, out, err = vaekit(*arguments)
        assert code == 0, err
        return out

    size = ["--latent-dim", 2, "--channels", 2, "--num-layers", 2]
    call("train", "convvae", "--data", path, *flags, *size, "--epochs", 1, "--out", "run")
    run = Run(tmp_path / "run")
    value_range, dtype = run.data.value_range, source.dtype.name
    span = value_range.high - value_range.low
    assert run.blueprint.shape == source.shape[1:]
    assert (value_range.dtype, value_range.levels is None) == (dtype, dtype == "float32")
    assert run.blueprint.settings.likelihood == ("gaussian" if dtype == "float32" else "logistic")
    assert run.blueprint.settings.levels == value_range.levels

    # Every value that is not clipped comes back from its pixel: whole numbers exactly, floats within 1e-7 of the range.
    settings = {"pages": "channels"} if make is stacks else {}
    data = load_data(str(path), progress=False, **settings)
    assert isinstance(data.train.images, StoredImages) == (make is large)
    pixels = torch.cat([split[:].images for split in data.splits.values()])
    back = undo(pixels, value_range, dtype).astype(np.float64)
    clipped = source.astype(np.float64).clip(value_range.low, value_range.high)
    nearest = [np.abs(clipped - image).max((1, 2, 3)).argmin() for image in back]
    assert sorted(nearest) == [*range(COUNT)]
    error = np.abs(back - clipped[nearest]).max()
    assert error == 0 if dtype != "float32" else error <= 1e-7 * span

    call("evaluate", "run", "--samples", 2, "--limit", 4)
    assert "reconstructions.png" in call("plot", "run", "reconstructions", "samples")
    session = ExplorerSession(run)
    assert session.describe()["shape"] == [*source.shape[1:]]
    z, _ = session.sample(1, 1.0, 0, None, None)
    assert session.decode(z, None).shape == (1, *source.shape[1:])

    call("encode", "run", "--out", "codes.npz", "--samples", 2, "--split", "all")
    call("decode", "run", "codes.npz", "--out", "images.npz", "--dtype", dtype)
    written = np.load(tmp_path / "images.npz")["images"]
    assert (written.dtype.name, written.shape) == (dtype, source.shape)
    codes = torch.from_numpy(np.load(tmp_path / "codes.npz")["z_mean"])
    means = decode_latents(load(run), {"z": codes}).detach().double().numpy().clip(0, 1)
    allowed = 1e-6 * span if dtype == "float32" else 0.5001
    assert np.abs(written - (value_range.low + means * span)).max() <= allowed


def test_encode_takes_the_flags_that_its_messages_name(vaekit, tmp_path, small_run):
    tifffile = pytest.importorskip("tifffile")
    rng = np.random.default_rng(0)
    stack = rng.integers(0, 256, (3, 28, 28), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "stack.tif", stack, photometric="minisblack")
    encode = ["encode", small_run, "--samples", 1, "--out", "codes.npz"]
    for pages, count in (("all", 3), ("first", 1)):
        code, _, err = vaekit(*encode, "stack.tif", "--pages", pages)
        assert code == 0, err
        assert len(np.load(tmp_path / "codes.npz")["index"]) == count
    np.save(tmp_path / "x.npy", rng.integers(0, 256, (5, 28, 28, 28), dtype=np.uint8))
    code, _, err = vaekit(*encode, "x.npy")
    assert (code, err.count("\n")) == (2, 1)
    assert "--channel-axis first or last" in err
    code, _, err = vaekit(*encode, "x.npy", "--channel-axis", "last")
    assert code == 2
    assert "only grey and colour images are converted" in err


@pytest.mark.parametrize(
    "flag", [["--channels", "last"], ["--channels=last"], ["--channel-axis", "last"]]
)
def test_the_channels_of_arrays_and_of_networks_have_one_flag(flag, vaekit, tmp_path):
    """A number with --channels is of the networks, `first` or `last` of the arrays."""
    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 256, (20, 8, 8, 8), np.uint8))
    code, _, err = vaekit("data", "show", "x.npy")
    assert (code, "say which with --channel-axis first or last" in err) == (2, True)
    code, _, err = vaekit("data", "show", "x.npy", *flag)
    assert (code, "20 images of 8 x 8 pixels, 8 channels (last)" in err) == (0, True)
    small = ["--latent-dim", 2, "--channels", 2, "--num-layers", 1, "--epochs", 1, "--out", "run"]
    code, _, err = vaekit("train", "convvae", "--data", "x.npy", *flag, *small)
    assert code == 0, err
    run = Run(tmp_path / "run")
    assert (run.source.channel_axis, run.blueprint.settings.channels) == ("last", 2)
