"""What the explorer knows of a run: maps of its latents, and the way from a place there to an image and back."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import shlex
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors
import torch
from contourpy import contour_generator
from PIL import Image
from safetensors.torch import save
from torch import Tensor

from ..checks import UserError, one_line, require
from ..compute import evaluating, seeded
from ..config import ClusterConfig
from ..data import Split, freeze
from ..data.dataset import Batch
from ..data.images import BadImage, Form
from ..data.images import decode as read_image
from ..data.splits import spread
from ..distributions import GaussianMixture, draw, stddev
from ..exhibits import CODES, digest
from ..gallery.latents import information, reach, refuse_quadrants
from ..gallery.scene import Scene
from ..generation import class_labels, same_label
from ..health import batch_size
from ..latent_space import between, decode_latents, free_latents, neighbour_map, principal_axes
from ..options import PlotConfig
from ..pictures.scatters import MASSES
from ..run_data import run_data
from ..runs import Run, write
from ..tables import Table, write_images, write_table

Method = Literal["dims", "pca", "tsne", "umap"]
Latents = Mapping[str, Tensor]
NEIGHBOURS = 2000  # points of a t-SNE or UMAP
CONTOUR_SIDE = 120
ELBO_SAMPLES = 10
KNOWN_BYTES = 2**28  # of training images to find neighbours among
CURVES = ("epoch", "train_elbo", "validation_elbo", "kl", "validation_kl", "validation_objective")


@dataclass(frozen=True)
class Map:
    """Test images as points (N, 2), or (N, 3), `places` (N,) in the exhibits' codes; linear maps have axes (D, 2) and
    their centre (D,)."""

    points: np.ndarray
    places: np.ndarray
    names: tuple[str, ...] = ()
    axes: Tensor | None = None
    centre: Tensor | None = None


class Atlas:
    """A run that is explored. Its methods may be called from several threads."""

    def __init__(self, run: Run | str | Path, data_dir: str | Path | None = None) -> None:
        """Raises UserError for a run without weights, or with neither exhibits nor data."""
        self.scene = Scene.of(run, PlotConfig(), data_dir)
        self.run, self.model = self.scene.run, self.scene.model
        self.latents = free_latents(self.model)
        self.noise = threading.Lock()  # torch's generator is one for all threads
        self.work = ThreadPoolExecutor(1)
        self.principal: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        self.maps: dict[tuple[str, str], Future[np.ndarray]] = {}
        exhibits = self.scene.exhibits
        self.known = self.encoded(exhibits.batches["train"], exhibits.rows["train"])
        self.test: Any = None
        self.loading = self.work.submit(self.load)

    def load(self) -> None:
        """More training images to find neighbours among, and all test images, where the data are there."""
        try:
            data = run_data(self.run, None, self.scene.data_dir)
        except (UserError, OSError):
            return
        binarisation = self.run.data.binarisation
        fitting = KNOWN_BYTES // (4 * math.prod(self.model.blueprint.shape))
        rows = spread(len(data.train), max(1, min(CODES, fitting)))
        self.known = self.encoded(freeze(data.train.take(rows), binarisation)[:], rows)
        self.test = freeze(data.test, binarisation)

    @torch.no_grad()
    def encoded(self, batch: Batch, numbers: Tensor) -> tuple[Batch, Tensor, Tensor]:
        """Images, their latents' means side by side (N, D), and their rows in the data (N,)."""
        parts = []
        for rows in torch.arange(len(batch)).split(batch_size(self.model)):
            labels = None if batch.labels is None else batch.labels[rows]
            values = self.model.given(batch.images[rows], labels)
            self.model.posteriors(values)
            parts.append(self.side_by_side({name: known(values, name) for name in self.latents}))
        return batch, torch.cat(parts), numbers

    def side_by_side(self, latents: Latents) -> Tensor:
        return torch.cat([latents[name] for name in self.latents], dim=1)

    def axes(self, latent: str) -> tuple[Tensor, Tensor, Tensor]:
        """See principal_axes."""
        if latent not in self.principal:
            self.principal[latent] = principal_axes(self.scene.exhibits.codes[latent])
        return self.principal[latent]

    @cached_property
    def dims(self) -> dict[str, int]:
        return {name: self.scene.exhibits.codes[name].shape[1] for name in self.latents}

    def about(self) -> dict[str, Any]:
        """What the page needs to know to draw its controls."""
        blueprint, config = self.model.blueprint, self.run.config
        conditional = self.scene.condition == "label"
        label = torch.zeros(1, dtype=torch.int64) if conditional else None
        latents = []
        for name, dim in self.dims.items():
            codes = self.scene.exhibits.codes[name]
            strength = [information(self.scene, name, d) for d in range(dim)]
            low, high = reach(self.scene, name, label)
            latents.append(
                {
                    "name": name,
                    "dim": dim,
                    "strength": numbers(torch.tensor(strength)),
                    "order": sorted(range(dim), key=lambda d: -strength[d]),
                    "low": numbers(low),
                    "high": numbers(high),
                    "mean": numbers(codes.mean(0)),
                }
            )
        settings = blueprint.settings
        best = {k: v for k, v in self.run.best.items() if isinstance(v, int | float)}
        return {
            "name": str(self.run),
            "model": blueprint.model,
            "data": self.run.data.name,
            "shape": list(blueprint.shape),
            "latents": latents,
            "classes": self.scene.classes,
            "conditional": conditional,
            "completes": self.scene.condition.startswith("quadrants"),
            "clusters": settings.clusters if isinstance(settings, ClusterConfig) else 0,
            "points": len(self.scene.exhibits.code_rows),
            "methods": ["dims", "pca", "tsne"] + ["umap"] * bool(importlib.util.find_spec("umap")),
            "created": config.get("created"),
            "best": {k: v for k, v in best.items() if math.isfinite(v)},
        }

    def map(self, latent: str, method: Method, dims: Sequence[int]) -> dict[str, Any]:
        """A map of the test images, with the prior's contours and components where it is linear; of t-SNE and UMAP
        `state` is "computing" until they are ready. Raises UserError."""
        dim = self.dim_of(latent)
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
        if key not in self.maps:
            self.maps[key] = self.work.submit(self.compute, latent, method)
        return self.maps[key]

    def compute(self, latent: str, method: Method) -> np.ndarray:
        path = self.run.path / f"map-{latent}-{method}.safetensors"
        weights = digest(self.run.weights_path)
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

    def at(
        self,
        latent: str,
        method: Method,
        dims: Sequence[int],
        place: Sequence[float],
        now: Latents,
        label: int | None = None,
    ) -> dict[str, Tensor]:
        """The latents (1, D) at a place of a map: of a linear map, what is not on it as it is `now`; of another, those
        of the nearest test images, weighted by closeness. Latents below this one follow from it. Raises UserError."""
        z = now[latent].clone()
        point = torch.tensor(place, dtype=torch.float32)
        if method == "dims":
            require(max(dims) < z.shape[1], f"{latent} has {z.shape[1]} dimensions")
            for d, value in zip(dims, point.tolist(), strict=False):
                z[0, d] = value
        elif method == "pca":
            centre, axes, _ = self.axes(latent)
            off = z[0] - centre
            z[0] = centre + off - axes @ (axes.T @ off) + axes @ point[:2]
        else:
            future = self.neighbours(latent, method)
            require(future.done(), "the map is being computed; wait for it")
            found = self.drawn(latent, method, ())
            distances = np.linalg.norm(found.points - point[:2].numpy(), axis=1)
            nearest = np.argsort(distances)[:5]
            weights = torch.from_numpy(1 / (distances[nearest] + 1e-3)).float()
            codes = self.scene.exhibits.codes[latent][found.places[nearest]]
            z[0] = (weights[:, None] * codes).sum(0) / weights.sum()
        return self.followed({**now, latent: z}, latent, label)

    @torch.no_grad()
    def followed(self, latents: Latents, latent: str, label: int | None) -> dict[str, Tensor]:
        """Latents (1, D) with those that are drawn after one of them at their mean given it."""
        found = dict(latents)
        for name in self.latents[self.latents.index(latent) + 1 :]:
            values = self.model.given(None, self.labels(1, label)) | found
            found[name] = self.model.prior[name](values).mean
        return found

    def place_of(
        self, latents: Latents, latent: str, method: Method, dims: Sequence[int]
    ) -> list[float]:
        """Where latents (1, D) are on a map."""
        z = latents[latent]
        if method == "dims":
            return numbers(z[0, list(dims)]) + [0.0] * (len(dims) == 1)
        if method == "pca":
            centre, axes, _ = self.axes(latent)
            return numbers((z[0] - centre) @ axes)
        require(self.neighbours(latent, method).done(), "the map is being computed; wait for it")
        found = self.drawn(latent, method, ())
        codes = self.scene.exhibits.codes[latent][found.places]
        nearest = int((codes - z).square().sum(1).argmin())
        return found.points[nearest].tolist()

    @torch.no_grad()
    def decode(self, latents: Latents, label: int | None = None) -> Tensor:
        """Mean pixels (N, C, H, W). Raises UserError."""
        refuse_quadrants(self.scene)
        count = len(next(iter(latents.values())))
        return decode_latents(self.model, latents, self.labels(count, label))

    def labels(self, count: int, label: int | None) -> Tensor | None:
        if self.scene.condition != "label":
            return None
        return same_label(self.model.blueprint, count, label or 0)

    @torch.no_grad()
    def draws(
        self, count: int, temperature: float, seed: int, label: int | None, cluster: int | None
    ) -> dict[str, Tensor]:
        """Latents (N, D) from the prior, those that `vaekit generate` decodes with the same settings. Raises
        UserError."""
        refuse_quadrants(self.scene)
        labels = class_labels(self.model, count, label)
        values = self.model.given(None, labels)
        chosen = None if cluster is None else torch.full((count,), cluster)
        mixtures = 0
        with self.noise, seeded(seed):
            for name, prior in self.model.prior.items():
                p = prior(values).expand((count,))
                mixtures += isinstance(p, GaussianMixture)
                values[name] = draw(p, temperature, chosen)
        require(cluster is None or mixtures > 0, "the model has no clusters to draw from")
        return {name: known(values, name) for name in self.latents}

    def read(self, content: bytes, invert: bool, centre: bool) -> Tensor:
        """An image file as the model takes it, (1, C, H, W); `centre`: as MNIST's digits are. Raises UserError."""
        channels, height, width = self.model.blueprint.shape
        try:
            array = read_image(content, Form(channels, height, width))
        except BadImage as error:
            raise UserError(f"the image cannot be read: {error}") from None
        array = 255 - array if invert else array
        if centre and channels == 1:
            array = centred(array)
        split = Split(torch.from_numpy(array.copy())[None])
        return freeze(split, self.run.data.binarisation)[:].images

    @torch.no_grad()
    def encode(self, images: Tensor, label: int | None = None) -> dict[str, Any]:
        """What the model says of an image (1, C, H, W): latents, scales, its reconstruction, and ELBO in nats.

        Without a label, a conditional model takes that of the highest ELBO.
        """
        if label is None and self.scene.condition == "label":
            classes = range(self.model.blueprint.classes)
            found = [self.encode(images, k) for k in classes]
            return max(found, key=lambda each: -math.inf if each["elbo"] is None else each["elbo"])
        labels = self.labels(1, label)
        values = self.model.given(images, labels)
        posteriors = self.model.posteriors(values)
        latents = {name: known(values, name) for name in self.latents}
        with self.noise, seeded(0), evaluating(self.model):
            inference = self.model(images, labels, samples=(ELBO_SAMPLES,))
            elbo = float((inference.log_likelihood - inference.kl).mean())
            redrawn = self.model.reconstruct(images, labels).mean
        return {
            "latents": latents,
            "scales": {name: numbers(stddev(posteriors[name])[0]) for name in self.latents},
            "elbo": elbo if math.isfinite(elbo) else None,
            "label": None if labels is None else int(labels[0]),
            "image": images,
            "redrawn": redrawn,
        }

    def test_image(self, place: int) -> tuple[Tensor, dict[str, Any]]:
        """A test image of a map (1, C, H, W), or its reconstruction where the data are not there."""
        exhibits = self.scene.exhibits
        require(0 <= place < len(exhibits.code_rows), "there is no such test image")
        row = int(exhibits.code_rows[place])
        label = None if exhibits.code_labels is None else int(exhibits.code_labels[place])
        about = {"row": row, "label": label, "kind": "image"}
        kept = exhibits.rows["test"]
        if bool((kept == row).any()):
            return exhibits.batches["test"].images[kept == row], about
        if self.test is not None:
            return self.test[row : row + 1].images, about
        return self.decode(self.codes(place), label), {**about, "kind": "reconstruction"}

    def codes(self, place: int) -> dict[str, Tensor]:
        """The latents (1, D) of a test image of a map."""
        return {name: self.scene.exhibits.codes[name][place : place + 1] for name in self.latents}

    def nearest(self, latents: Latents, count: int = 6) -> tuple[Tensor, list[dict[str, Any]]]:
        """The training images (n, C, H, W) whose latents' means are nearest to (1, D)."""
        batch, codes, rows = self.known
        distances = (codes - self.side_by_side(latents)).norm(dim=1)
        chosen = distances.topk(min(count, len(codes)), largest=False).indices
        labels = batch.labels
        about = [
            {
                "row": int(rows[i]),
                "label": None if labels is None else int(labels[i]),
                "distance": round(float(distances[i]), 3),
            }
            for i in chosen.tolist()
        ]
        return batch.images[chosen], about

    def between(self, a: Latents, b: Latents, steps: int) -> dict[str, Tensor]:
        """From one place to another on a straight line, (steps, D)."""
        return {name: between(a[name][0], b[name][0], steps) for name in self.latents}

    def save(
        self, latents: Latents, label: int | None, kind: Literal["png", "gif"]
    ) -> dict[str, str]:
        """Write a grid, or a GIF, of latents (N, D) into RUN/pictures, and the latents beside it, from which the
        command that is given makes the same."""
        images = self.decode(latents, label)
        number = 1
        while (self.run.pictures / f"explorer-{number}.csv").exists():
            number += 1
        stem = self.run.pictures / f"explorer-{number}"
        table: Table = {name: latents[name].numpy() for name in self.latents}
        codes = write_table(table, stem.with_suffix(".csv"))
        path = write_images(images, stem.with_suffix(f".{kind}"))
        words = ["vaekit", "decode", str(self.run), str(codes), "--out", str(path)]
        if self.scene.condition == "label":
            words += ["--label", str(label or 0)]
        return {"path": str(path), "command": shlex.join(words)}

    def curves(self) -> list[dict[str, Any]]:
        """The epochs of the training."""
        return [{name: line.get(name) for name in CURVES} for line in self.run.metrics]

    def dim_of(self, latent: str) -> int:
        require(latent in self.dims, f"there is no latent {latent!r}: {', '.join(self.dims)}")
        return self.dims[latent]

    def checked(self, latents: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, Tensor]:
        """Latents as a page sends them, as tensors (N, D). Raises UserError."""
        require(
            set(latents) == set(self.dims),
            f"give the latents {', '.join(self.dims)}",
        )
        counts = {len(rows) for rows in latents.values()}
        require(len(counts) == 1 and 0 not in counts, "the latents differ in number")
        for name, rows in latents.items():
            wrong = any(len(row) != self.dims[name] for row in rows)
            require(not wrong, f"{name} has {self.dims[name]} dimensions")
        return {name: torch.tensor(rows, dtype=torch.float32) for name, rows in latents.items()}


