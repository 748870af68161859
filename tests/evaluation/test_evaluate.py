"""`evaluate`: its metrics are of the images that it reports, and its file has the keys that others read."""

import dataclasses
import io
import json
import math
import shutil

import numpy as np
import pytest
import torch
from rich.console import Console

from conftest import random_dataset
from vaekit import Run, UserError, build, evaluate, load, train
from vaekit.data import Split, eval_split
from vaekit.evaluation import evaluate as module
from vaekit.evaluation import metrics
from vaekit.evaluation.frechet import Frechet
from vaekit.likelihood import elbo
from vaekit.support.console import PlainConsole
from vaekit.support.errors import python_names

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
    images = eval_split(small_mnist.test, "dynamic")[:].images
    with torch.no_grad():
        torch.manual_seed(5)
        inference = load(run)(images, samples=(200,))
        nll = -(inference.log_weight.logsumexp(0) - math.log(200))
        exact = (inference.log_likelihood - inference.kl).mean()
        variance = inference.latents["z"].posterior.mean.var(0, correction=0)
    error = math.hypot(result["nll_standard_error"], result["nll_standard_error"])
    assert abs(result["nll"] - nll.mean()) < 4 * error
    assert result["elbo"] == pytest.approx(float(exact), abs=0.2)
    assert result["nll_image_standard_error"] == pytest.approx(
        float(nll.std()) / 200**0.5, rel=0.02
    )
    assert result["bits_per_dim"] == pytest.approx(result["nll"] / 784 / math.log(2))
    assert result["active_units"] == int((variance > 0.01).sum())
    assert result["nll"] < -result["elbo"]


def test_it_is_reproducible_and_keeps_the_global_random_state(run):
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


def test_without_a_limit_it_takes_as_many_images_as_fit_the_time(run, monkeypatch, capsys):
    """With a clock by which 100 images x 10 samples of the ELBO, or 10 x 100 of the NLL, take 1 s."""
    monkeypatch.setattr(elbo, "CHUNK_NUMBERS", 784 * 100 * 10)
    monkeypatch.setattr(module, "TIMED_ROWS", 100 * 10)
    monkeypatch.setattr(module, "TIME_BUDGET", 6.0)
    clock = iter(range(1000))
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock))
    options = {"samples": 100, "metrics": ("elbo", "nll")}
    result = evaluate(run, **options, progress=True)
    # The ELBO may take half of 6 s, and all 200 images take 2 s; the NLL has the rest by this clock, 3 s.
    assert (result["images"], result["nll_images"]) == (200, 30)
    monkeypatch.setattr(module, "TIME_BUDGET", 2.0)
    assert evaluate(run, **options)["images"] == 100
    log = capsys.readouterr().err
    assert "ELBO: 200 of 200 images, about 2 s" in log
    assert "NLL (100 samples per image): 30 of 200 images, about 3 s" in log
    assert "(all 200 images would take about 0 min; pass limit 200 to use all)" in log
    table = metrics.as_table(result)
    assert "of 30 of the images" in "".join(str(c) for k in table.columns for c in k._cells)


@pytest.mark.parametrize("console", [Console, PlainConsole])
def test_brackets_are_printed_as_they_are(run, console):
    result = evaluate(run, samples=3, limit=20, metrics=("elbo",))
    text = io.StringIO()
    console(file=text, width=200).print(metrics.as_table(result))
    assert "E[log p(x | z)]" in text.getvalue()


def test_a_subset_is_chosen_by_the_seed_not_taken_from_the_front(run, small_mnist):
    result = evaluate(run, samples=1, limit=20, seed=3)
    images = eval_split(small_mnist.test, "dynamic")[:].images
    order = np.random.default_rng(3).permutation(200)[:20]
    kl = load(run)(images[order]).kl.mean().item()
    assert result["kl"] == pytest.approx(kl, rel=1e-5)


