"""Conformal p-values: by hand, against their threshold, and the share of false alarms over many draws."""

import numpy as np
import pytest

from vaekit import UserError
from vaekit.evaluation.conformal import check_count, p_values, percentiles, threshold


def test_p_values_by_hand():
    calibration = np.array([3.0, 1.0, 2.0, 2.0])
    found = p_values(np.array([0.0, 2.0, 2.5, 3.0, 4.0, np.inf]), calibration)
    assert found.tolist() == [1.0, 4 / 5, 2 / 5, 2 / 5, 1 / 5, 1 / 5]
    assert percentiles(np.array([2.0, 9.0]), calibration).tolist() == [25.0, 100.0]


@pytest.mark.parametrize("count", [19, 20, 99, 250])
@pytest.mark.parametrize("false_alarms", [0.05, 0.07, 0.29, 0.5])
def test_scores_above_the_threshold_are_those_with_a_small_p_value(count, false_alarms):
    rng = np.random.default_rng(count)
    calibration, scores = rng.integers(0, 60, count), rng.integers(-5, 70, 500)  # with ties
    above = scores > threshold(calibration, false_alarms)
    assert (above == (p_values(scores, calibration) <= false_alarms)).all()


@pytest.mark.parametrize("draw", ["normal", "exponential", "geometric"])
def test_false_alarms_are_as_rare_as_asked(draw):
    """8,000 draws of 40 usual images and one more: its p-value is at most 0.05 in 2 of 41 of them, and less often with
    ties; off by 4 standard errors in 1 of 16,000 seeds."""
    rng = np.random.default_rng(0)
    shape = (8000, 41)
    scores = rng.geometric(0.3, shape) if draw == "geometric" else getattr(rng, draw)(size=shape)
    flagged = [p_values(each[-1:], each[:-1])[0] <= 0.05 for each in scores.astype(float)]
    error = 4 * np.sqrt(2 / 41 * 39 / 41 / 8000)
    assert np.mean(flagged) < 2 / 41 + error
    assert draw == "geometric" or np.mean(flagged) > 2 / 41 - error


def test_too_few_images_are_refused_with_how_many_it_takes():
    check_count(19, 0.05)
    check_count(99, 0.01)
    with pytest.raises(UserError, match=r"needs 19 validation images or more, and there are 18"):
        check_count(18, 0.05)
    with pytest.raises(UserError, match=r"needs 99 .* are 42; give false_alarms 0.024, or more"):
        threshold(np.zeros(42), 0.01)
    check_count(42, 0.024)
