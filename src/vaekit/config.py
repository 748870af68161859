"""The settings, as frozen dataclasses with one sentence a field. Imports no torch, so that --help is instant."""

from __future__ import annotations

import dataclasses
import difflib
import math
import numbers
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar


class UserError(ValueError):
    """Bad input: one line that says what is wrong and what to do. The command line exits with 2."""


Activation = Literal["relu", "silu", "gelu", "elu", "leaky-relu", "softplus", "tanh", "gated"]
Likelihood = Literal["auto", "bernoulli", "gaussian", "logistic"]
Binarisation = Literal["auto", "dynamic", "threshold", "none"]
Scale = Literal["shared", "each"] | float


def require(condition: bool, message: str) -> None:
    """Raise UserError with `message` unless `condition` holds (a NaN never does)."""
    if not condition:
        raise UserError(message)


def closest(word: str, words: Iterable[str]) -> str:
    """`; did you mean ...?` for a mistyped word, or nothing."""
    matches = difflib.get_close_matches(word, list(words), n=1)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def flag(field: str) -> str:
    return "--" + field.replace("_", "-")


def one_line(text: object) -> str:
    """A message, such as another library's error, without line breaks."""
    return " ".join(str(text).split())


def is_whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def require_count(name: str, value: Any, largest: int = 2**31) -> None:
    """Raise UserError unless `value` is a whole number from 1 to `largest`."""
    require(is_whole(value), f"{flag(name)} is {value!r}; it must be a whole number")
    require(value >= 1, f"{flag(name)} is {value}; it must be at least 1")
    require(value <= largest, f"{flag(name)} is {value}; it must be at most {largest:,}")


def require_seed(value: Any) -> None:
    """Raise UserError unless `value` can seed every generator."""
    require(
        is_whole(value) and 0 <= value < 2**63,
        f"--seed is {value}; it must be 0 or a positive whole number",
    )


@dataclass(frozen=True)
class ModelConfig:
    """Settings of a model with one latent z."""

    latent_dim: int = 20
    """Dimensions of the latent z."""
    network: Literal["dense", "conv"] = "dense"
    """Dense layers, or convolutions of stride 2; the decoder mirrors the encoder."""
    hidden_dim: int = 500
    """Units of each dense hidden layer."""
    num_layers: int = 2
    """Hidden layers (dense), or halvings of the image (conv; 0 goes on until it is 8 pixels wide)."""
    channels: int = 32
    """Channels of the first convolution; each further one doubles them (conv only)."""
    activation: Activation = "silu"
    """Activation of the hidden layers; gated is a linear unit times a sigmoid gate."""
    dropout: float = 0.0
    """Probability of dropping a hidden unit in training."""
    likelihood: Likelihood = "auto"
    """Distribution of the pixels; auto follows the data: bernoulli for MNIST-like sets, logistic
    (discretised, 256 levels) for other 8-bit images, gaussian for float arrays."""
    scale: Scale | None = None
    """Standard deviation of a gaussian (scale of a logistic) pixel: a number fixes it, shared learns one,
    each lets the decoder give one per pixel; by default shared for gaussian, each for logistic. Learned ones stay
    above 1/256 for gaussian, 0.001 for logistic."""

    def __post_init__(self) -> None:
        for name in ("latent_dim", "hidden_dim", "channels"):
            require_count(name, getattr(self, name), largest=2**20)
        smallest, largest = (0, 12) if self.network == "conv" else (1, 100)
        require(
            smallest <= self.num_layers <= largest,
            f"--num-layers is {self.num_layers}; a {self.network} network has {smallest} to {largest}",
        )
        require(
            0 <= self.dropout < 1, f"--dropout is {self.dropout}; it must be at least 0 and below 1"
        )
        if isinstance(self.scale, float):
            require(
                0 < self.scale < math.inf, f"--scale is {self.scale}; it must be a positive number"
            )
        require(
            self.scale is None or self.likelihood != "bernoulli",
            "--scale has no meaning for a bernoulli likelihood; leave it out or choose another --likelihood",
        )


