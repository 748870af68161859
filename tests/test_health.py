"""Health: KL per dimension against closed forms, what counts as active and used, and every warning."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch.distributions import Independent, MultivariateNormal, Normal

from conftest import random_dataset
from test_models import CASES, NO_DENSITY, images, small
from vaekit import build, evaluate, train
from vaekit.data import Frozen, Split
from vaekit.likelihood.latent_use import Health, Warnings, examine, kl_per_dimension
from vaekit.model.distributions import Deterministic, GaussianMixture
from vaekit.model.graph import Latent
from vaekit.settings.model import ClusterConfig, ModelConfig
from vaekit.settings.training import TrainConfig


def normal(loc, scale):
    return Independent(Normal(torch.as_tensor(loc), torch.as_tensor(scale)), 1)


def frozen(count=40, shape=(1, 9, 6)):
    labels = torch.arange(count) % 4
    return Frozen(Split(images(count, shape), labels), "none")


def test_kl_per_dimension_is_the_closed_form_and_sums_to_the_kl(float64):
    loc, scale = torch.randn(50, 3), torch.rand(50, 3) + 0.1
    q, p = normal(loc, scale), normal(torch.zeros(3), torch.ones(3))
    latent = Latent(q.rsample(), q, p)
    found = kl_per_dimension(latent)
    exact = (0.5 * (loc**2 + scale**2 - 1) - scale.log()).mean(0)
    assert torch.allclose(found, exact, atol=1e-12)
    assert float(found.sum()) == pytest.approx(float(latent.kl.mean()), abs=1e-12)


def test_kl_to_a_mixture_is_to_its_marginals(float64):
    """Monte Carlo over 200,000 draws within 5 standard errors of quadrature (fails by chance once in a million)."""
    prior = GaussianMixture(
        torch.tensor([[0.0, 2.0], [1.0, -2.0]]), torch.tensor([[1.0, 0.5], [0.3, 1.0]]), torch.tensor([0.0, 1.0])
    )  # fmt: skip
    q = normal([0.5, -1.0], [0.7, 0.9]).expand((200_000,))
    z = q.sample()
    found = kl_per_dimension(Latent(z, q, prior.expand((200_000,))))
    weights = prior.logits.exp().numpy()
    for d, (loc, scale) in enumerate([(0.5, 0.7), (-1.0, 0.9)]):
        own = stats.norm(loc, scale)

        def log_marginal(x, d=d):
            parts = stats.norm.pdf(np.asarray(x)[..., None], prior.loc[:, d], prior.scale[:, d])
            return np.log(parts @ weights)

        exact, _ = integrate.quad(
            lambda x, own=own, f=log_marginal: own.pdf(x) * (own.logpdf(x) - f(x)),
            -12,
            12,
            limit=200,
        )
        spread = (own.logpdf(z[:, d]) - log_marginal(z[:, d].numpy())).std() / math.sqrt(len(z))
        assert abs(float(found[d]) - exact) < 5 * spread


def test_a_mixture_of_one_component_is_a_normal(float64):
    q = normal(torch.randn(30, 2), torch.rand(30, 2) + 0.5)
    z = q.sample()
    mixture = GaussianMixture(torch.tensor([[0.5, -1.0]]), torch.tensor([[2.0, 0.5]]))
    p = normal([0.5, -1.0], [2.0, 0.5])
    by_draw = (q.base_dist.log_prob(z) - p.base_dist.log_prob(z)).mean(0)
    assert torch.allclose(kl_per_dimension(Latent(z, q, mixture)), by_draw)


def test_no_density_no_kl():
    q = Independent(Deterministic(torch.zeros(4, 3)), 1)
    assert (
        kl_per_dimension(Latent(q.rsample(), q, normal(torch.zeros(3), torch.ones(3))))
        .isnan()
        .all()
    )


@pytest.mark.parametrize("case", CASES)
def test_every_model_has_its_health_measured_and_stays_as_it_was(case):
    model = small(case).train()
    state = torch.random.get_rng_state()
    found = examine(model, frozen())
    assert model.training
    assert torch.equal(state, torch.random.get_rng_state())
    assert 0 <= found.active_units <= found.latent_units
    settings = model.blueprint.settings
    if settings.posterior == "deterministic":
        assert found.kl_per_dimension is None, NO_DENSITY
    else:
        assert list(found.kl_per_dimension) == list(model.prior)
        assert sum(map(len, found.kl_per_dimension.values())) == found.latent_units
        assert all(math.isfinite(kl) for kls in found.kl_per_dimension.values() for kl in kls)
    mixed = settings.prior in ("mixture", "learned-mixture", "vampprior") or isinstance(
        settings, ClusterConfig
    )
    assert (found.components is not None) == mixed
    assert examine(model, frozen()) == found


def test_units_and_components_and_floors_are_counted():
    model = small(
        "vae",
        latent_dim=3,
        prior="learned-mixture",
        components=4,
        likelihood="gaussian",
        scale="each",
    )
    with torch.no_grad():
        # The posterior's mean is the bias but in one dimension; two of the components are far off.
        last = model.posterior["z"].network.head.last
        last.weight[1:3] = 0
        last.weight[0] *= 20
        model.prior["z"].loc[:2] = 1000.0
        model.decoder.network.unfold.bias[54:] = -100.0  # all scales at their floor
    found = examine(model, frozen())
    assert (found.active_units, found.latent_units) == (1, 3)
    assert (found.components_used, found.components) == (2, 4)
    assert found.share_at_floor == 1


def health(active=5, units=10, used=None, apart=None, components=None, floor=None):
    return Health(active, units, {"z": [1.0] * units}, used, apart, components, floor)


def warned(settings=None, config=None, epoch=9, kl=5.0, **found):
    watch = Warnings(settings or ModelConfig(), config or TrainConfig(epochs=20), 1000)
    return watch.new(epoch, kl, health(**found))


def test_nothing_is_said_of_a_healthy_run():
    assert warned() == []
    assert warned(floor=0.05) == []
    assert warned(ModelConfig(prior="vampprior"), used=300, components=500) == []
    assert warned(ClusterConfig(), used=10, apart=6.0, components=10) == []
    assert warned(ModelConfig(prior="mixture"), used=3, components=10) == []


@pytest.mark.parametrize(
    ("settings", "found", "said"),
    [
        (None, {"kl": 0.02}, "posterior collapse: the latents carry 0.02 nats and 5 of 10 .* try --kl-warmup 10"),
        (None, {"active": 0}, "posterior collapse: .* 0 of 10 dimensions"),
        (None, {"active": 0, "kl": math.nan}, "posterior collapse: 0 of 10 dimensions"),
        (ModelConfig(posterior="deterministic"), {"active": 0, "kl": math.nan}, "collapse: 0 of 10 .* --mmd-weight"),
        (ModelConfig(prior="vampprior"), {"used": 200, "components": 500}, "dead .*: 300 of 500 .* --components 200"),
        (ClusterConfig(), {"used": 8, "components": 10}, "merged clusters: 2 of 10 .* --start-epochs"),
        (
            ClusterConfig(),
            {"used": 10, "apart": 4.4, "components": 10},
            "merged clusters: of 10 no more than 4.4 can be told apart; try more --start-epochs",
        ),
        (None, {"floor": 0.3}, "30% of the pixels have the smallest scale .* --likelihood logistic"),
    ],
)  # fmt: skip
def test_each_fault_is_named_with_its_remedy(settings, found, said):
    import re

    (text,) = warned(settings, **found)
    assert re.search(said, text), text


def test_falling_units_are_told_from_few_and_each_fault_is_said_once():
    watch = Warnings(ModelConfig(), TrainConfig(epochs=20), 1000)
    assert watch.new(2, 5.0, health(active=8)) == []
    assert watch.new(3, 5.0, health(active=5)) == []
    (text,) = watch.new(4, 5.0, health(active=4))
    assert "active units fell from 8 to 4 of 10" in text
    assert watch.new(5, 5.0, health(active=2)) == []
    assert len(watch.new(6, 0.01, health(active=2))) == 1


def test_nothing_is_said_in_a_warm_up_or_at_the_very_start():
    config = TrainConfig(epochs=20, kl_warmup=10.0)
    assert warned(config=config, epoch=9, kl=0.0) == []
    assert len(warned(config=config, epoch=10, kl=0.0)) == 1
    few = Warnings(ModelConfig(), TrainConfig(epochs=30), 10)
    assert few.new(19, 0.0, health()) == []
    assert len(few.new(20, 0.0, health())) == 1
    short = Warnings(ModelConfig(), TrainConfig(epochs=3), 10)
    assert short.new(3, 0.0, health()) == []


def test_a_collapsed_training_is_warned_of_where_people_look(tmp_path, capsys):
    """A weight of 1000 on the KL leaves nothing in the latents."""
    from vaekit import elbo

    data = random_dataset()
    run = train(
        build("vae", data, hidden_dim=8), data, objective=elbo(1000.0), out=tmp_path / "run", epochs=120,
        batch_size=10, learning_rate=0.03,
    )  # fmt: skip
    (line,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("warning")]
    assert line.startswith("warning: posterior collapse")
    noted = [text for epoch in run.metrics for text in epoch.get("warnings", [])]
    assert [f"warning: {text}" for text in noted] == [line]
    assert run.metrics[-1]["active_units"] == 0


def test_noise_of_a_latent_above_is_no_activity():
    """Encoders blind to the image: z1's posterior depends on draws of z2 alone, its mean over images does not vary."""
    model = small("hvae", top_dim=1)
    with torch.no_grad():
        for posterior in model.posterior.values():
            posterior.network.trunk[0].weight.zero_()
        for parameter in model.posterior["z1"].network.branch.parameters():
            parameter.mul_(6)
    assert examine(model, frozen()).active_units == 0


