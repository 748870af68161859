"""Speed of the importance-sampled NLL of MNIST's test images, compared with pythae's `get_nll` and matrix products.

    pip install cloudpickle imageio pydantic && pip install pythae --no-deps
    python benchmarks/nll_speed.py [--rounds 7]

The 784-500-20 model with the same weights in both, 5,000 samples per image.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from side_by_side import parse_rounds

from vaekit import build, load_data
from vaekit.data import eval_split
from vaekit.likelihood.importance import measure_nll
from vaekit.model.graph import VAE
from vaekit.support.console import ProgressBar
from vaekit.support.devices import fast_float32

SAMPLES = 5000
PYTHAE_IMAGES, IMAGES = 20, 160  # per round
FLOPS = 2 * SAMPLES * (20 * 500 + 500 * 784)  # multiplications and additions to decode one image


def pythae_model(model: VAE) -> Any:
    """The same weights in pythae's VAE."""
    from pythae.models import VAE as PythaeVAE
    from pythae.models import VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.posterior = model.posterior["z"]

        def forward(self, x: torch.Tensor) -> ModelOutput:
            q = self.posterior({"x": x}).base_dist
            return ModelOutput(embedding=q.loc, log_covariance=2 * q.scale.log())

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.decoder = model.decoder

        def forward(self, z: torch.Tensor) -> ModelOutput:
            return ModelOutput(reconstruction=self.decoder({"z": z}).base_dist.probs)

    config = VAEConfig(input_dim=(1, 28, 28), latent_dim=20, reconstruction_loss="bce")
    return PythaeVAE(config, Encoder(), Decoder()).eval()


def main() -> None:
    rounds = parse_rounds(__doc__ or "", 7)
    data = load_data("mnist", progress=False)
    model = build(
        "vae", data, encoder="500", decoder="500", activation="tanh", latent_dim=20
    ).eval()
    images = eval_split(data.test, "dynamic").take(torch.arange(IMAGES))
    peer, no_progress = pythae_model(model), ProgressBar(False)
    a, b, product = torch.randn(SAMPLES, 500), torch.randn(500, 784), torch.empty(SAMPLES, 784)

    def ours(precision: str) -> float:
        with fast_float32(torch.device("cpu")):
            return -float(
                measure_nll(
                    model, images, SAMPLES, no_progress, precision=precision
                ).log_mean.mean()
            )

    def theirs() -> float:
        return -peer.get_nll(images[:PYTHAE_IMAGES].images, SAMPLES)

    def products() -> float:
        with fast_float32(torch.device("cpu")):
            for _ in range(20):
                torch.mm(a, b, out=product)
        return 0.0

    implementations: dict[str, tuple[Callable[[], float], float]] = {
        "pythae's get_nll": (theirs, PYTHAE_IMAGES),
        "vaekit, float32": (lambda: ours("float32"), IMAGES),
        "vaekit, bfloat16": (lambda: ours("bfloat16"), IMAGES),
        "matrix products alone": (products, 20 * 2 * SAMPLES * 500 * 784 / FLOPS),
    }
    speeds: dict[str, list[float]] = {name: [] for name in implementations}
    values: dict[str, list[float]] = {name: [] for name in implementations}
    with torch.no_grad():
        for round_ in range(rounds + 1):
            for name, (work, count) in implementations.items():
                torch.manual_seed(round_)
                started = time.perf_counter()
                value = work()
                if round_:  # the first is a warm-up
                    speeds[name].append(count / (time.perf_counter() - started))
                    values[name].append(value)
    baseline, matrix_rate = (
        statistics.median(speeds[n]) for n in (next(iter(speeds)), [*speeds][-1])
    )
    print(
        f"{time.strftime('%Y-%m-%d')}, {torch.get_num_threads()} threads, torch {torch.__version__}, ",
        end="",
    )
    print(f"{rounds} rounds, {SAMPLES:,} samples per image\n")
    print(
        "| | images/s (median) | lowest | highest | ratio to pythae | of the matrix rate | NLL, nats |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, rates in speeds.items():
        median = statistics.median(rates)
        nll = f"{statistics.mean(values[name]):.3f}" if values[name][0] else ""
        print(
            f"| {name} | {median:.1f} | {min(rates):.1f} | {max(rates):.1f} | {median / baseline:.2f} | "
            f"{median / matrix_rate:.0%} | {nll} |"
        )
    print(
        f"\nmatrix rate: {matrix_rate * FLOPS / 1e9:.0f} GFLOP/s, ({SAMPLES} x 500) (500 x 784), float32"
    )


if __name__ == "__main__":
    main()
