"""Frechet distances between a model's images and a data set's, in the features of a classifier of its labels."""

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

from ..data import Dataset, EvalSplit, eval_split
from ..data.cache import cache_dir, cache_lock
from ..data.dataset import ResolvedBinarisation, get_split
from ..data.splits import sorted_random_rows
from ..likelihood.latent_use import batch_size
from ..model.conditions import Quadrants
from ..model.graph import VAE
from ..model.networks.layers import num_halvings
from ..runs.weights import load_weights
from ..support.atomic import write_bytes
from ..support.console import ProgressBar
from ..support.devices import eval_mode, seeded
from ..support.errors import UserError, require

FORMAT = 1  # version of the classifier's file
FEATURES = 64
MAX_SIDE = 64  # pixels; larger images are average-pooled
SEED = 0
BATCH = 100
IMAGES_SEEN, MAX_EPOCHS = 400_000, 40  # about so many images in training, in at most so many epochs
LEARNING_RATE = 3e-3


class Classifier(nn.Module):
    """A convolutional classifier: logits (B, classes) of images (B, C, H, W) in [0, 1].

    `accuracy` is measured on the validation images of the data set `name`; NaN before training.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, name: str = "") -> None:
        super().__init__()
        self.name, self.accuracy = name, math.nan
        channels, height, width = shape
        blocks = math.ceil(height / MAX_SIDE), math.ceil(width / MAX_SIDE)
        height, width = math.ceil(height / blocks[0]), math.ceil(width / blocks[1])
        modules: list[nn.Module] = [nn.AvgPool2d(blocks, ceil_mode=True)]
        for level in range(num_halvings(height, width) + 1):
            outputs = 16 * 2 ** min(level, 2)
            modules += [nn.Conv2d(channels, outputs, 3, stride=2, padding=1), nn.SiLU()]
            channels, height, width = outputs, math.ceil(height / 2), math.ceil(width / 2)
        dense = nn.Linear(channels * height * width, FEATURES)
        self.hidden = nn.Sequential(*modules, nn.Flatten(), dense, nn.SiLU())
        self.last = nn.Linear(FEATURES, classes)

    def features(self, x: Tensor) -> Tensor:
        """Activations of the hidden layer (B, 64)."""
        return self.hidden(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.features(x))

    def tensors(self) -> dict[str, Tensor]:
        """The weights by name, as they are saved."""
        return {name: value.cpu().contiguous() for name, value in self.state_dict().items()}

    def digest(self) -> str:
        """sha256 of the weights."""
        return hashlib.sha256(safetensors.torch.save(self.tensors())).hexdigest()


def load_or_train_classifier(data: Dataset, device: torch.device, bar: ProgressBar) -> Classifier:
    """Load the classifier of a data set from the cache, or train it and save it there.

    A damaged file is replaced, and one that cannot be written is reported. Raises UserError where the images have no
    labels.
    """
    require(
        count_classes(data) > 1,
        f"data set {data.name!r} has no labels or only one, but a classifier needs 2; give its images classes",
    )
    assert data.train.labels is not None
    require(
        len(data.train.labels.unique()) > 1,
        f"the training images of {data.name!r} have only one label, but a classifier needs 2",
    )
    name = re.sub(r"[^\w.-]+", "-", data.name).encode()[:120].decode(errors="ignore")
    path = cache_dir() / "classifiers" / f"{name}-{data.sha256()[:16]}-{FORMAT}.safetensors"
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # where no lock can be written, no classifier can either
            stack.enter_context(cache_lock(path, bar))
        if os.path.exists(path):  # False, not an error, for a folder without permission
            try:
                return load_classifier(path, data).to(device)
            except UserError:
                bar.log(f"{path} is damaged; the classifier is trained again")
        classifier = train_classifier(data, device, bar)
        metadata = {
            "format": str(FORMAT),
            "data": data.sha256(),
            "accuracy": repr(classifier.accuracy),
            "weights": classifier.digest(),
        }
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, safetensors.torch.save(classifier.tensors(), metadata))
        except OSError as error:
            bar.log(f"the classifier of {data.name!r} is not saved in the cache ({error})")
    return classifier


def count_classes(data: Dataset) -> int:
    """One more than the largest label; 0 where a split has no labels."""
    largest = [-1 if s.labels is None else int(s.labels.max()) for s in data.splits.values()]
    return 1 + max(largest) if min(largest) >= 0 else 0


def load_classifier(path: Path, data: Dataset) -> Classifier:
    """Load a classifier from a file. Raises UserError where the file is damaged."""
    classifier = Classifier(data.shape, count_classes(data), data.name)
    load_weights(classifier, path)
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
    require(
        metadata.get("data") == data.sha256() and metadata.get("weights") == classifier.digest(),
        f"{path} is damaged (its hashes differ)",
    )
    try:
        classifier.accuracy = float(metadata["accuracy"])
    except (KeyError, ValueError):
        raise UserError(f"{path} is damaged (it lacks the accuracy)") from None
    return classifier.eval().requires_grad_(False)


@torch.enable_grad()
def train_classifier(data: Dataset, device: torch.device, bar: ProgressBar) -> Classifier:
    """Train the classifier of a data set from a fixed seed; its weights are those of the best epoch on validation."""
    bar.log(
        f"training a classifier on {data.name!r} for the Frechet distances (once; it is cached)"
    )
    train = EvalSplit(data.train, "none").to(device)
    validation = EvalSplit(data.validation, "none").to(device)
    count = len(train)
    epochs = max(1, min(MAX_EPOCHS, IMAGES_SEEN // count))
    with seeded(SEED, device):
        classifier = Classifier(data.shape, count_classes(data), data.name).to(device)
        optimizer = torch.optim.Adam(classifier.parameters())
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, LEARNING_RATE, epochs * math.ceil(count / BATCH)
        )
        best: tuple[float, dict[str, Tensor]] = (-1.0, {})
        for _ in bar.track(range(epochs), "classifier"):
            for rows in torch.randperm(count).split(BATCH):
                batch = train[rows]
                assert batch.labels is not None
                optimizer.zero_grad()
                F.cross_entropy(classifier(batch.images), batch.labels).backward()
                optimizer.step()
                schedule.step()
            accuracy = measure_accuracy(classifier, validation)
            if accuracy > best[0]:
                best = accuracy, {name: v.clone() for name, v in classifier.state_dict().items()}
    classifier.accuracy, weights = best
    classifier.load_state_dict(weights)
    return classifier.eval().requires_grad_(False)


@torch.no_grad()
def measure_accuracy(classifier: Classifier, images: EvalSplit) -> float:
    """Share of the images that are classified correctly."""
    batches = (images[rows] for rows in torch.arange(len(images)).split(BATCH))
    correct = sum(int((classifier(b.images).argmax(1) == b.labels).sum()) for b in batches)
    return correct / len(images)


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
    """Frechet distance of features (N, D) and (M, D), at least 2 each, taken as Gaussian (Heusel et al. 2017, eq. 6).

    It is biased upwards, more so for few features: only distances of equal counts are comparable.
    """
    a, b = a.cpu().double(), b.cpu().double()
    return frechet_of_moments(a.mean(0), a.T.cov(), b.mean(0), b.T.cov())


@dataclass(frozen=True)
class Frechet:
    """The result of `frechet`: Frechet distances to the same images of a split, `frechet_images` on either side.

    `frechet_samples` is of mean pixels of samples from the prior, `frechet_reconstructions` of reconstructions at the
    posterior means, and, as a baseline, `frechet_training` of training images (which the classifier was trained on).
    Distances are comparable only where the number of images and `classifier_weights`, 8 digits of their hash, are the
    same. `class_distance` is |p - q|, with p the class frequencies of the samples, as classified, and q those of the
    split's labels (Zhao et al. 2017).
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
    binarisation: ResolvedBinarisation,
    count: int = 10_000,
    seed: int = 0,
) -> Frechet:
    """Frechet distances of a model's images to those of a split, `count` of each or as many as there are.

    The model sees images binarised as in its training, the classifier sees them grey. A model conditional on labels
    gets random labels of the split for its samples; one that completes images has no samples (None). Of the training
    split `frechet_training` is None. Raises UserError where there is only one image.
    """
    device = next(model.parameters()).device
    images, train = get_split(data, split).to(device), EvalSplit(data.train, "none")
    grey, inputs = EvalSplit(images, "none"), eval_split(images, binarisation)
    count = min(count, len(images), len(train))
    require(
        count > 1, f"Frechet distances need 2 images, and only {count} of {data.name!r} can be used"
    )
    labels = images.labels
    assert labels is not None
    batches: dict[str, list[Tensor]] = {}

    def add_features(name: str, pixels: Tensor) -> None:
        batches.setdefault(name, []).append(classifier.features(pixels.clamp(0, 1)))

    size = batch_size(model)
    with eval_mode(model), seeded(seed, device):
        for rows in sorted_random_rows(len(images), count, seed).split(size):
            batch = inputs[rows]
            add_features("images", grey[rows].images)
            add_features("reconstructions", model.reconstruct(batch.images, batch.labels).mean)
            if not isinstance(model.condition, Quadrants):
                sample_labels = labels[torch.randint(len(labels), (len(rows),))]
                add_features("samples", model.sample(len(rows), sample_labels).mean)
        if split != "train":
            for rows in sorted_random_rows(len(train), count, seed).split(size):
                add_features("training", train[rows].images.to(device))
    features = {name: torch.cat(parts) for name, parts in batches.items()}
    distance = {name: frechet_distance(f, features["images"]) for name, f in features.items()}
    class_distance = None
    if "samples" in features:
        predicted = classifier.last(features["samples"]).argmax(1)
        classes = classifier.last.out_features
        p, q = (y.cpu().bincount(minlength=classes).double() / len(y) for y in (predicted, labels))
        class_distance = float((p - q).norm())
    return Frechet(
        frechet_samples=distance.get("samples"),
        frechet_reconstructions=distance["reconstructions"],
        frechet_training=distance.get("training"),
        class_distance=class_distance,
        frechet_images=count,
        classifier=classifier.name,
        classifier_accuracy=classifier.accuracy,
        classifier_weights=classifier.digest()[:8],
    )
