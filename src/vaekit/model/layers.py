"""A network's layers written as text, such as "32@3/2 64@3/2 500".

500        a dense layer of 500 units
64@4/2     a convolution to 64 channels, kernel 4 x 4, that halves the image (rounded up)
64@4*2     a transposed convolution that doubles it
64@3       a convolution that keeps its size; 64@3v one without padding, which cuts a margin off
@3*2       the last convolution of a decoder, whose channels are those that the likelihood needs
64x        a dense layer that becomes an image of 64 channels (in a decoder, of the size that the rest asks for)
500:tanh   a layer with its own activation; 500:linear one without
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

from ..settings.model import Activation, ModelConfig
from ..support.errors import UserError, closest, require

PATTERN = re.compile(
    r"(?P<width>\d*)(?:(?P<image>x)|@(?P<kernel>\d+)(?:(?P<sign>[/*])(?P<stride>\d+))?(?P<valid>v?))?"
    r"(?::(?P<activation>[\w-]+))?"
)
LARGEST = 2**20


@dataclass(frozen=True)
class Layer:
    """One layer; `width` is its units or channels, 0 where the likelihood says; `kernel` 0 is dense."""

    width: int
    kernel: int = 0
    stride: int = 1
    up: bool = False
    valid: bool = False
    image: bool = False
    activation: str | None = None

    def outputs(self, size: int) -> int:
        """Height (or width) after a convolution of an image of that height."""
        if self.valid:
            return (size - self.kernel) // self.stride + 1
        return math.ceil(size / self.stride)

    def inputs(self, size: int) -> int:
        """Height before a decoder's layer that gives an image of that height, 0 where none does."""
        if not self.valid:
            return math.ceil(size / self.stride)
        if not self.up:
            return size + self.kernel - 1
        return 0 if (size - self.kernel) % self.stride else (size - self.kernel) // self.stride + 1


def parse(text: str, what: str, network_size: float = 1.0) -> tuple[Layer, ...]:
    """The layers that a text says, the channels of convolutions times `network_size`; UserError names the word that is
    none."""
    layers = [_parse(word, what) for word in text.split()]
    require(
        all(layer.width * network_size <= LARGEST for layer in layers if layer.kernel),
        f"--network-size {network_size:g} makes a convolution of more than {LARGEST:,} channels",
    )
    return tuple(
        replace(layer, width=max(1, int(layer.width * network_size)))
        if layer.kernel and layer.width
        else layer
        for layer in layers
    )


def _parse(word: str, what: str) -> Layer:
    match = PATTERN.fullmatch(word)
    if match is None or not (match["width"] or match["kernel"]):
        raise UserError(f"{what}: {word!r} is no layer; write 500, 64@4/2, 64@4*2 or 64x")
    activation = match["activation"]
    names = [*get_args(Activation), "linear"]
    require(
        activation is None or activation in names,
        f"{what}: {word!r} has an unknown activation{closest(activation or '', names)} "
        f"(activations: {', '.join(names)})",
    )
    layer = Layer(
        width=int(match["width"] or 0),
        kernel=int(match["kernel"] or 0),
        stride=int(match["stride"] or 1),
        up=match["sign"] == "*",
        valid=bool(match["valid"]),
        image=bool(match["image"]),
        activation=activation,
    )
    require(
        (layer.width >= 1 or not match["width"])
        and (layer.kernel >= 1 or not match["kernel"])
        and layer.stride >= 1
        and max(layer.width, layer.kernel, layer.stride) <= LARGEST,
        f"{what}: {word!r} has a size that is 0 or above {LARGEST:,}",
    )
    return layer


def check_encoder(layers: Sequence[Layer]) -> None:
    """UserError unless these turn an image into a vector: convolutions, then dense layers."""
    kinds = "".join("c" if layer.kernel else "d" for layer in layers)
    require(
        re.fullmatch("c*d*", kinds) is not None
        and all(layer.width and not layer.up and not layer.image for layer in layers),
        "an encoder has convolutions such as 64@4/2, then dense layers such as 500",
    )


def check_decoder(layers: Sequence[Layer]) -> None:
    """UserError unless these turn a vector into an image: dense layers; or those, one like 64x, and convolutions, of
    which the last, and only it, leaves its channels open."""
    kinds = "".join("c" if layer.kernel else "x" if layer.image else "d" for layer in layers)
    require(
        re.fullmatch("d*|d*xc+", kinds) is not None
        and all(layer.up or layer.stride == 1 for layer in layers)
        and all(layer.width for layer in layers[:-1])
        and (not kinds.endswith("c") or not (layers[-1].width or layers[-1].activation)),
        "a decoder has dense layers such as 500; or those, one like 64x, and convolutions such as 32@3*2, of which "
        "the last has no channels and no activation: @3*2",
    )


def check_dense(layers: Sequence[Layer], what: str) -> None:
    """UserError unless all are dense."""
    require(
        all(layer.width and not layer.kernel and not layer.image for layer in layers),
        f"{what} has dense layers alone, such as 500",
    )


def halvings(height: int, width: int) -> int:
    """How often to halve an image of that size until it fits in 8 x 8: at least once."""
    return max(1, math.ceil(math.log2(max(height, width) / 8)))


def dense_layers(settings: ModelConfig) -> str:
    return " ".join([str(settings.hidden_dim)] * (settings.num_layers or 2))


def conv_channels(settings: ModelConfig, height: int, width: int) -> list[int]:
    """Channels of each halving."""
    depth = settings.num_layers or halvings(height, width)
    return [settings.channels * 2**level for level in range(depth)]


def default_encoder(settings: ModelConfig, height: int, width: int) -> str:
    """The encoder's layers where they are not written out."""
    if settings.network == "dense":
        return dense_layers(settings)
    convolutions = [f"{wide}@3/2" for wide in conv_channels(settings, height, width)]
    return " ".join([*convolutions, str(settings.hidden_dim)])


def default_decoder(settings: ModelConfig, height: int, width: int) -> str:
    """The decoder's: the encoder's mirrored."""
    if settings.network == "dense":
        return dense_layers(settings)
    first, *rest = reversed(conv_channels(settings, height, width))
    return " ".join([str(settings.hidden_dim), f"{first}x", *(f"{n}@3*2" for n in rest), "@3*2"])
