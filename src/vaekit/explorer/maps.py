"""Two- and three-dimensional maps of a run's latent space: the test images as points, and the prior."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import safetensors
import torch
from contourpy import contour_generator
from safetensors.torch import save
from torch import Tensor

from ..data.splits import evenly_spaced
from ..gallery.context import PictureContext
from ..gallery.latents import MAX_EMBEDDED_POINTS
from ..inference.latent_space import neighbour_embedding, principal_axes
from ..pictures.scatters import CONTOUR_MASSES
from ..runs.weights import DAMAGE
from ..support.atomic import write_bytes
from ..support.errors import UserError, one_line, require

Method = Literal["dims", "pca", "tsne", "umap"]
CONTOUR_SIDE = 120


@dataclass(frozen=True)
class LatentMap:
    """Test images as points (N, 2) or (N, 3), and their `positions` (N,) in the picture data's codes.

    A linear map also has its axes (D, 2) and its centre (D,).
    """

    points: np.ndarray
    positions: np.ndarray
    axis_names: tuple[str, ...] = ()
    axes: Tensor | None = None
    centre: Tensor | None = None


class LatentMaps:
    """The maps of a run; t-SNE and UMAP are computed in the background by `executor`."""

    def __init__(self, context: PictureContext, executor: ThreadPoolExecutor) -> None:
        self.context, self.executor = context, executor
        self.principal: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        self.futures: dict[tuple[str, str], Future[np.ndarray]] = {}
        self.lock = threading.Lock()

    def axes(self, latent: str) -> tuple[Tensor, Tensor, Tensor]:
        """Centre, axes and explained variance of the principal components (see principal_axes)."""
        if latent not in self.principal:
            self.principal[latent] = principal_axes(self.context.picture_data.codes[latent])
        return self.principal[latent]

    def dim(self, latent: str) -> int:
        """The dimension of a latent."""
        return self.context.picture_data.codes[latent].shape[1]

    def map_data(self, latent: str, method: Method, dims: Sequence[int]) -> dict[str, Any]:
        """A map of the test images as JSON values; a linear map in 2-D also has the prior's contours and components.

        For t-SNE and UMAP, `state` is "absent" until `start_embedding`, then "computing" until the map is ready. Raises
        UserError.
        """
        dim = self.dim(latent)
        require(
            method != "dims" or (1 <= len(set(dims)) == len(dims) <= 3 and max(dims) < dim),
            f"{latent} has {dim} dimensions; choose one to three different ones",
        )
        if method in ("tsne", "umap"):
            future = self.futures.get((latent, method))
            if future is None or not future.done():
                return {"state": "absent" if future is None else "computing"}
        latent_map = self.compute_map(latent, method, tuple(dims))
        picture_data = self.context.picture_data
        labels, clusters = picture_data.code_labels, picture_data.clusters
        positions = torch.from_numpy(latent_map.positions)
        data: dict[str, Any] = {
            "state": "ready",
            "axis_names": latent_map.axis_names,
            "points": latent_map.points.astype(np.float64).round(4).tolist(),
            "positions": latent_map.positions.tolist(),
            "labels": None if labels is None else labels[positions].tolist(),
            "clusters": None if clusters is None else clusters[positions].argmax(1).tolist(),
            "contours": [],
            "components": [],
        }
        axes, centre, points = latent_map.axes, latent_map.centre, latent_map.points
        if axes is not None and centre is not None and points.shape[1] == 2:
            data |= self.prior_overlay(latent, axes, centre, points)
        return data

    def compute_map(self, latent: str, method: Method, dims: tuple[int, ...]) -> LatentMap:
        """The map of a method; for t-SNE and UMAP, that of a finished embedding."""
        codes = self.context.picture_data.codes[latent]
        positions = np.arange(len(codes))
        if method == "pca":
            centre, axes, shares = self.axes(latent)
            names = tuple(f"PC {i + 1}, {share:.0%} of variance" for i, share in enumerate(shares))
            return LatentMap(((codes - centre) @ axes).numpy(), positions, names, axes, centre)
        if method == "dims":
            axes, centre = torch.eye(codes.shape[1])[:, list(dims)], torch.zeros(codes.shape[1])
            points = codes[:, list(dims)].numpy()
            if len(dims) == 1:  # random jitter along the other axis
                jitter = np.random.default_rng(0).uniform(-1, 1, (len(points), 1))
                points = np.concatenate([points, 2 * points.std() * jitter], axis=1)
                return LatentMap(points, positions, (f"{latent}[{dims[0]}]", "(random jitter)"))
            return LatentMap(points, positions, tuple(f"{latent}[{d}]" for d in dims), axes, centre)
        positions = evenly_spaced(len(codes), MAX_EMBEDDED_POINTS).numpy()
        return LatentMap(self.futures[latent, method].result(), positions, (method, ""))

    def start_embedding(self, latent: str, method: Method) -> Future[np.ndarray]:
        """The points (N, 2) of t-SNE or UMAP, computed once in the background."""
        key = latent, method
        with self.lock:
            if key not in self.futures:
                self.futures[key] = self.executor.submit(self.compute_embedding, latent, method)
            return self.futures[key]

    def compute_embedding(self, latent: str, method: Method) -> np.ndarray:
        """Read the embedding from the run directory, or compute and save it; stale if the weights have changed."""
        path = self.context.run.file(f"map-{latent}-{method}.safetensors")
        weights = self.context.sha256
        codes = self.context.picture_data.codes[latent]
        count = min(len(codes), MAX_EMBEDDED_POINTS)
        with contextlib.suppress(*DAMAGE), safetensors.safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("weights") == weights:
                points = file.get_tensor("points")
                if points.shape == (count, 2) and bool(points.isfinite().all()):
                    return points.numpy()
        try:
            points = neighbour_embedding(
                codes[evenly_spaced(len(codes), MAX_EMBEDDED_POINTS)], method
            )
        except ValueError as error:
            raise UserError(f"{method} failed: {one_line(error)}") from None
        # In a read-only run directory it is not saved, and computed again next time.
        with contextlib.suppress(OSError):
            write_bytes(path, save({"points": torch.from_numpy(points)}, {"weights": weights}))
        return points

    def prior_overlay(
        self, latent: str, axes: Tensor, centre: Tensor, points: np.ndarray
    ) -> dict[str, Any]:
        """Contours that enclose shares of the prior's mass, and its component centres, on a linear map."""
        prior = self.context.prior(latent)
        density = prior.project(axes, centre)
        samples = (prior.sample(5000) - centre) @ axes
        low, high = np.quantile(np.concatenate([points, samples.numpy()]), [0.0005, 0.9995], axis=0)
        margin = 0.06 * (high - low)
        x, y = (
            np.linspace(low[i] - margin[i], high[i] + margin[i], CONTOUR_SIDE) for i in range(2)
        )
        grid = torch.from_numpy(np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)).float()
        heights = density.log_prob(grid).exp().numpy().reshape(CONTOUR_SIDE, CONTOUR_SIDE)
        levels = (
            density.log_prob(samples).exp().quantile(torch.tensor([1 - m for m in CONTOUR_MASSES]))
        )
        generator = contour_generator(x, y, heights)
        contours = [
            {
                "mass": mass,
                "lines": [np.asarray(line).round(4).tolist() for line in generator.lines(level)],
            }
            for mass, level in zip(CONTOUR_MASSES, levels.tolist(), strict=True)
        ]
        components = [] if prior.centres is None else ((prior.centres - centre) @ axes).tolist()
        return {"contours": contours, "components": components}

    def latent_at(
        self,
        latent: str,
        method: Method,
        dims: Sequence[int],
        point: Sequence[float],
        current: Tensor,
    ) -> Tensor:
        """The latent (1, D) at a map point.

        On a linear map, the directions that the map does not show keep their `current` values (1, D); on t-SNE and
        UMAP, it is the mean of the five nearest test images' codes, weighted by inverse distance. Raises UserError.
        """
        z = current.clone()
        xy = torch.tensor(point, dtype=torch.float32)
        if method == "dims":
            self.require_dims(latent, dims)
            for d, value in zip(dims, xy.tolist(), strict=False):
                z[0, d] = value
        elif method == "pca":
            centre, axes, _ = self.axes(latent)
            offset = z[0] - centre
            z[0] = centre + offset - axes @ (axes.T @ offset) + axes @ xy[:2]
        else:
            embedded = self.finished_map(latent, method)
            distances = np.linalg.norm(embedded.points - xy[:2].numpy(), axis=1)
            nearest = np.argsort(distances)[:5]
            weights = torch.from_numpy(1 / (distances[nearest] + 1e-3)).float()
            codes = self.context.picture_data.codes[latent][embedded.positions[nearest]]
            z[0] = (weights[:, None] * codes).sum(0) / weights.sum()
        return z

    def point_of(self, latent: str, method: Method, dims: Sequence[int], z: Tensor) -> list[float]:
        """The map point of a latent (1, D); on t-SNE and UMAP, that of the nearest test image. Raises UserError."""
        self.require_dims(latent, dims)
        if method == "dims":
            return json_numbers(z[0, list(dims)]) + [0.0] * (len(dims) == 1)
        if method == "pca":
            centre, axes, _ = self.axes(latent)
            return json_numbers((z[0] - centre) @ axes)
        embedded = self.finished_map(latent, method)
        codes = self.context.picture_data.codes[latent][embedded.positions]
        nearest = int((codes - z).square().sum(1).argmin())
        return embedded.points[nearest].tolist()

    def require_dims(self, latent: str, dims: Sequence[int]) -> None:
        """Raises UserError for dimensions that the latent does not have."""
        dim = self.dim(latent)
        require(all(d < dim for d in dims), f"{latent} has {dim} dimensions")

    def finished_map(self, latent: str, method: Method) -> LatentMap:
        """The map by t-SNE or UMAP. Raises UserError if it is not ready."""
        future = self.futures.get((latent, method))
        require(
            future is not None and future.done(),
            "the map is not computed yet; try again when it is ready",
        )
        return self.compute_map(latent, method, ())


def json_numbers(values: Tensor) -> list[Any]:
    """Values rounded for JSON; None where not finite."""
    return [round(v, 4) if math.isfinite(v) else None for v in values.tolist()]
