"""The ELBO, its parts and the active units, whole and in chunks."""

import pytest
import torch

from conftest import random_dataset
from vaekit import build
from vaekit.data import eval_split
from vaekit.likelihood import elbo as module
from vaekit.likelihood.elbo import active_units, measure_elbo, over_samples
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


def idle_hierarchy(response=0.0):
    """z2 ~ N(0, 1) whatever the image, and q(z1 | x, z2) = p(z1 | z2) + response x_0: at response 0 the KL is exactly
    0, though z1's mean differs from sample to sample."""
    model, images = small("hvae", top_dim=2)
    for parameter in model.posterior["z2"].parameters():
        parameter.zero_()
    for parameter in model.prior["z1"].parameters():
        parameter *= 2

    class Below(torch.nn.Module):
        def forward(self, values):
            p = model.prior["z1"](values).base_dist
            shift = response * values["x"].flatten(1)[:, :1]
            return torch.distributions.Independent(
                torch.distributions.Normal(p.loc + shift, p.scale), 1
            )

    model.posterior["z1"] = Below()
    return model, images


def test_idle_units_of_a_lower_level_are_not_active():
    """As averages over 10 samples their means vary more than 0.01 over the images. 1 of 40 seeds would fail one of 10
    counts (3 standard errors)."""
    model, images = idle_hierarchy()
    with seeded(0):
        mean = model(images[:].images, samples=(10,)).latents["z1"].posterior.mean
        counts = [measure_elbo(model, images, 10, QUIET) for _ in range(10)]
    assert (mean.mean(0).var(0, correction=0) > 2 * module.ACTIVE_VARIANCE).all()
    assert all(each.kl == pytest.approx(0, abs=1e-5) for each in counts)
    assert {each.active_units for each in counts} == {0}


def test_units_of_a_lower_level_that_respond_are_active():
    model, images = idle_hierarchy(response=1.5)
    x = images[:].images.flatten(1)[:, 0]
    assert x.var(correction=0) > 0.1
    with seeded(0):
        assert measure_elbo(model, images, 10, QUIET).active_units == 2
        assert measure_elbo(model, images, 1, QUIET).active_units is None


def test_the_variance_of_means_is_unbiased(monkeypatch):
    """The count of 4,000 dimensions whose variance over 50 images is exactly 0.01, from 4 noisy samples: half of them,
    within 4 standard errors and the skewness of the estimate. Without the correction it would be nearly all."""
    signal = torch.randn(50, 4000, dtype=torch.float64)
    signal = 0.1 * (signal - signal.mean(0)) / signal.std(0, correction=0)
    with seeded(0):
        means = signal + 0.1 * torch.randn(4, 50, 4000, dtype=torch.float64)
    count = active_units(*over_samples(means), samples=4)
    assert abs(count / 4000 - 0.5) < 4 * 0.5 / 4000**0.5 + 0.03


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
