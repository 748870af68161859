"""How arrays are read: each value against its source, over a table of shapes, types and ranges; or a refusal."""

import io
import re
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from image_folders import load
from reading_cases import SHAPES, VALUES, Values, accepted_shapes, expected_pixels, to_nchw
from vaekit import UserError, load_data
from vaekit.data.dataset import pixels
from vaekit.data.formats.images import ImageSpec, decode, inspect_image

READ = [values for values in VALUES if isinstance(values.read, tuple)]
REFUSED = [values for values in VALUES if isinstance(values.read, str)]


def loaded(array: np.ndarray, **given_settings):
    """The data set of an array in all three splits, so that the images keep their order."""
    return load({"train": array, "validation": array[:2], "test": array[1:]}, **given_settings)


def check(data, array, order, values: Values) -> None:
    low, high, levels = values.read
    found = data.value_range
    assert (found.low, found.high, found.levels, found.dtype) == (low, high, levels, values.dtype)
    assert data.black_and_white == values.black_and_white
    parts = {"train": array, "validation": array[:2], "test": array[1:]}
    for name, part in parts.items():
        x = pixels(data.splits[name][:].images, "none")
        assert x.dtype == torch.float32
        expected = expected_pixels(part, order, values)
        assert np.abs(x.double().numpy() - expected).max() <= 2e-7
        if levels:  # the levels are exact: each value comes back
            back = (x.double().numpy() * (levels - 1)).round() * ((high - low) / (levels - 1)) + low
            assert np.array_equal(back, to_nchw(part, order).astype(np.float64).clip(low, high))


@pytest.mark.parametrize("values", READ, ids=lambda v: f"{v.name} {v.dtype}")
@pytest.mark.parametrize("where", ["yes", "no"])
def test_every_shape_of_these_values_is_read_right(values, where):
    shapes = accepted_shapes() if where == "yes" else accepted_shapes()[:1]
    for shape, axis, order in shapes:
        array = values.fill(shape)
        data = loaded(array, channel_axis=axis, range=values.wanted, in_memory=where)
        check(data, array, order, values)


@pytest.mark.parametrize("values", REFUSED, ids=lambda v: f"{v.name} {v.dtype}")
def test_these_values_are_refused(values):
    array = np.full((24, 6, 5), values.low, values.dtype)
    if values.low == values.low:
        array = values.fill((24, 6, 5))
    with pytest.raises(UserError, match=re.escape(values.read)) as caught:
        loaded(array, range=values.wanted)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("shape", "axis", "message"), [c for c in SHAPES if c not in accepted_shapes()], ids=str
)
def test_these_shapes_are_refused(shape, axis, message):
    with pytest.raises(UserError) as caught:
        load(np.zeros(shape, np.uint8) + 9, channel_axis=axis)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@settings(max_examples=60, deadline=None)
@given(
    case=st.sampled_from(accepted_shapes()),
    values=st.sampled_from(READ),
    seed=st.integers(0, 2**32 - 1),
    memory_order=st.sampled_from("CF"),
    big_endian=st.booleans(),
    as_tensor=st.booleans(),
)
def test_the_whole_table_with_random_values(
    case, values, seed, memory_order, big_endian, as_tensor
):
    shape, axis, order = case
    array = values.fill(shape, seed)
    if array.min() != values.low or array.max() != values.high or len(np.unique(array)) < 4:
        array.flat[:4] = [values.low, values.high, values.low + values.step, values.high]
    given_array = np.asarray(array, order=memory_order)
    if as_tensor:
        given_array = torch.from_numpy(array.copy())
    elif big_endian:
        given_array = given_array.astype(given_array.dtype.newbyteorder(">"))
    data = loaded(given_array, channel_axis=axis, range=values.wanted)
    check(data, array, order, values)


@settings(max_examples=100, deadline=None)
@given(shape=st.lists(st.integers(1, 40), min_size=3, max_size=4).map(tuple))
def test_an_array_is_never_read_in_the_less_likely_way(shape):
    """Either it is refused, or the channels are the smallest of an image's three axes, or there are none."""
    array = np.zeros(shape, np.uint8)
    array.flat[0] = 9
    refused = ""
    try:
        data = load({"train": array, "validation": array, "test": array})
    except UserError as error:
        refused = str(error)
    if refused:
        assert "can be read as" in refused
        return
    if len(shape) == 3:
        assert data.shape == (1, *shape[1:])
    else:
        smallest, *others = sorted(shape[1:])
        assert data.shape[0] == smallest < min(others)
        assert smallest <= 16
        assert shape[2] in data.shape[1:]


