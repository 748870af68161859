"""`plan`: a training proposed for a data set and this machine, each setting with its reason."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import statistics
import textwrap
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..data import Dataset, eval_split
from ..data.dataset import Batch, class_sizes
from ..data.duplicates import at_hand, count_copies, find_duplicates
from ..data.loading import find_path, load
from ..data.sources.catalog import parse_name
from ..data.summary import image_sizes, two_tone_share
from ..likelihood.validation import validate
from ..model.build import build, make_objective
from ..settings import planning
from ..settings.data import SourceConfig
from ..settings.planning import Choice, Facts
from ..settings.training import TrainConfig
from ..support.atomic import write_bytes
from ..support.console import ProgressBar, format_duration
from ..support.devices import (
    bfloat16_slowdown,
    describe_machine,
    fast_training,
    resolve_device,
    seeded,
)
from ..support.errors import UserError, printable, require, require_folder, with_changes
from ..support.version import __version__
from ..support.warnings import MIN_STEPS
from ..training.learner import Learner
from ..training.loop import train_epochs
from ..training.plan import Plan
from ..training.preflight import check_training, resolve_binarisation
from ..training.step import kl_warmup_weight

MEASURED_SECONDS = 3.0  # of steps after the first, of which there is at least one
VALIDATED_IMAGES = 128
WIDTH = 110  # of the comments in a file


@dataclass(frozen=True)
class Speed:
    """Measured seconds of a step and of the validation after an epoch."""

    step: float
    validation: float

    def each(self, config: TrainConfig, images: int) -> float:
        """Seconds of a step with its share of the validation, in a training of `steps` on so many images."""
        return self.step + self.validation / config.steps_per_epoch(images)


@dataclass(frozen=True)
class Proposal:
    """A proposed training: its model and settings with their reasons, by name; what was seen of the data and the
    machine; warnings; and the seconds that it is expected to take."""

    choices: Mapping[str, Choice]
    seen: tuple[str, ...]
    warnings: tuple[str, ...]
    seconds: float

    @property
    def plan(self) -> Plan:
        """The specification of the training: `proposal.plan.train()` carries it out."""
        return Plan.of(**{name: choice.value for name, choice in self.choices.items()})

    def toml(self) -> str:
        """The file for `vaekit train --config`: the settings, with what was seen and the reasons as comments."""
        import tomlkit

        document = tomlkit.document()
        said = [
            f"A plan of vaekit {__version__}; expected time {format_duration(self.seconds)}, from steps measured here",
            *self.seen,
            *(f"WARNING: {text}" for text in self.warnings),
            f"Each line is a flag of `vaekit train {self.choices['model'].value} --help`; change them as you like.",
        ]
        for text in said:
            add_comment(document, text)
        for name, choice in self.choices.items():
            document.add(tomlkit.nl())
            add_comment(document, choice.reason)
            document.add(name, tomlkit.item(choice.value))
        return tomlkit.dumps(document)

    def write(self, path: str | Path) -> Path:
        """Write the file, which must not exist. Raises UserError."""
        path = Path(path)
        check_new(path)
        write_bytes(path, self.toml().encode())
        return path


def add_comment(document: Any, text: str) -> None:
    import tomlkit

    for line in textwrap.wrap(printable(text), WIDTH, break_long_words=False):
        document.add(tomlkit.comment(line))


def check_new(path: Path) -> None:
    """Raise UserError unless a plan can be written there, without replacing a file."""
    require(path.suffix == ".toml", f"--out {printable(path)} must end in .toml")
    require(
        not path.exists(),
        f"--out {printable(path)} exists already; remove it, or choose another name",
    )
    require_folder(path)


def plan(
    data: str | Path | Dataset = "mnist",
    minutes: float = 10.0,
    *,
    out: str | Path | None = None,
    device: str = "auto",
    progress: bool = True,
    **settings: Any,
) -> Proposal:
    """Propose a training of so many minutes for a data set and this machine, and write it to `out`, if given.

    `settings` are those of `load_data`, such as `size`; what they leave open is proposed. A few steps are made to
    measure their time, some seconds for each model in question. The rules are in settings/planning.py. Raises UserError
    for data that cannot be loaded or trained on, and for an `out` that exists.
    """
    require(
        isinstance(minutes, int | float) and 0 < minutes < math.inf,
        f"--minutes is {minutes}; it must be a positive number",
    )
    if out is not None:
        check_new(Path(out))
    bar, target = ProgressBar(progress), resolve_device(device)
    dataset, choices = load_for_plan(data, settings, progress)
    facts = facts_of(dataset)
    sizes = class_sizes(dataset)
    copies = count_copies(dataset) if at_hand(dataset) else 0
    warnings = planning.warnings_of(facts, sizes, copies)
    if copies:
        warnings += find_duplicates(dataset)
    for rule in planning.fitting(facts):
        chosen = {
            "model": rule.model,
            **choices,
            **rule.settings(facts),
            "likelihood": planning.choose_likelihood(facts),
        }
        bar.log(f"measuring the steps of a {rule.model.value} on {target} ...")
        precision, speed, config = measure(dataset, chosen, device)
        steps, seconds = fit_steps(speed, config, facts.images, 60 * minutes)
        if steps >= rule.least_steps:
            break
    if steps < MIN_STEPS:
        number = f"{steps:,} step{'s' * (steps != 1)}"
        warnings.append(f"only {number}, too few to learn much; give more --minutes")
    chosen["precision"] = precision
    each = speed.each(config, facts.images)
    chosen["steps"] = Choice(
        steps, planning.reason_for_steps(steps, facts, config.batch_size, minutes, each)
    )
    proposal = Proposal(
        chosen,
        (f"Data: {describe(dataset, sizes)}", f"Machine: {describe_machine(target)}"),
        tuple(warnings),
        seconds,
    )
    if out is not None:
        proposal.write(out)
    return proposal


def load_for_plan(
    data: str | Path | Dataset, settings: Mapping[str, Any], progress: bool
) -> tuple[Dataset, dict[str, Choice]]:
    """The data set, of the size in which it is to be trained, and the settings that load it again."""
    if isinstance(data, Dataset):
        require(
            not settings,
            "the settings of a Dataset are fixed; pass the path or the name of the data",
        )
        given, dataset, size = data.source, data, None
    else:
        size = None
        path = find_own_images(data, settings.get("data_dir"))
        if path is not None and settings.get("size") is None:
            known = {k: v for k, v in settings.items() if k in ("pages", "skip_bad")}
            size = planning.choose_size(
                image_sizes(path, with_changes(SourceConfig(), known, "plan()"))
            )
        wanted = dict(settings) | ({} if size is None else {"size": size.value})
        dataset = load(data, progress=progress, **wanted)
        if size is None and settings.get("size") is None and path is not None:
            size = planning.choose_size([dataset.shape[1:]])  # of arrays
            if size is not None:
                dataset = load(data, progress=False, **settings, size=size.value)
        given = dataset.source
    if given is None:
        return dataset, {}
    choices = {
        field.name: Choice(getattr(given, field.name), "as given")
        for field in dataclasses.fields(SourceConfig)
        if getattr(given, field.name) != field.default
    }
    moved = isinstance(data, Dataset) or settings.get("data_dir") is not None
    choices["data"] = Choice(given.data if moved else str(data), "as given")
    if size is not None:
        choices["size"] = size
    return dataset, {"data": choices.pop("data"), **choices}


def find_own_images(data: str | Path, data_dir: str | Path | None) -> Path | None:
    """The path of the user's own images; None for a named data set. Raises UserError."""
    if isinstance(data, str) and parse_name(data) is not None:
        return None
    return find_path(str(data), data_dir).resolve()


