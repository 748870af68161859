"""Files of several images: pages, frames or slices. Counted and read by format, and packed as bytes one by one, so that
a page is decoded where image files are."""

from __future__ import annotations

import io
import math
import re
from typing import Protocol

import numpy as np

from ...settings.data import Pages
from ...support.errors import printable, reason, require
from .images import (
    PAGE,
    BadImage,
    check_page_bytes,
    check_pixel_count,
    has_frames,
    image_depth,
    open_image,
    upright_array,
)

MAX_CHANNELS = 64  # of an image
PAGE_NAME = re.compile(r"(.+) page \d+", re.DOTALL)
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two are BigTIFF
NIFTI = (".nii", ".nii.gz")
# File name extensions of formats that may have several pages.
EXTENSIONS = (*NIFTI, ".tif", ".tiff", ".gif", ".webp", ".png", ".apng", ".avif", ".avifs")


class PagedFile(Protocol):
    """An opened file of pages, `noun` by name."""

    noun: str

    @property
    def count(self) -> int: ...

    def read(self, first_only: bool) -> list[np.ndarray]:
        """The pages, each (C, H, W), or only the first. Raises BadImage."""
        ...


class Frames:
    """The frames of an animation that Pillow reads: grey or colour, uint8, over white where they are transparent."""

    noun = "frames"

    def __init__(self, content: bytes) -> None:
        try:
            self.image = open_image(content)
            self.count = getattr(self.image, "n_frames", 1) if has_frames(self.image) else 1
        except Exception as error:  # decoders raise anything on damaged files
            raise BadImage(reason(error)) from None
        check_pixel_count(*self.image.size)
        if self.count > 1 and image_depth(self.image, content) != "uint8":
            raise BadImage("it is an animation of 16 bits, of which only 8 can be read")
        check_page_bytes(self.count, 3 * math.prod(self.image.size))

    def read(self, first_only: bool) -> list[np.ndarray]:
        frames = []
        try:
            for number in range(1 if first_only else self.count):
                self.image.seek(number)
                frames.append(upright_array(self.image))
        except Exception as error:
            raise BadImage(f"its frame {number + 1} cannot be read ({reason(error)})") from None
        if len({len(frame) for frame in frames}) > 1:  # the first frame grey, a later one in colour
            frames = [np.broadcast_to(frame, (3, *frame.shape[1:])) for frame in frames]
        return frames


def open_pages(name: str, content: bytes) -> PagedFile | None:
    """Open a file that may have several pages, or whose pages Pillow cannot read; None for any other. Raises BadImage,
    and UserError where a package is missing."""
    if name.lower().endswith(NIFTI):
        from .nifti import Volume

        return Volume(content)
    if content.startswith(TIFF):
        from .tiff import Tiff, is_plain

        return None if is_plain(content) else Tiff(content)
    frames = Frames(content) if may_be_animated(content) else None
    return frames if frames is not None and frames.count > 1 else None


def may_be_animated(content: bytes) -> bool:
    """Whether the first bytes are those of a format with animations; of a .png, whether it is one."""
    if content.startswith(b"\x89PNG"):
        return content.find(b"acTL", 0, max(0, content.find(b"IDAT"))) > 0
    return content.startswith(b"GIF8") or content[8:12] == b"WEBP" or content[4:12] == b"ftypavis"


def images_of(name: str, file: PagedFile, pages: Pages | None) -> list[np.ndarray]:
    """The images, each (C, H, W), of a file of pages by the setting `pages`. Raises BadImage, and UserError where there
    are several pages and no setting."""
    count = file.count
    require(
        pages is not None or count == 1,
        f"{printable(name)} has {count:,} {file.noun}; choose with --pages all (each is an image), first or channels "
        "(together they are the channels of one image)",
    )
    arrays = file.read(first_only=pages == "first")
    if pages == "channels" and count > 1:
        sizes = {array.shape[1:] for array in arrays}
        require(
            len(sizes) == 1,
            f"{printable(name)} has {file.noun} of different sizes, which cannot be the channels of one image; "
            "give --pages all or first",
        )
        arrays = [np.concatenate(arrays)]
    if len(arrays[0]) > MAX_CHANNELS:
        raise BadImage(
            f"it has images of {len(arrays[0])} channels, but {MAX_CHANNELS} is the largest number"
        )
    return arrays


def pack(page: np.ndarray | BadImage) -> bytes:
    """A page (C, H, W), or the reason why it cannot be read, as the content of a file for `images.unpack`."""
    if isinstance(page, BadImage):
        return PAGE + b"!" + str(page).encode()
    stream = io.BytesIO()
    stream.write(PAGE)
    np.save(stream, np.ascontiguousarray(np.moveaxis(page, 0, -1)), allow_pickle=False)
    return stream.getvalue()


def page_name(file: str, number: int) -> str:
    """The name of a page, from 1. No file is called so: the name of an image file ends with its extension."""
    return f"{file} page {number}"


def file_of_page(name: str) -> str:
    """The file of an image that may be a page."""
    match = PAGE_NAME.fullmatch(name)
    return name if match is None else match[1]
