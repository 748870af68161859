"""The layers of a network as text, such as "32@3/2 64@3/2 500".

500        a dense layer of 500 units
64@4/2     a convolution to 64 channels, kernel 4 x 4, stride 2: it halves the image (rounded up)
64@4*2     a transposed convolution, which doubles the image
64@3       a convolution that keeps the size; 64@3v one without padding, which shrinks the image
@3*2       the last convolution of a decoder, with the channels that the likelihood needs
64x        a dense layer to an image of 64 channels (in a decoder, of the size that the later layers need)
500:tanh   a layer with its own activation; 500:linear one without
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

from ...settings.model import Activation, ModelConfig
from ...support.errors import UserError, did_you_mean, require, shown

PATTERN = re.compile(
    r"(?P<width>\d{0,9})(?:(?P<image>x)|@(?P<kernel>\d{1,9})(?:(?P<sign>[/*])(?P<stride>\d{1,9}))?(?P<valid>v?))?"
    r"(?::(?P<activation>[\w-]+))?"
)
MAX_SIZE, MAX_LAYERS = 2**20, 1000


@dataclass(frozen=True)
class Layer:
    """One layer; `width`: units or channels, 0 for those that the likelihood needs; `kernel`: 0 for a dense layer."""

    width: int
    kernel: int = 0
    stride: int = 1
    up: bool = False
    valid: bool = False
    image: bool = False
    activation: str | None = None

    def outputs(self, size: int) -> int:
        """Height (or width) of a convolution's output for an input of that height."""
        if self.valid:
            return (size - self.kernel) // self.stride + 1
        return math.ceil(size / self.stride)

    def inputs(self, size: int) -> int:
        """Height (or width) of a decoder layer's input for an output of that height, 0 where there is none."""
        if self.valid and not self.up:
            return size + self.kernel - 1
        return 0 if self.valid and (size - self.kernel) % self.stride else self.outputs(size)


Layers = Sequence[Layer]
Size = tuple[int, int]  # height and width


def parse(text: str, what: str, network_size: float = 1.0) -> tuple[Layer, ...]:
    """The layers of a text, the channels of convolutions times `network_size`. Raises UserError, beginning with `what`,
    for a word that is not a layer."""
    words = text.split()
    require(
        len(words) <= MAX_LAYERS, f"{what} has {len(words):,} layers; {MAX_LAYERS} are possible"
    )
    layers = [parse_layer(word, what) for word in words]
    require(
        all(layer.width * network_size <= MAX_SIZE for layer in layers if layer.kernel),
        f"--network-size {network_size:g} makes a convolution of more than {MAX_SIZE:,} channels",
    )
    for i, layer in enumerate(layers):
        if layer.kernel and layer.width:
            layers[i] = replace(layer, width=max(1, int(layer.width * network_size)))
    return tuple(layers)


def parse_layer(word: str, what: str) -> Layer:
    match = PATTERN.fullmatch(word)
    if match is None or not (match["width"] or match["kernel"]):
        raise UserError(f"{what}: {shown(word)} is not a layer; write 500, 64@4/2, 64@4*2 or 64x")
    activation, names = match["activation"], [*get_args(Activation), "linear"]
    if activation is not None and activation not in names:
        hint = f"{did_you_mean(activation, names)} (activations: {', '.join(names)})"
        raise UserError(f"{what}: {word!r} has an unknown activation{hint}")
    layer = Layer(
        width=int(match["width"] or 0),
        kernel=int(match["kernel"] or 0),
        stride=int(match["stride"] or 1),
        up=match["sign"] == "*",
        valid=bool(match["valid"]),
        image=bool(match["image"]),
        activation=activation,
    )
    sizes = [int(match[name]) for name in ("width", "kernel", "stride") if match[name]]
    require(
        all(1 <= size <= MAX_SIZE for size in sizes),
        f"{what}: {word!r} has a size that is 0 or above {MAX_SIZE:,}",
    )
    return layer


def check_encoder(layers: Layers) -> None:
    """Raise UserError unless the layers map an image to a vector: convolutions, then dense layers."""
    kinds = "".join("c" if layer.kernel else "d" for layer in layers)
    ordered = re.fullmatch("c*d*", kinds) is not None
    require(
        ordered and all(layer.width and not layer.up and not layer.image for layer in layers),
        "an encoder has convolutions such as 64@4/2, then dense layers such as 500",
    )


def check_decoder(layers: Layers) -> None:
    """Raise UserError unless the layers map a vector to an image: dense layers; or those, one like 64x, and
    convolutions, of which only the last is without channels."""
    kinds = "".join("c" if layer.kernel else "x" if layer.image else "d" for layer in layers)
    require(
        re.fullmatch("d*|d*xc+", kinds) is not None
        and all(layer.up or layer.stride == 1 for layer in layers)
        and all(layer.width for layer in layers[:-1])
        and (not kinds.endswith("c") or not (layers[-1].width or layers[-1].activation)),
        "a decoder has dense layers such as 500; or those, one like 64x, and convolutions such as 32@3*2, of which the "
        "last is without channels and activation: @3*2",
    )


def check_dense(layers: Layers, what: str) -> None:
    """Raise UserError unless all layers are dense."""
    if not all(layer.width and not layer.kernel and not layer.image for layer in layers):
        raise UserError(f"{what} has dense layers alone, such as 500")


def num_halvings(height: int, width: int) -> int:
    """How often to halve an image of this size until it fits in 8 x 8: at least once."""
    return max(1, math.ceil(math.log2(max(height, width) / 8)))


def default_layers(settings: ModelConfig, height: int, width: int) -> tuple[str, str]:
    """The layers of the encoder, and of the decoder, its mirror image, where they are not written out."""
    hidden = str(settings.hidden_dim)
    if settings.network == "dense":
        dense = " ".join([hidden] * (settings.num_layers or 2))
        return dense, dense
    if settings.network == "resnet":
        return hidden, hidden
    depth = settings.num_layers or num_halvings(height, width)
    channels = [settings.channels * 2**level for level in range(depth)]
    encoder = [*(f"{n}@3/2" for n in channels), hidden]
    first, *rest = reversed(channels)
    decoder = [hidden, f"{first}x", *(f"{n}@3*2" for n in rest), "@3*2"]
    return " ".join(encoder), " ".join(decoder)