def test_one_image_says_nothing_of_activity():
    found = examine(small("vae"), frozen(1))
    assert found.active_units is None
    watch = Warnings(ModelConfig(), TrainConfig(epochs=20), 1000)
    assert watch.new(9, 5.0, found) == []


def test_health_is_without_dropout_and_over_all_batches(monkeypatch):
    model = small("vae", dropout=0.5)
    assert examine(model.train(), frozen()) == examine(model.eval(), frozen())
    x = frozen(150)
    x = Frozen(
        Split(torch.cat([x.split.images[:100], 1 - x.split.images[100:]]), x.split.labels), "none"
    )
    monkeypatch.setattr("vaekit.likelihood.latent_use.NUMBERS", 54 * 100)
    with torch.no_grad():
        q = model.posterior["z"](model.given(x[:].images, x[:].labels))
    kl = (0.5 * (q.mean**2 + q.variance - 1) - q.stddev.log()).mean(0)
    assert np.allclose(examine(model, x).kl_per_dimension["z"], kl, rtol=1e-4)


def test_thresholds_are_the_published_ones():
    from vaekit.likelihood import latent_use as room

    assert (room.ACTIVE_VARIANCE, room.USED_PART) == (0.01, 0.01)
    assert warned(kl=0.5) == []
    assert len(warned(floor=0.11)) == 1
    model = small("vae", prior="learned-mixture", components=4)
    with (
        torch.no_grad()
    ):  # four components in one place: each has its weight, the small ones half of 1 %
        model.prior["z"].loc[:] = 0.0
        model.prior["z"].logits[:] = torch.tensor([0.985, 0.005, 0.005, 0.005]).log()
    assert examine(model, frozen()).components_used == 4
    few = Warnings(ModelConfig(), TrainConfig(epochs=20), 1000)
    assert few.new(2, 5.0, health(active=3)) == []
    assert few.new(3, 5.0, health(active=1)) == []
    model = small("vae", likelihood="gaussian", scale="each")
    with torch.no_grad():
        model.decoder.network.unfold.bias[54:] = -4.0  # scales of about 1.4 times the floor
        assert model.decoder({"z": torch.zeros(1, 3)}).base_dist.scale.min() > 1.1 / 256
    assert examine(model, frozen()).share_at_floor == 0


