"""The README's Python runs as it stands, and its commands exist."""

import re
from pathlib import Path

import pytest

from vaekit import load
from vaekit.cli import main as cli

pytestmark = pytest.mark.usefixtures("short_evaluation")

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_five_lines_run(small_mnist, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(code, {})
    assert float(capsys.readouterr().out) < 0
    assert load("runs/vae-mnist-1").blueprint.settings.latent_dim == 20


@pytest.mark.parametrize("verb", ["train", *cli.VERBS])
def test_every_verb_is_in_the_readme(verb):
    assert f"`vaekit {verb}" in README


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (Path(__file__).parents[1] / target).exists(), target
