"""Plotting functions: arrays in, a matplotlib Figure out. They need no display."""

from .bands import Bands, choose_bands
from .charts import cluster_bars, comparison, confusion, curves, latent_bars, samples_seen
from .grids import contact_sheet, heat_maps, image_grid, pairs
from .maps import image_map
from .scatters import Panel, scatter, scatter_3d
from .writing import Movie, save

__all__ = [
    "Bands",
    "Movie",
    "Panel",
    "choose_bands",
    "cluster_bars",
    "comparison",
    "confusion",
    "contact_sheet",
    "curves",
    "heat_maps",
    "image_grid",
    "image_map",
    "latent_bars",
    "pairs",
    "samples_seen",
    "save",
    "scatter",
    "scatter_3d",
]
