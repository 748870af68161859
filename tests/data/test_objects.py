"""Objects in memory as data sets and back: datasets of PyTorch in and out, items of any form, streaming into a file."""

import dataclasses
import io
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
    random_split,
)

from conftest import random_dataset
from image_folders import all_images, load
from made_files import png
from vaekit import UserError
from vaekit.data import eval_split
from vaekit.data.sources import objects

RNG = np.random.default_rng(3)
IMAGES = RNG.integers(0, 256, (40, 3, 7, 6), dtype=np.uint8)
LABELS = np.arange(40) % 4
FLOATS = RNG.random((40, 3, 7, 6), dtype=np.float32)


class Items(Dataset):
    """A map-style dataset whose items a function makes from their numbers."""

    def __init__(self, make, count=40):
        self.make, self.count = make, count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return self.make(index)


# Out: a split is a dataset of PyTorch


@pytest.mark.parametrize("in_memory", ["yes", "no"])
def test_a_split_gives_items_to_pytorch(in_memory):
    split = load((IMAGES, LABELS), in_memory=in_memory).train
    images, labels = split.images[:].float() / 255, split.labels
    assert isinstance(split, Dataset)
    for index in (3, -1, np.int64(5), torch.tensor(7)):
        image, label = split[index]
        assert torch.equal(image, images[int(index)])
        assert type(label) is int
        assert label == labels[int(index)]
    assert len(list(split)) == len(split)  # IndexError ends the iteration
    for index in (len(split), -len(split) - 1):
        with pytest.raises(IndexError, match=f"there is no image {index}"):
            split[index]
    with pytest.raises(TypeError):
        split["a"]
    for part in (
        Subset(split, [4, 2]),
        ConcatDataset([split, split]),
        random_split(split, [4, len(split) - 4])[0],
    ):
        image, label = part[0]
        assert image.shape == (3, 7, 6)
    assert torch.equal(Subset(split, [4, 2])[1][0], images[2])
    x, y = next(iter(DataLoader(split + split, batch_size=len(split) + 5)))
    assert torch.equal(x[:-5], images)
    assert torch.equal(y, torch.cat([labels, labels[:5]]))
    assert torch.equal(split[2:4].images, split.images[2:4])  # as stored, and so are rows
    assert split[torch.tensor([1, 0])].images.dtype == torch.uint8


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.long)])
def test_workers_of_a_data_loader_read_a_file_of_images(context):
    splits = load((IMAGES, LABELS), in_memory="no").splits
    for split in [splits["train"]] if context == "spawn" else splits.values():
        loader = DataLoader(split, 9, num_workers=1, multiprocessing_context=context)
        x, y = map(torch.cat, zip(*loader, strict=True))
        assert torch.equal(x, split[:].images.float() / 255)
        assert torch.equal(y, split.labels)


def test_an_open_file_of_images_is_opened_again_in_another_process():
    split = load((IMAGES, LABELS), in_memory="no").validation
    copy = pickle.loads(pickle.dumps(split))  # noqa: S301
    assert copy.images.file.descriptor != split.images.file.descriptor
    assert torch.equal(copy[:].images, split[:].images)


def test_a_replaced_file_of_images_is_not_read_in_a_worker(tmp_path):
    images = load((IMAGES, LABELS), in_memory="no").train.images
    remake, (path, stamp) = images.file.__reduce__()
    assert remake(path, stamp).stamp() == stamp
    content = path.read_bytes()
    path.unlink()
    with pytest.raises(UserError, match="was removed while in use"):
        remake(path, stamp)
    path.write_bytes(content)
    with pytest.raises(UserError, match="was replaced while in use"):
        remake(path, stamp)


def test_items_without_labels_and_of_floats_are_images():
    split = load(FLOATS).train
    assert torch.equal(split[3], split.images[3])
    assert torch.equal(next(iter(DataLoader(split, 5))), split.images[:5])


def test_an_evaluation_split_gives_its_bits():
    split = eval_split(random_dataset(kind="grey").test, "dynamic")
    images = split[:].images
    assert set(images.unique().tolist()) == {0.0, 1.0}
    x, y = next(iter(DataLoader(split, len(split))))
    assert torch.equal(x, images)
    assert torch.equal(y, split.labels)
    threshold = eval_split(random_dataset(kind="grey").test, "threshold")
    assert torch.equal(threshold[-2][0], threshold[:].images[-2])


# In: items of any form


def dict_items(image, label):
    return Items(lambda i: {image: torch.from_numpy(IMAGES[i]), label: int(LABELS[i])})


