"""Hostile files of a run directory: each value of each file replaced by each of a table, or bytes mutated.

    python tests/hostile.py [--count 100000] [--seed 0]

reads mutated files of each kind as the commands do, and prints a table of what became of them.
"""

import argparse
import copy
import json
import multiprocessing
import random
import re
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from conftest import random_dataset
from mutations import mutate
from vaekit import Run, UserError, build, compare, evaluate, load, rank, train
from vaekit.evaluation.metrics import as_table, metric_rows
from vaekit.gallery.context import PictureContext
from vaekit.gallery.report import headline_results, read_evaluation, settings_rows
from vaekit.gallery.training import curves
from vaekit.inference.picture_data import FILE_NAME
from vaekit.runs.directory import STATE, TrainingState
from vaekit.settings.analysis import PlotConfig
from vaekit.studies.curves import comparability, run_settings
from vaekit.studies.sweep import summarise
from vaekit.training.learner import Learner

SECONDS, MEMORY = 10, 500 * 2**20  # for one file, and that a process may grow by
DELETED = object()
VALUES = [
    DELETED, None, True, False, 0, 1, -1, 5, 1.5, -5, 2**20, 2**31, 2**62, 2**63, 2**64, 10**400, -(10**400), 1e300,
    float("nan"), float("inf"), -float("inf"), "", "a", "0", "1e999", "\n", "\x00", "\x1b[31m", "\ud800", "/dev/zero",
    "../..", "9" * 5000, "x" * 10**5, "<script>", "500 " * 2000, "elbo(beta=" + "(" * 3000, [], [None], [1], [1, 2, 3],
    [2**62] * 3, ["a", 1], {}, {"a": 1}, {"z": [None]}, [[]] * 3, "NESTED",
]  # fmt: skip
JSON_FILES = ("config.json", "evaluation.json", "metrics.jsonl")


def paths(value, path=()):
    """The paths to all values in a JSON value."""
    yield path
    parts = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, part in parts:
        yield from paths(part, (*path, key))


def replaced(value, path, new):
    """A JSON value with another one at a path."""
    if not path:
        return [] if new is DELETED else new
    value = copy.copy(value)
    if new is DELETED and len(path) == 1:
        del value[path[0]]
    else:
        value[path[0]] = replaced(value[path[0]], path[1:], new)
    return value


def as_lines(values):
    return "".join(as_text(value) + "\n" for value in values).encode()


def as_text(value):
    nested = "[" * 1500 + "]" * 1500
    return json.dumps(value).replace('"NESTED"', nested)


def json_cases(run, name):
    """For each value of a JSON file and each of VALUES: a description and the content of the file."""
    lines = (
        [json.loads(line) for line in (run / name).read_text().splitlines()]
        if name.endswith("l")
        else None
    )
    whole = lines or [json.loads((run / name).read_text())]
    for path in paths(whole[-1]):
        for new in VALUES:
            changed = [*whole[:-1], replaced(whole[-1], path, new)]
            yield f"{name} {path} = {str(new)[:40]!r}", partial(as_lines, changed)


def read_tensors(file):
    with safetensors.safe_open(file, "pt") as opened:
        keys = opened.keys()
        return {key: opened.get_tensor(key) for key in keys}, dict(opened.metadata() or {})


def tensor_changes(tensor):
    """A tensor with other values, types and shapes."""
    yield None
    yield from (
        tensor.to(torch.complex64),
        tensor.to(torch.bool),
        tensor.to(torch.float64),
        tensor.to(torch.int64),
    )
    yield from (
        tensor[None],
        tensor.flatten()[:0],
        tensor.flatten()[:1],
        torch.cat([tensor.flatten()] * 2),
    )
    for value in (-1, 10**8, float("nan"), float("inf")):
        if tensor.is_floating_point() or (value == value and abs(value) < 10**9):
            yield (
                torch.full_like(tensor, value)
                if tensor.dtype != torch.uint8
                else tensor.float() + value
            )
    if tensor.ndim == 2:
        yield tensor.T.contiguous()
        yield torch.cat([tensor, tensor], dim=1)


def tensor_cases(run, name):
    """For each tensor of a file of tensors: other values, types and shapes; and others in the state's progress. The
    hashes are valid."""
    tensors, metadata = read_tensors(run / name)
    for key in tensors:
        for i, changed in enumerate(tensor_changes(tensors[key])):
            others = {k: t for k, t in tensors.items() if k != key}
            others |= {} if changed is None else {key: changed.contiguous()}
            yield f"{name} {key} change {i}", partial(packed, others, metadata, name)
    more = {**tensors, "codes.x\n": torch.zeros(3)}
    yield f"{name} more", partial(packed, more, metadata, name)
    if name == STATE:
        scalars = json.loads(metadata["state"])
        for path in paths(scalars):
            for new in VALUES:
                text = as_text(replaced(scalars, path, new))
                yield (
                    f"{name} state {path} = {str(new)[:40]!r}",
                    partial(packed, tensors, {"state": text}, name),
                )


def packed(tensors, metadata, name):
    if name == STATE:
        try:
            scalars = json.loads(metadata["state"])
            metadata = {
                "state": metadata["state"],
                "sha256": TrainingState(tensors, scalars).hash(),
            }
        except RecursionError:
            metadata = {**metadata, "sha256": ""}
    return safetensors.torch.save(tensors, metadata)


