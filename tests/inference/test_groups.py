"""What users do with the groups of a deep hierarchy, and with the latents of an hvae: exact answers by hand."""

import itertools

import numpy as np
import pytest
import torch

from conftest import random_dataset, small_settings
from vaekit import UserError, build, decode, encode, load, train
from vaekit.data import eval_split
from vaekit.inference.generation import generate, reconstruct, temperatures
from vaekit.inference.latent_space import decode_latents
from vaekit.inference.tables import read_table, write_table

TOP = {"deepvae": "z1_0", "hvae": "z2"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    data = random_dataset(shape=(1, 8, 8))
    trained = {}
    for name in TOP:
        more = {"groups": "1x2:2 2x1:1"} if name == "deepvae" else {}
        model = build(name, data, **small_settings(name, **more))
        folder = tmp_path_factory.mktemp("runs") / name
        trained[name] = train(model, data, out=folder, epochs=1, batch_size=10, progress=False)
    return trained


@pytest.fixture(params=TOP)
def name(request):
    return request.param


@pytest.fixture
def model(runs, name):
    return load(runs[name])


@torch.no_grad()
def path_of_means(model, values, fixed):
    """Decode with the latents of `fixed`, and the others at the means of their priors, one after the other."""
    for name, prior in model.prior.items():
        values[name] = fixed[name] if name in fixed else prior(values).expand((4,)).mean
    return model.decoder({k: values[k] for k in ("x", "y", *model.prior)}).mean


@torch.no_grad()
def test_a_reconstruction_from_some_latents_has_the_others_at_their_prior_means(model):
    x = random_dataset(shape=(1, 8, 8)).test.images[:4].float()
    codes = {name: q.mean for name, q in model.posteriors(model.given(x, None)).items()}
    names, seen = [*codes], []
    for count in range(1, len(names) + 1):
        top = {name: codes[name] for name in names[:count]}
        expected = path_of_means(model, model.given(None, None), top)
        seen.append(reconstruct(model, x, groups=count))
        assert torch.allclose(seen[-1], expected, atol=1e-6)
    assert torch.allclose(seen[-1], reconstruct(model, x), atol=1e-6)
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(seen))


@torch.no_grad()
def test_temperature_0_is_the_path_of_prior_means(model):
    expected = path_of_means(model, model.given(None, None), {})
    for cold in (0, "0", ",".join(f"{name}=0" for name in model.prior)):
        assert torch.allclose(generate(model, 4, cold), expected, atol=1e-6)


def test_temperatures_of_1_by_latent_are_the_plain_samples(model):
    every = ",".join(f"{name}=1" for name in model.prior)
    assert torch.equal(generate(model, 5, every, seed=3), generate(model, 5, seed=3))


def test_a_temperature_changes_its_own_latent_alone(model, name):
    @torch.no_grad()
    def sampled(chosen):
        torch.manual_seed(0)
        return model.sample_latents(6, None, temperatures(model, chosen), None)

    cold, values = sampled(f"{TOP[name]}=0"), model.given(None, None)
    torch.manual_seed(0)
    for (
        latent,
        prior,
    ) in model.prior.items():  # the same noise, around the means of the path of the cold latent
        with torch.no_grad():
            p = prior(values).expand((6,))
        sample = p.sample()
        values[latent] = p.mean if latent == TOP[name] else sample
        assert torch.allclose(cold[latent], values[latent], atol=1e-6)
    assert not torch.equal(sampled(1.0)[TOP[name]], cold[TOP[name]])


def test_a_resolution_names_all_of_its_groups(runs):
    model = load(runs["deepvae"])
    assert temperatures(model, "1=0.5, 2=0") == {"z1_0": 0.5, "z1_1": 0.5, "z2_0": 0.0}
    assert temperatures(model, "z1_1=0.5") == {"z1_1": 0.5}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("3=0.5", "3=0.5 names no latent"),
        ("1=0.5,z1_0=1", "z1_0 has a temperature twice"),
        ("1=warm", "temperature is warm"),
        ("1=-1", "0 or a positive number"),
        ("1=0.5,0.7", "0.7 names no latent"),
        ("inf", "0 or a positive number"),
        ({"z": 1.0}, "there is no latent 'z'"),
    ],
)
def test_other_temperatures_are_refused(runs, text, message):
    with pytest.raises(UserError, match=message):
        generate(load(runs["deepvae"]), 2, text)


def test_groups_out_of_range_are_refused(runs):
    x = torch.zeros(1, 1, 8, 8)
    for groups in (0, 4):
        with pytest.raises(UserError, match="the model has 1 to 3"):
            reconstruct(load(runs["deepvae"]), x, groups=groups)
    with pytest.raises(UserError, match="has one"):
        reconstruct(build("vae", (1, 8, 8)), x, groups=1)


def test_samples_in_batches_are_the_same_as_at_once_but_for_their_noise(runs, monkeypatch):
    model = load(runs["deepvae"])
    at_once = generate(model, 6, 0)
    monkeypatch.setattr("vaekit.inference.generation.batch_size", lambda model: 4)
    assert torch.allclose(generate(model, 6, 0), at_once, atol=1e-6)
    warm = generate(model, 6)
    assert warm.shape == at_once.shape
    assert len(warm.unique(dim=0)) == 6


@pytest.mark.parametrize("ending", ["npz", "csv"])
def test_decoding_a_table_of_codes_reconstructs(runs, name, tmp_path, ending):
    run, model = runs[name], load(runs[name])
    data = random_dataset(shape=(1, 8, 8))
    table = encode(run, data, samples=2)
    names = [key.removesuffix("_mean") for key in table if key.endswith("_mean")]
    assert names == [*model.prior]
    path = write_table(table, tmp_path / f"codes.{ending}")
    pixels = decode(run, read_table(path))
    seen = eval_split(data.test, runs[name].data.binarisation)[:]
    expected = reconstruct(model, seen.images)
    assert torch.allclose(pixels, expected, atol=1e-5)


def test_a_table_of_more_columns_than_spreadsheets_read_is_no_csv(tmp_path):
    wide = {"z4_0_mean": np.zeros((1, 16_385))}
    with pytest.raises(UserError, match="would have 16,385 columns"):
        write_table(wide, tmp_path / "codes.csv")
    write_table(wide, tmp_path / "codes.npz")


def test_a_table_of_the_top_groups_alone_is_decoded(runs, monkeypatch):
    monkeypatch.setattr("vaekit.settings.model.MAX_CODE", 4)
    run, model = runs["deepvae"], load(runs["deepvae"])
    assert model.blueprint.settings.top_groups((1, 8, 8)) == ("z1_0", "z1_1")
    codes = {name: np.ones((3, 2)) for name in ("z1_0", "z1_1")}
    fixed = {name: torch.ones(3, 2) for name in codes}
    assert torch.equal(decode(run, codes), decode_latents(model, fixed))
    with pytest.raises(UserError, match="no column z1_1_mean"):
        decode(run, {"z1_0": codes["z1_0"]})
