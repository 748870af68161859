"""Mixtures of discretised logistics: probabilities by enumeration, the conditioning of channels, samples, means."""

import itertools
import math

import mpmath
import pytest
import torch
from scipy.stats import chi2

from model_cases import images, small
from vaekit import UserError, build
from vaekit.model.build import decoder_outputs
from vaekit.model.conditions import Quadrants
from vaekit.model.mixtures import LogisticMixture, first_coefficient
from vaekit.model.pixels import (
    DiscretisedLogistic,
    MaskedPixels,
    decoder_channels,
    likelihood_head,
    logistic_head,
)
from vaekit.settings.catalog import MODELS
from vaekit.settings.model import ModelConfig

pytestmark = pytest.mark.usefixtures("float64")


def head_of(channels, levels=256, components=3, mean="linear"):
    settings = {"likelihood": "logistic-mixture", "logistics": components, "mean": mean}
    return likelihood_head(ModelConfig(levels=levels, **settings), channels)


def random_pixels(channels, levels=256, components=3, size=4, dtype=torch.float64, mean="linear"):
    """`size` pixels of random parameters: (C, size, 1)."""
    head = head_of(channels, levels, components, mean).to(dtype)
    generator = torch.Generator().manual_seed(channels)
    outputs = torch.randn(head.channels_out, size, 1, generator=generator)
    return head((2 * outputs).to(dtype))


def every_value(channels, levels, dtype=torch.float64):
    """All values of a pixel: (L^C, C, 1, 1)."""
    numbers = torch.tensor(list(itertools.product(range(levels), repeat=channels)), dtype=dtype)
    return numbers[..., None, None] / (levels - 1)


def of_pixels(pixels, values):
    """log p of these values (N, C, 1, 1) at each pixel: (N, size)."""
    return pixels.log_prob_of_pixels(values.expand(-1, *pixels.event_shape)).squeeze(-1).squeeze(1)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("mean", ["linear", "sigmoid"])
@pytest.mark.parametrize(
    ("channels", "levels"), [*itertools.product((1, 2, 3), range(2, 7)), (4, 3), (5, 3), (8, 2)]
)
def test_the_probabilities_of_all_colours_add_up_to_one(channels, levels, mean, dtype, tolerance):
    pixels = random_pixels(channels, levels, dtype=dtype, mean=mean)
    log_p = of_pixels(pixels, every_value(channels, levels, dtype))
    assert torch.allclose(log_p.exp().sum(0), torch.ones((), dtype=dtype), atol=tolerance)


@pytest.mark.parametrize("levels", [256, 4096])
def test_a_sum_over_the_last_channel_is_the_mixture_of_the_others(levels):
    """p(x1, x2) = sum over x3, and p(x1) = sum over x2; so all levels^3 add up to one, as those of x1 do."""
    pixels = random_pixels(3, levels)
    step = torch.arange(levels) / (levels - 1)
    generator = torch.Generator().manual_seed(0)
    for channels in (2, 1, 0):
        known = torch.randint(levels, (channels, 1, 1), generator=generator).double() / (levels - 1)
        x = torch.cat([known.expand(levels, channels, 1, 1), step[:, None, None, None]], dim=1)
        total = of_pixels(first_channels(pixels, channels + 1), x).logsumexp(0)
        expected = torch.zeros(4)
        if channels:
            expected = of_pixels(first_channels(pixels, channels), known[None])[0]
        assert torch.allclose(total, expected, atol=1e-11)


def first_channels(pixels, count):
    """The mixture of the first channels: the same locations, scales, and coefficients of their pairs."""
    channels = pixels.event_shape[0]
    kept = [
        first_coefficient(channels, distance) + i
        for distance in range(1, count)
        for i in range(count - distance)
    ]
    loc, scale = (t[..., :count, :, :] for t in (pixels.loc, pixels.scale))
    coefficients = pixels.coefficients[..., kept, :, :]
    return LogisticMixture(pixels.logits, loc, scale, coefficients, pixels.levels)


