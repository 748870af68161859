"""The contract of every model in the table, over image shapes and likelihoods."""

import itertools
import math
from typing import get_args

import numpy as np
import pytest
import torch

from conftest import random_dataset
from model_cases import (
    CASES,
    CLASSES,
    LIKELIHOODS,
    SHAPES,
    given,
    images,
    labels,
    skip_without_density,
    small,
)
from vaekit import UserError, build
from vaekit.data import Split
from vaekit.inference.generation import analogies, generate
from vaekit.likelihood.importance import measure_nll
from vaekit.model.build import objective_of
from vaekit.model.distributions import sample_with_temperature
from vaekit.model.networks.encoders import Encoder
from vaekit.model.networks.hidden import ACTIVATIONS
from vaekit.model.networks.ladder import Ladder
from vaekit.model.objectives import capacity, elbo, iwae
from vaekit.runs.weights import load_weights
from vaekit.settings.model import Activation
from vaekit.support.atomic import write_bytes
from vaekit.support.console import ProgressBar
from vaekit.training.step import Loss


@pytest.fixture(params=list(CASES))
def name(request):
    return request.param


@pytest.fixture
def constant_noise(monkeypatch):
    """Every normal sample is 0.3, so that two passes have the same latents."""
    monkeypatch.setattr(
        "torch.distributions.normal._standard_normal",
        lambda shape, dtype, device: torch.full(shape, 0.3, dtype=dtype, device=device),
    )


def check_shapes(name, shape, likelihood):
    few = {"logistics": 2} if likelihood == "logistic-mixture" else {}
    model = small(name, shape, likelihood=likelihood, **few)
    x, y = images(4, shape, likelihood), labels(4)
    inference = model.eval()(x, y, samples=(5,))
    assert inference.log_likelihood.shape == inference.log_weight.shape == (5, 4)
    assert inference.likelihood.batch_shape == (5, 4)
    assert inference.likelihood.event_shape == shape
    assert model(x, y).log_weight.shape == (4,)
    assert model.sample(6, given(model, 6)).mean.shape == (6, *shape)
    draw = model.sample(6, given(model, 6)).sample()
    assert draw.shape == (6, *shape)
    assert model.reconstruct(x, y).mean.shape == x.shape
    assert ((model.reconstruct(x, y).mean > -2) & (model.reconstruct(x, y).mean < 3)).all()
    if model.blueprint.settings.condition.startswith("quadrants"):
        seen = model.condition.mask > 0
        assert torch.equal(model.reconstruct(x, y).mean[..., seen[0]], x[..., seen[0]])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("network", "likelihood"),
    [*itertools.product(["vae", "convvae"], LIKELIHOODS), ("residual", "logistic")],
)
@torch.no_grad()
def test_any_image_shape_works(network, shape, likelihood):
    if likelihood == "categorical" and math.prod(shape) > 3072:
        pytest.skip("256 numbers per pixel take seconds")
    check_shapes(network, shape, likelihood)


@pytest.mark.parametrize("shape", [(1, 9, 6), (3, 10, 7)], ids=str)
@torch.no_grad()
def test_every_model_works_on_any_shape(name, shape):
    check_shapes(name, shape, "bernoulli")


OBJECTIVES = [None, elbo(samples=(3,)), iwae(5), capacity(3.0)]


def check_gradients(name, likelihood, objective):
    model = small(name, likelihood=likelihood)
    if objective is not None:
        skip_without_density(model)
    for parameter in model.parameters():  # what multiplies a map of zeros has no gradient yet
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    loss = Loss(model, objective or objective_of(model.blueprint))
    value, means = loss(images(8, (1, 9, 6), likelihood), labels(8))
    value.backward()
    assert value.isfinite()
    assert means[0].isfinite()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().max() > 0, key


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_loss_is_finite_and_every_parameter_gets_a_gradient(name, objective):
    check_gradients(name, "bernoulli", objective)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("scale", [None, "shared", "each"])
@pytest.mark.parametrize("network", ["vae", "convvae"])
def test_every_likelihood_gives_every_parameter_a_gradient(network, likelihood, scale):
    if scale and likelihood not in ("gaussian", "logistic"):
        pytest.skip(f"{likelihood} has no scale")
    model = small(network, likelihood=likelihood, scale=scale)
    loss = Loss(model, iwae(4))(images(8, (1, 9, 6), likelihood))[0]
    loss.backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad.abs().max() > 0, key


