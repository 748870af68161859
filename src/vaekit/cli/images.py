"""The verbs that work with images and latents: generate, reconstruct, encode, decode, export."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from tyro.conf import Positional

from ..settings.analysis import parse_bands
from ..settings.data import ChannelAxis, Pages, PixelType
from ..support.errors import UserError, printable, require
from .words import PriorArgument, RunArgument, WeightsArgument, print_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..runs.directory import Run

DataArgument = Annotated[tuple[str, ...], Positional, tyro.conf.arg(metavar="[DATA ...]")]
FileArgument = Annotated[Path, Positional, tyro.conf.arg(metavar="FILE")]


def generate(
    run: RunArgument,
    count: int | None = None,
    label: str | None = None,
    cluster: int | None = None,
    temperature: str = "1",
    seed: int = 0,
    latent: str | None = None,
    bands: str | None = None,
    weights: WeightsArgument = "best",
    prior: PriorArgument = "trained",
    data_dir: str | None = None,
    out: str | None = None,
    overwrite: bool = False,
) -> None:
    """Sample new images from a run's prior, of one label or cluster, or decode one latent point.

    Without --label or --cluster, a cvae gives one row per label, with the name of its class, a gmvae one per cluster;
    the metadata of the picture list them too. A model with --condition quadrants completes test images.

    For example:
      vaekit generate runs/vae-mnist-1 --count 100 --temperature 0.8
      vaekit generate runs/cvae-mnist-1 --label 3
      vaekit generate runs/deepvae-photos-1 --temperature 4=0.6,8=0.8
      vaekit generate runs/gmvae-mnist-1 --cluster 0
      vaekit generate runs/convvae-photos-1 --prior fitted
      vaekit generate runs/vae-mnist-1 --latent 0.3,-1.2 --out point.png

    Args:
        run: Run directory.
        count: Images to sample, 64 by default; where there are rows, images per row, 10 by default.
        label: Class to sample images of, by name or number (models with --condition label).
        cluster: Component of the mixture prior to sample from.
        temperature: Below 1, closer to the prior's mean: cleaner and less varied. Of several latents also by name, as
            z2=0.7, or by resolution, as 4=0.6,8=0.9 for the groups of 4 and of 8 pixels; 1 for others.
        seed: Seed of the samples.
        latent: One latent point to decode, numbers separated by commas.
        bands: Bands (channels) to show as red, green and blue, as 3,2,1; one is grey, two are magenta and green; by
            default, of more than 3 the principal components.
        weights: Weights to use: best (on validation), last, or the number of an epoch that --save-every has saved.
        prior: Prior to use: that of the trained model, or the one that `vaekit fit-prior` has fitted to its codes.
        data_dir: Folder with the data set's files, where images are completed.
        out: Picture to write, PNG, PDF or SVG; in RUN/pictures by default, named by these settings.
        overwrite: Replace a picture that exists already and differs.
    """
    from .. import pictures
    from ..inference import generation
    from ..inference.picture_data import run_bands
    from ..runs.directory import Run
    from ..runs.load import load
    from ..support.console import ProgressBar

    place, bar = Run(run, weights, prior), ProgressBar(True)
    check_picture(out)
    parse_bands(bands)
    model = load(place)
    columns, names = 0, list[str]()
    in_row = 10 if count is None else count
    completes = place.blueprint.settings.condition.startswith("quadrants")
    number = None if label is None or completes else place.label_number(label)
    if latent is not None:
        if cluster is not None or count is not None:
            raise UserError("--latent is one point to decode; leave out --cluster and --count")
        images = generation.decode_point(model, latent, number)
    elif completes:
        if label is not None or cluster is not None:
            raise UserError("the model completes images and has neither --label nor --cluster")
        seen = generation.load_inputs(place, (), "test", 10, data_dir, bar).images
        images = generation.completions(model, seen, in_row, temperature, seed)
        columns = in_row + 2
    elif generation.has_classes_or_clusters(model) and label is None and cluster is None:
        images, names = generation.generate_by_class(
            model, in_row, place.class_names, temperature, seed
        )
        columns = in_row
    else:
        images = generation.generate(
            model, 64 if count is None else count, temperature, seed, number, cluster
        )
    columns = columns or max(1, round(len(images) ** 0.5))
    shown = run_bands(place, bands, images)
    figure = pictures.image_grid(images, columns, names, bands=shown)
    rows = f"rows from the top: {', '.join(map(printable, names))}" if names else ""
    chosen = {"count": count, "label": label, "cluster": cluster, "latent": latent, "bands": bands}
    given = generation.temperatures(model, temperature)
    chosen["temperature"] = (
        temperature if isinstance(given, Mapping) else None if given == 1 else f"{given:g}"
    )
    chosen["seed"] = seed if latent is None else None
    save_picture(figure, place, out, overwrite, "generated", chosen, rows)


def check_picture(out: str | None) -> None:
    """Raise UserError where --out cannot be a picture."""
    from ..pictures.writing import IMAGE_FORMATS
    from ..runs.directory import require_output

    if out:
        require_output(Path(out), [f".{kind}" for kind in IMAGE_FORMATS])


def save_picture(
    figure: Figure,
    place: Run,
    out: str | None,
    overwrite: bool,
    source: str,
    settings: Mapping[str, object],
    description: str = "",
) -> None:
    """Write a picture to --out or RUN/pictures, there named by its source and the settings that are not None; print
    where it is. Its metadata have the description."""
    from .. import pictures

    words = [source, *(f"{key}-{value}" for key, value in settings.items() if value is not None)]
    stem = re.sub(r"[^\w.,+-]+", "_", "-".join(words))[:120]
    path = Path(out) if out else place.pictures / place.file(f"{stem}.png").name
    print_text(pictures.save(figure, path, overwrite, description))


def reconstruct(
    run: RunArgument,
    images: Positional[tuple[Path, ...]] = (),
    split: Literal["train", "validation", "test"] = "test",
    count: int | None = None,
    label: str | None = None,
    analogies: bool = False,
    groups: int | None = None,
    bands: str | None = None,
    weights: WeightsArgument = "best",
    data_dir: str | None = None,
    out: str | None = None,
    overwrite: bool = False,
) -> None:
    """Show images above their reconstructions: your own files and folders, or a run's test images.

    With --analogies (a cvae), each image is shown beside its latents decoded with every label. With --groups (a
    deepvae or hvae), only the first latents are those of the image.

    For example:
      vaekit reconstruct runs/vae-mnist-1
      vaekit reconstruct runs/vae-mnist-1 digit.png photos/ --out pairs.png
      vaekit reconstruct runs/cvae-photos-1 panda.jpg --label panda
      vaekit reconstruct runs/cvae-mnist-1 --analogies --count 10
      vaekit reconstruct runs/deepvae-photos-1 --groups 2

    Args:
        run: Run directory.
        images: Image files, folders, or an archive; without them, images of the split.
        split: Split to take images from.
        count: Number of images to show, evenly spaced; by default 40 of a split, all of your own up to 1,000.
        label: Class of your own images, by name or number; by default that of their folders (only for models
            conditional on labels).
        analogies: Decode with every label instead.
        groups: Latents to take from the image, from the top one on; those below are at the means of their priors.
        bands: Bands (channels) to show as red, green and blue, as 3,2,1; one is grey, two are magenta and green; by
            default, of more than 3 the principal components.
        weights: Weights to use: best (on validation), last, or the number of an epoch that --save-every has saved.
        data_dir: Folder that holds the data set's files.
        out: Picture to write, PNG, PDF or SVG; in RUN/pictures by default, named by the images.
        overwrite: Replace a picture that exists already and differs.
    """
    from .. import pictures
    from ..inference import generation
    from ..inference.picture_data import run_bands
    from ..runs.directory import Run
    from ..runs.load import load
    from ..support.console import ProgressBar

    place, bar = Run(run, weights), ProgressBar(True)
    check_picture(out)
    parse_bands(bands)
    model = load(place)
    if label is not None and not images:
        raise UserError(
            "--label is only for your own image files; images of the data set have labels"
        )
    given = generation.load_inputs(place, images, split, count, data_dir, bar, label)
    shown = run_bands(place, bands, given.images)
    if analogies and groups is not None:
        raise UserError("--analogies decode all latents; leave out --groups")
    if analogies:
        rows = generation.analogies(model, given.images, given.labels)
        columns = ["image", *place.class_names[: model.blueprint.classes]]
        figure = pictures.image_grid(rows, len(columns), column_names=columns, bands=shown)
    else:
        found = generation.reconstruct(model, given.images, given.labels, groups)
        figure = pictures.pairs(given.images, found, bands=shown)
    verb, source = "analogies" if analogies else "reconstructed", str(split)
    if images:
        more = f"-and-{len(images) - 1}" if len(images) > 1 else ""
        source = (images[0].stem or "images") + more
    chosen = {"count": count, "label": label, "groups": groups, "bands": bands}
    save_picture(figure, place, out, overwrite, f"{verb}-{source}", chosen)


def encode(
    run: RunArgument,
    data: DataArgument = (),
    out: str | None = None,
    split: Literal["train", "validation", "test", "all"] | None = None,
    samples: int = 100,
    seed: int = 0,
    label: str | None = None,
    pages: Pages | None = None,
    channel_axis: ChannelAxis = "auto",
    picture: str | None = None,
    projection: Literal["auto", "pca", "tsne", "umap"] = "auto",
    weights: WeightsArgument = "best",
    prior: PriorArgument = "trained",
    data_dir: str | None = None,
    device: str = "auto",
) -> None:
    """Write a table of latents, ELBO and NLL per image, ranked by how unusual each image is; draw a map of the images.

    Of your own files, all are encoded. One line per image: split, index (of your own files, the row in the source),
    path (of image files), label and class where known; for every latent the mean and scale of the posterior and a
    sample; ELBO and NLL in nats; rank, 1 for the most unusual image.

    For example:
      vaekit encode runs/vae-mnist-1 --out codes.csv
      vaekit encode runs/convvae-photos-1 --split all --out codes.parquet --picture map.png
      vaekit encode runs/vae-mnist-1 --split all --samples 10 --out codes.npz
      vaekit encode runs/vae-mnist-1 photos/ digit.png --out mine.parquet

    Args:
        run: Run directory.
        data: Image files, folders, an archive, a file of arrays, or a named data set; the run's own data by default.
        out: Table to write: .npz, .csv or .parquet (pip install 'vaekit[parquet]').
        split: Split to encode of the run's own or a named data set; test by default.
        samples: Importance samples per image for the NLL.
        seed: Seed of the samples.
        label: Class of the image files, by name or number; by default that of their folders.
        pages: What the pages of a file are, as for `vaekit train`; by default as in the run's data.
        channel_axis: Axis of the channels in arrays; by default that of the model's channels.
        picture: Picture to write, PNG, PDF or SVG: small versions of the images where their codes lie in 2-D.
        projection: Projection of codes of more than 2 dimensions for the picture; auto: t-SNE.
        weights: Weights to use: best (on validation), last, or the number of an epoch that --save-every has saved.
        prior: Prior to use: that of the trained model, or the one that `vaekit fit-prior` has fitted to its codes.
        data_dir: Folder that holds the data set's files.
        device: auto, cpu, cuda, cuda:1, mps.
    """
    from ..inference.encoding import encode as encoded
    from ..inference.generation import latent_sizes
    from ..inference.tables import check_output, write_table
    from ..runs.directory import Run

    if out is None and picture is None:
        raise UserError(
            "`vaekit encode` lacks --out, a file such as codes.csv, .npz or .parquet, or --picture, such as map.png"
        )
    require(
        picture is not None or projection == "auto", "--projection is of the --picture; pass both"
    )
    place = Run(run, weights, prior)
    if out is not None:
        check_output(Path(out), 3 * sum(latent_sizes(place.blueprint).values()))
    found: list[Path] | str | None = [Path(word) for word in data] or None
    if len(data) == 1 and not Path(data[0]).exists():
        found = data[0]
    table = encoded(
        place,
        found,
        split,
        samples,
        seed,
        label,
        data_dir,
        device,
        progress=True,
        pages=pages,
        channel_axis=channel_axis,
        picture=picture,
        projection=projection,
    )
    if out is not None:
        print_text(
            f"{write_table(table, Path(out))}: {len(table['index']):,} images, {', '.join(table)}"
        )
    if picture is not None:
        print_text(picture)


def decode(
    run: RunArgument,
    file: FileArgument,
    out: str | None = None,
    column: Literal["mean", "sample"] = "mean",
    label: str | None = None,
    dtype: PixelType | None = None,
    bands: str | None = None,
    weights: WeightsArgument = "best",
) -> None:
    """Decode latents from a file: a table of `vaekit encode`, or one of your own with columns z_0, z_1, ...

    Arrays and image files are in the units of the run's data, which `vaekit encode` reads again.

    For example:
      vaekit decode runs/vae-mnist-1 codes.csv --out images/
      vaekit decode runs/vae-mnist-1 codes.npz --column sample --out images.npz
      vaekit decode runs/cvae-mnist-1 mine.csv --label 3 --out grid.png
      vaekit decode runs/vae-cells-1 codes.npz --dtype uint16 --out images/

    Args:
        run: Run directory.
        file: Latents: .npz, .csv or .parquet.
        out: Folder for a file per image, PNG or TIFF; or a .npz (`images`) or .npy file, (N, C, H, W); or a .tif file
            with a page per image; or a grid of all, .png, .pdf or .svg; or an animated .gif.
        column: Columns to decode, where the file has both.
        label: Class to decode with, by name or number, where the model is conditional on labels, instead of the
            column label.
        dtype: Type of the written values; by default that of the data for image files, float32 for arrays (in [0, 1]
            for 8-bit data).
        bands: Bands (channels) to show as red, green and blue, as 3,2,1; one is grey, two are magenta and green; by
            default, of more than 3 the principal components.
        weights: Weights to use: best (on validation), last, or the number of an epoch that --save-every has saved.
    """
    from ..inference.encoding import decode as decoded
    from ..inference.picture_data import run_bands
    from ..inference.tables import read_table
    from ..inference.writing import check_images_output, describe, write_images
    from ..runs.directory import Run

    if out is None:
        raise UserError(
            "`vaekit decode` lacks --out: a folder, or a file such as images.npz or grid.png"
        )
    place, path = Run(run, weights), Path(out)
    parse_bands(bands)
    value_range, channels = place.data.value_range, place.blueprint.shape[0]
    check_images_output(path, value_range, dtype, channels, bands is not None)
    images = decoded(place, read_table(file), column, label)
    shown = run_bands(place, bands, images)
    print_text(
        f"{write_images(images, path, value_range, dtype, shown)}: {describe(path, value_range, dtype)}"
    )


def export(
    run: RunArgument,
    onnx: str | None = None,
    torch: str | None = None,
    weights: WeightsArgument = "best",
    prior: PriorArgument = "trained",
) -> None:
    """Export a model for other programs: encoder, decoder and prior, as functions of tensors.

    Each file is run once and compared with the model. model.json describes their inputs and outputs. The prior takes
    noise: standard normal numbers for each latent, and one number in [0, 1) to choose the component of a mixture.

    For example:
      vaekit export runs/vae-mnist-1 --onnx vae-onnx
      vaekit export runs/vae-mnist-1 --torch vae-torch

    Args:
        run: Run directory.
        onnx: Folder for encoder.onnx, decoder.onnx and prior.onnx.
        torch: Folder for encoder.pt2, decoder.pt2 and prior.pt2, which torch.export.load reads.
        weights: Weights to use: best (on validation), last, or the number of an epoch that --save-every has saved.
        prior: Prior to use: that of the trained model, or the one that `vaekit fit-prior` has fitted to its codes.
    """
    from ..inference.export import Format
    from ..inference.export import export as write
    from ..runs.directory import Run

    require(
        bool(onnx or torch), "`vaekit export` lacks --onnx DIR or --torch DIR, where to write to"
    )
    wanted: dict[Format, str | None] = {"onnx": onnx, "torch": torch}
    for format, folder in wanted.items():
        if folder:
            for file, about in write(Run(run, weights, prior), folder, format).items():
                given, found = (
                    ", ".join(f"{k} ({', '.join(map(str, v))})" for k, v in about[kind].items())
                    for kind in ("inputs", "outputs")
                )
                off = f"max. difference {about['largest_difference']:.0e}"
                print_text(f"{Path(folder) / file}: {given} -> {found}; {off}")


VERBS: dict[str, Callable[..., None]] = {
    "generate": generate,
    "reconstruct": reconstruct,
    "encode": encode,
    "decode": decode,
    "export": export,
}
