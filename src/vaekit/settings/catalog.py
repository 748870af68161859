"""The table of models: a name, what it is, and the settings that make it. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..support.errors import UserError, closest
from .data import DataConfig
from .model import ClusterConfig, HierarchyConfig, ModelConfig
from .objective import ObjectiveConfig
from .training import TrainConfig


@dataclass(frozen=True)
class ModelEntry:
    """A row of the table of models: a sentence for --help, and its settings where they are not told otherwise."""

    summary: str
    settings: ModelConfig
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    training: TrainConfig = field(default_factory=TrainConfig)
    data: DataConfig = field(default_factory=DataConfig)


MODELS: dict[str, ModelEntry] = {
    "vae": ModelEntry("Dense variational autoencoder (Kingma and Welling 2014).", ModelConfig()),
    "convvae": ModelEntry(
        "Convolutional variational autoencoder, for images of any size and colour.",
        ModelConfig(network="conv"),
    ),
    "betavae": ModelEntry(
        "Weighs the KL by beta, for fewer and more separate latents (Higgins et al. 2017).",
        ModelConfig(),
        ObjectiveConfig(beta=4.0),
    ),
    "iwae": ModelEntry(
        "Importance-weighted autoencoder: a tighter bound from several draws (Burda et al. 2016).",
        ModelConfig(),
        ObjectiveConfig("iwae", samples=5),
    ),
    "cvae": ModelEntry(
        "Conditional on the label, or on a part of the image (Sohn et al. 2015).",
        ModelConfig(condition="label"),
    ),
    "infovae": ModelEntry(
        "Matches the codes of all images to the prior by an MMD term (Zhao et al. 2019).",
        ModelConfig(),
        ObjectiveConfig("infovae"),
    ),
    "mmdvae": ModelEntry(
        "InfoVAE without the KL: the MMD alone matches the codes to the prior (Zhao et al. 2019).",
        ModelConfig(),
        ObjectiveConfig("infovae", alpha=1.0),
    ),
    "mixturevae": ModelEntry(
        "The prior is a mixture of fixed Gaussians.", ModelConfig(prior="mixture")
    ),
    "vampprior": ModelEntry(
        "The prior is the mixture of posteriors of learned pseudo-inputs (Tomczak and Welling 2018).",
        ModelConfig(prior="vampprior"),
    ),
    "hvae": ModelEntry("Two levels of latents, z1 below z2.", HierarchyConfig()),
    "hvampprior": ModelEntry(
        "Two levels of latents with a VampPrior on top (Tomczak and Welling 2018).",
        HierarchyConfig(prior="vampprior"),
    ),
    "gmvae": ModelEntry(
        "Clusters images without labels: a mixture of Gaussians in the latent (Dilokthanakul et al. 2016).",
        ClusterConfig(latent_dim=10),
    ),
    "convgmvae": ModelEntry(
        "The same with convolutions.",
        ClusterConfig(latent_dim=10, network="conv"),
    ),
}


def model_entry(name: str) -> ModelEntry:
    """The row of MODELS called `name`; UserError names the closest one."""
    if name not in MODELS:
        raise UserError(
            f"there is no model {name!r}{closest(name, MODELS)} (models: {', '.join(MODELS)})"
        )
    return MODELS[name]
