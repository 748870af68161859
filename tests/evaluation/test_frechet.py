"""Frechet distances: the formula against closed forms, the classifier and its file, which images are compared."""

import copy
import dataclasses
import math
import threading

import numpy as np
import pytest
import scipy.linalg
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from conftest import random_dataset
from vaekit import UserError, build, load_data
from vaekit.data import Dataset, EvalSplit, Split
from vaekit.data.stored import StoredImages
from vaekit.evaluation import frechet as module
from vaekit.evaluation.frechet import (
    Classifier,
    count_classes,
    frechet,
    frechet_distance,
    frechet_of_moments,
    load_or_train_classifier,
    measure_accuracy,
    train_classifier,
)
from vaekit.support.console import ProgressBar

CPU = torch.device("cpu")


class RecordingBar(ProgressBar):
    """Records the log lines."""

    def __init__(self):
        super().__init__(False)
        self.lines = []

    def log(self, text):
        self.lines.append(text)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def covariance(dim, seed=0, rank=None):
    factor = normal(dim, rank or dim, seed=seed)
    return factor @ factor.T


def rotation(dim, seed=0):
    return torch.linalg.qr(normal(dim, dim, seed=seed)).Q


# The formula.


def test_independent_coordinates_have_a_closed_form():
    m1, m2 = torch.tensor([1.0, 2, 3]), torch.tensor([1.0, 0, 7])
    s1, s2 = torch.tensor([1.0, 2, 0]), torch.tensor([3.0, 2, 5])
    found = frechet_of_moments(m1, torch.diag(s1**2), m2, torch.diag(s2**2))
    assert found == pytest.approx((4 + 16) + (4 + 0 + 25), rel=1e-14)


def test_covariances_that_commute_have_a_closed_form():
    axes, s1, s2 = rotation(6), normal(6, seed=1).abs(), normal(6, seed=2).abs()
    c1, c2 = (axes @ torch.diag(s**2) @ axes.T for s in (s1, s2))
    found = frechet_of_moments(torch.zeros(6), c1, torch.zeros(6), c2)
    assert found == pytest.approx(float(((s1 - s2) ** 2).sum()), rel=1e-12)


def test_any_covariances_agree_with_the_matrix_root_of_scipy():
    c1, c2 = covariance(7, seed=1), covariance(7, seed=2)
    m1, m2 = normal(7, seed=3), normal(7, seed=4)
    root = np.trace(scipy.linalg.sqrtm((c1 @ c2).numpy()).real)
    expected = float(((m1 - m2) ** 2).sum() + (c1 + c2).trace()) - 2 * root
    assert frechet_of_moments(m1, c1, m2, c2) == pytest.approx(expected, rel=1e-10)
    assert frechet_of_moments(m2, c2, m1, c1) == pytest.approx(expected, rel=1e-10)


def test_the_distance_is_invariant_under_a_common_rotation():
    c1, c2, axes = covariance(5, seed=1), covariance(5, seed=2), rotation(5, seed=3)
    m1, m2 = normal(5, seed=4), normal(5, seed=5)
    before = frechet_of_moments(m1, c1, m2, c2)
    rotated = frechet_of_moments(axes @ m1, axes @ c1 @ axes.T, axes @ m2, axes @ c2 @ axes.T)
    assert rotated == pytest.approx(before, rel=1e-12)
    assert abs(frechet_of_moments(m1, axes @ c1 @ axes.T, m2, c2) - before) > 0.01


@pytest.mark.parametrize("rank", [8, 3, 1])
def test_a_set_is_at_no_distance_from_itself(rank):
    """Also where the covariance is singular, and the root is taken of rounding errors."""
    c = 1e4 * covariance(8, seed=1, rank=rank)
    found = frechet_of_moments(torch.zeros(8), c, torch.zeros(8), c)
    assert 0 <= found < 1e-12 * float(c.trace())


