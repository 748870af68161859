"""Data: MNIST as it ships, pixels, binarisation, IDX files good and bad, image files."""

import gzip
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import random_dataset
from vaekit import Dataset, Split, UserError, load_data
from vaekit.data import freeze, pixels
from vaekit.data.dataset import bits, is_white
from vaekit.data.sources.catalog import SHELVES
from vaekit.data.sources.idx import read_idx
from vaekit.data.sources.images import read_images

MNIST_FILES = [file.name for file in SHELVES["mnist"].files]


def test_mnist_is_the_real_one(mnist):
    assert [len(split) for split in mnist.splits.values()] == [50_000, 10_000, 10_000]
    assert mnist.shape == (1, 28, 28)
    assert mnist.train.images.dtype == torch.uint8
    everything = torch.cat([mnist.train.images, mnist.validation.images]).float() / 255
    assert everything.mean().item() == pytest.approx(0.1307, abs=5e-5)
    assert everything.std().item() == pytest.approx(0.3081, abs=5e-5)
    # The first and last training digits are a 5 and an 8, the first test digit a 7.
    assert mnist.train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert mnist.validation.labels[-1] == 8
    assert mnist.test.labels[:3].tolist() == [7, 2, 1]
    assert mnist.likelihood == "bernoulli"


def test_splits_must_agree():
    data = random_dataset()
    other = random_dataset(shape=(1, 5, 5))
    with pytest.raises(UserError, match="differ from the training images"):
        Dataset("x", data.train, other.validation, data.test)
    whole = Split(data.train.images.int())
    with pytest.raises(UserError, match="must be uint8, or float32"):
        Dataset("x", whole, whole, whole)
    for bad in (data.train.images.double(), data.train.images.float()):
        with pytest.raises(UserError, match=r"float32 in|must lie in"):
            Dataset("x", *[Split(bad)] * 3)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (torch.zeros(3, dtype=torch.int64), "20 images but 3 labels"),
        (torch.zeros(20), "a tensor of whole numbers"),
        (torch.zeros(20, dtype=torch.bool), "a tensor of whole numbers"),
        (torch.zeros(20, 1, dtype=torch.int64), "a tensor of whole numbers"),
        (np.zeros(20, dtype=np.int64), "a tensor of whole numbers"),
        (torch.full((20,), -1), "labels must be 0 or more"),
    ],
)
def test_labels_that_are_none_are_refused(labels, said):
    split = Split(random_dataset().train.images, labels)
    with pytest.raises(UserError, match=said):
        Dataset("x", split, split, split)


def test_labels_of_any_whole_type_are_indices():
    """uint8 labels, as IDX files have them, would index as a mask."""
    split = Split(random_dataset().train.images, torch.arange(20, dtype=torch.uint8) % 3)
    assert split.labels.dtype == torch.int64
    assert Dataset("x", split, split, split).class_count == 3


def test_the_hash_sees_every_pixel_and_label():
    first, second = random_dataset(), random_dataset()
    assert first.sha256() == second.sha256()
    second.test.images[3, 0, 2, 2] ^= 1
    assert first.sha256() != second.sha256()
    third = random_dataset()
    third.test.labels[0] += 1
    assert first.sha256() != third.sha256()


# Pixels


@pytest.mark.parametrize("kind", ["uint8", "float"])
def test_dynamic_binarisation_draws_white_with_the_pixels_probability(kind):
    """Over 200,000 draws of each of 256 greys, chi-square within 4 standard deviations (1 seed in 16,000 fails)."""
    torch.manual_seed(0)
    count = 200_000
    levels = torch.arange(256, dtype=torch.uint8)
    images = levels if kind == "uint8" else levels.double() / 255
    white = sum(
        pixels(images.repeat(1000, 1), "dynamic").sum(0, dtype=torch.float64) for _ in range(200)
    )
    p = levels.double() / 255
    assert white[0] == 0
    assert white[255] == count
    inner = slice(1, 255)
    chi2 = ((white - count * p) ** 2 / (count * p * (1 - p)))[inner].sum().item()
    assert abs(chi2 - 254) < 4 * (2 * 254) ** 0.5


