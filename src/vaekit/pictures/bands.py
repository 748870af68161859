"""Images of any number of channels as pictures: chosen bands, or principal components, as red, green and blue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..support.errors import require

MAX_FITTED_PIXELS = 2**18
PERCENTILES = (0.01, 0.99)  # of a principal component, shown as 0 and 1
MIN_SPREAD = 1e-4  # a component with less between them is constant, and shown as 0.5


@dataclass(frozen=True)
class Bands:
    """How images (N, C, H, W) become pictures (N, K, H, W) in [0, 1], K = 1 grey or K = 3 red, green, blue: each colour
    is a weighted sum of the channels, `weights` (K, C), plus `offset` (K,). `text` says which, "" where the images are
    shown as they are."""

    weights: Tensor
    offset: Tensor
    text: str = ""

    def __call__(self, images: Tensor) -> Tensor:
        if not self.text:
            return images
        pixels = torch.einsum("kc,nchw->nkhw", self.weights, images.detach().float().cpu())
        return (pixels + self.offset[:, None, None]).clamp(0, 1)

    def title(self, text: str) -> str:
        """The title of a picture: `text`, and which bands it shows."""
        return "; ".join(filter(None, (text, self.text)))


def choose_bands(images: Tensor, chosen: Sequence[int] = ()) -> Bands:
    """How to show images (N, C, H, W): the bands `chosen`, counted from 1, one as grey, two as magenta and green, three
    as red, green and blue.

    By default one channel is grey, two are magenta and green, three are red, green and blue, and of more the first
    three principal components of these images are. Raises UserError for bands that the images do not have.
    """
    channels = images.shape[1]
    require(
        len(chosen) <= 3 and all(1 <= band <= channels for band in chosen),
        f"--bands {','.join(map(str, chosen))}: the images have {channels} band{'s' * (channels > 1)}, counted from 1",
    )
    if not chosen and channels in (1, 3):
        return Bands(torch.eye(channels), torch.zeros(channels))
    if not chosen and channels > 3:
        return principal_components(images)
    bands = [*chosen] or [1, 2]
    rows = [bands[0], bands[1], bands[0]] if len(bands) == 2 else bands
    weights = torch.zeros(len(rows), channels)
    weights[torch.arange(len(rows)), torch.tensor(rows) - 1] = 1
    colours = ("grey", "magenta, green", "red, green, blue")[len(bands) - 1]
    plural = "s" * (len(bands) > 1)
    text = f"band{plural} {', '.join(map(str, bands))} of {channels} as {colours}"
    return Bands(weights, torch.zeros(len(rows)), text)


def principal_components(images: Tensor) -> Bands:
    """The first three principal components of the pixels of images (N, C, H, W), each from its 1st to its 99th
    percentile; the largest weight of each is positive."""
    channels = images.shape[1]
    pixels = images.detach().cpu().movedim(1, 3).reshape(-1, channels)
    pixels = pixels[:: -(-len(pixels) // MAX_FITTED_PIXELS)].double().nan_to_num(0).clamp(0, 1)
    _, vectors = torch.linalg.eigh(pixels.T.cov(correction=0))
    axes = vectors.flip(1)[:, :3].T
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
    axes = axes * largest.sign()
    low, high = (pixels @ axes.T).quantile(torch.tensor(PERCENTILES, dtype=torch.float64), dim=0)
    varies = high - low > MIN_SPREAD
    scale = torch.where(varies, 1 / (high - low).clamp(min=MIN_SPREAD), 0.0)
    offset = torch.where(varies, -low * scale, 0.5)
    text = f"principal components 1, 2, 3 of {channels} bands as red, green, blue"
    return Bands((axes * scale[:, None]).float(), offset.float(), text)
