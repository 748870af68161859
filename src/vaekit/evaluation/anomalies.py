"""`anomalies`: score images by how odd they are for a trained model, with a threshold from its validation images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data import Dataset, EvalSplit, Split, eval_split
from ..data.sources.layout import NORMAL
from ..data.splits import sorted_random_rows
from ..inference.encoding import images_to_encode
from ..inference.tables import Columns, Table
from ..model.graph import VAE
from ..runs.data import load_run_data, run_images
from ..runs.directory import Run, pad_with_numbers
from ..runs.load import load_trained
from ..settings.analysis import AnomalyConfig, AnomalyScore
from ..settings.data import ChannelAxis, Pages
from ..support.console import ProgressBar
from ..support.devices import fast_float32, resolve_device, seeded
from ..support.errors import printable, require, with_changes
from .anomaly_scores import SCORES, ScoreContext, default_score, pixel_maps, why_not
from .conformal import check_count, p_values, percentiles, threshold
from .detection import detection, pixel_auroc, read_masks

Images = Dataset | str | Path | Sequence[Path] | None


@dataclass(frozen=True)
class Anomalies:
    """What `anomalies` found. `table` has a row for each image, the oddest first; `summary` the score, its threshold
    and how well it tells odd images where these are known. Of the first rows: the images as the model sees them and
    their reconstructions, (n, C, H, W), and what is odd in each pixel, (n, H, W)."""

    table: Table
    summary: dict[str, Any]
    images: Tensor
    reconstructions: Tensor
    maps: Tensor


def anomalies(
    run: Run | str | Path,
    images: Images = None,
    data: Dataset | None = None,
    data_dir: str | Path | None = None,
    progress: bool = False,
    split: str | None = None,
    pages: Pages | None = None,
    channel_axis: ChannelAxis = "auto",
    **settings: Any,
) -> Anomalies:
    """Score images by how odd they are, and flag those that are odder than the run's validation images.

    `images` are those that `encode` takes: paths of image files, folders, an archive or a file of arrays, a Dataset or
    the name of one, of which `split` is scored; by default the run's own test images. Of a folder in the layout of
    MVTec-AD the test images are scored. `settings` are the fields of AnomalyConfig; `data` replaces loading the run's
    data set by its name.

    Columns of the table: `rank`, those of `encode` that say where an image comes from, `score`, higher for an odder
    image, `percentile` among the validation images, `p_value` (see `conformal.p_values`), `flagged`, and `odd` where
    labels tell. Raises UserError for bad settings, a score that the model does not have, and too few validation images.
    """
    config = with_changes(AnomalyConfig(), settings, "anomalies()")
    run, device, bar = Run.of(run), resolve_device(config.device), ProgressBar(progress)
    trained = load_trained(run)
    model = trained.model.to(device)
    dataset = load_run_data(run, data, data_dir)
    require_enough(len(dataset.validation), config)
    levels = 2 if run.data.binarisation != "none" else run.data.value_range.levels
    name, reason = choose_score(config, model, levels, trained_classes(dataset))
    bar.log(f"score: {name}, since {reason}")

    def context(part: EvalSplit, training: ScoreContext | None = None) -> ScoreContext:
        return ScoreContext(model, part.to(device), levels, config, bar, training)

    with torch.no_grad(), fast_float32(device):
        rows = sorted_random_rows(len(dataset.train), config.limit, config.seed + 1)
        training = context(eval_split(dataset.train.take(rows), run.data.binarisation))
        validation = run_images(run, dataset, "validation")
        rows = sorted_random_rows(len(validation), config.limit, config.seed)
        calibration = scores_of(name, context(validation.take(rows), training), run)
        tables: list[Columns] = []
        kept: list[tuple[np.ndarray, EvalSplit]] = []
        pixels: list[tuple[Tensor, Tensor]] = []
        chosen = dataset if images is None else images
        parts = parts_to_score(run, chosen, split, data_dir, bar, pages, channel_axis)
        for origin, part in parts:
            values = scores_of(name, context(part, training), run)
            tables.append(origin | {"score": values})
            first = np.argsort(-values, kind="stable")[: config.top]
            kept.append((values[first], part.take(torch.from_numpy(first))))
            rows, masks = read_masks(run, origin)
            if len(rows):
                pixels.append((pixel_maps(context(part.take(rows)), SCORES[name].map), masks))
        oddest = context(join_oddest(kept, config.top))
        shown = oddest.images[:]
        reconstructions = model.reconstruct(shown.images, shown.labels).mean.cpu()
        maps = pixel_maps(oddest, SCORES[name].map)
    table = complete_table(tables, calibration, config.false_alarms)
    summary = {
        "run": str(run),
        "weights": trained.sha256,
        "prior": run.prior,
        "score": name,
        "unit": SCORES[name].unit,
        "reason": reason,
        "images": len(table["score"]),
        "flagged": int(table["flagged"].sum()),
        "false_alarms": config.false_alarms,
        "threshold": threshold(calibration, config.false_alarms),
        "validation_images": len(calibration),
        "validation_use": validation_use(run),
        "training_images": len(training.images),
        **detection(table, config.normal, trained_classes(dataset)),
        "pixel_auroc": pixel_auroc(pixels),
        "samples": config.samples,
        "steps": config.steps,
        "seed": config.seed,
    }
    return Anomalies(table, summary, shown.images.cpu(), reconstructions, maps)


def require_enough(count: int, config: AnomalyConfig) -> None:
    """Raise UserError where so many validation images are too few for the asked false alarms."""
    short = "a larger --limit" if config.limit < count else "train with more validation images"
    check_count(min(count, config.limit), config.false_alarms, short)


def trained_classes(dataset: Dataset) -> list[str]:
    """The names of the classes of the training images; none without labels."""
    if dataset.train.labels is None:
        return []
    numbers = dataset.train.labels.unique().tolist()
    names = pad_with_numbers([*(dataset.classes or ())], max(numbers) + 1)
    return [names[number] for number in numbers]


def choose_score(
    config: AnomalyConfig, model: VAE, levels: int | None, classes: Sequence[str]
) -> tuple[AnomalyScore, str]:
    """The score of the settings and the reason for it. Raises UserError for one that the model does not have."""
    if config.score == "auto":
        return default_score(model, levels, [*classes] == [NORMAL])
    others = [name for name in SCORES if not why_not(name, model, levels)]
    problem = why_not(config.score, model, levels)
    require(
        not problem,
        f"there is no --score {config.score} here: {problem}; choose {', '.join(others)}",
    )
    return config.score, "it was asked for"


def scores_of(name: AnomalyScore, context: ScoreContext, run: Run) -> np.ndarray:
    """The scores (N,) of images. Raises UserError for one that is not a number."""
    with seeded(context.config.seed, context.images.device):
        scores = SCORES[name].function(context)
    require(
        not np.isnan(scores).any(),
        f"the {name} of some images is not a number: the training of {run} diverged, or its weights are damaged",
    )
    return scores


def parts_to_score(
    run: Run,
    images: Images,
    split: str | None,
    data_dir: str | Path | None,
    bar: ProgressBar,
    pages: Pages | None,
    channel_axis: ChannelAxis,
) -> Iterator[tuple[Columns, EvalSplit]]:
    """Yield the images in parts, as `images_to_encode` does; of a folder in the layout of MVTec-AD its test images,
    where `images` is that folder, or the run's own data set that was read from it."""
    of_run = run.source if isinstance(images, Dataset) else None
    path = images if of_run is None else of_run.data
    if isinstance(path, Sequence) and not isinstance(path, str) and len(path) == 1:
        (path,) = path
    if isinstance(path, str | Path) and split in (None, "test"):
        test = Path(path) / "test"
        if test.is_dir() and (Path(path) / "train" / NORMAL).is_dir():
            images, split = [test], None
            bar.log(f"the test images of {printable(path)}, in the layout of MVTec-AD")
    yield from images_to_encode(run, images, split, None, data_dir, bar, pages, channel_axis)