def facts_of(dataset: Dataset) -> Facts:
    channels, height, width = dataset.shape
    return Facts(
        len(dataset.train),
        channels,
        height,
        width,
        dataset.levels,
        two_tone_share(dataset),
        dataset.black_and_white,
    )


def describe(dataset: Dataset, sizes: Mapping[str, int]) -> str:
    """A data set in words."""
    channels, height, width = dataset.shape
    counts = ", ".join(f"{len(split):,} of {name}" for name, split in dataset.splits.items())
    colour = {1: "grey", 3: "colour"}.get(channels, f"{channels} channels")
    classes = (
        f", {len(sizes)} classes of {min(sizes.values()):,} to {max(sizes.values()):,}"
        if sizes
        else ""
    )
    levels = "floats" if dataset.levels is None else f"{dataset.levels:,} levels"
    return f"images {counts}; {height} x {width} pixels, {colour}, {levels}{classes}"


def fit_steps(speed: Speed, config: TrainConfig, images: int, seconds: float) -> tuple[int, float]:
    """The steps that fit into so many seconds, as two digits, in at most MOST_PASSES; and the seconds they take."""
    each = speed.each(config, images)
    steps = planning.STEPS_SHARE * seconds / each
    steps = min(steps, planning.MOST_PASSES * math.ceil(images / config.batch_size))
    unit = 10 ** max(0, math.floor(math.log10(max(1.0, steps))) - 1)
    count = max(1, int(steps // unit * unit))
    return count, count * each / planning.STEPS_SHARE


def measure(
    dataset: Dataset, choices: Mapping[str, Choice], device: str
) -> tuple[Choice, Speed, TrainConfig]:
    """The faster precision that this model can be trained in here, its speed, and the settings of the training."""
    changes = {name: choice.value for name, choice in choices.items()}
    wanted = Plan.of(**changes, compile="no", device=device, steps=2**30)
    float32, config = measured(wanted, dataset)
    if not has_bfloat16(resolve_device(device)):
        return Choice("float32", "bfloat16 is not fast on this processor"), float32, config
    try:
        bfloat16, _ = measured(wanted.changed({"precision": "bfloat16"}), dataset)
    except UserError as error:
        return Choice("float32", str(error)), float32, config
    timed = f"a step takes {bfloat16.step:.3g} s in bfloat16 and {float32.step:.3g} s in float32, measured here"
    if bfloat16.step <= planning.FASTER * float32.step:
        return Choice("bfloat16", timed), bfloat16, config
    return Choice("float32", timed), float32, config


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device computes in bfloat16 about as fast as in float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return device.type == "cpu" and bfloat16_slowdown() <= 1


class Enough(Exception):
    """Enough steps have been made."""


def measured(wanted: Plan, dataset: Dataset) -> tuple[Speed, TrainConfig]:
    """The speed of a training, from its first steps, and its settings. Raises UserError where it cannot be trained."""
    model = build(wanted.model, dataset, seed=0, **asdict(wanted.settings))
    objective = make_objective(wanted.objective, model.blueprint.settings, wanted.default_objective)
    config = wanted.training.resolve(model.blueprint.settings, len(dataset.train))
    binarisation = resolve_binarisation(model.blueprint, dataset, wanted.data.binarisation)
    weight = kl_warmup_weight(model, config, torch.zeros(()))
    check_training(model, objective, dataset, config, weight)
    device, starts = resolve_device(config.device), list[float]()

    def now() -> float:
        if device.type != "cpu":
            torch.cuda.synchronize() if device.type == "cuda" else torch.mps.synchronize()
        return time.perf_counter()

    def track(batches: Iterable[Batch]) -> Iterator[Batch]:
        for batch in batches:
            starts.append(now())
            if len(starts) > 2 and starts[-1] - starts[1] > MEASURED_SECONDS:
                raise Enough
            yield batch

    with seeded(0, device), fast_training(device):
        learner = Learner(model, config, device)
        with contextlib.suppress(Enough):
            for _ in train_epochs(learner, dataset, objective, binarisation, track):
                pass
        step = statistics.median(b - a for a, b in itertools.pairwise(starts[1:]))
        rows = torch.arange(min(VALIDATED_IMAGES, len(dataset.validation)))
        part = eval_split(dataset.validation.take(rows), binarisation).to(device)
        started = now()
        validate(model, objective, part)
        validation = (now() - started) * len(dataset.validation) / len(rows)
    return Speed(step, validation), config
