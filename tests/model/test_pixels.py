"""Discrete pixels of any number of levels: exact in float32, means in closed form, samples on the grid."""

import dataclasses
import math

import mpmath
import pytest
import torch

from conftest import random_dataset
from vaekit import UserError, build
from vaekit.model.pixels import (
    CategoricalPixels,
    DiscretisedLogistic,
    likelihood_head,
    logistic_head,
)
from vaekit.settings.data import ValueRange
from vaekit.settings.model import ModelConfig

LEVELS = (2, 3, 17, 256, 257, 4096, 65_536)


def grid(levels: int, dtype=torch.float32) -> torch.Tensor:
    return torch.arange(levels, dtype=dtype) / (levels - 1)


def floor_of(levels: int) -> float:
    """The smallest scale that a decoder gives to a pixel."""
    head = logistic_head("each", levels=levels)
    return head(torch.full((2, 1, 1), -1e4)).base_dist.scale.item()


def exact_log_prob(level: int, levels: int, loc: float, scale: float) -> float:
    """By the definition, with 60 digits; mirrored above the mean, so that no digits cancel."""
    with mpmath.workdps(60):
        half, loc, scale = mpmath.mpf(1) / (2 * (levels - 1)), mpmath.mpf(loc), mpmath.mpf(scale)
        x = mpmath.mpf(level) / (levels - 1)
        if x > loc:
            level, x, loc = levels - 1 - level, 1 - x, 1 - loc

        def cdf(x):
            return 1 / (1 + mpmath.exp(-(x - loc) / scale))

        upper = 1 if level == levels - 1 else cdf(x + half)
        lower = 0 if level == 0 else cdf(x - half)
        return float(mpmath.log(upper - lower))


@pytest.mark.parametrize("levels", LEVELS)
def test_the_probabilities_of_all_levels_add_up_to_one_in_float32(levels):
    """Also with the sharpest scale, where float32 has few digits for the distance of a level from the mean."""
    tolerance = 2e-5 if levels == 256 else 2e-6
    for scale in (floor_of(levels), 2 * floor_of(levels), 0.02, 3.0):
        for loc in (0.0, 0.3, 0.5, 127 / 255, 0.9999, 1.0, -0.2, 1.7, -40.0):
            pixel = DiscretisedLogistic(torch.tensor(loc), torch.tensor(scale), levels)
            log_p = pixel.log_prob(grid(levels))
            assert log_p.isfinite().all()
            assert log_p.double().exp().sum().item() == pytest.approx(1, abs=tolerance)


