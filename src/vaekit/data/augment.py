"""Augmentation of training images on their device: flips, rotations, shifts, crops and colours, drawn for each image.

What is drawn (`draw`) is apart from what it does (`transform`). Nothing depends on the values of a tensor, so that a
compiled step contains all of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..settings.augment import Augmentation, parse_augmentation
from .dataset import Dataset


@dataclass(frozen=True)
class Draws:
    """What is done with each of B images, in this order; None is nothing.

    `shift` (2, B): pixels down and to the right; `crop` (2, B): first row and column of the window, relative to the
    image; `hflip`, `vflip` (B,): whether to mirror; `quarter_turns` (B,): anticlockwise; `brightness`, `contrast`,
    `saturation` (B,): factors.
    """

    shift: Tensor | None = None
    crop: Tensor | None = None
    hflip: Tensor | None = None
    vflip: Tensor | None = None
    quarter_turns: Tensor | None = None
    brightness: Tensor | None = None
    contrast: Tensor | None = None
    saturation: Tensor | None = None

    @property
    def moves(self) -> bool:
        """Whether pixels move."""
        drawn = (self.shift, self.crop, self.hflip, self.vflip, self.quarter_turns)
        return any(each is not None for each in drawn)


def augmentation_of(text: str | None, data: Dataset) -> Callable[[Tensor], Tensor]:
    """The function that augments training images of a data set, by the text of the setting; None is the identity."""
    if text is None:
        return lambda images: images
    return partial(augment, augmentation=parse_augmentation(text), levels=data.levels)


def augment(images: Tensor, augmentation: Augmentation, levels: int | None = None) -> Tensor:
    """Augment images (B, C, H, W), uint8 or float in [0, 1]; returns the same type. `levels`: the number of evenly
    spaced values of float images, on which they stay.

    Draws from torch's global generator of the device of the images.
    """
    return transform(images, draw(augmentation, len(images), images.device), levels)


def draw(
    augmentation: Augmentation,
    count: int,
    device: torch.device,
    generator: torch.Generator | None = None,
) -> Draws:
    """Draw what to do with `count` images."""

    def whole(low: int, high: int, *size: int) -> Tensor:
        return torch.randint(low, high + 1, (*size, count), device=device, generator=generator)

    def factor(strength: float) -> Tensor | None:
        if not strength:
            return None
        uniform = torch.rand(count, device=device, generator=generator)
        return 1 - strength + 2 * strength * uniform

    shift, crop = augmentation.shift, augmentation.crop
    return Draws(
        shift=whole(-shift, shift, 2) if shift else None,
        crop=whole(-crop, crop, 2) if crop else None,
        hflip=whole(0, 1) == 1 if augmentation.hflip else None,
        vflip=whole(0, 1) == 1 if augmentation.vflip else None,
        quarter_turns=whole(0, 3) if augmentation.rotate90 else None,
        brightness=factor(augmentation.brightness),
        contrast=factor(augmentation.contrast),
        saturation=factor(augmentation.saturation),
    )


def transform(images: Tensor, draws: Draws, levels: int | None = None) -> Tensor:
    """Do with each image what was drawn for it."""
    return change_colours(move_pixels(images, draws), draws, levels)


def move_pixels(images: Tensor, draws: Draws) -> Tensor:
    """Shift, crop, mirror and rotate images (B, C, H, W): each new pixel is a copy of one of the image."""
    if not draws.moves:
        return images
    height, width = images.shape[-2:]
    flip_rows, flip_columns, turns = draws.vflip, draws.hflip, draws.quarter_turns
    if turns is not None:  # a rotation is a transposition and flips
        flip_rows, flip_columns = (
            flip if flips is None else flip ^ flips
            for flip, flips in ((turns >= 2, flip_rows), ((turns + 1) % 4 >= 2, flip_columns))
        )
    shift, crop = (each if each is not None else (None, None) for each in (draws.shift, draws.crop))
    rows = source_positions(height, flip_rows, crop[0], shift[0], images.device)
    columns = source_positions(width, flip_columns, crop[1], shift[1], images.device)
    index = rows[:, :, None] * width + columns[:, None, :]
    if turns is not None:
        index = torch.where((turns % 2 == 1)[:, None, None], index.transpose(1, 2), index)
    pixels = images.flatten(2)
    return pixels.gather(2, index.flatten(1)[:, None].expand_as(pixels)).view(images.shape)


def source_positions(
    size: int,
    flip: Tensor | None,
    crop: Tensor | None,
    shift: Tensor | None,
    device: torch.device,
) -> Tensor:
    """The row, or column, of the image that goes to each of `size` rows of the result: (B, size), or (1, size)."""
    position = torch.arange(size, device=device)[None]
    if flip is not None:
        position = torch.where(flip[:, None], size - 1 - position, position)
    if crop is not None:  # reflected at both edges
        position = size - 1 - (size - 1 - (position + crop[:, None]).abs()).abs()
    if shift is not None:
        position = (position - shift[:, None]).clamp(0, size - 1)
    return position


def change_colours(images: Tensor, draws: Draws, levels: int | None = None) -> Tensor:
    """Change brightness, contrast and saturation of images (B, C, H, W) by factors, clamped to [0, 1] after each."""
    if draws.brightness is draws.contrast is draws.saturation is None:
        return images
    x = images.float() / 255 if images.dtype == torch.uint8 else images
    if draws.brightness is not None:
        x = (x * per_image(draws.brightness)).clamp(0, 1)
    if draws.contrast is not None:
        x = blend(grey(x).mean((1, 2, 3), keepdim=True), x, draws.contrast)
    if draws.saturation is not None:
        x = blend(grey(x), x, draws.saturation)
    if images.dtype == torch.uint8:
        return (x * 255).round().to(torch.uint8)
    return x if levels is None else (x * (levels - 1)).round() / (levels - 1)


def blend(start: Tensor, x: Tensor, factor: Tensor) -> Tensor:
    """start + factor (x - start), in [0, 1]."""
    return (start + per_image(factor) * (x - start)).clamp(0, 1)


def grey(x: Tensor) -> Tensor:
    """The grey of images (B, C, H, W): of three channels the luma (ITU-R BT.601), else the mean: (B, 1, H, W)."""
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True)
    red, green, blue = x.split(1, 1)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def per_image(values: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, 1)."""
    return values[:, None, None, None]
