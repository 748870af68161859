"""Exact values, in float64: closed forms, enumeration and quadrature.

Statistical tests fix their seed; a bound of 4 (in places 3) standard errors would be crossed by chance in 1 of 16,000
(370) seeds.
"""

import itertools
import math

import pytest
import torch
from torch import nn
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from exact import ALL_2X2, quadrature
from vaekit import build
from vaekit.data import Split
from vaekit.likelihood import importance
from vaekit.likelihood.elbo import measure_elbo
from vaekit.likelihood.importance import measure_nll
from vaekit.model.distributions import (
    Conditional,
    Head,
    LocationScaleHead,
    gaussian,
    posterior_head,
)
from vaekit.model.graph import VAE, Inference, Latent
from vaekit.model.objectives import elbo, iwae
from vaekit.model.pixels import DiscretisedLogistic, bernoulli, gaussian_head, logistic_head
from vaekit.model.priors import StandardNormal
from vaekit.settings.model import Blueprint, ModelConfig
from vaekit.support.console import ProgressBar
from vaekit.training.step import Loss

PIXELS, LATENT, SIGMA = 6, 2, 0.4
ANY = Blueprint("vae", (1, 1, PIXELS), ModelConfig())


pytestmark = pytest.mark.usefixtures("float64")


def linear_vae(scale=SIGMA) -> VAE:
    """p(x | z) = N(W z + b, sigma^2), q(z | x) = N(A x + c, diagonal), all of it free."""
    return VAE(
        prior={"z": StandardNormal(LATENT)},
        posterior={"z": Conditional(("x",), nn.Linear(PIXELS, 2 * LATENT), posterior_head())},
        decoder=Conditional(
            ("z",),
            nn.Linear(LATENT, PIXELS),
            LocationScaleHead(gaussian, event_dim=1, scale=scale, initial=0.5, floor=1e-3),
        ),
        blueprint=ANY,
    )


def set_exact_posterior(vae: VAE) -> None:
    """With orthogonal columns of W the true posterior is N(M^-1 W'(x - b), sigma^2 M^-1), M = W'W + sigma^2."""
    decoder, encoder, head = (
        vae.decoder.network,
        vae.posterior["z"].network,
        vae.posterior["z"].head,
    )
    with torch.no_grad():
        decoder.weight.copy_(torch.linalg.qr(decoder.weight)[0] * torch.tensor([1.5, 0.7]))
        m = (decoder.weight.T @ decoder.weight).diagonal() + SIGMA**2
        encoder.weight.zero_()
        encoder.weight[:LATENT] = decoder.weight.T / m[:, None]
        encoder.bias[:LATENT] = -encoder.weight[:LATENT] @ decoder.bias
        scale = SIGMA / m.sqrt()
        encoder.bias[LATENT:] = torch.log(torch.expm1(scale - head.floor)) - head.offset


def exact_log_likelihood(vae: VAE, x: torch.Tensor, sigma: float) -> torch.Tensor:
    """log N(x; b, W W' + sigma^2 I)."""
    w, b = vae.decoder.network.weight, vae.decoder.network.bias
    return MultivariateNormal(b, w @ w.T + sigma**2 * torch.eye(PIXELS)).log_prob(x)


@torch.no_grad()
def test_log_weight_at_the_exact_posterior_is_log_p_of_x_for_every_sample():
    vae = linear_vae()
    set_exact_posterior(vae)
    x = torch.randn(50, PIXELS)
    inference = vae(x, samples=(100,))
    exact = exact_log_likelihood(vae, x, SIGMA)
    assert inference.log_weight.shape == (100, 50)
    assert (inference.log_weight - exact).abs().max() < 1e-9
    # and so the bounds are tight too, for one draw as for many
    assert (iwae(100)(inference) - exact).abs().max() < 1e-9


