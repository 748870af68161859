"""The verbs that look at runs: plot, compare, report, explore, encode, decode, export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from ..settings.analysis import PlotConfig
from ..support.errors import UserError, require, require_folder

RunArgument = Annotated[str, Positional, tyro.conf.arg(metavar="RUN")]
RunsArgument = Annotated[tuple[str, ...], Positional, tyro.conf.arg(metavar="RUN [RUN ...]")]
NamesArgument = Annotated[tuple[str, ...], Positional, tyro.conf.arg(metavar="[NAME ...]")]
DataArgument = Annotated[tuple[str, ...], Positional, tyro.conf.arg(metavar="[DATA ...]")]
FileArgument = Annotated[Path, Positional, tyro.conf.arg(metavar="FILE")]
PLOT = PlotConfig()


def plot(
    run: RunArgument = "",
    names: NamesArgument = (),
    settings: PlotConfig = PLOT,
    list_names: Annotated[bool, tyro.conf.arg(name="list")] = False,
    format: Literal["png", "svg", "pdf"] = "png",
    out: str | None = None,
    data_dir: str | None = None,
) -> None:
    """Draw pictures of a run into RUN/pictures: those named, or all that apply.

    The run keeps what they are drawn from: its data need not be here.

    For example:
      vaekit plot --list
      vaekit plot runs/vae-mnist-1
      vaekit plot runs/vae-mnist-1 latents manifold --format pdf
      vaekit plot runs/vae-mnist-1 interpolations --images 3 17 --out figures

    Args:
        run: Run directory.
        names: Pictures to draw (`vaekit plot --list` explains them).
        list_names: List the pictures instead.
        format: Kind of file; what moves is a GIF always.
        out: Folder to write to, instead of RUN/pictures.
        data_dir: Folder that holds the data set's files, where the run was made before runs kept what is drawn.
    """
    if list_names:
        from rich.console import Console

        from ..gallery.names import as_table

        Console(highlight=False).print(as_table())
        return
    require(run != "", "`vaekit plot` lacks RUN; see `vaekit plot --help`")
    from ..gallery.draw import write_each
    from ..gallery.scene import Scene

    scene = Scene.of(run, settings, data_dir)
    folder = scene.run.pictures if out is None else Path(out)
    for path in write_each(scene, names, folder, format):
        print(path, flush=True)


def compare(runs: RunsArgument, out: tuple[str, ...] = ()) -> None:
    """Compare runs: a table of the settings that differ and of results, and a figure of validation ELBOs.

    Runs that differ in their seed alone are one row, mean and standard deviation, and one line with a band. The best is
    in bold only where it is better by more than chance would have it.

    For example:
      vaekit compare runs/vae-mnist-1 runs/vampprior-mnist-1
      vaekit compare runs/* --out table.md table.tex figure.pdf

    Args:
        runs: Run directories.
        out: Files to write: tables .md, .csv or .tex, figures .png, .pdf or .svg; compare.png by default.
    """
    from rich.console import Console

    from ..pictures import save
    from ..pictures.writing import KINDS
    from ..runs.directory import Run
    from ..studies.compare import WRITERS, as_terminal, rank, write
    from ..studies.curves import compare as draw

    files = [Path(file) for file in out]
    for file in files:
        ending = file.suffix.lower()
        endings = [*WRITERS, *(f".{kind}" for kind in KINDS)]
        require(
            ending in endings,
            f"cannot write {file}: its ending must be one of {', '.join(endings)}",
        )
        require_folder(file)
    found = [Run(run) for run in runs if not Path(run).is_file()]  # such as a sweep's own table
    evaluated = [run for run in found if (run.path / "evaluation.json").exists()]
    table = (
        rank(found) if evaluated or any(file.suffix.lower() in WRITERS for file in files) else None
    )
    if table is not None:
        Console(highlight=False).print(as_terminal(table))
    figures = {file: draw(found) for file in files if file.suffix.lower() not in WRITERS}
    for file in files:
        if file in figures:
            print(save(figures[file], file))
        elif table is not None:
            print(write(table, file))
    if not files:
        try:
            print(save(draw(found), Path("compare.png")))
        except UserError as reason:
            if table is None:
                raise
            print(f"no figure: {reason}")


def report(run: RunArgument, out: str | None = None, data_dir: str | None = None) -> None:
    """Write one HTML file that shows a run: its settings, curves, numbers with what they mean, and pictures.

    It holds everything that it shows and can be sent as it is.

    For example:
      vaekit report runs/vae-mnist-1
      vaekit report runs/vae-mnist-1 --out vae.html

    Args:
        run: Run directory.
        out: File to write, instead of RUN/report.html.
        data_dir: Folder that holds the data set's files, where the run was made before runs kept what is drawn.
    """
    from ..gallery.report import report as write

    print(write(run, out, data_dir))


def explore(
    runs: RunsArgument, port: int = 0, browser: bool = True, data_dir: str | None = None
) -> None:
    """Explore runs in the browser: a map of the latent, sliders, drawing, ways between images, curves.

    A server on this machine alone (127.0.0.1), which nothing else can reach; Ctrl-C ends it.

    For example:
      vaekit explore runs/vae-mnist-1
      vaekit explore runs/* --port 8000 --no-browser

    Args:
        runs: Run directories.
        port: Port to serve on; 0 is a free one.
        browser: Open the page in the browser.
        data_dir: Folder that holds the data set's files.
    """
    try:
        from ..explorer.server import explore as serve
    except ImportError as error:
        raise UserError(f"{error.name} is not installed: pip install 'vaekit[explore]'") from None
    serve(runs, port, browser, data_dir, lambda text: print(text, flush=True))


def encode(
    run: RunArgument,
    data: DataArgument = (),
    out: str | None = None,
    split: Literal["train", "validation", "test", "all"] = "test",
    samples: int = 100,
    seed: int = 0,
    label: int | None = None,
    data_dir: str | None = None,
    device: str = "auto",
) -> None:
    """Write what a run says of each image: its latents, ELBO and NLL, and how unusual it is.

    A line for each image: split, index, path (of your own files), label; of every latent the posterior's mean and
    scale and a draw; ELBO, NLL in nats; rank, 1 for the most unusual image.

    For example:
      vaekit encode runs/vae-mnist-1 --out codes.csv
      vaekit encode runs/vae-mnist-1 --split all --samples 10 --out codes.npz
      vaekit encode runs/vae-mnist-1 photos/ digit.png --out mine.parquet

    Args:
        run: Run directory.
        data: Image files, folders, or another data set; the run's own data by default.
        out: File to write: .npz, .csv or .parquet.
        split: Images of a data set to take.
        samples: Draws an image for the NLL.
        seed: Seed of the draws.
        label: Label of the image files, where the model is conditional on labels.
        data_dir: Folder that holds the data set's files.
        device: auto, cpu, cuda, cuda:1, mps.
    """
    from ..inference.encoding import encode as encoded
    from ..inference.tables import check_ending, write_table

    if out is None:
        raise UserError("`vaekit encode` lacks --out, a file such as codes.csv, .npz or .parquet")
    check_ending(Path(out))
    found: list[Path] | str | None = [Path(word) for word in data] or None
    if len(data) == 1 and not Path(data[0]).exists():
        found = data[0]
    table = encoded(run, found, split, samples, seed, label, data_dir, device, progress=True)
    print(f"{write_table(table, Path(out))}: {len(table['index']):,} images, {', '.join(table)}")


def decode(
    run: RunArgument,
    file: FileArgument,
    out: str | None = None,
    column: Literal["mean", "sample"] = "mean",
    label: int | None = None,
) -> None:
    """Decode latents in a file: what `vaekit encode` wrote, or a table of your own with columns z_0, z_1, ...

    For example:
      vaekit decode runs/vae-mnist-1 codes.csv --out images/
      vaekit decode runs/vae-mnist-1 codes.npz --column sample --out images.npz
      vaekit decode runs/cvae-mnist-1 mine.csv --label 3 --out grid.png

    Args:
        run: Run directory.
        file: Latents: .npz, .csv or .parquet.
        out: Folder for a PNG each; or a .npz file, of `images` (N, C, H, W) in [0, 1]; or a picture of all, .png,
            .pdf or .svg; or a .gif that shows one after the other.
        column: Which columns to decode, where there are both.
        label: Label to decode with, where the model is conditional on labels, instead of the column label.
    """
    from ..inference.encoding import decode as decoded
    from ..inference.tables import read_table, write_images

    if out is None:
        raise UserError(
            "`vaekit decode` lacks --out: a folder, or a file such as images.npz or grid.png"
        )
    images = decoded(run, read_table(file), column, label)
    print(write_images(images, Path(out)))


def export(run: RunArgument, onnx: str | None = None, torch: str | None = None) -> None:
    """Write a model as files that other programs run: encoder, decoder and prior, as functions of tensors.

    Each file is run once and compared with the model. model.json beside them names their inputs and outputs. The prior
    takes noise: standard normal numbers for each latent, and one in [0, 1) to choose the component of a mixture.

    For example:
      vaekit export runs/vae-mnist-1 --onnx vae-onnx
      vaekit export runs/vae-mnist-1 --torch vae-torch

    Args:
        run: Run directory.
        onnx: Folder for encoder.onnx, decoder.onnx and prior.onnx.
        torch: Folder for encoder.pt2, decoder.pt2 and prior.pt2, which torch.export.load reads.
    """
    from ..inference.export import Format
    from ..inference.export import export as write

    require(
        bool(onnx or torch), "`vaekit export` lacks --onnx DIR or --torch DIR, where to write to"
    )
    wanted: dict[Format, str | None] = {"onnx": onnx, "torch": torch}
    for format, folder in wanted.items():
        if folder:
            for file, about in write(run, folder, format).items():
                given, found = (
                    ", ".join(f"{k} ({', '.join(map(str, v))})" for k, v in about[kind].items())
                    for kind in ("inputs", "outputs")
                )
                off = f"off by {about['largest_difference']:.0e}"
                print(f"{Path(folder) / file}: {given} -> {found}; {off}")


VERBS: dict[str, Callable[..., None]] = {
    "plot": plot,
    "compare": compare,
    "report": report,
    "explore": explore,
    "encode": encode,
    "decode": decode,
    "export": export,
}
