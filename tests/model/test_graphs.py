"""Exact values for priors, conditions, hierarchies, clusters and MMD, in float64, and for known bugs of peers.

A statistical test here fixes its seed; its bound of 4 standard errors would be crossed by chance in 1 of 16,000 seeds.
"""

import dataclasses
import math
from typing import get_args

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.distributions import Independent, Normal

from conftest import random_dataset
from exact import ALL_2X2
from vaekit import UserError, build
from vaekit.data import Split
from vaekit.inference.generation import completions
from vaekit.likelihood.elbo import modelled_pixels
from vaekit.likelihood.importance import measure_nll
from vaekit.model.build import make_objective
from vaekit.model.conditions import Quadrants
from vaekit.model.distributions import (
    Conditional,
    GaussianMixture,
    LocationScaleHead,
    MixtureHead,
    gaussian,
    independent,
    posterior_head,
    sample_with_temperature,
    stddev,
)
from vaekit.model.graph import VAE, Inference, Latent
from vaekit.model.mmd import Kernel, squared_mmd
from vaekit.model.objectives import capacity, elbo, from_text, infovae, iwae, weighted_kl
from vaekit.model.pixels import (
    DiscretisedLogistic,
    MaskedPixels,
    decoder_channels,
    likelihood_head,
)
from vaekit.model.priors import FixedMixture, LearnedMixture, StandardNormal, VampPrior
from vaekit.settings.catalog import MODELS
from vaekit.settings.model import DISCRETE, Blueprint, Likelihood, ModelConfig
from vaekit.settings.objective import ObjectiveConfig
from vaekit.support.console import ProgressBar
from vaekit.training.preflight import check_labels
from vaekit.training.step import Loss

LEVELS = torch.arange(256, dtype=torch.float64) / 255


pytestmark = pytest.mark.usefixtures("float64")


def tiny(name, **settings) -> VAE:
    """A model of 2 x 2 images with one-dimensional latents, with a decoder far from constant."""
    sizes = {"latent_dim": 1, "hidden_dim": 8, "activation": "tanh"}
    model = build(name, (1, 2, 2), seed=3, classes=3, **{**sizes, **settings}).double()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            spread = 1.0 if "decoder" in key else 0.3 if "prior" in key else 0.2
            parameter.copy_(spread * torch.randn_like(parameter))
    for posterior in model.posterior.values():
        posterior.head.offset += 0.7  # wide enough for weights of finite variance
    return model


def line(count=2001, width=10.0):
    z = torch.linspace(-width, width, count)
    return z[:, None], math.log(float(z[1] - z[0]))


# Mixtures


def random_mixture(batch=()):
    return GaussianMixture(
        torch.randn(*batch, 4, 3), torch.rand(*batch, 4, 3) + 0.2, torch.randn(*batch, 4)
    )


def test_a_mixture_is_the_sum_of_its_gaussians():
    """Against scipy. (PyTorch-VAE divides the log-variance by the variance: a misplaced parenthesis.)"""
    p, z = random_mixture(), torch.randn(5, 3)
    weights = p.logits.exp().numpy()
    expected = sum(
        weights[k]
        * stats.multivariate_normal(p.loc[k].numpy(), np.diag(p.scale[k].numpy() ** 2)).pdf(z)
        for k in range(4)
    )
    assert np.allclose(p.log_prob(z).exp().numpy(), expected, rtol=1e-10)


def test_matrix_products_give_the_same_density_as_differences():
    p, z = random_mixture(), torch.randn(5, 2, 3)
    batched = p.expand((5, 2))
    assert batched.loc.ndim == 4
    assert torch.allclose(p.log_joint(z), batched.log_joint(z), atol=1e-11)
    # In float32 too, at scales as small as a posterior's, near a component and far from all.
    loc, scale = torch.randn(50, 40).float() * 2, torch.full((50, 40), 1e-3).float()
    close = (loc + scale * torch.randn(50, 40).float(), loc + 3)
    for z in close:
        exact = GaussianMixture(loc.double(), scale.double()).expand((50,)).log_prob(z.double())
        found = GaussianMixture(loc, scale).log_prob(z).double()
        assert ((found - exact).abs() / exact.abs().clamp(min=1)).max() < 1e-5


def test_responsibilities_are_bayes_rule():
    p, z = random_mixture((7,)), torch.randn(7, 3)
    joint = torch.stack(
        [
            p.logits[:, k] + independent(gaussian(p.loc[:, k], p.scale[:, k]), 1).log_prob(z)
            for k in range(4)
        ],
        -1,
    ).exp()
    assert torch.allclose(
        p.log_responsibilities(z).exp(), joint / joint.sum(-1, keepdim=True), atol=1e-12
    )


def test_a_mixture_has_the_mean_and_variance_of_its_samples():
    p = random_mixture()
    draws = p.sample((200_000,))
    error = p.variance.sqrt() / math.sqrt(len(draws))
    assert ((draws.mean(0) - p.mean).abs() < 4 * error).all()
    assert torch.allclose(draws.var(0), p.variance, rtol=0.03)


def test_far_from_every_component_the_density_and_its_gradient_stay_finite():
    """psanch21/VAE-GMVAE's model3 summed densities, not their logarithms: 0 at 40 standard deviations, then log 0."""
    z = torch.full((2, 5), 300.0, requires_grad=True)
    value = FixedMixture(10, 5)({}).log_prob(z)
    value.sum().backward()
    assert value.isfinite().all()
    nearest = 5.0  # of 0, 1, -1 ... -4, 5
    assert value[0].item() == pytest.approx(
        math.log(0.1) + 5 * (-((300 - nearest) ** 2) / 1 - 0.5 * math.log(math.pi)), rel=1e-12
    )
    assert torch.allclose(z.grad, torch.full((2, 5), -2 * (300 - nearest)))


def test_the_fixed_mixture_is_the_original():
    p = FixedMixture(10, 2)({})
    assert p.loc[:, 0].tolist() == [0, 1, -1, 2, -2, 3, -3, 4, -4, 5]
    assert torch.equal(p.loc[:, 0], p.loc[:, 1])
    assert torch.allclose(p.variance[0] - p.loc.var(0, correction=0)[0], torch.tensor(0.5))
    counts = torch.bincount(p.log_joint(p.sample((20_000,))).argmax(-1), minlength=10)
    assert (counts > 800).all()  # every component is sampled (the original sampled one)


