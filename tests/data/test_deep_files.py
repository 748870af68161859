"""Files of more than 8 bits that Pillow scales or shortens are read value by value; odd arrays are refused."""

import imagecodecs
import numpy as np
import pytest
import torch
from PIL import Image

from image_folders import all_images, load
from vaekit import Dataset, Split, UserError
from vaekit.cli.main import main
from vaekit.data.formats.images import ImageSpec, decode, inspect_image

RNG = np.random.default_rng(5)
GREY = RNG.integers(0, 4096, (6, 5), dtype=np.uint16)
COLOUR = RNG.integers(0, 65536, (6, 5, 3), dtype=np.uint16)


def jp2(array, **options):
    return imagecodecs.jpeg2k_encode(array, level=0, codecformat="jp2", reversible=True, **options)


FILES = {
    "PGM of 12 bits": (b"P5 5 6 4095\n" + GREY.astype(">u2").tobytes(), GREY, "uint16"),
    "PGM of text": (b"P2 5 6 4095\n" + b" ".join(b"%d" % v for v in GREY.flat), GREY, "uint16"),
    "PGM of 16 bits": (b"P5 5 6 65535\n" + GREY.astype(">u2").tobytes(), GREY, "uint16"),
    "PPM of 16 bits": (b"P6 5 6 65535\n" + COLOUR.astype(">u2").tobytes(), COLOUR, "uint16"),
    "JPEG 2000 of 12 bits": (jp2(GREY, bitspersample=12), GREY, "uint16"),
    "JPEG 2000 in colour": (jp2(COLOUR), COLOUR, "uint16"),
    "JPEG 2000 with signs": (jp2(GREY.astype(np.int16) - 99), GREY.astype(int) - 99, "int16"),
}


@pytest.mark.parametrize("kind", FILES)
def test_every_value_of_a_deep_file_is_read_as_it_is(kind):
    content, values, depth = FILES[kind]
    info = inspect_image(content)
    channels = values.shape[2] if values.ndim == 3 else 1
    assert (info.channels, info.height, info.width, info.depth) == (channels, 6, 5, depth)
    read = decode(content, ImageSpec(channels, 6, 5, depth=depth))
    assert np.array_equal(read.transpose(1, 2, 0).squeeze(), values)


def test_grey_of_16_bits_with_transparency_is_grey():
    white = np.full_like(GREY, 65535)
    content = imagecodecs.png_encode(np.stack([GREY, white], axis=-1))
    assert inspect_image(content).channels == 1
    assert np.array_equal(decode(content, ImageSpec(1, 6, 5, depth="uint16"))[0], GREY)


@pytest.mark.parametrize("first", [Image.fromarray(GREY.astype(np.uint8)), None])
def test_16_bits_are_not_read_as_8_after_a_first_file_of_8_or_none(first, tmp_path):
    for i in range(1, 6):
        Image.fromarray(GREY + np.uint16(i)).save(tmp_path / f"{i}.png")
    if first is None:
        (tmp_path / "0.png").write_bytes(b"")
        data = load(tmp_path, size="6x5", colour="grey", skip_bad=True)
        assert data.value_range.dtype == "uint16"
    else:
        first.save(tmp_path / "0.png")
        with pytest.raises(UserError, match=r"5 of 6 images .*its values are uint16, not uint8"):
            load(tmp_path, size="6x5", colour="grey")


def test_64_bit_floats_that_float32_cannot_tell_apart_are_refused(tmp_path):
    for i in range(5):
        np.save(tmp_path / f"{i}.npy", 1e9 + RNG.random((6, 5)))
    with pytest.raises(UserError, match="float32 cannot hold its values from 1e\\+09 to 1e\\+09"):
        load(tmp_path)
    for i in range(5):  # even but for the rounding of the program that wrote it
        np.save(
            tmp_path / f"{i}.npy", np.full((6, 5), i + 0.1) + 1e-16 * RNG.integers(0, 9, (6, 5))
        )
    assert len(all_images(load(tmp_path))) == 5


def test_masked_values_are_not_read():
    images = RNG.integers(0, 256, (9, 6, 5), dtype=np.uint8)
    masked = np.ma.masked_greater(images, 250)
    count = int(masked.mask.sum())
    for data in (masked, (images, np.ma.masked_equal(np.arange(9) % 3, 5)), [*masked]):
        if isinstance(data, tuple):
            assert len(all_images(load(data))) == 9
            continue
        with pytest.raises(UserError, match="values of the images are masked; fill them"):
            load(data)
    with pytest.raises(UserError, match=f"{count} values of the images"):
        load(masked)
    with pytest.raises(UserError, match="3 values of the labels are masked"):
        load((images, np.ma.masked_equal(np.arange(9) % 3, 2)))


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x.to_sparse(),
        lambda x: torch.quantize_per_tensor(x, 1.0, 0, torch.quint8),
        lambda x: x.to("meta"),
        lambda x: torch.nested.nested_tensor([*x]),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_without_rows_of_values_are_refused_in_a_line(make):
    with pytest.raises(UserError, match=r"images in a .* tensor .* give a dense tensor") as caught:
        load(make(torch.rand(9, 6, 5)))
    assert "\n" not in str(caught.value)


def test_floats_of_8_bits_are_read():
    x = torch.rand(9, 6, 5).to(torch.float8_e4m3fn)
    expected = sorted(image.numpy().tobytes() for image in x.float())
    assert sorted(image.tobytes() for image in all_images(load(x))) == expected


def test_grey_images_on_the_last_axis_are_not_taken_for_rows():
    x = RNG.integers(0, 256, (7, 7, 60), dtype=np.uint8)
    with pytest.raises(UserError, match="60 images of 7 x 7 pixels, as MATLAB stores them"):
        load(x)
    assert load(x[:, None]).shape == (1, 7, 60)
    assert load(np.moveaxis(x, -1, 0)).shape == (1, 7, 7)


def test_tensors_with_gradients_are_images_without():
    x = torch.rand(9, 1, 6, 5).requires_grad_()
    data = Dataset("x", Split(x), Split(x), Split(x))
    plain = Dataset("x", *[Split(x.detach())] * 3)
    assert not data.train.images.requires_grad
    assert data.sha256() == plain.sha256()


def test_arrays_are_not_prepared_as_one_image(tmp_path, monkeypatch, capsys):
    np.save(tmp_path / "a.npy", RNG.integers(0, 256, (9, 6, 5), dtype=np.uint8))
    monkeypatch.setattr("sys.argv", ["vaekit", "data", "prepare", str(tmp_path / "a.npy")])
    with pytest.raises(SystemExit):
        main()
    assert (
        "has arrays, which need no preparing; give it to --data as it is" in capsys.readouterr().err
    )
