"""Real image files of other packages, each shown by `vaekit data show` and compared value by value with its source.

python benchmarks/real_files.py --pillow FOLDER [--out docs/results/real_files.md] [--only NAME ...]

Needs scikit-image, scikit-learn, nibabel, matplotlib, tifffile, h5py, zarr and pyarrow; FOLDER is the unpacked source
distribution of Pillow (pip download --no-deps --no-binary :all: pillow). Files are read here by these packages, without
vaekit. Each data set is a file as it is in its package, or real pixels cut into tiles and written in another format.
"""

from __future__ import annotations

import argparse
import gzip
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tifffile
import zarr
from PIL import Image, ImageOps

import vaekit

Arrays = Sequence[np.ndarray]  # (C, H, W) each, in the units of the source
SHOWN = 20  # images in a picture
PACKAGES = (
    "scikit-image",
    "scikit-learn",
    "nibabel",
    "matplotlib",
    "pillow",
    "tifffile",
    "h5py",
    "zarr",
    "pyarrow",
    "numpy",
)


@dataclass(frozen=True)
class Case:
    """A data set. `make` writes or copies it below a folder, and returns the path to give to `--data` and its images,
    or None where it is to be refused; `may_show`: the licence of its images, None where they are not shown."""

    name: str
    what: str
    make: Callable[[Path], tuple[str, Arrays | None]]
    flags: str = ""
    may_show: str | None = None


def package(name: str) -> Path:
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{name} is not installed")
    return Path(spec.origin).parent


SKIMAGE = package("skimage") / "data"
SAMPLES = package("matplotlib") / "mpl-data" / "sample_data"
NIFTI = package("nibabel") / "tests" / "data"
FLICKR = package("sklearn") / "datasets" / "images"
PILLOW = Path()  # set by main

SKI = "scikit-image"
CC0 = "CC0 or public domain"
MPL = "matplotlib's licence; elevation data"


