"""Whether a figure of an evaluation is good or poor, beside its baselines, in a sentence. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..support import warnings

# A Frechet distance is good up to so many times that of training images, and poor above the second.
FRECHET_GOOD, FRECHET_POOR = 2, 10


def verdict(key: str, e: Mapping[str, Any]) -> str:
    """Whether the figure `key` of an evaluation is good: Good where it beats its baseline (with two, the better one),
    Poor where it beats none, Fair between them; "" where it has no baseline."""
    value = e.get(key)
    if value is None:
        return ""
    if key in ("psnr", "squared_error"):
        return of_reconstructions(key, value, e)
    if key == "bits_per_dim" and e.get("png_bits_per_dim") is not None:
        png, some = e["png_bits_per_dim"], subset(e, "png_images", "nll_images")
        return f"{word(value < png)}: PNG files of the same images{some} take {png:.4f}"
    if key in ("nll", "elbo") and e.get("independent_pixels_nll") is not None:
        sign = 1 if key == "nll" else -1
        nll = e["independent_pixels_nll"]
        return f"{word(sign * value < nll)}: of independent pixels it is {sign * nll:.2f}"
    if key in ("linear_probe", "knn", "many_to_one") and e.get("majority_share") is not None:
        share = e["majority_share"]
        return f"{word(value > share)}: naming always the largest class has {share:.4f}"
    if key.startswith("frechet_") and e.get("frechet_training") and key != "frechet_training":
        times = value / e["frechet_training"]
        judged = word(times <= FRECHET_GOOD, times <= FRECHET_POOR)
        return f"{judged}: {times:.1f} times that of training images"
    return ""


def word(good: bool, fair: bool = False) -> str:
    """Good, Fair or Poor."""
    return "Good" if good else "Fair" if fair else "Poor"


def of_reconstructions(key: str, value: float, e: Mapping[str, Any]) -> str:
    """Of the PSNR or squared error of reconstructions, beside PCA and the mean image, and a JPEG."""
    mean, pca = e.get(f"mean_image_{key}"), e.get(f"pca_{key}")
    if mean is None or pca is None:
        return ""
    sign = 1 if key == "psnr" else -1
    judged = word(sign * value >= sign * pca, sign * value > sign * mean)
    text = (
        f"{judged}: PCA of {e.get('pca_components')} components has {pca:.2f}, the mean image {mean:.2f}"
        f"{subset(e, 'baseline_images', 'reconstructed_images')}"
    )
    if key == "psnr" and e.get("jpeg_psnr") is not None and e.get("jpeg_bits_per_dim") is not None:
        text += f", a JPEG of {e['jpeg_bits_per_dim']:.2f} bits/dim {e['jpeg_psnr']:.2f}"
    return text


def subset(e: Mapping[str, Any], of: str, among: str) -> str:
    """How many of the images a baseline is of, where not of all."""
    count, total = e.get(of), e.get(among)
    return f" ({count:,} of them)" if count and total and count < total else ""


def evaluation_warnings(e: Mapping[str, Any]) -> list[str]:
    """What in an evaluation is not reliable, or says little, each with a remedy."""
    found, get = list[str](), e.get

    def known(*keys: str) -> bool:
        return all(get(key) is not None for key in keys)

    if known("nll") and get("nll_images"):
        if known("nll_bias"):
            annealed = get("estimator") == "ais"
            low = get("low_ess_images") or 0
            found.append(warnings.nll_bias(e["nll_bias"], low, e["nll_images"], annealed))
        found.append(warnings.few_nll_images(e["nll_images"], get("nll_image_standard_error")))
    if known("mutual_information", "mutual_information_limit"):
        found.append(
            warnings.information_ceiling(e["mutual_information"], e["mutual_information_limit"])
        )
    labelled = known("linear_probe") or known("many_to_one")
    if labelled and known("class_ratio", "majority_share"):
        found.append(warnings.imbalanced_accuracies(e["class_ratio"], e["majority_share"]))
    if known("largest_cluster"):
        of_prior = str(get("clusters")).endswith("of the prior")
        found.append(warnings.one_cluster(e["largest_cluster"], of_prior))
    if known("frechet_reconstructions", "frechet_images"):
        found.append(warnings.few_frechet_images(e["frechet_images"]))
    if known("frechet_reconstructions", "classifier_accuracy", "majority_share"):
        found.append(warnings.poor_classifier(e["classifier_accuracy"], e["majority_share"]))
    return [text for text in found if text]