def test_gaussian_pixels_report_their_scales(tmp_path):
    data = random_dataset(kind="float")
    model = build("vae", data, latent_dim=2, hidden_dim=8, scale=0.125)
    run = train(model, data, out=tmp_path / "a", epochs=1, progress=False)
    result = evaluate(run, samples=3, data=data)
    assert (result["minimum_scale"], result["share_at_floor"]) == (0.125, 0)
    model = build("vae", data, latent_dim=2, hidden_dim=8, scale="each")
    with torch.no_grad():
        bias = model.decoder.network.unfold.bias
        bias[len(bias) // 2 :] -= 1000  # the second half of the outputs are scales
    run = train(model, data, out=tmp_path / "b", epochs=1, learning_rate=1e-12, progress=False)
    result = evaluate(run, samples=3, data=data)
    assert result["minimum_scale"] == pytest.approx(1 / 256)
    assert result["share_at_floor"] == 1
    metrics.as_table(result)


def test_a_diverged_model_is_refused_and_nothing_is_written(run):
    model = load(run)
    with torch.no_grad():
        next(model.parameters()).fill_(math.nan)
    run.save_weights(model)
    for group in metrics.METRIC_GROUPS:
        with pytest.raises(UserError, match=r"the weights of .* are not finite"):
            evaluate(run, samples=3, metrics=(group,))
    assert not (run.path / "evaluation.json").exists()


def test_the_expected_time_is_logged(run, capsys):
    evaluate(run, samples=10, progress=True)
    assert "NLL (10 samples per image): 200 of 200 images, about 0 s" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["grey", "float", "deep"])
def test_bits_per_dim_is_null_for_a_density_only(tmp_path, kind):
    data = random_dataset(kind=kind)
    model = build("vae", data, latent_dim=2, hidden_dim=8)
    run = train(model, data, out=tmp_path / "a", epochs=1, progress=False)
    result = evaluate(run, samples=10, data=data)
    assert (result["bits_per_dim"] is None) == (kind == "float")
    assert result["binarisation"] == "none"
    metrics.as_table(result)


def test_a_run_from_before_data_sets_had_settings_is_read(run, small_mnist):
    before = evaluate(run, samples=2)["elbo"]
    config = json.loads((run.path / "config.json").read_text())
    config["data"] |= {"name": "mnist", "data_dir": None}
    del config["data"]["source"]
    (run.path / "config.json").write_text(json.dumps(config))
    assert evaluate(run.path, samples=2)["elbo"] == before


def test_other_data_is_refused(run, mnist):
    with pytest.raises(UserError, match="not the one"):
        evaluate(run, data=mnist)
    config = json.loads((run.path / "config.json").read_text())
    config["data"]["source"]["data"] = "random"
    (run.path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="there is no data set or folder 'random'"):
        evaluate(run.path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("sha256", None, "lacks 'sha256'"),
        ("name", 3, "name is 3; it must be text"),
        ("binarisation", "dithered", "dynamic or threshold or none"),
    ],
)
def test_a_damaged_record_of_the_data_is_reported(run, key, value, message):
    config = json.loads((run.path / "config.json").read_text())
    config["data"][key] = value
    if value is None:
        del config["data"][key]
    (run.path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        evaluate(run.path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "samples is 0"),
        ({"samples": 1.5}, "a whole number"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**70}, "seed is"),
        ({"limit": 0}, "limit is 0"),
        ({"temperatures": 50}, "temperatures 50 needs estimator ais; leave it out"),
        ({"estimator": "ais", "memory": "2GB"}, "memory 2GB needs estimator importance"),
        ({"split": "tset"}, "split is 'tset'; it must be train or validation or test"),
        ({"device": "cuda:99"}, "not available on this machine"),
    ],
)
def test_bad_settings_are_refused(run, options, message):
    with pytest.raises(UserError, match=message):
        evaluate(run, **options)
    assert not (run.path / "evaluation.json").exists()


def test_one_sample_has_no_error_and_the_file_is_still_json(run):
    result = evaluate(run, samples=1)
    assert result["nll_standard_error"] is None
    assert evaluate(run, samples=2, limit=1)["active_units"] is None
    json.loads((run.path / "evaluation.json").read_text(), parse_constant=pytest.fail)
    metrics.as_table(result)


def test_dropout_is_off(tmp_path):
    data = random_dataset()
    model = build("vae", data, latent_dim=2, hidden_dim=8, dropout=0.5)
    run = train(model, data, out=tmp_path / "a", epochs=1, progress=False)
    images = eval_split(data.test, "dynamic")[:].images
    kl = load(run)(images).kl.mean().item()
    assert evaluate(run, samples=1, data=data)["kl"] == pytest.approx(kl, rel=1e-5)


