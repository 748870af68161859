"""Presets: the settings of published experiments, by name. `vaekit presets` lists them.

`differs` says where a preset deviates from its source; known bugs of a source are not repeated.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..support.errors import UserError, did_you_mean, with_changes
from .catalog import ModelEntry, model_entry
from .data import DataConfig

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Preset:
    """Settings of an experiment that differ from its model's defaults; `parameters` is the number of weights on images
    of `shape` (C, H, W), counted from its source."""

    model: str
    summary: str
    shape: tuple[int, int, int]
    parameters: int
    settings: Mapping[str, Any]
    training: Mapping[str, Any]
    objective: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    differs: str = ""

    @property
    def entry(self) -> ModelEntry:
        """The catalogue entry of its model, with these settings."""
        entry = model_entry(self.model)
        plain = {"schedule": "constant", **self.training}
        return dataclasses.replace(
            entry,
            summary=self.summary,
            settings=with_changes(entry.settings, self.settings, "preset"),
            objective=with_changes(entry.objective, self.objective, "preset"),
            training=with_changes(entry.training, plain, "preset"),
            data=with_changes(DataConfig(), self.data, "preset"),
        )


MNIST, RGB = (1, 28, 28), (3, 32, 32)
GREY = {"binarisation": "none"}

# psanch21/VAE-GMVAE, example_script.sh; --sigma there is a variance.
GMVAE_CONV = {
    "encoder": "32@5 32@3/2 64@3/2 64@2/2 64@2 64",
    "decoder": "64 32x 32@2 32@2*2 16@3*2 16@5 @5",
}
GMVAE_STYLE = {
    "activation": "relu",
    "likelihood": "gaussian",
    "mean": "sigmoid",
    "two_encoders": True,
}
GMVAE_TRAINING = {"epochs": 300, "batch_size": 64, "kl_warmup": 0.0}
RANDOM_CLUSTERS = {"start_epochs": 0}
MINIMUM_GAIN = "early stopping counts any gain in validation, not one above 0.01"
NO_CLUSTER_NETWORK = (
    "responsibilities by Bayes' rule, not a network; plain scales; no bias trick; no dropout"
)

# mk017/VAE-VampPrior-tf2; its results have --network-size 16.
TF2 = {
    "encoder": "8@7 16@3/2 16@5 32@3/2 256",
    "decoder": "32x 32@3 16@3*2 16@3 8@3*2 @3",
    "network_size": 4.0,
    "activation": "relu",
    "latent_dim": 2,
}
TF2_LEVELS = {
    **TF2,
    "latent_dim": 1,
    "top_dim": 1,
    "top_layers": "256 256",
    "joint_layers": "256",
    "prior_layers": "300 300",
}
TF2_TRAINING = {"epochs": 250, "batch_size": 256, "learning_rate": 1e-4}
UNCLIPPED = "log-variances are not clipped to [-6, 2]"

# ALPHAYA-Japan/vae.
DCGAN = {
    "encoder": "64@4/2 128@4/2 512",
    "decoder": "1024:relu 128x:relu 64@4*2:relu @4*2",
    "activation": "leaky-relu",
    "latent_dim": 200,
    "likelihood": "gaussian",
    "mean": "sigmoid",
    "scale": 0.5**0.5,  # so that the log-likelihood is minus the squared error, and a constant
}
DENSE_32 = {
    "encoder": "392:tanh 196:linear",
    "decoder": "196:relu",
    "latent_dim": 200,
    "likelihood": "bernoulli",
}
# Its images are of MNIST, as files in colour.
RGB_32 = {"size": "32", "fit": "stretch", "colour": "rgb"}
ALPHAYA = "Adam's beta1 is 0.9, not 0.5; images are resized by Lanczos' filter, not linearly"
ALPHAYA_TRAINING = {"epochs": 30, "batch_size": 64, "learning_rate": 1e-4}

# jmtomczak/vae_vampprior.
VAMP_PAPER = {"hidden_dim": 300, "activation": "gated", "latent_dim": 40}
VAMP_TRAINING = {
    "epochs": 2000,
    "learning_rate": 5e-4,
    "kl_warmup": 100.0,
    "patience": 50,
}
VAMP_DIFFERS = "plain Adam (the original also scales each gradient to length 1); scales not clipped"

# chaitanya100100/VAE-for-Image-Generation.
KERAS = {"activation": "relu", "likelihood": "bernoulli"}
KERAS_TRAINING = {"batch_size": 256, "optimizer": "rmsprop"}

CALTECH = {"data": "caltech101", "fit": "stretch", "colour": "rgb", **GREY}

PRESETS: dict[str, Preset] = {
    "aevb-mnist": Preset(
        "vae", "NoviceStone/VAE on MNIST: 784-500-20, as in Kingma and Welling 2014.", MNIST, 815_824,
        {"encoder": "500", "decoder": "500", "activation": "tanh", "latent_dim": 20},
        {"epochs": 200}, data=GREY,
    ),
    "aevb-freyface": Preset(
        "vae", "NoviceStone/VAE on Frey faces: 560-200-2, a Gaussian of learned scale for each pixel.",
        (1, 28, 20), 338_724,
        {"encoder": "200", "decoder": "200", "activation": "tanh", "latent_dim": 2,
         "likelihood": "gaussian", "mean": "sigmoid", "scale": "each"},
        {"epochs": 2000, "seed": 777}, data={"data": "freyface"},
        differs="scales stay above 1/256",
    ),
    "vae-gmvae-model1": Preset(
        "vae", "psanch21/VAE-GMVAE model1: dense VAE.", MNIST, 161_764,
        {**GMVAE_STYLE, "encoder": "64 64", "decoder": "64", "latent_dim": 10, "scale": 0.001**0.5},
        {**GMVAE_TRAINING, "patience": 5}, differs=MINIMUM_GAIN,
    ),
    "vae-gmvae-model2": Preset(
        "convvae", "psanch21/VAE-GMVAE model2: convolutional VAE.", MNIST, 377_765,
        {**GMVAE_STYLE, **GMVAE_CONV, "latent_dim": 10, "scale": 0.001**0.5},
        {**GMVAE_TRAINING, "patience": 5},
        differs="without a first convolution that was built and not used; " + MINIMUM_GAIN,
    ),
    "vae-gmvae-model3": Preset(
        "mixturevae", "psanch21/VAE-GMVAE model3: the prior is a mixture of 10 fixed Gaussians.", MNIST, 302_996,
        {**GMVAE_STYLE, "encoder": "128", "decoder": "128", "latent_dim": 2, "scale": 0.1},
        {**GMVAE_TRAINING, "learning_rate": 1e-4, "patience": 5}, differs=MINIMUM_GAIN,
    ),
    "vae-gmvae-model4": Preset(
        "gmvae", "psanch21/VAE-GMVAE model4_bias: dense GMVAE.", MNIST, 526_528,
        {**GMVAE_STYLE, "encoder": "128", "decoder": "128", "prior_layers": "128 128",
         "latent_dim": 2, "w_dim": 2, "scale": 0.1, **RANDOM_CLUSTERS},
        {**GMVAE_TRAINING, "learning_rate": 1e-4},
        differs=NO_CLUSTER_NETWORK,
    ),
    "vae-gmvae-model5": Preset(
        "convgmvae", "psanch21/VAE-GMVAE model5: convolutional GMVAE.", MNIST, 649_521,
        {**GMVAE_STYLE, **GMVAE_CONV, "prior_layers": "64 64", "latent_dim": 10, "w_dim": 2, "scale": 0.001**0.5,
         **RANDOM_CLUSTERS},
        GMVAE_TRAINING,
        differs=NO_CLUSTER_NETWORK,
    ),
    "keras-mnist": Preset(
        "vae", "chaitanya100100/VAE-for-Image-Generation on MNIST.", MNIST, 809_238,
        {**KERAS, "encoder": "512", "decoder": "512", "latent_dim": 3},
        {**KERAS_TRAINING, "epochs": 60}, data=GREY,
    ),
    "keras-cifar10": Preset(
        "convvae", "chaitanya100100/VAE-for-Image-Generation on CIFAR-10.", RGB, 2_153_454,
        {**KERAS, "encoder": "3@2 32@2/2 32@3 32@3 128", "decoder": "128 32x 32@3 32@3 32@3*2v @2v", "latent_dim": 2},
        {**KERAS_TRAINING, "epochs": 15}, data={"data": "cifar10", **GREY},
    ),
    "keras-caltech101-92": Preset(
        "convvae", "chaitanya100100/VAE-for-Image-Generation on Caltech-101, 92 x 92, as its README has it.",
        (3, 92, 92), 2_438_679,
        {**KERAS, "encoder": "3@3 32@3/2 32@3/2 32@3/2 256", "decoder": "256 32x 32@3*2 32@3*2 32@3*2 @5v",
         "latent_dim": 32},
        {**KERAS_TRAINING, "epochs": 100}, data={**CALTECH, "size": "92"},
        differs="the last convolution is 5 x 5, not 3 x 3: the code's images are 94 x 94",
    ),
    "keras-caltech101-94": Preset(
        "convvae", "chaitanya100100/VAE-for-Image-Generation on Caltech-101, 94 x 94, as its code has it.",
        (3, 94, 94), 2_437_143,
        {**KERAS, "encoder": "3@3 32@3/2 32@3/2 32@3/2 256", "decoder": "256 32x 32@3*2 32@3*2 32@3*2 @3v",
         "latent_dim": 32},
        {**KERAS_TRAINING, "epochs": 100}, data={**CALTECH, "size": "94"},
    ),
    "keras-caltech101-128": Preset(
        "convvae", "chaitanya100100/VAE-for-Image-Generation on Caltech-101, 128 x 128.", (3, 128, 128), 8_643_031,
        {**KERAS, "encoder": "3@3 64@3/2 64@3/2 64@3/2 256", "decoder": "256 64x 64@3*2 64@3*2 64@3*2 @3",
         "latent_dim": 64},
        {**KERAS_TRAINING, "epochs": 300}, data={**CALTECH, "size": "128"},
    ),
    "vampprior-tf2": Preset(
        "vampprior", "mk017/VAE-VampPrior-tf2: VAE with a VampPrior.", MNIST, 2_366_501,
        TF2, TF2_TRAINING, data=GREY, differs=UNCLIPPED,
    ),
    "vampprior-tf2-vae": Preset(
        "convvae", "mk017/VAE-VampPrior-tf2: VAE with the standard prior.", MNIST, 1_974_501,
        TF2, TF2_TRAINING, data=GREY, differs=UNCLIPPED,
    ),
    "vampprior-tf2-hvae": Preset(
        "hvae", "mk017/VAE-VampPrior-tf2: two levels with the standard prior.", MNIST, 4_065_939,
        TF2_LEVELS, TF2_TRAINING, data=GREY, differs=UNCLIPPED,
    ),
    "vampprior-tf2-hvamp": Preset(
        "hvampprior", "mk017/VAE-VampPrior-tf2: two levels with a VampPrior.", MNIST, 4_457_939,
        TF2_LEVELS, TF2_TRAINING, data=GREY, differs=UNCLIPPED,
    ),
    "tensorflow-vae": Preset(
        "vae", "ALPHAYA-Japan/vae: VAE of 32 x 32 colour images.", RGB, 2_005_024,
        DENSE_32, ALPHAYA_TRAINING, data=RGB_32 | GREY, differs=ALPHAYA,
    ),
    "tensorflow-cvae": Preset(
        "cvae", "ALPHAYA-Japan/vae: CVAE of 32 x 32 colour images, 10 classes.", RGB, 2_010_904,
        DENSE_32, ALPHAYA_TRAINING, data=RGB_32 | GREY,
        differs=ALPHAYA + "; the label is 10 numbers, not 10 planes of them, to the dense encoder",
    ),
    "tensorflow-infovae": Preset(
        "infovae", "ALPHAYA-Japan/vae: InfoVAE of 32 x 32 colour images.", RGB, 13_271_187,
        DCGAN, {**ALPHAYA_TRAINING, "learning_rate": 1e-3}, data=RGB_32,
        differs=f"{ALPHAYA}; the objective is that of its README (its code has no MMD); scales of z are not "
        "bounded by 1",
    ),
    "tensorflow-mmdvae": Preset(
        "mmdvae", "ALPHAYA-Japan/vae: MMD-VAE of 32 x 32 colour images.", RGB, 13_168_587,
        {**DCGAN, "posterior": "deterministic"}, {**ALPHAYA_TRAINING, "learning_rate": 1e-3},
        {"kernel": "reference", "mmd": "biased", "mmd_weight": 3072.0}, data=RGB_32,
        differs=ALPHAYA + "; lambda is 1 a pixel of 32 x 32 x 3",
    ),
    "vampprior-paper": Preset(
        "vampprior", "Tomczak and Welling 2018: gated dense layers, 40 dimensions, 500 pseudo-inputs.",
        MNIST, 1_508_864,
        VAMP_PAPER, VAMP_TRAINING, differs=VAMP_DIFFERS,
    ),
    "vampprior-paper-vae": Preset(
        "vae", "Tomczak and Welling 2018: the same with the standard prior.", MNIST, 1_116_864,
        VAMP_PAPER, VAMP_TRAINING, differs=VAMP_DIFFERS,
    ),
    "vampprior-paper-hvae": Preset(
        "hvampprior", "Tomczak and Welling 2018: two levels of 40 dimensions, VampPrior on top.", MNIST, 2_823_024,
        {**VAMP_PAPER, "top_dim": 40}, VAMP_TRAINING,
        differs=VAMP_DIFFERS + "; q(z1 | x, z2) sees x through two layers, not one, and the decoder joins z1 and z2 "
        "before its first layer, not after",
    ),
    "iwae-paper": Preset(
        "iwae", "Burda et al. 2016: 784-200-200-50, K = 50.", MNIST, 425_284,
        {"encoder": "200 200", "decoder": "200 200", "activation": "tanh", "latent_dim": 50},
        {"epochs": 3280, "batch_size": 20, "schedule": "cosine"}, {"samples": 50},
        differs="the learning rate falls by a cosine, not in 8 stages; Adam's epsilon is 1e-8, not 1e-4",
    ),
    "cvae-quadrants": Preset(
        "cvae", "Sohn et al. 2015: from one quadrant of a digit to the others.", MNIST, 7_927_584,
        {"condition": "quadrants:1", "prior": "conditional", "encoder": "1000 1000", "decoder": "1000 1000",
         "activation": "relu", "latent_dim": 200},
        {"epochs": 50},
        differs="its sizes are from memory, not from the paper",
    ),
    "gmvae-paper": Preset(
        "convgmvae", "Dilokthanakul et al. 2016 (Nat-D/GMVAE): convolutions with batch normalisation.",
        MNIST, 8_841_765,
        {"encoder": "16@6v 32@6v 64@4/2v 500", "decoder": "500 64x 32@4*2v 16@6*1v @6*1v", "prior_layers": "500:tanh",
         "activation": "relu", "normalisation": "batch", "latent_dim": 200, "w_dim": 150, **RANDOM_CLUSTERS},
        {"epochs": 100, "batch_size": 50, "learning_rate": 1e-4, "kl_warmup": 0.0}, data=GREY,
        differs="an encoder each for w and z; no consistency term; the prior's hidden layer is normalised too",
    ),
}  # fmt: skip


def preset(name: str) -> Preset:
    """The preset called `name`. Raises UserError that suggests the closest name."""
    if name not in PRESETS:
        raise UserError(
            f"there is no preset {name!r}{did_you_mean(name, PRESETS)}; `vaekit presets` lists them"
        )
    return PRESETS[name]


def as_table() -> Table:
    """All presets, as a table for the terminal."""
    from rich.table import Table

    table = Table(title="vaekit train --preset NAME", title_justify="left")
    for column in ("name", "model", "description"):
        table.add_column(column, no_wrap=column == "name", overflow="fold")
    for name, found in PRESETS.items():
        differs = f" [dim]Differs: {found.differs}.[/dim]" if found.differs else ""
        table.add_row(name, found.model, found.summary + differs)
    return table
