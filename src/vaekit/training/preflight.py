"""Checks that model, data, objective and settings fit together, made before a training writes anything."""

from __future__ import annotations

import torch

from ..data import Dataset, pixels
from ..data.dataset import ResolvedBinarisation, class_sizes
from ..model.build import NO_DENSITY
from ..model.distributions import GaussianMixture
from ..model.graph import VAE
from ..model.objectives import Objective, Weight, infovae
from ..model.priors import VampPrior
from ..settings.augment import COLOURS, PIXELS, parse_augmentation
from ..settings.data import Binarisation
from ..settings.model import DISCRETE, Blueprint
from ..settings.training import Precision, TrainConfig
from ..support import warnings
from ..support.devices import bfloat16_slowdown, eval_mode, resolve_device, seeded
from ..support.errors import UserError, printable, require
from . import cluster_start
from .step import Loss

MAX_SLOWDOWN = 1.5  # of a product in bfloat16
BFLOAT16_TOLERANCE = 0.01  # relative difference of the loss from that in float32


def resolve_binarisation(
    blueprint: Blueprint, data: Dataset, requested: Binarisation
) -> ResolvedBinarisation:
    """The binarisation of a training. Raises UserError where model, data and request do not fit together."""
    require(
        data.shape == blueprint.shape,
        f"the model is for images of shape {blueprint.shape}, but those of {data.name!r} have shape {data.shape}",
    )
    likelihood = blueprint.settings.likelihood
    if likelihood in DISCRETE:
        check_levels(blueprint, data)
    return data.binarisation(requested, likelihood)


def check_levels(blueprint: Blueprint, data: Dataset) -> None:
    """Raises UserError where the pixels do not have the levels of the model."""
    likelihood, levels = blueprint.settings.likelihood, blueprint.settings.levels or 256
    require(
        data.levels is not None,
        f"the {likelihood} likelihood needs pixels of {levels:,} levels, and these are floats; build the model with "
        "likelihood='gaussian'",
    )
    require(
        data.levels == levels,
        f"the model is for pixels of {levels:,} levels, but those of {data.name!r} have {data.levels:,}; build it "
        f"with --levels {data.levels}",
    )
    position = pixels(data.train[:10].images, "none") * (levels - 1)
    require(
        bool(((position - position.round()).abs() < 0.1).all()),
        f"data set {data.name!r}: its pixels lie between its {levels:,} levels; build the model with "
        "likelihood='gaussian'",
    )


def check_training(
    model: VAE, objective: Objective, data: Dataset, config: TrainConfig, warmup: Weight
) -> None:
    """Raises UserError where the model cannot be trained on these data with these settings."""
    check_labels(model.blueprint, data)
    check_objective(model, objective, data, config, warmup)
    check_precision(model, objective, data, config, warmup)
    cluster_start.check_clusters(model, len(data.train))
    for flags, needs_several in {
        "--normalisation batch": model.blueprint.settings.normalisation == "batch",
        "--objective infovae": isinstance(objective, infovae),
    }.items():
        require(
            not needs_several
            or (config.batch_size > 1 and len(data.train) % config.batch_size != 1),
            f"{flags} cannot have a batch of one image, as the last of {len(data.train)} images would be; choose "
            "another --batch-size",
        )


def training_warnings(blueprint: Blueprint, data: Dataset, config: TrainConfig) -> list[str]:
    """Warnings of a training that is about to start."""
    found = [warnings.few_steps(config.total_steps(len(data.train)))]
    if blueprint.settings.condition == "label":
        found.append(warnings.class_imbalance(class_sizes(data)))
    return [text for text in found if text]


def check_labels(blueprint: Blueprint, data: Dataset) -> None:
    """Raises UserError where a model conditional on labels has data without labels, or with other classes."""
    if blueprint.settings.condition != "label":
        return
    for name, split in data.splits.items():
        labels = split.labels
        require(
            labels is not None,
            f"data set {data.name!r}, {name}: no labels, which --condition label needs",
        )
        assert labels is not None
        require(
            bool(((labels >= 0) & (labels < blueprint.classes)).all()),
            f"data set {data.name!r}, {name}: a label is not one of the model's {blueprint.classes} classes",
        )
        assert data.train.labels is not None
        new = labels[~torch.isin(labels, data.train.labels)].tolist()
        if new:
            wanted = printable(data.classes[new[0]]) if data.classes else str(new[0])
            raise UserError(
                f"data set {data.name!r}: {name} has the class {wanted}, which --condition label cannot learn, "
                "as train has none; choose a model without a condition"
            )


