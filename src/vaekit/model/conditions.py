"""What a model is conditional on: labels, or a visible part of the image."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from ..support.errors import UserError
from .distributions import Conditional
from .pixels import Hidden


class OneHot(nn.Module):
    """Labels (B,) -> (B, classes)."""

    identity: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.register_buffer("identity", torch.eye(classes), persistent=False)

    def forward(self, x: Tensor | None, y: Tensor | None) -> Tensor:
        if y is None:
            raise UserError("the model is conditional on labels; give it those of the images")
        return self.identity[y]


class Quadrants(nn.Module):
    """Images with all but their first quadrants blank (Sohn et al. 2015, section 5.1): lower left, then upper left,
    then upper right."""

    mask: Tensor

    def __init__(self, count: int, height: int, width: int) -> None:
        super().__init__()
        mask = torch.zeros(1, height, width)
        top, left = height // 2, width // 2
        for rows, columns in [
            (slice(top, None), slice(None, left)),
            (slice(None, top), slice(None, left)),
            (slice(None, top), slice(left, None)),
        ][:count]:
            mask[:, rows, columns] = 1
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor | None, y: Tensor | None) -> Tensor:
        """The visible part of the images x, or, where there are none, of the images y, as vectors (B, C H W)."""
        images = y if x is None else x
        if images is None:
            raise UserError("the model is conditional on a part of the image; give it images")
        return (images * self.mask).flatten(1)


class HiddenPixels(nn.Module):
    """A decoder of the pixels that Quadrants leaves blank."""

    def __init__(self, decoder: Conditional, visible: Quadrants) -> None:
        super().__init__()
        self.decoder = decoder
        self.shared = (visible,)  # registered once, by the model

    def forward(self, values: dict[str, Tensor | None]) -> Distribution:
        (visible,) = self.shared
        y = values["y"]
        assert y is not None
        pixels = self.decoder(values)
        return Hidden(pixels, 1 - visible.mask, y.view(-1, *pixels.event_shape))
