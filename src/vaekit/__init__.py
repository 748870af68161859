"""vaekit: variational autoencoders for images.

import vaekit
data = vaekit.load_data("mnist")
model = vaekit.build("vae", data, latent_dim=20)
run = vaekit.train(model, data, epochs=5)
print(vaekit.evaluate(run)["elbo"])
vaekit.draw(run, "latents")["latents-z"].savefig("latents.png")
"""

from typing import TYPE_CHECKING

from .lazily import names_of

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .catalog import MODELS
    from .checks import UserError
    from .clustering import cluster
    from .comparing import compare
    from .data import Dataset, Split
    from .data import load as load_data
    from .encoding import decode, encode
    from .evaluation import evaluate
    from .exporting import export
    from .gallery import draw
    from .jobs import resume, train
    from .models import build, load, register
    from .objectives import capacity, elbo, infovae, iwae
    from .plans import Plan
    from .ranking import rank
    from .reporting import report
    from .reproductions import reproduce
    from .runs import Run
    from .sweeps import sweep
    from .vae import VAE, Inference, Latent

_HOME = {
    "MODELS": "catalog",
    "UserError": "checks",
    "cluster": "clustering",
    "compare": "comparing",
    "Dataset": "data",
    "Split": "data",
    "decode": "encoding",
    "encode": "encoding",
    "evaluate": "evaluation",
    "export": "exporting",
    "draw": "gallery",
    "build": "models",
    "load": "models",
    "register": "models",
    "capacity": "objectives",
    "elbo": "objectives",
    "infovae": "objectives",
    "iwae": "objectives",
    "Plan": "plans",
    "rank": "ranking",
    "report": "reporting",
    "reproduce": "reproductions",
    "resume": "jobs",
    "Run": "runs",
    "sweep": "sweeps",
    "train": "jobs",
    "VAE": "vae",
    "Inference": "vae",
    "Latent": "vae",
    "load_data": "data:load",
}
__all__ = [*_HOME]
__getattr__ = names_of(__name__, _HOME)
