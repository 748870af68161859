"""Maximum difference between exported models and the originals, for every model at its default size.

    python benchmarks/exported.py [--models vae hvampprior] [--format onnx]

Each model is trained briefly on 500 images of MNIST, exported, and compared on other inputs and another batch size; the
difference of encoder, decoder and prior is relative for values above 1.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path

import torch
from speed import print_row, processor

import vaekit
from vaekit.settings.catalog import MODELS


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--format", choices=("onnx", "torch"), default="onnx")
    args = parser.parse_args()
    print(f"{time.strftime('%Y-%m-%d')}, {processor()}, torch {torch.__version__}, {args.format}\n")
    print_row(["model", "encoder", "decoder", "prior"])
    print_row(["---"] * 4)
    data = vaekit.load_data("mnist")
    data = dataclasses.replace(
        data, train=data.train[:500], validation=data.validation[:100], test=data.test[:100]
    )
    for name in args.models:
        start = {"start_epochs": 1} if name.endswith("gmvae") else {}
        model = vaekit.build(name, data, **start)
        with tempfile.TemporaryDirectory() as folder:
            run = vaekit.train(model, data, out=Path(folder) / "run", epochs=1, progress=False)
            parts = vaekit.export(run, Path(folder) / "out", args.format)
        print_row([name, *(f"{part['largest_difference']:.1e}" for part in parts.values())])


if __name__ == "__main__":
    main()
