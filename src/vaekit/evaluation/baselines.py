"""Baselines of an evaluation: the mean image, PCA of the size of the latent, independent pixels, PNG and JPEG files."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data import Dataset, EvalSplit
from ..data.dataset import ResolvedBinarisation
from ..inference.generation import latent_sizes
from ..model.conditions import Quadrants
from ..model.graph import VAE

# Numbers, images x pixels, of the training images of a PCA, and of the images that codecs compress: seconds.
MAX_NUMBERS, CODEC_NUMBERS = 2**25, 2**23
MAX_COMPONENTS = 256  # of a PCA: more take minutes, and more images than there are
BATCH_NUMBERS = 2**24
JPEG_QUALITY = 50
JPEG_SIDE = 64  # pixels: in a smaller JPEG the tables outweigh the image

TrainingImages = Callable[[int], EvalSplit]  # so many random ones, as the model sees them


def of_reconstructions(
    model: VAE, images: EvalSplit, training_images: TrainingImages, photos: bool, seed: int
) -> dict[str, Any]:
    """Baselines of the reconstructions of images, with JPEG files of `photos` (see `are_photos`); {} where the model
    completes images, of which it knows a part. `baseline_images`: as many of the first of them as are affordable."""
    shape = model.blueprint.shape
    pixels = math.prod(shape)
    train = training_images(max(10, MAX_NUMBERS // pixels))
    if isinstance(model.condition, Quadrants) or len(train) < 2:
        return {}
    some = first(images, affordable(len(images), pixels, 8 * MAX_NUMBERS))
    size = sum(latent_sizes(model.blueprint).values())
    found = measure_linear(train, some, size, seed) | {"baseline_images": len(some)}
    if photos and min(shape[1:]) >= JPEG_SIDE:
        found |= measure_jpeg(first(images, affordable(len(images), pixels, CODEC_NUMBERS)))
    return found


def of_likelihood(
    model: VAE, images: EvalSplit, training_images: TrainingImages, photos: bool
) -> dict[str, Any]:
    """Baselines of the NLL in bits of images: independent pixels for a Bernoulli likelihood, else PNG files of
    `photos`; {} where the model completes images."""
    pixels = math.prod(model.blueprint.shape)
    if isinstance(model.condition, Quadrants):
        return {}
    if model.blueprint.settings.likelihood == "bernoulli":
        train = training_images(max(10, MAX_NUMBERS // pixels))
        return measure_independent_pixels(train, images)
    if photos:
        return measure_png(first(images, affordable(len(images), pixels, CODEC_NUMBERS)))
    return {}


def affordable(count: int, pixels: int, numbers: int) -> int:
    """How many of so many images have `numbers` pixels together; at least 10."""
    return min(count, max(10, numbers // pixels))


def first(images: EvalSplit, count: int) -> EvalSplit:
    """The first `count` images, whose order is random."""
    return images.take(torch.arange(count))


def are_photos(data: Dataset, binarisation: ResolvedBinarisation) -> bool:
    """Whether images have one or three channels of 8 bits, as PNG and JPEG files do, and are not binarised."""
    eight_bits = data.train.images.dtype == torch.uint8 and not data.black_and_white
    return eight_bits and data.shape[0] in (1, 3) and binarisation == "none"


def measure_linear(train: EvalSplit, images: EvalSplit, size: int, seed: int) -> dict[str, Any]:
    """Errors of two reconstructions of images as squared_error and psnr of a model: by the mean training image, and by
    the first `size` principal components of the training images (at most MAX_COMPONENTS, and fewer than images),
    clipped to [0, 1]; `pca_images` are the images fitted to."""
    from sklearn.decomposition import PCA

    fitted = train[:].images.flatten(1).cpu().numpy()
    count, pixels = fitted.shape
    components = min(size, MAX_COMPONENTS, count - 1, pixels)
    pca = PCA(components, random_state=seed % 2**32).fit(fitted)
    mean, axes = (torch.from_numpy(part).float() for part in (pca.mean_, pca.components_))
    step, errors = max(1, BATCH_NUMBERS // pixels), np.zeros(2)
    for start in range(0, len(images), step):
        x = images[start : start + step].images.flatten(1).cpu()
        projected = ((x - mean) @ axes.T @ axes + mean).clamp(0, 1)
        errors += [
            float((each - x).square().sum(dtype=torch.float64)) for each in (mean, projected)
        ]
    of_mean, of_pca = (errors / len(images)).tolist()
    return {
        "mean_image_squared_error": of_mean,
        "mean_image_psnr": psnr(of_mean, pixels),
        "pca_squared_error": of_pca,
        "pca_psnr": psnr(of_pca, pixels),
        "pca_components": components,
        "pca_images": count,
    }


def psnr(squared_error: float, pixels: int) -> float | None:
    """Peak signal-to-noise ratio, dB, of a squared error summed over so many pixels; None where there is no error."""
    return -10 * math.log10(squared_error / pixels) if squared_error > 0 else None


def measure_independent_pixels(train: EvalSplit, images: EvalSplit) -> dict[str, Any]:
    """The NLL, nats, of binary images as independent pixels with the frequencies of the training images, to each of
    which one image of each value is added (Laplace's rule)."""
    x = train[:].images
    p = (x.sum(0) + 1) / (len(x) + 2)
    step, total = max(1, BATCH_NUMBERS // p.numel()), 0.0
    for start in range(0, len(images), step):
        y = images[start : start + step].images
        log_p = y * p.log() + (1 - y) * (1 - p).log()
        total -= float(log_p.sum(dtype=torch.float64))
    return {"independent_pixels_nll": total / len(images)}


def measure_png(images: EvalSplit) -> dict[str, Any]:
    """Bits per dimension of 8-bit images as PNG files, their headers included."""
    files = [compress(Image.fromarray(x), "PNG", optimize=True) for x in eight_bits(images)]
    bits = 8 * sum(map(len, files)) / images[:].images.numel()
    return {"png_bits_per_dim": bits, "png_images": len(files)}


def measure_jpeg(images: EvalSplit) -> dict[str, Any]:
    """Bits per dimension, and PSNR, of 8-bit images as JPEG files of JPEG_QUALITY."""
    originals = eight_bits(images)
    options = {"quality": JPEG_QUALITY, "optimize": True}
    files = [compress(Image.fromarray(x), "JPEG", **options) for x in originals]
    decoded = np.stack([np.asarray(Image.open(io.BytesIO(file))) for file in files])
    error = np.square((decoded.astype(np.float64) - originals) / 255).sum() / len(files)
    return {
        "jpeg_bits_per_dim": 8 * sum(map(len, files)) / originals.size,
        "jpeg_psnr": psnr(float(error), originals[0].size),
        "jpeg_images": len(files),
    }


def eight_bits(images: EvalSplit) -> np.ndarray:
    """Images (N, H, W, 3) or (N, H, W) of 8 bits."""
    x: Tensor = (images[:].images * 255).round().to(torch.uint8).cpu()
    return x.movedim(1, 3).squeeze(3).numpy()


def compress(picture: Image.Image, kind: str, **options: Any) -> bytes:
    """A picture as a file of a format of Pillow, with its options."""
    content = io.BytesIO()
    picture.save(content, kind, **options)
    return content.getvalue()


def class_shares(train: Tensor, labels: Tensor) -> dict[str, Any]:
    """`class_ratio`, images of the largest class for one of the smallest, of training labels (N,); `majority_share`,
    the accuracy of naming always the largest class, of labels (M,)."""
    sizes = train.bincount()
    sizes = sizes[sizes > 0]
    return {
        "class_ratio": float(sizes.max() / sizes.min()),
        "majority_share": float(labels.bincount().max() / len(labels)),
    }
