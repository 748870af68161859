"""The networks in NumPy: matrix products and convolutions by their definition, of weights handed over by name.

Layers follow docs/layers.md; complex weights are possible (see densities.py).
"""

import numpy as np
from scipy.special import erf

from .densities import sigmoid, softplus

ACTIVATIONS = {
    "relu": lambda x: np.where(np.real(x) > 0, x, 0),
    "silu": lambda x: x * sigmoid(x),
    "gelu": lambda x: x * (1 + erf(x / np.sqrt(2))) / 2,
    "elu": lambda x: np.where(np.real(x) > 0, x, np.exp(np.where(np.real(x) > 0, 0, x)) - 1),
    "leaky-relu": lambda x: np.where(np.real(x) > 0, x, 0.2 * x),
    "softplus": softplus,
    "tanh": np.tanh,
}


def linear(weights, name, x):
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def layer_names(weights, prefix):
    """`prefix.0`, `prefix.2` ...: the layers of a sequence that have weights, in order."""
    ends = {key[len(prefix) + 1 :].split(".")[0] for key in weights if key.startswith(f"{prefix}.")}
    return [f"{prefix}.{i}" for i in sorted(map(int, ends))]


def hidden(weights, prefix, x, activation):
    for name in layer_names(weights, prefix):
        x = ACTIVATIONS[activation](linear(weights, name, x))
    return x


def join(*vectors):
    """Vectors (..., D_i), concatenated with broadcasting."""
    shape = np.broadcast_shapes(*(v.shape[:-1] for v in vectors))
    return np.concatenate([np.broadcast_to(v, (*shape, v.shape[-1])) for v in vectors], axis=-1)


def halved(size):
    return -(-size // 2)


def padding(small, large, kernel, stride):
    """Zeros on each side of the large image, so that every position of the kernel, `stride` apart, fits."""
    return max(-(-((small - 1) * stride + kernel - large) // 2), 0)


def convolve(x, weight, bias):
    """A 3 x 3 convolution of stride 2, (B, C, H, W) -> (B, D, ceil(H/2), ceil(W/2)):
    out[d, i, j] = bias[d] + sum_cab weight[d, c, a, b] x[c, 2i + a - p, 2j + b - q]."""
    count, height, width = len(x), *x.shape[2:]
    rows, columns = halved(height), halved(width)
    p, q = padding(rows, height, 3, 2), padding(columns, width, 3, 2)
    out = np.zeros((count, len(weight), rows, columns), np.result_type(x, weight))
    for i in range(rows):
        for j in range(columns):
            out[:, :, i, j] = bias
            for a in range(3):
                for b in range(3):
                    u, v = 2 * i + a - p, 2 * j + b - q
                    if 0 <= u < height and 0 <= v < width:
                        out[:, :, i, j] += x[:, :, u, v] @ weight[:, :, a, b].T
    return out


def transposed(x, weight, bias, height, width):
    """The transpose of `convolve`, (B, C, h, w) -> (B, D, height, width): every pixel [i, j] adds its value times the
    kernel at [2i - p, 2j - q]."""
    count, rows, columns = len(x), *x.shape[2:]
    p, q = padding(rows, height, 3, 2), padding(columns, width, 3, 2)
    out = np.zeros((count, weight.shape[1], height, width), np.result_type(x, weight))
    out += bias[:, None, None]
    for i in range(rows):
        for j in range(columns):
            for a in range(3):
                for b in range(3):
                    u, v = 2 * i + a - p, 2 * j + b - q
                    if 0 <= u < height and 0 <= v < width:
                        out[:, :, u, v] += x[:, :, i, j] @ weight[:, :, a, b]
    return out


def encoder(weights, prefix, x, activation, given=None, latent=None):
    """Images (B, C, H, W) -> (..., outputs). A condition `given` (B, G) joins the pixels, or as constant channels a
    convolution; `latent` (..., D) joins the features after layers of its own."""
    act = ACTIVATIONS[activation]
    convolutions = layer_names(weights, f"{prefix}.convolutions")
    if convolutions and given is not None:
        if given.shape[1] == x[0].size:  # a condition that is an image
            x = np.concatenate([x, given.reshape(x.shape)], axis=1)
        else:
            constant = given[:, :, None, None] * np.ones((1, 1, *x.shape[2:]))
            x = np.concatenate([x, constant], axis=1)
    for name in convolutions:
        x = act(convolve(x, weights[f"{name}.weight"], weights[f"{name}.bias"]))
    features = x.reshape(len(x), -1)
    if not convolutions and given is not None:
        features = np.concatenate([features, given], axis=1)
    features = hidden(weights, f"{prefix}.trunk", features, activation)
    if latent is not None:
        features = join(features, hidden(weights, f"{prefix}.branch", latent, activation))
    return linear(
        weights,
        f"{prefix}.head.last",
        hidden(weights, f"{prefix}.head.hidden", features, activation),
    )


def mlp(weights, prefix, x, activation):
    return linear(weights, f"{prefix}.last", hidden(weights, f"{prefix}.hidden", x, activation))


def decoder(weights, prefix, x, shape, activation):
    """Vectors (..., D) -> images (..., channels of the head, H, W) for images of `shape` (C, H, W)."""
    x = hidden(weights, f"{prefix}.hidden", x, activation)
    names = layer_names(weights, f"{prefix}.convolutions")
    if not names:
        return linear(weights, f"{prefix}.unfold", x).reshape(*x.shape[:-1], -1, *shape[1:])
    act, lead = ACTIVATIONS[activation], x.shape[:-1]
    x = act(linear(weights, f"{prefix}.unfold.0", x))
    sizes = [tuple(shape[1:])]
    for _ in names:
        sizes.insert(0, (halved(sizes[0][0]), halved(sizes[0][1])))
    x = x.reshape(-1, weights[f"{names[0]}.weight"].shape[0], *sizes[0])
    for name, size in zip(names, sizes[1:], strict=True):
        x = transposed(x, weights[f"{name}.weight"], weights[f"{name}.bias"], *size)
        x = x if name == names[-1] else act(x)
    return x.reshape(*lead, *x.shape[1:])
