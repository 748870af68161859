"""vaekit's densities, objectives, gradients and estimators beside the reference's, for one `Pair`.

Each function gives the largest differences by name, relative to values above 1.
"""

from unittest import mock

import numpy as np
import torch

from reference import estimators, models, objectives
from reference.pairs import BATCH, given_noise, normal
from vaekit.data.dataset import Batch
from vaekit.likelihood import annealing
from vaekit.likelihood.aggregate import measure_aggregate
from vaekit.likelihood.clusters import batch_responsibilities
from vaekit.likelihood.elbo import measure_elbo
from vaekit.likelihood.importance import ImportanceEstimate, measure_nll
from vaekit.model.build import objective_of
from vaekit.model.objectives import capacity, elbo, infovae, iwae
from vaekit.support.console import ProgressBar

SAMPLES = 3
QUIET = ProgressBar(False)


def difference(theirs, ours):
    """The largest difference, relative to values above 1; infinite where shapes differ or a value is not finite."""
    theirs = (
        theirs.detach().double().numpy() if isinstance(theirs, torch.Tensor) else np.array(theirs)
    )
    ours = np.asarray(ours)
    if theirs.shape != ours.shape or not np.isfinite(theirs).all():
        return np.inf
    return float((np.abs(theirs - ours) / np.maximum(1, np.abs(ours))).max())


def densities(pair):
    """Of log p(x | z), and of each latent's log p, log q and KL."""
    inference, run = pair.inference((SAMPLES,)), pair.run((SAMPLES,))
    found = {"log p(x|z)": difference(inference.log_likelihood, run.log_likelihood)}
    if pair.ours.deterministic:
        return found
    for name, latent in inference.latents.items():
        z, q, p = run.latents[name]
        found[f"log p({name})"] = difference(
            latent.prior.log_prob(latent.z), models.log_density(p, z)
        )
        found[f"log q({name})"] = difference(
            latent.posterior.log_prob(latent.z), models.log_density(q, z)
        )
        shape = latent.kl.shape
        found[f"KL({name})"] = difference(latent.kl, objectives.kl(z, q, p).reshape(shape))
        if len(p) == 3:
            log_r = latent.prior.log_responsibilities(latent.z)
            ours = estimators.responsibilities(z[None], p)
            found[f"p(cluster | {name})"] = difference(log_r.exp(), ours)
    found["log w"] = difference(inference.log_weight, estimators.log_weights(run))
    return found


def objectives_of(pair, default_only=False):
    """By name: vaekit's objective, the reference's function of a Pass, the weight of the KL."""
    o, found = objectives, {}
    default = objective_of(pair.theirs.blueprint)
    one_latent, gmvae = len(pair.ours.latents) == 1, "gmvae" in pair.case.model
    plain = o.gmvae if gmvae else o.elbo
    if not pair.ours.deterministic:
        found["ELBO"] = elbo(), plain, 1.0
        found["ELBO, 3 samples"] = elbo(samples=(3,)), plain, 1.0
        found["beta = 4, warm-up 0.3"] = elbo(4.0), lambda run: o.elbo(run, 4.0, 0.3), 0.3
        found["capacity 5, gamma 7"] = (
            capacity(5.0, 7.0),
            lambda run: o.capacity(run, 7.0, 5.0),
            1.0,
        )
        found["IWAE, K = 5"] = iwae(5), o.iwae, 1.0
        for nats in (2.0, 10.0):
            found[f"ELBO, {nats:g} free bits"] = (
                elbo(free_bits=nats),
                lambda run, nats=nats: o.free_bits(run, nats),
                1.0,
            )
    if gmvae:
        for i, name in enumerate(("w", "cluster"), start=1):
            weights = tuple(0.3 if j == i else 1.0 for j in range(3))
            found[f"ELBO, 0.3 of {name}"] = (
                elbo({name: 0.3}),
                lambda run, w=weights: o.gmvae(run, w),
                1.0,
            )
    if one_latent and pair.ours.prior in ("standard", "mixture"):
        variants = [
            ("rbf", False),
            ("rbf", True),
            ("reference", False),
            ("imq", False),
            ("median", False),
        ]
        for kernel, biased in variants:
            for alpha in (1.0,) if pair.ours.deterministic else (1.0, 0.25):
                settings = {"kernel": kernel, "biased": biased}
                found[f"InfoVAE {kernel}{' biased' * biased}, alpha {alpha}"] = (
                    infovae(alpha, 1000.0, **settings),
                    lambda run, a=alpha, s=settings: o.infovae(
                        run, prior_samples(pair), a, 1000.0, **s
                    ),
                    1.0,
                )
    defaults = {
        "betavae": lambda run: o.elbo(run, 4.0),
        "iwae": o.iwae,
        "infovae": lambda run: o.infovae(run, prior_samples(pair), 0.0, 1000.0),
        "mmdvae": lambda run: o.infovae(run, prior_samples(pair), 1.0, 1000.0),
    }
    found["default"] = default, defaults.get(pair.case.model, plain), 1.0
    return {"default": found["default"]} if default_only else found


