"""One contract for every model of the table, over image shapes and likelihoods."""

import itertools
import math
from typing import get_args

import numpy as np
import pytest
import torch

from conftest import random_dataset
from vaekit import MODELS, UserError, build
from vaekit.config import Activation
from vaekit.data import Split
from vaekit.evaluation import Shown, measure_nll
from vaekit.models import objective_of
from vaekit.networks import ACTIVATIONS
from vaekit.objectives import elbo, iwae
from vaekit.runs import load_weights, write
from vaekit.training import Loss

SHAPES = [(1, 28, 28), (1, 28, 20), (3, 32, 32), (3, 94, 94), (1, 7, 5), (1, 1, 1), (3, 64, 48)]
LIKELIHOODS = ["bernoulli", "gaussian", "logistic"]


def small(name, shape=(1, 9, 6), **settings):
    return build(name, shape, **{"latent_dim": 3, "hidden_dim": 16, "channels": 4, **settings})


def images(count, shape, likelihood="bernoulli"):
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(count, *shape, generator=generator)
    return x.round() if likelihood == "bernoulli" else (x * 255).round() / 255


@pytest.fixture(params=list(MODELS))
def name(request):
    return request.param


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@torch.no_grad()
def test_any_image_shape_works(name, shape, likelihood):
    model, x = small(name, shape, likelihood=likelihood), images(4, shape, likelihood)
    inference = model(x, samples=(5,))
    assert inference.log_likelihood.shape == inference.log_weight.shape == (5, 4)
    assert inference.likelihood.batch_shape == (5, 4)
    assert inference.likelihood.event_shape == shape
    assert model(x).log_weight.shape == (4,)
    assert model.sample(6).mean.shape == (6, *shape)
    assert model.sample(6).sample().shape == (6, *shape)
    assert model.reconstruct(x).mean.shape == x.shape


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("objective", [None, elbo(samples=(3,)), iwae(5)], ids=str)
def test_loss_is_finite_and_every_parameter_gets_a_gradient(name, likelihood, objective):
    model = small(name, likelihood=likelihood)
    loss = Loss(model, objective or objective_of(model.blueprint))
    value, means = loss(images(8, (1, 9, 6), likelihood))
    value.backward()
    assert value.isfinite()
    assert means.isfinite().all()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().max() > 0, key


@torch.no_grad()
def test_more_samples_never_loosen_the_bound(name):
    """Jensen: from one set of weights, the means of log-mean-exp over groups of 1, 2, 4 ... never fall."""
    model, x = small(name).double(), images(20, (1, 9, 6)).double()
    log_weight = model(x, samples=(64,)).log_weight
    bounds = [
        (log_weight.view(-1, k, len(x)).logsumexp(1) - math.log(k)).mean(0)
        for k in (1, 2, 4, 8, 16, 32, 64)
    ]
    for looser, tighter in itertools.pairwise(bounds):
        assert (tighter >= looser - 1e-12).all()


@torch.no_grad()
def test_saved_and_loaded_it_gives_equal_log_weights(name, tmp_path):
    model, other = small(name, seed=0), small(name, seed=1)
    x = images(4, (1, 9, 6))

    def log_weight(m):
        torch.manual_seed(0)
        return m(x, samples=(3,)).log_weight

    assert not torch.equal(log_weight(model), log_weight(other))
    import safetensors.torch

    write(tmp_path / "m.safetensors", safetensors.torch.save(model.state_dict()))
    load_weights(other, tmp_path / "m.safetensors")
    assert torch.equal(log_weight(model), log_weight(other))


@torch.no_grad()
def test_float32_agrees_with_float64(name):
    model, x = small(name), images(6, (1, 9, 6))
    q = model.posterior["z"]({"x": x, "y": None})
    z = q.mean + q.stddev
    single = model.decode(z=z).log_prob(x)
    double = model.double().decode(z=z.double()).log_prob(x.double())
    assert torch.allclose(single.double(), double, rtol=1e-5)


@torch.no_grad()
def test_an_image_does_not_feel_its_batch(name):
    model, x = small(name, dropout=0.3).double().eval(), images(6, (1, 9, 6)).double()
    together = model.posterior["z"]({"x": x, "y": None}).mean
    shuffled = model.posterior["z"]({"x": x.flip(0), "y": None}).mean.flip(0)
    alone = torch.cat([model.posterior["z"]({"x": one[None], "y": None}).mean for one in x])
    assert torch.allclose(together, shuffled, atol=1e-12)
    assert torch.allclose(together, alone, atol=1e-12)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("level", [0.0, 1.0])
