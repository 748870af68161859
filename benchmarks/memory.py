"""Peak resident memory of training on MNIST and of the evaluation.

    python benchmarks/memory.py [--models vae hvampprior] [--compile yes] [--samples 5000] [--limit 500]

Of whole processes, including Python and torch: one epoch, then the NLL of --limit images from --samples samples each.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from speed import print_row, processor

from vaekit.settings.catalog import MODELS


def peak_memory(*arguments: str) -> float:
    """Peak resident bytes of `vaekit ARGUMENTS`."""
    command = [sys.executable, "-m", "vaekit", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"this command has failed; run it alone to see why: {shlex.join(command)}")
    return usage.ru_maxrss * 1024.0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--compile", default="no")
    parser.add_argument("--samples", default="5000")
    parser.add_argument("--limit", default="500")
    args = parser.parse_args()
    print(f"{time.strftime('%Y-%m-%d')}, {processor()}, `{shlex.join(['python', *sys.argv])}`\n")
    print_row(["model", "training, MB", "evaluation, MB"])
    print_row(["---"] * 3)
    for model in args.models:
        with tempfile.TemporaryDirectory() as folder:
            run = str(Path(folder) / "run")
            training = ["--epochs", "1", "--kl-warmup", "0", "--compile", args.compile]
            if model.endswith("gmvae"):
                training += ["--start-epochs", "0"]
            trained = peak_memory("train", model, "--out", run, *training)
            options = ["--samples", args.samples, "--limit", args.limit]
            evaluated = peak_memory("evaluate", run, *options)
        print_row([model, f"{trained / 1e6:,.0f}", f"{evaluated / 1e6:,.0f}"])
        sys.stdout.flush()


if __name__ == "__main__":
    main()
