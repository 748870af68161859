"""Loading a trained model from its run directory."""

from __future__ import annotations

from pathlib import Path

from ..model.build import build_from
from ..model.graph import VAE
from ..support.errors import require
from .directory import Run, load_weights


def load(run: Run | str | Path) -> VAE:
    """The trained model of a run directory, on the CPU, in evaluation mode.

    Raises UserError where the directory, its config.json or its weights are missing, damaged, not finite or do not
    agree.
    """
    run = Run.of(run)
    model = build_from(run.blueprint)
    load_weights(model, run.weights_path)
    require(
        all(bool(weight.isfinite().all()) for weight in model.state_dict().values()),
        f"the weights of {run} are not finite: its training diverged, or they are damaged; train again",
    )
    return model.eval()
