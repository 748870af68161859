"""Latent use: KL per dimension against closed forms, active units, used components, and every warning."""

import math
import re

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch.distributions import Independent, MultivariateNormal, Normal

from conftest import random_dataset, small_settings
from model_cases import CASES, NO_DENSITY, images, small
from vaekit import build, evaluate, train
from vaekit.data import EvalSplit, Split
from vaekit.likelihood import latent_use as module
from vaekit.likelihood.latent_use import (
    LatentUse,
    LatentWarnings,
    kl_parts,
    kl_per_dimension,
    measure_latent_use,
    metrics_record,
)
from vaekit.model.distributions import Deterministic, GaussianMixture
from vaekit.model.graph import Latent
from vaekit.settings.model import ClusterConfig, ModelConfig
from vaekit.settings.training import TrainConfig
from vaekit.support.errors import python_names


def normal(loc, scale):
    return Independent(Normal(torch.as_tensor(loc), torch.as_tensor(scale)), 1)


def eval_images(count=40, shape=(1, 9, 6)):
    labels = torch.arange(count) % 4
    return EvalSplit(Split(images(count, shape), labels), "none")


def test_kl_per_dimension_is_the_closed_form_and_sums_to_the_kl(float64):
    loc, scale = torch.randn(50, 3), torch.rand(50, 3) + 0.1
    q, p = normal(loc, scale), normal(torch.zeros(3), torch.ones(3))
    latent = Latent(q.rsample(), q, p)
    kl = kl_per_dimension(latent)
    exact = (0.5 * (loc**2 + scale**2 - 1) - scale.log()).mean(0)
    assert torch.allclose(kl, exact, atol=1e-12)
    assert float(kl.sum()) == pytest.approx(float(latent.kl.mean()), abs=1e-12)


def test_kl_to_a_mixture_is_to_its_marginals(float64):
    """Monte Carlo over 200,000 draws within 5 standard errors of quadrature (fails by chance once in a million)."""
    prior = GaussianMixture(
        torch.tensor([[0.0, 2.0], [1.0, -2.0]]), torch.tensor([[1.0, 0.5], [0.3, 1.0]]), torch.tensor([0.0, 1.0])
    )  # fmt: skip
    q = normal([0.5, -1.0], [0.7, 0.9]).expand((200_000,))
    z = q.sample()
    kl = kl_per_dimension(Latent(z, q, prior.expand((200_000,))))
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
        assert abs(float(kl[d]) - exact) < 5 * spread


def test_a_mixture_of_one_component_is_a_normal(float64):
    q = normal(torch.randn(30, 2), torch.rand(30, 2) + 0.5)
    z = q.sample()
    mixture = GaussianMixture(torch.tensor([[0.5, -1.0]]), torch.tensor([[2.0, 0.5]]))
    p = normal([0.5, -1.0], [2.0, 0.5])
    from_sample = (q.base_dist.log_prob(z) - p.base_dist.log_prob(z)).mean(0)
    assert torch.allclose(kl_per_dimension(Latent(z, q, mixture)), from_sample)


def test_no_density_no_kl():
    q = Independent(Deterministic(torch.zeros(4, 3)), 1)
    assert (
        kl_per_dimension(Latent(q.rsample(), q, normal(torch.zeros(3), torch.ones(3))))
        .isnan()
        .all()
    )


