"""Dataset and Split: the packaged MNIST, pixels and binarisation; valid and damaged IDX files and image files."""

import gzip

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import random_dataset
from made_files import idx_bytes
from vaekit import Dataset, Split, UserError, load_data
from vaekit.data import eval_split, pixels
from vaekit.data.dataset import bernoulli_from_bytes, binarise
from vaekit.data.formats.idx import read_idx
from vaekit.data.sources import inputs
from vaekit.data.sources.catalog import CATALOG
from vaekit.support.console import ProgressBar

MNIST_FILES = [file.name for file in CATALOG["mnist"].files]


def test_mnist_is_the_original(mnist):
    assert [len(split) for split in mnist.splits.values()] == [50_000, 10_000, 10_000]
    assert mnist.shape == (1, 28, 28)
    assert mnist.train.images.dtype == torch.uint8
    x = torch.cat([mnist.train.images, mnist.validation.images]).float() / 255
    assert x.mean().item() == pytest.approx(0.1307, abs=5e-5)
    assert x.std().item() == pytest.approx(0.3081, abs=5e-5)
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
    int32 = Split(data.train.images.int())
    with pytest.raises(UserError, match="must be uint8, or float32"):
        Dataset("x", int32, int32, int32)
    for bad in (data.train.images.double(), data.train.images.float()):
        with pytest.raises(UserError, match=r"float32 in|must lie in"):
            Dataset("x", *[Split(bad)] * 3)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(3, dtype=torch.int64), "20 images but 3 labels"),
        (torch.zeros(20), "a tensor of whole numbers"),
        (torch.zeros(20, dtype=torch.bool), "a tensor of whole numbers"),
        (torch.zeros(20, 1, dtype=torch.int64), "a tensor of whole numbers"),
        (np.zeros(20, dtype=np.int64), "a tensor of whole numbers"),
        (torch.full((20,), -1), "labels must be 0 or more"),
    ],
)
def test_invalid_labels_are_refused(labels, message):
    split = Split(random_dataset().train.images, labels)
    with pytest.raises(UserError, match=message):
        Dataset("x", split, split, split)


def test_labels_of_any_integer_type_become_int64():
    """uint8 labels, as in IDX files, would index as a mask."""
    split = Split(random_dataset().train.images, torch.arange(20, dtype=torch.uint8) % 3)
    assert split.labels.dtype == torch.int64
    assert Dataset("x", split, split, split).class_count == 3


def test_the_hash_depends_on_every_pixel_and_label():
    first, second = random_dataset(), random_dataset()
    assert first.sha256() == second.sha256()
    second.test.images[3, 0, 2, 2] ^= 1
    assert first.sha256() != second.sha256()
    third = random_dataset()
    third.test.labels[0] += 1
    assert first.sha256() != third.sha256()


# Pixels


@pytest.mark.parametrize("kind", ["uint8", "float"])
def test_dynamic_binarisation_samples_with_the_pixels_probability(kind):
    """For 200,000 samples of each of 256 levels: chi-square within 4 standard deviations (1 seed in 16,000 fails)."""
    torch.manual_seed(0)
    count = 200_000
    levels = torch.arange(256, dtype=torch.uint8)
    images = levels if kind == "uint8" else levels.double() / 255
    ones = sum(
        pixels(images.repeat(1000, 1), "dynamic").sum(0, dtype=torch.float64) for _ in range(200)
    )
    p = levels.double() / 255
    assert ones[0] == 0
    assert ones[255] == count
    inner = slice(1, 255)
    chi2 = ((ones - count * p) ** 2 / (count * p * (1 - p)))[inner].sum().item()
    assert abs(chi2 - 254) < 4 * (2 * 254) ** 0.5


def test_the_probability_of_a_level_is_exact():
    """The mean over all equally likely random numbers is level / 255."""
    levels, byte = torch.arange(256)[:, None, None], torch.arange(256)[:, None]
    ones = bernoulli_from_bytes(levels, byte, torch.arange(255)).sum((1, 2))
    assert torch.equal(ones * 255, torch.arange(256) * 256 * 255)


def test_the_bits_of_one_random_word_are_independent():
    """For 2^20 pixels at level 128: mean and correlation of the 8 positions in a word and pairs of them, within 5
    standard deviations (about 1 seed in 40,000 fails)."""
    torch.manual_seed(0)
    bits = binarise(torch.full((2**7, 2**13), 128, dtype=torch.uint8)).view(-1, 8).double()
    p, count = 128 / 255, len(bits)
    centred = bits - p
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


def test_the_evaluation_binarisation_is_the_same_for_all(mnist):
    test = mnist.test[:500]
    torch.manual_seed(1)
    first = eval_split(test, "dynamic")[:]
    torch.manual_seed(2)
    second = eval_split(test, "dynamic")[:]
    assert torch.equal(first.images, second.images)
    assert set(first.images.unique().tolist()) == {0.0, 1.0}
    grey = test.images.float() / 255
    deviation = (grey * (1 - grey)).sum().sqrt()
    assert abs(first.images.sum() - grey.sum()) < 4 * deviation
    assert (first.images[test.images == 255] == 1).all()
    assert (first.images[test.images == 0] == 0).all()
    # Every published result depends on these bits: a change must not go unnoticed.
    assert int(eval_split(mnist.test, "dynamic")[:].images.sum()) == BINARISED_TEST_ONES


