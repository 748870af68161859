"""`cluster`: assign images to the components of a mixture prior, and measure agreement with labels."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data import Dataset
from ..likelihood.clusters import SAMPLES, responsibilities
from ..runs.data import evaluation_images
from ..runs.directory import Run, pad_with_numbers
from ..runs.load import load_trained
from ..support import warnings
from ..support.atomic import write_bytes, write_json
from ..support.devices import fast_float32, resolve_device
from ..support.errors import printable, require_count, require_seed
from ..support.escaping import csv_cell

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Agreement:
    """Agreement of clusters with labels on one set of images; the first three are accuracies in [0, 1].

    `many_to_one`: each cluster takes the most common label of its images. `most_confident`: that of its most confident
    image (Dilokthanakul et al. 2016, section 5.1). `hungarian`: the best one-to-one matching of clusters and labels
    (Yang et al. 2010, eq. 12); images of unmatched clusters count as wrong. `nmi`: mutual information of
    cluster and label over the mean of their entropies; `ari`: adjusted Rand index, 0 by chance (scikit-learn's).
    """

    many_to_one: float
    most_confident: float
    hungarian: float
    nmi: float
    ari: float


def cluster(
    run: Run | str | Path,
    split: str = "test",
    samples: int = SAMPLES,
    seed: int = 0,
    data: Dataset | None = None,
    data_dir: str | Path | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Assign the images of a split to the components of a run's mixture prior.

    Writes RUN/clusters-<split>.csv (index, cluster, probability, label, class), and the returned dict to a .json beside
    it: the size of each cluster, `warnings` and, where there are labels, its most common label, with its name, and the
    fields of Agreement.
    p(cluster | x) is the mean of p(cluster | z) over `samples` samples of z. Raises UserError where the prior is not a
    mixture.
    """
    require_count("samples", samples)
    require_seed(seed)
    run, torch_device = Run.of(run), resolve_device(device)
    trained = load_trained(run)
    model = trained.model.to(torch_device)
    images = evaluation_images(run, split, data, data_dir)
    with fast_float32(torch_device):
        probabilities = responsibilities(model, images, samples, seed).cpu().numpy()
    assigned, confidence = probabilities.argmax(1), probabilities.max(1)
    labels = None if images.labels is None else images.labels.numpy()
    clusters = probabilities.shape[1]
    result: dict[str, Any] = {
        "split": split,
        "images": len(images),
        "samples": samples,
        "seed": seed,
        "weights": trained.sha256,
        "sizes": np.bincount(assigned, minlength=clusters).tolist(),
    }
    warning = warnings.one_cluster(max(result["sizes"]) / len(images))
    result["warnings"] = [warning] if warning else []
    if labels is not None:
        names = pad_with_numbers(run.class_names, int(labels.max()) + 1)
        counts = contingency_table(assigned, labels, clusters)
        result["labels"] = [int(row.argmax()) if row.any() else None for row in counts]
        result["label_names"] = [None if k is None else names[k] for k in result["labels"]]
        result["purities"] = [float(row.max() / row.sum()) if row.any() else None for row in counts]
        result |= asdict(agreement(assigned, confidence, labels, clusters))
    write_json(run.file(f"clusters-{split}.json"), result)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["index", "cluster", "probability", "label", "class"])
    for i, (k, p) in enumerate(zip(assigned, confidence, strict=True)):
        label = ["", ""] if labels is None else [labels[i], csv_cell(names[labels[i]])]
        writer.writerow([i, k, f"{p:.6f}", *label])
    write_bytes(run.file(f"clusters-{split}.csv"), text.getvalue().encode())
    return result


def contingency_table(assigned: np.ndarray, labels: np.ndarray, clusters: int) -> np.ndarray:
    """Number of images by cluster and label: (clusters, classes)."""
    counts = np.zeros((clusters, int(labels.max()) + 1), dtype=np.int64)
    np.add.at(counts, (assigned, labels), 1)
    return counts


def agreement(
    assigned: np.ndarray, confidence: np.ndarray, labels: np.ndarray, clusters: int
) -> Agreement:
    """Compare cluster indices (N,), whose probabilities are `confidence` (N,), with labels (N,)."""
    from scipy.optimize import linear_sum_assignment
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    counts = contingency_table(assigned, labels, clusters)
    rows, columns = linear_sum_assignment(counts, maximize=True)
    most_confident = 0
    for k in range(clusters):
        members = np.flatnonzero(assigned == k)
        if len(members):
            label = labels[members[confidence[members].argmax()]]
            most_confident += int((labels[members] == label).sum())
    return Agreement(
        many_to_one=float(counts.max(1).sum() / len(labels)),
        most_confident=most_confident / len(labels),
        hungarian=float(counts[rows, columns].sum() / len(labels)),
        nmi=float(normalized_mutual_info_score(labels, assigned)),
        ari=float(adjusted_rand_score(labels, assigned)),
    )


def as_table(result: dict[str, Any]) -> Table:
    """The result of `cluster` as a table for the terminal."""
    from rich.table import Table

    labelled = "labels" in result
    table = Table(title=f"{result['images']:,} {result['split']} images", title_justify="left")
    for name in ["cluster", "images", *(["most common label", "purity"] if labelled else [])]:
        table.add_column(name, justify="right")
    for k, size in enumerate(result["sizes"]):
        cells = []
        if labelled:
            name, purity = result["label_names"][k], result["purities"][k]
            cells = ["-", "-"] if name is None else [printable(name), f"{purity:.1%}"]
        table.add_row(str(k), f"{size:,}", *cells)
    if labelled:
        table.caption = (
            f"accuracy {result['many_to_one']:.2%} many-to-one (a cluster's most common label), "
            f"{result['most_confident']:.2%} by its most confident image's label, "
            f"{result['hungarian']:.2%} one-to-one (Hungarian); "
            f"NMI {result['nmi']:.3f}, ARI {result['ari']:.3f}"
        )
        table.caption_justify = "left"
    return table
