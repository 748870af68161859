"""What a model is conditional on: labels, or the visible part of an image."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from ..support.errors import UserError
from .distributions import Conditional
from .pixels import MaskedPixels


class OneHot(nn.Module):
    """Labels (B,) -> (B, classes)."""

    zero: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.register_buffer("zero", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor | None, y: Tensor | None) -> Tensor:
        if y is None:
            raise UserError("the model is conditional on labels; pass the labels of the images")
        return self.zero.new_zeros(len(y), self.classes).scatter(1, y[:, None], 1.0)


class Quadrants(nn.Module):
    """Images blank but for their first `count` quadrants: lower left, upper left, upper right (Sohn et al. 2015,
    section 5.1). `mask` (1, H, W) is 1 where an image is visible."""

    mask: Tensor

    def __init__(self, count: int, height: int, width: int) -> None:
        super().__init__()
        mask, top = torch.zeros(1, height, width), 0 if count >= 2 else height // 2
        mask[:, top:, : width // 2] = 1
        if count == 3:
            mask[:, : height // 2, width // 2 :] = 1
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor | None, y: Tensor | None) -> Tensor:
        """The visible part of the images x, or else of the images y, as vectors (B, C H W)."""
        images = y if x is None else x
        if images is None:
            raise UserError("the model is conditional on a part of the image; pass images")
        return (images * self.mask).flatten(1)


class MaskedDecoder(nn.Module):
    """A decoder of the pixels that Quadrants hides."""

    def __init__(self, decoder: Conditional, visible: Quadrants) -> None:
        super().__init__()
        self.decoder = decoder
        self.shared = (visible,)  # in a tuple, so that the model alone registers it

    def forward(self, values: dict[str, Tensor | None]) -> Distribution:
        (visible,) = self.shared
        y = values["y"]
        assert y is not None
        pixels = self.decoder(values)
        return MaskedPixels(pixels, 1 - visible.mask, y.view(-1, *pixels.event_shape))