@pytest.mark.parametrize("levels", [2, 7, 256, 65_536])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_component_without_coefficients_is_a_discretised_logistic(levels, dtype):
    generator = torch.Generator().manual_seed(0)
    loc = torch.rand(1, 3, 50, 1, generator=generator).to(dtype)
    scale = torch.rand(1, 3, 50, 1, generator=generator).to(dtype) + 0.26 / (levels - 1)
    x = torch.randint(levels, (9, 3, 50, 1), generator=generator).to(dtype) / (levels - 1)
    none = torch.zeros(1, 3, 50, 1, dtype=dtype)
    mixture = LogisticMixture(torch.zeros(1, 50, 1, dtype=dtype), loc, scale, none, levels)
    single = DiscretisedLogistic(loc[0], scale[0], levels)
    assert torch.allclose(mixture.log_prob(x), single.log_prob(x).sum((1, 2, 3)), rtol=1e-6)
    within = 0.056 if levels > 16 else 1e-5
    assert (mixture.mean - single.mean).abs().max() * (levels - 1) < within


def exact_log_prob(x, logits, loc, scale, coefficients, levels):
    """Salimans et al. 2017, section 2.2, eq. 3, for one pixel and numbers x (C), in loops with 40 digits."""
    with mpmath.workdps(40):
        half = mpmath.mpf(1) / (2 * (levels - 1))
        total, weights = mpmath.mpf(0), [mpmath.exp(mpmath.mpf(float(v))) for v in logits]
        for k, weight in enumerate(weights):
            product = weight / sum(weights)
            for c, level in enumerate(x):
                center = mpmath.mpf(float(loc[k][c]))
                for before in range(max(0, c - 3), c):
                    other = mpmath.mpf(x[before]) / (levels - 1)
                    center += coefficients[k][before, c] * (other - mpmath.mpf(1) / 2)
                value, spread = mpmath.mpf(level) / (levels - 1), mpmath.mpf(float(scale[k][c]))

                def cdf(at, center=center, spread=spread):
                    return 1 / (1 + mpmath.exp((center - at) / spread))

                upper = 1 if level == levels - 1 else cdf(value + half)
                product *= upper - (0 if level == 0 else cdf(value - half))
            total += product
        return float(mpmath.log(total))


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("levels", [4, 256, 65_536])
def test_log_probabilities_are_those_of_the_paper_in_40_digits(channels, levels):
    """From the decoder's outputs on, and each channel given the three before it."""
    head, k = head_of(channels, levels).double(), 3
    generator = torch.Generator().manual_seed(1)
    outputs = torch.randn(head.channels_out, 1, 1, generator=generator)
    numbers = [torch.randint(levels, (channels,), generator=generator) for _ in range(3)]
    numbers += [torch.zeros(channels), torch.full((channels,), levels - 1)]
    logits, rest = outputs.flatten()[:k], outputs.flatten()[k:]
    each, rest = rest[: k * 2 * channels].view(k, 2, channels), rest[k * 2 * channels :]
    loc = each[:, 0] + torch.tensor([1 / 6, 3 / 6, 5 / 6])[:, None]
    floor = 0.255 / (levels - 1)
    initial = max(0.1, 2 * floor)
    scale = floor + (1 + (each[:, 1] + math.log(math.expm1(initial - floor))).exp()).log()
    pairs = [(c - d, c) for d in (1, 2, 3) for c in range(d, channels)]
    tangents = rest.view(k, len(pairs)).tanh()
    coefficients = [dict(zip(pairs, map(float, row), strict=True)) for row in tangents]
    for number in numbers:
        x = (number.double() / (levels - 1)).view(channels, 1, 1)
        exact = exact_log_prob(number.int().tolist(), logits, loc, scale, coefficients, levels)
        assert head(outputs).log_prob(x).item() == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize("levels", [256, 4096, 65_536])
def test_float32_agrees_with_float64_at_the_sharpest_scales(levels):
    """Within 0.02 nats per pixel of three channels, on samples: at 65,536 levels float32 has a location to 0.004 of
    a level, and the scale is a quarter of one."""
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(head_of(3).channels_out, 500, 1, generator=generator)
    outputs[3:21] = torch.where(torch.arange(18).view(-1, 1, 1) % 6 < 3, outputs[3:21], -1e4)
    single = head_of(3, levels).float()(outputs.float())
    double = LogisticMixture(
        *(t.double() for t in (single.logits, single.loc, single.scale, single.coefficients)),
        levels,
    )
    x = double.sample()
    difference = single.log_prob_of_pixels(x.float()).double() - double.log_prob_of_pixels(x)
    assert difference.abs().max() < 0.02


