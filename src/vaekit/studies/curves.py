"""Validation ELBO curves of several runs; runs that differ only in their seed form one group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from .. import pictures
from ..runs.directory import Run, model_settings, with_added
from ..runs.fitted_prior import read_record
from ..settings.catalog import MODELS
from ..support.errors import require

MAX_NAME_LENGTH = 80  # characters of a group's name
# Settings that may differ within a group.
NOT_SETTINGS = {"seed", "device"}
COMPARABILITY_KEYS = ("data set", "binarisation", "likelihood", "condition")


def compare(runs: Sequence[Run | str | Path], training_curves: bool = False) -> Figure:
    """Plot the validation ELBO of runs by epoch and by training samples seen; of runs that differ only in their seed,
    the mean with a band of one standard deviation. With `training_curves` also the training ELBO, solid, and the
    validation ELBO dashed.

    Raises UserError for a run without ELBOs, and for runs whose ELBOs are not comparable (another data set,
    binarisation, likelihood or condition).
    """
    # A prior that is fitted afterwards has no curve.
    unique = unique_runs([Run(run.path, run.weights) for run in map(Run.of, runs)])
    for run in unique:
        has_elbo = any(epoch.get("validation_elbo") is not None for epoch in run.metrics)
        require(
            has_elbo,
            f"{run} has no ELBO to compare: its posterior has no density, or no epoch is finished",
        )
    require_equal({run: comparability(run) for run in unique}, "leave one out")
    return pictures.comparison(
        {
            name: [(run.metrics, run.section("data")["images"]["train"]) for run in group]
            for name, group in group_by_settings(unique).items()
        },
        training_curves,
    )


def unique_runs(runs: Sequence[Run | str | Path]) -> list[Run]:
    """The runs without repeated directories with the same prior. Raises UserError where there are none."""
    unique = list({(run.path.resolve(), run.prior): run for run in map(Run.of, runs)}.values())
    require(len(unique) >= 1, "there are no runs to compare")
    return unique


def comparability(run: Run) -> dict[str, str]:
    """What must be equal for likelihoods to be comparable, by COMPARABILITY_KEYS."""
    data, settings = f"{run.data.name} ({run.data.sha256[:8]})", run.blueprint.settings
    values = data, run.data.binarisation, settings.likelihood, settings.condition
    return dict(zip(COMPARABILITY_KEYS, values, strict=True))


def require_equal(facts: Mapping[Run, Mapping[str, Any]], remedy: str) -> None:
    """Raise UserError unless all runs have equal facts."""
    (first, expected), *others = facts.items()
    for run, actual in others:
        for what, value in expected.items():
            require(
                actual[what] == value,
                f"{run} and {first} cannot be compared: the {what} of one is {actual[what]}, of the other {value}; "
                f"{remedy}",
            )


def group_by_settings(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Group runs by their settings, named by what differs between groups, or by a folder where that is too long."""
    settings = [run_settings(run) for run in runs]
    names = [settings_name(each, settings) for each in settings]
    if max(map(len, names)) > MAX_NAME_LENGTH:
        firsts = [runs[names.index(name)] for name in names]
        names = [f"{run.blueprint.model} ({run})" for run in firsts]
    groups: dict[str, list[Run]] = {}
    for run, name in zip(runs, names, strict=True):
        groups.setdefault(name, []).append(run)
    return groups


def run_settings(run: Run) -> dict[str, Any]:
    """All settings of a run except NOT_SETTINGS, flat by key; "model" is the model's name."""
    settings = {
        "model": run.blueprint.model,
        "objective": run.config.get("objective"),
        "init": run.config.get("init"),
        **model_settings(run.section("model")["settings"]),
        **with_added("training", run.section("training")),
        "fitted prior": read_record(run).name if run.prior == "fitted" else None,
    }
    return {key: value for key, value in settings.items() if key not in NOT_SETTINGS}


def settings_name(settings: Mapping[str, Any], all_settings: Sequence[Mapping[str, Any]]) -> str:
    """The model, and those of its settings that differ from other runs of the model, or that are not its defaults and
    differ from any other run."""
    entry = MODELS.get(settings["model"])
    defaults = {} if entry is None else {**asdict(entry.settings), **asdict(entry.training)}
    words = []
    for key, value in settings.items():
        others = [other for other in all_settings if other.get(key) != value]
        same_model = [other for other in others if other["model"] == settings["model"]]
        # A default of None or "auto" is resolved by the model or the data, not chosen.
        chosen = defaults.get(key) not in (value, None, "auto")
        if key != "model" and value is not None and (same_model or (others and chosen)):
            words.append(f"{key.replace('_', ' ')} {value}")
    return settings["model"] + (": " + ", ".join(words) if words else "")
