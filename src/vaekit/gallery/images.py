"""Pictures of images: reconstructions, samples, analogies, pseudo-inputs and clusters."""

from __future__ import annotations

import math

import torch
from matplotlib.figure import Figure
from torch import Tensor

from .. import pictures
from ..data.splits import evenly_spaced
from ..evaluation.clustering import contingency_table
from ..inference import generation
from ..inference.latent_space import decoder_latents
from ..model.priors import VampPrior
from ..runs.fitted_prior import read_record
from ..settings.model import ClusterConfig
from .catalog import PictureUnavailable
from .context import Figures, PictureContext, balanced_positions, require_decodable

IMAGES_PER_ROW = 10
MAX_ROWS = 20
MAX_GROUPS = 12  # rows of reconstructions by number of groups


def reconstructions(context: PictureContext) -> Figures:
    """Draw images above their reconstructions, for both splits; with few classes also up to ten per class."""
    figures: Figures = {}
    for split, batch in context.picture_data.batches.items():
        shown = batch[balanced_positions(batch, 20)]
        reconstructed = generation.reconstruct(context.model, shown.images, shown.labels)
        name = "reconstructions" if split == "test" else f"reconstructions-{split}"
        title = f"{split} images (framed) and their reconstructions"
        figures[name] = pictures.pairs(
            shown.images, reconstructed, title=title, bands=context.bands
        )

    batch = context.picture_data.batches["test"]
    if batch.labels is not None:
        labels, counts = batch.labels.unique(return_counts=True)
        per_class = min(IMAGES_PER_ROW, int(counts.min()))
        if len(labels) <= MAX_ROWS and per_class > 1:
            rows = torch.stack([torch.nonzero(batch.labels == k)[:per_class, 0] for k in labels])
            shown = batch[rows.flatten()]
            reconstructed = generation.reconstruct(context.model, shown.images, shown.labels)
            names = [context.classes[k] for k in labels.tolist()]
            figures["reconstructions-classes"] = inputs_beside_outputs(
                context, shown.images, reconstructed, per_class, names
            )
    return figures


def groups(context: PictureContext) -> Figures:
    """Draw test images and their reconstructions from the first 1, 2, ... latents, the others at the means of their
    priors; and the KL of each latent."""
    names = decoder_latents(context.model)
    if len(names) < 2 or names != [*context.model.prior]:
        raise PictureUnavailable(
            "groups need a model with several latents, such as deepvae or hvae"
        )
    require_decodable(context)
    batch = context.picture_data.batches["test"]
    shown = batch[balanced_positions(batch, IMAGES_PER_ROW)]
    counts = (1 + evenly_spaced(len(names), MAX_GROUPS)).tolist()
    rows = [
        generation.reconstruct(context.model, shown.images, shown.labels, count) for count in counts
    ]
    row_names = ["test images", *(f"{count}: to {names[count - 1]}" for count in counts)]
    title = (
        f"reconstructions from the first of {len(names)} latents, the others at their prior means"
    )
    columns = len(shown.images)
    figures: Figures = {
        "groups": pictures.image_grid(
            torch.cat([shown.images, *rows]),
            columns,
            row_names,
            title=title,
            marked=range(columns),
            bands=context.bands,
        )
    }
    kl = {name: float(context.picture_data.kl[name].sum()) for name in names}
    if not any(map(math.isnan, kl.values())):
        title = f"KL by latent, {sum(kl.values()):.1f} nats in all"
        figures["groups-kl"] = pictures.latent_bars(kl, title)
    return figures


def inputs_beside_outputs(
    context: PictureContext, inputs: Tensor, outputs: Tensor, columns: int, names: list[str]
) -> Figure:
    """Draw named rows of `columns` inputs, a gap, and as many outputs."""
    gap = inputs.new_zeros(len(names), 1, *inputs.shape[1:])
    rows = [inputs.unflatten(0, (-1, columns)), gap, outputs.unflatten(0, (-1, columns))]
    headings = [""] * (2 * columns + 1)
    middle = (columns - 1) // 2
    headings[middle], headings[columns + 1 + middle] = "test images", "reconstructions"
    images = torch.cat(rows, dim=1).flatten(0, 1)
    blank = range(columns, len(images), 2 * columns + 1)
    return pictures.image_grid(
        images, 2 * columns + 1, names, headings, bands=context.bands, blank=blank
    )


