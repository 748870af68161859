"""Export a trained model for other programs: encoder, decoder and prior in ONNX or torch.export format."""

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
from torch.distributions import MultivariateNormal, TransformedDistribution

from ..likelihood.importance import prepare_for_inference
from ..model.conditions import Quadrants
from ..model.distributions import GaussianMixture
from ..model.graph import VAE
from ..runs.directory import Run
from ..runs.load import load_trained
from ..support.atomic import write_bytes, write_json
from ..support.errors import UserError, require
from .generation import latent_sizes

Format = Literal["onnx", "torch"]
NamedTensors = dict[str, Tensor]
EXTENSIONS: Mapping[Format, str] = {"onnx": "onnx", "torch": "pt2"}
OPSET = 20
TOLERANCE = 1e-5
MAX_PASSES = 50  # of the networks of an autoregressive flow, each of which is in the file


def export(
    run: Run | str | Path, out: str | Path, format: Format = "onnx"
) -> dict[str, dict[str, Any]]:
    """Export encoder, decoder and prior of a run to the folder `out`, with a model.json that describes them.

    Each is a function of tensors whose first dimension is the batch, of any size. Its outputs are compared with the
    model's on other inputs and another batch size. Returns, by file: `inputs` and `outputs`, shapes by name, and
    `largest_difference`, relative for values above 1. Raises UserError where a package of the format is not installed,
    or where the difference is above 1e-5.
    """
    run, folder = Run.of(run), Path(out).expanduser()
    require(folder.is_dir() or not folder.exists(), f"{folder} is a file; name a folder")
    packages = ("onnx", "onnxscript", "onnxruntime") if format == "onnx" else ()
    for name in packages:
        try:
            importlib.import_module(name)
        except ImportError:
            raise UserError(f"{name} is not installed: pip install 'vaekit[onnx]'") from None
    trained = load_trained(run)
    model = prepare_for_inference(trained.model, "float32").eval()
    check_flow(model)
    contents, descriptions = {}, {}
    with torch.no_grad():
        for name, function in EXPORTED_PARTS.items():
            file = f"{name}.{EXTENSIONS[format]}"
            contents[file], descriptions[file] = export_part(model, function, name, format)
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in contents.items():
        write_bytes(folder / file, content)
    blueprint = model.blueprint
    settings = {
        "model": blueprint.model,
        "weights": trained.sha256,
        "shape": blueprint.shape,
        "latents": latent_sizes(blueprint),
        "likelihood": blueprint.settings.likelihood,
        "binarisation": run.data.binarisation,
        "condition": blueprint.settings.condition,
        "classes": blueprint.classes,
    }
    write_json(folder / "model.json", {**settings, "files": descriptions})
    return descriptions


def check_flow(model: VAE) -> None:
    """Raise UserError for a prior that would be written with too many passes of its networks."""
    settings = model.blueprint.settings
    passes = settings.flow_steps * getattr(settings, "top_dim", settings.latent_dim)
    require(
        settings.prior != "flow" or "coupling" in settings.flow or passes <= MAX_PASSES,
        f"a sample of this autoregressive flow prior takes {passes} passes of its networks; train one with --flow "
        "affine-coupling to export it",
    )


def encoder(model: VAE, inputs: NamedTensors) -> NamedTensors:
    """From images x (B, C, H, W) in [0, 1] and labels y (B,): mean and standard deviation (not of a flow) of each
    latent's posterior, with the latents before it at their means."""
    outputs: NamedTensors = {}
    for name, q in model.posteriors(model.given(inputs["x"], inputs.get("y"))).items():
        outputs[f"{name}_mean"] = q.mean
        if not isinstance(q, TransformedDistribution):  # whose standard deviation is unknown
            outputs[f"{name}_scale"] = q.stddev
    return outputs


def decoder(model: VAE, inputs: NamedTensors) -> NamedTensors:
    """From latents (B, D), and labels y (B,) or images y to complete (B, C, H, W): mean pixels in [0, 1]."""
    latents = {name: inputs[name] for name in latent_sizes(model.blueprint)}
    return {"pixels": model.decode(inputs.get("y"), **latents).mean}