def prior_samples(pair):
    """What vaekit draws from the prior for the MMD of a batch."""
    torch.manual_seed(pair.seed)
    prior = pair.theirs.prior["z"]({"x": pair.tx, "y": pair.theirs.given(pair.tx, pair.ty)["y"]})
    return prior.expand((BATCH,)).sample().double().numpy()


def objective_values(pair):
    found = {}
    for name, (theirs, ours, warmup) in objectives_of(pair).items():
        run, inference = pair.run(theirs.samples), pair.inference(theirs.samples)
        expected = ours(run)
        torch.manual_seed(pair.seed)
        found[name] = difference(theirs(inference, warmup), expected)
    return found


def gradients(pair, count=2, default_only=False):
    """Derivatives along random directions of all parameters; the reference's by complex steps."""
    found = {}
    rng = np.random.default_rng([pair.seed, 3])
    names = [name for name, _ in pair.theirs.named_parameters()]
    directions = [
        {name: rng.normal(size=pair.weights[name].shape) for name in names} for _ in range(count)
    ]
    for name, (theirs, ours, warmup) in objectives_of(pair, default_only).items():
        slope = autograd(pair, theirs, warmup)
        found[name] = max(
            difference(along(slope, v), complex_step(pair, ours, theirs.samples, v))
            for v in directions
        )
    if not (default_only or len(pair.dims) > 1 or pair.ours.deterministic):
        with_dreg = pair.ours.prior != "vampprior"
        found |= gradients_of_iwae(pair, directions[-1], with_dreg)
    return found


def gradients_of_iwae(pair, direction, with_dreg):
    """Beside the formulas of the papers for the gradient itself."""

    def at(t):
        return moved(pair, direction, t)

    expected = estimators.normalised_gradient(lambda t: pair.run((5,), at(t))).sum()
    plain = along(autograd(pair, iwae(5)), direction)
    found = {"IWAE by normalised weights": difference(plain, expected)}
    if with_dreg:
        noise = pair.noise(5)
        expected = estimators.doubly_reparameterised(at, pair.x, pair.labels, noise).sum()
        dreg = along(autograd(pair, iwae(5, "dreg")), direction)
        found["IWAE, dreg"] = difference(dreg, expected)
    return found


def autograd(pair, objective, warmup=1.0):
    """The gradient of the objective's sum over images, by name of the parameter."""
    torch.manual_seed(pair.seed)
    value = objective(pair.inference(objective.samples), warmup).sum()
    parameters = dict(pair.theirs.named_parameters())
    slopes = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
    return {k: v.numpy() for k, v in zip(parameters, slopes, strict=True) if v is not None}


def along(slope, direction):
    return sum((array * direction[name]).sum() for name, array in slope.items())


def moved(pair, direction, t):
    """The reference's model with its parameters moved by t along a direction."""
    return pair.reference({k: v + t * direction.get(k, 0) for k, v in pair.weights.items()})


def complex_step(pair, objective, samples, direction):
    run = pair.run(samples, moved(pair, direction, 1j * estimators.STEP))
    return objective(run).imag.sum() / estimators.STEP