@pytest.mark.parametrize("case", CASES)
def test_latent_use_of_every_model_is_measured_and_leaves_it_unchanged(case):
    model = small(case).train()
    state = torch.random.get_rng_state()
    use = measure_latent_use(model, eval_images())
    assert model.training
    assert torch.equal(state, torch.random.get_rng_state())
    assert 0 <= use.active_units <= use.latent_units
    settings = model.blueprint.settings
    if settings.posterior == "deterministic":
        assert use.kl_per_dimension is None, NO_DENSITY
    else:
        factorised, marginal = use.kl_per_dimension or {}, use.marginal_kl_per_dimension or {}
        values = [kl for kls in (*factorised.values(), *marginal.values()) for kl in kls]
        if use.kl_per_latent is None:
            names = list(model.prior)  # but for flows, whose KL is of all dimensions together
            names = [] if settings.posterior == "flow" else names[settings.prior == "flow" :]
            assert {**factorised, **marginal}.keys() == set(names)
            assert len(values) == use.latent_units or len(names) < len(model.prior)
        else:
            assert not values
            assert use.kl_per_latent.keys() == use.active_per_latent.keys() == model.prior.keys()
            values = use.kl_per_latent.values()
        assert all(map(math.isfinite, values))
    mixed = settings.prior in ("mixture", "learned-mixture", "vampprior") or isinstance(
        settings, ClusterConfig
    )
    assert (use.components is not None) == mixed
    known = settings.posterior != "flow"
    listed = known and use.kl_per_latent is None
    assert (use.marginal_kl_per_dimension is not None) == (mixed and listed)
    assert (use.kl_parts is not None) == isinstance(settings, ClusterConfig)
    assert measure_latent_use(model, eval_images()) == use


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
        # The posterior mean is constant in all but one dimension; two of the components are far away.
        last = model.posterior["z"].network.head.last
        last.weight[1:3] = 0
        last.weight[0] *= 20
        model.prior["z"].loc[:2] = 1000.0
        model.decoder.network.unfold.bias[54:] = -100.0  # all scales at their floor
    use = measure_latent_use(model, eval_images())
    assert (use.active_units, use.latent_units) == (1, 3)
    assert (use.components_used, use.components) == (2, 4)
    assert use.share_at_floor == 1


def test_the_floor_is_of_the_pixels_that_are_not_given():
    """Of an image of which the left half is visible, those alone have the smallest scale: none of the others."""
    model = small("cvae", condition="quadrants:2", likelihood="gaussian", scale="each")
    with torch.no_grad():
        model.decoder.decoder.network.unfold.bias.view(2, 9, 6)[1, :, :3] = -100.0
    assert measure_latent_use(model, eval_images()).share_at_floor == 0
    with torch.no_grad():
        model.decoder.decoder.network.unfold.bias.view(2, 9, 6)[1, :, 3:5] = -100.0
    assert measure_latent_use(model, eval_images()).share_at_floor == pytest.approx(2 / 3)


def latent_use(active=5, units=10, used=None, effective=None, components=None, floor=None):
    return LatentUse(active, units, {"z": [1.0] * units}, used, effective, components, floor)


def warnings_of(settings=None, config=None, epoch=9, kl=5.0, **use):
    warnings = LatentWarnings(settings or ModelConfig(), config or TrainConfig(epochs=20), 1000)
    return warnings.check(epoch, kl, latent_use(**use))


def test_a_good_run_gives_no_warnings():
    assert warnings_of() == []
    assert warnings_of(floor=0.05) == []
    assert warnings_of(ModelConfig(prior="vampprior"), used=300, components=500) == []
    assert warnings_of(ClusterConfig(), used=10, effective=6.0, components=10) == []
    assert warnings_of(ModelConfig(prior="mixture"), used=3, components=10) == []


@pytest.mark.parametrize(
    ("settings", "use", "expected"),
    [
        (None, {"kl": 0.02}, "posterior collapse: the KL is 0.02 nats and 5 of 10 .* try --kl-warmup 10"),
        (None, {"active": 0}, "posterior collapse: .* 0 of 10 dimensions"),
        (None, {"active": 0, "kl": math.nan}, "posterior collapse: 0 of 10 dimensions"),
        (ModelConfig(posterior="deterministic"), {"active": 0, "kl": math.nan}, "collapse: 0 of 10 .* --mmd-weight"),
        (ModelConfig(prior="vampprior"), {"used": 200, "components": 500}, "dead .*: 300 of 500 .* --components 200"),
        (ClusterConfig(), {"used": 8, "components": 10}, "merged clusters: 2 of 10 .* --start-epochs"),
        (
            ClusterConfig(),
            {"used": 10, "effective": 4.4, "components": 10},
            "merged clusters: the effective number is 4.4 of 10; try more --start-epochs",
        ),
        (None, {"floor": 0.3}, "30% of the pixels have the smallest scale .* --likelihood logistic"),
    ],
)  # fmt: skip
def test_each_warning_names_its_remedy(settings, use, expected):
    (text,) = warnings_of(settings, **use)
    assert re.search(expected, text), text


def test_no_remedy_is_what_the_run_has_already():
    (text,) = warnings_of(config=TrainConfig(epochs=40, kl_warmup=15.0), epoch=20, kl=0.0)
    assert "try --kl-warmup 30" in text
    for settings, named in ((ModelConfig(), False), (ModelConfig(scale="each"), True)):
        (text,) = warnings_of(settings, floor=0.3)
        assert ("--scale shared" in text) == named