def test_components_are_told_apart_by_the_information_they_have():
    """Of four components, all alike: one. Two pairs far apart, the images half and half: two."""
    model = small("vae", latent_dim=3, prior="learned-mixture", components=4)
    with torch.no_grad():
        model.prior["z"].loc[:] = 0.0
    assert examine(model, frozen()).components_told_apart == pytest.approx(1.0, abs=1e-4)
    x = images(40, (1, 9, 6))
    x[:20], x[20:] = 0.0, 1.0
    halves = Frozen(Split(x), "none")
    with torch.no_grad():
        q = model.posterior["z"](model.given(x, None))
        model.prior["z"].loc[:2] = q.mean[0]
        model.prior["z"].loc[2:] = q.mean[-1]
        model.prior["z"].log_scale[:] = -9.0
        head = model.posterior["z"].network.head.last
        head.weight[3:] = 0
        head.bias[3:] = -20.0  # a posterior as narrow as the components
    found = examine(model, halves)
    assert found.components_told_apart == pytest.approx(2.0, rel=1e-3)
    assert found.components_used == 4


class Student(torch.nn.Module):
    """A prior of heavy tails, of which torch knows no KL."""

    def __init__(self, joined):
        super().__init__()
        self.joined = joined

    def forward(self, values):
        if self.joined:
            return torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
        return Independent(torch.distributions.StudentT(torch.full((2,), 5.0)), 1)


