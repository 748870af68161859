"""Maps of a run's latents: test images as points, what lies where, and the prior around them."""

from __future__ import annotations

import contextlib
import math
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

from ..data.splits import spread
from ..gallery.scene import Scene
from ..inference.kept_images import digest
from ..inference.latent_space import neighbour_map, principal_axes
from ..pictures.scatters import MASSES
from ..support.atomic import write
from ..support.errors import UserError, one_line, require

Method = Literal["dims", "pca", "tsne", "umap"]
NEIGHBOURS = 2000  # points of a t-SNE or UMAP
CONTOUR_SIDE = 120


@dataclass(frozen=True)
class Map:
    """Test images as points (N, 2), or (N, 3), `places` (N,) in the exhibits' codes; linear maps have axes (D, 2) and
    their centre (D,)."""

    points: np.ndarray
    places: np.ndarray
    names: tuple[str, ...] = ()
    axes: Tensor | None = None
    centre: Tensor | None = None


class Maps:
    """The maps of a run, those that take long computed beside everything else by `work`."""

    def __init__(self, scene: Scene, work: ThreadPoolExecutor) -> None:
        self.scene, self.work = scene, work
        self.principal: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        self.found: dict[tuple[str, str], Future[np.ndarray]] = {}

    def axes(self, latent: str) -> tuple[Tensor, Tensor, Tensor]:
        """See principal_axes."""
        if latent not in self.principal:
            self.principal[latent] = principal_axes(self.scene.exhibits.codes[latent])
        return self.principal[latent]

    def show(self, latent: str, method: Method, dims: Sequence[int]) -> dict[str, Any]:
        """A map of the test images, with the prior's contours and components where it is linear; of t-SNE and UMAP
        `state` is "computing" until they are ready. Raises UserError."""
        dim = self.scene.exhibits.codes[latent].shape[1]
        require(
            method != "dims" or (1 <= len(set(dims)) == len(dims) <= 3 and max(dims) < dim),
            f"{latent} has {dim} dimensions; choose one to three of them",
        )
        if method in ("tsne", "umap") and not self.neighbours(latent, method).done():
            return {"state": "computing"}
        found = self.drawn(latent, method, tuple(dims))
        exhibits = self.scene.exhibits
        labels, clusters = exhibits.code_labels, exhibits.clusters
        places = torch.from_numpy(found.places)
        about: dict[str, Any] = {
            "state": "ready",
            "names": found.names,
            "points": found.points.astype(np.float64).round(4).tolist(),
            "places": found.places.tolist(),
            "labels": None if labels is None else labels[places].tolist(),
            "clusters": None if clusters is None else clusters[places].argmax(1).tolist(),
            "contours": [],
            "components": [],
        }
        if found.axes is not None and found.centre is not None and found.points.shape[1] == 2:
            about |= self.prior_on(latent, found.axes, found.centre, found.points)
        return about

    def drawn(self, latent: str, method: Method, dims: tuple[int, ...]) -> Map:
        codes = self.scene.exhibits.codes[latent]
        every = np.arange(len(codes))
        if method == "pca":
            centre, axes, shares = self.axes(latent)
            names = tuple(
                f"axis {i + 1}, {share:.0%} of variance" for i, share in enumerate(shares)
            )
            return Map(((codes - centre) @ axes).numpy(), every, names, axes, centre)
        if method == "dims":
            axes, centre = torch.eye(codes.shape[1])[:, list(dims)], torch.zeros(codes.shape[1])
            points = codes[:, list(dims)].numpy()
            if len(dims) == 1:  # spread at random in the other direction
                chance = np.random.default_rng(0).uniform(-1, 1, (len(points), 1))
                points = np.concatenate([points, 2 * points.std() * chance], axis=1)
                return Map(points, every, (f"{latent}[{dims[0]}]", "(spread at random)"))
            return Map(points, every, tuple(f"{latent}[{d}]" for d in dims), axes, centre)
        places = spread(len(codes), NEIGHBOURS).numpy()
        return Map(self.neighbours(latent, method).result(), places, (method, ""))

    def neighbours(self, latent: str, method: Method) -> Future[np.ndarray]:
        """The points of a t-SNE or UMAP, computed once beside everything else and kept in the run."""
        key = latent, method
        if key not in self.found:
            self.found[key] = self.work.submit(self.compute, latent, method)
        return self.found[key]

    def compute(self, latent: str, method: Method) -> np.ndarray:
        path = self.scene.run.path / f"map-{latent}-{method}.safetensors"
        weights = digest(self.scene.run.weights_path)
        try:
            with safetensors.safe_open(path, "pt") as file:
                if (file.metadata() or {}).get("weights") == weights:
                    return file.get_tensor("points").numpy()
        except (OSError, safetensors.SafetensorError):
            pass
        codes = self.scene.exhibits.codes[latent]
        try:
            points = neighbour_map(codes[spread(len(codes), NEIGHBOURS)], method)
        except ValueError as error:
            raise UserError(f"no map by {method}: {one_line(error)}") from None
        # Of a run that cannot be written to it is computed each time.
        with contextlib.suppress(OSError):
            write(path, save({"points": torch.from_numpy(points)}, {"weights": weights}))
        return points

    def prior_on(
        self, latent: str, axes: Tensor, centre: Tensor, points: np.ndarray
    ) -> dict[str, Any]:
        """Lines around shares of the prior's probability, and the centres of its components, on a linear map."""
        prior = self.scene.prior(latent)
        density = prior.project(axes, centre)
        draws = (prior.draws(5000) - centre) @ axes
        both = np.concatenate([points, draws.numpy()])
        low, high = np.quantile(both, [0.0005, 0.9995], axis=0)
        margin = 0.06 * (high - low)
        x, y = (
            np.linspace(low[i] - margin[i], high[i] + margin[i], CONTOUR_SIDE) for i in range(2)
        )
        grid = torch.from_numpy(np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)).float()
        heights = density.log_prob(grid).exp().numpy().reshape(CONTOUR_SIDE, CONTOUR_SIDE)
        levels = density.log_prob(draws).exp().quantile(torch.tensor([1 - m for m in MASSES]))
        lines = contour_generator(x, y, heights)
        contours = [
            {"mass": mass, "lines": [np.asarray(x).round(4).tolist() for x in lines.lines(level)]}
            for mass, level in zip(MASSES, levels.tolist(), strict=True)
        ]
        marks = [] if prior.centres is None else ((prior.centres - centre) @ axes).tolist()
        return {"contours": contours, "components": marks}

    def latent_at(
        self, latent: str, method: Method, dims: Sequence[int], place: Sequence[float], now: Tensor
    ) -> Tensor:
        """The latent (1, D) at a place of a map; of a linear map, what is not on it as it is `now`.

        Raises UserError.
        """
        z = now.clone()
        point = torch.tensor(place, dtype=torch.float32)
        if method == "dims":
            self.require_dims(latent, dims)
            for d, value in zip(dims, point.tolist(), strict=False):
                z[0, d] = value
        elif method == "pca":
            centre, axes, _ = self.axes(latent)
            off = z[0] - centre
            z[0] = centre + off - axes @ (axes.T @ off) + axes @ point[:2]
        else:
            found = self.finished(latent, method)
            distances = np.linalg.norm(found.points - point[:2].numpy(), axis=1)
            nearest = np.argsort(distances)[:5]
            weights = torch.from_numpy(1 / (distances[nearest] + 1e-3)).float()
            codes = self.scene.exhibits.codes[latent][found.places[nearest]]
            z[0] = (weights[:, None] * codes).sum(0) / weights.sum()
        return z

    def place_of(self, latent: str, method: Method, dims: Sequence[int], z: Tensor) -> list[float]:
        """Where a latent (1, D) is on a map. Raises UserError."""
        self.require_dims(latent, dims)
        if method == "dims":
            return numbers(z[0, list(dims)]) + [0.0] * (len(dims) == 1)
        if method == "pca":
            centre, axes, _ = self.axes(latent)
            return numbers((z[0] - centre) @ axes)
        found = self.finished(latent, method)
        codes = self.scene.exhibits.codes[latent][found.places]
        nearest = int((codes - z).square().sum(1).argmin())
        return found.points[nearest].tolist()

    def require_dims(self, latent: str, dims: Sequence[int]) -> None:
        dim = self.scene.exhibits.codes[latent].shape[1]
        require(all(d < dim for d in dims), f"{latent} has {dim} dimensions")

    def finished(self, latent: str, method: Method) -> Map:
        """A map of t-SNE or UMAP. Raises UserError where it is not there yet."""
        require(self.neighbours(latent, method).done(), "the map is being computed; wait for it")
        return self.drawn(latent, method, ())


def numbers(values: Tensor) -> list[Any]:
    """As JSON has them: null where not finite."""
    return [round(v, 4) if math.isfinite(v) else None for v in values.tolist()]
