"""Images of any number of channels are shown as the bands that the title names."""

import numpy as np
import pytest
import torch

from vaekit import UserError
from vaekit.pictures import choose_bands, cluster_bars, contact_sheet, image_grid, pairs
from vaekit.settings.analysis import PlotConfig, parse_bands


def images(channels, count=6):
    return torch.rand(count, channels, 4, 5, generator=torch.Generator().manual_seed(channels))


def drawn(figure):
    return figure.axes[0].get_images()[0].get_array()


def title(figure):
    return "".join(text.get_text() for text in figure.texts)


@pytest.mark.parametrize(
    ("channels", "chosen", "colours", "text"),
    [
        (12, (3, 2, 1), (2, 1, 0), "bands 3, 2, 1 of 12 as red, green, blue"),
        (12, (12,), (11,), "band 12 of 12 as grey"),
        (12, (5, 2), (4, 1, 4), "bands 5, 2 of 12 as magenta, green"),
        (2, (), (0, 1, 0), "bands 1, 2 of 2 as magenta, green"),
        (2, (2,), (1,), "band 2 of 2 as grey"),
        (4, (4, 1, 2), (3, 0, 1), "bands 4, 1, 2 of 4 as red, green, blue"),
        (3, (3, 2, 1), (2, 1, 0), "bands 3, 2, 1 of 3 as red, green, blue"),
        (3, (), (0, 1, 2), ""),
        (1, (), (0,), ""),
        (1, (1,), (0,), "band 1 of 1 as grey"),
    ],
)
def test_each_band_lands_in_its_colour_unchanged(channels, chosen, colours, text):
    x = images(channels)
    bands = choose_bands(x, chosen)
    assert torch.equal(bands(x), x[:, list(colours)])
    assert bands.text == text


@pytest.mark.parametrize("chosen", [(0,), (13, 1, 2), (1, 2, 3, 4)])
def test_bands_that_the_images_do_not_have_are_refused(chosen):
    with pytest.raises(UserError, match="the images have 12 bands, counted from 1"):
        choose_bands(images(12), chosen)


@pytest.mark.parametrize("text", ["", "0", "1,1", "3,2,1,4", "a", "1,", "-1", "1.5", "²", "9" * 30])
def test_bands_that_are_no_bands_are_refused_before_anything_is_loaded(text):
    with pytest.raises(UserError, match="one to three different bands, counted from 1"):
        PlotConfig(bands=text)


def test_bands_are_read_with_spaces():
    assert parse_bands("3, 2,1") == (3, 2, 1)
    assert parse_bands(None) == ()


@pytest.mark.parametrize("channels", [4, 12, 64])
def test_principal_components_are_those_of_the_pixels_from_their_1st_to_their_99th_percentile(
    channels,
):
    x = images(channels, 40)
    pixels = x.permute(0, 2, 3, 1).reshape(-1, channels).double().numpy()
    _, _, axes = np.linalg.svd(pixels - pixels.mean(0), full_matrices=False)
    axes = axes[:3] * np.sign(axes[range(3), np.abs(axes[:3]).argmax(1)])[:, None]
    components = pixels @ axes.T
    low, high = np.quantile(components, [0.01, 0.99], axis=0)
    expected = np.clip((components - low) / (high - low), 0, 1).reshape(40, 4, 5, 3)
    bands = choose_bands(x)
    assert np.allclose(bands(x).permute(0, 2, 3, 1), expected, atol=1e-5)
    assert torch.equal(choose_bands(x).weights, bands.weights)
    assert bands.text == f"principal components 1, 2, 3 of {channels} bands as red, green, blue"


def test_components_without_variance_are_not_noise():
    same = images(1).expand(-1, 5, -1, -1)
    red, green, blue = choose_bands(same)(same).unbind(1)
    assert red.std() > 0.2
    assert torch.allclose(green, torch.tensor(0.5), atol=1e-3)
    assert torch.allclose(blue, torch.tensor(0.5), atol=1e-3)
    constant = torch.full((2, 7, 3, 3), 0.3)
    assert torch.equal(choose_bands(constant)(constant), torch.full((2, 3, 3, 3), 0.5))


def test_pictures_show_the_bands_and_name_them():
    x = images(12)
    bands = choose_bands(x, (3, 2, 1))
    grid = image_grid(x, 3, title="samples", bands=bands)
    assert np.array_equal(drawn(grid)[:4, :5], x[0, [2, 1, 0]].permute(1, 2, 0))
    assert title(grid) == "samples; bands 3, 2, 1 of 12 as red, green, blue"
    inverted = image_grid(x, 3, bands=bands, invert=True)
    assert np.allclose(drawn(inverted)[:4, :5], 1 - x[0, [2, 1, 0]].permute(1, 2, 0))
    sheet = contact_sheet(x, ["a"] * 6, bands=bands)
    assert np.array_equal(drawn(sheet), x[0, [2, 1, 0]].permute(1, 2, 0))
    assert sheet.get_suptitle() == bands.text
    bars = cluster_bars(x, 1 - x, np.full((6, 2), 0.5), "clusters", bands)
    assert np.array_equal(drawn(bars), x[0, [2, 1, 0]].permute(1, 2, 0))
    assert bars.get_suptitle() == f"clusters; {bands.text}"


@pytest.mark.parametrize("channels", [2, 4, 12])
def test_places_without_an_image_are_white_whatever_the_bands(channels):
    x = images(channels, 3)
    figure = pairs(x, x, columns=2)
    pixels = drawn(figure)
    assert pixels.shape[:2] == (4 * 4 + 3 * 2 + 4, 2 * 5 + 2 + 4)
    assert (pixels[14:18, 9:14] == 1).all()
    assert (pixels[20:24, 9:14] == 1).all()
    assert np.array_equal(pixels[14:18, 2:7], choose_bands(x)(x)[2].permute(1, 2, 0))
