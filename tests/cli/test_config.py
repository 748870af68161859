"""`--config FILE.toml`: the settings of a file as flags, which those on the command line override."""

import pytest

from vaekit import Run, UserError
from vaekit.cli.config import expand_config
from vaekit.cli.main import VERBS


@pytest.fixture
def expand(tmp_path, monkeypatch):
    """The arguments that these become with this file."""
    monkeypatch.chdir(tmp_path)

    def call(content, *arguments):
        (tmp_path / "c.toml").write_text(content)
        return expand_config(VERBS, list(arguments))[0]

    return call


@pytest.mark.parametrize(
    ("content", "arguments", "expected"),
    [
        ('model = "vae"\nlatent_dim = 3', "train --config c.toml", "train vae --latent-dim=3"),
        ('model = "vae"\nlatent-dim = 3', "train --config=c.toml", "train vae --latent-dim=3"),
        ('range = "-5,5"', "train vae --config c.toml", "train vae --range=-5,5"),
        ("size = 64", "train vae --config c.toml", "train vae --size=64"),
        ("record = true\ntensorboard = false", "train vae --config c.toml",
         "train vae --record --no-tensorboard"),
        # What is on the command line wins, in any spelling.
        ("latent_dim = 3\nsteps = 9", "train vae --config c.toml --latent_dim 4",
         "train vae --steps=9 --latent-dim 4"),
        ("record = true", "train vae --no-record --config c.toml", "train vae --no-record"),
        ("steps = 9", "train vae --epochs 4 --config c.toml", "train vae --epochs 4"),
        ('model = "vae"', "train convvae --config c.toml", "train convvae"),
        ('model = "vae"', "train --preset aevb-mnist --config c.toml", "train --preset aevb-mnist"),
        ('preset = "aevb-mnist"', "train --config c.toml", "train --preset=aevb-mnist"),
        # A sweep takes the same files, and settings of its own.
        ('model = "vae"\nmetrics = ["elbo", "nll"]', "sweep --config c.toml --seed 0,1",
         "sweep vae --metrics elbo nll --seed 0,1"),
        ("", "evaluate run --split test", "evaluate run --split test"),
    ],
)  # fmt: skip
def test_a_file_becomes_flags(expand, content, arguments, expected):
    assert expand(content, *arguments.split()) == expected.split()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("latent_dimm = 3", "c.toml: 'latent_dimm' is no setting of `vaekit train`; did you mean 'latent_dim'?"),
        ("config = 3", "c.toml: 'config' is no setting of `vaekit train`"),
        ("record = 1", "c.toml: record is 1; it must be true or false"),
        ("steps = true", "c.toml: steps is True; it must be a text or a number"),
        ("steps = [1, 2]", "c.toml: steps is [1, 2]; it must be a text or a number"),
        ("[training]\nsteps = 3", "c.toml: 'training' is no setting of `vaekit train`"),
        ("steps = 1979-05-27", "c.toml: steps is datetime.date(1979, 5, 27); it must be a text or a number"),
        ("model = ", "--config c.toml is not TOML: Invalid value"),
        ("\udcff", "--config c.toml is not TOML: 'utf-8' codec"),
    ],
)  # fmt: skip
def test_a_bad_file_is_one_line_with_the_key(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.toml").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError) as caught:
        expand_config(VERBS, ["train", "vae", "--config", "c.toml"])
    text = str(caught.value).replace("config c.toml", "--config c.toml").replace("----", "--")
    assert text.startswith(message)
    assert "\n" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train --config no.toml", "cannot read --config no.toml: No such file or directory"),
        ("train --config .", "cannot read --config .: Is a directory"),
        ("train --config", "--config lacks its file"),
        ("train --config --seed 1", "--config lacks its file"),
        ("train --config a --config b", "--config is given twice; choose one"),
        ("train --resume a --config b", "--config cannot be combined with --resume"),
        ("evaluate run --config b", "`vaekit evaluate` has no --config; train and sweep have it"),
    ],
)
def test_a_config_that_cannot_be_is_refused(vaekit, arguments, message):
    code, out, err = vaekit(*arguments.split())
    assert (code, out) == (2, "")
    assert err.startswith(f"vaekit: {message}")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('latent_dim = "a"', "c.toml: --latent-dim has a value that is not a whole number"),
        ("steps = 0", "c.toml: --steps is 0; it must be at least 1"),
        ('likelihood = "bernouli"', "c.toml: --likelihood is 'bernouli'; it must be one of"),
    ],
)
def test_a_value_that_a_flag_refuses_names_the_file(vaekit, tmp_path, content, message):
    (tmp_path / "c.toml").write_text(f'model = "vae"\n{content}')
    code, _, err = vaekit("train", "--config", "c.toml")
    assert code == 2
    assert err.startswith(f"vaekit: {message}")
    code, _, err = vaekit("train", "vae", "--hidden-dim", "x")  # and the file alone
    assert err.startswith("vaekit: --hidden-dim has a value")


def test_the_training_of_a_file_is_that_of_its_flags(vaekit, tmp_path, small_mnist):
    (tmp_path / "c.toml").write_text(
        'model = "vae"\ndata = "mnist"\nlatent_dim = 2\nhidden_dim = 8\nsteps = 3\nseed = 4\n'
    )
    flags = ["--latent-dim", "2", "--hidden-dim", "8", "--steps", "3", "--seed", "5"]
    assert vaekit("train", "--config", "c.toml", "--seed", "5", "--out", "a")[0] == 0
    assert vaekit("train", "vae", *flags, "--out", "b")[0] == 0
    a, b = (Run(name).config for name in "ab")
    assert a["training"]["seed"] == 5
    for section in ("model", "training", "data", "objective", "monitor"):
        assert a[section] == b[section]
    assert (tmp_path / "a/model.safetensors").read_bytes() == (
        tmp_path / "b/model.safetensors"
    ).read_bytes()
