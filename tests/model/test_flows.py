"""Flow priors and posteriors: exact densities against quadrature, Jacobians and closed forms, in float64.

A statistical test here fixes its seed; its bounds would be crossed by chance in 1 of 10,000 seeds or fewer.
"""

import math
from typing import get_args

import pytest
import torch
from scipy import stats
from torch import nn
from torch.distributions import Distribution, Independent

from conftest import random_dataset
from exact import ALL_2X2, quadrature
from vaekit import UserError, build
from vaekit.model.build import make_objective, objective_of
from vaekit.model.distributions import gaussian, independent, sample_with_temperature
from vaekit.model.flows import Flow, FlowHead, FlowPrior
from vaekit.model.graph import VAE, Latent
from vaekit.model.objectives import capacity, elbo, infovae, iwae
from vaekit.settings.model import Blueprint, FlowKind, ModelConfig
from vaekit.settings.objective import ObjectiveConfig
from vaekit.training.compiled import compile_step, trace
from vaekit.training.step import Loss

KINDS = get_args(FlowKind)
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)
SMALL = {"latent_dim": 2, "hidden_dim": 8, "flow_dim": 8, "flow_steps": 2}

pytestmark = pytest.mark.usefixtures("float64")


def randomised(module: nn.Module, spread: float = 0.7) -> nn.Module:
    """The module with random weights, of which every layer bends the density."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(spread * torch.randn_like(parameter))
    return module


def random_prior(kind, dim=2, spread=0.7) -> Flow:
    return randomised(FlowPrior(dim, kind, 3, 8), spread)({})


def random_posterior(kind, dim=2, batch=(), spread=0.7) -> Flow:
    return randomised(FlowHead(dim, kind, 3, 8), spread)(0.5 * torch.randn(*batch, 3 * dim))


MAKERS = pytest.mark.parametrize("make", [random_prior, random_posterior])


def base_image(p: Flow, z):
    """The point of the base that becomes z."""
    for transform in reversed(p.transforms):
        z = transform.inv(z)
    return z


# Densities


def pushed(p: Flow, e):
    """The point that a point of the base becomes."""
    for transform in p.transforms:
        e = transform(e)
    return e


@pytest.mark.parametrize("part", [FlowPrior, FlowHead])
@EVERY_KIND
def test_a_density_integrates_to_one(kind, part):
    """By the trapezoid rule in two dimensions; the weights are small enough for tails within the grid."""
    module = randomised(part(2, kind, 3, 8), 0.3)
    p = module(torch.tensor([0.5, -0.5, 0.2, -0.3, 0.7, 0.1]) if part is FlowHead else {})
    line = torch.linspace(-9, 9, 161)
    with torch.no_grad():
        log_density = p.log_prob(torch.cartesian_prod(line, line))
    total = log_density.exp().sum() * (line[1] - line[0]) ** 2
    assert total.item() == pytest.approx(1, abs=1e-2)
    assert (log_density - p.base_dist.log_prob(torch.cartesian_prod(line, line))).abs().max() > 0.3


@pytest.mark.parametrize("kind", KINDS[2:])
def test_one_dimension_is_possible_for_autoregressive_flows(kind):
    p = random_prior(kind, 1)
    line = torch.linspace(-40, 40, 20_001)
    density = p.log_prob(line[:, None]).exp()
    assert torch.trapezoid(density, line).item() == pytest.approx(1, abs=1e-3)
    assert make_flow_error("affine-coupling", 1).startswith(
        "flow affine-coupling transforms one half"
    )


def make_flow_error(kind, dim):
    with pytest.raises(UserError) as error:
        FlowPrior(dim, kind, 1, 4)
    return str(error.value)


@MAKERS
@EVERY_KIND
@pytest.mark.parametrize("dim", [2, 5])
def test_the_log_density_is_the_bases_minus_the_log_determinant(kind, make, dim):
    """The Jacobian by automatic differentiation, of an odd number of dimensions too."""
    p = make(kind, dim)
    for e in p.base_dist.sample((3,)):
        z = pushed(p, e)
        jacobian = torch.autograd.functional.jacobian(lambda e: pushed(p, e), e)
        expected = p.base_dist.log_prob(e) - jacobian.slogdet().logabsdet
        assert p.log_prob(z).item() == pytest.approx(expected.item(), abs=1e-8)
        assert torch.allclose(base_image(p, z), e, atol=1e-8)


@EVERY_KIND
def test_a_dimension_of_an_autoregressive_flow_ignores_those_after_it(kind):
    """And no kind of two transforms leaves a dimension that ignores another."""
    p = random_prior(kind, 4)
    jacobians = []
    z = torch.randn(4)
    for transform in reversed(p.transforms):
        jacobians.append(torch.autograd.functional.jacobian(transform.inv, z))
        z = transform.inv(z)
    if "autoregressive" in kind:
        assert torch.equal(jacobians[0], jacobians[0].tril())
        assert torch.equal(jacobians[1], jacobians[1].triu())
        assert (jacobians[0].tril(-1) != 0).sum() == 6
    together = jacobians[2] @ jacobians[1] @ jacobians[0]
    assert (together != 0).all()


@MAKERS
@EVERY_KIND
@torch.no_grad()
def test_samples_follow_the_density(kind, make):
    """The base images of samples are those of the base, by Kolmogorov and Smirnov in each dimension, and the mean of
    1 / p over samples in a box is its volume over their share, within 4.5 standard errors."""
    p = make(kind, spread=0.35)
    z = p.sample((5000,))
    e = (base_image(p, z) - p.base_dist.mean) / p.base_dist.stddev
    for column in e.T:
        assert stats.kstest(column.numpy(), "norm").pvalue > 1e-5
    centre, spread = (
        z.median(0).values,
        z.quantile(torch.tensor([0.25, 0.75]), dim=0).diff(dim=0)[0],
    )
    inside = ((z - centre).abs() < spread / 2).all(-1)
    ratio = torch.where(inside, (-p.log_prob(z)).exp(), 0)
    error = ratio.std() / math.sqrt(len(z))
    assert abs(ratio.mean() - spread.prod()) < 4.5 * error


# The distribution


@EVERY_KIND
def test_a_sample_knows_its_own_density(kind):
    """Without another pass, for an expanded distribution's sample too; the same as that of an equal tensor."""
    q = random_posterior(kind, 3, (4,))
    z = q.expand((6, 4)).rsample()
    passes = []
    for transform in q.transforms:
        transform.meta = lambda *x, meta=transform.meta: passes.append(1) or meta(*x)
    known = q.log_prob(z)
    assert not passes
    assert torch.allclose(known, q.log_prob(z.clone()), atol=1e-8)
    assert passes
    assert known.shape == (6, 4)
    assert known.requires_grad
    other = q.expand((6, 4)).rsample()
    assert torch.allclose(q.log_prob(z), known, atol=1e-8)
    assert torch.allclose(q.log_prob(other), q.log_prob(other.clone()), atol=1e-8)


