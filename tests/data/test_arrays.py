"""Arrays as data sets: shapes and types, .npy and .npz files, folders of .npy files, map-style datasets."""

import numpy as np
import pytest
import torch
from PIL import Image

from image_folders import load
from vaekit import UserError, evaluate, train
from vaekit import build as build_model
from vaekit.data.sources.arrays import parse_array_names

RNG = np.random.default_rng(2)
IMAGES = RNG.integers(0, 256, (20, 6, 5, 3), dtype=np.uint8)
LABELS = np.arange(20) % 4


def sorted_images(data) -> list[bytes]:
    images = torch.cat([split.images[:] for split in data.splits.values()]).numpy()
    return sorted(image.tobytes() for image in images)


CHANNELS_FIRST = IMAGES.transpose(0, 3, 1, 2)
EXPECTED = sorted(image.tobytes() for image in CHANNELS_FIRST)


@pytest.mark.parametrize(
    "array",
    [IMAGES, CHANNELS_FIRST, torch.from_numpy(IMAGES), torch.from_numpy(CHANNELS_FIRST.copy()), IMAGES.astype(np.int64),
     IMAGES.astype(np.float64)],
)  # fmt: skip
def test_images_of_any_axis_order_and_type(array):
    data = load(array)
    assert data.shape == (3, 6, 5)
    assert data.train.images.dtype == torch.uint8
    assert sorted_images(data) == EXPECTED
    assert data.likelihood == "logistic"
    assert data.source is None


def test_floats_are_gaussian_and_bits_bernoulli():
    assert load(RNG.random((10, 4, 4), dtype=np.float32)).likelihood == "gaussian"
    assert load(RNG.random((10, 4, 4)) > 0.5).likelihood == "bernoulli"
    assert load(255 * (RNG.random((10, 4, 4)) > 0.5).astype(np.uint8)).likelihood == "bernoulli"


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((10, 784)), "an array of shape"),
        (np.zeros((0, 4, 4), np.uint8), "an array of shape"),
        (np.zeros((10, 4, 0), np.uint8), "an array of shape"),
        (np.full((10, 4, 4), -1.0), "all training values are -1"),
        (np.full((10, 4, 4), 1.5), "all training values are 1.5"),
        (np.full((10, 4, 4), 256), "all training values are 256"),
        (np.full((10, 4, 4), np.nan), "160 values are not finite"),
        (np.full((10, 4, 4), np.inf), "160 values are not finite"),
        (np.full((10, 4, 4), "x"), "pixels must be numbers"),
        (np.full((10, 4, 4), None), "pixels must be numbers"),
        (np.zeros((2, 1, 4, 4), np.uint8), "at least 3 are needed"),
        ((IMAGES, LABELS[:-1]), "20 images but 19 labels"),
        ((IMAGES, LABELS + 0.5), "must be whole numbers"),
        ((IMAGES, LABELS - 1), "labels must be 0 or more"),
        ((IMAGES, np.zeros((20, 2), int)), "must be whole numbers"),
        ({"test": IMAGES}, "the keys test; they must be train"),
        ({}, r"the dict has the keys \(none\)"),
        ({"train": IMAGES, "extra": IMAGES}, "the keys train, extra; they must be train"),
        ({"train": IMAGES, "test": IMAGES[:, :3]}, "differ from the training images"),
        (3, "no images in an object of type int"),
        ([], "the dataset is empty"),
        ([np.zeros((3, 3)), np.zeros((3, 4))], "differ in shape"),
    ],
)
def test_invalid_arrays_are_refused(array, message):
    with pytest.raises(UserError, match=message) as caught:
        load(array)
    assert "\n" not in str(caught.value)


def test_labels_and_splits():
    data = load((IMAGES, LABELS.astype(np.uint8)[:, None]), test_share=0.2, validation_share=0.25)
    assert [len(split) for split in data.splits.values()] == [12, 4, 4]
    assert data.test.labels.bincount().tolist() == [1, 1, 1, 1]
    given = load(
        {
            "train": (IMAGES, LABELS),
            "validation": (IMAGES[:4], LABELS[:4]),
            "test": (IMAGES[:3], LABELS[:3]),
        }
    )
    assert [len(split) for split in given.splits.values()] == [20, 4, 3]
    assert np.array_equal(given.train.images, CHANNELS_FIRST)
    assert given.train.labels.tolist() == LABELS.tolist()