@pytest.mark.parametrize("levels", LEVELS)
def test_log_probabilities_in_float32_are_those_of_60_digits(levels):
    """At both ends, beside the mean and in the far tails; relative for large ones."""
    last, floor = levels - 1, torch.tensor(floor_of(levels))
    for scale in (floor, 3 * floor, torch.tensor(0.05)):
        for loc in map(torch.tensor, (0.0, 0.3, 0.77, 1.0, 1.4, -3.0)):
            near = min(last, max(0, round(loc.item() * last)))
            for level in {0, 1, near - 1, near, near + 1, last // 2, last - 1, last}:
                if not 0 <= level <= last:
                    continue
                found = DiscretisedLogistic(loc, scale, levels).log_prob(grid(levels)[level])
                expected = exact_log_prob(level, levels, loc.item(), scale.item())
                # Up to 256 levels, to the digits that float32 has for x + half - loc.
                tolerance = 2e-4 if levels <= 256 else 3e-5
                assert found.item() == pytest.approx(expected, rel=2e-6, abs=tolerance)


@pytest.mark.parametrize("levels", [17, 4096, 65_536])
def test_gradients_in_float32_are_those_of_float64(levels):
    generator = torch.Generator().manual_seed(0)
    level = torch.randint(levels, (2000,), generator=generator)
    scale = floor_of(levels) * (1 + 9 * torch.rand(2000, generator=generator))
    loc = grid(levels)[level] + 3 * scale * torch.randn(2000, generator=generator)
    gradients = []
    for dtype in (torch.float32, torch.float64):
        leaves = [t.detach().to(dtype, copy=True).requires_grad_() for t in (loc, scale)]
        pixels = DiscretisedLogistic(*leaves, levels)
        pixels.log_prob(grid(levels, dtype)[level]).sum().backward()
        gradients.append([leaf.grad.double() * scale for leaf in leaves])
    for single, double in zip(*gradients, strict=True):
        assert ((single - double).abs() < 1e-4 * (1 + double.abs())).all()


@pytest.mark.parametrize("levels", LEVELS)
def test_learned_scales_start_above_a_floor_of_a_quarter_of_a_level(levels):
    assert floor_of(levels) * (levels - 1) == pytest.approx(0.25, rel=0.021)
    first = logistic_head("each", levels=levels)(torch.zeros(2, 1, 1)).base_dist.scale.item()
    assert first == pytest.approx(max(0.1, 2 * floor_of(levels)))
    if levels == 256:
        assert floor_of(levels) == pytest.approx(0.001, rel=1e-7)


@pytest.mark.parametrize("levels", [257, 1000])
def test_the_mean_of_many_levels_is_that_of_their_probabilities(levels):
    """Within 0.056 of a level at the floor of scales, less at larger ones, half a level at any scale; also where the
    mean is at an end or beyond, and the end levels have the tails."""
    x = grid(levels, torch.float64)
    loc = torch.cat([torch.linspace(-3, 5, 81), torch.linspace(-5, 3, 81) + levels - 1])
    loc = torch.cat([loc, levels / 2 + torch.linspace(0, 1, 21), torch.tensor([-1e5, 1e7])])
    loc = (loc / (levels - 1)).double()
    for scale, tolerance in ((0.255, 0.056), (1, 0.0107), (30, 4e-4), (1e-3, 0.5), (levels, 1e-4)):
        pixel = DiscretisedLogistic(loc, torch.tensor(scale / (levels - 1)).double(), levels)
        exact = (pixel.log_prob(x[:, None]).exp() * x[:, None]).sum(0)
        assert (pixel.mean - exact).abs().max() * (levels - 1) < tolerance
        single = DiscretisedLogistic(pixel.loc.float(), pixel.scale.float(), levels)
        assert (single.mean - pixel.mean).abs().max() < 3e-7
        assert single.mean.min() >= 0
        assert single.mean.max() <= 1


def test_the_mean_of_up_to_256_levels_is_exact():
    for levels in (2, 3, 17, 256):
        x = grid(levels, torch.float64)
        loc = torch.linspace(-0.2, 1.2, 57, dtype=torch.float64)
        pixel = DiscretisedLogistic(loc, torch.tensor(floor_of(levels)).double(), levels)
        exact = (pixel.log_prob(x[:, None]).exp() * x[:, None]).sum(0)
        assert torch.allclose(pixel.mean, exact, atol=1e-12)


@pytest.mark.parametrize("levels", LEVELS)
def test_samples_are_levels_with_their_probabilities(levels):
    torch.manual_seed(0)
    floor = floor_of(levels)
    for loc, scale in ((0.4, floor), (1.0, 2 * floor), (0.5, 0.2), (1.5, 0.1)):
        pixel = DiscretisedLogistic(torch.tensor(loc), torch.tensor(scale), levels)
        draws = pixel.sample((20_000,))
        number = (draws * (levels - 1)).round().long()
        assert (draws == grid(levels)[number]).all()
        p = pixel.log_prob(grid(levels)).double().exp()
        x = grid(levels).double()
        mean = (p * x).sum()
        error = ((p * (x - mean) ** 2).sum() / len(draws)).sqrt()
        assert abs(draws.double().mean() - mean) < 4 * error + 1e-9


@pytest.mark.parametrize("levels", [2, 17, 1024])
def test_categorical_pixels_are_a_softmax_over_their_levels(levels):
    head = likelihood_head(ModelConfig(likelihood="categorical", levels=levels), 2)
    assert head.outputs == levels
    output = torch.randn(3, 2 * levels, 4, 5)
    pixels = head(output)
    assert (pixels.batch_shape, pixels.event_shape) == ((3,), (2, 4, 5))
    draw = pixels.sample()
    number = (draw * (levels - 1)).round().long()
    assert (draw == grid(levels)[number]).all()
    logits = output.view(3, 2, levels, 4, 5)
    expected = logits.log_softmax(2).gather(2, number.unsqueeze(2)).sum((1, 2, 3, 4))
    assert torch.allclose(pixels.log_prob(draw), expected, rtol=1e-5)
    mean = (logits.softmax(2) * grid(levels).view(-1, 1, 1)).sum(2)
    assert torch.allclose(pixels.mean, mean, atol=1e-5)
    assert isinstance(pixels.expand((4, 3)).base_dist, CategoricalPixels)


def test_the_levels_of_a_model_are_those_of_the_data():
    deep, grey = random_dataset(kind="deep"), random_dataset(kind="grey")
    assert (deep.levels, deep.likelihood) == (4096, "logistic")
    assert (grey.levels, grey.likelihood) == (256, "logistic")
    for data, levels in ((deep, 4096), (grey, 256), ((3, 6, 5), 256)):
        model = build("vae", data)
        assert model.blueprint.settings.levels == levels
        base = model.decode(None, z=torch.zeros(1, 20)).base_dist
        assert base.levels == base.expand((7, *base.batch_shape)).levels == levels
    assert build("vae", grey, likelihood="gaussian").blueprint.settings.levels is None
    assert build("vae", (1, 6, 5), levels=17, likelihood="logistic").blueprint.settings.levels == 17
    with pytest.raises(UserError, match="at most 1,024 levels, not 4,096"):
        build("vae", deep, likelihood="categorical")


def test_floats_without_a_range_of_their_own_or_without_levels_are_not_discrete():
    floats = random_dataset(kind="float")
    unknown = dataclasses.replace(floats, value_range=ValueRange(-3.0, 2.0, None, "float32"))
    bits = random_dataset(kind="bits")
    for data, likelihood in ((floats, "gaussian"), (unknown, "gaussian"), (bits, "bernoulli")):
        assert data.likelihood == likelihood
        assert build("vae", data).blueprint.settings.levels is None
    assert floats.levels is unknown.levels is None


def test_16_times_as_many_levels_cost_log_16_more_nats_where_pixels_are_smooth():
    """The level of 12 bits is one of 16 in a level of 8 bits, and each is equally likely."""
    x8, x12 = grid(256)[100:140], grid(4096)
    loc, scale = torch.tensor(0.47), torch.tensor(0.1)
    coarse = DiscretisedLogistic(loc, scale, 256).log_prob(x8)
    fine = DiscretisedLogistic(loc, scale, 4096).log_prob(x12[(x8 * 4095).round().long()])
    # A level is 1 / 255 or 1 / 4095 of the range wide.
    assert torch.allclose(coarse - fine, torch.tensor(math.log(4095 / 255)), atol=2e-3)
