"""Likelihoods and codes of a deep hierarchy, whose priors and decoder share the path from latent to latent."""

import json
import math

import pytest
import torch

from conftest import random_dataset, small_settings
from vaekit import build
from vaekit.data import eval_split
from vaekit.likelihood import importance, validation
from vaekit.likelihood.annealing import JointDensity
from vaekit.likelihood.elbo import measure_elbo
from vaekit.likelihood.importance import log_weights, measure_nll, prepare_for_inference
from vaekit.likelihood.latent_use import (
    batch_size,
    code_latents,
    code_posteriors,
    measure_latent_use,
    metrics_record,
)
from vaekit.model.build import numbers_per_image
from vaekit.model.objectives import elbo
from vaekit.support.console import ProgressBar

QUIET = ProgressBar(False)


def split(count=5, shape=(1, 8, 8)):
    images = eval_split(random_dataset(shape=shape).test, "threshold")
    return images.take(torch.arange(count))


@pytest.fixture
def model():
    torch.manual_seed(0)
    settings = small_settings("deepvae", groups="1x2:2 2x1:1")
    model = build("deepvae", (1, 8, 8), **settings).eval()
    for parameter in model.parameters():  # far from the start, where all is nearly zero
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model


@torch.no_grad()
def test_blocks_of_the_nll_have_the_weights_of_their_latents(model, monkeypatch):
    """All blocks give finite weights that are those of one pass with the same latents: the path that is kept in the
    values of one block must not be that of another."""
    images, seen, real = split(), [], type(model).infer

    def infer(self, values, shape):
        latents = real(self, values, shape)
        seen.append({name: latent.z for name, latent in latents.items()})
        return latents

    monkeypatch.setattr(type(model), "infer", infer)
    monkeypatch.setattr(importance, "block_rows", lambda *_: (4, 4))
    weights = torch.cat([w for w, _ in log_weights(model, images, 7, QUIET, "1GB")], dim=1)
    assert weights.shape == (7, 5)
    assert len(seen) > 5
    blocks, column = iter(seen), 0
    while column < len(images):
        row = 0
        while row < 7:
            z = next(blocks)
            count, width = next(iter(z.values())).shape[:2]
            batch = images[column : column + width]
            values, expected = {"x": batch.images, "y": None}, 0.0
            for name, latent in z.items():
                q, p = model.posterior[name](values), model.prior[name](values)
                expected = expected + p.log_prob(latent) - q.log_prob(latent)
                values[name] = latent
            fresh = {"x": batch.images, "y": None, **z}
            expected = expected + model.decoder(fresh).log_prob(batch.images)
            found = weights[row : row + count, column : column + width].float()
            assert torch.allclose(found, expected, atol=1e-4)
            row += count
        column += width


@torch.no_grad()
def test_an_image_is_encoded_once_for_all_blocks(model, monkeypatch):
    encoded, ladder = [], model.decoder.ladder
    real = ladder.encode
    monkeypatch.setattr(ladder, "encode", lambda x, y: encoded.append(len(x)) or real(x, y))
    monkeypatch.setattr(importance, "block_rows", lambda *_: (2, 2))
    for _ in log_weights(model, split(3), 8, QUIET, "1GB"):
        pass
    assert encoded == [1, 1, 1]


@torch.no_grad()
def test_the_path_is_walked_once_for_latents_and_pixels(model, monkeypatch):
    """Of blocks that fit: each group's step from the one above is taken once for posterior, prior and decoder."""
    steps, ladder = [], model.decoder.ladder
    real = ladder.after
    monkeypatch.setattr(ladder, "after", lambda *a: steps.append(1) or real(*a))
    monkeypatch.setattr(importance, "block_rows", lambda *_: (100, 100))
    for _ in log_weights(model, split(3), 4, QUIET, "1GB"):
        pass
    assert len(steps) == len(model.prior)