def test_temperature_pulls_to_the_components_mean_and_keeps_the_component():
    p = GaussianMixture(torch.tensor([[-5.0], [5.0]]), torch.ones(2, 1)).expand((1000,))
    cold = sample_with_temperature(p, temperature=0.0)
    assert set(cold.flatten().tolist()) == {-5.0, 5.0}
    assert (sample_with_temperature(p, 1.0, torch.ones(1000, dtype=torch.long)) > 0).all()


# VampPrior


def vamp(components, dim=2):
    head = posterior_head()
    posterior = Conditional(("x",), nn.Sequential(nn.Flatten(), nn.Linear(4, 2 * dim)), head)
    return VampPrior(posterior, components, (1, 2, 2)), posterior


def test_a_vampprior_of_one_component_is_its_posterior():
    prior, posterior = vamp(1)
    z = torch.randn(6, 2)
    expected = posterior({"x": prior.pseudo_inputs}).log_prob(z)
    assert torch.allclose(prior({}).log_prob(z), expected, atol=1e-12)


def test_a_vampprior_is_the_mean_of_the_posteriors_of_its_pseudo_inputs():
    prior, posterior = vamp(7)
    z = torch.randn(6, 2)
    each = [posterior({"x": u[None]}).log_prob(z).exp() for u in prior.pseudo_inputs]
    assert torch.allclose(prior({}).log_prob(z).exp(), torch.stack(each).mean(0), atol=1e-12)


def test_vampprior_samples_come_from_all_components():
    """pythae and vae_vampprior sample from the first N pseudo-inputs; PyTorch-VAE from N(0, I)."""
    settings = {"components": 40, "pseudo_inputs": "noise", "latent_dim": 2}
    model = build("vampprior", (1, 2, 2), **settings).double()
    with torch.no_grad():  # components far apart, so that a sample shows its component
        model.posterior["z"].network.head.last.weight.mul_(300)
        model.prior["z"].logits.mul_(3)
    p = model.prior["z"]({})
    seen = []
    model.decoder.register_forward_pre_hook(lambda m, values: seen.append(values[0]["z"]))
    with torch.no_grad():
        model.sample(20_000)
    responsible = p.log_responsibilities(seen[0]).exp().sum(0)
    # For samples of the mixture the expected total of each component is N/K; its variance is at most N/K.
    assert ((responsible - 500).abs() < 4.5 * math.sqrt(500)).all()


def test_few_samples_come_from_random_components():
    """In order, the first samples would be of the first components, as in pythae and vae_vampprior."""
    p = GaussianMixture(torch.arange(200.0)[:, None], torch.full((200, 1), 1e-3))
    for sampled in (sample_with_temperature(p.expand((50,))), p.sample((50,))):
        components = sampled.flatten().round().long()
        # The chance that 50 random components of 200 are all among the first 100, or in order, is below 1e-15.
        assert (components >= 100).any()
        assert not torch.equal(components, components.sort().values)


def test_pseudo_inputs_start_as_training_images():
    """hard_sigmoid on images, as in VAE-VampPrior-tf2, starts them grey: between 0.5 and 0.7."""
    torch.set_default_dtype(torch.float32)
    data = random_dataset(kind="grey")
    model = build("vampprior", data, components=9, hidden_dim=8)
    images = data.train.images.float() / 255
    for u in model.prior["z"].pseudo_inputs:
        nearest = (images - u).abs().flatten(1).max(1).values.min()
        assert nearest < 0.021
    logits = model.prior["z"].logits
    other = build("vampprior", data, seed=1, components=9, hidden_dim=8).prior["z"].pseudo_inputs
    assert not torch.equal(other, model.prior["z"].pseudo_inputs)  # the seed chooses the images
    assert logits.isfinite().all()
    Loss(model, elbo())(images[:10])[0].backward()
    assert (logits.grad != 0).all()  # of every pixel, also at 0 and 1


# Graphs by quadrature: the probabilities of all images sum to 1, and the measured NLL is exact


def check_nll(model, log_p, images, y=None, samples=20_000):
    estimate = measure_nll(model, Split(images, y), samples, ProgressBar(False))
    error, nll = estimate.standard_error, -estimate.log_mean.mean()
    assert error < 0.015
    assert abs(float(nll + log_p.mean())) < 4 * error


@pytest.mark.parametrize(
    "settings",
    [
        {"prior": "mixture", "components": 3},
        {"prior": "learned-mixture", "components": 3},
        {"prior": "vampprior", "components": 4, "pseudo_inputs": "noise"},
    ],
    ids=str,
)
@torch.no_grad()
def test_nll_of_a_mixture_prior_equals_quadrature(settings):
    model, (z, log_step) = tiny("vae", **settings), line(width=14.0)
    log_joint = (
        model.decode(z=z[:, None]).log_prob(ALL_2X2) + model.prior["z"]({}).log_prob(z)[:, None]
    )
    log_p = log_joint.logsumexp(0) + log_step
    assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-6)
    check_nll(model, log_p, ALL_2X2)


@torch.no_grad()
def test_nll_of_a_gmvae_equals_quadrature():
    model = tiny("gmvae", clusters=3, w_dim=1, prior_layers="8")
    (w, log_w), (z, log_z) = line(401, 6.0), line(1201, 12.0)
    prior = model.prior["w"]({}).log_prob(w)[:, None] + model.prior["z"](
        {"w": w[:, None]}
    ).log_prob(z)
    log_pz = prior.logsumexp(0) + log_w
    log_p = (model.decode(z=z[:, None]).log_prob(ALL_2X2) + log_pz[:, None]).logsumexp(0) + log_z
    assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-4)
    check_nll(model, log_p, ALL_2X2, samples=50_000)


@torch.no_grad()
def test_nll_of_two_levels_equals_quadrature():
    model = tiny("hvae", top_dim=1)
    (z2, step2), (z1, step1) = line(301, 6.0), line(601, 12.0)
    log_prior = model.prior["z2"]({}).log_prob(z2)[:, None] + model.prior["z1"](
        {"z2": z2[:, None]}
    ).log_prob(z1)
    z2s, z1s = z2[:, None].expand(301, 601, 1), z1.expand(301, 601, 1)
    likelihood = model.decoder({"z1": z1s.reshape(-1, 1, 1), "z2": z2s.reshape(-1, 1, 1)})
    log_x = likelihood.log_prob(ALL_2X2) + log_prior.reshape(-1, 1)
    log_p = log_x.logsumexp(0) + step1 + step2
    assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-4)
    check_nll(model, log_p, ALL_2X2, samples=50_000)


