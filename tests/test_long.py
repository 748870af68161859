"""Full counts of what the other files test in brief: `make test-long`."""

import random
import shutil

import pytest
import torch

from test_theory import ALL_2X2, quadrature
from vaekit import Run, UserError, build, load
from vaekit.data import Split
from vaekit.likelihood.importance import measure_nll
from vaekit.support.console import Shown

pytestmark = pytest.mark.long


def mutate(content: bytes, chance: random.Random) -> bytes:
    """A few bytes changed, or a piece cut out, doubled or cut off."""
    content = bytearray(content)
    kind = chance.randrange(4)
    start = chance.randrange(len(content))
    end = min(len(content), start + chance.randrange(1, 20))
    if kind == 0:
        for _ in range(chance.randrange(1, 6)):
            content[chance.randrange(len(content))] = chance.randrange(256)
    elif kind == 1:
        del content[start:end]
    elif kind == 2:
        content[start:start] = content[start:end]
    else:
        del content[start:]
    return bytes(content)


def read_all(run):
    """Read a run directory as the verbs do."""
    load(run)
    place = Run(run)
    _ = place.best, place.training, place.source, place.data
    place.load_state()
    place.cut_metrics(2)


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
    kept = {path.name: path.read_bytes() for path in run.iterdir()}
    original = kept[name]
    chance = random.Random(0)
    head = 2000  # of the weights, the header is what can confuse; it is at the front
    said = []
    for _ in range(count):
        changed = mutate(original[:head], chance) + original[head:]
        for path, content in kept.items():
            (run / path).write_bytes(changed if path == name else content)
        try:
            read_all(run)
        except UserError as error:
            said.append(str(error))
            continue
        assert refused < 1 or changed == original
    assert len(said) > refused * count * 0.9
    assert not [text for text in said if "\n" in text]


@pytest.fixture
def _float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("_float64")
@torch.no_grad()
def test_importance_sampled_nll_is_within_its_error_of_quadrature_as_often_as_it_should():
    """40 random models: errors in units of the stated one have mean 0 and variance 1 (4 standard errors each)."""
    samples, z_scores = 5000, []
    for seed in range(40):
        torch.manual_seed(seed)
        vae = build("vae", (1, 2, 2), latent_dim=1, hidden_dim=8, activation="tanh").double()
        for name, parameter in vae.named_parameters():
            size = 1.0 if "decoder" in name else 0.2
            parameter.copy_(size * torch.randn_like(parameter))
        images = ALL_2X2
        found = measure_nll(vae, Split(images), samples, Shown(False))
        exact = quadrature(vae, images, 1).mean()
        z_scores.append(float(found.first.mean() - exact) / found.standard_error)
    z = torch.tensor(z_scores)
    assert abs(z.mean()) < 4 / 40**0.5
    assert abs((z**2).mean() - 1) < 4 * (2 / 40) ** 0.5
