"""Residual networks: exact sizes and values, equivariance, and no pattern with the period of an upsampling."""

import copy
import math
import re

import pytest
import torch
from torch import nn

from conftest import random_dataset
from model_cases import images, small
from vaekit import UserError, build
from vaekit.model.build import objective_of
from vaekit.model.networks.hidden import LayerStyle, hidden_layer, normalisation
from vaekit.model.networks.layers import Layer
from vaekit.model.networks.residual import Pack, ResidualNetworks, Upsample, halving
from vaekit.training.compiled import compile_step, trace
from vaekit.training.step import Loss

STYLES = [LayerStyle(normalisation=name) for name in ("none", "layer", "group", "batch", "weight")]


def circular(network):
    """The network with circular padding: images without edges."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.padding_mode = "circular"
    return network.double().eval()


@pytest.mark.parametrize(
    ("size", "sizes"),
    [
        ((28, 28), [(28, 28), (14, 14), (7, 7)]),
        ((28, 20), [(28, 20), (14, 10), (7, 5)]),
        ((33, 7), [(17, 4), (9, 2), (5, 1)]),
        ((94, 94), [(47, 47), (24, 24), (12, 12), (6, 6)]),
        ((1, 1), [(1, 1), (1, 1)]),
    ],
)
def test_resolutions_are_halved_and_rounded_up(size, sizes):
    """From 32 pixels on, blocks begin at half of the image's resolution."""
    networks = ResidualNetworks(LayerStyle(), channels=3, blocks=1)
    widths = [3 * 2**i for i in range(len(sizes))]
    assert networks.levels(size) == [(n, *s) for n, s in zip(widths, sizes, strict=True)]
    features = networks.encoder(2, size)(torch.randn(2, 2, *size))
    assert features.shape == (2, *networks.features(size)) == (2, widths[-1], *sizes[-1])
    assert networks.decoder((5, *size))(features).shape == (2, 5, *size)


def test_weights_are_counted_by_hand():
    """3 x 32 x 32, packed to 12 x 16 x 16; 8 channels at 16 x 16 and 16 at 8 x 8, one bottleneck block each."""
    networks = ResidualNetworks(LayerStyle(), channels=8, blocks=1)

    def conv(inputs, outputs, kernel):
        return (inputs * kernel**2 + 1) * outputs

    def block(width):
        half = width // 2
        return conv(width, half, 1) + conv(half, half, 3) + conv(half, width, 1)

    blocks = block(8) + block(16)
    encoder, decoder = networks.encoder(3, (32, 32)), networks.decoder((6, 32, 32))
    count = [sum(p.numel() for p in network.parameters()) for network in (encoder, decoder)]
    assert count == [
        conv(12, 8, 3) + conv(8, 16, 1) + blocks,
        conv(16, 8, 1) + conv(8, 6, 3) + blocks,
    ]


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.normalisation)
def test_a_block_adds_to_its_input_and_begins_near_it(style):
    block, x = ResidualNetworks(style).block(16), torch.randn(4, 16, 5, 3)
    added = block(x) - x
    assert torch.allclose(added, block.layers(x), atol=1e-5)
    assert 0 < added.norm() < 0.3 * x.norm()
    last = block.layers[-1]
    weight_norm = style.normalisation == "weight"
    gain = last.parametrizations.weight.original0 if weight_norm else last.weight
    nn.init.zeros_(gain)
    if last.bias is not None:
        nn.init.zeros_(last.bias)
    assert torch.equal(block(x), x)


def test_a_weight_normalised_layer_is_gain_times_direction():
    """Scaling v changes nothing; each output's weights have the gain as their norm, also in transposed layers."""
    for make, inputs, dims in (
        (nn.Linear, 3, [1]),
        (lambda i, o, bias: nn.Conv2d(i, o, 3, bias=bias), 3, [1, 2, 3]),
        (lambda i, o, bias: nn.ConvTranspose2d(i, o, 3, bias=bias), 3, [0, 2, 3]),
    ):
        layer = hidden_layer(make, inputs, Layer(5), LayerStyle("linear", "weight"))[0]
        gain, v = layer.parametrizations.weight.original0, layer.parametrizations.weight.original1
        before = layer.weight.clone()
        length = before.square().sum(dims, keepdim=True).sqrt()
        nn.init.constant_(gain, 2.0)
        assert torch.allclose(layer.weight, 2 * before / length)
        with torch.no_grad():
            doubled = layer.weight.clone()
            v *= 2
            assert torch.allclose(layer.weight, doubled)


