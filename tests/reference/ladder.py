"""The deep hierarchy in NumPy, from the formulas of src/vaekit/model/networks/ladder.py and of Child 2021, figure 3.

Feature maps are (..., C, H, W), latents vectors (..., C H W). `values` are the latents known so far, by name.
"""

from dataclasses import dataclass, field

import numpy as np

from . import densities as d
from .models import Model
from .networks import ACTIVATIONS, layer_names

PREFIX = "decoder.ladder"


def convolve(weights, name, x):
    """out[d, i, j] = bias[d] + sum_cab weight[d, c, a, b] x[c, i + a - p, j + b - p], p = (kernel - 1) / 2, with zeros
    outside."""
    weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    (height, width), kernel = x.shape[-2:], weight.shape[-1]
    p = (kernel - 1) // 2
    x = np.pad(x, [(0, 0)] * (x.ndim - 2) + [(p, p), (p, p)])
    out = bias[:, None, None] + 0 * x[..., :1, :height, :width]
    for a in range(kernel):
        for b in range(kernel):
            window = x[..., a : a + height, b : b + width]
            out = out + np.einsum("dc,...chw->...dhw", weight[:, :, a, b], window)
    return out


def squares_to_channels(x, p):
    """out[c p^2 + a p + b, i, j] = x[c, i p + a, j p + b]."""
    *lead, c, height, width = x.shape
    x = x.reshape(*lead, c, height // p, p, width // p, p)
    return np.moveaxis(x, (-3, -1), (-4, -3)).reshape(*lead, c * p * p, height // p, width // p)


def channels_to_squares(x, p):
    """The inverse of squares_to_channels."""
    *lead, c, rows, columns = x.shape
    out = np.zeros((*lead, c // p**2, rows * p, columns * p), x.dtype)
    for a in range(p):
        for b in range(p):
            out[..., a::p, b::p] = x[..., a * p + b :: p * p, :, :]
    return out


def halved(x):
    """The mean of each square of 2 x 2, or of what is left of it at the edge."""
    height, width = x.shape[-2:]
    rows = [x[..., i : i + 2, :].mean(-2) for i in range(0, height, 2)]
    x = np.stack(rows, -2)
    return np.stack([x[..., j : j + 2].mean(-1) for j in range(0, width, 2)], -1)


def enlarged(x, height, width):
    """Each position repeated to a square, and what is too much cut off."""
    times = max(-(-height // x.shape[-2]), -(-width // x.shape[-1]))
    return x.repeat(times, -2).repeat(times, -1)[..., :height, :width]


@dataclass(frozen=True)
class LadderModel(Model):
    """A deep hierarchy: `shapes` (C, H, W) of the latents by name, squares of `patch` pixels."""

    shapes: dict = field(default_factory=dict)
    patch: int = 1

    @property
    def latents(self):
        return tuple(self.shapes)

    @property
    def top(self):
        return self.latents[:1]

    def above(self, values):
        return dict(values)

    def act(self, x):
        return ACTIVATIONS[self.activation](x)

    def bottleneck(self, name, x):
        """Convolutions, each after an activation."""
        for layer in layer_names(self.weights, name):
            x = convolve(self.weights, layer, self.act(x))
        return x

    def residual(self, name, x):
        return x + self.bottleneck(f"{name}.layers", x)

    def label_maps(self, y):
        """What a label adds to h_0, and to the features of the image."""
        if y is None:
            return 0.0, 0.0
        return np.split((y @ self.weights[f"{PREFIX}.label.weight"].T)[..., None, None], 2, axis=-3)

    def features(self, x, y):
        """Of the image, by their height and width."""
        p, (height, width) = self.patch, x.shape[-2:]
        x = np.pad(x - 0.5, [(0, 0), (0, 0), (0, -height % p), (0, -width % p)])
        h = convolve(self.weights, f"{PREFIX}.stem", squares_to_channels(x, p))
        h, maps = h + self.label_maps(y)[1], {}
        for resolution in layer_names(self.weights, f"{PREFIX}.encoder"):
            h = halved(h) if maps else h
            for block in layer_names(self.weights, resolution):
                h = self.residual(block, h)
            maps[h.shape[-2:]] = h
        return maps

    def prior_network(self, i, h):
        """Parameters of p(z_i | z_<i), and r."""
        hidden = self.act(self.bottleneck(f"{PREFIX}.groups.{i}.prior.trunk", h))
        return [
            convolve(self.weights, f"{PREFIX}.groups.{i}.prior.{part}", hidden)
            for part in ("latent", "change")
        ]

    def path(self, i, values, y):
        """h_i, the feature map before group i, or at the end."""
        w, sizes = self.weights, [shape[1:] for shape in self.shapes.values()]
        finest = tuple(-(-size // self.patch) for size in self.shape[1:])
        h, positions = w[f"{PREFIX}.first"] + self.label_maps(y)[0], 0
        for j, name in enumerate(self.latents[:i]):
            z = values[name].reshape(*values[name].shape[:-1], *self.shapes[name])
            _, r = self.prior_network(j, h)
            h = h + r + convolve(w, f"{PREFIX}.groups.{j}.merge", z)
            h = self.residual(f"{PREFIX}.groups.{j}.block", h)
            after = ([*sizes, finest])[j + 1]
            if tuple(after) != tuple(sizes[j]):
                h = enlarged(h, *after) + w[f"{PREFIX}.positions.{positions}"]
                positions += 1
        return h

    def parameters(self, output):
        """(loc, scale), vectors: the first half of the channels, and what is positive of the second."""
        loc, raw = np.split(output, 2, axis=-3)
        loc, raw = (part.reshape(*part.shape[:-3], -1) for part in (loc, raw))
        return loc, d.positive(raw, 1.0, 1e-2)

    def prior_of(self, latent, y, above=None, dim=None):
        i = self.latents.index(latent)
        return self.parameters(self.prior_network(i, self.path(i, above or {}, y))[0])

    def posterior(self, latent, x, y, above=None):
        """It is relative to the prior."""
        i = self.latents.index(latent)
        h, of_image = self.path(i, above or {}, y), self.features(x, y)[self.shapes[latent][1:]]
        lead = np.broadcast_shapes(h.shape[:-3], of_image.shape[:-3])
        both = [np.broadcast_to(m, (*lead, *m.shape[-3:])) for m in (h, of_image)]
        output = self.bottleneck(f"{PREFIX}.groups.{i}.posterior", np.concatenate(both, axis=-3))
        (change, factor), (loc, scale) = self.parameters(output), self.prior_of(latent, y, above)
        return loc + scale * change, scale * factor

    def decode(self, latents, y):
        h = self.path(len(self.latents), latents, y)
        pixels = convolve(self.weights, f"{PREFIX}.last.1", self.act(h))
        return channels_to_squares(pixels, self.patch)[..., : self.shape[1], : self.shape[2]]
