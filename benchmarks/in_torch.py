"""The tasks in PyTorch: vaekit's training loop, its models in a hand-written loop, and PyTorch's VAE example."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tasks import TASKS, mnist
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import vaekit
from vaekit.data.dataset import ResolvedBinarisation, pixels
from vaekit.model.build import objective_of
from vaekit.model.networks.ladder import Ladder, LadderDecoder
from vaekit.model.objectives import Objective
from vaekit.settings.catalog import MODELS
from vaekit.settings.presets import preset
from vaekit.support.devices import fast_training
from vaekit.training.learner import Learner
from vaekit.training.loop import train_epochs

CPU = torch.device("cpu")
PRESETS = {
    "conv": "vampprior-tf2-vae",
    "vampprior": "vampprior-paper",
    "hvampprior": "vampprior-paper-hvae",
}


def dataset(images: np.ndarray, labels: np.ndarray) -> vaekit.Dataset:
    """A data set of training images; validation and test are one image each."""
    train = vaekit.Split(torch.from_numpy(images)[:, None], torch.from_numpy(labels))
    one = vaekit.Split(train.images[:1], train[:1].labels)
    return vaekit.Dataset("mnist", train, one, one, black_and_white=True)


def build_task(name: str) -> tuple[vaekit.VAE, Objective]:
    """vaekit's model of a task, newly initialised, and its objective; a VampPrior's pseudo-inputs start from images."""
    data = dataset(*mnist(50_000))
    if name in PRESETS:
        chosen = preset(PRESETS[name])
        model = vaekit.build(chosen.model, data, **chosen.settings)
    elif name == "dense":
        model = vaekit.build("vae", data, hidden_dim=500, num_layers=1, activation="relu")
    else:
        model = vaekit.build(name, data)
    return model, objective_of(model.blueprint)


def count_weights(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def binarisation(name: str) -> ResolvedBinarisation:
    return "dynamic" if TASKS[name].dynamic else "none"


def vaekit_epochs(
    name: str, images: np.ndarray, labels: np.ndarray, settings: dict[str, Any]
) -> tuple[int, Iterator[None]]:
    """vaekit's training loop with the given training settings, a constant learning rate and no KL warm-up."""
    model, objective = build_task(name)
    config = dataclasses.replace(
        MODELS[model.blueprint.model].training,
        epochs=2**31,
        batch_size=TASKS[name].batch,
        learning_rate=TASKS[name].learning_rate,
        schedule="constant",
        kl_warmup=0.0,
        **settings,
    )

    def loop() -> Iterator[None]:
        with fast_training(CPU) as trim_memory:
            for _ in train_epochs(
                Learner(model, config, CPU), dataset(images, labels), objective, binarisation(name)
            ):
                trim_memory()
                yield

    return count_weights(model), loop()


def eager_epochs(name: str, images: np.ndarray) -> tuple[int, Iterator[None]]:
    """vaekit's model in a carefully written loop: data in memory, no synchronisation before the end of an epoch."""
    model, objective = build_task(name)
    return count_weights(model), eager_loop(name, model, lambda x: -objective(model(x)), images)


def eager_loop(
    name: str, model: nn.Module, losses: Callable[[Tensor], Tensor], images: np.ndarray
) -> Iterator[None]:
    """Train on the mean of the losses (B,) of each batch, one epoch at each `next`."""
    task, stored = TASKS[name], torch.from_numpy(images)[:, None]
    optimizer = torch.optim.Adam(model.parameters(), lr=task.learning_rate)
    while True:
        total = torch.zeros(())
        for rows in torch.randperm(len(stored)).split(task.batch):
            loss = losses(pixels(stored[rows], binarisation(name))).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach()
        float(total)
        yield


