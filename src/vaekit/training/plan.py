"""The full specification of a training: everything that `vaekit train` takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from ..settings.catalog import model_entry
from ..settings.data import DataConfig, SourceConfig
from ..settings.model import ModelConfig
from ..settings.objective import ObjectiveConfig
from ..settings.presets import preset as named_preset
from ..settings.training import MonitorConfig, TrainConfig, require_one_length
from ..support.errors import UserError, did_you_mean, with_changes

if TYPE_CHECKING:
    from ..runs.directory import Run

SECTIONS = ("settings", "objective", "data", "training", "monitor")


@dataclass(frozen=True)
class Plan:
    """The specification of a training: a model by its name in MODELS, and settings. `init` is a run whose weights to
    start from, `default_objective` the objective of the model or preset itself."""

    model: str
    settings: ModelConfig
    objective: ObjectiveConfig
    data: DataConfig
    training: TrainConfig
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    init: str | None = None
    default_objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)

    @classmethod
    def of(cls, model: str = "", preset: str = "", **changes: Any) -> Plan:
        """The plan of a model or preset, with some settings changed by name, such as `latent_dim=5, epochs=20`.

        Raises UserError for an unknown name or value, and for a preset of another model.
        """
        chosen = named_preset(preset) if preset else None
        if chosen is not None and model not in ("", chosen.model):
            raise UserError(f"the preset {preset} is of the model {chosen.model}, not {model}")
        entry = model_entry(model) if chosen is None else chosen.entry
        default = cls(
            model if chosen is None else chosen.model,
            entry.settings,
            entry.objective,
            entry.data,
            entry.training,
            default_objective=entry.objective,
        )
        return default.changed(changes)

    def changed(self, changes: Mapping[str, Any]) -> Plan:
        """A copy with some settings changed. Raises UserError for an unknown name or value."""
        require_one_length([name for name, value in changes.items() if value is not None])
        known = {
            name: section for section in SECTIONS for name in field_names(getattr(self, section))
        }
        for name in changes:
            if name not in known:
                raise UserError(
                    f"a training of {self.model} has no setting {name!r}{did_you_mean(name, known)}"
                )
        parts = {}
        for section in SECTIONS:
            values = {name: value for name, value in changes.items() if known[name] == section}
            parts[section] = with_changes(getattr(self, section), values, "the training")
        return replace(self, **parts)

    def train(self, out: str | None = None, name: str = "", progress: bool = True) -> Run:
        """Build the model and train it. Raises UserError as `vaekit.train` does."""
        from ..data import load
        from ..data.duplicates import duplicates_at_hand
        from ..model.build import build, make_objective
        from ..support.console import ProgressBar
        from .job import train

        source = {f.name: getattr(self.data, f.name) for f in fields(SourceConfig)}
        data = load(**source, progress=progress)
        for sentence in duplicates_at_hand(data):
            ProgressBar(progress).log(sentence)
        training = asdict(self.training)
        if self.training.steps is not None:
            del training["epochs"]
        built = build(self.model, data, seed=self.training.seed, **asdict(self.settings))
        return train(
            built,
            data,
            objective=make_objective(
                self.objective, built.blueprint.settings, self.default_objective
            ),
            out=out,
            name=name,
            init=self.init,
            binarisation=self.data.binarisation,
            progress=progress,
            **asdict(self.monitor),
            **training,
        )


def field_names(section: Any) -> list[str]:
    """The names of the settings in a section."""
    return [f.name for f in fields(section)]