def check_augmentation(text: str | None, data: Dataset, binarisation: ResolvedBinarisation) -> None:
    """Raises UserError where the images of a data set cannot be augmented so."""
    if text is None:
        return
    chosen, (channels, height, width) = parse_augmentation(text), data.shape
    require(
        height == width or not chosen.rotate90,
        f"--augment rotate90 needs square images, and these are {height} x {width}; leave it out, or choose a --size "
        "of equal height and width",
    )
    for name in PIXELS:
        value, most = getattr(chosen, name), min(height, width) - 1
        require(
            value <= most,
            f"--augment {name}={value} is more than images of {height} x {width} pixels allow, {most}",
        )
    require(
        channels == 3 or not chosen.saturation,
        f"--augment saturation needs colour images of 3 channels, and these have {channels}; leave it out",
    )
    colours = [name for name in COLOURS if getattr(chosen, name)]
    require(
        binarisation == "none" or not colours,
        f"--augment {', '.join(colours)} would add noise to pixels that are binarised; leave it out, or choose "
        "--binarisation none",
    )


def check_precision(
    model: VAE, objective: Objective, data: Dataset, config: TrainConfig, warmup: Weight
) -> None:
    """Raises UserError where the loss of a batch in bfloat16 differs from that in float32, or takes longer."""
    if config.precision == "float32":
        return
    levels = model.blueprint.settings.levels or 0
    require(
        levels <= 256,
        f"in bfloat16 the decoder's outputs have 8 bits, too few for pixels of {levels:,} levels; leave out "
        "--precision bfloat16",
    )
    if resolve_device(config.device).type == "cpu" and not config.allow_slow:
        slowdown = bfloat16_slowdown()
        require(
            slowdown <= MAX_SLOWDOWN,
            "this processor has no instructions for bfloat16: matrix products take "
            f"{slowdown:.1f} times as long as in float32; leave out --precision bfloat16, or pass --allow-slow",
        )
    device = next(model.parameters()).device
    batch = data.train[: config.batch_size].to(device)
    losses = []
    precisions: tuple[Precision, ...] = ("float32", "bfloat16")
    for precision in precisions:
        with torch.no_grad(), eval_mode(model), seeded(0, device):
            loss = Loss(model, objective, "none", precision)
            losses.append(float(loss(batch.images, batch.labels, warmup)[0]))
    float32, bfloat16 = losses
    require(
        abs(bfloat16 - float32) <= BFLOAT16_TOLERANCE * abs(float32),
        f"the loss of the first batch is {bfloat16:.6g} in bfloat16, but {float32:.6g} in float32; leave out "
        "--precision bfloat16",
    )


def check_objective(
    model: VAE, objective: Objective, data: Dataset, config: TrainConfig, warmup: Weight
) -> None:
    """Raises UserError where the objective does not fit the model or the warm-up."""
    require(
        isinstance(getattr(objective, "samples", None), tuple),
        "the objective lacks the number of samples per image; give it an attribute `samples`: () or (K,)",
    )
    require(
        model.blueprint.settings.posterior != "deterministic"
        or (isinstance(objective, infovae) and objective.alpha == 1),
        NO_DENSITY,
    )
    require(
        getattr(objective, "gradient", "plain") == "plain"
        or not any(isinstance(prior, VampPrior) for prior in model.prior.values()),
        "--gradient dreg with a VampPrior has several times the noise of plain, since the prior shares the encoder; "
        "choose --gradient plain",
    )
    device = next(model.parameters()).device
    batch = data.train[:2]
    labels = None if batch.labels is None else batch.labels.to(device)
    with torch.no_grad(), eval_mode(model), seeded(0, device):
        inference = model(pixels(batch.images, "none").to(device), labels, objective.samples)
        objective(inference, warmup)
    require(
        config.kl_warmup_of != "cluster"
        or any(isinstance(v.prior, GaussianMixture) for v in inference.latents.values()),
        "--kl-warmup-of cluster needs a prior with components, such as that of gmvae",
    )
    require(
        not (isinstance(objective, infovae) and objective.alpha == 1 and config.kl_warmup),
        "--kl-warmup has no effect at --alpha 1, where the objective has no KL; leave out --kl-warmup",
    )