def test_a_test_part_of_zeros_and_ones_beside_8_bits_keeps_its_scale():
    train = np.random.default_rng(0).integers(0, 256, (20, 6, 5), dtype=np.uint8)
    data = load({"train": train, "test": train % 2})
    assert np.array_equal(data.test.images[:, 0], train % 2)
    assert data.likelihood == "logistic"


def test_a_training_part_of_zeros_and_ones_beside_8_bits_is_no_black_and_white():
    test = np.random.default_rng(0).integers(0, 256, (20, 6, 5), dtype=np.uint8)
    data = load({"train": test % 2, "test": test})
    assert np.array_equal(data.train.images.flatten().unique(), [0, 1])
    assert np.array_equal(data.test.images[:, 0], test)


def test_parts_of_different_scales_are_refused():
    rng = np.random.default_rng(0)
    train = rng.integers(0, 5000, (20, 6, 5)).astype(np.float32)
    for test, message in [
        (train / 5000, "seems to be of another scale"),
        (train * 10, "seems to be of another scale"),
        (train.astype(np.int32), "test is int32; give all of them one type"),
    ]:
        with pytest.raises(UserError, match=message):
            load({"train": train, "test": test})
    data = load({"train": train, "test": train / 5000}, range=(0, 5000))
    assert data.test.images.max() <= 1 / 5000


def test_values_outside_of_the_training_range_are_clipped_and_said(capsys):
    train = np.random.default_rng(0).integers(100, 4000, (20, 6, 5)).astype(np.uint16)
    test = train.copy()
    test[3, 2, 1] = 5000
    low, high = int(train.min()), int(train.max())
    data = load_data({"train": train, "test": test})
    expected = ((test.astype(float) - low) / (high - low)).clip(0, 1)
    assert np.allclose(data.test.images[:, 0], expected, atol=1e-7)
    said = f"1 of 20 images of the data, test have values outside of {low} to {high}: clipped; theirs are "
    said += f"{test.min()} to 5000"
    assert said in data.reading
    assert said in capsys.readouterr().err.replace("\n", " ")


def test_percentiles_are_of_the_training_images():
    rng = np.random.default_rng(0)
    train, test = (rng.integers(0, high, (50, 6, 5)).astype(np.uint16) for high in (1000, 60000))
    data = load({"train": train, "validation": test, "test": test}, range="10%,90%")
    low, high = np.percentile(train, [10, 90], method="nearest")
    assert (data.value_range.low, data.value_range.high) == (low, high)
    assert data.value_range.levels == high - low + 1


@pytest.mark.parametrize(
    "text", ["", "1", "5,1", "1,1", "a,b", "1%,2", "-1%,50%", "1,2,3", "nan,1", "0,inf"]
)
def test_bad_ranges_are_refused_in_a_line(text):
    with pytest.raises(UserError, match="is not a range; give two numbers") as caught:
        load(np.zeros((9, 4, 4), np.uint8), range=text)
    assert "\n" not in str(caught.value)


def test_arrays_are_copied():
    array = np.random.default_rng(0).random((20, 6, 5), dtype=np.float32)
    for given_array in (
        array,
        torch.from_numpy(array),
        array[:, None],
        (255 * array).astype(np.uint8),
    ):
        data = load({"train": given_array, "validation": given_array, "test": given_array})
        before = data.train.images.clone()
        given_array[:] = 0
        assert torch.equal(data.train.images, before)


