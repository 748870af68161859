"""The graph: ordered latents between priors, posteriors and a decoder, and what one pass through it yields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import add

from torch import Tensor, nn
from torch.distributions import Distribution, kl_divergence

from ..settings.model import Blueprint
from ..support.errors import require
from .distributions import GaussianMixture, draw

# What is known so far, by name: "x" the image, "y" what is given of it or None, then each latent drawn.
Values = dict[str, Tensor | None]


@dataclass(frozen=True)
class Latent:
    """A draw z ~ q, with the posterior q and the prior p that score it."""

    z: Tensor
    posterior: Distribution
    prior: Distribution

    @property
    def log_ratio(self) -> Tensor:
        """log p(z) - log q(z), nats: a one-draw estimate of -KL(q || p)."""
        return self.prior.log_prob(self.z) - self.posterior.log_prob(self.z)

    @cached_property
    def kl(self) -> Tensor:
        """KL(q || p), nats: in closed form where torch knows one, else -log_ratio."""
        try:
            return kl_divergence(self.posterior, self.prior)
        except NotImplementedError:
            return -self.log_ratio

    @property
    def cluster_kl(self) -> Tensor | float:
        """KL(p(cluster | z) || p(cluster)), nats, of a mixture prior, 0 of others. The kl contains it:
        log p(z) = E_r[log p(z | cluster)] - KL(r || p(cluster)) where r are the responsibilities.
        """
        if not isinstance(self.prior, GaussianMixture):
            return 0.0
        log_r = self.prior.log_responsibilities(self.z)
        return (log_r.exp() * (log_r - self.prior.logits)).sum(-1)


@dataclass(frozen=True)
class Inference:
    """What a model says of a batch of images: all that an objective may use.

    Every property is in nats per image, of shape (B,), or (K, B) where K samples were drawn.
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
        return reduce(
            add, (latent.log_ratio for latent in self.latents.values()), self.log_likelihood
        )


class VAE(nn.Module):
    """A directed graph: priors and posteriors by latent name, in the order they are drawn, and a decoder.

    Each of these is a module that takes the values known so far and returns a distribution. `condition` makes of
    images and labels what networks are given as "y"; without it, none is given.
    `blueprint` is what `models.build` built the graph from, so that a run directory can rebuild it.
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
        """x (B, C, H, W) in [0, 1], labels y (B,); each latent is drawn (*samples, B) times."""
        values = self.given(x, y)
        latents = self.infer(values, (*samples, len(x)))
        return Inference(x, self.decoder(values), latents)

    def infer(self, values: Values, shape: tuple[int, ...]) -> dict[str, Latent]:
        """A draw of shape (*shape, D) of each latent from its posterior, also added to `values`."""
        latents = {}
        for name, prior in self.prior.items():
            q, p = self.posterior[name](values), prior(values)
            z = values[name] = q.expand(shape).rsample()
            latents[name] = Latent(z, q, p)
        return latents

    def posteriors(self, values: Values) -> dict[str, Distribution]:
        """Each latent's posterior given the means of those before it; its own mean is added to `values`."""
        found = {}
        for name, posterior in self.posterior.items():
            found[name] = posterior(values)
            values[name] = found[name].mean
        return found

    def given(self, x: Tensor | None, y: Tensor | None) -> Values:
        """The values known before any latent."""
        return {"x": x, "y": None if self.condition is None else self.condition(x, y)}

    def sample(
        self,
        count: int,
        y: Tensor | None = None,
        temperature: float = 1.0,
        cluster: Tensor | None = None,
    ) -> Distribution:
        """The pixels' distributions (count,) given latents drawn from the prior.

        y (count,) are labels, or images of which parts are given; `cluster` (count,) the components of a mixture to
        draw from. A temperature below 1 pulls each draw towards the prior's (or the component's) mean.
        """
        return self.decoder(self.draw(count, y, temperature, cluster))

    def draw(
        self,
        count: int,
        y: Tensor | None = None,
        temperature: float = 1.0,
        cluster: Tensor | None = None,
    ) -> Values:
        """What `sample` decodes: the condition, and each latent (count, D)."""
        values, mixtures = self.given(None, y), 0
        for name, prior in self.prior.items():
            p = prior(values).expand((count,))
            mixtures += isinstance(p, GaussianMixture)
            values[name] = draw(p, temperature, cluster)
        require(
            cluster is None or mixtures > 0,
            "--cluster needs a model whose prior is a mixture, such as gmvae",
        )
        return values

    def reconstruct(
        self, x: Tensor, y: Tensor | None = None, decode_as: Tensor | None = None
    ) -> Distribution:
        """The pixels' distributions (B,) given each image's latents at their posterior means; decoded with the labels
        `decode_as`, where given, instead of its own."""
        values = self.given(x, y)
        self.posteriors(values)
        if decode_as is not None:
            values["y"] = self.given(None, decode_as)["y"]
        return self.decoder(values)

    def decode(self, y: Tensor | None = None, **latents: Tensor) -> Distribution:
        """The pixels' distributions given latents by name, such as `decode(z=z)` with z (B, D)."""
        return self.decoder({**self.given(None, y), **latents})
