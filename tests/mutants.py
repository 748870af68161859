"""Break the code on purpose, one line at a time, and count how many of the changes the tests notice.

    python tests/mutants.py [ID ...]

tests/mutants.json is the sample: 50 changes of single expressions, drawn with seed 0 from all modules before the code
was moved into packages, and adapted by hand where a line was reworded since; from 51 on, of lines that the tests of new
parts are about. Each entry names the tests that are run against it, without the golden losses. The package is copied to
a temporary folder; nothing here is changed.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SECONDS = 1800  # for all tests on unchanged code; those of one mutant need far less


def broken(text: str, mutant: dict[str, Any]) -> str:
    """The source with the mutant's line changed, in its function where the line occurs more than once."""
    lines = text.splitlines(keepends=True)
    rows = [i for i, line in enumerate(lines) if line.strip() == mutant["before"]]
    if len(rows) > 1:
        node: Any = ast.parse(text)
        for name in mutant["function"].split("."):
            named = (n for n in node.body if isinstance(n, ast.FunctionDef | ast.ClassDef))
            node = next(n for n in named if n.name == name)
        rows = [i for i in rows if node.lineno <= i + 1 <= node.end_lineno]
    if not rows:
        raise SystemExit(f"{mutant['id']}: {mutant['module']} has no line {mutant['before']!r}")
    lines[rows[0]] = lines[rows[0]].replace(mutant["before"], mutant["after"])
    return "".join(lines)


def first_failure(copy: Path, tests: list[str]) -> str:
    """The first test that fails, "" if all pass."""
    paths = [str(copy / "tests" / test) for test in tests]
    command = [sys.executable, "-m", "pytest", "-x", "-m", "not long", *paths]
    environment = {**os.environ, "PYTHONPATH": str(copy / "src")}
    try:
        done = subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, text=True, timeout=SECONDS
        )
    except subprocess.TimeoutExpired:
        return "timeout"
    if done.returncode == 0:
        return ""
    lines = done.stdout.partition("short test summary info")[2].splitlines()
    failed = [line for line in lines if line.startswith(("FAILED ", "ERROR "))]
    return failed[0].split(" ", 1)[1].split(" - ")[0] if failed else "the tests do not start"


def main() -> None:
    mutants = json.loads((ROOT / "tests" / "mutants.json").read_text())
    wanted = set(map(int, sys.argv[1:])) or {mutant["id"] for mutant in mutants}
    mutants = [mutant for mutant in mutants if mutant["id"] in wanted]
    if len(mutants) < len(wanted):
        raise SystemExit("tests/mutants.json has no such ID")
    caught = 0
    print("| id | module | change | noticed by |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in ("src", "tests", "docs", "benchmarks", "examples"):
            shutil.copytree(ROOT / name, copy / name)
        for name in ("pyproject.toml", "README.md"):
            shutil.copy(ROOT / name, copy)
        unchanged = first_failure(copy, sorted({test for m in mutants for test in m["tests"]}))
        if unchanged:
            raise SystemExit(f"the tests fail on unchanged code: {unchanged}")
        for mutant in mutants:
            path = copy / "src" / "vaekit" / (mutant["module"].replace(".", "/") + ".py")
            text = path.read_text()
            path.write_text(broken(text, mutant))
            found = first_failure(copy, mutant["tests"])
            path.write_text(text)
            caught += bool(found)
            change = f"`{mutant['before']}` -> `{mutant['after']}`".replace("|", "\\|")
            row = mutant["id"], mutant["module"], change, found or "**survived**"
            print("| " + " | ".join(map(str, row)) + " |", flush=True)
    print(f"\n{caught} of {len(wanted)} noticed.")


if __name__ == "__main__":
    main()