def test_covariances_of_rank_one_have_a_closed_form():
    u, v = normal(9, seed=1), normal(9, seed=2)
    found = frechet_of_moments(torch.zeros(9), torch.outer(u, u), torch.zeros(9), torch.outer(v, v))
    assert found == pytest.approx(float(u @ u + v @ v - 2 * abs(u @ v)), rel=1e-6)
    points = frechet_of_moments(u, torch.zeros(9, 9), v, torch.zeros(9, 9))
    assert points == pytest.approx(float(((u - v) ** 2).sum()), rel=1e-14)


def test_a_shift_adds_its_square():
    a, b, v = normal(200, 6), 2 * normal(300, 6, seed=1), normal(6, seed=2)
    b = b - b.mean(0) + a.mean(0)
    shifted = frechet_distance(a, b + v)
    assert shifted - frechet_distance(a, b) == pytest.approx(float(v @ v), rel=1e-12)


def test_it_is_never_negative():
    for seed in range(50):
        a = normal(10, 20, seed=seed)  # singular: fewer points than dimensions
        b = a[torch.randperm(10, generator=torch.Generator().manual_seed(seed))]
        assert 0 <= frechet_distance(a, b) < 1e-10


def test_float32_features_are_computed_with_in_float64():
    """Far from 0, covariances in float32 would lose all digits of a standard deviation of 0.1."""
    a = (normal(400, 3) * 0.1 + 1000).float()
    b = (normal(400, 3, seed=1) * 0.3 + 1000).float()
    c1, c2 = (np.cov(x.double().numpy(), rowvar=False) for x in (a, b))
    root = np.trace(scipy.linalg.sqrtm(c1 @ c2).real)
    shift = (a.double().mean(0) - b.double().mean(0)).square().sum()
    expected = float(shift) + np.trace(c1) + np.trace(c2) - 2 * root
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_samples_are_as_far_apart_as_their_gaussians():
    """5,000 samples each. Over 1,000 seeds the relative error had a standard deviation of 0.017 and was 0.059 at most:
    less than one seed in a million exceeds 0.1."""
    c1, c2 = covariance(4, seed=1), covariance(4, seed=2)
    shift = torch.tensor([1.0, 0, -1, 2]).double()
    exact = frechet_of_moments(torch.zeros(4), c1, shift, c2)
    a = normal(5000, 4, seed=11) @ torch.linalg.cholesky(c1).T
    b = normal(5000, 4, seed=12) @ torch.linalg.cholesky(c2).T + shift
    assert frechet_distance(a, b) == pytest.approx(exact, rel=0.1)


def test_fewer_samples_are_further_apart():
    """Both sets from the same Gaussian in 10 dimensions: over 300 seeds 51 to 204 times as far."""
    few, many = (frechet_distance(normal(n, 10), normal(n, 10, seed=1)) for n in (50, 5000))
    assert few > 30 * many


# The classifier.


def patterns(shape=(1, 8, 8), **about) -> Dataset:
    return random_dataset(shape, "grey", **about)


@pytest.fixture(scope="module")
def trained():
    data = patterns()
    return data, train_classifier(data, CPU, ProgressBar(False))


@pytest.mark.parametrize(
    "shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (2, 9, 40), (1, 64, 65), (3, 200, 70)]
)
def test_images_of_any_size_have_64_features(shape):
    classifier = Classifier(shape, 7)
    x = torch.rand(5, *shape)
    found = classifier.features(x)
    assert found.shape == (5, 64)
    assert classifier.features(100 * x).min() > -0.279  # the minimum of SiLU
    assert torch.equal(classifier(x), classifier.last(found))
    assert classifier(x).shape == (5, 7)
    for pixel in ((0, 0), (-1, -1)):  # pixels at the corners count
        x[0, :, pixel[0], pixel[1]] += 1
        assert not torch.equal(classifier.features(x)[0], found[0])
    assert sum(p.numel() for p in classifier.parameters()) < 200_000


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32)])
def test_patterns_are_classified(shape):
    data = patterns(shape, count=600)
    classifier = train_classifier(data, CPU, ProgressBar(False))
    assert classifier.accuracy == 1
    assert measure_accuracy(classifier, EvalSplit(data.test, "none")) == 1


