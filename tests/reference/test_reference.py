"""vaekit beside the reference of this folder, which is written from the papers in NumPy: one case of each model.

`python tests/reference/table.py` compares all cases, objectives and seeds.
"""

import pytest
import torch

from reference import heads
from reference.compare import densities, estimates, gradients, objective_values
from reference.pairs import CASES, Pair
from vaekit.settings.catalog import MODELS

# Of differences, relative to values above 1; those found in float64 are below 2e-11.
BOUND = 1e-10
BOUND_FLOAT32 = 2e-5  # of a logistic of scale 0.001, since float32 rounds the levels k / 255
VARIANTS = (
    "quadrants",
    "conditional prior",
    "learned mixture",
    "gaussian, a scale per pixel",
    "logistic mixture, quadrants",
    "two halvings",
)


@pytest.mark.parametrize("name", [*MODELS, *VARIANTS])
def test_every_model_agrees_with_the_papers(name):
    pair = Pair(name, 0)
    for check in (densities, objective_values, estimates):
        found = check(pair)
        assert found
        assert {k: v for k, v in found.items() if not v < BOUND} == {}, check.__name__
    found = gradients(pair, count=1, default_only=name != "iwae")
    assert {k: v for k, v in found.items() if not v < BOUND} == {}


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float64, BOUND), (torch.float32, BOUND_FLOAT32)]
)
def test_every_density_agrees_with_its_paper(dtype, bound):
    found = heads.differences(0, dtype)
    assert {k: v for k, v in found.items() if not v < bound} == {}


def test_float32_is_near_the_papers_too():
    for name in ("vae", "hvampprior", "gmvae"):
        found = objective_values(Pair(name, 0, torch.float32))
        assert {k: v for k, v in found.items() if not v < 2e-4} == {}


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_every_case_agrees_with_the_papers(name):
    pair = Pair(name, 1)
    for check in (densities, objective_values, gradients, estimates):
        found = check(pair)
        assert {k: v for k, v in found.items() if not v < BOUND} == {}, check.__name__
