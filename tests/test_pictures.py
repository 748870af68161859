"""Pictures: the arrays that are drawn. No display is needed."""

import numpy as np
import pytest
import torch

from vaekit import UserError
from vaekit.generation import decode_point, generate, reconstruct
from vaekit.models import load
from vaekit.pictures import curves, image_grid, pairs, save
from vaekit.pictures.grids import GAP


def canvas(figure):
    return figure.axes[0].images[0].get_array()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_draws_each_image_in_its_place(channels):
    images = torch.rand(5, channels, 4, 6)
    drawn = canvas(image_grid(images, columns=3))
    assert drawn.shape == (2 * 4 + GAP, 3 * 6 + 2 * GAP, 3)
    for i, image in enumerate(images):
        top, left = i // 3 * (4 + GAP), i % 3 * (6 + GAP)
        found = np.moveaxis(drawn[top : top + 4, left : left + 6], -1, 0)
        assert np.allclose(found, image.expand(3, 4, 6), atol=1e-7)
    assert (drawn[4 + GAP :, 2 * (6 + GAP) :] == 1).all()  # the place of a sixth is empty


def test_pairs_stand_one_above_the_other():
    inputs, outputs = torch.zeros(3, 1, 4, 4), torch.full((3, 1, 4, 4), 0.5)
    figure = pairs(inputs, outputs, columns=2)
    drawn = canvas(figure)
    rows = [drawn[row * (4 + GAP), 0, 0] for row in range(4)]
    assert rows == [0, 0.5, 0, 0.5]
    assert [text.get_text() for text in figure.axes[0].texts] == ["input", "reconstruction"] * 2


def test_curves_draw_the_metrics():
    keys = ["train_elbo", "validation_elbo", "train_log_likelihood", "validation_log_likelihood"]
    metrics = [
        {"epoch": n, "kl": n, "validation_kl": 2 * n, **dict.fromkeys(keys, -n)} for n in (1, 2, 3)
    ]
    figure = curves(metrics)
    assert len(figure.axes) == 3
    lines = figure.axes[2].lines
    assert list(lines[0].get_ydata()) == [1, 2, 3]
    assert list(lines[1].get_ydata()) == [2, 4, 6]


def test_an_unknown_kind_of_picture_is_named(tmp_path):
    figure = image_grid(torch.rand(1, 1, 4, 4), 1)
    for name in ("a.png", "a.pdf", "a.svg"):
        assert save(figure, tmp_path / name).stat().st_size > 0
    with pytest.raises(UserError, match=r"cannot write .*a\.xyz"):
        save(figure, tmp_path / "a.xyz")
    (tmp_path / "folder.png").mkdir()
    for name in ("noext", "folder.png"):
        with pytest.raises(UserError, match="name a file such as"):
            save(figure, tmp_path / name)
    with pytest.raises(UserError, match="its folder does not exist"):
        save(figure, tmp_path / "nowhere" / "a.png")


def test_generated_images_come_from_the_prior_and_the_seed(small_run):
    model = load(small_run)
    torch.manual_seed(7)
    first = generate(model, count=3, seed=1)
    assert torch.equal(first, generate(model, count=3, seed=1))
    assert not torch.equal(first, generate(model, count=3, seed=2))
    cold = generate(model, count=2, temperature=0.0)
    assert torch.allclose(cold[0], decode_point(model, "0,0,0")[0], atol=1e-6)
    for bad in ("--count is 0", 0), ("--temperature is nan", float("nan")):
        with pytest.raises(UserError, match=bad[0]):
            generate(model, **({"count": 0} if bad[1] == 0 else {"temperature": bad[1]}))


def test_a_point_is_decoded(small_run):
    model = load(small_run)
    image = decode_point(model, "0.5,-1,2e-1")
    with torch.no_grad():
        expected = torch.sigmoid(model.decoder.network(torch.tensor([[0.5, -1.0, 0.2]])))
    assert torch.allclose(image, expected)
    for text, said in [("1,2", "has 2 numbers"), ("1,x,3", "no list"), ("1,nan,3", "finite")]:
        with pytest.raises(UserError, match=said):
            decode_point(model, text)


def test_reconstructions_are_decoded_posterior_means(small_run):
    model, x = load(small_run), torch.rand(2, 1, 28, 28)
    with torch.no_grad():
        mean = model.posterior["z"]({"x": x, "y": None}).mean
        expected = torch.sigmoid(model.decoder.network(mean))
    assert torch.allclose(reconstruct(model, x), expected)
