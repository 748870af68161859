"""Images and latents that a run stores in RUN/picture_data.safetensors, so that pictures need no data set."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor

from ..data import Dataset, EvalSplit, Split, eval_split
from ..data.dataset import Batch, ResolvedBinarisation
from ..data.splits import balanced_rows, evenly_spaced
from ..likelihood.clusters import responsibilities
from ..likelihood.latent_use import (
    batch_size,
    code_latents,
    code_posteriors,
    kl_per_dimension,
    lists_groups,
)
from ..model.distributions import GaussianMixture, stddev
from ..model.graph import VAE
from ..runs.data import evaluation_images, reload_data
from ..runs.directory import Run
from ..runs.load import TrainedModel
from ..runs.schema import check_picture_tensors
from ..runs.weights import DAMAGE, read_header
from ..settings.analysis import parse_bands
from ..settings.data import MAX_CLASSES
from ..support.atomic import write_bytes
from ..support.devices import fast_float32, seeded
from ..support.errors import UserError, one_line, require

if TYPE_CHECKING:
    from ..pictures import Bands

FILE_NAME = "picture_data.safetensors"
OLD_FILE_NAME = "exhibits.safetensors"  # in runs from before November 2026
SPLITS = ("train", "test")
MAX_IMAGES = 200  # stored per split, fewer where they exceed MAX_BYTES
MAX_BYTES = 2**23
MIN_IMAGES = 3
IMAGES_PER_CLASS = 10  # and per cluster
MAX_CODES = 10_000  # test images whose latents are stored, fewer where they exceed MAX_CODE_BYTES
MAX_CODE_BYTES = 2**24
MAX_CLUSTERS = 100  # with more components, p(cluster | x) is not stored
SEED = 3


@dataclass(frozen=True)
class PictureData:
    """Some training and test images as the model sees them, and the latents of many test images.

    `batches`: by split (train, test), images (n, C, H, W) in [0, 1] with their labels; `rows`: their indices in the
    split, (n,). `codes`: by latent (of a deep hierarchy the top groups), posterior means (N, D) of the test images
    `code_rows` (N,), whose labels are `code_labels`; `scales`: their standard deviations. `kl`: by latent, (D,), nats
    (see latent_use).
    For a mixture prior, `clusters` (N, K) is p(cluster | x), None with too many components, and `component_shares` (K,)
    its mean over images.
    """

    batches: dict[str, Batch]
    rows: dict[str, Tensor]
    code_rows: Tensor
    code_labels: Tensor | None
    codes: dict[str, Tensor]
    scales: dict[str, Tensor]
    kl: dict[str, Tensor]
    component_shares: Tensor | None
    clusters: Tensor | None

    def positions(self, rows: Tensor) -> Tensor:
        """Indices in the codes of the test images `rows` (n,), all of which are in `code_rows`."""
        return torch.searchsorted(self.code_rows, rows)


def load_or_create(
    run: Run, trained: TrainedModel, data_dir: str | Path | None = None
) -> PictureData:
    """The picture data of a run: read from a file that belongs to the weights of the model, else created from its data.

    Raises UserError where neither is available.
    """
    path = run.file(FILE_NAME)
    # The last weights may also be the best.
    files = dict.fromkeys((path, run.inside(FILE_NAME), run.inside(OLD_FILE_NAME)))
    for file in (file for file in files if file.is_file()):
        picture_data = read(file, trained.sha256, trained.model)
        if picture_data is not None:
            return picture_data
    try:
        return create(run, trained, data_dir=data_dir)
    except UserError as error:
        raise UserError(
            f"{path} is missing or belongs to other weights, and creating it needs the data: {error}"
        ) from None


def create(
    run: Run,
    trained: TrainedModel,
    data: Dataset | None = None,
    data_dir: str | Path | None = None,
) -> PictureData:
    """Create a run's picture data from its data set, and write it to the run with the hash of the model's weights."""
    if data is None:
        data = reload_data(run, data_dir)
    model = trained.model.eval()
    device = next(model.parameters()).device
    test = evaluation_images(run, "test", data, None)
    with torch.no_grad(), seeded(SEED, device), fast_float32(device):
        picture_data = collect(model, data.train, test, run.data.binarisation)
    content = save(to_tensors(picture_data), {"weights": trained.sha256})
    write_bytes(run.file(FILE_NAME), content)
    return picture_data


def collect(
    model: VAE, train: Split, test: EvalSplit, binarisation: ResolvedBinarisation
) -> PictureData:
    """Choose images of the two splits, and encode the test images."""
    device = next(model.parameters()).device
    sizes = posterior_sizes(model)
    code_bytes = 8 * sum(sizes[name] for name in code_latents(model))
    code_rows = evenly_spaced(len(test), max(1, min(MAX_CODES, MAX_CODE_BYTES // code_bytes)))
    labels = None if test.labels is None else test.labels[code_rows]
    codes: dict[str, list[Tensor]] = {}
    scales: dict[str, list[Tensor]] = {}
    kl: dict[str, Tensor] = {}
    has_mixture = False
    for part in code_rows.split(batch_size(model)):
        batch = test.take(part).to(device)[:]
        values = model.given(batch.images, batch.labels)
        for name, q in code_posteriors(model, values).items():
            codes.setdefault(name, []).append(q.mean.cpu())
            scales.setdefault(name, []).append(stddev(q).cpu())
        for name, latent in model.infer(values, (len(batch),)).items():
            share = len(batch) / len(code_rows)
            each = kl_per_dimension(latent).cpu()
            if (
                lists_groups(model) and each.isnan().any()
            ):  # of a flow: its dimensions are not told apart
                each = torch.full_like(each, float(latent.kl.mean()) / len(each))
            kl[name] = kl.get(name, torch.zeros(())) + share * each
            has_mixture |= isinstance(latent.prior, GaussianMixture)

    count = num_images(test.split)
    chosen = balanced_rows(labels, len(code_rows), count).sort().values
    clusters = responsibilities(model, test.take(code_rows)).cpu() if has_mixture else None
    component_shares = None if clusters is None else clusters.mean(0)
    if clusters is not None and clusters.shape[1] > MAX_CLUSTERS:
        clusters = None
    if clusters is not None:
        fitting = MAX_BYTES // (bytes_per_image(test.split) * clusters.shape[1])
        per_cluster = max(1, min(IMAGES_PER_CLASS, len(code_rows), fitting))
        most_confident = clusters.topk(per_cluster, dim=0).indices.flatten()
        chosen = torch.cat([chosen, most_confident]).unique()
    rows = {"train": training_rows(train), "test": code_rows[chosen]}
    return PictureData(
        batches={"train": training_examples(train, binarisation), "test": test[rows["test"]]},
        rows=rows,
        code_rows=code_rows,
        code_labels=labels,
        codes={name: torch.cat(parts) for name, parts in codes.items()},
        scales={name: torch.cat(parts) for name, parts in scales.items()},
        kl=kl,
        component_shares=component_shares,
        clusters=clusters,
    )


def training_rows(train: Split) -> Tensor:
    """The rows of the training images that are stored."""
    return evenly_spaced(len(train), num_images(train))


def training_examples(train: Split, binarisation: ResolvedBinarisation) -> Batch:
    """The training images that are stored, as the model sees them."""
    # The rows are taken before binarisation, so that a large training split is not read for a few images.
    return eval_split(train.take(training_rows(train)), binarisation)[:]


def run_bands(run: Run, chosen: str | None, images: Tensor) -> Bands:
    """How to show `images` of a run: the bands `chosen`, or by default the same for all pictures of the run, fitted to
    the training images that it stores (to these where it stores none). Raises UserError."""
    from ..pictures import choose_bands

    return choose_bands(stored_examples(run, images), parse_bands(chosen))


def stored_examples(run: Run, default: Tensor) -> Tensor:
    """The stored training images of a run (n, C, H, W), which are the same for all its weights, or `default`."""
    shape = run.blueprint.shape
    for path in (run.file(FILE_NAME), run.inside(FILE_NAME)) if shape[0] > 3 else ():
        with contextlib.suppress(*DAMAGE, KeyError), safetensors.safe_open(path, "pt") as file:
            sizes = read_header(path)["images.train"][1]
            if sizes[1:] == shape:
                return as_pixels(file.get_tensor("images.train"))
    return default


def as_pixels(stored: Tensor) -> Tensor:
    """Stored images as floats in [0, 1]."""
    return stored if stored.is_floating_point() else stored.float().div_(255)


def num_images(images: Split) -> int:
    """How many images of a split to store: up to MAX_IMAGES in MAX_BYTES; of large images ten in four times as many
    bytes, and of larger ones fewer, but at least MIN_IMAGES."""
    size = bytes_per_image(images)
    few = min(IMAGES_PER_CLASS, 4 * MAX_BYTES // size)
    return max(MIN_IMAGES, few, min(MAX_IMAGES, MAX_BYTES // size))


def bytes_per_image(images: Split) -> int:
    """Bytes of one stored image."""
    first = images[:1].images
    return first.numel() * first.element_size()


def to_tensors(picture_data: PictureData) -> dict[str, Tensor]:
    """The picture data as tensors by name, with 8-bit pixels as uint8."""
    tensors: dict[str, Tensor | None] = {
        "code_rows": picture_data.code_rows,
        "code_labels": picture_data.code_labels,
        "use": picture_data.component_shares,
        "clusters": picture_data.clusters,
    }
    for kind in ("codes", "scales", "kl"):
        tensors |= {f"{kind}.{name}": value for name, value in getattr(picture_data, kind).items()}
    for split, batch in picture_data.batches.items():
        images = batch.images.cpu()
        levels = (images * 255).round().to(torch.uint8)
        exact = torch.equal(levels.float().div_(255), images)
        tensors[f"images.{split}"] = levels if exact else images
        tensors[f"labels.{split}"] = batch.labels
        tensors[f"rows.{split}"] = picture_data.rows[split]
    return {name: t.cpu().contiguous() for name, t in tensors.items() if t is not None}


def read(path: Path, weights: str, model: VAE) -> PictureData | None:
    """Read the picture data of a model from a file; None if it belongs to other weights, or has the codes of other
    groups. Raises UserError for a damaged file."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("weights") != weights:
                return None
            sizes, coded, headers = posterior_sizes(model), code_latents(model), read_header(path)
            stored = {name.partition(".")[2] for name in headers if name.startswith("codes.")}
            if lists_groups(model) and stored != {*coded} and stored <= sizes.keys():
                return None  # of a version that stored the codes of other groups
            check_picture_tensors(headers, sizes, model.blueprint.shape, coded)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        conditional = model.blueprint.settings.condition == "label"
        check_values(tensors, model.blueprint.classes if conditional else MAX_CLASSES)
        parts: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            kind, _, key = name.partition(".")
            parts.setdefault(kind, {})[key] = tensor
        labels = parts.get("labels", {})
        images = {split: parts["images"][split] for split in SPLITS}
        return PictureData(
            batches={split: Batch(as_pixels(x), labels.get(split)) for split, x in images.items()},
            rows={split: parts["rows"][split] for split in SPLITS},
            code_rows=tensors["code_rows"],
            code_labels=tensors.get("code_labels"),
            codes=parts["codes"],
            scales=parts["scales"],
            kl=parts["kl"],
            component_shares=tensors.get("use"),
            clusters=tensors.get("clusters"),
        )
    except (*DAMAGE, KeyError) as error:
        raise UserError(f"{path} is damaged ({one_line(error)}); remove it") from None


