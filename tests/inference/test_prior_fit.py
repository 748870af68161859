"""Fitted priors: densities against known ones and scikit-learn's, ELBOs against closed forms, and their file.

Statistical tests fix their seed; a bound of 4 standard errors would be crossed by chance in 1 of 16,000 seeds.
"""

import json
import math
import shutil

import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from conftest import random_dataset
from model_cases import CASES, given, images, labels, small
from vaekit import Run, UserError, build, evaluate, fit_prior, load, rank, train
from vaekit.inference import prior_fit
from vaekit.inference.export import EXPORTED_PARTS
from vaekit.inference.generation import generate
from vaekit.inference.latent_space import prior_mixture
from vaekit.inference.prior_fit import (
    build_fitted,
    describe,
    expectation_maximisation,
    fit_by_gradient,
    fit_mixture,
    initialise,
    mean_log_density,
    resolve_settings,
)
from vaekit.model.distributions import GaussianMixture, sample_with_temperature
from vaekit.model.objectives import elbo
from vaekit.model.priors import FullMixture, StandardNormal
from vaekit.runs.fitted_prior import check_fittable, first_latent, read_record, with_prior
from vaekit.runs.load import weights_sha256
from vaekit.settings.analysis import FitPriorConfig
from vaekit.support.console import ProgressBar

QUIET = ProgressBar(False)
TRUTH = GaussianMixture(
    torch.tensor([[2.0, 0.0], [-2.0, 1.0], [0.0, -2.0]]),
    torch.tensor([[0.5, 0.7], [0.4, 0.4], [0.8, 0.3]]),
    torch.tensor([0.5, 0.3, 0.2]).log(),
)


class KnownCodes:
    """Codes from TRUTH in place of those of images."""

    latent, images = "z", range(2000)

    def __call__(self):
        return TRUTH.expand((2000,)).sample()


@pytest.fixture(autouse=True)
def few_codes(monkeypatch):
    """Fits to few codes of few images, which take less time."""
    monkeypatch.setattr(prior_fit, "MIN_CODES", 600)


def random_mixture(components=3, dim=4):
    """A FullMixture with random parameters."""
    prior = FullMixture(components, dim)
    with torch.no_grad():
        prior.loc.normal_()
        prior.tril.copy_((0.3 * torch.randn(components, dim, dim)).tril(-1))
        prior.tril.diagonal(dim1=-2, dim2=-1).copy_(0.2 + torch.rand(components, dim))
        prior.logits.normal_()
    return prior


@pytest.mark.parametrize(
    ("settings", "largest"),
    [
        ({"prior": "gmm"}, 0.02),
        ({"prior": "learned-mixture", "components": 6, "epochs": 4}, 0.05),
        ({"prior": "flow", "flow_dim": 32, "epochs": 3, "learning_rate": 1e-2}, 0.6),
    ],
    ids=lambda value: value["prior"] if isinstance(value, dict) else "",
)
def test_the_density_of_codes_from_a_known_mixture_comes_close_to_it(settings, largest):
    """KL(truth || fitted) on new codes, nats; that of N(0, I) is 1.8."""
    torch.manual_seed(0)
    config, codes = resolve_settings(FitPriorConfig(**settings), 2000), KnownCodes()
    model, valid = build("vae", (1, 2, 2), latent_dim=2, hidden_dim=4), codes()
    if config.prior == "gmm":
        prior, config = fit_mixture(model, config, codes, valid, QUIET)
        assert config.components == 4  # of 1, 2, 4 ...
    else:
        prior = build_fitted(model, config, 2)
        initialise(prior, config, None, codes)
        fit_by_gradient(prior, config, codes, valid, QUIET)
    z = TRUTH.expand((20_000,)).sample()
    truth = float(TRUTH.log_prob(z).mean())
    assert truth - mean_log_density(StandardNormal(2), z) > 1.7
    assert truth - mean_log_density(prior, z) < largest
    drawn = prior({}).expand((20_000,)).sample()  # samples follow the density
    assert torch.allclose(drawn.mean(0), TRUTH.mean, atol=0.3 if largest > 0.1 else 0.1)
    assert float(TRUTH.log_prob(drawn).mean()) > truth - 5 * largest - 0.1