def estimates(pair, samples=7):
    """ELBO, importance sampling and its curve, annealing, aggregate posterior, responsibilities."""
    found, model, images = {}, pair.theirs, pair.images
    if not pair.ours.deterministic:
        run = pair.run((samples,))
        log_w = estimators.log_weights(run)
        with given_noise(pair.seed), torch.no_grad():
            nll = measure_nll(model, images, samples, QUIET)
            bound = measure_elbo(model, images, samples, QUIET)
        found["NLL"] = difference(nll.log_mean, estimators.importance(log_w))
        found["effective samples"] = difference(
            nll.effective_samples, estimators.effective_samples(log_w)
        )
        found["NLL, K = 1"] = difference(nll.curve[1], log_w.mean(0))
        found["curve"] = curve_difference(pair.seed)
        kl = sum(np.mean(objectives.kl(*latent)) for latent in run.latents.values())
        found["ELBO of evaluate"] = difference(bound.elbo, run.log_likelihood.mean() - kl)
        found["KL of evaluate"] = difference(bound.kl, kl)
        found |= use_of_latents(pair, run, bound)
    found["AIS"] = annealing_difference(pair)
    return found


def curve_difference(seed):
    """The bounds for K = 1, 10 and 100 from the same 120 weights."""
    log_w = 3 * normal(seed, (120, BATCH))
    curve = ImportanceEstimate.of(torch.tensor(log_w)).curve
    worst = 0.0
    for k in (1, 10, 100):
        groups = log_w[: 120 // k * k].reshape(-1, k, BATCH)
        expected = np.mean([estimators.importance(group) for group in groups], axis=0)
        worst = max(worst, difference(curve[k], expected))
    return worst


def use_of_latents(pair, run, bound):
    found, model = {}, pair.theirs
    q_means = [q[0] for _, q, _ in run.latents.values()]
    if all(mean.ndim == 2 for mean in q_means):
        units = estimators.active_units(np.concatenate(q_means, axis=-1))
        found["active units"] = difference(bound.active_units, units)
    for name, (z, q, p) in run.latents.items():
        if len(p) == 2:
            ours = objectives.d.kl_normal(*q, *p)
            ours, lists = ours.reshape(-1, ours.shape[-1]).mean(0), bound.kl_per_dimension
            if lists is None:  # of a deep hierarchy, which has thousands of dimensions
                found[f"KL of {name}"] = difference(bound.kl_per_latent[name], ours.sum())
            else:
                found[f"KL per dimension of {name}"] = difference(lists[name], ours)
        else:
            with given_noise(pair.seed):
                theirs = batch_responsibilities(model, pair.images[:], len(z))
            found["responsibilities"] = difference(theirs, estimators.responsibilities(z, p))
    if pair.ours.prior != "conditional" and pair.ours.condition == "none":
        single = pair.run(())
        top = [single.latents[n] for n in pair.ours.top]
        z, mean, std = (
            np.concatenate(v, -1) for v in zip(*((z, *q) for z, q, _ in top), strict=True)
        )
        log_p = sum(models.log_density(p, z) for z, _, p in top)
        with given_noise(pair.seed):
            theirs = measure_aggregate(model, pair.images)
        theirs = [theirs["mutual_information"], theirs["marginal_kl"]]
        found["information and marginal KL"] = difference(
            theirs, estimators.aggregate(z, (mean, std), log_p)
        )
    return found


def annealing_difference(pair, chains=2, temperatures=4, leapfrogs=3):
    pilots, dims = annealing.PILOT_CHAINS, list(pair.dims.values())
    rng, shape = np.random.default_rng([pair.seed, 4]), (pilots + chains, BATCH)
    z = rng.normal(size=(*shape, sum(dims)))
    noise = [
        (rng.uniform(size=(*shape, 1)), rng.normal(size=z.shape), rng.uniform(size=shape))
        for _ in range(temperatures)
    ]
    order = iter([torch.tensor(array, dtype=pair.dtype) for step in noise for array in step])

    def drawn(like):
        array = next(order)
        assert array.shape == like.shape
        return array

    first = torch.tensor(z, dtype=pair.dtype)
    with (
        mock.patch("torch.rand_like", drawn),
        mock.patch("torch.randn_like", drawn),
        mock.patch.object(annealing.JointDensity, "sample", return_value=first),
    ):
        batch = Batch(pair.tx, pair.ty)
        theirs = annealing.annealed_log_weights(pair.theirs, batch, chains, temperatures, leapfrogs)
    joint = estimators.Joint(pair.ours, pair.x, pair.labels, dims)
    return difference(
        theirs, estimators.annealed(joint, z, noise, pilots, temperatures, leapfrogs)[pilots:]
    )