BINARISED_TEST_ONES = 1_038_696


def test_auto_binarisation_depends_on_the_likelihood():
    data = random_dataset()
    assert data.binarisation("auto", "bernoulli") == "dynamic"
    assert data.binarisation("none", "bernoulli") == "none"
    assert data.binarisation("auto", "gaussian") == "none"
    with pytest.raises(UserError, match="needs likelihood bernoulli"):
        data.binarisation("dynamic", "logistic")


# IDX files


ARRAY = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)


@pytest.mark.parametrize("packed", [True, False])
def test_idx_round_trip(tmp_path, packed):
    content = idx_bytes(ARRAY)
    (tmp_path / "a").write_bytes(gzip.compress(content) if packed else content)
    assert np.array_equal(read_idx(tmp_path / "a", 3).numpy(), ARRAY)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: b[:-1], "is damaged"),
        (lambda b: b + b"x", "is damaged"),
        (lambda b: b"\x00\x00\x0d\x03" + b[4:], "not an IDX file"),
        (lambda b: b[:4] + b"\xff\xff\xff\xff" + b[8:], "is damaged"),
        (lambda b: b[:7], "not an IDX file"),
        (lambda b: b"", "not an IDX file"),
        (lambda b: b"hello", "not an IDX file"),
        (lambda b: gzip.compress(b)[:-9], "cannot be read"),
        (lambda b: gzip.compress(b)[:20] + b"\x00" * 30, "cannot be read"),
        (lambda b: b[:-1] + b"\x00", "not the original"),
    ],
)
def test_a_bad_idx_file_is_reported_in_one_line(tmp_path, damage, message):
    import hashlib

    content = idx_bytes(ARRAY)
    path = tmp_path / "images-idx3-ubyte"
    path.write_bytes(damage(content))
    with pytest.raises(UserError, match=message) as caught:
        read_idx(path, 3, hashlib.md5(content, usedforsecurity=False).hexdigest())
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_data_dir_is_the_folder_or_its_parent(tmp_path, mnist, monkeypatch):
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


def test_an_unknown_data_set_suggests_the_closest():
    with pytest.raises(UserError, match="did you mean 'mnist'"):
        load_data("mnits")


# Image files


def read_images(paths, shape, log=lambda text: None):
    bar = ProgressBar(False)
    bar.log = log
    return inputs.read_images(inputs.find_image_files(paths), shape, bar)


def test_conversions_of_images_are_logged(tmp_path):
    Image.fromarray(np.full((4, 6), 200, np.uint8)).save(tmp_path / "grey.png")
    Image.fromarray(np.full((8, 8, 3), 100, np.uint8)).save(tmp_path / "colour.png")
    (tmp_path / "notes.txt").write_text("ignored in a folder")
    (tmp_path / "paper.pdf").write_text("ignored too")
    (tmp_path / "more.png").mkdir()
    lines = []
    read = read_images([tmp_path], (1, 4, 6), lines.append)
    assert read.shape == (2, 1, 4, 6)
    assert read.dtype == torch.uint8
    assert read.flatten(1).float().mean(1).tolist() == [100, 200]
    assert len(lines) == 1
    assert "colour to grey" in lines[0]
    assert "8 x 8 to 6 x 4" in lines[0]
    assert read_images([tmp_path / "grey.png"], (3, 4, 6), lines.append).shape == (1, 3, 4, 6)


def test_transparent_pixels_are_white_and_16_bits_are_scaled(tmp_path):
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[0, 0] = (0, 0, 0, 255)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    Image.fromarray(np.array([[0, 257, 257 * 100, 65535]], np.uint16)).save(tmp_path / "b.png")
    read = read_images([tmp_path / "a.png"], (1, 4, 4))[0, 0]
    assert read[0, 0] == 0
    assert (read.flatten()[1:] == 255).all()
    read = read_images([tmp_path / "b.png"], (1, 1, 4))
    assert read.flatten().tolist() == [0, 1, 100, 255]


def test_pixels_of_an_image_file_are_unchanged(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(array).save(tmp_path / "a.png")
    read = read_images([tmp_path / "a.png"], (3, 5, 7))
    assert np.array_equal(read[0].permute(1, 2, 0).numpy(), array)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p.write_text("hello"), "it is not an image"),
        (lambda p: p.write_bytes(b""), "it is empty"),
        (lambda p: p.write_bytes(b"\x89PNG\r\n\x1a\n" + b"\x00" * 9), "cannot be read"),
        (lambda p: None, "there is no image"),
        (lambda p: p.mkdir(), "has no image files"),
    ],
)
def test_a_bad_image_file_is_reported_in_one_line(tmp_path, make, message):
    path = tmp_path / "digit.png"
    make(path)
    with pytest.raises(UserError, match=message) as caught:
        read_images([path], (1, 28, 28))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