T_IMAGES, T_LABELS = torch.from_numpy(IMAGES), torch.from_numpy(LABELS)
PIL_IMAGES = [Image.fromarray(image.transpose(1, 2, 0)) for image in IMAGES]
BACKWARDS = range(39, -1, -1)
LABELLED = {
    "TensorDataset": TensorDataset(T_IMAGES, T_LABELS),
    "subset": Subset(TensorDataset(T_IMAGES, T_LABELS), range(40)),
    "subset of a subset": Subset(Subset(TensorDataset(T_IMAGES, T_LABELS), BACKWARDS), BACKWARDS),
    "concatenation": TensorDataset(T_IMAGES[:9], T_LABELS[:9]) + TensorDataset(T_IMAGES[9:], T_LABELS[9:]),
    "concatenation of kinds": TensorDataset(T_IMAGES[:9], T_LABELS[:9])
    + Items(lambda i: (T_IMAGES[9 + i], T_LABELS[9 + i]), 31),
    "subset of items": Subset(dict_items("image", "label"), range(40)),
    "image, label": dict_items("image", "label"),
    "pixel_values, labels": dict_items("pixel_values", "labels"),
    "x, y": dict_items("x", "y"),
    "IMG, target": dict_items("IMG", "target"),
    "PIL": Items(lambda i: {"image": PIL_IMAGES[i], "label": LABELS[i]}),
    "pairs": Items(lambda i: [IMAGES[i].transpose(1, 2, 0), T_LABELS[i]]),
}  # fmt: skip


@pytest.mark.parametrize("form", LABELLED)
def test_labelled_items_of_any_form(form):
    data, expected = load(LABELLED[form]), load((IMAGES, LABELS))
    assert data.sha256() == expected.sha256()
    assert data.likelihood == "logistic"


@pytest.mark.parametrize(
    "items",
    [TensorDataset(T_IMAGES), Items(lambda i: (IMAGES[i],)), Items(lambda i: {"image": IMAGES[i]}), (IMAGES,),
     Items(lambda i: {"image": IMAGES[i], "label": None}), [*IMAGES]],
)  # fmt: skip
def test_items_without_labels(items):
    assert load(items).sha256() == load(IMAGES).sha256()


def test_splits_of_a_split_are_the_images_as_stored(tmp_path):
    whole = load((IMAGES, LABELS), in_memory="no")
    first, second = random_split(whole.train, [20, len(whole.train) - 20])
    data = load({"train": first, "validation": second, "test": whole.test + whole.validation})
    assert data.train.images.dtype == torch.uint8
    assert torch.equal(data.train.images, whole.train.images[torch.tensor(first.indices)])
    assert torch.equal(data.validation.labels, whole.train.labels[torch.tensor(second.indices)])
    assert torch.equal(data.test.images[len(whole.test) :], whole.validation.images[:])


def test_a_transformed_tensor_dataset_is_read_by_its_items():
    class Inverted(TensorDataset):
        def __getitem__(self, index):
            return (255 - self.tensors[0][index],)

    assert load(Inverted(T_IMAGES)).sha256() == load(255 - IMAGES).sha256()


def test_other_keys_of_items_are_ignored_and_said():
    items = Items(lambda i: {"img": IMAGES[i], "fine_label": 3, "id\n": i, "label": LABELS[i]})
    data = load(items)
    assert data.sha256() == load((IMAGES, LABELS)).sha256()
    assert r"keys of its items that were ignored: fine_label, id\n" in data.reading


PNG = png()


class Stream(IterableDataset):
    def __iter__(self):
        yield from IMAGES


class LongStream(Stream):
    def __len__(self):
        return 40


class NoLength(Items):
    def __len__(self):
        raise RuntimeError("not\nknown")


