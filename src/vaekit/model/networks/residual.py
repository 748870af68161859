"""Residual networks of convolutions, for images of any height, width and number of channels.

Blocks with the activations before the convolutions (He et al. 2016, "Identity mappings in deep residual networks"), so
that nothing but a sum lies on the way from one resolution's first features to its last. Images shrink by averages and
grow by repeated pixels before a convolution: no step is a transposed convolution, whose output repeats a pattern with
the period of its stride (Odena et al. 2016, "Deconvolution and checkerboard artifacts").
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...support.errors import require
from .hidden import ACTIVATIONS, LayerStyle, normalisation, weight_normalised
from .layers import MAX_SIZE, Size, num_halvings

# From this height or width on, the finest resolution with blocks is half the image's: a quarter of the time.
PACKED_FROM = 32
# Factor of a block's last weights: near 0, so that a deep network starts near the identity, and not 0, which would
# leave the block's other weights without a gradient at the first step.
LAST_FACTOR = 0.1

Shape = tuple[int, int, int]  # channels, height and width


@dataclass(frozen=True)
class ResidualNetworks:
    """The settings of a model's residual networks, and those networks: `encoder`, images to features; `decoder`, its
    mirror image.

    `channels` are those of the finest resolution with blocks; each halving doubles them. `blocks`: at each resolution.
    """

    style: LayerStyle
    channels: int = 32
    blocks: int = 2
    halvings: int | None = None

    def sizes(self, size: Size) -> list[Size]:
        """Height and width at each resolution of images of this size, finest first; rounded up."""
        sizes = [size]
        for _ in range(num_halvings(*size) if self.halvings is None else self.halvings):
            height, width = sizes[-1]
            sizes.append((math.ceil(height / 2), math.ceil(width / 2)))
        return sizes

    def levels(self, size: Size) -> list[Shape]:
        """Shape of the features at each resolution with blocks, finest first."""
        sizes = self.sizes(size)[packs(size) :]
        levels = [(self.channels * 2**i, *size) for i, size in enumerate(sizes)]
        require(
            levels[-1][0] <= MAX_SIZE,
            f"{len(levels) - 1} halvings make a convolution of more than {MAX_SIZE:,} channels; choose fewer "
            "--channels or --num-layers",
        )
        return levels

    def features(self, size: Size) -> Shape:
        """Shape of the features at the coarsest resolution."""
        return self.levels(size)[-1]

    def encoder(self, inputs: int, size: Size) -> nn.Sequential:
        """Images (B, inputs, *size) -> features (B, *self.features(size))."""
        packed = packs(size)
        modules: list[nn.Module] = [Pack()] if packed else []
        before = 4 * inputs if packed else inputs
        for i, (width, *_) in enumerate(self.levels(size)):
            if i:
                modules.append(halving())
            modules.append(self.convolution(before, width, kernel=1 if i else 3))
            modules += [self.block(width) for _ in range(self.blocks)]
            before = width
        return nn.Sequential(*modules, *self.activation(before))

    def decoder(self, shape: Shape) -> nn.Sequential:
        """Features (B, *self.features(size)) -> images (B, *shape), with size = shape[1:]."""
        channels, *size = shape
        levels = self.levels(shape[1:])
        modules: list[nn.Module] = []
        before = levels[-1][0]
        for width, *finer in reversed(levels):
            if width != before:
                # Before the pixels are repeated: a 1 x 1 convolution gives the same after it in four times the time.
                modules += [self.convolution(before, width, kernel=1), Upsample(finer)]
            modules += [self.block(width) for _ in range(self.blocks)]
            before = width
        modules += self.activation(before)
        if packs(shape[1:]):
            modules.append(Upsample(size))
        return nn.Sequential(*modules, nn.Conv2d(before, channels, 3, padding=1))

    def convolution(self, inputs: int, outputs: int, kernel: int, factor: float = 1.0) -> nn.Module:
        """A convolution that keeps the size, its weights times `factor`."""
        # A batch normalisation cancels any bias.
        bias = self.style.normalisation != "batch"
        conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=bias)
        scale: Tensor = conv.weight
        if self.style.normalisation == "weight":
            weight_normalised(conv)
            scale = conv.parametrizations.weight.original0  # type: ignore[union-attr, assignment]
        with torch.no_grad():
            scale *= factor
        return conv

    def activation(self, width: int) -> list[nn.Module]:
        """The activation with its normalisation."""
        return [*normalisation(width, self.style, True), ACTIVATIONS[self.style.activation]()]

    def block(self, width: int) -> ResidualBlock:
        """A bottleneck: 1 x 1 to half the channels, 3 x 3, 1 x 1 back, each after an activation."""
        narrow = max(1, width // 2)
        return ResidualBlock(
            *self.activation(width),
            self.convolution(width, narrow, kernel=1),
            *self.activation(narrow),
            self.convolution(narrow, narrow, kernel=3),
            *self.activation(narrow),
            self.convolution(narrow, width, kernel=1, factor=LAST_FACTOR),
        )


class ResidualBlock(nn.Module):
    """x (B, C, H, W) -> x + layers(x)."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*modules)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class Pack(nn.Module):
    """Images (B, C, H, W) -> (B, 4 C, H / 2, W / 2), rounded up, after a row and a column of zeros where they are odd:
    2 x 2 pixels become channels."""

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        return F.pixel_unshuffle(F.pad(x, (0, width % 2, 0, height % 2)), 2)


class Upsample(nn.Module):
    """Images (B, C, H / 2, W / 2), rounded up -> (B, C, H, W) with `size` = (H, W): each pixel 2 x 2 times."""

    def __init__(self, size: list[int]) -> None:
        super().__init__()
        self.height, self.width = size

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2.0)[..., : self.height, : self.width]


def halving() -> nn.Module:
    """Images (B, C, H, W) -> (B, C, H / 2, W / 2), rounded up: means of 2 x 2 pixels, of those there are at an edge."""
    # Nothing is padded, but with `count_include_pad` torch 2.13 compiles wrong gradients at odd sizes.
    return nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False)


def packs(size: Size) -> bool:
    """Whether the finest resolution with blocks is half that of images of this size."""
    return max(size) >= PACKED_FROM