def test_full_covariances_are_those_of_scikit_learn(float64):
    z = torch.randn(500, 4) @ torch.randn(4, 4) + torch.tensor([0.0, 1.0, 2.0, 3.0])
    prior = expectation_maximisation(z, 3, seed=5)
    from sklearn.mixture import GaussianMixture as Reference

    reference = Reference(3, reg_covar=1e-6, random_state=5, max_iter=200).fit(z.numpy())
    p = prior({})
    assert torch.allclose(p.log_prob(z), torch.from_numpy(reference.score_samples(z)), atol=1e-6)
    r = torch.from_numpy(reference.predict_proba(z))
    assert torch.allclose(p.log_responsibilities(z).exp(), r, atol=1e-6)
    assert torch.allclose(p.expand((2, 500)).log_prob(z), p.log_prob(z).expand(2, 500), atol=1e-9)


@torch.no_grad()
def test_samples_of_full_covariances_have_their_moments(float64):
    prior, count = random_mixture(), 40_000
    p = prior({})
    z = p.expand((count,)).sample()
    assert torch.allclose(p.mean, z.mean(0), atol=4 * float(p.variance.max().sqrt()) / count**0.5)
    assert torch.allclose(p.variance, z.var(0), rtol=0.06)
    one = p.component(torch.full((count,), 1)).sample()
    assert torch.allclose(torch.cov(one.T), prior.tril[1] @ prior.tril[1].T, atol=0.05)
    cold = sample_with_temperature(p.expand((3,)), 0.0, torch.tensor([0, 1, 2]))
    assert torch.allclose(cold, p.loc)
    model = with_prior(build("vae", (1, 2, 2), latent_dim=4, hidden_dim=4), prior)
    shown = prior_mixture(model, "z")
    assert torch.equal(shown.centres, prior.loc)
    assert torch.allclose(torch.cov(shown.sample(count).T), torch.cov(z.T), atol=0.08)
    axes = torch.linalg.qr(torch.randn(4, 2))[0]
    points = (z[:2000] - 1) @ axes
    parts = [
        MultivariateNormal((m - 1) @ axes, axes.T @ tril @ tril.T @ axes)
        for m, tril in zip(prior.loc, prior.tril, strict=True)
    ]
    log_parts = torch.stack([part.log_prob(points) for part in parts], -1)
    expected = (log_parts + prior.logits.log_softmax(0)).logsumexp(-1)
    projected = shown.project(axes, torch.ones(4))
    assert torch.allclose(projected.log_prob(points), expected, atol=1e-2)


def test_the_exported_prior_moves_noise_to_the_chosen_component():
    prior, noise = random_mixture(), torch.randn(3, 4)
    model = with_prior(build("vae", (1, 2, 2), latent_dim=4, hidden_dim=4), prior)
    weights = prior.logits.softmax(0)
    choice = torch.stack([0 * weights[0], weights[0] + weights[1] / 2, 1 - weights[2] / 2])
    found = EXPORTED_PARTS["prior"](model, {"z_noise": noise, "z_choice": choice})["z"]
    expected = [prior.loc[k] + prior.tril[k] @ noise[k] for k in range(3)]
    assert torch.allclose(found, torch.stack(expected), atol=1e-6)


def test_one_gaussian_gains_its_divergence_from_the_old_prior(float64):
    """E[log p_new(z) - log p(z)] = KL(N(m, S) || N(0, I)) with the moments m, S of the codes, exactly."""
    z = torch.randn(300, 3) @ torch.randn(3, 3) + torch.tensor([1.0, 0.0, -2.0])
    prior = expectation_maximisation(z, 1, seed=0)
    moments = MultivariateNormal(z.mean(0), torch.cov(z.T, correction=0))
    expected = kl_divergence(moments, MultivariateNormal(torch.zeros(3), torch.eye(3)))
    gain = mean_log_density(prior, z) - mean_log_density(StandardNormal(3), z)
    assert gain == pytest.approx(float(expected), abs=1e-5)


