"""Training speed of the dense VAE beside the loop of PyTorch's own VAE example, in one run, interleaved.

    python benchmarks/dense_speed.py [--rounds 7]

Both: 784-500-20-500-784, ReLU, Bernoulli on grey pixels, batch 100, Adam at 1e-3, float32, MNIST's 50,000 training
images, the same number of threads. The example (pytorch/examples, vae/main.py) reads one image at a time through a
DataLoader and reads the loss back at every step; only its data reading is replaced (its images come from an array
instead of torchvision): already decoded, which is kinder to it, and through Pillow as torchvision does.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from side_by_side import compare, rounds_wanted, vaekit_loop
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import vaekit
from vaekit.config import TrainConfig
from vaekit.data.dataset import Settled
from vaekit.objectives import elbo

BATCH = 100


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
    """What torchvision's MNIST gives with ToTensor: a float image and its label."""

    def __init__(self, images: Tensor, labels: Tensor, through_pillow: bool) -> None:
        self.images, self.labels, self.through_pillow = images, labels, through_pillow

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.images[index]
        if self.through_pillow:
            image = torch.from_numpy(np.array(Image.fromarray(image[0].numpy()), copy=True))[None]
        return image.float().div(255), int(self.labels[index])


def example_epochs(data: vaekit.Dataset, through_pillow: bool) -> Iterator[None]:
    """The example's train(), an epoch at each `next`."""
    train = data.train[:]
    assert train.labels is not None
    images = Images(train.images, train.labels, through_pillow)
    train_loader = DataLoader(images, batch_size=BATCH, shuffle=True)
    model = ExampleVAE()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
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


def vaekit_epochs(data: vaekit.Dataset, binarisation: Settled, epochs: int) -> Iterator[None]:
    """vaekit's training loop, an epoch at each `next`."""
    model = vaekit.build("vae", data, hidden_dim=500, num_layers=1, activation="relu")
    config = TrainConfig(epochs=epochs, batch_size=BATCH, learning_rate=1e-3)
    return vaekit_loop(model, data, config, elbo(), binarisation)


def main() -> None:
    rounds = rounds_wanted(__doc__, 7)
    data = vaekit.load_data("mnist")
    contestants = {
        "example, decoded images": example_epochs(data, through_pillow=False),
        "example, through Pillow": example_epochs(data, through_pillow=True),
        "vaekit, grey pixels": vaekit_epochs(data, "none", rounds + 1),
        "vaekit, binarised anew each step": vaekit_epochs(data, "dynamic", rounds + 1),
    }
    compare(contestants, len(data.train), rounds)


if __name__ == "__main__":
    main()
