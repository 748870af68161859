"""Time to load a folder of images: the first time, with decoding, and then from the cache.

python benchmarks/loading_speed.py FOLDER [--size 64]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time

import vaekit
from vaekit.data import load


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("--size")
    args = parser.parse_args()
    times = []
    with tempfile.TemporaryDirectory() as cache:
        os.environ["VAEKIT_CACHE"] = cache
        for _ in range(7):
            started = time.perf_counter()
            data = load(args.folder, size=args.size, progress=False)
            times.append(time.perf_counter() - started)
    images = sum(map(len, data.splits.values()))
    print(
        f"{images:,} images of {' x '.join(map(str, data.shape))} (C x H x W), {os.cpu_count()} cores"
    )
    print(f"vaekit {vaekit.__version__}, {time.strftime('%Y-%m-%d')}")
    print(f"first time, with decoding: {times[0]:.1f} s; from the cache, after a warm-up: ", end="")
    print(
        f"{statistics.median(times[2:]):.2f} s (median of 5, {min(times[2:]):.2f} to {max(times[2:]):.2f})"
    )


if __name__ == "__main__":
    main()