@pytest.mark.parametrize("count", [1, 16])
def test_extreme_images_stay_finite(name, likelihood, level, count):
    """All black, all white, a batch of one, 200 steps at ten times the learning rate."""
    model = small(name, shape=(1, 4, 4), likelihood=likelihood)
    loss = Loss(model, objective_of(model.blueprint))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    x = torch.full((count, 1, 4, 4), level)
    for _ in range(200):
        optimizer.zero_grad()
        value = loss(x)[0]
        value.backward()
        optimizer.step()
    assert value.isfinite()
    assert all(p.isfinite().all() for p in model.parameters())


def test_the_seed_makes_the_weights(name):
    first, again, other = small(name, seed=5), small(name, seed=5), small(name, seed=6)
    for key, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
    assert any(not torch.equal(v, other.state_dict()[k]) for k, v in first.state_dict().items())


def test_dropout_is_active_in_training_and_only_there(name):
    model, x = small(name, dropout=0.5), images(2, (1, 9, 6))
    means = [model.posterior["z"]({"x": x, "y": None}).mean for _ in range(2)]
    assert not torch.equal(*means)
    model.eval()
    means = [model.posterior["z"]({"x": x, "y": None}).mean for _ in range(2)]
    assert torch.equal(*means)


def test_dropout_reaches_the_decoder_too(name):
    model, z = small(name, dropout=0.5), torch.ones(1, 3)
    assert not torch.equal(model.decode(z=z).mean, model.decode(z=z).mean)
    model.eval()
    assert torch.equal(model.decode(z=z).mean, model.decode(z=z).mean)


@pytest.mark.parametrize("activation", get_args(Activation))
def test_every_activation_is_what_it_is_called(name, activation):
    model = small(name, activation=activation)
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


def test_an_image_is_encoded_once_however_many_samples(name):
    model, x = small(name), images(2, (1, 9, 6))
    seen = []
    model.posterior["z"].network.register_forward_hook(lambda m, i, o: seen.append(o.shape[0]))
    model(x, samples=(50,))
    assert seen == [2]


def test_temperature_shrinks_the_draws_from_the_prior(name):
    model = small(name)
    seen = []
    model.decoder.register_forward_pre_hook(lambda m, values: seen.append(values[0]["z"]))
    for temperature in (1.0, 0.5, 0.0):
        torch.manual_seed(0)
        model.sample(100, temperature=temperature)
    assert torch.allclose(seen[1], seen[0] / 2)
    assert (seen[2] == 0).all()
    assert seen[0].std() == pytest.approx(1, abs=0.2)


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
    ("call", "said"),
    [
        (lambda: build("vea", (1, 8, 8)), "did you mean 'vae'"),
        (lambda: build("vae", (8, 8)), "channels, height, width"),
        (lambda: build("vae", ()), "channels, height, width"),
        (lambda: build("vae", 5), "channels, height, width"),
        (lambda: build("vae", (1, 8, 8), seed=-1), "--seed is -1"),
        (lambda: build("vae", (1, 8, 8), latent_dim=10**13), "at most"),
        (lambda: build("convvae", (1, 8, 8), num_layers=30), "0 to 12"),
        (lambda: iwae(0), "at least 1"),
        (lambda: build("vae", (1, 8, 8), latent_dim=0), "at least 1"),
        (lambda: build("vae", (1, 8, 8), latnt_dim=2), "did you mean 'latent_dim'"),
        (lambda: build("vae", (1, 8, 8), latent_dim="2"), "a whole number"),
        (lambda: build("vae", (1, 8, 8), latent_dim=True), "a whole number"),
        (lambda: build("vae", (1, 8, 8), dropout=1.0), "below 1"),
        (lambda: build("vae", (1, 8, 8), likelihood="gaussian", scale=-0.1), "positive"),
        (lambda: build("vae", (1, 8, 8), likelihood="bernoulli", scale=0.1), "no meaning"),
        (lambda: build("vae", (1, 8, 8), activation="swish"), "relu or silu"),
    ],
)
def test_bad_settings_are_named(call, said):
    with pytest.raises(UserError, match=said) as caught:
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
        sums = measure_nll(model, Split(images(3, (3, 12, 10), "logistic")), 20, Shown(False))
    assert sums.shape == (2, 3)
    assert sums.isfinite().all()
