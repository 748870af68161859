"""Comparison table of runs: exact means and errors, bold only for significant differences, four output formats."""

import csv
import io
import itertools
import json
import math
import statistics

import numpy as np
import pytest
import scipy.stats
from rich.console import Console

from conftest import random_dataset
from vaekit import Run, UserError, build, train
from vaekit.evaluation.metrics import METRICS
from vaekit.studies.compare import (
    PAD,
    Cell,
    Metric,
    as_csv,
    as_latex,
    as_markdown,
    as_terminal,
    best_cell,
    format_cells,
    rank,
    significantly_different,
    write,
)

NLL = Metric(
    "nll", "NLL", "nats", "", "lower", 2, "nll_standard_error", depends_on=("samples", "nll_images")
)
ELBO = Metric("elbo", "ELBO", "nats", "", "higher", 1)
KNN = Metric("knn", "k-NN", "%", "", "higher", 1, "knn_error")
UNITS = Metric("active_units", "active units", digits=0)


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    """config.json by model."""
    out, data = tmp_path_factory.mktemp("models"), random_dataset()
    return {
        name: train(
            build(name, data, latent_dim=2, hidden_dim=8), data, out=out / name, epochs=1, progress=False
        ).config
        for name in ("vae", "hvae")
    }  # fmt: skip


@pytest.fixture
def make(configs, tmp_path):
    """Make a run directory of config.json with changed settings, and evaluation.json unless `metrics` is empty."""

    def make_run(folder, metrics, seed=0, model="vae", data=(), init=None, **settings):
        config = json.loads(json.dumps(configs[model]))
        config["model"]["settings"] |= settings
        config["model"]["seed"] = config["training"]["seed"] = seed
        config["data"] |= dict(data)
        config["init"] = init
        path = tmp_path / folder
        path.mkdir()
        (path / "config.json").write_text(json.dumps(config))
        about = {"split": "test", "images": 20, "nll_images": 20, "samples": 100, "seed": 0}
        if metrics:
            (path / "evaluation.json").write_text(json.dumps(about | metrics))
        return Run(path)

    return make_run


@pytest.fixture
def several(make):
    """Make runs of two settings with one seed per value."""

    def make_runs(first, second, key="nll", **more):
        return [
            make(f"{dim}-{seed}", {key: value, **more}, seed=seed, latent_dim=dim)
            for dim, values in ((2, first), (3, second))
            for seed, value in enumerate(values)
        ]

    return make_runs


def bold(table):
    return [[False if c is None else c.bold for c in row.cells] for row in table.rows]


def cell(mean, error, count=3):
    return Cell(mean, None if count == 1 else error * math.sqrt(count), count, error)


def test_seeds_are_one_row_of_means_and_standard_deviations(several):
    table = rank(several([98.0, 99.0, 101.5], [90.0, 92.0]), [NLL])
    assert table.settings == ("latent_dim",)
    assert table.header == ["latent dim", "seeds", "NLL, nats"]
    assert [(row.settings, row.seeds) for row in table.rows] == [((2,), 3), ((3,), 2)]
    (first,), (second,) = (row.cells for row in table.rows)
    assert first.mean == pytest.approx(99.5, abs=1e-12)
    assert first.sd == pytest.approx(math.sqrt((1.5**2 + 0.5**2 + 2**2) / 2), abs=1e-12)
    assert first.error == pytest.approx(first.sd / math.sqrt(3), abs=1e-12)
    assert (second.mean, second.sd, second.count) == (91.0, pytest.approx(math.sqrt(2)), 2)
    assert (first.text, second.text) == ("99.50 ± 1.80", "91.00 ± 1.41")


def test_a_single_seed_has_its_own_error(make):
    table = rank([make("a", {"nll": 98.0, "nll_standard_error": 0.25, "elbo": -99})], [NLL, ELBO])
    assert table.rows[0].cells == (
        Cell(98.0, None, 1, 0.25, "98.00"),
        Cell(-99.0, None, 1, None, "-99.0"),
    )
    assert not any("±" in note for note in table.notes)