def mutated_cases(run, name, count, seed):
    """Contents of a file with random changes, in files of tensors mostly of the header."""
    original, rng = (run / name).read_bytes(), random.Random(f"{seed} {name}")
    for i in range(count):
        head = len(original)
        if name.endswith(".safetensors") and rng.random() < 0.8:
            head = min(head, 8 + struct.unpack("<Q", original[:8])[0])
        content = original[:head]
        for _ in range(rng.randrange(1, 4)):
            content = mutate(content or b"x", rng)
        yield f"{name} mutation {i}", content + original[head:]


READERS = {}


def reads(*names):
    def add(function):
        READERS.update(dict.fromkeys(names, function))
        return function

    return add


@reads("config.json", "model.safetensors")
def read_config(path):
    """As every command does; the report and the explorer show all of it."""
    run = Run(path)
    load(run)
    _ = run.training, run.monitor, run.source, run.data
    for part in ("model", "training", "data"):
        settings_rows(run.section(part))
    " ".join(run.config.get("command", []))
    _ = run.config["created"][:16], run.config["versions"]["vaekit"]
    _ = run_settings(run), comparability(run)


@reads("evaluation.json")
def read_the_evaluation(path):
    run = Run(path)
    evaluation = read_evaluation(run)
    if evaluation is not None:
        metric_rows(evaluation)
        as_table(evaluation)
        headline_results(run.metrics, run.best, evaluation)
    rank([run])


@reads("metrics.jsonl")
def read_metrics(path):
    run = Run(path)
    summarise(run)
    headline_results(run.metrics, run.best, None)
    [w for e in run.metrics for w in e.get("warnings", [])]
    run.truncate_metrics(2)
    if random.random() < 0.05:  # as it takes long
        compare([run])
        curves(PictureContext.of(run, PlotConfig()))


@reads(FILE_NAME)
def read_picture_data(path):
    run = Run(path)
    context = PictureContext.of(run, PlotConfig())
    _ = context.classes, context.start_rows(20)
    context.images(context.start_rows(2))


@reads(STATE)
def read_state(path):
    """As `train --resume` does."""
    run = Run(path)
    state = run.load_state()
    learner = Learner(load(run), run.training, torch.device("cpu"))
    learner.restore(state)
    learner.start()
    learner.begin_epoch(run.section("data")["images"]["train"])


def refusal(copy, name, content, read):
    """None where the file with this content is read, or else the line that refuses it."""
    (copy / name).write_bytes(content)
    try:
        read(copy)
    except UserError as error:
        line = str(error)
    else:
        return None
    assert "\n" not in line, line
    assert len(line) < 1000, line
    return line


@dataclass
class Outcome:
    """How many files were read and refused, with how many different lines; the longest reading in seconds, the growth
    of the process in bytes, and the first failures."""

    read: int = 0
    refused: int = 0
    messages: set[str] = field(default_factory=set)
    slowest: float = 0.0
    grown: int = 0
    failures: list[str] = field(default_factory=list)

    def check(self, limit=SECONDS):
        assert not self.failures, self.failures
        assert self.slowest < limit
        assert self.grown < MEMORY


def peak_memory():
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def read_cases(run, folder, name, cases):
    """Read a copy of the run in `folder` with each content of a file in turn."""
    copied = Path(shutil.copytree(run, folder / f"{name}-copy"))
    outcome, read = Outcome(), READERS[name]
    read(copied)
    before = peak_memory()
    for what, content in cases:
        started = time.perf_counter()
        try:
            content = content() if callable(content) else content
            line = refusal(copied, name, content, read)
        except Exception as error:
            outcome.failures += [f"{what[:200]}: {type(error).__name__}: {str(error)[:200]}"][
                : 9 - len(outcome.failures)
            ]
            continue
        outcome.slowest = max(outcome.slowest, time.perf_counter() - started)
        outcome.read += line is None
        outcome.refused += line is not None
        outcome.messages |= (
            {re.sub(r"[\d.]+", "0", line.replace(str(copied), ""))} if line else set()
        )
    outcome.grown = peak_memory() - before
    return outcome


def _child(pipe, *arguments):
    signal.alarm(3600)
    pipe.send(read_cases(*arguments))


def in_a_process(run, folder, name, cases):
    """`read_cases` in a forked process, whose memory is measured from its start."""
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(False)
    process = context.Process(target=_child, args=(send, run, folder, name, cases))
    process.start()
    send.close()
    try:
        return receive.recv()
    except EOFError:
        process.join()
        return Outcome(failures=[f"{name}: the process ended with exit code {process.exitcode}"])
    finally:
        process.join()


def small_run(folder):
    """A run with all its files."""
    data = random_dataset((1, 12, 12), count=90)
    model = build("vae", data, latent_dim=2, hidden_dim=8)
    run = train(model, data, out=folder, epochs=2, batch_size=8, progress=False)
    evaluate(run, data, metrics=("elbo", "nll"), samples=10)
    return run.path


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print(
        "| file | mutated files | read | refused | different lines | slowest, s | growth, MB | failures |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        run = small_run(Path(folder) / "run")
        for name in READERS:
            count = arguments.count // len(READERS)
            cases = mutated_cases(run, name, count, arguments.seed)
            o = in_a_process(run, Path(folder), name, cases)
            numbers = [count, o.read, o.refused, len(o.messages)]
            cells = [
                *(f"{n:,}" for n in numbers),
                f"{o.slowest:.2f}",
                str(o.grown >> 20),
                str(len(o.failures)),
            ]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)
            for failure in o.failures:
                print(failure, file=sys.stderr)


if __name__ == "__main__":
    main()