def test_a_channel_is_conditioned_on_the_three_before_it():
    pixels, x = random_pixels(6), torch.rand(6, 4, 1)
    for c, changed in itertools.product(range(6), range(6)):
        moved = [x_c + 0.1 * (i == changed) for i, x_c in enumerate(x)]
        same = torch.equal(pixels.center(c, list(x)), pixels.center(c, moved))
        assert same != (changed < c <= changed + 3)


@pytest.mark.parametrize(("channels", "levels"), [(1, 7), (2, 4), (3, 3), (5, 2)])
def test_samples_have_their_probabilities(channels, levels):
    """Chi-square of all colours; 1 of 10,000 seeds would fail one of these four."""
    torch.manual_seed(0)
    pixels, count = random_pixels(channels, levels, size=1), 50_000
    numbers = (pixels.sample((count,)) * (levels - 1)).round().long().view(count, channels)
    powers = levels ** torch.arange(channels - 1, -1, -1)
    found = torch.bincount((numbers * powers).sum(1), minlength=levels**channels)
    expected = count * of_pixels(pixels, every_value(channels, levels)).exp()[:, 0]
    common = expected > 5
    statistic = ((found - expected) ** 2 / expected)[common].sum().item()
    assert statistic < chi2.ppf(1 - 1e-4 / 4, int(common.sum()) - 1)
    rare = expected[~common].sum().item()
    assert abs(found[~common].sum().item() - rare) <= 5 * math.sqrt(rare) + 1


@pytest.mark.parametrize("levels", [2, 256, 257, 65_536])
def test_samples_are_on_the_levels_and_broadcast(levels):
    pixels = random_pixels(3, levels, dtype=torch.float32)
    draws = pixels.expand((5, 2)).sample((6,))
    assert draws.shape == (6, 5, 2, 3, 4, 1)
    number = (draws * (levels - 1)).round()
    assert torch.equal(draws, number / (levels - 1))
    assert number.min() >= 0
    assert number.max() <= levels - 1
    assert draws.std(0).max() > 0


def test_the_mean_of_one_channel_is_exact():
    for levels, within in ((2, 1e-12), (16, 1e-12), (17, 0.056), (256, 0.056)):
        pixels, x = random_pixels(1, levels, size=50), every_value(1, levels)
        exact = (of_pixels(pixels, x).exp() * x[:, 0, 0]).sum(0)
        assert (pixels.mean.flatten() - exact).abs().max() * (levels - 1) < within


@pytest.mark.parametrize(("largest", "typical", "worst"), [(0.05, 0.1, 0.3), (0.2, 0.35, 1)])
def test_the_mean_of_several_channels_is_within_a_level(largest, typical, worst):
    """Root mean square and largest error over single components, in levels of 8 bits: exact sums over the first two
    channels, the third's mean in closed form. A lattice whose channels rise together is off by twice as much."""
    generator = torch.Generator().manual_seed(0)
    size, levels = 20, 256

    def draw(*shape):
        return torch.rand(*shape, size, 1, generator=generator)

    loc, coefficients = 1.4 * draw(1, 3) - 0.2, (2 * draw(1, 3) - 1) * 1.5
    scale = 0.001 * (largest / 0.001) ** draw(1, 3)
    logits = torch.zeros(1, size, 1)
    pixels = LogisticMixture(logits, loc, scale, coefficients.tanh(), levels)
    x = torch.arange(levels) / (levels - 1)
    first = of_pixels(first_channels(pixels, 1), x.view(-1, 1, 1, 1)).exp()
    errors = [(first * x[:, None]).sum(0) - pixels.mean[0, :, 0]]
    a = pixels.coefficients[0, :, :, 0]
    loc2 = loc[0, 1, :, 0] + a[0] * (x[:, None] - 0.5)  # (x1, size)
    second = DiscretisedLogistic(loc2, scale[0, 1, :, 0].expand_as(loc2), levels)
    log_p2 = second.log_prob(x.view(-1, 1, 1))  # (x2, x1, size)
    joint = first * log_p2.exp()
    errors.append((joint * x.view(-1, 1, 1)).sum((0, 1)) - pixels.mean[1, :, 0])
    loc3 = loc[0, 2, :, 0] + a[1] * (x.view(-1, 1, 1) - 0.5) + a[2] * (x[:, None] - 0.5)
    third = DiscretisedLogistic(loc3, scale[0, 2, :, 0].expand_as(loc3), 257).mean
    errors.append((joint * third).sum((0, 1)) - pixels.mean[2, :, 0])
    first_error, *others = (255 * torch.stack(errors)).abs()
    assert first_error.max() < 0.056
    for error in others:
        assert error.square().mean().sqrt() < typical
        assert error.max() < worst