def test_digits_are_learned(small_mnist, monkeypatch):
    """From 600 images, where one class in ten would be chance."""
    monkeypatch.setattr(module, "MAX_EPOCHS", 15)
    classifier = train_classifier(small_mnist, CPU, ProgressBar(False))
    assert classifier.accuracy > 0.7
    assert measure_accuracy(classifier, EvalSplit(small_mnist.test, "none")) > 0.7


def test_accuracy_is_the_share_of_correct_labels():
    classifier = Classifier((1, 8, 8), 3)
    with torch.no_grad():
        classifier.last.weight.zero_()
        classifier.last.bias.copy_(torch.tensor([0.0, 1.0, 0.0]))
    labels = torch.tensor([1] * 130 + [0] * 20 + [2] * 50)
    images = EvalSplit(Split(torch.rand(200, 1, 8, 8), labels), "none")
    assert measure_accuracy(classifier, images) == 130 / 200


def test_training_depends_on_its_seed_and_keeps_the_global_random_state(trained, monkeypatch):
    data, first = trained
    torch.manual_seed(123)
    expected = torch.rand(3)
    torch.manual_seed(123)
    with torch.no_grad():  # as within `evaluate`
        second = train_classifier(data, CPU, ProgressBar(False))
    assert torch.equal(torch.rand(3), expected)
    assert second.digest() == first.digest()
    assert not second.training
    assert not any(p.requires_grad for p in second.parameters())
    monkeypatch.setattr(module, "SEED", 1)
    assert train_classifier(data, CPU, ProgressBar(False)).digest() != first.digest()


def test_the_weights_are_of_the_best_epoch_on_validation(monkeypatch):
    data = patterns()
    seen, accuracies = [], iter([0.1, 0.9, 0.3, 0.9, 0.2])

    def measure(classifier, images):
        assert torch.equal(images.split.images, data.validation.images)
        seen.append(copy.deepcopy(classifier.state_dict()))
        return next(accuracies)

    monkeypatch.setattr(module, "MAX_EPOCHS", 5)
    monkeypatch.setattr(module, "measure_accuracy", measure)
    classifier = train_classifier(data, CPU, ProgressBar(False))
    assert classifier.accuracy == 0.9
    weights = classifier.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in seen[1].items())
    assert not torch.equal(weights["last.weight"], seen[4]["last.weight"])


def test_images_without_labels_or_of_one_class_are_refused():
    data = patterns()
    bare = Split(data.test.images)
    one = {name: Split(s.images, torch.zeros_like(s.labels)) for name, s in data.splits.items()}
    for wrong in (dataclasses.replace(data, test=bare), dataclasses.replace(data, **one)):
        with pytest.raises(UserError, match=r"^data set 'random' has no labels.*classes$"):
            load_or_train_classifier(wrong, CPU, ProgressBar(False))


def test_a_label_missing_in_training_is_a_class(trained):
    data, _ = trained
    labels = data.test.labels.clone()
    labels[0] = 5
    changed = dataclasses.replace(data, test=Split(data.test.images, labels))
    assert count_classes(changed) == 6


# Its file.


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VAEKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "classifiers"


@pytest.fixture
def trainings(monkeypatch):
    """Names of the data sets that classifiers are trained on, each in 2 epochs."""
    calls, train = [], module.train_classifier

    def counted(data, *arguments):
        calls.append(data.name)
        return train(data, *arguments)

    monkeypatch.setattr(module, "MAX_EPOCHS", 2)
    monkeypatch.setattr(module, "train_classifier", counted)
    return calls


