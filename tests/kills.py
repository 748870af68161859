"""Kill a training with SIGKILL at random moments, and compare its result with that of an uninterrupted one.

    python tests/kills.py vae [--kills 100] [--seed 0]

The training runs in a process forked from this one, so that it starts at once. It saves a checkpoint after every step,
so that many kills happen while it saves. A kill comes at a random moment after a random number of checkpoints, which
the training counts: however fast the machine is, the training is not over before the last kill.
"""

from __future__ import annotations

import argparse
import math
import mmap
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from conftest import random_dataset, timeless
from vaekit import Run, build, resume, train
from vaekit.runs.directory import STATE
from vaekit.training import checkpoint
from vaekit.training.learner import Learner

SETTINGS = {
    "vae": ({}, {"ema": 0.9, "kl_warmup": 1.0}),
    "gmvae": ({"clusters": 3, "start_epochs": 4}, {}),
    "hvampprior": ({"components": 6}, {"clip_gradient": 5.0}),
}


def work(model: str, out: Path, epochs: int) -> None:
    """Train, or resume an existing run."""
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
    """Fork a process that does the work, and return its id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        work(model, out, epochs)
        code = 0
    finally:
        os._exit(code)


def count_checkpoints() -> Callable[[], int]:
    """Count the checkpoints that forked processes save from now on; returns a function that gives their number."""
    shared, save = mmap.mmap(-1, 8), checkpoint.Checkpointer.save

    def count() -> int:
        return int.from_bytes(shared[:8], "little")

    def save_and_count(self: checkpoint.Checkpointer, learner: Learner) -> None:
        save(self, learner)
        shared[:8] = (count() + 1).to_bytes(8, "little")

    checkpoint.Checkpointer.save = save_and_count  # type: ignore[method-assign]
    return count


def outcome(out: Path) -> tuple[bytes, list[dict[str, object]]]:
    """Weights, and metrics without times."""
    return (out / "model.safetensors").read_bytes(), timeless(Run(out))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", choices=SETTINGS)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=120)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    checkpoint.MAX_TIME_SHARE = math.inf
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        unbroken, killed = Path(folder) / "unbroken", Path(folder) / "killed"
        work(arguments.model, Path(folder) / "first", 2)  # imports everything before the forks
        count = count_checkpoints()
        started = time.perf_counter()
        assert os.waitpid(forked(arguments.model, unbroken, arguments.epochs), 0)[1] == 0
        seconds, checkpoints = time.perf_counter() - started, count()
        kills = saving = resumable = 0
        print(f"unbroken: {seconds:.1f} s", flush=True)
        while True:
            target = count() + rng.randrange(checkpoints // arguments.kills)
            pid = forked(arguments.model, killed, arguments.epochs)
            while (alive := os.waitpid(pid, os.WNOHANG) == (0, 0)) and count() < target:
                time.sleep(2e-4)
            time.sleep(rng.uniform(0, seconds / checkpoints))
            alive = alive and os.waitpid(pid, os.WNOHANG) == (0, 0)
            if alive and kills < arguments.kills:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                kills += 1
                saving += any(killed.glob("*.part"))
                resumable += (killed / STATE).exists()
                continue
            if alive:
                assert os.waitpid(pid, 0)[1] == 0
            break
        same = outcome(unbroken) == outcome(killed)
        assert resumable > kills / 2, (
            "most kills came before the first checkpoint: the test shows nothing"
        )
        print(
            f"{arguments.model}: {kills} kills, {saving} of them while a file was written, "
            f"{resumable} after the first checkpoint; "
            f"weights and metrics are {'the same' if same else 'DIFFERENT'} (seed {arguments.seed})"
        )
        sys.exit(not same)


if __name__ == "__main__":
    main()
