"""The input of every picture: a run, its model, its picture data and the settings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ..data.dataset import Batch
from ..data.splits import balanced_rows
from ..inference.generation import repeat_label
from ..inference.latent_space import ANCESTRAL_SAMPLES, PriorMixture, prior_mixture
from ..inference.picture_data import PictureData, load_or_create
from ..model.graph import VAE
from ..pictures import Bands, Movie, choose_bands
from ..runs.data import evaluation_images
from ..runs.directory import Run, pad_with_numbers
from ..runs.load import load_trained
from ..settings.analysis import PlotConfig, parse_bands
from ..support.errors import UserError, printable, require
from .catalog import PictureUnavailable

Figures = dict[str, Figure | Movie]  # by file name without ending


@dataclass(frozen=True)
class PictureContext:
    """A run with its model, its picture data, and the user's plot settings."""

    run: Run
    model: VAE
    sha256: str  # of the model's weights
    picture_data: PictureData
    settings: PlotConfig
    bands: Bands  # that show images of any number of channels
    data_dir: str | Path | None = None

    @classmethod
    def of(
        cls, run: Run | str | Path, settings: PlotConfig, data_dir: str | Path | None = None
    ) -> PictureContext:
        """Load a run. Raises UserError where its weights, or both its picture data and its data set, are missing."""
        run = Run.of(run)
        if settings.label is not None:
            settings = replace(settings, label=run.label_number(settings.label))
        trained = load_trained(run)
        picture_data = load_or_create(run, trained, data_dir)
        bands = choose_bands(picture_data.batches["train"].images, parse_bands(settings.bands))
        return cls(run, trained.model, trained.sha256, picture_data, settings, bands, data_dir)

    @property
    def condition(self) -> str:
        return self.model.blueprint.settings.condition

    @property
    def classes(self) -> list[str]:
        """Class names; the label number where a class has no name."""
        names, labels = self.run.class_names, self.picture_data.code_labels
        count = 0 if labels is None else int(labels.max()) + 1
        return pad_with_numbers([*map(printable, names)], count)

    @property
    def inverted(self) -> bool:
        """Whether manifolds are dark on white: by default, of binary images (Kingma and Welling 2014, fig. 4)."""
        invert = self.settings.invert
        binary = self.run.data.binarisation != "none" and self.model.blueprint.shape[0] == 1
        return binary if invert == "auto" else invert == "yes"

    def prior(self, latent: str, label: int | None = None) -> PriorMixture:
        """The prior of a latent, given a label or averaged over all; averaged over the visible parts of test images
        where the model completes images."""
        y = None if label is None else torch.full((ANCESTRAL_SAMPLES,), label)
        if self.condition.startswith("quadrants"):
            images = self.picture_data.batches["test"].images
            y = images[torch.arange(ANCESTRAL_SAMPLES) % len(images)]
        return prior_mixture(self.model, latent, y)

    def start_rows(self, count: int) -> Tensor:
        """Indices of the test images to start from (count,): those of --images, then others of different classes."""
        chosen = self.settings.images
        if chosen:
            stored = self.picture_data.code_rows
            for row in chosen:
                require(
                    0 <= row <= int(stored[-1]) and bool((stored == row).any()),
                    f"--images {row} is not one of the test images whose latents the run stores, 0 to {int(stored[-1])}"
                    + ("" if len(stored) > stored[-1] else f" ({len(stored):,} of them)"),
                )
        batch, rows = self.picture_data.batches["test"], self.picture_data.rows["test"]
        others = [
            row for row in rows[balanced_positions(batch, count)].tolist() if row not in chosen
        ]
        return torch.tensor([*chosen, *others][:count])

    @torch.no_grad()
    def codes(self, rows: Tensor) -> dict[str, Tensor]:
        """Posterior means (n, D) of test images, by latent, of a deep hierarchy from the images. Raises UserError."""
        positions, stored = self.picture_data.positions(rows), self.picture_data.codes
        if stored.keys() == {*self.model.prior}:
            return {name: codes[positions] for name, codes in stored.items()}
        labels = self.picture_data.code_labels
        y = None if labels is None else labels[positions]
        posteriors = self.model.posteriors(self.model.given(self.images(rows), y))
        return {name: q.mean for name, q in posteriors.items()}

    def labels(self, rows: Tensor) -> Tensor | None:
        """Labels (n,) for a conditional model to decode with: --label, or those of the images."""
        if self.condition != "label":
            return None
        if self.settings.label is not None:
            return repeat_label(self.model.blueprint, len(rows), int(self.settings.label))
        labels = self.picture_data.code_labels
        assert labels is not None
        return labels[self.picture_data.positions(rows)]

    def images(self, rows: Tensor) -> Tensor:
        """Test images (n, C, H, W) by index, from the picture data or else from the data set. Raises UserError."""
        batch, stored = self.picture_data.batches["test"], self.picture_data.rows["test"]
        if bool(torch.isin(rows, stored).all()):
            return batch.images[torch.searchsorted(stored, rows)]
        try:
            return evaluation_images(self.run, "test", None, self.data_dir)[rows].images
        except UserError as error:
            missing = rows[~torch.isin(rows, stored)].tolist()
            examples = ", ".join(map(str, stored.tolist()[:10]))
            raise UserError(
                f"the run does not store test image {missing[0]} (it stores {examples} ...), so its data set is "
                f"needed: {error}"
            ) from None


def balanced_positions(batch: Batch, count: int) -> Tensor:
    """Positions of `count` images of the batch (count,), balanced over classes, or evenly spaced without labels."""
    return balanced_rows(batch.labels, len(batch), count)


def require_decodable(context: PictureContext) -> None:
    """Raise PictureUnavailable for a model that needs part of an image to decode."""
    if context.condition.startswith("quadrants"):
        raise PictureUnavailable("a model that completes images cannot decode latents alone")
