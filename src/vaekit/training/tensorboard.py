"""The TensorBoard log of a training, in RUN/tensorboard; the only module that imports TensorBoard."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..data import EvalSplit
from ..data.dataset import Batch
from ..inference import generation
from ..likelihood.latent_use import LatentUse, batch_size, code_posteriors
from ..model.graph import VAE
from ..pictures.bands import Bands
from ..pictures.grids import alternate_rows, canvas
from ..runs.directory import Run
from ..support.devices import eval_mode
from ..support.errors import UserError

if TYPE_CHECKING:
    from .loop import Epoch

MAX_SPRITE = 8192  # pixels per side that browsers can show
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
    "effective_components": "latents/effective components",
    "share_at_floor": "latents/fraction of pixels at the smallest scale",
}


def writer_class() -> Any:
    """torch's SummaryWriter. Raises UserError where TensorBoard is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("--tensorboard needs: pip install 'vaekit[tensorboard]'") from None
    return SummaryWriter


class TensorBoardLogger:
    """Writes scalars, histograms and images in `on_epoch`, and the projector in `finish`."""

    def __init__(self, run: Run, model: VAE, examples: Batch, bands: Bands, epochs: int) -> None:
        """`epochs`: finished epochs of a resumed training; entries of later ones are hidden."""
        self.examples, self.bands = examples, bands
        self.augmented = run.training.augment is not None
        purge = epochs + 1 if epochs else None
        self.writer = writer_class()(str(run.inside("tensorboard")), purge_step=purge)
        self.writer.add_text("config", f"```\n{(run.path / 'config.json').read_text()}\n```")
        if bands.text:
            self.writer.add_text("images", bands.text)
        self.add_graph(model)

    def add_graph(self, model: VAE) -> None:
        """Write the graph of the ELBO."""
        with torch.no_grad(), warnings.catch_warnings():
            # torch.jit, which traces it, is deprecated and warns that random numbers differ between runs.
            warnings.simplefilter("ignore")
            self.writer.add_graph(TracedElbo(model), graph_inputs(self.examples))

    @torch.no_grad()
    def on_epoch(
        self, epoch: Epoch, latent_use: LatentUse | None, model: VAE, sample: EvalSplit
    ) -> None:
        """Write the scalars of an epoch, and histograms and images where its latent use was measured."""
        step, writer = epoch.epoch, self.writer
        values = asdict(epoch) | ({} if latent_use is None else asdict(latent_use))
        for key, tag in SCALARS.items():
            value = values.get(key)
            if value is not None and math.isfinite(value):
                augmented = self.augmented and tag.endswith("/train")
                writer.add_scalar(f"{tag}, augmented" if augmented else tag, value, step)
        if latent_use is None:
            return
        for name, kl in (latent_use.kl_per_dimension or {}).items():
            writer.add_histogram(f"KL per dimension/{name}", torch.tensor(kl), step)
        for name, kl in (latent_use.marginal_kl_per_dimension or {}).items():
            writer.add_histogram(f"marginal KL per dimension/{name}", torch.tensor(kl), step)
        for name, part in (latent_use.kl_parts or {}).items():
            writer.add_scalar(f"KL/validation, {name.replace('_', ' ')}", part, step)
        for name, total in (latent_use.kl_per_latent or {}).items():
            writer.add_scalar(f"KL per latent/{name}", total, step)
        for name, parameter in model.named_parameters():
            writer.add_histogram(f"parameters/{name}", parameter, step)
        with eval_mode(model):
            batch = sample[: batch_size(model)]
            for name, q in model.posteriors(model.given(batch.images, batch.labels)).items():
                writer.add_histogram(f"latents/{name} means", q.mean, step)
                with suppress(NotImplementedError):  # of a flow
                    writer.add_histogram(f"latents/{name} scales", q.stddev, step)
            x, y = self.examples.images, self.examples.labels
            reconstructions = generation.reconstruct(model, x, y)
            pairs = alternate_rows(self.bands(x), self.bands(reconstructions), 10)
            self.add_grid("reconstructions", pairs, step)
            samples = generation.fixed_samples(model, 40, x)
            self.add_grid("samples", self.bands(samples), step)
        writer.flush()

    def add_grid(self, tag: str, images: Tensor, step: int) -> None:
        """Write grey or colour images as a grid of ten columns."""
        self.writer.add_image(tag, canvas(images, 10), step, dataformats="HWC")

    @torch.no_grad()
    def finish(
        self, model: VAE, test: EvalSplit, rows: Tensor, classes: Sequence[str] | None, invert: bool
    ) -> None:
        """Write the projector: codes of test images, each with its picture (inverted where asked), label and row."""
        limit = (MAX_SPRITE // max(model.blueprint.shape[1:])) ** 2
        batch, rows = test[:limit], rows[:limit]
        header, metadata = ["label", "index"], []
        for i, row in enumerate(rows.tolist()):
            label = "" if batch.labels is None else int(batch.labels[i])
            name = classes[label] if classes and isinstance(label, int) else str(label)
            metadata.append([name, str(row)])
        shown = self.bands(batch.images)
        images = sprites(1 - shown if invert else shown)
        codes: dict[str, list[Tensor]] = {}
        for part in torch.arange(len(batch)).split(batch_size(model)):
            given = model.given(batch[part].images, batch[part].labels)
            for name, q in code_posteriors(model, given).items():
                codes.setdefault(name, []).append(q.mean)
        for name, parts in codes.items():
            points = torch.cat(parts)
            # The projector needs at least three dimensions.
            points = nn.functional.pad(points, (0, max(0, 3 - points.shape[1])))
            self.writer.add_embedding(
                points, metadata, images, tag=f"test_{name}", metadata_header=header
            )
        self.writer.close()


def sprites(images: Tensor) -> Tensor:
    """Grey or colour images (N, 1 or 3, H, W) as the projector needs them: square."""
    height, width = images.shape[-2:]
    side = max(height, width)
    return nn.functional.pad(images, (0, side - width, 0, side - height), value=1.0)


class TracedElbo(nn.Module):
    """The module whose graph is shown: from an image to the log-likelihood and KL of its ELBO."""

    def __init__(self, model: VAE) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        inference = self.model(x, y)
        return inference.log_likelihood, inference.kl


def graph_inputs(batch: Batch) -> tuple[Tensor, ...]:
    """The arguments of TracedElbo for a batch."""
    return (batch.images,) if batch.labels is None else (batch.images, batch.labels)