@pytest.mark.parametrize(("width", "groups"), [(4, 1), (16, 2), (20, 2), (24, 3), (27, 3), (64, 8)])
def test_groups_have_eight_channels_or_more(width, groups):
    (norm,) = normalisation(width, LayerStyle(normalisation="group"), images=True)
    out = norm(torch.randn(2, width, 4, 4) * 5 + 2).view(2, groups, -1)
    assert norm.num_groups == groups
    assert torch.allclose(out.mean(-1), torch.zeros(2, groups), atol=1e-5)
    assert torch.allclose(out.std(-1), torch.ones(2, groups), atol=2e-2)


def test_packing_keeps_every_pixel_and_upsampling_repeats_it():
    x = torch.randn(2, 3, 5, 7)
    packed = Pack()(x)
    assert packed.shape == (2, 12, 3, 4)
    assert torch.equal(nn.PixelShuffle(2)(packed)[..., :5, :7], x)
    large = Upsample([5, 7])(packed)
    for i, j in ((0, 0), (3, 4), (4, 6)):
        assert torch.equal(large[..., i, j], packed[..., i // 2, j // 2])


def test_a_halving_is_the_mean_of_the_pixels_there_are():
    x = torch.randn(2, 3, 5, 7)
    halved = halving()(x)
    assert halved.shape == (2, 3, 3, 4)
    for i in range(3):
        for j in range(4):
            square = x[..., 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
            assert torch.allclose(halved[..., i, j], square.mean((-2, -1)), atol=1e-6)


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.normalisation)
@torch.no_grad()
def test_images_shifted_by_the_stride_have_shifted_features(style):
    """Without edges, exactly; and the decoder shifts the image when its features are shifted by one."""
    networks, size = ResidualNetworks(style, channels=4, halvings=3), (32, 40)
    encoder, decoder = circular(networks.encoder(2, size)), circular(networks.decoder((3, *size)))
    x, h = torch.randn(2, 2, *size).double(), torch.randn(2, *networks.features(size)).double()
    for network, inputs, before, after in ((encoder, x, 8, 1), (decoder, h, 1, 8)):
        shifted = network(inputs.roll((before, -before), (-2, -1)))
        expected = network(inputs).roll((after, -after), (-2, -1))
        assert torch.allclose(shifted, expected, atol=1e-10)
        assert not torch.allclose(shifted, network(inputs), atol=1e-3)


def grids(images):
    """For each period of 2, 4, ... pixels below half of the width: the power of images (N, C, H, W) at that frequency,
    over rows and columns, divided by the geometric mean of those on both sides of it."""
    ratios = {}
    for axis in (-2, -1):
        n = images.shape[axis]
        window = torch.hann_window(n).view(-1, *[1] * (-1 - axis))
        power = torch.fft.fft(images * window, dim=axis).abs().square().movedim(axis, -1)
        power = power.flatten(0, -2).mean(0)
        for period in (2, 4, 8):
            k = n // period  # a Hann window spreads a frequency over one more on each side
            around = (power[k - 3] * power[(k + 3) % n]).sqrt()
            ratios[period] = max(ratios.get(period, 0), float(power[k] / around))
    return ratios


def test_the_measure_of_grids_finds_one():
    noise = torch.randn(200, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    for period in (2, 4, 8):
        grid = torch.cos(2 * math.pi * torch.arange(64) / period)
        for image in (grid, grid[:, None]):
            found = grids(noise + 0.5 * image)
            assert found.pop(period) > 3
            assert all(0.8 < ratio < 1.2 for ratio in found.values())


def decoded(network, steps):
    """Pixels decoded from latents of N(0, I), after some steps of training on disks of random place and colour."""
    shape = (3, 64, 64)
    torch.manual_seed(0)
    model = build(
        "convvae",
        shape,
        network=network,
        latent_dim=8,
        hidden_dim=64,
        channels=8,
        likelihood="gaussian",
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    loss, at = Loss(model, objective_of(model.blueprint)), torch.arange(64) / 64
    for _ in range(steps):
        y, x, colour = torch.rand(8, 1, 1, 1), torch.rand(8, 1, 1, 1), torch.rand(8, 3, 1, 1)
        distance = (at[:, None] - y).square() + (at - x).square()
        disks = torch.where(distance < 0.06, colour, 0.5)
        optimizer.zero_grad()
        loss(disks)[0].backward()
        optimizer.step()
    with torch.no_grad():
        return model.eval().decode(z=torch.randn(100, 8)).mean


@pytest.mark.parametrize("steps", [0, 15, pytest.param(500, marks=pytest.mark.long)])
def test_decoded_images_have_no_grid(steps):
    """The power at the periods of the upsamplings, 2, 4 and 8, is not above its neighbours', before and after training;
    that of transposed convolutions is, which the measure therefore sees."""
    assert max(grids(decoded("resnet", steps)).values()) < 1.5
    assert max(grids(decoded("conv", steps)).values()) > 5


@torch.no_grad()
def test_constant_features_give_constant_pixels_for_any_weights():
    """Without edges, exactly, whatever training does to the weights; a transposed convolution gives a grid."""
    networks, size = ResidualNetworks(LayerStyle("silu", "layer"), channels=4), (64, 48)
    decoder = circular(networks.decoder((3, *size)))
    for parameter in decoder.parameters():
        parameter.copy_(torch.randn_like(parameter))
    width, height, across = networks.features(size)
    features = torch.randn(2, width, 1, 1).double().expand(-1, -1, height, across)
    pixels = decoder(features)
    assert pixels.std((0, 1)).max() > 0.1
    assert pixels.std((-2, -1)).max() < 1e-10 * pixels.abs().max()
    transposed = build("convvae", (3, *size)).decoder.network.convolutions
    inner = transposed(torch.ones(1, 128, 8, 6))[..., 20:-20, 16:-16]
    assert (inner[..., ::2, :] - inner[..., 1::2, :]).std() > 0.01 * inner.std() > 0


def test_a_traced_step_computes_the_eager_values():
    data, settings = (
        random_dataset((3, 9, 6), "grey"),
        {"latent_dim": 2, "hidden_dim": 8, "channels": 8},
    )
    model = build(
        "convvae",
        data,
        network="resnet",
        normalisation="weight",
        blocks=1,
        num_layers=1,
        **settings,
    )
    loss = Loss(model, objective_of(model.blueprint))
    graph, inputs = trace(loss, data.train[:8], 1.0)
    torch.manual_seed(5)
    means, *gradients = graph(*inputs)
    torch.manual_seed(5)
    assert torch.allclose(means, loss.backward(data.train[:8], 1.0), rtol=1e-5)
    for found, parameter in zip(gradients, loss.parameters(), strict=True):
        assert torch.allclose(found, parameter.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("name", ["none", "weight", "group"])
def test_a_step_of_odd_images_compiles(name):
    """To the eager gradients; torch's average pooling of odd images, for one, does not."""
    data, settings = random_dataset((3, 33, 18), "grey"), {"normalisation": name, "channels": 8}
    model = build("convvae", data, network="resnet", latent_dim=2, hidden_dim=8, **settings)
    model.to(memory_format=torch.channels_last)
    loss = Loss(model, objective_of(model.blueprint))
    assert compile_step(loss, data.train[:8], 1.0) != loss.backward


def test_bfloat16_is_near_float32():
    model, x = (
        small("residual", (3, 32, 32)).to(memory_format=torch.channels_last),
        images(8, (3, 32, 32)),
    )
    values = []
    for precision in ("float32", "bfloat16"):
        torch.manual_seed(0)
        values.append(Loss(model, objective_of(model.blueprint), precision=precision)(x)[0])
    assert torch.allclose(*values, rtol=5e-3)


def test_channels_and_blocks_are_those_of_the_settings():
    model = small("residual", (1, 9, 6), channels=6, network_size=1.5, blocks=3, num_layers=3)
    networks = model.decoder.network
    assert networks.small == (9 * 2**3, 2, 1)
    assert len(networks.convolutions) == 4 * 3 + 3 * 2 + 2
    copied = copy.deepcopy(model)
    assert copied.blueprint == model.blueprint


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoder": "32@3/2 500"}, "network resnet has no encoder and decoder"),
        ({"decoder": "500"}, "network resnet has no encoder and decoder"),
        ({"activation": "gated"}, "activation gated is not possible with network resnet"),
        ({"network": "conv", "blocks": 3}, "blocks has no effect without network resnet"),
        (
            {"network": "dense", "normalisation": "group"},
            "normalisation group needs convolutions",
        ),
        ({"num_layers": 13}, "a resnet network has 1 to 12"),
        ({"num_layers": 12, "channels": 1024}, "of more than 1,048,576 channels"),
        ({"blocks": 0}, "at least 1"),
        ({"prior": "vampprior", "normalisation": "batch"}, "normalisation batch"),
    ],
)
def test_settings_that_do_not_suit_are_named(settings, message):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        build("vae", (3, 32, 32), **{"network": "resnet", **settings})
    assert "\n" not in str(caught.value)
