"""Inject faults into trainings, evaluations and sweeps; print a table for docs/results/reliability.md.

    python tests/faults.py [NAME ...]

Each fault is a function that injects it into a process of the command line, asserts that nothing is lost, and returns
how it was injected, the last line of output with the exit code, and what remains. Needs root: one fault mounts a small
file system, and some remove permissions.
"""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

TRAIN = ["train", "vae", "--data", "digits", "--hidden-dim", "32", "--latent-dim", "2"]
ENDLESS = [*TRAIN, "--epochs", "100000", "--state-every", "0.01", "--compile", "no"]
SHORT = [*TRAIN, "--epochs", "3"]
FAULTS: dict[str, Callable[[Path], tuple[str, str, str]]] = {}


def fault(work: Callable[[Path], tuple[str, str, str]]) -> Callable[[Path], tuple[str, str, str]]:
    FAULTS[work.__name__] = work
    return work


class Vaekit:
    """The command line as a process in a folder, after the Python code `inject`."""

    def __init__(
        self,
        folder: Path,
        *arguments: object,
        inject: str = "",
        drop_root: bool = False,
        **more: Any,
    ) -> None:
        """`drop_root`: obey the permissions of files, which root ignores otherwise."""
        script = f"{inject}\nimport sys\nsys.argv[0] = 'vaekit'\nfrom vaekit.cli.main import main\nmain()"
        command = [sys.executable, "-c", script, *map(str, arguments)]
        if drop_root:
            command = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", *command]
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            command, cwd=folder, stdout=self.log, stderr=self.log, text=True, **more
        )

    def lines(self) -> list[str]:
        """The lines of output after it has ended; fails on a traceback."""
        self.process.wait(timeout=300)
        self.log.seek(0)
        text = self.log.read()
        assert "Traceback" not in text, text
        return [line for line in text.splitlines() if line.strip()]

    def last(self) -> str:
        """The last line, and the exit code."""
        lines = self.lines()
        return f"`{lines[-1] if lines else ''}` ({self.process.returncode})"


def vaekit(folder: Path, *arguments: object, **more: Any) -> str:
    """The last line of a command, and the exit code."""
    return Vaekit(folder, *arguments, **more).last()


def wait_for(path: Path, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} was not created"
        time.sleep(0.02)


def resumes(folder: Path, run: str = "run") -> str:
    """Resume the run for four epochs more than in its checkpoint, and assert that this works."""
    from vaekit import Run

    done = Run(folder / run).load_state().scalars["epoch"]
    text = vaekit(folder, "train", "--resume", run, "--epochs", done + 4)
    assert "(0)" in text, text
    parts = [path.name for path in (folder / run).glob("*.part")]
    assert not parts, parts
    return f"`--resume` continues from epoch {done}"


@fault
def disk_full(folder: Path) -> tuple[str, str, str]:
    mount = folder / "small"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", mount], check=True)
    try:
        process = Vaekit(mount, *ENDLESS, "--out", "run")
        wait_for(mount / "run" / "model.safetensors")
        try:
            with (mount / "filler").open("wb") as file:
                while True:
                    file.write(bytes(4096))
        except OSError:
            pass
        text = process.last()
        (mount / "filler").unlink()
        return "a file system of 1 MB is filled while it trains", text, resumes(mount)
    finally:
        subprocess.run(["umount", mount], check=True)


@fault
def folder_read_only(folder: Path) -> tuple[str, str, str]:
    (folder / "read-only").mkdir(mode=0o555)
    text = vaekit(folder, *SHORT, "--out", "read-only/run", drop_root=True)
    assert not list((folder / "read-only").iterdir())
    return "the folder of `--out` is read-only", text, "nothing"


@fault
def run_becomes_read_only(folder: Path) -> tuple[str, str, str]:
    process = Vaekit(folder, *ENDLESS, "--out", "run", drop_root=True)
    wait_for(folder / "run" / "model.safetensors")
    (folder / "run").chmod(0o555)
    text = process.last()
    (folder / "run").chmod(0o755)
    return "the run directory becomes read-only while it trains", text, resumes(folder)


