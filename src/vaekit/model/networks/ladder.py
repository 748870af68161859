"""A deep hierarchy: groups of latents at several resolutions along one residual path from the coarsest to the finest.

Sønderby et al. 2016 (ladder VAE); Kingma et al. 2016 (IAF), section 4; Vahdat and Kautz 2020 (NVAE); Child 2021
(VDVAE), whose blocks these are. With h_0 learned, group i = 0, 1, ... of the latents z_i has

    p(z_i | z_<i) = N(loc_p, scale_p^2), (loc_p, scale_p, r) = prior network(h_i)
    q(z_i | x, z_<i) = N(loc_p + scale_p loc_q, (scale_p scale_q)^2), (loc_q, scale_q) = posterior network(h_i, f(x))
    h_{i+1} = block(h_i + r + merge(z_i)), enlarged where the next group is of a finer resolution

and the pixels follow from the last h. So the graph is that of any `VAE`, with a prior and a posterior for each group,
which all read h_i from the values known so far. Latents are vectors there, as everywhere: maps (C, H, W), flattened.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Distribution

from ...settings.model import LadderConfig
from ..distributions import LocationScaleHead, as_float32, gaussian, independent
from .residual import ResidualBlock, halving

STATE, FEATURES = "state of the ladder", "features of the image"  # keys in the values
SMALLEST_SCALE = 0.01  # of a prior, and of a posterior relative to its prior


@dataclass(frozen=True)
class State:
    """The path before group `index`: the feature map h (..., channels, H, W), the group's Gaussian prior and the change
    of h by its prior network (none after the last group), which follow from the values `given`."""

    index: int
    features: Tensor
    prior: Any
    change: Any
    given: tuple[Any, ...]

    def follows_from(self, given: tuple[Any, ...]) -> bool:
        """Whether it follows from these values, the very same tensors, or from the first of them."""
        return all(a is b for a, b in zip(self.given, given, strict=False))


class Ladder(nn.Module):
    """The networks that all groups share: the encoder of images, and the path from the first latent to the last.

    `outputs` are the channels of an image that the likelihood needs.
    """

    def __init__(
        self,
        settings: LadderConfig,
        shape: tuple[int, int, int],
        outputs: int,
        classes: int,
        activation: Callable[[], nn.Module],
    ) -> None:
        super().__init__()
        self.shape, self.patch, width = shape, settings.patch(shape), settings.channels
        self.latent_shapes = settings.latent_shapes(shape)
        self.names = list(self.latent_shapes)
        sizes = [size for _, *size in self.latent_shapes.values()]
        finest, *coarser = settings.feature_sizes(shape)
        squares = self.patch**2
        self.stem = nn.Conv2d(shape[0] * squares, width, 3, padding=1)
        used = [finest] + [size for size in coarser if max(size) >= max(sizes[0])]
        self.feature_sizes = used
        depth = len(used) * settings.encoder_blocks + len(self.names)

        self.encoder = nn.ModuleList(
            nn.Sequential(
                *(
                    residual_block(width, max(size), activation, depth**-0.5)
                    for _ in range(settings.encoder_blocks)
                )
            )
            for size in used
        )
        self.halve = halving()
        self.label = nn.Linear(classes, 2 * width, bias=False) if classes else None
        self.first = nn.Parameter(torch.zeros(width, *sizes[0]))
        self.groups = nn.ModuleList(
            Group(channels, width, max(size), activation, depth**-0.5)
            for channels, *size in self.latent_shapes.values()
        )
        # Where it enters a finer resolution, the path gets a learned map, which tells positions apart.
        self.positions = nn.ParameterList(
            nn.Parameter(torch.zeros(width, *size))
            for before, size in zip(sizes, [*sizes[1:], finest], strict=True)
            if list(before) != list(size)
        )
        self.enters = [list(a) != list(b) for a, b in zip(sizes, [*sizes[1:], finest], strict=True)]
        self.last = nn.Sequential(
            activation(),
            alike(nn.Conv2d(width, outputs * squares, 3, padding=1), squares),
            nn.PixelShuffle(self.patch) if self.patch > 1 else nn.Identity(),
        )
        self.head = LocationScaleHead(
            gaussian, event_dim=1, scale="each", initial=1.0, floor=SMALLEST_SCALE
        )

    def at(self, values: dict[str, Any], index: int) -> State:
        """The path before group `index`, from the latents above it. It is kept in the values, so that it is computed
        once for prior, posterior and decoder, and continued from there for the groups below."""
        # Of another model, or computed without gradients where they are wanted, it does not follow from these values.
        known = (self, torch.is_grad_enabled(), values.get("y"))
        given = (*known, *(values[name] for name in self.names[:index]))
        state: State | None = values.get(STATE)
        if state is None or state.index > index or not state.follows_from(given):
            h, y = self.first, values.get("y")
            if self.label is not None:
                h = h + self.label(y).chunk(2, dim=-1)[0][..., None, None]
            state = self.before(0, h, given)
        while state.index < index:
            state = self.after(state, values[self.names[state.index]], given)
        values[STATE] = state
        return state

    def group(self, index: int) -> Group:
        return cast("Group", self.groups[index])

    def before(self, index: int, h: Tensor, given: tuple[Any, ...]) -> State:
        prior, change = None, None
        if index < len(self.names):
            output, change = spatial(self.group(index).prior, h)
            prior = independent(gaussian(*self.parameters_of(output)), 1)
        return State(index, h, prior, change, given[: index + 3])

    def after(self, state: State, z: Tensor, given: tuple[Any, ...]) -> State:
        """The path after group `state.index`, whose latent is z (..., C H W)."""
        i, h, group = state.index, state.features, self.group(state.index)
        z = spatial(group.merge, z.unflatten(-1, self.latent_shapes[self.names[i]]))
        # h comes last, since a sum has the memory format of its first term, and that of h_0 is slow for convolutions.
        h = spatial(group.block, z + state.change + h)
        if self.enters[i]:
            position = self.positions[sum(self.enters[:i])]
            h = enlarge(h, position.shape[-2:]) + position
        return self.before(i + 1, h, given)

    def prior(self, values: dict[str, Any], index: int) -> Any:
        """p(z_i | z_<i)."""
        return self.at(values, index).prior

    def parameters_of(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Location and scale of a latent, vectors, in float32, from a feature map of both."""
        loc, raw = (part.flatten(-3) for part in as_float32(output).chunk(2, dim=-3))
        return loc, self.head.positive(raw)

    def posterior(self, values: dict[str, Any], index: int) -> Distribution:
        """q(z_i | x, z_<i)."""
        state, prior = self.at(values, index), self.prior(values, index)
        size = self.latent_shapes[self.names[index]][1:]
        features = self.features(values)[size]
        loc, scale = prior.base_dist.loc, prior.base_dist.scale
        change, factor = self.parameters_of(
            spatial(self.group(index).posterior, state.features, features)
        )
        return independent(gaussian(loc + scale * change, scale * factor), 1)

    def features(self, values: dict[str, Any]) -> dict[tuple[int, int], Tensor]:
        """Feature maps (B, W, H, W) of the images by their size; kept in the values."""
        given = (self, torch.is_grad_enabled(), values["x"], values.get("y"))
        known = values.get(FEATURES)
        if known is None or any(a is not b for a, b in zip(known[0], given, strict=True)):
            known = values[FEATURES] = (given, self.encode(values["x"], values.get("y")))
        return known[1]

    def encode(self, x: Tensor, y: Tensor | None) -> dict[tuple[int, int], Tensor]:
        height, width = (-n % self.patch for n in x.shape[-2:])
        x = F.pad(x - 0.5, (0, width, 0, height)) if height or width else x - 0.5
        h = self.stem(F.pixel_unshuffle(x, self.patch) if self.patch > 1 else x)
        if self.label is not None:
            h = h + self.label(y).chunk(2, dim=-1)[1][..., None, None]
        maps: dict[tuple[int, int], Tensor] = {}
        for size, blocks in zip(self.feature_sizes, self.encoder, strict=True):
            if maps:
                h = self.halve(h)
            h = maps[size] = blocks(h)
        return maps

    def pixels(self, values: dict[str, Any]) -> Tensor:
        """The decoder's output (..., outputs, H, W), in float32."""
        images = spatial(self.last, self.at(values, len(self.names)).features)
        return as_float32(crop(images, self.shape[1:]))