def test_the_elbo_with_the_prior_replaced_is_the_closed_form(float64):
    """Each image's: E[log p(x | z)] - KL(q(z | x) || N(m, S)); within 4 standard errors of the samples."""
    model = small("vae").double()
    prior = random_mixture(1, 3)
    x, samples = images(5, (1, 9, 6)).double(), 20_000
    with torch.no_grad():
        new = with_prior(model, prior)(x, samples=(samples,))
        q = new.latents["z"].posterior.base_dist
        full = MultivariateNormal(q.loc, scale_tril=torch.diag_embed(q.scale))
        exact = kl_divergence(full, MultivariateNormal(prior.loc[0], scale_tril=prior.tril[0]))
        drawn = new.latents["z"].kl
        error = drawn.std(0) / samples**0.5
        assert ((drawn.mean(0) - exact).abs() < 4 * error).all()
        found = elbo(samples=(samples,))(new)
        expected = new.log_likelihood.mean(0) - exact
        assert ((found - expected).abs() < 4 * error).all()


def test_the_gain_on_a_gaussian_aggregate_is_its_divergence(tmp_path):
    """A linear encoder of Gaussian images: q(z) is Gaussian, and the ELBO rises by KL(q(z) || p(z)), in closed form."""
    torch.manual_seed(0)
    data = random_dataset((1, 2, 3), "float", count=9000)
    gaussian = (0.5 + 0.1 * torch.randn(9000, 1, 2, 3)).clamp(0, 1)
    for split, part in zip(data.splits.values(), gaussian.split(3000), strict=True):
        object.__setattr__(split, "images", part)
    model = build("vae", data, latent_dim=2, encoder="", decoder="8", likelihood="gaussian")
    run = train(model, data, out=tmp_path / "run", epochs=1, progress=False)
    fitted = fit_prior(run, data, components=1)
    with torch.no_grad():
        # The population's: of the affine map and constant scale at the images of all splits.
        q = load(run).posterior["z"]({"x": gaussian, "y": None}).base_dist
        covariance = torch.cov(q.loc.T) + torch.diag((q.scale**2).mean(0))
        aggregate = MultivariateNormal(q.loc.mean(0), covariance)
    expected = float(kl_divergence(aggregate, MultivariateNormal(torch.zeros(2), torch.eye(2))))
    record = read_record(fitted)
    assert record.elbo_fitted - record.elbo_trained == pytest.approx(expected, abs=0.05)
    settings = {"data": data, "metrics": ("elbo",), "limit": 3000, "split": "validation"}
    gain = evaluate(fitted, **settings)["elbo"] - evaluate(run, **settings)["elbo"]
    assert gain == pytest.approx(expected, abs=0.05)


@pytest.fixture(scope="module")
def fitted_run(small_run, mnist, tmp_path_factory):
    """A run with a gmm fitted to its codes. Not to be changed."""
    from conftest import shortened

    path = tmp_path_factory.mktemp("fitted") / "run"
    shutil.copytree(small_run, path)
    return fit_prior(path, shortened(mnist), components=2)


@pytest.fixture
def copied(fitted_run, tmp_path):
    """A copy of it."""
    shutil.copytree(fitted_run.path, tmp_path / "copy")
    return tmp_path / "copy"


def test_an_evaluation_belongs_to_the_prior_that_it_names(copied, small_mnist):
    fitted = Run(copied, prior="fitted")
    settings = {"metrics": ("elbo",), "limit": 200, "split": "validation"}
    with_fitted, with_trained = evaluate(fitted, **settings), evaluate(copied, **settings)
    record = read_record(fitted)
    assert record.elbo_fitted > record.elbo_trained
    for name, found in (("elbo_fitted", with_fitted), ("elbo_trained", with_trained)):
        assert found["elbo"] == pytest.approx(getattr(record, name), abs=0.5)
    stored = json.loads((copied / "evaluation-fitted.json").read_text())
    assert stored["prior"] == "fitted gmm (2 components)"
    assert stored["weights"] == weights_sha256(fitted) != weights_sha256(Run(copied))
    assert json.loads((copied / "evaluation.json").read_text())["elbo"] == with_trained["elbo"]
    table = rank([Run(copied), fitted])
    assert table.settings == ("fitted prior",)
    assert [row.settings for row in table.rows] == [(None,), ("gmm (2 components)",)]
    fit_prior(copied, components=1)  # what was evaluated before is of another prior
    assert any("of earlier weights" in note for note in rank([Run(copied), fitted]).notes)


