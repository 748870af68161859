"""The tasks in JAX, without a library of networks or optimisers: the sizes and losses of vaekit.

    python benchmarks/in_jax.py     # checks sizes, losses and gradients against vaekit

A short epoch is one compiled program, `lax.scan` over its batches with the state donated; with convolutions, which XLA
runs on one core inside a loop, each step is a program. The fastest options were chosen: JAX's default generator, 16
random bits per pixel, and the mixture's distances as float32 products, which lose digits (vaekit uses float64).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from tasks import TASKS, mnist

# Shape of each layer's weight, in the order of vaekit's parameters; each has a bias, except the pseudo-inputs. The
# letters are networks: q(z | x), the decoder x, the prior p; r, b, j are the trunk, branch and joint layers of
# q(z1 | x, z2); c are convolutions, d those of the decoder.
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
# Dimensions of each latent, in sampling order.
LATENTS = {"dense": (20,), "vampprior": (40,), "hvampprior": (40, 40), "gmvae": (2, 10), "conv": (2,)}  # fmt: skip
DOUBLING = ("d1", "d3")

Weights = dict[str, tuple[Array, ...]]
Noise = tuple[Array, ...]
Gaussian = tuple[Array, Array]  # location and scale
FLOOR = 1e-4  # of the scales; a network output of 0 gives a scale of 1
OFFSET = math.log(math.expm1(1 - FLOOR))


def softplus(x: Array) -> Array:
    """jax.nn.softplus takes 1.7 times as long."""
    return jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


def gated(x: Array) -> Array:
    unit, gate = jnp.split(x, 2, axis=-1)
    return unit * jax.nn.sigmoid(gate)


def network(weights: Weights, letter: str, x: Array, activation: Callable[[Array], Array]) -> Array:
    """The dense layers of a letter, with the activation between them."""
    for i in range(sum(name[0] == letter and name != "pseudo" for name in weights)):
        weight, bias = weights[f"{letter}{i}"]
        x = (activation(x) if i else x) @ weight + bias
    return x


def convolution(weights: Weights, name: str, x: Array, stride: int = 1) -> Array:
    """A convolution of images (B, H, W, C): same size, divided by the stride, or doubled (transposed)."""
    weight, bias = weights[name]
    if name in DOUBLING:
        return upsample(x, weight) + bias
    padding, layout = [(weight.shape[0] // 2,) * 2] * 2, ("NHWC", "HWIO", "NHWC")
    strides = (stride, stride)
    return lax.conv_general_dilated(x, weight, strides, padding, dimension_numbers=layout) + bias


def upsample(x: Array, weight: Array) -> Array:
    """A transposed 3 x 3 convolution of stride 2, as a 2 x 2 convolution that outputs four pixels per input pixel: the
    gradient of lax.conv_transpose takes XLA three to five times as long."""
    _, height, width, inputs = x.shape
    outputs = weight.shape[-1]
    # In each dimension even pixels are w1 x[i], odd ones w0 x[i] + w2 x[i + 1].
    taps = jnp.array([1, 0, 3, 2])  # index 3 is the zero padding
    kernel = jnp.pad(weight, ((0, 1), (0, 1), (0, 0), (0, 0)))[taps][:, taps]
    kernel = kernel.reshape(2, 2, 2, 2, inputs, outputs).transpose(0, 2, 4, 1, 3, 5)
    kernel = kernel.reshape(2, 2, inputs, 4 * outputs)
    padding, layout = [(0, 1)] * 2, ("NHWC", "HWIO", "NHWC")
    out = lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=layout)
    out = out.reshape(-1, height, width, 2, 2, outputs).transpose(0, 1, 3, 2, 4, 5)
    return out.reshape(-1, 2 * height, 2 * width, outputs)


def gaussian(output: Array) -> Gaussian:
    loc, raw = jnp.split(output, 2, axis=-1)
    return loc, FLOOR + softplus(raw + OFFSET)


def reparameterise(q: Gaussian, noise: Array) -> Array:
    return q[0] + q[1] * noise


def log_density(z: Array, p: Gaussian) -> Array:
    loc, scale = p
    each = -0.5 * ((z - loc) / scale) ** 2 - jnp.log(scale) - 0.5 * math.log(2 * math.pi)
    return each.sum(-1)


def log_mixture(z: Array, p: Gaussian) -> Array:
    """Log-density of a mixture with equal weights; p is (K, D), shared by all images, or (B, K, D)."""
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


def negative_elbo(x: Array, logits: Array, *kls: Array) -> Array:
    """Negative ELBO, mean over images, nats."""
    log_likelihood = (x * logits - softplus(logits)).reshape(len(x), -1).sum(-1)
    return (sum(kls) - log_likelihood).mean()


def dense(weights: Weights, x: Array, noise: Noise) -> Array:
    q = gaussian(network(weights, "q", x, jax.nn.relu))
    return negative_elbo(x, network(weights, "x", reparameterise(q, noise[0]), jax.nn.relu), kl(q))


def pseudo_posterior(weights: Weights) -> Gaussian:
    """The components of a VampPrior."""
    return gaussian(network(weights, "q", jax.nn.sigmoid(weights["pseudo"][0]), gated))


def vampprior(weights: Weights, x: Array, noise: Noise) -> Array:
    q = gaussian(network(weights, "q", x, gated))
    z = reparameterise(q, noise[0])
    ratio = log_density(z, q) - log_mixture(z, pseudo_posterior(weights))
    return negative_elbo(x, network(weights, "x", z, gated), ratio)


def hvampprior(weights: Weights, x: Array, noise: Noise) -> Array:
    q2 = gaussian(network(weights, "q", x, gated))
    z2 = reparameterise(q2, noise[0])
    ratio = log_density(z2, q2) - log_mixture(z2, pseudo_posterior(weights))
    trunk, branch = network(weights, "r", x, gated), network(weights, "b", z2, gated)
    joined = jnp.concatenate([gated(trunk), gated(branch)], axis=-1)
    q1 = gaussian(network(weights, "j", joined, gated))
    p1 = gaussian(network(weights, "p", z2, gated))
    both = jnp.concatenate([reparameterise(q1, noise[1]), z2], axis=-1)
    return negative_elbo(x, network(weights, "x", both, gated), ratio, kl(q1, p1))


def gmvae(weights: Weights, x: Array, noise: Noise) -> Array:
    q_w = gaussian(network(weights, "w", x, jax.nn.silu))
    q = gaussian(network(weights, "q", x, jax.nn.silu))
    w, z = reparameterise(q_w, noise[0]), reparameterise(q, noise[1])
    clusters = network(weights, "p", w, jnp.tanh).reshape(len(x), 10, -1)
    ratio = log_density(z, q) - log_mixture(z, gaussian(clusters))
    return negative_elbo(x, network(weights, "x", z, jax.nn.silu), kl(q_w), ratio)


def conv(weights: Weights, x: Array, noise: Noise) -> Array:
    image = x.reshape(-1, 28, 28, 1)
    out = image
    for name, stride in {"c0": 1, "c1": 2, "c2": 1, "c3": 2}.items():
        out = jax.nn.relu(convolution(weights, name, out, stride))
    # Channels first for the dense layers, as in vaekit.
    features = out.transpose(0, 3, 1, 2).reshape(len(out), -1)
    q = gaussian(network(weights, "q", features, jax.nn.relu))
    out = network(weights, "x", reparameterise(q, noise[0]), jax.nn.relu)
    out = out.reshape(-1, 32, 7, 7).transpose(0, 2, 3, 1)
    for name in ("d0", "d1", "d2", "d3", "d4"):
        out = convolution(weights, name, jax.nn.relu(out))
    return negative_elbo(image, out, kl(q))


LOSSES: dict[str, Callable[[Weights, Array, Noise], Array]] = {
    "dense": dense,
    "vampprior": vampprior,
    "hvampprior": hvampprior,
    "gmvae": gmvae,
    "conv": conv,
}


class State(NamedTuple):
    """Weights, Adam's two moments, step and random key."""

    weights: Weights
    mean: Weights
    square: Weights
    step: Array
    key: Array


