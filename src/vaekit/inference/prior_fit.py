"""`fit-prior`: fit a density to the codes of the training images of a trained model, as its new prior.

A second stage after the training (Dai and Wipf 2019; Ghosh et al. 2020): maximises E[log p(z)] over z ~ q(z | x), which
is all of the ELBO that depends on the prior. Derivation and tests: docs/maths/fitted-priors.md.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from ..data import Dataset, EvalSplit, Split, pixels
from ..data.dataset import ResolvedBinarisation
from ..likelihood.latent_use import batch_size
from ..likelihood.validation import validate
from ..model.graph import VAE
from ..model.objectives import elbo
from ..model.priors import FullMixture, LearnedMixture, VampPrior
from ..runs.data import load_run_data, run_images
from ..runs.directory import Run
from ..runs.fitted_prior import (
    build_fitted,
    check_fittable,
    first_latent,
    read_record,
    save_fitted_prior,
)
from ..runs.load import load_trained
from ..runs.schema import FittedPriorRecord
from ..settings.analysis import FitPriorConfig
from ..support.console import ProgressBar
from ..support.devices import fast_float32, resolve_device, seeded
from ..support.errors import UserError, require, with_changes

MIN_IMAGES = 10
DEFAULT_COMPONENTS = {"learned-mixture": 100, "vampprior": 500}
LEARNING_RATES = {"learned-mixture": 1e-2, "vampprior": 5e-2, "flow": 1e-3}
MAX_COMPONENTS = 128  # of those that are tried for a gmm
MIN_CODES = 5000  # per epoch and for validation: several of an image where there are fewer images
MAX_EM_CODES = 20_000
EM_STEPS = 200
REGULARISATION = 1e-6  # added to variances by expectation-maximisation
CHUNK = 1000  # codes whose density is computed at once


class CodeSampler:
    """Samples z ~ q(z | x) of a latent for all images of a split, new ones at each call: (N, D), on the model's device.

    With dynamic binarisation new bits are drawn too; otherwise Gaussian posteriors are computed once.
    """

    def __init__(
        self, model: VAE, images: Split | EvalSplit, binarisation: ResolvedBinarisation
    ) -> None:
        self.model, self.images, self.binarisation = model, images, binarisation
        self.latent = first_latent(model)
        self.known: tuple[Tensor, Tensor] | None = None
        self.draws = math.ceil(MIN_CODES / len(images))

    @torch.no_grad()
    def __call__(self) -> Tensor:
        return torch.cat([self.sample() for _ in range(self.draws)])

    def sample(self) -> Tensor:
        if self.known is not None:
            return torch.normal(*self.known)
        codes, posteriors = [], []
        device, size = next(self.model.parameters()).device, batch_size(self.model)
        for start in range(0, len(self.images), size):
            batch = self.images[start : start + size]
            x = pixels(batch.images.to(device), self.binarisation)
            y = None if batch.labels is None else batch.labels.to(device)
            q = self.model.posterior[self.latent](self.model.given(x, y))
            codes.append(q.sample())
            if isinstance(q, Independent) and isinstance(q.base_dist, Normal):
                posteriors.append((q.base_dist.loc, q.base_dist.scale))
        if posteriors and self.binarisation != "dynamic":
            locs, scales = zip(*posteriors, strict=True)
            self.known = torch.cat(locs), torch.cat(scales)
        return torch.cat(codes)


def fit_prior(
    run: Run | str | Path,
    data: Dataset | None = None,
    data_dir: str | Path | None = None,
    progress: bool = False,
    **settings: object,
) -> Run:
    """Fit a prior to the codes of a run's training images, keep it in the run, in place of an earlier one, and return
    the run with it: for `load`, `evaluate`, `draw` and all that take a run.

    `settings` are the fields of FitPriorConfig. `data` replaces loading the run's data set by its name. The codes are
    samples of the posterior of the first latent, z or the top one; the density with the highest mean log-density of
    validation codes is kept. Raises UserError for a missing or damaged run, another data set, bad settings, too few
    images, and a model without a prior to replace.
    """
    config = with_changes(FitPriorConfig(), settings, "fit_prior()")
    run, device, bar = Run.of(run), resolve_device(config.device), ProgressBar(progress)
    run = Run(run.path, run.weights)
    trained = load_trained(run)
    model = trained.model.to(device).requires_grad_(False)
    check_fittable(model, config)
    data = load_run_data(run, data, data_dir)
    config = resolve_settings(config, len(data.train))
    validation = run_images(run, data, "validation").to(device)
    codes = CodeSampler(model, data.train, run.data.binarisation)
    with seeded(config.seed, device), fast_float32(device):
        valid = CodeSampler(model, validation, "none")()
        require(bool(valid.isfinite().all()), f"the codes of {run} are not finite; train again")
        if config.prior == "gmm":
            prior, config = fit_mixture(model, config, codes, valid, bar)
        else:
            prior = build_fitted(model, config, valid.shape[1]).to(device)
            initialise(prior, config, data.train, codes)
            fit_by_gradient(prior, config, codes, valid, bar)
        before = mean_log_density(model.prior[codes.latent], valid)
        after = mean_log_density(prior, valid)
        # The decoder is the same: the ELBOs differ by the means of log p(z).
        objective, has_density = elbo(), model.blueprint.settings.posterior != "deterministic"
        bound = validate(model, objective, validation)[0] if has_density else None
    record = FittedPriorRecord(
        weights=trained.sha256,
        latent=codes.latent,
        dim=valid.shape[1],
        settings=asdict(config),
        images=len(data.train),
        validation_images=len(validation),
        elbo_trained=bound,
        elbo_fitted=None if bound is None else bound + after - before,
        log_density_trained=before,
        log_density_fitted=after,
    )
    if run.fitted_prior_path.exists():
        bar.log(f"replaces the fitted prior of {run}: {name_of_earlier(run)}")
    save_fitted_prior(run, prior, record)
    return Run(run.path, run.weights, "fitted")


def resolve_settings(config: FitPriorConfig, images: int) -> FitPriorConfig:
    """The settings with their defaults, but for the components of a gmm. Raises UserError for too few images."""
    require(
        images >= MIN_IMAGES,
        f"there are {images} training images; a prior can be fitted to the codes of {MIN_IMAGES} or more",
    )
    require(
        (config.components or 1) <= images,
        f"--components is {config.components}, but there are {images:,} training images; choose fewer",
    )
    components, default = config.components, DEFAULT_COMPONENTS.get(config.prior)
    if components is None and default is not None:
        components = min(default, images)
    rate = config.learning_rate or LEARNING_RATES.get(config.prior)
    return replace(config, components=components, learning_rate=rate)


def fit_mixture(
    model: VAE, config: FitPriorConfig, codes: CodeSampler, valid: Tensor, bar: ProgressBar
) -> tuple[nn.Module, FitPriorConfig]:
    """A mixture of Gaussians with full covariances, and the settings with the number of its components: 1, 2, 4 ...,
    the last before the validation codes have a lower mean log-density."""
    dim, best, highest = valid.shape[1], None, -math.inf
    build_fitted(model, config, dim)  # or raises UserError, at once
    z = codes()
    z = z[torch.randperm(len(z), device=z.device)[:MAX_EM_CODES]]
    tried = [2**i for i in range(MAX_COMPONENTS.bit_length()) if 2**i <= len(codes.images) // 2]
    counts: Iterable[int] = [config.components] if config.components else tried
    for count in bar.track(counts, "gmm"):
        resolved = replace(config, components=count)
        prior = expectation_maximisation(z, count, config.seed).to(z.device)
        density = mean_log_density(prior, valid)
        if density <= highest:
            break
        best, highest = (prior, resolved), density
        bar.log(f"gmm, {count} components: mean log p(z) of validation codes {density:.2f}")
    if best is None:
        raise UserError("no mixture fits the codes; choose fewer --components")
    return best


def expectation_maximisation(z: Tensor, components: int, seed: int) -> FullMixture:
    """scikit-learn's mixture of Gaussians with full covariances, fitted to codes z (N, D)."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the last step is as good as any
        mixture = GaussianMixture(
            components, max_iter=EM_STEPS, reg_covar=REGULARISATION, random_state=seed % 2**32
        ).fit(z.cpu().double().numpy())
    prior = FullMixture(components, z.shape[1])
    with torch.no_grad():
        prior.loc.copy_(torch.from_numpy(mixture.means_))
        prior.tril.copy_(torch.linalg.cholesky(torch.from_numpy(mixture.covariances_)))
        prior.logits.copy_(torch.from_numpy(mixture.weights_).log())
    return prior