@pytest.mark.parametrize(("estimator", "chains"), [("ais", 16), ("hmc", 50)])
def test_other_estimators_agree(run, estimator, chains):
    """After 2 epochs the posterior is still simple: all three estimators agree within 0.5 nats."""
    exact = evaluate(run, samples=2000, metrics=("nll",), limit=6)
    own = {"temperatures": 100} if estimator == "ais" else {}
    found = evaluate(run, estimator=estimator, metrics=("nll",), limit=6, **own)
    nulls = {metric.key for metric in metrics.METRIC_GROUPS["nll"] if found[metric.key] is None}
    assert (
        set(found["missing"])
        == nulls
        == (set() if own else {"effective_samples", "nll_standard_error", "nll_bias"})
    )
    assert found["nll"] == pytest.approx(exact["nll"], abs=0.5)
    assert (found["samples"], found["estimator"], found["nll_images"]) == (chains, estimator, 6)
    assert f"({chains} " in {row[0]: row[2] for row in metrics.metric_rows(found)}["NLL"]


def test_annealed_images_are_measured_in_batches(run, monkeypatch):
    """The NLL of an image is minus the logarithm of its mean weight, not a mean of logarithms."""
    seen, weights = [], torch.tensor([[0.0], [-800.0]]).double()

    def annealed(model, batch, *counts, **_):
        seen.append((len(batch), *counts))
        return weights.expand(2, len(batch))

    monkeypatch.setattr(module, "annealed_log_weights", annealed)
    found = evaluate(run, estimator="ais", temperatures=7, metrics=("nll",), limit=150)
    assert seen == [(100, 16, 7), (50, 16, 7)]
    assert found["nll_images"] == 150
    assert found["nll"] == pytest.approx(math.log(2))


def test_a_deterministic_posterior_is_annealed(tmp_path):
    data = random_dataset()
    model = build("mmdvae", data, latent_dim=2, hidden_dim=8, posterior="deterministic")
    run = train(model, data, out=tmp_path / "a", epochs=1, progress=False)
    found = evaluate(run, data=data, metrics=("nll",), estimator="ais", temperatures=10)
    assert math.isfinite(found["nll"])
    assert "nll" in evaluate(run, data=data, metrics=("nll",))["missing"]


def test_only_the_requested_metrics_are_measured(run):
    result = evaluate(run, samples=5, metrics=("reconstruction", "gap"))
    assert result["metrics"] == ["reconstruction", "gap"]
    assert result["squared_error"] > 0
    assert result["elbo_gap"] == pytest.approx(
        result["elbo_train"] - evaluate(run)["elbo"], abs=0.5
    )
    assert result["elbo"] is result["nll"] is result["knn"] is None
    with pytest.raises(UserError, match="metrics is"):
        evaluate(run, metrics=("elbow",))


def test_the_gap_is_the_training_elbo_minus_the_test_elbo(run, monkeypatch):
    found, real = iter([-100.0, -90.0]), module.measure_elbo
    monkeypatch.setattr(
        module, "measure_elbo", lambda *a: dataclasses.replace(real(*a), elbo=next(found))
    )
    found = evaluate(run, metrics=("elbo", "gap"), samples=1, limit=5)
    assert (found["elbo"], found["elbo_train"], found["elbo_gap"]) == (-100, -90, 10)


def test_the_gap_alone_is_of_as_many_images_as_time_allows(run, monkeypatch):
    seen, real = [], module.measure_elbo
    monkeypatch.setattr(module, "affordable_images", lambda *a: 7)
    monkeypatch.setattr(
        module,
        "measure_elbo",
        lambda m, images, *a: seen.append(len(images)) or real(m, images, *a),
    )
    evaluate(run, metrics=("gap",))
    assert seen == [7, 7]