@EVERY_KIND
def test_at_first_a_prior_is_nearly_standard_normal_and_a_posterior_its_gaussian(kind):
    z = torch.randn(500, 6)
    p = FlowPrior(6, kind, 4, 16)({})
    standard = independent(gaussian(torch.zeros(6), torch.ones(6)), 1)
    assert (p.log_prob(z) - standard.log_prob(z)).abs().mean() < 0.05
    q = FlowHead(6, kind, 4, 16)(torch.randn(18))
    assert (q.log_prob(z) - q.base_dist.log_prob(z)).abs().mean() < 0.3
    assert torch.allclose(q.mean, q.base_dist.mean, atol=0.1)


@EVERY_KIND
def test_temperature_scales_the_noise_before_the_transforms(kind):
    p = random_prior(kind, 3)
    cold = sample_with_temperature(p.expand((5,)), 0.0)
    assert torch.allclose(cold, p.mean.expand(5, 3))
    assert torch.allclose(base_image(p, p.mean), torch.zeros(3), atol=1e-8)
    torch.manual_seed(1)
    warm = sample_with_temperature(p.expand((5,)), 0.5)
    torch.manual_seed(1)
    assert torch.allclose(base_image(p, warm), 0.5 * torch.randn(5, 3), atol=1e-8)
    with pytest.raises(NotImplementedError):
        _ = p.stddev


def test_torchs_distributions_are_validated_as_before():
    """zuko switches that off for all of the process."""
    assert Distribution._validate_args == __debug__


# Models


def linear_vae() -> tuple[VAE, dict[str, torch.Tensor]]:
    """x = W z + b + 0.5 noise with z ~ N(m, L L'), by a flow prior of one affine autoregressive transform without
    hidden signals, and its exact p(x)."""
    model = build("vae", (1, 2, 2), latent_dim=2, likelihood="gaussian", scale=0.5, prior="flow",
                  flow="affine-autoregressive", flow_steps=1, flow_dim=4, encoder="4:linear",
                  decoder="4:linear").double()  # fmt: skip
    randomised(model, 0.5)
    step = model.prior["z"].steps[0]
    with torch.no_grad():
        step.network[0].weight.zero_()  # so that the parameters are those of a constant affine map
    p = model.prior["z"]({})
    loc = p.mean
    scale = torch.autograd.functional.jacobian(lambda e: pushed(p, e), torch.zeros(2))
    zero = model.decode(z=torch.zeros(1, 2)).mean.flatten()
    weight = torch.stack(
        [model.decode(z=row[None]).mean.flatten() - zero for row in torch.eye(2)], 1
    )
    return model, {"loc": loc, "scale": scale, "weight": weight, "bias": zero}