@pytest.mark.parametrize("channels", [3, 6])
def test_the_mean_is_that_of_many_samples(channels):
    """5 standard errors and 2 levels, with scales up to 1; 1 of 10,000 seeds would fail."""
    torch.manual_seed(0)
    pixels, count = random_pixels(channels, size=10, dtype=torch.float32), 20_000
    draws = pixels.sample((count,))
    assert pixels.mean.min() >= 0
    assert pixels.mean.max() <= 1
    error = draws.std(0) / math.sqrt(count)
    assert ((draws.mean(0) - pixels.mean).abs() < 5 * error + 2 / 255).all()


def test_draws_of_a_pixel_have_the_variance_of_their_probabilities():
    """5 standard errors: 1 of 100,000 seeds would fail."""
    torch.manual_seed(0)
    pixels, x, count = random_pixels(2, 6), every_value(2, 6), 40_000
    p = of_pixels(pixels, x).exp().unsqueeze(1)
    mean = (p * x[..., 0]).sum(0)
    variance = (p * (x[..., 0] - mean) ** 2).sum(0)
    squares = (pixels.sample((count,)).squeeze(-1) - mean) ** 2
    assert ((squares.mean(0) - variance).abs() < 5 * squares.std(0) / math.sqrt(count)).all()


@pytest.mark.parametrize("levels", [2, 256, 65_536])
@pytest.mark.parametrize("output", [-1e5, -30.0, 30.0, 1e5])
def test_gradients_are_finite_at_extreme_outputs(levels, output):
    """Locations far outside, scales at the floor and large, weights of 0 and coefficients of 1."""
    head = head_of(3, levels).float()
    for sign in itertools.product((1, -1), repeat=4):
        blocks = (3, 9, 9, 9)
        outputs = torch.cat(
            [torch.full((n,), s * output) for n, s in zip(blocks, sign, strict=True)]
        )
        outputs = outputs.float().view(-1, 1, 1).expand(-1, 5, 1).clone().requires_grad_()
        x = torch.tensor([0.0, 1.0, 1.0 / (levels - 1), 0.0, 1.0]).float().view(1, 5, 1)
        log_p = head(outputs).log_prob(x.expand(3, 5, 1))
        log_p.backward()
        assert log_p.isfinite()
        assert outputs.grad.isfinite().all()


def test_log_probabilities_do_not_depend_on_how_images_are_batched():
    head = head_of(3).double()
    outputs = torch.randn(4, 5, head.channels_out, 3, 2)
    x = images(5, (3, 3, 2), "grey").double()
    pixels = head(outputs)
    assert pixels.batch_shape == (4, 5)
    assert pixels.event_shape == (3, 3, 2)
    together = pixels.log_prob(x)
    assert together.shape == (4, 5)
    for s, b in itertools.product(range(4), range(5)):
        assert torch.allclose(head(outputs[s, b]).log_prob(x[b]), together[s, b], atol=1e-10)
    pairs = head(outputs[:, :1]).log_prob(x)
    assert torch.allclose(pairs[:, 0], together[:, 0], atol=1e-10)
    expanded = head(outputs[:1]).expand((4, 5)).log_prob(x)
    assert torch.allclose(expanded, together[:1].expand(4, 5), atol=1e-10)


