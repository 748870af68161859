"""Files of several pages, frames or slices: TIFF, animations, NIfTI; value by value, split by file, refused unasked."""

import gzip
import io
import itertools
import re
import struct
import sys

import numpy as np
import pytest
from PIL import Image

from image_folders import load, save_image
from vaekit import UserError
from vaekit.data.formats.images import BadImage, inspect_image, unpack
from vaekit.data.formats.pages import file_of_page, images_of, open_pages, pack
from vaekit.data.sources.files import PageSource, open_source
from vaekit.data.sources.inputs import find_image_files, read_images
from vaekit.settings.data import ValueRange
from vaekit.support.console import ProgressBar

RNG = np.random.default_rng(5)


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("VAEKIT_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def tifffile():
    return pytest.importorskip("tifffile")


def noise(shape, dtype="uint8") -> np.ndarray:
    if np.dtype(dtype).kind == "f":
        return RNG.normal(size=shape).astype(dtype)
    info = np.iinfo(dtype)
    return RNG.integers(info.min, info.max, shape, dtype, endpoint=True)


def tiff(array, **options) -> bytes:
    import tifffile

    stream = io.BytesIO()
    tifffile.imwrite(stream, array, **options)
    return stream.getvalue()


def pages_of(content: bytes, pages="all", name="x.tif") -> list[np.ndarray]:
    return images_of(name, open_pages(name, content), pages)


def assert_equal_lists(actual, expected):
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


# TIFF


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    "dtype",
    ["uint8", "uint16", "uint32", "int8", "int16", "int32", "float16", "float32", "float64"],
)
def test_a_stack_of_any_type_is_read_page_by_page(tifffile, dtype, order):
    array = noise((3, 6, 5), dtype)
    content = tiff(array, byteorder=order, photometric="minisblack")
    assert_equal_lists(pages_of(content), [page[None] for page in array])
    assert_equal_lists(pages_of(content, "first"), [array[:1]])
    assert_equal_lists(pages_of(content, "channels"), [array])


@pytest.mark.parametrize("compression", ["zlib", "lzw", "zstd", "packbits"])
@pytest.mark.parametrize("predictor", [False, True])
def test_compressed_pages_are_read(tifffile, compression, predictor):
    pytest.importorskip("imagecodecs")
    array = noise((2, 9, 17), "uint16")
    if predictor and compression == "packbits":
        return
    content = tiff(array, compression=compression, predictor=predictor, photometric="minisblack")
    assert_equal_lists(pages_of(content), [page[None] for page in array])


@pytest.mark.parametrize("channels", [2, 3, 4, 5, 12, 64])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_channels_of_one_page_are_read_without_a_setting(tifffile, channels, dtype, planar):
    array = noise((channels, 6, 5), dtype)
    written = array if planar == "separate" else array.transpose(1, 2, 0)
    content = tiff(written, photometric="minisblack", planarconfig=planar)
    assert_equal_lists(pages_of(content, None), [array])


@pytest.mark.parametrize("channels", [3, 4, 6])
def test_colour_of_more_than_eight_bits_or_channels_is_not_cut(tifffile, channels):
    array = noise((6, 5, channels), "uint16")
    content = tiff(array, photometric="rgb", extrasamples=["unspecified"] * (channels - 3))
    assert_equal_lists(pages_of(content, None), [array.transpose(2, 0, 1)])


def test_white_is_zero_is_inverted_once(tifffile):
    for dtype in ("uint8", "uint16"):
        array = noise((2, 6, 5), dtype)
        read = pages_of(tiff(array, photometric="miniswhite"))
        assert_equal_lists(read, [np.iinfo(dtype).max - page[None] for page in array])


@pytest.mark.parametrize(
    ("axes", "shape", "expected"),
    [
        ("TZYX", (2, 3, 6, 5), (6, 1, 6, 5)),
        ("TCYX", (4, 2, 6, 5), (4, 2, 6, 5)),
        ("TZCYX", (2, 3, 2, 6, 5), (6, 2, 6, 5)),
        ("CYX", (2, 6, 5), (2, 1, 6, 5)),
    ],
)
@pytest.mark.parametrize("kind", ["imagej", "ome"])
def test_the_axes_of_imagej_and_ome_are_respected(tifffile, kind, axes, shape, expected):
    array = noise(shape, "uint16")
    content = tiff(array, metadata={"axes": axes}, photometric="minisblack", **{kind: True})
    assert_equal_lists(pages_of(content), [*array.reshape(expected)])
    opened = open_pages("x.tif", content)
    assert (opened.count, opened.series[0].axes) == (expected[0], axes)


