"""Networks and layers: concatenation with broadcasting, images of any size, layers as text."""

import math
import re
from functools import partial

import pytest
import torch
from torch import nn

from vaekit import UserError, build
from vaekit.model.networks.encoders import MLP, Decoder, Encoder, convolution
from vaekit.model.networks.hidden import LayerStyle, concat, hidden_layer
from vaekit.model.networks.layers import Layer, num_halvings, parse


def test_concat_broadcasts_the_leading_dimensions():
    features, latent = torch.randn(4, 3), torch.randn(5, 4, 2)
    joined = concat(features, latent)
    assert joined.shape == (5, 4, 5)
    for sample in range(5):
        assert torch.equal(joined[sample, :, :3], features)
        assert torch.equal(joined[sample, :, 3:], latent[sample])
    assert concat(features) is features


def test_an_mlp_of_two_inputs_is_one_of_their_concatenation():
    network = MLP(5, parse("7", ""), 2, LayerStyle())
    a, b = torch.randn(4, 3), torch.randn(4, 2)
    assert torch.equal(network(a, b), network(torch.cat([a, b], dim=1)))


def test_a_gated_layer_is_a_linear_unit_times_a_gate():
    network = MLP(3, parse("4", ""), 1, LayerStyle("gated"))
    linear, x = network.hidden[0], torch.randn(6, 3)
    unit, gate = linear(x).chunk(2, dim=-1)
    assert torch.allclose(network(x), network.last(unit * torch.sigmoid(gate)))


def test_images_are_halved_until_they_fit_in_8_by_8():
    for height, width, count in [
        (28, 28, 2),
        (28, 20, 2),
        (94, 94, 4),
        (8, 8, 1),
        (1, 1, 1),
        (65, 3, 4),
        (64, 64, 3),
    ]:
        assert num_halvings(height, width) == count


@pytest.mark.parametrize("height", [1, 2, 3, 5, 8, 13, 30])
@pytest.mark.parametrize("activation", ["silu", "gated"])
def test_a_decoder_mirrors_its_encoder_at_any_size(height, activation):
    shape, style = (3, height, 9), LayerStyle(activation)
    encoder = Encoder(shape, parse("4@3/2 8@3/2 16", ""), 6, style)
    decoder = Decoder(6, parse("16 8x 4@3*2 @3*2", ""), shape, style)
    code = encoder(torch.randn(2, *shape))
    assert code.shape == (2, 6)
    assert decoder(code).shape == (2, *shape)
    assert decoder(code.expand(5, 2, 6)).shape == (5, 2, *shape)
    assert torch.allclose(decoder(code.expand(5, 2, 6))[3], decoder(code), atol=1e-6)


@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5, 7])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("size", [4, 7, 8, 9, 12])
def test_every_kernel_and_stride_gives_the_stated_size(kernel, stride, size):
    """Divided by the stride and rounded up, and back exactly."""
    (down,), (up,) = parse(f"2@{kernel}/{stride}", ""), parse(f"2@{kernel}*{stride}", "")
    small = math.ceil(size / stride)
    assert down.outputs(size) == up.inputs(size) == small
    halved = convolution(down, (size, size), (small, small))(1, 2)(torch.zeros(1, 1, size, size))
    assert halved.shape[2:] == (small, small)
    back = convolution(up, (small, small), (size, size))(1, 2)
    assert back(torch.zeros(1, 1, small, small)).shape[2:] == (size, size)


def test_without_padding_sizes_shrink_and_grow_back():
    (cut, up) = parse("2@3v 2@3*2v", "")
    assert (cut.outputs(10), cut.inputs(8)) == (8, 10)
    assert up.inputs(33) == 16
    enlarged = convolution(up, (16, 16), (33, 33))(1, 1)(torch.zeros(1, 1, 16, 16))
    assert enlarged.shape == (1, 1, 33, 33)