def test_on_disk_and_in_memory_are_the_same_bit_for_bit():
    for values in READ:
        array = values.fill((24, 6, 5))
        first, second = (
            load(array, in_memory=where, range=values.wanted) for where in ("yes", "no")
        )
        for name, split in first.splits.items():
            assert torch.equal(split.images, second.splits[name][:].images)


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def with_late_exif(content: bytes, orientation: int) -> bytes:
    """A PNG file with its EXIF chunk behind the pixels."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return content[:-12] + png_chunk(b"eXIf", exif.tobytes()[6:]) + content[-12:]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["tiff", "late exif", "late exif, 16 bits", "16 bits per colour"])
def test_images_are_turned_once(kind, orientation):
    upright = np.random.default_rng(0).integers(0, 256, (8, 16, 3), dtype=np.uint8)
    if "16 bits" in kind:
        upright = upright.astype(np.uint16) * 251
    upright = upright if kind == "16 bits per colour" else upright[..., 0]
    turned = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.swapaxes(0, 1), 6: np.rot90(upright),
        7: upright[::-1, ::-1].swapaxes(0, 1), 8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    turned = np.ascontiguousarray(turned)
    file = io.BytesIO()
    if kind == "tiff":
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(turned).save(file, "tiff", exif=exif)
        content = file.getvalue()
    elif kind == "16 bits per colour":
        imagecodecs = pytest.importorskip("imagecodecs")
        content = with_late_exif(imagecodecs.png_encode(turned), orientation)
    else:
        Image.fromarray(turned).save(file, "png")
        content = with_late_exif(file.getvalue(), orientation)
    info = inspect_image(content)
    channels = 3 if upright.ndim == 3 else 1
    assert (info.channels, info.height, info.width, info.depth) == (
        channels,
        8,
        16,
        upright.dtype.name,
    )
    read = decode(content, ImageSpec(channels, 8, 16, depth=info.depth))
    assert np.array_equal(read.transpose(1, 2, 0).squeeze(), upright)


def test_transparent_pixels_of_16_bits_are_white(tmp_path):
    grey = np.array([[5, 300, 40000], [300, 7, 65535]], np.uint16)
    Image.fromarray(grey).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    header = content.index(b"IDAT") - 4
    content = content[:header] + png_chunk(b"tRNS", struct.pack(">H", 300)) + content[header:]
    read = decode(content, ImageSpec(1, 2, 3, depth="uint16"))
    assert np.array_equal(read[0], np.where(grey == 300, 65535, grey))


def save_files(folder, arrays, ending):
    folder.mkdir()
    for i, array in enumerate(arrays):
        if ending == "npy":
            np.save(folder / f"{i:03d}.npy", array)
        else:
            Image.fromarray(array).save(folder / f"{i:03d}.{ending}")


FILES = [("uint16", "png"), ("uint16", "tif"), ("int32", "tif"), ("float32", "tif")]
FILES += [("float64", "npy"), ("uint16", "npy"), ("int16", "npy")]


@pytest.mark.parametrize(("dtype", "ending"), FILES)
def test_files_of_more_than_8_bits_share_one_range(dtype, ending, tmp_path):
    rng = np.random.default_rng(0)
    arrays = (rng.integers(0, 900, (12, 5, 6)) * 7 + 30 * np.arange(12)[:, None, None]).astype(
        dtype
    )
    save_files(tmp_path / "d", arrays, ending)
    data = load(tmp_path / "d")
    images = {name: split.images[:, 0].numpy() for name, split in data.splits.items()}
    low, high = data.value_range.low, data.value_range.high
    scaled = (arrays.astype(float) - low) / (high - low)
    which = [int(np.abs(scaled - x).max((1, 2)).argmin()) for x in images["train"]]
    train = arrays[which]
    assert (low, high) == (train.min(), train.max())
    for image in np.concatenate([*images.values()]):
        assert np.abs(scaled.clip(0, 1) - image).max((1, 2)).min() < 2e-7
    again = load(tmp_path / "d", range="0,8000")
    assert again.value_range.low == 0
    assert np.isclose(again.train.images.max(), train.max() / 8000)


def test_a_folder_of_different_types_is_refused(tmp_path):
    rng = np.random.default_rng(0)
    save_files(tmp_path / "d", rng.integers(0, 256, (5, 4, 4), dtype=np.uint8), "png")
    Image.fromarray(rng.integers(0, 9999, (4, 4)).astype(np.uint16)).save(
        tmp_path / "d" / "deep.png"
    )
    with pytest.raises(UserError, match=r"000\.png has uint8|deep\.png has uint16") as caught:
        load(tmp_path / "d")
    assert "convert them to one" in str(caught.value)


def test_npy_files_of_a_folder_may_have_any_channels(tmp_path):
    rng = np.random.default_rng(0)
    arrays = rng.random((12, 6, 7, 4), dtype=np.float32)
    save_files(tmp_path / "last", arrays, "npy")
    save_files(tmp_path / "first", arrays.transpose(0, 3, 1, 2), "npy")
    first, last = load(tmp_path / "first"), load(tmp_path / "last")
    assert first.shape == last.shape == (4, 6, 7)
    assert torch.equal(first.train.images, last.train.images)
    np.save(tmp_path / "last" / "x.npy", np.zeros((6, 6, 6)))
    with pytest.raises(UserError, match=r"array of shape \(6, 6, 6\); an image is"):
        load(tmp_path / "last")


def test_data_show_says_how_values_were_read(vaekit, tmp_path):
    rng = np.random.default_rng(0)
    array = rng.integers(-1024, 3072, (40, 8, 8)).astype(np.int16)
    array[:, 0, :2] = [-1024, 3071]
    np.save(tmp_path / "ct.npy", array)
    code, out, err = vaekit("data", "show", "ct.npy")
    assert code == 0
    assert "an array of shape (40, 8, 8) as 40 images of 8 x 8 pixels, grey" in err
    assert "int16 values, -1024 as 0 (black) to 3071 as 1 in 4,096 levels" in err
    rows = {
        line.split("│")[1].strip(): line.split("│")[2].strip()
        for line in out.splitlines()
        if "│" in line
    }
    assert rows["smallest value"] == "-1024"
    assert rows["largest value"] == "3071"