def test_all_that_draws_from_a_prior_draws_from_the_fitted_one(fitted_run):
    model = load(fitted_run)
    assert isinstance(model.prior["z"], FullMixture)
    assert load(fitted_run.path).state_dict().keys() == {
        name for name in model.state_dict() if not name.startswith("prior.")
    }
    own, new = generate(load(fitted_run.path), 6), generate(model, 6)
    assert own.shape == new.shape
    assert not torch.allclose(own, new)
    near, loc = generate(model, 6, temperature=0.0, cluster=1), model.prior["z"].loc[1]
    assert torch.allclose(near, model.decode(z=loc.expand(6, -1)).mean)


@pytest.mark.parametrize("kind", ["learned-mixture", "vampprior", "flow"])
def test_every_kind_is_read_back_as_it_was_fitted(copied, small_mnist, kind):
    settings = {"epochs": 2} | (
        {"flow_dim": 8, "flow_steps": 1} if kind == "flow" else {"components": 7}
    )
    fitted = fit_prior(copied, prior=kind, **settings)
    record, content = read_record(fitted), fitted.fitted_prior_path.read_bytes()
    assert record.config.prior == kind
    assert record.name in describe(fitted)
    model = load(fitted)
    codes = prior_fit.CodeSampler(model, small_mnist.validation, "threshold")()
    assert math.isfinite(mean_log_density(model.prior["z"], codes))
    assert fit_prior(copied, prior=kind, **settings).fitted_prior_path.read_bytes() == content


def test_codes_are_new_samples_at_each_call(fitted_run, mnist):
    model = load(fitted_run)
    for binarisation in ("threshold", "dynamic"):
        codes = prior_fit.CodeSampler(model, mnist.train[:300], binarisation)
        first, second = codes(), codes()
        assert len(first) == len(second) == 2 * 300
        assert not torch.equal(first[:300], first[300:600])
        assert not torch.equal(first, second)
        assert (codes.known is None) == (binarisation == "dynamic")
    assert torch.allclose(first.mean(0), second.mean(0), atol=0.1)


def test_a_prior_of_earlier_weights_is_refused(copied, small_mnist):
    model = load(copied)
    with torch.no_grad():
        next(model.decoder.parameters()).add_(0.01)
    Run(copied).save_weights(model)
    for use in (load, evaluate):
        with pytest.raises(UserError, match="earlier weights; fit again: vaekit fit-prior"):
            use(Run(copied, prior="fitted"))


def test_an_interruption_leaves_the_earlier_prior(copied, small_mnist, monkeypatch):
    path = Run(copied).fitted_prior_path
    before = path.read_bytes()
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        fit_prior(copied, components=1)
    assert path.read_bytes() == before
    assert not list(copied.glob("*.part"))


@pytest.mark.parametrize(
    "content", [b"", b"x" * 100, b"\x02\0\0\0\0\0\0\0{}"], ids=["empty", "text", "header"]
)
def test_a_damaged_prior_is_one_line(copied, content):
    Run(copied).fitted_prior_path.write_bytes(content)
    with pytest.raises(UserError, match="fit again: vaekit fit-prior"):
        load(Run(copied, prior="fitted"))


