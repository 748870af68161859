"""The user's own image files: folder layouts, splits, sizes and colours, the cache, unreadable files."""

import gc
import io
import itertools
import json
import multiprocessing
import os
import re
import shutil
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from image_folders import RNG, all_images, load, save_image, save_images
from made_files import png
from vaekit import UserError, build, cluster, evaluate, load_data, train
from vaekit.data.formats import images
from vaekit.data.formats.images import BadImage, ImageSpec, decode
from vaekit.data.sources import image_files
from vaekit.data.splits import held_out_mask
from vaekit.data.stored import open_store
from vaekit.data.summary import prepare_file
from vaekit.settings.data import PreprocessConfig


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path_factory) -> Path:
    """The folder of decoded images."""
    path = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("VAEKIT_CACHE", str(path))
    return path / "decoded"


def cached_files(cache: Path) -> list[str]:
    return [path.name for path in cache.iterdir() if not path.name.endswith(".lock")]


def counts(data) -> list[list[int]]:
    """Images per split and class."""
    return [
        split.labels.bincount(minlength=data.class_count).tolist() for split in data.splits.values()
    ]


# Layouts


@pytest.mark.parametrize(
    "splits",
    [
        ("train_data", None, "test_data"),
        ("train", None, "test"),
        ("Train", "Val", "Test"),
        ("training", "validation", "testing"),
    ],
)
@pytest.mark.parametrize("wrapper", ["", "photos/"])
def test_split_folders_with_a_folder_per_class(splits, wrapper, tmp_path):
    arrays = {}
    for split, count in zip(splits, (10, 4, 3), strict=True):
        if split:
            for name in ("cat", "dog"):
                names = [f"{wrapper}{split}/{name}/deep/er/{i}.png" for i in range(count)]
                arrays[split, name] = save_images(tmp_path / "d", names)
    data = load(tmp_path / "d")
    assert data.classes == ("cat", "dog")
    assert data.name == "d"
    train, validation, test = counts(data)
    assert test == [3, 3]
    assert validation == ([4, 4] if splits[1] else [1, 1])
    assert train == ([10, 10] if splits[1] else [9, 9])
    for label, name in enumerate(data.classes):
        x = data.test.images[data.test.labels == label][:, 0].numpy()
        assert np.array_equal(x, list(arrays[splits[2], name].values()))


def test_plain_classes_and_plain_images(tmp_path):
    save_images(tmp_path / "a", [f"{k}/{i}.png" for k in "xyz" for i in range(20)])
    data = load(tmp_path / "a", validation_share=0.25, test_share=0.2)
    assert counts(data) == [[12] * 3, [4] * 3, [4] * 3]
    save_images(tmp_path / "b", ["1.png", "2.png", "3.png", "4.png"])
    data = load(tmp_path / "b")
    assert data.classes is None
    assert data.class_count == 0
    assert [len(split) for split in data.splits.values()] == [2, 1, 1]
    save_images(
        tmp_path / "c", [f"2019/05/{i}.png" for i in range(6)]
    )  # a single folder is not a class
    assert load(tmp_path / "c").class_count == 0


def test_an_empty_folder_beside_plain_images_is_not_a_class(tmp_path):
    for count in (1, 4):
        folder = tmp_path / str(count)
        save_images(folder, [f"{i}.png" for i in range(count)])
        (folder / "empty").mkdir()
    assert load(tmp_path / "4").class_count == 0
    with pytest.raises(UserError, match="has 1 training images"):
        load(tmp_path / "1")


def test_a_class_called_train_is_a_class(tmp_path):
    save_images(tmp_path, [f"{k}/{i}.png" for k in ("bus", "train") for i in range(4)])
    assert load(tmp_path).classes == ("bus", "train")


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path):
    save_images(tmp_path / "far", [f"{i}.png" for i in range(5)])
    save_images(tmp_path / "d", [f"a/{i}.png" for i in range(5)])
    (tmp_path / "d" / "b").symlink_to(tmp_path / "far")
    (tmp_path / "d" / "a" / "up").symlink_to(tmp_path / "d")
    data = load(tmp_path / "d")
    assert data.classes == ("a", "b")
    assert len({image.tobytes() for image in all_images(data)}) == 10


def test_files_that_are_not_images_are_ignored(tmp_path):
    save_images(tmp_path, [f"{i}.png" for i in range(4)])
    for name in (".DS_Store", "._0.png", "notes.txt", "Thumbs.db", "paper.pdf", "figure.eps"):
        (tmp_path / name).write_bytes(b"junk")
    (tmp_path / ".hidden").mkdir()
    save_image(tmp_path / ".hidden" / "x.png", (9, 9))
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    assert len(all_images(load(tmp_path))) == 4


UNUSUAL_NAMES = [
    "a b.png",
    "it's.png",
    'q"uote.png',
    "new\nline.png",
    "ümläut 画像.png",
    "$(rm -rf).png",
    "-x.png",
    "%s.png",
]