@pytest.mark.parametrize("prior", ["standard", "conditional"])
@torch.no_grad()
def test_nll_of_a_cvae_equals_quadrature_for_every_label(prior):
    model, (z, log_step) = tiny("cvae", prior=prior), line(width=14.0)
    for label in range(3):
        y = torch.tensor([label])
        values = {**model.given(None, y), "z": z[:, None]}
        log_prior = model.prior["z"](values).log_prob(z)[:, None]
        log_p = (model.decoder(values).log_prob(ALL_2X2) + log_prior).logsumexp(0) + log_step
        assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-6)
        check_nll(model, log_p, ALL_2X2, y.expand(16))


@pytest.mark.parametrize("count", [1, 2, 3])
@torch.no_grad()
def test_hidden_pixels_given_visible_ones_are_a_distribution_and_its_nll_is_exact(count):
    model = tiny("cvae", condition=f"quadrants:{count}", prior="conditional")
    z, log_step = line(width=14.0)
    seen = model.condition.mask.bool()
    assert int(seen.sum()) == count
    assert seen[0, 1, 0]  # the lower left quadrant first
    visible = ALL_2X2[5]
    completions = ALL_2X2[(ALL_2X2[:, seen] == visible[seen]).all(1)]
    assert len(completions) == 2 ** (4 - count)
    values = {**model.given(completions, None), "z": z[:, None]}
    log_prior = model.prior["z"]({"y": values["y"][:1]}).log_prob(z)[:, None]
    log_p = (model.decoder(values).log_prob(completions) + log_prior).logsumexp(0) + log_step
    assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-6)
    check_nll(model, log_p, completions)


def test_the_likelihood_of_hidden_pixels_has_no_visible_ones():
    logits, mask = torch.randn(3, 1, 2, 2), torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    pixels = independent(torch.distributions.Bernoulli(logits=logits), 3)
    visible = torch.full((3, 1, 2, 2), 0.25)
    p, x = MaskedPixels(pixels, mask, visible), ALL_2X2[:3]
    each = pixels.base_dist.log_prob(x)
    assert torch.allclose(p.log_prob(x), each[:, 0, 0, 0] + each[:, 0, 1, 1])
    assert (p.mean[:, 0, 0, 1] == 0.25).all()
    assert (p.sample()[:, 0, 1, 0] == 0.25).all()
    assert torch.allclose(p.mean[:, 0, 0, 0], logits[:, 0, 0, 0].sigmoid())


def test_quadrants_are_those_of_the_paper():
    masks = [Quadrants(count, 4, 6).mask[0] for count in (1, 2, 3)]
    assert masks[0].sum() == 6
    assert (masks[0][2:, :3] == 1).all()  # lower left
    assert (masks[1][:, :3] == 1).all()  # left half
    assert masks[1].sum() == 12
    assert masks[2].sum() == 18
    assert (masks[2][2:, 3:] == 0).all()  # all but lower right


# Clusters


def test_the_discrete_terms_equal_enumeration():
    """log p(z | w) = sum_k r_k log p(z | w, k) - KL(r || 1/K), both summed one by one."""
    p, z = MixtureHead(5)(torch.randn(6, 5 * 2 * 3)), torch.randn(6, 3)
    latent = Latent(z, independent(gaussian(torch.zeros(6, 3), torch.ones(6, 3)), 1), p)
    for i in range(6):
        given = [
            Independent(Normal(p.loc[i, k], p.scale[i, k]), 1).log_prob(z[i]).item()
            for k in range(5)
        ]
        weights = np.exp(given) / np.exp(given).sum()
        kl = sum(w * math.log(w * 5) for w in weights)
        inside = float(np.dot(weights, given))
        assert latent.cluster_kl[i].item() == pytest.approx(kl, abs=1e-12)
        assert p.log_prob(z)[i].item() == pytest.approx(inside - kl, abs=1e-12)
        q = latent.posterior.log_prob(z)[i].item()
        found = weighted_kl("z", latent, latent.kl, {"z": 0.5, "cluster": 2.0})[i].item()
        assert found == pytest.approx(0.5 * (q - inside) + 2.0 * kl, abs=1e-12)
        assert weighted_kl("z", latent, latent.kl, {"z": 0.5})[i].item() == pytest.approx(
            0.5 * latent.kl[i].item()
        )


def test_equal_weights_by_name_are_the_whole_bound():
    model, x = tiny("gmvae", clusters=3, w_dim=1), ALL_2X2
    inference = model(x, samples=(7,))
    ones = {"w": 1.0, "z": 1.0, "cluster": 1.0}
    assert torch.allclose(elbo(samples=(7,))(inference, ones), elbo(samples=(7,))(inference))
    assert torch.allclose(iwae(7)(inference, ones), iwae(7)(inference))
    half = elbo(beta={"w": 1.0, "z": 1.0, "cluster": 0.5}, samples=(7,))(inference)
    gap = half - elbo(samples=(7,))(inference)
    assert torch.allclose(gap, 0.5 * inference.latents["z"].cluster_kl.mean(0))


# Hierarchies


def test_an_unused_second_level_gives_the_bound_of_one_level():
    """q(z1 | x, z2) = p(z1 | z2), and a decoder that reads z2 alone: the VAE's bound, for every sample."""
    flat = tiny("vae")
    pixels = flat.decoder
    below = Conditional(("z2",), nn.Linear(1, 6), posterior_head())
    deep = VAE(
        prior={"z2": StandardNormal(1), "z1": below},
        posterior={"z2": flat.posterior["z"], "z1": below},
        decoder=Conditional(("z2",), pixels.network, pixels.head),
        blueprint=flat.blueprint,
    )
    torch.manual_seed(5)
    two = deep(ALL_2X2, samples=(4,))
    z2 = two.latents["z2"].z
    one = Inference(
        ALL_2X2,
        flat.decode(z=z2),
        {"z": Latent(z2, flat.posterior["z"]({"x": ALL_2X2}), flat.prior["z"]({}))},
    )
    assert torch.allclose(two.log_weight, one.log_weight, atol=1e-12)
    assert torch.allclose(elbo(samples=(4,))(two), elbo(samples=(4,))(one), atol=1e-12)


# KL


