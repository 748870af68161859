"""vaekit: variational autoencoders for images.

import vaekit
data = vaekit.load_data("mnist")
model = vaekit.build("vae", data, latent_dim=20)
run = vaekit.train(model, data, epochs=5)
print(vaekit.evaluate(run)["elbo"])
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .config import MODELS, UserError
    from .data import Dataset, Split
    from .data import load as load_data
    from .evaluation import evaluate
    from .models import build, load
    from .objectives import elbo, iwae
    from .runs import Run
    from .training import train
    from .vae import VAE, Inference, Latent

__all__ = [
    "MODELS",
    "VAE",
    "Dataset",
    "Inference",
    "Latent",
    "Run",
    "Split",
    "UserError",
    "build",
    "elbo",
    "evaluate",
    "iwae",
    "load",
    "load_data",
    "train",
]

_HOME = {
    "MODELS": "config",
    "UserError": "config",
    "Dataset": "data",
    "Split": "data",
    "evaluate": "evaluation",
    "build": "models",
    "load": "models",
    "elbo": "objectives",
    "iwae": "objectives",
    "Run": "runs",
    "train": "training",
    "VAE": "vae",
    "Inference": "vae",
    "Latent": "vae",
}


def __getattr__(name: str) -> Any:
    # Names are imported when first used, so that `vaekit --help` does not wait for torch.
    if name == "load_data":
        return import_module(".data", __name__).load
    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