def test_a_classifier_is_trained_once_per_data_set(cache, trainings):
    data = patterns(name="my: own/digits")
    first = load_or_train_classifier(data, CPU, ProgressBar(False))
    second = load_or_train_classifier(data, CPU, ProgressBar(False))
    assert trainings == ["my: own/digits"]
    assert second.digest() == first.digest()
    assert (second.name, second.accuracy) == ("my: own/digits", first.accuracy)
    assert not second.training
    x = data.test[:].images.float() / 255
    assert torch.equal(first(x), second(x))

    (path,) = cache.iterdir()
    assert path.name == f"my-own-digits-{data.sha256()[:16]}-1.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata == {
        "format": "1",
        "data": data.sha256(),
        "accuracy": repr(first.accuracy),
        "weights": first.digest(),
    }

    other = patterns(name="my: own/digits", count=90)
    load_or_train_classifier(other, CPU, ProgressBar(False))
    assert len(trainings) == len(list(cache.iterdir())) == 2


def cut(path, _):
    path.write_bytes(path.read_bytes()[:-100])


def garble(path, _):
    path.write_bytes(b"no safetensors at all")


def empty(path, _):
    path.write_bytes(b"")


def one_weight(path, _):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def another_shape(path, metadata):
    save_file(Classifier((1, 9, 8), 5).tensors(), path, metadata)


def another_data_set(path, metadata):
    save_file(load_file(path), path, {**metadata, "data": "0" * 64})


def no_metadata(path, _):
    save_file(load_file(path), path)


@pytest.mark.parametrize(
    "damage", [cut, garble, empty, one_weight, another_shape, another_data_set, no_metadata]
)
def test_a_damaged_file_is_replaced(cache, trainings, damage):
    data, bar = patterns(), RecordingBar()
    first = load_or_train_classifier(data, CPU, ProgressBar(False))
    (path,) = cache.iterdir()
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    damage(path, metadata)
    second = load_or_train_classifier(data, CPU, bar)
    assert len(trainings) == 2
    assert bar.lines[0] == f"{path} is damaged; the classifier is trained again"
    third = load_or_train_classifier(data, CPU, ProgressBar(False))
    assert len(trainings) == 2
    assert first.digest() == second.digest() == third.digest()


@pytest.mark.parametrize("blocked", ["cache", "cache/classifiers"])
def test_without_a_writable_cache_it_is_trained_and_that_is_logged(cache, trainings, blocked):
    """A file takes the place of the folder, since root may write to any folder."""
    path = cache.parents[1] / blocked
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"")
    bar = RecordingBar()
    data = patterns()
    first, second = (load_or_train_classifier(data, CPU, bar) for _ in range(2))
    assert len(trainings) == 2
    assert first.digest() == second.digest()
    assert sum("not saved in the cache" in line for line in bar.lines) == 2


