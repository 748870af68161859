"""The validation of a training: means of objective, log-likelihood and KL, with the same noise at each epoch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..data import EvalSplit
from ..model.build import decoder_outputs
from ..model.graph import VAE
from ..model.mmd import squared_mmd
from ..model.objectives import Objective, infovae
from ..support.devices import epoch_totals, eval_mode, seeded

BATCH = 1000  # images at once, at most; about as many codes in each MMD
MAX_NUMBERS = 2**25  # per batch: 128 MB in float32
PATH_MAPS = 8  # feature maps of a path between latents that count; about 15 are in memory at once
SEED = 1


@torch.no_grad()
def validate(model: VAE, objective: Objective, split: EvalSplit) -> list[float]:
    """Mean objective, log-likelihood and KL over a split with fixed binarisation, nats per image.

    The noise is the same at each call, so that two epochs differ by their weights alone; the generators of the
    training are not advanced.
    """
    with eval_mode(model), seeded(SEED, split.device):
        totals = epoch_totals(split.device)
        path = PATH_MAPS * model.blueprint.settings.path_numbers(model.blueprint.shape)
        per_image = max(decoder_outputs(model.blueprint), path) * math.prod(objective.samples)
        size = max(1, min(BATCH, MAX_NUMBERS // per_image))
        if isinstance(objective, infovae):
            return validate_infovae(model, objective, split, size)
        for start in range(0, len(split), size):
            batch = split[start : start + size]
            inference = model(batch.images, batch.labels, samples=objective.samples)
            means = (objective(inference), inference.log_likelihood, inference.kl)
            totals += torch.stack([each.mean() for each in means]) * len(batch)
    return (totals / len(split)).tolist()


def validate_infovae(model: VAE, objective: infovae, split: EvalSplit, size: int) -> list[float]:
    """The same of infovae, decoding `size` images at once. Its MMD is of equal groups of about BATCH codes, whatever
    `size` is: that of a few codes is noise, by which no epoch should be the best."""
    totals = epoch_totals(split.device)
    codes: list[Tensor] = []
    for start in range(0, len(split), size):
        batch = split[start : start + size]
        inference = model(batch.images, batch.labels, samples=objective.samples)
        (latent,) = inference.latents.values()
        codes.append(latent.z)
        means = torch.stack([inference.log_likelihood.mean(), latent.kl.mean()])
        totals[1:] += means * len(batch)
    z = torch.cat(codes, dim=-2)
    groups = max(1, round(len(split) / BATCH))
    pairs = (t.tensor_split(groups, -2) for t in (z, latent.prior.expand(z.shape[:-1]).sample()))
    for own, prior in zip(*pairs, strict=True):
        distance = squared_mmd(own, prior, objective.kernel, objective.biased)
        totals[0] -= (objective.alpha + objective.lambda_ - 1) * distance.mean() * own.shape[-2]
    totals[0] += totals[1]
    if objective.alpha != 1:
        totals[0] -= (1 - objective.alpha) * totals[2]
    return (totals / len(split)).tolist()
