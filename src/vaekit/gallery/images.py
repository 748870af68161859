"""Pictures of images: redrawn, new, and of clusters."""

from __future__ import annotations

import torch
from matplotlib.figure import Figure
from torch import Tensor

from .. import pictures
from ..evaluation.clustering import contingency
from ..inference import generation
from ..model.priors import VampPrior
from ..settings.model import ClusterConfig
from .names import DoesNotApply
from .scene import Figures, Scene, by_class

EACH = 10  # images in a row
MOST_ROWS = 20


def reconstructions(scene: Scene) -> Figures:
    """Pairs of both splits; with few classes also ten of each, the inputs at the left."""
    found: Figures = {}
    for split, batch in scene.exhibits.batches.items():
        few = batch[by_class(batch, 20)]
        redrawn = generation.reconstruct(scene.model, few.images, few.labels)
        name = "reconstructions" if split == "test" else f"reconstructions-{split}"
        title = f"{split} images, and their reconstructions below"
        found[name] = pictures.pairs(few.images, redrawn, title=title)

    batch = scene.exhibits.batches["test"]
    if batch.labels is not None:
        labels, counts = batch.labels.unique(return_counts=True)
        each = min(EACH, int(counts.min()))
        if len(labels) <= MOST_ROWS and each > 1:
            rows = torch.stack([torch.nonzero(batch.labels == k)[:each, 0] for k in labels])
            few = batch[rows.flatten()]
            redrawn = generation.reconstruct(scene.model, few.images, few.labels)
            found["reconstructions-classes"] = side_by_side(
                few.images, redrawn, each, [scene.classes[k] for k in labels.tolist()]
            )
    return found


