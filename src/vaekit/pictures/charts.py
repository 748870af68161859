"""Charts of numbers: training curves, bars, heat maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from .bands import Bands, choose_bands
from .grids import draw_image
from .style import BLUE, ORANGE, PALETTE, escape_math

MAX_MARKED_EPOCHS = 60  # with this many epochs or more a line has no markers
Metrics = Sequence[Mapping[str, Any]]


def values_by_epoch(metrics: Metrics, key: str) -> list[float]:
    """One value per epoch, NaN where it is null."""
    return [np.nan if epoch.get(key) is None else epoch[key] for epoch in metrics]


def training_label(metrics: Metrics) -> str:
    """The label of the training values, which may be of augmented images."""
    augmented = any(epoch.get("augmented") for epoch in metrics)
    return "training (augmented)" if augmented else "training"


def curves(metrics: Metrics, title: str = "") -> Figure:
    """Plot training and validation ELBO, log-likelihood and KL by epoch (the records of metrics.jsonl), and the parts
    of the KL, active units and KL per dimension where recorded; the objective alone where there is no ELBO."""
    epochs = values_by_epoch(metrics, "epoch")
    measured = [epoch for epoch in metrics if "active_units" in epoch]
    figure = Figure(figsize=(11, 6.6 if measured else 3.4), dpi=100, layout="constrained")
    grid = figure.add_gridspec(2 if measured else 1, 3)
    panels = [
        ("ELBO", "train_elbo", "validation_elbo"),
        ("log-likelihood", "train_log_likelihood", "validation_log_likelihood"),
        ("KL", "kl", "validation_kl"),
    ]
    if metrics[-1].get("validation_elbo") is None:
        panels = [("objective", "train_objective", "validation_objective")]
    span = 3 // len(panels)
    for i, (name, train, validation) in enumerate(panels):
        axes = figure.add_subplot(grid[0, i * span : (i + 1) * span])
        marker = "." if len(epochs) < MAX_MARKED_EPOCHS else ""
        axes.plot(
            epochs, values_by_epoch(metrics, train), color=BLUE, label=training_label(metrics), marker=marker,
        )  # fmt: skip
        axes.plot(
            epochs, values_by_epoch(metrics, validation), color=ORANGE, label="validation", marker=marker,
            linestyle="--",
        )  # fmt: skip
        style_epoch_axis(axes, name if name == "objective" else f"{name} (nats per image)")
        best = [epoch["epoch"] for epoch in metrics if epoch.get("best")]
        if best:
            axes.axvline(best[-1], color="#999999", linewidth=0.8, label="best (saved)")
    draw_kl_parts(axes, [epoch for epoch in measured if epoch.get("kl_parts")], marker)
    axes.legend(fontsize=8)
    if measured:
        axes = figure.add_subplot(grid[1, 0])
        units = measured[-1]["latent_units"]
        axes.plot(
            values_by_epoch(measured, "epoch"),
            values_by_epoch(measured, "active_units"),
            color=BLUE,
            marker=marker,
        )
        style_epoch_axis(axes, f"active units (of {units})")
        axes.set_ylim(0, units * 1.05)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        if dimension_kls(measured[-1]) or measured[-1].get("kl_per_latent"):
            draw_kl_heatmap(figure, figure.add_subplot(grid[1, 1:]), measured)
    figure.suptitle(escape_math(title), fontsize=11)
    return figure


def style_epoch_axis(axes: Axes, title: str) -> None:
    axes.set(xlabel="epoch")
    axes.set_title(title, fontsize=10)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.3)


def draw_kl_parts(axes: Axes, metrics: Metrics, marker: str) -> None:
    """Draw the parts of the validation KL of a model with clusters by epoch."""
    for i, name in enumerate(metrics[-1]["kl_parts"] if metrics else ()):
        axes.plot(
            values_by_epoch(metrics, "epoch"),
            values_by_epoch([epoch["kl_parts"] for epoch in metrics], name),
            color=PALETTE[2 + i],
            linestyle=":",
            marker=marker,
            label=f"validation, {name.replace('_', ' ')}",
        )


def dimension_kls(epoch: Mapping[str, Any]) -> dict[str, list[float]]:
    """The KL of each dimension by latent, of mixtures to their marginals."""
    marginal = epoch.get("marginal_kl_per_dimension") or {}
    return {**(epoch["kl_per_dimension"] or {}), **marginal}


def draw_kl_heatmap(figure: Figure, axes: Axes, metrics: Metrics) -> None:
    """Draw the KL of each dimension by epoch as colours, sorted within each latent, the largest at the top; of a deep
    hierarchy the KL of each latent."""
    rows, names = [], list[str]()
    latents = metrics[-1].get("kl_per_latent") or {}
    for name in latents:
        rows.append(
            np.array([[(epoch.get("kl_per_latent") or {}).get(name) for epoch in metrics]], float)
        )
        names.append(name)
    kls = [dimension_kls(epoch) for epoch in metrics]
    for name in kls[-1]:
        unknown = [np.nan] * len(kls[-1][name])
        values = np.array([kl.get(name, unknown) for kl in kls], float).T
        order = np.argsort(-values[:, -1], kind="stable")
        rows.append(values[order])
        names += [f"{name}[{d}]" for d in order]
    epochs = np.array([epoch["epoch"] for epoch in metrics], float)
    # Cell edges lie halfway between epochs.
    edges = np.concatenate([epochs[:1] - 0.5, (epochs[1:] + epochs[:-1]) / 2, epochs[-1:] + 0.5])
    row_edges = np.arange(len(names) + 1) - 0.5
    mesh = axes.pcolormesh(edges, row_edges, np.concatenate(rows), cmap="viridis", vmin=0)
    axes.invert_yaxis()
    step = -(-len(names) // 24)
    axes.set_yticks(range(0, len(names), step), names[::step], fontsize=7)
    marginal = ", ".join(metrics[-1].get("marginal_kl_per_dimension") or ())
    to = f"; of {marginal} to the prior's marginals" if marginal else ""
    style_epoch_axis(
        axes, "KL by latent (nats)" if latents else f"KL per dimension (nats), largest first{to}"
    )
    axes.grid(visible=False)
    figure.colorbar(mesh, ax=axes)


def latent_bars(kl: Mapping[str, float], title: str = "") -> Figure:
    """Draw the KL of each latent, nats, as bars, with one colour for the groups of a resolution, such as z4_0 and z4_1;
    and its sum by resolution in the legend where there are several groups of one."""
    sizes = {name: name.rpartition("_")[0] or name for name in kl}
    kinds = list(dict.fromkeys(sizes.values()))
    figure = Figure(figsize=(2.5 + 0.3 * max(10, len(kl)), 3.4), dpi=100, layout="constrained")
    axes = figure.subplots()
    for i, kind in enumerate(kinds):
        own = [n for n, name in enumerate(kl) if sizes[name] == kind]
        heights = [kl[name] for name in kl if sizes[name] == kind]
        label = f"{kind}: {sum(heights):.1f} nats"
        axes.bar(own, heights, color=PALETTE[i % len(PALETTE)], label=escape_math(label))
    axes.set_xticks(
        range(len(kl)), [escape_math(name) for name in kl], fontsize=8, rotation=90 if len(kl) > 6 else 0
    )  # fmt: skip
    axes.set_ylabel("nats per image")
    axes.spines[["top", "right"]].set_visible(False)
    if len(kinds) < len(kl):
        axes.legend(fontsize=8)
    axes.set_title(escape_math(title), fontsize=11)
    return figure


def samples_seen(metrics: Metrics, images: int, title: str = "") -> Figure:
    """Plot the ELBO against the training samples seen, on a log axis, as in Figure 2 of Kingma and Welling 2014;
    `images` is the number per epoch."""
    figure = Figure(figsize=(6, 4.2), dpi=100, layout="constrained")
    axes = figure.subplots()
    seen = [epoch * images for epoch in values_by_epoch(metrics, "epoch")]
    axes.plot(
        seen, values_by_epoch(metrics, "train_elbo"), color=BLUE, label=training_label(metrics), marker="."
    )  # fmt: skip
    axes.plot(
        seen, values_by_epoch(metrics, "validation_elbo"), color=ORANGE, label="validation", linestyle="--", marker="."
    )  # fmt: skip
    style_samples_axis(axes)
    axes.legend(fontsize=8)
    axes.set_title(escape_math(title), fontsize=11)
    return figure


def style_samples_axis(axes: Axes) -> None:
    axes.set(xscale="log", xlabel="training samples seen", ylabel="ELBO (nats per image)")
    axes.grid(alpha=0.3, which="both")


def comparison(
    groups: Mapping[str, Sequence[tuple[Metrics, int]]], training: bool = False
) -> Figure:
    """Plot the validation ELBO of groups of runs by epoch and by training samples seen, as the mean over the runs of
    a group with a band of one standard deviation; `groups`: name -> (metrics, images per epoch) of each run.

    With `training` also the training ELBO, as a solid line; the validation ELBO is then dashed.
    """
    figure = Figure(figsize=(12, 4.8), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2)
    for i, (name, runs) in enumerate(groups.items()):
        colour, cycle = PALETTE[i % len(PALETTE)], i // len(PALETTE) % 3
        seeds = f" ({len(runs)} runs)" if len(runs) > 1 else ""
        style: dict[str, Any] = {"color": colour, "label": escape_math(name) + seeds}
        if training:
            style["marker"] = ("", "s", "^")[cycle]  # groups of one colour
            if any(epoch.get("augmented") for metrics, _ in runs for epoch in metrics):
                style["label"] += ", training (augmented)"
            draw_mean(left, right, runs, "train_elbo", {**style, "linestyle": "-"})
            draw_mean(
                left, right, runs, "validation_elbo", {**style, "linestyle": "--", "label": None}
            )
        else:
            short = min(len(metrics) for metrics, _ in runs) < MAX_MARKED_EPOCHS
            style |= {"linestyle": ("-", "--", ":")[cycle], "marker": "." if short else ""}
            draw_mean(left, right, runs, "validation_elbo", style)
    kinds = "ELBO (nats per image): training solid, validation dashed"
    style_epoch_axis(left, kinds if training else "validation ELBO (nats per image)")
    style_samples_axis(right)
    handles, names = left.get_legend_handles_labels()
    columns = max(1, min(3, len(names), 150 // max(map(len, names))))
    figure.legend(
        handles, names, loc="outside lower center", fontsize=9, frameon=False, ncols=columns
    )
    return figure


def draw_mean(
    left: Axes,
    right: Axes,
    runs: Sequence[tuple[Metrics, int]],
    key: str,
    style: Mapping[str, Any],
) -> None:
    """Draw the mean of a metric over runs, by epoch and by samples seen, with a band of one standard deviation."""
    # Cut to the shortest run: the mean would jump where a run ends.
    length = min(len(metrics) for metrics, _ in runs)
    values = np.array([values_by_epoch(metrics[:length], key) for metrics, _ in runs])
    mean = values.mean(0)
    epochs = np.array(values_by_epoch(runs[0][0][:length], "epoch"))
    for axes, x in ((left, epochs), (right, epochs * runs[0][1])):
        axes.plot(x, mean, **style)
        if len(runs) > 1:
            spread, colour = values.std(0, ddof=1), style["color"]
            axes.fill_between(
                x, mean - spread, mean + spread, color=colour, alpha=0.25, linewidth=0
            )


def cluster_bars(
    inputs: Tensor,
    reconstructions: Tensor,
    probabilities: np.ndarray,
    title: str = "",
    bands: Bands | None = None,
) -> Figure:
    """Draw one row per image (N, C, H, W): input, reconstruction, and p(cluster | x) (N, K) as bars; `bands` shows the
    channels, by default fitted to the inputs."""
    count, clusters = probabilities.shape
    bands = bands or choose_bands(inputs)
    figure = Figure(figsize=(6, 0.75 * count + 0.6), dpi=100, layout="constrained")
    rows = figure.subplots(count, 3, width_ratios=[1, 1, 5], squeeze=False)
    for (left, middle, right), x, reconstruction, p in zip(
        rows, bands(inputs), bands(reconstructions), probabilities, strict=True
    ):
        draw_image(left, x)
        draw_image(middle, reconstruction)
        right.bar(range(clusters), p, color=BLUE)
        right.set(ylim=(0, 1), xlim=(-0.6, clusters - 0.4), yticks=[0, 1], xticks=[])
        right.tick_params(labelsize=7)
        right.spines[["top", "right"]].set_visible(False)
    for axes, name in zip(rows[0], ("input", "reconstruction", "p(cluster | x)"), strict=True):
        axes.set_title(name, fontsize=9)
    step = -(-clusters // 20)
    rows[-1, 2].set_xticks(range(0, clusters, step))
    rows[-1, 2].set_xlabel("cluster", fontsize=8)
    figure.suptitle(escape_math(bands.title(title)), fontsize=11)
    return figure


def confusion(counts: np.ndarray, classes: Sequence[str], title: str = "") -> Figure:
    """Draw the contingency table (clusters, labels), coloured by each label's share of the cluster."""
    rows, columns = counts.shape
    figure = Figure(
        figsize=(1.9 + min(0.55 * columns, 26), 1.5 + min(0.4 * rows, 26)),
        dpi=100,
        layout="constrained",
    )
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    if counts.size <= 600:
        for (i, j), count in np.ndenumerate(counts):
            colour = "white" if shares[i, j] > 0.6 else "black"
            if count:
                axes.text(j, i, f"{count}", ha="center", va="center", fontsize=8, color=colour)
    slanted = max(map(len, classes)) > 3
    names = [escape_math(name[:14]) for name in classes]
    axes.set_xticks(
        range(columns), names, fontsize=8, rotation=45 if slanted else 0, ha="right" if slanted else "center"
    )  # fmt: skip
    axes.set_yticks(range(rows), map(str, range(rows)), fontsize=8)
    axes.set(xlabel="label", ylabel="cluster")
    figure.colorbar(image, ax=axes, label="share of the cluster")
    axes.set_title(escape_math(title), fontsize=11)
    return figure