def test_a_level_is_white_in_exactly_so_many_of_255_cases():
    """All draws there are, of which each is as probable."""
    levels, drawn = torch.arange(256)[:, None, None], torch.arange(256)[:, None]
    white = is_white(levels, drawn, torch.arange(255)).sum((1, 2))
    assert torch.equal(white * 255, torch.arange(256) * 256 * 255)


def test_the_bytes_drawn_for_a_level_of_one_half_are_uniform():
    """Neighbours and bits: of 2^20 pixels at level 128, in each of 8 places of a word and pair of these, within 5
    standard deviations (about 1 seed in 40,000 fails)."""
    torch.manual_seed(0)
    white = bits(torch.full((2**7, 2**13), 128, dtype=torch.uint8)).view(-1, 8).double()
    p, count = 128 / 255, len(white)
    centred = white - p
    assert (centred.mean(0).abs() < 5 * (p * (1 - p) / count) ** 0.5).all()
    correlation = centred.mT @ centred / count / (p * (1 - p)) - torch.eye(8)
    assert (correlation.fill_diagonal_(0).abs() < 5 / count**0.5).all()


def test_other_binarisations():
    images = torch.tensor([0, 127, 128, 255], dtype=torch.uint8)
    assert pixels(images, "threshold").tolist() == [0, 0, 1, 1]
    assert pixels(images, "none").tolist() == pytest.approx([0, 127 / 255, 128 / 255, 1])
    floats = torch.tensor([0.0, 0.4, 0.6, 1.0])
    assert pixels(floats, "threshold").tolist() == [0, 0, 1, 1]
    assert pixels(floats, "none") is floats


def test_frozen_bits_are_drawn_once_for_everybody(mnist):
    test = mnist.test[:500]
    torch.manual_seed(1)
    first = freeze(test, "dynamic")[:]
    torch.manual_seed(2)
    second = freeze(test, "dynamic")[:]
    assert torch.equal(first.images, second.images)
    assert set(first.images.unique().tolist()) == {0.0, 1.0}
    grey = test.images.float() / 255
    spread = (grey * (1 - grey)).sum().sqrt()
    assert abs(first.images.sum() - grey.sum()) < 4 * spread
    assert (first.images[test.images == 255] == 1).all()
    assert (first.images[test.images == 0] == 0).all()
    # The bits themselves are part of every published number: they may not change unseen.
    assert int(freeze(mnist.test, "dynamic")[:].images.sum()) == FROZEN_TEST_WHITE


FROZEN_TEST_WHITE = 1_038_696


def test_binarisation_settles_by_the_likelihood():
    data = random_dataset()
    assert data.binarisation("auto", "bernoulli") == "dynamic"
    assert data.binarisation("none", "bernoulli") == "none"
    assert data.binarisation("auto", "gaussian") == "none"
    with pytest.raises(UserError, match="needs --likelihood bernoulli"):
        data.binarisation("dynamic", "logistic")


# IDX files


def idx_bytes(array: np.ndarray) -> bytes:
    return (
        bytes([0, 0, 8, array.ndim])
        + struct.pack(f">{array.ndim}I", *array.shape)
        + array.tobytes()
    )


ARRAY = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)


