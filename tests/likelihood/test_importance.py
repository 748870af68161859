"""Importance sampling: the fast sum over pixels, blocks, bfloat16, memory, the curve over samples."""

import math

import pytest
import torch
from torch.distributions import Bernoulli, Independent

from conftest import random_dataset
from vaekit import UserError, build
from vaekit.data import eval_split
from vaekit.likelihood import importance
from vaekit.likelihood.importance import (
    ImportanceEstimate,
    block_rows,
    log_likelihood,
    measure_nll,
    prepare_for_inference,
    row_bytes,
    split_evenly,
)
from vaekit.support.console import ProgressBar
from vaekit.support.devices import seeded
from vaekit.support.errors import parse_memory

QUIET = ProgressBar(False)


@pytest.mark.parametrize("shape", [(1, 28, 28), (1, 1, 1), (3, 5, 7), (1, 28, 20), (1, 1, 31)])
def test_the_fast_sum_over_pixels_is_exact(shape, float64):
    """For grey pixels too, and logits from 0.01 to 700."""
    torch.manual_seed(0)
    logits = torch.randn(4, 3, *shape) * torch.tensor([0.01, 1.0, 30.0, 700.0]).view(4, 1, 1, 1, 1)
    x = torch.stack([torch.rand(shape), torch.rand(shape).round(), torch.ones(shape)])
    likelihood = Independent(Bernoulli(logits=logits, validate_args=False), 3, validate_args=False)
    exact = likelihood.log_prob(x)
    assert torch.allclose(log_likelihood(likelihood, x), exact, rtol=1e-12, atol=1e-12)
    single = Independent(Bernoulli(logits=logits.float(), validate_args=False), 3)
    fast = log_likelihood(single, x.float()).double()
    assert torch.allclose(fast, exact, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("count", [1, 7, 8, 9, 100])
@pytest.mark.parametrize("wrong", [0, 1, 5, 8])
def test_log_likelihoods_of_nearly_impossible_bits_are_exact(count, wrong):
    """In float32, whose smallest number is e^-87: eight pixels of e^-20 each have a product below it."""
    x = torch.ones(2, 1, count, 1)
    logits = torch.full((3, 2, 1, count, 1), 4.0)
    stride = max(1, count // 8)
    logits[1, 0, 0, : wrong * stride : stride] = -20.0
    logits[2, 1, 0, : wrong * stride : stride] = -90.0
    exact = Independent(Bernoulli(logits=logits.double(), validate_args=False), 3).log_prob(
        x.double()
    )
    for sign in (1, -1):
        bits = x if sign == 1 else 1 - x
        likelihood = Independent(Bernoulli(logits=sign * logits, validate_args=False), 3)
        torch.testing.assert_close(
            log_likelihood(likelihood, bits).double(), exact, rtol=1e-5, atol=1e-4
        )


@pytest.mark.parametrize("likelihood", ["logistic", "gaussian", "continuous-bernoulli"])
def test_other_likelihoods_use_their_log_prob(likelihood):
    data = random_dataset(kind="grey")
    model = build("vae", data, latent_dim=2, hidden_dim=8, likelihood=likelihood).eval()
    images = eval_split(data.test, "none")
    with torch.no_grad(), seeded(0):
        estimate = measure_nll(model, images, 50, QUIET)
    with torch.no_grad(), seeded(0):
        batch = images[:]
        slow = model(batch.images, samples=(50,)).log_weight.double().logsumexp(0) - math.log(50)
    assert torch.allclose(estimate.log_mean, slow, rtol=1e-4)


def test_the_curve_is_of_disjoint_groups():
    torch.manual_seed(0)
    weights = torch.randn(25, 4, dtype=torch.float64) * 3
    estimate = ImportanceEstimate.of(weights)
    assert list(estimate.curve) == [1, 10]
    assert torch.allclose(estimate.curve[1], weights.mean(0))
    by_hand = (weights[:10].exp().mean(0).log() + weights[10:20].exp().mean(0).log()) / 2
    assert torch.allclose(estimate.curve[10], by_hand)
    assert torch.allclose(estimate.log_mean, weights.exp().mean(0).log())
    assert torch.allclose(estimate.log_mean_square, (2 * weights).exp().mean(0).log())
    total = weights.exp().sum(0) ** 2 / weights.exp().square().sum(0)
    assert estimate.effective_samples == pytest.approx(float(total.mean()))


def test_the_error_is_of_the_unbiased_variance_of_the_weights():
    weights = torch.tensor([[1.0, 2.0], [3.0, 2.0]], dtype=torch.float64)
    relative = weights.var(0) / 2 / weights.mean(0) ** 2
    error = ImportanceEstimate.of(weights.log()).standard_error
    assert error == pytest.approx(float(relative.sum().sqrt()) / 2)


def test_bounds_rise_with_the_samples_in_expectation():
    """IWAE_1 <= IWAE_10 <= IWAE_100: of 20 images x 1,000 samples the gaps are nats, their errors hundredths."""
    data = random_dataset()
    model = build("vae", data, latent_dim=2, hidden_dim=8).eval()
    with torch.no_grad(), seeded(0):
        curve = measure_nll(model, eval_split(data.test, "dynamic"), 1000, QUIET).curve
    bounds = [float(curve[k].mean()) for k in (1, 10, 100, 1000)]
    assert bounds == sorted(bounds)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("vampprior", {"components": 5}),
        ("hvampprior", {"components": 5, "top_dim": 2}),
        ("gmvae", {"clusters": 3, "w_dim": 2, "start_epochs": 0}),
        ("cvae", {}),
        ("cvae", {"condition": "quadrants:1"}),
        ("hvae", {"top_dim": 2}),
    ],
)
def test_every_graph_has_the_weights_of_its_inference(name, settings):
    data = random_dataset()
    model = build(name, data, latent_dim=2, hidden_dim=8, **settings).eval()
    images = eval_split(data.test, "dynamic")
    batch = images[:]
    with torch.no_grad():
        with seeded(3):
            estimate = measure_nll(model, images, 30, QUIET)
        with seeded(3):
            inference = model(batch.images, batch.labels, samples=(30,))
    expected = inference.log_weight.double().logsumexp(0) - math.log(30)
    assert torch.allclose(estimate.log_mean, expected, rtol=1e-4, atol=1e-3)