def test_an_imagej_stack_in_one_page_is_a_stack(tifffile):
    array = noise((4, 6, 5))
    description = "ImageJ=1.53t\nimages=4\nslices=4\n"
    # ImageJ writes stacks over 4 GB so: one page, the other images right behind its pixels.
    content = bytearray(tiff(array[0], description=description, metadata=None))
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        offset = file.pages[0].dataoffsets[0]
    content[offset:] = array.tobytes()
    assert_equal_lists(pages_of(bytes(content)), [page[None] for page in array])
    with pytest.raises(UserError, match="has 4 pages"):
        pages_of(bytes(content), None)


def test_smaller_copies_are_no_pages(tifffile):
    array, stream = noise((64, 64), "float64"), io.BytesIO()
    with tifffile.TiffWriter(stream) as file:
        file.write(array, subifds=1, photometric="minisblack")
        file.write(array[::2, ::2], subfiletype=1, photometric="minisblack")
    assert_equal_lists(pages_of(stream.getvalue(), None), [array[None]])
    for thumbnail_first in (False, True):
        pages, stream = [(array, 0), (array[::4, ::4], 1)], io.BytesIO()
        with tifffile.TiffWriter(stream) as file:
            for page, kind in reversed(pages) if thumbnail_first else pages:
                file.write(page, subfiletype=kind, photometric="minisblack", metadata=None)
        assert_equal_lists(pages_of(stream.getvalue(), None), [array[None]])


def test_pages_of_two_sizes_are_images_but_no_channels(tifffile):
    stream, arrays = io.BytesIO(), [noise((6, 5), "uint16"), noise((4, 7), "uint16")]
    with tifffile.TiffWriter(stream) as file:
        for array in arrays:
            file.write(array, photometric="minisblack", metadata=None)
    assert_equal_lists(pages_of(stream.getvalue()), [array[None] for array in arrays])
    with pytest.raises(UserError, match="different sizes"):
        pages_of(stream.getvalue(), "channels")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_exactly_once(tifffile, orientation):
    array = noise((6, 4))
    tag = (274, "H", 1, orientation, True)
    plain = tiff(array, extratags=[tag], metadata=None, photometric="minisblack")
    with Image.open(io.BytesIO(plain)) as image:
        expected = np.asarray(image)  # Pillow turns TIFF images itself
    info = inspect_image(plain)
    assert (info.height, info.width) == expected.shape
    deep = tiff(array.astype("uint16") * 257, extratags=[tag], photometric="minisblack")
    stack = tiff(np.stack([array] * 2), extratags=[tag], photometric="minisblack")
    for page in pages_of(stack):
        np.testing.assert_array_equal(page, expected[None])
    assert open_pages("x.tif", deep) is None  # Pillow reads it
    double = tiff(array.astype("float64"), extratags=[tag], photometric="minisblack")
    np.testing.assert_array_equal(pages_of(double)[0], expected[None])


@pytest.mark.parametrize("mode", ["1", "P", "L", "RGB", "RGBA", "CMYK", "LA"])
def test_pages_of_bits_palettes_and_other_colours_are_as_single_files(tifffile, mode):
    colours = [Image.fromarray(noise((8, 8, 3))) for _ in range(3)]
    frames = [c.convert("RGB" if mode == "P" else mode) for c in colours]
    if mode == "P":
        frames = [frame.quantize(16) for frame in frames]
    if mode in ("LA", "RGBA"):
        for frame in frames:
            frame.putalpha(Image.fromarray(noise((8, 8))))
    stream = io.BytesIO()
    frames[0].save(stream, "TIFF", save_all=True, append_images=frames[1:])
    for page, frame in zip(pages_of(stream.getvalue()), frames, strict=True):
        single = frame
        if mode in ("LA", "RGBA"):
            white = Image.new("RGBA", frame.size, "white")
            single = Image.alpha_composite(white, frame.convert("RGBA"))
        single = single.convert("L" if mode in ("1", "L", "LA") else "RGB")
        expected = np.asarray(single)
        expected = expected[None] if expected.ndim == 2 else expected.transpose(2, 0, 1)
        np.testing.assert_array_equal(page, expected)


