"""The pages in docs/ say what works: their Python runs as it stands, their layers and flags exist."""

import re
from pathlib import Path

import pytest

from vaekit import MODELS, build, evaluate, load
from vaekit.data.shelf import SHELVES
from vaekit.figures import METRICS
from vaekit.models import BUILDERS

DOCS = Path(__file__).parents[1] / "docs"


def test_a_new_model_takes_under_30_lines(small_mnist, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "new-model.md").read_text(), re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) < 30
    try:
        exec(code, {"__name__": "new_model"})
        assert 50 < float(capsys.readouterr().out) < 500
        model = load("runs/ringvae-mnist-1")
        assert model.prior["z"].radius.item() != 2.0  # it was trained, saved and loaded
        assert evaluate("runs/ringvae-mnist-1", limit=20, samples=5)["images"] == 20
    finally:
        MODELS.pop("ringvae", None)
        BUILDERS.pop("ringvae", None)


def test_the_layers_of_the_page_are_layers():
    text = (DOCS / "layers.md").read_text()
    encoder, decoder = re.search(r'--encoder "(.*?)" --decoder "(.*?)"', text).groups()
    plain, written = (
        build("vae", (1, 28, 28), **settings)
        for settings in ({"network": "conv"}, {"encoder": encoder, "decoder": decoder})
    )
    shapes = [p.shape for p in plain.parameters()]
    assert shapes == [p.shape for p in written.parameters()]


def test_every_model_is_on_its_page():
    text = (DOCS / "models.md").read_text()
    for name in MODELS:
        assert f"`{name}`" in text


def test_every_metric_is_on_its_page_whose_python_runs(tmp_path, monkeypatch):
    text = (DOCS / "measuring.md").read_text()
    for metric in METRICS:
        assert f"| `{metric}` |" in text
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert "5" in (tmp_path / "runs" / "my-sweep" / "compare.csv").read_text()


def test_every_data_set_is_on_its_page_whose_python_runs(capsys):
    text = (DOCS / "data.md").read_text()
    for name, entry in SHELVES.items():
        assert f"| `{name}` |" in text
        for variant in entry.variants:
            assert f"| `{name}:{variant}` |" in text
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(code, {})
    assert capsys.readouterr().out == "(3, 12, 8) logistic\n"


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda path: path.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target
