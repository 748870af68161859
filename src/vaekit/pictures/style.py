"""Colours distinguishable with all kinds of colour vision, and text helpers."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

# Okabe and Ito, for two lines.
BLUE, ORANGE = "#0072B2", "#D55E00"
# Petroff 2021 (arXiv:2107.02270), for up to ten classes; matplotlib style "petroff10".
PALETTE = (
    "#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd",
)  # fmt: skip
OTHER_COLOUR = "#d0d0d0"  # classes without a colour of their own


@contextlib.contextmanager
def ignore_missing_glyphs() -> Iterator[None]:
    """Silence matplotlib's warnings of characters missing from its font, which it draws as boxes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        yield


def shorten(text: str, max_length: int) -> str:
    """Truncate text to at most `max_length` characters."""
    return text if len(text) <= max_length else text[: max_length - 1] + "…"


def escape_math(text: str) -> str:
    """Escape dollar signs, so that matplotlib reads no formula."""
    return text.replace("$", r"\$")
