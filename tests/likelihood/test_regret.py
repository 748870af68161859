"""Likelihood regret against the closed forms of linear-Gaussian models: it is the KL to the exact posterior.

The ELBO of an image is from 400 samples here; means over 40 images then have standard errors below 1 %.
"""

import pytest
import torch
from torch import nn

from linear_gaussian import MEAN, SHAPE, SIGMA, LinearDecoder, factors, linear_vae
from model_cases import images, labels, small
from vaekit import UserError
from vaekit.data import EvalSplit, Split
from vaekit.likelihood import regret
from vaekit.likelihood.regret import likelihood_regret
from vaekit.model.distributions import gaussian, independent
from vaekit.model.graph import VAE
from vaekit.model.priors import StandardNormal
from vaekit.support.console import ProgressBar
from vaekit.support.devices import seeded

QUIET = ProgressBar(False)


@pytest.fixture
def many_samples(monkeypatch):
    monkeypatch.setattr(regret, "GROUPS", 200)


def split(count=40, shape=SHAPE):
    with seeded(0):
        return EvalSplit(Split(torch.rand(count, *shape)), "none")


@pytest.mark.parametrize(
    ("shift", "factor"), [(5.0, 0.5), pytest.param(2.0, 1.5, marks=pytest.mark.long)]
)
def test_the_regret_is_the_kl_to_the_exact_posterior(shift, factor, many_samples):
    found = likelihood_regret(linear_vae(2, shift, factor), split(), QUIET, steps=100)
    of_one = (factor**2 + shift**2 - 1) / 2 - torch.tensor(factor).log()
    assert found.shape == (40,)
    assert abs(float(found.mean()) / (2 * float(of_one)) - 1) < 0.03


def test_at_the_exact_posterior_the_regret_is_zero(many_samples):
    found = likelihood_regret(linear_vae(2), split(), QUIET)
    assert (found >= 0).all()
    assert found.max() < 0.04


def test_more_steps_find_more_and_few_never_less_than_nothing(many_samples):
    model = linear_vae(2, 6.0, 1.0)
    few, many = (likelihood_regret(model, split(8), QUIET, steps=n) for n in (1, 40))
    assert (few >= 0).all()
    assert (many > few + 1).all()


class Two(nn.Module):
    """q(z2 | x), and q(z1 | x, z2): exact, but `shift` standard deviations off."""

    def __init__(self, name, weight, shift):
        super().__init__()
        self.name, self.given = name, ("x",) if name == "z2" else ("x", "z2")
        self.w1, self.w2 = weight.T
        self.shift = shift

    def forward(self, values):
        x = values["x"].flatten(1) - MEAN
        noise = SIGMA**2 * torch.eye(len(MEAN))
        if self.name == "z2":
            w, covariance = self.w2, noise + torch.outer(self.w1, self.w1)
        else:
            w, covariance = self.w1, noise
            x = x - values["z2"] * self.w2
        precise = torch.linalg.solve(covariance, w)
        scale = (1 + w @ precise) ** -0.5
        loc = scale**2 * (x @ precise)[..., None] + self.shift * scale
        return independent(gaussian(loc, scale.expand_as(loc)), 1)


class TwoDecoder(LinearDecoder):
    def forward(self, values):
        z1, z2 = torch.broadcast_tensors(values["z1"], values["z2"])
        return super().forward({"z": torch.cat([z1, z2], -1)})


def test_of_two_levels_it_is_the_kl_of_both(many_samples):
    """The optimum needs that q(z1 | x, z2) still depends on z2: the columns of the decoder are not orthogonal."""
    weight = factors(2)
    weight[:, 0] += 0.5 * weight[:, 1]
    priors = {"z2": StandardNormal(1), "z1": StandardNormal(1)}
    posteriors = {"z2": Two("z2", weight, 2.0), "z1": Two("z1", weight, -3.0)}
    model = VAE(priors, posteriors, TwoDecoder(weight), linear_vae().blueprint)
    found = likelihood_regret(model, split(), QUIET, steps=100)
    assert abs(float(found.mean()) / (2.0**2 / 2 + 3.0**2 / 2) - 1) < 0.03


SMALL = ["vae", "hvampprior", "gmvae", "deepvae", "cvae", "quadrants", "hvae with a flow prior"]


@pytest.mark.parametrize("name", SMALL)
def test_every_model_with_gaussian_posteriors_has_one_which_leaves_its_weights_alone(name):
    model = small(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    x = Split(images(3, model.blueprint.shape), labels(3))
    found = likelihood_regret(model, EvalSplit(x, "none"), QUIET, steps=3)
    assert (found >= 0).all()
    assert found.shape == (3,)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("name", ["flow posterior", "deterministic mmdvae"])
def test_other_posteriors_are_refused(name):
    model = small(name)
    x = EvalSplit(Split(images(2, model.blueprint.shape)), "none")
    with pytest.raises(UserError, match="optimises Gaussian posteriors"):
        likelihood_regret(model, x, QUIET)
