"""The verb that looks for odd images: anomalies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from ..settings.analysis import AnomalyConfig
from ..settings.data import ChannelAxis, Pages
from .words import PriorArgument, RunArgument, WeightsArgument, print_text

ImagesArgument = Annotated[tuple[str, ...], Positional, tyro.conf.arg(metavar="[FOLDER ...]")]


def anomalies(
    run: RunArgument,
    images: ImagesArgument = (),
    settings: AnomalyConfig = AnomalyConfig(),  # noqa: B008
    split: Literal["train", "validation", "test", "all"] | None = None,
    pages: Pages | None = None,
    channel_axis: ChannelAxis = "auto",
    bands: str | None = None,
    weights: WeightsArgument = "best",
    prior: PriorArgument = "trained",
    data_dir: str | None = None,
    out: str | None = None,
    json: bool = False,
) -> None:
    """Find odd images: a score and a p-value for each, the odd ones flagged, pictures of the oddest and their pixels.

    Images are flagged whose p-value among the run's validation images is at most --false-alarms. Writes a table (CSV
    and JSON), a contact sheet of the oddest images, and maps of their odd pixels; with labels also AUROC and average
    precision, with the masks of the MVTec-AD layout the AUROC of pixels.

    For example:
      vaekit anomalies runs/convvae-photos-1 new-photos/
      vaekit anomalies runs/convvae-photos-1 new-photos/ --score reconstruction --false-alarms 0.01
      vaekit anomalies runs/convvae-bottle-1 mvtec/bottle
      vaekit anomalies runs/vae-mnist-1 fashionmnist --score likelihood-regret
      vaekit anomalies runs/vae-mnist-1 --out odd-digits

    Args:
        run: Run directory.
        images: Image files, folders, an archive, a file of arrays, or a named data set; the run's own test images by
            default.
        split: Split to score of the run's own or a named data set; test by default.
        pages: What the pages of a file are, as for `vaekit train`; by default as in the run's data.
        channel_axis: Axis of the channels in arrays; by default that of the model's channels.
        bands: Bands (channels) to show as red, green and blue, as 3,2,1; one is grey, two are magenta and green; by
            default, of more than 3 the principal components.
        weights: Weights to use: best (on validation), last, or the number of an epoch that --save-every has saved.
        prior: Prior to use: that of the trained model, or the one that `vaekit fit-prior` has fitted to its codes.
        data_dir: Folder that holds the data set's files.
        out: Folder to write to, instead of RUN/anomalies/NAME.
        json: Print the .json instead of the table.
    """
    from ..evaluation.anomalies import anomalies as find
    from ..gallery.anomalies import as_text, check_output, default_folder, write_anomalies
    from ..runs.directory import Run
    from ..support.console import PlainConsole

    place = Run(run, weights, prior)
    folder = default_folder(place, images) if out is None else Path(out)
    check_output(place, folder, bands)
    found: list[Path] | str | None = [Path(word) for word in images] or None
    if len(images) == 1 and not Path(images[0]).exists():
        found = images[0]
    result = find(
        place,
        found,
        data_dir=data_dir,
        progress=True,
        split=split,
        pages=pages,
        channel_axis=channel_axis,
        **asdict(settings),
    )
    files = list(write_anomalies(result, place, folder, bands))
    if json:
        print_text(next(file for file in files if file.suffix == ".json").read_text().rstrip("\n"))
    else:
        PlainConsole().print(as_text(result))
        print_text(f"written to {folder}: {', '.join(file.name for file in files)}")


VERBS: dict[str, Callable[..., None]] = {"anomalies": anomalies}