def samples(context: PictureContext) -> Figures:
    """Draw samples from the prior, in rows by label or cluster; completions, of a model that completes images."""
    if context.condition.startswith("quadrants"):
        return {"samples": completion_grid(context)}
    model, seed = context.model, context.settings.seed
    if context.condition == "label" and model.blueprint.classes <= MAX_ROWS:
        rows = [
            generation.generate(model, IMAGES_PER_ROW, seed=seed, label=k)
            for k in range(model.blueprint.classes)
        ]
        title = "samples from the prior by label, the same noise in each column"
        grid = pictures.image_grid(
            torch.cat(rows), IMAGES_PER_ROW, context.classes, title=title, bands=context.bands
        )
        return {"samples": grid}

    prior = model.blueprint.settings.prior
    prior_name = "" if prior in (None, "standard") else f" ({prior})"
    if context.run.prior == "fitted":
        prior_name = f" (fitted {read_record(context.run).name})"
    images = generation.generate(model, 100, seed=seed)
    title = f"samples from the prior{prior_name}"
    grid = pictures.image_grid(images, 10, title=title, bands=context.bands)
    figures: Figures = {"samples": grid}
    clusters = context.picture_data.clusters
    if clusters is not None and clusters.shape[1] <= 2 * MAX_ROWS:
        figures["samples-clusters"] = cluster_samples(context, clusters)
    return figures