def test_bfloat16_computes_the_path_in_bfloat16_and_densities_in_float32(model):
    """The weights of one draw, so that the control is the rounding of the networks alone."""
    images, results = split(4), {}
    dtypes = set()
    layer = next(m for m in model.modules() if isinstance(m, torch.nn.Conv2d))
    for precision in ("float32", "bfloat16"):
        handle = layer.register_forward_hook(lambda *a: dtypes.add(a[2].dtype))
        torch.manual_seed(0)
        estimate = measure_nll(model, images, 20, QUIET, precision=precision)
        handle.remove()
        results[precision] = estimate.log_mean
    assert dtypes == {torch.float32, torch.bfloat16}
    difference = (results["float32"] - results["bfloat16"]).abs().max()
    assert 0 < difference < 0.5
    inference = prepare_for_inference(model, "bfloat16")(images[:].images)
    assert inference.log_weight.dtype == torch.float32


def test_gradients_of_annealing_are_those_of_the_joint_density(model):
    model.double()
    batch = split(2)[:]
    batch = type(batch)(batch.images.double(), None)
    joint = JointDensity(model, batch)
    z = joint.sample(3)
    state = joint.evaluate(z)
    step = 1e-5 * torch.randn_like(z)
    up, down = joint.evaluate(z + step), joint.evaluate(z - step)
    for part, gradient in (("log_prior", "prior"), ("log_likelihood", "likelihood")):
        rise = getattr(up, part) - getattr(down, part)
        expected = 2 * (getattr(state, f"{gradient}_gradient") * step).sum(-1)
        assert torch.allclose(rise, expected, rtol=1e-4, atol=1e-12)


def test_validation_takes_as_many_images_as_its_feature_maps_allow(model, monkeypatch):
    sizes, path = [], model.blueprint.settings.path_numbers((1, 8, 8))
    monkeypatch.setattr(validation, "MAX_NUMBERS", 2 * validation.PATH_MAPS * path)
    model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    validation.validate(model, elbo(), split(5))
    assert path == 4 * 8 * 8
    assert sizes == [2, 2, 1]


def test_kl_and_active_units_are_listed_by_latent(model):
    images = split(6)
    use, estimate = measure_latent_use(model, images), measure_elbo(model, images, 20, QUIET)
    for found in (use, estimate):
        assert found.kl_per_dimension is None
        assert [*found.kl_per_latent] == [*found.active_per_latent] == [*model.prior]
        assert sum(found.active_per_latent.values()) == found.active_units
    assert sum(estimate.kl_per_latent.values()) == pytest.approx(estimate.kl, rel=1e-4)
    line = json.dumps(metrics_record(use, []))
    assert "kl_per_latent" in line
    assert "kl_per_latent" not in metrics_record(
        measure_latent_use(build("vae", (1, 8, 8)), images), []
    )


@torch.no_grad()
def test_codes_are_the_first_groups_up_to_a_size(model, monkeypatch):
    assert code_latents(model) == ["z1_0", "z1_1", "z2_0"]
    monkeypatch.setattr("vaekit.settings.model.MAX_CODE", 3)
    assert code_latents(model) == ["z1_0"]  # never none, even where it is too large
    monkeypatch.setattr("vaekit.settings.model.MAX_CODE", 1)
    assert code_latents(model) == ["z1_0"]
    values = model.given(split(3)[:].images, None)
    assert [*code_posteriors(model, values)] == ["z1_0"]
    assert "z1_1" not in values  # the groups below were not computed


@pytest.mark.parametrize(("side", "channels"), [(32, 48), (64, 64)])
def test_images_at_once_follow_from_the_largest_feature_map(side, channels):
    model = build("deepvae", (3, side, side), channels=channels)
    largest = []
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda m, i, o: largest.append(o.numel()))
    with torch.no_grad():
        model(torch.rand(1, 3, side, side))
    assert max(largest) <= numbers_per_image(model.blueprint) <= 2 * max(largest)
    assert batch_size(model) * numbers_per_image(model.blueprint) <= 2**20
    assert math.prod(model.blueprint.shape) < numbers_per_image(model.blueprint)
