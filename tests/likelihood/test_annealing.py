"""log p(x) by annealed importance sampling and by HMC, against quadrature and closed forms.

Noise is seeded. A bound of 3 standard errors (4 where several numbers are compared) would be crossed by chance in 1 of
370 (16,000) seeds.
"""

import itertools
import math

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal

from vaekit import MODELS, UserError, build
from vaekit.data.dataset import Batch
from vaekit.likelihood import annealing
from vaekit.likelihood.annealing import (
    JointDensity,
    anneal,
    annealed_log_weights,
    hmc_step,
    inverse_temperatures,
    reciprocal_log_likelihood,
)
from vaekit.model.distributions import Conditional, LocationScaleHead, gaussian, posterior_head
from vaekit.model.graph import VAE
from vaekit.model.priors import StandardNormal
from vaekit.settings.model import Blueprint, ModelConfig
from vaekit.support.devices import seeded

NOISE = {"pseudo_inputs": "noise", "components": 3}
# Models of two latent dimensions altogether: (model, settings, the latents' dimensions in order).
SMALL = {
    "vae": ("vae", {}, (2,)),
    "deterministic": ("mmdvae", {"posterior": "deterministic"}, (2,)),
    "hvae": ("hvae", {"latent_dim": 1, "top_dim": 1}, (1, 1)),
    "gmvae": ("gmvae", {"latent_dim": 1, "w_dim": 1, "clusters": 3}, (1, 1)),
    "cvae": ("cvae", {"prior": "conditional"}, (2,)),
    "quadrants": ("cvae", {"condition": "quadrants:1"}, (2,)),
    "vampprior": ("vampprior", NOISE, (2,)),
    "flow of labels": (
        "cvae",
        {"prior": "flow", "flow": "affine-autoregressive", "flow_steps": 2, "flow_dim": 8},
        (2,),
    ),
    "mixture": ("vae", {"prior": "learned-mixture", "components": 3}, (2,)),
    "gaussian": ("vae", {"likelihood": "gaussian", "scale": 1.0}, (2,)),
    "continuous": ("vae", {"likelihood": "continuous-bernoulli"}, (2,)),
}


def batch(count, shape=(1, 2, 2)):
    """Binary images, 16 different ones repeated, and labels."""
    bits = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4)))
    pixels = bits.repeat(math.ceil(count / 16), math.ceil(math.prod(shape) / 4))
    images = pixels[:count, : math.prod(shape)].reshape(-1, *shape)
    return Batch(images, torch.arange(count) % 16 % 3)


def small(name):
    """A model whose decoder is far from constant and whose posterior is wrong, in float64."""
    model, settings, _ = SMALL[name]
    sizes = {"latent_dim": 2, "hidden_dim": 8, "activation": "tanh", "classes": 3}
    vae = build(model, (1, 2, 2), seed=3, **{**sizes, **settings}).eval()
    with torch.no_grad():
        for key, parameter in vae.named_parameters():
            parameter.copy_((1.0 if "decoder" in key else 0.3) * torch.randn_like(parameter))
    return vae.double()


@torch.no_grad()
def quadrature(name, model, few):
    """log p(x) by the trapezoid rule on [-9, 9]^2, over both latent dimensions."""
    line = torch.linspace(-9, 9, 301)
    grid = torch.cartesian_prod(line, line).unsqueeze(1)
    values, log_joint = model.given(few.images, few.labels), torch.zeros(())
    for latent, z in zip(model.prior, grid.split(SMALL[name][2], dim=-1), strict=True):
        log_joint = log_joint + model.prior[latent](values).log_prob(z)
        values[latent] = z
    log_joint = log_joint + model.decoder(values).log_prob(few.images)
    return log_joint.logsumexp(0) + 2 * math.log(float(line[1] - line[0]))


def check_mean_is_one(ratios, error_below):
    """Within 3 standard errors, which must be small themselves."""
    error = float(ratios.std()) / math.sqrt(ratios.numel())
    assert error < error_below
    assert abs(float(ratios.mean()) - 1) < 3 * error


