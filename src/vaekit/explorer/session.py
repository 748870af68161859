"""One run in the explorer: decoding, encoding, sampling, interpolation, nearest neighbours, saving."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
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

from ..data import Split, eval_split
from ..data.dataset import Batch
from ..data.formats.images import BadImage, ImageSpec
from ..data.formats.images import decode as decode_image
from ..data.sources.inputs import run_depth
from ..data.splits import evenly_spaced
from ..data.values import is_plain, to_pixels
from ..gallery.context import PictureContext, require_decodable
from ..gallery.latents import dimension_information, informative_latents, traversal_range
from ..inference.generation import class_labels, repeat_label, sample_values
from ..inference.latent_space import (
    decode_latents,
    decoder_latents,
    interpolate,
    principal_axes,
)
from ..inference.picture_data import MAX_CODES
from ..inference.tables import write_table
from ..inference.writing import write_images
from ..likelihood.elbo import ELBO_SAMPLES
from ..likelihood.latent_use import batch_size, code_posteriors, lists_groups
from ..model.distributions import stddev
from ..runs.data import load_run_data
from ..runs.directory import Run
from ..runs.load import epoch_of_weights
from ..settings.analysis import PlotConfig, parse_bands
from ..settings.model import ClusterConfig
from ..support.devices import eval_mode, seeded
from ..support.errors import UserError, require
from .maps import LatentMaps, Method, json_numbers

Latents = Mapping[str, Tensor]
MAX_NEIGHBOUR_BYTES = 2**28  # memory for the training images that are searched for neighbours
MAX_SLIDERS = 24  # of principal components
MAX_SAVED_FILES, MAX_SAVED_BYTES = 1000, 2**28  # in RUN/pictures
SAVING = threading.Lock()  # matplotlib draws in one thread at a time
CURVE_KEYS = (
    "epoch",
    "train_elbo",
    "validation_elbo",
    "kl",
    "validation_kl",
    "validation_objective",
    "augmented",
)


class ExplorerSession:
    """A run in the explorer. Its methods may be called from several threads."""

    def __init__(
        self,
        run: Run | str | Path,
        data_dir: str | Path | None = None,
        bands: str | None = None,
    ) -> None:
        """Load the run. Raises UserError if it has no weights, or neither picture data nor a data set."""
        self.context = PictureContext.of(run, PlotConfig(bands=bands), data_dir)
        self.run, self.model = self.context.run, self.context.model
        chosen = ",".join(map(str, parse_bands(bands)))
        self.arguments = self.run.arguments + f" --bands {chosen}" * bool(chosen)
        stored = self.context.picture_data.codes
        self.latents = [name for name in decoder_latents(self.model) if name in stored]
        self.unfinished: Path | None = None  # what a save under way writes, without ending
        self.executor = ThreadPoolExecutor(1)
        self.maps = LatentMaps(self.context, self.executor)
        picture_data = self.context.picture_data
        self.training_codes = self.encode_batch(
            picture_data.batches["train"], picture_data.rows["train"]
        )
        self.test_images: Any = None
        self.executor.submit(self.load_data)

    def load_data(self) -> None:
        """Load more training images as possible neighbours, and all test images, if the data set is available."""
        try:
            data = load_run_data(self.run, None, self.context.data_dir)
        except (UserError, OSError):
            return
        binarisation = self.run.data.binarisation
        max_images = MAX_NEIGHBOUR_BYTES // (4 * math.prod(self.model.blueprint.shape))
        rows = evenly_spaced(len(data.train), max(1, min(MAX_CODES, max_images)))
        self.training_codes = self.encode_batch(
            eval_split(data.train.take(rows), binarisation)[:], rows
        )
        self.test_images = eval_split(data.test, binarisation)

    @torch.no_grad()
    def encode_batch(self, batch: Batch, data_rows: Tensor) -> tuple[Batch, Tensor, Tensor]:
        """Images, their concatenated posterior means (N, D), and their rows in the data set (N,)."""
        parts = []
        for rows in torch.arange(len(batch)).split(batch_size(self.model)):
            labels = None if batch.labels is None else batch.labels[rows]
            posteriors = code_posteriors(self.model, self.model.given(batch.images[rows], labels))
            parts.append(self.concatenate({name: posteriors[name].mean for name in self.latents}))
        return batch, torch.cat(parts), data_rows

    def concatenate(self, latents: Latents) -> Tensor:
        return torch.cat([latents[name] for name in self.latents], dim=1)

    @cached_property
    def dims(self) -> dict[str, int]:
        return {name: self.maps.dim(name) for name in self.latents}

    @cached_property
    def epoch(self) -> dict[str, Any]:
        """The metrics of the epoch of the weights."""
        return epoch_of_weights(self.run)

    def describe(self) -> dict[str, Any]:
        """The properties of the run that the page needs for its controls."""
        blueprint = self.model.blueprint
        conditional = self.context.condition == "label"
        label = torch.zeros(1, dtype=torch.int64) if conditional else None
        latents = []
        components = self.components()
        for name, dim in self.dims.items():
            codes = self.context.picture_data.codes[name]
            information = [dimension_information(self.context, name, d) for d in range(dim)]
            low = high = torch.zeros(0)
            if not components:
                low, high = traversal_range(self.context, name, label)
            latents.append(
                {
                    "name": name,
                    "dim": dim,
                    "information": json_numbers(torch.tensor(information)),
                    "order": sorted(range(dim), key=lambda d: -information[d]),
                    "low": json_numbers(low),
                    "high": json_numbers(high),
                    "mean": json_numbers(codes.mean(0)),
                    "components": components.get(name, [] if components else None),
                }
            )
        settings = blueprint.settings
        best = {k: v for k, v in self.epoch.items() if isinstance(v, int | float)}
        return {
            "name": str(self.run),
            "argument": self.arguments,
            "model": blueprint.model,
            "data": self.run.data.name,
            "shape": list(blueprint.shape),
            "shown_shape": [len(self.context.bands.weights), *blueprint.shape[1:]],
            "bands": self.context.bands.text,
            "unreadable": self.unreadable,
            "latents": latents,
            "classes": self.context.classes,
            "conditional": conditional,
            "completes_images": self.context.condition.startswith("quadrants"),
            "clusters": settings.clusters if isinstance(settings, ClusterConfig) else 0,
            "test_images": len(self.context.picture_data.code_rows),
            "methods": ["dims", "pca", "tsne"] + ["umap"] * bool(importlib.util.find_spec("umap")),
            "best": {k: v for k, v in best.items() if math.isfinite(v)},
        }

    def components(self) -> dict[str, list[dict[str, Any]]]:
        """Of the top groups of a deep hierarchy with most information, the principal components of the codes, which the
        sliders move along: axis (D,), its product with the centre, and the standard deviation; {} of other models."""
        if not lists_groups(self.model):
            return {}
        found = {}
        names = informative_latents(self.context, MAX_SLIDERS // 4)
        for name in names:
            codes = self.context.picture_data.codes[name]
            centre, axes, _ = principal_axes(codes, MAX_SLIDERS // len(names))
            spreads = ((codes - centre) @ axes).std(0, correction=0)
            found[name] = [
                {
                    "axis": [round(v, 5) for v in axis.tolist()],
                    "origin": float(centre @ axis),
                    "spread": float(spread),
                }
                for axis, spread in zip(axes.T, spreads, strict=True)
            ]
        return found

    def move_to(
        self,
        latent: str,
        method: Method,
        dims: Sequence[int],
        point: Sequence[float],
        current: Latents,
        label: int | None = None,
    ) -> dict[str, Tensor]:
        """The latents (1, D) at a map point (see LatentMaps.latent_at); lower latents are set to their conditional
        means. Raises UserError."""
        z = self.maps.latent_at(latent, method, dims, point, current[latent])
        return self.with_descendants({**current, latent: z}, latent, label)

    @torch.no_grad()
    def with_descendants(
        self, latents: Latents, latent: str, label: int | None
    ) -> dict[str, Tensor]:
        """Latents (1, D), those below `latent` replaced by their prior means given the ones above."""
        result = dict(latents)
        for name in self.latents[self.latents.index(latent) + 1 :]:
            values = self.model.given(None, self.labels(1, label)) | result
            result[name] = self.model.prior[name](values).mean
        return result

    @torch.no_grad()
    def decode(self, latents: Latents, label: int | None = None) -> Tensor:
        """Mean pixels (N, C, H, W). Raises UserError."""
        require_decodable(self.context)
        count = len(next(iter(latents.values())))
        return decode_latents(self.model, latents, self.labels(count, label))

    def labels(self, count: int, label: int | None) -> Tensor | None:
        """The labels (count,) of a conditional model, class 0 by default; None for other models."""
        if self.context.condition != "label":
            return None
        return repeat_label(self.model.blueprint, count, label or 0)

    @torch.no_grad()
    def sample(
        self, count: int, temperature: float, seed: int, label: int | None, cluster: int | None
    ) -> tuple[dict[str, Any], Tensor]:
        """Latents (N, D) from the prior, and their mean pixels (N, C, H, W): those of `vaekit generate` with these
        settings. Raises UserError."""
        require_decodable(self.context)
        labels = class_labels(self.model, count, label)
        mixture = self.context.picture_data.component_shares is not None
        require(cluster is None or mixture, "the model has no clusters to sample from")
        clusters = None if cluster is None else torch.full((count,), cluster)
        with seeded(seed):
            parts = [*sample_values(self.model, count, labels, temperature, clusters)]
            images = torch.cat([self.model.decoder(values).mean for values in parts])
        columns: dict[str, list[Any]] = {
            name: [values[name] for values in parts] for name in self.latents
        }
        return {name: torch.cat(column) for name, column in columns.items()}, images

    @property
    def unreadable(self) -> str:
        """Why the page takes no images for this run: image files of a browser are grey or colour, of 8 bits; "" if it
        does."""
        channels, values = self.model.blueprint.shape[0], self.run.data.value_range
        if channels not in (1, 3):
            what = f"images of {channels} channels"
        elif not is_plain(values):
            what = f"values from {values.low:g} to {values.high:g}"
        else:
            return ""
        return f"the model takes {what}, but the page reads 8-bit grey or colour images; use `vaekit encode`"

    def read_image(self, content: bytes, invert: bool, centre: bool) -> Tensor:
        """An image file as model input (1, C, H, W); `centre` places it as in MNIST. Raises UserError."""
        require(not self.unreadable, self.unreadable)
        channels, height, width = self.model.blueprint.shape
        value_range = self.run.data.value_range
        depth = run_depth(value_range)
        try:
            array = decode_image(
                content, ImageSpec(channels, height, width, depth=depth, rounded=True)
            )
        except BadImage as error:
            raise UserError(f"the image cannot be read: {error}") from None
        if depth == "uint8":
            array = 255 - array if invert else array
            if centre and channels == 1:
                array = centre_digit(array)
        split = Split(to_pixels(torch.from_numpy(array.copy())[None], value_range))
        return eval_split(split, self.run.data.binarisation)[:].images

    @torch.no_grad()
    def encode(self, images: Tensor, label: int | None = None) -> dict[str, Any]:
        """The posterior means and scales of an image (1, C, H, W), its reconstruction, and its ELBO in nats.

        Without a label, a conditional model uses the class with the highest ELBO.
        """
        if label is None and self.context.condition == "label":
            classes = range(self.model.blueprint.classes)
            results = [self.encode(images, k) for k in classes]
            return max(results, key=lambda r: -math.inf if r["elbo"] is None else r["elbo"])
        labels = self.labels(1, label)
        posteriors = self.model.posteriors(self.model.given(images, labels))
        with seeded(0), eval_mode(self.model):
            inference = self.model(images, labels, samples=(ELBO_SAMPLES,))
            elbo = float((inference.log_likelihood - inference.kl).mean())
            reconstruction = self.model.reconstruct(images, labels).mean
        return {
            "latents": {name: posteriors[name].mean for name in self.latents},
            "scales": {name: json_numbers(stddev(posteriors[name])[0]) for name in self.latents},
            "elbo": elbo if math.isfinite(elbo) else None,
            "label": None if labels is None else int(labels[0]),
            "input": images,
            "reconstruction": reconstruction,
        }

    def test_image(self, position: int) -> tuple[Tensor, dict[str, Any]]:
        """A test image of the map (1, C, H, W), or its reconstruction if the data set is not available."""
        picture_data = self.context.picture_data
        count, labels = len(picture_data.code_rows), picture_data.code_labels
        require(
            0 <= position < count,
            f"there is no test image {position}; the map has {count:,} of them",
        )
        row = int(picture_data.code_rows[position])
        label = None if labels is None else int(labels[position])
        description = {"row": row, "label": label, "kind": "image"}
        saved = picture_data.rows["test"]
        if bool((saved == row).any()):
            return picture_data.batches["test"].images[saved == row], description
        if self.test_images is not None:
            return self.test_images[row : row + 1].images, description
        return self.decode(self.codes(position), label), {**description, "kind": "reconstruction"}

    def codes(self, position: int) -> dict[str, Tensor]:
        """The latents (1, D) of a test image of the map."""
        codes = self.context.picture_data.codes
        return {name: codes[name][position : position + 1] for name in self.latents}

    def nearest(self, latents: Latents, count: int = 6) -> tuple[Tensor, list[dict[str, Any]]]:
        """The training images (n, C, H, W) whose posterior means are nearest to latents (1, D)."""
        batch, codes, rows = self.training_codes
        distances = (codes - self.concatenate(latents)).norm(dim=1)
        chosen = distances.topk(min(count, len(codes)), largest=False).indices
        labels = batch.labels
        neighbours = [
            {
                "row": int(rows[i]),
                "label": None if labels is None else int(labels[i]),
                "distance": round(float(distances[i]), 3),
            }
            for i in chosen.tolist()
        ]
        return batch.images[chosen], neighbours

    def interpolate(self, start: Latents, end: Latents, steps: int) -> dict[str, Tensor]:
        """Latents on the straight line between two latent points, (steps, D)."""
        return {name: interpolate(start[name][0], end[name][0], steps) for name in self.latents}

    def save(
        self, latents: Latents, label: int | None, kind: Literal["png", "gif"]
    ) -> dict[str, str]:
        """Write a grid or GIF of decoded latents (N, D) and their table into RUN/pictures; returns its path and the
        shell command that reproduces it."""
        images = self.decode(latents, label)
        with SAVING:
            stem = self.unfinished = self.claim_name()
            try:
                table = {name: latents[name].numpy() for name in self.latents}
                codes = write_table(table, stem.with_suffix(".csv"))
                path = write_images(images, stem.with_suffix(f".{kind}"), bands=self.context.bands)
            except BaseException:
                self.remove_unfinished()
                raise
            self.unfinished = None
        command = ["vaekit", "decode", *shlex.split(self.arguments), str(codes)]
        command += ["--out", str(path)]
        if self.context.condition == "label":
            command += ["--label", self.context.classes[label or 0]]
        return {"path": str(path), "command": shlex.join(command)}

    def claim_name(self) -> Path:
        """Create RUN/pictures/explorer-<n>.csv, empty, under a name that no other save has, also of another process;
        its path without the ending. Raises UserError where the saves are too many or too large."""
        saved = list(self.run.pictures.glob("explorer-*"))
        size = sum(file.lstat().st_size for file in saved)
        require(
            len(saved) < MAX_SAVED_FILES and size < MAX_SAVED_BYTES,
            f"{self.run.pictures} has {len(saved):,} files explorer-* of {size / 1e6:,.0f} MB, which is as many as may "
            "be saved from the page; remove some",
        )
        names = {file.stem for file in saved}
        for number in itertools.count(1):
            stem = self.run.pictures / f"explorer-{number}"
            if stem.name not in names:
                with contextlib.suppress(FileExistsError):
                    stem.with_suffix(".csv").open("x").close()
                    return stem
        raise AssertionError

    def remove_unfinished(self) -> None:
        """Remove the files of a save that is not finished."""
        if self.unfinished is not None:
            for file in self.unfinished.parent.glob(f"{self.unfinished.name}.*"):
                file.unlink(missing_ok=True)
        self.unfinished = None

    def curves(self) -> list[dict[str, Any]]:
        """The metrics of every epoch."""
        return [{name: epoch.get(name) for name in CURVE_KEYS} for epoch in self.run.metrics]

    def require_latent(self, latent: str) -> None:
        """Raises UserError for a latent that the decoder does not have."""
        names = ", ".join(self.dims)
        require(latent in self.dims, f"there is no latent {latent!r}; the latents are {names}")

    def to_tensors(self, latents: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, Tensor]:
        """The latents of a request as tensors (N, D). Raises UserError for wrong names or shapes."""
        require(set(latents) == set(self.dims), f"pass the latents {', '.join(self.dims)}")
        counts = {len(rows) for rows in latents.values()}
        require(len(counts) == 1 and 0 not in counts, "the latents have different numbers of rows")
        for name, rows in latents.items():
            correct = all(len(row) == self.dims[name] for row in rows)
            require(correct, f"{name} has {self.dims[name]} dimensions")
        return {name: torch.tensor(rows, dtype=torch.float32) for name, rows in latents.items()}


def centre_digit(array: np.ndarray) -> np.ndarray:
    """A digit (1, H, W), white on black, scaled to 20/28 of the image and centred by its centre of mass, as in MNIST
    (LeCun et al. 1998)."""
    _, height, width = array.shape
    ys, xs = np.nonzero(array[0] > 40)
    if len(ys) == 0:
        return array
    digit = array[0, ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    scale = min(height, width) * 20 / 28 / max(digit.shape)
    size = tuple(max(1, round(side * scale)) for side in digit.shape[::-1])
    small = np.asarray(Image.fromarray(digit).resize(size, Image.Resampling.LANCZOS), np.float64)
    mass = small.sum() or 1.0
    y = float((small.sum(1) * (np.arange(len(small)) + 0.5)).sum() / mass)
    x = float((small.sum(0) * (np.arange(small.shape[1]) + 0.5)).sum() / mass)
    top = int(np.clip(round(height / 2 - y), 0, height - small.shape[0]))
    left = int(np.clip(round(width / 2 - x), 0, width - small.shape[1]))
    canvas = np.zeros((1, height, width), np.uint8)
    canvas[0, top : top + small.shape[0], left : left + small.shape[1]] = small
    return canvas