def initial_state(model: str, seed: int = 0) -> State:
    """Initial weights and biases, uniform within 1 / sqrt(inputs) as in torch."""
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
        # 257 x / 65,536 is x / 255 to within 1 / 65,536.
        bits = jax.random.bits(for_bits, images.shape, jnp.uint16)
        x = (bits < images.astype(jnp.uint16) * 257).astype(jnp.float32)
    else:
        x = images.astype(jnp.float32) / 255
    sizes = zip(for_noise, LATENTS[model], strict=True)
    noise = tuple(jax.random.normal(k, (len(images), size)) for k, size in sizes)
    loss, gradient = jax.value_and_grad(LOSSES[model])(state.weights, x, noise)

    step = state.step + 1
    rate, corrected = TASKS[model].learning_rate / (1 - 0.9**step), 1 / (1 - 0.999**step)
    mean = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, state.mean, gradient)
    square = jax.tree.map(lambda s, g: 0.999 * s + 0.001 * g * g, state.square, gradient)
    weights = jax.tree.map(
        lambda w, m, s: w - rate * m / (jnp.sqrt(s * corrected) + 1e-8), state.weights, mean, square
    )
    return State(weights, mean, square, step, key), loss


def train_epochs(model: str, images: np.ndarray) -> tuple[int, Iterator[float]]:
    """The number of weights, and a loop that yields the mean loss of each epoch; images (N, 28, 28), uint8."""
    state = initial_state(model)
    return sum(leaf.size for leaf in jax.tree.leaves(state.weights)), loop(model, state, images)


