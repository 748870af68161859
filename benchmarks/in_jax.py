"""The raced models in JAX, without a library of networks or optimisers: vaekit's sizes, vaekit's losses.

    python benchmarks/in_jax.py     # shows that sizes, losses and gradients are vaekit's

A short epoch is one compiled program, `lax.scan` over its batches with the state donated. Where there are
convolutions, which XLA runs on one core inside a loop, a step is the program. What is quickest in JAX was taken: its
default generator, 16 random bits a pixel, and the mixture's distances as float32 products, which lose digits (vaekit's
are float64).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from contestants import TASKS, mnist
from jax import Array, lax

# Each layer's weight, in the order of vaekit's parameters; a bias follows, but not after pseudo-inputs. The letters are
# networks: q(z | x), the decoder x, the prior p; r, b, j are the trunk, branch and joint layers of q(z1 | x, z2); c are
# convolutions, d those of the decoder.
SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "dense": {"q0": (784, 500), "q1": (500, 40), "x0": (20, 500), "x1": (500, 784)},
    "vampprior": {
        "pseudo": (500, 784),
        **{"q0": (784, 600), "q1": (300, 600), "q2": (300, 80)},
        **{"x0": (40, 600), "x1": (300, 600), "x2": (300, 784)},
    },
    "hvampprior": {
        "pseudo": (500, 784),
        **{"p0": (40, 600), "p1": (300, 600), "p2": (300, 80)},
        **{"q0": (784, 600), "q1": (300, 600), "q2": (300, 80)},
        **{"r0": (784, 600), "r1": (300, 600), "b0": (40, 600), "j0": (600, 600), "j1": (300, 80)},
        **{"x0": (80, 600), "x1": (300, 600), "x2": (300, 784)},
    },
    "gmvae": {
        **{"p0": (2, 50), "p1": (50, 200)},
        **{"w0": (784, 500), "w1": (500, 500), "w2": (500, 4)},
        **{"q0": (784, 500), "q1": (500, 500), "q2": (500, 20)},
        **{"x0": (10, 500), "x1": (500, 500), "x2": (500, 784)},
    },
    "conv": {
        **{"c0": (7, 7, 1, 32), "c1": (3, 3, 32, 64), "c2": (5, 5, 64, 64), "c3": (3, 3, 64, 128)},
        **{"q0": (6272, 256), "q1": (256, 4), "x0": (2, 1568)},
        **{"d0": (3, 3, 32, 128), "d1": (3, 3, 128, 64), "d2": (3, 3, 64, 64)},
        **{"d3": (3, 3, 64, 32), "d4": (3, 3, 32, 1)},
    },
}
# Dimensions of each latent, in the order that they are drawn.
LATENTS = {"dense": (20,), "vampprior": (40,), "hvampprior": (40, 40), "gmvae": (2, 10), "conv": (2,)}  # fmt: skip
DOUBLING = ("d1", "d3")

Weights = dict[str, tuple[Array, ...]]
Noise = tuple[Array, ...]
Gaussian = tuple[Array, Array]  # location and scale
FLOOR = 1e-4  # of the scales, which are 1 where a network says 0
OFFSET = math.log(math.expm1(1 - FLOOR))


def softplus(x: Array) -> Array:
    """jax.nn.softplus takes 1.7 times as long."""
    return jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


def gated(x: Array) -> Array:
    unit, gate = jnp.split(x, 2, axis=-1)
    return unit * jax.nn.sigmoid(gate)


def network(weights: Weights, letter: str, x: Array, activation: Callable[[Array], Array]) -> Array:
    """All dense layers of a letter, the activation between them."""
    for i in range(sum(name[0] == letter and name != "pseudo" for name in weights)):
        weight, bias = weights[f"{letter}{i}"]
        x = (activation(x) if i else x) @ weight + bias
    return x


def convolution(weights: Weights, name: str, x: Array, stride: int = 1) -> Array:
    """A convolution that keeps the size of images (B, H, W, C), or divides it by the stride; or doubles it."""
    weight, bias = weights[name]
    if name in DOUBLING:
        return doubled(x, weight) + bias
    padding, layout = [(weight.shape[0] // 2,) * 2] * 2, ("NHWC", "HWIO", "NHWC")
    strides = (stride, stride)
    return lax.conv_general_dilated(x, weight, strides, padding, dimension_numbers=layout) + bias


def doubled(x: Array, weight: Array) -> Array:
    """A transposed convolution, 3 x 3 of stride 2, as one of 2 x 2 that gives the four pixels of each: XLA takes three
    to five times as long for the gradient of lax.conv_transpose."""
    _, height, width, inputs = x.shape
    outputs = weight.shape[-1]
    # Along each side an even pixel is w1 x[i], an odd one w0 x[i] + w2 x[i + 1].
    taps = jnp.array([1, 0, 3, 2])  # the one after the last is 0
    four = jnp.pad(weight, ((0, 1), (0, 1), (0, 0), (0, 0)))[taps][:, taps]
    four = four.reshape(2, 2, 2, 2, inputs, outputs).transpose(0, 2, 4, 1, 3, 5)
    four = four.reshape(2, 2, inputs, 4 * outputs)
    padding, layout = [(0, 1)] * 2, ("NHWC", "HWIO", "NHWC")
    out = lax.conv_general_dilated(x, four, (1, 1), padding, dimension_numbers=layout)
    out = out.reshape(-1, height, width, 2, 2, outputs).transpose(0, 1, 3, 2, 4, 5)
    return out.reshape(-1, 2 * height, 2 * width, outputs)


def gaussian(output: Array) -> Gaussian:
    loc, raw = jnp.split(output, 2, axis=-1)
    return loc, FLOOR + softplus(raw + OFFSET)


def draw(q: Gaussian, noise: Array) -> Array:
    return q[0] + q[1] * noise


def log_density(z: Array, p: Gaussian) -> Array:
    loc, scale = p
    each = -0.5 * ((z - loc) / scale) ** 2 - jnp.log(scale) - 0.5 * math.log(2 * math.pi)
    return each.sum(-1)


def log_mixture(z: Array, p: Gaussian) -> Array:
    """Of equal weights; p is (K, D), the same for all images, or (B, K, D)."""
    loc, scale = p
    if loc.ndim == 2:
        precision = scale**-2
        square = z**2 @ precision.T - 2 * z @ (loc * precision).T + (loc**2 * precision).sum(-1)
    else:
        square = (((z[:, None] - loc) / scale) ** 2).sum(-1)
    constant = jnp.log(scale).sum(-1) + 0.5 * math.log(2 * math.pi) * loc.shape[-1]
    return jax.nn.logsumexp(-0.5 * square - constant, axis=-1) - math.log(loc.shape[-2])


def kl(q: Gaussian, p: Gaussian | None = None) -> Array:
    """KL(q || p), p the standard normal by default."""
    loc, scale = q if p is None else ((q[0] - p[0]) / p[1], q[1] / p[1])
    return (0.5 * (loc**2 + scale**2 - 1) - jnp.log(scale)).sum(-1)


def minus_elbo(x: Array, logits: Array, *kls: Array) -> Array:
    """The mean over images, nats."""
    log_likelihood = (x * logits - softplus(logits)).reshape(len(x), -1).sum(-1)
    return (sum(kls) - log_likelihood).mean()


def dense(weights: Weights, x: Array, noise: Noise) -> Array:
    q = gaussian(network(weights, "q", x, jax.nn.relu))
    return minus_elbo(x, network(weights, "x", draw(q, noise[0]), jax.nn.relu), kl(q))


def pseudo_posterior(weights: Weights) -> Gaussian:
    """The components of a VampPrior."""
    return gaussian(network(weights, "q", jax.nn.sigmoid(weights["pseudo"][0]), gated))


def vampprior(weights: Weights, x: Array, noise: Noise) -> Array:
    q = gaussian(network(weights, "q", x, gated))
    z = draw(q, noise[0])
    ratio = log_density(z, q) - log_mixture(z, pseudo_posterior(weights))
    return minus_elbo(x, network(weights, "x", z, gated), ratio)


def hvampprior(weights: Weights, x: Array, noise: Noise) -> Array:
    q2 = gaussian(network(weights, "q", x, gated))
    z2 = draw(q2, noise[0])
    ratio = log_density(z2, q2) - log_mixture(z2, pseudo_posterior(weights))
    seen, branch = network(weights, "r", x, gated), network(weights, "b", z2, gated)
    joined = jnp.concatenate([gated(seen), gated(branch)], axis=-1)
    q1 = gaussian(network(weights, "j", joined, gated))
    p1 = gaussian(network(weights, "p", z2, gated))
    both = jnp.concatenate([draw(q1, noise[1]), z2], axis=-1)
    return minus_elbo(x, network(weights, "x", both, gated), ratio, kl(q1, p1))


def gmvae(weights: Weights, x: Array, noise: Noise) -> Array:
    q_w = gaussian(network(weights, "w", x, jax.nn.silu))
    q = gaussian(network(weights, "q", x, jax.nn.silu))
    w, z = draw(q_w, noise[0]), draw(q, noise[1])
    clusters = network(weights, "p", w, jnp.tanh).reshape(len(x), 10, -1)
    ratio = log_density(z, q) - log_mixture(z, gaussian(clusters))
    return minus_elbo(x, network(weights, "x", z, jax.nn.silu), kl(q_w), ratio)


def conv(weights: Weights, x: Array, noise: Noise) -> Array:
    image = x.reshape(-1, 28, 28, 1)
    out = image
    for name, stride in {"c0": 1, "c1": 2, "c2": 1, "c3": 2}.items():
        out = jax.nn.relu(convolution(weights, name, out, stride))
    # Dense layers see channels first, as vaekit's do.
    features = out.transpose(0, 3, 1, 2).reshape(len(out), -1)
    q = gaussian(network(weights, "q", features, jax.nn.relu))
    out = network(weights, "x", draw(q, noise[0]), jax.nn.relu)
    out = out.reshape(-1, 32, 7, 7).transpose(0, 2, 3, 1)
    for name in ("d0", "d1", "d2", "d3", "d4"):
        out = convolution(weights, name, jax.nn.relu(out))
    return minus_elbo(image, out, kl(q))


LOSSES: dict[str, Callable[[Weights, Array, Noise], Array]] = {
    "dense": dense,
    "vampprior": vampprior,
    "hvampprior": hvampprior,
    "gmvae": gmvae,
    "conv": conv,
}


class State(NamedTuple):
    """All that a step changes; Adam's two means beside the weights."""

    weights: Weights
    mean: Weights
    square: Weights
    step: Array
    key: Array


