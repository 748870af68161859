"""The deep hierarchy: exact values in float64, the path that is kept in the values, and what is refused.

Statistical tests fix their seed; a bound of 4 standard errors would be crossed by chance in 1 of 16,000 seeds.
"""

import itertools
import math
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.polynomial.hermite_e import hermegauss
from torch import nn
from torch.distributions import MultivariateNormal

from exact import ALL_2X2
from model_cases import images, labels, small
from vaekit import UserError, build
from vaekit.model.build import make_objective
from vaekit.model.networks.ladder import Ladder
from vaekit.model.objectives import elbo, iwae
from vaekit.settings.model import LadderConfig, ModelConfig, parse_groups
from vaekit.settings.objective import ObjectiveConfig
from vaekit.settings.training import TrainConfig
from vaekit.training.step import Loss


def randomised(model, spread=0.3):
    """The model with weights far from their start, at which many maps are zero."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
    return model.eval()


def ladder_of(model) -> Ladder:
    return model.decoder.ladder


# A linear hierarchy: z1 of one dimension, z2 given z1 of one, three pixels; all in closed form

WIDTH, PIXELS, SIGMA, SCALES = 4, 3, 0.4, (0.8, 0.6)


class Affine(nn.Module):
    """Of maps of one position: `weight` h + bias; or two of these, side by side."""

    def __init__(self, *parts) -> None:
        super().__init__()
        self.parts = parts

    def forward(self, h):
        out = [(h.flatten(1) @ w.T + b)[..., None, None] for w, b in self.parts]
        return tuple(out) if len(out) > 1 else out[0]


class Linear:
    """A ladder of two groups whose networks are affine: h1 = h0 + R0 h0 + M1 z1, h2 = h1 + R1 h1 + M2 z2, x = D h2 + d.
    In closed form p(z2 | z1) = N(a + b z1, s2^2), x = c + F1 z1 + F2 z2 + noise."""

    def __init__(self) -> None:
        self.model = build(
            "deepvae", (PIXELS, 1, 1), groups="1x2:1", channels=WIDTH,
            likelihood="gaussian", scale=SIGMA,
        ).double().eval()  # fmt: skip
        ladder, n = ladder_of(self.model), torch.randn
        h0, m, r = n(WIDTH), n(2, WIDTH), 0.3 * n(2, WIDTH, WIDTH)
        prior, decode, d = 0.5 * n(2, WIDTH), 0.5 * n(PIXELS, WIDTH), n(PIXELS)
        ladder.first.data = h0[:, None, None]
        raw = [self.raw(scale) for scale in SCALES]
        zero, none = torch.zeros(1, WIDTH), torch.zeros(WIDTH)
        for i in range(2):
            latent = torch.cat([prior[i : i + 1], zero]), torch.stack([torch.zeros(()), raw[i]])
            ladder.groups[i].prior = Affine(latent, (r[i], none))
            ladder.groups[i].merge = Affine((m[i, :, None], none))
            ladder.groups[i].block = nn.Identity()
        pad = torch.eye(WIDTH)[:, :PIXELS]
        ladder.stem, ladder.encoder = Affine((pad, none)), nn.ModuleList([nn.Identity()])
        ladder.last = Affine((decode, d))
        self.h1 = h0 + r[0] @ h0  # and M1 z1
        self.m1 = m[0]
        after = torch.eye(WIDTH) + r[1]
        self.mean1 = prior[0] @ h0
        self.a, self.b = prior[1] @ self.h1, prior[1] @ m[0]
        self.c, self.f1, self.f2 = (
            d + decode @ after @ self.h1,
            decode @ after @ m[0],
            decode @ m[1],
        )
        s1, s2 = SCALES
        noise = SIGMA**2 * torch.eye(PIXELS)
        self.g = self.f1 + self.f2 * self.b  # x given z1 alone
        self.s = noise + s2**2 * torch.outer(self.f2, self.f2)
        self.mean = self.c + self.f2 * self.a + self.g * self.mean1
        self.covariance = self.s + s1**2 * torch.outer(self.g, self.g)
        # Exact: q(z1 | x) = N(mean1 + k1 (x - mean), v1), q(z2 | x, z1) = N(p + k2 (x - E[x | z1, p]), v2)
        precision = torch.linalg.inv(self.s)
        self.v1 = 1 / (1 / s1**2 + self.g @ precision @ self.g)
        self.k1 = self.v1 * self.g @ precision
        self.v2 = 1 / (1 / s2**2 + self.f2 @ self.f2 / SIGMA**2)
        self.k2 = self.v2 * self.f2 / SIGMA**2

    def raw(self, scale):
        """The output that gives this scale."""
        head = ladder_of(self.model).head
        return torch.log(torch.expm1(torch.as_tensor(scale) - head.floor)) - head.offset

    def set_posterior(self, shift=(0.0, 0.0), factor=(1.0, 1.0), slope=0.0):
        """The exact one, its means moved by `shift` and `slope` z1, its scales times `factor`."""
        zero, (shift1, shift2) = torch.zeros(1, WIDTH), map(torch.as_tensor, shift)
        image = torch.zeros(2, 1, WIDTH)
        image[0, 0, :PIXELS], image[1, 0, :PIXELS] = self.k1, self.k2
        read = self.m1 / (self.m1 @ self.m1)  # z1 = read (h1 - h1 without z1)
        of_z1 = slope - self.k2 @ self.g
        of_h = [zero, of_z1 * read[None]]
        bias = [
            shift1 - self.k1 @ self.mean,
            shift2 - self.k2 @ (self.c + self.f2 * self.a) - of_z1 * (read @ self.h1),
        ]
        for i, v in enumerate((self.v1, self.v2)):
            scale = self.raw(factor[i] * v.sqrt() / SCALES[i])  # relative to the prior
            of_both = torch.cat([of_h[i], image[i]], 1) / SCALES[i]
            weight = torch.cat([of_both, torch.zeros(1, 2 * WIDTH)])
            ladder_of(self.model).groups[i].posterior = Affine(
                (weight, torch.stack([bias[i] / SCALES[i], scale]))
            )

    def images(self, count):
        x = torch.randn(count, PIXELS) + self.mean
        return x[..., None, None] + 0.5, MultivariateNormal(self.mean, self.covariance).log_prob(x)


@torch.no_grad()
def test_at_the_exact_posterior_every_log_weight_of_a_linear_ladder_is_log_p_of_x(float64):
    linear = Linear()
    linear.set_posterior()
    x, exact = linear.images(20)
    inference = linear.model(x, samples=(50,))
    assert inference.log_weight.shape == (50, 20)
    assert (inference.log_weight - exact).abs().max() < 1e-12
    assert (iwae(50)(inference) - exact).abs().max() < 1e-12


@torch.no_grad()
def test_the_elbo_of_a_linear_ladder_is_log_p_of_x_minus_its_kl_in_closed_form(
    float64, monkeypatch
):
    """The expectation is over a grid of Gauss-Hermite noise, exact for the squares in it."""
    linear = Linear()
    shift, factor, slope = (0.3, -0.2), (1.3, 0.7), 0.4
    linear.set_posterior(shift, factor, slope)
    x, log_p = linear.images(5)
    nodes, weights = (torch.tensor(each) for each in hermegauss(4))
    weights = torch.outer(weights, weights).flatten() / (2 * math.pi)
    grid = iter(torch.cartesian_prod(nodes, nodes).T)
    monkeypatch.setattr(
        "torch.distributions.normal._standard_normal",
        lambda shape, dtype, device: next(grid)[:, None, None].expand(shape),
    )
    inference = linear.model(x, samples=(16,))
    # KL between Gaussians of scales f s and s whose means differ by m: log 1/f + (f^2 - 1)/2 + m^2 / (2 s^2)
    v1, v2, z1 = linear.v1, linear.v2, inference.latents["z1_0"].posterior.mean
    square2 = (shift[1] + slope * z1[..., 0]) ** 2 + slope**2 * factor[0] ** 2 * v1
    squares = shift[0] ** 2 / v1, square2 / v2
    kl = sum(
        -math.log(f) + (f**2 - 1) / 2 + square / 2
        for f, square in zip(factor, squares, strict=True)
    )
    for value in (inference.log_weight, inference.log_likelihood - inference.kl):
        assert ((weights[:, None] * value).sum(0) - (log_p - kl)).abs().max() < 1e-12


# Probabilities of all images, by quadrature


@pytest.mark.parametrize("groups", ["1x1:2", "1x2:1"])
@torch.no_grad()
def test_the_probabilities_of_all_images_sum_to_one_and_importance_sampling_finds_them(
    groups, float64
):
    model = randomised(build("deepvae", (1, 2, 2), seed=3, channels=8, groups=groups).double())
    line = torch.linspace(-8, 8, 101)
    parts = torch.cartesian_prod(line, line)[:, None]
    latents = dict(zip(model.prior, parts.split(2 if groups[-1] == "2" else 1, -1), strict=True))
    values = {"x": None, "y": None, **latents}
    log_prior = sum(prior(values).log_prob(values[name]) for name, prior in model.prior.items())
    log_joint = model.decode(**latents).log_prob(ALL_2X2) + log_prior
    log_p = log_joint.logsumexp(0) + 2 * math.log(float(line[1] - line[0]))
    assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-9)
    assert log_p.std() > 0.1  # images differ
    weights = (model(ALL_2X2, samples=(5000,)).log_weight - log_p).exp()
    error = weights.std(0) / math.sqrt(len(weights))
    assert error.max() < 0.2
    assert ((weights.mean(0) - 1).abs() < 4.5 * error).all()  # of 16 images


@torch.no_grad()
def test_the_kl_of_each_group_equals_its_monte_carlo_average(float64):
    """20,000 draws of each of three groups, for two images."""
    model = randomised(small("deepvae", groups="1x1:2 3x1:1 9x1:1").double())
    latents = model.infer(model.given(images(2, (1, 9, 6)).double(), None), (2,))
    for latent in latents.values():
        z = latent.posterior.sample((20_000,))
        ratio = latent.posterior.log_prob(z) - latent.prior.log_prob(z)
        error = ratio.std(0) / math.sqrt(len(z))
        assert ((ratio.mean(0) - latent.kl).abs() < 4 * error).all()
        assert (latent.kl > 10 * error).all()


# The path, which is kept in the values


def computed_anew(model, values):
    """Parameters of every distribution, each from values that know nothing of the path."""
    plain = {name: values.get(name) for name in ("x", "y", *model.prior)}
    parts = [*model.prior.values(), *model.posterior.values()]
    found = [module(dict(plain)).base_dist for module in parts]
    pixels = model.decoder(dict(plain)).base_dist.logits
    return [*(each for p in found for each in (p.loc, p.scale)), pixels]


def from_path(model, values, order=1):
    """The same from `values` as they are, the modules called in order or (-1) backwards."""
    parts = [*model.prior.values(), *model.posterior.values(), model.decoder]
    found = {part: part(values).base_dist for part in parts[::order]}
    *groups, pixels = (found[part] for part in parts)
    return [*(each for p in groups for each in (p.loc, p.scale)), pixels.logits]


def check_path(model, values, order=1):
    for kept, anew in zip(
        from_path(model, values, order), computed_anew(model, values), strict=True
    ):
        assert torch.equal(kept, anew)


@pytest.fixture
def deep():
    """A model of labels with three groups, and the values after a pass."""
    torch.manual_seed(0)
    model = randomised(small("deepvae of labels", groups="1x2:2 3x1:1").double())
    values = model.given(images(4, (1, 9, 6)).double(), labels(4))
    with torch.no_grad():
        model.infer(values, (4,))
    return model, values


def change_condition(model, values):
    values["y"] = values["y"].flip(0)


def change_image(model, values):
    values["x"] = 1 - values["x"]


def change_batch(model, values):
    other = model.given(images(3, (1, 9, 6)).double(), labels(3) + 1)
    values.update(other)
    for name in model.prior:
        values[name] = values[name][:3]


def change_size(model, values):
    for name in ("y", *model.prior):
        values[name] = values[name][:1]


def add_samples(model, values):
    for name in model.prior:
        values[name] = torch.randn(5, *values[name].shape, dtype=torch.float64)


def take_slice(model, values):
    add_samples(model, values)
    from_path(model, values)
    for name in model.prior:
        values[name] = values[name][1:3, 1:2]
    for name in ("x", "y"):
        values[name] = values[name][1:2]


def go_back(model, values):
    next(iter(model.prior.values()))(values)


def copy_equal(model, values):
    for name in model.prior:
        values[name] = values[name].clone()


CHANGES = [
    change_condition, change_image, change_batch, change_size, add_samples, take_slice, go_back, copy_equal
]  # fmt: skip


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@torch.no_grad()
def test_the_path_follows_the_values_whatever_changes(change, order, deep):
    model, values = deep
    check_path(model, values, order)
    change(model, values)
    check_path(model, values, order)


@pytest.mark.parametrize("index", range(3))
@torch.no_grad()
def test_the_path_follows_a_single_latent_that_changes(index, deep):
    model, values = deep
    name = list(model.prior)[index]
    for _ in range(2):
        values[name] = values[name] + 1
        check_path(model, values)
    before = computed_anew(model, values)
    values[name] = values[name] + 1
    assert not torch.equal(from_path(model, values)[-1], before[-1])


@torch.no_grad()
def test_the_path_follows_random_changes_in_any_order(deep):
    model, values = deep
    parts = [*model.prior.values(), *model.posterior.values(), model.decoder]
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        name = ["x", "y", *model.prior][int(torch.randint(5, (), generator=generator))]
        values[name] = values[name].flip(0) if name in "xy" else torch.randn_like(values[name])
        part = parts[int(torch.randint(len(parts), (), generator=generator))]
        plain = {key: values[key] for key in ("x", "y", *model.prior)}
        kept, anew = (part(each).base_dist.mean for each in (values, plain))
        assert torch.equal(kept, anew)


def test_a_path_without_gradients_is_not_used_where_they_are_wanted(deep):
    model, values = deep
    with torch.no_grad():
        from_path(model, values)
    model.decoder(values).base_dist.logits.sum().backward()
    found = {key: p.grad for key, p in model.named_parameters()}
    model.zero_grad()
    computed_anew(model, values)[-1].sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in ladder_of(model).groups.parameters())
    for key, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert torch.equal(found[key], parameter.grad), key


@torch.no_grad()
def test_values_may_go_from_one_model_to_another(deep):
    model, values = deep
    other = randomised(small("deepvae of labels", groups="1x2:2 3x1:1", seed=1).double())
    model.decoder(values)
    check_path(other, values, -1)


@torch.no_grad()
def test_the_path_is_computed_once_for_a_pass(deep, monkeypatch):
    model, values = deep
    calls = []
    monkeypatch.setattr(
        Ladder, "after", lambda *a, after=Ladder.after: calls.append(0) or after(*a)
    )
    monkeypatch.setattr(
        Ladder, "encode", lambda *a, encode=Ladder.encode: calls.append(1) or encode(*a)
    )
    model(values["x"], labels(4), samples=(3,))
    assert calls.count(0) == 3  # groups
    assert calls.count(1) == 1


# Images


def grid_energy(pictures, period):
    """Energy of pictures (N, C, H, W) at the frequencies of a grid of this period, of the mean of its 8 neighbours."""
    power = torch.fft.fft2(pictures).abs().square().mean((0, 1))
    (height, width), ratios = power.shape, []
    for a, b in itertools.product(range(period), repeat=2):
        if a or b:
            i, j = a * height // period, b * width // period
            around = [
                power[(i + u) % height, (j + v) % width]
                for u, v in itertools.product((-1, 0, 1), repeat=2)
                if (u or v) and ((i + u) % height or (j + v) % width)
            ]
            ratios.append(float(power[i, j] / torch.stack(around).mean()))
    return max(ratios)


def test_the_measure_of_grids_sees_one():
    torch.manual_seed(0)
    noise = torch.randn(64, 1, 32, 32)
    grid = torch.zeros(32, 32)
    grid[::2, ::2] = 0.2
    assert grid_energy(noise, 2) < 1.5
    assert grid_energy(noise + grid, 2) > 3


@pytest.mark.parametrize("patch", [1, 2])
def test_images_have_no_checkerboard_at_the_start_and_after_training(patch):
    """Of smooth images. Squares of pixels with weights of their own would start with a ratio of 30 and more."""
    torch.manual_seed(0)
    sizes = {"channels": 8, "patch_size": patch, "groups": "1x1:4 4x1:2", "likelihood": "gaussian"}
    model = build("deepvae", (1, 16, 16), **sizes)
    with torch.no_grad():
        start = model.eval().sample(200).mean
    x, y = torch.meshgrid(*[torch.linspace(0, 3, 16)] * 2, indexing="ij")
    phase = 6 * torch.rand(64, 2, 1, 1)
    smooth = (0.5 + 0.4 * torch.sin(x + phase[:, 0]) * torch.sin(2 * y + phase[:, 1]))[:, None]
    optimizer, loss = torch.optim.Adam(model.parameters(), 2e-3), Loss(model.train(), elbo())
    for _ in range(12):
        optimizer.zero_grad()
        loss(smooth[torch.randint(64, (16,))])[0].backward()
        optimizer.step()
    with torch.no_grad():
        trained = model.eval().sample(200).mean
    for pictures in (start, trained):
        assert grid_energy(pictures, 2) < 5


# What is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"groups": ""}, "name each resolution once"),
        ({"groups": "8x2 4x2"}, "name each resolution once, the coarsest first"),
        ({"groups": "4x2 4x1"}, "name each resolution once"),
        ({"groups": "4"}, "groups: '4' is none; write SIZExCOUNT"),
        ({"groups": "4x"}, "'4x' is none"),
        ({"groups": "4x2:"}, "'4x2:' is none"),
        ({"groups": "0x2"}, "'0x2' is none"),
        ({"groups": "4x0"}, "'4x0' is none"),
        ({"groups": "4x2:0"}, "'4x2:0' is none"),
        ({"groups": "4x2:00"}, "'4x2:00' is none"),
        ({"groups": "-4x2"}, "'-4x2' is none"),
        ({"groups": "４x2"}, "is none"),
        ({"groups": "3x1"}, "has a map of 3 pixels; for these images they are 1, 2, 4, 8"),
        ({"groups": "16x1"}, "has a map of 16 pixels"),
        ({"groups": "1x1000:9"}, "is none"),
        ({"groups": "8x100:99999"}, "639,993,600 numbers per image, more than 1,048,576"),
        ({"groups": "8x999:99999"}, "999 groups, more than 200"),
        ({"groups": "1x100 2x101"}, "201 groups, more than 200"),
        ({"patch_size": 0}, "patch_size is 0; it must be at least 1"),
        ({"patch_size": 2000}, "it must be at most 1,024"),
        ({"encoder_blocks": 0}, "encoder_blocks is 0"),
        ({"encoder_blocks": 10**4}, "encoder_blocks is 10000; it must be at most"),
        ({"channels": 10**6}, "channels is 1000000; it must be at most"),
        ({"latent_dim": 3}, "latent_dim has no effect for a deep hierarchy"),
        ({"hidden_dim": 3}, "hidden_dim has no effect for a deep hierarchy"),
        ({"num_layers": 3}, "num_layers has no effect"),
        ({"network": "conv"}, "network has no effect"),
        ({"encoder": "500"}, "encoder has no effect"),
        ({"decoder": "500"}, "decoder has no effect"),
        ({"network_size": 2.0}, "network_size has no effect"),
        ({"two_encoders": True}, "two_encoders has no effect"),
        ({"normalisation": "batch"}, "normalisation has no effect"),
        ({"dropout": 0.1}, "dropout has no effect"),
        ({"posterior": "deterministic"}, "posterior deterministic is not possible in a deep"),
        ({"prior": "mixture"}, "prior mixture is not possible in a deep hierarchy"),
        (
            {"prior": "conditional", "condition": "label"},
            "prior conditional is not possible in a deep hierarchy",
        ),
        ({"prior": "conditional", "condition": "label"}, "prior conditional is not possible"),
        ({"condition": "quadrants:1"}, "does not complete images"),
    ],
    ids=str,
)
def test_settings_that_make_no_deep_hierarchy_are_refused_in_one_line(settings, message):
    with pytest.raises(UserError) as caught:
        build("deepvae", (1, 8, 8), classes=3, **settings)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_objectives_and_models_refuse_what_is_of_ladders():
    with pytest.raises(UserError, match="needs one latent"):
        make_objective(ObjectiveConfig("infovae"), LadderConfig(groups="1x1:2"))
    with pytest.raises(UserError, match="groups"):
        build("vae", (1, 8, 8), groups="4x1")


WORDS = st.one_of(
    st.from_regex(r"[0-9]{1,6}x[0-9]{1,4}(:[0-9]{0,6})?", fullmatch=True),
    st.text(max_size=12),
    st.sampled_from(
        ["4x2", "8x1:3", "1x1", "99999x999:99999", "1x999:99999", "x", ":", "\n", "\0"]
    ),
)


@given(
    st.lists(WORDS, max_size=5), st.sampled_from([(1, 8, 8), (3, 64, 48), (1, 1, 1), (2, 5, 900)])
)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_any_text_of_groups_is_a_hierarchy_or_refused_in_one_line(words, shape):
    """Within a fraction of a second, since no network is made."""
    started = time.perf_counter()
    try:
        latents = LadderConfig(groups=" ".join(words)).latent_shapes(shape)
        message = ""
    except UserError as error:
        latents, message = {}, str(error)
    assert bool(latents) != bool(message)
    assert "\n" not in message
    assert len(message) < 300
    assert sum(math.prod(size) for size in latents.values()) <= 2**20
    assert time.perf_counter() - started < 1


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([None, 1, 2, 3, 5]))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_the_default_groups_fit_every_shape(height, width, patch):
    config, shape = LadderConfig(patch_size=patch), (1, height, width)
    sizes = config.feature_sizes(shape)
    assert sizes[-1] == (1, 1)
    latents = config.latent_shapes(shape)
    assert len({tuple(size) for _, *size in latents.values()} - set(sizes)) == 0
    assert list(latents) == [
        f"z{max(size)}_{i}" for size in reversed(sizes) for i in range(999)
        if f"z{max(size)}_{i}" in latents
    ]  # fmt: skip


def test_colour_has_a_mixture_of_logistics_unless_another_likelihood_is_chosen():
    def likelihood(channels, **settings):
        return build(
            "deepvae", (channels, 8, 8), channels=4, **settings
        ).blueprint.settings.likelihood

    assert [likelihood(channels) for channels in (1, 2, 3)] == [
        "bernoulli",
        "logistic",
        "logistic-mixture",
    ]
    assert likelihood(3, likelihood="logistic") == "logistic"


def test_groups_are_read_as_they_are_written():
    assert parse_groups("4x2:16  8x1") == [(4, 2, 16), (8, 1, 8)]
    assert LadderConfig(groups="1x1:2 5x1:3").latent_shapes((3, 9, 6)) == {
        "z1_0": (2, 1, 1),
        "z5_0": (3, 5, 3),
    }


@pytest.mark.parametrize(
    ("epochs", "expected"), [(1, 0.2), (5, 1.0), (20, 4.0), (50, 10.0), (500, 10.0)]
)
def test_a_deep_hierarchy_warms_its_kl_up_over_a_fifth_of_the_epochs(epochs, expected):
    assert TrainConfig(epochs=epochs).resolve(LadderConfig(), 100).kl_warmup == pytest.approx(
        expected
    )
    assert TrainConfig(epochs=epochs, kl_warmup=0.0).resolve(LadderConfig(), 100).kl_warmup == 0
    assert TrainConfig(epochs=epochs).resolve(ModelConfig(), 100).kl_warmup == 0
