"""Picture data: the right images, the posterior's codes, and never those of other weights."""

import dataclasses
import shutil

import pytest
import torch

from conftest import random_dataset
from vaekit import Run, UserError, build, load, train
from vaekit.data import Split, eval_split
from vaekit.data.splits import balanced_rows, evenly_spaced
from vaekit.inference.picture_data import FILE_NAME, create, load_or_create, num_images
from vaekit.runs.load import load_trained, weights_sha256


def fit(out, data, model="vae", **settings):
    sizes = {"latent_dim": 2, "hidden_dim": 8, **settings}
    return train(
        build(model, data, **sizes), data, out=out, epochs=1, batch_size=10, progress=False
    )


@pytest.mark.parametrize("kind", ["bits", "grey", "float"])
def test_stored_images_are_read_back_exactly(tmp_path, kind):
    data = random_dataset(kind=kind, shape=(3, 5, 4))
    run = fit(tmp_path / "run", data)
    found, again = load_or_create(run, load_trained(run)), create(run, load_trained(run), data)
    for split in ("train", "test"):
        expected = eval_split(getattr(data, split), run.data.binarisation)[found.rows[split]]
        if split == "test" or run.data.binarisation == "none":
            assert torch.equal(found.batches[split].images, expected.images)
        assert torch.equal(found.batches[split].labels, expected.labels)
        assert torch.equal(found.batches[split].images, again.batches[split].images)
    assert torch.equal(found.code_labels, data.test.labels[found.code_rows])


def test_codes_are_the_posteriors_means_and_scales(tmp_path):
    data = random_dataset()
    run = fit(tmp_path / "run", data)
    model = load(run)
    found = load_or_create(run, load_trained(run))
    x = eval_split(data.test, run.data.binarisation)[:].images
    assert torch.equal(found.code_rows, torch.arange(20))
    with torch.no_grad():
        q = model.posterior["z"]({"x": x, "y": None})
    assert torch.allclose(found.codes["z"], q.mean, atol=1e-6)
    assert torch.allclose(found.scales["z"], q.stddev, atol=1e-6)
    kl = (0.5 * (q.mean**2 + q.variance - 1) - q.stddev.log()).mean(0)
    assert torch.allclose(found.kl["z"], kl, atol=1e-5)


def test_images_of_every_class_and_every_cluster_are_stored(tmp_path, monkeypatch):
    monkeypatch.setattr("vaekit.inference.picture_data.MAX_IMAGES", 6)
    data = random_dataset()
    run = fit(tmp_path / "run", data, "gmvae", clusters=2, start_epochs=1)
    found = load_or_create(run, load_trained(run))
    assert found.clusters.shape == (20, 2)
    assert torch.allclose(found.clusters.sum(1), torch.ones(20), atol=1e-5)
    assert torch.allclose(found.component_shares, found.clusters.mean(0))
    stored = set(found.rows["test"].tolist())
    for label in range(3):
        assert set(torch.nonzero(data.test.labels == label)[:2, 0].tolist()) <= stored
    for k in range(2):
        assert set(found.clusters[:, k].topk(3).indices.tolist()) <= stored


def test_fewer_large_images_are_stored(tmp_path, monkeypatch):
    monkeypatch.setattr("vaekit.inference.picture_data.MAX_BYTES", 15 * 30)
    run = fit(tmp_path / "run", random_dataset())
    found = load_or_create(run, load_trained(run))
    assert (len(found.rows["train"]), len(found.rows["test"])) == (15, 15)


def test_picture_data_of_other_weights_are_not_used(tmp_path):
    data = random_dataset()
    run = fit(tmp_path / "run", data)
    other = fit(tmp_path / "other", data, seed=1)
    shutil.copy(other.weights_path, run.weights_path)
    with pytest.raises(UserError, match="trained on arrays"):
        load_or_create(run, load_trained(run))
    created = create(run, load_trained(run), data)
    assert torch.equal(created.codes["z"], load_or_create(run, load_trained(run)).codes["z"])


def test_a_run_without_picture_data_creates_it_from_its_data(small_run, small_mnist, tmp_path):
    run = Run(shutil.copytree(small_run, tmp_path / "run"))
    first = load_or_create(run, load_trained(run))
    (run.path / FILE_NAME).unlink()
    again = load_or_create(run, load_trained(run))
    assert (run.path / FILE_NAME).is_file()
    assert torch.equal(first.codes["z"], again.codes["z"])
    assert torch.equal(first.batches["test"].images, again.batches["test"].images)