@pytest.mark.parametrize("packed", [True, False])
def test_idx_round_trip(tmp_path, packed):
    content = idx_bytes(ARRAY)
    (tmp_path / "a").write_bytes(gzip.compress(content) if packed else content)
    assert np.array_equal(read_idx(tmp_path / "a", 3).numpy(), ARRAY)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda b: b[:-1], "is damaged"),
        (lambda b: b + b"x", "is damaged"),
        (lambda b: b"\x00\x00\x0d\x03" + b[4:], "no IDX file"),
        (lambda b: b[:4] + b"\xff\xff\xff\xff" + b[8:], "is damaged"),
        (lambda b: b[:7], "no IDX file"),
        (lambda b: b"", "no IDX file"),
        (lambda b: b"hello", "no IDX file"),
        (lambda b: gzip.compress(b)[:-9], "cannot be read"),
        (lambda b: gzip.compress(b)[:20] + b"\x00" * 30, "cannot be read"),
        (lambda b: b[:-1] + b"\x00", "not the original"),
    ],
)
def test_a_bad_idx_file_is_named_in_one_line(tmp_path, damage, said):
    import hashlib

    content = idx_bytes(ARRAY)
    path = tmp_path / "images-idx3-ubyte"
    path.write_bytes(damage(content))
    with pytest.raises(UserError, match=said) as caught:
        read_idx(path, 3, hashlib.md5(content, usedforsecurity=False).hexdigest())
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_data_dir_is_the_folder_or_the_one_above_it(tmp_path, mnist, monkeypatch):
    import vaekit

    source = f"{vaekit.__path__[0]}/data/mnist"
    folder = tmp_path / "mnist"
    folder.mkdir()
    for name in MNIST_FILES:
        (folder / name).symlink_to(f"{source}/{name}")
    assert load_data("mnist", tmp_path).sha256() == mnist.sha256()
    assert load_data("mnist", folder).source.data_dir == str(folder)
    with pytest.raises(UserError, match="does not exist"):
        load_data("mnist", tmp_path / "nowhere")
    monkeypatch.setenv("VAEKIT_DATA", str(tmp_path))
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    assert load_data("mnist").sha256() == mnist.sha256()  # the package's own


def test_an_unknown_data_set_names_the_closest():
    with pytest.raises(UserError, match="did you mean 'mnist'"):
        load_data("mnits")


# Image files


def test_images_are_converted_with_a_notice(tmp_path):
    Image.fromarray(np.full((4, 6), 200, np.uint8)).save(tmp_path / "grey.png")
    Image.fromarray(np.full((8, 8, 3), 100, np.uint8)).save(tmp_path / "colour.png")
    (tmp_path / "notes.txt").write_text("not looked at in a folder")
    (tmp_path / "paper.pdf").write_text("nor this")
    (tmp_path / "more.png").mkdir()
    said = []
    read = read_images([tmp_path], (1, 4, 6), said.append)
    assert read.shape == (2, 1, 4, 6)
    assert read.dtype == torch.uint8
    assert read.flatten(1).float().mean(1).tolist() == [100, 200]
    assert len(said) == 1
    assert "colour to grey" in said[0]
    assert "8 x 8 to 6 x 4" in said[0]
    assert read_images([tmp_path / "grey.png"], (3, 4, 6), said.append).shape == (1, 3, 4, 6)


def test_transparent_pixels_are_white_and_16_bits_are_scaled(tmp_path):
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[0, 0] = (0, 0, 0, 255)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    Image.fromarray(np.array([[0, 257, 257 * 100, 65535]], np.uint16)).save(tmp_path / "b.png")
    read = read_images([tmp_path / "a.png"], (1, 4, 4), lambda text: None)[0, 0]
    assert read[0, 0] == 0
    assert (read.flatten()[1:] == 255).all()
    read = read_images([tmp_path / "b.png"], (1, 1, 4), lambda text: None)
    assert read.flatten().tolist() == [0, 1, 100, 255]


def test_pixels_of_an_image_file_are_kept(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(array).save(tmp_path / "a.png")
    read = read_images([tmp_path / "a.png"], (3, 5, 7), lambda text: None)
    assert np.array_equal(read[0].permute(1, 2, 0).numpy(), array)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda p: p.write_text("hello"), "it is no image"),
        (lambda p: p.write_bytes(b""), "it is empty"),
        (lambda p: p.write_bytes(b"\x89PNG\r\n\x1a\n" + b"\x00" * 9), "cannot be read"),
        (lambda p: None, "there is no image"),
        (lambda p: p.mkdir(), "has no image files"),
    ],
)
def test_a_bad_image_file_is_named_in_one_line(tmp_path, make, said):
    path = tmp_path / "digit.png"
    make(path)
    with pytest.raises(UserError, match=said) as caught:
        read_images([path], (1, 28, 28), lambda text: None)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
