"""Monitoring of a training: metrics of latent use, warnings, and optional pictures, movie and TensorBoard log."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..data import Dataset, eval_split
from ..data.dataset import Batch, ResolvedBinarisation
from ..data.splits import balanced_rows, evenly_spaced
from ..inference import generation
from ..inference.picture_data import training_examples
from ..likelihood.elbo import modelled_pixels
from ..likelihood.latent_use import MAX_IMAGES, LatentWarnings, measure_latent_use, metrics_record
from ..model.graph import VAE
from ..model.pixels import decoder_channels, likelihood_head
from ..runs.directory import Run
from ..settings.training import MonitorConfig, TrainConfig
from ..support.devices import eval_mode
from .learner import Position
from .recovery import smaller_steps

if TYPE_CHECKING:
    from ..pictures import Bands, Movie
    from .loop import Epoch

MOVIE_FRAMES = 24
MIN_STEPS_BETWEEN = 100  # between two measurements of latent use
DIVERGED = "the training has diverged"
EPOCHS_FOLDER, MOVIE_FOLDER = "epochs", "progress"


class Monitor:
    """`track` wraps the batches of each epoch, `on_epoch` takes its metrics and model, `finish` closes the files."""

    def __init__(
        self,
        run: Run,
        model: VAE,
        data: Dataset,
        binarisation: ResolvedBinarisation,
        config: TrainConfig,
        settings: MonitorConfig,
        device: torch.device,
        history: Sequence[Mapping[str, Any]],
        steps_done: int,
    ) -> None:
        """`history`: the earlier epochs of metrics.jsonl of a resumed training; `steps_done`: its steps so far."""
        self.run, self.config, self.settings = run, config, settings
        # Validation images, as test images must not influence a training.
        images = data.validation
        rows = evenly_spaced(len(images), MAX_IMAGES)
        self.sample = eval_split(images.take(rows), binarisation).to(device)
        rows = balanced_rows(images.labels, len(images), 20)
        self.examples = eval_split(images.take(rows), binarisation).to(device)[:]
        steps = config.steps_per_epoch(len(data.train))
        self.warnings = LatentWarnings(model.blueprint.settings, config, steps)
        for epoch in history:
            self.warnings.replay(epoch)
        self.diverged = any(DIVERGED in text for e in history for text in e.get("warnings", []))
        self.untrained = untrained_log_likelihood(model, self.examples.images)
        self.pixels = modelled_pixels(model)
        self.interval = max(1, MIN_STEPS_BETWEEN // steps)
        self.bands: Bands | None = None
        if settings.pictures_every or settings.record or settings.tensorboard:
            from ..pictures import choose_bands

            # Fitted to the same images as those of the finished run.
            self.bands = choose_bands(training_examples(data.train, binarisation).images)
        self.movie = (
            MovieRecorder(
                run,
                model,
                self.examples,
                self.bands,
                config.total_steps(len(data.train)),
                steps_done,
            )
            if settings.record
            else None
        )
        self.tensorboard: Any = None
        if settings.tensorboard:
            from .tensorboard import TensorBoardLogger

            assert self.bands is not None
            self.tensorboard = TensorBoardLogger(
                run, model, self.examples, self.bands, len(history)
            )
            self.rows, self.classes = evenly_spaced(len(data.test), MAX_IMAGES), data.classes
            self.test = eval_split(data.test, binarisation).take(self.rows)
            self.invert = data.black_and_white and data.shape[0] == 1

    def track(self, batches: Iterable[Batch]) -> Iterable[Batch]:
        """The batches, with frames of the movie recorded between them."""
        return batches if self.movie is None else self.movie.track(batches)

    def rewind(self, steps_done: int) -> None:
        """Go back to the state after `steps_done` steps."""
        if self.movie is not None:
            self.movie.step = steps_done

    def on_epoch(self, epoch: Epoch, model: VAE) -> dict[str, Any]:
        """Latent use and new warnings, for metrics.jsonl; not for each of very short epochs, as measuring would take
        longer than training."""
        pictures_every, number = self.settings.pictures_every, epoch.epoch
        if pictures_every and number % pictures_every == 0:
            draw_epoch(self.run, model, self.examples, self.bands, number)
        due = number % self.interval == 0 or number in (1, self.config.epochs)
        latent_use = measure_latent_use(model, self.sample) if due else None
        if self.tensorboard is not None:
            self.tensorboard.on_epoch(epoch, latent_use, model, self.sample)
        warnings = self.check_divergence(epoch)
        if latent_use is None:
            return {"warnings": warnings} if warnings else {}
        warnings += self.warnings.check(number, epoch.validation_kl, latent_use)
        return metrics_record(latent_use, warnings)

    def check_divergence(self, epoch: Epoch) -> list[str]:
        """A warning, given once, where the model explains images worse than before its training."""
        # A KL is large at first where clusters are narrow, but no more than twice what an 8-bit pixel holds; what an
        # objective does not weigh, such as the KL during its warm-up, may be any.
        worst, worst_elbo = self.untrained - self.pixels, self.untrained - 10 * self.pixels
        weighed = epoch.epoch >= self.config.warmup and epoch.validation_objective < worst_elbo
        bad = []
        if epoch.validation_log_likelihood < worst:
            bad.append(f"log-likelihood {epoch.validation_log_likelihood:.4g}")
        if weighed and epoch.validation_elbo < worst_elbo:
            bad.append(f"ELBO {epoch.validation_elbo:.4g}")
        if self.diverged or not bad:
            return []
        self.diverged = True
        at = Position(clip_gradient=self.config.clip_gradient)
        return [
            f"{DIVERGED}: {bad[-1]} nats on validation, where an untrained model has about {self.untrained:.4g}; "
            f"{smaller_steps(self.config, at)}"
        ]

    def finish(self, model: VAE) -> None:
        """Write the movie and the projector; `model` has the best weights."""
        if self.movie is not None:
            self.movie.finish()
        if self.tensorboard is not None:
            test = self.test.to(self.sample.device)
            self.tensorboard.finish(model, test, self.rows, self.classes, self.invert)


def check_monitor(settings: MonitorConfig) -> MonitorConfig:
    """The settings. Raises UserError where TensorBoard is needed but not installed."""
    if settings.tensorboard:
        from .tensorboard import writer_class

        writer_class()
    return settings


@torch.no_grad()
def untrained_log_likelihood(model: VAE, images: Tensor) -> float:
    """Mean log p(x), nats, of a decoder whose network gives zeros: what a model that knows nothing has."""
    settings, (channels, *size) = model.blueprint.settings, model.blueprint.shape
    head = likelihood_head(settings, channels)
    likelihood = head(torch.zeros(len(images), decoder_channels(settings, channels), *size))
    share = modelled_pixels(model) / math.prod(model.blueprint.shape)
    return share * float(likelihood.log_prob(images.cpu()).mean())


class MovieRecorder:
    """Records samples of the same prior noise while a model trains, often at first, then ever more rarely."""

    def __init__(
        self,
        run: Run,
        model: VAE,
        examples: Batch,
        bands: Bands | None,
        steps: int,
        steps_done: int,
    ) -> None:
        self.run, self.model, self.examples, self.bands = run, model, examples, bands
        self.steps, self.step = frame_steps(steps), steps_done

    def track(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches, with a frame recorded before those at `frame_steps`."""
        for batch in batches:
            if self.step in self.steps:
                self.add_frame()
            self.step += 1
            yield batch

    def add_frame(self) -> None:
        """Save the samples of the current model as a frame."""
        from .. import pictures

        figure = pictures.image_grid(
            generation.fixed_samples(self.model, 25, self.examples.images),
            columns=5,
            title=f"step {self.step:,}",
            bands=self.bands,
        )
        folder = self.run.picture_folder(MOVIE_FOLDER)
        pictures.save(figure, folder / f"step-{self.step:09d}.png")

    def finish(self) -> None:
        """Add the last frame and save all as RUN/pictures/progress.gif."""
        from .. import pictures

        self.add_frame()
        movie = training_movie(self.run)
        assert movie is not None
        pictures.save(movie, self.run.pictures / "progress.gif")


