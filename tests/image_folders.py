"""Helpers of the data tests: write folders of image files, load and compare them."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vaekit import load_data

RNG = np.random.default_rng(1)


def save_image(path: Path, shape=(6, 5), level: int | None = None) -> np.ndarray:
    """Write an image file of noise, or of one grey level; returns its pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = RNG.integers(0, 256, shape, dtype=np.uint8)
    if level is not None:
        array[:] = level
    Image.fromarray(array).save(path)
    return array


def save_images(folder: Path, names, **options) -> dict[str, np.ndarray]:
    return {name: save_image(folder / name, **options) for name in names}


def all_images(data) -> np.ndarray:
    """The images of all splits, (N, C, H, W)."""
    return torch.cat([split.images[:] for split in data.splits.values()]).numpy()


def load(path, **options):
    return load_data(path, progress=False, **options)
