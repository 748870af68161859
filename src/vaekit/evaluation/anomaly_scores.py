"""Scores of how odd an image is, by name in SCORES: functions of a ScoreContext. A higher score is odder, always."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.distributions import Distribution

from ..data import EvalSplit
from ..likelihood.elbo import ELBO_SAMPLES, image_chunks, modelled_pixels
from ..likelihood.importance import measure_nll
from ..likelihood.latent_use import batch_size, code_latents
from ..likelihood.regret import likelihood_regret
from ..model.conditions import Quadrants
from ..model.graph import VAE
from ..model.mixtures import LogisticMixture
from ..model.pixels import MaskedPixels
from ..settings.analysis import AnomalyConfig, AnomalyScore
from ..support.console import ProgressBar
from ..support.devices import seeded
from .baselines import compress
from .metrics import NO_DENSITY
from .probes import few_dimensions, posterior_means

OF_LIKELIHOODS = ("nll", "complexity-corrected", "likelihood-regret", "typicality")
MAX_PNG_LEVELS = 256  # of 8 bits; of more, 16


@dataclass
class ScoreContext:
    """A model and images to score. `levels`: how many values a pixel has, None where they are continuous. `training`:
    images that the model was trained on, for the scores that compare with these."""

    model: VAE
    images: EvalSplit
    levels: int | None
    config: AnomalyConfig
    bar: ProgressBar
    training: ScoreContext | None = None

    @cached_property
    def nll(self) -> np.ndarray:
        """-log p(x) by importance sampling, nats, (N,), float64."""
        with seeded(self.config.seed, self.images.device):
            estimate = measure_nll(self.model, self.images, self.config.samples, self.bar)
        return -estimate.log_mean.double().numpy()

    @cached_property
    def codes(self) -> np.ndarray:
        """Posterior means (N, D) of the latents that stand for the code of an image."""
        return posterior_means(self.model, self.images)

    @cached_property
    def code_samples(self) -> np.ndarray:
        """Samples of the aggregate posterior, one of each image: (N, D)."""
        names, size, parts = code_latents(self.model), batch_size(self.model), []
        with torch.no_grad(), seeded(self.config.seed, self.images.device):
            for start in range(0, len(self.images), size):
                batch = self.images[start : start + size]
                values = self.model.given(batch.images, batch.labels)
                latents = self.model.infer(values, (len(batch),))
                parts.append(torch.cat([latents[name].z for name in names], -1).cpu())
        return torch.cat(parts).double().numpy()

    @property
    def reference(self) -> ScoreContext:
        """The training images."""
        assert self.training is not None
        return self.training


def nll(context: ScoreContext) -> np.ndarray:
    """-log p(x), nats: the importance-weighted estimate of Burda et al. 2016, eq. 8."""
    return context.nll


def complexity_corrected(context: ScoreContext) -> np.ndarray:
    """S(x) = -log2 p(x) / D - L(x), bits per dimension, D pixels times channels. Serra et al. 2020 ("Input complexity
    and out-of-distribution detection with likelihood-based generative models").

    L(x) is the length of the image under a lossless compressor, over D. Read as a test, it is a likelihood ratio of the
    model to the compressor, which knows all images alike.
    """
    assert context.levels is not None
    pixels = math.prod(context.model.blueprint.shape)
    lengths = compressed_bits(context.images, context.levels, context.bar)
    return (context.nll / math.log(2) - lengths) / pixels


def regret(context: ScoreContext) -> np.ndarray:
    """max_q ELBO(x; q) - ELBO(x; the encoder's q), nats. Xiao et al. 2020 ("Likelihood Regret")."""
    config, images = context.config, context.images
    return likelihood_regret(context.model, images, context.bar, config.steps, config.seed).numpy()


def latent(context: ScoreContext) -> np.ndarray:
    """sqrt((m - mean)^T C^-1 (m - mean)), the Mahalanobis distance of the posterior mean m from the aggregate posterior
    1/N sum_n q(z | x_n) of training images, with its mean and covariance C (Ledoit and Wolf 2004, from one sample per
    image); of many dimensions, that of their principal components."""
    samples = context.reference.code_samples
    codes, (samples, _) = few_dimensions(context.codes, (samples, samples[:, 0]))
    return mahalanobis(codes, samples)


def mahalanobis(codes: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """The distance of codes (N, D) from the distribution of which there are samples (M, D), in its standard deviations,
    (N,)."""
    from sklearn.covariance import LedoitWolf

    return np.sqrt(LedoitWolf().fit(samples).mahalanobis(codes))


def reconstruction(context: ScoreContext) -> np.ndarray:
    """The mean over pixels and channels of (x - E[x | z = posterior mean])^2, of hidden pixels alone where a model
    completes images."""
    model = context.model
    share = modelled_pixels(model) / math.prod(model.blueprint.shape)
    maps = pixel_maps(context, "reconstruction")
    return maps.double().mean((-2, -1)).numpy() / share


def typicality(context: ScoreContext) -> np.ndarray:
    """|-log p(x) - mean of -log p over training images|, nats: the distance from the typical set, of one image.
    Nalisnick et al. 2019 ("Detecting out-of-distribution inputs to deep generative models using typicality"). What is
    unusually likely is odd too."""
    return np.abs(context.nll - context.reference.nll.mean())


@dataclass(frozen=True)
class Score:
    """A score: its function, its unit, and what its maps show of each pixel (see `pixel_maps`)."""

    function: Callable[[ScoreContext], np.ndarray]
    unit: str
    map: str


SCORES: dict[AnomalyScore, Score] = {
    "nll": Score(nll, "nats", "nll"),
    "complexity-corrected": Score(complexity_corrected, "bits/dim", "nll"),
    "likelihood-regret": Score(regret, "nats", "nll"),
    "latent": Score(latent, "standard deviations", "reconstruction"),
    "reconstruction": Score(reconstruction, "squared error per pixel", "reconstruction"),
    "typicality": Score(typicality, "nats", "nll"),
}


def why_not(name: AnomalyScore, model: VAE, levels: int | None) -> str:
    """Why a model of images with so many levels has no such score; "" where it has."""
    settings = model.blueprint.settings
    if name in OF_LIKELIHOODS and settings.posterior == "deterministic":
        return NO_DENSITY
    if name == "likelihood-regret" and settings.posterior != "gaussian":
        return f"it optimises Gaussian posteriors, and the posterior is a {settings.posterior}"
    if name == "complexity-corrected":
        if levels is None:
            return "it compresses images of whole numbers, and these are floats"
        if isinstance(model.condition, Quadrants):
            return "the likelihood is of the hidden pixels alone"
        if settings.likelihood == "bernoulli" and levels > 2:
            return "a Bernoulli likelihood of grey pixels is no probability of the image"
    return ""


def default_score(model: VAE, levels: int | None, only_good: bool) -> tuple[AnomalyScore, str]:
    """The score for a model of images with so many levels, and the reason. `only_good`: in the layout of MVTec-AD. It
    is a rule from what is published about these scores, and looks at no score of any image."""
    if only_good:
        return "reconstruction", "in the layout of MVTec-AD what is odd is a small part of an image"
    if not why_not("complexity-corrected", model, levels) and levels != 2:
        return (
            "complexity-corrected",
            "of images with many levels plain likelihoods rank simple images as usual",
        )
    if not why_not("nll", model, levels) and levels == 2:
        return "nll", "pixels have two levels, of which likelihoods are probabilities"
    if not why_not("likelihood-regret", model, levels):
        return "likelihood-regret", "the likelihood is a density, which is high for simple images"
    if not why_not("typicality", model, levels):
        return "typicality", "the likelihood is a density, which is high for simple images"
    return "reconstruction", NO_DENSITY


def compressed_bits(images: EvalSplit, levels: int, bar: ProgressBar) -> np.ndarray:
    """The length of each image's file, bits, (N,), float64: the shortest of Pillow's lossless formats, PNG and, of 8
    bits, WebP. Channels that are no colours lie below each other."""
    lengths = []
    for start in bar.track(range(0, len(images), 100), "compression"):
        for x in images[start : start + 100].images.cpu():
            lengths.append(8 * min(map(len, encodings(x, levels))))
    return np.array(lengths, np.float64)


def encodings(x: Tensor, levels: int) -> list[bytes]:
    """The files of an image (C, H, W) whose pixels k / (levels - 1) are written as the whole numbers k."""
    numbers = (x * (levels - 1)).round().numpy()
    colour = len(x) == 3 and levels <= MAX_PNG_LEVELS
    pixels = numbers.transpose(1, 2, 0) if colour else numbers.reshape(-1, x.shape[-1])
    if levels == 2:
        picture = Image.fromarray((255 * pixels).astype(np.uint8)).convert("RGB" if colour else "1")
    else:
        picture = Image.fromarray(
            pixels.astype(np.uint8 if levels <= MAX_PNG_LEVELS else np.uint16)
        )
    files = [compress(picture, "PNG", optimize=True)]
    if levels <= MAX_PNG_LEVELS:
        colours = picture.convert("RGB")
        files.append(compress(colours, "WEBP", lossless=True, quality=100, method=3))
    return files


@torch.no_grad()
def pixel_maps(context: ScoreContext, kind: str) -> Tensor:
    """What is odd in each pixel, (N, H, W), float32. Of "reconstruction" the squared error, a mean over channels, given
    the posterior means; of "nll" E_q[-log p(pixel | z)], nats, summed over channels, whose sum over pixels is the
    reconstruction term of the negative ELBO (the KL is of no pixel)."""
    model, parts = context.model, []
    samples = 1 if kind == "reconstruction" else ELBO_SAMPLES
    with seeded(context.config.seed, context.images.device):
        for chunk in image_chunks(model, context.images, samples):
            batch = context.images[chunk]
            if kind == "reconstruction":
                mean = model.reconstruct(batch.images, batch.labels).mean
                maps = (mean - batch.images).square().mean(-3)
            else:
                inference = model(batch.images, batch.labels, samples=(samples,))
                maps = -log_pixels(inference.likelihood, batch.images).mean(0)
            parts.append(maps.float().cpu())
    return torch.cat(parts)


def log_pixels(likelihood: Distribution, x: Tensor) -> Tensor:
    """log p of each pixel, its channels together, (..., H, W), nats; 0 where it is given."""
    if isinstance(likelihood, MaskedPixels):
        return log_pixels(likelihood.pixels, x) * likelihood.mask.amax(-3)
    if isinstance(likelihood, LogisticMixture):
        return likelihood.log_prob_of_pixels(x).squeeze(-3)
    pixels: Any = likelihood
    return pixels.base_dist.log_prob(x).sum(-3)
