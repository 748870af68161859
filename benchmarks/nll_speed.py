"""Importance-weighted NLL of MNIST's test images, 5,000 samples each, on the 784-500-20 model: images/s beside pythae's
`get_nll` (pip install pythae --no-deps; cloudpickle, imageio and pydantic) and beside the machine's matrix rate.

    python benchmarks/nll_speed.py [--rounds 5]
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from side_by_side import rounds_wanted

from vaekit import build, load_data
from vaekit.data import freeze
from vaekit.likelihood.importance import measure_nll
from vaekit.model.graph import VAE
from vaekit.support.console import Shown
from vaekit.support.devices import fast_float32

SAMPLES = 5000
PEER_IMAGES, IMAGES = 20, 160  # of a round
FLOPS = 2 * SAMPLES * (20 * 500 + 500 * 784)  # multiplications and additions of an image's decoding


def pythae_model(model: VAE) -> Any:
    """The same weights in pythae's VAE."""
    from pythae.models import VAE as Peer
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
    return Peer(config, Encoder(), Decoder()).eval()


def main() -> None:
    rounds = rounds_wanted(__doc__ or "", 7)
    data = load_data("mnist", progress=False)
    model = build(
        "vae", data, encoder="500", decoder="500", activation="tanh", latent_dim=20
    ).eval()
    images = freeze(data.test, "dynamic").take(torch.arange(IMAGES))
    peer, quiet = pythae_model(model), Shown(False)
    a, b, product = torch.randn(SAMPLES, 500), torch.randn(500, 784), torch.empty(SAMPLES, 784)

    def ours(precision: str) -> float:
        with fast_float32(torch.device("cpu")):
            return -float(
                measure_nll(model, images, SAMPLES, quiet, precision=precision).first.mean()
            )

    def theirs() -> float:
        return -peer.get_nll(images[:PEER_IMAGES].images, SAMPLES)

    def products() -> float:
        with fast_float32(torch.device("cpu")):
            for _ in range(20):
                torch.mm(a, b, out=product)
        return 0.0

    contestants: dict[str, tuple[Callable[[], float], float]] = {
        "pythae's get_nll": (theirs, PEER_IMAGES),
        "vaekit, float32": (lambda: ours("float32"), IMAGES),
        "vaekit, bfloat16": (lambda: ours("bfloat16"), IMAGES),
        "matrix products alone": (products, 20 * 2 * SAMPLES * 500 * 784 / FLOPS),
    }
    speeds: dict[str, list[float]] = {name: [] for name in contestants}
    values: dict[str, list[float]] = {name: [] for name in contestants}
    with torch.no_grad():
        for round_ in range(rounds + 1):
            for name, (work, count) in contestants.items():
                torch.manual_seed(round_)
                started = time.perf_counter()
                value = work()
                if round_:  # the first is a warm-up
                    speeds[name].append(count / (time.perf_counter() - started))
                    values[name].append(value)
    base, limit = (statistics.median(speeds[n]) for n in (next(iter(speeds)), [*speeds][-1]))
    print(
        f"{time.strftime('%Y-%m-%d')}, {torch.get_num_threads()} threads, torch {torch.__version__}, ",
        end="",
    )
    print(f"{rounds} rounds, {SAMPLES:,} samples an image\n")
    print(
        "| | images/s (median) | lowest | highest | ratio to pythae | of the matrix rate | NLL, nats |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, found in speeds.items():
        median = statistics.median(found)
        nll = f"{statistics.mean(values[name]):.3f}" if values[name][0] else ""
        print(
            f"| {name} | {median:.1f} | {min(found):.1f} | {max(found):.1f} | {median / base:.2f} | "
            f"{median / limit:.0%} | {nll} |"
        )
    print(
        f"\nmatrix rate: {limit * FLOPS / 1e9:.0f} GFLOP/s, ({SAMPLES} x 500) (500 x 784), float32"
    )


if __name__ == "__main__":
    main()
