"""Speed and memory of training from a file compared with training in memory, on 2 GB of colour images.

    python benchmarks/streaming_speed.py [--rounds 5]

Writes 175,000 images of 64 x 64 x 3 pixels of noise to a temporary folder (4 GB with their cache). The speeds are
interleaved; a round is 20,000 (dense) or 2,000 (conv) random images. Memory is the peak of a separate process that
trains for one epoch. The file is in the operating system's cache, as from the second epoch on if it fits there.
"""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from side_by_side import compare, parse_rounds, training_loop

import vaekit
from vaekit.data.prefetch import batches
from vaekit.model.objectives import elbo
from vaekit.settings.training import TrainConfig

IMAGES, SHAPE = 175_000, (64, 64, 3)
LOCATIONS = {"yes": "in memory", "no": "in a file"}  # by the setting `in_memory`
MODELS: dict[str, tuple[str, dict[str, Any], int]] = {
    "dense": ("vae", {"encoder": "64", "decoder": "64"}, 20_000),
    "conv": ("convvae", {"channels": 16}, 2_000),
}


def write_images(path: Path) -> None:
    rng = np.random.default_rng(0)
    file = np.lib.format.open_memmap(path, "w+", np.uint8, (IMAGES, *SHAPE))
    for start in range(0, IMAGES, 1000):
        file[start : start + 1000] = rng.integers(0, 256, (1000, *SHAPE), dtype=np.uint8)


def epochs_of(kind: str, data: vaekit.Dataset, epochs: int) -> Iterator[None]:
    name, settings, images = MODELS[kind]
    subset = dataclasses.replace(
        data,
        train=data.train.take(torch.randperm(len(data.train))[:images]),
        digest="unused",
    )
    model = vaekit.build(name, subset, likelihood="gaussian", **settings)
    return training_loop(model, subset, TrainConfig(epochs=epochs), elbo(), "none")


def memory(path: Path, in_memory: str) -> None:
    """Print the peak MB of this process before loading the data, and after one epoch."""
    settings = MODELS["dense"][1]
    before = peak_megabytes()
    data = vaekit.load_data(path, in_memory=in_memory, progress=False)
    model = vaekit.build("vae", data, likelihood="gaussian", **settings)
    optimizer = torch.optim.Adam(model.parameters())
    for batch in batches(data.train, torch.randperm(len(data.train)).split(100)):
        loss = -elbo()(model(batch.images.float() / 255), 1.0).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"{before:,.0f} | {peak_megabytes():,.0f}")


def peak_megabytes() -> float:
    """Peak resident MB of this process, including pages of mapped files (Linux)."""
    (kilobytes,) = re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return int(kilobytes) / 1024


def main() -> None:
    if sys.argv[1:2] == ["--memory"]:
        memory(Path(sys.argv[2]), sys.argv[3])
        return
    rounds = parse_rounds(__doc__, 5)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["VAEKIT_CACHE"] = folder
        path = Path(folder) / "noise.npy"
        write_images(path)
        data_sets = {
            in_memory: vaekit.load_data(path, in_memory=in_memory, progress=False)
            for in_memory in LOCATIONS
        }
        for kind, (_, _, images) in MODELS.items():
            print(f"\n{kind}: ", end="")
            loops = {
                LOCATIONS[in_memory]: epochs_of(kind, data, rounds + 1)
                for in_memory, data in data_sets.items()
            }
            compare(loops, images, rounds)
        print("\n| pixels | MB before loading the data | peak MB |\n|---|---|---|")
        for in_memory, location in LOCATIONS.items():
            command = [sys.executable, __file__, "--memory", str(path), in_memory]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            print(f"| {location} | {done.stdout.strip()} |")


if __name__ == "__main__":
    main()
