"""Published results: each has a valid training plan and a right verdict."""

import json
import types
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from vaekit import Run, UserError
from vaekit.evaluation.metrics import METRICS
from vaekit.settings.presets import PRESETS
from vaekit.studies import reproduce as module
from vaekit.studies import sweep as sweeps
from vaekit.studies.reproduce import (
    PUBLISHED_RESULTS,
    PublishedResult,
    Reproduction,
    append_to_report,
    fit_to_budget,
    reproduce,
    shorten_plan,
    with_epochs,
)
from vaekit.support.console import ProgressBar
from vaekit.training.plan import Plan


@pytest.mark.parametrize("name", PUBLISHED_RESULTS)
def test_each_result_has_a_valid_plan(name):
    result = PUBLISHED_RESULTS[name]
    plan = Plan.of(**result.plan)
    (metric,) = (metric for metric in METRICS if metric.key == result.metric)
    assert result.better == metric.better
    assert result.tolerance >= 0
    assert result.source
    if result.folder in PUBLISHED_RESULTS:
        assert Plan.of(**PUBLISHED_RESULTS[result.folder].plan) == plan
    if "preset" in result.plan:
        assert result.plan["preset"] in PRESETS


def test_plans_have_the_settings_of_the_papers():
    aevb = Plan.of(**PUBLISHED_RESULTS["aevb-mnist-20"].plan)
    assert (aevb.settings.encoder, aevb.settings.latent_dim) == ("500", 20)
    assert aevb.training.optimizer == "adagrad"
    assert aevb.training.weight_decay == pytest.approx(1 / 50_000)
    assert aevb.training.epochs * 50_000 == 10**7
    frey = Plan.of(**PUBLISHED_RESULTS["aevb-frey-5"].plan)
    assert frey.training.epochs * 1365 == pytest.approx(10**7, rel=1e-3)
    assert frey.training.weight_decay == pytest.approx(1 / 1365, rel=0.01)
    assert frey.data.data == "freyface:aevb"
    hvae = Plan.of(**PUBLISHED_RESULTS["hvae-static"].plan)
    assert (hvae.settings.prior, hvae.data.data) == ("standard", "binarizedmnist")
    assert Plan.of(**PUBLISHED_RESULTS["iwae-50"].plan).objective.samples == 50
    theirs = Plan.of(**PUBLISHED_RESULTS["novicestone-frey-2"].plan)
    assert theirs.training.epochs == 2000
    few, many = (Plan.of(**PUBLISHED_RESULTS[f"aevb-likelihood-{n}"].plan) for n in (1000, 50_000))
    assert (few.training.epochs * 1000, many.training.epochs * 50_000) == (5 * 10**6, 6 * 10**7)
    assert few.training.weight_decay == 1 / 1000
    assert (few.settings.decoder, few.settings.latent_dim, few.data.data) == (
        "100",
        3,
        "mnist:1000",
    )
    deep = Plan.of(**PUBLISHED_RESULTS["vampprior-tf2-hvamp-fashion"].plan)
    assert (deep.settings.network_size, deep.settings.latent_dim, deep.training.epochs) == (
        16,
        1,
        250,
    )
    assert deep.data.data == "fashionmnist"


def test_values_have_the_published_number_of_decimals():
    assert (
        Reproduction("novicestone-frey-20-error", (0.43, 0.44), 1, 1).formatted == "0.4350 ± 0.0071"
    )
    assert Reproduction("vae-dynamic", (84.5,), 1, 1).formatted == "84.50"


def published(better, value=-100.0, tolerance=1.5):
    return PublishedResult("", "", "elbo", value, tolerance, better, {})


@pytest.mark.parametrize(
    ("better", "ours", "reached"),
    [
        ("higher", -101.4, True),
        ("higher", -101.6, False),
        ("higher", -50.0, True),
        ("lower", -98.6, True),
        ("lower", -98.4, False),
    ],
)
def test_within_is_no_worse_than_the_tolerance(better, ours, reached):
    assert published(better).is_reached(ours) is reached