def test_the_kl_is_summed_over_dimensions():
    """Keras's examples took the mean: 1/40 of it here. Scales are standard deviations: exp(logvar / 2)."""
    q = independent(gaussian(torch.ones(3, 40), torch.full((3, 40), 2.0)), 1)
    latent = Latent(q.sample(), q, StandardNormal(40)({}))
    exact = 40 * (0.5 * (4 + 1 - 1) - math.log(2))
    assert torch.allclose(latent.kl, torch.full((3,), exact))
    assert q.rsample((20_000,)).std().item() == pytest.approx(2, rel=0.01)


def test_a_capacity_holds_the_kl():
    model = tiny("vae")
    inference = model(ALL_2X2)
    for nats, warmup in [(3.0, 1.0), (3.0, 0.5), (0.0, 1.0)]:
        expected = inference.log_likelihood - 7 * (inference.kl - warmup * nats).abs()
        assert torch.allclose(capacity(nats, beta=7.0)(inference, warmup), expected)


def test_a_capacity_does_not_penalise_the_variance_of_draws(float64):
    """A mixture of one component has a KL by draws; that of one image is 4 nats, the capacity, with a spread of nats.
    The mean over 40,000 draws has a standard error below 0.02 nats: 5 of them fail by chance once in a million."""
    q = independent(gaussian(torch.ones(40_000, 2), torch.full((40_000, 2), 0.2)), 1)
    p = GaussianMixture(torch.zeros(1, 2), torch.ones(1, 2))
    latent = Latent(q.rsample(), q, p)
    kl = 2 * (0.5 * (1 + 0.2**2 - 1) - math.log(0.2))
    likelihood = Normal(torch.zeros(40_000), 1.0)
    inference = Inference(torch.zeros(()), likelihood, {"z": latent})
    penalty = inference.log_likelihood - capacity(kl, beta=1.0)(inference)
    assert float(latent.kl.std()) > 0.5
    assert abs(float(penalty.mean())) < 0.1
    # Above and below the capacity it is the distance of the mean, which per-image draws would exceed.
    for nats in (kl - 0.5, kl + 0.5):
        penalty = inference.log_likelihood - capacity(nats, beta=1.0)(inference)
        assert float(penalty.mean()) == pytest.approx(0.5, abs=0.1)


def test_free_bits_floor_the_mean_kl_of_each_latent():
    """E log p(x | z) - sum_l max(lambda, mean KL_l), over the batch: an image's own KL may be below lambda."""
    model = tiny("hvae", top_dim=1)
    inference = model(ALL_2X2, samples=(3,))
    upper, lower = (inference.latents[name].kl.detach() for name in ("z2", "z1"))
    means = sorted((upper.mean().item(), lower.mean().item()))
    between = sum(means) / 2
    assert means[0] < between < means[1]
    larger = max((upper, lower), key=lambda kl: kl.mean())
    assert (larger < between).any()  # of some images
    plain = inference.log_likelihood.detach()
    for nats, kept in [(0.9 * means[0], upper + lower), (between, larger + between)]:
        found = elbo(samples=(3,), free_bits=nats)(inference)
        assert torch.allclose(found, (plain - kept).mean(0), atol=1e-12)
        expected = plain.mean() - max(nats, upper.mean()) - max(nats, lower.mean())
        assert found.mean().item() == pytest.approx(expected.item(), abs=1e-12)
    held = elbo(2.0, (3,), 1.1 * means[1])(inference, 0.3)
    assert torch.allclose(held, plain.mean(0) - 0.3 * 2 * 2 * 1.1 * means[1], atol=1e-12)


def test_a_kl_below_its_free_bits_has_no_gradient_and_one_above_its_own():
    model = tiny("hvae", top_dim=1)
    parameters = list(model.parameters())

    def gradient(value_of, seed=0):
        torch.manual_seed(seed)
        value = value_of(model(ALL_2X2)).sum()
        return torch.cat(
            [g.flatten() for g in torch.autograd.grad(value, parameters, materialize_grads=True)]
        )

    inference = model(ALL_2X2)
    kls = {name: latent.kl.mean().item() for name, latent in inference.latents.items()}
    (small, least), (_, most) = sorted(kls.items(), key=lambda item: item[1])
    below, above = most + 1, least / 2
    likelihood = gradient(lambda inference: inference.log_likelihood)
    assert torch.allclose(gradient(elbo(free_bits=below)), likelihood, atol=1e-12)
    assert torch.allclose(gradient(elbo(free_bits=above)), gradient(elbo()), atol=1e-12)
    between = gradient(elbo(free_bits=(least + most) / 2))
    assert torch.allclose(between, gradient(elbo(beta={small: 0.0})), atol=1e-12)
    assert not torch.allclose(between, gradient(elbo()), atol=1e-3)


def test_the_logged_elbo_has_no_free_bits():
    model = tiny("vae")
    torch.manual_seed(0)
    value, (objective, log_likelihood, kl) = Loss(model, elbo(free_bits=50.0))(ALL_2X2)
    torch.manual_seed(0)
    inference = model(ALL_2X2)
    assert -value.item() == objective.item() == pytest.approx(log_likelihood.item() - 50)
    assert kl.item() == pytest.approx(inference.kl.mean().item())
    assert kl < 50


def test_free_bits_have_no_part_for_clusters():
    with pytest.raises(UserError, match="not for its part of cluster"):
        elbo(free_bits=1.0)(tiny("gmvae", clusters=3, w_dim=1)(ALL_2X2), {"cluster": 0.5})


# IWAE


