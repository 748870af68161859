"""A trained model as files that other programs run: encoder, decoder and prior in ONNX, or by torch.export."""

from __future__ import annotations

import importlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..likelihood.importance import prepared
from ..model.conditions import Quadrants
from ..model.distributions import GaussianMixture, stddev
from ..model.graph import VAE
from ..runs.directory import Run
from ..runs.load import load
from ..support.atomic import write, write_json
from ..support.errors import UserError, require
from .generation import latent_sizes

Format = Literal["onnx", "torch"]
Named = dict[str, Tensor]
ENDINGS: Mapping[Format, str] = {"onnx": "onnx", "torch": "pt2"}
OPSET = 20
TOLERANCE = 1e-5


def export(
    run: Run | str | Path, out: str | Path, format: Format = "onnx"
) -> dict[str, dict[str, Any]]:
    """Write encoder, decoder and prior of a run into the folder `out`, and model.json, which describes them.

    Each is a function of tensors whose first dimension is the batch, of any size. What it computes is compared with the
    model on other numbers and another batch size. Gives, by file: `inputs` and `outputs`, shapes by name, and
    `largest_difference`, relative to numbers above 1. Raises UserError where what the format needs is not installed,
    or where a difference is above 1e-5.
    """
    run, folder = Run.of(run), Path(out).expanduser()
    need = ("onnx", "onnxscript", "onnxruntime") if format == "onnx" else ()
    for name in need:
        try:
            importlib.import_module(name)
        except ImportError:
            raise UserError(f"{name} is not installed: pip install 'vaekit[onnx]'") from None
    model = prepared(load(run), "float32").eval()
    contents, about = {}, {}
    with torch.no_grad():
        for name, work in PARTS.items():
            file = f"{name}.{ENDINGS[format]}"
            contents[file], about[file] = traced(model, work, name, format)
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in contents.items():
        write(folder / file, content)
    blueprint = model.blueprint
    settings = {
        "model": blueprint.model,
        "shape": blueprint.shape,
        "latents": latent_sizes(blueprint),
        "likelihood": blueprint.settings.likelihood,
        "binarisation": run.data.binarisation,
        "condition": blueprint.settings.condition,
        "classes": blueprint.classes,
    }
    write_json(folder / "model.json", {**settings, "files": about})
    return about


def encoder(model: VAE, given: Named) -> Named:
    """Images x (B, C, H, W) in [0, 1], and labels y (B,): mean and standard deviation of each latent, given the means
    of those before it."""
    found: Named = {}
    for name, q in model.posteriors(model.given(given["x"], given.get("y"))).items():
        found |= {f"{name}_mean": q.mean, f"{name}_scale": stddev(q)}
    return found


def decoder(model: VAE, given: Named) -> Named:
    """Latents (B, D), and labels y (B,) or images y of which parts are given: mean pixels in [0, 1]."""
    latents = {name: given[name] for name in latent_sizes(model.blueprint)}
    return {"pixels": model.decode(given.get("y"), **latents).mean}


def prior(model: VAE, given: Named) -> Named:
    """Standard normal noise (B, D) of each latent, and a number (B,) in [0, 1) that chooses the component of a mixture:
    draws from the prior. Noise times 0.7 is a temperature of 0.7."""
    values = model.given(None, given.get("y"))
    found: Named = {}
    for name, module in model.prior.items():
        noise = given[f"{name}_noise"]
        p: Any = module(values).expand((len(noise),))
        if isinstance(p, GaussianMixture):
            passed = given[f"{name}_choice"][:, None] >= p.logits.exp().cumsum(-1)
            p = p.component(passed.sum(-1).clamp(max=p.logits.shape[-1] - 1))
        values[name] = found[name] = p.base_dist.loc + p.base_dist.scale * noise
    return found


PARTS: Mapping[str, Callable[[VAE, Named], Named]] = {
    "encoder": encoder,
    "decoder": decoder,
    "prior": prior,
}


class Function(nn.Module):
    """A part of a model as a function of tensors in order."""

    def __init__(self, model: VAE, work: Callable[[VAE, Named], Named], names: list[str]) -> None:
        super().__init__()
        self.model, self.work, self.names = model, work, names

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.work(self.model, dict(zip(self.names, inputs, strict=True))).values())


def inputs(model: VAE, part: str, rows: int) -> Named:
    """Some numbers of the kind that a part of a model takes."""
    random = torch.Generator().manual_seed(rows)
    blueprint = model.blueprint
    images = torch.rand((rows, *blueprint.shape), generator=random)
    given: Named = {}
    if part == "encoder":
        given["x"] = images
    elif part == "decoder":
        sizes = latent_sizes(blueprint).items()
        given |= {name: torch.randn((rows, dim), generator=random) for name, dim in sizes}
    else:
        values = model.given(None, condition(model, rows, images))
        for name, module in model.prior.items():
            p = module(values).expand((rows,))
            z = values[name] = torch.randn(p.mean.shape, generator=random)
            given[f"{name}_noise"] = z
            if isinstance(p, GaussianMixture):
                given[f"{name}_choice"] = torch.rand(rows, generator=random)
    y = condition(model, rows, images)
    if y is not None and not (part == "encoder" and isinstance(model.condition, Quadrants)):
        given["y"] = y
    return given


def condition(model: VAE, rows: int, images: Tensor) -> Tensor | None:
    if model.condition is None:
        return None
    if isinstance(model.condition, Quadrants):
        return images
    return torch.arange(rows) % model.blueprint.classes


def traced(
    model: VAE, work: Callable[[VAE, Named], Named], part: str, format: Format
) -> tuple[bytes, dict[str, Any]]:
    """The file of a part of a model, and what model.json is to say of it."""
    example, other = inputs(model, part, 3), inputs(model, part, 5)
    function = Function(model, work, list(example)).eval()
    expected = work(model, other)
    batch = torch.export.Dim("batch", min=1, max=2**20)
    shapes = {"inputs": tuple({0: batch} for _ in example)}
    with quietly():
        program: Any = torch.export.export(
            function, tuple(example.values()), dynamic_shapes=shapes, strict=True
        )
        if format == "onnx":
            content = as_onnx(program, list(example), list(expected))
            found = run_onnx(content, other)
        else:
            file = io.BytesIO()
            torch.export.save(program, file)
            content = file.getvalue()
            loaded = torch.export.load(io.BytesIO(content)).module()
            found = list(loaded(*other.values()))
    difference = max(
        float(((a - b).abs() / b.abs().clamp(min=1)).max())
        for a, b in zip(found, expected.values(), strict=True)
    )
    require(
        difference <= TOLERANCE,
        f"the exported {part} differs from the model's by {difference:.1e}; nothing was written",
    )
    shapes_of = {
        kind: {name: ["batch", *tensor.shape[1:]] for name, tensor in tensors.items()}
        for kind, tensors in (("inputs", example), ("outputs", expected))
    }
    return content, {**shapes_of, "largest_difference": difference}


def as_onnx(program: Any, names: list[str], outputs: list[str]) -> bytes:
    """The content of an .onnx file, weights included."""
    exported = torch.onnx.export(
        program,
        input_names=names,
        output_names=outputs,
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    assert exported is not None
    return exported.model_proto.SerializeToString()


def run_onnx(content: bytes, given: Named) -> list[Tensor]:
    """What onnxruntime computes."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    arrays = {name: tensor.numpy() for name, tensor in given.items()}
    return [torch.from_numpy(array) for array in session.run(None, arrays)]


@contextmanager
def quietly() -> Iterator[None]:
    """Without what torch's exporters say of themselves."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