def test_what_pillow_reads_exactly_needs_no_other_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "tifffile", None)
    array = noise((6, 5))
    for image in (array, array.astype("uint16") * 257, array.astype("float32"), array > 99):
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "TIFF")
        assert open_pages("x.tif", stream.getvalue()) is None
    frames = [Image.fromarray(array)] * 2
    frames[0].save(stream := io.BytesIO(), "TIFF", save_all=True, append_images=frames[1:])
    with pytest.raises(UserError, match=r"needs tifffile: pip install 'vaekit\[science\]'"):
        open_pages("x.tif", stream.getvalue())


def test_a_stack_that_ends_before_a_page_is_damaged(tifffile):
    content = tiff(noise((3, 60, 5), "float32"), photometric="minisblack", metadata=None)
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        offsets = [page.offset for page in file.pages]
    assert len(content) > offsets[2] > offsets[1] > 1000
    for end in (offsets[1], offsets[2]):
        with pytest.raises(BadImage, match="it is damaged"):
            pages_of(content[:end])


# Animations


def animation(kind: str, frames: int = 3) -> tuple[bytes, list[np.ndarray]]:
    arrays = [np.full((6, 5, 3), 40 * i, np.uint8) for i in range(1, frames + 1)]
    images, stream = [Image.fromarray(array) for array in arrays], io.BytesIO()
    options = {"lossless": True} if kind == "WEBP" else {}
    images[0].save(stream, kind, save_all=True, append_images=images[1:], **options)
    return stream.getvalue(), [array.transpose(2, 0, 1) for array in arrays]


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_frames_are_read_exactly_and_refused_unasked(kind, tmp_path):
    content, frames = animation(kind)
    name = f"x.{kind.lower()}"
    assert_equal_lists(pages_of(content, "all", name), frames)
    assert_equal_lists(pages_of(content, "first", name), frames[:1])
    assert_equal_lists(pages_of(content, "channels", name), [np.concatenate(frames)])
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match="has 3 frames; choose with pages all") as caught:
        load(tmp_path, skip_bad=True)
    assert "\n" not in str(caught.value)
    with pytest.raises(BadImage, match="several pages or frames"):
        inspect_image(content)  # without any setting


def test_a_photo_with_a_preview_is_one_image(tmp_path):
    first, second = (Image.fromarray(noise((16, 16, 3))) for _ in range(2))
    first.save(stream := io.BytesIO(), "MPO", save_all=True, append_images=[second])
    for i in range(4):
        (tmp_path / f"{i}.jpg").write_bytes(stream.getvalue())
    assert load(tmp_path).shape == (3, 16, 16)


# NIfTI


def volume(array, affine=None, packed=True, **header) -> bytes:
    nibabel = pytest.importorskip("nibabel")
    image = nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine)
    for key, value in header.items():
        image.header[key] = value
    content = image.to_bytes()
    return gzip.compress(content) if packed else content


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_slices_of_a_volume_are_axial_and_upright(packed, dtype):
    array = noise((4, 5, 3), dtype)  # to the right, to the front, up
    name = "x.nii.gz" if packed else "x.nii"
    slices = pages_of(volume(array, packed=packed), "all", name)
    for k in range(3):
        for x, y in itertools.product(range(4), range(5)):
            assert slices[k][0, 4 - y, x] == array[x, y, k]
    flipped = np.diag([-1.0, -1, 1, 1])  # stored from right to left, from front to back
    content = volume(array[::-1, ::-1].copy(), flipped, packed)
    assert_equal_lists(pages_of(content, "all", name), slices)
    # Stored with the vertical axis first.
    content = volume(array.transpose(2, 0, 1).copy(), np.eye(4)[:, [2, 0, 1, 3]], packed)
    assert_equal_lists(pages_of(content, "all", name), slices)


