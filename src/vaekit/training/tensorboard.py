"""What a training writes for TensorBoard, into RUN/tensorboard; the only room that imports it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..data import Frozen
from ..data.dataset import Batch
from ..inference import generation
from ..likelihood.latent_use import Health, batch_size
from ..model.distributions import stddev
from ..model.graph import VAE
from ..pictures.grids import alternating, canvas
from ..runs.directory import Run
from ..support.devices import evaluating
from ..support.errors import UserError

if TYPE_CHECKING:
    from .loop import Epoch

SPRITE = 8192  # pixels of a side that browsers still show
SCALARS = {
    "train_elbo": "ELBO/train",
    "validation_elbo": "ELBO/validation",
    "train_log_likelihood": "log-likelihood/train",
    "validation_log_likelihood": "log-likelihood/validation",
    "kl": "KL/train",
    "validation_kl": "KL/validation",
    "train_objective": "objective/train",
    "validation_objective": "objective/validation",
    "learning_rate": "training/learning rate",
    "kl_weight": "training/KL weight",
    "images_per_second": "training/images per second",
    "active_units": "latents/active units",
    "components_used": "latents/components used",
    "components_told_apart": "latents/components told apart",
    "share_at_floor": "latents/share of pixels at the smallest scale",
}


def writer_class() -> Any:
    """torch's SummaryWriter. Raises UserError where TensorBoard is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("--tensorboard needs: pip install 'vaekit[tensorboard]'") from None
    return SummaryWriter


class Board:
    """`look` takes each epoch, `finish` adds the projector and closes the files."""

    def __init__(self, run: Run, model: VAE, few: Batch, epochs: int = 0) -> None:
        """`epochs`: those that were before, of a training that goes on; what was written of later ones is hidden."""
        self.few = few
        purge = epochs + 1 if epochs else None
        self.writer = writer_class()(str(run.path / "tensorboard"), purge_step=purge)
        self.writer.add_text("config", f"```\n{(run.path / 'config.json').read_text()}\n```")
        self.add_graph(model)

    def add_graph(self, model: VAE) -> None:
        with torch.no_grad(), warnings.catch_warnings():
            # torch.jit traces it, is deprecated, and warns that what is drawn differs from run to run.
            warnings.simplefilter("ignore")
            self.writer.add_graph(Traced(model), inputs(self.few))

    @torch.no_grad()
    def look(self, epoch: Epoch, health: Health | None, model: VAE, sample: Frozen) -> None:
        """Numbers of each epoch, the rest of those whose health was measured."""
        step, writer = epoch.epoch, self.writer
        values = asdict(epoch) | ({} if health is None else asdict(health))
        for key, tag in SCALARS.items():
            value = values.get(key)
            if value is not None and math.isfinite(value):
                writer.add_scalar(tag, value, step)
        if health is None:
            return
        for name, kl in (health.kl_per_dimension or {}).items():
            writer.add_histogram(f"KL per dimension/{name}", torch.tensor(kl), step)
        for name, parameter in model.named_parameters():
            writer.add_histogram(f"parameters/{name}", parameter, step)
        with evaluating(model):
            batch = sample[: batch_size(model)]
            for name, q in model.posteriors(model.given(batch.images, batch.labels)).items():
                writer.add_histogram(f"latents/{name} means", q.mean, step)
                writer.add_histogram(f"latents/{name} scales", stddev(q), step)
            few = self.few
            redrawn = generation.reconstruct(model, few.images, few.labels)
            self.add_grid("reconstructions", alternating(few.images, redrawn, 10), step)
            self.add_grid("samples", generation.fixed_samples(model, 40, few.images), step)
        writer.flush()

    def add_grid(self, tag: str, images: Tensor, step: int) -> None:
        self.writer.add_image(tag, canvas(images, 10), step, dataformats="HWC")

    @torch.no_grad()
    def finish(
        self, model: VAE, test: Frozen, rows: Tensor, classes: Sequence[str] | None, dark: bool
    ) -> None:
        """The projector: test images as points, with a picture, a label and the number of their row each; `dark` turns
        black to white."""
        most = (SPRITE // max(model.blueprint.shape[1:])) ** 2
        batch, rows = test[:most], rows[:most]
        header, metadata = ["label", "index"], []
        for i, row in enumerate(rows.tolist()):
            label = "" if batch.labels is None else int(batch.labels[i])
            named = classes[label] if classes and isinstance(label, int) else str(label)
            metadata.append([named, str(row)])
        images = sprites(1 - batch.images if dark else batch.images)
        for name, q in model.posteriors(model.given(batch.images, batch.labels)).items():
            # The projector wants three dimensions.
            points = nn.functional.pad(q.mean, (0, max(0, 3 - q.mean.shape[1])))
            self.writer.add_embedding(
                points, metadata, images, tag=f"test_{name}", metadata_header=header
            )
        self.writer.close()


def sprites(images: Tensor) -> Tensor:
    """Images (N, C, H, W) as the projector wants them: square, grey or of three colours."""
    height, width = images.shape[-2:]
    side = max(height, width)
    if images.shape[1] not in (1, 3):
        images = images[:, :1]
    return nn.functional.pad(images, (0, side - width, 0, side - height), value=1.0)


class Traced(nn.Module):
    """What the graph is drawn of: from an image to the two parts of its ELBO."""

    def __init__(self, model: VAE) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        inference = self.model(x, y)
        return inference.log_likelihood, inference.kl


def inputs(few: Batch) -> tuple[Tensor, ...]:
    return (few.images,) if few.labels is None else (few.images, few.labels)
