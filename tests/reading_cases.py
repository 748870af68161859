"""Arrays of many shapes, types and ranges, and how they must be read; `python tests/reading_cases.py` prints the table.

The expected pixels are computed here in float64 from the array itself, not by vaekit.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

# Shape, --channel-axis, and the order of axes that must be found; or a text of the refusal.
SHAPES: list[tuple[tuple[int, ...], str, str]] = [
    ((24, 6, 5), "auto", "NHW"),
    ((24, 1, 28), "auto", "NHW"),
    ((24, 30, 17), "auto", "NHW"),
    ((24, 6, 5, 1), "auto", "NHWC"),
    ((24, 1, 6, 5), "auto", "NCHW"),
    ((24, 2, 6, 5), "auto", "NCHW"),
    ((24, 6, 5, 2), "auto", "NHWC"),
    ((24, 3, 6, 5), "auto", "NCHW"),
    ((24, 6, 5, 3), "auto", "NHWC"),
    ((24, 8, 8, 4), "auto", "NHWC"),
    ((24, 4, 8, 8), "auto", "NCHW"),
    ((40, 16, 16, 2), "auto", "NHWC"),
    ((60, 28, 28, 2), "auto", "NHWC"),
    ((20, 64, 64, 13), "auto", "NHWC"),
    ((20, 12, 20, 24), "auto", "NCHW"),
    ((20, 18, 20, 24), "first", "NCHW"),
    ((20, 24, 20, 18), "last", "NHWC"),
    ((20, 8, 8, 8), "first", "NCHW"),
    ((20, 8, 8, 8), "last", "NHWC"),
    ((20, 3, 7, 3), "first", "NCHW"),
    ((20, 3, 7, 3), "last", "NHWC"),
    ((3, 32, 32, 10), "last", "NHWC"),
    ((20, 1, 1, 30), "first", "NCHW"),
    ((32, 32, 3, 60), "auto", "60 images of 32 x 32 pixels, 3 channels, as MATLAB stores them"),
    ((28, 28, 1, 60), "auto", "60 images of 28 x 28 pixels, 1 channels, as MATLAB stores them"),
    ((20, 28, 28, 28), "auto", "20 volumes"),
    ((20, 8, 8, 8), "auto", "channels (first), or as 20 images"),
    ((20, 3, 7, 3), "auto", "3 channels (first), or as 20 images of 3 x 7 pixels, 3 channels (last)"),
    ((20, 18, 20, 24), "auto", "say which with channel_axis first or last"),
    ((3, 32, 32, 10), "auto", "10 channels (last)"),
    ((64, 48, 3), "auto", "1 image of 64 x 48 pixels, 3 channels (last)"),
    ((3, 64, 48), "auto", "1 image of 64 x 48 pixels, 3 channels (first)"),
    ((64, 48, 13), "auto", "1 image of 64 x 48 pixels, 13 channels (last)"),
    ((64, 48, 3), "last", "has 1 training images"),
    ((3, 64, 48), "first", "has 1 training images"),
    ((2, 5, 6, 5, 3), "auto", "images are (N, H, W)"),
    ((24, 784), "auto", "images are (N, H, W)"),
    ((24, 98), "auto", "images are (N, H, W)"),
    ((784,), "auto", "images are (N, H, W)"),
    ((24, 0, 5), "auto", "images are (N, H, W)"),
]  # fmt: skip


@dataclass(frozen=True)
class Values:
    """Values of an array: their type, smallest, largest and step; `wanted` is the flag --range. `read` is the range and
    number of levels that must be found, or the text of a refusal."""

    name: str
    dtype: str
    low: float
    high: float
    step: float
    read: tuple[float, float, int | None] | str
    wanted: str = "auto"
    black_and_white: bool = False

    def fill(self, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
        """Random values of a shape, in which the smallest and the largest are in many images."""
        rng = np.random.default_rng(seed)
        count = round((self.high - self.low) / self.step)
        steps = rng.integers(0, count + 1, shape)
        edge = rng.random(shape)
        steps[edge < 0.1], steps[edge > 0.9] = 0, count
        return (self.low + steps * self.step).astype(self.dtype)


FLOATS = 1e-4  # a step that makes a float no whole number
VALUES = [
    Values("bits", "bool", 0, 1, 1, (0, 1, 2), black_and_white=True),
    Values("bits", "uint8", 0, 1, 1, (0, 1, 2), black_and_white=True),
    Values("bits", "int64", 0, 1, 1, (0, 1, 2), black_and_white=True),
    Values("bits", "uint16", 0, 1, 1, (0, 1, 2), black_and_white=True),
    Values("bits", "float32", 0, 1, 1, (0, 1, 2), black_and_white=True),
    Values("bits", "float64", 0, 1, 1, (0, 1, 2), black_and_white=True),
    Values("8 bits", "uint8", 0, 255, 1, (0, 255, 256)),
    Values("8 bits, black and white", "uint8", 0, 255, 255, (0, 255, 256), black_and_white=True),
    Values("8 bits, dark", "uint8", 0, 7, 1, (0, 255, 256)),
    Values("8 bits, bright", "uint8", 200, 255, 1, (0, 255, 256)),
    Values("8 bits", "int32", 0, 255, 1, (0, 255, 256)),
    Values("8 bits", "int64", 3, 251, 1, (0, 255, 256)),
    Values("8 bits", "uint32", 0, 255, 1, (0, 255, 256)),
    Values("8 bits", "float32", 0, 255, 1, (0, 255, 256)),
    Values("8 bits", "float64", 0, 255, 1, (0, 255, 256)),
    Values("8 bits, own range", "uint8", 20, 200, 1, (20, 200, 181), wanted="20,200"),
    Values("8 bits in 16", "uint16", 0, 255, 1, (0, 255, 256)),
    Values("12 bits", "uint16", 0, 4095, 1, (0, 4095, 4096)),
    Values("12 bits, at the top", "uint16", 0, 65520, 16, (0, 65520, 4096)),
    Values("16 bits", "uint16", 0, 65535, 1, (0, 65535, 65536)),
    Values("16 bits, narrow", "uint16", 30000, 30100, 1, (30000, 30100, 101)),
    Values("16 bits, range", "uint16", 300, 4000, 1, (0, 4095, 4096), wanted="0,4095"),
    Values("signed 8 bits", "int8", -128, 127, 1, (-128, 127, 256)),
    Values("Hounsfield units", "int16", -1024, 3071, 1, (-1024, 3071, 4096)),
    Values("Hounsfield units, range", "int16", -1000, 900, 1, (-1024, 3071, 4096), wanted="-1024,3071"),
    Values("32 bits", "int32", -70000, 80000, 1, (-70000, 80000, None)),
    Values("32 bits, steps", "int32", 0, 100000, 100, (0, 100000, 1001)),
    Values("64 bits", "int64", -300, 300, 1, (-300, 300, 601)),
    Values("64 bits, large", "int64", 2**40, 2**40 + 500, 1, "float32 cannot hold the int64 values"),
    Values("floats", "float32", 0, 1, FLOATS, (0, 1, None)),
    Values("floats", "float64", 0.2, 0.7, FLOATS, (0, 1, None)),
    Values("floats", "float16", 0, 1, 1 / 1024, (0, 1, None)),
    Values("floats, rounded", "float32", 0, 1.0000001, 0.10000001, (0, 1, None)),
    Values("floats, symmetric", "float32", -1, 1, 2 / 300, (-1, 1, None)),
    Values("floats, whole", "float32", -1, 1, 1, (-1, 1, 3)),
    Values("metres", "float32", 0.5, 80.25, 0.125, (0.5, 80.25, None)),
    Values("metres, range", "float64", 0.5, 80.25, 0.125, (0, 100, None), wanted="0,100"),
    Values("reflectance", "float32", 0, 1.5, FLOATS, (0, 1.5, None)),
    Values("large", "float64", 1e6, 1e6 + 3e5, 0.5, (1e6, 1e6 + 3e5, None)),
    Values("far from 0", "float64", 1e9, 1e9 + 100, 0.5, "float32 cannot hold the float64 values"),
    Values("huge", "float64", 0, 1e60, 1e57, "float32 cannot hold the float64 values"),
    Values("constant", "uint16", 7, 7, 1, "all training values are 7"),
    Values("constant", "float32", 1.5, 1.5, 1, "all training values are 1.5"),
    Values("NaN", "float32", np.nan, np.nan, 1, "values are not finite"),
    Values("text", "<U3", 0, 9, 1, "pixels must be numbers"),
    Values("complex", "complex64", 0, 9, 1, "pixels must be numbers"),
    Values("bits with a range", "uint8", 0, 1, 1, "need no range", wanted="0,4"),
]  # fmt: skip


def to_nchw(array: np.ndarray, order: str) -> np.ndarray:
    """The array with the axes (N, C, H, W)."""
    if order == "NHW":
        return array[:, None]
    return array if order == "NCHW" else array.transpose(0, 3, 1, 2)


def expected_pixels(array: np.ndarray, order: str, values: Values) -> np.ndarray:
    """The pixels in [0, 1], float64, (N, C, H, W)."""
    low, high, _ = values.read
    x = to_nchw(array, order).astype(np.float64)
    return np.clip((x - low) / (high - low), 0, 1)


def accepted_shapes() -> list[tuple[tuple[int, ...], str, str]]:
    return [case for case in SHAPES if case[2] in ("NHW", "NCHW", "NHWC")]


def table() -> str:
    """The cases in Markdown."""
    import vaekit

    def result(array: np.ndarray, **settings: str) -> str:
        try:
            data = vaekit.load_data(array, progress=False, **settings)
        except vaekit.UserError as error:
            return f"refused: {error}"
        n = sum(map(len, data.splits.values()))
        r = data.value_range
        kind = "black and white" if data.black_and_white else f"{r.levels or 'no'} levels"
        return f"{n} x {data.shape}, {r.low:g} ... {r.high:g}, {kind}"

    lines = ["| shape | `--channel-axis` | read as (C, H, W) |", "|---|---|---|"]
    for shape, axis, _ in SHAPES:
        array = VALUES[6].fill(shape)
        lines.append(f"| {shape} | {axis} | {result(array, channel_axis=axis)} |")
    lines += [
        "",
        "| values | type | from | to | `--range` | read as |",
        "|---|---|---|---|---|---|",
    ]
    for v in VALUES:
        with np.errstate(invalid="ignore"):
            array = v.fill((24, 6, 5)) if v.low == v.low else np.full((24, 6, 5), np.nan)
        read = result(array, range=v.wanted)
        lines.append(f"| {v.name} | {v.dtype} | {v.low:g} | {v.high:g} | {v.wanted} | {read} |")
    accepted = sum(isinstance(v.read, tuple) for v in VALUES) * len(accepted_shapes())
    refused = len(SHAPES) - len(accepted_shapes()) + sum(isinstance(v.read, str) for v in VALUES)
    lines.append(
        f"\n{accepted} combinations are loaded and compared value by value, {refused} cases refused."
    )
    return "\n".join(lines)


def combinations() -> list[tuple[tuple[tuple[int, ...], str, str], Values]]:
    return [*itertools.product(accepted_shapes(), (v for v in VALUES if isinstance(v.read, tuple)))]


if __name__ == "__main__":
    print(table())
