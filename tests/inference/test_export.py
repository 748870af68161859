"""Exported files compute the same as the model, for batches of any size."""

import json
from typing import get_args

import numpy as np
import onnxruntime
import pytest
import torch

from conftest import random_dataset, small_settings
from vaekit import UserError, build, export, load, train
from vaekit.inference.export import EXPORTED_PARTS, run_onnx
from vaekit.inference.export import prior as prior_of
from vaekit.settings.catalog import MODELS
from vaekit.settings.model import FlowKind

SHORT = ["vampprior"]
CASES = [name if name in SHORT else pytest.param(name, marks=pytest.mark.long) for name in MODELS]


@pytest.fixture(autouse=True)
def seeds():
    torch.manual_seed(0)


def trained(out, name, kind="bits", **more):
    data = random_dataset(shape=(1, 8, 8), kind=kind)
    model = build(name, data, **small_settings(name, **more))
    return train(model, data, out=out, epochs=1, batch_size=20, progress=False)


def sessions(folder):
    return {
        name: onnxruntime.InferenceSession(folder / f"{name}.onnx")
        for name in ("encoder", "decoder", "prior")
    }


def close(found, expected):
    np.testing.assert_allclose(
        torch.as_tensor(found).detach(), expected.detach().numpy(), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("name", CASES)
def test_onnx_computes_the_same_as_the_model(tmp_path, name):
    run = trained(tmp_path / "run", name)
    export(run, tmp_path / "onnx")
    model, parts = load(run), sessions(tmp_path / "onnx")
    about = json.loads((tmp_path / "onnx" / "model.json").read_text())
    for rows in (1, 7):
        images = torch.rand(rows, 1, 8, 8)
        labels = {"y": torch.arange(rows) % 3} if model.condition else {}
        y = labels.get("y")
        condition = {"y": y.numpy()} if labels else {}
        names = [output.name for output in parts["encoder"].get_outputs()]
        assert names == list(about["files"]["encoder.onnx"]["outputs"])
        found = parts["encoder"].run(None, {"x": images.numpy(), **condition})
        codes = dict(zip(names, found, strict=True))
        for latent, q in model.posteriors(model.given(images, y)).items():
            close(codes[f"{latent}_mean"], q.mean)
            close(codes[f"{latent}_scale"], q.stddev)
        latents = {k: torch.randn(rows, dim) for k, dim in about["latents"].items()}
        arrays = {k: z.numpy() for k, z in latents.items()}
        (pixels,) = parts["decoder"].run(["pixels"], {**arrays, **condition})
        close(pixels, model.decode(y, **latents).mean)


def test_the_prior_chooses_components_by_their_weights_and_adds_noise(tmp_path, monkeypatch):
    monkeypatch.setattr("vaekit.inference.export.EXPORTED_PARTS", {"prior": prior_of})
    run = trained(tmp_path / "run", "vae", prior="learned-mixture", components=3)
    model = load(run)
    prior = model.prior["z"]
    prior.logits.data.copy_(torch.tensor([0.2, 0.5, 0.3]).log())
    run.save_weights(model)
    export(run, tmp_path / "onnx")
    noise = torch.randn(6, 2)
    choice = torch.tensor([0.0, 0.19, 0.21, 0.69, 0.71, 0.9999])
    inputs = {"z_noise": noise.numpy(), "z_choice": choice.numpy()}
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "prior.onnx")
    (z,) = session.run(None, inputs)
    mixture = load(run).prior["z"]({})
    chosen = torch.tensor([0, 0, 1, 1, 2, 2])
    close(z, mixture.loc[chosen] + mixture.scale[chosen] * noise)


FLOWS = {"prior": "flow", "posterior": "flow", "flow_steps": 2, "flow_dim": 4}


def transformed(p, noise):
    for transform in p.transforms:
        noise = transform(noise)
    return noise


def test_the_function_of_a_flow_prior_transforms_the_noise():
    """That of its posterior has no standard deviation, which is unknown."""
    model = build("hvae", (1, 8, 8), **small_settings("hvae", **FLOWS))
    noise = {"z2_noise": torch.randn(7, 3), "z1_noise": torch.randn(7, 2)}
    samples = prior_of(model, noise)
    close(samples["z2"], transformed(model.prior["z2"]({}), noise["z2_noise"]))
    below = model.prior["z1"]({"z2": samples["z2"], "y": None})
    close(samples["z1"], below.mean + below.stddev * noise["z1_noise"])
    codes = EXPORTED_PARTS["encoder"](model, {"x": torch.rand(7, 1, 8, 8)})
    assert list(codes) == ["z2_mean", "z1_mean"]


@pytest.mark.long
@pytest.mark.parametrize("kind", get_args(FlowKind))
def test_flows_are_exported(tmp_path, monkeypatch, kind):
    parts = {name: EXPORTED_PARTS[name] for name in ("encoder", "prior")}
    monkeypatch.setattr("vaekit.inference.export.EXPORTED_PARTS", parts)
    run = trained(tmp_path / "run", "vae", flow=kind, **FLOWS)
    about = export(run, tmp_path / "onnx")
    assert list(about["encoder.onnx"]["outputs"]) == ["z_mean"]
    noise = torch.randn(7, 2)
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "prior.onnx")
    (z,) = session.run(None, {"z_noise": noise.numpy()})
    close(z, transformed(load(run).prior["z"]({}), noise))


