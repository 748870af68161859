"""Decoded images are written in the units of their data."""

import numpy as np
import pytest
import torch
from PIL import Image

from vaekit import UserError
from vaekit.inference.writing import PIXEL_TYPES, check_images_output, undo, write_images
from vaekit.settings.data import EIGHT_BITS, ValueRange

tifffile = pytest.importorskip("tifffile")
DEEP = ValueRange(0, 65535, 65536, "uint16")
TWELVE_BITS = ValueRange(0, 4095, 4096, "uint16")
HEIGHTS = ValueRange(-432.5, 8848.25, None, "float32")


def images(channels=1, count=3):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(count, channels, 4, 5, generator=generator)
    x[0, 0, 0, :2] = torch.tensor([0.0, 1.0])
    return x


def exact(x, value_range):
    """v = low + x (high - low), in float64."""
    return value_range.low + x.double().numpy() * (value_range.high - value_range.low)


@pytest.mark.parametrize(
    ("value_range", "dtype"),
    [
        (EIGHT_BITS, "uint8"),
        (DEEP, "uint16"),
        (DEEP, "int32"),
        (TWELVE_BITS, "int16"),
        (HEIGHTS, "int16"),
        (ValueRange(-1000, 3000, 4001, "int16"), "int16"),
    ],
)
def test_whole_numbers_are_at_most_half_a_level_off(value_range, dtype):
    x = images(3, 200)
    values = undo(x, value_range, dtype)
    assert values.dtype == dtype
    assert np.abs(values - exact(x, value_range)).max() <= 0.5


@pytest.mark.parametrize("value_range", [DEEP, TWELVE_BITS, ValueRange(-300, 99, 400, "int16")])
def test_every_level_comes_back_exactly(value_range):
    levels = np.arange(value_range.low, value_range.high + 1)
    x = torch.from_numpy((levels - value_range.low) / (value_range.high - value_range.low)).float()
    dtype = value_range.dtype
    assert np.array_equal(undo(x[None, None, None], value_range, dtype).ravel(), levels)


def test_floats_are_off_by_a_ten_millionth_of_the_range():
    x = images(2, 200)
    values = undo(x, HEIGHTS, "float32")
    assert values.dtype == np.float32
    assert np.abs(values - exact(x, HEIGHTS)).max() <= 1e-7 * (HEIGHTS.high - HEIGHTS.low)


def test_values_beyond_the_range_are_clipped_not_wrapped():
    x = torch.tensor([-0.5, 0.0, 1.0, 1.5]).view(1, 1, 1, 4)
    assert undo(x, EIGHT_BITS, "uint8").ravel().tolist() == [0, 0, 255, 255]
    assert undo(x, HEIGHTS, "float32").ravel().tolist() == [-432.5, -432.5, 8848.25, 8848.25]
    with pytest.raises(UserError, match="not finite"):
        undo(torch.tensor(np.nan).view(1, 1, 1, 1), EIGHT_BITS, "uint8")


@pytest.mark.parametrize(
    ("value_range", "dtype", "message"),
    [
        (TWELVE_BITS, "uint8", "dtype uint8 cannot hold the values of the data, 0 to 4095"),
        (HEIGHTS, "uint16", "dtype uint16 cannot hold the values of the data, -432.5 to 8848.25"),
        (DEEP, "int16", "dtype int16 cannot hold the values of the data, 0 to 65535"),
        (
            ValueRange(0, 1, None, "float32"),
            "uint8",
            "between which there are only 2 whole numbers",
        ),
        (ValueRange(0, 1e300, None, "float64"), "float32", "dtype float32 cannot hold"),
        (EIGHT_BITS, "float16", "dtype 'float16' is none of uint8, uint16, int16, int32, float32"),
    ],
)
def test_a_type_that_cannot_hold_the_values_is_refused(tmp_path, value_range, dtype, message):
    with pytest.raises(UserError, match=message):
        undo(images(), value_range, dtype)
    with pytest.raises(UserError, match=message):
        check_images_output(tmp_path / "out.npy", value_range, dtype)


@pytest.mark.parametrize(
    ("value_range", "channels", "dtype", "ending", "kind"),
    [
        (EIGHT_BITS, 1, None, "png", "uint8"),
        (EIGHT_BITS, 3, None, "png", "uint8"),
        (EIGHT_BITS, 2, None, "tif", "uint8"),
        (EIGHT_BITS, 4, None, "tif", "uint8"),
        (EIGHT_BITS, 1, "uint16", "png", "uint16"),
        (DEEP, 1, None, "png", "uint16"),
        (DEEP, 3, None, "tif", "uint16"),
        (TWELVE_BITS, 12, None, "tif", "uint16"),
        (TWELVE_BITS, 1, "int16", "tif", "int16"),
        (HEIGHTS, 1, None, "tif", "float32"),
        (HEIGHTS, 12, None, "tif", "float32"),
        (ValueRange(-5, 100, 106, "int8"), 1, None, "tif", "int16"),
        (ValueRange(0, 1e6, None, "float64"), 1, None, "tif", "float32"),
    ],
)
def test_a_folder_has_files_of_the_datas_type_that_read_back_exactly(
    tmp_path, value_range, channels, dtype, ending, kind
):
    x = images(channels)
    folder = write_images(x, tmp_path / "out", value_range, dtype)
    assert sorted(path.name for path in folder.iterdir()) == [f"{i}.{ending}" for i in range(3)]
    expected = undo(x, value_range, kind).transpose(0, 2, 3, 1)
    for i in range(3):
        path = folder / f"{i}.{ending}"
        found = np.asarray(Image.open(path)) if ending == "png" else tifffile.imread(path)
        assert found.dtype == kind
        assert np.array_equal(found.reshape(expected[i].shape), expected[i])


def test_arrays_are_floats_in_the_units_of_the_data_and_in_0_to_1_for_8_bits(tmp_path):
    x = images(2)
    assert np.array_equal(np.load(write_images(x, tmp_path / "a.npz"))["images"], x.numpy())
    found = np.load(write_images(x, tmp_path / "b.npy", HEIGHTS))
    assert found.dtype == np.float32
    assert np.array_equal(found, undo(x, HEIGHTS, "float32"))
    found = np.load(write_images(x, tmp_path / "c.npz", TWELVE_BITS, "uint16"))["images"]
    assert np.array_equal(found, undo(x, TWELVE_BITS, "uint16"))


@pytest.mark.parametrize("channels", [1, 2, 3, 12])
def test_a_tiff_has_a_page_per_image_and_a_sample_per_channel(tmp_path, channels):
    x = images(channels)
    path = write_images(x, tmp_path / "stack.tif", HEIGHTS)
    with tifffile.TiffFile(path) as file:
        assert [page.samplesperpixel for page in file.pages] == [channels] * 3
        pages = [page.asarray().reshape(4, 5, channels) for page in file.pages]
    assert np.array_equal(np.stack(pages), undo(x, HEIGHTS, "float32").transpose(0, 2, 3, 1))


def test_settings_that_a_file_does_not_have_are_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="is a picture; leave it out"):
        check_images_output(tmp_path / "grid.png", dtype="uint8")
    with pytest.raises(UserError, match="all channels are written"):
        check_images_output(tmp_path / "a.npy", chosen_bands=True)
    monkeypatch.setitem(__import__("sys").modules, "tifffile", None)
    with pytest.raises(UserError, match=r"pip install 'vaekit\[science\]'"):
        check_images_output(tmp_path / "out", HEIGHTS)
    check_images_output(tmp_path / "out", DEEP)
    assert set(PIXEL_TYPES) == {"uint8", "uint16", "int16", "int32", "float32"}
