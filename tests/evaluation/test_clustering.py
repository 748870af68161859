"""Clusters: their initialisation, the assignment of images, the agreement with labels."""

import csv
import json
import math

import numpy as np
import pytest
import torch

from conftest import random_dataset
from vaekit import UserError, build, load, train
from vaekit.data import Split
from vaekit.evaluation.clustering import agreement, as_table, cluster
from vaekit.evaluation.evaluate import evaluate
from vaekit.gallery.context import PictureContext
from vaekit.gallery.images import confusion
from vaekit.likelihood.clusters import responsibilities
from vaekit.settings.analysis import PlotConfig
from vaekit.training.cluster_start import fine_mixture, join_components, set_heads, start_clusters


def test_accuracies_by_hand():
    """Three clusters: the first mostly 0s, its most confident image a 1; the second and third both mostly 2s."""
    assigned = np.array([0, 0, 0, 1, 1, 2, 2, 2])
    labels = np.array([0, 0, 1, 2, 2, 2, 2, 1])
    confidence = np.array([0.6, 0.7, 0.9, 0.8, 0.9, 0.9, 0.7, 0.8])
    found = agreement(assigned, confidence, labels, 3)
    assert found.many_to_one == (2 + 2 + 2) / 8
    assert found.most_confident == (1 + 2 + 2) / 8
    assert found.hungarian == (2 + 2 + 1) / 8  # 0 -> 0, 1 -> 2, 2 -> 1


def test_the_order_of_clusters_does_not_matter_and_empty_ones_are_no_error():
    labels = np.repeat(np.arange(5), 20)
    found = agreement((labels + 3) % 5, np.ones(100), labels, 5)
    assert (found.many_to_one, found.most_confident, found.hungarian) == (1, 1, 1)
    found = agreement(np.zeros(100, dtype=int), np.ones(100), labels, 7)
    assert (found.many_to_one, found.hungarian) == (0.2, 0.2)


def test_surplus_clusters_count_as_wrong_one_to_one():
    labels = np.repeat([0, 1], 50)
    split = np.arange(100) // 25
    found = agreement(split, np.ones(100), labels, 4)
    assert (found.many_to_one, found.hungarian) == (1.0, 0.5)


