"""The verbs of `vaekit data`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from ..settings.data import FormConfig

NameArgument = Annotated[str, Positional, tyro.conf.arg(metavar="NAME")]
DataArgument = Annotated[str, Positional, tyro.conf.arg(metavar="DATA")]
FolderArgument = Annotated[Path, Positional, tyro.conf.arg(metavar="FOLDER")]
FORM = FormConfig()


def list_sets(data_dir: str | None = None) -> None:
    """List the data sets by name: size, images, classes, licence, and whether they are on this machine.

    For example:
      vaekit data list

    Args:
        data_dir: Folder that holds data sets' files.
    """
    from rich.console import Console

    from ..data.sources.locations import as_table

    Console(highlight=False).print(as_table(data_dir))


def get(name: NameArgument, data_dir: str | None = None) -> None:
    """Download a data set; what is there already is kept, and a download that broke off goes on.

    For example:
      vaekit data get fashionmnist
      vaekit data get cifar10 --data-dir /data

    Args:
        name: Data set, as `vaekit data list` has it.
        data_dir: Folder to put it in, a folder of its name; by default the one that the environment variable
            VAEKIT_DATA names, or else vaekit's cache.
    """
    from ..data.sources import locations as places

    print(places.get(name, data_dir))


def show(
    data: DataArgument,
    form: FormConfig = FORM,
    split: Literal["train", "validation", "test"] = "train",
    count: int = 60,
    data_dir: str | None = None,
    out: str | None = None,
) -> None:
    """Show a data set or your own images: what they are in numbers, and a picture of some with their labels.

    For example:
      vaekit data show fashionmnist
      vaekit data show photos/ --size 64 --out photos.png

    Args:
        data: Data set by name, or a path.
        split: Images to draw.
        count: How many of these.
        data_dir: Folder that holds the named data set's files.
        out: Picture to write, PNG, PDF or SVG; <data>-images.png by default.
    """
    from rich.console import Console

    from ..data import load, summary
    from ..pictures import contact_sheet, save

    dataset = load(data, data_dir, **asdict(form))
    Console(highlight=False).print(summary.as_table(dataset))
    images, names = summary.some_images(dataset, split, count)
    path = Path(out) if out else Path(f"{summary.file_name(dataset)}-images.png")
    print(save(contact_sheet(images, names), path))


def prepare(
    folder: FolderArgument,
    form: FormConfig = FORM,
    out: str | None = None,
) -> None:
    """Decode image files once, into one file that loads at once: for `vaekit train --data FILE`.

    Without it the same is done at the first training, into vaekit's cache.

    For example:
      vaekit data prepare photos/ --size 128 --out photos-128.safetensors

    Args:
        folder: Folder of images, or a .zip or .tar.gz of one.
        out: File to write, .safetensors; it must not exist yet. By default <folder>.safetensors, here.
    """
    from ..data.summary import prepare_file

    print(prepare_file(folder, form, Path(out or f"{folder.resolve().stem}.safetensors")))


SUMMARY = """Data sets: list them, download them, look at them, prepare your own images.

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
