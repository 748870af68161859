"""The catalogue of named data sets: descriptions, files and URLs. Data, not code; imports no torch.

Hashes are of the files as downloaded. Hashes and URLs are from torchvision 0.29 (datasets/mnist.py,
datasets/caltech.py, datasets/omniglot.py), tensorflow-datasets 4.9 (its checksum lists), keras 3.15, and the authors'
pages. The hash of frey_rawface.mat is from one source, and was checked against the original file. That of chardata.mat
is from one source too, a project that uses tfsnippet, and was not checked; its size is not published.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ...support.errors import UserError, did_you_mean


@dataclass(frozen=True)
class RemoteFile:
    """A file to download: its URLs in the order to try, its hash as `sha256:...` or `md5:...`, its size in bytes, None
    where it is not published."""

    name: str
    urls: tuple[str, ...]
    digest: str
    size: int | None


@dataclass(frozen=True)
class CatalogEntry:
    """A named data set. `alternatives` are groups of files, any of which can replace the downloaded files; `seeded`
    tells that its split follows from the setting split_seed."""

    summary: str
    shape: str
    images: str
    classes: int
    licence: str
    files: tuple[RemoteFile, ...]
    alternatives: tuple[tuple[str, ...], ...] = ()
    variants: Mapping[str, str] = field(default_factory=dict)
    seeded: bool = False


def remote_files(
    base_urls: tuple[str, ...], files: Mapping[str, tuple[str, int]]
) -> tuple[RemoteFile, ...]:
    """The files, by name with (digest, size), each available below all of `base_urls`."""
    return tuple(
        RemoteFile(name, tuple(base + name for base in base_urls), digest, size)
        for name, (digest, size) in files.items()
    )


IDX = tuple(
    f"{part}-{kind}"
    for part in ("train", "t10k")
    for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
)
CATALOG: dict[str, CatalogEntry] = {
    "mnist": CatalogEntry(
        "handwritten digits", "28 x 28 grey", "50,000 / 10,000 / 10,000", 10, "CC BY-SA 3.0",
        remote_files(
            ("https://storage.googleapis.com/cvdf-datasets/mnist/", "https://ossci-datasets.s3.amazonaws.com/mnist/"),
            {
                "train-images-idx3-ubyte.gz": (
                    "sha256:440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609", 9912422),
                "train-labels-idx1-ubyte.gz": (
                    "sha256:3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c", 28881),
                "t10k-images-idx3-ubyte.gz": (
                    "sha256:8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6", 1648877),
                "t10k-labels-idx1-ubyte.gz": (
                    "sha256:f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6", 4542),
            },
        ),
        (IDX,),
    ),
    "binarizedmnist": CatalogEntry(
        "MNIST with fixed binarisation (Larochelle and Murray 2011)", "28 x 28, 1 bit",
        "50,000 / 10,000 / 10,000", 0, "licence not stated",
        remote_files(
            tuple(f"{scheme}://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/"
                  for scheme in ("https", "http")),
            {
                "binarized_mnist_train.amat": (
                    "sha256:ad693b29f94c14277b095f5238ddefbbdaaae0939789dd2f4f0205278cee3e4d", 78400000),
                "binarized_mnist_valid.amat": (
                    "sha256:1de3d397c40fe8eeb33dafd4099a1f665ec01e96d9be234aaeeac8a34930e2e2", 15680000),
                "binarized_mnist_test.amat": (
                    "sha256:e6687bfea3f820c174f33b7865140b2a2dd2930ef786f35d45795fc193b5ab2c", 15680000),
            },
        ),
        (("packed.npz",),),
    ),
    "fashionmnist": CatalogEntry(
        "articles of clothing", "28 x 28 grey", "50,000 / 10,000 / 10,000", 10, "MIT",
        remote_files(
            ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
             "https://storage.googleapis.com/tensorflow/tf-keras-datasets/"),
            {
                "train-images-idx3-ubyte.gz": (
                    "sha256:3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84", 26421880),
                "train-labels-idx1-ubyte.gz": (
                    "sha256:a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845", 29515),
                "t10k-images-idx3-ubyte.gz": (
                    "sha256:346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073", 4422102),
                "t10k-labels-idx1-ubyte.gz": (
                    "sha256:67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5", 5148),
            },
        ),
        (IDX,),
    ),
    "freyface": CatalogEntry(
        "frames of a video of Brendan Frey's face", "28 x 20 grey", "1,565 / 200 / 200", 0, "licence not stated",
        (
            RemoteFile(
                "frey_rawface.mat",
                ("https://cs.nyu.edu/~roweis/data/frey_rawface.mat",
                 "https://github.com/lawrennd/datasets_mirror/raw/main/brendan_faces/frey_rawface.mat"),
                "md5:5aeb024d42b8a6091f30e5eb18c8a48d", 1100584,
            ),
        ),
        variants={
            "aevb": "1,365 / 200 / 400: 1,565 and 400 as in work after Kingma and Welling, 200 for validation",
            "ordered": "1,572 / 196 / 197: in the order of the video",
        },
    ),
    "cifar10": CatalogEntry(
        "small photographs of objects", "32 x 32 colour", "45,000 / 5,000 / 10,000", 10, "licence not stated",
        (
            RemoteFile(
                "cifar-10-binary.tar.gz",
                ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
                 "https://cave.cs.toronto.edu/kriz/cifar-10-binary.tar.gz"),
                "sha256:c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd", 170052171,
            ),
        ),
        (("cifar-10-batches-bin",), ("test_batch.bin",)),
    ),
    "caltech101": CatalogEntry(
        "photographs of objects", "colour, various sizes", "8,677 split by seed", 101, "CC BY 4.0",
        (
            RemoteFile(
                "caltech-101.zip",
                ("https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip",
                 "https://data.caltech.edu/api/records/mzrjq-6wc02/files/caltech-101.zip/content"),
                "sha256:331234750fc7f77520e50d9565e8b6907b03565e30320da1401130db08c61f91", 137414764,
            ),
        ),
        (("101_ObjectCategories.tar.gz",), ("101_ObjectCategories",)),
        {"background": "with 467 background images as one more class"},
        seeded=True,
    ),
    "omniglot": CatalogEntry(
        "handwritten characters of 50 alphabets (Lake, Salakhutdinov and Tenenbaum 2015)", "28 x 28 grey",
        "23,000 / 1,345 / 8,115", 1623, "MIT",
        remote_files(
            ("https://raw.githubusercontent.com/brendenlake/omniglot/master/python/",
             "https://github.com/brendenlake/omniglot/raw/master/python/"),
            {
                "images_background.zip": (
                    "sha256:ad41ab679c8b5d90b271ef46be6987cc81211774a695c29dcc5367b2b26ee640", 9464212),
                "images_evaluation.zip": (
                    "sha256:1f61a8f3366785b057fc117d9228e78a16e3d976c8953b2a10fcc74cf0609cee", 6462886),
            },
        ),
        (("images_background", "images_evaluation"),),
        {"alphabets": "with the 50 alphabets as classes"},
    ),
    "omniglot28": CatalogEntry(
        "Omniglot as resized and split by Burda, Grosse and Salakhutdinov (2016)", "28 x 28 grey",
        "23,000 / 1,345 / 8,070", 50, "licence not stated",
        (
            RemoteFile(
                "chardata.mat",
                ("https://github.com/yburda/iwae/raw/master/datasets/OMNIGLOT/chardata.mat",
                 "https://raw.githubusercontent.com/yburda/iwae/master/datasets/OMNIGLOT/chardata.mat"),
                "md5:21ecaf34373511aa7691cf2e0802aa3d", None,
            ),
        ),
    ),
    "digits": CatalogEntry(
        "handwritten digits of scikit-learn", "8 x 8 grey", "1,797 split by seed", 10, "licence as scikit-learn's", (),
        seeded=True,
    ),
}  # fmt: skip


def parse_name(text: str) -> tuple[str, str] | None:
    """Parse a name in CATALOG and its variant ("" for none, or a number of training images); None if `text` is not such
    a name.

    Case, hyphens and underscores are ignored. Raises UserError for an unknown variant.
    """
    name, _, variant = text.partition(":")
    key = normalise_name(name)
    if key not in CATALOG:
        return None
    variants = CATALOG[key].variants
    if variant and variant not in variants and not variant.isdecimal():
        known = ", ".join(f"{key}:{v}" for v in (*variants, 1000))
        raise UserError(
            f"{key} has no variant {variant!r}{did_you_mean(variant, variants)} (variants: {known}, the number of "
            "training images)"
        )
    return key, variant


def normalise_name(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")