def join_oddest(kept: Sequence[tuple[np.ndarray, EvalSplit]], count: int) -> EvalSplit:
    """The `count` images of the highest scores, in their order, from those of each part and their scores."""
    order = np.argsort(-np.concatenate([scores for scores, _ in kept]), kind="stable")[:count]
    batches = [part[:] for _, part in kept]
    labels = [batch.labels for batch in batches]
    joined = (
        None if any(y is None for y in labels) else torch.cat([y for y in labels if y is not None])
    )
    split = Split(torch.cat([batch.images for batch in batches]), joined)
    return EvalSplit(split.take(torch.from_numpy(order)), "none")  # which are floats already


def complete_table(
    tables: Sequence[Columns], calibration: np.ndarray, false_alarms: float
) -> Table:
    """The columns of all parts, the oddest image first, with their p-values."""
    table: Columns = {key: np.concatenate([part[key] for part in tables]) for key in tables[0]}
    order = np.argsort(-table["score"], kind="stable")
    table = {key: column[order] for key, column in table.items()}
    p = p_values(table["score"], calibration)
    return Table(
        {
            "rank": np.arange(1, len(order) + 1),
            **table,
            "percentile": percentiles(table["score"], calibration),
            "p_value": p,
            "flagged": p <= false_alarms,
        }
    )


def validation_use(run: Run) -> str:
    """What the validation images were used for, on which the guarantee of the p-values depends."""
    uses = []
    if run.weights == "best":
        uses.append(f"chose the best of {len(run.metrics)} epochs")
    if run.training.patience is not None:
        uses.append("ended the training (--patience)")
    if run.prior == "fitted":
        uses.append("ended the fit of the prior")
    if not uses:
        return "had no part in the training"
    return f"{' and '.join(uses)}: their scores may be a little too low, and false alarms a little more frequent"