def copied(folder: Path, *files: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        shutil.copy(file, folder / file.name)
    return folder


def tiles(image: np.ndarray, height: int, width: int | None = None) -> np.ndarray:
    """Tiles (N, height, width, ...) of an image (H, W, ...), without the rest at its right and bottom."""
    width = width or height
    rows, columns = image.shape[0] // height, image.shape[1] // width
    cut = image[: rows * height, : columns * width]
    cut = cut.reshape(rows, height, columns, width, *image.shape[2:])
    return cut.swapaxes(1, 2).reshape(-1, height, width, *image.shape[2:])


def channels_first(images: np.ndarray) -> list[np.ndarray]:
    """The images (C, H, W) of an array (N, H, W) or (N, H, W, C)."""
    return [x[None] if x.ndim == 2 else np.moveaxis(x, -1, 0) for x in images]


def on_white(file: Path) -> np.ndarray:
    """The pixels of an 8-bit image file (3, H, W) as Pillow reads them, transparent ones white."""
    with Image.open(file) as opened:
        image = ImageOps.exif_transpose(opened)
        if "A" in image.mode or "transparency" in image.info:
            rgba = image.convert("RGBA")
            image = Image.new("RGBA", image.size, "white")
            image.alpha_composite(rgba)
        return np.moveaxis(np.asarray(image.convert("RGB")), -1, 0)


def elevation() -> np.ndarray:
    """Elevation in metres around a fault (5 x 6 tiles of 64 x 64 pixels), int16."""
    with np.load(SAMPLES / "jacksboro_fault_dem.npz") as file:
        return tiles(file["elevation"], 64)


def scan() -> np.ndarray:
    """A slice of magnetic resonance (8 x 8 tiles of 32 x 32 pixels), uint16."""
    content = gzip.decompress((SAMPLES / "s1045.ima.gz").read_bytes())
    return tiles(np.frombuffer(content, "<u2").reshape(256, 256), 32)


def volume(name: str) -> Any:
    return nibabel.load(NIFTI / name)


def refused(path: Path) -> Callable[[Path], tuple[str, None]]:
    return lambda folder: (str(path), None)


# Arrays


def faces(folder: Path) -> tuple[str, Arrays]:
    file = SKIMAGE / "lfw_subset.npy"
    return str(file), channels_first(np.load(file))


def faces_and_others(folder: Path) -> tuple[str, Arrays]:
    images = np.load(SKIMAGE / "lfw_subset.npy").astype(np.float32)
    labels = np.arange(200) // 100
    np.savez(folder / "faces.npz", images=images, labels=labels)
    return str(folder / "faces.npz"), channels_first(images)


def disparity(folder: Path, finite: bool) -> tuple[str, Arrays | None]:
    with np.load(SKIMAGE / "motorcycle_disp.npz") as file:
        images = tiles(file["arr_0"], 32)
    good = np.isfinite(images).all(axis=(1, 2))
    np.save(folder / "disparity.npy", images[good] if finite else images)
    return str(folder / "disparity.npy"), channels_first(images[good]) if finite else None


def elevation_array(folder: Path) -> tuple[str, Arrays]:
    np.save(folder / "elevation.npy", elevation())
    return str(folder / "elevation.npy"), channels_first(elevation())


def elevation_folder(folder: Path) -> tuple[str, Arrays]:
    (folder / "elevation").mkdir()
    for i, tile in enumerate(elevation()):
        np.save(folder / "elevation" / f"{i:02d}.npy", tile)
    return str(folder / "elevation"), channels_first(elevation())


def topography(folder: Path) -> tuple[str, Arrays]:
    with np.load(SAMPLES / "topobathy.npz") as file:
        images = tiles(file["topo"], 15)
    np.save(folder / "topo.npy", images)
    return str(folder / "topo.npy"), channels_first(images)


def sky(folder: Path) -> tuple[str, Arrays]:
    images = tiles(np.asarray(Image.open(SKIMAGE / "hubble_deep_field.jpg")), 64)
    np.save(folder / "sky.npy", images)
    return str(folder / "sky.npy"), channels_first(images)


def time_points(folder: Path) -> tuple[str, Arrays]:
    """Slices of functional.nii, its 20 times as channels."""
    array = np.asanyarray(volume("functional.nii").dataobj)  # (17, 21, 3, 20)
    images = np.ascontiguousarray(array.transpose(2, 3, 1, 0)).astype(np.float32)
    np.save(folder / "times.npy", images)
    return str(folder / "times.npy"), list(images)


def two_volumes(folder: Path) -> tuple[str, Arrays]:
    """Slices of example4d.nii.gz, its two volumes as channels, which is on the last axis."""
    array = np.asanyarray(volume("example4d.nii.gz").dataobj)  # (128, 96, 24, 2)
    images = np.ascontiguousarray(array.transpose(2, 1, 0, 3))
    np.save(folder / "pairs.npy", images)
    return str(folder / "pairs.npy"), channels_first(images)


# HDF5, zarr, Parquet


def elevation_hdf5(folder: Path) -> tuple[str, Arrays]:
    with h5py.File(folder / "elevation.h5", "w") as file:
        file.create_dataset("fault/tiles", data=elevation(), chunks=(4, 64, 64), compression="gzip")
        file["fault/tiles"].attrs["unit"] = "m"
        file["survey/dx"] = 1 / 1200
    return f"{folder / 'elevation.h5'}:/fault/tiles", channels_first(elevation())


def scan_hdf5(folder: Path) -> tuple[str, Arrays]:
    with h5py.File(folder / "scan.h5", "w") as file:
        file["images"] = scan()
    return str(folder / "scan.h5"), channels_first(scan())


def elevation_zarr(folder: Path) -> tuple[str, Arrays]:
    root = zarr.open_group(folder / "elevation.zarr", mode="w")
    root.create_array("tiles", data=elevation(), chunks=(4, 64, 64))
    return str(folder / "elevation.zarr"), channels_first(elevation())


def photograph_table(folder: Path) -> tuple[str, Arrays]:
    """Tiles of two photographs in a table as those of Hugging Face."""
    images, rows = [], []
    for label, name in enumerate(("china.jpg", "flower.jpg")):
        for i, tile in enumerate(tiles(np.asarray(Image.open(FLICKR / name)), 61, 64)):
            content = io.BytesIO()
            Image.fromarray(tile).save(content, "png")
            image = {"bytes": content.getvalue(), "path": f"{name}-{i}.png"}
            rows.append({"image": image, "label": label})
            images.append(tile)
    pq.write_table(pa.Table.from_pylist(rows), folder / "photographs.parquet")
    return str(folder / "photographs.parquet"), channels_first(np.stack(images))


# Image files

FREE = [  # images of scikit-image that its documentation says are CC0 or in the public domain
    SKIMAGE / name
    for name in ("astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "clock_motion.png",
                 "coffee.png", "grass.png", "gravel.png", "horse.png", "microaneurysms.png", "text.png",
                 "hubble_deep_field.jpg",
                 "retina.jpg", "rocket.jpg")
]  # fmt: skip


def same_size(folder: Path) -> tuple[str, Arrays]:
    files = [file for file in FREE if Image.open(file).size == (512, 512)]
    return str(copied(folder / "photographs", *files)), [on_white(file) for file in files]


def all_sizes(folder: Path) -> tuple[str, Arrays]:
    def fitted(file: Path) -> np.ndarray:
        image = Image.fromarray(np.moveaxis(on_white(file), 0, -1))
        return np.moveaxis(
            np.asarray(ImageOps.fit(image, (64, 64), Image.Resampling.LANCZOS)), -1, 0
        )

    return str(copied(folder / "photographs", *FREE)), [fitted(file) for file in FREE]


def textures(folder: Path) -> tuple[str, Arrays]:
    images = []
    for name in ("brick", "grass", "gravel"):
        (folder / "textures" / name).mkdir(parents=True)
        for i, tile in enumerate(tiles(np.asarray(Image.open(SKIMAGE / f"{name}.png")), 64)):
            Image.fromarray(tile).save(folder / "textures" / name / f"{i:02d}.png")
            images.append(tile[None])
    return str(folder / "textures"), images


def jpeg_tiles(folder: Path) -> tuple[str, Arrays]:
    """Tiles of the retina as JPEG files; what Pillow decodes of them is the source."""
    (folder / "retina").mkdir()
    images = []
    for i, tile in enumerate(tiles(np.asarray(Image.open(SKIMAGE / "retina.jpg")), 88)):
        file = folder / "retina" / f"{i:03d}.jpg"
        Image.fromarray(tile).save(file, quality=90)
        images.append(on_white(file))
    return str(folder / "retina"), images


def scan_png(folder: Path) -> tuple[str, Arrays]:
    (folder / "scan").mkdir()
    for i, tile in enumerate(scan()):
        Image.fromarray(tile).save(folder / "scan" / f"{i:02d}.png")
    return str(folder / "scan"), channels_first(scan())


def gif(folder: Path) -> tuple[str, Arrays]:
    file = SKIMAGE / "no_time_for_that_tiny.gif"
    with Image.open(file) as image:
        frames = []
        for number in range(getattr(image, "n_frames", 1)):
            image.seek(number)
            frames.append(np.moveaxis(np.asarray(image.convert("RGB")), -1, 0))
    return str(file), frames


def elevation_stack(folder: Path) -> tuple[str, Arrays]:
    tifffile.imwrite(folder / "elevation.tif", elevation(), photometric="minisblack")
    return str(folder / "elevation.tif"), channels_first(elevation())


def elevation_tiffs(folder: Path) -> tuple[str, Arrays]:
    """A TIFF file for each of five rows of tiles; its six pages together are the channels of an image."""
    (folder / "rows").mkdir()
    images = elevation().reshape(5, 6, 64, 64)
    for i, row in enumerate(images):
        tifffile.imwrite(folder / "rows" / f"{i}.tif", row, photometric="minisblack")
    return str(folder / "rows"), list(images)


# NIfTI


def canonical(image: Any) -> list[np.ndarray]:
    """The axial slices (1, H, W), their left at the left, anterior at the top, by the signs of a diagonal affine."""
    array = np.asanyarray(image.dataobj)
    for axis in range(3):
        assert np.abs(image.affine[:3, axis]).argmax() == axis
        if image.affine[axis, axis] < 0:
            array = np.flip(array, axis)
    return [array[:, ::-1, k].T[None] for k in range(array.shape[2])]


def nifti(name: str) -> Callable[[Path], tuple[str, Arrays]]:
    return lambda folder: (str(NIFTI / name), canonical(volume(name)))


def functional(folder: Path, channels: bool) -> tuple[str, Arrays]:
    """The volumes of a time series, saved one by one."""
    (folder / "volumes").mkdir()
    images: list[np.ndarray] = []
    for i, one in enumerate(nibabel.four_to_three(volume("functional.nii"))):
        nibabel.save(one, folder / "volumes" / f"{i:02d}.nii.gz")
        slices = canonical(nibabel.load(folder / "volumes" / f"{i:02d}.nii.gz"))
        images += [np.concatenate(slices)] if channels else slices
    return str(folder / "volumes"), images


# Pillow's test images


def hopper(folder: Path) -> tuple[str, Arrays]:
    names = ("bmp", "dds", "gif", "iccprofile.tif", "im", "jpg", "pnm", "png", "ppm", "qoi", "ras", "rgb", "sgi", "tif",
             "webp", "xpm")  # fmt: skip
    files = [PILLOW / f"hopper.{name}" for name in names]
    more = ("lzw", "lzma", "jpg", "bigtiff", "float_dpi_2")
    files += [PILLOW / f"hopper_{name}.tif" for name in more]
    return str(copied(folder / "hopper", *files)), [on_white(file) for file in files]


def turned(folder: Path) -> tuple[str, Arrays]:
    files = [PILLOW / f"hopper_orientation_{i}.{e}" for e in ("jpg", "webp") for i in range(2, 9)]
    images = [on_white(file) for file in files]
    upright = on_white(PILLOW / "hopper.png").astype(float)
    assert all(
        np.abs(image - upright).mean() < 12 for image in images
    )  # all are the same photograph
    return str(copied(folder / "turned", *files)), images


def turned_bits(folder: Path) -> tuple[str, Arrays]:
    """A line of text, of black and white pixels, stored in eight orientations of TIFF, scanned anew for each."""
    files = [PILLOW / f"g4_orientation_{i}.tif" for i in range(1, 9)]
    images = []
    for orientation, file in enumerate(files, 1):
        with tifffile.TiffFile(file) as tiff:
            bits = tiff.asarray() ^ (
                tiff.series[0].keyframe.photometric == tifffile.PHOTOMETRIC.MINISWHITE
            )
        bits = bits.T if orientation > 4 else bits
        bits = bits[::-1] if orientation in (3, 4, 7, 8) else bits
        bits = bits[:, ::-1] if orientation in (2, 3, 6, 7) else bits
        images.append(255.0 * bits[None])
        assert (images[-1] != images[0]).mean() < 0.005
    return str(copied(folder / "text", *files)), images


def deep_tiffs(folder: Path) -> tuple[str, Arrays]:
    names = ["16bit.cropped", "16bit.MM.cropped", "16bit.deflate", "16bit.MM.deflate", "16bit.r"]
    files = [PILLOW / f"{name}.tif" for name in names]
    images = [np.array(Image.open(file)).astype(np.uint16)[None] for file in files]
    return str(copied(folder / "deep", *files)), images


def deep_colours(folder: Path) -> tuple[str, Arrays]:
    names = ("tiff_16bit_RGB", "tiff_strip_planar_16bit_RGB", "tiff_tiled_planar_16bit_RGB")
    files = [PILLOW / f"{name}.tiff" for name in names]
    target = np.moveaxis(np.asarray(Image.open(PILLOW / "tiff_16bit_RGB_target.png")), -1, 0)
    images = []
    for file in files:
        with tifffile.TiffFile(file) as tiff:
            array = tiff.asarray()
        images.append(array if array.shape[0] == 3 else np.moveaxis(array, -1, 0))
        assert (images[-1] >> 8 == target).all()  # Pillow reads the upper 8 bits
    return str(copied(folder / "deep", *files)), images


CASES = [
    Case("faces", f"`lfw_subset.npy` of {SKI}, as it is: 100 faces, 100 others", faces),
    Case(
        "faces-npz",
        "the same as float32 in an `.npz` file with labels, of which `data show` knows the classes",
        faces_and_others,
    ),
    Case("tiff-pages", f"`multipage.tif` of {SKI}, as it is", refused(SKIMAGE / "multipage.tif")),
    Case("tiff-two-pages", "the same with `--pages all`", refused(SKIMAGE / "multipage.tif"), "--pages all"),
    Case(
        "tiff-rgb-pages",
        f"`multipage_rgb.tif` of {SKI}, as it is: two planar pages of float64 colours",
        refused(SKIMAGE / "multipage_rgb.tif"),
        "--pages all",
    ),
    Case("gif-frames", f"`no_time_for_that_tiny.gif` of {SKI}, as it is", gif, "--pages all"),
    Case(
        "gif", "the same without `--pages`", refused(SKIMAGE / "no_time_for_that_tiny.gif")
    ),
    Case("depth-file", f"`motorcycle_disp.npz` of {SKI}, as it is: one map of disparities",
         refused(SKIMAGE / "motorcycle_disp.npz")),
    Case("depth", "the same map as 32 x 32 tiles in a `.npy` file, with its infinite values",
         lambda folder: disparity(folder, False)),
    Case("depth-finite", "its tiles without infinite values", lambda folder: disparity(folder, True)),
    Case("elevation-file", "`jacksboro_fault_dem.npz` of matplotlib, as it is: one map and its axes",
         refused(SAMPLES / "jacksboro_fault_dem.npz")),
    Case("elevation", "its elevation (int16, metres) as 64 x 64 tiles in a `.npy` file", elevation_array, "", MPL),
    Case("elevation-folder", "the same, each tile in a `.npy` file of a folder", elevation_folder),
    Case("elevation-hdf5", "the same in an HDF5 file, chunked and compressed", elevation_hdf5),
    Case("elevation-zarr", "the same in a zarr folder", elevation_zarr, "--range 0,1100", MPL),
    Case("elevation-tiff", "the same as the pages of a TIFF file", elevation_stack, "--pages all"),
    Case("elevation-channels", "the same as five TIFF files of six pages, which are channels", elevation_tiffs,
         "--pages channels", MPL),
    Case("topography", "`topobathy.npz` of matplotlib: heights and depths of a coast (float32), as 15 x 15 tiles",
         topography, "", MPL),
    Case("scan-png", "`s1045.ima.gz` of matplotlib, a slice of magnetic resonance, as tiles in 16-bit PNG files",
         scan_png),
    Case("scan-hdf5", "the same as the only array of an HDF5 file", scan_hdf5, "--range 0.5%,99.5%"),
    Case("photographs", f"the images of 512 x 512 pixels of {SKI}, grey and colour PNG, as they are", same_size,
         "", CC0),
    Case("photographs-64", f"free images of {SKI} as they are: 15 PNG and JPEG files of many sizes, grey, colour and "
         "with transparency", all_sizes, "--size 64", CC0),
    Case("textures", f"`brick.png`, `grass.png` and `gravel.png` of {SKI} as 64 x 64 tiles in class folders, grey PNG",
         textures, "", CC0),
    Case("sky", f"`hubble_deep_field.jpg` of {SKI} as an array of colour tiles (N, 64, 64, 3)", sky, "", CC0),
    Case("retina", f"`retina.jpg` of {SKI} as JPEG tiles", jpeg_tiles, "--size 88", CC0),
    Case("table", "tiles of `china.jpg` and `flower.jpg` of scikit-learn as PNG in a Parquet table with labels",
         photograph_table, "",
         "`china.jpg` by danielbuechele and `flower.jpg` by vultilion, both [CC BY 2.0]"
         "(https://creativecommons.org/licenses/by/2.0/), cut into tiles"),
    Case("nifti", "`anatomical.nii` of nibabel, as it is: big-endian int16, left and right swapped in the file",
         nifti("anatomical.nii"), "--pages all"),
    Case("nifti-float", "`reoriented_anat_moved.nii` of nibabel, as it is: big-endian float32",
         nifti("reoriented_anat_moved.nii"), "--pages all"),
    Case("nifti-small", "`standard.nii.gz` of nibabel, as it is: uint8", nifti("standard.nii.gz"), "--pages all"),
    Case("nifti-nan", "`resampled_anat_moved.nii` of nibabel, as it is: with NaN",
         refused(NIFTI / "resampled_anat_moved.nii"), "--pages all"),
    Case("nifti-series", "`example4d.nii.gz` of nibabel, as it is: two volumes", refused(NIFTI / "example4d.nii.gz"),
         "--pages all"),
    Case("nifti2-series", "`example_nifti2.nii.gz` of nibabel, as it is: NIfTI-2",
         refused(NIFTI / "example_nifti2.nii.gz"), "--pages all"),
    Case("nifti-volumes", "the 20 volumes of `functional.nii` of nibabel in files of their own, int16 with a slope",
         lambda folder: functional(folder, False), "--pages all"),
    Case("nifti-channels", "the same, the three slices of a volume as channels",
         lambda folder: functional(folder, True), "--pages channels"),
    Case("two-channels", "slices of `example4d.nii.gz` as an array (N, H, W, 2) of int16", two_volumes),
    Case("time-channels", "slices of `functional.nii` as an array (N, 20, H, W), its times as channels", time_points,
         "--channel-axis first"),
    Case("hopper", "Pillow's test photograph in 21 files of 16 formats and kinds of TIFF, as they are", hopper, "",
         "public domain"),
    Case("hopper-turned", "Pillow's test photograph in seven EXIF orientations, JPEG and WebP, as they are", turned, "",
         "public domain"),
    Case("text-turned", "Pillow's line of text in eight TIFF orientations, 1-bit fax, as they are", turned_bits, ""),
    Case("tiff-16-bit", "Pillow's 16-bit TIFF files, little- and big-endian, compressed or not, as they are",
         deep_tiffs),
    Case("tiff-16-bit-rgb", "Pillow's TIFF files of 16 bits per colour: contiguous, planar and tiled, as they are",
         deep_colours),
]  # fmt: skip


@dataclass(frozen=True)
class Result:
    case: Case
    command: str
    code: int
    output: str
    log: str
    picture: Path | None
    check: str


def as_loaded(data: vaekit.data.Dataset) -> np.ndarray:
    """All images (N, C, H, W) in the units of their source."""
    data_range = data.value_range
    parts = []
    for split in data.splits.values():
        x = split[:].images
        values = x.double().numpy()
        if x.is_floating_point():
            parts.append(data_range.low + values * (data_range.high - data_range.low))
        else:
            parts.append(values / 255 * data_range.high)
    return np.concatenate(parts)


def compare(path: str, flags: Sequence[str], source: Arrays) -> str:
    """How vaekit reads a data set, and the largest error of its values. Raises AssertionError for one that is not
    rounding."""
    names = [flag.removeprefix("--").replace("-", "_") for flag in flags[::2]]
    data = vaekit.load_data(path, progress=False, **dict(zip(names, flags[1::2], strict=True)))
    loaded, expected = as_loaded(data), np.stack([np.asarray(x, np.float64) for x in source])
    assert loaded.shape == expected.shape, f"{loaded.shape} is not {expected.shape}"
    values = data.value_range
    clipped = np.clip(expected, values.low, values.high)
    outside = int((clipped != expected).sum())
    # The order is that of rounded values, which both have exactly.
    step = (values.high - values.low) / 2**20
    order = [
        np.argsort(np.round(x / step).reshape(len(x), -1) @ RANDOM[: x[0].size])
        for x in (loaded, clipped)
    ]
    error = np.abs(loaded[order[0]] - clipped[order[1]]).max()
    levels = values.levels
    told = f"{len(loaded):,} x {tuple(loaded.shape[1:])}, {values.dtype} {values.low:g} ... {values.high:g}"
    told += f", {levels:,} levels" if levels else ""
    if outside:
        told += f", {outside:,} of {expected.size:,} values clipped"
    assert error <= (values.high - values.low) * 2**-22, f"values differ by {error}"
    return f"{told}; largest error {error:.2g}"


RANDOM = np.random.default_rng(0).random(2**20)


def run(case: Case, scratch: Path) -> Result:
    folder = scratch / case.name
    folder.mkdir()
    path, source = case.make(folder)
    flags = shlex.split(case.flags)
    picture = scratch / f"{case.name}.png"
    command = ["data", "show", path, *flags, "--count", str(SHOWN), "--out", str(picture)]
    environment = {**os.environ, "COLUMNS": "100", "VAEKIT_CACHE": str(scratch / "cache")}
    done = subprocess.run(
        [sys.executable, "-m", "vaekit", *command],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr

    def shortened(text: str) -> str:
        text = text.replace(f"{folder}/", "").replace(f"{picture}\n", "")
        for where in (SKIMAGE, SAMPLES, NIFTI):
            text = text.replace(f"{where}/", "")
        return re.sub(r"[^\S\n]+$", "", text, flags=re.MULTILINE).strip()

    if source is None:
        assert done.returncode == 2, f"{case.name} is not refused: {done.stdout}"
        assert not picture.exists(), case.name
        lines = [line for line in done.stderr.splitlines() if line.startswith("vaekit: ")]
        assert len(lines) == 1
        check = "refused"
    else:
        assert done.returncode == 0, f"{case.name}: {done.stderr}"
        check = compare(path, flags, source)
    shown = shortened(f"vaekit data show {shlex.quote(path)} {case.flags}")
    return Result(
        case,
        shown,
        done.returncode,
        shortened(done.stdout),
        shortened(done.stderr),
        picture if source is not None else None,
        check,
    )


@dataclass(frozen=True)
class Training:
    """A small training on a case, and the type of the values to decode."""

    name: str
    epochs: int
    batch_size: int
    dtype: str


TRAININGS = (
    Training("faces", 100, 20, "float32"),
    Training("elevation-tiff", 40, 8, "int16"),
    Training("elevation-hdf5", 40, 8, "int16"),
    Training("nifti", 40, 4, "int16"),
    Training("nifti-volumes", 40, 8, "float32"),
)


def whole_way(training: Training, case: Case, scratch: Path) -> str:
    """Train, plot, evaluate, encode and decode by the command line: a line of the table on how far the decoded values
    are from the source."""
    folder = scratch / f"{training.name}-run"
    folder.mkdir()
    path, source = case.make(folder)
    assert source is not None
    flags = shlex.split(case.flags)
    environment = {**os.environ, "VAEKIT_CACHE": str(scratch / "cache")}
    small = ["--latent-dim", "8", "--hidden-dim", "128"]
    for command in (
        ["train", "vae", "--data", path, *flags, *small, "--epochs", str(training.epochs),
         "--batch-size", str(training.batch_size), "--out", "run"],
        ["plot", "run"],
        ["evaluate", "run"],
        ["encode", "run", path, "--out", "codes.npz"],
        ["decode", "run", "codes.npz", "--dtype", training.dtype, "--out", "decoded.npy"],
    ):  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "vaekit", *command],
            capture_output=True, text=True, env=environment, check=False, cwd=folder,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}: {done.stderr}"
    decoded = np.load(folder / "decoded.npy")
    expected = np.stack([np.asarray(x, np.float64) for x in source])
    assert decoded.shape == expected.shape, f"{decoded.shape} is not {expected.shape}"
    assert decoded.dtype == training.dtype
    error = np.abs(decoded - expected).mean()
    mean = np.abs(expected - expected.mean(axis=0)).mean()
    assert error < mean, f"{training.name}: {error} is not below {mean}"
    span = f"{decoded.min():.6g} ... {decoded.max():.6g}"
    return (
        f"| [{case.name}](#{case.name}) | {training.epochs} | {training.batch_size} | {decoded.dtype} {span} | "
        f"{error:.3g} | {mean:.3g} |"
    )