def test_only_settings_that_differ_are_columns(make):
    metrics = {"nll": 1.0}
    plain = make("plain", metrics)
    assert rank([plain], [NLL]).settings == ("model",)
    assert rank([plain, make("seed", metrics, seed=1)], [NLL]).rows[0].settings == ("vae",)
    table = rank(
        [plain, make("wide", metrics, hidden_dim=9), make("parts", metrics, components=3, prior="mixture")],
        [NLL],
    )  # fmt: skip
    assert table.settings == ("prior", "components", "hidden_dim")
    assert [row.settings for row in table.rows] == [
        ("standard", None, 8),
        ("standard", None, 9),
        ("mixture", 3, 8),
    ]
    assert [text for text, _ in table.grid[0][:4]] == ["standard", "-", "8", "1"]


def test_model_specific_settings_are_not_columns(make):
    table = rank([make("a", {"nll": 1.0}), make("b", {"nll": 2.0}, model="hvae")], [NLL])
    assert table.settings == ("model",)
    assert [row.settings for row in table.rows] == [("vae",), ("hvae",)]


@pytest.mark.parametrize(("better", "best"), [("higher", 1), ("lower", 0), (None, None)])
def test_better_is_higher_or_lower(better, best):
    assert best_cell([cell(1.0, 0.01), cell(2.0, 0.01), None], better) == best


def test_bold_needs_a_difference_above_its_error(several):
    # Two seeds each of standard deviation 1: the error of the difference is 1, v = 2, t = 4.3027.
    half = math.sqrt(0.5)
    for difference, significant in ((4.302, False), (4.304, True)):
        first, second = cell(90.0, half, 2), cell(90.0 + difference, half, 2)
        assert (
            significantly_different(first, second)
            == significantly_different(second, first)
            == significant
        )
    runs = several([90 - half, 90 + half], [94.31 - half, 94.31 + half])
    table = rank(runs, [NLL])
    assert bold(table) == [[True], [False]]
    assert any(note.startswith("bold:") for note in table.notes)
    path = runs[2].path / "evaluation.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"nll": 94.2 - half}))
    table = rank(runs, [NLL])
    assert bold(table) == [[False], [False]]
    assert not any(note.startswith("bold") for note in table.notes)


def test_the_rule_over_seeds_is_welchs_test():
    generator = np.random.default_rng(0)
    seen = set()
    for _ in range(200):
        a, b = (
            generator.normal(m, s, n) for m, s, n in ((0, 1, generator.integers(2, 6)), (2, 3, 4))
        )
        expected = scipy.stats.ttest_ind(a, b, equal_var=False).pvalue < 0.05
        cells = [cell(x.mean(), statistics.stdev(x) / math.sqrt(len(x)), len(x)) for x in (a, b)]
        assert significantly_different(*cells) == expected
        seen.add(bool(expected))
    assert seen == {True, False}


def test_equal_settings_are_rarely_bold():
    """Of three equal groups of three seeds one is bold in at most 5% (400 tables of a fixed seed; the probability of
    more than 8% if it were 5% is 0.5%)."""
    generator = np.random.default_rng(1)
    found = 0
    for values in generator.normal(size=(400, 3, 3)):
        cells = [cell(v.mean(), v.std(ddof=1) / math.sqrt(3)) for v in values]
        found += best_cell(cells, "higher") is not None
    assert found / 400 <= 0.08


def test_one_tie_with_the_best_leaves_none_bold():
    beaten = cell(1.0, 0.1)
    assert best_cell([cell(5.0, 0.1), beaten, cell(4.9, 0.1)], "higher") is None
    assert best_cell([cell(5.0, 0.1), beaten, cell(2.0, 0.1)], "higher") == 0
    # Significantly better than the second, but not than a third with a larger error.
    assert best_cell([cell(5.0, 0.1), cell(4.0, 0.1), cell(3.0, 2.0)], "higher") is None
    assert best_cell([beaten], "higher") is None
    assert best_cell([cell(5.0, 0.1), cell(5.0, 0.1)], "higher") is None


def test_runs_of_one_seed_are_distinguished_by_their_own_errors(several):
    # With errors 0.3 and 0.4 the threshold is 0.5 x 1.96 = 0.98.
    assert significantly_different(cell(0.981, 0.3, 1), cell(0.0, 0.4, 1))
    assert not significantly_different(cell(0.979, 0.3, 1), cell(0.0, 0.4, 1))
    table = rank(several([90.0], [91.0], nll_standard_error=0.3), [NLL])
    assert bold(table) == [[True], [False]]
    assert "bold with one seed is for that run only: seeds may differ by more" in table.notes


