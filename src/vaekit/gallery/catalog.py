"""The catalogue of pictures: name, summary, and the function that draws it. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..support.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table


class PictureUnavailable(UserError):
    """The run lacks what a picture shows."""


@dataclass(frozen=True)
class Picture:
    """A catalogue entry: what the picture shows, and its function as module:name in this package."""

    summary: str
    function: str


PICTURES: dict[str, Picture] = {
    "curves": Picture(
        "ELBO, log-likelihood, KL, active units and KL per dimension by epoch; ELBO by training samples seen",
        "training:curves",
    ),
    "reconstructions": Picture(
        "test and training images above their reconstructions; ten per class", "images:reconstructions"
    ),
    "groups": Picture(
        "reconstructions from the first 1, 2, ... latents, and the KL of each (models with several)", "images:groups"
    ),
    "samples": Picture(
        "samples from the trained prior; a row per class or cluster", "images:samples"
    ),
    "latents": Picture(
        "posterior means of test images by class, prior contours: 2-D, 3-D (and a GIF), else PCA and t-SNE or UMAP",
        "latents:latents",
    ),
    "manifold": Picture(
        "decoded grid of latent points: the plane of 2-D, slices of 3-D (and a GIF), else a plane through three images",
        "latents:manifold",
    ),
    "traversals": Picture(
        "one image with each latent dimension varied, the most informative first; a deepvae: principal components",
        "latents:traversals",
    ),
    "interpolations": Picture(
        "linear and spherical interpolations between the latents of two images", "latents:interpolations"
    ),
    "analogies": Picture(
        "test images, and their latents decoded with each label (models with --condition label)", "images:analogies"
    ),
    "pseudo-inputs": Picture("learned pseudo-inputs of a VampPrior, the most used first", "images:pseudo_inputs"),
    "clusters": Picture(
        "most confident images of each cluster, and p(cluster | x) beside inputs (mixture priors)", "images:clusters"
    ),
    "confusion": Picture("number of images per cluster and label", "images:confusion"),
    "progress": Picture("GIF of the same samples during training (`vaekit train --record`)", "training:progress"),
}  # fmt: skip


def as_table() -> Table:
    """The catalogue as a table for the terminal."""
    from rich.table import Table

    table = Table()
    table.add_column("picture", no_wrap=True)
    table.add_column("what it shows", overflow="fold")
    for name, picture in PICTURES.items():
        table.add_row(name, picture.summary)
    return table
