"""Kill a training with SIGKILL at random moments of one run, and compare what it comes to with an unbroken one.

    python tests/kills.py vae [--kills 100] [--seed 0]

The training is a process that is forked from this one, so that each begins at once. Its state is kept after every
step, so that many kills fall into the saving.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch

from conftest import random_dataset, timeless
from vaekit import Run, build, resume, train
from vaekit.runs.directory import STATE
from vaekit.training import checkpoint as keeping

SETTINGS = {
    "vae": ({}, {"ema": 0.9, "kl_warmup": 1.0}),
    "gmvae": ({"clusters": 3, "start_epochs": 4}, {}),
    "hvampprior": ({"components": 6}, {"clip_gradient": 5.0}),
}


def work(model: str, out: Path, epochs: int) -> None:
    """Train, or go on with what is there."""
    data = random_dataset(shape=(1, 12, 12), count=300)
    if (out / STATE).exists():
        resume(out, data, progress=False)
        return
    shutil.rmtree(out, ignore_errors=True)
    settings, training = SETTINGS[model]
    built = build(model, data, **{"latent_dim": 3, "hidden_dim": 32, **settings})
    train(
        built, data, out=out, epochs=epochs, batch_size=10, state_every=1e-9, progress=False, **training
    )  # fmt: skip


def forked(model: str, out: Path, epochs: int) -> int:
    """The number of a process that does the work."""
    number = os.fork()
    if number:
        return number
    code = 1
    try:
        work(model, out, epochs)
        code = 0
    finally:
        os._exit(code)


def outcome(out: Path) -> tuple[bytes, list[dict[str, object]]]:
    return (out / "model.safetensors").read_bytes(), timeless(Run(out))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", choices=SETTINGS)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=120)
    given = parser.parse_args()
    torch.set_num_threads(1)
    keeping.SHARE = math.inf
    chance = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as folder:
        unbroken, broken = Path(folder) / "unbroken", Path(folder) / "broken"
        work(given.model, Path(folder) / "first", 2)  # so that all is imported before the forks
        started = time.perf_counter()
        assert os.waitpid(forked(given.model, unbroken, given.epochs), 0)[1] == 0
        seconds = time.perf_counter() - started
        kills = saving = begun = 0
        print(f"unbroken: {seconds:.1f} s", flush=True)
        while True:
            number = forked(given.model, broken, given.epochs)
            # On average the time that is needed is spread over the kills; what each start loses comes on top.
            time.sleep(chance.uniform(0, 2 * seconds / given.kills))
            alive = os.waitpid(number, os.WNOHANG) == (0, 0)
            if alive and kills < given.kills:
                os.kill(number, signal.SIGKILL)
                os.waitpid(number, 0)
                kills += 1
                saving += any(broken.glob("*.part"))
                begun += (broken / STATE).exists()
                continue
            if alive:
                assert os.waitpid(number, 0)[1] == 0
            break
        same = outcome(unbroken) == outcome(broken)
        assert begun > kills / 2, "most kills came before the first state: nothing is shown"
        print(
            f"{given.model}: {kills} kills, {saving} of them while a file was written, {begun} after the first state; "
            f"weights and metrics are {'the same' if same else 'DIFFERENT'} (seed {given.seed})"
        )
        sys.exit(not same)


if __name__ == "__main__":
    main()
