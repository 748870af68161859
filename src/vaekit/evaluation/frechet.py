"""How far a model's images are from a data set's, in the features of a classifier of that data set's labels."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import Dataset, Frozen, freeze
from ..data.cache import cache_dir, locked
from ..data.dataset import Settled, choose_split
from ..likelihood.latent_use import batch_size
from ..model.conditions import Quadrants
from ..model.graph import VAE
from ..model.layers import halvings
from ..runs.data import chosen_rows
from ..runs.directory import load_weights
from ..support.atomic import write
from ..support.console import Shown
from ..support.devices import evaluating, seeded
from ..support.errors import UserError, require

FORMAT = 1
FEATURES = 64
SIDE = 64  # pixels; of larger images, blocks are averaged
SEED = 0
BATCH = 100
SEEN, EPOCHS = 400_000, 40  # images seen in training, about; at most so many epochs
LEARNING_RATE = 3e-3


class Classifier(nn.Module):
    """Logits (B, classes) of grey or colour images (B, C, H, W) in [0, 1], by convolutions and a hidden layer.

    `accuracy` is that on the validation images of the data set `name`, once it is trained.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, name: str = "") -> None:
        super().__init__()
        self.name, self.accuracy = name, math.nan
        channels, height, width = shape
        blocks = math.ceil(height / SIDE), math.ceil(width / SIDE)
        height, width = math.ceil(height / blocks[0]), math.ceil(width / blocks[1])
        modules: list[nn.Module] = [nn.AvgPool2d(blocks, ceil_mode=True)]
        for level in range(halvings(height, width) + 1):
            outputs = 16 * 2 ** min(level, 2)
            modules += [nn.Conv2d(channels, outputs, 3, stride=2, padding=1), nn.SiLU()]
            channels, height, width = outputs, math.ceil(height / 2), math.ceil(width / 2)
        dense = nn.Linear(channels * height * width, FEATURES)
        self.hidden = nn.Sequential(*modules, nn.Flatten(), dense, nn.SiLU())
        self.last = nn.Linear(FEATURES, classes)

    def features(self, x: Tensor) -> Tensor:
        """The hidden layer (B, 64)."""
        return self.hidden(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.features(x))

    def tensors(self) -> dict[str, Tensor]:
        """The weights as a file has them."""
        return {name: value.cpu().contiguous() for name, value in self.state_dict().items()}

    def digest(self) -> str:
        """Hash of the weights."""
        return hashlib.sha256(safetensors.torch.save(self.tensors())).hexdigest()


def classifier_of(data: Dataset, device: torch.device, shown: Shown) -> Classifier:
    """The classifier of a data set, from the cache, where it is kept once it is trained.

    A file that is damaged, or cannot be written, costs time alone. Raises UserError where the images have no labels.
    """
    require(
        count_classes(data) > 1,
        f"data set {data.name!r} has no labels, or only one, for a classifier to learn; give its images classes",
    )
    name = re.sub(r"[^\w.-]+", "-", data.name).encode()[:120].decode(errors="ignore")
    path = cache_dir() / "classifiers" / f"{name}-{data.sha256()[:16]}-{FORMAT}.safetensors"
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):  # where no lock can be written, no classifier can either
            held.enter_context(locked(path, shown))
        if os.path.exists(path):  # no error where the folder may not be looked at
            try:
                return read(path, data).to(device)
            except UserError:
                shown.say(f"{path} is damaged; the classifier is trained again")
        classifier = train_classifier(data, device, shown)
        about = {
            "format": str(FORMAT),
            "data": data.sha256(),
            "accuracy": repr(classifier.accuracy),
            "weights": classifier.digest(),
        }
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path, safetensors.torch.save(classifier.tensors(), about))
        except OSError as error:
            shown.say(f"the classifier of {data.name!r} is not kept for the next time ({error})")
    return classifier


def count_classes(data: Dataset) -> int:
    """One more than the largest label; 0 where a split has no labels."""
    largest = [-1 if s.labels is None else int(s.labels.max()) for s in data.splits.values()]
    return 1 + max(largest) if min(largest) >= 0 else 0


def read(path: Path, data: Dataset) -> Classifier:
    """The classifier in a file. Raises UserError where the file is damaged."""
    classifier = Classifier(data.shape, count_classes(data), data.name)
    load_weights(classifier, path)
    with safetensors.safe_open(path, "pt") as file:
        about = file.metadata() or {}
    require(
        about.get("data") == data.sha256() and about.get("weights") == classifier.digest(),
        f"{path} is damaged (its hashes differ)",
    )
    classifier.accuracy = float(about["accuracy"])
    return classifier.eval().requires_grad_(False)


