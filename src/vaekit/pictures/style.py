"""Colours that all kinds of colour vision tell apart, and text as it is written."""

from __future__ import annotations

# Okabe and Ito's, for two lines.
BLUE, ORANGE = "#0072B2", "#D55E00"
# Petroff 2021 (arXiv:2107.02270), for up to ten classes; matplotlib's style "petroff10".
PALETTE = (
    "#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd",
)  # fmt: skip
OTHER = "#d0d0d0"  # what stands back


def plain(text: str) -> str:
    """Text in which matplotlib finds no formula."""
    return text.replace("$", r"\$")
