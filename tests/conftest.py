"""Shared by all tests: small data sets, and MNIST cut short so that a training takes a second."""

import dataclasses
import gc
import os
import sys
from functools import cache
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
import torch
from xdist.scheduler import LoadScopeScheduling

from vaekit import load_data
from vaekit.cli import main as cli
from vaekit.data import Dataset, Split
from vaekit.data.sources.named import READERS
from vaekit.runs.directory import Run
from vaekit.settings.catalog import MODELS
from vaekit.settings.data import ValueRange
from vaekit.settings.model import LadderConfig

# The models here are tiny: a second thread would cost them more than it gives; so in the processes that tests start.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")


# Files that take long begin first, so that the workers end at about the same time.
SLOW = ("test_data_parallel.py", "test_sklearn.py", "test_export.py", "test_explorer_page.py")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in SLOW)


def pytest_collection_finish():
    """What is imported by now stays: the garbage collector need not go through it again and again."""
    gc.collect()
    gc.freeze()


class ByFile(LoadScopeScheduling):
    """Gives workers a quarter of a file at a time, or all of it if its tests share fixtures, which are then made once.

    (The groups of pytest-xdist 3.8 have no effect with pytest 9.2.)
    """

    def _split_scope(self, nodeid: str) -> str:
        path, _, test = nodeid.partition("::")
        return path if shares_fixtures(path) else f"{path} {crc32(test.encode()) % 4}"


@cache
def shares_fixtures(path: str) -> bool:
    return 'scope="module"' in (Path(__file__).parents[1] / path).read_text()


def pytest_xdist_make_scheduler(config, log):
    return ByFile(config, log)


TIMING = {"images_per_second", "seconds"}  # of the fields of an epoch


def timeless(run: Run) -> list[dict[str, Any]]:
    """The epochs of metrics.jsonl but for the time that they took."""
    return [{k: v for k, v in epoch.items() if k not in TIMING} for epoch in run.metrics]


def small_settings(name: str, **more: Any) -> dict[str, Any]:
    """What makes a model of this name small, of the settings that it has; and `more`."""
    small: dict[str, Any] = {"hidden_dim": 8, "latent_dim": 2, "channels": 2, "top_dim": 3}
    small |= {"clusters": 3, "start_epochs": 1}
    small |= {"components": 6} if "vampprior" in name else {}
    settings = MODELS[name].settings
    if isinstance(settings, LadderConfig):
        small = {"channels": 4, "groups": "1x2:2 2x1:1"}
    known = {k: v for k, v in small.items() if hasattr(settings, k)}
    return known | more


def random_dataset(shape=(1, 6, 5), kind="bits", count=60, name="random") -> Dataset:
    """Images of noise around a few patterns; `kind` is bits, grey (uint8), float or deep (float of 4,096 levels)."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.rand(3, *shape, generator=generator)
    labels = torch.randint(3, (count,), generator=generator)
    images = (patterns[labels] + 0.1 * torch.randn(count, *shape, generator=generator)).clamp(0, 1)
    if kind == "bits":
        images = ((images > 0.5) * 255).to(torch.uint8)
    elif kind == "grey":
        images = (images * 255).to(torch.uint8)
    elif kind == "deep":
        images = (images * 4095).round() / 4095
    part = count // 3
    split = Split(images, labels)
    return Dataset(
        name,
        split[:part],
        split[part : 2 * part],
        split[2 * part :],
        black_and_white=kind == "bits",
        value_range=ValueRange(0, 4095, 4096, "uint16") if kind == "deep" else ValueRange(),
    )


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """No test reads or writes the user's cache."""
    monkeypatch.setenv("VAEKIT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def short_evaluation(monkeypatch):
    """Evaluations of few images, and of features from a classifier that has learned little."""
    monkeypatch.setattr("vaekit.evaluation.evaluate.TIME_BUDGET", 0.3)
    monkeypatch.setattr("vaekit.evaluation.frechet.IMAGES_SEEN", 600)


@pytest.fixture
def float64():
    """Seeds torch's noise, and makes float64 what new tensors are."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="session")
def mnist() -> Dataset:
    return load_data("mnist")


def shortened(mnist: Dataset) -> Dataset:
    """MNIST with 600 / 200 / 200 images."""
    return dataclasses.replace(
        mnist, train=mnist.train[:600], validation=mnist.validation[:200], test=mnist.test[:200]
    )


@pytest.fixture
def small_mnist(monkeypatch, mnist) -> Dataset:
    """MNIST cut short, for whoever loads "mnist" in this test."""
    small = shortened(mnist)
    monkeypatch.setitem(READERS, "mnist", lambda *_: small)
    return small


@pytest.fixture(scope="session")
def small_run(tmp_path_factory, mnist) -> Path:
    """A run directory of a small VAE, trained for two epochs on MNIST cut short. Not to be changed."""
    from vaekit import build, train

    small = shortened(mnist)
    out = tmp_path_factory.mktemp("runs") / "small"
    train(
        build("vae", small, latent_dim=3, hidden_dim=32), small, out=out, epochs=2, progress=False
    )
    return out


@pytest.fixture
def vaekit(monkeypatch, tmp_path, capsys):
    """Call the command line in an empty folder: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["vaekit", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return call