def test_the_scale_of_a_volume_is_applied():
    nibabel = pytest.importorskip("nibabel")
    array = noise((4, 5, 3), "int16")
    image = nibabel.Nifti1Image(array, np.eye(4))
    image.header.set_slope_inter(0.5, -3)
    content = bytearray(image.to_bytes())
    content[112:120] = np.array([0.5, -3], "<f4").tobytes()  # scl_slope, scl_inter
    offset = int(np.frombuffer(content[108:112], "<f4")[0])
    content[offset:] = array.tobytes(order="F")
    slices = pages_of(bytes(content), "all", "x.nii")
    expected = (array[:, ::-1] * 0.5 - 3).transpose(2, 1, 0)
    np.testing.assert_allclose(np.concatenate(slices), expected)


# The data set


def write_stacks(folder, files=6, pages=4) -> dict[bytes, int]:
    """Stacks of pages, and the file of each page by its content."""
    origin = {}
    for file in range(files):
        array = noise((pages, 6, 5))
        (folder / f"stack{file}.tif").write_bytes(tiff(array, photometric="minisblack"))
        origin |= {page.tobytes(): file for page in array}
    return origin


def test_pages_of_a_file_stay_in_one_split(tifffile, tmp_path):
    origin = write_stacks(tmp_path)
    with pytest.raises(UserError, match="has 4 pages; choose with pages all") as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)
    for seed in range(3):
        data = load(tmp_path, pages="all", split_seed=seed)
        assert data.shape == (1, 6, 5)
        files = [{origin[x.numpy().tobytes()] for x in s.images[:]} for s in data.splits.values()]
        assert [len(s) for s in data.splits.values()] == [4 * len(f) for f in files]
        assert sum(map(len, files)) == len(set.union(*files)) == 6
        assert data.reading == ("24 images from 6 files: all pages of a file are in one split",)
    assert len(load(tmp_path, pages="first").train) == 4
    on_disk = load(tmp_path, pages="all", split_seed=2, in_memory="no")
    assert on_disk.sha256() == data.sha256()


def test_labels_and_splits_of_pages_are_those_of_their_file(tifffile, tmp_path):
    expected = {}
    for split, name in itertools.product(("train", "test"), "ab"):
        (tmp_path / split / name).mkdir(parents=True)
        for i in range(2):
            array = noise((3, 6, 5))
            path = tmp_path / split / name / f"{i}.tif"
            path.write_bytes(tiff(array, photometric="minisblack"))
            expected |= {page.tobytes(): (split, name) for page in array}
    save_image(tmp_path / "train" / "a" / "single.png")
    data = load(tmp_path, pages="all")
    assert data.classes == ("a", "b")
    for name, split in data.splits.items():
        for image, label in zip(split.images, split.labels.tolist(), strict=True):
            found = expected.get(image.numpy().tobytes(), ("train", "a"))
            assert found == ("test" if name == "test" else "train", "ab"[label])
    sizes = [len(s) for s in data.splits.values()]
    assert sum(sizes) == 25
    assert sizes[2] == 12
    assert sizes[1] in (1, 3)  # a file


def test_a_table_tells_the_labels_of_pages_by_their_file(tifffile, tmp_path):
    origin = write_stacks(tmp_path)
    rows = [f"stack{i}.tif,{'ab'[i % 2]}" for i in range(6)]
    (tmp_path / "metadata.csv").write_text("\n".join(["file_name,label", *rows]))
    data = load(tmp_path, pages="all")
    assert data.classes == ("a", "b")
    assert sum(map(len, data.splits.values())) == 24
    for split in data.splits.values():
        for image, label in zip(split.images, split.labels.tolist(), strict=True):
            assert origin[image.numpy().tobytes()] % 2 == label


def test_one_stack_is_a_data_set_and_says_how_it_was_split(tifffile, tmp_path):
    write_stacks(tmp_path, files=1, pages=12)
    data = load(tmp_path / "stack0.tif", pages="all")
    assert [len(s) for s in data.splits.values()] == [10, 1, 1]
    assert data.reading == (
        "12 images from 1 file: too few files to split by file, so that pages of one file are in several splits",
    )


