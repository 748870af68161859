"""The commands of `vaekit data`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from ..settings.analysis import parse_bands
from ..settings.data import PreprocessConfig
from .words import DataArgument, print_text

NameArgument = Annotated[str, Positional, tyro.conf.arg(metavar="NAME")]
FolderArgument = Annotated[Path, Positional, tyro.conf.arg(metavar="FOLDER")]
FORM = PreprocessConfig()


def list_sets(data_dir: str | None = None) -> None:
    """List the named data sets: size, images, classes, licence, and whether they are on this machine.

    For example:
      vaekit data list

    Args:
        data_dir: Folder with the data sets' files.
    """
    from ..data.sources.locations import as_table
    from ..support.console import PlainConsole

    PlainConsole().print(as_table(data_dir))


def get(name: NameArgument, data_dir: str | None = None) -> None:
    """Download a data set; existing files are kept, and an interrupted download resumes.

    For example:
      vaekit data get fashionmnist
      vaekit data get cifar10 --data-dir /data

    Args:
        name: Name of the data set (`vaekit data list`).
        data_dir: Folder to put it in, in a subfolder of its name; by default the folder of the environment variable
            VAEKIT_DATA, or else vaekit's cache.
    """
    from ..data.sources import locations

    print_text(locations.download_dataset(name, data_dir))


def show(
    data: DataArgument,
    form: PreprocessConfig = FORM,
    split: Literal["train", "validation", "test"] = "train",
    count: int = 60,
    bands: str | None = None,
    group_by: str | None = None,
    data_dir: str | None = None,
    out: str | None = None,
) -> None:
    """Show a data set or your own images: a summary in numbers, and a picture of some with their labels.

    For example:
      vaekit data show fashionmnist
      vaekit data show photos/ --size 64 --out photos.png

    Args:
        data: Name of a data set, or a path.
        split: Split to show images of.
        count: Number of images to show.
        bands: Bands (channels) to show as red, green and blue, as 3,2,1; one is grey, two are magenta and green; by
            default, of more than 3 the principal components.
        group_by: Keep images of one folder (by its level from 1) or metadata column together, as `vaekit train` does.
        data_dir: Folder with the named data set's files.
        out: Picture to write, PNG, PDF or SVG; <data>-images.png by default.
    """
    from ..data import load, summary
    from ..data.duplicates import find_duplicates
    from ..inference.picture_data import training_examples
    from ..pictures import choose_bands, contact_sheet, save
    from ..support.console import PlainConsole
    from .images import check_picture

    check_picture(out)
    chosen = parse_bands(bands)
    dataset = load(data, data_dir, group_by=group_by, **asdict(form))
    # Fitted to the same images as those of a run.
    shown = choose_bands(training_examples(dataset.train, "none").images, chosen)
    PlainConsole().print(summary.as_table(dataset))
    for sentence in find_duplicates(dataset):
        print_text(sentence)
    images, names = summary.sample_images(dataset, split, count)
    path = Path(out) if out else Path(f"{summary.file_name(dataset)}-images.png")
    print_text(save(contact_sheet(images, names, bands=shown), path))


def prepare(
    folder: FolderArgument,
    form: PreprocessConfig = FORM,
    out: str | None = None,
) -> None:
    """Decode image files once into a single file that loads fast: for `vaekit train --data FILE`.

    Without it, the first training does the same, into vaekit's cache.

    For example:
      vaekit data prepare photos/ --size 128 --out photos-128.safetensors

    Args:
        folder: Folder of images, a .zip or .tar.gz of one, or Parquet files.
        out: File to write, .safetensors; it must not exist. By default ./<folder>.safetensors.
    """
    from ..data.summary import prepare_file

    print_text(prepare_file(folder, form, Path(out or f"{folder.resolve().stem}.safetensors")))


SUMMARY = """Data sets: list, download and inspect them, prepare your own images.

For example:
  vaekit data list
  vaekit data get fashionmnist
  vaekit data show photos/
"""
VERBS: dict[str, Callable[..., None]] = {
    "list": list_sets,
    "get": get,
    "show": show,
    "prepare": prepare,
}
