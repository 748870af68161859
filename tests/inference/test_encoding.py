"""Encoding and decoding: tables have the posteriors and bounds of the model, and survive every file format."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import random_dataset
from vaekit import Run, UserError, build, load, train
from vaekit.data import Split, eval_split
from vaekit.inference.encoding import decode, encode
from vaekit.inference.generation import reconstruct
from vaekit.inference.tables import (
    flatten_columns,
    join_columns,
    read_table,
    write_table,
)
from vaekit.inference.writing import write_images


def fit(out, model="vae", data=None, **settings):
    data = data or random_dataset()
    return train(
        build(model, data, **{"latent_dim": 2, "hidden_dim": 8, **settings}), data, out=out, epochs=2,
        batch_size=5, progress=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return fit(tmp_path_factory.mktemp("runs") / "run")


def test_latents_are_the_posterior(run):
    data = random_dataset()
    found = encode(run, data, split="all", samples=3)
    assert len(found["index"]) == 60
    assert found["split"].tolist() == ["train"] * 20 + ["validation"] * 20 + ["test"] * 20
    assert found["index"].tolist() == [*range(20)] * 3
    assert found["label"].tolist() == torch.cat([s.labels for s in data.splits.values()]).tolist()
    x = torch.cat([eval_split(split, "dynamic")[:].images for split in data.splits.values()])
    with torch.no_grad():
        q = load(run).posterior["z"]({"x": x, "y": None})
    assert np.allclose(found["z_mean"], q.mean, atol=1e-5)
    assert np.allclose(found["z_scale"], q.stddev, atol=1e-5)
    distance = (found["z_sample"] - found["z_mean"]) / found["z_scale"]
    assert 0.7 < distance.std() < 1.3  # 120 samples; fails by chance less than once in a million


def test_elbo_and_nll_agree_with_quadrature(tmp_path):
    """One latent dimension: NLL from 3,000 samples against quadrature, within 5 of its standard errors."""
    data = random_dataset()
    run = fit(tmp_path / "run", data=data, latent_dim=1)
    found = encode(run, data, samples=3000)
    model, x = load(run), eval_split(data.test, "dynamic")[:].images
    z = torch.linspace(-8, 8, 4001)[:, None]
    with torch.no_grad():
        likelihood = model.decoder({"z": z})
        log_joint = torch.stack([likelihood.log_prob(image) for image in x], dim=1).double()
        log_joint += torch.distributions.Normal(0.0, 1.0).log_prob(z).double()
        inference = model(x, samples=(20_000,))
    log_weight = inference.log_weight.double()
    elbo = inference.log_likelihood - inference.kl
    exact = -(log_joint.logsumexp(0) + np.log(16 / 4000)).numpy()
    error = (log_weight.exp().std(0) / log_weight.exp().mean(0)).numpy() / np.sqrt(3000)
    assert (np.abs(found["nll"] - exact) < 5 * error + 1e-4).all()
    elbo_error = (elbo.std(0) / np.sqrt(10)).numpy()  # the ELBO is from 10 samples
    scores = (found["elbo"] - elbo.mean(0).numpy()) / elbo_error
    assert (
        scores**2
    ).mean() < 4  # a mean of 20 squares of about 1; from a single sample it would be 10
    assert (elbo.mean(0).numpy() < -exact).all()
    order = np.argsort(-found["nll"])
    assert found["rank"][order].tolist() == [*range(1, 21)]


def test_every_latent_has_its_columns(tmp_path):
    run = fit(tmp_path / "run", "hvae", top_dim=3)
    found = encode(run, random_dataset(), samples=2)
    assert found["z2_mean"].shape == found["z2_sample"].shape == (20, 3)
    assert found["z1_mean"].shape == (20, 2)
    again = encode(run, random_dataset(), samples=2)
    assert all(np.array_equal(found[key], again[key]) for key in found)
    other = encode(run, random_dataset(), samples=2, seed=1)
    assert not np.array_equal(found["z1_sample"], other["z1_sample"])


def test_without_a_density_there_are_no_bounds(tmp_path):
    run = fit(tmp_path / "run", "mmdvae", posterior="deterministic")
    found = encode(run, random_dataset())
    assert not {"elbo", "nll", "rank"} & set(found)
    assert (found["z_scale"] == 0).all()


@pytest.mark.parametrize("ending", [".npz", ".csv", ".parquet"])
@pytest.mark.parametrize("model", ["vae", "cvae", "hvae"])
def test_encoded_images_decode_to_their_reconstructions(tmp_path, model, ending):
    if ending == ".parquet":
        pytest.importorskip("pyarrow")
    data = random_dataset()
    run = fit(tmp_path / "run", model)
    table = encode(run, data, samples=2)
    back = read_table(write_table(table, tmp_path / f"codes{ending}"))
    assert list(back["split"]) == ["test"] * 20
    for key in ("z_mean", "elbo", "rank", "index") if model != "hvae" else ("z1_mean", "z2_mean"):
        assert np.allclose(back[key].astype(float), table[key], rtol=1e-8), key
    batch = eval_split(data.test, "dynamic")[:]
    expected = reconstruct(load(run), batch.images, batch.labels)
    assert torch.allclose(decode(run, back), expected, atol=1e-5)


def test_samples_and_custom_tables_are_decoded(run):
    table = encode(run, random_dataset(), samples=2)
    model = load(run)
    with torch.no_grad():
        expected = model.decode(z=torch.from_numpy(table["z_sample"])).mean
    assert torch.allclose(decode(run, table, column="sample"), expected)
    own = join_columns({"z_0": np.array([0.5, 1.0]), "z_1": np.array([0, 2])})
    with torch.no_grad():
        expected = model.decode(z=torch.tensor([[0.5, 0.0], [1.0, 2.0]])).mean
    assert torch.allclose(decode(run, own), expected)


def test_image_files_are_encoded_with_their_paths(small_run, tmp_path):
    pixels = torch.randint(
        256, (3, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    folder = tmp_path / "mine"
    folder.mkdir()
    for i, image in enumerate(pixels):
        Image.fromarray(image.numpy()).save(folder / f"{i}.png")
    found = encode(small_run, folder, samples=2)
    assert found["path"].tolist() == [str(folder / f"{i}.png") for i in range(3)]
    one = encode(small_run, [folder / "1.png"], samples=2)
    assert one["path"].tolist() == [str(folder / "1.png")]
    (folder / "a").mkdir()
    assert len(encode(small_run, folder, samples=2)["path"]) == 3


def test_another_data_set_is_encoded(small_run, tmp_path):
    data = np.random.default_rng(0).integers(0, 256, (30, 28, 28), dtype=np.uint8)
    np.save(tmp_path / "own.npy", data)
    found = encode(small_run, tmp_path / "own.npy", split="all", samples=2)
    assert len(found["index"]) == 30
    with pytest.raises(
        UserError, match=r"are \(1, 6, 5\) \(C, H, W\), but the model's are \(1, 28, 28\)"
    ):
        encode(small_run, random_dataset())


def test_images_are_written_as_files(tmp_path):
    images = torch.rand(12, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    folder = write_images(images, tmp_path / "out")
    names = sorted(path.name for path in folder.iterdir())
    assert names == [f"{i:02d}.png" for i in range(12)]
    with Image.open(folder / "07.png") as image:
        back = np.asarray(image) / 255
    assert np.allclose(back, images[7].permute(1, 2, 0), atol=0.5 / 255 + 1e-6)
    stored = read_table(write_images(images, tmp_path / "out.npz"))["images"]
    assert np.array_equal(stored, images.numpy())
    assert write_images(images, tmp_path / "out.png").stat().st_size > 0
    with Image.open(write_images(images[:1, :1], tmp_path / "grey") / "0.png") as image:
        assert image.mode == "L"


def test_columns_are_joined_and_split():
    table = {"a": np.arange(3), "z_mean": np.arange(6).reshape(3, 2)}
    columns = flatten_columns(table)
    assert list(columns) == ["a", "z_mean_0", "z_mean_1"]
    back = join_columns(columns)
    assert np.array_equal(back["z_mean"], table["z_mean"])
    assert np.array_equal(back["a"], table["a"])
    assert list(join_columns({"z_0": np.arange(2), "z_2": np.arange(2)})) == ["z_0", "z_2"]


TABLES = [
    (
        {"z_mean": np.zeros((3, 3), np.float32)},
        r"the latent z has 2 dimensions, but its column is float32 \(3, 3\)",
    ),
    ({"z_mean": np.array([["a", "b"]])}, "the latent z has 2 dimensions, but its column is <U1"),
    ({"z_mean": np.array([[0.0, np.nan]])}, "not finite"),
    ({"z_mean": np.zeros((0, 2))}, "there are no latents"),
    ({"w": np.zeros((1, 2))}, "there is no column z_mean or z; the columns are w"),
]


@pytest.mark.parametrize(("table", "message"), TABLES)
def test_latents_that_do_not_fit_are_refused(run, table, message):
    with pytest.raises(UserError, match=message):
        decode(run, table)


def test_labels_are_required_and_checked(tmp_path):
    run = fit(tmp_path / "run", "cvae")
    z = np.zeros((2, 2))
    with pytest.raises(UserError, match="pass label"):
        decode(run, {"z": z})
    for label in (np.array([0, 3]), np.array([0]), np.array([-1, 0])):
        with pytest.raises(UserError, match="a label of 0 to 2 for each latent"):
            decode(run, {"z": z, "label": label})
    with torch.no_grad():
        expected = load(run).decode(torch.tensor([2, 2]), z=torch.zeros(2, 2)).mean
    assert torch.allclose(decode(run, {"z": z}, label=2), expected)
    with pytest.raises(UserError, match="labels are 0 to 2"):
        decode(run, {"z": z}, label=3)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.npz", b"no zip"),
        ("a.npz", b"PK\x03\x04 broken"),
        ("a.csv", b""),
        ("a.csv", b"z_0,z_1\n1\n"),
        ("a.csv", b"\xff\xfe\x00"),
        ("a.parquet", b"no parquet"),
        ("a.txt", b"z"),
    ],
)
def test_files_that_are_not_tables_are_refused(tmp_path, name, content):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(
        UserError, match=r"cannot be read|differ in length|its ending|no rows below"
    ):
        read_table(path)
    with pytest.raises(UserError, match="there is no file"):
        read_table(tmp_path / f"missing-{name}")


def test_pickles_are_never_read(tmp_path):
    np.savez(tmp_path / "evil.npz", z=np.array([object()], dtype=object))
    with pytest.raises(UserError, match="cannot be read"):
        read_table(tmp_path / "evil.npz")


def test_a_failed_write_leaves_nothing(tmp_path, run):
    table = encode(run, random_dataset(), samples=2)
    with pytest.raises(UserError, match="its folder does not exist"):
        write_table(table, tmp_path / "no" / "codes.csv")
    with pytest.raises(UserError, match="its ending must be one of"):
        write_table(table, tmp_path / "codes.xlsx")
    broken = {**table, "z_mean": table["z_mean"][:5]}
    with pytest.raises(ValueError, match="argument"):
        write_table(broken, tmp_path / "codes.csv")
    assert list(tmp_path.glob("codes*")) == []


def test_data_without_labels_have_no_label_column(run):
    data = random_dataset()
    bare = {name: dataclasses.replace(split, labels=None) for name, split in data.splits.items()}
    assert "label" not in encode(Run(run.path), dataclasses.replace(data, **bare), samples=2)


def test_image_files_are_preprocessed_like_the_data(tmp_path):
    data = random_dataset(kind="grey")
    model = build("cvae", data, latent_dim=2, hidden_dim=8, likelihood="bernoulli")
    run = train(
        model,
        data,
        out=tmp_path / "run",
        epochs=1,
        batch_size=5,
        progress=False,
        binarisation="dynamic",
    )
    Image.fromarray(data.test.images[0, 0].numpy()).save(tmp_path / "a.png")
    table = encode(run, str(tmp_path / "a.png"), samples=2, label=2)
    batch = eval_split(Split(data.test.images[:1], torch.tensor([2])), "dynamic")[:]
    with torch.no_grad():
        q = load(run).posterior["z"](load(run).given(batch.images, batch.labels))
    assert np.allclose(table["z_mean"], q.mean, atol=1e-5)
    assert table["label"].tolist() == [2]


def test_a_folder_path_is_not_taken_for_a_data_set_of_that_name(small_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for kind in ("train", "test"):
        (tmp_path / "mnist" / kind).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(rng.integers(0, 256, (28, 28), dtype=np.uint8)).save(
                tmp_path / "mnist" / kind / f"{i}.png"
            )
    assert len(encode(small_run, Path("mnist"), split="all", samples=1)["index"]) == 6


def test_other_data_are_converted_to_the_models_size_and_colours(tmp_path):
    rng = np.random.default_rng(0)
    data = random_dataset((3, 6, 10), kind="grey")
    run = fit(tmp_path / "run", data=data, likelihood="logistic")
    np.save(tmp_path / "own.npy", rng.integers(0, 256, (12, 9, 9), dtype=np.uint8))
    assert len(encode(run, tmp_path / "own.npy", split="all", samples=1)["index"]) == 12


def test_labels_that_the_model_does_not_have_are_refused(tmp_path):
    run = fit(tmp_path / "run", "cvae")
    data = random_dataset()
    other = dataclasses.replace(
        data, test=dataclasses.replace(data.test, labels=data.test.labels + 1)
    )
    with pytest.raises(
        UserError, match="conditional on labels 0 to 2, which 'random' does not have"
    ):
        encode(run, other, samples=1)
    with pytest.raises(UserError, match="there are no images to encode"):
        encode(run, [], samples=1)


def test_the_selected_column_precedes_one_named_after_the_latent(run):
    a, b = np.zeros((2, 2)), np.full((2, 2), 3.0)
    assert torch.equal(decode(run, {"z": a, "z_mean": b}), decode(run, {"z": b}))


@pytest.mark.parametrize("label", [["cat", "dog"], [0.5, 1.0], [float("nan"), 0.0], [1e30, 0.0]])
def test_invalid_labels_are_refused(tmp_path, label):
    run = fit(tmp_path / "run", "cvae")
    with pytest.raises(UserError, match="a label of 0 to 2 for each latent"):
        decode(run, {"z": np.zeros((2, 2)), "label": np.array(label)})


def test_numbers_outside_float32_are_refused(run):
    for z in (np.full((1, 2), 1e300), np.full((1, 2), np.inf)):
        with pytest.raises(UserError, match="not finite"):
            decode(run, {"z": z})
    with pytest.raises(UserError, match="has 2 dimensions"):
        decode(run, {"z": np.zeros((1, 2), complex)})


@pytest.mark.parametrize(
    "text", ["\ufeffz_0,z_1\n1,2\n", "z_0, z_1\r\n1,2\r\n", "z_0;z_1\n1;2\n", "z_0,z_1\n1,2\n\n", '"z_0","z_1"\n1,2']
)  # fmt: skip
def test_tables_that_spreadsheets_write_are_read(tmp_path, text):
    (tmp_path / "a.csv").write_text(text, encoding="utf-8", newline="")
    assert read_table(tmp_path / "a.csv")["z"].tolist() == [[1.0, 2.0]]


def test_tables_without_rows_or_with_a_huge_field_are_refused(tmp_path):
    path = tmp_path / "a.csv"
    for text, message in (
        ("", "no rows below"),
        ("z_0\n", "no rows below"),
        ("z_0\n" + "1" * 200_000, "cannot be read"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            read_table(path)


def test_data_that_changed_are_refused(tmp_path, small_run, small_mnist, monkeypatch):
    from vaekit.data.sources.named import READERS

    changed = dataclasses.replace(small_mnist, test=small_mnist.validation)
    monkeypatch.setitem(READERS, "mnist", lambda *_: changed)
    with pytest.raises(UserError, match=r"not the one .* was trained on"):
        encode(small_run, samples=1)


def test_a_folder_that_is_not_empty_is_not_written_into(tmp_path):
    (tmp_path / "out").mkdir()
    write_images(torch.zeros(1, 1, 2, 2), tmp_path / "out")
    with pytest.raises(UserError, match="name a new folder"):
        write_images(torch.zeros(1, 1, 2, 2), tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="name a new folder"):
        write_images(torch.zeros(1, 1, 2, 2), tmp_path / "file")


def test_a_name_that_ends_in_a_number_is_no_part_of_a_latent(run):
    z = {"z_0": np.zeros(2), "z_1": np.ones(2), "run_7": np.zeros(2)}
    assert torch.equal(decode(run, join_columns(z)), decode(run, {"z": np.array([[0.0, 1.0]] * 2)}))