def known(values: Mapping[str, Tensor | None], name: str) -> Tensor:
    value = values[name]
    assert value is not None
    return value


def numbers(values: Tensor) -> list[Any]:
    """As JSON has them: null where not finite."""
    return [round(v, 4) if math.isfinite(v) else None for v in values.tolist()]


def centred(array: np.ndarray) -> np.ndarray:
    """A digit (1, H, W), white on black, in 20 of 28 parts of the image and with its centre of mass in the middle, as
    MNIST's are (LeCun et al. 1998)."""
    _, height, width = array.shape
    ys, xs = np.nonzero(array[0] > 40)
    if len(ys) == 0:
        return array
    part = array[0, ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    scale = min(height, width) * 20 / 28 / max(part.shape)
    size = tuple(max(1, round(side * scale)) for side in part.shape[::-1])
    small = np.asarray(Image.fromarray(part).resize(size, Image.Resampling.LANCZOS), np.float64)
    mass = small.sum() or 1.0
    y = float((small.sum(1) * (np.arange(len(small)) + 0.5)).sum() / mass)
    x = float((small.sum(0) * (np.arange(small.shape[1]) + 0.5)).sum() / mass)
    top = int(np.clip(round(height / 2 - y), 0, height - small.shape[0]))
    left = int(np.clip(round(width / 2 - x), 0, width - small.shape[1]))
    canvas = np.zeros((1, height, width), np.uint8)
    canvas[0, top : top + small.shape[0], left : left + small.shape[1]] = small
    return canvas
