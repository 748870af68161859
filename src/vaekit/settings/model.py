"""The settings of a model, as frozen dataclasses with one sentence a field. Imports no torch."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal, Self

from ..support.errors import flag_name, require, require_count, shown
from .data import MAX_LEVELS

Activation = Literal["relu", "silu", "gelu", "elu", "leaky-relu", "softplus", "tanh", "gated"]
Likelihood = Literal[
    "auto",
    "bernoulli",
    "continuous-bernoulli",
    "gaussian",
    "logistic",
    "logistic-mixture",
    "categorical",
]
Prior = Literal["standard", "mixture", "learned-mixture", "vampprior", "conditional", "flow"]
FlowKind = Literal[
    "affine-coupling", "spline-coupling", "affine-autoregressive", "spline-autoregressive"
]
Condition = Literal["none", "label", "quadrants:1", "quadrants:2", "quadrants:3"]
Scale = Literal["shared", "each"] | float
Mean = Literal["linear", "sigmoid"]
# Likelihoods of discrete pixels, such as the 256 levels of an 8-bit image.
DISCRETE = ("logistic", "logistic-mixture", "categorical")
WITHOUT_LOCATION = ("bernoulli", "continuous-bernoulli", "categorical")
FLOW_SETTINGS = ("flow", "flow_steps", "flow_dim")
LOGISTICS = 3  # components of a mixture of logistics
MAX_CATEGORIES = 1024  # of a categorical pixel, which has an output for each


@dataclass(frozen=True)
class ModelConfig:
    """Settings of a model with one latent z."""

    latent_dim: int = 20
    """Dimensions of the latent z."""
    prior: Prior | None = None
    """Prior of the latent (in a hierarchy, of the top one): standard normal, the default; mixture of fixed Gaussians or
    learned-mixture; vampprior, the mixture of posteriors of learned pseudo-inputs; conditional, a network of the
    condition, the default with quadrants; flow, a normalising flow, given the condition if there is one."""
    components: int | None = None
    """Components of a mixture (10 by default), pseudo-inputs of a vampprior (500)."""
    pseudo_inputs: Literal["data", "noise"] = "data"
    """Initial pseudo-inputs of a vampprior: training images, or noise around grey."""
    posterior: Literal["gaussian", "deterministic", "flow"] = "gaussian"
    """Posterior of the latent: a diagonal Gaussian, a single point without noise (only infovae), or flow, a diagonal
    Gaussian followed by the transforms of a normalising flow."""
    flow: FlowKind = "affine-coupling"
    """Transforms of a flow: couplings of two halves of the dimensions, or autoregressive ones, which are slower to
    sample a prior from; each affine, or a spline, slower."""
    flow_steps: int = 4
    """Number of transforms of a flow."""
    flow_dim: int = 256
    """Units of each of the two hidden layers of a transform of a flow."""
    condition: Condition = "none"
    """Condition of the model: the label, or 1 to 3 quadrants of the image, of which the rest is then modelled."""
    network: Literal["dense", "conv", "resnet"] = "dense"
    """Dense layers, convolutions of stride 2, or residual blocks of convolutions (resnet); the decoder mirrors the
    encoder."""
    hidden_dim: int = 500
    """Units of each dense hidden layer."""
    num_layers: int | None = None
    """Hidden layers (dense; 2 by default), or halvings of the image (conv and resnet; by default until it is 8 pixels
    wide)."""
    channels: int = 32
    """Channels of the first convolution (conv) or resolution (resnet); each further one doubles them."""
    blocks: int = 2
    """Residual blocks at each resolution (resnet only)."""
    encoder: str | None = None
    """Layers of the encoder, instead of the four settings above, such as "32@3/2 64@3/2 500"; see docs/layers.md."""
    decoder: str | None = None
    """Layers of the decoder, such as "500 64x 32@3*2 @3*2"."""
    network_size: float = 1.0
    """Multiplies the channels of all convolutions."""
    two_encoders: bool = False
    """Separate networks for the posterior's location and scale, instead of one for both."""
    activation: Activation = "silu"
    """Activation of the hidden layers; gated is a gated linear unit."""
    normalisation: Literal["none", "layer", "batch", "group", "weight"] = "none"
    """Normalisation before each activation, over all features (layer), groups of channels (group; conv and resnet) or
    the batch; weight normalises the weights instead."""
    dropout: float = 0.0
    """Dropout probability of the units of dense hidden layers."""
    likelihood: Likelihood = "auto"
    """Distribution of the pixels; auto follows the data: bernoulli for MNIST and similar sets, logistic
    (discretised) for other 8-bit images and whole numbers of up to 65,536 levels, gaussian for float arrays.
    logistic-mixture mixes several logistics per pixel, and conditions a channel on the up to three before it."""
    logistics: int | None = None
    """Components per pixel of a logistic-mixture (3 by default)."""
    levels: int | None = None
    """Number of values of a pixel of the likelihoods logistic, logistic-mixture and categorical; by default that of
    the data."""
    scale: Scale | None = None
    """Standard deviation of a gaussian (scale of a logistic) pixel: a number fixes it, shared learns one for all
    pixels, each one per pixel by the decoder; default: shared for gaussian, each for logistic. Learned scales stay
    above 1/256 for gaussian, a quarter of a level (0.001 of 8 bits) for logistic."""
    mean: Mean = "linear"
    """Mean of a gaussian (location of a logistic) pixel: the decoder's output itself, or its sigmoid, in [0, 1]."""

    def __post_init__(self) -> None:
        for name in ("latent_dim", "hidden_dim", "channels", "blocks", "components"):
            if getattr(self, name) is not None:
                require_count(name, getattr(self, name), largest=2**20)
        if self.logistics is not None:
            require_count("logistics", self.logistics, largest=1024)
            require(
                self.likelihood == "logistic-mixture",
                f"--logistics has no effect for --likelihood {self.likelihood}; leave it out, or choose --likelihood "
                "logistic-mixture",
            )
        require_count("flow_steps", self.flow_steps, largest=100)
        require_count("flow_dim", self.flow_dim, largest=2**20)
        if "flow" not in (self.prior, self.posterior):
            self._require_defaults(
                FLOW_SETTINGS, "without a flow; choose --prior flow or --posterior flow"
            )
        largest = 12 if self.network != "dense" else 100
        require(
            self.num_layers is None or 1 <= self.num_layers <= largest,
            f"--num-layers is {self.num_layers}; a {self.network} network has 1 to {largest}",
        )
        require(
            0 < self.network_size < math.inf,
            f"--network-size is {self.network_size}; it must be a positive number",
        )
        require(
            0 <= self.dropout < 1, f"--dropout is {self.dropout}; it must be at least 0 and below 1"
        )
        if self.levels is not None:
            require_count("levels", self.levels, smallest=2, largest=MAX_LEVELS)
            require(
                self.likelihood in ("auto", *DISCRETE),
                f"--levels has no effect for a {self.likelihood} likelihood; leave it out, or choose --likelihood "
                "logistic",
            )
            require(
                self.likelihood != "categorical" or self.levels <= MAX_CATEGORIES,
                f"a categorical likelihood has at most {MAX_CATEGORIES:,} levels, not {self.levels:,}; choose "
                "--likelihood logistic",
            )
        if isinstance(self.scale, float):
            require(
                0 < self.scale < math.inf, f"--scale is {self.scale}; it must be a positive number"
            )
        require(
            self.scale in (None, "each") or self.likelihood != "logistic-mixture",
            f"--scale {self.scale} is not possible for a logistic-mixture, whose scales are all outputs; leave it out",
        )
        require(
            self.scale is None or self.likelihood not in WITHOUT_LOCATION,
            f"--scale has no effect for a {self.likelihood} likelihood; leave it out or choose another --likelihood",
        )
        require(
            self.mean == "linear" or self.likelihood not in WITHOUT_LOCATION,
            f"--mean has no effect for a {self.likelihood} likelihood; leave it out or choose another --likelihood",
        )
        require(
            self.components is None or self.prior not in (None, "standard", "conditional", "flow"),
            f"--components has no effect for a {self.prior or 'standard'} prior; choose --prior mixture, "
            "learned-mixture or vampprior",
        )
        require(
            self.prior == "vampprior" or self.pseudo_inputs == "data",
            "--pseudo-inputs needs --prior vampprior",
        )
        layers = f"{self.encoder or ''} {self.decoder or ''}"
        if self.network == "resnet":
            require(
                not layers.strip(),
                "--network resnet has no --encoder and --decoder, which list other layers; leave them out, or choose "
                "another --network",
            )
            require(
                self.activation != "gated",
                "--activation gated is not possible with --network resnet; choose another, such as silu",
            )
        require(
            self.network == "resnet" or self.blocks == ModelConfig.blocks,
            "--blocks has no effect without --network resnet; leave it out",
        )
        require(
            self.network != "dense" or "@" in layers or self.normalisation != "group",
            "--normalisation group needs convolutions, --network conv or resnet; choose layer for dense layers",
        )
        if self.encoder and self.decoder:
            unread = ["num_layers", "channels"] + ["hidden_dim"] * (not self.has_other_layers)
            self._require_defaults(
                unread,
                "with --encoder and --decoder, which list the layers; change those, or give --encoder None --decoder "
                "None",
            )
            require(
                self.network == "dense" or "@" in self.encoder,
                "--network conv has no effect with --encoder and --decoder, which list dense layers; change those, "
                "or give --encoder None --decoder None",
            )
        require(
            self.prior != "vampprior" or self.condition == "none",
            "--prior vampprior cannot have a --condition: its pseudo-inputs have no labels; choose another prior",
        )
        require(
            self.prior != "vampprior" or self.posterior == "gaussian",
            "--prior vampprior is a mixture of posteriors, which are points with --posterior deterministic, and with "
            "--posterior flow too slow to evaluate; choose another prior",
        )
        require(
            self.prior != "vampprior" or self.normalisation != "batch",
            "--prior vampprior cannot have --normalisation batch, which would mix images and pseudo-inputs; "
            "choose layer",
        )
        require(
            self.prior != "conditional" or self.condition != "none",
            "--prior conditional needs a --condition, label or quadrants:1",
        )

    def _require_defaults(self, names: Sequence[str], where: str) -> None:
        """Raise UserError for one of these settings that was chosen, since it has no effect `where`."""
        for name in names:
            require(
                getattr(self, name) == getattr(ModelConfig, name),
                f"{flag_name(name)} has no effect {where}",
            )

    def resolve(self) -> Self:
        """The settings with their default prior, if none is chosen."""
        if self.prior is not None:
            return self
        given = self.condition.startswith("quadrants")
        return replace(self, prior="conditional" if given else "standard")

    def resolve_pixels(self, likelihood: Likelihood, levels: int, channels: int) -> Self:
        """The settings with the model's choice for auto, where `likelihood` is that of the data, and with `levels` and
        `logistics` where the likelihood needs them and none are chosen."""
        choice = self.default_likelihood(likelihood, channels)
        likelihood = choice if self.likelihood == "auto" else self.likelihood
        chosen = self.levels or (levels if likelihood in DISCRETE else None)
        logistics = self.logistics or (LOGISTICS if likelihood == "logistic-mixture" else None)
        return replace(self, likelihood=likelihood, levels=chosen, logistics=logistics)

    def default_likelihood(self, of_data: Likelihood, channels: int) -> Likelihood:
        """The likelihood unless another one is chosen: that of the data."""
        return of_data

    def latent_sizes(self, shape: tuple[int, int, int]) -> dict[str, int]:
        """Dimensions of the latents that are decoded, by name, for images of `shape` (C, H, W)."""
        return {"z": self.latent_dim}

    def top_groups(self, shape: tuple[int, int, int]) -> tuple[str, ...]:
        """Of a hierarchy of many latents, those that stand for the code of an image where all would be too many; () of
        other models, whose code are all latents."""
        return ()

    def path_numbers(self, shape: tuple[int, int, int]) -> int:
        """Numbers per image of the largest feature map on the way from latent to latent; 0 where dense networks, which
        are small, sample a latent from those above."""
        return 0

    @property
    def has_other_layers(self) -> bool:
        """Whether a network other than encoder and decoder has layers of --hidden-dim."""
        return self.prior == "conditional" and self.condition == "label"

    @property
    def mixture_size(self) -> int:
        """Number of components of a mixture prior."""
        return self.components or (500 if self.prior == "vampprior" else 10)


