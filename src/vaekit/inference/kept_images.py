"""What a run keeps of its data, in RUN/exhibits.safetensors, so that pictures can be drawn where the data are not."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor

from ..data import Dataset, Frozen, Split, freeze, load_again
from ..data.dataset import Batch, Settled
from ..data.splits import in_turn, spread
from ..likelihood.clusters import batch_responsibilities
from ..likelihood.latent_use import batch_size, kl_per_dimension
from ..model.distributions import GaussianMixture, stddev
from ..model.graph import VAE
from ..runs.data import evaluation_images
from ..runs.directory import Run
from ..support.atomic import write
from ..support.devices import fast_float32, seeded
from ..support.errors import UserError, one_line, require

FILE = "exhibits.safetensors"
SPLITS = ("train", "test")
IMAGES = 200  # of a split that are kept, unless they are larger than so many bytes
BYTES = 2**23
EACH = 10  # of each class, and of each cluster
CODES = 10_000  # test images whose latents are kept
DRAWS = 10  # of an image's latents, for p(cluster | x)
CLUSTERS = 100  # a mixture of more components is not looked at as clusters
SEED = 3


@dataclass(frozen=True)
class Exhibits:
    """Some training and test images as the model sees them, and the latents of many test images.

    `batches`: by split (train, test), images (n, C, H, W) in [0, 1] with their labels; `rows`: which of the split's
    images these are, (n,). `codes`: by latent, posterior means (N, D) of the test images `code_rows` (N,), whose
    labels are `code_labels`; `scales`: their standard deviations. `kl`: by latent, (D,), nats (see health).
    Of a mixture prior `use` (K,) says what share of the test images each component has, and `clusters` (N, K) is
    p(cluster | x), unless the components are too many.
    """

    batches: dict[str, Batch]
    rows: dict[str, Tensor]
    code_rows: Tensor
    code_labels: Tensor | None
    codes: dict[str, Tensor]
    scales: dict[str, Tensor]
    kl: dict[str, Tensor]
    use: Tensor | None
    clusters: Tensor | None

    def places(self, rows: Tensor) -> Tensor:
        """Where the test images of these rows (n,), which are among `code_rows`, stand in the codes."""
        return torch.searchsorted(self.code_rows, rows)


def of_run(run: Run, model: VAE, data_dir: str | Path | None = None) -> Exhibits:
    """The exhibits of a run: those it keeps, or, where they are none of its present weights', made from its data.

    Raises UserError where neither is there.
    """
    path = run.path / FILE
    if path.is_file():
        kept = read(path, digest(run.weights_path))
        if kept is not None:
            return kept
    try:
        return keep(run, model, data_dir=data_dir)
    except UserError as error:
        raise UserError(
            f"{path} is missing, or of other weights, and would need the data: {error}"
        ) from None


def keep(
    run: Run, model: VAE, data: Dataset | None = None, data_dir: str | Path | None = None
) -> Exhibits:
    """Gather a run's exhibits from its data, with `model`, its best weights, and keep them in its directory."""
    if data is None:
        data = load_again(run.source, data_dir, str(run))
    device = next(model.parameters()).device
    model.eval()
    test = evaluation_images(run, "test", data, None)
    with torch.no_grad(), seeded(SEED, device), fast_float32(device):
        exhibits = gather(model, data.train, test, run.data.binarisation)
    content = save(pack(exhibits), {"weights": digest(run.weights_path)})
    write(run.path / FILE, content)
    return exhibits


