"""Data-parallel training gives the result of a single process."""

import os
import shutil
import subprocess
import sys
import threading
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributions import Independent, Normal

import train_together
from conftest import TIMING, random_dataset
from vaekit import Run, resume
from vaekit.model.graph import Inference, Latent
from vaekit.model.objectives import elbo, infovae
from vaekit.settings.catalog import MODELS
from vaekit.support import distributed
from vaekit.training.loop import Epoch

HERE = Path(__file__).parents[1]
# Noise, several samples, labels, the codes of all processes, clusters, two levels and pseudo-inputs.
KINDS = ["vae", "iwae", "cvae", "infovae", "gmvae", "hvampprior"]
OWN_NOISE, DIES, CONTROL = "vae+own-noise", "vae+die", "vae+no-all-reduce"


def train_alone(out, *jobs):
    """Train jobs in this process."""
    functions = distributed.local_rows, distributed.all_reduce_gradients
    try:
        train_together.main(out, list(jobs))
    finally:
        distributed.local_rows, distributed.all_reduce_gradients = functions


def train_in_processes(count, out, *jobs):
    """Train jobs in processes that torchrun starts over loopback; return standard error."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--max-restarts", "3", "--nproc-per-node", str(count)]
    command += [str(HERE / "train_together.py"), str(out), *jobs]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    train_alone(folder / "1", *KINDS)
    stderr = train_in_processes(2, folder / "2", OWN_NOISE, DIES, CONTROL, *KINDS)
    (folder / "stderr").write_text(stderr)
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
    train_alone(tmp_path / "one", *MODELS)
    train_in_processes(count, tmp_path / "several", *MODELS)
    for name in MODELS:
        one, several = (metrics(tmp_path / n / name) for n in ("one", "several"))
        assert difference(several, one) < 1e-4, name


@pytest.mark.long
def test_three_processes_equal_one_whatever_the_size_of_the_last_batch(tmp_path):
    """Also if it has fewer rows than there are processes. (One code has no MMD, so infovae refuses a batch of one.)"""
    jobs = ["vae+last-1", *(f"{name}+last-{n}" for name in ("vae", "infovae") for n in (2, 3))]
    train_alone(tmp_path / "one", *jobs)
    train_in_processes(3, tmp_path / "several", *jobs)
    for job in jobs:
        one, several = (metrics(tmp_path / n / job) for n in ("one", "several"))
        assert difference(several, one) < 1e-5, job


class Processes:
    """Threads in the place of processes: each calls `work(rank)` with torch.distributed among them."""

    def __init__(self, count, monkeypatch):
        self.count, self.local = count, threading.local()
        self.barrier, self.slots = threading.Barrier(count), [None] * count
        monkeypatch.setattr(dist, "is_initialized", lambda: hasattr(self.local, "rank"))
        monkeypatch.setattr(dist, "get_world_size", lambda: count)
        monkeypatch.setattr(dist, "get_rank", lambda: self.local.rank)
        monkeypatch.setattr(dist, "get_backend", lambda: "gloo")
        monkeypatch.setattr(dist, "all_gather", self.all_gather)
        monkeypatch.setattr(dist, "all_reduce", self.all_reduce)

    def exchange(self, tensor):
        self.slots[self.local.rank] = tensor.clone()
        self.barrier.wait(timeout=10)
        gathered = list(self.slots)
        self.barrier.wait(timeout=10)
        return gathered

    def all_gather(self, gathered, tensor):
        for own, other in zip(gathered, self.exchange(tensor), strict=True):
            own.copy_(other)

    def all_reduce(self, tensor):
        tensor.copy_(sum(self.exchange(tensor)))

    def run(self, work):
        def as_rank(rank):
            self.local.rank = rank
            return work(rank)

        with ThreadPoolExecutor(self.count) as pool:
            return list(pool.map(as_rank, range(self.count)))


def assert_as_alone(step, count, monkeypatch):
    """Fails unless `step`, of rows to a gradient and this process's part of the loss, is the same in `count` processes,
    for batches of all sizes."""
    together = Processes(count, monkeypatch)
    for size in range(1, 2 * count + 1):
        batch = torch.arange(size)
        gradient, value = step(batch)
        results = together.run(lambda rank, batch=batch: step(batch))
        assert sum(part for _, part in results).item() == pytest.approx(value.item(), abs=1e-12)
        for each, _ in results:
            assert torch.allclose(each, gradient, atol=1e-12), size


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_the_mmd_of_several_processes_has_the_gradient_of_one(count, biased, monkeypatch, float64):
    """Up to rounding, for every number of rows from 1 on: in a batch smaller than the processes, some have none."""
    x, prior_z, encoder = torch.randn(2 * count, 4), torch.randn(2 * count, 2), torch.randn(4, 2)

    def step(batch):
        """The rows of this process as in training.loop, the encoder's gradient summed over processes, and the loss."""
        model, rows = torch.nn.Linear(4, 2, bias=False), distributed.local_rows(batch)
        model.weight.data = encoder.mT.clone()
        z, local = model(x[rows]), distributed.local_count(batch)
        sample = types.SimpleNamespace(sample=lambda: prior_z[rows])
        prior = types.SimpleNamespace(mean=prior_z, expand=lambda shape: sample)
        inference = Inference(x[rows], None, {"z": Latent(z, None, prior)})
        inference.__dict__["log_likelihood"] = -(z**2).sum(-1)
        with distributed.rows_in_batch(local):
            value = infovae(alpha=1.0, lambda_=20.0, biased=biased)(inference).mean()
        value.backward()
        if distributed.world_size() > 1:
            distributed.all_reduce_gradients(model, local / len(batch), 0.0)
        return model.weight.grad, local / len(batch) * value.detach()

    assert_as_alone(step, count, monkeypatch)


