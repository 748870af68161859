"""Train one implementation of a task in a separate process, for `speed.py`.

    python benchmarks/speed_worker.py vaekit dense --steps 200

It builds the model, warms up, compilation included, and prints "ready" and the number of weights. Then it answers each
line of its input: "memory" with its peak resident bytes, any other with the seconds of one short epoch. Libraries are
imported only where they are used, so that the memory is that of the implementation alone.
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import sys
import time
from collections.abc import Iterator
from typing import Any

from tasks import REQUIRED_PACKAGES, TASKS, VAEKIT_VARIANTS, mnist


def start(name: str, model: str, steps: int) -> tuple[int, Iterator[Any]]:
    """The number of weights of an implementation, and its training loop, one epoch at each `next`."""
    images, labels = mnist(steps * TASKS[model].batch)
    if name == "jax":
        import in_jax

        return in_jax.train_epochs(model, images)
    if name == "pythae":
        import in_pythae

        return in_pythae.train_epochs(model, images, labels)
    import in_torch

    if name == "tutorial":
        return in_torch.tutorial_epochs(images, labels)
    if name == "plain-ladder":
        return in_torch.plain_ladder_epochs(model, images)
    if name == "eager":
        return in_torch.eager_epochs(model, images)
    return in_torch.vaekit_epochs(model, images, labels, VAEKIT_VARIANTS[name])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "name", choices=[*VAEKIT_VARIANTS, "tutorial", "eager", "plain-ladder", *REQUIRED_PACKAGES]
    )
    parser.add_argument("model", choices=TASKS)
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()
    if args.name not in TASKS[args.model].implementations:
        parser.error(f"{args.model} has no implementation {args.name}")

    def respond(*values: object) -> None:
        print(*values, file=sys.__stdout__, flush=True)

    with contextlib.redirect_stdout(sys.stderr):  # libraries may print
        weights, epochs = start(args.name, args.model, args.steps)
        for _ in range(2):
            next(epochs)
        respond("ready", weights)
        for line in sys.stdin:
            if line.strip() == "memory":
                respond(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
            else:
                started = time.perf_counter()
                next(epochs)
                respond(time.perf_counter() - started)


if __name__ == "__main__":
    main()
