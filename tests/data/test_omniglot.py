"""Omniglot: labels and splits from hand-made archives in the official layout, and files that are refused."""

import dataclasses
import hashlib

import numpy as np
import pytest
import torch

from made_files import OMNIGLOT_FIRST, burda_files, omniglot_files, omniglot_members, zip_bytes
from vaekit import UserError, load_data
from vaekit.data.sources import catalog
from vaekit.data.sources.omniglot import burda_split, split_drawings


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.delenv("VAEKIT_DATA", raising=False)
    monkeypatch.setenv("VAEKIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def put(monkeypatch, tmp_path):
    """put(name, files) writes files of a named data set, whose published hashes become theirs; returns their folder."""

    def write(name, files):
        folder = tmp_path / "files"
        folder.mkdir()
        remote = []
        for file, content in files.items():
            (folder / file).write_bytes(content)
            digest = f"md5:{hashlib.md5(content).hexdigest()}"
            remote.append(catalog.RemoteFile(file, ("http://gone/",), digest, len(content)))
        entry = dataclasses.replace(catalog.CATALOG[name], files=tuple(remote))
        monkeypatch.setitem(catalog.CATALOG, name, entry)
        return folder

    return write


@pytest.fixture
def unpacked(tmp_path):
    """unpacked(change) writes the files of both parts, as change(members of the first) leaves them."""

    def write(change=lambda members: members):
        folder = tmp_path / "unpacked"
        for part, first in OMNIGLOT_FIRST.items():
            members = omniglot_members(part, first)
            members = change(members) if part == "images_background" else members
            for name, content in members.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)
        return folder

    return write


def labelled(data) -> list[tuple[bytes, str]]:
    """The pixels of each image with the name of its class."""
    return sorted(
        (image.numpy().tobytes(), data.classes[int(label)])
        for split in data.splits.values()
        for image, label in zip(split.images, split.labels, strict=True)
    )


def character(image: np.ndarray) -> int:
    """The number of the character of a hand-made image (105, 105): the first row with ink says it."""
    return int(np.flatnonzero(image.max(axis=1))[0]) // 5


def test_each_drawing_has_the_label_of_its_character(put):
    folder = put("omniglot", omniglot_files()[0])
    data = load_data("omniglot", folder, size="105", progress=False)
    assert data.classes == (
        *(f"Background_{a}/character0{c}" for a in range(2) for c in (1, 2)),
        *(f"Evaluation_{a}/character0{c}" for a in range(2) for c in (1, 2)),
    )
    numbers = [1, 2, 3, 4, 10, 11, 12, 13]
    for split in data.splits.values():
        for image, label in zip(split.images[:, 0].numpy(), split.labels.tolist(), strict=True):
            assert set(np.unique(image)) == {0, 255}
            assert character(image) == numbers[label]


def test_alphabets_are_the_classes_of_a_variant(put):
    folder = put("omniglot", omniglot_files()[0])
    characters = load_data("omniglot", folder, progress=False)
    alphabets = load_data("omniglot:alphabets", folder, progress=False)
    assert alphabets.classes == ("Background_0", "Background_1", "Evaluation_0", "Evaluation_1")
    expected = [(image, name.split("/")[0]) for image, name in labelled(characters)]
    assert labelled(alphabets) == expected
    assert torch.equal(alphabets.train.images, characters.train.images)
    with pytest.raises(UserError, match="did you mean 'alphabets'"):
        load_data("omniglot:alphabet", folder)


def test_pixels_are_white_ink_of_28_pixels_to_binarise(put):
    data = load_data("omniglot", put("omniglot", omniglot_files()[0]), progress=False)
    assert data.shape == (1, 28, 28)
    assert data.train.images.float().mean() < 20  # mostly black
    assert data.train.images.max() == 255
    assert data.likelihood == "bernoulli"
    assert data.binarisation("auto", data.likelihood) == "dynamic"
    colour = load_data("omniglot", data.source.data_dir, colour="rgb", size="20", progress=False)
    assert colour.shape == (3, 20, 20)


def test_each_character_has_five_test_drawings_and_is_in_training(put):
    data = load_data("omniglot", put("omniglot", omniglot_files()[0]), progress=False)
    assert data.test.labels.bincount().tolist() == [5] * 8
    assert [len(split) for split in data.splits.values()] == [113, 7, 40]
    assert len(data.train.labels.unique()) == 8
    first = load_data("omniglot:60", data.source.data_dir, progress=False)
    assert len(first.train.labels.unique()) == 8  # not the first alphabet alone
    assert torch.equal(first.train.images, data.train.images[:60])


