"""From settings to a graph and its objective: one short function a builder. Load a trained model from its run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..data import Dataset
from ..data.dataset import pixels
from ..settings.catalog import MODELS, ModelEntry, model_entry
from ..settings.model import Blueprint, ClusterConfig, HierarchyConfig, Likelihood, ModelConfig
from ..settings.objective import ObjectiveConfig
from ..support.devices import seeded
from ..support.errors import UserError, is_whole, override, require, require_seed
from .conditions import HiddenPixels, OneHot, Quadrants
from .distributions import Conditional, DeterministicHead, MixtureHead, posterior_head
from .graph import VAE
from .layers import Layer, check_dense, default_decoder, default_encoder, parse
from .networks import MLP, Beside, Decoder, Encoder, Style
from .objectives import Objective, capacity, elbo, infovae, iwae
from .pixels import (
    BernoulliHead,
    CategoricalHead,
    ContinuousBernoulliHead,
    gaussian_head,
    logistic_head,
)
from .priors import FixedMixture, LearnedMixture, StandardNormal, VampPrior

Builder = Callable[[Blueprint], VAE]
# The graph of a model is that of its settings, unless one is registered by its name.
BUILDERS: dict[str, Builder] = {}


def register(
    name: str, summary: str, settings: ModelConfig | None = None
) -> Callable[[Builder], Builder]:
    """A decorator that puts a builder, from a Blueprint to a VAE, into the table of models under a new name.

    What it builds can then be trained, saved, loaded and measured as any other. Raises UserError for a taken name.
    """
    require(name not in MODELS, f"there is a model {name!r} already; choose another name")

    def enter(builder: Builder) -> Builder:
        MODELS[name] = ModelEntry(summary, settings or ModelConfig())
        BUILDERS[name] = builder
        return builder

    return enter


def build(
    name: str,
    data: Dataset | tuple[int, int, int],
    seed: int = 0,
    classes: int | None = None,
    **settings: Any,
) -> VAE:
    """A model by its name in MODELS, with its settings (fields of ModelConfig), its weights drawn from `seed`.

    `data` is a data set, whose pixels also choose the likelihood, whose labels say how many `classes` there are, and
    whose images a VampPrior starts from; or an image shape (C, H, W), of which the likelihood is bernoulli for one
    channel and logistic for more. Raises UserError for an unknown name or setting, or a setting out of range.
    """
    config = override(model_entry(name).settings, settings, f"model {name!r}").settle()
    shape = data.shape if isinstance(data, Dataset) else data
    require(
        isinstance(shape, (tuple, list))
        and len(shape) == 3
        and all(is_whole(n) and n >= 1 for n in shape),
        f"the image shape is {shape}; it must be (channels, height, width), such as (1, 28, 28)",
    )
    if config.likelihood == "auto":
        by_channels: Likelihood = "bernoulli" if shape[0] == 1 else "logistic"
        natural = data.likelihood if isinstance(data, Dataset) else by_channels
        config = dataclasses.replace(config, likelihood=natural)
    require_seed(seed)
    require(
        classes is None or (is_whole(classes) and 0 <= classes <= 2**20),
        f"classes is {classes!r}; it must be 0 or a positive whole number",
    )
    if classes is None:
        classes = data.class_count if isinstance(data, Dataset) else 0
    size = (int(shape[0]), int(shape[1]), int(shape[2]))
    model = build_from(Blueprint(name, size, config, int(seed), classes))
    prior = next(iter(model.prior.values()))
    if isinstance(prior, VampPrior) and config.pseudo_inputs == "data":
        require(
            isinstance(data, Dataset),
            "pseudo-inputs start from training images; build the model from a data set, or set pseudo_inputs='noise'",
        )
        assert isinstance(data, Dataset)
        count, there = len(prior.logits), len(data.train)
        require(
            count <= there,
            f"--components is {count}, but there are {there} training images to start from",
        )
        chosen = torch.randperm(there, generator=torch.Generator().manual_seed(seed))[:count]
        prior.start_from(pixels(data.train.images[chosen], "none"))
    return model


def build_from(blueprint: Blueprint) -> VAE:
    """The model that a blueprint describes."""
    builder = BUILDERS.get(blueprint.model, build_graph)
    with seeded(blueprint.seed):
        return builder(blueprint)


def build_graph(blueprint: Blueprint) -> VAE:
    """The graph of one latent, of two levels, or of clusters, by the kind of its settings."""
    parts = Parts(blueprint)
    settings = blueprint.settings
    if isinstance(settings, HierarchyConfig):
        return hierarchy(parts, settings)
    if isinstance(settings, ClusterConfig):
        return clusters(parts, settings)
    posterior = parts.posterior(settings.latent_dim)
    return VAE(
        prior={"z": parts.prior(settings.latent_dim, posterior)},
        posterior={"z": posterior},
        decoder=parts.decoder(("z",), settings.latent_dim),
        blueprint=blueprint,
        condition=parts.condition,
    )


def hierarchy(parts: Parts, settings: HierarchyConfig) -> VAE:
    """z2, then z1 given z2: q(z2 | x), q(z1 | x, z2), p(z1 | z2), p(x | z1, z2)."""
    top = parts.posterior(settings.top_dim)
    below = parts.posterior(
        settings.latent_dim,
        latent="z2",
        latent_dim=settings.top_dim,
        branch=parts.dense(settings.top_layers, "--top-layers", 1),
        joint=parts.dense(settings.joint_layers, "--joint-layers", 1),
    )
    given_top = parts.dense(settings.prior_layers, "--prior-layers", 2)
    head = posterior_head()
    size = settings.top_dim + parts.given_size
    network = MLP(size, given_top, head.outputs * settings.latent_dim, parts.style)
    return VAE(
        prior={
            "z2": parts.prior(settings.top_dim, top),
            "z1": Conditional(("z2", *parts.also), network, head),
        },
        posterior={"z2": top, "z1": below},
        decoder=parts.decoder(("z1", "z2"), settings.latent_dim + settings.top_dim),
        blueprint=parts.blueprint,
        condition=parts.condition,
    )


def clusters(parts: Parts, settings: ClusterConfig) -> VAE:
    """w, then z given w from a mixture whose components are the clusters: q(w | x), q(z | x), p(x | z)."""
    style, head = parts.posterior(settings.w_dim), MixtureHead(settings.clusters)
    layers = parts.dense(settings.prior_layers, "--prior-layers")
    size = settings.w_dim + parts.given_size
    network = MLP(size, layers, head.outputs * settings.latent_dim, parts.style)
    return VAE(
        prior={
            "w": parts.prior(settings.w_dim, style),
            "z": Conditional(("w", *parts.also), network, head),
        },
        posterior={"w": style, "z": parts.posterior(settings.latent_dim)},
        decoder=parts.decoder(("z",), settings.latent_dim),
        blueprint=parts.blueprint,
        condition=parts.condition,
    )


class Parts:
    """What graphs are put together from, by the settings of a blueprint."""

    def __init__(self, blueprint: Blueprint) -> None:
        s, (_, height, width) = blueprint.settings, blueprint.shape
        self.blueprint, self.settings, self.shape = blueprint, s, blueprint.shape
        self.style = Style(s.activation, s.normalisation, s.dropout)
        encoder = s.encoder or default_encoder(s, height, width)
        decoder = s.decoder or default_decoder(s, height, width)
        self.encoder_layers = parse(encoder, "--encoder", s.network_size)
        self.decoder_layers = parse(decoder, "--decoder", s.network_size)
        require(
            s.network_size == 1 or any(x.kernel for x in self.encoder_layers + self.decoder_layers),
            "--network-size multiplies the channels of convolutions, and these networks have none",
        )
        self.condition: nn.Module | None = None
        self.given: int | tuple[int, int, int] | None = None
        if s.condition == "label":
            require(
                blueprint.classes >= 1,
                "the model is conditional on labels, and the data set has none; leave out --condition label",
            )
            self.given = blueprint.classes
            self.condition = OneHot(blueprint.classes)
        elif s.condition != "none":
            self.given = blueprint.shape
            self.condition = Quadrants(int(s.condition[-1]), height, width)

    @property
    def also(self) -> tuple[str, ...]:
        """What every network is given besides."""
        return () if self.given is None else ("y",)

    @property
    def given_size(self) -> int:
        """Numbers in it, as a vector."""
        return math.prod(self.given) if isinstance(self.given, tuple) else self.given or 0

    def dense(self, text: str | None, what: str, count: int = 0) -> tuple[Layer, ...]:
        """Dense layers as they are written, or else `count` of --hidden-dim units."""
        layers = parse(f"{self.settings.hidden_dim} " * count if text is None else text, what)
        check_dense(layers, what)
        return layers

    def posterior(self, dim: int, latent: str = "", **joining: Any) -> Conditional:
        """q(. | x) over `dim` dimensions, or q(. | x, latent)."""
        head = (
            DeterministicHead() if self.settings.posterior == "deterministic" else posterior_head()
        )
        count = head.outputs if self.settings.two_encoders else 1
        networks = [
            Encoder(
                self.shape,
                self.encoder_layers,
                head.outputs * dim // count,
                self.style,
                self.given,
                **joining,
            )
            for _ in range(count)
        ]
        given = ("x", *self.also, *([latent] if latent else []))
        return Conditional(given, networks[0] if count == 1 else Beside(*networks), head)

    def prior(self, dim: int, posterior: nn.Module) -> nn.Module:
        """The prior that the settings name, of the latent that this posterior is of."""
        s = self.settings
        if s.prior == "mixture":
            return FixedMixture(s.mixture_size, dim)
        if s.prior == "learned-mixture":
            return LearnedMixture(s.mixture_size, dim)
        if s.prior == "vampprior":
            return VampPrior(posterior, s.mixture_size, self.shape)
        if s.prior == "conditional":
            head = posterior_head()
            outputs = head.outputs * dim
            if isinstance(self.given, int):
                hidden = self.dense(None, "", 1)
                return Conditional(("y",), MLP(self.given, hidden, outputs, self.style), head)
            encoder = Encoder(self.shape, self.encoder_layers, outputs, self.style)
            return Conditional(("y",), nn.Sequential(nn.Unflatten(1, self.shape), encoder), head)
        return StandardNormal(dim)

    def decoder(self, latents: tuple[str, ...], dim: int) -> nn.Module:
        """p(x | latents), `dim` numbers altogether."""
        head = likelihood_head(self.settings)
        channels, height, width = self.shape
        network = Decoder(
            dim + self.given_size,
            self.decoder_layers,
            (head.outputs * channels, height, width),
            self.style,
        )
        decoder = Conditional((*latents, *self.also), network, head)
        return (
            HiddenPixels(decoder, self.condition)
            if isinstance(self.condition, Quadrants)
            else decoder
        )


def likelihood_head(settings: ModelConfig) -> Any:
    """The head of the pixels that the settings name."""
    if settings.likelihood == "bernoulli":
        return BernoulliHead(event_dim=3)
    if settings.likelihood == "continuous-bernoulli":
        return ContinuousBernoulliHead()
    if settings.likelihood == "gaussian":
        return gaussian_head(settings.scale or "shared")
    if settings.likelihood == "logistic":
        return logistic_head(settings.scale or "each")
    if settings.likelihood == "categorical":
        return CategoricalHead()
    raise UserError("the likelihood is 'auto'; build the model with `build`, which settles it")


def objective_of(blueprint: Blueprint) -> Objective:
    """What a model of this name is trained on unless told otherwise."""
    return make_objective(model_entry(blueprint.model).objective, blueprint.settings)


NO_DENSITY = (
    "--posterior deterministic has no density, so no ELBO; choose --objective infovae --alpha 1"
)


def make_objective(
    config: ObjectiveConfig, settings: ModelConfig, row: ObjectiveConfig | None = None
) -> Objective:
    """The objective that the settings name, where `row` has the model's own.

    Raises UserError where it makes no sense for a model of `settings`.
    """
    config = config.settle(row or ObjectiveConfig())
    one_latent = not isinstance(settings, (HierarchyConfig, ClusterConfig))
    samples = () if config.samples == 1 else (config.samples,)
    require(
        config.objective == "infovae" or settings.posterior == "gaussian",
        NO_DENSITY,
    )
    if config.objective == "iwae":
        require(
            config.gradient == "plain" or one_latent,
            "--gradient dreg holds for one latent, and this model has two; choose plain",
        )
        return iwae(config.samples, config.gradient)
    if config.objective == "infovae":
        require(
            one_latent and settings.settle().prior in ("standard", "mixture"),
            "--objective infovae needs one latent and a prior without weights (standard or mixture): its MMD draws "
            "from the prior, which gives a learned one no gradient",
        )
        require(
            config.alpha == 1 or settings.posterior == "gaussian",
            "--posterior deterministic has no KL; choose --alpha 1",
        )
        return infovae(
            config.alpha, config.mmd_weight, config.kernel, config.mmd == "biased", samples
        )
    if config.capacity is not None:
        return capacity(config.capacity, 100.0 if config.beta is None else config.beta, samples)
    return elbo(1.0 if config.beta is None else config.beta, samples)


def decoded_numbers(blueprint: Blueprint) -> int:
    """Numbers that the decoder gives for an image: pixels, channels, and outputs of the head for each."""
    return math.prod(blueprint.shape) * likelihood_head(blueprint.settings).outputs
