"""Data-parallel training gives the result of a single process."""

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

HERE = Path(__file__).parents[1]
# Noise, several samples, labels, the codes of all processes, clusters, two levels and pseudo-inputs.
KINDS = ["vae", "iwae", "cvae", "infovae", "gmvae", "hvampprior"]
OWN_NOISE, CONTROL = "vae+own-noise", "vae+no-all-reduce"


def train_together(count, out, *jobs):
    """Train jobs in one process, or in `count` that torchrun starts over loopback; return standard error."""
    command = [sys.executable]
    if count > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--max-restarts", "3"]
        command += ["--nproc-per-node", str(count)]
    command += [str(HERE / "train_together.py"), str(out), *jobs]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    train_together(1, folder / "1", *KINDS)
    train_together(2, folder / "2", *KINDS, OWN_NOISE, CONTROL)
    return folder


def metrics(run):
    """The metrics of all epochs that do not depend on time."""
    fields = Epoch.__dataclass_fields__.keys() - TIMING
    return [[epoch[name] for name in sorted(fields)] for epoch in Run(run).metrics]


def difference(a, b):
    """The maximum relative difference."""
    a, b = (torch.tensor([[x or 0.0 for x in row] for row in each]).double() for each in (a, b))
    return float(((a - b).abs() / (b.abs() + 1e-3)).max())


@pytest.mark.parametrize("name", KINDS)
def test_two_processes_equal_one(outcomes, name):
    """20 images in batches of 7, 7 and 6: of the first two, one process has one image more than the other."""
    one, two = (metrics(outcomes / count / name) for count in ("1", "2"))
    assert difference(two, one) < 1e-4


@pytest.mark.long
@pytest.mark.parametrize("count", [2, 3])
def test_several_processes_equal_one_for_every_model(count, tmp_path):
    train_together(1, tmp_path / "one", *MODELS)
    train_together(count, tmp_path / "several", *MODELS)
    for name in MODELS:
        one, several = (metrics(tmp_path / n / name) for n in ("one", "several"))
        assert difference(several, one) < 1e-4, name


def test_without_all_reduce_they_differ(outcomes):
    one, control = (metrics(outcomes / n) for n in ("1/vae", f"2/{CONTROL}"))
    assert difference(control, one) > 1e-3


def test_after_a_process_dies_torchrun_restarts_all_and_nothing_is_lost(outcomes, tmp_path):
    """With independent noise per process, whose generator states are in the checkpoint."""
    stderr = train_together(2, tmp_path, "die", OWN_NOISE)
    assert "SIGKILL" in stderr or "Signal 9" in stderr or "-9" in stderr
    one, other = outcomes / "2" / OWN_NOISE, tmp_path / OWN_NOISE
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    assert metrics(one) == metrics(other)


def test_a_run_resumes_with_another_number_of_processes(outcomes, tmp_path):
    run = shutil.copytree(outcomes / "2" / "vae", tmp_path / "run")
    data = random_dataset(shape=(1, 8, 8))
    resume(run, data, epochs=4, progress=False)
    epochs = Run(run).metrics
    assert len(epochs) == 4
    assert epochs[3]["train_elbo"] > epochs[1]["train_elbo"]
