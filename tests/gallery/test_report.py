"""The HTML report: self-contained, with all results, and with names escaped."""

import base64
import dataclasses
import html
import io
import json
import re
import shutil

import pytest
from PIL import Image

from conftest import random_dataset
from vaekit import Run, UserError, build, evaluate, train
from vaekit.gallery.catalog import PICTURES
from vaekit.gallery.draw import draw
from vaekit.gallery.report import headline_results, read_evaluation, report


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    data = dataclasses.replace(random_dataset(), classes=("<b>cats</b>", "$dogs$", "mice & men"))
    return train(
        build("vae", data, latent_dim=2, hidden_dim=8), data, out=tmp_path_factory.mktemp("runs") / "a <script> run",
        epochs=2, batch_size=5, progress=False, record=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def page(run):
    return report(run).read_text()


@pytest.fixture
def few_pictures(monkeypatch):
    """Reports with the training curves alone, for tests of their other parts."""
    for name in PICTURES.keys() - {"curves"}:
        monkeypatch.delitem(PICTURES, name)


def test_it_embeds_every_picture_and_loads_nothing(run, page):
    sources = re.findall(r'<img src="([^"]*)"', page)
    assert len(sources) == len(draw(run))
    assert all(source.startswith("data:image/webp;base64,") for source in sources)
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert "http" not in page.replace("http-equiv", "")
    assert "@import" not in page
    assert "<script" not in page
    assert len(page) < 5_000_000


def test_names_are_escaped(page):
    assert html.escape("a <script> run") in page
    assert "<b>cats" not in page


def test_results_are_listed_with_their_meaning(run, page, few_pictures, tmp_path):
    assert "Not evaluated yet" in page
    copied = Run(shutil.copytree(run.path, tmp_path / "run"))
    found = evaluate(run, data=random_dataset(), samples=5, metrics=("elbo", "nll"))
    shutil.copy(run.path / "evaluation.json", copied.path)
    page = report(copied, tmp_path / "second.html").read_text()
    assert f"{found['nll']:.2f}" in page
    assert "nats; lower bound on log p(x); higher is better" in page
    assert "20 test images, bernoulli pixels, binarised once, from a fixed seed" in page
    (copied.path / "evaluation.json").write_text('{"of": "another version"}')
    assert "Not evaluated yet" in report(copied, tmp_path / "third.html").read_text()


def test_settings_and_warnings_are_in_it(run, few_pictures, tmp_path):
    copied = Run(shutil.copytree(run.path, tmp_path / "run"))
    lines = [{**epoch, "warnings": []} for epoch in copied.metrics]
    lines[1]["warnings"] = ["posterior collapse: <all>"]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (copied.path / "metrics.jsonl").write_text(text)
    page = report(copied).read_text()
    assert "Warning at epoch 2: posterior collapse: &lt;all&gt;." in page
    for key in ("latent_dim", "learning_rate", "sha256"):
        assert key in page


def test_pictures_that_do_not_fit_are_named(run, tmp_path, monkeypatch):
    monkeypatch.setattr("vaekit.gallery.report.MAX_PICTURE_BYTES", 60_000)
    page = report(run, tmp_path / "small.html").read_text()
    assert len(page) < 80_000
    assert "is too large for this page" in page


def test_large_pictures_are_compressed_with_loss(run, page, tmp_path, monkeypatch):
    lossless = len(page)
    monkeypatch.setattr("vaekit.gallery.report.MAX_LOSSLESS_BYTES", 3_000)
    assert len(report(run, tmp_path / "b.html").read_text()) < 0.9 * lossless


def test_a_run_without_weights_has_no_report(run, tmp_path):
    copied = Run(shutil.copytree(run.path, tmp_path / "run"))
    copied.weights_path.unlink()
    (copied.path / "report.html").unlink(missing_ok=True)
    with pytest.raises(UserError, match="has not saved any weights yet"):
        report(copied)
    assert not (copied.path / "report.html").exists()


def test_tiles_are_of_the_best_epoch(run, few_pictures, tmp_path):
    copied = Run(shutil.copytree(run.path, tmp_path / "run"))
    lines = [{**epoch, "best": n == 0, "seconds": 600.0} for n, epoch in enumerate(copied.metrics)]
    lines[0]["warnings"] = ["the first epoch's"]
    (copied.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = dict(headline_results(lines, copied.best, None))
    assert found["epochs"] == "2, best 1"
    assert found["validation ELBO, nats"] == f"{lines[0]['validation_elbo']:.2f}"
    assert found["training"] == "20 min"
    evaluation = evaluate(run, data=random_dataset(), samples=5)
    shutil.copy(run.path / "evaluation.json", copied.path)
    assert (
        dict(headline_results(lines, copied.best, read_evaluation(copied)))[
            "NLL, test images, nats"
        ]
        == f"{evaluation['nll']:.2f}"
    )
    page = report(copied, tmp_path / "a.html").read_text()
    assert "Warning at epoch 1: the first epoch&#39;s." in page
    assert f"vaekit evaluate {html.escape(str(copied))}" not in page


def test_a_run_without_epochs_has_no_curves(run, tmp_path):
    copied = Run(shutil.copytree(run.path, tmp_path / "run"))
    (copied.path / "metrics.jsonl").write_text("")
    page = report(copied, tmp_path / "a.html").read_text()
    assert 'id="curves"' not in page
    assert 'id="samples"' in page


def test_a_movie_holds_its_last_frame(page):
    movies = [
        re.sub(r"^data:image/webp;base64,", "", x)
        for x in re.findall(r'<img src="([^"]*)" alt="progress', page)
    ]
    with Image.open(io.BytesIO(base64.b64decode(movies[0]))) as movie:
        times = []
        for i in range(movie.n_frames):
            movie.seek(i)
            movie.load()
            times.append(movie.info["duration"])
    assert set(times[:-1]) == {250}
    assert times[-1] == 1250
