"""Augmentation: each draw against torch's own operation, the distribution of the draws, and where it applies.

The chi-square tests have fixed seeds; with another seed chance would fail each of them once in 10,000 times.
"""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import chi2

from conftest import random_dataset
from vaekit import Run, UserError, build, load, train
from vaekit.data import eval_split, pixels
from vaekit.data.augment import Draws, augment, augmentation_of, change_colours, draw, transform
from vaekit.inference.picture_data import load_or_create
from vaekit.likelihood.validation import validate
from vaekit.model.objectives import elbo
from vaekit.pictures.charts import comparison, curves, samples_seen
from vaekit.runs.load import load_trained
from vaekit.settings.augment import Augmentation, parse_augmentation
from vaekit.settings.data import ValueRange
from vaekit.settings.training import TrainConfig
from vaekit.support import distributed
from vaekit.training.learner import Learner
from vaekit.training.step import Loss

CPU = torch.device("cpu")
EVERY_MOVE = "hflip,vflip,rotate90,shift=2,crop=3"
MOVES = ("hflip", "vflip", "shift=3", "crop=2", "shift=1,crop=1", "hflip,vflip,shift=2,crop=3")
COLOUR = "brightness=0.5,contrast=0.8,saturation=1"


def images(shape, dtype, count=50):
    """Images of noise (count, *shape)."""
    levels = torch.randint(256, (count, *shape), generator=torch.Generator().manual_seed(3))
    return levels.to(torch.uint8) if dtype == torch.uint8 else levels.float() / 255


def drawn(text, count, seed=0):
    return draw(parse_augmentation(text), count, CPU, torch.Generator().manual_seed(seed))


def padded(image, down, right, mode):
    """An image moved down and to the right, by padding it all around and cutting a window of its size out."""
    height, width = image.shape[-2:]
    reach = max(abs(down), abs(right))
    whole = F.pad(image[None].double(), (reach,) * 4, mode=mode)[0]
    return whole[:, reach - down : reach - down + height, reach - right : reach - right + width]


def moved_by_torch(image, draws, i):
    """What the i-th draw does to an image, by torch's own operations on the one image."""
    x = image.double()
    if draws.shift is not None:
        x = padded(x, *draws.shift[:, i].tolist(), "replicate")
    if draws.crop is not None:
        x = padded(x, *(-draws.crop[:, i]).tolist(), "reflect")
    if draws.hflip is not None and draws.hflip[i]:
        x = x.flip(-1)
    if draws.vflip is not None and draws.vflip[i]:
        x = x.flip(-2)
    return x if draws.quarter_turns is None else torch.rot90(x, int(draws.quarter_turns[i]), (1, 2))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize(
    ("text", "shape"),
    [
        *((text, (1, 7, 5)) for text in MOVES),
        *(("rotate90", (channels, 6, 6)) for channels in (1, 2, 3)),
        *((EVERY_MOVE, (channels, 9, 9)) for channels in (1, 4, 64)),
        ("shift=4,crop=4", (3, 5, 8)),
    ],
)
def test_every_image_is_moved_as_torch_moves_it(text, shape, dtype):
    x, draws = images(shape, dtype), drawn(text, 50)
    moved = transform(x, draws)
    assert moved.dtype == dtype
    assert moved.shape == x.shape
    assert moved.is_contiguous()
    for i, image in enumerate(moved):
        assert torch.equal(image.double(), moved_by_torch(x[i], draws, i)), i


def test_images_in_channels_last_are_moved_the_same():
    x, draws = images((3, 6, 6), torch.float32), drawn(EVERY_MOVE, 50)
    assert torch.equal(
        transform(x.contiguous(memory_format=torch.channels_last), draws), transform(x, draws)
    )


def assert_uniform(values, outcomes):
    """Fails where a chi-square test of equal frequencies rejects at 1e-4."""
    counts = torch.bincount(values, minlength=outcomes).double()
    assert len(counts) == outcomes
    expected = len(values) / outcomes
    assert float(((counts - expected) ** 2 / expected).sum()) < chi2.ppf(1 - 1e-4, outcomes - 1)


