"""TIFF files beyond what Pillow reads exactly: several pages, more than 8 bits, many channels; through `tifffile`."""

from __future__ import annotations

import contextlib
import io
import logging
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ...support.errors import UserError, one_line, reason
from .images import BadImage, check_page_bytes, check_pixel_count, turn, upright_array
from .tiff_tags import GREY, ORIENTATION, RGB, WHITE_IS_ZERO, is_plain_image, is_plain_page

if TYPE_CHECKING:
    import tifffile


def is_plain(content: bytes) -> bool:
    """`is_plain_image` of a file's bytes. Raises BadImage."""
    try:
        with Image.open(io.BytesIO(content), formats=["TIFF"]) as image:
            return is_plain_image(image)
    except Image.UnidentifiedImageError:
        return False
    except Exception as error:  # anything, on damaged files
        raise BadImage(reason(error)) from None


@contextlib.contextmanager
def errors_raised(logger: logging.Logger) -> Iterator[None]:
    """Raise BadImage for an error that is only logged, such as a page that is left out, since a file is truncated."""
    handler = RaisingHandler(logging.ERROR)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
    if handler.first:
        raise BadImage(f"it is damaged ({handler.first})")


class RaisingHandler(logging.Handler):
    """Raises BadImage for the first message: of a damaged file there may be millions. tifffile may catch it, too."""

    first = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.first = self.first or one_line(record.getMessage()) or "an error without a message"
        raise BadImage(f"it is damaged ({self.first})")


class Tiff:
    """The pages of a TIFF file: planes along all of its axes but those of height, width and samples.

    Where its metadata (of ImageJ or OME) has an axis of channels beside others, such as time, these are the channels of
    a page. Smaller copies of an image (pyramids, thumbnails) are no pages. Raises BadImage for what is no such file,
    and UserError without tifffile.
    """

    noun = "pages"

    def __init__(self, content: bytes) -> None:
        try:
            import tifffile
        except ImportError:
            raise UserError(
                "a TIFF file with several pages, or not of 8 bits, needs tifffile: pip install 'vaekit[science]'"
            ) from None
        self.content = content
        try:
            with errors_raised(tifffile.logger()):
                self._open(content)
        except BadImage:
            raise
        except Exception as error:  # anything, on damaged files
            raise BadImage(reason(error)) from None

    def _open(self, content: bytes) -> None:
        import tifffile

        # Other files, which OME metadata may name, are not opened: each has its own pages.
        self.file = tifffile.TiffFile(io.BytesIO(content), _multifile=False)
        # Counted first: pages that refer to each other in a circle would be read without end.
        check_page_bytes(len(self.file.pages), 1)
        found = list(self.file.series)
        self.series = [s for s in found if not s.keyframe.is_reduced] or found[:1]
        if not self.series:
            raise BadImage("it has no pages")
        for series in self.series:
            if any(page is None for page in series.pages) or series.is_multifile:
                raise BadImage("it lacks pages that its metadata lists")
            if (
                not {*"YX"} <= {*series.axes}
                or series.dtype is None
                or series.dtype.kind not in "buif"
            ):
                raise BadImage(
                    f"it has values of type {series.dtype} with axes {series.axes}, not pixels"
                )
            check_pixel_count(*(series.shape[series.axes.index(axis)] for axis in "XY"))
        check_page_bytes(1, sum(math.prod(s.shape) * s.dtype.itemsize for s in self.series))
        kinds = {(_page_shape(s)[0], s.dtype) for s in self.series}
        if len(kinds) > 1:
            raise BadImage(
                "its pages differ in their number of channels or type; save them as several files"
            )

    @property
    def count(self) -> int:
        return sum(_page_shape(s)[1] for s in self.series)

    def read(self, first_only: bool = False) -> list[np.ndarray]:
        import tifffile

        pages: list[np.ndarray] = []
        try:
            with errors_raised(tifffile.logger()):
                for series in self.series[:1] if first_only else self.series:
                    pages += self._read(series)
        except BadImage:
            raise
        except Exception as error:  # anything, on damaged files
            raise BadImage(reason(error)) from None
        return pages[:1] if first_only else pages

    def _read(self, series: tifffile.TiffPageSeries) -> list[np.ndarray]:
        page = series.keyframe
        extra = tuple(int(kind) for kind in page.extrasamples)
        if _page_shape(series)[1] == len(series.pages) and is_plain_page(
            int(page.photometric), (int(page.sampleformat or 1),), (page.bitspersample,), page.samplesperpixel, extra
        ) and not (page.photometric in (GREY, RGB) and page.bitspersample >= 8 and not extra):  # fmt: skip
            return self._read_by_pillow([int(p.index) for p in series.pages if p is not None])
        array = series.asarray()
        axes, shape = series.axes, series.shape
        channels = _channel_axes(series)
        others = [a for a in axes if a not in channels and a not in "YX"]
        order = [axes.index(a) for a in (*others, *channels, "Y", "X")]
        height, width = shape[axes.index("Y")], shape[axes.index("X")]
        planes = array.transpose(order).reshape(-1, _page_shape(series)[0], height, width)
        planes = planes.astype(planes.dtype.newbyteorder("="), copy=False)
        if page.photometric == WHITE_IS_ZERO and planes.dtype.kind == "u":
            planes = planes.dtype.type(2**page.bitspersample - 1) - planes
        return [turn(plane, _orientation(series)) for plane in planes]

    def _read_by_pillow(self, numbers: list[int]) -> list[np.ndarray]:
        """Pages of bits, palettes, other colour spaces or with transparency, (C, H, W), uint8."""
        with Image.open(io.BytesIO(self.content)) as image:
            arrays = []
            for number in numbers:
                image.seek(number)
                arrays.append(upright_array(image))
        return arrays


def _channel_axes(series: tifffile.TiffPageSeries) -> list[str]:
    """The axes that are the channels of a page: samples, and C where there are other axes of pages."""
    others = [a for a in series.axes if a not in "SYXC"]
    return [a for a in series.axes if a == "S" or (a == "C" and others)]


def _page_shape(series: tifffile.TiffPageSeries) -> tuple[int, int]:
    """The channels of a page, and the number of pages."""
    sizes = dict(zip(series.axes, series.shape, strict=True))
    channels = math.prod(sizes[a] for a in _channel_axes(series))
    return channels, math.prod(series.shape) // (channels * sizes["Y"] * sizes["X"])


def _orientation(series: tifffile.TiffPageSeries) -> int:
    tag = series.keyframe.tags.get(ORIENTATION)
    return int(tag.value) if tag is not None and tag.value in range(1, 9) else 1