def test_unusual_file_names(tmp_path):
    save_images(
        tmp_path / "d", [f"{k}/{name}" for k in ("my 'class'\n", "élève") for name in UNUSUAL_NAMES]
    )
    raw = os.fsencode(tmp_path / "d" / "élève") + b"/not \xff utf-8.png"
    Path(os.fsdecode(raw)).write_bytes(random_png((6, 5)))
    data = load(tmp_path / "d")
    assert data.classes == ("my 'class'\n", "élève")
    assert len(all_images(data)) == 2 * len(UNUSUAL_NAMES) + 1
    json.dumps(data.describe())
    (tmp_path / "d" / "élève" / "new\nline.png").write_bytes(b"x")
    Path(os.fsdecode(raw)).write_bytes(b"x")
    with pytest.raises(UserError, match="2 of 17") as caught:
        load(tmp_path / "d")
    assert str(caught.value).isprintable()


def random_png(shape) -> bytes:
    file = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, shape, dtype=np.uint8)).save(file, "png")
    return file.getvalue()


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "tar"])
def test_an_archive_gives_the_same_images_as_its_folder(kind, tmp_path):
    save_images(tmp_path / "d", [f"{k}/{i}.png" for k in "ab" for i in range(10)])
    (tmp_path / "d" / "__MACOSX").mkdir()
    shutil.copy(tmp_path / "d" / "a" / "0.png", tmp_path / "d" / "__MACOSX" / "._0.png")
    path = tmp_path / f"d.{kind}"
    files = sorted(p for p in (tmp_path / "d").rglob("*") if p.is_file())
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in files:
                archive.write(file, file.relative_to(tmp_path))
    else:
        with tarfile.open(path, "w:gz" if kind.endswith("gz") else "w") as archive:
            for file in files:
                archive.add(file, f"./{file.relative_to(tmp_path)}")
    folder, packed = load(tmp_path / "d"), load(path)
    assert packed.classes == folder.classes
    assert packed.name == "d"
    assert np.array_equal(all_images(packed), all_images(folder))
    assert counts(packed) == counts(folder)
    content = path.read_bytes()
    for share in (0.1, 0.3, 0.5, 0.7):
        # A .tar file has blocks of 512 bytes; truncated between two, it only lacks its end marker.
        path.write_bytes(content[: int(share * len(content)) // 512 * 512])
        with pytest.raises(UserError, match="is damaged"):
            load(path)


# Splits


@given(
    sizes=st.lists(st.integers(0, 60), min_size=1, max_size=8).filter(lambda s: sum(s) > 1),
    share=st.floats(0.01, 0.99),
    seed=st.integers(0, 5),
)
@settings(max_examples=200, deadline=None)
def test_each_class_is_held_out_in_proportion(sizes, share, seed):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    count = len(labels)
    held_out = held_out_mask(labels, count, share, [seed])
    assert held_out.sum() == min(count - 1, max(1, round(share * count)))
    assert np.array_equal(held_out, held_out_mask(labels, count, share, [seed]))
    exact = held_out.sum() / count
    # Classes that may have been left empty, and got one image back.
    small = sum(0 < size * (1 - exact) <= 1 for size in sizes)
    for label, size in enumerate(sizes):
        assert abs(held_out[labels == label].sum() - exact * size) <= 1 + small + 1e-9
    if count - held_out.sum() >= len(sizes):
        # Each class has a training image.
        assert set(labels[~held_out].tolist()) == set(labels.tolist())


def test_each_image_is_equally_likely_held_out():
    """Chi-square over 1,000 seeds is within 5 standard deviations (one seed in a million fails)."""
    labels = np.repeat([0, 1, 2], [50, 30, 3])
    times = sum(held_out_mask(labels, 83, 0.1, [seed]).astype(int) for seed in range(1000))
    expected = 1000 * 8 / 83
    chi2 = ((times - expected) ** 2 / expected).sum()
    assert abs(chi2 - 83 * (1 - 8 / 83)) < 5 * (2 * 83) ** 0.5


def test_the_split_is_reproducible_and_depends_on_the_seed(tmp_path):
    save_images(tmp_path, [f"{k}/{i}.png" for k in "ab" for i in range(30)])
    first, again, other = load(tmp_path), load(tmp_path), load(tmp_path, split_seed=1)
    assert first.sha256() == again.sha256() != other.sha256()
    assert not np.array_equal(first.test.images, other.test.images)
    images = [sorted(image.tobytes() for image in all_images(data)) for data in (first, other)]
    assert images[0] == images[1]
    assert len(set(images[0])) == 60  # no image is in two splits


# Sizes and colours


@pytest.mark.parametrize(
    "shape", [(28, 20), (94, 94, 3), (128, 128, 3), (64, 48), (1, 1), (7, 300, 3)]
)
def test_images_of_one_size_stay_as_they_are(shape, tmp_path):
    arrays = save_images(tmp_path, [f"{i}.png" for i in range(4)], shape=shape)
    data = load(tmp_path)
    assert data.shape == ((3, *shape[:2]) if len(shape) == 3 else (1, *shape))
    assert data.likelihood == "logistic"
    expected = [a.transpose(2, 0, 1) if a.ndim == 3 else a[None] for a in arrays.values()]
    assert sorted(a.tobytes() for a in expected) == sorted(a.tobytes() for a in all_images(data))


@pytest.mark.parametrize("shape", [(28, 20), (94, 94), (128, 128, 3), (64, 48), (1, 1), (3, 200)])
@pytest.mark.parametrize("model", ["vae", "convvae"])
def test_any_size_trains(shape, model, tmp_path):
    save_images(tmp_path / "d", [f"{i}.png" for i in range(6)], shape=shape)
    data = load(tmp_path / "d")
    small = {"hidden_dim": 4} if model == "vae" else {"channels": 2}
    run = train(
        build(model, data, latent_dim=2, **small),
        data,
        out=tmp_path / "run",
        epochs=1,
        progress=False,
    )
    assert run.blueprint.shape == data.shape


def test_binary_images_are_bernoulli(tmp_path):
    for i in range(6):
        Image.fromarray(RNG.integers(0, 2, (5, 5), dtype=np.uint8) * 255).convert("1").save(
            tmp_path / f"{i}.png"
        )
    data = load(tmp_path)
    assert data.likelihood == "bernoulli"
    assert build("vae", data).blueprint.settings.likelihood == "bernoulli"


def test_one_colour_image_makes_all_colour(tmp_path):
    save_images(tmp_path, ["a.png", "b.png", "c.png"])
    save_image(tmp_path / "d.png", (6, 5, 3))
    assert load(tmp_path).shape == (3, 6, 5)
    assert load(tmp_path, colour="grey").shape == (1, 6, 5)
    save_images(tmp_path / "grey", ["a.png", "b.png", "c.png"])
    assert load(tmp_path / "grey", colour="rgb").shape == (3, 6, 5)


def test_mixed_sizes_are_resized_to_64_or_as_requested(tmp_path, capsys):
    for i, shape in enumerate([(40, 80), (80, 40), (10, 10), (64, 64)]):
        save_image(tmp_path / f"{i}.png", shape)
    data = load_data(tmp_path)
    assert data.shape == (1, 64, 64)
    assert "4 different sizes: resizing to 64 x 64" in capsys.readouterr().err
    assert load(tmp_path, size="48x64").shape == (1, 48, 64)
    for bad in ("0", "9999", "ten", "3x4x5", "-3", "x", "", "4.5"):
        with pytest.raises(UserError, match="is not a size"):
            load(tmp_path, size=bad)


def test_large_images_need_a_size(tmp_path):
    save_images(tmp_path, ["a.png", "b.png", "c.png"], shape=(600, 600))
    with pytest.raises(
        UserError, match="600 x 600 pixels; choose a size to resize them to, such as size 128"
    ):
        load(tmp_path)
    assert load(tmp_path, size="100").shape == (1, 100, 100)


@pytest.mark.parametrize("fit", ["crop", "letterbox", "stretch"])
def test_fit_of_another_aspect_ratio(fit):
    """A wide image, black | grey | white: crop loses its ends, letterbox keeps all of it, stretch fills the size."""
    array = np.repeat([0, 128, 255], [20, 40, 20]).astype(np.uint8)[None].repeat(40, 0)
    x = decode(png_bytes(array), ImageSpec(1, 40, 40, fit))[0].astype(int)
    if fit == "crop":
        assert np.abs(x - 128).max() <= 1
    elif fit == "letterbox":
        assert (x[:10] == 0).all()
        assert (x[30:] == 0).all()
        assert x[20, 20] == 128
        assert x[20, 39] > 250
    else:
        assert x[0, 0] < 5
        assert x[0, 39] > 250
        assert (x == x[:1]).all()


def png_bytes(array, mode=None, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array, **({"mode": mode} if mode else {})).save(file, "png", **options)
    return file.getvalue()


def test_every_kind_of_pixel(tmp_path):
    """Grey, colour, transparent (over white), 16-bit, palette, binary and CMYK files give the same pixels."""
    grey = RNG.integers(0, 256, (8, 9), dtype=np.uint8)
    colour = RNG.integers(0, 256, (8, 9, 3), dtype=np.uint8)
    alpha = np.full((8, 9, 1), 255, np.uint8)
    alpha[:4] = 0
    palette = Image.fromarray(colour).quantize(7)
    transparent = palette.copy()
    transparent.info["transparency"] = 0
    cases = {
        "L.png": (Image.fromarray(grey), 1, grey),
        "RGB.png": (Image.fromarray(colour), 3, colour),
        "LA.png": (
            Image.fromarray(np.dstack([grey, alpha])),
            1,
            np.where(alpha[..., 0], grey, 255),
        ),
        "RGBA.png": (Image.fromarray(np.dstack([colour, alpha])), 3, np.where(alpha, colour, 255)),
        "I16.png": (Image.fromarray(grey.astype(np.uint16) * 257), 1, grey),
        "I16.tif": (Image.fromarray(grey.astype(np.uint16) * 257), 1, grey),
        "P.png": (palette, 3, np.asarray(palette.convert("RGB"))),
        "P.gif": (palette, 3, np.asarray(palette.convert("RGB"))),
        "1.png": (Image.fromarray(grey > 99), 1, 255 * (grey > 99).astype(np.uint8)),
        "CMYK.tif": (Image.fromarray(colour).convert("CMYK"), 3, colour),
        "RGB.bmp": (Image.fromarray(colour), 3, colour),
        "RGB.webp": (Image.fromarray(colour), 3, colour),
        "RGB.ppm": (Image.fromarray(colour), 3, colour),
    }
    for name, (image, channels, expected) in cases.items():
        image.save(tmp_path / name, **({"lossless": True} if name.endswith("webp") else {}))
        content = (tmp_path / name).read_bytes()
        info = images.inspect_image(content)
        assert (info.channels, info.height, info.width) == (channels, 8, 9), name
        x = decode(content, ImageSpec(channels, 8, 9, rounded=True))
        x = x[0] if channels == 1 else x.transpose(1, 2, 0)
        assert np.array_equal(x, expected), name
    transparent.save(tmp_path / "tP.png", transparency=0)
    x = decode((tmp_path / "tP.png").read_bytes(), ImageSpec(3, 8, 9))
    clear = np.asarray(palette) == 0
    assert clear.any()
    assert (x[:, clear] == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_is_applied(orientation):
    """A rotated camera stores the pixels as its sensor reads them, with its orientation in EXIF."""
    upright = RNG.integers(0, 256, (8, 16), dtype=np.uint8)
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.T, 6: np.rot90(upright), 7: upright[::-1, ::-1].T, 8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = png_bytes(np.ascontiguousarray(stored), exif=exif)
    info = images.inspect_image(content)
    assert (info.height, info.width) == (8, 16)
    assert np.array_equal(decode(content, ImageSpec(1, 8, 16))[0], upright)


COLOURS = st.sampled_from([1, 3])


@given(data=st.data())
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_images_are_read_back_pixel_for_pixel(data, tmp_path_factory):
    """Random images in random folders and lossless formats."""
    folder = tmp_path_factory.mktemp("d")
    channels = data.draw(COLOURS)
    # In a .npy file, fewer pixels than channels can be read in several ways.
    smallest = data.draw(st.sampled_from([1, 4]))
    height, width = data.draw(st.tuples(*[st.integers(smallest, 20)] * 2))
    extensions = ["png", "bmp", "tif", "webp", "PNG"] + ["npy"] * (smallest > 1)
    shape = (height, width, 3) if channels == 3 else (height, width)
    classes = data.draw(
        st.lists(
            st.from_regex(r"[a-z0-9 _-]{1,8}", fullmatch=True), min_size=2, max_size=4, unique=True
        )
    )
    expected = {name: [] for name in classes}
    for i, name in enumerate(
        itertools.islice(itertools.cycle(classes), data.draw(st.integers(max(3, len(classes)), 12)))
    ):
        array = data.draw(arrays.arrays(np.uint8, shape))
        extension = data.draw(st.sampled_from(extensions))
        path = folder / name / data.draw(st.sampled_from(["", "x", "x/y"])) / f"{i}.{extension}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if extension == "npy":
            np.save(path, array)
        else:
            options = {"lossless": True} if extension == "webp" else {}
            Image.fromarray(array).save(path, **options)
        expected[name].append(array.reshape(height, width, channels).transpose(2, 0, 1).tobytes())
    # The colour is explicit, because .webp stores grey images as colour.
    loaded = load(
        folder,
        colour="grey" if channels == 1 else "rgb",
        in_memory=data.draw(st.sampled_from(["yes", "no"])),
    )
    by_value = all(name.isdecimal() for name in classes)
    assert loaded.classes == tuple(sorted(classes, key=lambda c: (int(c) if by_value else 0, c)))
    assert loaded.shape == (channels, height, width)
    for label, name in enumerate(loaded.classes):
        contents = [
            image.numpy().tobytes()
            for split in loaded.splits.values()
            for image in split[:].images[split.labels == label]
        ]
        assert sorted(contents) == sorted(expected[name])


# The cache


def test_images_are_decoded_once(tmp_path, monkeypatch, cache):
    save_images(tmp_path / "d", [f"{i}.png" for i in range(5)])
    first = load(tmp_path / "d")

    def refuse(*_, **__):
        raise AssertionError("decoded again")

    monkeypatch.setattr(image_files, "decode", refuse)
    assert load(tmp_path / "d").sha256() == first.sha256()
    monkeypatch.undo()
    monkeypatch.setenv("VAEKIT_CACHE", str(cache.parent))
    time.sleep(0.01)
    save_image(tmp_path / "d" / "3.png")  # of the same size
    assert load(tmp_path / "d").sha256() != first.sha256()
    (tmp_path / "d" / "3.png").unlink()
    assert len(all_images(load(tmp_path / "d"))) == 4
    assert len(all_images(load(tmp_path / "d", size="3"))) == 4
    assert len(list(cache.glob("*.safetensors"))) == 4


def load_in_a_process(folder, started):
    started.wait()
    load(folder)


def test_two_processes_decode_once(tmp_path, cache):
    save_images(tmp_path / "d", [f"{i}.png" for i in range(300)])
    context = multiprocessing.get_context("fork")
    started = context.Event()
    processes = [
        context.Process(target=load_in_a_process, args=(tmp_path / "d", started)) for _ in range(3)
    ]
    for process in processes:
        process.start()
    started.set()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert len(cached_files(cache)) == 1


def test_a_damaged_cache_is_reported(tmp_path, cache):
    save_images(tmp_path / "d", [f"{i}.png" for i in range(5)])
    load(tmp_path / "d")
    (path,) = cache.glob("*.safetensors")
    content = path.read_bytes()
    path.write_bytes(content[:-3])
    with pytest.raises(UserError, match="is damaged") as caught:
        load(tmp_path / "d")
    assert str(path) in str(caught.value)
    path.unlink()
    assert len(all_images(load(tmp_path / "d"))) == 5


def load_slowly(folder, begun):
    decode_all = image_files.decode_all

    def slow(*args):
        yield next(decode_all(*args))
        begun.set()
        time.sleep(60)

    image_files.decode_all = slow
    load(folder)


def test_the_partial_file_of_a_killed_process_is_removed(tmp_path, cache):
    save_images(tmp_path / "d", [f"{i}.png" for i in range(5)])
    context = multiprocessing.get_context("fork")
    begun = context.Event()
    process = context.Process(target=load_slowly, args=(tmp_path / "d", begun))
    process.start()
    assert begun.wait(30)
    process.kill()
    process.join()
    assert [name.endswith(".part") for name in cached_files(cache)] == [True]
    assert len(all_images(load(tmp_path / "d"))) == 5  # its lock was released
    assert [name.endswith(".part") for name in cached_files(cache)] == [False]


def load_with_little_space(folder, out):
    import resource

    # A limit on the size of a file stands for a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**18, 2**18))
    try:
        load(folder)
    except OSError as error:
        Path(out).write_text(f"{error.filename}: {error.strerror}")


def test_a_full_disk_while_caching_leaves_nothing(tmp_path, cache):
    save_images(tmp_path / "d", [f"{i}.png" for i in range(5)], shape=(300, 300))
    context = multiprocessing.get_context("fork")
    process = context.Process(
        target=load_with_little_space, args=(tmp_path / "d", tmp_path / "error")
    )
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert re.fullmatch(
        rf"{cache}/d-\w+\.safetensors: File too large", (tmp_path / "error").read_text()
    )
    assert cached_files(cache) == []
    assert len(all_images(load(tmp_path / "d"))) == 5  # once there is space


def test_a_prepared_file_gives_the_same_data_set_as_its_folder(tmp_path):
    save_images(
        tmp_path / "d", [f"{k}/{i}.png" for k in "ab" for i in range(10)], shape=(20, 30, 3)
    )
    out = tmp_path / "d16.safetensors"
    summary = prepare_file(tmp_path / "d", PreprocessConfig(size="16"), out)
    assert "20 images of 16 x 16 pixels, 3 channels" in summary
    prepared, plain = load(out), load(tmp_path / "d", size="16")
    assert np.array_equal(all_images(prepared), all_images(plain))
    assert prepared.classes == plain.classes
    assert prepared.sha256() == plain.sha256()
    assert load(out, size="8").shape == (3, 8, 8)
    with pytest.raises(UserError, match="exists already"):
        prepare_file(tmp_path / "d", PreprocessConfig(), out)
    for bad, message in [("x.npz", "must end in"), ("no/x.safetensors", "does not exist")]:
        with pytest.raises(UserError, match=message):
            prepare_file(tmp_path / "d", PreprocessConfig(), tmp_path / bad)
    for damage in (
        lambda b: b[:50],
        lambda b: b[:-1],
        lambda b: b"",
        lambda b: b"x" + b[1:],
        lambda b: b + b"x",
    ):
        broken = tmp_path / "broken.safetensors"
        broken.write_bytes(damage(out.read_bytes()))
        with pytest.raises(UserError, match=r"is damaged|is not a file of images"):
            load(broken)


# Larger than memory


SMALL = {
    "vae": {},
    "gmvae": {"start_epochs": 1, "clusters": 2},
    "vampprior": {"components": 5},
}


@pytest.mark.parametrize("model", SMALL)
def test_training_from_a_file_equals_training_in_memory(model, tmp_path):
    """Bit for bit: the same order, noise, weights and evaluation."""
    for k, name in enumerate("ab"):
        for i in range(60):
            save_image(tmp_path / "d" / name / f"{i}.png", (9, 7), 100 * k + i)
    weights, metrics = [], []
    for where in ("yes", "no"):
        data = load(tmp_path / "d", in_memory=where)
        assert isinstance(data.train.images, torch.Tensor) == (where == "yes")
        small = build(model, data, latent_dim=2, hidden_dim=8, **SMALL[model])
        run = train(
            small,
            data,
            out=tmp_path / where,
            epochs=2,
            batch_size=16,
            kl_warmup=0.0,
            progress=False,
        )
        weights.append((tmp_path / where / "model.safetensors").read_bytes())
        metrics.append(evaluate(run, samples=3))
        if model == "gmvae":
            metrics[-1]["sizes"] = cluster(run, samples=2)["sizes"]
    assert weights[0] == weights[1]
    assert {**metrics[0], "seconds": 0} == {**metrics[1], "seconds": 0}


def test_the_evaluation_binarisation_is_the_same_from_a_file(tmp_path):
    save_images(tmp_path / "d", [f"{i}.png" for i in range(60)])
    metrics = []
    for where in ("yes", "no"):
        data = load(tmp_path / "d", in_memory=where)
        run = train(build("vae", data, likelihood="bernoulli", latent_dim=2, hidden_dim=8), data,
                    out=tmp_path / where, epochs=1, progress=False)  # fmt: skip
        metrics.append(evaluate(run, samples=3))
    assert {**metrics[0], "seconds": 0} == {**metrics[1], "seconds": 0}


def test_arrays_and_named_data_sets_can_be_read_from_a_file(tmp_path, mnist):
    array = RNG.integers(0, 256, (50, 5, 4, 3), dtype=np.uint8)
    np.save(tmp_path / "x.npy", array)
    in_memory, in_file = (load(tmp_path / "x.npy", in_memory=where) for where in ("yes", "no"))
    assert not isinstance(in_file.train.images, torch.Tensor)
    assert np.array_equal(all_images(in_memory), all_images(in_file))
    np.save(tmp_path / "f.npy", array.astype(np.float32) / 255)
    in_memory, in_file = (load(tmp_path / "f.npy", in_memory=where) for where in ("yes", "no"))
    assert not isinstance(in_file.train.images, torch.Tensor)
    assert np.array_equal(all_images(in_memory), all_images(in_file))
    digits = load_data("digits", in_memory="no", progress=False)
    assert not isinstance(digits.train.images, torch.Tensor)
    assert digits.sha256() == load("digits").sha256()


def test_auto_reads_large_data_sets_from_a_file(tmp_path, monkeypatch):
    save_images(tmp_path / "d", [f"{i}.png" for i in range(10)])
    assert isinstance(load(tmp_path / "d").train.images, torch.Tensor)
    monkeypatch.setattr("vaekit.data.assemble.MAX_BYTES_IN_MEMORY", 100)
    assert not isinstance(load(tmp_path / "d").train.images, torch.Tensor)


def test_an_error_while_reading_ahead_is_raised(tmp_path):
    from vaekit.data.prefetch import batches

    save_images(tmp_path / "d", [f"{i}.png" for i in range(40)])
    data = load(tmp_path / "d", in_memory="no")
    with pytest.raises(IndexError):
        list(batches(data.train, torch.tensor([3, 1000]).split(1)))


def test_a_replaced_file_does_not_change_open_images(tmp_path, cache):
    save_images(tmp_path / "d", [f"{i}.png" for i in range(40)])
    data = load(tmp_path / "d", in_memory="no")
    before = data.train[:].images
    (path,) = cache.glob("*.safetensors")
    (tmp_path / "other").write_bytes(bytes(10))
    (tmp_path / "other").replace(path)
    assert torch.equal(data.train[:].images, before)


def test_reading_ahead_ends_with_the_epoch(tmp_path):
    """A loop that stops early leaves no thread."""
    import threading

    from vaekit.data.prefetch import batches

    save_images(tmp_path / "d", [f"{i}.png" for i in range(40)])
    data = load(tmp_path / "d", in_memory="no")
    before = threading.active_count()
    loop = batches(data.train, torch.arange(30).split(1))
    assert len(next(loop)) == 1
    loop.close()
    assert threading.active_count() == before
    read = torch.cat([batch.images for batch in batches(data.train, torch.arange(30).split(7))])
    assert torch.equal(read, data.train[:30].images)


# Unreadable files


def truncated() -> bytes:
    content = random_png((40, 40))
    return content[: len(content) // 2]


def bomb() -> bytes:
    """A PNG file whose header declares 400 million pixels."""
    import struct
    import zlib

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\x00" * 100))
        + chunk(b"IEND", b"")
    )


BAD = {
    "text": (b"hello", "it is not an image"),
    "empty": (b"", "it is empty"),
    "truncated": (truncated(), "truncated"),
    "bomb": (bomb(), "too many"),
    "html": (b"<html></html>", "it is not an image"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_images_are_reported_with_their_count(kind, tmp_path, capfd, cache):
    content, reason = BAD[kind]
    save_images(tmp_path / "d", [f"{k}/{i}.png" for k in "ab" for i in range(10)])
    (tmp_path / "d" / "a" / "bad 1.jpg").write_bytes(content)
    (tmp_path / "d" / "b" / "bad 2.png").write_bytes(content)
    with pytest.raises(
        UserError,
        match=rf"2 of 22 images cannot be read, first a/bad 1\.jpg \(.*{reason}.*skip_bad",
    ) as caught:
        load(tmp_path / "d")
    assert "\n" not in str(caught.value)
    assert cached_files(cache) == []
    data = load_data(tmp_path / "d", skip_bad=True)
    assert "left out 2 images that cannot be read, first a/bad 1.jpg" in capfd.readouterr().err
    assert sum(map(sum, counts(data))) == 20
    with pytest.raises(UserError, match="2 of 22 images"):  # the cache remembers them
        load(tmp_path / "d")


@pytest.mark.parametrize("count", [1000, pytest.param(10_000, marks=pytest.mark.long)])
def test_three_bad_images_of_many(count, tmp_path):
    folder = tmp_path / "d"
    folder.mkdir()
    (tmp_path / "good.png").write_bytes(png())
    bad = dict(zip((17, count // 2, count - 1), BAD.values(), strict=False))
    for i in range(count):
        path = folder / f"{i:05d}.png"
        if i in bad:
            path.write_bytes(bad[i][0])
        else:
            path.hardlink_to(tmp_path / "good.png")
    with pytest.raises(UserError, match=rf"3 of {count:,} images cannot be read, first 00017\.png"):
        load(folder)
    assert len(all_images(load(folder, skip_bad=True))) == count - 3


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "has no image files"),
        (["notes.txt"], "has no image files"),
        (["a.png", "b.png"], "has 2 training images; at least 3 are needed"),
        (["a/1.png", "a/2.png", "a/3.png", "b/notes.txt"], "the folder b has no images"),
        (["a/1.png", "a/2.png", "c.png"], "1 images outside the class folders, such as c.png"),
        (["a/1.png", "b/2.png", "c.png"], "1 images outside the class folders, such as c.png"),
        (["test/a/1.png", "test/a/2.png", "test/b/3.png", "val/a/1.png"], "but no training images"),
        (["train/a/1.png", "train/b/2.png", "train/b/3.png", "test/c/4.png"], "test has the class 'c'"),
        (["train/a/1.png", "train/b/2.png", "train/b/3.png", "test/notes.txt"], "the folder test has no images"),
        (["train/a/1.png", "train/b/2.png", "test/a/3.png", "5.png"], "images beside its folders"),
        (["train/a/1.png", "train/b/2.png", "train/a/6.png", "test/3.png"], "images outside the class folders"),
    ],
)  # fmt: skip
def test_an_invalid_folder_is_refused(names, message, tmp_path):
    folder = tmp_path / "d"
    folder.mkdir()
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png() if name.endswith("png") else b"x")
    with pytest.raises(UserError, match=message) as caught:
        load(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc lists the open files of a process")
def test_a_file_of_images_is_closed_when_its_data_are_no_longer_needed(tmp_path):
    def open_files():
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    for i in range(5):
        save_image(tmp_path / "d" / f"{i}.png")
    load(tmp_path / "d", in_memory="no")
    before = open_files()
    data = load(tmp_path / "d", in_memory="no")
    assert open_files() == before + 1
    del data
    assert open_files() == before


def test_all_images_bad(tmp_path):
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(b"")
    with pytest.raises(UserError, match="4 of 4 images"):
        load(tmp_path)
    with pytest.raises(UserError, match=r"4 of 4 images|no images"):
        load(tmp_path, skip_bad=True)


@pytest.mark.parametrize(
    "path", ["nowhere/", "./nowhere", "nowhere.npy", "no/where", "nowhere.zip"]
)
def test_a_path_that_does_not_exist(path):
    with pytest.raises(UserError, match="there is no file or folder no"):
        load(path)


def test_a_file_of_another_format(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("1,2,3")
    with pytest.raises(UserError, match=r"is not a folder of images, an image file, or a \.zip"):
        load(path)


def test_data_dir_finds_a_folder_that_moved(tmp_path):
    save_images(tmp_path / "photos", [f"{k}/{i}.png" for k in "ab" for i in range(10)])
    data = load(tmp_path / "photos", size="8", validation_share=0.3, fit="letterbox")
    run = train(
        build("vae", data, latent_dim=2, hidden_dim=8),
        data,
        out=tmp_path / "run",
        epochs=1,
        progress=False,
    )
    source = json.loads((run.path / "config.json").read_text())["data"]["source"]
    assert source["data"] == str(tmp_path / "photos")
    assert (source["size"], source["fit"], source["validation_share"]) == ("8", "letterbox", 0.3)
    assert json.loads((run.path / "config.json").read_text())["data"]["classes"] == ["a", "b"]
    first = evaluate(run, samples=2)["elbo"]
    (tmp_path / "photos").rename(tmp_path / "pictures")
    with pytest.raises(UserError, match="there is no file or folder"):
        evaluate(run, samples=2)
    assert evaluate(run, samples=2, data_dir=tmp_path / "pictures")["elbo"] == first
    save_image(tmp_path / "pictures" / "a" / "0.png")
    with pytest.raises(UserError, match="not the one"):
        evaluate(run, samples=2, data_dir=tmp_path / "pictures")


def test_any_error_of_a_decoder_is_a_bad_image(monkeypatch):
    import struct

    def fail(*_):
        raise struct.error("unpack requires a buffer")

    monkeypatch.setattr(images, "fit_image", fail)
    with pytest.raises(BadImage, match="unpack requires"):
        decode(png(), ImageSpec(1, 4, 4))


def test_the_metadata_of_a_store(tmp_path, cache):
    save_images(tmp_path / "d", [f"{k}/{i}.png" for k in "ab" for i in range(10)])
    load(tmp_path / "d")
    (path,) = cache.glob("*.safetensors")
    store = open_store(path)
    metadata = store.metadata
    assert (metadata.name, metadata.classes, metadata.bad) == ("d", ["a", "b"], 0)
    import safetensors.torch

    tensors = safetensors.torch.load_file(path)  # readable without vaekit
    assert tensors["images"].shape == (20, 1, 6, 5)
    assert torch.equal(tensors["labels"], store.labels)


def test_the_verbs_decode_a_folder_once(tmp_path, monkeypatch, vaekit):
    """Shown at the default size, trained at the same size, encoded, reconstructed: decoded for the first of these."""
    from vaekit.data.sources import inputs

    rng = np.random.default_rng(0)
    for i in range(12):
        (tmp_path / "d" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        size = (5 + i % 3, 7, 3)
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(
            tmp_path / "d" / "ab"[i % 2] / f"{i}.png"
        )
    decoded = []

    def counted(content, spec):
        decoded.append(spec)
        return decode(content, spec)

    for module in (image_files, inputs):
        monkeypatch.setattr(module, "decode", counted)
    small = ["--latent-dim", 2, "--hidden-dim", 4, "--epochs", 1]
    for arguments in (
        ["data", "show", "d"],
        ["data", "show", "d", "--size", "64"],
        ["train", "vae", "--data", "d", "--size", "64x64", *small, "--out", "run"],
        ["train", "vae", "--data", "d", *small, "--out", "other"],
        ["encode", "run", "d", "--out", "codes.npz", "--samples", 2],
        ["reconstruct", "run", "d"],
    ):
        code, _, err = vaekit(*arguments)
        assert code == 0, err
        assert len(decoded) == 12, arguments
    codes = np.load(tmp_path / "codes.npz")
    assert [name.rpartition("/")[2] for name in codes["path"]] == [
        f"{i}.png" for i in (0, 10, 2, 4, 6, 8, 1, 11, 3, 5, 7, 9)
    ]
    # Encoded one by one, the images and so their latents are the same.
    code, _, err = vaekit("encode", "run", *codes["path"], "--out", "one.npz", "--samples", 2)
    assert code == 0, err
    assert len(decoded) == 24
    assert np.allclose(np.load(tmp_path / "one.npz")["z_mean"], codes["z_mean"], atol=1e-6)
    # A damaged note of the size is written again.
    for note in (Path(os.environ["VAEKIT_CACHE"]) / "inspected").iterdir():
        note.write_text('{"channels": "three"}')
    assert vaekit("data", "show", "d")[0] == 0
    assert len(decoded) == 24
    # Another fit is another decoding, also where the first is cached.
    assert vaekit("data", "show", "d", "--fit", "letterbox")[0] == 0
    assert len(decoded) == 36
    assert vaekit("encode", "run", "d", "--out", "again.npz", "--samples", 2)[0] == 0
    assert len(decoded) == 36
    assert np.allclose(np.load(tmp_path / "again.npz")["z_mean"], codes["z_mean"], atol=1e-6)
    # A changed file is decoded again.
    Image.new("RGB", (7, 5)).save(tmp_path / "d" / "a" / "0.png")
    assert vaekit("encode", "run", "d", "--out", "new.npz", "--samples", 2)[0] == 0
    assert len(decoded) == 48


@pytest.mark.parametrize(
    ("dtype", "size"), [("uint8", "2 MB"), ("uint16", "4 MB"), ("float32", "8 MB")]
)
def test_the_size_of_a_prepared_file_counts_its_bytes(dtype, size, tmp_path):
    (tmp_path / "d").mkdir()
    for i in range(4):
        np.save(tmp_path / "d" / f"{i}.npy", np.arange(500_000).reshape(500, 1000).astype(dtype))
    told = prepare_file(tmp_path / "d", PreprocessConfig("500x1000"), tmp_path / "d.safetensors")
    assert size in told