@torch.no_grad()
def posterior_sizes(model: VAE) -> dict[str, int]:
    """The dimensions of all latents, by name."""
    image = next(model.parameters()).new_zeros(1, *model.blueprint.shape)
    posteriors = model.posteriors(model.given(image, torch.zeros(1, dtype=torch.int64)))
    return {name: q.mean.shape[-1] for name, q in posteriors.items()}


def check_values(tensors: dict[str, Tensor], classes: int) -> None:
    """Raise UserError unless the tensors of a file have values that picture data can have."""
    for name, values in tensors.items():
        kind = name.partition(".")[0]
        if kind in ("code_labels", "labels"):
            allowed = bool(((values >= 0) & (values < classes)).all())
        elif kind in ("code_rows", "rows"):
            allowed = bool((values >= 0).all() & (values.diff() > 0).all())
        elif kind == "images":
            allowed = bool(
                ((values >= 0) & (values <= (1 if values.is_floating_point() else 255))).all()
            )
        else:  # KL and scales are NaN where they are unknown
            known = values.isfinite() | (values.isnan() if kind == "scales" else False)
            allowed = kind not in ("codes", "scales", "use", "clusters") or bool(known.all())
        require(allowed, f"{name} has values that are not possible")
    known = torch.isin(tensors["rows.test"], tensors["code_rows"])
    require(bool(known.all()), "rows.test has images without latents")