def test_training_images_are_as_many_chosen_by_the_seed_and_binarised_as_in_training(
    run, small_mnist, monkeypatch
):
    seen, real = [], module.measure_elbo

    def recorded(model, images, *arguments):
        seen.append(images[:].images)
        return real(model, images, *arguments)

    monkeypatch.setattr(module, "measure_elbo", recorded)
    evaluate(run, metrics=("elbo", "gap"), samples=2, limit=50)
    train = seen[-1]
    assert len(train) == 50
    assert set(train.unique().tolist()) == {0.0, 1.0}
    assert not torch.equal(train, eval_split(small_mnist.train, "dynamic")[:50].images)


def test_probes_and_clusters_are_fitted_to_training_images(run, monkeypatch):
    seen, real = [], module.measure_clusters
    monkeypatch.setattr(module, "measure_clusters", lambda *a: seen.append(a[1:5]) or real(*a))
    found = evaluate(run, metrics=("probes", "clusters"), limit=50)
    assert found["probe_images"] == 600
    ((images, latents, train, labels),) = seen
    assert len(images) == len(latents) == len(labels) == 50
    assert [len(part) for part in train] == [600, 600]


def test_the_frechet_distance_is_of_the_requested_images(run, monkeypatch):
    seen = []
    monkeypatch.setattr(module, "load_or_train_classifier", lambda *_: None)
    monkeypatch.setattr(
        module, "frechet", lambda *a: seen.append(a[2:]) or Frechet(1, 1, 1, 1, 50, "", 1, "")
    )
    evaluate(run, metrics=("frechet",), split="validation", limit=50, seed=3)
    assert seen == [("validation", None, "dynamic", 50, 3)]


def test_the_nll_falls_with_the_samples_to_its_final_value(run):
    found = evaluate(run, metrics=("nll",), samples=10, limit=50)
    assert found["nll_by_samples"]["10"] == pytest.approx(found["nll"])
    assert found["nll_by_samples"]["1"] > found["nll"]


def test_the_decoder_computes_in_the_requested_precision(run):
    exact, near = (
        evaluate(run, metrics=("nll",), samples=20, limit=20, precision=precision)["nll"]
        for precision in ("float32", "bfloat16")
    )
    assert near != exact
    assert near == pytest.approx(exact, abs=0.5)


def test_exact_bits_have_bits_per_dim_without_binarisation(tmp_path):
    """Pixels of 0 and 1 have a probability; grey ones, as parameters of a Bernoulli, have none."""
    for kind, discrete in (("bits", True), ("grey", False)):
        data = random_dataset(kind=kind)
        model = build("vae", data, likelihood="bernoulli", latent_dim=2, hidden_dim=8)
        out = tmp_path / kind
        run = train(model, data, out=out, epochs=1, binarisation="none", progress=False)
        result = evaluate(run, data=data, samples=5, metrics=("nll",))
        assert result["binarisation"] == "none"
        expected = pytest.approx(result["nll"] / (30 * math.log(2))) if discrete else None
        assert result["bits_per_dim"] == expected


def test_the_nll_names_its_bound():
    e = {"nll": 1.0, "samples": 5, "images": 2, "nll_images": 2}
    for estimator, bound in {
        "importance": "in expectation an upper bound",
        "ais": "in expectation an upper bound",
        "hmc": "in expectation a lower bound if the chains have converged",
    }.items():
        ((_, _, meaning),) = metrics.number_rows({**e, "estimator": estimator})
        assert meaning.endswith(f"; {bound})")


def test_bfloat16_that_changes_the_nll_is_refused(run):
    """With scales of 0.001 an error of bfloat16 in the mean of a pixel costs hundreds of nats."""
    data = random_dataset((3, 8, 8), "grey")
    model = build("convvae", data, latent_dim=2, hidden_dim=8, channels=4)
    with torch.no_grad():
        model.decoder.network.convolutions[-1].bias[3:] = -20.0
    run = train(
        model, data, out=run.path.parent / "b", epochs=1, learning_rate=1e-9, progress=False
    )
    options = {"data": data, "samples": 5, "metrics": ("nll",)}
    with pytest.raises(
        UserError, match=r"of 20 images is off by [\d.e+]+ nats, more than 0.1; leave out"
    ):
        evaluate(run, precision="bfloat16", **options)
    assert not (run.path / "evaluation.json").exists()
    assert evaluate(run, **options)["nll"] > 0
    assert evaluate(run, precision="bfloat16", **{**options, "metrics": ("elbo",)})["elbo"] < 0


