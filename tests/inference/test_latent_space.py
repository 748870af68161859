"""The latent space: interpolation, the prior as a mixture, and projections, against formulas and integrals."""

import math

import numpy as np
import pytest
import torch

from model_cases import CASES, CLASSES, small
from vaekit import UserError
from vaekit.inference.latent_space import (
    decode_latents,
    decoder_latents,
    interpolate,
    neighbour_embedding,
    principal_axes,
    prior_mixture,
)


def test_linear_interpolation_has_equal_steps():
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([3.0, -2.0])
    assert torch.allclose(interpolate(a, b, 3), torch.tensor([[1.0, 2.0], [2.0, 0.0], [3.0, -2.0]]))


def test_spherical_interpolation_keeps_the_norm_and_has_equal_angles(float64):
    a, b = torch.tensor([3.0, 0.0, 0.0]), torch.tensor([0.0, 3.0, 0.0])
    found = interpolate(a, b, 4, spherical=True)
    angles = torch.linspace(0, math.pi / 2, 4)
    assert torch.allclose(
        found, torch.stack([3 * angles.cos(), 3 * angles.sin(), 0 * angles], dim=1)
    )
    longer = interpolate(a, 2 * b, 7, spherical=True)
    assert torch.allclose(longer[0], a)
    assert torch.allclose(longer[-1], 2 * b)


@pytest.mark.parametrize("b", [[2.0, 4.0], [-1.0, -2.0], [0.0, 0.0], [5.0, 10.0]])
def test_spherical_interpolation_without_an_angle_is_linear(b):
    a, b = torch.tensor([1.0, 2.0]), torch.tensor(b)
    assert torch.allclose(interpolate(a, b, 5, spherical=True), interpolate(a, b, 5))


@pytest.mark.parametrize("case", CASES)
def test_latents_at_their_posterior_means_decode_to_the_reconstruction(case):
    model = small(case).eval()
    if model.blueprint.settings.condition.startswith("quadrants"):
        pytest.skip("a model that completes images cannot decode latents alone")
    x, y = torch.rand(5, 1, 9, 6), torch.arange(5) % CLASSES
    with torch.no_grad():
        values = model.given(x, y)
        for name, posterior in model.posterior.items():
            values[name] = posterior(values).mean
    labels = y if model.blueprint.settings.condition == "label" else None
    fixed = {name: values[name] for name in decoder_latents(model)}
    assert torch.allclose(
        decode_latents(model, fixed, labels), model.reconstruct(x, y).mean, atol=1e-6
    )


def test_latents_that_are_not_fixed_are_at_the_mean_of_their_prior():
    model = small("hvae").eval()
    z2 = torch.randn(1500, 20)  # more than one batch
    with torch.no_grad():
        z1 = model.prior["z1"]({"x": None, "y": None, "z2": z2}).mean
        expected = model.decoder({"z1": z1, "z2": z2}).mean
    assert torch.allclose(decode_latents(model, {"z2": z2}), expected, atol=1e-6)
    assert decoder_latents(small("gmvae")) == ["z"]
    assert decoder_latents(model) == ["z2", "z1"]


@pytest.mark.parametrize("case", ["vae", "learned-mixture", "mixturevae", "vampprior"])
def test_the_mixture_of_a_single_latents_prior_is_its_density(case):
    model = small(case, latent_dim=2).eval()
    mixture = prior_mixture(model, "z")
    z = 2 * torch.randn(100, 2)
    with torch.no_grad():
        exact = model.prior["z"]({"x": None, "y": None}).log_prob(z)
    found = mixture.project(torch.eye(2), torch.zeros(2)).log_prob(z)
    assert torch.allclose(found, exact, atol=1e-4)  # the projection adds 1e-6 to variances
    assert (mixture.centres is None) == (case == "vae")


