"""What a run keeps of its data: the right images, codes that are the posterior's, and never those of other weights."""

import dataclasses
import shutil

import pytest
import torch

from conftest import random_dataset
from vaekit import Run, UserError, build, load, train
from vaekit.data import Split, freeze
from vaekit.data.splits import in_turn, spread
from vaekit.inference.kept_images import FILE, digest, keep, of_run


def fit(out, data, model="vae", **settings):
    sizes = {"latent_dim": 2, "hidden_dim": 8, **settings}
    return train(
        build(model, data, **sizes), data, out=out, epochs=1, batch_size=10, progress=False
    )


@pytest.mark.parametrize("kind", ["bits", "grey", "float"])
def test_what_is_kept_is_read_back_exactly(tmp_path, kind):
    data = random_dataset(kind=kind, shape=(3, 5, 4))
    run = fit(tmp_path / "run", data)
    found, again = of_run(run, load(run)), keep(run, load(run), data)
    for split in ("train", "test"):
        kept = freeze(getattr(data, split), run.data.binarisation)[found.rows[split]]
        if split == "test" or run.data.binarisation == "none":
            assert torch.equal(found.batches[split].images, kept.images)
        assert torch.equal(found.batches[split].labels, kept.labels)
        assert torch.equal(found.batches[split].images, again.batches[split].images)
    assert torch.equal(found.code_labels, data.test.labels[found.code_rows])


def test_codes_are_the_posteriors_means_and_scales(tmp_path):
    data = random_dataset()
    run = fit(tmp_path / "run", data)
    model = load(run)
    found = of_run(run, model)
    x = freeze(data.test, run.data.binarisation)[:].images
    assert torch.equal(found.code_rows, torch.arange(20))
    with torch.no_grad():
        q = model.posterior["z"]({"x": x, "y": None})
    assert torch.allclose(found.codes["z"], q.mean, atol=1e-6)
    assert torch.allclose(found.scales["z"], q.stddev, atol=1e-6)
    kl = (0.5 * (q.mean**2 + q.variance - 1) - q.stddev.log()).mean(0)
    assert torch.allclose(found.kl["z"], kl, atol=1e-5)


def test_images_are_kept_of_every_class_and_of_every_cluster(tmp_path, monkeypatch):
    monkeypatch.setattr("vaekit.inference.kept_images.IMAGES", 6)
    data = random_dataset()
    run = fit(tmp_path / "run", data, "gmvae", clusters=2, start_epochs=1)
    found = of_run(run, load(run))
    assert found.clusters.shape == (20, 2)
    assert torch.allclose(found.clusters.sum(1), torch.ones(20), atol=1e-5)
    assert torch.allclose(found.use, found.clusters.mean(0))
    kept = set(found.rows["test"].tolist())
    for label in range(3):
        assert set(torch.nonzero(data.test.labels == label)[:2, 0].tolist()) <= kept
    for k in range(2):
        assert set(found.clusters[:, k].topk(3).indices.tolist()) <= kept


def test_of_large_images_few_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("vaekit.inference.kept_images.BYTES", 15 * 30)
    run = fit(tmp_path / "run", random_dataset())
    found = of_run(run, load(run))
    assert (len(found.rows["train"]), len(found.rows["test"])) == (15, 15)


def test_exhibits_of_other_weights_are_not_used(tmp_path):
    data = random_dataset()
    run = fit(tmp_path / "run", data)
    other = fit(tmp_path / "other", data, seed=1)
    shutil.copy(other.weights_path, run.weights_path)
    with pytest.raises(UserError, match="trained on arrays"):
        of_run(run, load(run))
    made = keep(run, load(run), data)
    assert torch.equal(made.codes["z"], of_run(run, load(run)).codes["z"])


def test_a_run_without_exhibits_makes_them_from_its_data(small_run, small_mnist, tmp_path):
    run = Run(shutil.copytree(small_run, tmp_path / "run"))
    first = of_run(run, load(run))
    (run.path / FILE).unlink()
    again = of_run(run, load(run))
    assert (run.path / FILE).is_file()
    assert torch.equal(first.codes["z"], again.codes["z"])
    assert torch.equal(first.batches["test"].images, again.batches["test"].images)