@torch.no_grad()
def test_more_samples_never_loosen_the_bound(name):
    """Jensen: from one set of weights, the means of log-mean-exp over groups of 1, 2, 4 ... never fall; the first is
    an ELBO, the others IWAE bounds."""
    model, x = small(name).double().eval(), images(20, (1, 9, 6)).double()
    skip_without_density(model)
    log_weight = model(x, labels(20), samples=(64,)).log_weight
    bounds = [
        (log_weight.view(-1, k, len(x)).logsumexp(1) - math.log(k)).mean(0)
        for k in (1, 2, 4, 8, 16, 32, 64)
    ]
    for looser, tighter in itertools.pairwise(bounds):
        assert (tighter >= looser - 1e-12).all()


@torch.no_grad()
def test_the_objectives_are_those_bounds(name):
    """ELBO <= IWAE, both from the same 64 samples, through the objectives themselves."""
    model, x = small(name).double().eval(), images(20, (1, 9, 6)).double()
    skip_without_density(model)
    torch.manual_seed(0)
    inference = model(x, labels(20), samples=(64,))
    sampled = inference.log_weight.mean(0)
    analytic = elbo(samples=(64,))(inference)
    error = float(inference.log_weight.std(0).norm()) / 8 / 20
    assert abs(float((analytic - sampled).mean())) < 4 * error + 1e-9
    assert torch.allclose(
        iwae(64)(inference), inference.log_weight.logsumexp(0) - math.log(64), atol=1e-10
    )
    assert (iwae(64)(inference) >= sampled - 1e-12).all()


@torch.no_grad()
def test_saved_and_loaded_it_gives_equal_log_weights(name, tmp_path):
    model, other = small(name, seed=0).eval(), small(name, seed=1).eval()
    skip_without_density(model)
    x = images(4, (1, 9, 6))

    def log_weight(m):
        torch.manual_seed(0)
        return m(x, labels(4), samples=(3,)).log_weight

    assert not torch.equal(log_weight(model), log_weight(other))
    import safetensors.torch

    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    write_bytes(tmp_path / "m.safetensors", safetensors.torch.save(state))
    load_weights(other, tmp_path / "m.safetensors")
    assert torch.equal(log_weight(model), log_weight(other))


@torch.no_grad()
def test_no_weight_is_saved_twice(name):
    state = small(name).state_dict()
    assert len({value.data_ptr() for value in state.values() if value.numel()}) == len(
        [value for value in state.values() if value.numel()]
    )


@torch.no_grad()
def test_float32_agrees_with_float64(name, constant_noise):
    model, x = small(name).eval(), images(6, (1, 9, 6))
    single = model(x, labels(6), samples=(2,))
    single_log_weight = single.log_weight.double()  # a flow's density reads the weights
    double = model.double()(x.double(), labels(6), samples=(2,))
    assert torch.allclose(
        single.log_likelihood.double(), double.log_likelihood, rtol=1e-5, atol=1e-4
    )
    skip_without_density(model)
    assert torch.allclose(single_log_weight, double.log_weight, rtol=1e-5, atol=1e-4)


@torch.no_grad()
def test_values_of_an_image_do_not_depend_on_its_batch(name, constant_noise):
    model, x, y = (
        small(name, dropout=0.3).double().eval(),
        images(6, (1, 9, 6)).double(),
        labels(6),
    )

    def measure(x, y):
        inference = model(x, y)
        settings = model.blueprint.settings
        return (
            inference.log_likelihood
            if settings.posterior == "deterministic"
            else inference.log_weight
        )

    together = measure(x, y)
    shuffled = measure(x.flip(0), y.flip(0)).flip(0)
    alone = torch.cat([measure(one[None], label[None]) for one, label in zip(x, y, strict=True)])
    assert torch.allclose(together, shuffled, atol=1e-10)
    assert torch.allclose(together, alone, atol=1e-10)


def check_extremes(name, likelihood, level, count):
    model = small(name, shape=(1, 4, 4), likelihood=likelihood, hidden_dim=8)
    if model.blueprint.settings.normalisation == "batch" and count == 1:
        pytest.skip("batch normalisation has no batch of one")
    loss = Loss(model, objective_of(model.blueprint))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-2, fused=True)
    x, y = torch.full((count, 1, 4, 4), level), labels(count)
    for _ in range(40):
        optimizer.zero_grad()
        value = loss(x, y)[0]
        value.backward()
        optimizer.step()
    assert value.isfinite()
    assert all(p.isfinite().all() for p in model.parameters())