def test_unavailable_metrics_are_null_with_a_reason(tmp_path):
    labelled = random_dataset()
    data = labelled.with_splits([Split(split.images) for split in labelled.splits.values()])
    model = build("vae", data, latent_dim=2, hidden_dim=8)
    run = train(model, data, out=tmp_path / "a", epochs=1, progress=False)
    result = evaluate(run, data=data, samples=5)
    assert set(result["missing"]) == {"probes", "clusters", "frechet", "ssim"}
    assert result["linear_probe"] is result["ari"] is result["frechet_samples"] is None
    assert result["units"]["nll"] == "nats"


def test_probes_are_fitted_to_unconditional_latents_of_other_images(run, tmp_path):
    """No probes of latents that are conditioned on the label, nor of the images that probes are fitted to."""
    data = random_dataset()
    model = build("cvae", data, latent_dim=2, hidden_dim=8)
    conditional = train(model, data, out=tmp_path / "a", epochs=1, progress=False)
    found = evaluate(conditional, data=data, metrics=("probes", "clusters"))
    assert set(found["missing"].values()) == {"the posterior is conditioned on the label"}
    found = evaluate(run, metrics=("probes", "clusters"), split="train", limit=50)
    assert set(found["missing"].values()) == {
        "probes and clusters are fitted to the training images"
    }


def test_errors_of_completed_images_are_of_the_hidden_pixels(tmp_path):
    data = random_dataset()
    settings = {"latent_dim": 2, "hidden_dim": 8, "condition": "quadrants:1"}
    run = train(build("cvae", data, **settings), data, out=tmp_path / "a", epochs=1, progress=False)
    found = evaluate(run, data=data, metrics=("reconstruction", "aggregate"))
    hidden = elbo.modelled_pixels(load(run))
    assert hidden < 30
    assert found["psnr"] == pytest.approx(-10 * math.log10(found["squared_error"] / hidden))
    assert set(found["missing"]) == {"ssim", "aggregate"}


def test_every_null_has_its_reason(tmp_path):
    """With a posterior without a density, grey pixels and one image; reasons of earlier evaluations are kept."""
    data = random_dataset()
    model = build("mmdvae", data, latent_dim=2, hidden_dim=8, posterior="deterministic")
    run = train(model, data, out=tmp_path / "a", epochs=1, progress=False, binarisation="none")
    evaluate(run, data=data, samples=1, limit=1, metrics=("elbo", "aggregate"))
    result = evaluate(run, data=data, samples=1, limit=1)
    assert set(result["metrics"]) == set(metrics.METRIC_GROUPS)
    applicable = {m.key: name for name, group in metrics.METRIC_GROUPS.items() for m in group}
    del applicable["minimum_scale"], applicable["share_at_floor"]  # of Gaussian pixels
    for key, name in applicable.items():
        assert result[key] is not None or {key, name} & set(result["missing"]), key
    assert {"elbo", "kl", "active_units", "ssim"} <= set(result["missing"])
    assert all(result[key] is None for key in set(result["missing"]) - set(metrics.METRIC_GROUPS))
    assert result["mmd"] is result["ari"] is None


def test_hmc_is_checked_only_where_the_nll_is_requested(tmp_path):
    data = random_dataset()
    model = build("vae", data, latent_dim=6, hidden_dim=8)
    run = train(model, data, out=tmp_path / "a", epochs=1, progress=False)
    assert evaluate(run, data=data, estimator="hmc", metrics=("elbo", "elbo"))["elbo"] < 0
    with pytest.raises(UserError, match="at most 5 latent dimensions"):
        evaluate(run, data=data, estimator="hmc")


@pytest.mark.parametrize("part", [{"missing": None}, {"metrics": 7}, {"missing": "x"}])
def test_a_damaged_evaluation_is_replaced(run, part):
    file = run.path / "evaluation.json"
    complete = evaluate(run, samples=5, limit=50, metrics=("elbo",))
    file.write_text(json.dumps({**complete, **part}))
    again = evaluate(run, samples=5, limit=50, metrics=("reconstruction",))
    assert again["metrics"] == ["reconstruction"]