def first_state(model: str, seed: int = 0) -> State:
    """Weights and biases drawn as torch does, within 1 / sqrt(inputs)."""
    random = np.random.default_rng(seed)

    def uniform(shape: tuple[int, ...], inputs: int) -> Array:
        return jnp.asarray(random.uniform(-1, 1, shape) / math.sqrt(inputs), jnp.float32)

    weights: Weights = {}
    for name, shape in SHAPES[model].items():
        weight = uniform(shape, math.prod(shape[:-1]))
        bias = uniform(shape[-1:], math.prod(shape[:-1]))
        weights[name] = (weight,) if name == "pseudo" else (weight, bias)
    zeros = partial(jax.tree.map, jnp.zeros_like)
    return State(weights, zeros(weights), zeros(weights), jnp.zeros(()), jax.random.key(seed))


def train_step(model: str, state: State, images: Array) -> tuple[State, Array]:
    """One step of Adam on images (B, 784), uint8."""
    key, for_bits, *for_noise = jax.random.split(state.key, 2 + len(LATENTS[model]))
    if TASKS[model].dynamic:
        # 257 x of 65,536 is x / 255, to 1 in 65,536.
        bits = jax.random.bits(for_bits, images.shape, jnp.uint16)
        x = (bits < images.astype(jnp.uint16) * 257).astype(jnp.float32)
    else:
        x = images.astype(jnp.float32) / 255
    sizes = zip(for_noise, LATENTS[model], strict=True)
    noise = tuple(jax.random.normal(k, (len(images), size)) for k, size in sizes)
    loss, gradient = jax.value_and_grad(LOSSES[model])(state.weights, x, noise)

    step = state.step + 1
    rate, corrected = TASKS[model].rate / (1 - 0.9**step), 1 / (1 - 0.999**step)
    mean = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, state.mean, gradient)
    square = jax.tree.map(lambda s, g: 0.999 * s + 0.001 * g * g, state.square, gradient)
    weights = jax.tree.map(
        lambda w, m, s: w - rate * m / (jnp.sqrt(s * corrected) + 1e-8), state.weights, mean, square
    )
    return State(weights, mean, square, step, key), loss


