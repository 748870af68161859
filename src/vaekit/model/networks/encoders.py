"""Networks for images of any height, width and number of channels.

A condition joins the image at the encoder's first layer (as channels of a convolution), latents join the features after
the encoder's last layer; vectors are concatenated with broadcasting.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ...support.errors import require
from .hidden import LayerStyle, concat, hidden_layer, hidden_layers
from .layers import Layer, Layers, Size, check_decoder, check_encoder
from .residual import ResidualNetworks


class MLP(nn.Module):
    """Dense network: vectors (..., D_i), concatenated -> hidden layers -> (..., outputs)."""

    def __init__(self, inputs: int, layers: Layers, outputs: int, style: LayerStyle) -> None:
        super().__init__()
        self.hidden, width = hidden_layers(inputs, layers, style)
        self.last = nn.Linear(width, outputs)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.last(self.hidden(concat(*inputs)))


class Encoder(nn.Module):
    """Images (B, C, H, W), a condition (B, G) if any, a latent (..., D) if any -> vectors (..., outputs).

    `layers` are convolutions, then dense layers. `given` is the condition's size, or (C, H, W) if it is an image, or
    None; to convolutions it is channels, constant ones unless it is an image. A latent of `latent_dim` passes through
    `branch`, joins the image's features, and both pass through `joint`: images are encoded once for all its samples.
    With `residual`, its convolutions come before `layers`, which are dense.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        layers: Layers,
        outputs: int,
        style: LayerStyle,
        given: int | tuple[int, int, int] | None = None,
        latent_dim: int = 0,
        branch: Layers = (),
        joint: Layers = (),
        residual: ResidualNetworks | None = None,
    ) -> None:
        super().__init__()
        check_encoder(layers)
        channels, size = shape[0], shape[1:]
        self.conditions = 0 if given is None else 1
        self.condition_shape = (given, 1, 1) if isinstance(given, int) else given or (0, 1, 1)
        convolutions = [layer for layer in layers if layer.kernel]
        modules: list[nn.Module] = []
        if convolutions or residual:
            channels += self.condition_shape[0]
        for layer in convolutions:
            after = layer.outputs(size[0]), layer.outputs(size[1])
            require(
                min(after) >= 1,
                f"images of {shape[1]} x {shape[2]} pixels are too small for the encoder's layers",
            )
            conv = convolution(layer, size, after)
            modules += hidden_layer(conv, channels, layer, style)
            channels, size = layer.width, after
        self.convolutions = nn.Sequential(*modules)
        features = channels * math.prod(size)
        if residual:
            self.convolutions = residual.encoder(channels, size)
            features = math.prod(residual.features(size))
        elif not convolutions:
            features += math.prod(self.condition_shape)
        self.trunk, features = hidden_layers(features, layers[len(convolutions) :], style)
        self.branch, branch_width = hidden_layers(latent_dim, branch, style)
        self.head = MLP(features + branch_width, joint, outputs, style)

    def forward(self, x: Tensor, *inputs: Tensor) -> Tensor:
        given, latents = inputs[: self.conditions], inputs[self.conditions :]
        if self.convolutions:
            images = (y.view(-1, *self.condition_shape) for y in given)
            channels = [x, *(image.expand(-1, -1, *x.shape[-2:]) for image in images)]
            features = self.trunk(self.convolutions(torch.cat(channels, dim=1)).flatten(1))
        else:
            features = self.trunk(concat(x.flatten(1), *given))
        return self.head(features, *(self.branch(z) for z in latents))


class Decoder(nn.Module):
    """Vectors (..., D_i), concatenated -> images (..., C, H, W).

    `layers` are dense; or dense, then convolutions, whose sizes follow from the image's backwards: any size is exact.
    With `residual`, its convolutions come after `layers`, which are dense.
    """

    def __init__(
        self,
        inputs: int,
        layers: Layers,
        shape: tuple[int, int, int],
        style: LayerStyle,
        residual: ResidualNetworks | None = None,
    ) -> None:
        super().__init__()
        check_decoder(layers)
        self.shape = shape
        channels, height, width = shape
        dense = [layer for layer in layers if not layer.kernel and not layer.image]
        convolutions = [layer for layer in layers if layer.kernel]
        self.hidden, features = hidden_layers(inputs, dense, style)
        if residual:
            self.small = residual.features(shape[1:])
            self.unfold: nn.Module = nn.Linear(features, math.prod(self.small))
            self.convolutions = residual.decoder(shape)
            return
        if not convolutions:
            self.convolutions = nn.Sequential()
            self.unfold = nn.Linear(features, math.prod(shape))
            return
        sizes = [(height, width)]
        for layer in reversed(convolutions):
            sizes.insert(0, (layer.inputs(sizes[0][0]), layer.inputs(sizes[0][1])))
            require(
                min(sizes[0]) >= 1,
                f"the decoder's layers give no image of {height} x {width} pixels",
            )
        (first,) = (layer for layer in layers if layer.image)
        self.small = (first.width, *sizes[0])
        unfold = Layer(math.prod(self.small), activation=first.activation)
        no_dropout = LayerStyle(style.activation, style.normalisation)
        self.unfold, _ = hidden_layers(features, [unfold], no_dropout)
        modules: list[nn.Module] = []
        inputs = first.width
        for layer, (before, after) in zip(convolutions, pairwise(sizes), strict=True):
            conv = convolution(layer, before, after)
            if layer is convolutions[-1]:
                modules.append(conv(inputs, channels))
            else:
                modules += hidden_layer(conv, inputs, layer, style)
                inputs = layer.width
        self.convolutions = nn.Sequential(*modules)

    def forward(self, *inputs: Tensor) -> Tensor:
        x = self.unfold(self.hidden(concat(*inputs)))
        if not self.convolutions:
            return x.unflatten(-1, self.shape)
        images = self.convolutions(x.reshape(-1, *self.small))
        return images.unflatten(0, x.shape[:-1])


class ParallelNetworks(nn.Module):
    """Several networks of the same inputs, their outputs concatenated."""

    def __init__(self, *networks: nn.Module) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, *inputs: Tensor) -> Tensor:
        return torch.cat([network(*inputs) for network in self.networks], dim=-1)


def convolution(layer: Layer, before: Size, after: Size) -> Callable[..., nn.Module]:
    """A convolution, transposed where `layer.up`, of images of size `before` to size `after`."""
    if layer.stride == 1 and not layer.valid:
        return partial(same_convolution, layer.kernel)
    sizes = zip(before, after, strict=True)
    # How far the kernel's positions on the smaller image reach beyond the larger one.
    high, wide = ((min(n) - 1) * layer.stride + layer.kernel - max(n) for n in sizes)
    padding = math.ceil(max(high, 0) / 2), math.ceil(max(wide, 0) / 2)
    options: dict[str, Any] = {"stride": layer.stride, "padding": padding}
    if layer.up:
        options["output_padding"] = 2 * padding[0] - high, 2 * padding[1] - wide
    kind = nn.ConvTranspose2d if layer.up else nn.Conv2d
    return partial(kind, kernel_size=layer.kernel, **options)


def same_convolution(kernel: int, inputs: int, outputs: int, bias: bool = True) -> nn.Module:
    """A convolution that keeps the size; with an even kernel there is one zero more after the image than before."""
    if kernel % 2:
        return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=bias)
    before, after = kernel // 2 - 1, kernel // 2
    pad = nn.ZeroPad2d((before, after, before, after))
    return nn.Sequential(pad, nn.Conv2d(inputs, outputs, kernel, bias=bias))
