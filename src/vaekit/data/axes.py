"""The axes of an array of images: which one is the channels, by a stated rule; an array of two readings is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from ..settings.data import ChannelAxis
from ..support.errors import UserError, require

Order = Literal["NHW", "NCHW", "NHWC", "CHW", "HWC"]
MAX_CLEAR = 16  # channels that an axis can be taken for without --channel-axis
MAX_CHANNELS = 4096
PHOTO = 32  # pixels; arrays of many channels this large may be a single image
FEW = 4  # so few images, fewer than channels, may be the channels themselves


def read_axes(
    shape: tuple[int, ...],
    channel_axis: ChannelAxis,
    where: str,
    image_shape: tuple[int, int, int] | None = None,
) -> Order:
    """The order of the axes of an array of images: N images, C channels, height H, width W.

    `channel_axis` decides; else, of four axes, the channels are the first or last of an image's three that has at most
    16 and is smaller than both others. If the shape (C, H, W) of the images is known, the only order that gives it is
    taken. Raises UserError for an array that can be read in two ways, such as a single image, a volume, or (H, H, N).
    """
    require(
        len(shape) in (3, 4) and 0 not in shape,
        f"{where}: an array of shape {shape}; images are (N, H, W), (N, H, W, C) or (N, C, H, W)",
    )
    orders: tuple[Order, ...] = ("NHW", "CHW", "HWC") if len(shape) == 3 else ("NCHW", "NHWC")
    if channel_axis != "auto":
        order = orders[-2] if channel_axis == "first" else orders[-1]
        count = image_axes(shape, order)[1]
        require(
            count <= MAX_CHANNELS,
            f"{where}: an array of shape {shape} has {count:,} channels with --channel-axis {channel_axis}; move its "
            "axes",
        )
        return order
    if image_shape is not None:
        fitting = [order for order in orders if image_axes(shape, order)[1:] == image_shape]
        if len(fitting) == 1:
            return fitting[0]
    likely = [order for order in orders if is_likely(shape, order)]
    if len(shape) == 3 and shape[0] == shape[1] != shape[2] and likely == ["NHW"]:
        last = f"{shape[2]:,} images of {shape[0]} x {shape[1]} pixels, as MATLAB stores them"
        raise UserError(
            f"{where}: an array of shape {shape} can be read as {describe(shape, 'NHW')}, or as {last}; for the first "
            "add an axis: (N, 1, H, W), for the second move the last axis: numpy.moveaxis(x, -1, 0)"
        )
    if len(likely) == 1:
        return likely[0]
    raise UserError(
        f"{where}: an array of shape {shape} can be read as " + advice(shape, likely or orders)
    )


def image_axes(shape: tuple[int, ...], order: Order) -> tuple[int, int, int, int]:
    """(N, C, H, W) of an array of a shape."""
    sizes = {"N": 1, "C": 1, **dict(zip(order, shape, strict=True))}
    return sizes["N"], sizes["C"], sizes["H"], sizes["W"]


def is_likely(shape: tuple[int, ...], order: Order) -> bool:
    """Whether an array of a shape can have this order: its channels are clearly the smallest axis of an image."""
    count, channels, height, width = image_axes(shape, order)
    few = channels <= MAX_CLEAR and channels < min(height, width)
    if order == "NHW":
        return True
    if order in ("CHW", "HWC"):  # a single image
        usual = channels <= FEW or (order == "HWC" and min(height, width) >= PHOTO)
        return few and usual and channels > (order == "CHW")
    return few and (channels == 1 or channels <= count or count > FEW)


def single_image_order(shape: tuple[int, ...]) -> Literal["HW", "CHW", "HWC"] | None:
    """The order of the axes of an array of one image, whose channels are clearly the smallest; None if none is."""
    if len(shape) == 2:
        return "HW"
    sides = {"CHW": shape[1:], "HWC": shape[:-1]}
    channels = {"CHW": shape[0], "HWC": shape[-1]}
    orders: tuple[Literal["CHW", "HWC"], ...] = ("CHW", "HWC") if len(shape) == 3 else ()
    fitting = [k for k in orders if channels[k] <= MAX_CLEAR and channels[k] < min(sides[k])]
    return fitting[0] if len(fitting) == 1 else None


def advice(shape: tuple[int, ...], orders: Sequence[Order]) -> str:
    """The readings of an array, and how to choose one."""
    readings = [describe(shape, order) for order in orders]
    if len(shape) == 3:
        return f"{', or as '.join(readings)}; add an axis: images are (N, 1, H, W), one image is (1, C, H, W)"
    *_, last = shape
    if last > min(shape[1:3]) and last != max(shape[1:3]):
        sizes = f"{last:,} images of {shape[0]} x {shape[1]} pixels, {shape[2]} channels"
        readings.append(f"{sizes}, as MATLAB stores them (numpy.moveaxis(x, -1, 0) is then needed)")
    elif min(shape[1:]) > MAX_CLEAR:
        readings.append(f"{shape[0]:,} volumes (which need one axis fewer: take slices)")
    return f"{', or as '.join(readings)}; say which with --channel-axis first or last"


def describe(shape: tuple[int, ...], order: Order) -> str:
    """An order in words."""
    count, channels, height, width = image_axes(shape, order)
    images = f"{count:,} image{'s' * (count != 1)} of {height} x {width} pixels"
    if order == "NHW":
        return f"{images}, grey"
    place = "first" if order.endswith("HW") else "last"
    return f"{images}, {channels} channel{'s' * (channels != 1)} ({place})"


def to_nchw(array: Any, order: Order) -> Any:
    """The array with the axes (N, C, H, W), a view."""
    if order == "NHW":
        return array[:, None]
    if order in ("CHW", "HWC"):
        array = array[None]
    return np.moveaxis(array, -1, 1) if order in ("HWC", "NHWC") else array