def but(index, item, usual=lambda i: (IMAGES[i], 1)):
    return Items(lambda i: item if i == index else usual(i))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Stream(), "Stream is an IterableDataset"),
        (LongStream(), "LongStream is an IterableDataset"),
        (NoLength(None), r"type NoLength has no length \(not known\)"),
        (Items(lambda i: IMAGES[i], 0), "the dataset is empty"),
        (Items(lambda i: {}[f"k\n{i}"]), "item 0 of the dataset cannot be read: KeyError: 'k"),
        (Items(lambda i: IMAGES[i], 41), "item 40 of the dataset cannot be read: IndexError"),
        (Items(lambda i: (IMAGES[i], 1, 2)), "item 0 of the dataset has 3 parts"),
        (Items(lambda i: ()), "item 0 of the dataset has 0 parts"),
        (Items(lambda i: "a.png"), "item 0 of the dataset: no image in an object of type str;"),
        (Items(lambda i: (1, IMAGES[i])), "item 0 of the dataset: no image in an object of type int"),
        (Items(lambda i: IMAGES), r"type ndarray and shape \(40, 3, 7, 6\)"),
        (Items(lambda i: Image.open(io.BytesIO(PNG[:-25]))), "item 0 of the dataset: its image cannot be read: "),
        (Items(lambda i: {"picture": 1, "label": 2}), "item 0 of the dataset has the keys picture, label; it must"),
        (Items(lambda i: {"image": 1, "x": 2}), "has the keys image, x; it must have one of image"),
        (Items(lambda i: {"image": 1, "y": 2, "label": 2}), "has the keys image, y, label; it must"),
        (but(7, (IMAGES[0, :, 1:], 1)), r"items 0 and 7 .* differ in shape .*: \(3, 7, 6\), uint8 and \(3, 6, 6\)"),
        (but(8, (FLOATS[0], 1)), "items 0 and 8 of the dataset differ in shape or type: .* float32"),
        (but(9, IMAGES[0]), "item 9 of the dataset has no label, unlike item 0"),
        (but(9, (IMAGES[0], 1), IMAGES.__getitem__), "item 9 of the dataset has a label, unlike item 0"),
        (Items(lambda i: (IMAGES[i], 0.5)), "labels of shape .* they must be whole numbers"),
        (Items(lambda i: (IMAGES[i], [1] * (i + 1))), "these labels do not form an array"),
        ((dict_items("x", "y"), dict_items("x", "y")), "the pair .* are of type Items, not an array; .* a dict by"),
        ((IMAGES, LABELS, LABELS), r"a tuple of 3; give \(images, labels\)"),
        (DataLoader(TensorDataset(T_IMAGES)), "type DataLoader; give its dataset, or an array"),
        ({"train": Stream()}, "is an IterableDataset"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_other_objects_are_refused_in_one_line(data, message):
    with pytest.raises(UserError, match=message) as caught:
        load(data)
    assert "\n" not in str(caught.value)


# In: into a file


def test_items_too_many_for_memory_are_read_into_a_file(monkeypatch):
    expected = load((IMAGES, LABELS))
    monkeypatch.setattr(objects, "MAX_BYTES_IN_MEMORY", IMAGES.nbytes - 1)
    monkeypatch.setattr("vaekit.data.assemble.MAX_BYTES_IN_MEMORY", IMAGES.nbytes - 1)
    data = load(dict_items("image", "label"))
    assert not isinstance(data.train.images, torch.Tensor)
    assert data.sha256() == expected.sha256()
    for split, other in zip(data.splits.values(), expected.splits.values(), strict=True):
        assert torch.equal(split[:].images, other.images)
        assert torch.equal(split.labels, other.labels)
    assert isinstance(
        load(dict_items("image", "label"), in_memory="yes").train.images, torch.Tensor
    )
    monkeypatch.setattr(objects, "MAX_BYTES_IN_MEMORY", IMAGES.nbytes)
    assert isinstance(load(dict_items("image", "label")).train.images, torch.Tensor)


def test_items_read_into_a_file_are_those_of_memory():
    labels = np.array([20240101, 7, 20240102, 9]).repeat(10)  # become the names of classes
    splits = {
        "test": Items(lambda i: (IMAGES[i], labels[i]), 30),
        "train": Items(lambda i: (IMAGES[-1 - i], labels[-1 - i])),
    }
    data, expected = (load(splits, in_memory=where) for where in ("no", "yes"))
    assert data.sha256() == expected.sha256()
    assert data.describe() == expected.describe()
    assert data.classes == ("7", "9", "20240101", "20240102")
    texts = load(Items(lambda i: (IMAGES[i], f"c{i % 3}")), in_memory="no")
    assert texts.classes == ("c0", "c1", "c2")
    bits = load(Items(lambda i: IMAGES[i] > 99), in_memory="no")
    assert bits.likelihood == "bernoulli"
    assert bits.sha256() == load(IMAGES > 99).sha256()
    small = load(dict_items("image", "label"), in_memory="no", size=3)
    assert small.sha256() == load((IMAGES, LABELS), size=3).sha256()


def test_files_of_items_are_of_their_content(tmp_path, monkeypatch):
    monkeypatch.setenv("VAEKIT_CACHE", str(tmp_path / "cache"))
    images, labels = IMAGES.copy(), LABELS.copy()
    data = Items(lambda i: (images[i], labels[i]))
    hashes = [load(data, in_memory="no").sha256() for _ in range(2)]
    images[3, 0, 0, 0] ^= 1
    hashes.append(load(data, in_memory="no").sha256())
    labels[3] ^= 1
    hashes.append(load(data, in_memory="no").sha256())
    assert len(set(hashes)) == 3
    assert len(list((tmp_path / "cache" / "decoded").iterdir())) == 3
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {"decoded", "locks"}


def test_a_failure_while_items_are_read_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setenv("VAEKIT_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match="items 0 and 39"):
        load(but(39, (FLOATS[0], 1)), in_memory="no")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


# A later change of the user's arrays changes nothing


FORMS = {
    "array": lambda x, y: x.numpy(),
    "tensor": lambda x, y: x,
    "pair": lambda x, y: (x.numpy(), y.numpy()),
    "pair of tensors": lambda x, y: (x, y),
    "dict": lambda x, y: {"train": (x[:30], y[:30]), "test": (x[30:], y[30:])},
    "TensorDataset": TensorDataset,
    "concatenation": lambda x, y: TensorDataset(x) + TensorDataset(x),
    "items": lambda x, y: Items(lambda i: (x[i], y[i])),
}


@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
@pytest.mark.parametrize("form", FORMS)
def test_a_later_change_of_the_arrays_changes_nothing(form, kind):
    images = torch.from_numpy(IMAGES.copy() if kind == torch.uint8 else FLOATS.copy())
    labels = torch.from_numpy(LABELS.copy())
    data = load(FORMS[form](images, labels))
    splits = [
        dataclasses.replace(split[:], images=split.images.clone()) for split in data.splits.values()
    ]
    digest = data.sha256()
    images.zero_()
    labels.fill_(2)
    assert data.sha256() == digest
    for split, before in zip(data.splits.values(), splits, strict=True):
        assert torch.equal(split.images, before.images)


def test_the_number_of_images_is_kept():
    assert len(all_images(load([*IMAGES]))) == 40


# One range of values and one order of axes for all items


DEEP = RNG.integers(0, 4096, (40, 7, 6), dtype=np.uint16)


@pytest.mark.parametrize("in_memory", ["yes", "no"])
@pytest.mark.parametrize("form", ["PIL", "array", "TensorDataset", "float"])
def test_items_of_more_than_8_bits_have_one_range(form, in_memory):
    deep = DEEP.copy()
    deep[3] //= 64  # a dark image stays dark
    items = {
        "PIL": Items(lambda i: Image.fromarray(deep[i])),
        "array": Items(lambda i: deep[i]),
        "TensorDataset": TensorDataset(torch.from_numpy(deep.astype(np.int32))),
        "float": Items(lambda i: torch.from_numpy(deep[i].astype(np.float32))[None]),
    }[form]
    data = load({"train": items}, in_memory=in_memory, range=(0, 4095))
    assert (data.value_range.low, data.value_range.high, data.value_range.levels) == (0, 4095, 4096)
    assert data.likelihood == "logistic"
    found = sorted(torch.cat([s[:].images for s in data.splits.values()]).flatten(1).tolist())
    expected = sorted(torch.from_numpy(deep.astype(np.float32) / 4095).flatten(1).tolist())
    assert np.allclose(found, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda i: Image.fromarray(IMAGES[i, :, :3, :3].transpose(1, 2, 0)), (3, 3, 3)),
        (lambda i: IMAGES[i, 0, :1], (1, 1, 6)),
        (lambda i: IMAGES[i, 0], (1, 7, 6)),
    ],
    ids=["PIL", "row", "grey"],
)
@pytest.mark.parametrize("channels", ["auto", "last"])
def test_items_whose_axes_are_known_need_no_reading(make, shape, channels):
    assert load(Items(make, 3), channels=channels).shape == shape


def test_three_grey_items_are_not_the_channels_of_one_image():
    data = load(TensorDataset(T_IMAGES[:3, 0]))
    assert data.shape == (1, 7, 6)
    assert len(all_images(data)) == 3


def test_items_of_two_readings_are_refused_or_read_as_told():
    items = Items(lambda i: IMAGES[i, :, :3, :3])
    with pytest.raises(UserError, match=r"\(40, 3, 3, 3\) can be read as"):
        load(items)
    found = all_images(load(items, channels="last"))
    expected = IMAGES[:, :, :3, :3].transpose(0, 3, 1, 2)
    assert sorted(map(np.ndarray.tobytes, found)) == sorted(map(np.ndarray.tobytes, expected))
    part = load({"train": T_IMAGES, "test": T_IMAGES}, channels="first").test
    assert load(Subset(part, range(9))).shape == (3, 7, 6)  # a split's are known