@pytest.mark.parametrize(("bias", "significant"), [(0.0, True), (0.5, True), (0.97, False)])
def test_nothing_is_bold_whose_difference_may_be_bias(several, bias, significant):
    """The worse NLL may be too high by its bias, which the spread over seeds does not show."""
    first, second = [90.0, 90.01], [91.0, 91.01]
    runs = several(first, second, nll_bias=bias, nll_standard_error=0.01)
    for run in runs:
        stored = json.loads((run.path / "evaluation.json").read_text())
        text = json.dumps(stored | {"bits_per_dim": stored["nll"] / 100})
        (run.path / "evaluation.json").write_text(text)
    found = {m.key: m for m in METRICS}
    table = rank(runs, [found["nll"], found["bits_per_dim"]])
    assert bold(table) == [[significant] * 2, [False] * 2]
    notes = {row.cells[0].note for row in table.rows}
    assert notes == ({f"may be {bias:.2f} too high"} if bias else {""})


def test_nothing_is_bold_with_an_unknown_error(several):
    table = rank(several([90.0], [191.0], nll_image_standard_error=0.01), [NLL, ELBO])
    assert bold(table) == [[False], [False]]
    assert not significantly_different(
        cell(9.0, 0.1, 3), cell(1.0, 0.1, 1)
    )  # the second has no variance over seeds
    assert not significantly_different(
        cell(9.0, 0.0, 3), cell(1.0, 0.0, 3)
    )  # equal integers over all seeds
    assert significantly_different(cell(9.0, 0.0, 3), cell(1.0, 0.1, 3))


def test_values_that_are_null_are_left_out_and_others_refused(make):
    for value in (True, "3", [1.0]):
        wrong = make(f"wrong{value}", {"knn": value})
        with pytest.raises(UserError, match=r"evaluation\.json: knn is .*; it must be a number or"):
            rank([wrong])
    runs = [
        make("a", {"nll": 90.0, "elbo": None, "knn": None, "active_units": None}),
        make("b", {"nll": None, "knn": 0.5}, latent_dim=3),
        make("c", {"knn": 0.75}, latent_dim=4),
    ]
    table = rank(runs, [NLL, ELBO, KNN, UNITS, Metric("absent", "absent")])
    assert table.metrics == (NLL, KNN)
    assert [[c and c.mean for c in row.cells] for row in table.rows] == [
        [90.0, None],
        [None, 0.5],
        [None, 0.75],
    ]
    assert [text for text, _ in table.grid[1]] == ["3", "1", "-", "0.5"]


def test_a_metric_of_fewer_seeds_has_a_note(make):
    runs = [
        make("a", {"nll": 90.0, "knn": 0.5}, seed=0),
        make("b", {"nll": 92.0}, seed=1),
        make("c", {"nll": 94.0, "knn": 0.7}, seed=2),
    ]
    table = rank(runs, [NLL, KNN])
    assert [c.count for c in table.rows[0].cells] == [3, 2]
    assert [text for text, _ in table.grid[0]][2:] == ["92.00 ± 2.00", "0.6 ± 0.1 [1]"]
    assert table.footnotes[0] == "[1] 2 of 3 seeds"


def test_runs_not_evaluated_have_dashes_and_a_note(make):
    runs = [
        make("a", {"nll": 90.0}),
        make("b", {}, seed=1),
        make("c", {}, latent_dim=3),
    ]
    table = rank(runs, [NLL])
    assert [[text for text, _ in row] for row in table.grid] == [
        ["2", "1", "90.00"],
        ["3", "0", "-"],
    ]
    assert table.notes == tuple(f"not evaluated yet: vaekit evaluate {run}" for run in runs[1:])
    with pytest.raises(
        UserError,
        match=f"no evaluation to compare; {runs[1]}: not evaluated yet: vaekit evaluate {runs[1]}",
    ):
        rank(runs[1:], [NLL])
    with pytest.raises(UserError, match="there are no runs"):
        rank([], [NLL])


