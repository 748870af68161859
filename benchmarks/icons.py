"""Colour drawings or icons from a Debian package as a folder of PNG files, to train on; none are in the repository.

    python benchmarks/icons.py OUT [--package openclipart-png] [--side 64]

The package is downloaded by `apt-get download`, and its images are read from the archive, without unpacking files or
running its scripts. Each is drawn over white, cut to what is not white, made square and resized; small and narrow
images, images equal pixel for pixel, and small classes are left out. OUT has train, validation and test (80, 10 and 10
of 100) with a folder per class. The split follows from a hash of the name without numbers at its end: it stays the same
whatever else is in the package, and a numbered series is in one split.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import re
import struct
import subprocess
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

import numpy as np
from PIL import Image, ImageOps

from vaekit.data.stored import pixel_hashes
from vaekit.support.errors import require

MIN_SIDE, MAX_PIXELS = 64, 2**24  # of an image in the package
MAX_ASPECT = 2
MIN_CLASS = 30  # images


@dataclass(frozen=True)
class Package:
    """A Debian package of images. `pattern` matches the names of its images, with their class as the first group."""

    licence: str
    pattern: str
    without: tuple[str, ...] = ()  # classes

    def class_of(self, name: str) -> str | None:
        """The class of a file by its name, None for other files."""
        match = re.fullmatch(self.pattern, name)
        return None if match is None or match[1] in self.without else match[1]


PACKAGES = {
    "openclipart-png": Package(
        "public domain (the authors' dedications, in the package's copyright file)",
        r"usr/share/openclipart/png/([^/]+)/.*\.png",
        ("shapes", "special", "buttons", "decorations", "logos"),  # no objects
    ),
    "oxygen-icon-theme": Package(
        "LGPL-3.0-or-later", r"usr/share/icons/oxygen/base/128x128/([^/]+)/.*\.png"
    ),
}


def split_of(name: str) -> str:
    """The split of an image by the name of its file, without its extension, its folders and numbers at its end."""
    series = re.sub(r"[\d\W_]+$", "", PurePosixPath(name).stem.lower())
    number = int(hashlib.sha256(series.encode()).hexdigest(), 16) % 10
    return {0: "validation", 1: "test"}.get(number, "train")


def squared(content: bytes, side: int) -> Image.Image | None:
    """An image over white, in RGB, without its white margins, padded to a square with white, and resized; None if it is
    small, huge or narrow."""
    width, height = struct.unpack(">II", content[16:24])  # before Pillow, which refuses the largest
    if width * height > MAX_PIXELS:
        return None
    image = Image.open(io.BytesIO(content), formats=("PNG",)).convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    image = Image.alpha_composite(white, image).convert("RGB")
    box = ImageOps.invert(image).getbbox()
    if box is None:
        return None
    image = image.crop(box)
    if min(image.size) < MIN_SIDE or max(image.size) > MAX_ASPECT * min(image.size):
        return None
    return ImageOps.pad(image, (side, side), Image.Resampling.LANCZOS, color="white")


def download(name: str, folder: Path) -> Path:
    """Download a Debian package of this name with the system's own client."""
    subprocess.run(["apt-get", "download", name], check=True, cwd=folder)
    (path,) = folder.glob("*.deb")
    return path


def members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) of the regular files of a package, from its archive."""
    command = ["dpkg-deb", "--fsys-tarfile", str(path)]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE) as process,
        tarfile.open(fileobj=process.stdout, mode="r|") as archive,
    ):
        for member in archive:
            file = archive.extractfile(member) if member.isreg() else None
            if file is not None and member.size <= MAX_PIXELS:
                yield member.name.removeprefix("./"), file.read()
    require(process.returncode == 0, f"{path.name} is damaged; download it again")


def collect(package: Package, files: Iterator[tuple[str, bytes]], side: int) -> dict[str, bytes]:
    """The PNG files to write, by their names below OUT: no two of them have the same pixels, and each class has
    MIN_CLASS images or more, some of them for training."""
    seen, found = set[bytes](), dict[tuple[str, str, str], bytes]()
    for name, content in sorted(files, key=lambda file: file[0]):
        kind = package.class_of(name)
        image = None if kind is None else squared(content, side)
        if kind is None or image is None:
            continue
        digest = pixel_hashes(np.asarray(image)[None])[0].tobytes()
        if digest in seen:
            continue
        seen.add(digest)
        file = io.BytesIO()
        image.save(file, "png", optimize=True)
        short = hashlib.sha256(name.encode()).hexdigest()[
            :6
        ]  # files in several folders may share a name
        found[split_of(name), kind, f"{PurePosixPath(name).stem}-{short}.png"] = file.getvalue()
    counts = Counter(kind for _, kind, _ in found)
    trained = {kind for split, kind, _ in found if split == "train"}
    return {
        "/".join(key): content
        for key, content in found.items()
        if counts[key[1]] >= MIN_CLASS and key[1] in trained
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--package", choices=PACKAGES, default="openclipart-png")
    parser.add_argument("--side", type=int, default=64, help="pixels")
    args = parser.parse_args()
    require(not args.out.exists(), f"{args.out} exists; remove it, or name another folder")
    package = PACKAGES[args.package]
    with tempfile.TemporaryDirectory() as folder:
        path = download(args.package, Path(folder))
        version = unquote(path.name.split("_")[1])
        files = collect(package, members(path), args.side)
    for name, content in files.items():
        target = args.out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    splits = Counter(name.split("/")[0] for name in files)
    classes = Counter(name.split("/")[1] for name in files)
    print(f"{args.package} {version}, {package.licence}")
    print(f"{len(files):,} images of {args.side} x {args.side} pixels:", end=" ")
    print(", ".join(f"{splits[split]:,} {split}" for split in ("train", "validation", "test")))
    print(f"{len(classes)} classes:", ", ".join(f"{k} {n:,}" for k, n in classes.most_common()))


if __name__ == "__main__":
    main()
