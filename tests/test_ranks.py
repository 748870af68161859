"""Several processes train what one does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vaekit import Run
from vaekit.catalog import MODELS
from vaekit.training import Epoch

HERE = Path(__file__).parent
TIMING = {"images_per_second", "seconds"}


def together(count, out, *flags, **more):
    """Have torchrun start so many processes of train_together.py, over loopback."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    command += [str(count), str(HERE / "train_together.py"), str(out), *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **more}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    for count in (1, 2, 3):
        together(count, folder / str(count))
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


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("count", [2, 3])
def test_several_processes_train_what_one_does(outcomes, name, count):
    """20 images in batches of 8, 8 and 4: of three processes some have one image more than others."""
    one, several = (numbers(outcomes / str(n) / name) for n in (1, count))
    assert difference(several, one) < 1e-4


def test_without_each_others_gradients_they_do_not(outcomes):
    one, control = (numbers(outcomes / n / "vae") for n in ("1", "control"))
    assert difference(control, one) > 1e-3
