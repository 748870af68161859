"""The catalogue of models: name, summary and default settings. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..support.errors import UserError, did_you_mean, shown
from .data import DataConfig
from .model import ClusterConfig, HierarchyConfig, LadderConfig, ModelConfig
from .objective import ObjectiveConfig
from .training import TrainConfig


@dataclass(frozen=True)
class ModelEntry:
    """An entry of the catalogue of models: a sentence for --help, and its default settings."""

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
        "Weights the KL by beta, for fewer and more disentangled latents (Higgins et al. 2017).",
        ModelConfig(),
        ObjectiveConfig(beta=4.0),
    ),
    "iwae": ModelEntry(
        "Importance-weighted autoencoder: a tighter bound from several samples (Burda et al. 2016).",
        ModelConfig(),
        ObjectiveConfig("iwae", samples=5),
    ),
    "cvae": ModelEntry(
        "Conditional VAE: given the label, or a part of the image (Sohn et al. 2015).",
        ModelConfig(condition="label"),
    ),
    "infovae": ModelEntry(
        "Matches the aggregate posterior to the prior by an MMD term (Zhao et al. 2019).",
        ModelConfig(),
        ObjectiveConfig("infovae"),
    ),
    "mmdvae": ModelEntry(
        "InfoVAE without the KL term, only the MMD (Zhao et al. 2019).",
        ModelConfig(),
        ObjectiveConfig("infovae", alpha=1.0),
    ),
    "mixturevae": ModelEntry(
        "VAE whose prior is a mixture of fixed Gaussians.", ModelConfig(prior="mixture")
    ),
    "vampprior": ModelEntry(
        "VAE whose prior is the mixture of posteriors of learned pseudo-inputs (Tomczak and Welling 2018).",
        ModelConfig(prior="vampprior"),
    ),
    "hvae": ModelEntry(
        "Hierarchical VAE with two levels of latents, z1 given z2.", HierarchyConfig()
    ),
    "hvampprior": ModelEntry(
        "Hierarchical VAE with a VampPrior on the top latent (Tomczak and Welling 2018).",
        HierarchyConfig(prior="vampprior"),
    ),
    "gmvae": ModelEntry(
        "Gaussian mixture VAE: clusters images without labels (Dilokthanakul et al. 2016).",
        ClusterConfig(latent_dim=10),
    ),
    "convgmvae": ModelEntry(
        "Convolutional gmvae.",
        ClusterConfig(latent_dim=10, network="conv"),
    ),
    "deepvae": ModelEntry(
        "Deep hierarchy of latents at many resolutions, for sharp images (Child 2021; Vahdat and Kautz 2020).",
        LadderConfig(),
        training=TrainConfig(batch_size=32, learning_rate=8e-3, clip_gradient=2000.0),
    ),
}


def model_entry(name: str) -> ModelEntry:
    """The entry of MODELS called `name`. Raises UserError that suggests the closest name."""
    if name not in MODELS:
        raise UserError(
            f"there is no model {shown(name)}{did_you_mean(name, MODELS)} (models: {', '.join(MODELS)})"
        )
    return MODELS[name]