def blobs(count=400):
    """Points (N, 2) in three groups of two adjacent Gaussians each, and their groups (N,)."""
    generator = np.random.default_rng(0)
    centers = np.array([[0, 0], [1.5, 0], [20, 0], [20, 1.5], [0, 20], [1, 21]])
    group = np.repeat(np.arange(6), count // 6)
    return centers[group] + 0.5 * generator.normal(size=(len(group), 2)), group // 2


def test_components_are_joined_into_the_true_groups():
    points, group = blobs()
    fine = fine_mixture(points, 3, seed=0)
    assert fine.shape[1] > 3
    joined = join_components(fine, 3)
    assert joined.shape == (len(points), 3)
    assert np.allclose(joined.sum(1), 1)
    assert agreement(joined.argmax(1), joined.max(1), group, 3).hungarian == 1


def test_the_most_overlapping_components_are_joined_first():
    r = np.array([[0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0], [0, 0, 0.9, 0.1], [0, 0, 0.1, 0.9]])
    assert np.allclose(join_components(r, 3), [[1, 0, 0], [1, 0, 0], [0, 0.9, 0.1], [0, 0.1, 0.9]])


@torch.no_grad()
def test_heads_are_set_to_the_groups_for_every_w():
    model = build("gmvae", (1, 4, 4), latent_dim=3, clusters=2, hidden_dim=8).double()
    loc, scale = torch.randn(2, 3).double(), torch.rand(2, 3).double() + 0.1
    set_heads(model, loc, scale)
    p = model.prior["z"]({"w": torch.randn(5, 2).double()})
    assert torch.allclose(p.loc, loc.expand(5, 2, 3))
    assert torch.allclose(p.scale, scale.expand(5, 2, 3), atol=1e-7)


@torch.no_grad()
def test_clusters_start_where_the_codes_are():
    data = random_dataset(count=300)
    model = build("gmvae", data, latent_dim=2, clusters=3, hidden_dim=16)
    start_clusters(model, data.train, "dynamic", seed=0)
    p = model.prior["z"]({"w": torch.zeros(1, 2)})
    codes = model.posterior["z"]({"x": data.train.images.float() / 255}).mean
    # The means of the components lie among the codes.
    assert torch.allclose(p.loc[0].mean(0), codes.mean(0), atol=3 * float(codes.std()))
    assert (p.loc[0] >= codes.min(0).values).all()
    assert (p.loc[0] <= codes.max(0).values).all()


def test_too_many_clusters_or_weights_that_are_not_finite_leave_no_run(tmp_path):
    data = random_dataset()  # 20 training images
    sizes = {"latent_dim": 2, "hidden_dim": 8, "start_epochs": 1}
    model = build("gmvae", data, clusters=20, **sizes)
    with pytest.raises(UserError, match="there are 20 training images"):
        train(model, data, out=tmp_path / "a", epochs=2, progress=False)
    assert not (tmp_path / "a").exists()
    model = build("gmvae", data, clusters=3, **sizes)
    with torch.no_grad():
        next(model.decoder.parameters()).fill_(math.nan)
    with pytest.raises(UserError, match="not finite"):
        train(model, data, out=tmp_path / "b", epochs=2, progress=False)


def test_clusters_start_once(tmp_path):
    """A trained model keeps its clusters when its training continues, from Python or by --init."""
    data = random_dataset(count=300)
    sizes = {"latent_dim": 2, "clusters": 3, "hidden_dim": 16, "start_epochs": 1}
    settings = {"epochs": 2, "kl_warmup": 0.0, "progress": False}
    model = build("gmvae", data, **sizes)
    first = train(model, data, out=tmp_path / "a", **settings)
    before = load(first).prior["z"].network.last.bias
    for run in (
        train(load(first), data, out=tmp_path / "b", learning_rate=1e-9, **settings),
        train(
            build("gmvae", data, **sizes),
            data,
            init=first,
            out=tmp_path / "c",
            learning_rate=1e-9,
            **settings,
        ),
    ):
        assert torch.allclose(load(run).prior["z"].network.last.bias, before, atol=1e-5)


@pytest.fixture(scope="module")
def clustered(tmp_path_factory):
    data = random_dataset(count=300)
    model = build("gmvae", data, latent_dim=2, clusters=4, hidden_dim=16, start_epochs=1)
    out = tmp_path_factory.mktemp("runs") / "a"
    return train(model, data, out=out, epochs=2, kl_warmup=1.0, progress=False), data


def test_a_run_is_clustered_into_files_and_a_table(clustered):
    run, data = clustered
    result = cluster(run, data=data, samples=5)
    assert json.loads((run.path / "clusters-test.json").read_text()) == result
    rows = list(csv.DictReader((run.path / "clusters-test.csv").read_text().splitlines()))
    assert len(rows) == result["images"] == sum(result["sizes"]) == len(data.test)
    assert [int(row["label"]) for row in rows] == data.test.labels.tolist()
    assert all(0.25 <= float(row["probability"]) <= 1 for row in rows)
    counts = np.bincount([int(row["cluster"]) for row in rows], minlength=4).tolist()
    assert counts == result["sizes"]
    correct = sum(
        size * (purity or 0) for size, purity in zip(counts, result["purities"], strict=True)
    )
    assert result["many_to_one"] == pytest.approx(correct / len(rows))
    table = as_table(result)
    assert [column.header for column in table.columns][2:] == ["most common label", "purity"]
    assert table.row_count == 4
    assert cluster(run, data=data, samples=5) == result  # the same seed


def test_one_cluster_that_has_nearly_all_images_is_warned_of(clustered, monkeypatch):
    run, data = clustered
    sizes = cluster(run, data=data, samples=5)["sizes"]
    monkeypatch.setattr("vaekit.support.warnings.MAX_CLUSTER_SHARE", max(sizes) / sum(sizes))
    assert cluster(run, data=data, samples=5)["warnings"] == []
    monkeypatch.setattr("vaekit.support.warnings.MAX_CLUSTER_SHARE", max(sizes) / sum(sizes) - 0.01)
    (warning,) = cluster(run, data=data, samples=5)["warnings"]
    assert warning.startswith(f"one cluster has {max(sizes) / sum(sizes):.0%} of the images")


def test_cluster_evaluate_and_the_picture_of_the_confusion_agree(clustered):
    run, data = clustered
    found = cluster(run, data=data)
    evaluated = evaluate(run, data=data, metrics=("clusters",))
    for key in ("many_to_one", "most_confident", "hungarian", "nmi", "ari"):
        assert evaluated[key] == found[key], key
    context = PictureContext.of(run, PlotConfig())
    table = csv.DictReader((run.path / "clusters-test.csv").read_text().splitlines())
    rows = [(int(row["cluster"]), float(row["probability"])) for row in table]
    probability, cluster_of = context.picture_data.clusters.max(1)
    assert cluster_of.tolist() == [k for k, _ in rows]
    assert probability.tolist() == pytest.approx([p for _, p in rows], abs=1e-6)
    picture = confusion(context)["confusion"]
    assert f"{found['many_to_one']:.2%} many-to-one" in picture.axes[0].get_title()


def test_without_labels_there_are_only_assignments(clustered):
    import dataclasses

    run, data = clustered
    bare = {name: Split(split.images) for name, split in data.splits.items()}
    plain = dataclasses.replace(data, **bare)
    model = build("gmvae", plain, latent_dim=2, clusters=4, hidden_dim=16, start_epochs=0)
    run = train(model, plain, out=run.path.parent / "b", epochs=1, kl_warmup=0.0, progress=False)
    result = cluster(run, data=plain)
    assert "many_to_one" not in result
    assert as_table(result).row_count == 4
    assert (run.path / "clusters-test.csv").read_text().splitlines()[1].endswith(",")


@torch.no_grad()
def test_responsibilities_are_means_over_samples_of_exact_ones():
    model = build("gmvae", (1, 4, 4), latent_dim=2, clusters=3, hidden_dim=8).double()
    images = torch.rand(6, 1, 4, 4).double().round()
    found = responsibilities(model, Split(images), 7)
    torch.manual_seed(0)
    latent = model(images, samples=(7,)).latents["z"]
    expected = torch.stack(
        [latent.prior.component(torch.full((7, 6), k)).log_prob(latent.z) for k in range(3)]
    )
    assert torch.allclose(found, expected.softmax(0).mean(1).T)


def test_three_patterns_are_found_as_clusters(tmp_path):
    """End to end, from images to clusters."""
    data = random_dataset(count=900, shape=(1, 8, 8))
    model = build("gmvae", data, latent_dim=2, clusters=3, hidden_dim=32, start_epochs=10)
    run = train(
        model, data, out=tmp_path / "a", epochs=10, kl_warmup=5.0, batch_size=20, progress=False
    )
    assert cluster(run, data=data)["hungarian"] > 0.95


def test_a_model_without_mixture_has_no_clusters(small_run, small_mnist):
    with pytest.raises(UserError, match="a vae has no clusters"):
        cluster(small_run)
