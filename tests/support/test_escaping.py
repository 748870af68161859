"""Names that come from elsewhere are inert wherever they are shown."""

import csv
import io
import os
from pathlib import Path

import numpy as np
import pytest

from conftest import random_dataset
from vaekit import UserError, build, train
from vaekit.cli.words import print_stderr, print_text
from vaekit.data.sources.inputs import Files, read_arrays
from vaekit.inference.tables import write_table
from vaekit.support.console import PlainConsole, ProgressBar
from vaekit.support.escaping import csv_cell, escape_controls, latex, markdown

HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\r\u202eabc\udc80"
STEERING = {*map(chr, range(32)), *map(chr, range(127, 160)), "\u202e", "\u2066", "\udc80"} - {
    "\n",
    "\t",
}


@pytest.mark.parametrize(
    "text",
    ["=1+1", "+1+1", "-1+1", "@SUM(A1)", " =1", "\t=1", "\r=1", "\uff1d1", "=cmd|'/C calc'!A0"],
)
def test_formulas_are_quoted(text):
    assert csv_cell(text).startswith("'")


@pytest.mark.parametrize(
    "value", [-1.5, 3, None, True, "-1.5", "+3", "1e-5", "-inf", "a-b", "", "vae"]
)
def test_numbers_and_other_text_stay(value):
    assert csv_cell(value) == value


def test_a_table_has_no_formulas(tmp_path):
    table = {"=name": np.array(["=1+1", "plain", "-2"]), "z": np.array([[-1.0], [2.0], [-3.5]])}
    text = write_table(table, tmp_path / "table.csv").read_text()
    rows = list(csv.reader(io.StringIO(text)))
    assert rows == [["'=name", "z_0"], ["'=1+1", "-1"], ["plain", "2"], ["-2", "-3.5"]]


def test_markdown_and_latex_stay_in_their_cell():
    text = "a\n\n| b |\r\n<img src=x> [l](http://e) ![i](x) $x$ `c` &lt; \\input{/etc/passwd} 5%"
    shown, typeset = markdown(text), latex(text)
    for result in (shown, typeset):
        assert "\n" not in result
        assert "\r" not in result
    unescaped = shown.replace("\\\\", "")
    for character in "|<>[]`&$":
        assert character not in unescaped.replace("\\" + character, "").replace("$", "")
    assert "http://" not in shown
    assert "\\input" not in typeset
    assert "%" not in typeset.replace("\\%", "")
    assert "$" not in typeset.replace("\\$", "")


def test_no_control_character_reaches_the_terminal(capsys):
    print_text(HOSTILE)
    print_stderr(HOSTILE)
    ProgressBar(True).log(HOSTILE)
    PlainConsole().print(HOSTILE + "[bold]:skull:")
    out, err = capsys.readouterr()
    assert not STEERING & {*out, *err}
    assert "[bold]:skull:" in out
    assert escape_controls("\x1b\x9b\udc80\n\tz") == "\\u001b\\u009b\\udc80\n\tz"


NAME = "=1+1\x1b[2J\n|x|\x9b\u202e"


def refuse_to_steer(vaekit, words):
    code, out, err = vaekit(*words)
    assert code in (0, 2)
    assert not STEERING & {*out, *err}, words
    assert code == 0 or err.splitlines()[-1].startswith("vaekit: ")


def test_hostile_arguments(vaekit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / NAME).mkdir()
    for words in [
        ["generate", NAME],
        ["generate", NAME, "--" + NAME],
        [NAME],
        ["data", "show", NAME],
    ]:
        refuse_to_steer(vaekit, words)


def test_pipes_devices_and_long_arguments_end_in_a_line(vaekit, tmp_path, monkeypatch):
    """Before, a pipe was waited for and a device read forever."""
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.npz")
    os.mkfifo("pipe.png")
    for path in ["pipe.npz", "/dev/zero"]:
        code, _, err = vaekit("data", "show", path)
        assert (code, err) == (
            2,
            f"vaekit: {path} is neither a file nor a folder\n",
        )
    for path in ["pipe.png", "/dev/zero"]:
        with pytest.raises(UserError, match="is neither a file nor a folder"):
            Files([Path(path)])
    with pytest.raises(UserError, match="is neither a file nor a folder"):
        next(read_arrays(Path("pipe.npz"), (1, 4, 4), "crop"))
    code, _, err = vaekit("generate", "x" * 100_000)
    assert (code, err.count("\n")) == (2, 1)
    assert len(err) < 2100


@pytest.mark.long
def test_hostile_names_of_runs(vaekit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = random_dataset(shape=(1, 4, 4), name=NAME)
    model = build("vae", data, latent_dim=2, hidden_dim=4)
    train(model, data, out=NAME, epochs=1, progress=False)
    verbs = ["plot", "evaluate", "compare", "report", "generate", "encode", "cluster"]
    for words in [*([verb, NAME] for verb in verbs), ["compare", NAME, "--out", "a.md", "a.csv"]]:
        refuse_to_steer(vaekit, words)