@torch.no_grad()
def initialise(prior: nn.Module, config: FitPriorConfig, images: Split, codes: CodeSampler) -> None:
    """Start the components from random training images, or from their codes."""
    if isinstance(prior, VampPrior):
        rows = torch.randperm(len(images))[: config.components]
        prior.init_from_images(pixels(images[rows].images.to(prior.logits.device), "none"))
    elif isinstance(prior, LearnedMixture):
        z = codes()
        prior.loc.copy_(z[torch.randperm(len(codes.images))[: config.components]])
        prior.log_scale.copy_(z.std(0).clamp(min=1e-3).log().expand_as(prior.log_scale))


def fit_by_gradient(
    prior: nn.Module, config: FitPriorConfig, codes: CodeSampler, valid: Tensor, bar: ProgressBar
) -> None:
    """Maximise the mean log-density of new codes at each epoch, by Adam. Keeps the weights of the epoch with the
    highest mean log-density of validation codes, and stops after `patience` epochs without a higher one."""
    assert config.learning_rate is not None
    optimiser = torch.optim.Adam(prior.parameters(), config.learning_rate)
    highest, best, best_epoch = mean_log_density(prior, valid), copy.deepcopy(prior.state_dict()), 0
    for epoch in bar.track(range(1, config.epochs + 1), config.prior):
        for z in batches(codes()):
            optimiser.zero_grad()
            (-prior({}).log_prob(z).mean()).backward()
            optimiser.step()
        density = mean_log_density(prior, valid)
        if density > highest:
            highest, best, best_epoch = density, copy.deepcopy(prior.state_dict()), epoch
        if not math.isfinite(density) or epoch - best_epoch >= config.patience:
            break
    prior.load_state_dict(best)
    require(
        math.isfinite(highest) and (math.isfinite(density) or best_epoch > 0),
        "the density is not finite after the first epoch; choose a smaller --learning-rate",
    )
    bar.log(
        f"{config.prior}: mean log p(z) of validation codes {highest:.2f} after epoch {best_epoch} of {epoch}"
    )