def plain_ladder_loss(ladder: Ladder, x: Tensor) -> Tensor:
    """The negative ELBO of images (B, C, H, W), (B,), of a deepvae's networks as one would write it for them alone: one
    pass down, no distributions, the KL of Gaussians in closed form."""
    height, width = (-n % ladder.patch for n in x.shape[-2:])
    h = ladder.stem(F.pixel_unshuffle(F.pad(x - 0.5, (0, width, 0, height)), ladder.patch))
    maps = {}
    for i, blocks in enumerate(ladder.encoder):
        h = blocks(F.avg_pool2d(h, 2, ceil_mode=True, count_include_pad=False) if i else h)
        maps[h.shape[-2:]] = h
    h, kl = ladder.first.expand(len(x), *ladder.first.shape), torch.zeros(len(x))
    positions = iter(ladder.positions)
    for i, enters in enumerate(ladder.enters):
        prior, change = ladder.group(i).prior(h)
        loc_p, raw_p = prior.chunk(2, dim=1)
        features = torch.cat([h, maps[h.shape[-2:]]], dim=1)
        shift, raw_q = ladder.group(i).posterior(features).chunk(2, dim=1)
        p, q = ladder.head.positive(raw_p), ladder.head.positive(raw_q)
        z = loc_p + p * (shift + q * torch.randn_like(q))
        kl = kl + ((q**2 + shift**2 - 1) / 2 - q.log()).flatten(1).sum(1)
        h = ladder.group(i).block(ladder.group(i).merge(z) + change + h)
        if enters:
            position = next(positions)
            _, rows, columns = position.shape
            h = F.interpolate(h, scale_factor=2)[..., :rows, :columns] + position
    logits = ladder.last(h)[..., : x.shape[-2], : x.shape[-1]]
    return F.binary_cross_entropy_with_logits(logits, x, reduction="none").flatten(1).sum(1) + kl


def plain_ladder_epochs(name: str, images: np.ndarray) -> tuple[int, Iterator[None]]:
    """A deepvae trained by `plain_ladder_loss` in the loop of `eager_epochs`."""
    model, _ = build_task(name)
    assert isinstance(model.decoder, LadderDecoder)
    ladder = model.decoder.ladder
    return count_weights(model), eager_loop(name, model, partial(plain_ladder_loss, ladder), images)


class ExampleVAE(nn.Module):
    """The network of pytorch/examples/vae/main.py, with 500 hidden units instead of 400."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(784, 500)
        self.fc21 = nn.Linear(500, 20)
        self.fc22 = nn.Linear(500, 20)
        self.fc3 = nn.Linear(20, 500)
        self.fc4 = nn.Linear(500, 784)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h1 = F.relu(self.fc1(x.view(-1, 784)))
        mu, logvar = self.fc21(h1), self.fc22(h1)
        std = torch.exp(0.5 * logvar)
        z = mu + torch.randn_like(std) * std
        return torch.sigmoid(self.fc4(F.relu(self.fc3(z)))), mu, logvar


class Images(Dataset):
    """As torchvision's MNIST with ToTensor: a float image, by way of Pillow, and its label."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = torch.from_numpy(np.array(Image.fromarray(self.images[index]), copy=True))[None]
        return image.float().div(255), int(self.labels[index])


def tutorial_epochs(images: np.ndarray, labels: np.ndarray) -> tuple[int, Iterator[None]]:
    """The train() of PyTorch's example, with images from an array."""
    task = TASKS["dense"]
    train_loader = DataLoader(Images(images, labels), batch_size=task.batch, shuffle=True)
    model = ExampleVAE()
    optimizer = torch.optim.Adam(model.parameters(), lr=task.learning_rate)

    def loop() -> Iterator[None]:
        while True:
            model.train()
            train_loss = 0.0
            for batch, _ in train_loader:
                optimizer.zero_grad()
                recon, mu, logvar = model(batch)
                bce = F.binary_cross_entropy(recon, batch.view(-1, 784), reduction="sum")
                kld = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
                loss = bce + kld
                loss.backward()
                train_loss += loss.item()
                optimizer.step()
            yield

    return count_weights(model), loop()