LONGER = [pytest.param(name, marks=pytest.mark.long) for name in ("vae", "gaussian")]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", SMALL)
def test_annealed_weights_have_the_mean_of_quadrature(name):
    """E[w] = p(x), for few temperatures too."""
    model, few = small(name), batch(16)
    log_weights = annealed_log_weights(model, few, chains=200, temperatures=20, leapfrogs=3)
    assert log_weights.shape == (200, 16)
    check_mean_is_one((log_weights - quadrature(name, model, few)).exp(), error_below=0.06)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", ["deterministic", "hvae", "gmvae", *LONGER])
def test_reciprocals_have_the_mean_of_quadrature(name):
    """E[1 / estimate] = 1 / p(x) at equilibrium; each of 16 images is estimated 3 times."""
    model, many = small(name), batch(48)
    estimate = reciprocal_log_likelihood(model, many, temperatures=50, hmc_steps=15)
    assert estimate.shape == (48,)
    exact = quadrature(name, model, batch(16)).repeat(3)
    check_mean_is_one((exact - estimate).exp(), error_below=0.03)


@pytest.mark.usefixtures("float64")
def test_more_temperatures_tighten_the_bound():
    """E[log w] <= log p(x) rises to it; steps between are over 10 standard errors."""
    model, few = small("vae"), batch(16)
    exact = quadrature("vae", model, few).mean()
    bounds = [annealed_log_weights(model, few, 100, t, 3).mean() for t in (1, 4, 16, 64)]
    assert bounds == sorted(bounds)
    assert exact - 0.25 < bounds[-1] < exact


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", ["hvae", "gmvae", "cvae", "vampprior", "mixture"])
def test_one_temperature_is_the_mean_likelihood_over_the_prior(name):
    model, few = small(name), batch(16)
    log_weights = annealed_log_weights(model, few, chains=4000, temperatures=1, leapfrogs=1)
    check_mean_is_one((log_weights - quadrature(name, model, few)).exp(), error_below=0.03)


@pytest.mark.usefixtures("float64")
@torch.no_grad()
def test_step_sizes_depend_on_the_pilot_chains_alone():
    """Else E[w] = p(x) would not hold: the transitions would depend on the chain itself."""
    joint = JointDensity(small("hvae"), batch(3))
    z = joint.sample(10)

    def step(moved):
        start = z.clone()
        start[moved] += 1
        with seeded(0):
            return anneal(joint, start, 4, 6, 2, iter)[2]

    assert torch.equal(step([]), step([4, 9]))
    assert not torch.isclose(step([]), step([3])).any()


def test_temperatures_go_from_the_prior_to_the_posterior():
    betas = inverse_temperatures(7)
    assert len(betas) == 8
    assert (betas[0], betas[-1]) == (0, 1)
    assert all(a < b for a, b in itertools.pairwise(betas))


# A linear decoder, with known posterior and p(x): x = W z + b + sigma e


def linear_vae(sigma=0.4, pixels=6, latents=2):
    head = LocationScaleHead(gaussian, event_dim=1, scale=sigma, initial=0.5, floor=1e-3)
    return VAE(
        prior={"z": StandardNormal(latents)},
        posterior={"z": Conditional(("x",), nn.Linear(pixels, 2 * latents), posterior_head())},
        decoder=Conditional(("z",), nn.Linear(latents, pixels), head),
        blueprint=Blueprint("vae", (1, 1, pixels), ModelConfig()),
    ).to(torch.get_default_dtype())


@torch.no_grad()
def linear_answers(vae, x, sigma):
    """log N(x; b, W W' + sigma^2), and the posterior N(M^-1 W'(x - b) / sigma^2, M^-1), M = 1 + W'W / sigma^2."""
    w, b = vae.decoder.network.weight, vae.decoder.network.bias
    exact = MultivariateNormal(b, w @ w.T + sigma**2 * torch.eye(len(b))).log_prob(x)
    covariance = torch.linalg.inv(torch.eye(w.shape[1]) + w.T @ w / sigma**2)
    return exact, (x - b) @ w @ covariance / sigma**2, covariance


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("latents", "dtype"), [(2, torch.float32), (5, torch.float64)])
def test_a_linear_model_has_its_closed_form(latents, dtype):
    vae = linear_vae(latents=latents)
    x = vae.sample(12).sample()
    exact, _, _ = linear_answers(vae, x, 0.4)
    vae, few = vae.to(dtype), Batch(x.to(dtype))
    log_weights = annealed_log_weights(vae, few, chains=50, temperatures=200, leapfrogs=5)
    assert log_weights.std(0).mean() < 0.6
    check_mean_is_one((log_weights - exact).exp(), error_below=0.03)
    estimate = reciprocal_log_likelihood(vae, few, temperatures=50)
    check_mean_is_one((exact - estimate).exp(), error_below=0.05)