def killed_run(folder: Path, number: int = signal.SIGKILL) -> str:
    process = Vaekit(folder, *ENDLESS, "--out", "run")
    wait_for(folder / "run" / "model.safetensors")
    time.sleep(0.5)
    process.process.send_signal(number)
    return process.last()


@fault
def killed(folder: Path) -> tuple[str, str, str]:
    return "`kill -9` while it trains", killed_run(folder), resumes(folder)


@fault
def told_to_stop(folder: Path) -> tuple[str, str, str]:
    return "`kill` while it trains", killed_run(folder, signal.SIGTERM), resumes(folder)


@fault
def interrupted_twice(folder: Path) -> tuple[str, str, str]:
    slow = "import vaekit.training.step as s, time\nf = s.Loss.forward\n"
    slow += "s.Loss.forward = lambda self, *a: (time.sleep(3), f(self, *a))[1]"
    process = Vaekit(folder, *ENDLESS, "--out", "run", inject=slow)
    wait_for(folder / "run" / "state.safetensors")
    time.sleep(1)
    process.process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    process.process.send_signal(signal.SIGINT)
    return "Ctrl-C twice, in steps of three seconds", process.last(), resumes(folder)


@fault
def state_truncated(folder: Path) -> tuple[str, str, str]:
    killed_run(folder)
    state = folder / "run" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:5000])
    text = vaekit(folder, "train", "--resume", "run")
    again = vaekit(folder, *SHORT, "--init", "run")
    assert "(0)" in again, again
    return (
        "state.safetensors is truncated, then `--resume`",
        text,
        "`--init` starts from the best weights",
    )


@fault
def state_corrupt(folder: Path) -> tuple[str, str, str]:
    killed_run(folder)
    state = folder / "run" / "state.safetensors"
    content = bytearray(state.read_bytes())
    content[-100] ^= 1
    state.write_bytes(content)
    return (
        "one bit of it is flipped, then `--resume`",
        vaekit(folder, "train", "--resume", "run"),
        "everything else",
    )


def missing(folder: Path, name: str, *command: str) -> tuple[str, str, str]:
    """Remove a file of a run for one command."""
    vaekit(folder, *SHORT, "--out", "run")
    content = (folder / "run" / name).read_bytes()
    (folder / "run" / name).unlink()
    text = vaekit(folder, *command)
    (folder / "run" / name).write_bytes(content)
    return f"{name} is missing, then `vaekit {' '.join(command)}`", text, resumes(folder)


@fault
def no_state(folder: Path) -> tuple[str, str, str]:
    return missing(folder, "state.safetensors", "train", "--resume", "run", "--epochs", "5")


@fault
def no_config(folder: Path) -> tuple[str, str, str]:
    return missing(folder, "config.json", "train", "--resume", "run", "--epochs", "5")


@fault
def no_metrics(folder: Path) -> tuple[str, str, str]:
    return missing(folder, "metrics.jsonl", "train", "--resume", "run", "--epochs", "5")


@fault
def no_weights(folder: Path) -> tuple[str, str, str]:
    return missing(folder, "model.safetensors", "evaluate", "run")


@fault
def no_picture_data(folder: Path) -> tuple[str, str, str]:
    return missing(folder, "picture_data.safetensors", "plot", "run")


@fault
def clock_goes_backwards(folder: Path) -> tuple[str, str, str]:
    clock = "import time, itertools\ntime.time = (1e9 - n for n in itertools.count()).__next__"
    text = vaekit(folder, *SHORT, "--out", "run", "--state-every", "0.01", inject=clock)
    assert "(0)" in text
    return "`time.time` decreases by a second at each call", text, resumes(folder)


@fault
def nan_in_data(folder: Path) -> tuple[str, str, str]:
    images = np.random.default_rng(0).random((300, 8, 8), dtype=np.float32)
    images[200, 3, 3] = np.nan
    np.savez(folder / "mine.npz", images=images)
    text = vaekit(folder, "train", "vae", "--data", "mine.npz", "--epochs", "2", "--out", "run")
    return (
        "a pixel of 300 images in an .npz is NaN",
        text,
        "nothing" if not (folder / "run").exists() else "the run",
    )