def test_a_full_disk_leaves_no_file_and_is_no_error(cache, trainings, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(module, "write_bytes", full)
    bar = RecordingBar()
    assert load_or_train_classifier(patterns(), CPU, bar).accuracy > 0
    assert "No space left" in bar.lines[-1]
    assert list(cache.iterdir()) == []


def test_two_at_once_train_one(cache, trainings):
    data, found, bar = patterns(), [], RecordingBar()
    start = threading.Barrier(2)

    def work():
        start.wait()
        found.append(load_or_train_classifier(data, CPU, bar).digest())

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(trainings) == 1
    assert len(found) == 2
    assert found[0] == found[1]


def test_images_in_a_file_are_read_in_batches(cache, monkeypatch):
    """And give the same results as in memory."""
    monkeypatch.setattr(module, "MAX_EPOCHS", 2)
    images = random_dataset((1, 8, 8), "grey", count=4500).train.images.numpy()[:, 0]
    labels = np.arange(len(images)) % 3
    in_memory, on_disk = (load_data((images, labels), in_memory=choice) for choice in ("yes", "no"))
    assert isinstance(on_disk.train.images, StoredImages)
    counts, read = [], StoredImages.read_values
    monkeypatch.setattr(
        StoredImages, "read_values", lambda self, rows: counts.append(len(rows)) or read(self, rows)
    )
    model = build("vae", in_memory, latent_dim=2, hidden_dim=8)
    results = []
    for data in (in_memory, on_disk):
        classifier = train_classifier(data, CPU, ProgressBar(False))
        results.append(frechet(model, data, "train", classifier, "none"))
    assert results[0] == results[1]
    assert max(counts) <= 1000 < len(in_memory.train)


# A model's images.


@dataclasses.dataclass
class FixedMean:
    """A distribution that has only a mean."""

    mean: torch.Tensor


class Oracle(torch.nn.Module):
    """A model with perfect reconstructions, whose samples are the images `drawn` in turn; it records its inputs."""

    def __init__(self, data, drawn=None, condition="none"):
        super().__init__()
        real = build("vae", data, latent_dim=2, hidden_dim=8, condition=condition)
        self.blueprint, self.condition = real.blueprint, real.condition
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.drawn, self.seen, self.labels = drawn, [], []

    def reconstruct(self, x, y):
        assert not self.training
        self.seen.append(x)
        return FixedMean(x)

    def sample(self, count, y):
        assert not self.training
        start = sum(map(len, self.labels))
        self.labels.append(y)
        return FixedMean(self.drawn[start : start + count])


def test_the_images_of_the_split_are_at_no_distance(trained):
    data, classifier = trained
    own = data.test[:].images.float() / 255
    model = Oracle(data, own.flip(0)).train()
    found = frechet(model, data, "test", classifier, "none")
    assert model.training
    assert found.frechet_images == len(own) == 20
    assert found.frechet_reconstructions < 1e-9
    assert found.frechet_samples < 1e-9
    train = data.train[:].images.float() / 255
    baseline = frechet_distance(classifier.features(train), classifier.features(own))
    assert found.frechet_training == pytest.approx(baseline, rel=1e-6)
    assert baseline > 1e-3
    assert (found.classifier, found.classifier_accuracy) == ("random", classifier.accuracy)
    assert found.classifier_weights == classifier.digest()[:8]


def test_the_model_sees_binarised_images_and_the_classifier_grey_ones(trained):
    data, classifier = trained
    own = data.test[:].images.float() / 255
    for binarisation in ("threshold", "dynamic"):
        model = Oracle(data, own)
        found = frechet(model, data, "test", classifier, binarisation)
        bits = torch.cat(model.seen)
        assert set(bits.unique().tolist()) == {0.0, 1.0}
        expected = frechet_distance(classifier.features(bits), classifier.features(own))
        assert found.frechet_reconstructions == pytest.approx(expected, rel=1e-6)
        assert found.frechet_samples < 1e-9 < 1e-2 < expected


def test_pixels_outside_0_to_1_are_clamped(trained):
    """The mean of a Gaussian may lie outside [0, 1]."""
    data, classifier = trained
    own = data.test[:].images.float() / 255
    beyond = torch.where(own == 1, 7.0, torch.where(own == 0, -7.0, own))
    assert (beyond != own).any()
    found = frechet(Oracle(data, beyond), data, "test", classifier, "none")
    assert found.frechet_samples < 1e-9


def test_classes_of_samples_are_compared_with_the_splits_labels(trained):
    data, classifier = trained
    own = data.test[:].images.float() / 255
    rare = torch.cat([own[data.test.labels == 0]] * 20)[:20]
    found = frechet(Oracle(data, rare), data, "test", classifier, "none")
    assert (classifier(rare).argmax(1) == 0).all()
    frequencies = data.test.labels.bincount(minlength=3) / 20
    expected = math.hypot(1 - frequencies[0], frequencies[1], frequencies[2])
    assert found.class_distance == pytest.approx(expected, rel=1e-6)


def unbalanced(count=300) -> Dataset:
    """A data set whose test labels are 90 % of class 0, none of class 1, and 10 % of class 2."""
    data = random_dataset((1, 8, 8), "grey", count=3 * count)
    labels = torch.tensor([0] * (count - count // 10) + [2] * (count // 10))
    return dataclasses.replace(data, test=Split(data.test.images, labels))


def test_labels_of_samples_have_the_class_frequencies_of_the_split(trained):
    """300 labels with a share of 0.9 have a standard deviation of 5.2: five of these are exceeded less than once in a
    million."""
    data = unbalanced()
    model = Oracle(data, torch.rand(300, 1, 8, 8), condition="label")
    frechet(model, data, "test", trained[1], "none")
    drawn = torch.cat(model.labels)
    assert len(drawn) == 300
    zeros, ones, twos = drawn.bincount(minlength=3).tolist()
    assert ones == 0
    assert abs(zeros - 270) < 26
    assert zeros + twos == 300
    assert not torch.equal(drawn.sort().values, data.test.labels)  # independent samples


def test_a_model_conditional_on_labels_is_given_those_of_its_images(trained):
    data, classifier = trained
    model = build("cvae", data, latent_dim=2, hidden_dim=8)
    found = frechet(model, data, "test", classifier, "none")
    own = data.test[:].images.float() / 255
    with torch.no_grad():
        reconstructions = model.reconstruct(own, data.test.labels).mean
    expected = frechet_distance(classifier.features(reconstructions), classifier.features(own))
    assert found.frechet_reconstructions == pytest.approx(expected, rel=1e-5)
    assert found.frechet_samples > 0


def test_a_model_that_completes_images_has_no_samples(trained):
    data, classifier = trained
    model = build("cvae", data, latent_dim=2, hidden_dim=8, condition="quadrants:1")
    found = frechet(model, data, "test", classifier, "none")
    assert found.frechet_samples is None
    assert found.class_distance is None
    assert found.frechet_reconstructions > 0
    assert found.frechet_training > 0


def test_training_images_are_no_baseline_of_themselves(trained):
    data, classifier = trained
    found = frechet(Oracle(data, torch.rand(20, 1, 8, 8)), data, "train", classifier, "none")
    assert found.frechet_training is None
    assert found.frechet_reconstructions < 1e-9


@pytest.mark.parametrize(
    ("count", "train", "test", "expected"),
    [(50, 70, 90, 50), (10_000, 70, 90, 70), (10_000, 90, 70, 70)],
)
def test_all_sets_have_the_same_number_of_images(
    trained, monkeypatch, count, train, test, expected
):
    data = random_dataset((1, 8, 8), "grey", count=300)
    data = dataclasses.replace(
        data,
        train=data.train.take(torch.arange(train)),
        test=data.test.take(torch.arange(test)),
    )
    sizes = []
    monkeypatch.setattr(
        module, "frechet_distance", lambda a, b: sizes.append((len(a), len(b))) or 0.0
    )
    model = build("vae", data, latent_dim=2, hidden_dim=8)
    found = frechet(model, data, "test", trained[1], "none", count)
    assert found.frechet_images == expected
    assert set(sizes) == {(expected, expected)}
    with pytest.raises(UserError, match="need 2 images"):
        frechet(model, data, "test", trained[1], "none", count=1)


def test_images_and_samples_depend_on_the_seed(trained):
    _, classifier = trained
    data = unbalanced()
    model = build("vae", data, latent_dim=2, hidden_dim=8)
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    one, again, other = (
        frechet(model, data, "test", classifier, "none", count=100, seed=s) for s in (0, 0, 1)
    )
    assert torch.equal(torch.rand(2), expected)
    assert one == again
    for name in ("frechet_samples", "frechet_reconstructions", "frechet_training"):
        assert getattr(one, name) != getattr(other, name)