@torch.no_grad()
def test_bounds_are_ordered_at_a_wrong_posterior():
    vae = linear_vae()
    x = torch.randn(400, PIXELS)
    exact = exact_log_likelihood(vae, x, SIGMA).mean()
    log_weight = vae(x, samples=(5000,)).log_weight
    bounds = [
        torch.logsumexp(log_weight.view(-1, k, len(x)), 1).mean() - math.log(k) for k in (1, 5, 50)
    ]
    assert bounds[0] < bounds[1] < bounds[2] < exact
    # The objectives are those means.
    one = elbo(samples=(2000,))(vae(x, samples=(2000,))).mean()
    assert one == pytest.approx(float(bounds[0]), abs=0.05)
    five = torch.stack([iwae(5)(vae(x, samples=(5,))).mean() for _ in range(400)]).mean()
    assert five == pytest.approx(float(bounds[1]), abs=0.05)


@pytest.mark.long
def test_gradient_descent_on_a_linear_vae_reaches_the_ppca_optimum():
    count = 400
    x = torch.randn(count, LATENT) @ torch.randn(LATENT, PIXELS) + 0.3 * torch.randn(count, PIXELS)
    # Tipping and Bishop 1999: sigma^2 is the mean of the discarded eigenvalues of the covariance.
    eigenvalues = torch.linalg.eigvalsh(torch.cov(x.T, correction=0)).flip(0)
    noise = eigenvalues[LATENT:].mean()
    log_determinant = eigenvalues[:LATENT].log().sum() + (PIXELS - LATENT) * noise.log()
    optimum = -0.5 * (PIXELS * math.log(2 * math.pi) + log_determinant + PIXELS)

    vae = linear_vae(scale="shared")
    loss = Loss(vae, elbo(samples=(4,)))
    steps = 2500
    optimizer = torch.optim.Adam(vae.parameters(), lr=0.03)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(x)[0].backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        head = vae.decoder.head
        sigma = float(head.positive(head.shared))
        reached = exact_log_likelihood(vae, x, sigma).mean()
    assert reached <= optimum + 1e-9
    assert reached > optimum - 0.01


def test_a_hierarchy_has_exact_log_weights_too():
    """x = z1 + e, z1 = z2 + e', all of variance 1: q(z2 | x) = N(x/3, 2/3), q(z1 | x, z2) = N((x + z2)/2, 1/2)."""

    class Fixed(nn.Module):
        def __init__(self, given, loc, variance):
            super().__init__()
            self.given, self.loc, self.variance = given, loc, variance

        def forward(self, values):
            loc = self.loc(*(values[name] for name in self.given))
            return Independent(Normal(loc, math.sqrt(self.variance)), 1)

    vae = VAE(
        prior={"z2": StandardNormal(1), "z1": Fixed(("z2",), lambda z2: z2, 1.0)},
        posterior={
            "z2": Fixed(("x",), lambda x: x / 3, 2 / 3),
            "z1": Fixed(("x", "z2"), lambda x, z2: (x + z2) / 2, 1 / 2),
        },
        decoder=Fixed(("z1",), lambda z1: z1, 1.0),
        blueprint=ANY,
    )
    x = torch.randn(7, 1)
    exact = Normal(0.0, math.sqrt(3)).log_prob(x).squeeze(-1)
    assert (vae(x, samples=(20,)).log_weight - exact).abs().max() < 1e-9
    assert (vae(x).log_weight - exact).abs().max() < 1e-9
    # Sampling goes level by level: x has variance 3.
    draws = vae.sample(100_000).sample()
    assert draws.var() == pytest.approx(3.0, abs=4 * 3 * math.sqrt(2 / 100_000))
    # A temperature pulls each level towards its own prior's mean: z2 = e/2, z1 = z2 + e'/2, x = z1 + e''.
    draws = vae.sample(100_000, temperature=0.5).sample()
    assert draws.var() == pytest.approx(1.5, abs=4 * 1.5 * math.sqrt(2 / 100_000))