def train_epochs(model: str, images: np.ndarray) -> tuple[int, Iterator[float]]:
    """How many weights there are, and a loop that yields the mean loss of an epoch; images (N, 28, 28), uint8."""
    state = first_state(model)
    return sum(leaf.size for leaf in jax.tree.leaves(state.weights)), loop(model, state, images)


def loop(model: str, state: State, images: np.ndarray) -> Iterator[float]:
    stored = jnp.asarray(images.reshape(len(images), -1))

    def step(state: State, rows: Array, stored: Array) -> tuple[State, Array]:
        return train_step(model, state, stored[rows])

    def scan(state: State, order: Array, stored: Array) -> tuple[State, Array]:
        return lax.scan(lambda state, rows: step(state, rows, stored), state, order)

    one, whole = (jax.jit(program, donate_argnums=0) for program in (step, scan))
    random = np.random.default_rng(0)
    while True:
        order = random.permutation(len(images)).reshape(-1, TASKS[model].batch).astype(np.int32)
        if model == "conv":
            losses = []
            for rows in order:
                state, loss = one(state, rows, stored)
                losses.append(loss)
            yield float(jnp.stack(losses).mean())
        else:
            state, losses_ = whole(state, order, stored)
            yield float(losses_.mean())


def from_vaekit(model: str, tensors: Iterable[Any]) -> Weights:
    """Tensors of the shapes of vaekit's parameters, in their order, as weights here."""
    arrays = iter([tensor.detach().numpy() for tensor in tensors])
    weights: Weights = {}
    for name, shape in SHAPES[model].items():
        weight = next(arrays)
        if name == "pseudo":
            weight = weight.reshape(shape)
        elif name in DOUBLING:  # (I, O, H, W), mirrored
            weight = weight[..., ::-1, ::-1].transpose(2, 3, 0, 1)
        else:
            weight = weight.T if weight.ndim == 2 else weight.transpose(2, 3, 1, 0)
        assert weight.shape == shape, (model, name, weight.shape)
        here = (weight,) if name == "pseudo" else (weight, next(arrays))
        weights[name] = tuple(jnp.asarray(array) for array in here)
    assert next(arrays, None) is None, f"{model}: vaekit has more parameters"
    return weights


