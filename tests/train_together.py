"""The trainings that test_data_parallel.py starts, with torchrun or in one process: two epochs on random images.

    torchrun --nproc-per-node 2 tests/train_together.py OUT JOB ...

A job is MODEL, MODEL+no-all-reduce, MODEL+own-noise, MODEL+die or MODEL+last-N; it trains in OUT/JOB. With own noise
each process draws that of its own images; else it draws the noise of the whole batch and takes its part, so that the
result is that of a single process. A job that dies has own noise too, and its second process is killed once. The last
batch of last-N has N images.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode

from conftest import random_dataset, small_settings
from vaekit import build, train
from vaekit.support import distributed
from vaekit.training import checkpoint
from vaekit.training.learner import Learner

BATCH = 7  # of 20 training images: two processes have 4 and 3 of them, and 3 each of the last batch


class WholeNoise(TorchFunctionMode):
    """Makes Gaussian noise for part of a batch that part of the whole batch's noise, from one generator for all."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)
        self.rows = torch.arange(0)

    def local_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """distributed.local_rows, and note the rows of the whole batch."""
        self.rows = rows
        return LOCAL_ROWS(rows)

    def draw(self, shape: torch.Size) -> torch.Tensor:
        count = len(self.rows)
        noise = torch.randn((*shape[:-2], count, shape[-1]), generator=self.generator)
        local = LOCAL_ROWS(torch.arange(count))
        assert shape[-2] == len(local)
        return noise[..., local, :]

    def __torch_function__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if function is torch.Tensor.normal_ and torch.is_grad_enabled():  # in a training step
            return args[0].copy_(self.draw(args[0].shape))
        # The prior samples of infovae:
        if function is torch.normal and args[0].shape[-2] == len(LOCAL_ROWS(self.rows)):
            return args[0] + args[1] * self.draw(args[0].shape)
        if function is torch.randperm and "generator" not in (kwargs or {}):
            return torch.randperm(*args, generator=self.generator)
        return function(*args, **(kwargs or {}))


LOCAL_ROWS = distributed.local_rows


def dying(save):  # type: ignore[no-untyped-def]
    """Checkpointer.save, after whose third call the second process is killed, unless torchrun has restarted it."""
    calls = iter(range(1000))

    def save_then_die(self: checkpoint.Checkpointer, learner: Learner) -> None:
        save(self, learner)
        if next(calls) == 2 and distributed.rank() == 1 and not distributed.is_restart():
            os.kill(os.getpid(), signal.SIGKILL)

    return save_then_die


def main(out: Path, jobs: list[str]) -> None:
    torch.set_num_threads(1)
    all_reduce, save = distributed.all_reduce_gradients, checkpoint.Checkpointer.save
    share = checkpoint.MAX_TIME_SHARE
    with distributed.process_group(torch.device("cpu")):
        for job in jobs:
            name, _, kind = job.partition("+")
            data = random_dataset(shape=(1, 8, 8))
            model = build(name, data, **small_settings(name))
            noise, own = WholeNoise(), kind in ("own-noise", "die")
            distributed.local_rows = LOCAL_ROWS if own else noise.local_rows
            distributed.all_reduce_gradients = all_reduce
            if kind == "no-all-reduce":
                distributed.all_reduce_gradients = lambda model, weight, request: request
            last = kind.removeprefix("last-")
            batch_size = len(data.train) - int(last) if last != kind else BATCH
            checkpoint.MAX_TIME_SHARE = math.inf if kind == "die" else share
            checkpoint.Checkpointer.save = dying(save) if kind == "die" else save
            with contextlib.nullcontext() if own else noise:
                train(
                    model, data, out=out / job, epochs=2, batch_size=batch_size, learning_rate=1e-2,
                    clip_gradient=20.0, kl_warmup=0.0, progress=False, state_every=1e-9,
                )  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