@pytest.mark.parametrize(
    ("pages", "shape"), [("all", (1, 6, 5)), ("first", (1, 6, 5)), ("channels", (3, 6, 5))]
)
@pytest.mark.parametrize(
    ("dtype", "span"), [("uint16", "0,65535"), ("float32", "-9,9"), ("int16", "-32768,32767")]
)
def test_deep_stacks_keep_their_values(tifffile, pages, shape, dtype, span, tmp_path):
    arrays = [noise((3, 6, 5), dtype) for _ in range(5)]
    for i, array in enumerate(arrays):
        (tmp_path / f"{i}.tif").write_bytes(tiff(array, photometric="minisblack"))
    data = load(tmp_path, pages=pages, range=span)
    assert data.shape == shape
    stacked = np.stack(arrays)
    expected = (stacked[:, :1] if pages == "first" else stacked).reshape(-1, *shape)
    assert sum(map(len, data.splits.values())) == len(expected)
    low, high = data.value_range.low, data.value_range.high
    read = np.concatenate([split.images[:] for split in data.splits.values()], dtype=np.float64)
    read = low + read * (high - low)
    order = [np.argsort(images[:, 0, 0, 0]) for images in (read, expected)]
    np.testing.assert_allclose(read[order[0]], expected[order[1]], atol=1e-6 * (high - low))


def test_images_of_many_channels_are_encoded(tifffile, tmp_path):
    array = noise((6, 5, 12), "float32")
    (tmp_path / "x.tif").write_bytes(tiff(array, photometric="minisblack", planarconfig="contig"))
    span = ValueRange(float(array.min()), float(array.max()), None, "float32")
    files = find_image_files([tmp_path])
    (image,) = read_images(files, (12, 6, 5), ProgressBar(False), value_range=span)
    values = span.low + image.numpy() * (span.high - span.low)
    np.testing.assert_allclose(values, array.transpose(2, 0, 1), atol=1e-5)


def test_pages_are_encoded_as_the_run_reads_them(tifffile, tmp_path):
    array = noise((3, 6, 5))
    (tmp_path / "x.tif").write_bytes(tiff(array, photometric="minisblack"))
    bar = ProgressBar(False)
    files = find_image_files([tmp_path / "x.tif"], pages="all")
    assert [name.rsplit("/")[-1] for name in files.names] == [f"x.tif page {i}" for i in (1, 2, 3)]
    images = read_images(files.take([2, 0]), (1, 6, 5), bar)
    np.testing.assert_array_equal(images[:, 0], array[[2, 0]])
    with pytest.raises(UserError, match="has 3 pages"):
        read_images(find_image_files([tmp_path]), (1, 6, 5), bar)


def test_a_page_source_reads_only_the_pages_asked_for(tifffile, tmp_path):
    write_stacks(tmp_path, 2, 3)
    save_image(tmp_path / "a.png")
    source = PageSource(open_source(tmp_path), "all")
    assert len(source.entries) == 7
    asked = ["a.png", "stack0.tif page 2", "stack1.tif page 3"]
    assert [name for name, _ in source.read(asked)] == asked
    files = [file_of_page(entry.name) for entry in source.entries]
    assert files == ["a.png", *["stack0.tif"] * 3, *["stack1.tif"] * 3]


# Hostile files