def test_the_file_of_an_earlier_version_is_read(tmp_path):
    run = fit(tmp_path / "run", random_dataset())
    first = load_or_create(run, load_trained(run))
    (run.path / FILE_NAME).rename(run.path / "exhibits.safetensors")
    again = load_or_create(
        run, load_trained(run)
    )  # its data are gone, so that it cannot create them
    assert torch.equal(first.codes["z"], again.codes["z"])
    assert not (run.path / FILE_NAME).exists()


def test_a_damaged_file_is_reported(small_run, tmp_path):
    run = Run(shutil.copytree(small_run, tmp_path / "run"))
    path = run.path / FILE_NAME
    original = path.read_bytes()
    for content in (original[: len(original) // 2], b"nothing", b""):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"picture_data\.safetensors is damaged"):
            load_or_create(run, load_trained(run))


def test_rows_are_evenly_spaced_or_balanced_over_classes():
    assert evenly_spaced(10, 3).tolist() == [0, 4, 9]
    assert evenly_spaced(2, 5).tolist() == [0, 1]
    labels = torch.tensor([5, 5, 5, 2, 2, 9])
    assert balanced_rows(labels, 6, 4).tolist() == [3, 0, 5, 4]
    assert balanced_rows(labels, 6, 100).tolist() == [3, 0, 5, 4, 1, 2]
    assert balanced_rows(None, 10, 2).tolist() == [0, 9]


def test_unlabelled_data_have_picture_data_too(tmp_path):
    data = random_dataset()
    bare = [Split(split.images) for split in data.splits.values()]
    run = fit(
        tmp_path / "run", dataclasses.replace(data, **dict(zip(data.splits, bare, strict=True)))
    )
    found = load_or_create(run, load_trained(run))
    assert found.code_labels is None
    assert found.batches["test"].labels is None


def test_a_file_that_lacks_a_part_is_damaged(tmp_path):
    from safetensors.torch import load_file, save_file

    run = fit(tmp_path / "run", random_dataset())
    path = run.path / FILE_NAME
    weights = weights_sha256(run)
    for name in ("images.test", "rows.train", "codes.z", "code_rows"):
        tensors = load_file(path)
        remaining = {key: value for key, value in tensors.items() if key != name}
        save_file(remaining, path, {"weights": weights})
        with pytest.raises(UserError, match=r"picture_data\.safetensors is damaged"):
            load_or_create(run, load_trained(run))
        save_file(tensors, path, {"weights": weights})


def test_training_images_are_evenly_spaced_and_batches_weighted_by_size(tmp_path, monkeypatch):
    monkeypatch.setattr("vaekit.inference.picture_data.MAX_IMAGES", 6)
    monkeypatch.setattr("vaekit.likelihood.latent_use.MAX_NUMBERS", 13 * 30)
    data = random_dataset()
    run = fit(tmp_path / "run", data)
    found = load_or_create(run, load_trained(run))
    assert torch.equal(found.rows["train"], evenly_spaced(20, 10))
    kl = (
        0.5 * (found.codes["z"] ** 2 + found.scales["z"] ** 2 - 1) - found.scales["z"].log()
    ).mean(0)
    assert torch.allclose(found.kl["z"], kl, atol=1e-5)


def test_responsibilities_of_too_many_components_are_not_stored(tmp_path, monkeypatch):
    monkeypatch.setattr("vaekit.inference.picture_data.MAX_CLUSTERS", 3)
    run = fit(tmp_path / "run", random_dataset(), prior="learned-mixture", components=4)
    found = load_or_create(run, load_trained(run))
    assert found.clusters is None
    assert found.component_shares.shape == (4,)


def test_responsibilities_are_means_over_samples(tmp_path):
    """The squared error against 4,000 samples is that of ten samples, not of one (fails by chance less than once in
    10,000)."""
    data = random_dataset()
    run = fit(tmp_path / "run", data, prior="learned-mixture", components=3)
    model, x = load(run), eval_split(data.test, "dynamic")[:].images
    found = load_or_create(run, load_trained(run)).clusters
    with torch.no_grad():
        latent = model.infer(model.given(x, None), (4000, 20))["z"]
        exact = latent.prior.log_responsibilities(latent.z).exp()
    error = ((found - exact.mean(0)) ** 2).mean() / exact.var(0).mean()
    assert 0.03 < error < 0.3


@pytest.mark.parametrize(
    ("shape", "kind", "count"),
    [
        ((1, 28, 28), "grey", 200),
        ((12, 64, 64), "float", 42),
        ((12, 128, 128), "float", 10),
        ((12, 512, 512), "float", 3),
    ],
)
def test_as_many_images_are_stored_as_fit(shape, kind, count):
    dtype = torch.float32 if kind == "float" else torch.uint8
    images = torch.zeros(1, *shape, dtype=dtype).expand(300, -1, -1, -1)
    assert num_images(Split(images)) == count