def test_map_style_datasets():
    class Pairs:
        def __init__(self, items):
            self.items = items

        def __len__(self):
            return len(self.items)

        def __getitem__(self, index):
            return self.items[index]

    pairs = zip(IMAGES, LABELS.tolist(), strict=True)
    pil_images = [(Image.fromarray(image), label) for image, label in pairs]
    for items in (
        pil_images,
        [(torch.from_numpy(np.array(image)).permute(2, 0, 1), y) for image, y in pil_images],
        list(zip(IMAGES, LABELS, strict=True)),
    ):
        data = load(Pairs(items))
        assert sorted_images(data) == EXPECTED
        assert data.class_count == 4
    assert load(Pairs(list(IMAGES))).class_count == 0
    dataset = torch.utils.data.TensorDataset(torch.from_numpy(IMAGES), torch.from_numpy(LABELS))
    assert sorted_images(load(dataset)) == EXPECTED


NAMINGS = [
    {"x_train": "train", "y_train": "train-labels", "x_test": "test", "y_test": "test-labels"},
    {"train_images": "train", "train_labels": "train-labels", "val_images": "validation",
     "val_labels": "validation-labels", "test_images": "test", "test_labels": "test-labels"},
    {"images": "train", "labels": "train-labels"},
    {"full_x": "train", "full_y": "train-labels"},
    {"arr_0": "train"},
    {"train": "train", "valid": "validation", "test": "test"},
]  # fmt: skip


@pytest.mark.parametrize("naming", NAMINGS, ids=lambda names: " ".join(names))
@pytest.mark.parametrize("kind", ["npz", "npz-packed", "folder"])
def test_files_of_arrays_with_the_usual_names(naming, kind, tmp_path):
    given = {name: LABELS if "labels" in role else IMAGES for name, role in naming.items()}
    path = tmp_path / "d.npz"
    if kind == "folder":
        path = tmp_path / "d"
        path.mkdir()
        for name, array in given.items():
            np.save(path / f"{name}.npy", array)
    else:
        (np.savez_compressed if "packed" in kind else np.savez)(path, **given)
    data = load(path)
    assert data.name == "d"
    splits = {role for role in naming.values() if "labels" not in role}
    if splits == {"train"}:
        assert sorted_images(data) == EXPECTED
    for split in splits - {"train"}:
        assert np.array_equal(data.splits[split].images[:], CHANNELS_FIRST)
    assert (data.class_count == 4) == any("labels" in role for role in naming.values())


def test_array_names_that_are_not_understood():
    assert parse_array_names(["images", "weights"]) is None
    assert parse_array_names(["labels"]) is None
    assert parse_array_names(["test_images"]) is None
    assert parse_array_names(["x_train", "train_x"]) is None
    assert parse_array_names([]) is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: np.savez(p, weights=IMAGES), "has the arrays weights; name them images"),
        (lambda p: np.savez(p), r"has the arrays \(none\)"),
        (lambda p: np.savez(p, images=IMAGES, test_labels=LABELS), "labels without their images"),
        (lambda p: np.savez(p, images=np.array([{}])), r"cannot be read \(Object arrays"),
        (lambda p: p.write_bytes(b"hello"), "cannot be read"),
        (lambda p: p.write_bytes(b""), "cannot be read"),
        (
            lambda p: np.savez_compressed(p, images=np.zeros((2**29, 1, 1), np.uint8)),
            "times its size",
        ),
    ],
)
def test_a_bad_npz_is_reported_in_one_line(make, message, tmp_path):
    path = tmp_path / "d.npz"
    make(path)
    with pytest.raises(UserError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_bad_npy_is_reported_in_one_line(tmp_path):
    path = tmp_path / "d.npy"
    np.save(path, IMAGES)
    content = path.read_bytes()
    for bad in (content[:-1], content[:40], b"", b"hello", content.replace(b"(20,", b"(99,")):
        path.write_bytes(bad)
        with pytest.raises(UserError, match="cannot be read") as caught:
            load(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    np.save(path, np.array([{}]), allow_pickle=True)
    with pytest.raises(UserError, match="cannot be read"):
        load(path)


def test_a_run_on_arrays_needs_them_again(tmp_path):
    data = load((IMAGES, LABELS))
    model = build_model("vae", data, latent_dim=2, hidden_dim=8)
    run = train(model, data, out=tmp_path / "run", epochs=1, progress=False)
    with pytest.raises(UserError, match="was trained on arrays; pass them"):
        evaluate(run, samples=2)
    assert evaluate(run, samples=2, data=data)["images"] == 2
