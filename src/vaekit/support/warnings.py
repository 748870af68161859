"""When a number or a training deserves a warning: a function per rule, from plain numbers to one line (what is wrong,
what to do), "" where there is nothing to warn of. The thresholds are here together, each with its reason.

They are called where their numbers are computed. Warnings of what a training does to its latents are beside those
measurements, in likelihood/latent_use.py and training/monitor.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from .errors import printable

# Twice as many steps gain a vae 17 nats on 5,000 digits from 800 on, 10 nats from 1,600 on (docs/measuring.md).
MIN_STEPS = 2000
# A class with a tenth of the images of another one: its share of the loss, and of any accuracy, is a tenth too.
MAX_CLASS_RATIO = 10
NLL_BIAS = 0.1  # nats, by which models of digits are ranked
# The NLLs of images differ by a third of their mean; the mean of 100 is known to about 6 % of itself.
MIN_NLL_IMAGES = 100
# Nats between the estimate of the mutual information and log N, which it cannot exceed: there an image's own posterior
# has half of the density of the aggregate at its code, and the estimate is of N rather than of the model.
CEILING_MARGIN = math.log(2)
# Ten for each of the 64 features: two halves of one set are then 3 to 5 % of its variance apart, with 100 images 20 to
# 34 % (samples of Gaussians with variances 1/d, and all 1).
MIN_FRECHET_IMAGES = 640
# Of the way from naming always the largest class to no error: below, the features hardly see what is in the images.
MIN_CLASSIFIER_SKILL = 0.5
# Of the images in one cluster: the others are then left with less than a tenth.
MAX_CLUSTER_SHARE = 0.9


def few_steps(total: int) -> str:
    """Of a training of so many steps."""
    if total >= MIN_STEPS:
        return ""
    return (
        f"{total:,} training steps are few: under {MIN_STEPS:,} a network is far from what it can learn; pass "
        f"--steps {MIN_STEPS} or more"
    )


def class_imbalance(sizes: Mapping[str, int]) -> str:
    """Of a model conditional on labels; `sizes`: training images by class."""
    present = {name: size for name, size in sizes.items() if size}
    small, large = (pick(present, key=present.__getitem__) for pick in (min, max))
    if present[large] < MAX_CLASS_RATIO * present[small]:
        return ""
    return (
        f"the classes are imbalanced: {printable(large)} has {present[large]:,} training images, {printable(small)} "
        f"{present[small]:,}; a model conditional on them draws rare classes poorly: add images of these, or take "
        "fewer of the others"
    )


def imbalanced_accuracies(ratio: float, majority: float) -> str:
    """Of accuracies; `ratio`: images of the largest class for one of the smallest, `majority`: the largest's share."""
    if ratio < MAX_CLASS_RATIO:
        return ""
    return (
        f"the classes are imbalanced, {ratio:,.0f} to 1: naming always the largest is right for {majority:.0%}, so "
        "read accuracies beside that, or NMI and ARI instead"
    )


def nll_bias(bias: float, low_ess: int, images: int, annealed: bool) -> str:
    """Of an NLL that may be `bias` nats too high, or whose samples have a low effective size for over 1 % of images."""
    if bias <= NLL_BIAS and low_ess <= 0.01 * images:
        return ""
    remedy = "more --temperatures" if annealed else "more --samples, or --estimator ais"
    reason = f"{low_ess:,} of {images:,} images have a low effective sample size"
    if low_ess <= 0.01 * images:
        reason = "the samples miss likelihood of some images"
    return f"the NLL may be {bias:.2f} nats too high: {reason}; try {remedy}"


def few_nll_images(images: int, error: float | None) -> str:
    """Of an NLL of so many images, with the standard error that comes from their choice."""
    if images >= MIN_NLL_IMAGES:
        return ""
    off = "" if error is None else f", whose choice alone may put it off by {2 * error:,.1f} nats"
    return (
        f"the NLL is of only {images:,} image{'s' * (images != 1)}{off}; take {MIN_NLL_IMAGES} or more with --limit, "
        "or hold out more images"
    )


def information_ceiling(information: float, limit: float) -> str:
    """Of a mutual information, nats, that is at most `limit`, the logarithm of the number of images."""
    if limit - information > CEILING_MARGIN:
        return ""
    return (
        f"the mutual information is at its ceiling, the logarithm of the number of images ({limit:.2f}): read it as at "
        "least that, and the marginal KL as at most its value; the KL tells more"
    )


def few_frechet_images(images: int) -> str:
    """Of a Frechet distance of so many images."""
    if images >= MIN_FRECHET_IMAGES:
        return ""
    return (
        f"the Frechet distances are of only {images:,} images, and too large by chance: compare them with that of "
        f"training images alone, or take {MIN_FRECHET_IMAGES} or more"
    )


def poor_classifier(accuracy: float, majority: float) -> str:
    """Of a Frechet distance in the features of a classifier; `majority`: the share of the largest class."""
    if accuracy - majority >= MIN_CLASSIFIER_SKILL * (1 - majority):
        return ""
    return (
        f"the classifier of the Frechet distances is right for only {accuracy:.0%} of its validation images (naming "
        f"always the largest class: {majority:.0%}): its features see little; look at samples instead"
    )


def one_cluster(share: float, of_prior: bool = True) -> str:
    """Of clusters of which the largest has this share of the images; `of_prior`: components of the model's prior."""
    if share <= MAX_CLUSTER_SHARE:
        return ""
    remedy = "more --start-epochs, a longer --kl-warmup or another --seed"
    return f"one cluster has {share:.0%} of the images: the others found nothing; " + (
        f"train with {remedy}" if of_prior else "the latents have no such groups; try gmvae"
    )