def test_the_real_number_of_drawings_is_split_as_published():
    labels = np.random.default_rng(0).permutation(np.arange(1623).repeat(20))
    index = split_drawings(labels)
    assert np.bincount(index).tolist() == [23_000, 1345, 8115]
    assert (np.bincount(labels[index == 2]) == 5).all()
    assert np.bincount(labels[index == 0]).min() >= 10


def test_unpacked_folders_are_read_as_the_archives_are(put, unpacked):
    packed = load_data("omniglot", put("omniglot", omniglot_files()[0]), progress=False)
    data = load_data("omniglot", unpacked(), progress=False)
    assert labelled(data) == labelled(packed)


def renamed(old, new):
    return lambda members: {name.replace(old, new): content for name, content in members.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (renamed("Background_0/", ""), "is not ALPHABET/characterNN/NNNN_NN.png"),
        (renamed("/character", "/part/character"), "is not ALPHABET/characterNN/NNNN_NN.png"),
        (renamed("character01/0001", "letter"), "is not ALPHABET/characterNN/NNNN_NN.png"),
        # Two characters in one folder, the drawings of one in two, and a swapped pair.
        (renamed("Background_0/character02", "Background_0/character01"), "40 drawings, not 20"),
        (renamed("character01/0001_01", "character02/0001_01"), "has 19 drawings, not 20"),
        (renamed("0002", "0001"), r"numbers of the characters .* \(0001\) are not those"),
        (renamed("0001_07", "0099_07"), "numbers of the characters .* are not those"),
        (lambda members: {}, "images_background.zip is missing"),
    ],
)
def test_files_in_other_folders_are_refused(change, message, unpacked):
    folder = unpacked(change)
    if not (folder / "images_background").exists():
        (folder / "images_background").touch()
    with pytest.raises(UserError, match=message) as caught:
        load_data("omniglot", folder, progress=False)
    assert "\n" not in str(caught.value)


def test_an_archive_with_a_wrong_folder_is_refused(put):
    files = omniglot_files()[0]
    members = omniglot_members("images_background", 1)
    files["images_background.zip"] = zip_bytes(renamed("Background_1/", "")(members))
    with pytest.raises(UserError, match="is not ALPHABET/characterNN"):
        load_data("omniglot", put("omniglot", files), progress=False)


def test_parts_are_no_classes_of_a_plain_folder(unpacked, tmp_path):
    folder = unpacked()
    with pytest.raises(UserError, match=r"parts of Omniglot .*, which are no classes"):
        load_data(folder, progress=False)
    data = load_data(folder / "images_background", size="28", progress=False)
    assert data.classes == ("Background_0", "Background_1")
    assert "classes are the alphabets" in " ".join(data.reading)
    (tmp_path / "one.zip").write_bytes(zip_bytes(omniglot_members("images_evaluation", 10)))
    assert load_data(tmp_path / "one.zip", progress=False).classes == (
        "Evaluation_0",
        "Evaluation_1",
    )


def test_the_28_pixel_file_has_probabilities_and_alphabets(put):
    data = load_data("omniglot28", put("omniglot28", burda_files()[0]), progress=False)
    assert data.train.images.dtype == torch.float32
    assert data.likelihood == "bernoulli"
    assert data.binarisation("auto", data.likelihood) == "dynamic"
    assert data.test.labels.tolist() == [*range(7)]
    order = np.random.RandomState(123).permutation(1400)
    assert data.train.labels.tolist() == (order[:55] % 50).tolist()


@pytest.mark.parametrize(
    ("images", "target", "message"),
    [
        (np.zeros((783, 2)), np.eye(2), "784 pixels and one-hot classes"),
        (np.zeros((784, 2)), np.ones((2, 2)), "784 pixels and one-hot classes"),
        (np.zeros((784, 2)), np.zeros((2, 2)), "784 pixels and one-hot classes"),
        (np.zeros((784, 2)), np.eye(3), "784 pixels and one-hot classes"),
        (np.full((784, 2), 255), np.eye(2), "784 pixels and one-hot classes"),
        (np.full((784, 2), 1.5), np.eye(2), "pixels outside 0 to 1"),
        (np.full((784, 2), np.nan), np.eye(2), "pixels outside 0 to 1"),
        (np.array(["x"] * 2)[None].repeat(784, 0), np.eye(2), "784 pixels and one-hot classes"),
    ],
)
def test_matrices_of_other_content_are_refused(images, target, message):
    with pytest.raises(UserError, match=message):
        burda_split(images, target, "chardata.mat")
