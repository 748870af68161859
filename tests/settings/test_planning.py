"""The rules of `vaekit plan`: which settings they choose for which data."""

import dataclasses

import pytest

from vaekit import MODELS, Plan
from vaekit.settings.planning import (
    RULES,
    Facts,
    choose_likelihood,
    choose_size,
    fitting,
    reason_for_steps,
    warnings_of,
)

PHOTOS = Facts(images=1000, channels=3, height=64, width=64)
DIGITS = Facts(images=50_000, channels=1, height=28, width=28, two_tone=0.9)


@pytest.mark.parametrize(
    ("facts", "models"),
    [
        (PHOTOS, ["deepvae", "convvae"]),
        (DIGITS, ["convvae"]),
        (Facts(1000, 3, 16, 16), ["convvae"]),
        (Facts(1000, 12, 64, 64), ["convvae"]),
        (Facts(1000, 1, 6, 30), ["vae"]),
    ],
)
def test_the_models_in_question_in_the_order_of_preference(facts, models):
    assert [rule.model.value for rule in fitting(facts)] == models


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.model.value)
def test_every_setting_of_a_rule_is_one_of_its_model_and_has_a_reason(rule):
    choices = rule.settings(PHOTOS)
    assert rule.model.value in MODELS
    values = {name: choice.value for name, choice in choices.items()}
    Plan.of(rule.model.value, **values)  # raises for an unknown name or a bad value
    assert all(choice.reason for choice in [rule.model, *choices.values()])


@pytest.mark.parametrize(
    ("changes", "likelihood"),
    [
        ({"channels": 3}, "logistic-mixture"),
        ({"channels": 3, "two_tone": 1.0}, "logistic-mixture"),  # colour is never black and white
        ({"two_tone": 0.86}, "bernoulli"),
        ({"two_tone": 0.84}, "logistic"),
        ({"two_tone": 0.1, "black_and_white": True}, "bernoulli"),
        ({"levels": None, "two_tone": 0.99}, "gaussian"),
        ({"levels": None, "two_tone": 1.0}, "bernoulli"),
        ({"channels": 5}, "logistic"),
    ],
)
def test_the_likelihood_follows_the_pixels(changes, likelihood):
    facts = dataclasses.replace(Facts(100, 1, 28, 28), **changes)
    assert choose_likelihood(facts).value == likelihood


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([], None),
        ([(28, 20)] * 3, None),
        ([(64, 64)], None),
        ([(128, 128)] * 2, "64"),
        ([(480, 640)] * 2, "48x64"),
        ([(4000, 10)], "64x4"),
        ([(100, 200), (90, 300)], "64"),
        ([(100, 50), (40, 300)], "32"),
        ([(20, 20), (10, 30)], "32"),
    ],
)
def test_the_size_follows_the_sizes_of_the_images(sizes, expected):
    choice = choose_size(sizes)
    assert (choice and choice.value) == expected


def test_warnings_are_given_where_they_help_and_not_elsewhere():
    assert warnings_of(PHOTOS, {"cat": 300, "dog": 500, "none": 0}, 0) == []
    few = dataclasses.replace(PHOTOS, images=400)
    texts = warnings_of(few, {"cat": 30, "dog": 370}, 3)
    for text, part in zip(
        texts, ("only 400 training images", "370 images of dog, but 30 of cat", "3 images are exact"),
        strict=True,
    ):  # fmt: skip
        assert part in text


def test_the_reason_for_the_steps_is_the_time_or_the_passes():
    """1,000 photos in batches of 10: 100 steps a pass."""
    fits = reason_for_steps(500, PHOTOS, 10, minutes=1.0, each=0.108)
    assert (
        fits
        == "what fits into 1 minute at 0.108 s a step, with validation: 5 passes over the training images"
    )
    few = reason_for_steps(1, PHOTOS, 10, minutes=0.5, each=20.0)
    assert few.startswith("what fits into 30 seconds at 20 s a step")
    capped = reason_for_steps(50_000, PHOTOS, 10, minutes=600.0, each=0.1)
    assert capped.startswith("500 passes over the training images: more would only overfit")