@torch.no_grad()
def test_the_elbo_of_a_linear_vae_with_an_affine_flow_is_its_closed_form():
    """At the exact posterior, a full Gaussian, log weight = log p(x) for every z; at the model's own posterior
    E[log weight] is the Gaussian integral, within 4.5 standard errors of 100,000 samples."""
    with torch.enable_grad():
        model, parts = linear_vae()
    loc, scale, weight, bias = (parts[k].detach() for k in ("loc", "scale", "weight", "bias"))
    x = torch.rand(3, 1, 2, 2)
    covariance = weight @ scale @ scale.T @ weight.T + 0.25 * torch.eye(4)
    marginal = torch.distributions.MultivariateNormal(weight @ loc + bias, covariance)
    log_p = marginal.log_prob(x.flatten(1))
    precision = (scale @ scale.T).inverse() + weight.T @ weight / 0.25
    pull = (x.flatten(1) - bias) @ weight / 0.25 + (scale @ scale.T).inverse() @ loc
    exact = torch.distributions.MultivariateNormal(
        torch.linalg.solve(precision, pull.T).T, precision_matrix=precision
    )
    z = exact.sample((7,))
    log_weight = (
        model.decode(z=z).log_prob(x) + model.prior["z"]({}).log_prob(z) - exact.log_prob(z)
    )
    assert torch.allclose(log_weight, log_p.expand(7, 3), atol=1e-9)
    inference = model(x, samples=(100_000,))
    q = inference.latents["z"].posterior.base_dist
    diagonal = torch.distributions.MultivariateNormal(q.loc, scale_tril=q.scale.diag_embed())
    expected = log_p - torch.distributions.kl_divergence(diagonal, exact)
    values = elbo(samples=(1,))(inference)
    error = inference.log_weight.std(0) / math.sqrt(100_000)
    assert ((values - expected).abs() < 4.5 * error).all()


def tiny(**settings) -> VAE:
    sizes = {**SMALL, "activation": "tanh", **settings}
    return randomised(build("vae", (1, 2, 2), seed=3, **sizes).double(), 0.4)


@torch.no_grad()
@EVERY_KIND
def test_importance_sampling_finds_log_p_of_x(kind):
    """With flows as prior and posterior, against quadrature over a two-dimensional latent: the IWAE bound of 5,000
    samples, within 4.5 standard errors (delta method)."""
    model, count = tiny(prior="flow", posterior="flow", flow=kind), 5000
    for part in (model.prior["z"], model.posterior["z"].head):
        for parameter in part.parameters():
            parameter.mul_(0.5)
    model.posterior["z"].head.gaussian.offset += 1.0  # wide: weights of finite variance
    x = ALL_2X2[:4]
    inference = model(x, samples=(count,))
    share = inference.log_weight.softmax(0)
    error = (share * count).std(0) / math.sqrt(count)
    difference = iwae(count)(inference) - quadrature(model, x, 2)
    assert (difference.abs() < 4.5 * error).all()
    assert (error < 0.15).all()


def flow_loss(kind, data) -> Loss:
    torch.set_default_dtype(torch.float32)
    model = build("vae", data, **SMALL, prior="flow", posterior="flow", flow=kind).train()
    return Loss(model, elbo())


@pytest.mark.parametrize(
    "kind", ["affine-coupling", pytest.param("spline-autoregressive", marks=pytest.mark.long)]
)
def test_a_traced_step_is_the_eager_one(kind):
    """Without values that the graph depends on; the gradients of every parameter too."""
    data = random_dataset(kind="grey")
    loss = flow_loss(kind, data)
    graph, inputs = trace(loss, data.train[:8], 1.0)
    torch.manual_seed(5)
    means, *gradients = graph(*inputs)
    torch.manual_seed(5)
    assert torch.allclose(means, loss.backward(data.train[:8], 1.0), rtol=1e-4)
    for (key, parameter), gradient in zip(loss.model.named_parameters(), gradients, strict=True):
        assert gradient.abs().max() > 0, key
        assert torch.allclose(gradient, parameter.grad, rtol=1e-3, atol=1e-4), key