def test_an_unknown_name_suggests_another():
    with pytest.raises(UserError, match="did you mean 'aevb-mnist-20'"):
        reproduce("aevb-mnist-21")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seeds": 0}, "seeds is 0; it must be at least 1"),
        ({"seeds": 1.5}, "seeds is 1.5; it must be a whole number"),
        ({"seeds": 1001}, "seeds is 1001; it must be at most 1,000"),
        *(({"budget": value}, "budget is .* must be a positive number")
          for value in ("30m", -1, 0, True, float("nan"), float("inf"))),
    ],
)  # fmt: skip
def test_seeds_and_budget_are_checked_in_python_too(settings, message, tmp_path):
    with pytest.raises(UserError, match=message):
        reproduce("vae-dynamic", out=tmp_path / "runs", **settings)
    assert not (tmp_path / "runs").exists()


def test_each_result_has_its_own_evaluation_and_seeds_share_the_budget(monkeypatch, tmp_path):
    seconds, evaluations = [], []

    def sweep(plans, folder, progress, **settings):
        evaluations.append(settings)
        return [types.SimpleNamespace(evaluation={"many_to_one": 0.9, "nll": 80.0}) for _ in plans]

    monkeypatch.setattr(module, "fit_to_budget", lambda plan, s, *_: seconds.append(s) or plan)
    monkeypatch.setattr(sweeps, "sweep", sweep)
    reproduce("gmvae-10", seeds=3, budget=60, out=tmp_path)
    reproduce("vae-static", out=tmp_path)
    reproduce("mmdvae-mnist", out=tmp_path)
    assert seconds == [20]
    common = {"split": "test", "samples": 5000, "limit": 10_000}
    assert evaluations == [
        {**common, "metrics": ("elbo", "clusters")},
        {**common, "metrics": ("elbo", "nll")},
        {**common, "metrics": ("nll",), "estimator": "ais", "limit": 100},
    ]


@pytest.fixture
def small(monkeypatch):
    plan = {
        "model": "vae",
        "data": "digits",
        "epochs": 4,
        "hidden_dim": 8,
        "latent_dim": 2,
        "kl_warmup": 2.0,
        "lr_warmup": 2.0,
    }
    monkeypatch.setitem(
        PUBLISHED_RESULTS,
        "small",
        PublishedResult("digits", "nobody", "nll", 25.0, 5.0, "lower", plan, samples=10),
    )


def test_a_result_is_trained_evaluated_and_reported(small, tmp_path):
    outcome = reproduce("small", seeds=2, out=tmp_path / "runs", progress=False)
    runs = [Run(tmp_path / "runs" / "small" / f"seed-{seed}") for seed in (0, 1)]
    assert outcome.values == tuple(run.evaluation["nll"] for run in runs)
    assert outcome.values[0] != outcome.values[1]
    assert all(run.evaluation["split"] == "test" for run in runs)
    assert all(run.evaluation["samples"] == 10 for run in runs)
    assert len(runs[0].metrics) == outcome.epochs == outcome.planned_epochs == 4
    report = tmp_path / "deep" / "report.md"
    append_to_report(outcome, report)
    append_to_report(outcome, report)
    *_, first, second = report.read_text().splitlines()
    assert first == second
    assert f"| `small` | nll | **{outcome.mean:.2f} ± " in first
    assert "| 25 | 5 | " in first


def test_a_missing_metric_gives_its_reason(small, tmp_path, monkeypatch):
    plan = {"model": "infovae", "posterior": "deterministic", "data": "digits", "epochs": 1, "hidden_dim": 8,
            "latent_dim": 2, "alpha": 1.0}  # fmt: skip
    monkeypatch.setitem(PUBLISHED_RESULTS, "small", replace(PUBLISHED_RESULTS["small"], plan=plan))
    with pytest.raises(UserError, match=r"seed-0 has no nll .*: the posterior is one point"):
        reproduce("small", out=tmp_path / "runs", progress=False)
    monkeypatch.setitem(
        PUBLISHED_RESULTS, "small", replace(PUBLISHED_RESULTS["small"], metric="elbo", plan=plan)
    )
    with pytest.raises(UserError, match=r"seed-0 has no elbo .*: the posterior is one point"):
        reproduce("small", out=tmp_path / "runs", progress=False)


def test_help_explains_the_budget(vaekit):
    _, out, _ = vaekit("reproduce", "--help")
    assert "Training time for all of them" in out