@pytest.mark.parametrize("joined", [False, True])
def test_a_prior_of_ones_own_is_trained_measured_and_drawn(tmp_path, joined):
    """One that torch has no KL for: from the draw; one that does not factorise: not at all."""
    from vaekit.gallery.draw import draw
    from vaekit.model.build import BUILDERS, build_graph, register
    from vaekit.settings.catalog import MODELS

    @register(f"student-{joined}", "A test's own.")
    def make(blueprint):
        model = build_graph(blueprint)
        model.prior["z"] = Student(joined)
        return model

    try:
        data = random_dataset()
        model = build(f"student-{joined}", data, latent_dim=2, hidden_dim=8)
        run = train(model, data, out=tmp_path / "run", epochs=1, batch_size=5, progress=False)
        found = examine(model.eval(), frozen(20, (1, 6, 5)))
        assert (found.kl_per_dimension is None) == joined
        assert {"latents-z", "manifold", "traversals", "samples"} <= set(draw(run, grid=3))
    finally:
        del MODELS[f"student-{joined}"], BUILDERS[f"student-{joined}"]


class Tilted(torch.nn.Module):
    """q(z | x) with a full covariance, which torch does not take for a product over dimensions."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, values):
        q = self.inner(values)
        factor = torch.diag_embed(q.stddev) + 0.1 * torch.ones(2, 2).tril(-1)
        return MultivariateNormal(q.mean, scale_tril=factor)


def test_a_posterior_of_ones_own_is_trained_and_measured(tmp_path):
    from vaekit.model.build import BUILDERS, build_graph, register
    from vaekit.settings.catalog import MODELS

    @register("tilted", "A test's own.")
    def make(blueprint):
        model = build_graph(blueprint)
        model.posterior["z"] = Tilted(model.posterior["z"])
        return model

    try:
        data = random_dataset()
        model = build("tilted", data, latent_dim=2, hidden_dim=8)
        run = train(model, data, out=tmp_path / "run", epochs=1, batch_size=5, progress=False)
        found = evaluate(run, data, samples=1000, metrics=("elbo", "nll", "aggregate"))
        assert found["kl_per_dimension"] is None
        assert found["nll"] < -found["elbo"]
        assert found["mutual_information"] is None
    finally:
        del MODELS["tilted"], BUILDERS["tilted"]


def test_kl_from_the_draw_is_the_mean_log_ratio(float64):
    q = normal(torch.randn(20, 2), torch.rand(20, 2) + 0.5)
    p, z = Independent(torch.distributions.StudentT(torch.full((2,), 5.0)), 1), q.sample()
    expected = (q.base_dist.log_prob(z) - p.base_dist.log_prob(z)).mean(0)
    assert torch.allclose(kl_per_dimension(Latent(z, q, p)), expected)


def test_of_few_images_no_component_is_called_unused():
    model = small("vampprior", components=30)
    assert examine(model, frozen(40)).components_used is None
    assert examine(model, frozen(60)).components_used is not None
