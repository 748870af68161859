"""log p(x) by importance sampling: an image is encoded once, its draws are decoded in blocks that stay in the cache."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution, Independent

from ..data import Frozen
from ..model.build import decoded_numbers
from ..model.distributions import Conditional, GaussianMixture
from ..model.graph import VAE, Values
from ..model.priors import VampPrior
from ..support.console import Shown
from ..support.devices import evaluating, memory_kept, seeded
from ..support.errors import UserError, parse_memory

# Numbers that the decoder gives in one block: 1.6 MB in float32, so that the passes over them stay in the cache of a
# core, and memory is not given back to the system in between. A GPU needs larger ones to be busy.
BLOCK_NUMBERS, GPU_BLOCK_NUMBERS = 400_000, 2**25
DRAWN_ROWS = 20_000  # images x samples whose latents are drawn at once
CURVE = (1, 10, 100, 1000, 5000)  # each a multiple of the one before


@dataclass(frozen=True)
class LogMeans:
    """Of each image's weights w = p(x, z) / q(z | x), S draws: log 1/S sum w, and log 1/S sum w^2, (N,), float64, nats;
    and by K in CURVE the mean of log 1/K sum_K w over disjoint groups of K, (N,)."""

    first: Tensor
    second: Tensor
    samples: int
    curve: dict[int, Tensor]

    @classmethod
    def of(cls, weights: Tensor) -> LogMeans:
        """Of log weights (S, N)."""
        samples, curve = len(weights), {}
        groups, size = weights, 1  # log sums of disjoint groups, each of some of those before
        for k in (k for k in CURVE if k <= samples):
            of = k // size
            groups, size = groups[: len(groups) // of * of].unflatten(0, (-1, of)).logsumexp(1), k
            curve[k] = groups.mean(0) - math.log(k)
        first, second = weights.logsumexp(0), (2 * weights).logsumexp(0)
        log_count = math.log(samples)
        return cls(first - log_count, second - log_count, samples, curve)

    @property
    def standard_error(self) -> float | None:
        """Of the mean NLL over images, from its draws: Var[log mean w] = Var[w] / (S E[w]^2) for each image (delta
        method). None for one sample, which does not say how far another would be."""
        if self.samples == 1:
            return None
        relative = (self.second - 2 * self.first).exp() - 1
        return float((relative.clamp(min=0) / (self.samples - 1)).sum().sqrt()) / len(self.first)

    @property
    def effective_samples(self) -> float:
        """(sum w)^2 / sum w^2, a mean over images: 1 where one draw has all the weight."""
        return float((2 * self.first - self.second).exp().mean()) * self.samples


@torch.inference_mode()
def measure_nll(
    model: VAE,
    images: Frozen,
    samples: int,
    shown: Shown,
    memory: str = "1GB",
    precision: str = "float32",
) -> LogMeans:
    """log p(x) of every image from `samples` draws (Burda et al. 2016, eq. 8). In bfloat16 the decoder computes in that
    precision; densities and their sums do not. Raises UserError for a `memory` that holds not one row."""
    parts = []
    with memory_kept(parse_memory(memory) // 2) as tidy, evaluating(model):
        ready = prepared(model, precision)
        for weights in log_weights(ready, images, samples, shown, memory):
            parts.append(LogMeans.of(weights))
            tidy()
    return LogMeans(
        torch.cat([part.first for part in parts]).cpu(),
        torch.cat([part.second for part in parts]).cpu(),
        samples,
        {k: torch.cat([part.curve[k] for part in parts]).cpu() for k in parts[0].curve},
    )


def log_weights(
    model: VAE, images: Frozen, samples: int, shown: Shown, memory: str
) -> Iterator[Tensor]:
    """log p(x | latents) + log p(latents) - log q(latents | x) of one chunk of images after the other, (S, B), float64
    (float32 on MPS, which has no other)."""
    rows, drawn = block_rows(model, images, memory)
    chunk = min(rows, max(1, drawn // samples))
    exact = torch.float32 if images[:1].images.device.type == "mps" else torch.float64
    for start in shown.track(range(0, len(images), chunk), "NLL"):
        batch = images[start : start + chunk]
        parts = []
        for part in split_evenly(samples, max(1, drawn // chunk)):
            values = model.given(batch.images, batch.labels)
            latents = model.infer(values, (part, len(batch)))
            total = decoded(model, values, set(latents), batch.images, rows)
            for latent in latents.values():
                total = total + latent.log_ratio
            parts.append(total.to(exact))
        yield torch.cat(parts)


def decoded(model: VAE, values: Values, latents: set[str], x: Tensor, rows: int) -> Tensor:
    """log p(x | latents), (S, B), decoding at most `rows` images x samples at once: several images where all of their
    samples fit, else one image, whose pixels then meet all rows alike."""
    samples, images = next(
        (len(z), z.shape[1]) for z in (values[n] for n in latents) if z is not None
    )
    columns = []
    for group in torch.arange(images).split(max(1, rows // samples)):
        at = slice(int(group[0]), int(group[-1]) + 1)
        parts, start = [], 0
        for size in split_evenly(samples, max(1, rows // len(group))):
            some = {
                name: value
                if value is None
                else value[start : start + size, at]
                if name in latents
                else value[at]
                for name, value in values.items()
            }
            parts.append(log_likelihood(model.decoder(some), x[at]))
            start += size
        columns.append(torch.cat(parts))
    return torch.cat(columns, dim=1)


def log_likelihood(likelihood: Distribution, x: Tensor) -> Tensor:
    """log p(x | latents) without a gradient, summed over pixels; of black-and-white ones several times as fast as
    log_prob."""
    if not (isinstance(likelihood, Independent) and isinstance(likelihood.base_dist, Bernoulli)):
        return likelihood.log_prob(x)
    logits, x = likelihood.base_dist.logits.flatten(-3), x.flatten(-3)
    if bool(((x == 0) | (x == 1)).all()):
        # Of bits, p(x) is the product of sigmoid(l) where white and of sigmoid(-l) where black.
        factors = grouped((logits * (2 * x - 1)).sigmoid_())
        if all(each.amin() > torch.finfo(each.dtype).tiny for each in factors if each.numel()):
            return sum_of_logs(factors)
    # log p(x) = sum_i (x_i - 1/2) l_i - |l_i| / 2 + log sigmoid(|l_i|), whose factors are 1/2 or more.
    factors = grouped(logits.abs().sigmoid_())
    return ((x - 0.5) * logits).sum(-1) - 0.5 * logits.abs().sum(-1) + sum_of_logs(factors)


def grouped(factors: Tensor) -> tuple[Tensor, Tensor]:
    """Products of 8 factors (..., D // 8), for which one logarithm is enough, and the factors that are over."""
    whole = factors.shape[-1] // 8 * 8
    return factors[..., :whole].unflatten(-1, (8, -1)).prod(-2), factors[..., whole:]


def sum_of_logs(factors: tuple[Tensor, Tensor]) -> Tensor:
    groups, rest = factors
    return groups.log_().sum(-1) + rest.log().sum(-1)


class Known(nn.Module):
    """The mixture that a VampPrior is, computed once."""

    loc: Tensor
    scale: Tensor

    def __init__(self, mixture: GaussianMixture) -> None:
        super().__init__()
        # Buffers, so that the mixture is exported with its model.
        self.register_buffer("loc", mixture.loc.detach(), persistent=False)
        self.register_buffer("scale", mixture.scale.detach(), persistent=False)

    def forward(self, values: Values) -> Distribution:
        return GaussianMixture(self.loc, self.scale)


class InBfloat16(nn.Module):
    """A network that computes in bfloat16; float32 in and out."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).bfloat16()

    def forward(self, *inputs: Tensor | None) -> Tensor:
        return self.network(*(v if v is None else v.bfloat16() for v in inputs)).float()


def prepared(model: VAE, precision: str) -> VAE:
    """The model with the mixture that its VampPrior is, so that pseudo-inputs are encoded once, and with a decoder
    whose networks compute in `precision`."""
    priors = {
        name: Known(prior({})) if isinstance(prior, VampPrior) else prior
        for name, prior in model.prior.items()
    }
    decoder = model.decoder
    if precision == "bfloat16":
        decoder = copy.deepcopy(decoder)
        for module in list(decoder.modules()):
            if isinstance(module, Conditional):
                module.network = InBfloat16(module.network)
    parts = dict(model.posterior.items())
    return VAE(priors, parts, decoder, model.blueprint, model.condition)


def block_rows(model: VAE, images: Frozen, memory: str) -> tuple[int, int]:
    """Images x samples to decode, and to draw latents of, at once, within `memory`."""
    limit, each = parse_memory(memory), row_bytes(model, images)
    if each > limit:
        raise UserError(
            f"--memory {memory} holds not one image, which takes {each:,} bytes; give more"
        )
    numbers = BLOCK_NUMBERS if images[:1].images.device.type == "cpu" else GPU_BLOCK_NUMBERS
    fitting = limit // each
    return min(fitting, max(1, numbers // decoded_numbers(model.blueprint))), min(
        fitting, DRAWN_ROWS
    )


def row_bytes(model: VAE, images: Frozen) -> int:
    """An upper bound of the memory that one row of images x samples takes: what every layer gives it, all at once."""
    given: list[int] = []

    def note(module: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            given.append(output.numel() * max(4, output.element_size()) // 2)

    leaves = [module for module in model.modules() if not list(module.children())]
    hooks = [module.register_forward_hook(note) for module in leaves]
    batch = images[0:1]
    try:
        with seeded(0, batch.images.device):  # so that no noise is used up
            values = model.given(batch.images, batch.labels)
            latents = model.infer(values, (2, 1))
            model.decoder(values)
    finally:
        for hook in hooks:
            hook.remove()
    mixtures = [v.prior for v in latents.values() if isinstance(v.prior, GaussianMixture)]
    scored = 24 * sum(prior.loc.shape[-2] for prior in mixtures)
    return sum(given) + scored + 16 * decoded_numbers(model.blueprint)


def split_evenly(count: int, largest: int) -> list[int]:
    """`count` as a sum of nearly equal parts, none above `largest`."""
    parts = math.ceil(count / largest)
    return [count // parts + (i < count % parts) for i in range(parts)]
