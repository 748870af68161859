"""Pictures of the latent space: points in it, and what they decode to."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.stats import norm
from torch import Tensor

from .. import pictures
from ..data.splits import spread
from ..inference.latent_space import (
    PriorShape,
    between,
    decode_latents,
    free_latents,
    neighbour_map,
    principal_axes,
)
from ..model.priors import StandardNormal
from ..pictures import Movie, Panel
from .names import DoesNotApply
from .scene import Figures, Scene

FEWEST = 5  # points of a scatter
NEIGHBOURS = 2000  # points of a t-SNE or UMAP, which take long
TURN = 36  # frames of a turn
SLICES, FRAMES = 5, 25  # of a latent of 3 dimensions
STEPS = 11  # of a traversal or interpolation
MOST_DIMENSIONS = 20


def latents(scene: Scene) -> Figures:
    """A scatter of each latent."""
    found: Figures = {}
    codes = {name: scene.exhibits.codes[name] for name in scene.model.prior}
    if len(scene.exhibits.code_rows) < FEWEST:
        raise DoesNotApply(f"latents of fewer than {FEWEST} test images make no cloud")
    for name, points in codes.items():
        found |= scatter_latent(scene, name, points)
    if len(codes) == 2 and all(points.shape[1] == 1 for points in codes.values()):
        both = torch.cat(list(codes.values()), dim=1).numpy()
        first, second = codes
        found["latents-both"] = drawn(
            scene, [Panel(both, names=(first, second))], f"{first} and {second}"
        )
    return found


def scatter_latent(scene: Scene, name: str, codes: Tensor) -> Figures:
    dim, key = codes.shape[1], f"latents-{name}"
    title = f"posterior means of {name}"
    prior = scene.prior(name)
    if dim == 1:
        return {key: drawn(scene, [strip(codes, prior, name)], title)}
    if dim == 2:
        return {key: drawn(scene, [plane(codes, prior, name, (0, 1))], title)}
    if dim == 3:
        panels = [plane(codes, prior, name, axes) for axes in ((0, 1), (0, 2), (1, 2))]
        return {
            key: drawn(scene, panels, title),
            f"{key}-turning": Movie(turning(scene, name, codes), 0.1),
        }

    if float(codes.std(0).max()) < 1e-6:  # no axis is principal, no image another's neighbour
        return {key: drawn(scene, [plane(codes, prior, name, (0, 1))], f"{title}, all alike,")}
    rows = spread(len(codes), NEIGHBOURS)
    few, wish = codes[rows], scene.settings.projection
    panels = []
    if wish in ("auto", "pca"):
        centre, axes, shares = principal_axes(codes)
        names = (f"first axis, {shares[0]:.0%} of variance", f"second axis, {shares[1]:.0%}")
        panels.append(projected(few, prior, axes, centre, names, "principal components"))
    if wish != "pca":
        method = "tsne" if wish == "auto" else wish
        points = neighbour_map(few, method, scene.settings.seed)
        panels.append(Panel(points, {"tsne": "t-SNE", "umap": "UMAP"}[method]))
    return {key: drawn(scene, panels, title, rows)}


def drawn(scene: Scene, panels: list[Panel], title: str, rows: Tensor | None = None) -> Figure:
    """Panels with the labels of the test images (those of `rows`)."""
    labels = scene.exhibits.code_labels
    if labels is not None and rows is not None:
        labels = labels[rows]
    shown = None if labels is None else labels.numpy()
    count = len(panels[0].points)
    return pictures.scatter(panels, shown, scene.classes, f"{title} of {count:,} test images")


def strip(codes: Tensor, prior: PriorShape, name: str) -> Panel:
    """One dimension, its points spread at random in the other direction."""
    draws = prior.draws(5000)
    generator, reach = torch.Generator().manual_seed(0), 2 * float(codes.std())
    points, shown = (
        torch.cat([z, reach * (2 * torch.rand(len(z), 1, generator=generator) - 1)], dim=1).numpy()
        for z in (codes, draws)
    )
    density = prior.project(torch.eye(1), torch.zeros(1))

    def heights(at: np.ndarray) -> np.ndarray:
        return density.log_prob(torch.from_numpy(at[:, :1]).float()).exp().numpy()

    return Panel(points, "", (f"{name}[0]", "(spread at random)"), heights, shown)


def plane(codes: Tensor, prior: PriorShape, name: str, axes: tuple[int, int]) -> Panel:
    """Two dimensions of a latent."""
    chosen = torch.eye(codes.shape[1])[:, list(axes)]
    names = (f"{name}[{axes[0]}]", f"{name}[{axes[1]}]")
    return projected(codes, prior, chosen, torch.zeros(codes.shape[1]), names)


def projected(
    codes: Tensor,
    prior: PriorShape,
    axes: Tensor,
    centre: Tensor,
    names: tuple[str, str],
    title: str = "",
) -> Panel:
    """Codes and their prior, (z - centre) axes."""
    density = prior.project(axes, centre)

    def heights(points: np.ndarray) -> np.ndarray:
        return density.log_prob(torch.from_numpy(points).float()).exp().numpy()

    def flat(z: Tensor) -> np.ndarray:
        return ((z - centre) @ axes).numpy()

    marks = None if prior.centres is None else flat(prior.centres)
    return Panel(flat(codes), title, names, heights, flat(prior.draws(5000)), marks)


def turning(scene: Scene, name: str, codes: Tensor) -> list[Figure]:
    """The frames of a turn around a latent of 3 dimensions."""
    rows = spread(len(codes), NEIGHBOURS)
    labels = scene.exhibits.code_labels
    shown = None if labels is None else labels[rows].numpy()
    return [
        pictures.scatter_3d(
            codes[rows].numpy(), shown, scene.classes, azimuth, f"posterior means of {name}", name
        )
        for azimuth in np.linspace(0, 360, TURN, endpoint=False)
    ]


def manifold(scene: Scene) -> Figures:
    """The decoded grid of the first latent that the decoder is given."""
    refuse_quadrants(scene)
    name, count = free_latents(scene.model)[0], scene.settings.grid
    dim = scene.exhibits.codes[name].shape[1]
    if dim > 3:
        return {"manifold": plane_of_images(scene, count)}
    prior = scene.prior(name, decoded_label(scene))
    title = f"{name} decoded {how(scene, name)}{with_label(scene)}"
    if dim == 3:
        few = min(count, 8)
        depths = values(scene, name, prior, 2, FRAMES)
        x, y = (values(scene, name, prior, d, few) for d in (0, 1))
        chosen = depths[torch.linspace(2, FRAMES - 3, SLICES).round().long()]
        blocks = [decoded_grid(scene, name, x, y, depth) for depth in chosen]
        heads = [f"{name}[2] = {depth:.2f}" for depth in chosen]
        return {
            "manifold": in_blocks(scene, blocks, heads, title),
            "manifold-slices": Movie(slices(scene, name, prior, depths)),
        }
    x = values(scene, name, prior, 0, count)
    if dim == 1:
        return {"manifold": grid_figure(scene, decode(scene, {name: x[:, None]}), x, None, title)}
    y = values(scene, name, prior, 1, count)
    title += f": {name}[0] to the right, {name}[1] upwards"
    return {"manifold": grid_figure(scene, decoded_grid(scene, name, x, y), x, y, title)}


def refuse_quadrants(scene: Scene) -> None:
    if scene.condition.startswith("quadrants"):
        raise DoesNotApply("a model that completes images decodes no latents alone")


def how(scene: Scene, name: str) -> str:
    if scene.settings.range is not None:
        return "on a linear grid"
    if isinstance(scene.model.prior[name], StandardNormal):
        return "on the inverse Gaussian CDF of an even grid"
    return "at the quantiles of its prior"


def decoded_label(scene: Scene) -> int | None:
    """The label that a grid is decoded with, where the model needs one: that which is wished for, or the first."""
    return scene.settings.label or 0 if scene.condition == "label" else None


def with_label(scene: Scene) -> str:
    """To be said in a title."""
    label = decoded_label(scene)
    return "" if label is None else f", with the label {scene.classes[label]}"


def values(scene: Scene, name: str, prior: PriorShape, d: int, count: int) -> Tensor:
    """Where a manifold is decoded along a dimension (count,): the middles of equal shares of the prior, or evenly."""
    reach = scene.settings.range
    if reach is not None:
        return torch.linspace(-reach, reach, count)
    shares = (torch.arange(count) + 0.5) / count
    if isinstance(scene.model.prior[name], StandardNormal):
        return torch.from_numpy(norm.ppf(shares.double().numpy())).float()
    return prior.draws(10_000, scene.settings.seed)[:, d].quantile(shares)


def decode(scene: Scene, fixed: dict[str, Tensor]) -> Tensor:
    """Images of latents."""
    label, count = decoded_label(scene), len(next(iter(fixed.values())))
    return decode_latents(
        scene.model, fixed, None if label is None else torch.full((count,), label)
    )


def decoded_grid(
    scene: Scene, name: str, x: Tensor, y: Tensor, depth: Tensor | None = None
) -> Tensor:
    """Images row by row, y falling, in each x rising."""
    points = torch.cartesian_prod(y.flip(0), x).flip(1)
    if depth is not None:
        points = torch.cat([points, depth.expand(len(points), 1)], dim=1)
    return decode(scene, {name: points})


def grid_figure(scene: Scene, images: Tensor, x: Tensor, y: Tensor | None, title: str) -> Figure:
    """Images with their coordinates at the sides, as many as are legible."""
    return pictures.image_grid(
        images,
        len(x),
        () if y is None else tick_labels(y.flip(0)),
        tick_labels(x),
        title,
        invert=scene.inverted,
    )


def tick_labels(numbers: Tensor) -> list[str]:
    step = -(-len(numbers) // 10)
    return [f"{v:.2f}" if i % step == 0 else "" for i, v in enumerate(numbers.tolist())]


def in_blocks(scene: Scene, blocks: list[Tensor], heads: list[str], title: str) -> Figure:
    """Square grids of images beside each other."""
    side = round(len(blocks[0]) ** 0.5)
    white = 0.0 if scene.inverted else 1.0
    gap = torch.full((side, 1, *blocks[0].shape[1:]), white)
    parts = [part for block in blocks for part in (block.unflatten(0, (side, side)), gap)][:-1]
    names = [""] * (len(blocks) * (side + 1) - 1)
    for i, head in enumerate(heads):
        names[i * (side + 1) + side // 2] = head
    return pictures.image_grid(
        torch.cat(parts, dim=1).flatten(0, 1), len(names), (), names, title, invert=scene.inverted
    )


def slices(scene: Scene, name: str, prior: PriorShape, depths: Tensor) -> list[Figure]:
    """The frames of a walk through a latent of 3 dimensions."""
    few = min(scene.settings.grid, 10)
    x, y = (values(scene, name, prior, d, few) for d in (0, 1))
    return [
        grid_figure(scene, decoded_grid(scene, name, x, y, depth), x, y, f"{name}[2] = {depth:.2f}")
        for depth in depths
    ]


def plane_of_images(scene: Scene, count: int) -> Figure:
    """The plane through the latents of three test images, a and, a step to its right and one upwards, b and c."""
    rows = scene.rows(3)
    corners = scene.codes(rows)
    inside = max(1, round((count - 1) * 2 / 3))
    before = (count - 1 - inside) // 2
    t = (torch.arange(count) - before) / inside
    # (count^2,), row by row, the last one first: `up` falls, `right` rises.
    up, right = torch.cartesian_prod(t.flip(0), t).T
    fixed = {
        name: z[0] + right[:, None] * (z[1 % len(z)] - z[0]) + up[:, None] * (z[2 % len(z)] - z[0])
        for name, z in corners.items()
    }
    images = decode(scene, {name: fixed[name] for name in free_latents(scene.model)})
    a, b, c = (
        (count - 1 - before - j * inside) * count + before + i * inside
        for i, j in ((0, 0), (1, 0), (0, 1))
    )
    named = ", ".join(map(str, rows.tolist()))
    return pictures.image_grid(
        images, count, marked=(a, b, c), invert=scene.inverted,
        title=f"the plane through the latents of test images {named} (framed){with_label(scene)}",
    )  # fmt: skip


def traversals(scene: Scene) -> Figures:
    """A row for each dimension, by how much it says of images; the others as an image has them."""
    refuse_quadrants(scene)
    rows = scene.rows(1)
    codes = scene.codes(rows)
    names = free_latents(scene.model)
    all_of_them = [(name, d) for name in names for d in range(codes[name].shape[1])]
    dimensions = sorted(all_of_them, key=lambda at: -information(scene, *at))[:MOST_DIMENSIONS]
    labels = scene.labels(rows)
    reaches = {name: reach(scene, name, labels) for name in names}
    images, row_names = [], []
    for name, d in dimensions:
        low, high = reaches[name][:, d].tolist()
        # Latents drawn after this one follow from it.
        known = names[: names.index(name) + 1]
        fixed = {other: codes[other].repeat(STEPS, 1) for other in known}
        fixed[name][:, d] = torch.linspace(low, high, STEPS)
        images.append(
            decode_latents(scene.model, fixed, None if labels is None else labels.repeat(STEPS))
        )
        kl = float(scene.exhibits.kl[name][d])
        row_names.append(f"{name}[{d}]" + ("" if kl != kl else f"  {kl:.2f} nats"))
    standard = all(isinstance(scene.model.prior[name], StandardNormal) for name in names)
    span = "from -3 to 3" if standard else "through 99.6 % of its prior"
    which = "each dimension"
    if len(dimensions) < len(all_of_them):
        which = f"the {len(dimensions)} strongest of {len(all_of_them)} dimensions, each"
    title = f"test image {int(rows[0])}: {which} in turn {span}"
    return {"traversals": pictures.image_grid(torch.cat(images), STEPS, row_names, title=title)}


def reach(scene: Scene, name: str, labels: Tensor | None) -> Tensor:
    """From where to where the dimensions of a latent are traversed, (2, D): 99.6 % of its prior, given the label of
    the image."""
    if isinstance(scene.model.prior[name], StandardNormal):
        return torch.tensor([[-3.0], [3.0]]).expand(2, scene.exhibits.codes[name].shape[1])
    prior = scene.prior(name, None if labels is None else int(labels[0]))
    return prior.draws(10_000).quantile(torch.tensor([0.002, 0.998]), dim=0)


def information(scene: Scene, name: str, d: int) -> float:
    """How much a dimension says of images: its KL; of a posterior without density, the spread of its codes."""
    kl = float(scene.exhibits.kl[name][d])
    return float(scene.exhibits.codes[name][:, d].var(correction=0)) if kl != kl else kl


def interpolations(scene: Scene) -> Figures:
    """Pairs of test images, and ways between their latents."""
    refuse_quadrants(scene)
    given = len(scene.settings.images)
    if given == 1:
        raise DoesNotApply("interpolations need two --images")
    rows = scene.rows(given or 10)
    # Of images that the user names each with the next.
    starts = range(0, len(rows) - 1, 1 if given else 2)
    ends, codes, labels = scene.images(rows), scene.codes(rows), scene.labels(rows)
    images, names = [], []
    for i in starts:
        for spherical in (False, True):
            fixed = {
                name: between(z[i], z[i + 1], STEPS, spherical)
                for name, z in codes.items()
                if name in free_latents(scene.model)
            }
            label = None if labels is None else labels[i].repeat(STEPS)
            images += [
                ends[i : i + 1],
                decode_latents(scene.model, fixed, label),
                ends[i + 1 : i + 2],
            ]
            names.append("on an arc" if spherical else "straight")
    if not images:
        raise DoesNotApply("interpolations need two test images")
    places = range(len(names) * (STEPS + 2))
    marked = [n for n in places if n % (STEPS + 2) in (0, STEPS + 1)]
    title = "between the latents of two test images (framed)"
    if labels is not None:
        wished = scene.settings.label is not None
        title += with_label(scene) if wished else ", with the label of the first"
    return {
        "interpolations": pictures.image_grid(
            torch.cat(images), STEPS + 2, names, title=title, marked=marked
        )
    }
