"""`evaluate`: its numbers are about the images it names, its file has the keys that others read."""

import json
import math
import shutil

import pytest
import torch

from conftest import random_dataset
from vaekit import Run, UserError, build, evaluate, load, train
from vaekit import evaluation as module
from vaekit.data import freeze

KEYS = {
    "elbo", "log_likelihood", "kl", "nll", "nll_standard_error", "nll_image_standard_error",
    "bits_per_dim", "active_units", "samples", "split", "binarisation",
}  # fmt: skip


@pytest.fixture
def run(small_run, tmp_path, small_mnist):
    return Run(shutil.copytree(small_run, tmp_path / "run"))


def test_numbers_agree_with_the_model_by_hand(run, small_mnist):
    result = evaluate(run, samples=200)
    assert set(result) >= KEYS
    assert json.loads((run.path / "evaluation.json").read_text()) == result
    assert result["elbo"] == pytest.approx(result["log_likelihood"] - result["kl"])
    assert (result["images"], result["nll_images"]) == (200, 200)
    images = freeze(small_mnist.test, "dynamic").images
    with torch.no_grad():
        torch.manual_seed(5)
        inference = load(run)(images, samples=(200,))
        nll = -(inference.log_weight.logsumexp(0) - math.log(200))
        elbo = (inference.log_likelihood - inference.kl).mean()
        spread = inference.latents["z"].posterior.mean.var(0, correction=0)
    error = math.hypot(result["nll_standard_error"], result["nll_standard_error"])
    assert abs(result["nll"] - nll.mean()) < 4 * error
    assert result["elbo"] == pytest.approx(float(elbo), abs=0.2)
    assert result["nll_image_standard_error"] == pytest.approx(
        float(nll.std()) / 200**0.5, rel=0.02
    )
    assert result["bits_per_dim"] == pytest.approx(result["nll"] / 784 / math.log(2))
    assert result["active_units"] == int((spread > 0.01).sum())
    assert result["nll"] < -result["elbo"]


def test_it_is_reproducible_and_leaves_the_noise_alone(run):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first = evaluate(run, samples=10, limit=50)
    assert torch.equal(torch.rand(3), expected)
    second = evaluate(run, samples=10, limit=50)
    other = evaluate(run, samples=10, limit=50, seed=1)
    for result in (first, second, other):
        result.pop("seconds")
    assert first == second != other
    assert first["images"] == first["nll_images"] == 50


def test_without_a_limit_the_nll_takes_what_fits_the_time(run, monkeypatch, capsys):
    monkeypatch.setattr(module, "TIME_BUDGET", 1e-4)
    result = evaluate(run, samples=100, progress=True)
    assert result["images"] == 200
    assert 1 <= result["nll_images"] < 200
    assert "--limit chooses" in capsys.readouterr().err
    table = "".join(
        str(cell) for column in module.as_table(result).columns for cell in column._cells
    )
    assert f"of {result['nll_images']} of the images" in table


def test_the_expected_time_is_said(run, capsys):
    evaluate(run, samples=10, progress=True)
    assert "about 0 s" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["grey", "float"])
def test_bits_per_dim_is_null_for_a_density_only(tmp_path, kind):
    data = random_dataset(kind=kind)
    model = build("vae", data, latent_dim=2, hidden_dim=8)
    run = train(model, data, out=tmp_path / "a", epochs=1, progress=False)
    result = evaluate(run, samples=10, data=data)
    assert (result["bits_per_dim"] is None) == (kind == "float")
    assert result["binarisation"] == "none"
    module.as_table(result)


def test_grey_pixels_as_probabilities_have_no_bits_per_dim(tmp_path):
    data = random_dataset()
    model = build("vae", data, latent_dim=2, hidden_dim=8)
    run = train(model, data, out=tmp_path / "a", epochs=1, binarisation="none", progress=False)
    assert evaluate(run, samples=10, data=data)["bits_per_dim"] is None


def test_other_data_is_refused(run, mnist):
    with pytest.raises(UserError, match="not the one"):
        evaluate(run, data=mnist)
    config = json.loads((run.path / "config.json").read_text())
    config["data"]["name"] = "random"
    (run.path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="there is no data set 'random'"):
        evaluate(run.path)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("sha256", None, "lacks the setting 'sha256'"),
        ("name", 3, "name is 3; it must be text"),
        ("binarisation", "dithered", "dynamic or threshold or none"),
    ],
)
def test_a_damaged_record_of_the_data_is_named(run, key, value, said):
    config = json.loads((run.path / "config.json").read_text())
    config["data"][key] = value
    if value is None:
        del config["data"][key]
    (run.path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=said):
        evaluate(run.path)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"samples": 0}, "--samples is 0"),
        ({"limit": 0}, "--limit is 0"),
        ({"split": "tset"}, "no split 'tset'"),
        ({"device": "cuda:99"}, "not on this machine"),
    ],
)
def test_bad_numbers_are_named(run, options, said):
    with pytest.raises(UserError, match=said):
        evaluate(run, **options)
    assert not (run.path / "evaluation.json").exists()


def test_one_sample_has_no_error_and_the_file_is_still_json(run):
    result = evaluate(run, samples=1)
    assert result["nll_standard_error"] is None
    json.loads((run.path / "evaluation.json").read_text(), parse_constant=pytest.fail)
    module.as_table(result)