def completion_grid(context: PictureContext) -> Figure:
    """Draw one row per test image: the visible part, completions, and the whole image."""
    batch = context.picture_data.batches["test"]
    images = batch.images[balanced_positions(batch, IMAGES_PER_ROW)]
    count = IMAGES_PER_ROW - 2
    rows = generation.completions(context.model, images, count, seed=context.settings.seed)
    headings = ["given", *[""] * count, "image"]
    headings[IMAGES_PER_ROW // 2] = "completed"
    return pictures.image_grid(rows, IMAGES_PER_ROW, column_names=headings, bands=context.bands)


def cluster_samples(context: PictureContext, clusters: Tensor) -> Figure:
    """Draw samples in rows by cluster; `clusters` is p(cluster | x) of the test images (N, K)."""
    weights = component_weights(context, clusters.shape[1])
    shares = clusters.argmax(1).bincount(minlength=len(weights)) / len(clusters)
    rows = [
        generation.generate(context.model, IMAGES_PER_ROW, seed=context.settings.seed, cluster=k)
        for k in range(len(shares))
    ]
    names = [
        f"cluster {k}  p = {weights[k]:.2f}, {share:.0%} of test" for k, share in enumerate(shares)
    ]
    title = "samples by cluster, with its prior probability and share of the test images"
    return pictures.image_grid(
        torch.cat(rows), IMAGES_PER_ROW, names, title=title, bands=context.bands
    )


def component_weights(context: PictureContext, count: int) -> list[float]:
    """Probability of each component of the mixture prior (K,)."""
    latent = (
        "z"
        if isinstance(context.model.blueprint.settings, ClusterConfig)
        else next(iter(context.model.prior))
    )
    logits = context.prior(latent).logits
    return logits.exp().view(-1, count).sum(0).tolist()


def analogies(context: PictureContext) -> Figures:
    """Draw test images, each followed by its latents decoded with each label."""
    if context.condition != "label":
        raise PictureUnavailable("analogies need a model with --condition label, such as cvae")
    rows = context.start_rows(10)[: len(context.settings.images) or 10]
    images = context.images(rows)
    labels = context.picture_data.code_labels
    assert labels is not None
    grid = generation.analogies(context.model, images, labels[context.picture_data.positions(rows)])
    columns = context.model.blueprint.classes + 1
    return {
        "analogies": pictures.image_grid(
            grid, columns, column_names=["image", *context.classes],
            title="test images (framed), and their latents decoded with each label",
            marked=range(0, len(grid), columns), bands=context.bands,
        )
    }  # fmt: skip


@torch.no_grad()
def pseudo_inputs(context: PictureContext) -> Figures:
    """Draw the learned pseudo-inputs of a VampPrior, the most used first."""
    priors = [prior for prior in context.model.prior.values() if isinstance(prior, VampPrior)]
    if not priors:
        raise PictureUnavailable("pseudo-inputs need a model with --prior vampprior")
    images, shares = priors[0].pseudo_inputs, context.picture_data.component_shares
    assert shares is not None
    order = shares.argsort(descending=True)[:100]
    which = "all" if len(order) == len(shares) else f"the {len(order)} most used of"
    title = f"{which} {len(shares)} pseudo-inputs, by share of the test images"
    grid = pictures.image_grid(images[order], 10, title=title, bands=context.bands)
    return {"pseudo-inputs": grid}


def clusters(context: PictureContext) -> Figures:
    """Draw the most confident test images of each cluster, and p(cluster | x) of some images as bars."""
    probabilities = cluster_probabilities(context)
    batch = context.picture_data.batches["test"]
    positions = balanced_positions(batch, 10)
    shown = batch[positions]
    reconstructed = generation.reconstruct(context.model, shown.images, shown.labels)
    at = context.picture_data.positions(context.picture_data.rows["test"][positions])
    bars = pictures.cluster_bars(
        shown.images, reconstructed, probabilities[at].numpy(), bands=context.bands
    )
    return {"clusters": most_confident_images(context, probabilities), "clusters-bars": bars}


def most_confident_images(context: PictureContext, probabilities: Tensor) -> Figure:
    """Draw the test images with the highest p(cluster | x) of each cluster, in a row; `probabilities` is (N, K)."""
    count = probabilities.shape[1]
    sizes = probabilities.argmax(1).bincount(minlength=count)
    shown = min(count, 2 * MAX_ROWS)
    best = probabilities[:, :shown].topk(min(IMAGES_PER_ROW, len(probabilities)), dim=0).indices
    rows = context.picture_data.code_rows[best]  # (images per cluster, clusters)
    stored = torch.isin(rows, context.picture_data.rows["test"]).all(1)
    columns = max(1, int(stored.int().cumprod(0).sum()))  # fewer are stored of many clusters
    images = context.images(rows[:columns].T.flatten())
    elsewhere = probabilities.argmax(1)[best[:columns].T] != torch.arange(shown)[:, None]
    names = [f"cluster {k}: {int(sizes[k]):,} images" for k in range(shown)]
    title = "most confident test images of each cluster"
    blank = elsewhere.flatten().nonzero()[:, 0].tolist()  # they belong to another cluster
    return pictures.image_grid(
        images, columns, names, title=title, bands=context.bands, blank=blank
    )


def cluster_probabilities(context: PictureContext) -> Tensor:
    """p(cluster | x) of the test images (N, K). Raises PictureUnavailable."""
    clusters = context.picture_data.clusters
    if clusters is None:
        raise PictureUnavailable(
            "clusters need a mixture prior of at most 100 components, such as that of gmvae"
        )
    return clusters


def confusion(context: PictureContext) -> Figures:
    """Draw the contingency table of clusters and labels."""
    probabilities, labels = cluster_probabilities(context), context.picture_data.code_labels
    if labels is None:
        raise PictureUnavailable(
            "the confusion of clusters and labels needs a data set with labels"
        )
    counts = contingency_table(
        probabilities.argmax(1).numpy(), labels.numpy(), probabilities.shape[1]
    )
    share = counts.max(1).sum() / len(labels)
    title = f"{len(labels):,} test images by cluster and label, {share:.2%} many-to-one"
    return {"confusion": pictures.confusion(counts, context.classes[: counts.shape[1]], title)}