def damaged_files() -> dict[str, bytes]:
    good = tiff(noise((3, 6, 5), "uint16"), photometric="minisblack")
    plain = volume(noise((4, 5, 3)), packed=False)
    packed = gzip.compress(plain)
    huge = bytearray(plain)
    huge[42:48] = np.array([30000] * 3, "<i2").tobytes()
    rgb = np.zeros((2, 2, 2), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    return {
        "only magic.tif": b"II*\0",
        "no pages.tif": b"II*\0\0\0\0\0",
        "loop.tif": b"II*\0\x08\0\0\0" + b"\0\0\x08\0\0\0",
        "truncated.tif": good[:100],
        "truncated pixels.tif": good[:-50],
        "truncated before page 2.tif": tiff(noise((3, 6, 5)), metadata=None, photometric="minisblack")[:300],
        "truncated before page 3.tif": tiff(noise((3, 60, 5)), metadata=None, photometric="minisblack")[:-350],
        "complex.tif": tiff(np.zeros((2, 6, 5), "complex64")),
        "noise.tif": b"II*\0" + RNG.bytes(500),
        "big noise.tif": b"II+\0" + RNG.bytes(500),
        "65 channels.tif": tiff(np.zeros((6, 5, 65), "u2"), photometric="minisblack", planarconfig="contig"),
        "mixed.tif": tiff(noise((2, 6, 5), "u2")) [:8],
        "truncated.gif": animation("GIF")[0][:-60],
        "magic.gif": b"GIF89a",
        "magic.webp": b"RIFF\x20\0\0\0WEBP",
        "noise.nii": RNG.bytes(400),
        "empty.nii": b"",
        "truncated.nii": plain[:-10],
        "truncated.nii.gz": packed[:-20],
        "not packed.nii.gz": b"hello",
        "huge.nii": bytes(huge),
        "colour.nii": volume(rgb, packed=False),
        "four axes.nii": volume(noise((4, 5, 3, 2)), packed=False),
        "two axes.nii": volume(noise((4, 5)), packed=False),
    }  # fmt: skip


def test_damaged_files_are_named_in_one_line(tifffile, tmp_path):
    pytest.importorskip("nibabel")
    for i in range(4):
        save_image(tmp_path / "good" / f"{i}.png")
    for name, content in damaged_files().items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(UserError) as caught:
            load(path, pages="all", size=6, colour="grey")
        assert name in str(caught.value), name
        assert "\n" not in str(caught.value)
        path.rename(tmp_path / "good" / name)
        data = load(tmp_path / "good", pages="all", skip_bad=True, size=6, colour="grey")
        assert sum(map(len, data.splits.values())) >= 4
        (tmp_path / "good" / name).unlink()


def test_an_ome_file_opens_no_other_file(tifffile, tmp_path, monkeypatch):
    from vaekit.data.formats.tiff import Tiff

    array = noise((2, 6, 5), "uint16")
    other = tmp_path / "b.ome.tif"
    tifffile.imwrite(other, array[1], photometric="minisblack", metadata=None)
    xml = tifffile.OmeXml()
    xml.addimage("uint16", array.shape, (2, 1, 1, 6, 5, 1), axes="TYX")
    text = xml.tostring().replace(
        '<TiffData IFD="0" PlaneCount="2"/>',
        '<TiffData FirstT="0" IFD="0"><UUID FileName="a.ome.tif">urn:uuid:1</UUID></TiffData>'
        '<TiffData FirstT="1" IFD="0"><UUID FileName="b.ome.tif">urn:uuid:2</UUID></TiffData>',
    )
    text = re.sub(r'UUID="urn:uuid:[^"]*"', 'UUID="urn:uuid:1"', text, count=1)
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, array[0], photometric="minisblack", description=text, metadata=None)
    monkeypatch.chdir(tmp_path)
    with tifffile.TiffFile(path) as opened:
        assert opened.series[0].shape == (2, 6, 5)  # what the metadata says
    assert_equal_lists(Tiff(path.read_bytes()).read(), [array[:1]])


def test_a_page_is_packed_and_unpacked_exactly():
    for array in (noise((3, 4, 5), "uint16"), noise((1, 1, 2), "float32")):
        assert_equal_lists([unpack(pack(array))], [array.transpose(1, 2, 0)])
    with pytest.raises(BadImage, match="it is broken"):
        unpack(pack(BadImage("it is broken")))


def test_pages_that_refer_to_each_other_in_a_circle_are_refused(tmp_path, tifffile):
    """Without a count of them first, they are read without end."""
    path = tmp_path / "circle.tif"
    tifffile.imwrite(path, np.zeros((2, 9, 8), np.uint16), photometric="minisblack", metadata=None)
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        first, last = (page.offset for page in file.pages)
    (tags,) = struct.unpack_from("<H", content, last)
    struct.pack_into("<I", content, last + 2 + 12 * tags, first)
    path.write_bytes(content)
    with pytest.raises(UserError, match="circular reference") as caught:
        load(path, pages="all")
    assert "\n" not in str(caught.value)
