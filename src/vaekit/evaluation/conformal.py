"""Split conformal p-values: how unusual a score is among the scores of images that are known to be usual."""

from __future__ import annotations

import math

import numpy as np

from ..support.errors import require


def p_values(scores: np.ndarray, calibration: np.ndarray) -> np.ndarray:
    """(1 + #{calibration >= score}) / (n + 1) of every score (N,), given those of n images: (N,).

    Where a usual image and these n are exchangeable, its p-value is at most a with a probability of at most a, for
    every a and every score; on average over the n images, not for each choice of them. Vovk, Gammerman and Shafer 2005;
    of outliers Bates et al. 2023 ("Testing for outliers with conformal p-values").
    """
    below = np.searchsorted(np.sort(calibration), scores, side="left")
    return (1 + len(calibration) - below) / (len(calibration) + 1)


def percentiles(scores: np.ndarray, calibration: np.ndarray) -> np.ndarray:
    """The percentage of n images whose scores are lower than each score, (N,)."""
    return 100 * np.searchsorted(np.sort(calibration), scores, side="left") / len(calibration)


def threshold(calibration: np.ndarray, false_alarms: float) -> float:
    """The score above which p-values are at most `false_alarms`. Raises UserError for too few images: see
    `check_count`."""
    count = len(calibration)
    check_count(count, false_alarms)
    # The possible p-values, by the number of scores that are as high.
    possible = np.arange(1, count + 2) / (count + 1)
    allowed = int(np.searchsorted(possible, false_alarms, side="right"))
    return float(np.sort(calibration)[-allowed])


def check_count(count: int, false_alarms: float, remedy: str = "") -> None:
    """Raise UserError where no image could be flagged, since the smallest p-value, 1 / (count + 1), is above
    `false_alarms`."""
    needed = math.ceil(1 / false_alarms - 1 - 1e-9)
    smallest = math.ceil(1000 / (count + 1)) / 1000
    require(
        1 / (count + 1) <= false_alarms,
        f"--false-alarms {false_alarms:g} needs {needed:,} validation images or more, and there are {count:,}; give "
        f"--false-alarms {smallest:g}, or {remedy or 'more validation images'}",
    )