def test_every_outcome_is_equally_likely():
    """Also jointly: the rows and columns of a shift, and two neighbouring images of a batch."""
    draws = drawn(EVERY_MOVE, 20_000)
    down, right = draws.shift + 2
    assert_uniform(5 * down + right, 25)
    row, column = draws.crop + 3
    assert_uniform(7 * row + column, 49)
    assert_uniform(draws.quarter_turns, 4)
    assert_uniform(draws.hflip + 2 * draws.vflip, 4)
    assert_uniform(draws.hflip + 2 * draws.hflip.roll(1), 4)
    assert_uniform(draws.hflip + 2 * draws.quarter_turns + 8 * down, 40)


def test_the_factors_of_colours_are_uniform_around_one():
    draws = drawn(COLOUR, 20_000)
    for factor, strength in (
        (draws.brightness, 0.5),
        (draws.contrast, 0.8),
        (draws.saturation, 1.0),
    ):
        share = (factor.double() - (1 - strength)) / (2 * strength)
        assert 0 <= share.min() < 0.001
        assert 0.999 < share.max() <= 1
        assert_uniform((share * 20).long().clamp(max=19), 20)


def coloured_in_float64(x, draws):
    """Brightness, contrast and saturation of images x in [0, 1], by the formulas, in float64."""
    x = x.double()
    weights = [0.299, 0.587, 0.114] if x.shape[1] == 3 else [1 / x.shape[1]] * x.shape[1]
    grey = lambda x: torch.einsum("bchw,c->bhw", x, torch.tensor(weights).double())[:, None]  # noqa: E731
    f, g, h = (
        None if f is None else f.double()[:, None, None, None]
        for f in (draws.brightness, draws.contrast, draws.saturation)
    )
    x = x if f is None else (f * x).clamp(0, 1)
    x = x if g is None else (g * x + (1 - g) * grey(x).mean((2, 3), keepdim=True)).clamp(0, 1)
    return x if h is None else (h * x + (1 - h) * grey(x)).clamp(0, 1)


COLOUR_CASES = [
    *((COLOUR, 3), ("saturation=0.5", 3), ("brightness=1", 3), ("contrast=1", 3)),
    *(("brightness=0.5,contrast=0.8", channels) for channels in (1, 2, 12)),
]


@pytest.mark.parametrize(("text", "channels"), COLOUR_CASES)
def test_colours_are_those_of_the_formulas_in_float64(text, channels):
    x, draws = images((channels, 6, 5), torch.float32), drawn(text, 50)
    expected = coloured_in_float64(x, draws)
    assert (change_colours(x, draws) - expected).abs().max() < 1e-6
    # On a grid: the nearest level.
    eight_bits = change_colours((x * 255).round().to(torch.uint8), draws)
    assert eight_bits.dtype == torch.uint8
    assert (eight_bits.double() - expected * 255).abs().max() < 0.5 + 1e-4
    twelve_bits = change_colours(x, draws, 4096)
    assert (twelve_bits - expected).abs().max() < (0.5 + 1e-3) / 4095
    assert torch.equal(twelve_bits, (twelve_bits.double() * 4095).round().float() / 4095)
    assert len(twelve_bits.unique()) > 300


def test_brightness_of_one_draw_by_hand():
    x = torch.tensor([10, 100, 250], dtype=torch.uint8).view(1, 1, 1, 3)
    assert transform(x, Draws(brightness=torch.tensor([1.15]))).flatten().tolist() == [12, 115, 255]
    assert transform(x, Draws(contrast=torch.tensor([0.5]))).flatten().tolist() == [65, 110, 185]


def test_a_factor_of_one_changes_nothing():
    x, one = images((3, 6, 5), torch.uint8), torch.ones(50)
    assert torch.equal(transform(x, Draws(brightness=one, contrast=one, saturation=one)), x)


