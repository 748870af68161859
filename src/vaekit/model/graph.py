"""The graph of a VAE: ordered latents with priors and posteriors, and a decoder; and the result of a forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, reduce
from itertools import islice
from operator import add

from torch import Tensor, nn
from torch.distributions import Distribution, kl_divergence

from ..settings.model import Blueprint
from ..support.errors import UserError
from .distributions import GaussianMixture, sample_with_temperature

# The known variables by name: "x" the image, "y" the condition or None, then each latent sampled so far.
Values = dict[str, Tensor | None]


@dataclass(frozen=True)
class Latent:
    """A sample z ~ q, with its posterior q and its prior p."""

    z: Tensor
    posterior: Distribution
    prior: Distribution

    @property
    def log_ratio(self) -> Tensor:
        """log p(z) - log q(z), nats: a one-sample estimate of -KL(q || p)."""
        return self.prior.log_prob(self.z) - self.posterior.log_prob(self.z)

    @cached_property
    def kl(self) -> Tensor:
        """KL(q || p), nats: in closed form where torch has one, else -log_ratio."""
        try:
            return kl_divergence(self.posterior, self.prior)
        except NotImplementedError:
            return -self.log_ratio

    @property
    def cluster_kl(self) -> Tensor | float:
        """KL(r || p(cluster)), nats, of a mixture prior with responsibilities r = p(cluster | z); 0 of other priors.
        It is part of `kl`, since log p(z) = E_r[log p(z | cluster)] - KL(r || p(cluster)).
        """
        if not isinstance(self.prior, GaussianMixture):
            return 0.0
        log_r = self.prior.log_responsibilities(self.z)
        return (log_r.exp() * (log_r - self.prior.logits)).sum(-1)


@dataclass(frozen=True)
class Inference:
    """The result of a forward pass: all that an objective may use.

    Every property is in nats per image, of shape (B,), or (K, B) with K samples.
    """

    x: Tensor
    likelihood: Distribution
    latents: dict[str, Latent]

    @cached_property
    def log_likelihood(self) -> Tensor:
        """log p(x | latents), summed over pixels."""
        return self.likelihood.log_prob(self.x)

    @property
    def kl(self) -> Tensor:
        """Sum of KL(q || p) over the latents."""
        return reduce(add, (latent.kl for latent in self.latents.values()))

    @property
    def log_weight(self) -> Tensor:
        """log p(x | latents) + log p(latents) - log q(latents | x): all bounds and the NLL follow from it."""
        ratios = (latent.log_ratio for latent in self.latents.values())
        return reduce(add, ratios, self.log_likelihood)


class VAE(nn.Module):
    """A directed graph: priors and posteriors by latent name, in sampling order, and a decoder.

    Each is a module from the values known so far to a distribution. `condition` computes the value "y" from images and
    labels; without it "y" is None. `blueprint` is what `build` made the graph from: enough to rebuild it from a run.
    """

    def __init__(
        self,
        prior: Mapping[str, nn.Module],
        posterior: Mapping[str, nn.Module],
        decoder: nn.Module,
        blueprint: Blueprint,
        condition: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.blueprint = blueprint
        self.condition = condition
        self.prior = nn.ModuleDict(prior)
        self.posterior = nn.ModuleDict(posterior)
        self.decoder = decoder

    def forward(
        self, x: Tensor, y: Tensor | None = None, samples: tuple[int, ...] = ()
    ) -> Inference:
        """Images x (B, C, H, W) in [0, 1], labels y (B,); each latent is sampled (*samples, B) times."""
        values = self.given(x, y)
        latents = self.infer(values, (*samples, len(x)))
        return Inference(x, self.decoder(values), latents)

    def infer(self, values: Values, shape: tuple[int, ...]) -> dict[str, Latent]:
        """Sample each latent from its posterior, (*shape, D); the samples are also added to `values`."""
        latents = {}
        for name, prior in self.prior.items():
            q, p = self.posterior[name](values), prior(values)
            z = values[name] = q.expand(shape).rsample()
            latents[name] = Latent(z, q, p)
        return latents

    def posteriors(self, values: Values, count: int | None = None) -> dict[str, Distribution]:
        """The posterior of each latent, or of the first `count`, given the means of those before it; the means are also
        added to `values`."""
        posteriors = {}
        for name, posterior in islice(self.posterior.items(), count):
            q = posteriors[name] = posterior(values)
            values[name] = q.mean
        return posteriors

    def given(self, x: Tensor | None, y: Tensor | None) -> Values:
        """The values known before any latent."""
        return {"x": x, "y": None if self.condition is None else self.condition(x, y)}

    def sample(
        self,
        count: int,
        y: Tensor | None = None,
        temperature: float | Mapping[str, float] = 1.0,
        cluster: Tensor | None = None,
    ) -> Distribution:
        """The distributions of the pixels (count,) given latents sampled from the prior.

        y (count,) are labels, or images of which parts are given; `cluster` (count,) the components of a mixture prior
        to sample from. A temperature below 1 pulls each sample towards the mean of the prior (or component);
        it may be given by the name of the latent, 1 for others.
        """
        return self.decoder(self.sample_latents(count, y, temperature, cluster))

    def sample_latents(
        self,
        count: int,
        y: Tensor | None,
        temperature: float | Mapping[str, float],
        cluster: Tensor | None,
    ) -> Values:
        """The values that `sample` decodes: the condition, and each latent (count, D)."""
        values, has_mixture = self.given(None, y), False
        for name, prior in self.prior.items():
            p = prior(values).expand((count,))
            has_mixture |= isinstance(p, GaussianMixture)
            t = temperature.get(name, 1.0) if isinstance(temperature, Mapping) else temperature
            values[name] = sample_with_temperature(p, t, cluster)
        if cluster is not None and not has_mixture:
            raise UserError("--cluster needs a model whose prior is a mixture, such as gmvae")
        return values

    def reconstruct(
        self, x: Tensor, y: Tensor | None = None, decode_as: Tensor | None = None
    ) -> Distribution:
        """The distributions of the pixels (B,) given the posterior means of the latents; `decode_as` are labels to
        decode with in place of y."""
        values = self.given(x, y)
        self.posteriors(values)
        if decode_as is not None:
            values["y"] = self.given(None, decode_as)["y"]
        return self.decoder(values)

    def decode(self, y: Tensor | None = None, **latents: Tensor) -> Distribution:
        """The distributions of the pixels given latents by name, such as `decode(z=z)` with z (B, D)."""
        return self.decoder({**self.given(None, y), **latents})
