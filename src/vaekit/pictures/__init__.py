"""Every plot. Takes arrays, returns a matplotlib Figure; nothing here needs a display."""

from .charts import bars, comparison, confusion, curves, samples_seen
from .grids import contact_sheet, image_grid, pairs
from .scatters import Panel, scatter, scatter_3d
from .writing import Movie, save

__all__ = [
    "Movie",
    "Panel",
    "bars",
    "comparison",
    "confusion",
    "contact_sheet",
    "curves",
    "image_grid",
    "pairs",
    "samples_seen",
    "save",
    "scatter",
    "scatter_3d",
]