@pytest.mark.usefixtures("float64")
def test_narrow_posteriors_in_five_dimensions_are_sampled():
    """With standard deviations near 0.01, for which the initial step size is much too large."""
    vae = linear_vae(0.02, 8, 5)
    x = vae.sample(6).sample()
    exact, _, _ = linear_answers(vae, x, 0.02)
    estimate = reciprocal_log_likelihood(vae, Batch(x), temperatures=150)
    assert (estimate - exact).abs().max() < 1
    assert abs(float((estimate - exact).mean())) < 0.3


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("beta", [0.0, 1.0])
@torch.no_grad()
def test_transitions_preserve_and_reach_their_distribution(beta):
    """From one state; means and variances of 3,000 chains within 4 standard errors of the closed form.

    At the prior, five leapfrogs of this size, without a random part, end where they started.
    """
    vae, x = linear_vae(), torch.randn(1, 6)
    _, mean, covariance = linear_answers(vae, x, 0.4)
    if beta == 0:
        mean, covariance = torch.zeros(1, 2), torch.eye(2)
    joint = JointDensity(vae, Batch(x))
    state = joint.evaluate(torch.ones(3000, 1, 2))
    circle = math.sqrt(2 - 2 * math.cos(2 * math.pi / 5))
    step = circle * covariance.diagonal().min().sqrt().view(1, 1)
    for _ in range(30):
        state, probability = hmc_step(joint, state, beta, step, leapfrogs=5)
    z = state.z.squeeze(1)
    assert ((z.mean(0) - mean).abs() < 4 * (covariance.diagonal() / 3000).sqrt()).all()
    spread = covariance.diagonal() * math.sqrt(2 / 3000)
    assert ((z.var(0) - covariance.diagonal()).abs() < 4 * spread).all()
    assert 0.5 < probability.mean() < 1
    # The fields of the state belong to its z.
    for estimate, expected in zip(state, joint.evaluate(state.z), strict=True):
        assert torch.allclose(estimate, expected)


@torch.no_grad()
def test_a_trajectory_that_overflows_is_rejected():
    vae = linear_vae()
    joint = JointDensity(vae, Batch(vae.sample(2).sample()))
    state = joint.evaluate(joint.sample(5))
    after, probability = hmc_step(joint, state, 1.0, torch.full((2, 1), 1e30), leapfrogs=3)
    assert (probability == 0).all()
    assert all(map(torch.equal, after, state))


@torch.no_grad()
def test_the_pilot_chains_are_left_out(monkeypatch):
    weights = torch.arange(7.0).unsqueeze(1)
    monkeypatch.setattr(annealing, "anneal", lambda *_: (None, weights, None))
    estimate = annealed_log_weights(tiny("vae"), batch(1, (1, 9, 6)), chains=3)
    assert estimate.flatten().tolist() == [4, 5, 6]


def test_each_image_resamples_its_chains_by_its_own_weights(monkeypatch):
    seen, real = [], torch.multinomial
    monkeypatch.setattr(
        torch,
        "multinomial",
        lambda weights, *a, **k: seen.append(weights) or real(weights, *a, **k),
    )
    reciprocal_log_likelihood(tiny("vae"), batch(3, (1, 9, 6)), 12, 4, 1, 1)
    (weights,) = seen
    assert weights.shape == (3, 12)
    assert torch.allclose(weights.sum(1), torch.ones(3, dtype=weights.dtype))


# Every model


def tiny(name, **settings):
    extra = NOISE if "vamp" in name else {}
    sizes = {"latent_dim": 3, "hidden_dim": 16, "channels": 4}
    if name == "deepvae":
        sizes = {"channels": 4, "groups": "1x2:2"}
    return build(
        name,
        (1, 9, 6),
        **{**sizes, "classes": 3, **extra, **settings},
    ).eval()