def test_runs_not_evaluated_are_compared_by_the_validation_of_their_saved_weights(make):
    """The evaluated columns stay apart from the validation ones, which all runs have."""
    runs = [
        make("a", {"nll": 90.0}),
        make("b", {}, seed=1),
        make("c", {}, latent_dim=3),
    ]
    for run, values in zip(runs, ((-95.0, -91.0), (-93.0, -99.0), (-88.0, -87.0)), strict=True):
        for number, value in enumerate(values, 1):
            best = value == max(values[:number])
            run.append_metrics({"epoch": number, "validation_elbo": value, "best": best})
    table = rank(runs, [NLL])
    assert table.header == ["latent dim", "seeds", "validation ELBO, nats", "NLL, nats"]
    assert [[text.replace(PAD, "") for text, _ in row] for row in table.grid] == [
        ["2", "2", "-92.00 ± 1.41", "90.00 [1]"],
        ["3", "1", "-87.00", "-"],
    ]
    assert "1 of 2 seeds" in table.footnotes[0]
    assert not any(bold for row in table.grid for _, bold in row)
    assert table.notes[-2:] == tuple(f"not evaluated yet: vaekit evaluate {r}" for r in runs[1:])
    assert rank(runs[1:], [NLL]).header[-1] == "validation ELBO, nats"
    assert [m.key for m in rank(runs[:1], [NLL]).metrics] == ["nll"]


def test_a_run_and_a_seed_count_once(make, tmp_path):
    first, again = make("a", {"nll": 90.0}), make("b", {"nll": 92.0})
    make("c", {"nll": 94.0}, seed=1)
    table = rank([first, again, str(first), str(tmp_path / "b" / ".." / "c")], [NLL])
    assert (table.rows[0].seeds, table.rows[0].cells[0].mean) == (2, 92.0)
    notes = [note for note in table.notes if note.startswith("not counted")]
    assert notes == [f"not counted (same settings and seed as another run): {again}"]


def test_another_model_seed_is_another_seed(make):
    first, second = make("a", {"nll": 90.0}), make("b", {"nll": 92.0})
    config = json.loads((second.path / "config.json").read_text())
    config["model"]["seed"] = 1
    (second.path / "config.json").write_text(json.dumps(config))
    (row,) = rank([first, Run(second.path)], [NLL]).rows
    assert (row.seeds, row.cells[0].mean) == (2, 91.0)


def test_a_run_not_evaluated_does_not_replace_one_of_its_seed(make):
    (row,) = rank([make("a", {}), make("b", {"nll": 92.0})], [NLL]).rows
    assert (row.seeds, row.cells[0].mean) == (1, 92.0)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"metrics": {"split": "train"}},
            "the split of one is train, of the other test; evaluate both",
        ),
        (
            {"metrics": {"images": 19}},
            "the number of images of one is 19, of the other 20; evaluate both",
        ),
        (
            {"data": {"sha256": "f" * 64}},
            r"the data set of one is random \(ffffffff\), .*; leave one out",
        ),
        ({"data": {"binarisation": "threshold"}}, "the binarisation of one is threshold"),
        ({"likelihood": "continuous-bernoulli"}, "the likelihood of one is continuous-bernoulli"),
    ],
)
def test_different_images_are_not_compared(make, other, message):
    first = make("first", {"nll": 90.0})
    second = make("second", {"nll": 91.0, **other.pop("metrics", {})}, **other)
    with pytest.raises(UserError, match=f"second and .*first cannot be compared: {message}"):
        rank([first, second], [NLL])


def test_the_seed_matters_only_where_a_subset_is_evaluated(make):
    complete = [make("a", {"nll": 90.0, "seed": 0}), make("b", {"nll": 91.0, "seed": 1})]
    assert len(rank(complete, [NLL]).rows) == 1
    for key in ("images", "nll_images"):
        a, b = (make(f"{key}-{s}", {"nll": 90.0, "images": 20, key: 10, "seed": s}) for s in (0, 1))
        with pytest.raises(
            UserError, match="the seed that chose the images of one is 1, of the other 0"
        ):
            rank([a, b], [NLL])  # fmt: skip


def test_runs_with_fewer_nll_images_are_compared_with_a_note(make):
    runs = [make("a", {"nll": 90.0}), make("b", {"nll": 91.0, "nll_images": 10}, latent_dim=3)]
    table = rank([*runs, make("c", {"elbo": -95.0, "nll_images": 0}, latent_dim=4)], [NLL])
    assert len(table.rows) == 3
    assert [row.cells[0] and row.cells[0].note for row in table.rows] == [
        "samples 100, nll images 20",
        "samples 100, nll images 10",
        None,
    ]


