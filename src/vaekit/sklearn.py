"""vaekit's models as scikit-learn estimators, for pipelines, grid searches, clustering and anomaly scores.

from vaekit.sklearn import VAEClusterer, VAETransformer
codes = VAETransformer(latent_dim=2).fit_transform(X)
"""

from __future__ import annotations

import inspect
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    ClusterMixin,
    DensityMixin,
    TransformerMixin,
)
from sklearn.utils import check_array, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn
from torch.distributions import Distribution, Normal, TransformedDistribution

from .data import Dataset, Split, pixels
from .data.dataset import Batch, ResolvedBinarisation
from .inference.generation import latent_sizes
from .likelihood.clusters import batch_responsibilities
from .likelihood.importance import prepare_for_inference
from .model.build import NO_DENSITY, build
from .model.distributions import independent
from .model.graph import VAE, Values
from .runs.load import load
from .settings.catalog import model_entry
from .settings.model import ClusterConfig, LadderConfig
from .support.devices import seeded
from .support.errors import require, require_count
from .training.job import train

MAX_ROWS = 4096  # images x samples at once
NOISE_SEED = 5


class VAETransformer(
    ClassNamePrefixFeaturesOutMixin, TransformerMixin, DensityMixin, BaseEstimator
):
    """A variational autoencoder of the rows of X (N, pixels).

    `transform` gives posterior means, `inverse_transform` mean pixels, `score_samples` log p(x) in nats, `sample`
    new rows. X may have any range: it is scaled to [0, 1] by its minimum and maximum, and results are scaled back.

    model : model name of `vaekit train`, not conditional on labels. latent_dim, hidden_dim : see `ModelConfig`.
    image_shape : (C, H, W) with C H W pixels; (1, 1, pixels) by default, which is enough for dense networks.
    batch_size : rows per step; "auto" is a 20th of the rows, at least 10 and at most 100.
    settings, training : further fields of `ModelConfig` and of `TrainConfig`, as dicts; `steps` replaces `epochs`. With
        {"likelihood": "bernoulli"} pixels are binarised at the middle of the range.
    validation_fraction : share of the rows, chosen at random, that selects the best epoch.
    samples : importance samples per row for log p(x) (Burda et al. 2016, eq. 8).
    random_state : seed of the weights, the split and all noise.

    Fitted: `model_` (a `vaekit.VAE`, in float64), `objective_curve_` (per epoch, nats; of augmented rows where
    `training` has `augment`), `n_iter_`, `n_features_in_`, `data_min_`, `data_max_`. All methods raise ValueError for
    bad input.
    """

    def __init__(
        self,
        model: str = "vae",
        *,
        latent_dim: int = 2,
        hidden_dim: int = 500,
        image_shape: tuple[int, int, int] | None = None,
        settings: Mapping[str, Any] | None = None,
        epochs: int = 100,
        batch_size: int | Literal["auto"] = "auto",
        learning_rate: float = 1e-3,
        training: Mapping[str, Any] | None = None,
        validation_fraction: float = 0.1,
        samples: int = 100,
        random_state: Any = None,
    ) -> None:
        self.model = model
        self.latent_dim = latent_dim
        self.hidden_dim = hidden_dim
        self.image_shape = image_shape
        self.settings = settings
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.training = training
        self.validation_fraction = validation_fraction
        self.samples = samples
        self.random_state = random_state

    def model_settings(self) -> dict[str, Any]:
        """Settings of the model for `vaekit.build`, without its name."""
        own = {"latent_dim": self.latent_dim, "hidden_dim": self.hidden_dim}
        if isinstance(model_entry(self.model).settings, LadderConfig):
            # It has neither, so that only values other than the defaults here are passed on, and refused.
            defaults = inspect.signature(VAETransformer).parameters
            own = {name: value for name, value in own.items() if value != defaults[name].default}
        return {**own, **(self.settings or {})}

    def fit(self, X: Any, y: Any = None) -> Self:
        """Train on the rows of X (N, pixels), N at least 2; y is ignored."""
        X = validate_data(self, X, dtype=[np.float64, np.float32], ensure_min_samples=2)
        require_count("samples", self.samples)
        require(
            0 < self.validation_fraction < 1,
            f"validation_fraction is {self.validation_fraction}; it must lie between 0 and 1",
        )
        shape = self.image_shape or (1, 1, X.shape[1])
        require(
            len(shape) == 3 and math.prod(shape) == X.shape[1],
            f"image_shape is {shape}, which is not (C, H, W) of {X.shape[1]} pixels",
        )
        self.data_min_, self.data_max_ = float(X.min()), float(X.max())
        rng = check_random_state(self.random_state)
        seed, order = int(rng.randint(2**31 - 1)), rng.permutation(len(X))
        held_out = min(len(X) - 1, max(1, round(self.validation_fraction * len(X))))
        images = self._scaled(X).float().clamp(0, 1).unflatten(1, shape)
        train_split, validation = Split(images[order[held_out:]]), Split(images[order[:held_out]])
        data = Dataset("X", train_split, validation, validation)
        model = build(self.model, data, seed=seed, **self.model_settings())
        settings = model.blueprint.settings
        require(
            settings.condition == "none",
            f"a {self.model} is conditional, which an estimator does not support; choose another model",
        )
        bernoulli = settings.likelihood == "bernoulli"
        self._binarisation: ResolvedBinarisation = "threshold" if bernoulli else "none"
        auto_batch_size = min(100, max(10, len(X) // 20))  # enough steps even with few rows
        own_length = {} if "steps" in (self.training or {}) else {"epochs": self.epochs}
        training: dict[str, Any] = {
            **own_length,
            "batch_size": auto_batch_size if self.batch_size == "auto" else self.batch_size,
            "learning_rate": self.learning_rate,
            **(self.training or {}),
        }
        with tempfile.TemporaryDirectory() as folder, seeded(seed):
            run = train(
                model,
                data,
                out=Path(folder) / "run",
                binarisation=self._binarisation,
                progress=False,
                seed=seed,
                **training,
            )
            # In float64 the results of a row do not depend on the rest of its batch, but for the last digit.
            self.model_ = load(run).double()
            epochs = run.metrics
        self.objective_curve_ = np.array([epoch["train_objective"] for epoch in epochs])
        self.n_iter_ = len(epochs)
        self._n_features_out = sum(latent_sizes(model.blueprint).values())
        return self

    @torch.no_grad()
    def transform(self, X: Any) -> np.ndarray:
        """Posterior means (N, latent_dim) of the rows; those of several latents concatenated."""
        parts = []
        for images in self._images(X, MAX_ROWS):
            posteriors = self.model_.posteriors(self.model_.given(images, None))
            parts.append(torch.cat([posteriors[name].mean for name in self._latents()], dim=1))
        return torch.cat(parts).numpy()

    @torch.no_grad()
    def inverse_transform(self, Z: Any) -> np.ndarray:
        """Mean pixels (N, pixels) of latents (N, latent_dim), in the range of X."""
        check_is_fitted(self)
        sizes = self._latents()
        Z = check_array(Z, dtype=np.float64, input_name="Z")
        require(
            Z.shape[1] == sum(sizes.values()),
            f"Z has {Z.shape[1]} columns, but the latents have {sum(sizes.values())} dimensions",
        )
        rows = []
        for part in torch.tensor(Z).split(MAX_ROWS):
            latents = dict(zip(sizes, part.split(list(sizes.values()), dim=1), strict=True))
            rows.append(self.model_.decode(**latents).mean)
        return self._unscaled(torch.cat(rows))

    def score_samples(self, X: Any) -> np.ndarray:
        """log p(x) of each row (N,), nats, as a density in the units of X; low for unusual rows.

        By importance sampling with the same noise for every row, so that a row's value does not depend on the others.
        """
        check_is_fitted(self)
        require(self.model_.blueprint.settings.posterior != "deterministic", NO_DENSITY)

        def log_likelihoods(model: VAE, images: Tensor) -> Tensor:
            weights = model(images, samples=(self.samples,)).log_weight
            return weights.logsumexp(0) - math.log(self.samples)

        units = 0.0 if self._binarisation == "threshold" else math.log(self._range())
        return self._map_with_shared_noise(X, log_likelihoods) - self.n_features_in_ * units

    def score(self, X: Any, y: Any = None) -> float:
        """The mean of `score_samples`."""
        return float(self.score_samples(X).mean())

    @torch.no_grad()
    def sample(
        self, n_samples: int = 1, random_state: Any = None, noise: bool = True
    ) -> np.ndarray:
        """Samples (n_samples, pixels) from the model; with `noise=False` their mean pixels."""
        check_is_fitted(self)
        require_count("n_samples", n_samples)
        with seeded(int(check_random_state(random_state).randint(2**31 - 1))):
            likelihood = self.model_.sample(n_samples)
            return self._unscaled(likelihood.sample() if noise else likelihood.mean)

    def _latents(self) -> dict[str, int]:
        return latent_sizes(self.model_.blueprint)

    def _range(self) -> float:
        return self.data_max_ - self.data_min_ or 1.0

    def _scaled(self, X: np.ndarray) -> Tensor:
        return torch.from_numpy((X.astype(np.float64) - self.data_min_) / self._range())

    def _unscaled(self, images: Tensor) -> np.ndarray:
        return images.flatten(1).numpy() * self._range() + self.data_min_

    def _images(self, X: Any, rows: int) -> Iterator[Tensor]:
        """The rows of X, preprocessed as in training, in batches of at most `rows`."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        shape = self.model_.blueprint.shape
        for part in self._scaled(X).unflatten(1, shape).split(rows):
            yield pixels(part, self._binarisation)

    @torch.no_grad()
    def _map_with_shared_noise(
        self, X: Any, measure: Callable[[VAE, Tensor], Tensor]
    ) -> np.ndarray:
        """`measure` of the model and the images of X, in batches, with the same noise for every image."""
        model = prepare_for_inference(self.model_, "float32")
        posteriors = {name: SharedNoisePosterior(q) for name, q in model.posterior.items()}
        model = VAE(dict(model.prior.items()), posteriors, model.decoder, model.blueprint)
        parts = []
        for images in self._images(X, max(1, MAX_ROWS // self.samples)):
            with seeded(NOISE_SEED):
                parts.append(measure(model, images))
        return torch.cat(parts).numpy()


class VAEClusterer(ClusterMixin, VAETransformer):
    """A VAETransformer with clusters: the components of the Gaussian mixture in the latent of a gmvae or convgmvae.

    n_clusters : maximum number of clusters; some may stay empty. Other fields of `ClusterConfig`, such as w_dim, go
    into `settings`; among them start_epochs, of training as a plain VAE, whose codes initialise the clusters: a third
    of `epochs` by default.
    Fitted, in addition: `labels_` (N,), the cluster of each row, 0 the largest; `order_`, their indices in `model_`.
    """

    def __init__(
        self,
        n_clusters: int = 10,
        *,
        model: str = "gmvae",
        latent_dim: int = 10,
        hidden_dim: int = 500,
        image_shape: tuple[int, int, int] | None = None,
        settings: Mapping[str, Any] | None = None,
        epochs: int = 100,
        batch_size: int | Literal["auto"] = "auto",
        learning_rate: float = 1e-3,
        training: Mapping[str, Any] | None = None,
        validation_fraction: float = 0.1,
        samples: int = 100,
        random_state: Any = None,
    ) -> None:
        super().__init__(
            model,
            latent_dim=latent_dim,
            hidden_dim=hidden_dim,
            image_shape=image_shape,
            settings=settings,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            training=training,
            validation_fraction=validation_fraction,
            samples=samples,
            random_state=random_state,
        )
        self.n_clusters = n_clusters

    def model_settings(self) -> dict[str, Any]:
        require(
            isinstance(model_entry(self.model).settings, ClusterConfig),
            f"a {self.model} has no clusters; choose gmvae or convgmvae",
        )
        own = {"clusters": self.n_clusters, "start_epochs": self.epochs // 3}
        return {**own, **super().model_settings()}

    def fit(self, X: Any, y: Any = None) -> Self:
        """Train on the rows of X (N, pixels), and assign each to a cluster; y is ignored."""
        super().fit(X)
        probabilities = self._responsibilities(X)
        sizes = np.bincount(probabilities.argmax(1), minlength=self.n_clusters)
        self.order_ = np.argsort(-sizes, kind="stable")
        self.labels_ = probabilities[:, self.order_].argmax(1)
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """p(cluster | x) of each row, (N, n_clusters): the mean over samples of the exact p(cluster | latents)."""
        check_is_fitted(self)
        return self._responsibilities(X)[:, self.order_]

    def _responsibilities(self, X: Any) -> np.ndarray:
        """p(cluster | x), (N, n_clusters), with clusters in the order of `model_`."""
        return self._map_with_shared_noise(
            X, lambda model, images: batch_responsibilities(model, Batch(images), self.samples)
        )

    def predict(self, X: Any) -> np.ndarray:
        """The most probable cluster of each row, (N,)."""
        return self.predict_proba(X).argmax(1)


class SharedNoisePosterior(nn.Module):
    """A posterior whose samples have the same noise for every image of a batch."""

    def __init__(self, posterior: nn.Module) -> None:
        super().__init__()
        self.posterior = posterior

    def forward(self, values: Values) -> Distribution:
        q = self.posterior(values)
        flow = isinstance(q, TransformedDistribution)
        gaussians = (q.base_dist if flow else q).base_dist
        shared = SharedNoiseNormal(gaussians.loc, gaussians.scale, validate_args=False)
        base = independent(shared, 1)
        return type(q)(base, q.transforms) if flow else base


class SharedNoiseNormal(Normal):
    """Normals whose samples (K, B, D) have the same noise along B."""

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        samples, _, dim = self._extended_shape(sample_shape)
        noise = torch.randn(samples, 1, dim, dtype=self.loc.dtype)
        return self.loc + noise * self.scale
