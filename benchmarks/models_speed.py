"""Training speed of every model at its defaults on MNIST, in one run, interleaved: images/s, and the ratio to `vae`.

    python benchmarks/models_speed.py [--rounds 5]

A round is 5,000 images in batches of the model's own size. Not counted: validation, compilation (there is none), and
the start of the clusters of a gmvae.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from side_by_side import compare, rounds_wanted, vaekit_loop

import vaekit
from vaekit.model.build import objective_of
from vaekit.settings.catalog import MODELS

IMAGES = 5000


def epochs_of(name: str, data: vaekit.Dataset, epochs: int) -> Iterator[None]:
    """vaekit's training loop on few images, an epoch at each `next`."""
    model = vaekit.build(name, data)
    config = dataclasses.replace(MODELS[name].training, epochs=epochs)
    config = config.settle(model.blueprint.settings)
    few = dataclasses.replace(data, train=data.train[:IMAGES])
    return vaekit_loop(model, few, config, objective_of(model.blueprint), "dynamic")


def main() -> None:
    rounds = rounds_wanted(__doc__, 5)
    data = vaekit.load_data("mnist")
    compare({name: epochs_of(name, data, rounds + 1) for name in MODELS}, IMAGES, rounds)


if __name__ == "__main__":
    main()