def test_labels_are_constant_channels_to_convolutions_and_numbers_to_dense_layers():
    x, y = torch.randn(2, 1, 6, 5), torch.eye(3)[:2]
    conv = Encoder((1, 6, 5), parse("4@3/2 8", ""), 2, LayerStyle(), given=3)
    seen = []
    conv.convolutions[0].register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0]))
    conv(x, y)
    assert torch.equal(seen[0][:, :1], x)
    assert torch.equal(seen[0][:, 1:], y[:, :, None, None].expand(2, 3, 6, 5))
    dense = Encoder((1, 6, 5), parse("8", ""), 2, LayerStyle(), given=3)
    assert dense.trunk[0].in_features == 30 + 3
    dense.trunk[0].register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0]))
    dense(x, y)
    assert torch.equal(seen[1], torch.cat([x.flatten(1), y], dim=1))


def test_a_visible_part_is_an_image_to_convolutions():
    x, part = torch.randn(2, 1, 6, 5), torch.randn(2, 1, 6, 5)
    conv = Encoder((1, 6, 5), parse("4@3/2 8", ""), 2, LayerStyle(), given=(1, 6, 5))
    seen = []
    conv.convolutions[0].register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0]))
    conv(x, part.flatten(1))
    assert torch.equal(seen[0], torch.cat([x, part], dim=1))


@pytest.mark.parametrize("images", [False, True])
def test_batch_normalisation_is_over_all_samples(images):
    """Each output has mean 0 and variance 1 over samples and images (and pixels)."""
    style = LayerStyle("linear", "batch")
    if images:
        x = torch.randn(30, 3, 4, 4) * 5 + 2
        layers = hidden_layer(partial(nn.Conv2d, kernel_size=1), 3, Layer(2, kernel=1), style)
        out = nn.Sequential(*layers)(x).movedim(1, -1).flatten(0, -2)
    else:
        x = torch.randn(4, 30, 3) * 5 + 2
        out = nn.Sequential(*hidden_layer(nn.Linear, 3, Layer(2), style))(x).flatten(0, -2)
    assert torch.allclose(out.mean(0), torch.zeros(2), atol=1e-5)
    assert torch.allclose(out.std(0), torch.ones(2), atol=1e-2)


def test_the_code_depends_on_every_input_pixel_and_every_output_pixel_on_the_code():
    shape = (1, 13, 6)
    encoder = Encoder(shape, parse("4@3/2 8@3/2 16", ""), 6, LayerStyle())
    decoder = Decoder(6, parse("16 8x 4@3*2 @3*2", ""), shape, LayerStyle())
    x = torch.randn(1, *shape, requires_grad=True)
    encoder(x).sum().backward()
    assert (x.grad != 0).all()
    code = torch.randn(1, 6, requires_grad=True)
    for pixel in decoder(code).flatten():
        (gradient,) = torch.autograd.grad(pixel, code, retain_graph=True)
        assert gradient.abs().sum() > 0


def test_layers_are_parsed_from_text():
    assert parse("500 64@4/2 64@4*2:relu 32@3v 16x @3*2 196:linear", "") == (
        Layer(500),
        Layer(64, kernel=4, stride=2),
        Layer(64, kernel=4, stride=2, up=True, activation="relu"),
        Layer(32, kernel=3, valid=True),
        Layer(16, image=True),
        Layer(0, kernel=3, stride=2, up=True),
        Layer(196, activation="linear"),
    )
    assert [layer.width for layer in parse("8@3 64x 500 @3", "", network_size=2.5)] == [
        20,
        64,
        500,
        0,
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoder": "3x3"}, "'3x3' is not a layer"),
        ({"encoder": "500 32@3/2"}, "convolutions such as 64@4/2, then dense"),
        ({"encoder": "32@3*2"}, "convolutions such as 64@4/2, then dense"),
        ({"encoder": "0"}, "a size that is 0"),
        ({"encoder": "500:swish"}, "unknown activation"),
        ({"encoder": "500:rellu"}, "did you mean 'relu'"),
        ({"encoder": "8@30v"}, "too small for the encoder"),
        ({"decoder": "32@3*2"}, "a decoder has dense layers"),
        ({"decoder": "8x 32@3*2"}, "a decoder has dense layers"),
        ({"decoder": "8x @3/2"}, "a decoder has dense layers"),
        ({"decoder": "8x @6*5v"}, "give no image of 28 x 28"),
        ({"network_size": 0.0}, "network_size is 0.0"),
    ],
)
def test_bad_layers_are_named(settings, message):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        build("vae", (1, 28, 28), **settings)
    assert "\n" not in str(caught.value)