# Of a kind that another case has; each takes a second.
SLOW = {
    "residual cvae",
    "residual quadrants",
    "residual hvampprior",
    "spline flow prior",
    "flow posteriors and prior",
    "gmvae with flow posteriors",
    "deepvae of labels",
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.long) if n in SLOW else n for n in CASES]
)
@pytest.mark.parametrize(("level", "count"), [(0.0, 1), (1.0, 16)])
def test_extreme_images_stay_finite(name, level, count):
    """All black in a batch of one, all white; 40 steps at fifty times the learning rate."""
    check_extremes(name, "bernoulli", level, count)


@pytest.mark.parametrize("likelihood", LIKELIHOODS[1:])
@pytest.mark.parametrize("level", [0.0, 1.0])
@pytest.mark.parametrize("count", [1, 16])
def test_extreme_images_stay_finite_under_every_likelihood(likelihood, level, count):
    check_extremes("vae", likelihood, level, count)


def test_the_seed_determines_the_weights(name):
    first, again, other = small(name, seed=5), small(name, seed=5), small(name, seed=6)
    for key, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
    assert any(not torch.equal(v, other.state_dict()[k]) for k, v in first.state_dict().items())


@torch.no_grad()
def test_dropout_is_active_in_training_and_only_there(name, constant_noise):
    model, x = small(name, dropout=0.5), images(2, (1, 9, 6))
    if not model.blueprint.settings.dropout:
        pytest.skip("the networks of a deep hierarchy have no dropout")

    def passes():
        return [model(x, labels(2)).likelihood.mean for _ in range(2)]

    assert not torch.equal(*passes())
    model.eval()
    assert torch.equal(*passes())


@torch.no_grad()
def test_dropout_reaches_the_decoder_too():
    model, z = small("vae", dropout=0.5), torch.ones(1, 3)
    assert not torch.equal(model.decode(z=z).mean, model.decode(z=z).mean)
    model.eval()
    assert torch.equal(model.decode(z=z).mean, model.decode(z=z).mean)


@pytest.mark.parametrize("activation", get_args(Activation))
@pytest.mark.parametrize("network", ["vae", "convvae"])
def test_every_activation_is_its_formula(network, activation):
    model = small(network, activation=activation)
    assert model(images(2, (1, 9, 6))).log_weight.isfinite().all()
    if activation == "gated":
        return
    x = torch.linspace(-3, 3, 7)
    expected = {
        "relu": x.clamp(min=0),
        "silu": x * torch.sigmoid(x),
        "gelu": 0.5 * x * (1 + torch.erf(x / 2**0.5)),
        "elu": torch.where(x > 0, x, x.exp() - 1),
        "leaky-relu": torch.where(x > 0, x, 0.2 * x),
        "softplus": (1 + x.exp()).log(),
        "tanh": torch.tanh(x),
    }
    assert torch.allclose(ACTIVATIONS[activation]()(x), expected[activation], atol=1e-6)


def test_an_image_is_encoded_once_for_any_number_of_samples(name):
    model, x = small(name).eval(), images(2, (1, 9, 6))
    seen = []
    for module in model.modules():
        if isinstance(module, Encoder):
            module.trunk.register_forward_hook(lambda m, i, o: seen.append(o.shape[:-1]))
        if isinstance(module, Ladder):
            module.stem.register_forward_hook(lambda m, i, o: seen.append(o.shape[:-3]))
    model(x, labels(2), samples=(50,))
    vamp = len(getattr(next(iter(model.prior.values())), "logits", ()))
    assert seen
    assert all(shape in {(2,), (vamp,)} for shape in seen)


def test_the_prior_of_hidden_quadrants_is_learned_by_default():
    assert small("quadrants").blueprint.settings.prior == "conditional"
    assert small("quadrants", prior="standard").blueprint.settings.prior == "standard"
    assert small("cvae").blueprint.settings.prior == "standard"


@torch.no_grad()
def test_labels_and_visible_parts_change_everything(name):
    model, x = small(name).double().eval(), images(4, (1, 9, 6)).double()
    if model.condition is None:
        pytest.skip("the model is not conditional")
    settings = model.blueprint.settings
    if settings.condition == "label":
        a, b = model.given(x, labels(4)), model.given(x, (labels(4) + 1) % CLASSES)
    else:
        a, b = model.given(x, None), model.given(x, None)
        b["y"] = model.given(x.flip(0), None)["y"]
    first, *others = model.prior.values()
    modules = [*model.posterior.values(), *others, model.decoder]
    if settings.prior == "conditional":
        modules.append(first)
    for values in (a, b):
        for latent, size in latent_sizes(model).items():
            values[latent] = torch.full((4, size), 0.5, dtype=torch.float64)
    for module in modules:
        assert (module(a).mean - module(b).mean).abs().max() > 1e-6


