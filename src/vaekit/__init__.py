"""vaekit: variational autoencoders for images.

import vaekit
data = vaekit.load_data("mnist")
model = vaekit.build("vae", data, latent_dim=20)
run = vaekit.train(model, data, epochs=5)
print(vaekit.evaluate(run)["elbo"])
vaekit.draw(run, "latents")["latents-z"].savefig("latents.png")
"""

from typing import TYPE_CHECKING

from .support.lazy import lazy_names
from .support.version import __version__

if TYPE_CHECKING:
    from .data import Dataset, Split
    from .data import load as load_data
    from .evaluation.anomalies import anomalies
    from .evaluation.clustering import cluster
    from .evaluation.evaluate import evaluate
    from .gallery.draw import draw
    from .gallery.report import report
    from .inference.encoding import decode, encode
    from .inference.export import export
    from .inference.prior_fit import fit_prior
    from .model.build import build, register
    from .model.graph import VAE, Inference, Latent
    from .model.objectives import capacity, elbo, infovae, iwae
    from .runs.directory import Run
    from .runs.load import load
    from .settings.catalog import MODELS
    from .studies.compare import rank
    from .studies.curves import compare
    from .studies.proposal import plan
    from .studies.reproduce import reproduce
    from .studies.sweep import sweep
    from .support.errors import UserError
    from .training.job import resume, train
    from .training.plan import Plan

_HOME = {
    "MODELS": "settings.catalog",
    "UserError": "support.errors",
    "anomalies": "evaluation.anomalies",
    "cluster": "evaluation.clustering",
    "compare": "studies.curves",
    "Dataset": "data",
    "Split": "data",
    "decode": "inference.encoding",
    "encode": "inference.encoding",
    "evaluate": "evaluation.evaluate",
    "export": "inference.export",
    "fit_prior": "inference.prior_fit",
    "draw": "gallery.draw",
    "build": "model.build",
    "load": "runs.load",
    "register": "model.build",
    "capacity": "model.objectives",
    "elbo": "model.objectives",
    "infovae": "model.objectives",
    "iwae": "model.objectives",
    "Plan": "training.plan",
    "plan": "studies.proposal",
    "rank": "studies.compare",
    "report": "gallery.report",
    "reproduce": "studies.reproduce",
    "resume": "training.job",
    "Run": "runs.directory",
    "sweep": "studies.sweep",
    "train": "training.job",
    "VAE": "model.graph",
    "Inference": "model.graph",
    "Latent": "model.graph",
    "load_data": "data:load",
}
__all__ = [*_HOME, "__version__"]
__getattr__ = lazy_names(__name__, _HOME)


def __dir__() -> list[str]:
    return sorted(__all__)
