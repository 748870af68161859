"""Images out of a trained model: from its prior, from one point of its latent, or as reconstructions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from .compute import seeded
from .config import UserError, require, require_count, require_seed
from .data import Split, freeze
from .data.images import read_images
from .evaluation import evaluation_images
from .runs import Run
from .vae import VAE


@torch.no_grad()
def generate(model: VAE, count: int = 64, temperature: float = 1.0, seed: int = 0) -> Tensor:
    """Mean pixels (count, C, H, W) in [0, 1] of latents drawn from the prior.

    A temperature below 1 draws closer to the prior's mean: cleaner images, less varied. Raises UserError.
    """
    require_count("count", count, largest=2**20)
    require_seed(seed)
    require(
        0 <= temperature < math.inf,
        f"--temperature is {temperature}; it must be 0 or a positive number",
    )
    with seeded(seed):
        return model.sample(count, temperature=temperature).mean


@torch.no_grad()
def decode_point(model: VAE, point: str) -> Tensor:
    """Mean pixels (1, C, H, W) of one latent written as numbers with commas. Raises UserError."""
    try:
        numbers = [float(number) for number in point.split(",")]
    except ValueError:
        raise UserError(f"--latent {point!r} is no list of numbers, such as 0.3,-1.2") from None
    dim = model.blueprint.settings.latent_dim
    require(
        len(numbers) == dim and all(map(math.isfinite, numbers)),
        f"--latent {point!r} has {len(numbers)} numbers; the model's latent needs {dim}, all finite",
    )
    return model.decode(z=torch.tensor([numbers])).mean


@torch.no_grad()
def reconstruct(model: VAE, images: Tensor) -> Tensor:
    """Mean pixels (N, C, H, W) given each image's latents at their posterior means; images in [0, 1]."""
    return model.reconstruct(images).mean


def inputs(
    run: Run,
    files: Sequence[Path],
    split: str,
    count: int,
    data_dir: str | Path | None,
    notice: Callable[[str], None],
) -> Tensor:
    """What to reconstruct: image files as the model saw its data, or the first images of a split."""
    require_count("count", count, largest=2**20)
    if files:
        images = read_images(files, run.blueprint.shape, notice)
        return freeze(Split(images), run.data.binarisation).images
    return evaluation_images(run, split, None, data_dir)[:count].images