@torch.no_grad()
def test_analogies_keep_the_latent_and_change_the_label():
    model, x, y = small("cvae").eval(), images(3, (1, 9, 6)), labels(3)
    rows = analogies(model, x, y).unflatten(0, (3, 1 + CLASSES))
    assert torch.equal(rows[:, 0], x)
    own = model.reconstruct(x, y).mean
    z = model.posterior["z"](model.given(x, y)).mean
    for i in range(3):
        assert torch.allclose(rows[i, 1 + y[i]], own[i])
        for label in range(CLASSES):
            expected = model.decode(torch.tensor([label]), z=z[i : i + 1]).mean[0]
            assert torch.allclose(rows[i, 1 + label], expected, atol=1e-6)


@torch.no_grad()
def test_without_a_label_the_classes_alternate():
    model = small("cvae").eval()
    mixed = generate(model, 8, seed=3)
    for label in range(CLASSES):
        same = generate(model, 8, seed=3, label=label)
        assert torch.equal(mixed[label::CLASSES], same[label::CLASSES])


@torch.no_grad()
def test_a_cluster_is_sampled_from_its_component(constant_noise):
    model = small("gmvae", w_dim=2).eval()
    seen = []
    model.decoder.register_forward_pre_hook(lambda m, values: seen.append(values[0]))
    generate(model, 5, temperature=0.0, cluster=2)
    p = model.prior["z"](seen[0])
    assert torch.equal(seen[0]["z"], p.loc[:, 2])


def latent_sizes(model):
    s = model.blueprint.settings
    sizes = {"w": getattr(s, "w_dim", 0), **s.latent_sizes(model.blueprint.shape)}
    return {name: sizes[name] for name in model.prior}


@torch.no_grad()
def test_temperature_shrinks_the_samples_of_the_prior():
    model = small("vae")
    seen = []
    model.decoder.register_forward_pre_hook(lambda m, values: seen.append(values[0]["z"]))
    for temperature in (1.0, 0.5, 0.0):
        torch.manual_seed(0)
        model.sample(100, temperature=temperature)
    assert torch.allclose(seen[1], seen[0] / 2)
    assert (seen[2] == 0).all()
    assert seen[0].std() == pytest.approx(1, abs=0.2)


@torch.no_grad()
def test_samples_of_every_prior_match_its_density(name):
    """In 2-D, 20,000 samples as in `VAE.sample`, counted in 64 cells, against the density's integral over each; a
    chi-squared beyond 4 standard deviations above its mean has a probability of about 1 in 5,000."""
    model = small(name, latent_dim=2, **two_dimensional(name)).double().eval()
    for key, parameter in model.named_parameters():
        if "prior" in key:
            parameter.mul_(2)  # far from N(0, I)
        if "ladder" in key:
            parameter.add_(0.3 * torch.randn_like(parameter))
    torch.manual_seed(0)
    values = model.given(None, given(model, 1).expand(1, *given(model, 1).shape[1:]))
    if values["y"] is not None:
        values["y"] = values["y"].double()
    count = 20_000
    for latent, prior in model.prior.items():
        p = prior(values).expand((count,))
        draws = sample_with_temperature(p)
        assert draws.shape == (count, 2)
        center, spread = draws.mean(0), draws.std(0)
        edges = [
            torch.linspace(-2, 2, 9).double() * s + c for s, c in zip(spread, center, strict=True)
        ]
        fine = [torch.linspace(0, 1, 41).double()[:-1] + 1 / 80] * 2
        lines = [e[0] + (e[-1] - e[0]) * f for e, f in zip(edges, fine, strict=True)]
        grid = torch.cartesian_prod(*lines)
        density = prior(values).expand((1600,)).log_prob(grid).exp().view(8, 5, 8, 5)
        cell = math.prod(float(e[-1] - e[0]) / 40 for e in edges)
        expected = (density.sum((1, 3)) * cell * count).flatten()
        counts = torch.histogramdd(draws, edges).hist.flatten()
        kept = expected > 5
        chi2 = ((counts - expected) ** 2 / expected)[kept].sum().item()
        freedom = int(kept.sum())
        assert freedom > 10
        assert chi2 < freedom + 4 * math.sqrt(2 * freedom), latent
        values[latent] = torch.zeros(1, 2).double()