def test_long_autoregressive_flows_are_not_exported(tmp_path):
    """Each dimension is one pass of the network, all of them in the file."""
    more = {"prior": "flow", "flow": "affine-autoregressive", "latent_dim": 20, "flow_dim": 4}
    run = trained(tmp_path / "run", "vae", **more)
    with pytest.raises(
        UserError, match="80 passes of its networks; train one with flow affine-coupling"
    ):
        export(run, tmp_path / "onnx")


def test_torch_export_computes_the_same_as_the_model(tmp_path):
    run = trained(tmp_path / "run", "hvae")
    about = export(run, tmp_path / "torch", "torch")
    model = load(run)
    decoder = torch.export.load(tmp_path / "torch" / "decoder.pt2").module()
    for rows in (1, 7):
        z1, z2 = torch.randn(rows, 2), torch.randn(rows, 3)
        (pixels,) = decoder(z1, z2)
        close(pixels, model.decode(None, z1=z1, z2=z2).mean)
    assert list(about["decoder.pt2"]["inputs"]) == ["z1", "z2"]
    assert about["prior.pt2"]["inputs"] == {"z2_noise": ["batch", 3], "z1_noise": ["batch", 2]}


@pytest.mark.long
def test_the_mean_of_pixels_of_4096_levels_is_exported(tmp_path, monkeypatch):
    """A few operations, not one for each level."""
    parts = {"decoder": EXPORTED_PARTS["decoder"]}
    monkeypatch.setattr("vaekit.inference.export.EXPORTED_PARTS", parts)
    run = trained(tmp_path / "run", "vae", kind="deep")
    export(run, tmp_path / "onnx")
    assert (tmp_path / "onnx" / "decoder.onnx").stat().st_size < 100_000
    z = torch.randn(5, 2)
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "decoder.onnx")
    (pixels,) = session.run(None, {"z": z.numpy()})
    close(pixels, load(run).decode(None, z=z).mean)


@pytest.mark.parametrize("model", ["cvae", pytest.param("convvae", marks=pytest.mark.long)])
def test_models_that_complete_images_and_convolutional_models_are_exported(tmp_path, model):
    more = {"condition": "quadrants:1"} if model == "cvae" else {}
    run = trained(tmp_path / "run", model, **more)
    export(run, tmp_path / "torch", "torch")
    about = json.loads((tmp_path / "torch" / "model.json").read_text())
    inputs = {name.removesuffix(".pt2"): [*file["inputs"]] for name, file in about["files"].items()}
    y = ["y"] if model == "cvae" else []
    assert inputs == {"encoder": ["x"], "decoder": ["z", *y], "prior": ["z_noise", *y]}


def test_a_file_that_differs_from_the_model_is_refused_and_not_written(tmp_path, monkeypatch):
    run = trained(tmp_path / "run", "vae")
    monkeypatch.setattr(
        "vaekit.inference.export.run_onnx",
        lambda content, inputs: [torch.zeros(5, 2), torch.full((5, 2), 1.1)],
    )
    with pytest.raises(UserError, match="the exported encoder differs from the model's by"):
        export(run, tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()


def test_one_wrong_output_of_several_is_enough(tmp_path, monkeypatch):
    run, compute = trained(tmp_path / "run", "vae"), run_onnx

    def second_off(content, inputs):
        first, *rest = compute(content, inputs)
        return [first, *(output + 0.1 for output in rest)]

    monkeypatch.setattr("vaekit.inference.export.run_onnx", second_off)
    with pytest.raises(UserError, match="the exported encoder differs from the model's by"):
        export(run, tmp_path / "onnx")


def test_the_command_prints_its_files_and_its_errors(vaekit, tmp_path, monkeypatch):
    run = trained(tmp_path / "run", "vae")
    code, out, _ = vaekit("export", run, "--torch", tmp_path / "torch")
    assert code == 0
    first = out.splitlines()[0]
    assert first.startswith(f"{tmp_path / 'torch' / 'encoder.pt2'}: x (batch, 1, 8, 8) -> z_mean")
    for arguments, message in [
        ([run], "lacks --onnx DIR or --torch DIR"),
        ([tmp_path / "none", "--onnx", "x"], "there is no run directory"),
        ([run, "--onnx", tmp_path / "run" / "config.json"], "is a file; name a folder"),
    ]:
        code, _, err = vaekit("export", *arguments)
        assert code == 2
        assert message in err
        assert err.count("\n") == 1
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    code, _, err = vaekit("export", run, "--onnx", tmp_path / "onnx")
    assert (code, err) == (2, "vaekit: onnxscript is not installed: pip install 'vaekit[onnx]'\n")
    assert not (tmp_path / "onnx").exists()
