"""Networks, for images of any height, width and number of channels. Latents and labels join by broadcasting."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "elu": nn.ELU,
    "leaky-relu": lambda: nn.LeakyReLU(0.2),
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}


def join(*inputs: Tensor) -> Tensor:
    """Vectors (..., D_i) side by side as (..., sum D_i), their leading dimensions broadcast.

    So features of B images meet K samples of a latent: (B, D) and (K, B, E) give (K, B, D + E).
    """
    if len(inputs) == 1:
        return inputs[0]
    batch = torch.broadcast_shapes(*(x.shape[:-1] for x in inputs))
    return torch.cat([x.expand(*batch, x.shape[-1]) for x in inputs], dim=-1)


def hidden_layer(
    layer: Callable[[int, int], nn.Module],
    inputs: int,
    outputs: int,
    activation: str,
    dropout: float,
    dim: int = -1,
) -> list[nn.Module]:
    """A layer with its activation and dropout; a gated one is a linear unit times a sigmoid gate (Dauphin et
    al. 2017), with the gate's outputs beside the unit's along `dim`."""
    if activation == "gated":
        modules = [layer(inputs, 2 * outputs), nn.GLU(dim)]
    else:
        modules = [layer(inputs, outputs), ACTIVATIONS[activation]()]
    return [*modules, nn.Dropout(dropout)] if dropout else modules


class MLP(nn.Module):
    """Dense network: vectors (..., D_i) -> (..., outputs), through hidden layers of the given widths."""

    def __init__(
        self,
        inputs: int,
        hidden: list[int],
        outputs: int,
        activation: str = "silu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in hidden:
            layers += hidden_layer(nn.Linear, inputs, width, activation, dropout)
            inputs = width
        self.layers = nn.Sequential(*layers, nn.Linear(inputs, outputs))

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.layers(join(*inputs))


class Chain(nn.Sequential):
    """Modules one after another, the first of which may take several inputs."""

    def forward(self, *inputs: Tensor) -> Tensor:
        first, *rest = self
        x = first(*inputs)
        for module in rest:
            x = module(x)
        return x


class Flatten(nn.Module):
    """Images (..., C, H, W) -> vectors (..., C H W), before a dense network."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(-3)


class Unflatten(nn.Module):
    """Vectors (..., C H W) -> images (..., C, H, W), after a dense network."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, self.shape)


def halvings(height: int, width: int, count: int = 0) -> list[tuple[int, int]]:
    """Sizes of an image and its halvings (rounded up): `count` of them, or until it fits in 8 x 8."""
    sizes = [(height, width)]
    while len(sizes) <= count if count else max(sizes[-1]) > 8:
        h, w = sizes[-1]
        sizes.append((math.ceil(h / 2), math.ceil(w / 2)))
    return sizes


class ConvEncoder(nn.Module):
    """Images (B, C, H, W) -> vectors (B, outputs): convolutions that halve the image, then a dense layer."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        channels: list[int],
        hidden: int,
        outputs: int,
        activation: str = "silu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        inputs, height, width = shape
        height, width = halvings(height, width, len(channels))[-1]
        layers: list[nn.Module] = []
        for wide in channels:
            layers += hidden_layer(_half, inputs, wide, activation, 0.0, dim=1)
            inputs = wide
        self.convolutions = nn.Sequential(*layers)
        self.dense = MLP(inputs * height * width, [hidden], outputs, activation, dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(self.convolutions(x).flatten(1))


class ConvDecoder(nn.Module):
    """Vectors (..., D) -> images (..., C, H, W): a mirrored ConvEncoder, exact for odd sizes too."""

    def __init__(
        self,
        inputs: int,
        channels: list[int],
        hidden: int,
        shape: tuple[int, int, int],
        activation: str = "silu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        outputs, height, width = shape
        sizes = halvings(height, width, len(channels))
        wide = channels[-1]
        self.small = (wide, *sizes[-1])
        self.dense = nn.Sequential(
            *hidden_layer(nn.Linear, inputs, hidden, activation, dropout),
            *hidden_layer(nn.Linear, hidden, math.prod(self.small), activation, 0.0),
        )
        layers: list[nn.Module] = []
        for narrow, before, after in zip(
            channels[-2::-1], sizes[:1:-1], sizes[-2:0:-1], strict=True
        ):
            layers += hidden_layer(_double(before, after), wide, narrow, activation, 0.0, dim=1)
            wide = narrow
        layers.append(_double(sizes[1], sizes[0])(wide, outputs))
        self.convolutions = nn.Sequential(*layers)

    def forward(self, *inputs: Tensor) -> Tensor:
        x = self.dense(join(*inputs))
        images = self.convolutions(x.reshape(-1, *self.small))
        return images.unflatten(0, x.shape[:-1])


def _half(inputs: int, outputs: int) -> nn.Module:
    """Convolution to half the size, rounded up."""
    return nn.Conv2d(inputs, outputs, kernel_size=3, stride=2, padding=1)


def _double(before: tuple[int, int], after: tuple[int, int]) -> Callable[[int, int], nn.Module]:
    """Transposed convolution from the size `before`, which is `after` halved, to `after`."""
    odd = (after[0] - (2 * before[0] - 1), after[1] - (2 * before[1] - 1))
    return lambda inputs, outputs: nn.ConvTranspose2d(
        inputs, outputs, kernel_size=3, stride=2, padding=1, output_padding=odd
    )