def test_iwae_weights_are_the_normalised_weights_the_best_sample_the_heaviest():
    """PyTorch-VAE takes softmax(-log w): the worst sample has the largest weight."""
    model = tiny("vae")
    inference = model(ALL_2X2, samples=(6,))
    log_likelihood = inference.log_likelihood.detach().requires_grad_()
    played = Inference(inference.x, inference.likelihood, inference.latents)
    played.__dict__["log_likelihood"] = log_likelihood
    iwae(6)(played).sum().backward()
    log_weight = played.log_weight.detach()
    assert torch.allclose(log_likelihood.grad, log_weight.softmax(0), atol=1e-12)
    assert torch.equal(log_likelihood.grad.argmax(0), log_weight.argmax(0))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"prior": "learned-mixture"},
        {"prior": "vampprior", "pseudo_inputs": "noise", "components": 3},
    ],
    ids=str,
)
def test_doubly_reparameterised_gradients_have_the_plain_ones_mean_and_other_noise(settings):
    """Less, but for a VampPrior, which shares the encoder: there a training refuses it."""
    model = tiny("vae", **settings)
    count, k, x = 4000, 8, ALL_2X2[3:4]
    keys, parameters = zip(*model.named_parameters(), strict=True)

    def gradients(gradient):
        rows = []
        for _ in range(count // 20):
            inference = model(x.expand(20, 1, 2, 2), samples=(k,))
            value = iwae(k, gradient)(inference).sum() / 20
            found = torch.autograd.grad(value, parameters)
            rows.append(torch.cat([g.flatten() for g in found]))
        return torch.stack(rows)

    plain, doubly = gradients("plain"), gradients("dreg")
    error = (plain.var(0) / len(plain) + doubly.var(0) / len(doubly)).sqrt() + 1e-12
    distance = ((plain.mean(0) - doubly.mean(0)) / error).abs()
    assert distance.max() < 4.5  # of some 150 numbers
    sizes = [p.numel() for p in parameters]
    encoder = torch.cat(
        [torch.full((n,), "posterior" in key) for key, n in zip(keys, sizes, strict=True)]
    )
    ratio = doubly.var(0)[encoder].sum() / plain.var(0)[encoder].sum()
    assert ratio < 0.7 or "pseudo_inputs" in settings


def test_the_value_of_both_gradients_is_the_bound():
    model = tiny("vae")
    inference = model(ALL_2X2, samples=(5,))
    assert torch.allclose(iwae(5, "dreg")(inference), iwae(5)(inference), atol=1e-12)
    with torch.no_grad():
        inference = model(ALL_2X2, samples=(5,))
    assert torch.allclose(iwae(5, "dreg")(inference), iwae(5)(inference), atol=1e-12)


def test_doubly_reparameterised_gradients_are_refused_where_they_do_not_hold():
    with pytest.raises(UserError, match="one latent"):
        iwae(3, "dreg")(tiny("hvae", top_dim=1)(ALL_2X2, samples=(3,)))
    with pytest.raises(UserError, match="leave out kl_warmup"):
        iwae(3, "dreg")(tiny("vae")(ALL_2X2, samples=(3,)), 0.5)


# What is refused, and what is read back


@pytest.mark.parametrize(
    "objective",
    [elbo(), elbo(beta=2.5), elbo(free_bits=0.5), capacity(3.0), iwae(4, "dreg"), infovae()],
    ids=repr,
)
def test_an_objective_is_read_back_from_its_text(objective):
    assert from_text(repr(objective)) == objective


@pytest.mark.parametrize(
    "text", ["print(1)", "elbo(beta=", "elbo(gamma=1.0)", "iwae(k=0)", "elbo", ""]
)
def test_text_that_is_not_an_objective_is_refused(text):
    with pytest.raises(UserError, match="is not an objective of vaekit"):
        from_text(text)


def test_a_model_conditional_on_a_part_of_the_image_needs_the_image():
    with pytest.raises(UserError, match="pass images"):
        Quadrants(1, 2, 2)(None, None)


def test_the_number_of_classes_must_be_a_whole_number():
    for classes in (-1, 2.5, 2**20 + 1):
        with pytest.raises(UserError, match="classes is"):
            build("cvae", (1, 2, 2), classes=classes)


def test_a_head_needs_a_chosen_likelihood():
    with pytest.raises(UserError, match="choose"):
        likelihood_head(ModelConfig(), 1)


def test_a_standard_deviation_that_is_not_known_is_nan():
    class MeanOnly(torch.distributions.Distribution):
        mean = torch.zeros(2, 3)

    assert stddev(MeanOnly(validate_args=False)).isnan().all()
    assert torch.equal(stddev(Normal(torch.zeros(2), torch.full((2,), 3.0))), torch.full((2,), 3.0))


def test_an_expanded_logistic_pixel_has_the_same_probabilities():
    pixel = DiscretisedLogistic(torch.tensor([0.3]), torch.tensor([0.1]))
    expanded = pixel.expand(torch.Size([4, 256]))
    assert torch.equal(
        expanded.log_prob(LEVELS.expand(4, 256)), pixel.log_prob(LEVELS).expand(4, 256)
    )


# MMD


def by_hand(x, y, kernel, biased):
    """Sums over pairs, one by one."""
    n, m, d = len(x), len(y), x.shape[1]
    median = torch.stack([((a - b) ** 2).sum() for a in x for b in y]).median()

    def k(a, b):
        r = ((a - b) ** 2).sum()
        if kernel == "imq":
            return 2 * d / (2 * d + r)
        return torch.exp(-r / {"rbf": 2 * d, "reference": d * d, "median": median}[kernel])

    def mean(a, size):
        pairs = [k(a[i], a[j]) for i in range(size) for j in range(size) if biased or i != j]
        return torch.stack(pairs).mean()

    cross = torch.stack([k(a, b) for a in x for b in y]).mean()
    return mean(x, n) + mean(y, m) - 2 * cross


@pytest.mark.parametrize("kernel", ["rbf", "reference", "median", "imq"])
@pytest.mark.parametrize("biased", [False, True])
def test_mmd_is_the_mean_over_pairs(kernel, biased):
    """PyTorch-VAE divides a mean by B (B - 1) again."""
    x, y = torch.randn(9, 3), torch.randn(7, 3) + 0.5
    expected = by_hand(x, y, kernel, biased).item()
    assert squared_mmd(x, y, kernel, biased).item() == pytest.approx(expected, abs=1e-12)


def test_mmd_of_several_samples_is_that_of_each():
    x, y = torch.randn(3, 9, 2), torch.randn(3, 9, 2) + 1
    for kernel in get_args(Kernel):
        each = torch.stack([squared_mmd(a, b, kernel) for a, b in zip(x, y, strict=True)])
        assert torch.allclose(squared_mmd(x, y, kernel), each, atol=1e-12)


def test_one_code_has_no_penalty():
    """It has no pairs; its kernel with itself, 1, would be 1,000 nats too many."""
    assert squared_mmd(torch.zeros(1, 3), torch.randn(1, 3)) == 0
    assert squared_mmd(torch.zeros(1, 3), torch.randn(1, 3), biased=True) > 0


def test_unbiased_mmd_is_zero_for_equal_distributions_and_the_closed_form_for_shifted_ones():
    d, shift, shifted, null = 5, 0.6, [], []
    for _ in range(200):
        x, y, z = torch.randn(200, d) + shift, torch.randn(200, d), torch.randn(200, d)
        shifted.append(squared_mmd(x, y).item())
        null.append(squared_mmd(z, y).item())
    # E k(x, y) for x - y ~ N(m, 2 I) and k = exp(-|x - y|^2 / 2d) is (d / (d + 2))^(d/2) exp(-|m|^2 / (2 (d + 2))).
    within = (d / (d + 2)) ** (d / 2)
    exact = 2 * within * (1 - math.exp(-d * shift**2 / (2 * (d + 2))))
    for values, expected in ((shifted, exact), (null, 0.0)):
        error = np.std(values) / math.sqrt(len(values))
        assert abs(np.mean(values) - expected) < 4 * error
    x = torch.randn(50, d)
    assert squared_mmd(x, x, biased=True).item() == pytest.approx(0, abs=1e-12)


def collapsed(d, kernel="rbf", biased=False):
    """Squared MMD of a code that is always 0."""
    return squared_mmd(torch.zeros(2000, d), torch.randn(2000, d), kernel, biased).item()


def test_a_collapsed_code_is_detected_in_many_dimensions():
    d = 200
    exact = 1 - 2 * (d / (d + 1)) ** (d / 2) + (d / (d + 2)) ** (d / 2)
    assert collapsed(d) == pytest.approx(exact, rel=0.02)
    # The kernel of the paper's code hardly detects it.
    for dim, value in ((2, 0.167), (20, 0.0026), (200, 0.000025)):
        s = dim * dim / 2
        exact = 1 - 2 * (s / (s + 1)) ** (dim / 2) + (s / (s + 2)) ** (dim / 2)
        assert exact == pytest.approx(value, rel=0.03)
        if dim < 100:
            assert collapsed(dim, "reference") == pytest.approx(exact, rel=0.1)


def test_a_collapsed_code_costs_over_100_nats():
    p, q = (
        StandardNormal(200)({}),
        independent(gaussian(torch.zeros(500, 200), 1e-3 * torch.ones(500, 200)), 1),
    )
    latent = Latent(q.rsample(), q, p)
    pixels = independent(torch.distributions.Bernoulli(logits=torch.zeros(500, 1, 1, 1)), 3)
    inference = Inference(torch.ones(500, 1, 1, 1), pixels, {"z": latent})
    penalty = inference.log_likelihood - infovae(alpha=1.0)(inference)
    assert penalty.min() > 100
    whole = inference.log_likelihood - infovae(alpha=0.0)(inference)
    assert torch.allclose(whole - inference.kl, penalty * 999 / 1000, rtol=0.05)


def test_infovae_with_lambda_one_is_the_elbo():
    model = tiny("vae")
    inference = model(ALL_2X2)
    assert torch.allclose(infovae(0.0, 1.0)(inference), elbo()(inference), atol=1e-12)
    # alpha + lambda - 1 = 0: a beta-VAE with beta = 1 - alpha.
    assert torch.allclose(infovae(-3.0, 4.0)(inference), elbo(beta=4.0)(inference), atol=1e-12)


def test_infovae_moves_a_shifted_code_to_the_prior():
    center = torch.full((2,), 3.0).requires_grad_()
    for _ in range(100):
        q = independent(gaussian(center.expand(100, 2), torch.ones(100, 2)), 1)
        latent = Latent(q.rsample(), q, StandardNormal(2)({}))
        pixels = independent(torch.distributions.Bernoulli(logits=torch.zeros(100, 1, 1, 1)), 3)
        value = infovae(1.0, 100.0)(Inference(torch.ones(100, 1, 1, 1), pixels, {"z": latent}))
        (gradient,) = torch.autograd.grad(value.mean(), center)
        with torch.no_grad():
            center += 0.02 * gradient
    assert center.abs().max() < 0.3


@pytest.mark.parametrize("name", ["vampprior", "hvae", "gmvae"])
def test_infovae_refuses_learned_priors(name):
    settings = {"components": 3, "pseudo_inputs": "noise"} if name == "vampprior" else {}
    model = tiny(name, **settings)
    with pytest.raises(UserError, match=r"learned prior no gradient|one latent"):
        infovae()(model(ALL_2X2))
    with pytest.raises(UserError, match="needs one latent and a prior without weights"):
        make_objective(ObjectiveConfig("infovae"), model.blueprint.settings)


# Likelihoods


def test_categorical_probabilities_sum_to_one_and_are_the_softmax():
    output = torch.randn(2, 3 * 256, 4, 5)
    head = likelihood_head(ModelConfig(likelihood="categorical"), 1)
    assert head.outputs == 256
    p = head(output)
    assert p.event_shape == (3, 4, 5)
    each = torch.stack([p.base_dist.log_prob(torch.full((2, 3, 4, 5), float(x))) for x in LEVELS])
    assert torch.allclose(each.exp().sum(0), torch.ones(2, 3, 4, 5))
    by_channel = output.view(2, 3, 256, 4, 5).softmax(2)
    assert torch.allclose(each[17].exp(), by_channel[:, :, 17])
    assert torch.allclose(p.mean, (by_channel * LEVELS[:, None, None]).sum(2))
    draws = p.base_dist.expand((2, 3, 4, 5)).sample((4000,))
    assert torch.allclose(draws.mean(0), p.mean, atol=4 * 0.3 / math.sqrt(4000))


def test_continuous_bernoulli_integrates_to_one():
    x = torch.linspace(0, 1, 20_001)
    head = likelihood_head(ModelConfig(likelihood="continuous-bernoulli"), 1)
    for logit in (-30.0, -3.0, -1e-4, 0.0, 1e-3, 0.7, 30.0):
        p = head(torch.full((1, 1, 1, 1), logit))
        density = p.log_prob(x.view(-1, 1, 1, 1)).exp()
        total = torch.trapezoid(density, x).item()
        assert total == pytest.approx(1, abs=1e-6), logit
        mean = torch.trapezoid(density * x, x).item()
        assert p.mean.item() == pytest.approx(mean, abs=1e-6)


def test_continuous_bernoulli_keeps_its_digits_in_float32():
    """torch's own has an error of 0.02 nats per pixel at a logit of 15, so of tens of nats per image."""
    x = torch.linspace(0, 1, 101).view(-1, 1, 1, 1)
    head = likelihood_head(ModelConfig(likelihood="continuous-bernoulli"), 1)
    for logit in (-40.0, -15.0, -0.011, -0.009, 1e-6, 5.0, 15.0, 100.0):
        exact = head(torch.full((1, 1, 1, 1), logit))
        single = head(torch.full((1, 1, 1, 1), logit).float())
        assert torch.allclose(single.log_prob(x.float()).double(), exact.log_prob(x), atol=1e-5)
        assert single.mean.item() == pytest.approx(exact.mean.item(), abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("likelihood", [x for x in get_args(Likelihood) if x != "auto"])
@pytest.mark.parametrize("output", [-1e4, -200.0, -50.0, -20.0, -0.3, 0.0, 0.01, 4.0, 50.0, 1e3])
def test_draws_have_the_mean_and_variance_of_their_pixels(likelihood, output, dtype):
    """Saturated too, where probabilities are 0 or 1 in float32. 5 standard errors, and as much of the variance, whose
    error is that of (x - mean)^2: 1 of 10,000 seeds would fail one of these 100."""
    settings = ModelConfig(likelihood=likelihood)
    head = likelihood_head(settings, 1).to(dtype)
    outputs = torch.zeros(1, decoder_channels(settings, 1), 1, 1, dtype=dtype)
    outputs[:, 0] = output
    pixels, count = head(outputs), 20_000
    draws = pixels.sample((count,)).double()
    mean = pixels.mean.double()
    if likelihood in DISCRETE:
        levels = LEVELS.to(dtype).view(-1, 1, 1, 1)
        p = pixels.expand((256,)).log_prob(levels).exp().double()
        variance = (p * (LEVELS - mean.item()) ** 2).sum()
    else:
        variance = pixels.variance.double()
        assert pixels.stddev.item() == pytest.approx(variance.sqrt().item(), rel=1e-6)
    assert draws.isfinite().all()
    rounding = 10 * torch.finfo(dtype).eps * (1 + draws.abs().max())
    error = (variance / count).sqrt()
    assert (draws.mean(0) - mean).abs() <= 5 * error + rounding
    squares = (draws - mean) ** 2
    error = squares.std(0) / math.sqrt(count) + 1e-4 * (variance < 1e-4 / count)  # too rare to see
    assert (squares.mean(0) - variance).abs() <= 5 * error + 1e-3 * variance


def test_the_continuous_bernoulli_has_its_closed_form_mean_and_variance():
    """At a logit of 50 torch's draws have the mean 0.937 and the standard deviation 0.03; right are 0.98 and 0.02."""
    head = likelihood_head(ModelConfig(likelihood="continuous-bernoulli"), 1)
    for logit in (-1000.0, 50.0, 1000.0):
        mean = 1 - 1 / abs(logit) if logit > 0 else 1 / abs(logit)
        p = head(torch.full((1, 1, 1, 1), logit).float())
        assert p.mean.item() == pytest.approx(mean, rel=1e-6)
        assert p.stddev.item() == pytest.approx(1 / abs(logit), rel=1e-6)
        draws = p.sample((20_000,))
        assert draws.mean().item() == pytest.approx(mean, abs=5 / abs(logit) / math.sqrt(20_000))
    x = torch.linspace(0, 1, 20_001)
    for logit in (-3.0, -0.51, -0.49, 0.0, 1e-3, 0.7, 30.0):
        p = head(torch.full((1, 1, 1, 1), logit))
        density = p.log_prob(x.view(-1, 1, 1, 1)).exp().flatten()
        variance = torch.trapezoid(density * (x - p.mean.item()) ** 2, x).item()
        assert p.variance.item() == pytest.approx(variance, abs=1e-7)


# Combinations without meaning are refused with the reason


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("vae", {"prior": "vampprior", "condition": "label"}, "pseudo-inputs have no labels"),
        ("vae", {"prior": "conditional"}, "needs a condition"),
        ("vae", {"components": 5}, "no effect for a standard prior"),
        ("vampprior", {"normalisation": "batch"}, "would mix images and pseudo-inputs"),
        ("vampprior", {}, "start from training images"),
        ("gmvae", {"prior": "vampprior"}, "is not possible here"),
        ("hvae", {"top_dim": 0}, "top_dim is 0"),
        ("gmvae", {"clusters": 0}, "clusters is 0"),
        ("hvae", {"top_layers": "3@3"}, "dense layers alone"),
        ("vae", {"likelihood": "categorical", "scale": 0.1}, "no effect for a categorical"),
        ("vae", {"levels": 256}, "levels has no effect for a bernoulli likelihood"),
        ("vae", {"levels": 256, "likelihood": "gaussian"}, "levels has no effect for a gaussian"),
        ("vae", {"levels": 2000, "likelihood": "categorical"}, "at most 1,024 levels, not 2,000"),
        ("vae", {"levels": 1, "likelihood": "logistic"}, "levels is 1; it must be at least 2"),
        ("vae", {"levels": 2**17, "likelihood": "logistic"}, "it must be at most 65,536"),
    ],
)
def test_models_that_make_no_sense(name, settings, message):
    with pytest.raises(UserError, match=message):
        build(name, (1, 8, 8), **settings)


