"""Pages that are generated when the site is built: the commands, and the notebooks."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
from pathlib import Path

COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def write_commands(path: Path) -> None:
    """A section per command; for `train`, that of a vae."""
    from vaekit.cli.main import VERBS

    verbs = ["train vae", "train --resume RUN", "sweep vae", *VERBS]
    parts = ["# Commands\n", "The output of `--help` for every command.\n"]
    for verb in verbs:
        parts.append(f"## vaekit {verb}\n\n```text\n{help_of(verb.split())}\n```\n")
    path.write_text("\n".join(parts))


def help_of(words: list[str]) -> str:
    """The help page of a command, 100 columns wide, without colours."""
    from vaekit.cli.main import run_app

    os.environ["COLUMNS"] = "100"
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        run_app([*words, "--help"])
    return COLOURS.sub("", shown.getvalue()).strip()


def write_notebook(path: Path) -> None:
    """Write a notebook as a Markdown page beside it."""
    parts = [f"*The notebook itself: [{path.name}](path:{path.name}).*\n"]
    for cell in json.loads(path.read_text())["cells"]:
        text = "".join(cell["source"])
        parts.append(
            text + "\n" if cell["cell_type"] == "markdown" else f"```python\n{text}\n```\n"
        )
    head, *rest = parts[1:]
    path.with_suffix(".md").write_text("\n".join([head, parts[0], *rest]))
