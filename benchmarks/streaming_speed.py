"""Training from a file beside training in memory, on 2 GB of colour images: the speed of both in one run, interleaved,
and the memory that each takes, in a process of its own.

    python benchmarks/streaming_speed.py [--rounds 5]

175,000 images of 64 x 64 x 3 pixels of noise are written to a temporary folder (4 GB with their cache). A round is
20,000 (dense) or 2,000 (conv) of them at random; the memory is that of one pass over all. The file is in the operating
system's cache, as it would be from the second epoch on where that has room for it.
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
from side_by_side import compare, rounds_wanted, vaekit_loop

import vaekit
from vaekit.data.feeding import batches
from vaekit.model.objectives import elbo
from vaekit.settings.training import TrainConfig

IMAGES, SHAPE = 175_000, (64, 64, 3)
MODELS: dict[str, tuple[str, dict[str, Any], int]] = {
    "dense": ("vae", {"encoder": "64", "decoder": "64"}, 20_000),
    "conv": ("convvae", {"channels": 16}, 2_000),
}


def write_images(path: Path) -> None:
    chance = np.random.default_rng(0)
    file = np.lib.format.open_memmap(path, "w+", np.uint8, (IMAGES, *SHAPE))
    for start in range(0, IMAGES, 1000):
        file[start : start + 1000] = chance.integers(0, 256, (1000, *SHAPE), dtype=np.uint8)


def epochs_of(kind: str, data: vaekit.Dataset, epochs: int) -> Iterator[None]:
    name, settings, images = MODELS[kind]
    few = dataclasses.replace(
        data,
        train=data.train.take(torch.randperm(len(data.train))[:images]),
        digest="not needed",
    )
    model = vaekit.build(name, few, likelihood="gaussian", **settings)
    return vaekit_loop(model, few, TrainConfig(epochs=epochs), elbo(), "none")


def memory(path: Path, in_memory: str) -> None:
    """Print the megabytes that this process had before the data and at most in one pass over them."""
    settings = MODELS["dense"][1]
    before = most_memory()
    data = vaekit.load_data(path, in_memory=in_memory, progress=False)
    model = vaekit.build("vae", data, likelihood="gaussian", **settings)
    optimizer = torch.optim.Adam(model.parameters())
    for batch in batches(data.train, torch.randperm(len(data.train)).split(100)):
        loss = -elbo()(model(batch.images.float() / 255), 1.0).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"{before:,.0f} | {most_memory():,.0f}")


def most_memory() -> float:
    """The most megabytes that this process has had in memory, pages of files among them (Linux)."""
    (kilobytes,) = re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return int(kilobytes) / 1024


def main() -> None:
    if sys.argv[1:2] == ["--memory"]:
        memory(Path(sys.argv[2]), sys.argv[3])
        return
    rounds = rounds_wanted(__doc__, 5)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["VAEKIT_CACHE"] = folder
        path = Path(folder) / "noise.npy"
        write_images(path)
        found = {
            where: vaekit.load_data(path, in_memory=where, progress=False)
            for where in ("yes", "no")
        }
        for kind, (_, _, images) in MODELS.items():
            print(f"\n{kind}: ", end="")
            contestants = {
                f"in {'memory' if where == 'yes' else 'a file'}": epochs_of(kind, data, rounds + 1)
                for where, data in found.items()
            }
            compare(contestants, images, rounds)
        print("\n| pixels | MB before the data | MB at most |\n|---|---|---|")
        for where in ("yes", "no"):
            command = [sys.executable, __file__, "--memory", str(path), where]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            print(f"| {'in memory' if where == 'yes' else 'in a file'} | {done.stdout.strip()} |")


if __name__ == "__main__":
    main()