def test_the_mixture_below_another_latent_averages_over_it():
    """The means of p(z1) from 64 samples of z2 and from 20,000 others agree within a few standard errors."""
    model = small("hvae", latent_dim=2).eval()
    with torch.no_grad():  # a prior of z1 that is far from a single Gaussian
        model.prior["z1"].network.last.weight *= 5
    mixture = prior_mixture(model, "z1")
    assert mixture.loc.shape == (64, 2)
    samples = mixture.sample(20_000)
    torch.manual_seed(5)
    with torch.no_grad():
        z2 = torch.randn(20_000, 20)
        z1 = model.prior["z1"]({"x": None, "y": None, "z2": z2}).sample()
    # The standard error of a mean over 64 samples of z2 is 1/8 of the standard deviation.
    for d in range(2):
        error = float(mixture.loc[:, d].std()) / 8
        assert abs(float(samples[:, d].mean() - z1[:, d].mean())) < 4 * error + 0.05


def test_a_projection_is_the_density_of_projected_samples():
    """A mixture in 4 dimensions, projected obliquely: the share of 200,000 samples in a square is the integral over it,
    within 5 standard errors (fails by chance once in a million)."""
    model = small("learned-mixture", latent_dim=4).eval()
    with torch.no_grad():
        model.prior["z"].logits[:] = torch.tensor([0.0, 1.0, -1.0])
    mixture = prior_mixture(model, "z")
    axes, centre = (
        torch.tensor([[1.0, 0.0], [0.5, 1.0], [0.0, -1.0], [0.2, 0.3]]),
        torch.full((4,), 0.3),
    )
    points = (mixture.sample(200_000) - centre) @ axes
    side = torch.linspace(-1, 1.5, 201)
    middles = (side[:-1] + side[1:]) / 2
    grid = torch.cartesian_prod(middles, middles)
    mass = float(mixture.project(axes, centre).log_prob(grid).exp().sum()) * (2.5 / 200) ** 2
    inside = ((points > -1) & (points < 1.5)).all(1).float()
    assert abs(float(inside.mean()) - mass) < 5 * float(inside.std()) / math.sqrt(len(inside))


def test_principal_axes_are_those_of_the_covariance(float64):
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(500, 4, generator=generator) * torch.tensor([3.0, 0.1, 2.0, 0.1]) + 7
    centre, axes, shares = principal_axes(codes)
    assert torch.allclose(centre.double(), codes.mean(0), atol=1e-5)
    values, vectors = np.linalg.eigh(np.cov(codes.numpy().T))
    for i in (0, 1):
        assert (
            abs(abs(float(axes[:, i].double() @ torch.from_numpy(vectors[:, -1 - i]))) - 1) < 1e-5
        )
        assert float(shares[i]) == pytest.approx(values[-1 - i] / values.sum())


def test_separate_groups_stay_separate_in_an_embedding():
    """Two groups far apart in 6 dimensions are apart in 2."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(60, 6, generator=generator)
    codes[30:] += 30
    points = neighbour_embedding(codes, "tsne")
    assert points.shape == (60, 2)
    groups = points[:30], points[30:]
    distance = np.linalg.norm(groups[0].mean(0) - groups[1].mean(0))
    assert distance > 2 * max(np.linalg.norm(g - g.mean(0), axis=1).max() for g in groups)
    assert np.array_equal(points, neighbour_embedding(codes, "tsne"))


def test_umap_reports_the_missing_package(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(UserError, match=r"pip install 'vaekit\[umap\]'"):
        neighbour_embedding(torch.randn(20, 5), "umap")


def test_labels_match_their_latents_in_every_batch():
    model, z = small("cvae").eval(), torch.randn(1500, 3)
    y = torch.cat([torch.zeros(1000), torch.ones(500)]).long()
    with torch.no_grad():
        expected = model.decode(y, z=z).mean
    assert torch.allclose(decode_latents(model, {"z": z}, y), expected, atol=1e-6)


def test_a_conditional_prior_averages_over_all_labels():
    assert len(prior_mixture(small("conditional prior"), "z").loc.unique(dim=0)) == CLASSES
    many = small("conditional prior", classes=100)
    assert len(prior_mixture(many, "z").loc.unique(dim=0)) == 100


def test_the_centres_of_clusters_are_taken_at_the_mean_of_w():
    model = small("gmvae").eval()
    with torch.no_grad():
        model.prior["z"].network.last.weight *= 5
        expected = model.prior["z"]({"x": None, "y": None, "w": torch.zeros(1, 2)}).loc[0]
    assert torch.allclose(prior_mixture(model, "z").centres, expected, atol=1e-6)