@torch.enable_grad()
def train_classifier(data: Dataset, device: torch.device, shown: Shown) -> Classifier:
    """Train the classifier of a data set from a fixed seed, and keep its best epoch on validation."""
    shown.say(f"training a classifier of {data.name!r}, once, to measure distances of images with")
    train = Frozen(data.train, "none").to(device)
    validation = Frozen(data.validation, "none").to(device)
    count = len(train)
    epochs = max(1, min(EPOCHS, SEEN // count))
    with seeded(SEED, device):
        classifier = Classifier(data.shape, count_classes(data), data.name).to(device)
        optimizer = torch.optim.Adam(classifier.parameters())
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, LEARNING_RATE, epochs * math.ceil(count / BATCH)
        )
        best: tuple[float, dict[str, Tensor]] = (-1.0, {})
        for _ in shown.track(range(epochs), "classifier"):
            for rows in torch.randperm(count).split(BATCH):
                batch = train[rows]
                assert batch.labels is not None
                optimizer.zero_grad()
                F.cross_entropy(classifier(batch.images), batch.labels).backward()
                optimizer.step()
                schedule.step()
            right = measure_accuracy(classifier, validation)
            if right > best[0]:
                best = right, {name: v.clone() for name, v in classifier.state_dict().items()}
    classifier.accuracy, weights = best
    classifier.load_state_dict(weights)
    return classifier.eval().requires_grad_(False)


@torch.no_grad()
def measure_accuracy(classifier: Classifier, images: Frozen) -> float:
    """Share of the images whose label the classifier says."""
    parts = (images[rows] for rows in torch.arange(len(images)).split(BATCH))
    return sum(int((classifier(b.images).argmax(1) == b.labels).sum()) for b in parts) / len(images)


def frechet_of_moments(m1: Tensor, c1: Tensor, m2: Tensor, c2: Tensor) -> float:
    """Frechet distance of two Gaussians with means (D,) and covariances (D, D), which may be singular.

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), where the root has the trace of (C1^(1/2) C2 C1^(1/2))^(1/2): the sum
    of the singular values of F1 F2^T, for any F with F^T F = C. Dowson and Landau 1982.
    """
    m1, c1, m2, c2 = (x.cpu().double() for x in (m1, c1, m2, c2))
    factors = []
    for c in (c1, c2):
        values, vectors = torch.linalg.eigh(c)
        factors.append(values.clamp(min=0).sqrt()[:, None] * vectors.T)
    root = torch.linalg.svdvals(factors[0] @ factors[1].T).sum()
    distance = ((m1 - m2) ** 2).sum() + c1.trace() + c2.trace() - 2 * root
    return max(0.0, float(distance))


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Frechet distance of features (N, D) and (M, D), at least 2 each, as if they were Gaussian (Heusel et al. 2017,
    eq. 6).

    It is biased upwards, the more the fewer there are: only distances of equal counts compare.
    """
    a, b = a.cpu().double(), b.cpu().double()
    return frechet_of_moments(a.mean(0), a.T.cov(), b.mean(0), b.T.cov())


@dataclass(frozen=True)
class Frechet:
    """What `frechet` finds: Frechet distances to the same images of a split, `frechet_images` on either side.

    `frechet_samples` is of mean pixels of draws from the prior, `frechet_reconstructions` of the images at their
    posterior means, and, as a yardstick, `frechet_training` of training images (those the classifier learned from).
    Distances compare only where the number of images and `classifier_weights`, 8 letters of their hash, are the same.
    `class_distance` is |p - q|, with p the shares of classes among the samples, as the classifier says, and q among
    the split's labels (Zhao et al. 2017).
    """

    frechet_samples: float | None
    frechet_reconstructions: float
    frechet_training: float | None
    class_distance: float | None
    frechet_images: int
    classifier: str
    classifier_accuracy: float
    classifier_weights: str


@torch.no_grad()
def frechet(
    model: VAE,
    data: Dataset,
    split: str,
    classifier: Classifier,
    binarisation: Settled,
    count: int = 10_000,
    seed: int = 0,
) -> Frechet:
    """Frechet distances of a model's images to those of a split, `count` of each or as many as there are.

    The model sees images binarised as in its training, the classifier all of them grey. A model that is conditional
    on labels draws with labels from the split; one that completes images has no samples of its own (None). The
    training images have no distance to themselves (None). Raises UserError where there is only one image.
    """
    device = next(model.parameters()).device
    there, train = choose_split(data, split).to(device), Frozen(data.train, "none")
    grey, seen = Frozen(there, "none"), freeze(there, binarisation)
    number = min(count, len(there), len(train))
    require(number > 1, f"Frechet distances need 2 images, and {data.name!r} has {number} to take")
    labels = there.labels
    assert labels is not None
    found: dict[str, list[Tensor]] = {}

    def see(name: str, images: Tensor) -> None:
        found.setdefault(name, []).append(classifier.features(images.clamp(0, 1)))

    size = batch_size(model)
    with evaluating(model), seeded(seed, device):
        for rows in in_order(len(there), number, seed).split(size):
            batch = seen[rows]
            see("images", grey[rows].images)
            see("reconstructions", model.reconstruct(batch.images, batch.labels).mean)
            if not isinstance(model.condition, Quadrants):
                drawn = labels[torch.randint(len(labels), (len(rows),))]
                see("samples", model.sample(len(rows), drawn).mean)
        if split != "train":
            for rows in in_order(len(train), number, seed).split(size):
                see("training", train[rows].images.to(device))
    features = {name: torch.cat(parts) for name, parts in found.items()}
    distance = {name: frechet_distance(f, features["images"]) for name, f in features.items()}
    classes = None
    if "samples" in features:
        said = classifier.last(features["samples"]).argmax(1)
        kinds = classifier.last.out_features
        p, q = (y.cpu().bincount(minlength=kinds).double() / len(y) for y in (said, labels))
        classes = float((p - q).norm())
    return Frechet(
        frechet_samples=distance.get("samples"),
        frechet_reconstructions=distance["reconstructions"],
        frechet_training=distance.get("training"),
        class_distance=classes,
        frechet_images=number,
        classifier=classifier.name,
        classifier_accuracy=classifier.accuracy,
        classifier_weights=classifier.digest()[:8],
    )


def in_order(there: int, count: int, seed: int) -> Tensor:
    """`count` rows by the seed, in order, as a file is best read."""
    return chosen_rows(there, count, seed).sort().values