def test_missing_labels_and_classes_are_named():
    torch.set_default_dtype(torch.float32)
    with pytest.raises(UserError, match="the data set has none"):
        build("cvae", (1, 8, 8))
    data = random_dataset()
    model = build("cvae", data)
    assert model.blueprint.classes == 3
    check_labels(model.blueprint, data)
    few = Blueprint("cvae", data.shape, ModelConfig(condition="label"), 0, 2)
    with pytest.raises(UserError, match="not one of the model's 2 classes"):
        check_labels(few, data)
    with pytest.raises(UserError, match="pass the labels of the images"):
        model(data.train.images[:2].float())


@pytest.mark.parametrize(
    ("objective", "settings", "message"),
    [
        (ObjectiveConfig(), {"posterior": "deterministic"}, "no density, so no ELBO"),
        (
            ObjectiveConfig("infovae"),
            {"posterior": "deterministic"},
            "choose objective infovae alpha 1",
        ),
    ],
)
def test_objectives_that_make_no_sense(objective, settings, message):
    with pytest.raises(UserError, match=message):
        make_objective(objective, ModelConfig(**settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 0}, "samples is 0"),
        ({"objective": "iwae", "capacity": 3.0}, "no effect for objective iwae"),
        ({"beta": -1.0}, "beta is -1.0"),
        ({"free_bits": -1.0}, "free_bits is -1.0"),
        ({"free_bits": math.inf}, "free_bits is inf"),
        ({"free_bits": 1.0, "capacity": 3.0}, "no effect with capacity"),
        ({"free_bits": 1.0, "objective": "iwae"}, "no effect for objective iwae"),
        ({"free_bits": 1.0, "objective": "infovae"}, "no effect for objective infovae"),
        ({"objective": "infovae", "alpha": 2.0}, "alpha is 2.0"),
        ({"objective": "infovae", "mmd_weight": 0.5}, "would be maximised"),
    ],
)
def test_objective_settings_out_of_range(settings, message):
    with pytest.raises(UserError, match=message):
        ObjectiveConfig(**settings).resolve(ObjectiveConfig())


