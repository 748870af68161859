"""Clusters: which component of a mixture prior an image belongs to, and how well clusters agree with labels."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data import Dataset
from ..likelihood.clusters import responsibilities
from ..runs.data import evaluation_images
from ..runs.directory import Run
from ..runs.load import load
from ..support.atomic import write, write_json
from ..support.devices import fast_float32, find_device, seeded
from ..support.errors import require_count, require_seed

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Agreement:
    """Accuracies in [0, 1] of clusters as classes, on one set of images.

    `many_to_one`: each cluster takes the commonest label of its images. `most_confident`: that of the image it is
    surest of, as Dilokthanakul et al. 2016, section 5.1, have it. `hungarian`: one label a cluster and one cluster a
    label, at best (Yang et al. 2010, eq. 12); images of further clusters count as wrong. `nmi`: mutual information of
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
    samples: int = 10,
    seed: int = 0,
    data: Dataset | None = None,
    data_dir: str | Path | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Assign the images of a split to the clusters of a run's mixture.

    Writes RUN/clusters-<split>.csv (index, cluster, probability, label) and a .json beside it with what is returned:
    how many images and which label each cluster has and, where there are labels, the fields of Agreement.
    p(cluster | x) is the mean of p(cluster | z) over `samples` draws of z. Raises UserError where the prior is no
    mixture.
    """
    require_count("samples", samples)
    require_seed(seed)
    run, where = Run.of(run), find_device(device)
    model = load(run).to(where)
    images = evaluation_images(run, split, data, data_dir)
    with fast_float32(where), seeded(seed, where):
        probabilities = responsibilities(model, images.to(where), samples).cpu().numpy()
    assigned, surest = probabilities.argmax(1), probabilities.max(1)
    labels = None if images.labels is None else images.labels.numpy()
    clusters = probabilities.shape[1]
    result: dict[str, Any] = {
        "split": split,
        "images": len(images),
        "samples": samples,
        "seed": seed,
        "sizes": np.bincount(assigned, minlength=clusters).tolist(),
    }
    if labels is not None:
        counts = contingency(assigned, labels, clusters)
        result["labels"] = [int(row.argmax()) if row.any() else None for row in counts]
        result["purities"] = [float(row.max() / row.sum()) if row.any() else None for row in counts]
        result |= asdict(agreement(assigned, surest, labels, clusters))
    write_json(run.path / f"clusters-{split}.json", result)
    names = labels if labels is not None else [""] * len(images)
    rows = [
        f"{i},{k},{p:.6f},{name}"
        for i, (k, p, name) in enumerate(zip(assigned, surest, names, strict=True))
    ]
    text = "\n".join(["index,cluster,probability,label", *rows, ""])
    write(run.path / f"clusters-{split}.csv", text.encode())
    return result


def contingency(assigned: np.ndarray, labels: np.ndarray, clusters: int) -> np.ndarray:
    """How many images of each cluster have each label: (clusters, classes)."""
    counts = np.zeros((clusters, int(labels.max()) + 1), dtype=np.int64)
    np.add.at(counts, (assigned, labels), 1)
    return counts


def agreement(
    assigned: np.ndarray, surest: np.ndarray, labels: np.ndarray, clusters: int
) -> Agreement:
    """Cluster indices (N,), their probabilities (N,), labels (N,)."""
    from scipy.optimize import linear_sum_assignment
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    counts = contingency(assigned, labels, clusters)
    rows, columns = linear_sum_assignment(counts, maximize=True)
    confident = 0
    for k in range(clusters):
        members = np.flatnonzero(assigned == k)
        if len(members):
            confident += int((labels[members] == labels[members[surest[members].argmax()]]).sum())
    return Agreement(
        many_to_one=float(counts.max(1).sum() / len(labels)),
        most_confident=confident / len(labels),
        hungarian=float(counts[rows, columns].sum() / len(labels)),
        nmi=float(normalized_mutual_info_score(labels, assigned)),
        ari=float(adjusted_rand_score(labels, assigned)),
    )


def as_table(result: dict[str, Any]) -> Table:
    """What `cluster` found as a table for the screen."""
    from rich.table import Table

    labelled = "labels" in result
    table = Table(title=f"{result['images']:,} {result['split']} images", title_justify="left")
    for name in ["cluster", "images", *(["commonest label", "its share"] if labelled else [])]:
        table.add_column(name, justify="right")
    for k, size in enumerate(result["sizes"]):
        of = []
        if labelled:
            label, share = result["labels"][k], result["purities"][k]
            of = ["-", "-"] if label is None else [str(label), f"{share:.1%}"]
        table.add_row(str(k), f"{size:,}", *of)
    if labelled:
        table.caption = (
            f"accuracy {result['many_to_one']:.2%} many-to-one (a cluster's commonest label), "
            f"{result['most_confident']:.2%} by its surest image's label, "
            f"{result['hungarian']:.2%} one-to-one (Hungarian); "
            f"NMI {result['nmi']:.3f}, ARI {result['ari']:.3f}"
        )
        table.caption_justify = "left"
    return table
