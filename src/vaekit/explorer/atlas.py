"""What the explorer knows of a run: the way from a latent to an image and back, draws, neighbours, what is saved."""

from __future__ import annotations

import importlib.util
import math
import shlex
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data import Split, freeze
from ..data.dataset import Batch
from ..data.sources.images import BadImage, Form
from ..data.sources.images import decode as read_image
from ..data.splits import spread
from ..gallery.latents import information, reach, refuse_quadrants
from ..gallery.scene import Scene
from ..inference.generation import class_labels, same_label
from ..inference.kept_images import CODES
from ..inference.latent_space import between, decode_latents, free_latents
from ..inference.tables import Table, write_images, write_table
from ..likelihood.latent_use import batch_size
from ..model.distributions import stddev
from ..runs.data import run_data
from ..runs.directory import Run
from ..settings.analysis import PlotConfig
from ..settings.model import ClusterConfig
from ..support.devices import evaluating, seeded
from ..support.errors import UserError, require
from .maps import Maps, Method, numbers

Latents = Mapping[str, Tensor]
ELBO_SAMPLES = 10
KNOWN_BYTES = 2**28  # of training images to find neighbours among
CURVES = ("epoch", "train_elbo", "validation_elbo", "kl", "validation_kl", "validation_objective")


class Atlas:
    """A run that is explored. Its methods may be called from several threads."""

    def __init__(self, run: Run | str | Path, data_dir: str | Path | None = None) -> None:
        """Raises UserError for a run without weights, or with neither exhibits nor data."""
        self.scene = Scene.of(run, PlotConfig(), data_dir)
        self.run, self.model = self.scene.run, self.scene.model
        self.latents = free_latents(self.model)
        self.noise = threading.Lock()  # torch's generator is one for all threads
        self.work = ThreadPoolExecutor(1)
        self.maps = Maps(self.scene, self.work)
        exhibits = self.scene.exhibits
        self.known = self.encoded(exhibits.batches["train"], exhibits.rows["train"])
        self.test: Any = None
        self.work.submit(self.load)

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
    def encoded(self, batch: Batch, rows_there: Tensor) -> tuple[Batch, Tensor, Tensor]:
        """Images, their latents' means side by side (N, D), and their rows in the data (N,)."""
        parts = []
        for rows in torch.arange(len(batch)).split(batch_size(self.model)):
            labels = None if batch.labels is None else batch.labels[rows]
            found = self.model.posteriors(self.model.given(batch.images[rows], labels))
            parts.append(self.side_by_side({name: found[name].mean for name in self.latents}))
        return batch, torch.cat(parts), rows_there

    def side_by_side(self, latents: Latents) -> Tensor:
        return torch.cat([latents[name] for name in self.latents], dim=1)

    @cached_property
    def dims(self) -> dict[str, int]:
        return {name: self.scene.exhibits.codes[name].shape[1] for name in self.latents}

    def about(self) -> dict[str, Any]:
        """What the page needs to know to draw its controls."""
        blueprint = self.model.blueprint
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
            "best": {k: v for k, v in best.items() if math.isfinite(v)},
        }

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
        z = self.maps.latent_at(latent, method, dims, place, now[latent])
        return self.followed({**now, latent: z}, latent, label)

    @torch.no_grad()
    def followed(self, latents: Latents, latent: str, label: int | None) -> dict[str, Tensor]:
        """Latents (1, D) with those that are drawn after one of them at their mean given it."""
        found = dict(latents)
        for name in self.latents[self.latents.index(latent) + 1 :]:
            values = self.model.given(None, self.labels(1, label)) | found
            found[name] = self.model.prior[name](values).mean
        return found

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
    ) -> dict[str, Any]:
        """Latents (N, D) from the prior, those that `vaekit generate` decodes with the same settings. Raises
        UserError."""
        refuse_quadrants(self.scene)
        labels = class_labels(self.model, count, label)
        mixture = self.scene.exhibits.use is not None
        require(cluster is None or mixture, "the model has no clusters to draw from")
        chosen = None if cluster is None else torch.full((count,), cluster)
        with self.noise, seeded(seed):
            values = self.model.draw(count, labels, temperature, chosen)
        return {name: values[name] for name in self.latents}

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
        posteriors = self.model.posteriors(self.model.given(images, labels))
        with self.noise, seeded(0), evaluating(self.model):
            inference = self.model(images, labels, samples=(ELBO_SAMPLES,))
            elbo = float((inference.log_likelihood - inference.kl).mean())
            redrawn = self.model.reconstruct(images, labels).mean
        return {
            "latents": {name: posteriors[name].mean for name in self.latents},
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