def test_a_models_settings_for_another_objective_are_left_out():
    """`train mmdvae --objective elbo` drops its --alpha, and `betavae --capacity` its weight of the KL."""
    row = MODELS["mmdvae"].objective
    plain = dataclasses.replace(row, objective="elbo").resolve(row)
    assert plain == ObjectiveConfig("elbo")
    with pytest.raises(UserError, match=r"alpha 0.5 has no effect for objective elbo"):
        dataclasses.replace(row, objective="elbo", alpha=0.5).resolve(row)
    row = MODELS["betavae"].objective
    held = dataclasses.replace(row, capacity=3.0)
    assert make_objective(held, ModelConfig(), row) == capacity(3.0, 100.0)
    held = dataclasses.replace(held, beta=7.0)
    assert make_objective(held, ModelConfig(), row) == capacity(3.0, 7.0)


def test_arguments_of_objectives_are_checked():
    with pytest.raises(UserError, match="did you mean 'rbf'"):
        infovae(kernel="rfb")
    with pytest.raises(UserError, match="must be plain or dreg"):
        iwae(3, "drge")


def test_objectives_are_made_as_their_settings_say():
    settings = ModelConfig()
    made = {
        ObjectiveConfig(): elbo(),
        ObjectiveConfig(beta=3.0, samples=4): elbo(3.0, (4,)),
        ObjectiveConfig(free_bits=0.5): elbo(1.0, (), 0.5),
        ObjectiveConfig(capacity=5.0): capacity(5.0, 100.0),
        ObjectiveConfig(capacity=5.0, beta=7.0, samples=2): capacity(5.0, 7.0, (2,)),
        ObjectiveConfig("iwae", samples=6, gradient="dreg"): iwae(6, "dreg"),
        ObjectiveConfig("infovae", alpha=0.5, mmd_weight=9.0, kernel="imq", mmd="biased"): infovae(
            0.5, 9.0, "imq", True
        ),
    }
    for config, objective in made.items():
        assert make_objective(config, settings) == objective


