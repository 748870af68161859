"""The rules of `vaekit plan`: which settings for which data, with the numbers and their reasons. Imports no torch."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..support.errors import printable
from ..support.warnings import MAX_CLASS_RATIO

SIDES = (64, 32)  # pixels: the largest that the images have is chosen
TWO_TONE = 0.85  # share of pixels that are almost black or white, from which grey images count as black and white
FEW_IMAGES = 500  # of training, below which a plan warns
MOST_PASSES = 500  # over the training images
FASTER = 0.9  # bfloat16 is chosen where its step takes at most this share of the time in float32
STEPS_SHARE = 0.9  # of the time; the rest is for saving, for measuring the latents, and for the pictures' data


@dataclass(frozen=True)
class Facts:
    """What the rules look at: the number of training images, their size in pixels, the levels of a pixel (None: not
    discrete), the share of pixels within a tenth of black or white, and whether the literature binarises the set."""

    images: int
    channels: int
    height: int
    width: int
    levels: int | None = 256
    two_tone: float = 0.0
    black_and_white: bool = False

    @property
    def side(self) -> int:
        return max(self.height, self.width)


@dataclass(frozen=True)
class Choice:
    """The value of a setting, with the reason for it."""

    value: Any
    reason: str


@dataclass(frozen=True)
class Rule:
    """A model for the data of which `fits` holds, unless the time is too short for `least_steps`; and its settings."""

    model: Choice
    fits: Callable[[Facts], bool]
    settings: Callable[[Facts], Mapping[str, Choice]]
    least_steps: int = 0


def deep_settings(facts: Facts) -> dict[str, Choice]:
    return {"batch_size": Choice(32, "the size that this model's learning rate was chosen for")}


def conv_settings(facts: Facts) -> dict[str, Choice]:
    small = facts.images < 5000
    return {
        "latent_dim": Choice(
            32 if facts.side <= 32 else 64,
            "dimensions that the images do not need stay at the prior and cost little",
        ),
        "batch_size": Choice(
            32 if small else 100,
            "few images: small batches make more steps of them" if small else "the default",
        ),
        "learning_rate": Choice(
            3e-3, "the best of a convvae in trainings of minutes (docs/design/0029)"
        ),
    }


def dense_settings(facts: Facts) -> dict[str, Choice]:
    return {"latent_dim": Choice(20, "the default; what the images do not need costs little")}


# The first that fits, and has time for its least number of steps, is taken; the last one otherwise.
RULES: tuple[Rule, ...] = (
    Rule(
        Choice("deepvae", "colour images of 32 pixels and more: latents at every resolution hold their details"),
        lambda facts: facts.channels == 3 and facts.side >= 32,
        deep_settings,
        least_steps=500,
    ),
    Rule(
        Choice("convvae", "convolutions use that neighbouring pixels are related, and are fast"),
        lambda facts: min(facts.height, facts.width) >= 8,
        conv_settings,
    ),
    Rule(Choice("vae", "the images are too small for convolutions"), lambda _: True, dense_settings),
)  # fmt: skip


def fitting(facts: Facts) -> list[Rule]:
    """The rules that fit, up to the first that needs no least number of steps."""
    rules = [rule for rule in RULES if rule.fits(facts)]
    end = next(i for i, rule in enumerate(rules) if not rule.least_steps)
    return rules[: end + 1]


def choose_likelihood(facts: Facts) -> Choice:
    """The distribution of the pixels."""
    if facts.black_and_white:
        return Choice("bernoulli", "this set is binarised in the literature, anew at every step")
    if facts.channels == 1 and facts.two_tone >= (1 if facts.levels is None else TWO_TONE):
        binarised = "" if facts.two_tone == 1 else "; grey ones are binarised anew at every step"
        return Choice(
            "bernoulli", f"{facts.two_tone:.0%} of the pixels are black or white{binarised}"
        )
    if facts.levels is None:
        return Choice("gaussian", "the pixels are floats, without levels")
    if facts.channels == 3:
        return Choice(
            "logistic-mixture",
            f"{facts.levels:,} levels; it models how the colours of a pixel go together",
        )
    return Choice("logistic", f"{facts.levels:,} levels, so that bits/dim mean something")


def choose_size(sizes: Sequence[tuple[int, int]]) -> Choice | None:
    """The --size for images of these sizes (height, width), or None to keep them as they are."""
    if not sizes:
        return None
    largest = SIDES[0]
    if len(set(sizes)) == 1:
        height, width = sizes[0]
        if max(height, width) <= largest:
            return None
        scale = largest / max(height, width)
        height, width = (max(4, 4 * round(side * scale / 4)) for side in (height, width))
        return Choice(
            str(height) if height == width else f"{height}x{width}",
            f"all are {sizes[0][0]} x {sizes[0][1]} pixels; a step on twice the size takes four times as long",
        )
    median = statistics.median_low([min(size) for size in sizes])
    side = next((side for side in SIDES if side <= median), SIDES[-1])
    return Choice(
        str(side),
        f"their sizes differ, the shorter sides around {median} pixels; a step on twice the size takes four times as "
        "long",
    )


def warnings_of(facts: Facts, class_sizes: Mapping[str, int], repeated: int) -> list[str]:
    """Warnings on the data, each with what to do: few images, classes of very different size, exact copies."""
    found = []
    if facts.images < FEW_IMAGES:
        found.append(
            f"only {facts.images:,} training images: a model overfits so few; more images help most, then --augment, "
            "such as hflip where mirrored images look as real"
        )
    sizes = {name: count for name, count in class_sizes.items() if count}
    if len(sizes) > 1:
        largest, smallest = (pick(sizes, key=sizes.__getitem__) for pick in (max, min))
        if sizes[largest] >= MAX_CLASS_RATIO * sizes[smallest]:
            found.append(
                f"classes differ in size: {sizes[largest]:,} images of {printable(largest)}, but "
                f"{sizes[smallest]:,} of {printable(smallest)}; means over all images say little of the small ones"
            )
    if repeated:
        what = f"{repeated:,} images are exact copies of others; remove them, as they count twice"
        found.append(
            what if repeated > 1 else "1 image is an exact copy of another; remove one of them"
        )
    return found


def reason_for_steps(steps: int, facts: Facts, batch_size: int, minutes: float, each: float) -> str:
    """Why this number of steps, where one takes `each` seconds."""
    passes = steps / -(-facts.images // batch_size)
    time = (
        f"{minutes:g} minute{'s' * (minutes != 1)}"
        if minutes >= 1
        else f"{60 * minutes:.3g} seconds"
    )
    seen = f"{passes:.3g} passes over the training images"
    if passes > 0.9 * MOST_PASSES:  # rounded down
        return f"{seen}: more would only overfit, though {time} allow it at {each:.3g} s a step"
    return f"what fits into {time} at {each:.3g} s a step, with validation: {seen}"
