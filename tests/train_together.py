"""What test_ranks.py starts by torchrun: trains every model, or those named, for two epochs on noise, into OUT/MODEL.

All draw the latents' noise of the whole batch, and take their part of it, so that the result is that of one process.
    torchrun --nproc-per-node 2 tests/train_together.py OUT [no-join] [own-noise] [die] [MODEL ...]
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
from vaekit.settings.catalog import MODELS
from vaekit.support import distributed as ranks
from vaekit.training import checkpoint as keeping
from vaekit.training.learner import Learner

BATCH = 8  # of 20 training images: the last batch has 4


class WholeNoise(TorchFunctionMode):
    """Gaussian noise of a batch's part is that part of the whole batch's, from a generator that all have alike."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)
        self.rows = torch.arange(0)

    def part(self, rows: torch.Tensor) -> torch.Tensor:
        """ranks.part, which says what the batch is."""
        self.rows = rows
        return PART(rows)

    def draw(self, shape: torch.Size) -> torch.Tensor:
        rows = len(self.rows)
        whole = torch.randn((*shape[:-2], rows, shape[-1]), generator=self.generator)
        mine = PART(torch.arange(rows))
        assert shape[-2] == len(mine)
        return whole[..., mine, :]

    def __torch_function__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if function is torch.Tensor.normal_ and torch.is_grad_enabled():  # in a training step
            return args[0].copy_(self.draw(args[0].shape))
        if function is torch.normal and args[0].shape[-2] == len(PART(self.rows)):  # infovae's
            return args[0] + args[1] * self.draw(args[0].shape)
        if function is torch.randperm and "generator" not in (kwargs or {}):
            return torch.randperm(*args, generator=self.generator)
        return function(*args, **(kwargs or {}))


PART = ranks.part


def dying(keep):  # type: ignore[no-untyped-def]
    """Keeper.keep, after whose third time the second process is killed, unless torchrun has started it again."""
    times = iter(range(1000))

    def then_die(self: keeping.Keeper, learner: Learner) -> None:
        keep(self, learner)
        if next(times) == 2 and ranks.number() == 1 and not ranks.restarted():
            os.kill(os.getpid(), signal.SIGKILL)

    return then_die


def main() -> None:
    out, flags = Path(sys.argv[1]), sys.argv[2:]
    torch.set_num_threads(1)
    if "no-join" in flags:
        ranks.join = lambda model, share, wish: wish
    if "die" in flags:
        keeping.SHARE = math.inf
        keeping.Keeper.keep = dying(keeping.Keeper.keep)
    with ranks.joined(torch.device("cpu")):
        named = [flag for flag in flags if flag in MODELS]
        for name in named or MODELS:
            data = random_dataset(shape=(1, 8, 8))
            model = build(name, data, **small_settings(name))
            noise = WholeNoise()
            own = "own-noise" in flags
            ranks.part = PART if own else noise.part
            with contextlib.nullcontext() if own else noise:
                train(
                    model, data, out=out / name, epochs=2, batch_size=BATCH, learning_rate=1e-2,
                    clip_gradient=20.0, kl_warmup=0.0, progress=False, state_every=1e-9,
                )  # fmt: skip


if __name__ == "__main__":
    main()