def loop(model: str, state: State, images: np.ndarray) -> Iterator[float]:
    stored = jnp.asarray(images.reshape(len(images), -1))

    def step(state: State, rows: Array, stored: Array) -> tuple[State, Array]:
        return train_step(model, state, stored[rows])

    def scan(state: State, order: Array, stored: Array) -> tuple[State, Array]:
        return lax.scan(lambda state, rows: step(state, rows, stored), state, order)

    run_step, run_epoch = (jax.jit(program, donate_argnums=0) for program in (step, scan))
    random = np.random.default_rng(0)
    while True:
        order = random.permutation(len(images)).reshape(-1, TASKS[model].batch).astype(np.int32)
        if model == "conv":
            losses = []
            for rows in order:
                state, loss = run_step(state, rows, stored)
                losses.append(loss)
            yield float(jnp.stack(losses).mean())
        else:
            state, losses_ = run_epoch(state, order, stored)
            yield float(losses_.mean())


def from_vaekit(model: str, tensors: Iterable[Any]) -> Weights:
    """Tensors shaped and ordered as vaekit's parameters, in the layout of this module."""
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
        layer = (weight,) if name == "pseudo" else (weight, next(arrays))
        weights[name] = tuple(jnp.asarray(array) for array in layer)
    assert next(arrays, None) is None, f"{model}: vaekit has more parameters"
    return weights


def relative_errors(model: str) -> tuple[float, float]:
    """Relative differences of a batch's loss and gradient from vaekit's, with the same weights, pixels and noise."""
    import torch
    from in_torch import build_task

    images, labels = mnist(TASKS[model].batch)
    theirs, objective = build_task(model)
    x = images > 127 if TASKS[model].dynamic else images / np.float32(255)
    inference = theirs(torch.from_numpy(x.astype(np.float32))[:, None], torch.from_numpy(labels))
    loss = -objective(inference).mean()
    loss.backward()
    noise = []
    for latent in inference.latents.values():
        q = latent.posterior.base_dist
        noise.append(jnp.asarray(((latent.z - q.loc) / q.scale).detach().numpy()))
    weights = from_vaekit(model, theirs.parameters())
    assert jax.tree.map(jnp.shape, weights) == jax.tree.map(jnp.shape, initial_state(model).weights)

    flat = jnp.asarray(x.astype(np.float32).reshape(len(x), -1))
    value, gradient = jax.value_and_grad(LOSSES[model])(weights, flat, tuple(noise))
    expected = from_vaekit(model, (parameter.grad for parameter in theirs.parameters()))
    errors = jax.tree.map(
        lambda a, b: jnp.linalg.norm(a - b) / (jnp.linalg.norm(b) + 1e-12), gradient, expected
    )
    relative = abs(float(value) / loss.item() - 1)
    return relative, max(float(leaf) for leaf in jax.tree.leaves(errors))


def main() -> None:
    for model, shapes in SHAPES.items():
        loss, gradient = relative_errors(model)
        assert loss < 1e-4 and gradient < 1e-2, (model, loss, gradient)  # noqa: PT018
        print(
            f"{model}: {len(shapes)} layers; relative difference: loss {loss:.1e}, gradient {gradient:.1e}"
        )


if __name__ == "__main__":
    main()