def prior(model: VAE, inputs: NamedTensors) -> NamedTensors:
    """From standard normal noise (B, D) for each latent, and uniform numbers (B,) in [0, 1) that choose a mixture's
    component: samples from the prior. Noise multiplied by 0.7 gives a temperature of 0.7."""
    values = model.given(None, inputs.get("y"))
    samples: NamedTensors = {}
    for name, module in model.prior.items():
        noise = inputs[f"{name}_noise"]
        p: Any = module(values)
        if isinstance(p, GaussianMixture):
            p = p.expand((len(noise),))
            passed = inputs[f"{name}_choice"][:, None] >= p.logits.exp().cumsum(-1)
            p = p.component(passed.sum(-1).clamp(max=p.logits.shape[-1] - 1))
        if isinstance(p, MultivariateNormal):
            values[name] = samples[name] = p.loc + (p.scale_tril @ noise[..., None])[..., 0]
            continue
        transforms = []
        if isinstance(p, TransformedDistribution):
            transforms, p = p.transforms, p.base_dist
        z = p.base_dist.loc + p.base_dist.scale * noise
        for transform in transforms:
            z = transform(z)
        values[name] = samples[name] = z
    return samples


EXPORTED_PARTS: Mapping[str, Callable[[VAE, NamedTensors], NamedTensors]] = {
    "encoder": encoder,
    "decoder": decoder,
    "prior": prior,
}


class ExportedFunction(nn.Module):
    """A function of EXPORTED_PARTS as a module, with positional tensors for its named inputs."""

    def __init__(
        self, model: VAE, function: Callable[[VAE, NamedTensors], NamedTensors], names: list[str]
    ) -> None:
        super().__init__()
        self.model, self.function, self.names = model, function, names

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        outputs = self.function(self.model, dict(zip(self.names, inputs, strict=True)))
        return tuple(outputs.values())


def example_inputs(model: VAE, part: str, rows: int) -> NamedTensors:
    """Random inputs, `rows` of each, for a function of EXPORTED_PARTS."""
    generator = torch.Generator().manual_seed(rows)
    blueprint = model.blueprint
    images = torch.rand((rows, *blueprint.shape), generator=generator)
    inputs: NamedTensors = {}
    if part == "encoder":
        inputs["x"] = images
    elif part == "decoder":
        sizes = latent_sizes(blueprint).items()
        inputs |= {name: torch.randn((rows, dim), generator=generator) for name, dim in sizes}
    else:
        values = model.given(None, example_condition(model, rows, images))
        for name, module in model.prior.items():
            p = module(values).expand((rows,))
            z = values[name] = torch.randn(p.mean.shape, generator=generator)
            inputs[f"{name}_noise"] = z
            if isinstance(p, GaussianMixture):
                inputs[f"{name}_choice"] = torch.rand(rows, generator=generator)
    y = example_condition(model, rows, images)
    if y is not None and not (part == "encoder" and isinstance(model.condition, Quadrants)):
        inputs["y"] = y
    return inputs


def example_condition(model: VAE, rows: int, images: Tensor) -> Tensor | None:
    """The condition y of example inputs: labels (rows,), the images, or None for an unconditional model."""
    if model.condition is None:
        return None
    if isinstance(model.condition, Quadrants):
        return images
    return torch.arange(rows) % model.blueprint.classes


def export_part(
    model: VAE, function: Callable[[VAE, NamedTensors], NamedTensors], part: str, format: Format
) -> tuple[bytes, dict[str, Any]]:
    """Export a function of EXPORTED_PARTS: the content of its file, and its description in model.json."""
    example, test_inputs = example_inputs(model, part, 3), example_inputs(model, part, 5)
    module = ExportedFunction(model, function, list(example)).eval()
    expected = function(model, test_inputs)
    batch = torch.export.Dim("batch", min=1, max=2**20)
    shapes = {"inputs": tuple({0: batch} for _ in example)}
    with silence_exporters():
        program: Any = torch.export.export(
            module, tuple(example.values()), dynamic_shapes=shapes, strict=True
        )
        if format == "onnx":
            content = to_onnx(program, list(example), list(expected))
            outputs = run_onnx(content, test_inputs)
        else:
            file = io.BytesIO()
            torch.export.save(program, file)
            content = file.getvalue()
            loaded = torch.export.load(io.BytesIO(content)).module()
            outputs = list(loaded(*test_inputs.values()))
    difference = max(
        float(((a - b).abs() / b.abs().clamp(min=1)).max())
        for a, b in zip(outputs, expected.values(), strict=True)
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


def to_onnx(program: Any, names: list[str], outputs: list[str]) -> bytes:
    """The content of an .onnx file, with the weights."""
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


def run_onnx(content: bytes, inputs: NamedTensors) -> list[Tensor]:
    """The outputs of an .onnx file for these inputs, by onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
    return [torch.from_numpy(array) for array in session.run(None, arrays)]


@contextmanager
def silence_exporters() -> Iterator[None]:
    """Suppress warnings and log messages of torch's exporters."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
