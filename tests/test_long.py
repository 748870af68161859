"""Tests of the other files with full counts: `make test-long`."""

import random
import shutil

import pytest
import torch

from exact import ALL_2X2, quadrature
from mutations import mutate
from vaekit import Run, UserError, build, load
from vaekit.data import Split
from vaekit.likelihood.importance import measure_nll
from vaekit.support.console import ProgressBar

pytestmark = pytest.mark.long


def read_all(path):
    """Read everything in a run directory, as the commands do."""
    load(path)
    run = Run(path)
    _ = run.best, run.training, run.source, run.data
    run.load_state()
    run.truncate_metrics(2)


@pytest.mark.parametrize(
    ("name", "count", "refused"),
    [
        ("config.json", 4000, 0.2),
        ("metrics.jsonl", 2000, 0.2),
        ("model.safetensors", 2000, 0.2),
        ("state.safetensors", 2000, 1.0),
    ],
)
def test_a_mutated_run_loads_or_is_refused_in_one_line(small_run, tmp_path, name, count, refused):
    run = shutil.copytree(small_run, tmp_path / "run")
    files = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    original = files[name]
    rng = random.Random(0)
    head = 2000  # bytes that are mutated: in files of tensors, the header
    messages = []
    for _ in range(count):
        changed = mutate(original[:head], rng) + original[head:]
        for path, content in files.items():
            (run / path).write_bytes(changed if path == name else content)
        try:
            read_all(run)
        except UserError as error:
            messages.append(str(error))
            continue
        assert refused < 1 or changed == original
    assert len(messages) > refused * count * 0.9
    assert not [text for text in messages if "\n" in text]


@pytest.fixture
def _float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("_float64")
@torch.no_grad()
def test_errors_of_the_importance_sampled_nll_match_its_standard_error():
    """40 random models against quadrature: z-scores have mean 0 and variance 1 (within 4 standard errors each)."""
    samples, z_scores = 5000, []
    for seed in range(40):
        torch.manual_seed(seed)
        vae = build("vae", (1, 2, 2), latent_dim=1, hidden_dim=8, activation="tanh").double()
        for name, parameter in vae.named_parameters():
            size = 1.0 if "decoder" in name else 0.2
            parameter.copy_(size * torch.randn_like(parameter))
        images = ALL_2X2
        found = measure_nll(vae, Split(images), samples, ProgressBar(False))
        exact = quadrature(vae, images, 1).mean()
        z_scores.append(float(found.log_mean.mean() - exact) / found.standard_error)
    z = torch.tensor(z_scores)
    assert abs(z.mean()) < 4 / 40**0.5
    assert abs((z**2).mean() - 1) < 4 * (2 / 40) ** 0.5