@pytest.mark.parametrize("count", [2, 3])
def test_the_free_bits_of_several_processes_are_of_the_whole_batch(count, monkeypatch, float64):
    """The first latent's mean KL is above the free bits, though not that of the first image, which may be all that a
    process has; that of the second is below. The row of a process that has none does not count."""
    x = torch.ones(2 * count, 2)
    x[0] = (
        0.1  # a KL of 0.02, of others 2: with the first image counted twice the mean of two would be 0.68, not 1.01
    )

    def step(batch):
        model, rows = torch.nn.Linear(2, 2, bias=False), distributed.local_rows(batch)
        model.weight.data = torch.tensor([[1.0, 1.0], [0.1, 0.3]])
        local, scales = distributed.local_count(batch), torch.ones(len(rows), 1)
        latents = {}
        for i, name in enumerate(("z2", "z1")):
            q = Independent(Normal(model(x[rows])[:, i : i + 1], scales), 1)
            latents[name] = Latent(q.mean, q, Independent(Normal(0 * scales, scales), 1))
        inference = Inference(x[rows], None, latents)
        inference.__dict__["log_likelihood"] = -(latents["z1"].z ** 2).sum(-1)
        with distributed.rows_in_batch(local):
            value = elbo(free_bits=0.8)(inference).mean()
        value.backward()
        if distributed.world_size() > 1:
            distributed.all_reduce_gradients(model, local / len(batch), 0.0)
        return model.weight.grad, local / len(batch) * value.detach()

    assert_as_alone(step, count, monkeypatch)


def test_without_all_reduce_they_differ(outcomes):
    one, control = (metrics(outcomes / n) for n in ("1/vae", f"2/{CONTROL}"))
    assert difference(control, one) > 1e-3


def test_after_a_process_dies_torchrun_restarts_all_and_nothing_is_lost(outcomes):
    """With independent noise per process, whose generator states are in the checkpoint."""
    stderr = (outcomes / "stderr").read_text()
    assert "SIGKILL" in stderr or "Signal 9" in stderr or "-9" in stderr
    one, other = outcomes / "2" / OWN_NOISE, outcomes / "2" / DIES
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    assert metrics(one) == metrics(other)


def test_a_run_resumes_with_another_number_of_processes(outcomes, tmp_path):
    run = shutil.copytree(outcomes / "2" / "vae", tmp_path / "run")
    data = random_dataset(shape=(1, 8, 8))
    resume(run, data, epochs=4, progress=False)
    epochs = Run(run).metrics
    assert len(epochs) == 4
    assert epochs[3]["train_elbo"] > epochs[1]["train_elbo"]
