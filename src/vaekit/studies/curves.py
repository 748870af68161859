"""Several runs beside each other: those that differ in their seed alone are one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from .. import pictures
from ..runs.directory import Run
from ..settings.catalog import MODELS
from ..support.errors import require

LONGEST = 80  # letters of a name
# What differs between runs of one setting.
NOT_SETTINGS = {"seed", "device"}
MEASURED = ("data set", "binarisation", "likelihood", "condition")


def compare(runs: Sequence[Run | str | Path]) -> Figure:
    """Validation ELBO of runs by epoch and by training samples seen; of runs that differ in their seed alone the mean,
    and a band of one standard deviation.

    Raises UserError for a run without ELBOs, and for runs whose likelihoods are of different things: other data,
    another binarisation, another kind of pixels, of images alone or given their labels.
    """
    found = list({Run.of(run).path.resolve(): Run.of(run) for run in runs}.values())
    require(len(found) >= 1, "there are no runs to compare")
    for run in found:
        have = any(epoch.get("validation_elbo") is not None for epoch in run.metrics)
        require(
            have,
            f"{run} has no ELBO to compare: its posterior has no density, or no epoch has ended",
        )
    require_same({run: measured(run) for run in found}, "leave one out")
    return pictures.comparison(
        {
            name: [(run.metrics, run.section("data")["images"]["train"]) for run in group]
            for name, group in grouped(found).items()
        }
    )


def measured(run: Run) -> dict[str, str]:
    """What the likelihoods of a run are of."""
    data, settings = f"{run.data.name} ({run.data.sha256[:8]})", run.blueprint.settings
    values = data, run.data.binarisation, settings.likelihood, settings.condition
    return dict(zip(MEASURED, values, strict=True))


def require_same(facts: Mapping[Run, Mapping[str, Any]], remedy: str) -> None:
    """Raise UserError unless the facts of all runs are equal."""
    (first, wanted), *others = facts.items()
    for run, found in others:
        for what, value in wanted.items():
            require(
                found[what] == value,
                f"{run} and {first} cannot be compared: the {what} of one is {found[what]}, of the other {value}; "
                f"{remedy}",
            )


def grouped(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs by what tells their settings from those of the others; by a folder's name, where that says too much."""
    settings = [settings_of(run) for run in runs]
    names = [name_of(found, settings) for found in settings]
    if max(map(len, names)) > LONGEST:
        firsts = [runs[names.index(name)] for name in names]
        names = [f"{run.blueprint.model} ({run})" for run in firsts]
    groups: dict[str, list[Run]] = {}
    for run, name in zip(runs, names, strict=True):
        groups.setdefault(name, []).append(run)
    return groups


def settings_of(run: Run) -> dict[str, Any]:
    """The settings of a run but its seed, by a name each; "model" is its name."""
    found = {
        "model": run.blueprint.model,
        "objective": run.config.get("objective"),
        "init": run.config.get("init"),
        **run.section("model")["settings"],
        **run.section("training"),
    }
    return {key: value for key, value in found.items() if key not in NOT_SETTINGS}


def name_of(mine: Mapping[str, Any], everybody: Sequence[Mapping[str, Any]]) -> str:
    """The model, and what of its settings differs from others of its model, or, being other than the model's own, from
    those of any model."""
    entry = MODELS.get(mine["model"])
    usual = {} if entry is None else {**asdict(entry.settings), **asdict(entry.training)}
    words = []
    for key, value in mine.items():
        others = [other for other in everybody if other.get(key) != value]
        alike = [other for other in others if other["model"] == mine["model"]]
        # A warm-up, prior or likelihood that is settled by the model or the data goes without saying.
        chosen = usual.get(key) not in (value, None, "auto")
        if key != "model" and value is not None and (alike or (others and chosen)):
            words.append(f"{key.replace('_', ' ')} {value}")
    return mine["model"] + (": " + ", ".join(words) if words else "")