def test_the_sum_over_hidden_pixels_is_one():
    """Of 2 x 2 pixels, of which one quadrant is given: all values of the other three."""
    head = head_of(2, levels=2).double()
    pixels = head(torch.randn(head.channels_out, 2, 2))
    mask = 1 - Quadrants(1, 2, 2).mask
    visible = torch.tensor([1.0, 0.0])[:, None, None].expand(2, 2, 2)
    bits = every_value(2 * 3, 2).view(-1, 2, 3)
    x = visible.repeat(len(bits), 1, 1, 1)
    x[:, :, mask[0] > 0] = bits
    masked = MaskedPixels(pixels, mask, visible)
    assert masked.log_prob(x).exp().sum().item() == pytest.approx(1, abs=1e-12)
    assert torch.equal(masked.sample((3,))[:, :, 1, 0], visible[:, 1, 0].expand(3, 2))
    assert torch.equal(masked.mean[:, 1, 0], visible[:, 1, 0])


@pytest.mark.parametrize("mean", ["linear", "sigmoid"])
def test_the_components_start_apart(mean):
    """Outputs of 0: equal weights, locations spread over [0, 1], no conditioning; 8.6 bits a number for colours at
    random, 7.2 for grey."""
    head = head_of(3, components=10, mean=mean)
    pixels = head(torch.zeros(head.channels_out, 40, 40))
    assert torch.allclose(pixels.logits, torch.tensor(-math.log(10)))
    spread = (torch.arange(10) + 0.5) / 10
    assert torch.allclose(pixels.loc[:, :, 0, 0], spread[:, None].expand(10, 3))
    first = logistic_head("each")(torch.zeros(6, 1, 1)).base_dist.scale
    assert torch.allclose(pixels.scale, first.flatten()[0])
    assert (pixels.coefficients == 0).all()
    colours = torch.randint(256, (3, 40, 40), generator=torch.Generator().manual_seed(0)) / 255
    bits = -pixels.log_prob(colours) / colours.numel() / math.log(2)
    assert bits.item() == pytest.approx(8.6, abs=0.3)
    grey = colours[:1].expand(3, 40, 40)
    bits = -pixels.log_prob(grey) / grey.numel() / math.log(2)
    assert bits.item() == pytest.approx(7.2, abs=0.4)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 64])
def test_the_outputs_are_as_many_as_the_numbers_of_a_mixture(channels):
    settings = ModelConfig(likelihood="logistic-mixture", logistics=7, levels=4)
    pairs = sum(1 for c in range(channels) for before in range(c) if c - before <= 3)
    assert decoder_channels(settings, channels) == 7 * (1 + 2 * channels + pairs)
    assert channels > 4 or pairs == channels * (channels - 1) // 2
    model = small("convvae", (channels, 5, 4), likelihood="logistic-mixture", logistics=7)
    assert decoder_outputs(model.blueprint) == 7 * (1 + 2 * channels + pairs) * 20
    likelihood = model.decode(z=torch.zeros(2, 3))
    assert likelihood.coefficients.shape == (2, 7, pairs, 5, 4)
    assert likelihood.mean.shape == likelihood.sample().shape == (2, channels, 5, 4)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_takes_it(name):
    extra = {"pseudo_inputs": "noise", "components": 5} if "vamp" in name else {}
    model = build(name, (3, 8, 8), classes=4, likelihood="logistic-mixture", logistics=2, **extra)
    x = images(2, (3, 8, 8), "grey")
    inference = model(x, torch.tensor([0, 1]))
    assert inference.log_likelihood.isfinite().all()
    assert model.reconstruct(x, torch.tensor([0, 1])).mean.shape == x.shape


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"logistics": 5}, "logistics has no effect for likelihood auto; leave it out, or choose"),
        ({"logistics": 5, "likelihood": "logistic"}, "no effect for likelihood logistic; leave"),
        ({"logistics": 0, "likelihood": "logistic-mixture"}, "logistics is 0"),
        ({"likelihood": "logistic-mixture", "scale": "shared"}, "scale shared is not possible"),
        ({"likelihood": "logistic-mixture", "scale": 0.1}, "scale 0.1 is not possible for a"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(UserError, match=message):
        build("vae", (3, 4, 4), **settings)


def test_its_levels_are_those_of_the_data_and_its_components_three():
    model = build("vae", (3, 4, 4), likelihood="logistic-mixture", scale="each", mean="sigmoid")
    likelihood = model.decode(z=torch.zeros(1, 20))
    assert (likelihood.levels, likelihood.logits.shape[-3]) == (256, 3)
    assert (model.blueprint.settings.levels, model.blueprint.settings.logistics) == (256, 3)