@pytest.mark.parametrize("name", MODELS)
def test_every_model_is_estimated_and_left_unchanged(name):
    top = {"top_dim": 2} if name.startswith("h") else {}
    model, few = tiny(name, **top), batch(4, (1, 9, 6))
    next(model.parameters()).requires_grad_(False)
    before = [(p.clone(), p.requires_grad) for p in model.parameters()]
    log_weights = annealed_log_weights(model, few, chains=3, temperatures=4, leapfrogs=2)
    estimate = reciprocal_log_likelihood(
        model, few, chains=12, temperatures=4, hmc_steps=2, leapfrogs=2
    )
    assert log_weights.shape == (3, 4)
    assert log_weights.isfinite().all()
    assert estimate.isfinite().all()
    assert not log_weights.requires_grad
    for parameter, (value, flag) in zip(model.parameters(), before, strict=True):
        assert parameter.grad is None
        assert parameter.requires_grad is flag
        assert torch.equal(parameter, value)


@pytest.mark.parametrize(
    "likelihood", ["gaussian", "logistic", "continuous-bernoulli", "categorical"]
)
def test_every_likelihood_is_estimated(likelihood):
    model, few = tiny("convvae", likelihood=likelihood), batch(2, (1, 9, 6))
    assert annealed_log_weights(model, few, 2, 6, 2).isfinite().all()


@pytest.mark.usefixtures("float64")
def test_estimates_of_an_image_do_not_depend_on_its_batch():
    """The chains of the first image have the same noise next to another image and next to a copy."""
    model, two = tiny("hvae", top_dim=2).double(), batch(2, (1, 9, 6))
    same = Batch(two.images[:1].repeat(2, 1, 1, 1))

    def estimates(images):
        with seeded(0):
            return (
                annealed_log_weights(model, images, 3, 6, 2)[:, 0],
                reciprocal_log_likelihood(model, images, 12, 6, 3, 2)[0],
            )

    for beside_another, beside_itself in zip(estimates(two), estimates(same), strict=True):
        assert torch.allclose(beside_another, beside_itself, atol=1e-6)


@pytest.mark.parametrize("name", ["vampprior", "hvampprior"])
def test_pseudo_inputs_are_encoded_once(name):
    model, calls = tiny(name), []
    for posterior in model.posterior.values():
        posterior.register_forward_hook(lambda *_: calls.append(1))
    annealed_log_weights(model, batch(2, (1, 9, 6)), 2, 5, 2)
    assert len(calls) == 1


def test_the_seed_determines_the_estimates():
    model, few = tiny("gmvae", w_dim=2), batch(3, (1, 9, 6))

    def estimates(seed):
        with seeded(seed):
            return (
                annealed_log_weights(model, few, 2, 3, 2),
                reciprocal_log_likelihood(model, few, 12, 3, 2, 2),
            )

    first, again, other = estimates(0), estimates(0), estimates(1)
    assert all(map(torch.equal, first, again))
    assert not any(map(torch.equal, first, other))


def test_temperatures_are_tracked():
    shown = []

    def track(steps):
        for step in steps:
            shown.append(step)
            yield step

    model, few = tiny("vae"), batch(1, (1, 9, 6))
    annealed_log_weights(model, few, 2, 5, 1, track)
    reciprocal_log_likelihood(model, few, 12, 4, 1, 1, track)
    assert shown == [0, 1, 2, 3, 4, 0, 1, 2, 3]


@pytest.mark.parametrize(
    ("name", "settings"), [("vae", {"latent_dim": 6}), ("hvae", {"top_dim": 3})]
)
def test_six_dimensions_are_too_many_for_a_gaussian(name, settings):
    with pytest.raises(UserError, match="at most 5 latent dimensions; choose ais") as raised:
        reciprocal_log_likelihood(tiny(name, **settings), batch(2, (1, 9, 6)))
    assert "\n" not in str(raised.value)


def test_a_diverged_model_gives_nan():
    model, few = tiny("vae"), batch(2, (1, 9, 6))
    with torch.no_grad():
        model.decoder.network.unfold.weight.fill_(math.nan)
    assert annealed_log_weights(model, few, 2, 3, 2).isnan().all()
    assert reciprocal_log_likelihood(model, few, 12, 3, 2, 2).isnan().all()
