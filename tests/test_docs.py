"""The pages in docs/ say what works: their Python runs as it stands, their layers and flags exist."""

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import vaekit
from vaekit import MODELS, build, evaluate, load
from vaekit.cli.errors import known_flags
from vaekit.cli.main import VERBS
from vaekit.data.sources.catalog import CATALOG
from vaekit.evaluation.metrics import METRIC_GROUPS
from vaekit.model.build import BUILDERS, GraphBuilder

pytestmark = pytest.mark.usefixtures("short_evaluation")

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
    for metric in METRIC_GROUPS:
        assert f"| `{metric}` |" in text
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert "5" in (tmp_path / "runs" / "my-sweep" / "compare.csv").read_text()


def test_every_data_set_is_on_its_page_whose_python_runs(capsys):
    text = (DOCS / "data.md").read_text()
    for name, entry in CATALOG.items():
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


@pytest.mark.long
def test_the_site_builds_without_warnings(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-q", "--fail-on-warning", DOCS, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    page = (tmp_path / "maths" / "elbo.html").read_text()
    assert "<math" in page  # drawn by the browser itself
    assert "vaekit train --resume" in (tmp_path / "commands.html").read_text()
    for found in tmp_path.rglob("*.html"):
        loaded = re.findall(
            r'(?:src|href)="(https?://[^"]+\.(?:js|css|woff2?))"', found.read_text()
        )
        assert not loaded, found


@pytest.mark.long
def test_the_notebook_runs(small_mnist, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((DOCS / "notebooks" / "tour.ipynb").read_text())
    names = {"__name__": "tour"}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            code = "".join(cell["source"]).replace("EPOCHS = 10", "EPOCHS = 1")
            lines = code.split("\n")
            if not re.match(r"\w+ =", lines[-1]):
                lines[-1] = f"shown = {lines[-1]}"  # what Jupyter shows of a cell
            exec("\n".join(lines), names)
            assert "iwae" not in code or names["shown"] is True
    assert names["shown"] == (1797, 2)


def test_what_the_page_on_extending_adds_can_be_trained(small_mnist, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prior, objective = re.findall(
        r"```python\n(.*?)```", (DOCS / "extending.md").read_text(), re.DOTALL
    )
    data = vaekit.load_data("mnist")
    names = {"vaekit": vaekit, "data": data}
    exec(prior, names)
    parts = GraphBuilder(build("vae", data, latent_dim=3, hidden_dim=8).blueprint)
    graph = {"z": names["HeavyTails"](3)}, {"z": parts.posterior(3)}, parts.decoder(("z",), 3)
    names["model"] = vaekit.VAE(*graph, parts.blueprint)
    exec(objective.replace("objective=skewed()", "objective=skewed(), epochs=1"), names)
    assert names["run"].metrics[0]["train_objective"] < names["run"].metrics[0]["train_elbo"]


def test_flags_of_the_page_on_migrating_exist():
    known = {"--count", "--onnx"}
    for verb in ("train", "evaluate", "generate", "reconstruct", "plot"):
        known |= set(known_flags(VERBS, verb))
    known |= {"--resume", "--limit", "--metrics", "--samples"}
    ours = [
        line.split("|")[2]
        for line in (DOCS / "migrating.md").read_text().splitlines()
        if "|" in line
    ]
    asked = {word for text in ours for word in re.findall(r"--[a-z][a-z-]+", text)}
    asked -= {"--encoder"}
    assert asked <= known, asked - known
    for model in re.findall(r"vaekit train ([a-z]+)", " ".join(ours)):
        assert model in MODELS


def test_the_page_on_the_architecture_is_current():
    """Its picture is that of the imports; it names every part, and only files that exist."""
    script = [sys.executable, DOCS / "draw_architecture.py", "--check"]
    done = subprocess.run(script, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text, package = (DOCS / "architecture.md").read_text(), Path(vaekit.__file__).parent
    for part in package.iterdir():
        if (part / "__init__.py").exists():
            assert f"| `{part.name}/` |" in text
            assert sum(1 for _ in part.glob("*.py")) <= 14, part
    for name in re.findall(r"`([\w/]+\.py)`", text):
        assert list(package.rglob(name)), name


def test_every_model_has_its_maths():
    titles = " ".join(path.read_text().split("\n")[0] for path in (DOCS / "maths").glob("*.md"))
    for name in MODELS:
        assert re.search(rf"\b{name}\b", titles), name
    named = [
        re.findall(r"`(tests/[\w/]+\.py)`", p.read_text()) for p in (DOCS / "maths").glob("*.md")
    ]
    assert sum(map(len, named)) > 20
    for name in itertools.chain(*named):
        assert (DOCS.parent / name).exists(), name
