"""Pictures of the latent space: scatter plots, manifolds, traversals and interpolations."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.stats import norm
from torch import Tensor

from .. import pictures
from ..data.splits import evenly_spaced
from ..inference.latent_space import (
    PriorMixture,
    decode_latents,
    decoder_latents,
    interpolate,
    neighbour_embedding,
    principal_axes,
)
from ..likelihood.latent_use import lists_groups
from ..model.priors import StandardNormal
from ..pictures import Movie, Panel
from .catalog import PictureUnavailable
from .context import Figures, PictureContext, require_decodable

MIN_POINTS = 5  # points of a scatter plot
MAX_EMBEDDED_POINTS = 2000  # points of t-SNE or UMAP, which are slow
ROTATION_FRAMES = 36  # frames of a full rotation
SLICES, SLICE_FRAMES = 5, 25  # of a 3-D latent, in the figure and in the movie
STEPS = 11  # images of a traversal or interpolation
MAX_DIMENSIONS = 20  # traversed dimensions


def latents(context: PictureContext) -> Figures:
    """Draw a scatter plot of each latent, and one of both latents where each has one dimension."""
    figures: Figures = {}
    stored = context.picture_data.codes
    codes = {name: stored[name] for name in context.model.prior if name in stored}
    if len(context.picture_data.code_rows) < MIN_POINTS:
        raise PictureUnavailable(f"latents need at least {MIN_POINTS} test images")
    for name, points in codes.items():
        figures |= scatter_latent(context, name, points)
    if len(codes) == 2 and all(points.shape[1] == 1 for points in codes.values()):
        both = torch.cat(list(codes.values()), dim=1).numpy()
        first, second = codes
        figures["latents-both"] = scatter_figure(
            context,
            [Panel(both, names=(first, second))],
            f"posterior means of {first} and {second}",
        )
    return figures


def scatter_latent(context: PictureContext, name: str, codes: Tensor) -> Figures:
    """Draw the codes (N, D) of a latent: themselves up to 3 dimensions (with a rotating movie of 3), else projected."""
    dim, key = codes.shape[1], f"latents-{name}"
    title = f"posterior means of {name}"
    prior = context.prior(name)
    if dim == 1:
        return {key: scatter_figure(context, [one_dimension_panel(codes, prior, name)], title)}
    if dim == 2:
        panel = two_dimensions_panel(codes, prior, name, (0, 1))
        return {key: scatter_figure(context, [panel], title)}
    if dim == 3:
        panels = [
            two_dimensions_panel(codes, prior, name, axes) for axes in ((0, 1), (0, 2), (1, 2))
        ]
        return {
            key: scatter_figure(context, panels, title),
            f"{key}-turning": Movie(rotation_frames(context, name, codes), 0.1),
        }
    if float(codes.std(0).max()) < 1e-6:  # PCA and t-SNE need variance
        panel = two_dimensions_panel(codes, prior, name, (0, 1))
        return {key: scatter_figure(context, [panel], f"identical {title}")}
    rows = evenly_spaced(len(codes), MAX_EMBEDDED_POINTS)
    panels = projection_panels(context, codes, rows, prior)
    return {key: scatter_figure(context, panels, title, rows)}


def projection_panels(
    context: PictureContext, codes: Tensor, rows: Tensor, prior: PriorMixture
) -> list[Panel]:
    """Panels of the codes of `rows` in 2-D, by the projections of --projection; PCA is fitted to all codes (N, D)."""
    sample, projection = codes[rows], context.settings.projection
    panels = []
    if projection in ("auto", "pca"):
        centre, axes, shares = principal_axes(codes)
        names = (f"PC 1, {shares[0]:.0%} of variance", f"PC 2, {shares[1]:.0%} of variance")
        panels.append(projection_panel(sample, prior, axes, centre, names, "principal components"))
    if projection != "pca":
        method = "tsne" if projection == "auto" else projection
        points = neighbour_embedding(sample, method, context.settings.seed)
        panels.append(Panel(points, {"tsne": "t-SNE", "umap": "UMAP"}[method]))
    return panels


def scatter_figure(
    context: PictureContext, panels: list[Panel], title: str, rows: Tensor | None = None
) -> Figure:
    """Draw panels coloured by the labels of the test images (those of `rows`)."""
    labels = context.picture_data.code_labels
    if labels is not None and rows is not None:
        labels = labels[rows]
    colours = None if labels is None else labels.numpy()
    count = len(panels[0].points)
    return pictures.scatter(panels, colours, context.classes, f"{title} of {count:,} test images")


def one_dimension_panel(codes: Tensor, prior: PriorMixture, name: str) -> Panel:
    """Panel of a 1-D latent, the points jittered along the y axis."""
    samples = prior.sample(5000)
    generator, height = torch.Generator().manual_seed(0), 2 * float(codes.std())
    points, prior_points = (
        torch.cat([z, height * (2 * torch.rand(len(z), 1, generator=generator) - 1)], dim=1).numpy()
        for z in (codes, samples)
    )
    projected = prior.project(torch.eye(1), torch.zeros(1))

    def density(points: np.ndarray) -> np.ndarray:
        return projected.log_prob(torch.from_numpy(points[:, :1]).float()).exp().numpy()

    return Panel(points, "", (f"{name}[0]", "(random jitter)"), density, prior_points)


def two_dimensions_panel(
    codes: Tensor, prior: PriorMixture, name: str, axes: tuple[int, int]
) -> Panel:
    """Panel of two dimensions of a latent."""
    chosen = torch.eye(codes.shape[1])[:, list(axes)]
    names = (f"{name}[{axes[0]}]", f"{name}[{axes[1]}]")
    return projection_panel(codes, prior, chosen, torch.zeros(codes.shape[1]), names)


def projection_panel(
    codes: Tensor,
    prior: PriorMixture,
    axes: Tensor,
    centre: Tensor,
    names: tuple[str, str],
    title: str = "",
) -> Panel:
    """Panel of codes and prior projected by (z - centre) axes, with axes (D, 2)."""
    projected = prior.project(axes, centre)

    def density(points: np.ndarray) -> np.ndarray:
        return projected.log_prob(torch.from_numpy(points).float()).exp().numpy()

    def project(z: Tensor) -> np.ndarray:
        return ((z - centre) @ axes).numpy()

    centres = None if prior.centres is None else project(prior.centres)
    return Panel(project(codes), title, names, density, project(prior.sample(5000)), centres)


def rotation_frames(context: PictureContext, name: str, codes: Tensor) -> list[Figure]:
    """Frames of a rotation around a 3-D latent."""
    rows = evenly_spaced(len(codes), MAX_EMBEDDED_POINTS)
    labels = context.picture_data.code_labels
    colours = None if labels is None else labels[rows].numpy()
    return [
        pictures.scatter_3d(
            codes[rows].numpy(),
            colours,
            context.classes,
            azimuth,
            f"posterior means of {name}",
            name,
        )
        for azimuth in np.linspace(0, 360, ROTATION_FRAMES, endpoint=False)
    ]


def manifold(context: PictureContext) -> Figures:
    """Draw the decoded grid of the first latent that the decoder takes: a line, a plane, or slices of 3 dimensions; of
    more dimensions the plane through three images."""
    require_decodable(context)
    name, count = decoder_latents(context.model)[0], context.settings.grid
    dim = context.picture_data.codes[name].shape[1]
    if dim > 3:
        return {"manifold": plane_of_images(context, count)}
    prior = context.prior(name, decoded_label(context))
    title = (
        f"{name} decoded on {spacing_text(context, name)}{label_text(context)}; x axis {name}[0]"
    )
    if dim > 1:
        title += f", y axis {name}[1]"
    if dim == 3:
        return manifold_slices(context, name, prior, title)
    x = grid_values(context, name, prior, 0, count)
    if dim == 1:
        images = decode_with_label(context, {name: x[:, None]})
        return {"manifold": grid_figure(context, images, x, None, title)}
    y = grid_values(context, name, prior, 1, count)
    return {"manifold": grid_figure(context, decoded_grid(context, name, x, y), x, y, title)}


def manifold_slices(context: PictureContext, name: str, prior: PriorMixture, title: str) -> Figures:
    """Draw slices of a 3-D latent at several values of its third dimension: some as a figure, more as a movie."""
    side = min(context.settings.grid, 8)
    depths = grid_values(context, name, prior, 2, SLICE_FRAMES)
    x, y = (grid_values(context, name, prior, d, side) for d in (0, 1))
    chosen = depths[torch.linspace(2, SLICE_FRAMES - 3, SLICES).round().long()]
    grids = [decoded_grid(context, name, x, y, depth) for depth in chosen]
    headings = [f"{name}[2] = {depth:.2f}" for depth in chosen]
    return {
        "manifold": grids_side_by_side(context, grids, headings, title),
        "manifold-slices": Movie(slice_frames(context, name, prior, depths)),
    }


def spacing_text(context: PictureContext, name: str) -> str:
    """How the grid is spaced, for a title."""
    if context.settings.range is not None:
        return "a linear grid"
    if isinstance(context.model.prior[name], StandardNormal):
        return "a grid of Gaussian quantiles"
    return "a grid of quantiles of its prior"


def decoded_label(context: PictureContext) -> int | None:
    """The label to decode a grid with, for a model conditional on labels: --label, or the first."""
    return int(context.settings.label or 0) if context.condition == "label" else None


def label_text(context: PictureContext) -> str:
    """The label that a grid is decoded with, for a title."""
    label = decoded_label(context)
    return "" if label is None else f", label {context.classes[label]}"


def grid_values(
    context: PictureContext, name: str, prior: PriorMixture, d: int, count: int
) -> Tensor:
    """Coordinates of a manifold along dimension `d` (count,): the middles of intervals of equal prior probability, or
    evenly spaced with --range."""
    limit = context.settings.range
    if limit is not None:
        return torch.linspace(-limit, limit, count)
    probabilities = (torch.arange(count) + 0.5) / count
    if isinstance(context.model.prior[name], StandardNormal):
        return torch.from_numpy(norm.ppf(probabilities.double().numpy())).float()
    return prior.sample(10_000, context.settings.seed)[:, d].quantile(probabilities)


def decode_with_label(context: PictureContext, fixed: dict[str, Tensor]) -> Tensor:
    """Decode latents (N, D) by name with the grid's label."""
    label, count = decoded_label(context), len(next(iter(fixed.values())))
    return decode_latents(
        context.model, fixed, None if label is None else torch.full((count,), label)
    )