@pytest.mark.parametrize("name", CASES)
def test_a_fitted_prior_takes_the_place_of_that_of_every_model(name):
    model, config = small(name), FitPriorConfig(prior="gmm", components=2)
    conditional = "y" in getattr(model.prior[first_latent(model)], "given", ())
    if conditional or "gmvae" in model.blueprint.model:
        with pytest.raises(UserError, match="conditional" if conditional else "its clusters"):
            check_fittable(model, config)
        return
    check_fittable(model, config)
    latent, shape = first_latent(model), model.blueprint.shape
    x, y = images(3, shape), labels(3)
    dim = model(x, y).latents[latent].z.shape[-1]
    model = with_prior(model, build_fitted(model, config, dim))
    inference = model(x, y, samples=(2,))
    assert isinstance(inference.latents[latent].prior, GaussianMixture)
    assert model.sample(3, given(model, 3), temperature=0.5).mean.shape == (3, *shape)
    if model.blueprint.settings.posterior != "deterministic":
        assert inference.log_weight.isfinite().all()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("fit-prior RUN --prior normal", "--prior is 'normal'; it must be one of gmm,"),
        ("fit-prior", "lacks RUN"),
        (
            "fit-prior RUN --components 601",
            "--components is 601, but there are 600 training images",
        ),
        ("fit-prior RUN --epochs 3", "--epochs has no effect with --prior gmm"),
        ("fit-prior RUN --prior vampprior --flow-steps 2", "--flow-steps has no effect with"),
        ("fit-prior RUN --prior flow --components 2", "--components has no effect with"),
        ("fit-prior RUN --prior flow --learning-rate -1", "--learning-rate is -1.0"),
        ("generate RUN --prior fitted", "has no fitted prior; first: vaekit fit-prior"),
        ("evaluate RUN --prior fitted", "has no fitted prior; first: vaekit fit-prior"),
        ("generate RUN --prior flow", "--prior is 'flow'; it must be one of trained, fitted"),
    ],
)
def test_mistakes_are_one_line(vaekit, small_run, small_mnist, words, said):
    code, _, err = vaekit(*(str(small_run) if word == "RUN" else word for word in words.split()))
    assert code == 2
    assert err.splitlines()[-1].startswith("vaekit: "), err
    assert said in err
    assert not Run(small_run).fitted_prior_path.exists()


def test_the_command_says_what_it_fitted_and_what_the_bound_is_of(vaekit, copied, small_mnist):
    code, out, err = vaekit("fit-prior", copied, "--components", 1)
    assert code == 0
    assert "replaces the fitted prior" in err
    assert "gmm (1 components), fitted to z of 600 training images; validation ELBO: " in out
    assert "a new prior is a new model" in out
    code, out, _ = vaekit("generate", copied, "--prior", "fitted", "--count", 4)
    assert code == 0
    assert out.endswith("generated-count-4-seed-0-fitted.png\n")


def test_a_run_without_its_data_names_them(vaekit, copied):
    config = (copied / "config.json").read_text()
    (copied / "config.json").write_text(config.replace('"data": "mnist"', '"data": "/gone/photos"'))
    code, _, err = vaekit("fit-prior", copied)
    assert code == 2
    assert "/gone/photos" in err
    code, _, _ = vaekit("generate", copied, "--prior", "fitted")  # needs none
    assert code == 0


def test_too_few_images_and_models_without_a_prior_to_replace_are_refused(tmp_path):
    data = random_dataset(count=24)
    run = train(
        build("vae", data, latent_dim=2, hidden_dim=4), data, out=tmp_path / "few", epochs=1, progress=False
    )  # fmt: skip
    with pytest.raises(UserError, match="there are 8 training images; a prior can be fitted to"):
        fit_prior(run, data)
    with pytest.raises(UserError, match="the prior of a gmvae is its clusters"):
        check_fittable(small("gmvae"), FitPriorConfig())
    with pytest.raises(UserError, match="conditional"):
        check_fittable(small("conditional prior"), FitPriorConfig())
    with pytest.raises(UserError, match="mixture of Gaussian posteriors"):
        check_fittable(small("cvae"), FitPriorConfig(prior="vampprior"))
    with pytest.raises(UserError, match="for latents of up to 128 dimensions"):
        build_fitted(small("vae"), FitPriorConfig(components=1), 129)


def test_a_deterministic_posterior_has_a_fitted_prior_but_no_elbo(tmp_path):
    data = random_dataset(count=90)
    model = build("mmdvae", data, latent_dim=2, hidden_dim=4, posterior="deterministic")
    run = train(model, data, out=tmp_path / "wae", epochs=1, progress=False)
    fitted = fit_prior(run, data, components=1)
    assert read_record(fitted).elbo_fitted is None
    assert "a deterministic posterior has no ELBO" in describe(fitted)
    found = evaluate(fitted, data, metrics=("elbo",))
    assert found["elbo"] is None
    assert "no density" in found["missing"]["elbo"]
