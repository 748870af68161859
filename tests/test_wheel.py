"""The wheel installs into an empty environment and runs the demo there; each extra installs its packages."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXTRAS = {
    "tensorboard": ["tensorboard"],
    "umap": ["umap"],
    "parquet": ["pyarrow"],
    "science": ["tifffile", "imagecodecs", "h5py", "zarr", "nibabel"],
    "explore": ["fastapi", "uvicorn", "vaekit.explorer.server"],
    "onnx": ["onnx", "onnxscript", "onnxruntime"],
    "docs": ["sphinx", "myst_parser", "furo", "latex2mathml"],
}


def run(*command, **options):
    result = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, timeout=900, **options
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    return result.stdout


@pytest.mark.long
def test_the_wheel_runs_the_demo_in_an_empty_environment(tmp_path):
    python = tmp_path / "venv" / "bin" / "python"
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", tmp_path, ROOT)
    (wheel,) = tmp_path.glob("vaekit-*.whl")
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    run(python, "-m", "pip", "install", "--quiet", wheel)
    vaekit = python.parent / "vaekit"
    out = run(vaekit, "demo", "--epochs", "1", "--out", "demo", cwd=tmp_path)
    assert "NLL" in out
    assert (tmp_path / "demo" / "model.safetensors").is_file()
    assert list((tmp_path / "demo" / "pictures").glob("*.png"))
    for extra, modules in EXTRAS.items():
        run(python, "-m", "pip", "install", "--quiet", f"{wheel}[{extra}]")
        for module in modules:
            run(python, "-c", f"import {module}")