class GroupPrior(nn.Module):
    """p(z_i | z_<i)."""

    def __init__(self, ladder: Ladder, index: int) -> None:
        super().__init__()
        self.shared = (ladder,)  # in a tuple, so that the decoder alone registers it
        self.index = index
        self.given = (*ladder.names[:index], *(["y"] if ladder.label else []))

    def forward(self, values: dict[str, Any]) -> Distribution:
        return self.shared[0].prior(values, self.index)


class GroupPosterior(nn.Module):
    """q(z_i | x, z_<i)."""

    def __init__(self, ladder: Ladder, index: int) -> None:
        super().__init__()
        self.shared = (ladder,)
        self.index = index
        self.given = ("x", *ladder.names[:index], *(["y"] if ladder.label else []))

    def forward(self, values: dict[str, Any]) -> Distribution:
        return self.shared[0].posterior(values, self.index)


class LadderDecoder(nn.Module):
    """p(x | z), of which the whole path down is a part."""

    def __init__(self, ladder: Ladder, head: nn.Module) -> None:
        super().__init__()
        self.ladder, self.head = ladder, head
        self.given = (*ladder.names, *(["y"] if ladder.label else []))

    def forward(self, values: dict[str, Any]) -> Distribution:
        return self.head(self.ladder.pixels(values))


