"""A run directory: config.json, model.safetensors, metrics.jsonl, state.safetensors, evaluation.json, pictures/.

The only room that writes to a run. Everything is safetensors or JSON, so that loading executes nothing; a file is
replaced in one step, so that a kill leaves the old one or the new one whole.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from ..settings.catalog import model_entry
from ..settings.data import DataRecord, SourceConfig
from ..settings.model import Blueprint
from ..settings.training import TrainConfig, WatchConfig
from ..support.atomic import parse_json, write, write_json
from ..support.errors import UserError, from_dict, one_line, override, require, require_seed
from ..support.version import __version__

FORMAT = 2
STATE = "state.safetensors"
# Settings of the training that came after format 2 began, as runs of before them are to be read.
ADDED = {"state_every": 30.0, "skip_spikes": None}


@dataclass(frozen=True)
class State:
    """A training at one moment: tensors by name, and numbers that JSON can hold."""

    tensors: dict[str, Tensor]
    numbers: dict[str, Any]

    def part(self, name: str) -> dict[str, Tensor]:
        """The tensors NAME.*, by the rest of their names."""
        dotted = f"{name}."
        return {k.removeprefix(dotted): t for k, t in self.tensors.items() if k.startswith(dotted)}

    def hash(self) -> str:
        """SHA-256 of all of it."""
        digest = hashlib.sha256(json.dumps(self.numbers).encode())
        for name, tensor in sorted(self.tensors.items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()


class Run:
    """A run directory that exists. It alone rebuilds the model."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        require(self.path.exists(), f"there is no run directory {self.path}")
        require(
            (self.path / "config.json").is_file(),
            f"{self.path} is no run directory: it has no config.json (`vaekit train` makes one)",
        )

    @classmethod
    def of(cls, run: Run | str | Path) -> Run:
        return run if isinstance(run, Run) else cls(run)

    @classmethod
    def create(cls, path: str | Path | None, stem: str, config: Mapping[str, Any]) -> Run:
        """A new run directory: `path`, or else runs/<stem>-<n> with the first free n.

        Raises UserError where `path` is taken: a run is never written over.
        """
        if path is None:
            folder = _first_free(Path("runs"), stem)
        else:
            folder = Path(path).expanduser()
            try:
                folder.mkdir(parents=True)
            except FileExistsError:
                raise UserError(
                    f"--out {folder} exists already; choose a new name, or remove it"
                ) from None
        try:
            write_json(folder / "config.json", config)
        except OSError:
            folder.rmdir()  # a full disk leaves no empty run behind
            raise
        return cls(folder)

    def __str__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @property
    def weights_path(self) -> Path:
        """The weights that did best on validation."""
        return self.path / "model.safetensors"

    @property
    def pictures(self) -> Path:
        folder = self.path / "pictures"
        folder.mkdir(exist_ok=True)
        return folder

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json, its format checked."""
        path = self.path / "config.json"
        config = parse_json(path.read_bytes(), str(path))
        found = config.get("format")
        require(
            type(found) is int and found == FORMAT,
            f"{path} has format {found!r} and this vaekit ({__version__}) reads {FORMAT}"
            + (
                "; use a newer vaekit"
                if isinstance(found, int) and found > FORMAT
                else "; train the model again"
            ),
        )
        return config

    def section(self, name: str) -> dict[str, Any]:
        """An object of config.json by its key."""
        value = self.config.get(name)
        if not isinstance(value, dict):
            raise UserError(f"config.json of {self.path} lacks the object {name!r}")
        return value

    @property
    def blueprint(self) -> Blueprint:
        """What the model is built from. Raises UserError where config.json does not say it, or wrongly."""
        try:
            return self._blueprint(self.section("model"))
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
            raise UserError(f"the model's shape is {shape!r}; it must be [C, H, W]")
        require_seed(section.get("seed"))
        classes: Any = section.get("classes")
        require(
            type(classes) is int and 0 <= classes <= 2**20,
            f"the model's classes are {classes!r}; they must be a whole number",
        )
        config = from_dict(type(model_entry(name).settings), settings, "the model")
        return Blueprint(name, (shape[0], shape[1], shape[2]), config, section["seed"], classes)

    @property
    def data(self) -> DataRecord:
        """Which data it was trained on."""
        section = self.section("data")
        kept = {f.name: section[f.name] for f in fields(DataRecord) if f.name in section}
        return from_dict(DataRecord, kept, str(self.path / "config.json"))

    @property
    def source(self) -> SourceConfig | None:
        """How to find these data again; None where they were arrays."""
        section, where = self.section("data"), str(self.path / "config.json")
        if "source" not in section:  # runs of 0.1 before data sets had settings
            return override(
                SourceConfig(),
                {"data": section.get("name"), "data_dir": section.get("data_dir")},
                where,
            )
        source = section["source"]
        if source is None:
            return None
        require(isinstance(source, dict), f"{where} is damaged (its source is no object)")
        return override(SourceConfig(), source, where)

    @property
    def training(self) -> TrainConfig:
        """The settings of its training."""
        where = str(self.path / "config.json")
        return from_dict(TrainConfig, {**ADDED, **self.section("training")}, where)

    @property
    def watch(self) -> WatchConfig:
        """What was to be drawn and logged meanwhile."""
        return from_dict(WatchConfig, self.section("watch"), str(self.path / "config.json"))

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The epochs of metrics.jsonl, oldest first; a last line cut short by a kill is left out."""
        path = self.path / "metrics.jsonl"
        require(path.is_file(), f"{path} is missing; the run has no finished epoch")
        *whole, _ = path.read_bytes().split(b"\n")
        return [parse_json(line, f"{path}, line {n}") for n, line in enumerate(whole, 1)]

    @property
    def best(self) -> dict[str, Any]:
        """The epoch whose weights are kept."""
        found = [epoch for epoch in self.metrics if epoch.get("best")]
        require(len(found) > 0, f"{self} has no finished epoch; train the model again")
        return found[-1]

    @property
    def evaluation(self) -> dict[str, Any]:
        """What `evaluate` wrote. Raises UserError where it has not."""
        path = self.path / "evaluation.json"
        require(path.is_file(), f"{self} is not evaluated yet; first: vaekit evaluate {self}")
        return parse_json(path.read_bytes(), str(path))

    def append_metrics(self, epoch: Mapping[str, Any]) -> None:
        """Add a line to metrics.jsonl; JSON has no infinity and no NaN, so these become null."""
        finite = {k: None if v != v or v in (math.inf, -math.inf) else v for k, v in epoch.items()}
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(finite) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def cut_metrics(self, epochs: int) -> list[dict[str, Any]]:
        """Take away all lines of metrics.jsonl but the first `epochs`, which are returned.

        Raises UserError where there are fewer.
        """
        path = self.path / "metrics.jsonl"
        lines = self.metrics if epochs or path.exists() else []
        require(
            [line.get("epoch") for line in lines[:epochs]] == [*range(1, epochs + 1)],
            f"{path} lacks some of the {epochs} epochs that {self} has had; restore it, or train again",
        )
        if path.exists():
            kept = path.read_bytes().split(b"\n")[:epochs]
            write(path, b"".join(line + b"\n" for line in kept))
        return lines[:epochs]

    def change(self, name: str, section: Mapping[str, Any]) -> None:
        """Put another object into config.json."""
        write_json(self.path / "config.json", {**self.config, name: section})
        del self.config

    def save_state(self, state: State) -> None:
        """Replace the training's last state."""
        tensors = {name: tensor.contiguous() for name, tensor in state.tensors.items()}
        about = {"state": json.dumps(state.numbers), "sha256": state.hash()}
        write(self.path / STATE, safetensors.torch.save(tensors, about))

    def load_state(self) -> State:
        """The training's last state. Raises UserError where there is none, or it is damaged."""
        path = self.path / STATE
        require(
            path.is_file(),
            f"{path} is missing: the training kept no state; train again, or begin another from its weights with "
            f"--init {self}",
        )
        try:
            with safetensors.safe_open(path, "pt") as file:
                about = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            state = State(tensors, json.loads(about.get("state", "")))
            require(state.hash() == about.get("sha256"), "its hash differs")
        except (safetensors.SafetensorError, OSError, ValueError, RecursionError) as error:
            raise UserError(
                f"{path} is damaged ({one_line(error)}); restore it, or begin another training from its weights with "
                f"--init {self}"
            ) from None
        return state

    def save_weights(self, model: nn.Module, name: str = "model") -> None:
        tensors = {key: value.contiguous() for key, value in model.state_dict().items()}
        write(self.path / f"{name}.safetensors", safetensors.torch.save(tensors))


