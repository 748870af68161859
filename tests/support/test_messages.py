"""Messages speak the language of the caller: flags on the command line, names of parameters in Python."""

import re
import sys

import numpy as np
import pytest

from conftest import random_dataset
from vaekit import Plan, UserError, build, decode, evaluate, train
from vaekit.cli.main import main
from vaekit.support.console import ProgressBar
from vaekit.support.errors import command_line_messages, python_names

FLAG = re.compile(r"(?<![\w-])--[a-z]")


def test_commands_stay_and_flags_become_names():
    text = "batch size: --batch-size; run `vaekit train --resume a/b`, or vaekit evaluate x --limit 3: --no-x"
    expected = "batch size: batch_size; run `vaekit train --resume a/b`, or vaekit evaluate x --limit 3: no_x"
    assert python_names(text) == expected
    assert python_names("a--b, rows 1 --2 and runs/x--y") == "a--b, rows 1 --2 and runs/x--y"
    error = UserError("--kl-warmup is -1")
    with command_line_messages():
        assert f"config.json: {error}" == "config.json: --kl-warmup is -1"
    assert f"config.json: {error}" == "config.json: kl_warmup is -1"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    data = random_dataset()
    model = build("cvae", data, latent_dim=2, hidden_dim=4)
    out = tmp_path_factory.mktemp("runs") / "run"
    return train(model, data, out=out, epochs=1, progress=False)


def bad_calls(run):
    data = random_dataset()
    model = build("vae", data, latent_dim=2, hidden_dim=4)
    return {
        "learning_rate is 0": lambda: train(model, data, learning_rate=0.0),
        "prior vampprior cannot have a condition": lambda: build(
            "vampprior", data, condition="label"
        ),
        "encoder None": lambda: build("vae", data, encoder="8", decoder="8", hidden_dim=4),
        "is conditional on labels: pass label": lambda: decode(run, {"z": np.zeros((1, 2))}),
        "label is 9": lambda: decode(run, {"z": np.zeros((1, 2))}, label=9),
        "pass them as `data`": lambda: evaluate(run),
        "mmd_weight is 0.5": lambda: Plan.of("infovae", mmd_weight=0.5),
    }


def test_python_errors_name_parameters(run):
    for expected, call in bad_calls(run).items():
        with pytest.raises(UserError, match=re.escape(expected)) as caught:
            call()
        assert not FLAG.search(str(caught.value)), caught.value


def test_the_estimators_errors_name_parameters():
    from vaekit.sklearn import VAETransformer

    X = np.random.default_rng(0).random((20, 4))
    for settings, expected in (
        ({"latent_dim": 0}, "latent_dim is 0"),
        ({"learning_rate": -1}, "learning_rate is -1"),
        ({"training": {"ema": 2.0}}, "ema is 2.0"),
        ({"settings": {"components": 3}}, "components has no effect"),
    ):
        with pytest.raises(ValueError, match=expected) as caught:
            VAETransformer(**settings).fit(X)
        assert not FLAG.search(str(caught.value))


def test_the_command_line_names_flags_and_gives_no_advice_for_python(run, monkeypatch, capsys):
    for arguments, expected in (
        (["train", "vae", "--learning-rate", "0"], "--learning-rate is 0"),
        (["evaluate", str(run)], "arrays in the memory of a Python program"),
        (
            ["train", "vae", "--encoder", "8", "--decoder", "8", "--hidden-dim", "4"],
            "--encoder None",
        ),
    ):
        monkeypatch.setattr(sys, "argv", ["vaekit", *arguments])
        with pytest.raises(SystemExit):
            main()
        line = capsys.readouterr().err
        assert expected in line
        assert "`data`" not in line
    assert str(UserError("--x-y")) == "x_y"  # the command line is over


def test_log_lines_are_in_the_language_of_the_caller(capsys):
    ProgressBar(True).log("try a longer --kl-warmup")
    with command_line_messages():
        ProgressBar(True).log("try a longer --kl-warmup")
    assert capsys.readouterr().err.splitlines() == [
        "try a longer kl_warmup",
        "try a longer --kl-warmup",
    ]
