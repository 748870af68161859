"""A run directory: config.json, model.safetensors, metrics.jsonl, state.safetensors, evaluation.json, pictures/.

Everything is safetensors or JSON, so that loading executes no code. Files are replaced atomically, so that an
interruption leaves either the old or the new one intact.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatch
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from ..settings.catalog import model_entry
from ..settings.data import MAX_CLASSES, DataRecord, SourceConfig
from ..settings.model import DISCRETE, Blueprint
from ..settings.training import MonitorConfig, TrainConfig
from ..support.atomic import json_bytes, parse_json, write_bytes, write_json
from ..support.errors import (
    UserError,
    did_you_mean,
    one_line,
    printable,
    record_from_dict,
    require,
    require_folder,
    require_seed,
    settings_from_dict,
    shown,
    with_changes,
)
from ..support.inside import path_inside, read_inside
from ..support.version import __version__
from .schema import (
    LATENT_USE,
    ConfigFile,
    DataSection,
    EpochRecord,
    EvaluationFile,
    ImageCounts,
    StateRecord,
    Versions,
)
from .weights import DAMAGE, weights_bytes

FORMAT = 2
STATE = "state.safetensors"
# The files of a run that only its commands write; `clusters-*.csv` has the ending of tables.
OWN_FILES = ("config.json", "metrics.jsonl", "*.safetensors", "evaluation*.json", "clusters-*")
# Defaults, for older runs, of settings of the model and of the training that were added to format 2.
ADDED_SETTINGS: dict[str, dict[str, Any]] = {
    "settings": {
        "mean": "linear",
        "levels": None,
        "logistics": None,
        "blocks": 2,
        "flow": "affine-coupling",
        "flow_steps": 4,
        "flow_dim": 256,
    },
    "training": {
        "state_every": 30.0,
        "skip_spikes": None,
        "allow_slow": False,
        "augment": None,
        "steps": None,
    },
}
MAX_METRICS_BYTES = 2**28
MAX_PIXELS = 2**26  # of an image, times channels


@dataclass(frozen=True)
class TrainingState:
    """The state of a training: tensors by name, and other values, which JSON can hold, by name."""

    tensors: dict[str, Tensor]
    scalars: dict[str, Any]

    def part(self, name: str) -> dict[str, Tensor]:
        """The tensors `NAME.*`, by the rest of their names."""
        dotted = f"{name}."
        return {k.removeprefix(dotted): t for k, t in self.tensors.items() if k.startswith(dotted)}

    def hash(self) -> str:
        """SHA-256 of scalars and tensors."""
        digest = hashlib.sha256(json.dumps(self.scalars).encode())
        for name, tensor in sorted(self.tensors.items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()


class Run:
    """An existing run directory, which contains all that rebuilding the model needs, and which of its weights to use.

    `weights`: best (on validation), last, or the number of an epoch whose weights `save_every` has saved. `prior`: the
    one of the trained model, or the one that `fit_prior` has fitted to the codes of these weights.
    """

    def __init__(
        self, path: str | Path, weights: str | int = "best", prior: str = "trained"
    ) -> None:
        self.path, self.weights, self.prior = Path(path), parse_weights(weights), prior
        require(
            prior in ("trained", "fitted"),
            f"--prior is {shown(prior)}; it must be trained or fitted",
        )
        require(self._exists(), f"there is no run directory {printable(self.path)}")
        require(
            self.inside("config.json").is_file(),
            f"{self.path} is not a run directory: it has no config.json (`vaekit train` creates one)",
        )

    def _exists(self) -> bool:
        try:
            return self.path.exists()
        except (OSError, ValueError):  # too long a name, or one with a zero byte
            return False

    def inside(self, name: str) -> Path:
        """The path of a file or folder of the run. Raises UserError for a link out of the run, a device or a pipe."""
        return path_inside(self.path, name)

    @classmethod
    def of(cls, run: Run | str | Path) -> Run:
        """The run itself, or that of a path."""
        return run if isinstance(run, Run) else cls(run)

    @classmethod
    def create(cls, path: str | Path | None, stem: str, config: Mapping[str, Any]) -> Run:
        """A new run directory: `path`, or else runs/<stem>-<n> with the first free n.

        Raises UserError where `path` exists: a run is never overwritten; and where it is not UTF-8, since safetensors
        could not open the weights.
        """
        if path is None:
            folder = _create_numbered(Path("runs"), stem)
        else:
            folder = Path(path).expanduser()
            require(
                str(folder).encode(errors="replace").decode() == str(folder),
                f"--out {printable(folder)} is not UTF-8; choose another name",
            )
            try:
                folder.mkdir(parents=True)
            except FileExistsError:
                raise UserError(
                    f"--out {folder} exists already; choose another name, or remove it"
                ) from None
        try:
            write_json(folder / "config.json", config)
        except OSError:
            folder.rmdir()  # leave no empty run behind on a full disk
            raise
        return cls(folder)

    def __str__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @property
    def weights_path(self) -> Path:
        """The file of the weights; the last ones are part of the state of the training."""
        if self.weights == "last":
            return self.inside(STATE)
        return self._file_of_weights("model.safetensors")

    @property
    def fitted_prior_path(self) -> Path:
        """The file of the prior that is fitted to the codes of the chosen weights."""
        return self._file_of_weights("fitted_prior.safetensors")

    def file(self, name: str) -> Path:
        """The path of a file that is of the chosen weights and prior: NAME for the best weights and the trained prior,
        else such as evaluation-last.json, evaluation-fitted.json or evaluation-last-fitted.json."""
        return self._file_of_weights(name, "" if self.prior == "trained" else "-fitted")

    def _file_of_weights(self, name: str, ending_of_stem: str = "") -> Path:
        stem, dot, ending = name.rpartition(".")
        suffix = "" if self.weights == "best" else f"-{self.weights}"
        return self.inside(f"{stem}{suffix}{ending_of_stem}{dot}{ending}")

    @property
    def weights_arguments(self) -> str:
        """The words that name the run and its weights on the command line."""
        chosen = "" if self.weights == "best" else f" --weights {self.weights.lstrip('0')}"
        return shlex.quote(str(self.path)) + chosen

    @property
    def arguments(self) -> str:
        """The words that name the run, its weights and its prior on the command line."""
        return self.weights_arguments + " --prior fitted" * (self.prior == "fitted")

    @property
    def pictures(self) -> Path:
        """The folder of pictures, created if necessary."""
        return self.picture_folder("")

    def picture_folder(self, name: str) -> Path:
        """A folder in that of the pictures, created if necessary."""
        folder = self.inside(f"pictures/{name}")
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @cached_property
    def config(self) -> dict[str, Any]:
        """The content of config.json. Raises UserError for another format, and for values of another type."""
        return _parse_config(read_inside(self.path, "config.json"), str(self.path / "config.json"))

    @classmethod
    def check_config(cls, config: Mapping[str, Any], blueprint: Blueprint) -> None:
        """Raise UserError unless config.json with this content can be read back, and describes the same model.

        To be called before a training, which would else end in a run that cannot be loaded.
        """
        run = cls.__new__(cls)
        run.path, run.weights, run.prior = Path("the new run"), "best", "trained"
        run.config = _parse_config(json_bytes(config), f"{run}, config.json")
        _ = run.data, run.source, run.training, run.monitor
        require(
            run.blueprint == blueprint,
            f"the settings of {blueprint.model!r} do not survive being written to config.json; use numbers, texts, "
            "true, false and lists",
        )

    def section(self, name: str) -> dict[str, Any]:
        """An object in config.json by its key. Raises UserError where it is missing."""
        value = self.config.get(name)
        if not isinstance(value, dict):
            raise UserError(f"config.json of {self.path} lacks the object {name!r}")
        return value

    @property
    def blueprint(self) -> Blueprint:
        """The specification of the model. Raises UserError where that in config.json is missing or wrong."""
        section = self.section("model")
        try:
            return self._blueprint(section)
        except UserError as error:
            raise UserError(f"{self.path / 'config.json'}: {error}") from None

    def _blueprint(self, section: dict[str, Any]) -> Blueprint:
        name, shape, settings = (section.get(key) for key in ("name", "shape", "settings"))
        if not isinstance(name, str) or not isinstance(settings, dict):
            raise UserError("the model has no name or no settings")
        if not (
            isinstance(shape, list)
            and len(shape) == 3
            and all(type(n) is int and 1 <= n <= 2**16 for n in shape)
        ):
            raise UserError(f"the model's shape is {shown(shape)}; it must be [C, H, W]")
        require(
            math.prod(shape) <= MAX_PIXELS,
            f"the model's images have {math.prod(shape):,} pixels; {MAX_PIXELS:,} are possible",
        )
        require_seed(section.get("seed"))
        classes: Any = section.get("classes")
        require(
            type(classes) is int and 0 <= classes <= MAX_CLASSES,
            f"the model's classes are {shown(classes)}; they must be a whole number up to {MAX_CLASSES:,}",
        )
        config = settings_from_dict(
            type(model_entry(name).settings), model_settings(settings), "the model"
        )
        return Blueprint(name, (shape[0], shape[1], shape[2]), config, section["seed"], classes)

    @cached_property
    def class_names(self) -> list[str]:
        """The name of each class; its number where it has none."""
        names = [str(name) for name in self.section("data").get("classes") or ()]
        return pad_with_numbers(names, self.blueprint.classes)

    def label_number(self, label: int | str) -> int:
        """The number of a class by its name or number; a text is a number only where no class has that name.

        Raises UserError for an unknown class, and where the model is not conditional on labels.
        """
        names, blueprint = self.class_names[: self.blueprint.classes], self.blueprint
        require(
            blueprint.settings.condition == "label",
            f"--label needs a model with --condition label; this {blueprint.model} has none",
        )
        if isinstance(label, str) and label in names:
            return names.index(label)
        number = int(label) if str(label).isdecimal() else -1
        known = ""
        if names != [*map(str, range(len(names)))]:
            known = ": " + ", ".join(map(printable, names[:10])) + ", ..." * (len(names) > 10)
        require(
            0 <= number < len(names),
            f"--label is {printable(label)}; the model's labels are 0 to {len(names) - 1}{known}"
            + did_you_mean(str(label), names),
        )
        return number

    @property
    def data(self) -> DataRecord:
        """The record of the data that the model was trained on."""
        return record_from_dict(DataRecord, self.section("data"), str(self.path / "config.json"))

    @property
    def source(self) -> SourceConfig | None:
        """The settings that load the data again; None where they were arrays."""
        section, where = self.section("data"), str(self.path / "config.json")
        if "source" not in section:  # runs of 0.1, before data sets had settings
            return with_changes(
                SourceConfig(),
                {"data": section.get("name"), "data_dir": section.get("data_dir")},
                where,
            )
        source = section["source"]
        if source is None:
            return None
        require(isinstance(source, dict), f"{where} is damaged (its source is not an object)")
        return with_changes(SourceConfig(), source, where)

    @property
    def training(self) -> TrainConfig:
        """The settings of the training."""
        where = str(self.path / "config.json")
        return settings_from_dict(
            TrainConfig, with_added("training", self.section("training")), where
        )

    @property
    def monitor(self) -> MonitorConfig:
        """The monitoring settings of the training."""
        name = "watch" if "watch" in self.config else "monitor"  # its name before November 2026
        where = str(self.path / "config.json")
        return settings_from_dict(MonitorConfig, self.section(name), where)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The epochs of metrics.jsonl, oldest first, without a last line that was cut off by an interruption."""
        path = self.inside("metrics.jsonl")
        require(path.is_file(), f"{path} is missing; the run has no finished epoch")
        *lines, _ = read_inside(self.path, path.name, MAX_METRICS_BYTES).split(b"\n")
        epochs = [_parse_epoch(line, f"{path}, line {n}") for n, line in enumerate(lines, 1)]
        _check_sizes(epochs, str(path))
        return epochs

    @property
    def best(self) -> dict[str, Any]:
        """The epoch of the saved weights."""
        best = [epoch for epoch in self.metrics if epoch.get("best")]
        require(len(best) > 0, f"{self} has no finished epoch; train the model again")
        return best[-1]

    @property
    def evaluation(self) -> dict[str, Any]:
        """The content of evaluation.json. Raises UserError where the run has not been evaluated."""
        path = self.file("evaluation.json")
        require(
            path.is_file(),
            f"{self} has not been evaluated yet; first: vaekit evaluate {self.arguments}",
        )
        evaluation = parse_json(read_inside(self.path, path.name), str(path))
        record_from_dict(EvaluationFile, evaluation, str(path))
        return evaluation

    def append_metrics(self, epoch: Mapping[str, Any]) -> None:
        """Append a line to metrics.jsonl, with null for infinities and NaN, which JSON lacks."""
        with self.inside("metrics.jsonl").open("a") as file:
            file.write(json.dumps(_finite(epoch), allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def truncate_metrics(self, epochs: int) -> list[dict[str, Any]]:
        """Truncate metrics.jsonl to its first `epochs` lines, and return them.

        Raises UserError where there are fewer.
        """
        path = self.inside("metrics.jsonl")
        lines = self.metrics if epochs or path.exists() else []
        require(
            [line.get("epoch") for line in lines[:epochs]] == [*range(1, epochs + 1)],
            f"{path} lacks some of the {epochs} epochs of {self}; restore it, or train again",
        )
        if path.exists():
            content = read_inside(self.path, path.name, MAX_METRICS_BYTES).split(b"\n")[:epochs]
            write_bytes(path, b"".join(line + b"\n" for line in content))
        return lines[:epochs]

    def update_config(self, name: str, section: Mapping[str, Any]) -> None:
        """Replace an object in config.json."""
        write_json(self.path / "config.json", {**self.config, name: section})
        del self.config

    def save_state(self, state: TrainingState) -> None:
        """Write the checkpoint of the training, in place of the last one."""
        tensors = {name: tensor.contiguous() for name, tensor in state.tensors.items()}
        metadata = {"state": json.dumps(state.scalars), "sha256": state.hash()}
        write_bytes(self.path / STATE, safetensors.torch.save(tensors, metadata))

    def load_state(self) -> TrainingState:
        """Read the checkpoint of the training. Raises UserError where it is missing or damaged."""
        path = self.inside(STATE)
        require(
            path.is_file(),
            f"{path} is missing: the training has saved no checkpoint; train again, or start a new training from its "
            f"weights with --init {self}",
        )
        try:
            with safetensors.safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            state = TrainingState(tensors, json.loads(metadata.get("state", "")))
            require(state.hash() == metadata.get("sha256"), "its hash differs")
            require(not any(t.is_complex() for t in tensors.values()), "it has complex numbers")
            record_from_dict(StateRecord, state.scalars, "its progress")
        except (*DAMAGE, RecursionError) as error:
            raise UserError(
                f"{path} is damaged ({one_line(error)}); restore it, or start a new training from its weights with "
                f"--init {self}"
            ) from None
        return state

    def save_weights(self, model: nn.Module, name: str = "model") -> None:
        """Write the weights of a model to `name`.safetensors."""
        write_bytes(self.path / f"{name}.safetensors", weights_bytes(model.state_dict()))


def run_config(blueprint: Blueprint, sections: Mapping[str, Any]) -> dict[str, Any]:
    """The content of config.json: versions, the model, and the `sections` of its training."""
    return {
        "format": FORMAT,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "versions": {
            "vaekit": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "git": git_revision(),
        },
        "model": {
            "name": blueprint.model,
            "shape": list(blueprint.shape),
            "settings": vars(blueprint.settings),
            "seed": blueprint.seed,
            "classes": blueprint.classes,
        },
        **sections,
    }


@cache
def git_revision() -> str | None:
    """The revision of vaekit's git checkout, with -dirty if changed; None where it is not installed from one."""

    def git(*arguments: str) -> str:
        folder = Path(__file__).parent
        done = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        # It may also be the checkout of a project that uses vaekit.
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None


def require_output(path: Path, endings: Iterable[str]) -> None:
    """Raise UserError unless `path` may be written: one of these endings, in a folder that exists, and no file that
    makes up a run."""
    require(
        path.suffix.lower() in endings and not path.is_dir(),
        f"cannot write {path}: its ending must be one of {', '.join(endings)}",
    )
    require_folder(path)
    whole = path.resolve()
    own = any(fnmatch(whole.name.lower(), pattern) for pattern in OWN_FILES)
    require(
        not (own and (whole.parent / "config.json").exists()),
        f"cannot write {path}: it is a file of the run itself; choose another name",
    )


def with_added(part: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of an older run, "settings" of the model or "training", with those that were added since."""
    return {**ADDED_SETTINGS[part], **settings}


def model_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the model of an older run, with those that were added since: its discrete pixels had 8 bits."""
    levels = {"levels": 256} if settings.get("likelihood") in DISCRETE else {}
    return with_added("settings", {**levels, **settings})


def pad_with_numbers(names: Sequence[str], count: int) -> list[str]:
    """At least `count` names of classes: the number of each that has none."""
    return [*names, *map(str, range(len(names), count))]


def parse_weights(weights: str | int) -> str:
    """ "best", "last" or an epoch as four digits or more. Raises UserError for anything else."""
    text = str(weights)
    require(
        re.fullmatch("best|last|[0-9]{1,9}", text) is not None,
        f"--weights is {text[:40]!r}; it must be best, last or the number of an epoch",
    )
    return f"{int(text):04d}" if text.isdigit() else text


def _parse_config(content: bytes, where: str) -> dict[str, Any]:
    """The checked content of config.json."""
    config = parse_json(content, where)
    version = config.get("format")
    require(
        type(version) is int and version == FORMAT,
        f"{where} has format {shown(version)}, but this vaekit ({__version__}) reads {FORMAT}"
        + (
            "; use a newer vaekit"
            if isinstance(version, int) and version > FORMAT
            else "; train the model again"
        ),
    )
    record_from_dict(ConfigFile, config, where)
    record_from_dict(Versions, config["versions"], f"{where}, versions")
    record_from_dict(DataSection, config["data"], f"{where}, data")
    record_from_dict(ImageCounts, config["data"]["images"], f"{where}, images")
    return config


def _parse_epoch(line: bytes, where: str) -> dict[str, Any]:
    """A checked line of metrics.jsonl."""
    epoch = parse_json(line, where)
    record_from_dict(EpochRecord, epoch, where)
    measured = {"active_units", "latent_units"} & epoch.keys()
    missing = sorted(LATENT_USE - epoch.keys()) if measured else []
    require(not missing, f"{where} lacks {', '.join(missing)}; restore it")
    return epoch


def _check_sizes(epochs: list[dict[str, Any]], where: str) -> None:
    """Raise UserError where the KL per dimension of a latent has another number of dimensions than in other epochs."""
    sizes: dict[str, int] = {}
    for epoch in epochs:
        for key in ("kl_per_dimension", "marginal_kl_per_dimension"):
            for name, values in (epoch.get(key) or {}).items():
                require(
                    len(values) == sizes.setdefault(name, len(values)),
                    f"{where}: {key} of epoch {epoch['epoch']} has another number of dimensions than others",
                )


def _finite(value: Any) -> Any:
    """A JSON value with null for infinities and NaN, which JSON lacks."""
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _create_numbered(parent: Path, stem: str) -> Path:
    """Create the folder parent/<stem>-<n> with the first free n; mkdir is atomic, so no two processes get the same."""
    parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        folder = parent / f"{stem}-{number}"
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            number += 1
