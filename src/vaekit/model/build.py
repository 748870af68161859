"""From settings to a model and its objective: `build`, and the graphs that are built of its parts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..data import Dataset
from ..data.dataset import pixels
from ..settings.catalog import MODELS, ModelEntry, model_entry
from ..settings.data import MAX_CLASSES
from ..settings.model import (
    Blueprint,
    ClusterConfig,
    HierarchyConfig,
    LadderConfig,
    ModelConfig,
)
from ..settings.objective import ObjectiveConfig
from ..support.devices import seeded
from ..support.errors import UserError, is_whole, require, require_seed, with_changes
from .conditions import MaskedDecoder, OneHot, Quadrants
from .distributions import Conditional, Deterministic, Head, MixtureHead, posterior_head
from .graph import VAE
from .networks.encoders import MLP, Decoder, Encoder, ParallelNetworks
from .networks.hidden import ACTIVATIONS, Dropout, LayerStyle
from .networks.ladder import GroupPosterior, GroupPrior, Ladder, LadderDecoder
from .networks.layers import Layer, Layers, check_dense, default_layers, parse
from .networks.residual import ResidualNetworks
from .objectives import Objective, capacity, elbo, infovae, iwae
from .pixels import decoder_channels, likelihood_head
from .priors import FixedMixture, LearnedMixture, StandardNormal, VampPrior

Builder = Callable[[Blueprint], VAE]
NO_DENSITY = (
    "--posterior deterministic has no density, so no ELBO; choose --objective infovae --alpha 1"
)
BUILDERS: dict[str, Builder] = {}  # of registered models; the others are built by `build_graph`


def register(
    name: str, summary: str, settings: ModelConfig | None = None
) -> Callable[[Builder], Builder]:
    """A decorator that adds a builder, from a Blueprint to a VAE, to the table of models under a new name.

    Its models can be trained, saved, loaded and evaluated as any other. Raises UserError for a name in use.
    """
    require(name not in MODELS, f"there is a model {name!r} already; choose another name")

    def add(builder: Builder) -> Builder:
        MODELS[name] = ModelEntry(summary, settings or ModelConfig())
        BUILDERS[name] = builder
        return builder

    return add


def build(
    name: str,
    data: Dataset | tuple[int, int, int],
    seed: int = 0,
    classes: int | None = None,
    **settings: Any,
) -> VAE:
    """A model by its name in MODELS, with its settings (fields of ModelConfig) and weights initialised from `seed`.

    `data` is a data set, which also gives the likelihood and its levels, the number of `classes` and a VampPrior's
    pseudo-inputs; or an image shape (C, H, W), whose likelihood is bernoulli for one channel and logistic, of 256
    levels, for more. Raises UserError for an unknown name or setting, or a setting out of range.
    """
    config = with_changes(model_entry(name).settings, settings, f"model {name!r}").resolve()
    dataset = data if isinstance(data, Dataset) else None
    shape = dataset.shape if dataset else data
    sizes = shape if isinstance(shape, tuple | list) else ()
    require(
        len(sizes) == 3 and all(is_whole(n) and n >= 1 for n in sizes),
        f"the image shape is {shape}; it must be (channels, height, width), such as (1, 28, 28)",
    )
    channels, height, width = map(int, sizes)
    config = config.resolve_pixels(
        dataset.likelihood if dataset else "bernoulli" if channels == 1 else "logistic",
        (dataset and dataset.levels) or 256,
        channels,
    )
    require_seed(seed)
    if classes is None:
        classes = dataset.class_count if dataset else 0
    if not (is_whole(classes) and 0 <= classes <= MAX_CLASSES):
        raise UserError(f"classes is {classes!r}; it must be a whole number up to {MAX_CLASSES:,}")
    blueprint = Blueprint(name, (channels, height, width), config, int(seed), classes)
    model = build_from(blueprint)
    require(
        not config.dropout
        or name in BUILDERS
        or any(isinstance(m, Dropout) for m in model.modules()),
        "--dropout acts on dense hidden layers, and these networks have none; leave it out, or add one",
    )
    prior = next(iter(model.prior.values()))
    if isinstance(prior, VampPrior) and config.pseudo_inputs == "data":
        init_pseudo_inputs(prior, dataset, seed)
    return model


def init_pseudo_inputs(prior: VampPrior, dataset: Dataset | None, seed: int) -> None:
    """Set them to random training images."""
    if dataset is None:
        raise UserError(
            "pseudo-inputs start from training images; build the model from a data set, or set pseudo_inputs='noise'"
        )
    count, available = len(prior.logits), len(dataset.train)
    require(
        count <= available,
        f"--components is {count}, but there are {available} training images to start from",
    )
    rows = torch.randperm(available, generator=torch.Generator().manual_seed(seed))[:count]
    prior.init_from_images(pixels(dataset.train.images[rows], "none"))


def build_from(blueprint: Blueprint) -> VAE:
    """The model that a blueprint describes."""
    builder = BUILDERS.get(blueprint.model, build_graph)
    with seeded(blueprint.seed):
        return builder(blueprint)


def build_graph(blueprint: Blueprint) -> VAE:
    """The graph of one latent, of two levels, with clusters, or of many groups, by the type of its settings."""
    builder, settings = GraphBuilder(blueprint), blueprint.settings
    if isinstance(settings, LadderConfig):
        return build_ladder(builder, settings)
    if isinstance(settings, HierarchyConfig):
        return build_hierarchy(builder, settings)
    if isinstance(settings, ClusterConfig):
        return build_clusters(builder, settings)
    dim = settings.latent_dim
    posterior = builder.posterior(dim)
    prior, decoder = builder.prior(dim, posterior), builder.decoder(("z",), dim)
    return VAE({"z": prior}, {"z": posterior}, decoder, blueprint, builder.condition)


def build_hierarchy(builder: GraphBuilder, settings: HierarchyConfig) -> VAE:
    """z2, then z1 given z2: q(z2 | x), q(z1 | x, z2), p(z1 | z2), p(x | z1, z2)."""
    dim, top_dim = settings.latent_dim, settings.top_dim
    top = builder.posterior(top_dim)
    below = builder.posterior(
        dim,
        latent="z2",
        latent_dim=top_dim,
        branch=builder.dense(settings.top_layers, "--top-layers", 1),
        joint=builder.dense(settings.joint_layers, "--joint-layers", 1),
    )
    prior_layers = builder.dense(settings.prior_layers, "--prior-layers", 2)
    prior_below = builder.prior_given("z2", top_dim, prior_layers, posterior_head(), dim)
    prior = {"z2": builder.prior(top_dim, top), "z1": prior_below}
    decoder = builder.decoder(("z1", "z2"), dim + top_dim)
    posterior = {"z2": top, "z1": below}
    return VAE(prior, posterior, decoder, builder.blueprint, builder.condition)


def build_clusters(builder: GraphBuilder, settings: ClusterConfig) -> VAE:
    """w, then z given w from a mixture whose components are the clusters: q(w | x), q(z | x), p(x | z)."""
    dim, w_dim = settings.latent_dim, settings.w_dim
    style = builder.posterior(w_dim)
    layers = builder.dense(settings.prior_layers, "--prior-layers")
    mixture = builder.prior_given("w", w_dim, layers, MixtureHead(settings.clusters), dim)
    prior = {"w": builder.prior(w_dim, style), "z": mixture}
    posterior = {"w": style, "z": builder.posterior(dim)}
    decoder = builder.decoder(("z",), dim)
    return VAE(prior, posterior, decoder, builder.blueprint, builder.condition)


def build_ladder(builder: GraphBuilder, settings: LadderConfig) -> VAE:
    """Groups of latents, each given all above it: q(z_i | x, z_<i), p(z_i | z_<i), p(x | z)."""
    shape, channels = builder.shape, builder.shape[0]
    head, outputs = likelihood_head(settings, channels), decoder_channels(settings, channels)
    activation = ACTIVATIONS[settings.activation]
    ladder = Ladder(settings, shape, outputs, builder.condition_size, activation)
    prior = {name: GroupPrior(ladder, i) for i, name in enumerate(ladder.names)}
    posterior = {name: GroupPosterior(ladder, i) for i, name in enumerate(ladder.names)}
    top, parts = ladder.names[0], dict[str, nn.Module](prior)
    if settings.prior != "standard":  # which is that of the ladder: a learned Gaussian
        parts[top] = builder.prior(math.prod(ladder.latent_shapes[top]), posterior[top])
    decoder = LadderDecoder(ladder, head)
    return VAE(parts, posterior, decoder, builder.blueprint, builder.condition)


class GraphBuilder:
    """Makes the parts of a graph (posteriors, priors, decoder, condition) from the settings of a blueprint."""

    def __init__(self, blueprint: Blueprint) -> None:
        s, (_, height, width) = blueprint.settings, blueprint.shape
        self.blueprint, self.settings, self.shape = blueprint, s, blueprint.shape
        self.style = LayerStyle(s.activation, s.normalisation, s.dropout)
        encoder, decoder = default_layers(s, height, width)
        self.encoder_layers = parse(s.encoder or encoder, "--encoder", s.network_size)
        self.decoder_layers = parse(s.decoder or decoder, "--decoder", s.network_size)
        require(
            s.network_size == 1
            or s.network == "resnet"
            or any(x.kernel for x in self.encoder_layers + self.decoder_layers),
            "--network-size multiplies the channels of convolutions, and these networks have none",
        )
        self.residual: ResidualNetworks | None = None
        if s.network == "resnet":
            channels = max(1, int(s.channels * s.network_size))
            self.residual = ResidualNetworks(self.style, channels, s.blocks, s.num_layers)
        self.condition: nn.Module | None = None
        self.given: int | tuple[int, int, int] | None = None  # size or shape of the condition
        if s.condition == "label":
            require(
                blueprint.classes >= 1,
                "the model is conditional on labels, and the data set has none; leave out --condition label",
            )
            self.condition, self.given = OneHot(blueprint.classes), blueprint.classes
        elif s.condition != "none":
            self.condition = Quadrants(int(s.condition[-1]), height, width)
            self.given = blueprint.shape
        self.condition_names = () if self.given is None else ("y",)
        self.condition_size = (
            math.prod(self.given) if isinstance(self.given, tuple) else self.given or 0
        )

    def dense(self, text: str | None, what: str, count: int = 0) -> tuple[Layer, ...]:
        """The dense layers of `text`, or `count` of --hidden-dim units."""
        layers = parse(f"{self.settings.hidden_dim} " * count if text is None else text, what)
        check_dense(layers, what)
        return layers

    def encoder(self, outputs: int, **joining: Any) -> Encoder:
        return Encoder(
            self.shape, self.encoder_layers, outputs, self.style, residual=self.residual, **joining
        )

    def posterior(self, dim: int, latent: str = "", **joining: Any) -> Conditional:
        """q(. | x) over `dim` dimensions, or q(. | x, latent) with the Encoder's arguments `joining`."""
        s = self.settings
        head: Any = Head(Deterministic, 1) if s.posterior == "deterministic" else posterior_head()
        if s.posterior == "flow":
            from .flows import FlowHead

            head = FlowHead(dim, s.flow, s.flow_steps, s.flow_dim)
        count = head.outputs if s.two_encoders else 1
        outputs = head.outputs * dim // count
        networks = [self.encoder(outputs, given=self.given, **joining) for _ in range(count)]
        given = ("x", *self.condition_names, *([latent] if latent else []))
        return Conditional(given, networks[0] if count == 1 else ParallelNetworks(*networks), head)

    def prior(self, dim: int, posterior: nn.Module) -> nn.Module:
        """The prior of the settings, for the latent of this posterior."""
        s = self.settings
        if s.prior == "mixture":
            return FixedMixture(s.mixture_size, dim)
        if s.prior == "learned-mixture":
            return LearnedMixture(s.mixture_size, dim)
        if s.prior == "vampprior":
            return VampPrior(posterior, s.mixture_size, self.shape)
        if s.prior == "flow":
            from .flows import FlowPrior

            return FlowPrior(dim, s.flow, s.flow_steps, s.flow_dim, self.condition_size)
        if s.prior != "conditional":
            return StandardNormal(dim)
        head = posterior_head()
        outputs = head.outputs * dim
        if isinstance(self.given, int):
            network: nn.Module = MLP(self.given, self.dense(None, "", 1), outputs, self.style)
        else:
            network = nn.Sequential(nn.Unflatten(1, self.shape), self.encoder(outputs))
        return Conditional(("y",), network, head)

    def prior_given(
        self, latent: str, size: int, layers: Layers, head: Any, dim: int
    ) -> Conditional:
        """p(. | latent) over `dim` dimensions, given a latent of `size`, by a dense network."""
        network = MLP(size + self.condition_size, layers, head.outputs * dim, self.style)
        return Conditional((latent, *self.condition_names), network, head)

    def decoder(self, latents: tuple[str, ...], dim: int) -> nn.Module:
        """p(x | latents), whose dimensions add up to `dim`."""
        channels, height, width = self.shape
        head = likelihood_head(self.settings, channels)
        shape = (decoder_channels(self.settings, channels), height, width)
        network = Decoder(
            dim + self.condition_size, self.decoder_layers, shape, self.style, self.residual
        )
        decoder = Conditional((*latents, *self.condition_names), network, head)
        if isinstance(self.condition, Quadrants):
            return MaskedDecoder(decoder, self.condition)
        return decoder