def test_log_weight_and_elbo_add_up_by_hand():
    q, p = Normal(torch.tensor([[0.3]]), 0.5), Normal(0.0, 1.0)
    z = torch.tensor([[0.1]])
    latent = Latent(z, Independent(q, 1), Independent(p.expand((1,)), 1))
    x = torch.tensor([[1.0]])
    inference = Inference(x, Independent(Normal(z, 2.0), 1), {"z": latent})
    log_x = -0.5 * ((1 - 0.1) / 2) ** 2 - math.log(2) - 0.5 * math.log(2 * math.pi)
    log_p = -0.5 * 0.1**2 - 0.5 * math.log(2 * math.pi)
    log_q = -0.5 * (0.2 / 0.5) ** 2 - math.log(0.5) - 0.5 * math.log(2 * math.pi)
    kl = math.log(1 / 0.5) + (0.5**2 + 0.3**2) / 2 - 0.5
    assert inference.log_weight.item() == pytest.approx(log_x + log_p - log_q, abs=1e-12)
    assert inference.kl.item() == pytest.approx(kl, abs=1e-12)
    assert elbo()(inference).item() == pytest.approx(log_x - kl, abs=1e-12)
    assert elbo(beta=4.0)(inference).item() == pytest.approx(log_x - 4 * kl, abs=1e-12)
    assert elbo(beta={"z": 2.0})(inference, 0.5).item() == pytest.approx(log_x - kl, abs=1e-12)


# Densities of the heads


def test_bernoulli_sums_to_one_over_all_images():
    images = torch.tensor(list(itertools.product([0.0, 1.0], repeat=6))).view(-1, 1, 2, 3)
    likelihood = Head(bernoulli, 3)(3 * torch.randn(1, 1, 2, 3))
    assert likelihood.log_prob(images).exp().sum().item() == pytest.approx(1, abs=1e-12)


def test_bernoulli_of_grey_bounds_the_binarised_likelihood():
    """E_b[log p(b)] = x log p + (1 - x) log(1 - p) exactly, by enumeration of the bits b ~ Bernoulli(x)."""
    grey, logits = torch.rand(1, 2, 2), torch.randn(1, 2, 2)
    likelihood = Head(bernoulli, 3)(logits)
    bits = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4)))
    bits = bits.view(-1, 1, 2, 2)
    probability = (grey * bits + (1 - grey) * (1 - bits)).flatten(1).prod(1)
    expected = (probability * likelihood.log_prob(bits)).sum()
    assert likelihood.log_prob(grey).item() == pytest.approx(expected.item(), abs=1e-12)


@pytest.mark.parametrize("scale", ["each", "shared", 0.07])
def test_gaussian_integrates_to_one(scale):
    head = gaussian_head(scale)
    likelihood = head(torch.randn(1, head.outputs, 1, 1))
    grid = torch.linspace(-12, 12, 400_001).view(-1, 1, 1, 1)
    area = torch.trapezoid(likelihood.log_prob(grid).exp(), grid.flatten())
    assert area.item() == pytest.approx(1, abs=1e-9)


def test_gaussian_scales_are_those_of_the_settings():
    output = torch.zeros(1, 1, 2, 2)
    assert (gaussian_head(0.07)(output).base_dist.scale == 0.07).all()
    assert gaussian_head("shared")(output).base_dist.scale.flatten()[0].item() == pytest.approx(
        0.25
    )
    assert posterior_head()(torch.zeros(1, 4)).base_dist.scale.tolist() == [
        [pytest.approx(1.0)] * 2
    ]
    # Two channels in, one out: the first half are means, the second scales, never below the floor.
    output = torch.cat([torch.full((1, 1, 2, 2), 0.2), torch.full((1, 1, 2, 2), -1e6)], dim=1)
    base = gaussian_head("each")(output).base_dist
    assert base.loc.flatten().tolist() == [0.7] * 4
    assert base.scale.flatten().tolist() == [1 / 256] * 4


LEVELS = torch.arange(256, dtype=torch.float64) / 255