def describe(blueprint: Blueprint, about: Mapping[str, Any]) -> dict[str, Any]:
    """The content of config.json: the model, `about` its training, and what it was made with."""
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
        **about,
    }


@cache
def git_revision() -> str | None:
    """The revision of vaekit's own git checkout, -dirty if changed; None where it was installed otherwise."""

    def git(*arguments: str) -> str:
        folder = Path(__file__).parent
        done = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # not a project that only uses it
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill a model from a safetensors file. Raises UserError where it is missing, damaged or does not fit."""
    require(path.is_file(), f"{path} is missing; the run has not saved any weights yet")
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is damaged ({one_line(error)}); train again, or restore it"
        ) from None
    wanted = model.state_dict()
    for name in sorted(wanted.keys() ^ tensors.keys()):
        owner = "the model has" if name in wanted else "the file has"
        raise UserError(f"{path} does not fit the model: only {owner} {name}")
    for name, value in wanted.items():
        found = tuple(tensors[name].shape)
        require(
            found == tuple(value.shape),
            f"{path} does not fit the model: {name} has shape {found}, not {tuple(value.shape)}",
        )
    model.load_state_dict(tensors)


def _first_free(parent: Path, stem: str) -> Path:
    """A new folder parent/<stem>-<n>. mkdir is the claim, so two processes never get the same one."""
    parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        folder = parent / f"{stem}-{number}"
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            number += 1
