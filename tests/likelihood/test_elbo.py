"""The ELBO, its parts and the active units, whole and in chunks."""

import pytest
import torch

from conftest import random_dataset
from vaekit import build
from vaekit.data import eval_split
from vaekit.likelihood import elbo as module
from vaekit.likelihood.elbo import measure_elbo
from vaekit.support.console import ProgressBar
from vaekit.support.devices import seeded

QUIET = ProgressBar(False)


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def small(name="vae", kind="bits", **settings):
    """A model of 30 pixels with two latents, and 20 images."""
    data = random_dataset(kind=kind)
    model = build(name, data, latent_dim=2, hidden_dim=8, **settings).eval()
    return model, eval_split(data.test, "dynamic" if kind == "bits" else "none")


def test_the_elbo_does_not_depend_on_the_chunks(monkeypatch):
    monkeypatch.setattr(
        "torch.distributions.normal._standard_normal",
        lambda shape, dtype, device: torch.full(shape, 0.3, dtype=dtype, device=device),
    )
    model, images = small(kind="float", scale="each")
    estimates = []
    for numbers in (10**6, 30 * 4 * 3):  # all images at once, or a few
        monkeypatch.setattr(module, "CHUNK_NUMBERS", numbers)
        estimates.append(measure_elbo(model, images, 4, QUIET))
    whole, chunked = estimates
    assert chunked.elbo == pytest.approx(whole.elbo, rel=1e-5)
    assert chunked.kl_per_dimension["z"] == pytest.approx(whole.kl_per_dimension["z"], rel=1e-5)
    assert sum(whole.kl_per_dimension["z"]) == pytest.approx(whole.kl, rel=1e-5)
    assert chunked.minimum_scale == pytest.approx(whole.minimum_scale, rel=1e-6)
    assert chunked.active_units == whole.active_units


def test_a_unit_is_active_by_the_variance_of_its_means():
    model, images = small()

    def variances():
        return model.posterior["z"]({"x": images[:].images, "y": None}).mean.var(0, correction=0)

    *_, last = (m for m in model.posterior["z"].modules() if isinstance(m, torch.nn.Linear))
    last.weight *= (0.002 / variances().min()).sqrt()  # whose root is above 0.01
    expected = int((variances() > 0.01).sum())
    assert expected < 2
    assert measure_elbo(model, images, 2, QUIET).active_units == expected


def test_the_mean_of_a_lower_latent_is_an_average_over_samples(monkeypatch):
    model, images = small("hvae", top_dim=2)
    for parameter in model.posterior.parameters():
        parameter *= 3
    with seeded(0):
        latents = model(images[:].images, samples=(10,)).latents.values()
    means = [latent.posterior.mean for latent in latents]
    (below,) = (m for m in means if m.ndim == 3)
    average, first = (
        torch.cat([m if m.ndim == 2 else one(m) for m in means], -1).var(0, correction=0)
        for one in (lambda m: m.mean(0), lambda m: m[0])
    )
    level = (below.mean(0).var(0, correction=0)[0] + below[0].var(0, correction=0)[0]) / 2
    monkeypatch.setattr(module, "ACTIVE_VARIANCE", float(level))
    expected = int((average > level).sum())
    assert expected != int((first > level).sum())
    with seeded(0):
        assert measure_elbo(model, images, 10, QUIET).active_units == expected


def test_scales_are_of_the_hidden_pixels():
    model, images = small(
        "cvae", "float", condition="quadrants:1", likelihood="gaussian", scale="each"
    )
    given = model.condition.mask.expand(1, 6, 5).flatten() == 1
    bias = model.decoder.decoder.network.unfold.bias
    bias[len(bias) // 2 :][given] -= 1000  # the second half of the outputs are scales
    estimate = measure_elbo(model, images, 2, QUIET)
    assert estimate.share_at_floor == 0
    assert estimate.minimum_scale > 0.01