def test_other_sample_counts_are_marked_and_not_bold(several):
    runs = several([90.0, 90.1, 90.2], [99.0, 99.1, 99.2], elbo=-100.0)
    assert bold(rank(runs, [NLL]))[0] == [True]
    path = runs[5].path / "evaluation.json"
    path.write_text(path.read_text().replace('"samples": 100', '"samples": 5'))
    table = rank(runs, [NLL, ELBO])
    assert bold(table) == [[False, False]] * 2
    assert [[text for text, _ in row][2:] for row in table.grid] == [
        ["90.10 ± 0.10 [1]", "-100.0 ± 0.0"],
        ["99.10 ± 0.10 [2]", "-100.0 ± 0.0"],
    ]
    assert table.footnotes[:2] == [
        "[1] samples 100, nll images 20",
        "[2] samples 100 and 5, nll images 20",
    ]


@pytest.mark.parametrize(
    ("metric", "key"),
    [
        *itertools.product(
            ("nll", "bits_per_dim"),
            ("samples", "estimator", "nll_images", "temperatures", "precision"),
        ),
        *itertools.product(
            ("frechet_samples", "frechet_reconstructions", "class_distance"),
            ("classifier_weights", "frechet_images"),
        ),
    ],
)
def test_metrics_with_other_settings_have_notes_and_are_not_bold(make, metric, key):
    error = {"nll_standard_error": 0.1}
    kind = str if key in ("estimator", "precision", "classifier_weights") else int
    runs = [
        make("a", {metric: 90.0, key: kind(20), **error}),
        make("b", {metric: 80.0, key: kind(15), **error}, latent_dim=3),
    ]
    table = rank(runs, [m for m in METRICS if m.key == metric])
    cells = [row.cells[0] for row in table.rows]
    assert not any(c.bold for c in cells)
    for c, value in zip(cells, (20, 15), strict=True):
        assert f"{key.replace('_', ' ')} {value}" in c.note


def test_each_metric_has_its_better_direction_and_error():
    better = {side: {m.key for m in METRICS if m.better == side} for side in ("higher", "lower")}
    assert better == {
        "higher": {
            *("elbo", "psnr", "ssim", "linear_probe", "knn"),
            *("many_to_one", "hungarian", "nmi", "ari"),
        },
        "lower": {
            *("nll", "bits_per_dim", "marginal_kl", "mmd", "squared_error"),
            *("frechet_samples", "frechet_reconstructions", "class_distance"),
        },
    }
    assert {m.key: m.error_key for m in METRICS if m.error_key} == {"nll": "nll_standard_error"}


def test_digits_align():
    cells = [cell(-103.2, None, 1), cell(-0.001, 10 / math.sqrt(3)), None, Cell(5, 0.25, 2, 0.1)]
    assert format_cells(cells, 2) == [
        "-103.20" + PAD * 8,
        PAD * 3 + "0.00 ± 10.00",
        PAD * 15,
        PAD * 3 + f"5.00 ± {PAD}0.25",
    ]
    assert len(set(map(len, format_cells(cells, 2)))) == 1


@pytest.fixture
def table(make):
    """Two settings, three seeds each, with names of all special characters of Markdown and LaTeX."""
    odd = {"encoder": r"8|8*2_a&b%c#d$e{f}~g^h\i<j>[k", "init": "[i] -0.5"}
    runs = [
        make(f"{i}-{seed}", {"nll": 98 + 8 * i + seed / 3, "elbo": -100 - i - seed}, seed, **settings)
        for i, settings in enumerate(({}, odd))
        for seed in range(3)
    ]  # fmt: skip
    return rank([*runs, make("late_r", {}, seed=9)], [NLL, ELBO])


def test_markdown(table):
    header, rule, first, second, *notes = as_markdown(table).splitlines()
    assert header == "| init | encoder | seeds | NLL, nats | ELBO, nats |"
    assert rule == "| --- | --- | ---: | ---: | ---: |"
    assert first == "| - | - | 3 | **98.33 ± 0.33** | -101.0 ± 1.0 |"
    assert second == (
        r"| \[i\] -0.5 | 8\|8\*2\_a\&b%c\#d$e\{f\}\~g^h\\i\<j\>\[k | 3 | 106.33 ± 0.33 | -102.0 ± 1.0 |"
    )
    assert notes[:2] == ["", "mean ± standard deviation over seeds"]
    assert notes[-1].startswith("not evaluated yet: vaekit evaluate ")
    assert notes[-1].endswith(r"late\_r")


