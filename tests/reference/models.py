"""The models as graphs in NumPy: the parameters of each posterior, prior and pixel distribution from the weights.

A Gaussian over latents is a pair (mean, std); a mixture a triple (log weights (K,), means, stds (..., K, D)).
"""

from dataclasses import dataclass

import numpy as np

from . import densities as d
from . import networks as n

LATENTS = {
    "hvae": ("z2", "z1"),
    "hvampprior": ("z2", "z1"),
    "gmvae": ("w", "z"),
    "convgmvae": ("w", "z"),
}


@dataclass(frozen=True)
class Model:
    """A model of the catalogue: `weights` by name, images of `shape` (C, H, W), and the settings it has."""

    name: str
    weights: dict
    shape: tuple
    activation: str = "silu"
    likelihood: str = "bernoulli"
    scale: object = None  # "shared", "each" or a number
    mean: str = "linear"  # of Gaussian and logistic pixels; or "sigmoid"
    prior: str = "standard"
    components: int = 10
    clusters: int = 10
    condition: str = "none"
    classes: int = 0
    deterministic: bool = False

    @property
    def latents(self):
        """Names of the latents in the order in which they are sampled."""
        return LATENTS.get(self.name, ("z",))

    @property
    def top(self):
        """The latents whose posterior is given the image alone."""
        return tuple(name for name in self.latents if name != "z1")

    def above(self, values):
        """What a latent is given of those before it, `values` by name in order: the last one."""
        return list(values.values())[-1] if values else None

    def given(self, x, labels):
        """The condition as vectors (B, G), or None: one-hot labels; or images blank but for 1 to 3 quadrants (lower
        left, upper left, upper right; Sohn et al. 2015, section 5.1)."""
        if self.condition == "label":
            return np.eye(self.classes)[labels]
        return None if self.condition == "none" else (x * self.visible()).reshape(len(x), -1)

    def visible(self):
        """1 for the pixels (H, W) that the condition shows, 0 for those that are modelled."""
        _, height, width = self.shape
        mask = np.zeros((height, width))
        if self.condition.startswith("quadrants"):
            top, left = slice(None, height // 2), slice(None, width // 2)
            below, right = slice(height // 2, None), slice(width // 2, None)
            for area in [(below, left), (top, left), (top, right)][: int(self.condition[-1])]:
                mask[area] = 1
        return mask

    def gaussian(self, output):
        """Half the outputs are means, half give the stds, which are at least 1e-4 and 1 for outputs of 0."""
        mean, raw = np.split(output, 2, axis=-1)
        return mean, d.positive(raw, 1.0, 1e-4)

    def posterior(self, latent, x, y, above=None):
        """q(latent | x, y, above)."""
        prefix = f"posterior.{latent}.network"
        if any(key.startswith(f"{prefix}.networks.") for key in self.weights):
            nets = [f"{prefix}.networks.0", f"{prefix}.networks.1"]
        else:
            nets = [prefix]
        above = above if latent == "z1" else None
        output = [n.encoder(self.weights, net, x, self.activation, y, above) for net in nets]
        output = np.concatenate(output, axis=-1)
        return (output, np.zeros(output.shape)) if self.deterministic else self.gaussian(output)

    def prior_of(self, latent, y, above=None, dim=None):
        """p(latent | y, above); `dim` is its number of dimensions."""
        w = self.weights
        if latent == "z1":  # p(z1 | z2): Tomczak and Welling 2018, section 4
            inputs = above if y is None else n.join(above, y)
            return self.gaussian(n.mlp(w, "prior.z1.network", inputs, self.activation))
        if latent == "z" and "w" in self.latents:
            # p(z | w): Dilokthanakul et al. 2016, section 3.1
            inputs = above if y is None else n.join(above, y)
            output = n.mlp(w, "prior.z.network", inputs, "tanh")
            mean, std = self.gaussian(output.reshape(*output.shape[:-1], self.clusters, -1))
            return np.full(self.clusters, -np.log(self.clusters)), mean, std
        if self.prior == "mixture":
            # psanch21/VAE-GMVAE, model3: means 0, 1, -1, 2, -2 ..., variance 1/2
            signs = [0] + [sign * k for k in range(1, self.components) for sign in (1, -1)]
            mean = np.array(signs[: self.components], float)[:, None] * np.ones(dim)
            return np.full(len(mean), -np.log(len(mean))), mean, np.full(mean.shape, np.sqrt(0.5))
        if self.prior == "learned-mixture":
            logits = w[f"prior.{latent}.logits"]
            std = np.exp(w[f"prior.{latent}.log_scale"]) + 1e-4
            return logits - d.logsumexp(logits), w[f"prior.{latent}.loc"], std
        if self.prior == "vampprior":  # Tomczak and Welling 2018, eq. 9
            pseudo_inputs = d.sigmoid(w[f"prior.{latent}.logits"])
            mean, std = self.posterior(latent, pseudo_inputs, None)
            return np.full(len(mean), -np.log(len(mean))), mean, std
        if self.prior == "conditional":  # Sohn et al. 2015, p(z | y)
            prefix = f"prior.{latent}.network"
            if self.condition == "label":
                return self.gaussian(n.mlp(w, prefix, y, self.activation))
            images = y.reshape(-1, *self.shape)
            return self.gaussian(n.encoder(w, f"{prefix}.1", images, self.activation))
        return np.zeros(dim), np.ones(dim)

    def decode(self, latents, y):
        """Outputs (..., channels, H, W) of the decoder, for latents by name."""
        names = {"hvae": ("z1", "z2"), "hvampprior": ("z1", "z2")}.get(self.name, ("z",))
        inputs = [latents[name] for name in names] + ([] if y is None else [y])
        prefix = "decoder.decoder.network" if "quadrants" in self.condition else "decoder.network"
        return n.decoder(self.weights, prefix, n.join(*inputs), self.shape, self.activation)

    def log_pixels(self, x, output):
        """log p(x | latents) of each pixel, (..., C, H, W)."""
        if self.likelihood == "bernoulli":
            return d.log_bernoulli(x, output)
        if self.likelihood == "continuous-bernoulli":
            return d.log_continuous_bernoulli(x, output)
        if self.likelihood == "categorical":
            logits = output.reshape(*output.shape[:-3], self.shape[0], 256, *self.shape[1:])
            return d.log_categorical(x, np.moveaxis(logits, -3, -1))
        if self.likelihood == "logistic-mixture":
            return self.log_mixture(x, np.moveaxis(output, -3, -1))
        mean, scale = self.location_and_scale(output)
        log_density = {"gaussian": d.log_normal, "logistic": d.log_discretised_logistic}
        return log_density[self.likelihood](x, mean, scale)

    def log_mixture(self, x, output):
        """3 components, whose means are spread evenly over [0, 1] for outputs of 0: outputs (..., H, W, numbers) ->
        (..., 1, H, W), of all channels together."""
        k, channels = 3, self.shape[0]
        pairs = [(c, c - d) for d in (1, 2, 3) for c in range(d, channels)]
        logits, each, tangents = np.split(output, [k, k + 2 * k * channels], axis=-1)
        each = each.reshape(*each.shape[:-1], k, 2, channels)
        tangents = tangents.reshape(*tangents.shape[:-1], k, len(pairs))
        places = (np.arange(k)[:, None] + 0.5) / k
        if self.mean == "sigmoid":
            mean = d.sigmoid(each[..., 0, :] + np.log(places / (1 - places)))
        else:
            mean = each[..., 0, :] + places
        scale = d.positive(each[..., 1, :], 0.1, 1e-3)
        coefficients = {pair: np.tanh(tangents[..., i]) for i, pair in enumerate(pairs)}
        x = np.moveaxis(x, -3, -1)
        return d.log_logistic_mixture(x, logits, mean, scale, coefficients)[..., None, :, :]

    def location_and_scale(self, output):
        """An output of 0 is grey, 0.5; learned scales have an initial value and a floor."""
        initial, floor = (0.25, 1 / 256) if self.likelihood == "gaussian" else (0.1, 1e-3)
        default = "shared" if self.likelihood == "gaussian" else "each"
        scale = self.scale or default
        if scale == "each":
            output, raw = np.split(output, 2, axis=-3)
            return self.location(output), d.positive(raw, initial, floor)
        if scale == "shared":
            scale = d.positive(self.weights["decoder.head.shared"], initial, floor)
        return self.location(output), scale

    def location(self, output):
        return d.sigmoid(output) if self.mean == "sigmoid" else output + 0.5

    def log_likelihood(self, x, latents, y):
        """log p(x | latents, y), summed over the pixels that are modelled: (..., B)."""
        pixels = self.log_pixels(x, self.decode(latents, y)) * (1 - self.visible())
        return pixels.sum((-3, -2, -1))


def log_density(p, z):
    """log p(z) of a Gaussian or a mixture, summed over dimensions: (...)."""
    if len(p) == 3:
        return d.logsumexp(d.log_mixture_parts(z, *p))
    return d.log_normal(z, *p).sum(-1)


@dataclass(frozen=True)
class Pass:
    """One pass through the graph with given noise: per latent its sample, posterior and prior."""

    log_likelihood: np.ndarray
    latents: dict  # name -> (z, q, p)
    values: dict


def infer(model, x, labels, noise):
    """Sample every latent as mean + std * noise[name] (..., B, D)."""
    y, latents, values = model.given(x, labels), {}, {}
    for name in model.latents:
        above = model.above(values)
        q = model.posterior(name, x, y, above)
        p = model.prior_of(name, y, above, dim=q[0].shape[-1])
        z = q[0] + q[1] * noise[name]
        latents[name], values[name] = (z, q, p), z
    return Pass(model.log_likelihood(x, values, y), latents, values)


def log_weights(run):
    """log p(x, latents) - log q(latents | x), (..., B): the logarithm of Burda et al. 2016's w, eq. 8."""
    total = run.log_likelihood
    for z, q, p in run.latents.values():
        total = total + log_density(p, z) - log_density(q, z)
    return total
