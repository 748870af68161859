"""Write the line and branch coverage of each part of the package, from .coverage, as a Markdown table.

make coverage
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "src" / "vaekit"
KEYS = ("num_statements", "covered_lines", "num_branches", "covered_branches")


def totals(report: dict) -> dict[str, dict[str, int]]:
    """The counts of coverage.py's JSON report, summed by part."""
    parts: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(KEYS, 0))
    for name, file in report["files"].items():
        inside = Path(name).resolve().relative_to(PACKAGE)
        part = inside.parts[0] if len(inside.parts) > 1 else "root (with sklearn.py)"
        for key in KEYS:
            parts[part][key] += file["summary"].get(key, 0)
    return parts


def table(parts: dict[str, dict[str, int]]) -> str:
    lines = ["| part | statements | lines covered | branches | branches covered |"]
    lines.append("|---|---:|---:|---:|---:|")
    rows = sorted(parts.items())
    rows.append(("**all**", {key: sum(p[key] for p in parts.values()) for key in KEYS}))
    for name, p in rows:
        covered = p["covered_lines"] / max(1, p["num_statements"])
        branches = p["covered_branches"] / max(1, p["num_branches"])
        cells = name, p["num_statements"], f"{covered:.1%}", p["num_branches"], f"{branches:.1%}"
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--missing", action="store_true", help="list the uncovered lines too")
    options = parser.parse_args()
    command = [sys.executable, "-m", "coverage", "json", "-q", "-o", "-"]
    report = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    print(table(totals(report)))
    if options.missing:
        for name, file in sorted(report["files"].items()):
            gone, branches = file["missing_lines"], file.get("missing_branches", [])
            if gone or branches:
                print(f"{name}: lines {gone}, branches {branches}")


if __name__ == "__main__":
    main()