def two_dimensional(name):
    model, _ = CASES[name]
    return {"hvae": {"top_dim": 2}, "hvampprior": {"top_dim": 2}, "gmvae": {"w_dim": 2},
            "convgmvae": {"w_dim": 2}}.get(model, {})  # fmt: skip


def test_sizes_are_those_of_the_settings():
    """784-500-500-(20 + 20) and 20-500-500-784: counted by hand."""
    model = build("vae", (1, 28, 28))
    encoder = 784 * 500 + 500 + 500 * 500 + 500 + 500 * 40 + 40
    decoder = 20 * 500 + 500 + 500 * 500 + 500 + 500 * 784 + 784
    assert sum(p.numel() for p in model.parameters()) == encoder + decoder
    model = build("convvae", (1, 28, 28))
    convolutions = (9 * 1 * 32 + 32) + (9 * 32 * 64 + 64)
    encoder = convolutions + (64 * 49 * 500 + 500) + (500 * 40 + 40)
    transposed = (9 * 64 * 32 + 32) + (9 * 32 * 1 + 1)
    decoder = (20 * 500 + 500) + (500 * 64 * 49 + 64 * 49) + transposed
    assert sum(p.numel() for p in model.parameters()) == encoder + decoder


def test_the_likelihood_follows_the_data():
    assert build("vae", random_dataset(kind="bits")).blueprint.settings.likelihood == "bernoulli"
    assert build("vae", random_dataset(kind="grey")).blueprint.settings.likelihood == "logistic"
    assert build("vae", random_dataset(kind="float")).blueprint.settings.likelihood == "gaussian"
    assert build("vae", (1, 8, 8)).blueprint.settings.likelihood == "bernoulli"
    assert build("vae", (3, 8, 8)).blueprint.settings.likelihood == "logistic"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build("vea", (1, 8, 8)), "did you mean 'vae'"),
        (lambda: build("vae", (8, 8)), "channels, height, width"),
        (lambda: build("vae", ()), "channels, height, width"),
        (lambda: build("vae", 5), "channels, height, width"),
        (lambda: build("vae", (1, 8, 8), seed=-1), "seed is -1"),
        (lambda: build("vae", (1, 8, 8), latent_dim=10**13), "at most"),
        (lambda: build("convvae", (1, 8, 8), num_layers=30), "1 to 12"),
        (lambda: iwae(0), "at least 1"),
        (lambda: build("vae", (1, 8, 8), latent_dim=0), "at least 1"),
        (lambda: build("vae", (1, 8, 8), latnt_dim=2), "did you mean 'latent_dim'"),
        (lambda: build("vae", (1, 8, 8), latent_dim="2"), "a whole number"),
        (lambda: build("vae", (1, 8, 8), latent_dim=True), "a whole number"),
        (lambda: build("vae", (1, 8, 8), dropout=1.0), "below 1"),
        (lambda: build("vae", (1, 8, 8), likelihood="gaussian", scale=-0.1), "positive"),
        (lambda: build("vae", (1, 8, 8), likelihood="bernoulli", scale=0.1), "no effect"),
        (lambda: build("vae", (1, 8, 8), activation="swish"), "relu or silu"),
        (
            lambda: build("convvae", (1, 8, 8), encoder="8@3/2", decoder="8x @3*2", dropout=0.2),
            "dropout acts on dense hidden layers, and these networks have none",
        ),
    ],
)
def test_bad_settings_are_named(call, message):
    with pytest.raises(UserError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_numbers_of_numpy_are_numbers():
    model = build(
        "vae", [1, 8, 8], seed=np.int64(3), latent_dim=np.int32(4), dropout=np.float32(0.5)
    )
    assert model.blueprint.shape == (1, 8, 8)
    assert type(model.blueprint.settings.latent_dim) is int


def test_nll_works_on_a_model_of_colour_images():
    model = small("convvae", (3, 12, 10), likelihood="logistic").eval()
    with torch.no_grad():
        x = images(3, (3, 12, 10), "logistic")
        log_p = measure_nll(model, Split(x), 20, ProgressBar(False)).log_mean
    assert log_p.shape == (3,)
    assert log_p.isfinite().all()