def side_by_side(inputs: Tensor, outputs: Tensor, each: int, names: list[str]) -> Figure:
    """Rows of `each` inputs, a gap, and as many outputs."""
    shape = inputs.shape[1:]
    gap = inputs.new_ones(len(names), 1, *shape)
    rows = [inputs.unflatten(0, (-1, each)), gap, outputs.unflatten(0, (-1, each))]
    heads = [""] * (2 * each + 1)
    heads[(each - 1) // 2], heads[each + 1 + (each - 1) // 2] = "test images", "reconstructions"
    return pictures.image_grid(torch.cat(rows, dim=1).flatten(0, 1), 2 * each + 1, names, heads)


def samples(scene: Scene) -> Figures:
    """A grid from the prior; rows for classes or clusters; completions of a model of hidden pixels."""
    model, seed = scene.model, scene.settings.seed
    if scene.condition.startswith("quadrants"):
        batch = scene.exhibits.batches["test"]
        seen = batch.images[by_class(batch, EACH)]
        drawn = generation.completions(model, seen, EACH - 2, seed=seed)
        heads = ["given", *[""] * (EACH - 2), "image"]
        heads[EACH // 2] = "completed"
        return {"samples": pictures.image_grid(drawn, EACH, column_names=heads)}
    if scene.condition == "label" and model.blueprint.classes <= MOST_ROWS:
        rows = [
            generation.generate(model, EACH, seed=seed, label=k)
            for k in range(model.blueprint.classes)
        ]
        drawn = torch.cat(rows)
        title = "drawn from the prior for each label, with the same noise in each column"
        return {"samples": pictures.image_grid(drawn, EACH, scene.classes, title=title)}

    prior = model.blueprint.settings.prior
    kind = "" if prior in (None, "standard") else f" ({prior})"
    grid = generation.generate(model, 100, seed=seed)
    found: Figures = {"samples": pictures.image_grid(grid, 10, title=f"drawn from the prior{kind}")}
    clusters = scene.exhibits.clusters
    if clusters is not None and clusters.shape[1] <= 2 * MOST_ROWS:
        weights = component_weights(scene, clusters.shape[1])
        use = clusters.argmax(1).bincount(minlength=len(weights)) / len(clusters)
        drawn = torch.cat(
            [generation.generate(model, EACH, seed=seed, cluster=k) for k in range(len(use))]
        )
        names = [
            f"cluster {k}  p = {weights[k]:.2f}, {share:.0%} of test" for k, share in enumerate(use)
        ]
        title = "drawn from each cluster, with its probability and its share of the test images"
        found["samples-clusters"] = pictures.image_grid(drawn, EACH, names, title=title)
    return found


def component_weights(scene: Scene, count: int) -> list[float]:
    """The probability of each component of the prior's mixture."""
    latent = (
        "z"
        if isinstance(scene.model.blueprint.settings, ClusterConfig)
        else next(iter(scene.model.prior))
    )
    logits = scene.prior(latent).logits
    return logits.exp().view(-1, count).sum(0).tolist()


def analogies(scene: Scene) -> Figures:
    if scene.condition != "label":
        raise DoesNotApply("analogies need a model with --condition label, such as cvae")
    rows = scene.rows(10)[: len(scene.settings.images) or 10]
    images = scene.images(rows)
    labels = scene.exhibits.code_labels
    assert labels is not None
    drawn = generation.analogies(scene.model, images, labels[scene.exhibits.places(rows)])
    classes = scene.model.blueprint.classes
    return {
        "analogies": pictures.image_grid(
            drawn, classes + 1, column_names=["image", *scene.classes],
            title="test images, and their latents decoded with every label",
            marked=range(0, len(drawn), classes + 1),
        )
    }  # fmt: skip


@torch.no_grad()
def pseudo_inputs(scene: Scene) -> Figures:
    found = [prior for prior in scene.model.prior.values() if isinstance(prior, VampPrior)]
    if not found:
        raise DoesNotApply("pseudo-inputs need a model with --prior vampprior")
    images, use = found[0].pseudo_inputs, scene.exhibits.use
    assert use is not None
    order = use.argsort(descending=True)[:100]
    kept = "all" if len(order) == len(use) else f"the {len(order)} most used of"
    title = f"{kept} {len(use)} pseudo-inputs, by their share of the test images"
    return {"pseudo-inputs": pictures.image_grid(images[order], 10, title=title)}


def clusters(scene: Scene) -> Figures:
    probabilities = clustered(scene)
    count = probabilities.shape[1]
    sizes = probabilities.argmax(1).bincount(minlength=count)
    shown = min(count, 2 * MOST_ROWS)
    best = probabilities[:, :shown].topk(min(EACH, len(probabilities)), dim=0).indices
    rows = scene.exhibits.code_rows[best]  # (EACH, clusters)
    kept = torch.isin(rows, scene.exhibits.rows["test"]).all(1)
    each = max(1, int(kept.int().cumprod(0).sum()))  # of many clusters fewer images are kept
    names = [f"cluster {k}: {int(sizes[k]):,} images" for k in range(shown)]
    images = scene.images(rows[:each].T.flatten())
    other = probabilities.argmax(1)[best[:each].T] != torch.arange(shown)[:, None]
    images[other.flatten()] = 1.0  # a cluster of few images has a short row
    surest = pictures.image_grid(
        images, each, names, title="the test images that each cluster is surest of"
    )

    batch = scene.exhibits.batches["test"]
    chosen = by_class(batch, 10)
    few, at = batch[chosen], scene.exhibits.places(scene.exhibits.rows["test"][chosen])
    redrawn = generation.reconstruct(scene.model, few.images, few.labels)
    bars = pictures.bars(few.images, redrawn, probabilities[at].numpy())
    return {"clusters": surest, "clusters-bars": bars}


def clustered(scene: Scene) -> Tensor:
    """p(cluster | x) of the test images (N, K)."""
    found = scene.exhibits.clusters
    if found is None:
        raise DoesNotApply(
            "clusters need a prior that is a mixture of at most 100 components, such as that of gmvae"
        )
    return found


def confusion(scene: Scene) -> Figures:
    probabilities, labels = clustered(scene), scene.exhibits.code_labels
    if labels is None:
        raise DoesNotApply("the confusion of clusters and classes needs a data set with labels")
    counts = contingency(probabilities.argmax(1).numpy(), labels.numpy(), probabilities.shape[1])
    title = f"{len(labels):,} test images by cluster and label"
    return {"confusion": pictures.confusion(counts, scene.classes[: counts.shape[1]], title)}