def test_falling_units_differ_from_few_and_each_warning_is_given_once():
    warnings = LatentWarnings(ModelConfig(), TrainConfig(epochs=20), 1000)
    assert warnings.check(2, 5.0, latent_use(active=8)) == []
    assert warnings.check(3, 5.0, latent_use(active=5)) == []
    (text,) = warnings.check(4, 5.0, latent_use(active=4))
    assert "active units fell from 8 to 4 of 10" in text
    assert warnings.check(5, 5.0, latent_use(active=2)) == []
    assert len(warnings.check(6, 0.01, latent_use(active=2))) == 1


def test_no_warnings_during_a_warm_up_or_in_the_first_steps():
    config = TrainConfig(epochs=20, kl_warmup=10.0)
    assert warnings_of(config=config, epoch=9, kl=0.0) == []
    assert len(warnings_of(config=config, epoch=10, kl=0.0)) == 1
    few = LatentWarnings(ModelConfig(), TrainConfig(epochs=30), 10)
    assert few.check(19, 0.0, latent_use()) == []
    assert len(few.check(20, 0.0, latent_use())) == 1
    short = LatentWarnings(ModelConfig(), TrainConfig(epochs=3), 10)
    assert short.check(3, 0.0, latent_use()) == []


def replayed(**changes):
    """The `most_active` of LatentWarnings after a line of metrics.jsonl, and the warnings already given."""
    warnings = LatentWarnings(ClusterConfig(), TrainConfig(epochs=20), 1000)
    record = metrics_record(latent_use(active=8, used=10, effective=4.4, components=10), [])
    line = {"epoch": 5, "validation_kl": None, **record, **changes}
    warnings.replay({key: value for key, value in line.items() if value != "absent"})
    return warnings.most_active, warnings.given


def test_a_line_of_metrics_has_the_keys_of_all_versions():
    use = latent_use(active=8, used=10, effective=4.4, components=10)
    record = metrics_record(use, ["a warning"])
    assert [*record] == [
        *("active_units", "latent_units", "kl_per_dimension", "components_used"),
        *("components_told_apart", "components", "share_at_floor", "warnings"),
    ]
    assert record["components_told_apart"] == 4.4


def test_the_parts_of_the_kl_of_a_gmvae(float64):
    """Against sums over the clusters; they add up to the KL, and metrics.jsonl has them for such a model alone."""
    model, x = small("gmvae").eval(), eval_images(40)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)  # clusters that differ
        latents = model(x[:].images.double(), x[:].labels).latents
        w, z = latents["w"], latents["z"]
        mixture, terms = z.prior, []
        for k in range(mixture.loc.shape[-2]):
            terms.append(stats.norm.logpdf(z.z, mixture.loc[:, k], mixture.scale[:, k]).sum(-1))
        log_p = np.stack(terms, -1)  # (B, K), of equal weights
        r = np.exp(log_p) / np.exp(log_p).sum(-1, keepdims=True)
        log_q = stats.norm.logpdf(z.z, z.posterior.mean, z.posterior.stddev).sum(-1)
        mean, variance = w.posterior.mean.numpy(), w.posterior.variance.numpy()
        expected = {
            "conditional_prior": log_q - (r * log_p).sum(-1),
            "w": 0.5 * (mean**2 + variance - 1 - np.log(variance)).sum(-1),
            "cluster": (r * np.log(r * r.shape[-1])).sum(-1),
        }
        found = kl_parts(latents)
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            assert np.allclose(found[name], values, atol=1e-9)
            assert abs(values.mean()) > 1e-3
        assert torch.allclose(sum(found.values()), w.kl + z.kl)


def test_metrics_have_the_parts_of_the_kl_where_they_apply(tmp_path):
    added = {"marginal_kl_per_dimension", "kl_parts"}
    data = random_dataset()
    cases = [("vae", set()), ("vampprior", {"marginal_kl_per_dimension"}), ("gmvae", added)]
    for name, expected in cases:
        model = build(name, data, **small_settings(name))
        run = train(model, data, out=tmp_path / name, epochs=1, progress=False)
        (epoch,) = run.metrics
        assert added & epoch.keys() == expected
        if name == "gmvae":
            assert epoch["kl_per_dimension"].keys() == {"w"}
            assert epoch["marginal_kl_per_dimension"].keys() == {"z"}
            # All 20 validation images, by other noise than that of the validation.
            assert sum(epoch["kl_parts"].values()) == pytest.approx(epoch["validation_kl"], rel=0.2)


