"""Networks, for images of any height, width and number of channels.

Where inputs meet: labels and given parts of an image join it at the encoder's first layer (as channels of a
convolution), latents join the encoder's features after its last, and vectors join by broadcasting.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from ..support.errors import require
from .layers import Layer, check_decoder, check_encoder


class Tanh(nn.Module):
    """tanh x; where no gradient is wanted as 2 sigmoid(2x) - 1, right to 1e-7, which torch computes 5 times as fast."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or x.dtype == torch.float64:
            return torch.tanh(x)
        return torch.rsub((2 * x.float()).sigmoid_(), -1, alpha=-2).to(x.dtype)


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "elu": nn.ELU,
    "leaky-relu": lambda: nn.LeakyReLU(0.2),
    "softplus": nn.Softplus,
    "tanh": Tanh,
}


@dataclass(frozen=True)
class Style:
    """What all hidden layers of a network have in common."""

    activation: str = "silu"
    normalisation: str = "none"
    dropout: float = 0.0


DEFAULT = Style()


def join(*inputs: Tensor) -> Tensor:
    """Vectors (..., D_i) side by side as (..., sum D_i), their leading dimensions broadcast.

    So features of B images meet K samples of a latent: (B, D) and (K, B, E) give (K, B, D + E).
    """
    if len(inputs) == 1:
        return inputs[0]
    batch = torch.broadcast_shapes(*(x.shape[:-1] for x in inputs))
    return torch.cat([x.expand(*batch, x.shape[-1]) for x in inputs], dim=-1)


class Dropout(nn.Dropout):
    """torch's, but drawn with `rand`: of its `bernoulli_`, torch 2.13's compiler can make NaN where a batch
    normalisation follows."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (torch.rand_like(x) >= self.p) / (1 - self.p) if self.training else x


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation of vectors (..., D), over all leading dimensions."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, -2)).view(x.shape)


def hidden_layer(
    layer: Callable[..., nn.Module],
    inputs: int,
    outputs: int,
    style: Style,
    activation: str | None = None,
    images: bool = False,
) -> list[nn.Module]:
    """A layer with its normalisation, activation and (dense ones) dropout.

    A gated layer is a linear unit times a sigmoid gate (Dauphin et al. 2017), the gate's outputs beside the unit's.
    """
    activation = activation or style.activation
    wide = 2 * outputs if activation == "gated" else outputs
    # A batch normalisation takes any bias away again.
    modules = [layer(inputs, wide, bias=style.normalisation != "batch")]
    if style.normalisation == "batch":
        modules.append(nn.BatchNorm2d(wide) if images else BatchNorm(wide))
    elif style.normalisation == "layer":
        modules.append(nn.GroupNorm(1, wide) if images else nn.LayerNorm(wide))
    if activation == "gated":
        modules.append(nn.GLU(dim=1 if images else -1))
    elif activation != "linear":
        modules.append(ACTIVATIONS[activation]())
    return [*modules, Dropout(style.dropout)] if style.dropout and not images else modules


def hidden_layers(inputs: int, layers: Sequence[Layer], style: Style) -> tuple[nn.Sequential, int]:
    """Dense hidden layers, and how many outputs the last has."""
    modules: list[nn.Module] = []
    for layer in layers:
        modules += hidden_layer(nn.Linear, inputs, layer.width, style, layer.activation)
        inputs = layer.width
    return nn.Sequential(*modules), inputs


class MLP(nn.Module):
    """Dense network: vectors (..., D_i), joined -> (..., outputs), through the hidden layers given."""

    def __init__(
        self, inputs: int, layers: Sequence[Layer], outputs: int, style: Style = DEFAULT
    ) -> None:
        super().__init__()
        self.hidden, width = hidden_layers(inputs, layers, style)
        self.last = nn.Linear(width, outputs)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.last(self.hidden(join(*inputs)))


class Encoder(nn.Module):
    """Images (B, C, H, W), a vector `given` with them, a latent (..., D) where one joins -> vectors (..., outputs).

    `layers` are convolutions, then dense layers. `given` is the vector's size, or (C, H, W) if it is an image, or None;
    convolutions see it as channels, constant ones unless it is an image.
    A latent of `latent_dim` goes through `branch` before it meets the image's features, and both through `joint` after;
    so an image is seen once, however many samples the latent has.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        layers: Sequence[Layer],
        outputs: int,
        style: Style = DEFAULT,
        given: int | tuple[int, int, int] | None = None,
        latent_dim: int = 0,
        branch: Sequence[Layer] = (),
        joint: Sequence[Layer] = (),
    ) -> None:
        super().__init__()
        check_encoder(layers)
        channels, height, width = shape
        self.conditions = 0 if given is None else 1
        self.convolves = bool(layers and layers[0].kernel)
        self.plane = (given, 1, 1) if isinstance(given, int) else given or (0, 1, 1)
        modules: list[nn.Module] = []
        if self.convolves:
            channels += self.plane[0]
        for layer in layers:
            if layer.kernel:
                make = convolution(layer, height, width)
                modules += hidden_layer(make, channels, layer.width, style, layer.activation, True)
                channels, height, width = layer.width, layer.outputs(height), layer.outputs(width)
                require(
                    min(height, width) >= 1,
                    f"images of {shape[1]} x {shape[2]} pixels are too small for the encoder's layers",
                )
        self.convolutions = nn.Sequential(*modules)
        features = channels * height * width
        if not self.convolves:
            features += math.prod(self.plane)
        dense = [layer for layer in layers if not layer.kernel]
        self.trunk, features = hidden_layers(features, dense, style)
        self.branch, wide = hidden_layers(latent_dim, branch, style)
        self.head = MLP(features + wide, joint, outputs, style)

    def forward(self, x: Tensor, *inputs: Tensor) -> Tensor:
        given, latents = inputs[: self.conditions], inputs[self.conditions :]
        if self.convolves:
            planes = (y.view(-1, *self.plane).expand(-1, -1, *x.shape[-2:]) for y in given)
            features = self.trunk(self.convolutions(torch.cat([x, *planes], dim=1)).flatten(1))
        else:
            features = self.trunk(join(x.flatten(1), *given))
        return self.head(features, *(self.branch(z) for z in latents))