class Group(nn.Module):
    """The networks of one group of latents: those of its prior and of its posterior, what merges its values into the
    path, and the residual block after it."""

    def __init__(
        self,
        channels: int,
        width: int,
        side: int,
        activation: Callable[[], nn.Module],
        scale: float,
    ) -> None:
        super().__init__()
        self.prior = PriorNetwork(width, 2 * channels, side, activation)
        self.posterior = bottleneck(2 * width, width, 2 * channels, side, activation, scale)
        self.merge = scaled(nn.Conv2d(channels, width, 1), scale)
        self.block = residual_block(width, side, activation, scale)


class PriorNetwork(nn.Module):
    """A feature map -> the parameters of a latent, and a change of the feature map; both are small at first."""

    def __init__(
        self, width: int, outputs: int, side: int, activation: Callable[[], nn.Module]
    ) -> None:
        super().__init__()
        *layers, last = bottleneck(width, width, outputs, side, activation, 0.1)
        self.trunk, self.latent = nn.Sequential(*layers), last
        self.change = scaled(nn.Conv2d(middle_channels(width), width, 1), 0.1)

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        h = self.trunk(h)
        return self.latent(h), self.change(h)


def bottleneck(
    inputs: int,
    width: int,
    outputs: int,
    side: int,
    activation: Callable[[], nn.Module],
    scale: float,
) -> nn.Sequential:
    """Pre-activated convolutions 1 x 1, 3 x 3, 1 x 1 with a quarter of `width` channels between them (1 x 1 for maps of
    up to 2 pixels), the last one's weights times `scale`. He et al. 2016, fig. 5; Child 2021 has a second 3 x 3."""
    middle, kernel = middle_channels(width), 3 if side > 2 else 1

    def conv(a: int, b: int, kernel: int) -> nn.Module:
        return nn.Conv2d(a, b, kernel, padding=kernel // 2)

    return nn.Sequential(
        activation(), conv(inputs, middle, 1),
        activation(), conv(middle, middle, kernel),
        activation(), scaled(conv(middle, outputs, 1), scale),
    )  # fmt: skip


def residual_block(
    width: int, side: int, activation: Callable[[], nn.Module], scale: float
) -> nn.Module:
    return ResidualBlock(*bottleneck(width, width, width, side, activation, scale))


def middle_channels(width: int) -> int:
    return max(4, width // 4)


@torch.no_grad()
def scaled(layer: Any, scale: float) -> Any:
    """The layer, its weights times `scale` and its bias zero."""
    layer.weight *= scale
    layer.bias.zero_()
    return layer


@torch.no_grad()
def alike(layer: Any, count: int) -> Any:
    """The layer, its outputs equal in groups of `count`: the pixels of a square start alike, without a grid (Aitken et
    al. 2017, "Checkerboard artifact free sub-pixel convolution")."""
    for parameter in (layer.weight, layer.bias):
        parameter.copy_(parameter[::count].repeat_interleave(count, 0))
    return layer


def spatial(network: nn.Module, *inputs: Tensor) -> Any:
    """A network on feature maps (..., C, H, W), concatenated along their channels with broadcasting: its output, or
    outputs."""
    batch = torch.broadcast_shapes(*(x.shape[:-3] for x in inputs))
    maps = [x.expand(*batch, *x.shape[-3:]).reshape(-1, *x.shape[-3:]) for x in inputs]
    output = network(torch.cat(maps, dim=1) if len(maps) > 1 else maps[0])
    if isinstance(output, tuple):
        return tuple(each.reshape(*batch, *each.shape[1:]) for each in output)
    return output.reshape(*batch, *output.shape[1:])


def enlarge(h: Tensor, size: torch.Size) -> Tensor:
    """Feature maps at twice the size or more, by repetition, cropped to `size`: no checkerboards."""
    times = math.ceil(max(size[0] / h.shape[-2], size[1] / h.shape[-1]))
    return crop(spatial(nn.Upsample(scale_factor=times), h), size)


def crop(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    return maps if maps.shape[-2:] == size else maps[..., : size[0], : size[1]]