def batches(z: Tensor) -> Iterator[Tensor]:
    """The codes in random order, in about a hundred batches of 50 to 500."""
    size = max(50, min(500, len(z) // 100))
    yield from z[torch.randperm(len(z), device=z.device)].split(size)


@torch.no_grad()
def mean_log_density(prior: nn.Module, z: Tensor) -> float:
    """Mean of log p(z) over codes z (N, D), nats."""
    p = prior({"x": None, "y": None})
    return float(torch.cat([p.log_prob(part) for part in z.split(CHUNK)]).double().mean())


def name_of_earlier(run: Run) -> str:
    try:
        return read_record(run).name
    except UserError:
        return "a damaged file"


def describe(run: Run) -> str:
    """What the fitted prior of a run is, and by how much it fits better, in one line."""
    record = read_record(run)
    text = f"{record.name}, fitted to {record.latent} of {record.images:,} training images; "
    if record.elbo_trained is None or record.elbo_fitted is None:
        return text + (
            f"mean log p(z) of validation codes: {record.log_density_trained:.2f} under the trained prior, "
            f"{record.log_density_fitted:.2f} under this one, nats (a deterministic posterior has no ELBO)"
        )
    if record.log_density_fitted <= record.log_density_trained:
        text += "it fits no better than the trained prior: try more --epochs, or another --prior; "
    return text + (
        f"validation ELBO: {record.elbo_trained:.2f} with the trained prior, {record.elbo_fitted:.2f} with this one, "
        "nats: the bound of a new model, since a new prior is a new model"
    )
