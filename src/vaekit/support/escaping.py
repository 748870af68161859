"""Names of runs, folders, tensors ... made inert where they are shown: terminals, spreadsheets, Markdown, LaTeX."""

from __future__ import annotations

import contextlib
import re
from typing import Any

# All controls but tab and line feed, marks that change the direction of text, line separators, and halves of
# characters, which cannot be encoded.
CONTROLS = re.compile(
    "[\0-\b\v-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
FORMULA = re.compile(r"[\t\r\n]|\s*[=+\-@＝＋－＠]")
LATEX = str.maketrans(
    {
        **{c: "\\" + c for c in "&%$#_{}"},
        **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
        # \\ would read [ as its argument.
        **{"<": r"\textless{}", ">": r"\textgreater{}", "[": "{[}"},
        **{"±": r"$\pm$", "\N{MINUS SIGN}": "$-$", "\N{FIGURE SPACE}": r"\phantom{0}"},
    }
)


def escape_controls(text: object) -> str:
    r"""The text with control characters, which could steer a terminal, as JSON writes them, such as \u001b."""
    return CONTROLS.sub(lambda match: f"\\u{ord(match[0]):04x}", str(text))


def on_one_line(text: object) -> str:
    """The text without line breaks and control characters."""
    return escape_controls(" ".join(str(text).split("\n")).replace("\r", " "))


def csv_cell(value: Any) -> Any:
    """A value as a CSV cell that no spreadsheet takes for a formula: text that begins with =, +, - or @ gets an
    apostrophe in front (OWASP, CSV injection); numbers stay."""
    if not isinstance(value, str):
        return value
    with contextlib.suppress(ValueError):
        float(value)
        return value
    return ("'" if FORMULA.match(value) else "") + escape_controls(value)


def markdown(text: str) -> str:
    """The text for a cell of a Markdown table or a paragraph: no markup, no links."""
    escaped = re.sub(r"([\\`*_{}\[\]<>|#~&])", r"\\\1", on_one_line(text))
    return escaped.replace("://", ":\\//").replace("www.", "www\\.")


def latex(text: str) -> str:
    """The text for LaTeX, outside of mathematics."""
    minus = "\N{MINUS SIGN}"
    return re.sub(r"(?<!\S)-(?=\d)", minus, on_one_line(text)).translate(LATEX)
