"""Colours that all kinds of colour vision tell apart, and text as it is written."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

# Okabe and Ito's, for two lines.
BLUE, ORANGE = "#0072B2", "#D55E00"
# Petroff 2021 (arXiv:2107.02270), for up to ten classes; matplotlib's style "petroff10".
PALETTE = (
    "#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd",
)  # fmt: skip
OTHER = "#d0d0d0"  # what stands back


@contextlib.contextmanager
def any_glyph() -> Iterator[None]:
    """Without matplotlib's warnings of letters that its font has not, which it draws as boxes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        yield


def shorten(text: str, most: int) -> str:
    """Text of at most so many letters."""
    return text if len(text) <= most else text[: most - 1] + "…"


def plain(text: str) -> str:
    """Text in which matplotlib finds no formula."""
    return text.replace("$", r"\$")
