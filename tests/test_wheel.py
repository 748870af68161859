"""What is built installs into an empty environment, and does the main job there; each extra brings what it is for."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXTRAS = {
    "tensorboard": ["tensorboard"],
    "umap": ["umap"],
    "parquet": ["pyarrow"],
    "explore": ["fastapi", "uvicorn", "vaekit.explorer.server"],
    "onnx": ["onnx", "onnxscript", "onnxruntime"],
    "docs": ["sphinx", "myst_parser", "furo", "latex2mathml"],
}


def run(*words, **more):
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, timeout=900, **more)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.long
def test_the_wheel_does_the_main_job_in_an_empty_environment(tmp_path):
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