def test_latex(table):
    lines = as_latex(table).splitlines()
    assert lines[1:7] == [
        r"\begin{tabular}{llrll}",
        r"\toprule",
        r"init & encoder & seeds & NLL, nats & ELBO, nats \\",
        r"\midrule",
        r"- & - & 3 & \textbf{\phantom{0}98.33 $\pm$ 0.33} & $-$101.0 $\pm$ 1.0 \\",
        r"{[}i] $-$0.5 & 8|8*2\_a\&b\%c\#d\$e\{f\}\textasciitilde{}g\textasciicircum{}h\textbackslash{}i\textless{}j"
        r"\textgreater{}{[}k & 3 & 106.33 $\pm$ 0.33 & $-$102.0 $\pm$ 1.0 \\",
    ]
    assert lines[7:9] == [r"\bottomrule", r"\end{tabular}"]
    assert lines[9] == r"\par{\footnotesize mean $\pm$ standard deviation over seeds\par}"
    assert lines[-1].endswith(r"late\_r\par}")


def test_a_unit_is_escaped(make):
    table = rank([make("a", {"knn": 91.25})], [KNN])
    assert table.header[-1] == "k-NN, %"
    assert r"k-NN, \% \\" in as_latex(table)


def test_csv_has_all_digits(table, make):
    first, second = csv.DictReader(io.StringIO(as_csv(table)))
    for row, expected in zip((first, second), table.rows, strict=True):
        assert int(row["seeds"]) == expected.seeds == 3
        for metric, c in zip(table.metrics, expected.cells, strict=True):
            read = [float(row[f"{metric.key}_{part}"]) for part in ("mean", "sd", "count", "error")]
            assert read == [c.mean, c.sd, c.count, c.error]
    assert first["nll_mean"] == repr(statistics.fmean([98, 98 + 1 / 3, 98 + 2 / 3]))
    assert (first["encoder"], second["init"]) == ("", "[i] -0.5")
    runs = [make("one", {"nll": 90.0}), make("none", {}, latent_dim=3)]
    rows = list(csv.reader(io.StringIO(as_csv(rank(runs, [NLL])))))
    assert rows == [
        ["latent_dim", "seeds", "nll_mean", "nll_sd", "nll_count", "nll_error", "nll_note"],
        ["2", "1", "90.0", "", "1", "", ""],
        ["3", "0", "", "", "0", "", ""],
    ]


def test_csv_has_the_notes_of_metrics(several):
    runs = several([90.0], [91.0])
    path = runs[1].path / "evaluation.json"
    path.write_text(path.read_text().replace('"samples": 100', '"samples": 5'))
    notes = [row["nll_note"] for row in csv.DictReader(io.StringIO(as_csv(rank(runs, [NLL]))))]
    assert notes == ["samples 100, nll images 20", "samples 5, nll images 20"]


def test_the_terminal_shows_bold_and_literal_brackets(table):
    console = Console(width=160, record=True, file=io.StringIO())
    shown = as_terminal(table)
    console.print(shown)
    plain = console.export_text()
    assert "[i] -0.5" in plain
    assert "mean ± standard deviation over seeds" in plain
    bolds = [text for column in shown.columns for text in column.cells if text.style == "bold"]
    assert [text.plain for text in bolds] == [f"{PAD}98.33 ± 0.33"]
    narrow = Console(width=40, record=True, file=io.StringIO())
    narrow.print(shown)
    assert "…" not in narrow.export_text()


def test_files_are_written_by_their_ending(table, tmp_path):
    for name, content in (("a.md", as_markdown), ("a.CSV", as_csv), ("a.tex", as_latex)):
        path = write(table, tmp_path / name)
        assert path.read_bytes().decode() == content(table)
    with pytest.raises(UserError, match=r"a\.txt: its ending must be one of \.md, \.csv, \.tex"):
        write(table, tmp_path / "a.txt")
    with pytest.raises(UserError, match="its folder does not exist"):
        write(table, str(tmp_path / "no" / "a.md"))
    assert sorted(p.name for p in tmp_path.glob("*.*")) == ["a.CSV", "a.md", "a.tex"]


def test_an_older_evaluation_is_read_as_importance_sampling(make):
    metric = Metric(
        "nll", "NLL", "nats", "", "lower", error_key="e", depends_on=("estimator", "precision")
    )
    new = {"nll": 90.0, "e": 0.1, "estimator": "importance", "precision": "float32"}
    table = rank([make("a", {"nll": 80.0, "e": 0.1}), make("b", new, latent_dim=3)], [metric])
    assert [row.cells[0].bold for row in table.rows] == [True, False]
    assert not any(row.cells[0].note for row in table.rows)
