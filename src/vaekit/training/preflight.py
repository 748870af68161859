"""What is checked before a training, so that nothing is made on disk in vain: do model, data and objective fit?"""

from __future__ import annotations

import torch

from ..data import Dataset, pixels
from ..data.dataset import Settled
from ..model.build import NO_DENSITY
from ..model.distributions import GaussianMixture
from ..model.graph import VAE
from ..model.objectives import Objective, Weight, infovae
from ..settings.data import Binarisation
from ..settings.model import DISCRETE, Blueprint
from ..settings.training import Precision, TrainConfig
from ..support.devices import evaluating, seeded
from ..support.errors import require
from . import cluster_start as starts
from .step import Loss

COARSE = 0.01  # relative difference that bfloat16 may make to a loss


def settle_pixels(blueprint: Blueprint, data: Dataset, wanted: Binarisation) -> Settled:
    """The binarisation of a training; UserError where model, data and wish do not go together."""
    require(
        data.shape == blueprint.shape,
        f"the model is for images of shape {blueprint.shape}, and {data.name!r} has {data.shape}",
    )
    likelihood = blueprint.settings.likelihood
    require(
        likelihood not in DISCRETE or data.train.images.dtype == torch.uint8,
        f"a {likelihood} likelihood is of 256 levels, and these pixels are floats; build the model with "
        "likelihood='gaussian'",
    )
    return data.binarisation(wanted, likelihood)


def check(
    model: VAE, objective: Objective, data: Dataset, config: TrainConfig, warmup: Weight
) -> None:
    """UserError where the model cannot be trained on these data in this way."""
    check_labels(model.blueprint, data)
    check_objective(model, objective, data, config, warmup)
    check_precision(model, objective, data, config, warmup)
    starts.check_clusters(model, len(data.train))
    for flags, alone in {
        "--normalisation batch": model.blueprint.settings.normalisation == "batch",
        "--objective infovae": isinstance(objective, infovae),
    }.items():
        require(
            not alone or (config.batch_size > 1 and len(data.train) % config.batch_size != 1),
            f"{flags} cannot have a batch of one image, and the last of {len(data.train)} is one; choose "
            "another --batch-size",
        )


def check_labels(blueprint: Blueprint, data: Dataset) -> None:
    """UserError unless a model that is conditional on labels finds its classes in the data."""
    if blueprint.settings.condition != "label":
        return
    for name, split in data.splits.items():
        labels = split.labels
        require(
            labels is not None, f"data set {data.name!r}, {name}: no labels to be conditional on"
        )
        assert labels is not None
        require(
            bool(((labels >= 0) & (labels < blueprint.classes)).all()),
            f"data set {data.name!r}, {name}: a label is not one of the model's {blueprint.classes} classes",
        )


def check_precision(
    model: VAE, objective: Objective, data: Dataset, config: TrainConfig, warmup: Weight
) -> None:
    """UserError where a batch's loss with the networks in bfloat16 is not that of float32."""
    if config.precision == "float32":
        return
    device = next(model.parameters()).device
    batch = data.train[: config.batch_size].to(device)
    found = []
    precisions: tuple[Precision, ...] = ("float32", "bfloat16")
    for precision in precisions:
        with torch.no_grad(), evaluating(model), seeded(0, device):
            loss = Loss(model, objective, "none", precision)
            found.append(float(loss(batch.images, batch.labels, warmup)[0]))
    exact, coarse = found
    require(
        abs(coarse - exact) <= COARSE * abs(exact),
        f"in bfloat16 the loss of the first batch is {coarse:.6g}, and in float32 {exact:.6g}; leave out "
        "--precision bfloat16",
    )


def check_objective(
    model: VAE, objective: Objective, data: Dataset, config: TrainConfig, warmup: Weight
) -> None:
    """Raise what an objective has against the model, or against its warm-up, before anything is made on disk."""
    require(
        isinstance(getattr(objective, "samples", None), tuple),
        "the objective does not say how many draws it wants; give it an attribute `samples`: (), or (K,)",
    )
    require(
        model.blueprint.settings.posterior == "gaussian"
        or (isinstance(objective, infovae) and objective.alpha == 1),
        NO_DENSITY,
    )
    device = next(model.parameters()).device
    few = data.train[:2]
    labels = None if few.labels is None else few.labels.to(device)
    with torch.no_grad(), evaluating(model), seeded(0, device):
        inference = model(pixels(few.images, "none").to(device), labels, objective.samples)
        objective(inference, warmup)
    require(
        config.kl_warmup_of != "cluster"
        or any(isinstance(v.prior, GaussianMixture) for v in inference.latents.values()),
        "--kl-warmup-of cluster needs a prior with components, such as gmvae's",
    )
    require(
        not (isinstance(objective, infovae) and objective.alpha == 1 and config.kl_warmup),
        "--kl-warmup has no meaning at --alpha 1, which leaves the KL out",
    )