@pytest.mark.long
@EVERY_KIND
def test_a_step_compiles(kind):
    data, lines = random_dataset(kind="grey"), []
    loss = flow_loss(kind, data)
    assert compile_step(loss, data.train[:8], 1.0, lines.append) != loss.backward
    assert lines == ["compiling the training step (once) ..."]  # the gradients were compared


def test_densities_stay_float32_under_bfloat16():
    torch.set_default_dtype(torch.float32)
    model = build("vae", (1, 2, 2), **SMALL, prior="flow", posterior="flow")
    with torch.autocast("cpu", torch.bfloat16):
        latent = model(torch.rand(3, 1, 2, 2)).latents["z"]
        values = latent.z, latent.posterior.mean, latent.prior.mean, latent.kl
        exact = latent.prior.log_prob(latent.z)
    assert all(each.dtype == torch.float32 for each in values)
    assert torch.equal(exact, latent.prior.log_prob(latent.z))


@torch.no_grad()
def test_a_flow_prior_is_one_of_the_condition():
    model = randomised(build("cvae", (1, 2, 2), classes=3, prior="flow", **SMALL).double(), 0.5)
    values = model.given(None, torch.arange(3))
    z = torch.randn(5, 1, 2)
    together = model.prior["z"](values).log_prob(z)
    assert together.shape == (5, 3)
    alone = model.prior["z"](model.given(None, torch.tensor([1]))).log_prob(z)
    assert torch.allclose(together[:, 1:2], alone, atol=1e-10)
    assert (together[:, 0] - together[:, 1]).abs().min() > 1e-6


def test_a_capacity_holds_the_estimated_kl_of_a_flow_on_average():
    """The KL of a flow is of one draw; the sign of each draw would penalise its variance."""
    for flows in ({"prior": "flow"}, {"posterior": "flow"}):
        inference = tiny(**flows)(ALL_2X2)
        nats = inference.kl.mean().item() - 0.1
        value = capacity(nats, beta=2.0)(inference)
        excess = inference.kl - nats
        assert (excess < 0).any()
        assert torch.allclose(value, inference.log_likelihood - 2 * excess)


def test_a_flow_has_no_closed_kl_and_a_gaussian_has():
    inference = tiny(prior="flow")(ALL_2X2)
    (latent,) = inference.latents.values()
    assert torch.equal(latent.kl, -latent.log_ratio)
    assert isinstance(latent.posterior, Independent)
    closed = Latent(latent.z, latent.posterior, latent.prior.base_dist)
    assert not torch.allclose(closed.kl, -closed.log_ratio)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"flow_steps": 3}, "flow_steps has no effect without a flow"),
        ({"flow_dim": 3}, "flow_dim has no effect without a flow"),
        ({"flow": "spline-coupling"}, "flow has no effect without a flow"),
        ({"prior": "flow", "flow_steps": 0}, "flow_steps is 0"),
        ({"prior": "flow", "components": 3}, "components has no effect for a flow prior"),
        ({"posterior": "flow", "prior": "vampprior"}, "too slow to evaluate"),
        ({"prior": "flow", "latent_dim": 1}, "this latent has one dimension"),
        ({"posterior": "flow", "latent_dim": 1}, "this latent has one dimension"),
    ],
)
def test_flows_that_make_no_sense(settings, message):
    with pytest.raises(UserError, match=message):
        build("vae", (1, 8, 8), **settings)
    with pytest.raises(UserError, match="is not possible here"):
        build("gmvae", (1, 8, 8), prior="flow")


def test_objectives_that_need_a_gaussian():
    with pytest.raises(UserError, match="gradient dreg needs a Gaussian posterior"):
        make_objective(
            ObjectiveConfig("iwae", samples=2, gradient="dreg"), ModelConfig(posterior="flow")
        )
    with pytest.raises(UserError, match="need a Gaussian posterior"):
        iwae(2, "dreg")(tiny(posterior="flow")(ALL_2X2, samples=(2,)))
    with pytest.raises(UserError, match="a prior without weights"):
        make_objective(ObjectiveConfig("infovae"), ModelConfig(prior="flow"))
    with pytest.raises(UserError, match="gives a learned prior no gradient"):
        infovae()(tiny(prior="flow")(ALL_2X2))
    blueprint = Blueprint("mmdvae", (1, 2, 2), ModelConfig(**SMALL, posterior="flow"))
    value = objective_of(blueprint)(
        tiny(posterior="flow")(ALL_2X2)
    )  # its KL may be of any posterior
    assert value.isfinite().all()