def test_bits_stay_bits_and_levels_stay_levels():
    data = random_dataset(shape=(1, 9, 9))
    torch.manual_seed(0)
    moved = augment(data.train.images, parse_augmentation(EVERY_MOVE))
    assert set(moved.unique().tolist()) == {0, 255}
    assert set(pixels(moved, "dynamic").unique().tolist()) == {0, 1}
    assert torch.equal(pixels(moved, "dynamic"), moved.float() / 255)


@pytest.mark.parametrize(
    ("kind", "value_range", "levels"),
    [
        ("grey", ValueRange(), 256),
        ("float", ValueRange(0, 4095, 4096, "uint16"), 4096),
        ("float", ValueRange(-1.5, 2, None, "float32"), None),
        ("float", ValueRange(), None),  # made without a range
    ],
)
def test_colours_stay_on_the_levels_of_the_data_set(kind, value_range, levels):
    data = random_dataset((3, 8, 8), kind)
    if levels:
        steps = levels - 1
        images = data.train.images
        images = images if kind == "grey" else (images * steps).round() / steps
        data = dataclasses.replace(data, train=dataclasses.replace(data.train, images=images))
    data = dataclasses.replace(data, value_range=value_range)
    torch.manual_seed(0)
    augmented = augmentation_of("contrast=0.5", data)(data.train.images)
    x = pixels(augmented, "none").double() * ((levels or 256) - 1)
    on_grid = bool((x - x.round()).abs().max() < 1e-3)
    assert on_grid == (levels is not None)


def test_without_augmentation_nothing_is_drawn():
    x, before = images((1, 6, 5), torch.uint8), torch.get_rng_state()
    assert augmentation_of(None, random_dataset())(x) is x
    assert torch.equal(torch.get_rng_state(), before)
    assert draw(Augmentation(), 5, CPU) == Draws()
    assert transform(x, Draws()) is x


# ---- the setting


def test_an_augmentation_is_read_and_written_in_its_order():
    found = parse_augmentation(" shift=2,hflip , brightness=.25,rotate90")
    assert found == Augmentation(hflip=True, rotate90=True, shift=2, brightness=0.25)
    assert str(found) == "hflip,rotate90,shift=2,brightness=0.25"
    assert parse_augmentation(str(found)) == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hflop", r"augment 'hflop' is unknown; choose among hflip, vflip, .*; did you mean 'hflip'\?"),
        ("HFlip", r"'HFlip' is unknown; .*did you mean 'hflip'\?"),
        ("", "'' is unknown; choose among"),
        ("hflip,", "'' is unknown; choose among"),
        ("mixup=0.2", r"'mixup=0.2' is unknown; choose among [^;]*$"),
        ("hflip,hflip", "hflip twice"),
        ("hflip=0.5", "hflip takes no value; give hflip alone"),
        ("shift", "shift needs a number of pixels, as shift=2"),
        *((f"shift={n}", "shift needs a number of pixels") for n in ("0", "-1", "1.5", "9" * 5000, "x")),
        *((f"contrast={n}", "contrast needs a number above 0 and at most 1")
          for n in ("0", "-1", "1.1", "nan", "inf", "x", "")),
    ],
)  # fmt: skip
def test_a_wrong_augmentation_is_refused_in_a_line(text, message):
    with pytest.raises(UserError, match=message) as error:
        TrainConfig(augment=text)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("shape", "kind", "text", "message"),
    [
        ((1, 6, 5), "grey", "rotate90", "rotate90 needs square images, and these are 6 x 5"),
        ((1, 6, 5), "grey", "shift=5", "shift=5 is more than images of 6 x 5 pixels allow, 4"),
        ((1, 6, 5), "grey", "crop=5", "crop=5 is more than images of 6 x 5 pixels allow, 4"),
        ((1, 6, 5), "grey", "saturation=1", "needs colour images of 3 channels, and these have 1"),
        ((4, 6, 5), "grey", "saturation=1", "needs colour images of 3 channels, and these have 4"),
        ((1, 6, 5), "bits", "brightness=0.1,contrast=0.1",
         "brightness, contrast would add noise to pixels that are binarised; .* binarisation none"),
    ],
)  # fmt: skip
def test_images_that_cannot_be_augmented_so_are_refused(tmp_path, shape, kind, text, message):
    data = random_dataset(shape, kind)
    with pytest.raises(UserError, match=message):
        train(build("vae", data, latent_dim=2), data, out=tmp_path / "run", augment=text)
    assert not (tmp_path / "run").exists()