@dataclass(frozen=True)
class HierarchyConfig(ModelConfig):
    """Settings of a model with two latents: z2, and z1 given z2."""

    top_dim: int = 20
    """Dimensions of the top latent z2; --latent-dim is that of z1."""
    top_layers: str | None = None
    """Layers from z2 to where it joins the features of the image (one of --hidden-dim by default)."""
    joint_layers: str | None = None
    """Layers from there to z1 (one of --hidden-dim by default)."""
    prior_layers: str | None = None
    """Layers from z2 to the prior of z1 (two of --hidden-dim by default)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count("top_dim", self.top_dim, largest=2**20)

    def latent_sizes(self, shape: tuple[int, int, int]) -> dict[str, int]:
        return {"z1": self.latent_dim, "z2": self.top_dim}

    @property
    def has_other_layers(self) -> bool:
        return (
            None in (self.top_layers, self.joint_layers, self.prior_layers)
            or super().has_other_layers
        )


@dataclass(frozen=True)
class ClusterConfig(ModelConfig):
    """Settings of a model with the latents w and z, where p(z | w) is a mixture whose components are the clusters."""

    w_dim: int = 2
    """Dimensions of w, the style; --latent-dim is that of z."""
    clusters: int = 10
    """Components of the mixture."""
    prior_layers: str = "50:tanh"
    """Layers from w to the parameters of the components."""
    start_epochs: int = 8
    """Epochs of pretraining as a plain VAE, whose latents initialise the clusters; 0: random clusters, which mostly
    merge."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("w_dim", "clusters"):
            require_count(name, getattr(self, name), largest=2**20)
        require(
            0 <= self.start_epochs <= 2**31,
            f"--start-epochs is {self.start_epochs}; it must be 0 or a positive whole number",
        )
        require(
            self.prior in (None, "standard", "conditional"),
            f"--prior {self.prior} is not possible here: it would be that of w, which is standard so that the clusters "
            "hold the rest of the information",
        )


