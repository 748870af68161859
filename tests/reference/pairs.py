"""A model of vaekit and the reference's, with the same weights, images and noise, all drawn by NumPy."""

import contextlib
from dataclasses import dataclass, field
from unittest import mock
from zlib import crc32

import numpy as np
import torch

from reference import models
from reference.ladder import LadderModel
from vaekit import build
from vaekit.data import EvalSplit, Split
from vaekit.settings.catalog import MODELS
from vaekit.settings.model import DISCRETE, NOT_OF_LADDERS, LadderConfig

BATCH, CLASSES = 4, 3
SHAPE = (1, 7, 5)


@dataclass(frozen=True)
class Case:
    """A model of the catalogue, its settings in vaekit, the pixels, and the shape of its images."""

    model: str
    settings: dict = field(default_factory=dict)
    shape: tuple = SHAPE


VAMP = {"pseudo_inputs": "noise", "components": 5}
LADDER = {"groups": "1x2:1 2x1:1", "channels": 8}
CASES = {
    **{name: Case(name, VAMP if "vamp" in name else {}) for name in MODELS},
    "deepvae": Case("deepvae", LADDER, (1, 5, 3)),
    "deepvae of labels and patches": Case(
        "deepvae",
        {**LADDER, "condition": "label", "patch_size": 2, "likelihood": "bernoulli"},
        (3, 5, 4),
    ),
    "deepvae of several blocks": Case("deepvae", {**LADDER, "encoder_blocks": 2}, (1, 3, 5)),
    "gaussian, one scale": Case("vae", {"likelihood": "gaussian"}),
    "gaussian, a scale per pixel": Case("convvae", {"likelihood": "gaussian", "scale": "each"}),
    "gaussian, sigmoid of the mean": Case("vae", {"likelihood": "gaussian", "mean": "sigmoid"}),
    "gaussian, fixed scale": Case("vae", {"likelihood": "gaussian", "scale": 0.3}),
    "continuous bernoulli": Case("vae", {"likelihood": "continuous-bernoulli"}),
    "logistic, a scale per pixel": Case("convvae", {"likelihood": "logistic"}, (3, 7, 5)),
    "logistic, one scale": Case("vae", {"likelihood": "logistic", "scale": "shared"}, (3, 3, 2)),
    "logistic mixture": Case("convvae", {"likelihood": "logistic-mixture"}, (3, 7, 5)),
    "logistic mixture, five channels": Case(
        "vae", {"likelihood": "logistic-mixture", "mean": "sigmoid"}, (5, 3, 2)
    ),
    "logistic mixture, quadrants": Case(
        "cvae", {"likelihood": "logistic-mixture", "condition": "quadrants:1"}, (3, 4, 3)
    ),
    "categorical": Case("vae", {"likelihood": "categorical"}, (3, 3, 2)),
    "grey bernoulli": Case("vae", {"likelihood": "bernoulli"}),
    "learned mixture": Case("vae", {"prior": "learned-mixture", "components": 3}),
    "conditional prior": Case("cvae", {"prior": "conditional"}),
    "quadrants": Case("cvae", {"condition": "quadrants:3"}),
    "convolutional cvae": Case("cvae", {"network": "conv"}),
    "convolutional quadrants": Case("cvae", {"condition": "quadrants:1", "network": "conv"}),
    "convolutional hvampprior": Case("hvampprior", {**VAMP, "network": "conv"}),
    "two halvings": Case("convvae", {"num_layers": 2}, (2, 7, 6)),
    "hvae of labels": Case("hvae", {"condition": "label", "prior": "conditional"}),
    "gmvae of labels": Case("gmvae", {"condition": "label"}),
    "two encoders": Case("hvae", {"two_encoders": True}),
    "deterministic": Case("mmdvae", {"posterior": "deterministic"}),
    **{
        a: Case("vae", {"activation": a})
        for a in ("relu", "gelu", "elu", "leaky-relu", "softplus", "tanh")
    },
}
SIZES = {"latent_dim": 3, "hidden_dim": 6, "channels": 2, "top_dim": 2, "w_dim": 2, "clusters": 4}


