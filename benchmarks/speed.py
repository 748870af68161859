"""Training speed of vaekit, PyTorch's example, a hand-written loop, pythae and JAX, and the machine's roofline.

    python benchmarks/speed.py [--models dense conv] [--rounds 5] [--restarts 3] [--steps 200]

Each implementation runs in a process of its own (speed_worker.py). The processes are started `restarts` times, since
speed depends on where in memory a process happens to lie, and then train one short epoch each in turn, `rounds` times;
a ratio is of two times in the same round. An idle process waits for input and uses no core. Convolutions run a tenth
of the steps. jax and pythae are included if they are installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from tasks import REQUIRED_PACKAGES, TASKS

from vaekit.support.devices import fast_float32

HERE = Path(__file__).parent
DENSE = [(784, 500), (500, 40), (20, 500), (500, 784)]
WEIGHTS = sum(inputs * outputs + outputs for inputs, outputs in DENSE)
FLOATS = 7  # per weight that Adam reads (weight, gradient, two moments) and writes


class Worker:
    """A process that trains one implementation on request."""

    def __init__(self, name: str, model: str, steps: int) -> None:
        script = str(HERE / "speed_worker.py")
        self.command = [sys.executable, script, name, model, "--steps", str(steps)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            self.command, text=True, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL
        )
        self.weights = int(self.read_response().removeprefix("ready "))

    def request(self, line: str) -> float:
        assert self.process.stdin is not None
        print(line, file=self.process.stdin, flush=True)
        return float(self.read_response())

    def read_response(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(
                f"this process has failed; run it alone to see why: {shlex.join(self.command)}"
            )
        return line.strip()

    def close(self) -> None:
        self.process.communicate()


def median_seconds(work: Callable[[], object], times: int) -> float:
    def seconds() -> float:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    return statistics.median(seconds() for _ in range(times))


def matrix_rate() -> float:
    """FLOP/s of the step's largest matrix product, with vaekit's float32 settings."""
    a, b = torch.rand(TASKS["dense"].batch, 784), torch.rand(784, 500)
    with fast_float32(torch.device("cpu")):
        for _ in range(20):
            a @ b
        return 2 * math.prod(a.shape) * b.shape[1] / median_seconds(lambda: a @ b, 300)


def bandwidth() -> float:
    """Bytes/s of a = b + 3 c, on arrays that together are as large as those that Adam reads and writes."""
    a, b, c = torch.rand(3, WEIGHTS * 4 // 3).unbind()
    for _ in range(20):
        torch.add(b, c, alpha=3, out=a)
    return 3 * a.nbytes / median_seconds(lambda: torch.add(b, c, alpha=3, out=a), 100)


def dense_flop() -> int:
    """FLOP of a step's matrix products: forward, gradients of weights, gradients of inputs except the image."""
    products = [inputs * outputs for inputs, outputs in DENSE]
    return 2 * TASKS["dense"].batch * (3 * sum(products) - products[0])


def compare(model: str, rounds: int, restarts: int, steps: int) -> None:
    """Time all implementations of a task and print their table."""
    task, names = TASKS[model], []
    for name in task.implementations:
        if name in REQUIRED_PACKAGES and importlib.util.find_spec(REQUIRED_PACKAGES[name]) is None:
            print(f"skipped {name}: {REQUIRED_PACKAGES[name]} is not installed\n")
        else:
            names.append(name)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    memory: dict[str, list[float]] = {name: [] for name in names}
    weights: dict[str, int] = {}
    rates: list[tuple[float, float]] = []
    for _ in range(restarts):
        workers = {name: Worker(name, model, steps) for name in names}
        for turn in range(rounds):
            if model == "dense":
                rates.append((matrix_rate(), bandwidth()))
            shift = turn % len(names)
            for name in names[shift:] + names[:shift]:
                seconds[name].append(workers[name].request("epoch") / steps)
        for name, worker in workers.items():
            memory[name].append(worker.request("memory"))
            weights[name] = worker.weights
            worker.close()

    # pythae's VampPrior has biases and only one level.
    assert {weights[name] for name in names if name != "pythae"} == {weights["vaekit"]}
    print(f"## {model}\n")
    print(f"{weights['vaekit']:,} weights, batches of {task.batch}, ", end="")
    print(f"{restarts} x {rounds} short epochs of {steps} steps\n")
    ideal = 0.0
    if model == "dense":
        flops, bytes_ = (statistics.median(column) for column in zip(*rates, strict=True))
        adam = FLOATS * 4 * WEIGHTS
        ideal = dense_flop() / flops + adam / bytes_
        print(
            f"Roofline: {dense_flop() / 1e6:,.0f} MFLOP at {flops / 1e9:,.0f} GFLOP/s and ", end=""
        )
        print(
            f"{adam / 1e6:.1f} MB at {bytes_ / 1e9:,.1f} GB/s are {1e3 * ideal:.2f} ms per step.\n"
        )
    print_table(seconds, memory, task.batch, ideal)


def print_table(
    seconds: dict[str, list[float]], memory: dict[str, list[float]], batch: int, ideal: float
) -> None:
    """Print the table, from the seconds per step of each round."""
    columns = ["implementation", "ms per step (median)", "lowest", "highest", "images/s"]
    columns += ["vaekit is faster by (median)", "lowest", "highest", "peak memory, MB"]
    print_row(columns + ["share of roofline"] * bool(ideal))
    print_row(["---"] * (len(columns) + bool(ideal)))
    for name, times in seconds.items():
        ratios = [theirs / ours for theirs, ours in zip(times, seconds["vaekit"], strict=True)]
        median = statistics.median(times)
        row = [name, *(f"{1e3 * t:.2f}" for t in (median, min(times), max(times)))]
        row.append(f"{batch / median:,.0f}")
        row += [f"{r:.2f}" for r in (statistics.median(ratios), min(ratios), max(ratios))]
        row.append(f"{statistics.median(memory[name]) / 1e6:,.0f}")
        print_row(row + [f"{ideal / median:.0%}"] * bool(ideal))
    print(flush=True)


def print_row(cells: Sequence[str]) -> None:
    print("|", " | ".join(cells), "|")


def start_up(times: int = 5) -> None:
    """Print how long `vaekit --help` and importing vaekit take."""
    print("| start | seconds (median) |\n|---|---|")
    for text, arguments in {
        "vaekit --help": ["-m", "vaekit", "--help"],
        'python -c "import vaekit"': ["-c", "import vaekit"],
        'python -c "pass"': ["-c", "pass"],
    }.items():
        command = [sys.executable, *arguments]

        def run(command: list[str] = command) -> None:
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

        print(f"| `{text}` | {median_seconds(run, times):.2f} |")


def processor() -> str:
    """The processor's name, on Linux from /proc/cpuinfo."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--restarts", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()
    print(
        f"{time.strftime('%Y-%m-%d')}, {processor()}, {torch.get_num_threads()} threads, ", end=""
    )
    print(f"torch {torch.__version__}, `{shlex.join(['python', *sys.argv])}`\n", flush=True)
    for model in args.models:
        steps = -(-args.steps // 10) if model in ("conv", "deepvae") else args.steps
        compare(model, args.rounds, args.restarts, steps)
    start_up()


if __name__ == "__main__":
    main()
