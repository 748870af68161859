"""A picture of encoded images: small versions of them where their codes lie in two dimensions."""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..likelihood.latent_use import code_latents
from ..model.graph import VAE
from ..runs.directory import Run, require_output
from ..support.errors import require
from .latent_space import NO_UMAP, decoder_latents, neighbour_embedding, principal_axes
from .picture_data import run_bands
from .tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Projection = Literal["auto", "pca", "tsne", "umap"]
MAX_IMAGES = 2000  # in the picture; t-SNE of more takes minutes
MAX_SIDE = 48  # pixels of a small version
MIN_NEIGHBOURS = 10  # images, below which t-SNE has too few


def check_map(path: Path, projection: Projection) -> None:
    """Raise UserError unless a map by this projection can be drawn and written to this file."""
    from ..pictures.writing import IMAGE_FORMATS

    require_output(path, [f".{kind}" for kind in IMAGE_FORMATS])
    require(
        projection in get_args(Projection),
        f"--projection {projection} is none of {', '.join(get_args(Projection))}",
    )
    require(projection != "umap" or find_spec("umap") is not None, NO_UMAP)


class Thumbnails:
    """Small versions of images that come in parts: of all, or of every 2nd, 4th, ... of more than MAX_IMAGES."""

    def __init__(self) -> None:
        self.kept: dict[int, Tensor] = {}  # by row
        self.seen, self.step = 0, 1

    def add(self, images: Tensor) -> None:
        """Keep some of the next images (B, C, H, W)."""
        small = F.avg_pool2d(images, math.ceil(max(images.shape[2:]) / MAX_SIDE), ceil_mode=True)
        for row, image in enumerate(small.cpu(), self.seen):
            if row % self.step == 0:
                self.kept[row] = image
        self.seen += len(images)
        while len(self.kept) > MAX_IMAGES:
            self.step *= 2
            self.kept = {row: x for row, x in self.kept.items() if row % self.step == 0}

    @property
    def rows(self) -> np.ndarray:
        """The rows of the images that are kept."""
        return np.array([*self.kept])

    @property
    def images(self) -> Tensor:
        """Those images (n, C, h, w)."""
        return torch.stack([*self.kept.values()])


def draw_code_map(
    run: Run, model: VAE, table: Table, thumbnails: Thumbnails, projection: Projection = "auto"
) -> Figure:
    """Draw the images of a table of `encode` where the posterior means of their latents lie: in the two dimensions that
    these have, or in two of `projection`, t-SNE by default. Raises UserError where UMAP is not installed."""
    from .. import pictures

    of_decoder = [name for name in code_latents(model) if name in decoder_latents(model)]
    names = of_decoder or code_latents(model)
    rows, images = thumbnails.rows, thumbnails.images
    codes = torch.from_numpy(np.concatenate([table[f"{name}_mean"][rows] for name in names], 1))
    points, axes, how = project(codes.float(), names[0], projection)
    labels, classes = None, None
    if "class" in table or "label" in table:
        column = table["class" if "class" in table else "label"][rows]
        unique, labels = np.unique(column, return_inverse=True)
        classes = [str(name) for name in unique]
    some = f" of {thumbnails.seen:,}" if len(rows) < thumbnails.seen else ""
    return pictures.image_map(
        points, images, labels, classes, f"{len(rows):,}{some} images by {how}{', '.join(names)}", axes,
        run_bands(run, None, images),
    )  # fmt: skip


def project(
    codes: Tensor, name: str, projection: Projection
) -> tuple[np.ndarray, tuple[str, str], str]:
    """Codes (N, D) in two dimensions (N, 2), the names of these, and the projection in words."""
    count, dim = codes.shape
    if count == 1:
        return np.zeros((1, 2)), ("", ""), ""
    if dim == 2 and projection == "auto":
        return codes.numpy(), (f"{name}[0]", f"{name}[1]"), ""
    if projection in ("tsne", "umap") or (
        projection == "auto" and dim > 2 and count >= MIN_NEIGHBOURS
    ):
        method = "tsne" if projection == "auto" else projection
        points = neighbour_embedding(codes, method)
        return points, ("", ""), f"{'t-SNE' if method == 'tsne' else 'UMAP'} of "
    centre, axes, shares = principal_axes(codes)
    points = ((codes - centre) @ axes).numpy()
    labels = [f"PC {i + 1}, {share:.0%} of variance" for i, share in enumerate(shares.tolist())]
    missing = 2 - len(labels)  # of one dimension, or of one image
    points = np.pad(points, ((0, 0), (0, missing)))
    x, y = [*labels, "", ""][:2]
    return points, (x, y), "PCA of "