def test_a_beta_of_an_unknown_latent_is_named():
    model = tiny("hvae", top_dim=1)
    inference = model(ALL_2X2)
    with pytest.raises(UserError, match="beta names 'z'; the latents are z2, z1, cluster"):
        elbo(beta={"z": 1.0})(inference)
    alone = elbo(beta={"z1": 0.0})(inference)  # the others keep 1
    assert torch.allclose(alone, inference.log_likelihood - inference.latents["z2"].kl)


@torch.no_grad()
def test_lower_latents_are_sampled_given_the_upper_ones():
    """z1 and z of `sample` follow the prior given the z2 and w that were sampled with them."""
    for name, upper, lower, settings in [
        ("hvae", "z2", "z1", {"top_dim": 2}),
        ("gmvae", "w", "z", {"w_dim": 2, "clusters": 1, "prior_layers": "8:tanh"}),
    ]:
        model, seen = tiny(name, latent_dim=2, **settings), []
        head = model.prior[lower].head
        getattr(head, "gaussian", head).offset = -4.0  # so narrow that samples show the mean
        model.decoder.register_forward_pre_hook(lambda m, values, seen=seen: seen.append(values[0]))
        model.sample(200)
        (values,) = seen
        p = model.prior[lower](values)
        assert values[upper].std() > 0.5
        assert p.mean.std() > 0.1
        spread = p.variance.sqrt() if isinstance(p, GaussianMixture) else p.stddev
        assert ((values[lower] - p.mean).abs() < 6 * spread).all()


@torch.no_grad()
def test_completions_are_samples_given_the_visible_part():
    model = tiny("cvae", condition="quadrants:1", prior="conditional")
    seen = []
    model.decoder.register_forward_pre_hook(lambda m, values: seen.append(values[0]))
    rows = completions(model, ALL_2X2[[5, 10]], count=3).unflatten(0, (2, 5))
    mask = model.condition.mask
    expected = (ALL_2X2[[5, 10]] * mask).flatten(1).repeat_interleave(3, 0)
    assert torch.equal(seen[0]["y"], expected)
    assert len(set(seen[0]["z"].flatten().tolist())) == 6  # each has its own sample
    assert torch.equal(rows[:, 0], ALL_2X2[[5, 10]] * mask + 0.5 * (1 - mask))
    assert torch.equal(rows[:, 4], ALL_2X2[[5, 10]])
    assert torch.equal(
        rows[:, 1:4] * mask, (ALL_2X2[[5, 10]] * mask)[:, None].expand(2, 3, 1, 2, 2)
    )


def test_hidden_pixels_are_counted_with_their_channels():
    model = build("cvae", (3, 4, 4), condition="quadrants:3", hidden_dim=8)
    assert modelled_pixels(model) == 3 * 4


def test_a_learned_mixture_learns_its_data():
    """Two clusters of points: maximum likelihood finds their means and shares."""
    prior = LearnedMixture(2, 1)
    points = torch.cat([torch.randn(300, 1) * 0.1 - 2, torch.randn(100, 1) * 0.1 + 2])
    optimizer = torch.optim.Adam(prior.parameters(), lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        (-prior({}).log_prob(points).mean()).backward()
        optimizer.step()
    p = prior({})
    order = p.loc[:, 0].argsort()
    assert torch.allclose(p.loc[order, 0], torch.tensor([-2.0, 2.0]), atol=0.05)
    assert torch.allclose(p.logits[order].exp(), torch.tensor([0.75, 0.25]), atol=0.01)
    assert isinstance(
        LocationScaleHead(gaussian, 1, "each", 1.0, 1e-4)(torch.zeros(2, 4)), Independent
    )