def test_each_block_decodes_its_own_samples(monkeypatch):
    data = random_dataset()
    model = build("vae", data, latent_dim=2, hidden_dim=8).eval()
    image = eval_split(data.test, "dynamic").take(torch.arange(1))
    estimates = []
    for numbers in (10**6, 3 * 30):  # all 20 samples at once, or 3
        monkeypatch.setattr(importance, "BLOCK_NUMBERS", numbers)
        with seeded(0):
            estimates.append(measure_nll(model, image, 20, QUIET))
    whole, cut = estimates
    assert torch.allclose(cut.log_mean, whole.log_mean)
    assert torch.allclose(cut.log_mean_square, whole.log_mean_square)


def test_pseudo_inputs_are_encoded_once():
    data = random_dataset()
    model = build("vampprior", data, latent_dim=2, hidden_dim=8, components=5).eval()
    seen = []
    hook = model.posterior["z"].network.register_forward_hook(
        lambda module, inputs, output: seen.append(len(inputs[0]))
    )
    with torch.no_grad():
        measure_nll(model, eval_split(data.test, "dynamic"), 5, QUIET)
    hook.remove()
    # The pseudo-inputs once; images come 1 (to size the blocks) or 20 at a time.
    assert seen.count(5) == 1
    before = set(model.state_dict())
    assert set(prepare_for_inference(model, "float32").state_dict()) <= before


def test_bfloat16_is_close(small_run, small_mnist):
    from vaekit import load

    model = load(small_run)
    images = eval_split(small_mnist.test, "dynamic").take(torch.arange(20))
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        with seeded(0):
            exact = measure_nll(model, images, 200, QUIET).log_mean.mean()
        with seeded(0):
            near = measure_nll(model, images, 200, QUIET, precision="bfloat16").log_mean.mean()
    assert abs(float(near - exact)) < 0.02
    assert near != exact
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_memory_bounds_the_blocks():
    data = random_dataset()
    model = build("vae", data, latent_dim=2, hidden_dim=8).eval()
    images = eval_split(data.test, "dynamic")
    each = row_bytes(model, images)
    assert each >= 4 * (4 * 8 + 30) + 16 * 30  # each layer and activation of the decoder
    rows, drawn = block_rows(model, images, "1MB")
    assert rows * each <= 2**20
    assert drawn * each <= 2**20
    with torch.no_grad(), seeded(0):
        small = measure_nll(model, images, 300, QUIET, memory=f"{each / 1024 * 3:.3f}KB")
    with torch.no_grad(), seeded(0):
        large = measure_nll(model, images, 300, QUIET)
    error = math.hypot(small.standard_error, large.standard_error)
    assert abs(float(small.log_mean.mean() - large.log_mean.mean())) < 5 * error
    with pytest.raises(UserError, match="is too small; one image takes"):
        measure_nll(model, images, 10, QUIET, memory="0.01KB")


@pytest.mark.parametrize(
    ("text", "bytes_"),
    [("1KB", 1024), ("500MB", 500 * 2**20), ("2GB", 2**31), ("1.5g", 3 * 2**29), ("1 TiB", 2**40)],
)
def test_memory_is_parsed(text, bytes_):
    assert parse_memory(text) == bytes_


@pytest.mark.parametrize("text", ["", "5", "-1GB", "GB", "1XB", "0MB", "1e3MB"])
def test_bad_memory_is_named(text):
    with pytest.raises(UserError, match="is not a size; give one such as"):
        parse_memory(text)


def test_parts_are_nearly_equal():
    assert split_evenly(10, 4) == [4, 3, 3]
    assert split_evenly(3, 10) == [3]
    assert split_evenly(5, 1) == [1] * 5