def gather(model: VAE, train: Split, test: Frozen, binarisation: Settled) -> Exhibits:
    """The exhibits of two splits."""
    device = next(model.parameters()).device
    code_rows = spread(len(test), CODES)
    labels = None if test.labels is None else test.labels[code_rows]
    codes: dict[str, list[Tensor]] = {}
    scales: dict[str, list[Tensor]] = {}
    kl: dict[str, Tensor] = {}
    clusters: list[Tensor] = []
    for part in code_rows.split(batch_size(model)):
        batch = test.take(part).to(device)[:]
        given = model.given(batch.images, batch.labels)
        for name, q in model.posteriors({**given}).items():
            codes.setdefault(name, []).append(q.mean.cpu())
            scales.setdefault(name, []).append(stddev(q).cpu())
        for name, latent in model.infer({**given}, (len(batch),)).items():
            share = len(batch) / len(code_rows)
            kl[name] = kl.get(name, torch.zeros(())) + share * kl_per_dimension(latent).cpu()
            if isinstance(latent.prior, GaussianMixture):
                clusters.append(batch_responsibilities(model, batch, DRAWS).cpu())

    count = image_count(test.split)
    chosen = in_turn(labels, len(code_rows), count).sort().values
    found = torch.cat(clusters) if clusters else None
    few = found is not None and found.shape[1] <= CLUSTERS
    if found is not None and few:
        room = BYTES // (bytes_of_one(test.split) * found.shape[1])
        each = max(1, min(EACH, len(code_rows), room))
        chosen = torch.cat([chosen, found.topk(each, dim=0).indices.flatten()]).unique()
    rows = {"train": spread(len(train), count), "test": code_rows[chosen]}
    # Taken before it is frozen: all of a large training split is not read for a few images.
    seen = freeze(train.take(rows["train"]), binarisation)[:]
    return Exhibits(
        batches={"train": seen, "test": test[rows["test"]]},
        rows=rows,
        code_rows=code_rows,
        code_labels=labels,
        codes={name: torch.cat(parts) for name, parts in codes.items()},
        scales={name: torch.cat(parts) for name, parts in scales.items()},
        kl=kl,
        use=None if found is None else found.mean(0),
        clusters=found if few else None,
    )


def image_count(images: Split) -> int:
    """How many images to keep: fewer of large ones."""
    return max(EACH, min(IMAGES, BYTES // bytes_of_one(images)))


def bytes_of_one(images: Split) -> int:
    """Bytes of an image as it is kept."""
    first = images[:1].images
    return first.numel() * first.element_size()


def pack(exhibits: Exhibits) -> dict[str, Tensor]:
    """As tensors by name, 8-bit pixels in a byte each."""
    tensors: dict[str, Tensor | None] = {
        "code_rows": exhibits.code_rows,
        "code_labels": exhibits.code_labels,
        "use": exhibits.use,
        "clusters": exhibits.clusters,
    }
    for kind in ("codes", "scales", "kl"):
        tensors |= {f"{kind}.{name}": value for name, value in getattr(exhibits, kind).items()}
    for split, batch in exhibits.batches.items():
        images = batch.images.cpu()
        bytes_ = (images * 255).round().to(torch.uint8)
        exact = torch.equal(bytes_.float().div_(255), images)
        tensors[f"images.{split}"] = bytes_ if exact else images
        tensors[f"labels.{split}"] = batch.labels
        tensors[f"rows.{split}"] = exhibits.rows[split]
    return {name: t.cpu().contiguous() for name, t in tensors.items() if t is not None}


def read(path: Path, weights: str) -> Exhibits | None:
    """The exhibits in a file; None where they are of other weights. Raises UserError for a damaged file."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("weights") != weights:
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        parts: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            kind, _, key = name.partition(".")
            parts.setdefault(kind, {})[key] = tensor
        labels = parts.get("labels", {})
        images = {split: parts["images"][split] for split in SPLITS}
        return Exhibits(
            batches={
                split: Batch(x if x.is_floating_point() else x.float().div_(255), labels.get(split))
                for split, x in images.items()
            },
            rows={split: parts["rows"][split] for split in SPLITS},
            code_rows=tensors["code_rows"],
            code_labels=tensors.get("code_labels"),
            codes=parts["codes"],
            scales=parts["scales"],
            kl=parts["kl"],
            use=tensors.get("use"),
            clusters=tensors.get("clusters"),
        )
    except (safetensors.SafetensorError, KeyError) as error:
        raise UserError(f"{path} is damaged ({one_line(error)}); remove it") from None


def digest(path: Path) -> str:
    """Hash of a run's weights, which says whose exhibits these are."""
    require(path.is_file(), f"{path} is missing; the run has not saved any weights yet")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