def test_a_damaged_file_is_named(small_run, tmp_path):
    run = Run(shutil.copytree(small_run, tmp_path / "run"))
    path = run.path / FILE
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"nothing", b""):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"exhibits\.safetensors is damaged"):
            of_run(run, load(run))
    (run.path / "model.safetensors").unlink()
    path.write_bytes(whole)
    with pytest.raises(UserError, match="has not saved any weights yet"):
        of_run(run, load(Run(small_run)))


def test_rows_from_all_over_and_of_each_class_in_turn():
    assert spread(10, 3).tolist() == [0, 4, 9]
    assert spread(2, 5).tolist() == [0, 1]
    labels = torch.tensor([5, 5, 5, 2, 2, 9])
    assert in_turn(labels, 6, 4).tolist() == [3, 0, 5, 4]
    assert in_turn(labels, 6, 100).tolist() == [3, 0, 5, 4, 1, 2]
    assert in_turn(None, 10, 2).tolist() == [0, 9]


def test_unlabelled_data_have_exhibits_too(tmp_path):
    data = random_dataset()
    bare = [Split(split.images) for split in data.splits.values()]
    run = fit(
        tmp_path / "run", dataclasses.replace(data, **dict(zip(data.splits, bare, strict=True)))
    )
    found = of_run(run, load(run))
    assert found.code_labels is None
    assert found.batches["test"].labels is None


def test_a_file_that_lacks_a_part_is_damaged(tmp_path):
    from safetensors.torch import load_file, save_file

    run = fit(tmp_path / "run", random_dataset())
    path = run.path / FILE
    weights = digest(run.weights_path)
    for name in ("images.test", "rows.train", "codes.z", "code_rows"):
        tensors = load_file(path)
        kept = {key: value for key, value in tensors.items() if key != name}
        save_file(kept, path, {"weights": weights})
        with pytest.raises(UserError, match=r"exhibits\.safetensors is damaged"):
            of_run(run, load(run))
        save_file(tensors, path, {"weights": weights})


def test_train_images_are_from_all_over_and_batches_weigh_as_they_are_large(tmp_path, monkeypatch):
    monkeypatch.setattr("vaekit.inference.kept_images.IMAGES", 6)
    monkeypatch.setattr("vaekit.likelihood.latent_use.NUMBERS", 13 * 30)
    data = random_dataset()
    run = fit(tmp_path / "run", data)
    found = of_run(run, load(run))
    assert torch.equal(found.rows["train"], spread(20, 10))
    kl = (
        0.5 * (found.codes["z"] ** 2 + found.scales["z"] ** 2 - 1) - found.scales["z"].log()
    ).mean(0)
    assert torch.allclose(found.kl["z"], kl, atol=1e-5)


def test_of_very_many_components_p_of_each_image_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("vaekit.inference.kept_images.CLUSTERS", 3)
    run = fit(tmp_path / "run", random_dataset(), prior="learned-mixture", components=4)
    found = of_run(run, load(run))
    assert found.clusters is None
    assert found.use.shape == (4,)


def test_p_of_a_cluster_is_a_mean_over_draws(tmp_path):
    """Its squared error against 4,000 draws is that of ten draws, not of one (by chance less than once in 10,000)."""
    data = random_dataset()
    run = fit(tmp_path / "run", data, prior="learned-mixture", components=3)
    model, x = load(run), freeze(data.test, "dynamic")[:].images
    found = of_run(run, model).clusters
    with torch.no_grad():
        latent = model.infer(model.given(x, None), (4000, 20))["z"]
        drawn = latent.prior.log_responsibilities(latent.z).exp()
    error = ((found - drawn.mean(0)) ** 2).mean() / drawn.var(0).mean()
    assert 0.03 < error < 0.3