def save_small(picture: Path, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    with Image.open(picture) as image:
        image.convert("RGB").save(path, quality=85, method=6)
    assert path.stat().st_size < 150_000, path


def write_picture(result: Result, folder: Path) -> Path:
    assert result.picture is not None
    path = folder / f"{result.case.name}.webp"
    save_small(result.picture, path)
    return path


def page(results: Sequence[Result], trained: Sequence[str], out: Path) -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    read = [r for r in results if r.code == 0]
    lines = [
        "# Real files",
        "",
        f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} CPU cores, Python {sys.version.split()[0]}, {versions}.",
        "",
        "    python benchmarks/real_files.py --pillow pillow-13.0.0",
        "",
        f"{len(results)} data sets of real images from other packages: {len(read)} are read, "
        f"{len(results) - len(read)} are refused with one line and exit code 2. Those said to be as they are, are the "
        "packages' own files; the others are their pixels, cut into tiles and written in another format. Every value "
        "that is read was compared with the source, as NumPy, Pillow, tifffile or nibabel alone read it: the largest "
        "error is that of rounding to float32. Pixels of `data show` lie in [0, 1].",
        "",
        "| data set | read as images of (C, H, W), values; largest error in units of the source |",
        "|---|---|",
        *(f"| [{r.case.name}](#{r.case.name}): {r.case.what} | {r.check} |" for r in results),
        "",
        "Pictures are shown where the licence of the images is known to allow it. The others are in numbers only: "
        "Labeled Faces in the Wild, Middlebury's stereo data, the medical scans, the animation, Pillow's TIFF files.",
        "",
        "## From the file to a model and back",
        "",
        "By the command line: `vaekit train vae --data ... --latent-dim 8 --hidden-dim 128 --epochs E --batch-size B`, "
        "`plot`, `evaluate`, `encode` of the same file, `decode --dtype ... --out decoded.npy`. The error is the mean "
        "distance of the decoded values from the source, in its units, beside that of the mean image.",
        "",
        "| data set | epochs | batch size | decoded | mean error | of the mean image |",
        "|---|---|---|---|---|---|",
        *trained,
    ]
    for result in results:
        case = result.case
        log = [
            line for line in result.log.splitlines() if not line.startswith(("decoding", "storing"))
        ]
        text = "\n".join(
            ["$ " + result.command.strip(), *log, *([result.output] if result.code == 0 else [])]
        )
        lines += [
            "",
            f"## {case.name}",
            "",
            case.what[0].upper() + case.what[1:] + ".",
            "",
            "```text",
            text,
            "```",
        ]
        if result.picture is not None and case.may_show is not None:
            path = write_picture(result, out.with_suffix(""))
            lines += [
                "",
                f"![{case.name}]({path.relative_to(out.parent)})",
                "",
                f"*{case.may_show}*",
            ]
    return "\n".join(lines) + "\n"