def frame_steps(steps: int) -> set[int]:
    """The steps after which to record a frame: 0, 1, 2, ..., at geometrically growing distances."""
    return {0, *(round(steps ** (i / (MOVIE_FRAMES - 1))) for i in range(MOVIE_FRAMES))}


def training_movie(run: Run) -> Movie | None:
    """The movie of a training so far, or None where none is recorded."""
    from .. import pictures

    frames = movie_frames(run)
    return pictures.Movie(frames, 0.25, hold=1.0) if frames else None


def movie_frames(run: Run) -> list[Path]:
    """The recorded frames of a training so far, oldest first."""
    folder = run.inside("pictures") / MOVIE_FOLDER
    names = sorted(path.name for path in folder.glob("step-*.png"))
    return [run.inside(f"pictures/{MOVIE_FOLDER}/{name}") for name in names]


def draw_epoch(run: Run, model: VAE, examples: Batch, bands: Bands | None, epoch: int) -> None:
    """Save pictures of validation images above their reconstructions, and of samples, after an epoch."""
    from .. import pictures

    folder = run.picture_folder(EPOCHS_FOLDER)
    with eval_mode(model):
        reconstructions = generation.reconstruct(model, examples.images, examples.labels)
    samples = generation.fixed_samples(model, 40, examples.images)
    title = f"epoch {epoch}"
    figures = {
        "reconstructions": pictures.pairs(
            examples.images, reconstructions, title=title, bands=bands
        ),
        "samples": pictures.image_grid(samples, 10, title=title, bands=bands),
    }
    for name, figure in figures.items():
        pictures.save(figure, folder / f"{name}-{epoch:04d}.png")