def test_lines_of_metrics_are_replayed():
    assert replayed() == (8, {"components"})
    assert replayed(components_told_apart=6.0) == (8, set())
    assert replayed(latent_units="absent") == (0, set())


def test_a_collapsed_training_is_warned_of_on_stderr_and_in_metrics(tmp_path, capsys):
    """A weight of 1000 on the KL leaves nothing in the latents."""
    from vaekit import elbo

    data = random_dataset()
    run = train(
        build("vae", data, hidden_dim=8), data, objective=elbo(1000.0), out=tmp_path / "run", epochs=120,
        batch_size=10, learning_rate=0.03,
    )  # fmt: skip
    lines = capsys.readouterr().err.splitlines()
    (line,) = [text for text in lines if text.startswith("warning: posterior collapse")]
    stored = [text for epoch in run.metrics for text in epoch.get("warnings", [])]
    assert [f"warning: {python_names(text)}" for text in stored] == [line]
    assert run.metrics[-1]["active_units"] == 0


def test_noise_of_an_upper_latent_is_not_activity():
    """Encoders blind to the image: z1's posterior depends on draws of z2 alone, its mean over images does not vary."""
    model = small("hvae", top_dim=1)
    with torch.no_grad():
        for posterior in model.posterior.values():
            posterior.network.trunk[0].weight.zero_()
        for parameter in model.posterior["z1"].network.branch.parameters():
            parameter.mul_(6)
    assert measure_latent_use(model, eval_images()).active_units == 0


def test_active_units_need_two_images():
    use = measure_latent_use(small("vae"), eval_images(1))
    assert use.active_units is None
    warnings = LatentWarnings(ModelConfig(), TrainConfig(epochs=20), 1000)
    assert warnings.check(9, 5.0, use) == []


def test_latent_use_is_without_dropout_and_over_all_batches(monkeypatch):
    model = small("vae", dropout=0.5)
    assert measure_latent_use(model.train(), eval_images()) == measure_latent_use(
        model.eval(), eval_images()
    )
    x = eval_images(150)
    x = EvalSplit(
        Split(torch.cat([x.split.images[:100], 1 - x.split.images[100:]]), x.split.labels), "none"
    )
    monkeypatch.setattr("vaekit.likelihood.latent_use.MAX_NUMBERS", 54 * 100)
    with torch.no_grad():
        q = model.posterior["z"](model.given(x[:].images, x[:].labels))
    kl = (0.5 * (q.mean**2 + q.variance - 1) - q.stddev.log()).mean(0)
    assert np.allclose(measure_latent_use(model, x).kl_per_dimension["z"], kl, rtol=1e-4)


def test_thresholds_are_the_published_ones():
    assert (module.ACTIVE_VARIANCE, module.USED_SHARE) == (0.01, 0.01)
    assert warnings_of(kl=0.5) == []
    assert len(warnings_of(floor=0.11)) == 1
    model = small("vae", prior="learned-mixture", components=4)
    with (
        torch.no_grad()
    ):  # four coinciding components: each has its weight, the small ones half of 1 %
        model.prior["z"].loc[:] = 0.0
        model.prior["z"].logits[:] = torch.tensor([0.985, 0.005, 0.005, 0.005]).log()
    assert measure_latent_use(model, eval_images()).components_used == 4
    few = LatentWarnings(ModelConfig(), TrainConfig(epochs=20), 1000)
    assert few.check(2, 5.0, latent_use(active=3)) == []
    assert few.check(3, 5.0, latent_use(active=1)) == []
    model = small("vae", likelihood="gaussian", scale="each")
    with torch.no_grad():
        model.decoder.network.unfold.bias[54:] = -4.0  # scales of about 1.4 times the floor
        assert model.decoder({"z": torch.zeros(1, 3)}).base_dist.scale.min() > 1.1 / 256
    assert measure_latent_use(model, eval_images()).share_at_floor == 0