class Decoder(nn.Module):
    """Vectors (..., D_i), joined -> images (..., C, H, W).

    `layers` are dense; or dense, then convolutions, sized backwards from the image so that any size comes out exact.
    """

    def __init__(
        self,
        inputs: int,
        layers: Sequence[Layer],
        shape: tuple[int, int, int],
        style: Style = DEFAULT,
    ) -> None:
        super().__init__()
        check_decoder(layers)
        self.shape = shape
        channels, *size = shape
        dense = [layer for layer in layers if not layer.kernel and not layer.image]
        convolutions = [layer for layer in layers if layer.kernel]
        self.hidden, width = hidden_layers(inputs, dense, style)
        if not convolutions:
            self.small, self.convolutions = shape, nn.Sequential()
            self.unfold: nn.Module = nn.Linear(width, math.prod(shape))
            return
        sizes = [(size[0], size[1])]
        for layer in reversed(convolutions):
            sizes.insert(0, (layer.inputs(sizes[0][0]), layer.inputs(sizes[0][1])))
            require(
                min(sizes[0]) >= 1,
                f"the decoder's layers give no image of {shape[1]} x {shape[2]} pixels",
            )
        (first,) = (layer for layer in layers if layer.image)
        self.small = (first.width, *sizes[0])
        unfold = Layer(math.prod(self.small), activation=first.activation)
        plain = Style(style.activation, style.normalisation)
        self.unfold, _ = hidden_layers(width, [unfold], plain)
        modules: list[nn.Module] = []
        narrow = first.width
        for layer, (before, after) in zip(convolutions, pairwise(sizes), strict=True):
            make = (
                transposed_convolution(layer, before, after)
                if layer.up
                else convolution(layer, *before)
            )
            if layer is convolutions[-1]:
                modules.append(make(narrow, channels))
            else:
                modules += hidden_layer(make, narrow, layer.width, style, layer.activation, True)
                narrow = layer.width
        self.convolutions = nn.Sequential(*modules)

    def forward(self, *inputs: Tensor) -> Tensor:
        x = self.unfold(self.hidden(join(*inputs)))
        if not self.convolutions:
            return x.unflatten(-1, self.shape)
        images = self.convolutions(x.reshape(-1, *self.small))
        return images.unflatten(0, x.shape[:-1])


class Beside(nn.Module):
    """The vectors of several networks of the same inputs, side by side."""

    def __init__(self, *networks: nn.Module) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, *inputs: Tensor) -> Tensor:
        return torch.cat([network(*inputs) for network in self.networks], dim=-1)


def convolution(layer: Layer, height: int, width: int) -> Callable[..., nn.Module]:
    """A convolution of images of that size: to a size divided by the stride, rounded up, unless `valid`."""
    if layer.valid:
        return partial(nn.Conv2d, kernel_size=layer.kernel, stride=layer.stride)
    if layer.stride == 1:
        return partial(same_convolution, layer.kernel)

    def padding(size: int) -> int:
        lacking = (layer.outputs(size) - 1) * layer.stride + layer.kernel - size
        return math.ceil(max(lacking, 0) / 2)

    return partial(
        nn.Conv2d,
        kernel_size=layer.kernel,
        stride=layer.stride,
        padding=(padding(height), padding(width)),
    )


def same_convolution(kernel: int, inputs: int, outputs: int, bias: bool = True) -> nn.Module:
    """A convolution that keeps an image's size; an even kernel has one zero more after the image than before."""
    if kernel % 2:
        return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=bias)
    before, after = kernel // 2 - 1, kernel // 2
    pad = nn.ZeroPad2d((before, after, before, after))
    return nn.Sequential(pad, nn.Conv2d(inputs, outputs, kernel, bias=bias))


def transposed_convolution(
    layer: Layer, before: tuple[int, int], after: tuple[int, int]
) -> Callable[..., nn.Module]:
    """A transposed convolution from one size to another, which is at most `stride` times as large."""
    if layer.stride == 1 and not layer.valid:
        return partial(same_convolution, layer.kernel)
    excess = [
        (small - 1) * layer.stride + layer.kernel - large
        for small, large in zip(before, after, strict=True)
    ]
    high, wide = (math.ceil(max(n, 0) / 2) for n in excess)
    return partial(
        nn.ConvTranspose2d,
        kernel_size=layer.kernel,
        stride=layer.stride,
        padding=(high, wide),
        output_padding=(2 * high - excess[0], 2 * wide - excess[1]),
    )
