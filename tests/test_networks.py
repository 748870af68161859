"""Networks: joining by broadcasting, sizes of any image."""

import pytest
import torch

from vaekit.networks import MLP, ConvDecoder, ConvEncoder, halvings, join


def test_join_broadcasts_the_leading_dimensions():
    features, latent = torch.randn(4, 3), torch.randn(5, 4, 2)
    joined = join(features, latent)
    assert joined.shape == (5, 4, 5)
    for sample in range(5):
        assert torch.equal(joined[sample, :, :3], features)
        assert torch.equal(joined[sample, :, 3:], latent[sample])
    assert join(features) is features


def test_an_mlp_of_two_inputs_is_one_of_their_concatenation():
    network = MLP(5, [7], 2)
    a, b = torch.randn(4, 3), torch.randn(4, 2)
    assert torch.equal(network(a, b), network(torch.cat([a, b], dim=1)))


def test_a_gated_layer_is_a_linear_unit_times_a_gate():
    network = MLP(3, [4], 1, activation="gated")
    linear, last, x = network.layers[0], network.layers[2], torch.randn(6, 3)
    unit, gate = linear(x).chunk(2, dim=-1)
    assert torch.allclose(network(x), last(unit * torch.sigmoid(gate)))


def test_halvings():
    assert halvings(28, 28) == [(28, 28), (14, 14), (7, 7)]
    assert halvings(28, 20) == [(28, 20), (14, 10), (7, 5)]
    assert halvings(94, 94) == [(94, 94), (47, 47), (24, 24), (12, 12), (6, 6)]
    assert halvings(28, 28, count=3) == [(28, 28), (14, 14), (7, 7), (4, 4)]
    assert halvings(8, 8) == [(8, 8)]
    assert halvings(1, 1, count=2) == [(1, 1)] * 3


@pytest.mark.parametrize("height", [1, 2, 3, 5, 8, 13, 30])
@pytest.mark.parametrize("activation", ["silu", "gated"])
def test_a_decoder_mirrors_its_encoder_at_any_size(height, activation):
    shape = (3, height, 9)
    encoder = ConvEncoder(shape, [4, 8], 16, 6, activation)
    decoder = ConvDecoder(6, [4, 8], 16, shape, activation)
    code = encoder(torch.randn(2, *shape))
    assert code.shape == (2, 6)
    assert decoder(code).shape == (2, *shape)
    assert decoder(code.expand(5, 2, 6)).shape == (5, 2, *shape)
    assert torch.allclose(decoder(code.expand(5, 2, 6))[3], decoder(code), atol=1e-6)


def test_every_input_pixel_reaches_the_code_and_every_output_pixel_hears_of_it():
    shape = (1, 13, 6)
    encoder, decoder = ConvEncoder(shape, [4, 8], 16, 6), ConvDecoder(6, [4, 8], 16, shape)
    x = torch.randn(1, *shape, requires_grad=True)
    encoder(x).sum().backward()
    assert (x.grad != 0).all()
    code = torch.randn(1, 6, requires_grad=True)
    for pixel in decoder(code).flatten():
        (gradient,) = torch.autograd.grad(pixel, code, retain_graph=True)
        assert gradient.abs().sum() > 0
