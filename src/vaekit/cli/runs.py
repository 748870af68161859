"""The verbs that evaluate and show runs: evaluate, fit-prior, cluster, plot, report, explore, compare."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from ..settings.analysis import EvaluateConfig, FitPriorConfig, PlotConfig
from ..support.errors import UserError, require
from .words import PriorArgument, RunArgument, WeightsArgument, print_stderr, print_text

RunsArgument = Annotated[tuple[str, ...], Positional, tyro.conf.arg(metavar="RUN [RUN ...]")]
NamesArgument = Annotated[tuple[str, ...], Positional, tyro.conf.arg(metavar="[NAME ...]")]
PLOT = PlotConfig()


def evaluate(
    run: RunArgument,
    settings: EvaluateConfig = EvaluateConfig(),  # noqa: B008
    weights: WeightsArgument = "best",
    prior: PriorArgument = "trained",
    data_dir: str | None = None,
    json: bool = False,
) -> None:
    """Evaluate a run: likelihoods, use of the latents, reconstructions, samples, labels and clusters in the latent.

    For example:
      vaekit evaluate runs/vae-mnist-1
      vaekit evaluate runs/vae-mnist-1 --metrics nll --samples 5000 --limit 10000
      vaekit evaluate runs/mmdvae-mnist-1 --metrics nll --estimator ais
      vaekit evaluate runs/vae-mnist-1 --split validation --json

    Args:
        run: Run directory.
        weights: Weights to use: best (on validation), last, or the number of an epoch that --save-every has saved.
        prior: Prior to use: that of the trained model, or the one that `vaekit fit-prior` has fitted to its codes.
        data_dir: Folder that holds the data set's files.
        json: Print evaluation.json instead of the table.
    """
    from ..evaluation.evaluate import evaluate as measure
    from ..evaluation.metrics import as_table
    from ..runs.directory import Run
    from ..support.console import PlainConsole

    place = Run(run, weights, prior)
    result = measure(place, data_dir=data_dir, progress=True, **asdict(settings))
    file = place.file("evaluation.json")
    if json:
        print_text(file.read_text().rstrip("\n"))
    else:
        PlainConsole().print(as_table(result))
        print_text(f"written to {file}")


def fit_prior(
    run: RunArgument,
    settings: FitPriorConfig = FitPriorConfig(),  # noqa: B008
    weights: WeightsArgument = "best",
    data_dir: str | None = None,
) -> None:
    """Fit a new prior to the codes of a run's training images, where samples of the trained prior are poor.

    It is kept in the run, and used by the commands with --prior fitted. It is a prior of z, or of the top latent.

    For example:
      vaekit fit-prior runs/convvae-photos-1
      vaekit fit-prior runs/vae-mnist-1 --prior flow
      vaekit generate runs/vae-mnist-1 --prior fitted
      vaekit evaluate runs/vae-mnist-1 --prior fitted

    Args:
        run: Run directory.
        weights: Weights to use: best (on validation), last, or the number of an epoch that --save-every has saved.
        data_dir: Folder that holds the data set's files.
    """
    from ..inference.prior_fit import describe
    from ..inference.prior_fit import fit_prior as fit
    from ..runs.directory import Run

    fitted = fit(Run(run, weights), data_dir=data_dir, progress=True, **asdict(settings))
    print_text(describe(fitted))
    print_text(f"written to {fitted.fitted_prior_path}; next: vaekit generate {fitted.arguments}")


def cluster(
    run: RunArgument,
    split: Literal["train", "validation", "test"] = "test",
    samples: int = 10,
    seed: int = 0,
    weights: WeightsArgument = "best",
    prior: PriorArgument = "trained",
    data_dir: str | None = None,
    device: str = "auto",
    json: bool = False,
) -> None:
    """Assign images to the clusters of a run's mixture prior; with labels, report how well the two agree.

    Writes RUN/clusters-SPLIT.csv, one line per image, and RUN/clusters-SPLIT.json.

    For example:
      vaekit cluster runs/gmvae-mnist-1
      vaekit cluster runs/gmvae-mnist-1 --split validation --json

    Args:
        run: Run directory.
        split: Images to assign.
        samples: Posterior samples per image.
        seed: Seed of the samples.
        weights: Weights to use: best (on validation), last, or the number of an epoch that --save-every has saved.
        prior: Prior to use: that of the trained model, or the one that `vaekit fit-prior` has fitted to its codes.
        data_dir: Folder that holds the data set's files.
        device: auto, cpu, cuda, cuda:1, mps.
        json: Print the .json instead of the table.
    """
    from ..evaluation.clustering import as_table
    from ..evaluation.clustering import cluster as assign
    from ..runs.directory import Run
    from ..support.console import PlainConsole

    place = Run(run, weights, prior)
    result = assign(place, split, samples, seed, data_dir=data_dir, device=device)
    for warning in result["warnings"]:
        print_stderr(f"warning: {warning}")
    file = place.file(f"clusters-{split}.json")
    if json:
        print_text(file.read_text().rstrip("\n"))
    else:
        PlainConsole().print(as_table(result))
        print_text(f"written to {file.with_suffix('.csv')} and {file.name}")


def plot(
    run: RunArgument = "",
    names: NamesArgument = (),
    settings: PlotConfig = PLOT,
    list_names: Annotated[bool, tyro.conf.arg(name="list")] = False,
    format: Literal["png", "svg", "pdf"] = "png",
    weights: WeightsArgument = "best",
    prior: PriorArgument = "trained",
    out: str | None = None,
    overwrite: bool = False,
    data_dir: str | None = None,
) -> None:
    """Draw pictures of a run into RUN/pictures: those named, or all that apply.

    They are drawn from the run directory alone: the data set is not needed (but for other weights than the best).

    For example:
      vaekit plot --list
      vaekit plot runs/vae-mnist-1
      vaekit plot runs/vae-mnist-1 latents manifold --format pdf
      vaekit plot runs/vae-mnist-1 interpolations --images 3 17 --out figures

    Args:
        run: Run directory.
        names: Pictures to draw (`vaekit plot --list` explains them).
        list_names: List the pictures instead.
        format: File format; animations are always GIFs.
        weights: Weights to use: best (on validation), last, or the number of an epoch that --save-every has saved.
        prior: Prior to use: that of the trained model, or the one that `vaekit fit-prior` has fitted to its codes.
        out: Folder to write to, instead of RUN/pictures.
        overwrite: Replace pictures that exist already and differ.
        data_dir: Folder with the data set's files, needed only for runs without saved picture data.
    """
    if list_names:
        from ..gallery.catalog import as_table
        from ..support.console import PlainConsole

        PlainConsole().print(as_table())
        return
    require(run != "", "`vaekit plot` lacks RUN; see `vaekit plot --help`")
    from ..gallery.context import PictureContext
    from ..gallery.draw import write_pictures
    from ..runs.directory import Run

    place = Run(run, weights, prior)
    folder = place.path / "pictures" if out is None else Path(out)
    require(folder.is_dir() or not folder.exists(), f"--out {folder} is a file; name a folder")
    context = PictureContext.of(place, settings, data_dir)
    for path in write_pictures(context, names, folder, format, overwrite):
        print_text(path)


def compare(
    runs: RunsArgument,
    out: tuple[str, ...] = (),
    weights: WeightsArgument = "best",
    prior: tuple[PriorArgument, ...] = ("trained",),
    training_curves: bool = False,
) -> None:
    """Compare runs: a table of the settings that differ and of the metrics, and a figure of validation ELBOs.

    Runs that are not evaluated yet are compared by the validation metrics of their training.
    Runs that differ only in their seed form one row (mean and standard deviation) and one line with a band. The best
    value is bold only where it is significantly better than every other.

    For example:
      vaekit compare runs/vae-mnist-1 runs/vampprior-mnist-1
      vaekit compare runs/* --out table.md table.tex figure.pdf

    Args:
        runs: Run directories.
        out: Files to write: tables .md, .csv or .tex, figures .png, .pdf or .svg; compare.png by default.
        weights: Weights whose evaluations to compare: best (on validation), last, or an epoch's.
        prior: Priors whose evaluations to compare: trained, fitted (by `vaekit fit-prior`), or both.
        training_curves: Draw the training ELBO too, solid; the validation ELBO is then dashed.
    """
    from ..pictures import save
    from ..pictures.writing import IMAGE_FORMATS
    from ..runs.directory import Run, require_output
    from ..studies.compare import WRITERS, as_terminal, rank, write
    from ..studies.curves import compare as draw
    from ..support.console import PlainConsole

    files = [Path(file) for file in out]
    for file in files:
        require_output(file, [*WRITERS, *(f".{kind}" for kind in IMAGE_FORMATS)])
    # Files are such as a sweep's own table.
    folders = [run for run in runs if not Path(run).is_file()]
    found = [Run(run, weights, each) for run in folders for each in prior]
    table = rank(found)
    PlainConsole().print(as_terminal(table))
    figures = {
        file: draw(found, training_curves) for file in files if file.suffix.lower() not in WRITERS
    }
    for file in files:
        if file in figures:
            print_text(save(figures[file], file))
        else:
            print_text(write(table, file))
    if not files:
        try:
            print_text(save(draw(found, training_curves), Path("compare.png")))
        except UserError as reason:
            print_text(f"no figure: {reason}")


def report(
    run: RunArgument,
    out: str | None = None,
    weights: WeightsArgument = "best",
    prior: PriorArgument = "trained",
    data_dir: str | None = None,
) -> None:
    """Write one HTML file that shows a run: its settings, curves, metrics with their meaning, and pictures.

    The file is self-contained.

    For example:
      vaekit report runs/vae-mnist-1
      vaekit report runs/vae-mnist-1 --out vae.html

    Args:
        run: Run directory.
        out: File to write, .html, instead of RUN/report.html.
        weights: Weights to use: best (on validation), last, or the number of an epoch that --save-every has saved.
        prior: Prior to use: that of the trained model, or the one that `vaekit fit-prior` has fitted to its codes.
        data_dir: Folder with the data set's files, needed only for runs without saved picture data.
    """
    from ..gallery.report import report as write
    from ..runs.directory import Run

    print_text(write(Run(run, weights, prior), out, data_dir))


def explore(
    runs: RunsArgument,
    port: int = 0,
    browser: bool = True,
    bands: str | None = None,
    weights: WeightsArgument = "best",
    prior: PriorArgument = "trained",
    data_dir: str | None = None,
) -> None:
    """Explore runs in the browser: a map of the latent space, sliders, drawing, interpolations, curves.

    Serves on this machine only (127.0.0.1), to those who have the token in the printed address; Ctrl-C stops it.

    For example:
      vaekit explore runs/vae-mnist-1
      vaekit explore runs/* --port 8000 --no-browser

    Args:
        runs: Run directories.
        port: Port to serve on; 0 is a free one.
        browser: Open the page in the browser.
        bands: Bands (channels) to show as red, green and blue, as 3,2,1; one is grey, two are magenta and green; by
            default, of more than 3 the principal components.
        weights: Weights to use: best (on validation), last, or the number of an epoch that --save-every has saved.
        prior: Prior to use: that of the trained model, or the one that `vaekit fit-prior` has fitted to its codes.
        data_dir: Folder that holds the data set's files.
    """
    try:
        from ..explorer.server import explore as serve
        from ..runs.directory import Run
    except ImportError as error:
        raise UserError(f"{error.name} is not installed: pip install 'vaekit[explore]'") from None
    chosen = [Run(run, weights, prior) for run in runs]
    serve(chosen, port, browser, data_dir, print_text, bands)


VERBS: dict[str, Callable[..., None]] = {
    "evaluate": evaluate,
    "fit-prior": fit_prior,
    "cluster": cluster,
    "plot": plot,
    "report": report,
    "explore": explore,
    "compare": compare,
}