def test_a_budget_shortens_the_training_and_its_warm_ups(small, tmp_path, monkeypatch):
    plan = Plan.of(**PUBLISHED_RESULTS["small"].plan)
    seconds = iter([1.0, 0.01])
    real = module.Plan.train

    def timed(self, *arguments, **options):
        run = real(self, *arguments, **options)
        lines = [{**line, "seconds": next(seconds)} for line in run.metrics]
        (run.path / "metrics.jsonl").write_text("".join(json.dumps(e) + "\n" for e in lines))
        return run

    monkeypatch.setattr(module.Plan, "train", timed)
    short = shorten_plan(plan, 2.5, ProgressBar(False)).training
    assert (short.epochs, short.schedule) == (2, "cosine")
    assert short.kl_warmup == short.lr_warmup == 1.0
    assert shorten_plan(plan, 2.5, ProgressBar(False)) == plan


@pytest.mark.parametrize("damage", ['"x"', "0", "-3", "2.5", "true", "null", "NaN", "[2]"])
def test_an_invalid_number_of_epochs_is_measured_again(damage, small, tmp_path, monkeypatch):
    plan = Plan.of(**PUBLISHED_RESULTS["small"].plan)
    monkeypatch.setattr(module, "shorten_plan", lambda *_: with_epochs(plan, 3))
    file = tmp_path / "budgets.json"
    file.write_text(f'{{"1.0": {damage}, "2.0": {damage}, "4.0": 2}}')
    assert fit_to_budget(plan, 1.0, tmp_path, ProgressBar(False)).training.epochs == 3
    assert json.loads(file.read_text()) == {"1.0": 3, "4.0": 2}
    assert fit_to_budget(plan, 4.0, tmp_path, ProgressBar(False)).training.epochs == 2


def test_a_budget_is_timed_once(monkeypatch, tmp_path):
    plan, epochs = Plan.of("vae", epochs=100), iter([7, 9])
    monkeypatch.setattr(module, "shorten_plan", lambda plan, *_: with_epochs(plan, next(epochs)))
    fitted = [
        fit_to_budget(plan, seconds, tmp_path, ProgressBar(False)).training.epochs
        for seconds in (60.0, 60.0, 30.0, 60.0)
    ]
    assert fitted == [7, 7, 9, 7]


def test_a_shortened_training_is_reported(tmp_path):
    outcome = Reproduction("vae-dynamic", (84.5,), 700, 2000)
    append_to_report(outcome, tmp_path / "report.md")
    assert "| 84.45 | 0.3 | yes | 700 of 2,000 |" in (tmp_path / "report.md").read_text()


def test_an_unwritable_report_is_refused_before_the_training(vaekit, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "reproduce", lambda *_: pytest.fail("it was trained"))
    (tmp_path / "folder").mkdir()
    (tmp_path / "binary.md").write_bytes(b"\xff\xfe")
    (tmp_path / "file").touch()
    for report in ("folder", "", "/dev/null", "binary.md", "file/r.md", "/proc/nowhere/r.md"):
        code, out, err = vaekit("reproduce", "vae-dynamic", "--report", report)
        assert (code, out) == (2, "")
        assert str(Path(report)) in err
        assert "--report" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["binary.md", "file", "folder"]


def test_the_outcome_is_printed_even_if_the_report_fails(vaekit, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "r.md")

    monkeypatch.setattr(module, "reproduce", lambda name, *_: Reproduction(name, (84.5,), 1, 1))
    monkeypatch.setattr(module, "append_to_report", full)
    code, out, err = vaekit("reproduce", "vae-dynamic", "--report", "r.md")
    assert (code, err) == (2, "vaekit: r.md: No space left on device\n")
    first, second = out.splitlines()
    assert first.startswith("vae-dynamic: nll 84.50; published 84.45")
    assert second == f"differs: {PUBLISHED_RESULTS['vae-dynamic'].differences}"


def test_concurrent_appends_lose_no_line(tmp_path):
    outcomes = [Reproduction("vae-dynamic", (float(value),), 1, 1) for value in range(40)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(append_to_report, outcomes, [tmp_path / "report.md"] * len(outcomes)))
    lines = (tmp_path / "report.md").read_text().splitlines()
    assert all(any(f"**{value}.00**" in line for line in lines) for value in range(40))
    assert len(lines) == len(module.HEADER.splitlines()) + 40


def test_a_report_without_a_last_newline_gets_one(tmp_path):
    (tmp_path / "report.md").write_bytes("| ± |\r\n| last |".encode())
    append_to_report(Reproduction("vae-dynamic", (84.5,), 1, 1), tmp_path / "report.md")
    content = (tmp_path / "report.md").read_bytes()
    assert content.startswith("| ± |\r\n| last |\n| 2".encode())
