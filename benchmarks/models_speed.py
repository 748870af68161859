"""Training speed of every model at its defaults on MNIST, interleaved: images/s and the ratio to `vae`.

    python benchmarks/models_speed.py [--rounds 5]

A round is 5,000 images in the model's default batches, uncompiled. Validation and the initialisation of a gmvae's
clusters are excluded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from side_by_side import compare, parse_rounds, training_loop

import vaekit
from vaekit.model.build import objective_of
from vaekit.settings.catalog import MODELS

IMAGES = 5000


def epochs_of(name: str, data: vaekit.Dataset, epochs: int) -> Iterator[None]:
    """The training loop of a model on IMAGES images, one epoch at each `next`."""
    model = vaekit.build(name, data)
    config = dataclasses.replace(MODELS[name].training, epochs=epochs)
    config = config.resolve(model.blueprint.settings, IMAGES)
    subset = dataclasses.replace(data, train=data.train[:IMAGES])
    return training_loop(model, subset, config, objective_of(model.blueprint), "dynamic")


def main() -> None:
    rounds = parse_rounds(__doc__, 5)
    data = vaekit.load_data("mnist")
    compare({name: epochs_of(name, data, rounds + 1) for name in MODELS}, IMAGES, rounds)


if __name__ == "__main__":
    main()
