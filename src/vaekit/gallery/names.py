"""The table of pictures: a name, what it shows, and the function that draws it. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..support.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table


class DoesNotApply(UserError):
    """A run has not what a picture shows."""


@dataclass(frozen=True)
class Picture:
    """A row of the table: `summary` for people, `home` the function, as module:name in this package."""

    summary: str
    home: str


PICTURES: dict[str, Picture] = {
    "curves": Picture(
        "ELBO, log-likelihood and KL by epoch, active units, KL per dimension; ELBO by samples seen",
        "training:curves",
    ),
    "reconstructions": Picture(
        "test and training images above their reconstructions, and ten of each class", "images:reconstructions"
    ),
    "samples": Picture(
        "images from the trained prior, a row for each class or cluster", "images:samples"
    ),
    "latents": Picture(
        "test images as points by class, with the prior's contours: 2-D, 3-D (and a GIF), else PCA and t-SNE or UMAP",
        "latents:latents",
    ),
    "manifold": Picture(
        "what a grid of latents decodes to: of 2-D all, of 3-D slices (and a GIF), else a plane through three images",
        "latents:manifold",
    ),
    "traversals": Picture(
        "one image, each latent dimension in turn changed, the one with most information first", "latents:traversals"
    ),
    "interpolations": Picture(
        "from image to image through the latent space, on a straight line and on an arc", "latents:interpolations"
    ),
    "analogies": Picture(
        "test images, and what their latents become with every label (models with labels)", "images:analogies"
    ),
    "pseudo-inputs": Picture("what a VampPrior has learned, the most used first", "images:pseudo_inputs"),
    "clusters": Picture(
        "the surest images of each cluster, and p(cluster | x) beside inputs (mixture priors)", "images:clusters"
    ),
    "confusion": Picture("how many images of each cluster have each label", "images:confusion"),
    "progress": Picture("GIF of the same samples over the training (`vaekit train --record`)", "training:progress"),
}  # fmt: skip


def as_table() -> Table:
    """The pictures as a table for the screen."""
    from rich.table import Table

    table = Table()
    table.add_column("picture", no_wrap=True)
    table.add_column("what it shows", overflow="fold")
    for name, picture in PICTURES.items():
        table.add_row(name, picture.summary)
    return table