def agreement(model: str) -> tuple[float, float]:
    """How far the loss and the gradient of a batch are from vaekit's of the same weights, bits and noise, relative."""
    import torch
    from in_torch import raced_model

    images, labels = mnist(TASKS[model].batch)
    theirs, objective = raced_model(model)
    x = images > 127 if TASKS[model].dynamic else images / np.float32(255)
    inference = theirs(torch.from_numpy(x.astype(np.float32))[:, None], torch.from_numpy(labels))
    loss = -objective(inference).mean()
    loss.backward()
    noise = []
    for latent in inference.latents.values():
        q = latent.posterior.base_dist
        noise.append(jnp.asarray(((latent.z - q.loc) / q.scale).detach().numpy()))
    weights = from_vaekit(model, theirs.parameters())
    assert jax.tree.map(jnp.shape, weights) == jax.tree.map(jnp.shape, first_state(model).weights)

    flat = jnp.asarray(x.astype(np.float32).reshape(len(x), -1))
    value, gradient = jax.value_and_grad(LOSSES[model])(weights, flat, tuple(noise))
    expected = from_vaekit(model, (parameter.grad for parameter in theirs.parameters()))
    apart = jax.tree.map(
        lambda a, b: jnp.linalg.norm(a - b) / (jnp.linalg.norm(b) + 1e-12), gradient, expected
    )
    relative = abs(float(value) / loss.item() - 1)
    return relative, max(float(leaf) for leaf in jax.tree.leaves(apart))


def main() -> None:
    for model, shapes in SHAPES.items():
        loss, gradient = agreement(model)
        assert loss < 1e-4 and gradient < 1e-2, (model, loss, gradient)  # noqa: PT018
        print(f"{model}: {len(shapes)} layers; loss {loss:.1e} and gradient {gradient:.1e} apart")


if __name__ == "__main__":
    main()
