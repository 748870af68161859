"""Figures belong to the weights that they were computed with, and verbs can use the best, the last or an epoch's."""

import hashlib
import json
import shutil

import pytest
import torch

from conftest import random_dataset, small_settings
from vaekit import Run, UserError, build, evaluate, load, rank, report, resume, train
from vaekit.evaluation import evaluate as evaluation_module
from vaekit.explorer.session import ExplorerSession
from vaekit.inference.picture_data import FILE_NAME, create
from vaekit.runs import weights
from vaekit.runs.load import find_epoch, load_trained, weights_sha256
from vaekit.studies.sweep import is_evaluated

DATA = random_dataset()


def fit(out, model="vae", **settings):
    built = build(model, DATA, **small_settings(model))
    return train(built, DATA, out=out, batch_size=10, progress=False, **{"epochs": 3, **settings})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of three epochs with the weights of each."""
    return fit(tmp_path_factory.mktemp("weights") / "run", save_every=1, state_every=1e9)


@pytest.fixture
def run(trained, tmp_path):
    return Run(shutil.copytree(trained.path, tmp_path / "run"))


def change(run):
    """Replace the weights of a run by others, as a training does; return their model."""
    model = load(run)
    with torch.no_grad():
        next(model.parameters()).mul_(1.5)
    run.save_weights(model)
    return model


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def counted(runs):
    """How many evaluations of the runs a comparison counts."""
    table = rank(runs)
    keys = [metric.key for metric in table.metrics]
    column = keys.index("elbo") if "elbo" in keys else None
    cells = [] if column is None else [row.cells[column] for row in table.rows]
    return sum(cell.count for cell in cells if cell)


def test_figures_of_a_resumed_run_are_marked_and_left_out_of_rankings(tmp_path, monkeypatch):
    monkeypatch.setattr("vaekit.gallery.catalog.PICTURES", {})
    monkeypatch.setattr("vaekit.gallery.draw.PICTURES", {})
    other = fit(tmp_path / "other", seed=1, epochs=1)
    resumed = fit(tmp_path / "resumed", epochs=1)
    for each in (other, resumed):
        evaluate(each, data=DATA, samples=3, metrics=("elbo", "nll"))
    assert [row.seeds for row in rank([other, resumed]).rows] == [2]
    resume(resumed, DATA, epochs=3, progress=False)
    note = f"evaluation of earlier weights: evaluate again: vaekit evaluate {resumed}"
    assert note in rank([other, resumed]).notes
    assert counted([other, resumed]) == 1
    page = report(resumed).read_text()
    assert "of earlier weights: evaluate again" in page
    assert "NLL, test images, nats" not in page  # among the most important results
    evaluate(resumed, data=DATA, samples=3, metrics=("elbo", "nll"))
    assert counted([other, resumed]) == 2
    page = report(resumed).read_text()
    assert "of earlier weights" not in page
    assert "NLL, test images, nats" in page


def test_an_evaluation_without_a_hash_is_not_of_these_weights(run):
    evaluate(run, data=DATA, samples=3, metrics=("elbo",))
    stored = json.loads((run.path / "evaluation.json").read_text())
    del stored["weights"]
    (run.path / "evaluation.json").write_text(json.dumps(stored))
    assert counted([run]) == 0


def test_figures_computed_while_the_weights_are_replaced_are_of_those_loaded(run, monkeypatch):
    """As where a training replaces the file after it was read."""
    old, load_trained_before = sha256(run.weights_path), evaluation_module.load_trained

    def load_then_replace(run):
        loaded = load_trained_before(run)
        change(run)
        return loaded

    monkeypatch.setattr(evaluation_module, "load_trained", load_then_replace)
    assert evaluate(run, data=DATA, samples=3, metrics=("elbo",))["weights"] == old
    assert sha256(run.weights_path) != old
    assert counted([run]) == 0


def test_maps_and_picture_data_have_the_hash_of_the_weights_that_were_read(run):
    import safetensors

    def stored_hash(name):
        with safetensors.safe_open(run.path / name, "pt") as file:
            return file.metadata()["weights"]

    session = ExplorerSession(run)
    old = session.context.sha256
    assert old == sha256(run.weights_path) == stored_hash(FILE_NAME)
    trained = load_trained(run)
    change(run)
    session.maps.compute_embedding("z", "tsne")
    create(run, trained, DATA)
    assert stored_hash("map-z-tsne.safetensors") == stored_hash(FILE_NAME) == old
    with pytest.raises(UserError, match="belongs to other weights"):
        ExplorerSession(run)


def test_the_hash_is_of_the_bytes_that_were_read(run, monkeypatch):
    before, real = sha256(run.weights_path), weights.copy_weights

    def replace_then_copy(model, tensors, path):
        path.write_bytes(b"another file, written meanwhile")
        real(model, tensors, path)

    monkeypatch.setattr(weights, "copy_weights", replace_then_copy)
    assert load_trained(run).sha256 == before


def test_best_last_and_each_saved_epoch_are_loaded(run):
    state = run.load_state().part("model")
    last = load(Run(run.path, "last"))
    assert all(torch.equal(value, state[name]) for name, value in last.state_dict().items())
    epochs = [load(Run(run.path, weights)) for weights in (1, "2", "0003")]
    assert not same(epochs[0], epochs[1])
    assert same(epochs[2], last)
    assert same(epochs[run.best["epoch"] - 1], load(run))
    # The last weights are no file of their own, but have the hash of the one that they would be.
    assert weights_sha256(Run(run.path, "last")) == sha256(run.path / "model-0003.safetensors")


def test_the_last_weights_of_an_average_are_the_average(tmp_path):
    run = fit(tmp_path / "run", ema=0.9, epochs=2)
    assert same(load(Run(run.path, "last")), load(run))
    state = run.load_state()
    assert not torch.equal(*(next(iter(state.part(p).values())) for p in ("model", "average")))


@pytest.mark.parametrize("weights", ["last", "1"])
def test_files_of_other_weights_have_names_of_their_own(run, weights):
    chosen = Run(run.path, weights)
    suffix = {"last": "-last", "1": "-0001"}[weights]
    best = evaluate(run, data=DATA, samples=3, metrics=("elbo",))
    found = evaluate(chosen, data=DATA, samples=3, metrics=("elbo",))
    assert json.loads((run.path / "evaluation.json").read_text()) == best
    assert json.loads((run.path / f"evaluation{suffix}.json").read_text()) == found
    assert found["weights"] == weights_sha256(chosen)
    assert is_evaluated(chosen, evaluation_module.EvaluateConfig(samples=3, metrics=("elbo",)))
    assert counted([chosen]) == 1
    create(chosen, load_trained(chosen), DATA)
    assert (run.path / f"picture_data{suffix}.safetensors").exists()


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("9", r"model-0009.safetensors is missing; there are weights best, last, 1, 2, 3 "),
        ("first", "weights is 'first'; it must be best, last or the number of an epoch"),
        ("-1", "weights is '-1'; it must be"),
        ("1.5", "weights is '1.5'; it must be"),
        ("9" * 5000, "it must be best, last"),
    ],
)
def test_weights_that_are_not_there_are_refused_in_a_line(run, weights, message):
    with pytest.raises(UserError, match=message) as raised:
        load(Run(run.path, weights))
    assert "\n" not in str(raised.value)


def test_there_are_no_last_weights_before_an_epoch_is_finished(run):
    (run.path / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match="no last weights: its checkpoint is of no finished epoch"):
        load(Run(run.path, "last"))
    (run.path / "state.safetensors").unlink()
    with pytest.raises(UserError, match="saved no checkpoint"):
        load(Run(run.path, "last"))


def test_metrics_of_the_last_weights_are_those_of_the_checkpoint(run):
    """A training that was killed may have written the metrics of later epochs."""
    third = run.metrics[2]
    run.append_metrics({**third, "epoch": 4, "validation_elbo": -1.0})
    assert find_epoch(Run(run.path, "last")) == third
    assert find_epoch(Run(run.path, 2)) == run.metrics[1]
    assert find_epoch(run) == run.best
    table = rank([Run(run.path, "last")])
    assert table.rows[0].cells[0].mean == third[table.metrics[0].key]


def test_a_training_starts_from_the_chosen_weights(run, tmp_path):
    model = build("vae", DATA, **small_settings("vae"))
    started = train(model, DATA, out=tmp_path / "new", init=Run(run.path, 1), epochs=1, learning_rate=1e-12,
                    progress=False)  # fmt: skip
    first, found = load(Run(run.path, 1)), load(started)
    pairs = zip(first.parameters(), found.parameters(), strict=True)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in pairs)
