"""What every picture is drawn from: a run, its model, and what it keeps of its data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ..data.dataset import Batch
from ..data.splits import in_turn
from ..inference import kept_images as exhibits_room
from ..inference.generation import same_label
from ..inference.kept_images import Exhibits
from ..inference.latent_space import ANCESTORS, PriorShape, prior_shape
from ..model.graph import VAE
from ..pictures import Movie
from ..runs.data import evaluation_images
from ..runs.directory import Run
from ..runs.load import load
from ..settings.analysis import PlotConfig
from ..support.errors import UserError, require

Figures = dict[str, Figure | Movie]  # by the names of their files


@dataclass(frozen=True)
class Scene:
    """A run with its model and exhibits; `settings` are the user's wishes."""

    run: Run
    model: VAE
    exhibits: Exhibits
    settings: PlotConfig
    data_dir: str | Path | None = None

    @classmethod
    def of(
        cls, run: Run | str | Path, settings: PlotConfig, data_dir: str | Path | None = None
    ) -> Scene:
        """Load a run. Raises UserError for one without weights, or with neither exhibits nor data."""
        run = Run.of(run)
        if settings.label is not None:
            same_label(run.blueprint, 1, settings.label)
        model = load(run)
        exhibits = exhibits_room.of_run(run, model, data_dir)
        return cls(run, model, exhibits, settings, data_dir)

    @property
    def condition(self) -> str:
        return self.model.blueprint.settings.condition

    @property
    def classes(self) -> list[str]:
        """The names of the labels; their numbers, where they have no names."""
        names = self.run.section("data").get("classes") or []
        labels = self.exhibits.code_labels
        most = 0 if labels is None else int(labels.max()) + 1
        return [*names, *map(str, range(len(names), max(most, self.model.blueprint.classes)))]

    @property
    def inverted(self) -> bool:
        """Whether manifolds are dark on white: those of black-and-white sets are (Kingma and Welling 2014, fig. 4)."""
        wish = self.settings.invert
        black_and_white = (
            self.run.data.binarisation != "none" and self.model.blueprint.shape[0] == 1
        )
        return black_and_white if wish == "auto" else wish == "yes"

    def prior(self, latent: str, label: int | None = None) -> PriorShape:
        """The prior of a latent, given a label or over all; over test images, of which the model is given parts, where
        it completes images."""
        y = None if label is None else torch.full((ANCESTORS,), label)
        if self.condition.startswith("quadrants"):
            images = self.exhibits.batches["test"].images
            y = images[torch.arange(ANCESTORS) % len(images)]
        return prior_shape(self.model, latent, y)

    def rows(self, count: int) -> Tensor:
        """Test images to start from (count,): those the user names, then others of different classes."""
        chosen = self.settings.images
        if chosen:
            known = self.exhibits.code_rows
            for row in chosen:
                require(
                    0 <= row <= int(known[-1]) and bool((known == row).any()),
                    f"--images {row} is none of the test images whose latents the run keeps, 0 to {int(known[-1])}"
                    + ("" if len(known) > known[-1] else f" ({len(known):,} of them)"),
                )
        batch, rows = self.exhibits.batches["test"], self.exhibits.rows["test"]
        others = [row for row in rows[by_class(batch, count)].tolist() if row not in chosen]
        return torch.tensor([*chosen, *others][:count])

    def codes(self, rows: Tensor) -> dict[str, Tensor]:
        """The latents' posterior means (n, D) of test images, by latent."""
        at = self.exhibits.places(rows)
        return {name: codes[at] for name, codes in self.exhibits.codes.items()}

    def labels(self, rows: Tensor) -> Tensor | None:
        """What a conditional model is to decode with: the label that the user names, or those of the images."""
        if self.condition != "label":
            return None
        if self.settings.label is not None:
            return same_label(self.model.blueprint, len(rows), self.settings.label)
        labels = self.exhibits.code_labels
        assert labels is not None
        return labels[self.exhibits.places(rows)]

    def images(self, rows: Tensor) -> Tensor:
        """The test images of these rows (n, C, H, W): those the run keeps, or from its data. Raises UserError."""
        batch, kept = self.exhibits.batches["test"], self.exhibits.rows["test"]
        if bool(torch.isin(rows, kept).all()):
            return batch.images[torch.searchsorted(kept, rows)]
        try:
            return evaluation_images(self.run, "test", None, self.data_dir)[rows].images
        except UserError as error:
            missing = rows[~torch.isin(rows, kept)].tolist()
            raise UserError(
                f"the run does not keep test image {missing[0]} (it keeps {', '.join(map(str, kept.tolist()[:10]))} "
                f"...), and would need its data: {error}"
            ) from None


def by_class(batch: Batch, count: int) -> Tensor:
    """Which images to show (count,): of each class in turn, or from all over them."""
    return in_turn(batch.labels, len(batch), count)
