"""Golden losses: 20 training steps in float64 with fixed weights, images and noise.

They change with the maths or the architecture of a model, and must not change when code only moves.
After an intended change: python tests/model/test_golden.py [CASE ...]; inspect the difference, commit it, say why.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from vaekit import MODELS, build
from vaekit.model.build import objective_of
from vaekit.model.objectives import iwae
from vaekit.settings.model import LadderConfig
from vaekit.training.step import Loss

FILE = Path(__file__).parents[1] / "golden" / "losses.json"
CASES = {
    **{
        name: {"pseudo_inputs": "noise", "components": 4} if "vamp" in name else {}
        for name in MODELS
    },
    "vae-gaussian-shared": {"likelihood": "gaussian"},
    "vae-gaussian-each": {"likelihood": "gaussian", "scale": "each"},
    "vae-logistic": {"likelihood": "logistic"},
    "vae-gated": {"activation": "gated"},
    "vae-iwae5": {},
    "convvae-colour": {"likelihood": "logistic", "activation": "gated"},
}


def losses(case: str) -> list[float]:
    """The losses of 20 steps of Adam. All noise is numpy's: the values do not depend on the version of torch."""
    generator = np.random.default_rng(0)
    shape = (3, 6, 5) if "colour" in case else (1, 6, 5)
    name = case.split("-")[0]
    sizes = {"latent_dim": 3, "hidden_dim": 8, "channels": 4, "classes": 3}
    if isinstance(MODELS[name].settings, LadderConfig):
        sizes = {"channels": 4, "classes": 3}
    model = build(name, shape, **sizes, **CASES[case]).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.from_numpy(generator.normal(0, 0.3, tuple(parameter.shape))))
    x = torch.from_numpy(generator.integers(0, 256, (10, *shape)) / 255)
    if model.blueprint.settings.likelihood == "bernoulli":
        x = x.round()
    loss = Loss(model, iwae(5) if "iwae" in case else objective_of(model.blueprint))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    values = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "torch.distributions.normal._standard_normal",
            lambda shape, dtype, device: torch.from_numpy(generator.normal(size=tuple(shape))),
        )
        patch.setattr(
            "torch.normal",
            lambda loc, scale: loc + scale * torch.from_numpy(generator.normal(size=loc.shape)),
        )
        for _ in range(20):
            optimizer.zero_grad()
            value = loss(x, torch.arange(10) % 3)[0]
            value.backward()
            optimizer.step()
            values.append(value.item())
    return values


@pytest.mark.parametrize("case", CASES)
def test_losses_are_unchanged(case):
    golden = json.loads(FILE.read_text())[case]
    assert losses(case) == pytest.approx(golden, rel=1e-8)


def test_every_golden_case_is_tested():
    assert set(json.loads(FILE.read_text())) == set(CASES)


if __name__ == "__main__":
    FILE.parent.mkdir(exist_ok=True)
    golden = json.loads(FILE.read_text()) | {c: losses(c) for c in sys.argv[1:] or CASES}
    FILE.write_text(json.dumps({case: golden[case] for case in CASES}, indent=1) + "\n")