def test_effective_components_follow_from_the_mutual_information():
    """Four equal components: 1. Two distant pairs, each with half of the images: 2."""
    model = small("vae", latent_dim=3, prior="learned-mixture", components=4)
    with torch.no_grad():
        model.prior["z"].loc[:] = 0.0
    assert measure_latent_use(model, eval_images()).effective_components == pytest.approx(
        1.0, abs=1e-4
    )
    x = images(40, (1, 9, 6))
    x[:20], x[20:] = 0.0, 1.0
    halves = EvalSplit(Split(x), "none")
    with torch.no_grad():
        q = model.posterior["z"](model.given(x, None))
        model.prior["z"].loc[:2] = q.mean[0]
        model.prior["z"].loc[2:] = q.mean[-1]
        model.prior["z"].log_scale[:] = -9.0
        head = model.posterior["z"].network.head.last
        head.weight[3:] = 0
        head.bias[3:] = -20.0  # a posterior as narrow as the components
    use = measure_latent_use(model, halves)
    assert use.effective_components == pytest.approx(2.0, rel=1e-3)
    assert use.components_used == 4


class Student(torch.nn.Module):
    """A prior with heavy tails, for which torch has no KL."""

    def __init__(self, joined):
        super().__init__()
        self.joined = joined

    def forward(self, values):
        if self.joined:
            return torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
        return Independent(torch.distributions.StudentT(torch.full((2,), 5.0)), 1)


@pytest.mark.parametrize("joined", [False, pytest.param(True, marks=pytest.mark.long)])
def test_a_custom_prior_is_trained_measured_and_drawn(tmp_path, joined):
    """KL per dimension: from the sample where torch has no KL; None where the prior does not factorise."""
    from vaekit.gallery.draw import draw
    from vaekit.model.build import BUILDERS, build_graph, register
    from vaekit.settings.catalog import MODELS

    @register(f"student-{joined}", "A custom model.")
    def make(blueprint):
        model = build_graph(blueprint)
        model.prior["z"] = Student(joined)
        return model

    try:
        data = random_dataset()
        model = build(f"student-{joined}", data, latent_dim=2, hidden_dim=8)
        run = train(model, data, out=tmp_path / "run", epochs=1, batch_size=5, progress=False)
        use = measure_latent_use(model.eval(), eval_images(20, (1, 6, 5)))
        assert (use.kl_per_dimension is None) == joined
        assert {"latents-z", "manifold", "traversals", "samples"} <= set(draw(run, grid=3))
    finally:
        del MODELS[f"student-{joined}"], BUILDERS[f"student-{joined}"]


class Tilted(torch.nn.Module):
    """q(z | x) with a full covariance, which is not an Independent."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, values):
        q = self.inner(values)
        factor = torch.diag_embed(q.stddev) + 0.1 * torch.ones(2, 2).tril(-1)
        return MultivariateNormal(q.mean, scale_tril=factor)


def test_a_custom_posterior_is_trained_and_measured(tmp_path):
    from vaekit.model.build import BUILDERS, build_graph, register
    from vaekit.settings.catalog import MODELS

    @register("tilted", "A custom model.")
    def make(blueprint):
        model = build_graph(blueprint)
        model.posterior["z"] = Tilted(model.posterior["z"])
        return model

    try:
        data = random_dataset()
        model = build("tilted", data, latent_dim=2, hidden_dim=8)
        run = train(model, data, out=tmp_path / "run", epochs=1, batch_size=5, progress=False)
        result = evaluate(run, data, samples=1000, metrics=("elbo", "nll", "aggregate"))
        assert result["kl_per_dimension"] is None
        assert result["nll"] < -result["elbo"]
        assert result["mutual_information"] is None
    finally:
        del MODELS["tilted"], BUILDERS["tilted"]


def test_kl_from_the_sample_is_the_mean_log_ratio(float64):
    q = normal(torch.randn(20, 2), torch.rand(20, 2) + 0.5)
    p, z = Independent(torch.distributions.StudentT(torch.full((2,), 5.0)), 1), q.sample()
    expected = (q.base_dist.log_prob(z) - p.base_dist.log_prob(z)).mean(0)
    assert torch.allclose(kl_per_dimension(Latent(z, q, p)), expected)


def test_with_few_images_unused_components_are_not_counted():
    model = small("vampprior", components=30)
    assert measure_latent_use(model, eval_images(40)).components_used is None
    assert measure_latent_use(model, eval_images(60)).components_used is not None