def decoded_grid(
    context: PictureContext, name: str, x: Tensor, y: Tensor, depth: Tensor | None = None
) -> Tensor:
    """Decode a grid of a latent: y descending over rows, x ascending over columns, `depth` the third coordinate."""
    points = torch.cartesian_prod(y.flip(0), x).flip(1)
    if depth is not None:
        points = torch.cat([points, depth.expand(len(points), 1)], dim=1)
    return decode_with_label(context, {name: points})


def grid_figure(
    context: PictureContext, images: Tensor, x: Tensor, y: Tensor | None, title: str
) -> Figure:
    """Draw a grid of images with their coordinates at the sides."""
    return pictures.image_grid(
        images,
        len(x),
        () if y is None else tick_labels(y.flip(0)),
        tick_labels(x),
        title,
        invert=context.inverted,
        bands=context.bands,
    )


def tick_labels(values: Tensor) -> list[str]:
    """At most ten evenly spaced values as text, the others empty."""
    step = -(-len(values) // 10)
    return [f"{v:.2f}" if i % step == 0 else "" for i, v in enumerate(values.tolist())]


def grids_side_by_side(
    context: PictureContext, grids: list[Tensor], headings: list[str], title: str
) -> Figure:
    """Draw square grids of images (side^2, C, H, W) side by side, each below its heading."""
    side = round(len(grids[0]) ** 0.5)
    gap = torch.zeros(side, 1, *grids[0].shape[1:])
    parts = [part for grid in grids for part in (grid.unflatten(0, (side, side)), gap)][:-1]
    names = [""] * (len(grids) * (side + 1) - 1)
    for i, heading in enumerate(headings):
        names[i * (side + 1) + side // 2] = heading
    images = torch.cat(parts, dim=1).flatten(0, 1)
    blank = [i for i in range(len(images)) if i % len(names) % (side + 1) == side]
    return pictures.image_grid(
        images, len(names), (), names, title, invert=context.inverted, bands=context.bands, blank=blank
    )  # fmt: skip


def slice_frames(
    context: PictureContext, name: str, prior: PriorMixture, depths: Tensor
) -> list[Figure]:
    """Frames of the slices of a 3-D latent, one per value of its third dimension."""
    side = min(context.settings.grid, 10)
    x, y = (grid_values(context, name, prior, d, side) for d in (0, 1))
    return [
        grid_figure(
            context, decoded_grid(context, name, x, y, depth), x, y, f"{name}[2] = {depth:.2f}"
        )
        for depth in depths
    ]


def plane_of_images(context: PictureContext, count: int) -> Figure:
    """Draw a (count, count) grid of the plane through the latents of three test images: the second lies along the x
    axis from the first, the third along the y axis."""
    rows = context.start_rows(3)
    codes = context.codes(rows)
    span = max(1, round((count - 1) * 2 / 3))  # grid steps from image to image
    before = (count - 1 - span) // 2
    t = (torch.arange(count) - before) / span
    # (count^2,), row by row from the top: y descends, x ascends.
    y, x = torch.cartesian_prod(t.flip(0), t).T
    fixed = {
        name: z[0] + x[:, None] * (z[1 % len(z)] - z[0]) + y[:, None] * (z[2 % len(z)] - z[0])
        for name, z in codes.items()
    }
    images = decode_with_label(
        context, {name: fixed[name] for name in decoder_latents(context.model)}
    )
    corners = [
        (count - 1 - before - j * span) * count + before + i * span
        for i, j in ((0, 0), (1, 0), (0, 1))
    ]
    numbers = ", ".join(map(str, rows.tolist()))
    return pictures.image_grid(
        images, count, marked=corners, invert=context.inverted, bands=context.bands,
        title=f"plane through the latents of test images {numbers} (framed){label_text(context)}",
    )  # fmt: skip


def traversals(context: PictureContext) -> Figures:
    """Draw a row per latent dimension, the most informative first: one test image with that dimension varied; of a deep
    hierarchy a row per principal component of its top groups."""
    require_decodable(context)
    if lists_groups(context.model):
        return {"traversals": component_traversals(context)}
    rows = context.start_rows(1)
    codes = context.codes(rows)
    names = decoder_latents(context.model)
    dimensions = [(name, d) for name in names for d in range(codes[name].shape[1])]
    shown = sorted(dimensions, key=lambda which: -dimension_information(context, *which))
    shown = shown[:MAX_DIMENSIONS]
    labels = context.labels(rows)
    ranges = {name: traversal_range(context, name, labels) for name in names}
    images, row_names = [], []
    for name, d in shown:
        low, high = ranges[name][:, d].tolist()
        # Latents after this one take their prior mean given it.
        known = names[: names.index(name) + 1]
        fixed = {other: codes[other].repeat(STEPS, 1) for other in known}
        fixed[name][:, d] = torch.linspace(low, high, STEPS)
        images.append(
            decode_latents(context.model, fixed, None if labels is None else labels.repeat(STEPS))
        )
        kl = float(context.picture_data.kl[name][d])
        row_names.append(f"{name}[{d}]" + ("" if kl != kl else f"  {kl:.2f} nats"))
    standard = all(isinstance(context.model.prior[name], StandardNormal) for name in names)
    span = "from -3 to 3" if standard else "over the central 99.6% of its prior"
    which = "each latent dimension"
    if len(shown) < len(dimensions):
        which = f"each of the {len(shown)} most informative of {len(dimensions)} dimensions"
    title = f"test image {int(rows[0])} with {which} varied {span}"
    grid = pictures.image_grid(
        torch.cat(images), STEPS, row_names, title=title, bands=context.bands
    )
    return {"traversals": grid}


def informative_latents(context: PictureContext, count: int) -> list[str]:
    """Those of the latents with codes that have most information, at most `count`, in the order of sampling, without
    those of a hundredth of the most."""
    stored, kl = context.picture_data.codes, context.picture_data.kl
    information = {name: float(kl[name].sum()) for name in context.model.prior if name in stored}
    chosen = sorted(information, key=lambda name: -information[name])[:count]
    enough = 0.01 * information[chosen[0]]
    return [name for name in information if name in chosen and information[name] >= enough]


def component_traversals(context: PictureContext) -> Figure:
    """Draw a row per principal component of the codes of the top groups: one test image with it varied, and with the
    groups below at the means of their priors."""
    rows, stored = context.start_rows(1), context.picture_data.codes
    if len(context.picture_data.code_rows) < 2:
        raise PictureUnavailable("principal components need two test images")
    order = [*context.model.prior]
    codes, labels = context.codes(rows), context.labels(rows)
    images, row_names = [], []
    names = informative_latents(context, 4)
    for name in names:
        centre, axes, shares = principal_axes(stored[name], MAX_DIMENSIONS // len(names))
        spreads = ((stored[name] - centre) @ axes).std(0)
        known = order[: order.index(name) + 1]
        for i, (axis, spread) in enumerate(zip(axes.T, spreads, strict=True)):
            fixed = {other: codes[other].repeat(STEPS, 1) for other in known}
            distance = torch.linspace(-3, 3, STEPS) * spread - (codes[name] - centre) @ axis
            fixed[name] = codes[name] + distance[:, None] * axis
            images.append(
                decode_latents(
                    context.model, fixed, None if labels is None else labels.repeat(STEPS)
                )
            )
            row_names.append(f"{name} PC {i + 1}, {shares[i]:.0%}")
    title = (
        f"test image {int(rows[0])} with principal components varied by 3 standard deviations of codes, "
        "those below at prior means"
    )
    return pictures.image_grid(
        torch.cat(images), STEPS, row_names, title=title, bands=context.bands
    )


def traversal_range(context: PictureContext, name: str, labels: Tensor | None) -> Tensor:
    """Lower and upper ends of the traversals of a latent (2, D): the central 99.6% of its prior given the image's
    label, or -3 and 3 for a standard normal prior."""
    if isinstance(context.model.prior[name], StandardNormal):
        return torch.tensor([[-3.0], [3.0]]).expand(2, context.picture_data.codes[name].shape[1])
    prior = context.prior(name, None if labels is None else int(labels[0]))
    return prior.sample(10_000).quantile(torch.tensor([0.002, 0.998]), dim=0)


def dimension_information(context: PictureContext, name: str, d: int) -> float:
    """KL of a latent dimension in nats; the variance of its codes where the posterior has no density."""
    kl = float(context.picture_data.kl[name][d])
    return float(context.picture_data.codes[name][:, d].var(correction=0)) if kl != kl else kl


def interpolations(context: PictureContext) -> Figures:
    """Draw linear and spherical interpolations between the latents of pairs of test images."""
    require_decodable(context)
    given = len(context.settings.images)
    if given == 1:
        raise PictureUnavailable("interpolations need two --images")
    rows = context.start_rows(given or 10)
    # Each image of --images is paired with the next; others form separate pairs.
    starts = range(0, len(rows) - 1, 1 if given else 2)
    ends, codes, labels = context.images(rows), context.codes(rows), context.labels(rows)
    stored = context.picture_data.codes
    images, names = [], []
    for i in starts:
        for spherical in (False, True):
            fixed = {
                name: interpolate(z[i], z[i + 1], STEPS, spherical)
                for name, z in codes.items()
                if name in decoder_latents(context.model)
            }
            label = None if labels is None else labels[i].repeat(STEPS)
            images += [
                ends[i : i + 1],
                decode_latents(context.model, fixed, label),
                ends[i + 1 : i + 2],
            ]
            names.append("spherical" if spherical else "linear")
        if lists_groups(context.model):
            top = {name: interpolate(codes[name][i], codes[name][i + 1], STEPS) for name in stored}
            images += [
                ends[i : i + 1],
                decode_latents(context.model, top, label),
                ends[i + 1 : i + 2],
            ]
            names.append("top groups")
    if not images:
        raise PictureUnavailable("interpolations need two test images")
    columns = STEPS + 2
    marked = [n for n in range(len(names) * columns) if n % columns in (0, columns - 1)]
    title = "interpolations between the latents of two test images (framed)"
    if labels is not None:
        chosen = context.settings.label is not None
        title += label_text(context) if chosen else ", label of the first image"
    grid = pictures.image_grid(
        torch.cat(images), columns, names, title=title, marked=marked, bands=context.bands
    )
    return {"interpolations": grid}