class Pair:
    """One model twice: `theirs` of vaekit in `dtype`, `ours` in NumPy; with images, labels and noise from `seed`."""

    def __init__(self, name, seed, dtype=torch.float64, sizes=SIZES, posterior_spread=1.2):
        case = CASES[name]
        self.seed, self.dtype, self.case = 1000 * seed + crc32(name.encode()) % 1000, dtype, case
        entry = MODELS[case.model].settings
        without = NOT_OF_LADDERS if isinstance(entry, LadderConfig) else ()
        known = {k: v for k, v in sizes.items() if hasattr(entry, k) and k not in without}
        settings = {"classes": CLASSES, **known, **case.settings}
        with default_dtype(dtype):  # of constants such as a fixed scale
            self.theirs = build(case.model, case.shape, **settings).eval()
        self.weights = self.random_weights(posterior_spread)
        self.theirs.to(dtype).load_state_dict({k: torch.tensor(v) for k, v in self.weights.items()})
        s = self.theirs.blueprint.settings
        self.ours = self.reference(self.weights)
        rng = np.random.default_rng([self.seed, 1])
        x = rng.uniform(size=(BATCH, *case.shape))
        if s.likelihood in DISCRETE:
            x = np.rint(x * 255) / 255
            x.flat[:4] = (0, 1, 1, 0)
        elif s.likelihood == "bernoulli" and name != "grey bernoulli":
            x = np.rint(x)
        self.x, self.labels = x, np.arange(BATCH) % CLASSES
        self.tx, self.ty = torch.tensor(x, dtype=dtype), torch.tensor(self.labels)

    def random_weights(self, posterior_spread):
        """Weights that make every layer count, in the shapes of vaekit's."""
        rng, weights = np.random.default_rng([self.seed, 0]), {}
        for name, tensor in self.theirs.state_dict().items():
            fan_in = max(1, int(np.prod(tensor.shape[1:])))
            spread = posterior_spread if name.startswith("posterior") else 1.2
            scale = spread / np.sqrt(fan_in) if name.endswith("weight") else 0.5
            weights[name] = as_float32(rng.normal(size=tuple(tensor.shape)) * scale)
        return weights

    def reference(self, weights):
        s, case, kind, more = self.theirs.blueprint.settings, self.case, models.Model, {}
        if isinstance(s, LadderConfig):
            kind = LadderModel
            more = {"shapes": s.latent_shapes(case.shape), "patch": s.patch(case.shape)}
        return kind(
            case.model,
            weights,
            case.shape,
            activation=s.activation,
            likelihood=s.likelihood,
            scale=s.scale,
            mean=s.mean,
            prior=s.prior,
            components=s.mixture_size,
            clusters=getattr(s, "clusters", 0),
            condition=s.condition,
            classes=CLASSES,
            deterministic=s.posterior == "deterministic",
            **more,
        )

    @property
    def dims(self):
        s = self.theirs.blueprint.settings
        sizes = {"w": getattr(s, "w_dim", 0), **s.latent_sizes(self.case.shape)}
        return {name: sizes[name] for name in self.ours.latents}

    def noise(self, *samples):
        return {name: normal(self.seed, (*samples, BATCH, dim)) for name, dim in self.dims.items()}

    def run(self, samples, model=None):
        return models.infer(model or self.ours, self.x, self.labels, self.noise(*samples))

    def inference(self, samples):
        with given_noise(self.seed):
            return self.theirs(self.tx, self.ty, samples=samples)

    @property
    def images(self):
        return EvalSplit(Split(self.tx, self.ty), "none")


def normal(seed, shape):
    """Noise that depends on seed and shape alone: latents have different dimensions."""
    return as_float32(np.random.default_rng([seed, 2, *shape]).normal(size=shape))


def as_float32(array):
    """The nearest numbers that float32 has: equal in both types."""
    return array.astype(np.float32).astype(np.float64)


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def given_noise(seed):
    """Samples of torch's Normal use `normal`."""

    def standard_normal(shape, dtype, device):
        return torch.tensor(normal(seed, tuple(shape)), dtype=dtype)

    with mock.patch("torch.distributions.normal._standard_normal", standard_normal):
        yield
