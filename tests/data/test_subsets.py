"""Fewer images of a data set: `mnist:N`, --train-images, --validation-images; a folder named like a data set."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import random_dataset
from image_folders import load, save_images
from vaekit import UserError, load_data
from vaekit.data import reload
from vaekit.data.sources import locations
from vaekit.data.sources.named import READERS
from vaekit.data.splits import subset_order
from vaekit.runs.directory import Run
from vaekit.settings.data import SourceConfig

RNG = np.random.default_rng(5)
IMAGES = RNG.integers(0, 256, (200, 4, 5), dtype=np.uint8)
LABELS = np.repeat([0, 1, 2], [120, 60, 20])


def test_the_first_training_images_of_mnist(mnist, monkeypatch):
    monkeypatch.setitem(READERS, "mnist", lambda *_: mnist)
    data = load("mnist:1000")
    # That of earlier versions, whose runs are on this data set.
    assert data.sha256() == "379b5f65e15813147c02b947e8fe1c06c6d94d7748b5583c5c5579dbd2f55a25"
    assert data.sha256() == load("MNIST", train_images=1000).sha256() != mnist.sha256()
    assert torch.equal(data.train.images, mnist.train.images[:1000])
    assert len(data.validation) == len(data.test) == 10_000
    both = load("mnist:1000", train_images=1000, validation_images=50)
    assert torch.equal(both.train.labels, mnist.train.labels[:1000])
    assert torch.equal(both.validation.images, mnist.validation.images[:50])
    assert torch.equal(both.test.images, mnist.test.images)


@pytest.mark.parametrize("name", ["fashionmnist", "cifar10", "binarizedmnist", "freyface"])
def test_the_first_training_images_of_any_named_data_set(name, monkeypatch, tmp_path):
    whole = random_dataset(kind="grey")
    monkeypatch.setitem(READERS, name, lambda *_: whole)
    monkeypatch.setattr("vaekit.data.loading.locate", lambda *_: tmp_path)
    data = load(f"{name}:7", validation_images=3)
    assert torch.equal(data.train.images, whole.train.images[:7])
    assert torch.equal(data.validation.images, whole.validation.images[:3])
    assert data.test is whole.test
    assert load(f"{name}:20").sha256() == load(name).sha256()


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("mnist:601", {}, "train_images is 601, but mnist has 600 training images; give at most"),
        ("mnist", {"validation_images": 201}, "mnist has 200 validation images"),
        ("mnist:0", {}, "train_images is 0; it must be at least 1"),
        ("mnist", {"train_images": -5}, "train_images is -5; it must be at least 1"),
        ("mnist", {"train_images": 2.5}, "train_images is 2.5; it must be a whole number or null"),
        ("mnist:1000", {"train_images": 999}, "mnist:1000 and train_images 999 are different"),
        ("mnist:1e3", {}, r"mnist has no variant '1e3' \(variants: mnist:1000, the number of"),
        ("freyface:avb", {}, r"did you mean 'aevb'\? \(variants: freyface:aevb, freyface:ordered"),
        ("digits:2", {}, "train_images is 2, but there are 3 classes"),
    ],
)
def test_numbers_of_images_that_cannot_be(name, settings, message, small_mnist, monkeypatch):
    monkeypatch.setitem(READERS, "digits", lambda *_: random_dataset())
    with pytest.raises(UserError, match=message) as caught:
        load(name, **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", ["array", "folder", "folder on disk", "folder with splits"])
def test_other_images_are_chosen_by_the_seed_with_classes_in_proportion(source, tmp_path):
    if source == "array":
        path, options = (IMAGES, LABELS), {}
    else:
        parts = ("train/", "test/", "validation/") if "splits" in source else ("",)
        counts = {"a": 48, "b": 24, "c": 8}
        names = [f"{p}{c}/{i}.png" for p in parts for c, n in counts.items() for i in range(n)]
        save_images(tmp_path / "d", names)
        path, options = tmp_path / "d", {"in_memory": "no" if "disk" in source else "yes"}
    whole = load(path, **options)
    small = [load(path, train_images=n, validation_images=5, **options) for n in (20, 20, 40)]
    rows = {image.numpy().tobytes(): i for i, image in enumerate(whole.train.images[:])}
    chosen = [[rows[image.numpy().tobytes()] for image in d.train.images[:]] for d in small]
    assert chosen[0] == chosen[1] == sorted(chosen[0])
    assert set(chosen[0]) < set(chosen[2])  # a larger subset has the smaller one
    for data, found in zip(small, chosen, strict=True):
        assert torch.equal(data.train.labels, whole.train.labels[torch.tensor(found)])
        assert torch.equal(data.test.images[:], whole.test.images[:])
        assert len(data.validation) == 5
        share = len(data.train) / len(whole.train)
        expected = whole.train.labels.bincount() * share
        assert ((data.train.labels.bincount() - expected).abs() <= 1.5).all()
    hashes = [data.sha256() for data in (whole, *small)]
    assert hashes[1] == hashes[2]
    assert len(set(hashes)) == 3
    if "folder" in source:
        assert small[0].source.train_images == 20
        assert reload(small[0].source, None, "run").sha256() == hashes[1]
    other = load(path, train_images=20, split_seed=1, **options)
    assert other.sha256() != hashes[1]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.integers(0, 9), st.booleans())
@settings(max_examples=100, deadline=None)
def test_first_rows_of_a_subset_order_have_all_classes(labels, seed, labelled):
    y = torch.tensor(labels)
    order = subset_order(y if labelled else None, len(y), [seed])
    assert order.sort().values.tolist() == list(range(len(y)))
    assert torch.equal(order, subset_order(y if labelled else None, len(y), [seed]))
    if labelled:
        sizes = y.bincount(minlength=6)
        classes = int((sizes > 0).sum())
        assert y[order[:classes]].unique().numel() == classes
        for number in range(classes, len(y) + 1):
            found = y[order[:number]].bincount(minlength=6)
            expected = (sizes > 0) + (sizes - 1).clamp(min=0) * (number - classes) / max(
                1, len(y) - classes
            )
            assert ((found - expected).abs() <= 2).all()


def test_one_order_is_not_another():
    orders = {tuple(subset_order(None, 50, [seed, 3])[:10].tolist()) for seed in range(5)}
    assert len(orders) == 5


def test_the_command_line_records_the_numbers_and_older_runs_load(vaekit, small_mnist):
    flags = ["--train-images", 90, "--validation-images", 40]
    small = ["--latent-dim", 2, "--hidden-dim", 8, "--epochs", 1]
    code, _, err = vaekit("train", "vae", "--data", "mnist", *flags, *small, "--out", "run")
    assert code == 0, err
    run = Run("run")
    config = json.loads((run.path / "config.json").read_text())
    assert config["data"]["images"] == {"train": 90, "validation": 40, "test": 200}
    assert run.source == SourceConfig(train_images=90, validation_images=40)
    assert reload(run.source, None, "run").sha256() == run.data.sha256
    for name in ("train_images", "validation_images"):
        del config["data"]["source"][name]
    (run.path / "config.json").write_text(json.dumps(config))
    assert Run("run").source == SourceConfig()


# A folder with the name of a data set


@pytest.mark.parametrize("folder", ["MNIST", "mnist", "M_nist"])
def test_a_folder_with_the_name_of_a_data_set_is_said(folder, tmp_path, monkeypatch, capsys):
    save_images(tmp_path / folder, [f"{i}.png" for i in range(6)])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(READERS, "mnist", lambda *_: random_dataset(name="mnist"))
    text = f"the data set mnist, not the folder {folder} here; name that ./{folder}"
    data = load_data("mnist")
    assert data.name == "mnist"
    assert data.reading == (text,)
    assert capsys.readouterr().err.strip() == text
    data = load_data(f"./{folder}")
    assert data.name == folder
    assert data.shape == (1, 6, 5)
    assert not [line for line in data.reading if "not the folder" in line]


def test_the_folder_of_the_data_set_itself_is_not_said(tmp_path, monkeypatch):
    (tmp_path / "mnist").mkdir()
    for file in locations.PACKAGED_MNIST.iterdir():
        (tmp_path / "mnist" / file.name).symlink_to(file)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(READERS, "mnist", lambda *_: random_dataset(name="mnist"))
    assert load("mnist", data_dir=".").reading == ()
    assert load("mnist", data_dir="mnist").reading == ()
    monkeypatch.setenv("VAEKIT_DATA", str(tmp_path))
    assert load("mnist").reading == ()
    monkeypatch.delenv("VAEKIT_DATA")
    assert len(load("mnist").reading) == 1  # the package has its own


def test_a_subset_does_not_keep_the_rest_in_memory():
    data = load((IMAGES, LABELS), train_images=20)
    assert data.train.images.untyped_storage().nbytes() == data.train.images.nbytes