def objective_of(blueprint: Blueprint) -> Objective:
    """The default objective of a model."""
    return make_objective(model_entry(blueprint.model).objective, blueprint.settings)


def make_objective(
    config: ObjectiveConfig, settings: ModelConfig, defaults: ObjectiveConfig | None = None
) -> Objective:
    """The objective of `config` for a model with these settings, whose own objective is that of `defaults`. Raises
    UserError where the objective does not suit the model."""
    config = config.resolve(defaults or ObjectiveConfig())
    samples = () if config.samples == 1 else (config.samples,)
    without_kl = config.objective == "infovae" and config.alpha == 1
    require(settings.posterior != "deterministic" or without_kl, NO_DENSITY)
    if config.objective == "iwae":
        require(
            config.gradient == "plain" or settings.posterior == "gaussian",
            "--gradient dreg needs a Gaussian posterior; leave out --posterior, or choose --gradient plain",
        )
        return iwae(config.samples, config.gradient)
    if config.objective == "infovae":
        one_latent = not isinstance(settings, HierarchyConfig | ClusterConfig | LadderConfig)
        require(
            one_latent and settings.resolve().prior in ("standard", "mixture"),
            "--objective infovae needs one latent and a prior without weights (standard or mixture): the MMD gives a "
            "learned prior no gradient",
        )
        biased = config.mmd == "biased"
        return infovae(config.alpha, config.mmd_weight, config.kernel, biased, samples)
    if config.capacity is not None:
        return capacity(config.capacity, 100.0 if config.beta is None else config.beta, samples)
    return elbo(1.0 if config.beta is None else config.beta, samples, config.free_bits)


def decoder_outputs(blueprint: Blueprint) -> int:
    """How many numbers the decoder's network outputs per image."""
    channels, height, width = blueprint.shape
    return decoder_channels(blueprint.settings, channels) * height * width


def numbers_per_image(blueprint: Blueprint) -> int:
    """The size of the largest of the decoder's output and the feature maps between latents, numbers per image: how many
    images to process at once follows from it."""
    path = blueprint.settings.path_numbers(blueprint.shape)
    return max(decoder_outputs(blueprint), path)