@dataclass(frozen=True)
class DataConfig:
    """Which images, and how their pixels are read."""

    data: str = "mnist"
    """Name of the data set."""
    data_dir: str | None = None
    """Folder that holds the data set's files, instead of those inside the package."""
    binarisation: Binarisation = "auto"
    """Of a bernoulli model's pixels: dynamic draws black or white anew at each use (validation and test
    once, with a fixed seed), threshold cuts at one half, none takes greys as probabilities; auto is dynamic."""


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training."""

    epochs: int = 50
    """Passes over the training images."""
    batch_size: int = 100
    """Images a step."""
    learning_rate: float = 1e-3
    """Learning rate at its highest."""
    optimizer: Literal["adam", "adamw", "adagrad", "rmsprop"] = "adam"
    """Optimiser."""
    weight_decay: float = 0.0
    """Weight decay (decoupled for adamw, an L2 penalty for the others)."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """How the learning rate goes on after its warm-up: cosine falls to 0 at the last step."""
    lr_warmup: float = 0.0
    """Epochs over which the learning rate rises from 0."""
    kl_warmup: float = 0.0
    """Epochs over which the weight of the KL rises from 0 to its final value."""
    clip_gradient: float | None = None
    """Largest norm of the gradient; a longer one is scaled down."""
    patience: int | None = None
    """Stop after this many epochs without a better validation objective (counted after all warm-ups)."""
    ema: float | None = None
    """Decay of an exponential moving average of the weights, such as 0.999, that is validated and saved."""
    save_every: int | None = None
    """Also keep numbered weights every N epochs."""
    seed: int = 0
    """Seed of the order of the images and all noise; on the command line of the first weights too."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "patience", "save_every"):
            if getattr(self, name) is not None:
                require_count(name, getattr(self, name))
        for name in ("learning_rate", "clip_gradient"):
            value = getattr(self, name)
            require(
                value is None or 0 < value < math.inf,
                f"{flag(name)} is {value}; it must be a positive number",
            )
        for name in ("weight_decay", "lr_warmup", "kl_warmup"):
            value = getattr(self, name)
            require(
                0 <= value < math.inf, f"{flag(name)} is {value}; it must be 0 or a positive number"
            )
        for name in ("lr_warmup", "kl_warmup"):
            value = getattr(self, name)
            require(
                value < self.epochs,
                f"{flag(name)} is {value} but --epochs is {self.epochs}: no epoch would follow the "
                "warm-up and no weights would be kept; shorten it",
            )
        require(
            self.ema is None or 0 < self.ema < 1,
            f"--ema is {self.ema}; it must be between 0 and 1, such as 0.999",
        )
        require_seed(self.seed)

    @property
    def warmup(self) -> float:
        """Epochs until every warm-up has ended."""
        return max(self.kl_warmup, self.lr_warmup)


@dataclass(frozen=True)
class Blueprint:
    """All that a model is built from: its name in MODELS, the images' (C, H, W), settings, seed of its weights."""

    model: str
    shape: tuple[int, int, int]
    settings: ModelConfig
    seed: int = 0


@dataclass(frozen=True)
class ModelEntry:
    """A row of the table of models: a sentence for --help, and its settings."""

    summary: str
    settings: ModelConfig


MODELS: dict[str, ModelEntry] = {
    "vae": ModelEntry("Dense variational autoencoder (Kingma and Welling 2014).", ModelConfig()),
    "convvae": ModelEntry(
        "Convolutional variational autoencoder, for images of any size and colour.",
        ModelConfig(network="conv", num_layers=0),
    ),
}


def model_entry(name: str) -> ModelEntry:
    """The row of MODELS called `name`; UserError names the closest one."""
    if name not in MODELS:
        raise UserError(
            f"there is no model {name!r}{closest(name, MODELS)} (models: {', '.join(MODELS)})"
        )
    return MODELS[name]


@dataclass(frozen=True)
class DataRecord:
    """What config.json keeps of the data set, enough to find the same images again."""

    name: str
    data_dir: str | None
    binarisation: Literal["dynamic", "threshold", "none"]
    sha256: str


Settings = TypeVar("Settings", ModelConfig, DataConfig, TrainConfig, DataRecord)


def override(settings: Settings, changes: Mapping[str, Any], what: str) -> Settings:
    """`settings` with some fields replaced; UserError for an unknown name or a value of another type."""
    return from_dict(type(settings), {**dataclasses.asdict(settings), **changes}, what)


def from_dict(kind: type[Settings], values: Mapping[str, Any], what: str) -> Settings:
    """A dataclass from JSON values; UserError names unknown and missing keys and wrong types."""
    fields = typing.get_type_hints(kind)
    for name in values:
        require(
            name in fields,
            f"{what} has no setting {name!r}{closest(name, fields)}",
        )
    for name in fields:
        require(name in values, f"{what} lacks the setting {name!r}")
    converted = {name: _convert(fields[name], value) for name, value in values.items()}
    for name, value in converted.items():
        require(
            value is not _WRONG,
            f"{what}: {name} is {values[name]!r}; it must be {_describe(fields[name])}",
        )
    return kind(**converted)


_WRONG = object()


def _convert(annotation: Any, value: Any) -> Any:
    """`value` as the annotated type (an int serves as a float), or _WRONG."""
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is Literal:
        return value if value in arguments else _WRONG
    if arguments:  # a union
        for argument in arguments:
            converted = _convert(argument, value)
            if converted is not _WRONG:
                return converted
        return _WRONG
    if isinstance(value, bool):
        return value if annotation is bool else _WRONG
    if annotation is float and isinstance(value, numbers.Real):
        return float(value)
    if annotation is int and is_whole(value):
        return int(value)
    return value if type(value) is annotation else _WRONG


def _describe(annotation: Any) -> str:
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is Literal:
        return " or ".join(map(str, arguments))
    if arguments:
        return " or ".join(map(_describe, arguments))
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    return names.get(annotation, "null")
