"""Small random files in the formats of the named data sets, for tests."""

import gzip
import io
import struct
import tarfile
import zipfile

import numpy as np
import scipy.io
from PIL import Image

RNG = np.random.default_rng(0)
# Python before 3.11.4 has no extraction filter; later versions warn without one.
EXTRACT_OPTIONS = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}


def random_bytes(*shape) -> np.ndarray:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def idx_bytes(array: np.ndarray) -> bytes:
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def tar_bytes(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(file, "png")
    return file.getvalue()


CLASSES = ("ant", "bass", "BACKGROUND_Google")


def idx_files() -> tuple[dict[str, bytes], list[np.ndarray]]:
    """The files of MNIST or Fashion-MNIST, and the images of each split."""
    splits = {"train": random_bytes(60_000, 3, 2), "t10k": random_bytes(20, 3, 2)}
    files = {}
    for split, images in splits.items():
        labels = RNG.integers(0, 10, len(images), dtype=np.uint8)
        files[f"{split}-images-idx3-ubyte.gz"] = gzip.compress(idx_bytes(images), 1)
        files[f"{split}-labels-idx1-ubyte.gz"] = gzip.compress(idx_bytes(labels), 1)
    train = splits["train"][:, None]
    return files, [train[:50_000], train[50_000:], splits["t10k"][:, None]]


def amat_files() -> tuple[dict[str, bytes], list[np.ndarray]]:
    """The files of the binarised MNIST, and the images of each split."""
    bits = [random_bytes(count, 784) % 2 for count in (5, 3, 2)]
    files = {
        f"binarized_mnist_{split}.amat": "".join(
            " ".join(map(str, row)) + "\n" for row in array
        ).encode()
        for split, array in zip(("train", "valid", "test"), bits, strict=True)
    }
    return files, [255 * array.reshape(-1, 1, 28, 28) for array in bits]


def frey_files() -> tuple[dict[str, bytes], list[np.ndarray]]:
    frames = random_bytes(1965, 28, 20)
    file = io.BytesIO()
    scipy.io.savemat(file, {"ff": frames.reshape(1965, 560).T})
    shuffled = frames[np.random.default_rng(777).permutation(1965)][:, None]
    return {"frey_rawface.mat": file.getvalue()}, np.split(shuffled, [1565, 1765])


def cifar_files() -> tuple[dict[str, bytes], list[np.ndarray]]:
    names = [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]
    images = {name: random_bytes(20, 3, 32, 32) for name in names}
    members = {"cifar-10-batches-bin/readme.html": b"<html>"}
    for name, array in images.items():
        labels = RNG.integers(0, 10, (20, 1), dtype=np.uint8)
        records = np.concatenate([labels, array.reshape(20, -1)], axis=1)
        members[f"cifar-10-batches-bin/{name}.bin"] = records.tobytes()
    train = np.concatenate([images[name] for name in names[:5]])
    return {"cifar-10-binary.tar.gz": tar_bytes(members)}, [
        train[:90],
        train[90:],
        images["test_batch"],
    ]


def jpeg(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "jpeg")
    return file.getvalue()


def caltech_members() -> dict[str, bytes]:
    members = {}
    for name in CLASSES:
        for n in range(1, 11):
            pixels = random_bytes(12, 10) if n == 3 else random_bytes(12, 10, 3)  # some are grey
            members[f"101_ObjectCategories/{name}/image_{n:04d}.jpg"] = jpeg(pixels)
    return {**members, "101_ObjectCategories/BACKGROUND_Google/tmp": b"stray"}


def caltech_files() -> tuple[dict[str, bytes], list[np.ndarray]]:
    members = caltech_members()
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("caltech-101/101_ObjectCategories.tar.gz", tar_bytes(members))
        archive.writestr("caltech-101/Annotations.tar", b"not read")
        archive.writestr("__MACOSX/caltech-101/._x.jpg", b"not read")
    images = [
        np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).transpose(2, 0, 1)
        for name, content in members.items()
        if name.endswith(".jpg") and "BACKGROUND" not in name
    ]
    return {"caltech-101.zip": file.getvalue()}, [np.stack(images)]


def omniglot_members(part: str, first: int) -> dict[str, bytes]:
    """The files of a part of Omniglot with two alphabets of two characters, as the official archive has them: 1-bit
    images of 105 x 105 pixels, black ink on white."""
    members = {}
    for k in range(4):
        alphabet = f"{part.removeprefix('images_').title()}_{k // 2}"
        for n in range(1, 21):
            file = io.BytesIO()
            ink = np.full((105, 105), 255, np.uint8)
            ink[5 * (first + k) : 5 * (first + k) + 20, 5 * n - 5 : 5 * n] = 0
            Image.fromarray(ink).convert("1").save(file, "png")
            name = f"{part}/{alphabet}/character{k % 2 + 1:02d}/{first + k:04d}_{n:02d}.png"
            members[name] = file.getvalue()
    return members


def zip_bytes(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for folder in sorted({name.rsplit("/", 1)[0] for name in members}):
            archive.mkdir(folder)
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


OMNIGLOT_FIRST = {"images_background": 1, "images_evaluation": 10}  # numbers of characters


def omniglot_files() -> tuple[dict[str, bytes], list[np.ndarray]]:
    """The archives of Omniglot, and all images, resized, with white ink."""
    members = {part: omniglot_members(part, first) for part, first in OMNIGLOT_FIRST.items()}
    images = []
    for content in (content for part in members.values() for content in part.values()):
        image = Image.open(io.BytesIO(content)).convert("L")
        images.append(255 - np.asarray(image.resize((28, 28), Image.Resampling.LANCZOS)))
    return {f"{part}.zip": zip_bytes(files) for part, files in members.items()}, [
        np.stack(images)[:, None]
    ]


def burda_files() -> tuple[dict[str, bytes], list[np.ndarray]]:
    """The 28 x 28 Omniglot of Burda et al., and the images of each split: a column has the pixels of an image, column
    by column."""
    images = {
        key: RNG.random((count, 28, 28), np.float32)
        for key, count in (("data", 1400), ("testdata", 7))
    }
    variables = {}
    for (key, array), target in zip(images.items(), ("target", "testtarget"), strict=True):
        variables[key] = array.swapaxes(1, 2).reshape(-1, 784).T
        variables[target] = np.eye(50, dtype=np.uint8)[:, np.arange(len(array)) % 50]
    file = io.BytesIO()
    scipy.io.savemat(file, variables)
    order = np.random.RandomState(123).permutation(1400)
    train = images["data"][order, None]
    return {"chardata.mat": file.getvalue()}, [train[:55], train[55:], images["testdata"][:, None]]


MAKERS = {
    "mnist": idx_files,
    "fashionmnist": idx_files,
    "binarizedmnist": amat_files,
    "freyface": frey_files,
    "cifar10": cifar_files,
    "caltech101": caltech_files,
    "omniglot": omniglot_files,
    "omniglot28": burda_files,
}