@fault
def nan_in_weights(folder: Path) -> tuple[str, str, str]:
    import torch
    from safetensors.torch import load_file, save_file

    vaekit(folder, *SHORT, "--out", "run")
    path = folder / "run" / "model.safetensors"
    tensors = load_file(path)
    next(t for n, t in tensors.items() if n.startswith("decoder")).view(-1)[7] = torch.nan
    save_file(tensors, path)
    text = vaekit(folder, *SHORT, "--init", "run", "--out", "other")
    return (
        "a weight of the run that `--init` names is NaN",
        text,
        "nothing",
    )


@fault
def nan_in_gradient(folder: Path) -> tuple[str, str, str]:
    broken = "import vaekit.training.step as s\nf, n = s.Loss.backward, [0]\n"
    broken += "def b(self, *a):\n    r = f(self, *a)\n    n[0] += 1\n"
    broken += (
        "    if n[0] == 20: next(self.parameters()).grad.view(-1)[3] = float('nan')\n    return r\n"
    )
    broken += "s.Loss.backward = b"
    process = Vaekit(folder, *SHORT, "--compile", "no", "--out", "run", inject=broken)
    (line,) = [line for line in process.lines() if "warning: epoch" in line]
    assert process.process.returncode == 0
    return "a value of the 20th step's gradient is NaN, once", f"`{line}` (0)", resumes(folder)


@fault
def diverges(folder: Path) -> tuple[str, str, str]:
    text = vaekit(
        folder, *SHORT, "--learning-rate", "1e30", "--optimizer", "rmsprop", "--out", "run"
    )
    return "a learning rate of 1e30", text, "the initial checkpoint"


@fault
def out_of_memory(folder: Path) -> tuple[str, str, str]:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (3 * 2**30, 3 * 2**30))

    wide = ["--hidden-dim", "30000", "--out", "run"]
    text = vaekit(folder, "train", "vae", "--data", "digits", *wide, preexec_fn=limit)
    return "`ulimit -v 3145728`, `--hidden-dim 30000`", text, "nothing of use"


@fault
def evaluation_killed(folder: Path) -> tuple[str, str, str]:
    vaekit(folder, *SHORT, "--out", "run")
    vaekit(folder, "evaluate", "run", "--metrics", "elbo")
    before = (folder / "run" / "evaluation.json").read_bytes()
    process = Vaekit(folder, "evaluate", "run", "--metrics", "nll", "--samples", "100000")
    time.sleep(6)
    process.process.kill()
    text = process.last()
    assert (folder / "run" / "evaluation.json").read_bytes() == before
    return "`kill -9` in an evaluation", text, "the earlier evaluation.json"


@fault
def sweep_killed(folder: Path) -> tuple[str, str, str]:
    arguments = ["sweep", *ENDLESS[1:], "--seed", "1,2", "--out", "s", "--metrics", "elbo"]
    arguments[arguments.index("100000")] = "300"
    process = Vaekit(folder, *arguments)
    part = folder / "s" / "seed-1.part"
    wait_for(part / "model.safetensors")
    time.sleep(1)
    process.process.kill()
    text = process.last()
    process = Vaekit(folder, *arguments)
    first = next(line for line in process.lines() if line.startswith("epoch ")).split()[1]
    assert process.process.returncode == 0
    assert (folder / "s" / "compare.md").exists()
    return "`kill -9` in a sweep", text, f"the same command continues with epoch {first}"


@fault
def two_writers(folder: Path) -> tuple[str, str, str]:
    process = Vaekit(folder, *ENDLESS, "--out", "run")
    wait_for(folder / "run" / "model.safetensors")
    text = vaekit(folder, "train", "--resume", "run")
    process.process.kill()
    process.last()
    return "`--resume` of a run while it trains", text, resumes(folder)


def main() -> None:
    print("| fault | injected | last line of output (exit code) | remains |\n|---|---|---|---|")
    for name in sys.argv[1:] or FAULTS:
        with tempfile.TemporaryDirectory() as folder:
            how, text, remains = FAULTS[name](Path(folder))
        text = text.replace(folder, "FOLDER").replace("|", "\\|")
        print(f"| {name.replace('_', ' ')} | {how} | {text} | {remains} |", flush=True)


if __name__ == "__main__":
    main()
