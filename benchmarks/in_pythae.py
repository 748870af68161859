"""The tasks in pythae: its VAE and VAMP with vaekit's networks, trained by its own BaseTrainer.

VAMP has one level, and also stands in for the hierarchy. Its pseudo-inputs are a dense layer of 500 units with biases.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator

import numpy as np
import torch
from pythae.data.datasets import BaseDataset
from pythae.models import VAE, VAMP, VAEConfig, VAMPConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.trainers import BaseTrainer, BaseTrainerConfig
from tasks import TASKS
from torch import Tensor, nn

SHAPE = (1, 28, 28)


class Encoder(BaseEncoder):
    """Hidden layers, then a location and a log-variance."""

    def __init__(self, hidden: nn.Module, width: int, dim: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.loc, self.log_variance = nn.Linear(width, dim), nn.Linear(width, dim)

    def forward(self, x: Tensor) -> ModelOutput:
        h = self.hidden(x.flatten(1))
        return ModelOutput(embedding=self.loc(h), log_covariance=self.log_variance(h))


class Decoder(BaseDecoder):
    """Hidden layers, then pixel probabilities."""

    def __init__(self, hidden: nn.Module, width: int) -> None:
        super().__init__()
        self.network = nn.Sequential(hidden, nn.Linear(width, 784), nn.Sigmoid())

    def forward(self, z: Tensor) -> ModelOutput:
        return ModelOutput(reconstruction=self.network(z).reshape(-1, *SHAPE))


def gated(inputs: int) -> nn.Module:
    """Two layers of 300 gated linear units."""
    return nn.Sequential(nn.Linear(inputs, 600), nn.GLU(), nn.Linear(300, 600), nn.GLU())


def relu(inputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 500), nn.ReLU())


def build(model: str) -> VAE:
    if model == "dense":
        config = VAEConfig(input_dim=SHAPE, latent_dim=20, reconstruction_loss="bce")
        return VAE(config, Encoder(relu(784), 500, 20), Decoder(relu(20), 500))
    config = VAMPConfig(
        input_dim=SHAPE, latent_dim=40, reconstruction_loss="bce", number_components=500
    )
    return VAMP(config, Encoder(gated(784), 300, 40), Decoder(gated(40), 300))


def train_epochs(model: str, images: np.ndarray, labels: np.ndarray) -> tuple[int, Iterator[None]]:
    """The number of weights, and the epochs of pythae's train(), without its copies of the best weights."""
    vae = build(model)
    pixels = torch.from_numpy(images)[:, None].float() / 255
    data = BaseDataset(pixels, torch.from_numpy(labels))

    def loop() -> Iterator[None]:
        with tempfile.TemporaryDirectory() as folder:
            config = BaseTrainerConfig(
                output_dir=folder,
                per_device_train_batch_size=TASKS[model].batch,
                learning_rate=TASKS[model].learning_rate,
            )
            trainer = BaseTrainer(vae, data, training_config=config)
            trainer.prepare_training()
            callbacks = trainer.callback_handler
            callbacks.on_train_begin(training_config=config, model_config=trainer.model_config)
            for epoch in itertools.count(1):
                loader = trainer.train_loader
                callbacks.on_epoch_begin(
                    training_config=config, epoch=epoch, train_loader=loader, eval_loader=None
                )
                trainer.train_step(epoch)
                callbacks.on_epoch_end(training_config=config)
                yield

    return sum(parameter.numel() for parameter in vae.parameters()), loop()
