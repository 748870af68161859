"""How well scores tell odd images, and maps odd pixels, where labels and masks say which these are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.sources.inputs import find_image_files, read_images
from ..data.sources.layout import MASKS, NORMAL
from ..inference.generation import image_fit
from ..inference.tables import Columns
from ..runs.directory import Run
from ..support.console import ProgressBar
from ..support.errors import did_you_mean, printable, require

NORMAL_CLASSES = (NORMAL, "normal")


def detection(table: Columns, normal: Sequence[str], classes: Sequence[str]) -> dict[str, Any]:
    """How well the scores tell odd images from normal ones, where classes tell which are odd; adds their column `odd`.

    AUROC and average precision are scikit-learn's, None unless there are images of both kinds. `normal_classes`: those
    of `normal`, else good or normal, else those of the training. Raises UserError for a class that no image has.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    facts: dict[str, Any] = dict.fromkeys(
        ("normal_classes", "normal_images", "odd_images", "auroc", "average_precision", "found")
    )
    facts["normal_flagged"] = None
    column = table.get("class", table.get("label"))
    if column is None:
        require(not normal, "--normal needs classes, and these images have none")
        return facts
    names = column.astype(str)
    there = sorted(set(names.tolist()) - {""})
    for name in normal:
        require(
            name in there,
            f"--normal {printable(name)}: no image is of this class{did_you_mean(name, there)} (classes: "
            f"{', '.join(map(printable, there[:20]))})",
        )
    usual = [*normal] or [name for name in there if name.lower() in NORMAL_CLASSES]
    usual = usual or [name for name in there if name in classes and "class" in table]
    if not usual:
        return facts
    known = names != ""
    odd = ~np.isin(names, usual)
    table["odd"] = np.where(known, odd.astype(np.int64), -1)
    truth, scores, flagged = odd[known], table["score"][known], table["flagged"][known]
    facts |= {
        "normal_classes": usual,
        "normal_images": int((~truth).sum()),
        "odd_images": int(truth.sum()),
    }
    if truth.any():
        facts["found"] = float(flagged[truth].mean())
    if not truth.all():
        facts["normal_flagged"] = float(flagged[~truth].mean())
    if truth.any() and not truth.all():
        finite = np.nan_to_num(scores, posinf=np.finfo(np.float64).max)
        facts["auroc"] = float(roc_auc_score(truth, finite))
        facts["average_precision"] = float(average_precision_score(truth, finite))
    return facts


def read_masks(run: Run, origin: Columns) -> tuple[Tensor, Tensor]:
    """The rows (n,) of the images whose odd pixels are known in the layout of MVTec-AD, and which these are, bool
    (n, H, W): none of a normal image. No rows where there are no masks."""
    shape = run.blueprint.shape[1:]
    found = {
        row: mask for row, path in enumerate(origin.get("path", ())) if (mask := mask_file(path))
    }
    if not found:
        return torch.zeros(0, dtype=torch.int64), torch.zeros(0, *shape, dtype=torch.bool)
    files = find_image_files([*found.values()])
    levels = read_images(files, (1, *shape), ProgressBar(False), image_fit(run))[:, 0]
    usual = [row for row, name in enumerate(origin["class"]) if name == NORMAL]
    masks = torch.cat(
        [levels > levels.amax() / 2, torch.zeros(len(usual), *shape, dtype=torch.bool)]
    )
    return torch.tensor([*found, *usual]), masks


def mask_file(image: str) -> Path | None:
    """The mask of test/DEFECT/NAME.png, ground_truth/DEFECT/NAME_mask.png or NAME.png; None where there is none."""
    path = Path(image)
    if len(path.parts) < 3 or path.parts[-3].lower() != "test":
        return None
    folder = path.parents[2] / MASKS / path.parent.name
    names = (f"{path.stem}_mask{path.suffix}", f"{path.stem}_mask.png", path.name)
    return next((folder / name for name in names if (folder / name).is_file()), None)


def pixel_auroc(pixels: Sequence[tuple[Tensor, Tensor]]) -> float | None:
    """AUROC of maps (n, H, W) for the odd pixels of all images together; None without both kinds of pixels."""
    from sklearn.metrics import roc_auc_score

    if not pixels:
        return None
    maps, masks = (torch.cat(parts).flatten().numpy() for parts in zip(*pixels, strict=True))
    return float(roc_auc_score(masks, maps)) if masks.any() and not masks.all() else None