@pytest.mark.parametrize(
    ("loc", "scale"),
    [(0.5, 0.1), (0.0, 0.02), (1.3, 0.05), (-40.0, 0.001), (0.3, 0.001), (0.5, 9.0)],
)
def test_discretised_logistic_sums_to_one_over_its_levels(loc, scale):
    likelihood = DiscretisedLogistic(torch.tensor(loc), torch.tensor(scale))
    log_probability = likelihood.log_prob(LEVELS)
    assert log_probability.isfinite().all()
    assert log_probability.exp().sum().item() == pytest.approx(1, abs=1e-12)
    mean = (log_probability.exp() * LEVELS).sum()
    assert likelihood.mean.item() == pytest.approx(mean.item(), abs=1e-12)


def test_discretised_logistic_is_accurate_in_float32():
    """On 94 x 94 x 3 pixels within 0.02 nat of float64 (a difference of floats was off by 0.2); finite with finite
    gradients however far the mean is."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(256, (94 * 94 * 3,), generator=generator).double() / 255
    loc = x + 0.1 * torch.randn(x.shape, generator=generator)
    scale = 0.001 + 0.1 * torch.rand(x.shape, generator=generator)
    loc, scale, x = (value.float().double() for value in (loc, scale, x))
    double = DiscretisedLogistic(loc, scale).log_prob(x)
    single = DiscretisedLogistic(loc.float(), scale.float()).log_prob(x.float())
    assert (single.double() - double).sum().abs() < 0.02
    far = torch.tensor(1e5, dtype=torch.float32, requires_grad=True)
    value = DiscretisedLogistic(far, torch.tensor(1e-3, dtype=torch.float32)).log_prob(
        torch.tensor([0.0, 0.5, 1.0], dtype=torch.float32)
    )
    value.sum().backward()
    assert value.isfinite().all()
    assert far.grad.isfinite()


def test_discretised_logistic_is_the_logistic_function_across_a_level():
    loc, scale = 0.31, 0.04
    likelihood = DiscretisedLogistic(torch.tensor(loc), torch.tensor(scale))
    for level in (1, 77, 254):
        cdf = [1 / (1 + math.exp(-((level + s) / 255 - loc) / scale)) for s in (-0.5, 0.5)]
        found = likelihood.log_prob(torch.tensor(level / 255)).exp().item()
        assert found == pytest.approx(cdf[1] - cdf[0], rel=1e-9)


def test_discretised_logistic_samples_follow_its_probabilities():
    likelihood = DiscretisedLogistic(torch.tensor(0.9), torch.tensor(0.08))
    draws = likelihood.sample((200_000,))
    counts = torch.bincount((draws * 255).round().long(), minlength=256)
    expected = likelihood.log_prob(LEVELS).exp() * len(draws)
    kept = expected > 5
    chi2 = ((counts - expected) ** 2 / expected)[kept].sum().item()
    freedom = int(kept.sum()) - 1
    assert chi2 < freedom + 4 * math.sqrt(2 * freedom)
    assert draws.expand(1, -1).shape == (1, 200_000)


def test_logistic_head_gives_images_of_256_levels():
    head = logistic_head("each")
    likelihood = head(torch.randn(4, 2 * 3, 5, 2))
    assert likelihood.batch_shape == (4,)
    assert likelihood.event_shape == (3, 5, 2)
    draw = likelihood.sample()
    assert ((draw * 255 - (draw * 255).round()).abs() < 1e-9).all()


def test_analytic_kl_equals_monte_carlo():
    q = posterior_head()(torch.randn(3, 2 * 4))
    p = StandardNormal(4)({})
    z = q.sample((100_000,))
    estimates = -Latent(z, q, p).log_ratio
    error = estimates.std(0) / math.sqrt(len(z))
    assert ((estimates.mean(0) - kl_divergence(q, p)).abs() < 4 * error).all()


# Log-likelihoods of small models, by quadrature over the latent


def small_vae(dim: int) -> VAE:
    vae = build("vae", (1, 2, 2), seed=3, latent_dim=dim, hidden_dim=8, activation="tanh")
    with torch.no_grad():
        for name, parameter in vae.named_parameters():
            # A decoder far from constant; a posterior that is wrong but wide enough for weights of finite variance.
            parameter.copy_((1.0 if "decoder" in name else 0.2) * torch.randn_like(parameter))
    return vae.double()


@pytest.mark.parametrize("dim", [1, 2])
@torch.no_grad()
def test_importance_sampled_nll_equals_quadrature(dim):
    vae, samples = small_vae(dim), 20_000
    exact = quadrature(vae, ALL_2X2, dim)
    assert exact.exp().sum().item() == pytest.approx(
        1, abs=1e-6
    )  # it is a distribution over images
    estimate = measure_nll(vae, Split(ALL_2X2), samples, ProgressBar(False))
    error, nll = estimate.standard_error, -estimate.log_mean.mean()
    assert error < 0.01
    assert abs(nll + exact.mean()) < 3 * error
    bound = measure_elbo(vae, Split(ALL_2X2), 100, ProgressBar(False))
    assert bound.log_likelihood - bound.kl < exact.mean()


@torch.no_grad()
def test_nll_error_is_the_spread_over_repeats():
    """Delta method against 200 repeats; the ratio of two such spreads is within 20 % but for 1 seed in 10,000."""
    vae, samples = small_vae(2), 500
    images = Split(ALL_2X2)
    estimates = [measure_nll(vae, images, samples, ProgressBar(False)) for _ in range(200)]
    repeats = torch.stack([estimate.log_mean.mean() for estimate in estimates])
    stated = sum(estimate.standard_error for estimate in estimates) / len(estimates)
    assert stated == pytest.approx(repeats.std().item(), rel=0.2)


@torch.no_grad()
def test_nll_does_not_depend_on_the_chunks(monkeypatch):
    vae = small_vae(1)
    q = vae.posterior["z"]({"x": ALL_2X2, "y": None})
    # With constant noise all chunks have the same weights.
    monkeypatch.setattr(
        "torch.distributions.normal._standard_normal",
        lambda shape, dtype, device: torch.full(shape, 0.3, dtype=dtype, device=device),
    )
    log_weight = vae(ALL_2X2, samples=(7,)).log_weight
    for pixels, rows in ((4, 1), (4 * 3, 3), (4 * 7 * 5, 20), (10**6, 20), (10**6, 10**6)):
        monkeypatch.setattr(importance, "BLOCK_NUMBERS", pixels)
        monkeypatch.setattr(importance, "MAX_SAMPLED_ROWS", rows)
        estimate = measure_nll(vae, Split(ALL_2X2), 7, ProgressBar(False))
        assert torch.allclose(estimate.log_mean, log_weight.logsumexp(0) - math.log(7), atol=1e-10)
        assert torch.allclose(
            estimate.log_mean_square, (2 * log_weight).logsumexp(0) - math.log(7), atol=1e-10
        )
    assert q.batch_shape == (16,)


# Gradients


@pytest.mark.parametrize("objective", [elbo(), elbo(beta=0.5, samples=(3,)), iwae(4)])
@pytest.mark.parametrize(
    "settings",
    [
        {"likelihood": "bernoulli"},
        {"likelihood": "gaussian", "scale": "shared"},
        {"likelihood": "gaussian", "scale": "each"},
        {"likelihood": "logistic", "scale": "each", "activation": "gated"},
        {"likelihood": "logistic", "network": "conv", "channels": 2, "num_layers": 1},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_gradients_agree_with_finite_differences(objective, settings):
    sizes = {"latent_dim": 2, "hidden_dim": 3, "activation": "tanh", "num_layers": 1}
    vae = build("vae", (1, 3, 2), **{**sizes, **settings}).double()
    x = (torch.rand(3, 1, 3, 2) * 255).round() / 255
    if settings["likelihood"] == "bernoulli":
        x = x.round()
    loss = Loss(vae, objective)
    names, parameters = zip(*loss.named_parameters(), strict=True)

    def value(*parameters):
        torch.manual_seed(1)
        return torch.func.functional_call(loss, dict(zip(names, parameters, strict=True)), (x,))[0]

    torch.autograd.gradcheck(value, tuple(p.detach().requires_grad_() for p in parameters))