def main() -> None:
    global PILLOW
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pillow", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("docs/results/real_files.md"))
    parser.add_argument("--keep", type=Path, help="folder to keep the data sets and pictures in")
    parser.add_argument("--only", nargs="*")
    args = parser.parse_args()
    PILLOW = args.pillow / "Tests" / "images"
    results, failed = [], []
    with tempfile.TemporaryDirectory() as temporary:
        scratch = args.keep or Path(temporary)
        scratch.mkdir(exist_ok=True)
        os.environ["VAEKIT_CACHE"] = str(scratch / "cache")
        for case in CASES:
            if args.only and case.name not in args.only:
                continue
            try:
                results.append(run(case, scratch))
                print(case.name, results[-1].check, flush=True)
                if results[-1].code:
                    print("   ", results[-1].log.splitlines()[-1])
            except AssertionError as error:
                failed.append(f"{case.name}: {error}")
                print("FAILED", failed[-1], flush=True)
        trained = []
        for training in TRAININGS:
            if args.only and training.name not in args.only:
                continue
            (case,) = (case for case in CASES if case.name == training.name)
            trained.append(whole_way(training, case, scratch))
            print(trained[-1], flush=True)
        if not args.only and not failed:
            args.out.write_text(page(results, trained, args.out))
    sys.exit(len(failed) > 0)


if __name__ == "__main__":
    main()
