"""A training before it is carried out: everything that `vaekit train` takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from ..settings.catalog import model_entry
from ..settings.data import DataConfig, SourceConfig
from ..settings.model import ModelConfig
from ..settings.objective import ObjectiveConfig
from ..settings.presets import preset as named_preset
from ..settings.training import TrainConfig, WatchConfig
from ..support.errors import UserError, closest, override

if TYPE_CHECKING:
    from ..runs.directory import Run

SECTIONS = ("settings", "objective", "data", "training", "watch")


@dataclass(frozen=True)
class Plan:
    """A model by its name in MODELS with its settings, its objective, data and training; `init` is a run to start
    from, `own` the objective that the model or preset has unless told otherwise."""

    model: str
    settings: ModelConfig
    objective: ObjectiveConfig
    data: DataConfig
    training: TrainConfig
    watch: WatchConfig = field(default_factory=WatchConfig)
    init: str | None = None
    own: ObjectiveConfig = field(default_factory=ObjectiveConfig)

    @classmethod
    def of(cls, model: str = "", preset: str = "", **changes: Any) -> Plan:
        """A model, or a preset, with some settings changed, by the names of their flags: `latent_dim=5, epochs=20`.

        Raises UserError for an unknown name or value, and for a preset of another model.
        """
        chosen = named_preset(preset) if preset else None
        if chosen is not None and model not in ("", chosen.model):
            raise UserError(f"the preset {preset} is of the model {chosen.model}, not {model}")
        row = model_entry(model) if chosen is None else chosen.entry
        plain = cls(
            model if chosen is None else chosen.model,
            row.settings,
            row.objective,
            row.data,
            row.training,
            own=row.objective,
        )
        return plain.changed(changes)

    def changed(self, changes: Mapping[str, Any]) -> Plan:
        """The same with other values of some settings."""
        known = {name: section for section in SECTIONS for name in names_of(getattr(self, section))}
        for name in changes:
            if name not in known:
                raise UserError(
                    f"a training of {self.model} has no setting {name!r}{closest(name, known)}"
                )
        parts = {}
        for section in SECTIONS:
            mine = {name: value for name, value in changes.items() if known[name] == section}
            parts[section] = override(getattr(self, section), mine, "the training")
        return replace(self, **parts)

    def train(self, out: str | None = None, name: str = "", progress: bool = True) -> Run:
        """Carry it out. Raises UserError as `train` does."""
        from ..data import load
        from ..model.build import build, make_objective
        from .job import train

        source = {f.name: getattr(self.data, f.name) for f in fields(SourceConfig)}
        data = load(**source, progress=progress)
        built = build(self.model, data, seed=self.training.seed, **asdict(self.settings))
        return train(
            built,
            data,
            objective=make_objective(self.objective, built.blueprint.settings, self.own),
            out=out,
            name=name,
            init=self.init,
            binarisation=self.data.binarisation,
            progress=progress,
            **asdict(self.watch),
            **asdict(self.training),
        )


def names_of(section: Any) -> list[str]:
    return [f.name for f in fields(section)]
