"""Each rule warns where its number is beyond the threshold, with a remedy, and says nothing where it is not."""

import math

import pytest

from vaekit.support import warnings

PROVOKED = [
    (warnings.few_steps(1999), "1,999 training steps", "--steps 2000 or more"),
    (warnings.class_imbalance({"cat": 100, "owl": 10, "elk": 0}), "cat has 100 training images, owl 10", "add images"),
    (warnings.imbalanced_accuracies(10, 0.5), "10 to 1", "right for 50%"),
    (warnings.nll_bias(0.2, 0, 1000, False), "0.20 nats too high: the samples miss", "more --samples"),
    (warnings.nll_bias(0.02, 11, 1000, True), "11 of 1,000 images", "more --temperatures"),
    (warnings.few_nll_images(99, 1.5), "only 99 images, whose choice alone may put it off by 3.0", "--limit"),
    (warnings.few_nll_images(1, None), "only 1 image; take 100", "hold out more"),
    (warnings.information_ceiling(4.6, math.log(100)), "ceiling", "at least"),
    (warnings.few_frechet_images(639), "only 639 images", "640 or more"),
    (warnings.poor_classifier(0.5, 0.1), "only 50%", "samples instead"),
    (warnings.poor_classifier(0.9, 0.85), "only 90%", "largest class: 85%"),
    (warnings.one_cluster(0.95), "one cluster has 95%", "more --start-epochs"),
    (warnings.one_cluster(0.95, of_prior=False), "one cluster has 95%", "try gmvae"),
]  # fmt: skip
SILENT = {
    "steps": warnings.few_steps(2000),
    "balanced": warnings.class_imbalance({"cat": 99, "owl": 10, "elk": 0}),
    "accuracies": warnings.imbalanced_accuracies(9.9, 0.9),
    "bias": warnings.nll_bias(0.1, 10, 1000, False),
    "nll": warnings.few_nll_images(100, 5.0),
    "information": warnings.information_ceiling(math.log(100) - 0.7, math.log(100)),
    "frechet": warnings.few_frechet_images(640),
    "classifier": warnings.poor_classifier(0.56, 0.1),
    "cluster": warnings.one_cluster(0.9),
}


@pytest.mark.parametrize(("text", "what", "remedy"), PROVOKED)
def test_a_number_beyond_its_threshold_is_warned_of_in_one_line_with_a_remedy(text, what, remedy):
    assert what in text
    assert remedy in text
    assert "\n" not in text


@pytest.mark.parametrize("rule", SILENT)
def test_a_number_within_its_threshold_is_not(rule):
    assert SILENT[rule] == ""