# ---- in a training


def fit(out, data, **settings):
    model = build("vae", data, latent_dim=2, hidden_dim=8)
    return train(model, data, out=out, epochs=2, batch_size=8, progress=False, **settings)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The data, and runs without and with augmentation."""
    folder, data = tmp_path_factory.mktemp("augmented"), random_dataset(kind="grey")
    return data, fit(folder / "a", data), fit(folder / "b", data, augment=" shift=1,hflip")


def test_the_training_is_of_augmented_images_and_its_metrics_say_so(runs):
    _, plain, augmented = runs
    assert augmented.training.augment == "hflip,shift=1"
    assert plain.training.augment is None
    assert [epoch.get("augmented") for epoch in plain.metrics] == [None, None]
    assert [epoch["augmented"] for epoch in augmented.metrics] == [True, True]
    assert plain.metrics[0]["train_elbo"] != augmented.metrics[0]["train_elbo"]


def test_the_loss_is_that_of_the_augmented_images():
    data = random_dataset(kind="grey")
    model = build("vae", data, latent_dim=2, hidden_dim=8)
    losses = []
    for loss, x in (
        (Loss(model, elbo(), augment=lambda x: x.flip(-1)), data.train.images),
        (Loss(model, elbo()), data.train.images.flip(-1)),
        (Loss(model, elbo()), data.train.images),
    ):
        torch.manual_seed(0)
        losses.append(float(loss(x)[0].detach()))
    assert losses[0] == losses[1] != losses[2]


def test_validation_and_pictures_are_of_the_images_themselves(runs):
    data, _, run = runs
    last = load(Run(run.path, weights="last"))
    found = validate(last, elbo(), eval_split(data.validation, "none"))
    assert found[0] == run.metrics[-1]["validation_objective"]
    stored = load_or_create(run, load_trained(run))
    for split in ("train", "test"):
        rows = stored.rows[split]
        expected = pixels(data.splits[split].images[rows], "none")
        assert torch.equal(stored.batches[split].images, expected)


def test_processes_that_train_together_draw_differently(monkeypatch):
    data, draws = random_dataset(), []
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        Learner(build("vae", data, latent_dim=2), TrainConfig(), CPU).start()
        draws.append(draw(parse_augmentation("shift=2"), 20, CPU).shift)
    assert not torch.equal(*draws)


# ---- what is said of the values


def test_curves_name_augmented_training_values(runs):
    _, plain, augmented = runs
    for run, name in ((plain, "training"), (augmented, "training (augmented)")):
        for figure in (curves(run.metrics), samples_seen(run.metrics, 20)):
            names = figure.axes[-1 if len(figure.axes) == 1 else 2].get_legend().get_texts()
            assert names[0].get_text() == name
    groups = {"a": [(plain.metrics, 20)], "b": [(augmented.metrics, 20)]}
    legend = comparison(groups, training=True).legends[0]
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b, training (augmented)"]
    legend = comparison(groups).legends[0]
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b"]


def test_the_terminal_names_augmented_training_values(tmp_path, capsys):
    data = random_dataset(kind="grey")
    model = build("vae", data, latent_dim=2, hidden_dim=8)
    train(model, data, out=tmp_path / "run", epochs=1, augment="hflip")
    err = capsys.readouterr().err
    assert "training images are augmented (hflip), and training values are of augmented" in err
    assert "bits/dim train (augmented) " in err


def test_tensorboard_names_augmented_training_values(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = fit(tmp_path / "run", random_dataset(kind="grey"), augment="hflip", tensorboard=True)
    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {"ELBO/train, augmented", "KL/train, augmented", "ELBO/validation"} <= tags
    assert not {"ELBO/train", "KL/train", "ELBO/validation, augmented"} & tags