def test_memory_is_checked_before_anything_is_measured(run):
    with pytest.raises(UserError, match="memory 0 is not a size"):
        evaluate(run, metrics=("elbo",), memory="0")


def test_further_metrics_are_added_and_other_weights_discard_them(run):
    first = evaluate(run, samples=5, limit=50, metrics=("elbo", "nll"))
    both = evaluate(run, samples=5, limit=50, metrics=("reconstruction",))
    assert both["metrics"] == ["elbo", "nll", "reconstruction"]
    assert (both["nll"], both["nll_by_samples"]) == (first["nll"], first["nll_by_samples"])
    assert both["squared_error"] > 0
    assert json.loads((run.path / "evaluation.json").read_text()) == both
    model = load(run)
    with torch.no_grad():
        next(model.parameters()).mul_(1.5)
    run.save_weights(model)  # other weights
    assert evaluate(run, samples=5, limit=50, metrics=("elbo",))["nll"] is None


@pytest.mark.parametrize(
    "other",
    [
        {"split": "validation"},
        {"seed": 1},
        {"limit": 40},
        {"samples": 6},
        {"precision": "bfloat16"},
        {"estimator": "ais"},
    ],
)
def test_metrics_of_other_settings_are_not_kept(run, other):
    same = {"samples": 5, "limit": 50}
    evaluate(run, **same, metrics=("nll",))
    assert evaluate(run, **{**same, **other}, metrics=("reconstruction",))["nll"] is None


def test_a_low_effective_sample_size_is_warned_of_with_the_remedy(run, tmp_path):
    """A posterior far too narrow: hardly any sample has weight. Samples of the prior show what it misses."""
    with torch.no_grad():
        model = build("vae", random_dataset(), latent_dim=2, hidden_dim=8)
        for name, parameter in model.named_parameters():
            parameter *= 8 if "decoder" in name else 1
        *_, last = (m for m in model.posterior.modules() if isinstance(m, torch.nn.Linear))
        last.bias[2:] = -6.0  # a scale of 1/300
    wrong = train(
        model, random_dataset(), out=tmp_path / "a", epochs=1, learning_rate=1e-9, progress=False
    )
    found = evaluate(wrong, random_dataset(), metrics=("nll",), samples=100)
    assert found["nll_bias"] > 1
    assert found["nll_standard_error"] > found["nll_bias"]
    warning, few = found["warnings"]
    assert warning.startswith(f"the NLL may be {found['nll_bias']:.2f} nats too high: ")
    assert warning.endswith("; try more --samples, or --estimator ais")
    assert few.startswith("the NLL is of only 20 images")
    assert [text for name, _, text in metrics.metric_rows(found) if name == "warning"] == [
        warning,
        few,
    ]
    good = evaluate(run, metrics=("nll",), samples=1000, limit=6)
    assert not any("too high" in text for text in good["warnings"])
    assert 0 < good["nll_bias"] < 0.1


def test_warnings_are_logged_once_and_are_not_in_the_table(run, capsys):
    result = evaluate(run, samples=3, limit=20, metrics=("nll",), progress=True)
    (warning,) = (text for text in result["warnings"] if "only 20 images" in text)
    assert capsys.readouterr().err.count(f"warning: {python_names(warning)}") == 1
    table = metrics.as_table(result)
    assert "warning" not in [str(cell) for cell in table.columns[0]._cells]
    enough = evaluate(run, samples=3, limit=100, metrics=("nll",))
    assert not any("images" in text and "only" in text for text in enough["warnings"])


def test_codes_apart_reach_the_ceiling_of_the_information_and_codes_together_do_not(run):
    """Posteriors that do not overlap say log N whatever the model; of one collapsed, the information is 0."""
    model = load(run)
    *_, last = (m for m in model.posterior.modules() if isinstance(m, torch.nn.Linear))
    with torch.no_grad():
        last.bias[3:] = -9.0  # the log-scales
    run.save_weights(model)
    warned = evaluate(run, metrics=("aggregate",))
    assert warned["mutual_information"] == pytest.approx(math.log(200), abs=0.1)
    assert any("ceiling" in text for text in warned["warnings"])
    with torch.no_grad():
        last.weight.zero_()
    run.save_weights(model)
    assert evaluate(run, metrics=("aggregate",))["warnings"] == []
