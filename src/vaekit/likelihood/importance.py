"""log p(x) by importance sampling: images are encoded once, their samples are decoded in blocks of the cache's size."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from operator import add

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution, Independent

from ..data import EvalSplit
from ..model.build import decoder_outputs, numbers_per_image
from ..model.distributions import Conditional, GaussianMixture
from ..model.graph import VAE, Values
from ..model.priors import ConstantMixture, VampPrior
from ..support.console import ProgressBar
from ..support.devices import eval_mode, keep_freed_memory, seeded
from ..support.errors import UserError, parse_memory
from .prior_samples import log_mixture_ratio, log_sum_over_prior

# Decoder outputs per block: 1.6 MB in float32, so that the passes over them stay in the cache of a core, and memory is
# not returned to the system in between. A GPU needs larger blocks to be busy.
BLOCK_NUMBERS, GPU_BLOCK_NUMBERS = 400_000, 2**25
MAX_SAMPLED_ROWS = 20_000  # images x samples whose latents are sampled at once
CURVE_SAMPLES = (1, 10, 100, 1000, 5000)  # each a multiple of the one before


@dataclass(frozen=True)
class ImportanceEstimate:
    """Of the weights w = p(x, z) / q(z | x) of S samples per image, nats, float64, (N,): `log_mean` is log 1/S sum w,
    `log_mean_square` log 1/S sum w^2, `log_largest` log max w, and `curve`, by K in CURVE_SAMPLES, the mean of
    log 1/K sum_K w over disjoint groups of K samples. `log_mean_with_prior` is the estimate of log p(x) with samples of
    the prior added, where it was made."""

    log_mean: Tensor
    log_mean_square: Tensor
    log_largest: Tensor
    samples: int
    curve: dict[int, Tensor]
    log_mean_with_prior: Tensor | None = None

    @classmethod
    def of(cls, log_weights: Tensor) -> ImportanceEstimate:
        """The estimate from log weights (S, N)."""
        samples, curve = len(log_weights), {}
        groups, size = log_weights, 1  # log sums over groups of `size` samples
        for k in (k for k in CURVE_SAMPLES if k <= samples):
            n = k // size
            groups, size = groups[: len(groups) // n * n].unflatten(0, (-1, n)).logsumexp(1), k
            curve[k] = groups.mean(0) - math.log(k)
        first, second = log_weights.logsumexp(0), (2 * log_weights).logsumexp(0)
        log_count = math.log(samples)
        return cls(first - log_count, second - log_count, log_weights.amax(0), samples, curve)

    @property
    def relative_variance(self) -> Tensor:
        """Var[log mean w] = Var[w] / (S E[w]^2) per image (delta method), (N,)."""
        relative = (self.log_mean_square - 2 * self.log_mean).exp() - 1
        return relative.clamp(min=0) / (self.samples - 1)

    @property
    def standard_error(self) -> float | None:
        """Of the mean NLL over images, due to sampling, without the bias. None for one sample."""
        if self.samples == 1:
            return None
        return float(self.relative_variance.sum().sqrt()) / len(self.log_mean)

    @property
    def bias(self) -> float | None:
        """By how much the mean NLL may be too high, nats: log mean w is below log p(x) in expectation, by half its
        variance, and by what q misses, which samples of the prior show. None for one sample.

        The variance includes the square of the largest weight's share of the sum: with heavy tails the variance of the
        weights is underestimated, as they have not all been seen.
        """
        if self.samples == 1:
            return None
        bias = float((self.relative_variance + self.largest_share**2).mean()) / 2
        if self.log_mean_with_prior is not None:
            bias = max(bias, float((self.log_mean_with_prior - self.log_mean).mean()))
        return bias

    @property
    def error(self) -> float | None:
        """The root mean square error of the mean NLL: twice it covers the true value in at least 93 % of repeats where
        q or the samples of the prior reach all of the posterior. None for one sample."""
        if self.bias is None:
            return None
        variance = float((self.relative_variance + self.largest_share**2).sum())
        return math.hypot(math.sqrt(variance) / len(self.log_mean), self.bias)

    @property
    def largest_share(self) -> Tensor:
        """max w / sum w, (N,)."""
        return (self.log_largest - self.log_mean).exp() / self.samples

    @property
    def effective_samples(self) -> Tensor:
        """(sum w)^2 / sum w^2, (N,): 1 where one sample has all the weight."""
        return (2 * self.log_mean - self.log_mean_square).exp() * self.samples


@torch.inference_mode()
def measure_nll(
    model: VAE,
    images: EvalSplit,
    samples: int,
    bar: ProgressBar,
    memory: str = "1GB",
    precision: str = "float32",
    prior_samples: int = 0,
) -> ImportanceEstimate:
    """log p(x) of every image from `samples` of its posterior (Burda et al. 2016, eq. 8). `precision` is that of the
    decoder's networks, not of densities and sums. `prior_samples` of a model with one latent and no condition show what
    the posterior misses, in an estimate of its own. Raises UserError where `memory` is too small for one row."""
    parts, sums = [], []
    with keep_freed_memory(parse_memory(memory) // 2) as tidy, eval_mode(model):
        prepared = prepare_for_inference(model, precision)
        for weights, log_ratio in log_weights(prepared, images, samples, bar, memory):
            parts.append(ImportanceEstimate.of(weights))
            of_mixture = weights + log_mixture_ratio(log_ratio, samples, prior_samples)
            sums.append(of_mixture.logsumexp(0))
            tidy()
        with_prior = None
        if prior_samples:
            rows, _ = block_rows(prepared, images, memory)
            missed = log_sum_over_prior(prepared, images, samples, prior_samples, rows)
            total = torch.logaddexp(torch.cat(sums), missed)
            with_prior = (total - math.log(samples + prior_samples)).cpu()
    return ImportanceEstimate(
        torch.cat([part.log_mean for part in parts]).cpu(),
        torch.cat([part.log_mean_square for part in parts]).cpu(),
        torch.cat([part.log_largest for part in parts]).cpu(),
        samples,
        {k: torch.cat([part.curve[k] for part in parts]).cpu() for k in parts[0].curve},
        with_prior,
    )


def log_weights(
    model: VAE, images: EvalSplit, samples: int, bar: ProgressBar, memory: str
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield log p(x | latents) + log p(latents) - log q(latents | x) of one chunk of images after the other, and the
    last two terms alone, (S, B), float64 (float32 on MPS, which has no float64)."""
    decoded_rows, sampled_rows = block_rows(model, images, memory)
    chunk = min(decoded_rows, max(1, sampled_rows // samples))
    dtype = torch.float32 if images[:1].images.device.type == "mps" else torch.float64
    for start in bar.track(range(0, len(images), chunk), "NLL"):
        batch = images[start : start + chunk]
        parts, ratios = [], []
        # One dictionary for all blocks, in which a model may keep what it knows of the images.
        values = model.given(batch.images, batch.labels)
        for count in split_evenly(samples, max(1, sampled_rows // chunk)):
            latents = model.infer(values, (count, len(batch)))
            total = decode_log_likelihood(model, values, set(latents), batch.images, decoded_rows)
            log_ratio = reduce(add, (latent.log_ratio for latent in latents.values()))
            parts.append((total + log_ratio).to(dtype))
            ratios.append(log_ratio)
        yield torch.cat(parts), torch.cat(ratios)


def decode_log_likelihood(
    model: VAE, values: Values, latents: set[str], x: Tensor, rows: int
) -> Tensor:
    """log p(x | latents), (S, B), decoding at most `rows` images x samples at once: all where they fit, several images
    where all of their samples fit, else one, so that the same pixels meet all rows."""
    samples, images = next(
        (len(z), z.shape[1]) for z in (values[n] for n in latents) if z is not None
    )
    if samples * images <= rows:
        return log_likelihood(model.decoder(values), x)
    columns, names = [], ["x", "y", *latents]
    for group in torch.arange(images).split(max(1, rows // samples)):
        at = slice(int(group[0]), int(group[-1]) + 1)
        parts, start = [], 0
        for size in split_evenly(samples, max(1, rows // len(group))):
            block = {
                name: value
                if value is None
                else value[start : start + size, at]
                if name in latents
                else value[at]
                for name, value in ((name, values[name]) for name in names)
            }
            parts.append(log_likelihood(model.decoder(block), x[at]))
            start += size
        columns.append(torch.cat(parts))
    return torch.cat(columns, dim=1)


def log_likelihood(likelihood: Distribution, x: Tensor) -> Tensor:
    """log p(x | latents) without gradients, summed over pixels; for binary pixels several times as fast as log_prob."""
    if not (isinstance(likelihood, Independent) and isinstance(likelihood.base_dist, Bernoulli)):
        return likelihood.log_prob(x)
    logits, x = likelihood.base_dist.logits.flatten(-3), x.flatten(-3)
    if bool(((x == 0) | (x == 1)).all()):
        # For binary x, p(x) is the product of sigmoid(l) where x is 1 and sigmoid(-l) where x is 0.
        factors = grouped_products((logits * (2 * x - 1)).sigmoid_())
        if all(each.amin() > torch.finfo(each.dtype).tiny for each in factors if each.numel()):
            return sum_of_logs(factors)
    # log p(x) = sum_i (x_i - 1/2) l_i - |l_i| / 2 + log sigmoid(|l_i|), whose factors are 1/2 or more.
    factors = grouped_products(logits.abs().sigmoid_())
    return ((x - 0.5) * logits).sum(-1) - 0.5 * logits.abs().sum(-1) + sum_of_logs(factors)


def grouped_products(factors: Tensor) -> tuple[Tensor, Tensor]:
    """Products of 8 factors (..., D // 8), so that 8 need one logarithm, and the remaining factors."""
    end = factors.shape[-1] // 8 * 8
    return factors[..., :end].unflatten(-1, (8, -1)).prod(-2), factors[..., end:]


def sum_of_logs(factors: tuple[Tensor, Tensor]) -> Tensor:
    groups, rest = factors
    return groups.log_().sum(-1) + rest.log().sum(-1)


class Bfloat16Network(nn.Module):
    """A network that computes in bfloat16, with float32 inputs and outputs."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).bfloat16()

    def forward(self, *inputs: Tensor | None) -> Tensor:
        return self.network(*(v if v is None else v.bfloat16() for v in inputs)).float()


class Bfloat16Part(nn.Module):
    """A prior, posterior or decoder whose networks compute in bfloat16, its densities in float32."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, values: Values) -> Distribution:
        x = values["x"]
        assert x is not None
        with torch.autocast(x.device.type, torch.bfloat16):
            return self.part(values)


def prepare_for_inference(model: VAE, precision: str) -> VAE:
    """The model with its VampPrior's pseudo-inputs encoded once, and with a decoder whose networks compute in
    `precision`, as do priors and posteriors of a deep hierarchy, which share most of them."""
    priors: dict[str, nn.Module] = dict(model.prior.items())
    for name, prior in priors.items():
        if isinstance(prior, VampPrior):
            mixture = prior({})
            # Buffers, so that the mixture is exported with the model.
            priors[name] = ConstantMixture(mixture.loc.detach(), mixture.scale.detach())
    parts: dict[str, nn.Module] = dict(model.posterior.items())
    decoder = model.decoder
    shared = model.blueprint.settings.path_numbers(model.blueprint.shape) > 0
    if precision == "bfloat16" and shared:
        priors = {name: Bfloat16Part(part) for name, part in priors.items()}
        parts = {name: Bfloat16Part(part) for name, part in parts.items()}
        decoder = Bfloat16Part(decoder)
    elif precision == "bfloat16":
        decoder = copy.deepcopy(decoder)
        for module in list(decoder.modules()):
            if isinstance(module, Conditional):
                module.network = Bfloat16Network(module.network)
    return VAE(priors, parts, decoder, model.blueprint, model.condition)


def block_rows(model: VAE, images: EvalSplit, memory: str) -> tuple[int, int]:
    """How many rows (images x samples) to decode, and to sample latents of, at once within `memory`: as many where
    sampling takes as much as decoding, of which it is most of the way."""
    limit, each = parse_memory(memory), row_bytes(model, images)
    if each > limit:
        raise UserError(f"--memory {memory} is too small; one image takes {each:,} bytes")
    numbers = BLOCK_NUMBERS if images[:1].images.device.type == "cpu" else GPU_BLOCK_NUMBERS
    most = limit // each
    decoded_rows = min(most, max(1, numbers // numbers_per_image(model.blueprint)))
    alike = model.blueprint.settings.path_numbers(model.blueprint.shape) > 0
    return decoded_rows, decoded_rows if alike else min(most, MAX_SAMPLED_ROWS)


def row_bytes(model: VAE, images: EvalSplit) -> int:
    """An upper bound of the memory of one row of images x samples: the outputs of all layers together."""
    output_bytes: list[int] = []

    def add_output(module: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, Tensor):  # of two rows
            output_bytes.append(output.numel() * max(4, output.element_size()) // 2)

    leaves = [module for module in model.modules() if not list(module.children())]
    hooks = [module.register_forward_hook(add_output) for module in leaves]
    batch = images[0:1]
    try:
        with seeded(0, batch.images.device):  # the random numbers outside stay the same
            values = model.given(batch.images, batch.labels)
            latents = model.infer(values, (2, 1))
            model.decoder(values)
    finally:
        for hook in hooks:
            hook.remove()
    mixtures = [v.prior for v in latents.values() if isinstance(v.prior, GaussianMixture)]
    mixture_bytes = 24 * sum(prior.loc.shape[-2] for prior in mixtures)
    return sum(output_bytes) + mixture_bytes + 16 * decoder_outputs(model.blueprint)


def split_evenly(count: int, largest: int) -> list[int]:
    """`count` as a sum of nearly equal parts, none above `largest`."""
    parts = math.ceil(count / largest)
    return [count // parts + (i < count % parts) for i in range(parts)]