@dataclass(frozen=True)
class LadderConfig(ModelConfig):
    """Settings of a deep hierarchy: groups of latents at several resolutions, from the coarsest to the finest."""

    channels: int = 64
    """Channels of the feature maps, at all resolutions."""
    groups: str | None = None
    """Groups of latents, from the coarsest resolution on, as SIZExCOUNT:CHANNELS, such as "4x2:16 8x2:8 16x1:4": SIZE
    is the longer side of the feature map, one that halving the image gives; without CHANNELS about 64 / SIZE."""
    patch_size: int | None = None
    """Side of the squares of pixels that the finest feature map has one position for (by default 1, 2, 4 ..., so that
    it is at most 32 pixels wide)."""
    encoder_blocks: int = 1
    """Residual blocks of the encoder at each resolution."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, largest in {"channels": 4096, "patch_size": 1024, "encoder_blocks": 100}.items():
            if getattr(self, name) is not None:
                require_count(name, getattr(self, name), largest=largest)
        self._require_defaults(
            NOT_OF_LADDERS,
            "for a deep hierarchy, whose networks are set by --channels, --groups, --patch-size and --encoder-blocks; "
            "leave it out",
        )
        require(
            self.posterior == "gaussian",
            f"--posterior {self.posterior} is not possible in a deep hierarchy; leave it out",
        )
        require(
            self.prior in (None, "standard", "learned-mixture", "vampprior", "flow"),
            f"--prior {self.prior} is not possible in a deep hierarchy; choose --prior flow, or leave it out for a "
            "learned one",
        )
        require(
            self.condition in ("none", "label"),
            "a deep hierarchy does not complete images; choose another model for --condition quadrants, such as cvae",
        )
        if self.groups is not None:
            parse_groups(self.groups)

    @property
    def has_other_layers(self) -> bool:
        return False

    def default_likelihood(self, of_data: Likelihood, channels: int) -> Likelihood:
        """A mixture of logistics for colour: half a bit/dim less than `logistic` in the same time (record 0031)."""
        return "logistic-mixture" if (of_data, channels) == ("logistic", 3) else of_data

    def latent_sizes(self, shape: tuple[int, int, int]) -> dict[str, int]:
        return {name: math.prod(size) for name, size in self.latent_shapes(shape).items()}

    def top_groups(self, shape: tuple[int, int, int]) -> tuple[str, ...]:
        """The first groups, as many as have MAX_CODE dimensions in all."""
        sizes = self.latent_sizes(shape)
        totals = accumulate(sizes.values())
        first, *others = (
            name for name, n in zip(sizes, totals, strict=True) if n <= MAX_CODE or n == sizes[name]
        )
        return (first, *others)

    def path_numbers(self, shape: tuple[int, int, int]) -> int:
        return self.channels * math.prod(self.feature_sizes(shape)[0])

    def latent_shapes(self, shape: tuple[int, int, int]) -> dict[str, tuple[int, int, int]]:
        """Shapes (C, H, W) of the latents by name, z4_0 being the first group of a map whose longer side is 4. Raises
        UserError where halving the image does not give such a map."""
        sizes = {max(size): size for size in self.feature_sizes(shape)}
        groups = (
            self.default_groups(list(sizes)) if self.groups is None else parse_groups(self.groups)
        )
        shapes = {}
        for side, count, channels in groups:
            require(
                side in sizes,
                f"--groups has a map of {side} pixels; for these images they are "
                f"{', '.join(map(str, reversed(sizes)))}",
            )
            for i in range(count):
                shapes[f"z{side}_{i}"] = (channels, *sizes[side])
        total = sum(math.prod(size) for size in shapes.values())
        require(
            total <= MAX_LATENTS,
            f"--groups has {total:,} numbers per image, more than {MAX_LATENTS:,}; give it fewer groups or channels",
        )
        return shapes

    def feature_sizes(self, shape: tuple[int, int, int]) -> list[tuple[int, int]]:
        """Height and width of the feature maps, from the finest to a single position."""
        patch = self.patch(shape)
        sizes = [(-(-shape[1] // patch), -(-shape[2] // patch))]
        while max(sizes[-1]) > 1:
            height, width = sizes[-1]
            sizes.append((-(-height // 2), -(-width // 2)))
        return sizes

    def patch(self, shape: tuple[int, int, int]) -> int:
        """The patch size for images of `shape`."""
        return self.patch_size or 2 ** max(0, math.ceil(math.log2(max(shape[1:]) / 32)))

    @staticmethod
    def default_groups(sides: list[int]) -> list[tuple[int, int, int]]:
        """Two groups at each resolution from 4 pixels on, or the coarsest, and one at the finest of several."""
        used = [side for side in reversed(sides) if side > 2] or sides[:1]
        return [
            (side, 1 if side == used[-1] and len(used) > 1 else 2, default_channels(side))
            for side in used
        ]


MAX_CODE = 1024  # dimensions of the groups that stand for the code of an image
NOT_OF_LADDERS = (
    "latent_dim", "hidden_dim", "num_layers", "network", "encoder", "decoder", "network_size", "two_encoders",
    "normalisation", "dropout",
)  # fmt: skip
GROUP = re.compile(r"([0-9]{1,5})x([0-9]{1,3})(?::([0-9]{1,5}))?")
MAX_GROUPS, MAX_LATENTS = 200, 2**20  # of an image


def parse_groups(text: str) -> list[tuple[int, int, int]]:
    """Side, number of groups and channels of each resolution of --groups. Raises UserError."""
    groups = []
    for word in text.split():
        match = GROUP.fullmatch(word)
        require(
            match is not None and all(each is None or int(each) >= 1 for each in match.groups()),
            f"--groups: {shown(word)} is none; write SIZExCOUNT or SIZExCOUNT:CHANNELS, such as 8x2:8",
        )
        assert match is not None
        side = int(match[1])
        groups.append((side, int(match[2]), int(match[3] or default_channels(side))))
    total = sum(count for _, count, _ in groups)
    require(total <= MAX_GROUPS, f"--groups has {total:,} groups, more than {MAX_GROUPS}")
    sides = [side for side, *_ in groups]
    require(
        bool(sides) and sides == sorted(set(sides)),
        f"--groups is {shown(text)}; name each resolution once, the coarsest first, such as 4x2 8x2 16x1",
    )
    return groups


def default_channels(side: int) -> int:
    """Channels of a latent whose map is `side` pixels wide."""
    return max(2, 64 // side)


@dataclass(frozen=True)
class Blueprint:
    """Everything a model is built from: its name in MODELS, the image shape (C, H, W), the settings, the seed of the
    weights and the number of classes (0: no labels)."""

    model: str
    shape: tuple[int, int, int]
    settings: ModelConfig
    seed: int = 0
    classes: int = 0
