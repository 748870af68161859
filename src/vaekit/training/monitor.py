"""What looks on at a training: measures how the latents are used, warns, and draws, films and logs where asked to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data import freeze
from ..data.dataset import Batch
from ..data.splits import in_turn, spread
from ..inference import generation
from ..likelihood.latent_use import IMAGES, Warnings, examine, record
from ..model.graph import VAE
from ..runs.directory import Run
from ..settings.training import WatchConfig
from ..support.devices import evaluating

if TYPE_CHECKING:
    from ..pictures import Movie
    from .job import Job
    from .loop import Epoch

FRAMES = 24
STEPS = 100  # at least, from one look at a model's health to the next
EPOCHS_FOLDER, FILM_FOLDER = "epochs", "progress"


class Watch:
    """`track` goes around the batches of each epoch, `look` takes what each epoch yields, `finish` ends it."""

    def __init__(self, job: Job, before: Sequence[Mapping[str, Any]] = (), done: int = 0) -> None:
        """`before`: what metrics.jsonl has of earlier epochs, of a training that goes on; `done`: its steps."""
        run, model, data, binarisation = job.run, job.model, job.data, job.binarisation
        device, config, settings = job.device, job.config, job.watch
        self.run, self.config, self.settings = run, config, settings
        # Validation images: a training does not look at the test images.
        images = data.validation
        some, few = spread(len(images), IMAGES), in_turn(images.labels, len(images), 20)
        self.sample = freeze(images.take(some), binarisation).to(device)
        self.few = freeze(images.take(few), binarisation).to(device)[:]
        steps = config.steps(len(data.train))
        self.warnings = Warnings(model.blueprint.settings, config, steps)
        for epoch in before:
            self.warnings.remember(epoch)
        self.every = max(1, STEPS // steps)
        self.film = (
            Film(run, model, self.few, steps * config.epochs, done) if settings.record else None
        )
        self.board: Any = None
        if settings.tensorboard:
            from .tensorboard import Board

            self.board = Board(run, model, self.few, len(before))
            self.rows, self.classes = spread(len(data.test), IMAGES), data.classes
            self.test = freeze(data.test, binarisation).take(self.rows)
            self.dark = data.black_and_white and data.shape[0] == 1

    def track(self, batches: Iterable[Batch]) -> Iterable[Batch]:
        return batches if self.film is None else self.film.track(batches)

    def go_back(self, done: int) -> None:
        """The training is back at so many steps."""
        if self.film is not None:
            self.film.step = done

    def look(self, epoch: Epoch, model: VAE) -> dict[str, Any]:
        """What metrics.jsonl is to keep besides the epoch: its health, and new warnings; of very short epochs not of
        each, which would take longer than the training."""
        every, number = self.settings.pictures_every, epoch.epoch
        if every and number % every == 0:
            draw_epoch(self.run, model, self.few, number)
        due = number % self.every == 0 or number in (1, self.config.epochs)
        health = examine(model, self.sample) if due else None
        if self.board is not None:
            self.board.look(epoch, health, model, self.sample)
        if health is None:
            return {}
        return record(health, self.warnings.new(number, epoch.validation_kl, health))

    def finish(self, model: VAE) -> None:
        """`model` has the best weights."""
        if self.film is not None:
            self.film.finish()
        if self.board is not None:
            test = self.test.to(self.sample.device)
            self.board.finish(model, test, self.rows, self.classes, self.dark)


def check_watch(settings: WatchConfig) -> WatchConfig:
    """The settings. Raises UserError where they need what is not installed."""
    if settings.tensorboard:
        from .tensorboard import writer_class

        writer_class()
    return settings


class Film:
    """Pictures of the same draws from the prior while a model learns: early ones dense, later ones sparse."""

    def __init__(self, run: Run, model: VAE, few: Batch, steps: int, done: int = 0) -> None:
        self.run, self.model, self.few = run, model, few
        self.steps, self.step = frame_steps(steps), done

    def track(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        for batch in batches:
            if self.step in self.steps:
                self.shoot()
            self.step += 1
            yield batch

    def shoot(self) -> None:
        from .. import pictures

        figure = pictures.image_grid(
            generation.fixed_samples(self.model, 25, self.few.images),
            columns=5,
            title=f"step {self.step:,}",
        )
        folder = self.run.pictures / FILM_FOLDER
        folder.mkdir(exist_ok=True)
        pictures.save(figure, folder / f"step-{self.step:09d}.png")

    def finish(self) -> None:
        """The last picture, and all of them as RUN/pictures/progress.gif."""
        from .. import pictures

        self.shoot()
        movie = film_of(self.run)
        assert movie is not None
        pictures.save(movie, self.run.pictures / "progress.gif")


def frame_steps(steps: int) -> set[int]:
    """After which of the steps to take a picture: 0, 1, 2, ... further and further apart."""
    return {0, *(round(steps ** (i / (FRAMES - 1))) for i in range(FRAMES))}


def film_of(run: Run) -> Movie | None:
    """The film of a training so far, if it is filmed."""
    from .. import pictures

    frames = film_frames(run)
    return pictures.Movie(frames, 0.25, hold=1.0) if frames else None


def film_frames(run: Run) -> list[Path]:
    """The pictures of a training so far, oldest first."""
    return sorted((run.path / "pictures" / FILM_FOLDER).glob("step-*.png"))


def draw_epoch(run: Run, model: VAE, few: Batch, epoch: int) -> None:
    """Validation images above their reconstructions, and draws from the prior, as they are after an epoch."""
    from .. import pictures

    folder = run.pictures / EPOCHS_FOLDER
    folder.mkdir(exist_ok=True)
    with evaluating(model):
        redrawn = generation.reconstruct(model, few.images, few.labels)
    for name, figure in [
        ("reconstructions", pictures.pairs(few.images, redrawn, title=f"epoch {epoch}")),
        (
            "samples",
            pictures.image_grid(
                generation.fixed_samples(model, 40, few.images), 10, title=f"epoch {epoch}"
            ),
        ),
    ]:
        pictures.save(figure, folder / f"{name}-{epoch:04d}.png")
