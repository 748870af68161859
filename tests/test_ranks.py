"""Several processes train what one does."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from conftest import TIMING, random_dataset
from vaekit import Run, resume
from vaekit.settings.catalog import MODELS
from vaekit.training.loop import Epoch

HERE = Path(__file__).parent
FEW = ["vae", "infovae"]


def together(count, out, *words):
    """Have torchrun start so many processes of train_together.py, over loopback."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts", "3"]
    command += ["--nproc-per-node", count, HERE / "train_together.py", out, *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [str(word) for word in command]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    together(1, folder / "1")
    together(2, folder / "2")
    together(3, folder / "3", *FEW)
    together(2, folder / "control", "no-join", "vae")
    return folder


def numbers(run):
    """Of all epochs, what does not depend on the time it took."""
    fields = Epoch.__dataclass_fields__.keys() - TIMING
    return [[epoch[name] for name in sorted(fields)] for epoch in Run(run).metrics]


def difference(a, b):
    """The largest relative one."""
    a, b = (torch.tensor([[x or 0.0 for x in row] for row in each]).double() for each in (a, b))
    return float(((a - b).abs() / (b.abs() + 1e-3)).max())


@pytest.mark.parametrize(("count", "name"), [(2, name) for name in MODELS] + [(3, n) for n in FEW])
def test_several_processes_train_what_one_does(outcomes, count, name):
    """20 images in batches of 8, 8 and 4: of three processes some have one image more than others."""
    one, several = (numbers(outcomes / str(n) / name) for n in (1, count))
    assert difference(several, one) < 1e-4


@pytest.mark.long
def test_three_processes_train_what_one_does(outcomes, tmp_path):
    together(3, tmp_path)
    for name in MODELS:
        assert difference(numbers(tmp_path / name), numbers(outcomes / "1" / name)) < 1e-4, name


def test_without_each_others_gradients_they_do_not(outcomes):
    one, control = (numbers(outcomes / n / "vae") for n in ("1", "control"))
    assert difference(control, one) > 1e-3


def test_where_a_process_dies_torchrun_starts_all_again_and_nothing_is_lost(outcomes, tmp_path):
    """With noise of their own, from generators whose states are in the run's."""
    said = together(2, tmp_path / "broken", "own-noise", "die", "vae")
    assert "SIGKILL" in said or "Signal 9" in said or "-9" in said
    together(2, tmp_path / "whole", "own-noise", "vae")
    one, other = (tmp_path / name / "vae" for name in ("whole", "broken"))
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    assert numbers(one) == numbers(other)


def test_a_run_goes_on_with_another_number_of_processes(outcomes, tmp_path):
    run = shutil.copytree(outcomes / "2" / "vae", tmp_path / "run")
    data = random_dataset(shape=(1, 8, 8))
    resume(run, data, epochs=4, progress=False)
    metrics = Run(run).metrics
    assert len(metrics) == 4
    assert metrics[3]["train_elbo"] > metrics[1]["train_elbo"]
