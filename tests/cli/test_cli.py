"""The command line as a user meets it: what it prints, its exit codes, what it leaves behind."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vaekit import MODELS
from vaekit.cli.main import VERBS
from vaekit.runs.directory import Run

pytestmark = pytest.mark.usefixtures("short_evaluation")


@pytest.fixture
def run(small_run, tmp_path, small_mnist):
    return shutil.copytree(small_run, tmp_path / "run")


SMALL = ["--latent-dim", "2", "--hidden-dim", "8", "--epochs", "1"]
# What keeps a model small besides.
SMALLER = {
    "vampprior": ["--components", "10"],
    "hvampprior": ["--components", "10", "--top-dim", "3"],
    "gmvae": ["--clusters", "3", "--start-epochs", "1", "--kl-warmup", "0"],
    "convgmvae": ["--clusters", "3", "--start-epochs", "1", "--kl-warmup", "0", "--channels", "4"],
    "convvae": ["--channels", "4"],
}


# One of each kind of graph and network.
KINDS = ["convvae", "cvae", "hvampprior", "gmvae"]
EVERY_MODEL = [
    model if model in KINDS else pytest.param(model, marks=pytest.mark.long) for model in MODELS
]


@pytest.mark.parametrize("model", EVERY_MODEL)
def test_every_model_trains_generates_reconstructs_and_is_measured(
    vaekit, small_mnist, tmp_path, model
):
    """Two epochs on real digits: the objective rises."""
    sizes = ["--latent-dim", "2", "--hidden-dim", "16", *SMALLER.get(model, [])]
    code, out, err = vaekit("train", model, "--epochs", 2, "--out", "run", *sizes)
    assert code == 0, err
    first, last = Run("run").metrics
    assert last["train_objective"] > first["train_objective"]
    for verb in ("generate", "reconstruct"):
        code, out, err = vaekit(verb, "run")
        assert (code, err) == (0, "")
        assert Path(out.strip()).exists()
    metrics = [] if model in ("vae", "cvae", "gmvae") else ["--metrics", "elbo", "nll"]
    code, out, err = vaekit("evaluate", "run", "--samples", 10, "--limit", 50, "--json", *metrics)
    assert code == 0
    result = json.loads(out)
    assert result["nll"] < -result["elbo"] + 1
    code, out, err = vaekit("cluster", "run", "--samples", 2)
    assert code == (
        0 if model in ("mixturevae", "vampprior", "hvampprior", "gmvae", "convgmvae") else 2
    )


def columns_and_rows(picture, size=28, gap=2, scale=2):
    """How many images wide and high a picture of `image_grid` is, the names at its left not counted."""
    with Image.open(picture) as image:
        return image.width / scale / (size + gap), image.height / scale / (size + gap)


def test_a_cvae_gives_rows_of_classes_one_label_and_analogies(vaekit, small_mnist):
    assert vaekit("train", "cvae", *SMALL, "--out", "run")[0] == 0
    assert vaekit("generate", "run", "--count", 4, "--out", "rows.png")[0] == 0
    wide, high = columns_and_rows("rows.png")
    assert high == pytest.approx(10, abs=0.1)
    assert vaekit("generate", "run", "--label", 3, "--count", 9, "--out", "three.png")[0] == 0
    wide, high = columns_and_rows("three.png", scale=3)
    assert (wide, high) == pytest.approx((3, 3), abs=0.1)
    assert vaekit("reconstruct", "run", "--analogies", "--count", 5)[0] == 0
    wide, high = columns_and_rows("run/pictures/analogies-test-count-5.png")
    assert high == pytest.approx(5, abs=0.3)  # and a line of class names
    Image.fromarray(np.zeros((28, 28), dtype=np.uint8)).save("digit.png")
    code, _, err = vaekit("reconstruct", "run", "digit.png")
    assert (code, err) == (
        2,
        "vaekit: the model is conditional on labels: pass --label, or images in folders named after its classes\n",
    )
    assert vaekit("reconstruct", "run", "digit.png", "--label", 4)[0] == 0
    for arguments, said in [
        (["--label", 10], "--label is 10; the model's labels are 0 to 9"),
        (["--cluster", 0], "--cluster needs a model whose prior is a mixture"),
        (["--latent", "0,0"], "--latent needs a --label too"),
    ]:
        code, _, err = vaekit("generate", "run", *arguments)
        assert code == 2
        assert said in err
    assert vaekit("generate", "run", "--latent", "0,0", "--label", 3)[0] == 0


def test_a_gmvae_gives_rows_of_clusters_or_one(vaekit, small_mnist):
    vaekit("train", "gmvae", *SMALL, *SMALLER["gmvae"], "--out", "run")
    assert vaekit("generate", "run")[0] == 0
    _, high = columns_and_rows("run/pictures/generated-seed-0.png")
    assert high == pytest.approx(3, abs=0.1)
    assert vaekit("generate", "run", "--cluster", 2, "--count", 4)[0] == 0
    code, out, err = vaekit("generate", "run", "--cluster", 3)
    assert (code, err) == (2, "vaekit: the clusters are 0 to 2, not 3\n")
    code, out, err = vaekit("generate", "run", "--label", 3)
    assert code == 2
    assert "needs a model with --condition label" in err
    code, out, err = vaekit("cluster", "run", "--json")
    assert json.loads(out) == json.loads(Path("run/clusters-test.json").read_text())
    assert "Hungarian" in vaekit("cluster", "run")[1]


def test_a_model_of_quadrants_completes_images(vaekit, small_mnist):
    code, out, err = vaekit("train", "cvae", "--condition", "quadrants:1", *SMALL, "--out", "run")
    assert code == 0, err
    assert vaekit("generate", "run", "--count", 3)[0] == 0
    _, high = columns_and_rows("run/pictures/generated-count-3-seed-0.png")
    assert high == pytest.approx(10, abs=0.1)
    assert vaekit("reconstruct", "run")[0] == 0
    code, out, err = vaekit("evaluate", "run", "--samples", 10, "--limit", 50, "--json")
    result = json.loads(out)
    assert result["bits_per_dim"] == pytest.approx(result["nll"] / (588 * np.log(2)))
    for arguments, said in [
        (["--label", 3], "neither --label nor --cluster"),
        (["--cluster", 3], "neither --label nor --cluster"),
        (["--count", 0], "--count is 0"),
        (["--temperature", -1], "--temperature is -1;"),
        (["--latent", "0,0"], "neither --label nor --latent"),
    ]:
        code, _, err = vaekit("generate", "run", *arguments)
        assert (code, said in err) == (2, True), err


def test_a_deterministic_mmdvae_has_no_elbo_and_says_why(vaekit, small_mnist):
    code, out, err = vaekit(
        "train", "mmdvae", *SMALL, "--posterior", "deterministic", "--out", "run"
    )
    assert code == 0
    assert "objective train" in err
    assert "nan" not in (out + err).lower()
    code, out, err = vaekit("evaluate", "run", "--metrics", "elbo", "nll")
    assert code == 0
    assert "no NLL: the posterior is one point, which has no density" in " ".join(out.split())
    result = json.loads(Path("run/evaluation.json").read_text())
    assert result["elbo"] is result["nll"] is result["kl"] is None
    assert result["log_likelihood"] < 0


def test_presets_give_their_settings_and_flags_win(vaekit, small_mnist):
    code, out, err = vaekit(
        "train", "--preset", "aevb-mnist", "--epochs", 1, "--latent-dim", 3, "--out", "run"
    )
    assert code == 0, err
    settings = Run("run").blueprint.settings
    assert (settings.encoder, settings.activation, settings.latent_dim) == ("500", "tanh", 3)
    assert Run("run").data.binarisation == "none"
    code, out, err = vaekit("train", "vae", "--preset=aevb-mnist", "--epochs", 1, "--out", "other")
    assert code == 0
    code, out, err = vaekit("presets")
    assert "aevb-mnist" in out
    code, out, err = vaekit("train", "--preset", "aevb-mnist", "--help")
    assert "784-500-20" in out


@pytest.mark.parametrize("model", ["vae", "convvae"])
def test_the_whole_way(vaekit, small_mnist, tmp_path, model):
    code, out, err = vaekit("train", model, *SMALL, "--name", "first", "--seed", "3")
    assert code == 0
    place = f"runs/{model}-mnist-first-1"
    assert out.startswith(f"{place}: best at epoch 1")
    assert "epoch 1/1" in err
    config = json.loads((tmp_path / place / "config.json").read_text())
    assert config["training"]["seed"] == 3
    assert config["model"]["settings"]["latent_dim"] == 2
    assert config["command"][1:3] == ["train", model]

    code, out, err = vaekit("evaluate", place, "--samples", 20, "--limit", 30)
    assert code == 0
    for word in ("ELBO", "NLL", "bits/dim", "active units", "binarised once"):
        assert word in out
    code, out, err = vaekit("evaluate", place, "--samples", 20, "--limit", 30, "--json")
    assert json.loads(out)["samples"] == 20

    for verb, name in [("generate", "generated-seed-0"), ("reconstruct", "reconstructed-test")]:
        code, out, err = vaekit(verb, place)
        assert (code, err) == (0, "")
        assert out == f"{place}/pictures/{name}.png\n"
        with Image.open(tmp_path / out.strip()) as picture:
            assert picture.width > 100
    code, out, err = vaekit("train", model, *SMALL, "--init", place)
    assert code == 0
    assert out.startswith(f"runs/{model}-mnist-1:")


def test_one_point_is_decoded_even_if_it_begins_with_a_minus(vaekit, run, tmp_path):
    code, out, err = vaekit("generate", run, "--latent", "-1.2,0.3,0", "--out", "point.png")
    assert (code, out, err) == (0, "point.png\n", "")
    assert (tmp_path / "point.png").exists()


def test_own_images_are_reconstructed(vaekit, run, tmp_path):
    folder = tmp_path / "my images"
    folder.mkdir()
    for file in [*(folder / f"{i}.jpg" for i in range(3)), tmp_path / "3.jpg"]:
        Image.fromarray(np.full((40, 30, 3), 80, np.uint8)).save(file)
    code, out, err = vaekit("reconstruct", run, folder, tmp_path / "3.jpg", "--out", "pairs.png")
    assert (code, out) == (0, "pairs.png\n")
    assert err.count("converted colour to grey, 30 x 40 to 28 x 28 pixels") == 4


def test_a_named_data_set_is_encoded(vaekit, run, small_mnist):
    code, _, err = vaekit("encode", run, "mnist", "--out", "codes.npz", "--samples", 2)
    assert (code, err) == (0, "")
    with np.load("codes.npz") as table:
        assert table["label"].tolist() == small_mnist.test.labels.tolist()
    code, _, err = vaekit("encode", run, "mnits", "--out", "codes.npz")
    assert (code, "did you mean 'mnist'" in err) == (2, True)


def test_demo(vaekit, small_mnist, tmp_path):
    code, out, _ = vaekit("demo", "--epochs", "1")
    assert code == 0
    assert "ELBO" in out
    assert "runs/vae-mnist-demo-1" in out
    named = [word for word in out.split() if word.endswith((".png", ".json", ".jsonl"))]
    assert len(named) >= 5
    for name in named:
        assert (tmp_path / "runs" / "vae-mnist-demo-1" / name).is_file(), name


@pytest.mark.parametrize(
    "page",
    [
        [],
        ["train"],
        ["train", "vae"],
        *([verb] for verb in VERBS if " " not in verb and verb != "demo"),
    ],
)
def test_help_has_examples_and_exits_with_0(vaekit, page):
    code, out, _ = vaekit(*page, "--help")
    assert code == 0
    assert "For example:" in out
    assert "vaekit" in out
    if page == ["train", "vae"]:
        for flag in ("--latent-dim", "--kl-warmup", "--device", "--out", "--binarisation"):
            assert flag in out


def test_no_arguments_is_help_and_version_is_the_version(vaekit):
    assert vaekit()[:2] == vaekit("--help")[:2]
    assert vaekit("--version") == (0, "vaekit 0.1.0\n", "")


def test_starting_up_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['vaekit', '--help']\n"
        "import vaekit.cli.main\n"
        "try: vaekit.cli.main.main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'matplotlib', 'PIL', 'rich', 'safetensors'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_verbs_and_flags(vaekit, shell):
    code, out, _ = vaekit("completion", shell)
    assert code == 0
    for word in ("evaluate", "convvae", "latent-dim"):
        assert word in out


def test_completion_knows_the_models_of_a_sweep(vaekit):
    _, out, _ = vaekit("completion", "zsh")
    assert out.count("'--nll-samples'") == len(MODELS)


BAD = [
    (["trian"], "did you mean 'train'"),
    (["train"], "needs one of: vae, convvae"),
    (["train", "vea"], "did you mean 'vae'"),
    (["train", "vae", "--data", "mnits"], "did you mean 'mnist'"),
    (["train", "vae", "--data-dir", "nowhere"], "the data folder nowhere does not exist"),
    (["train", "vae", "--latent-dim", "0"], "--latent-dim is 0; it must be at least 1"),
    (["train", "vae", "--latnt-dim", "3"], "did you mean '--latent-dim'"),
    (["train", "vae", "--epochs", "-1"], "--epochs is -1; it must be at least 1"),
    (["train", "vae", "--epochs", "many"], "not a whole number"),
    (["train", "vae", "--epochs"], "--epochs lacks its value"),
    (["train", "vae", "--learning-rate", "-1"], "--learning-rate is -1.0; it must be a positive"),
    (["train", "vae", "--learning-rate", "nan"], "--learning-rate is nan; it must be a positive"),
    (["train", "vae", "--optimizer", "sgd"], "one of adam, adamw, adagrad, rmsprop"),
    (["train", "vae", "--scale", "wide", "--likelihood", "gaussian"], "--scale has a value that"),
    (["train", "vae", "--device", "cuda:99"], "not available on this machine"),
    (["train", "vae", "--init", "nowhere"], "there is no run directory nowhere"),
    (["train", "vae", "--name", "../x"], "folder's name"),
    (["train", "vae", "extra"], "one argument too many"),
    (["train", "--epochs", "3", "vae"], "--epochs stands before the model's name"),
    (["train", "vae", "--hidden-dim", "100000000000"], "at most 1,048,576"),
    (["evaluate", "run", "--seed", "-1"], "--seed is -1"),
    (["generate", "run", "--seed", "99999999999999999999"], "--seed is"),
    (["generate", "run", "--count", "1000000000"], "at most 1,048,576"),
    (["evaluate"], "lacks RUN"),
    (["evaluate", "nowhere"], "there is no run directory nowhere"),
    (["evaluate", "empty"], "has no config.json"),
    (["evaluate", "run", "--split", "tset"], "one of train, validation, test"),
    (["generate", "run", "--latent", "1,2"], "has 2 numbers; the model's latent needs 3"),
    (["generate", "run", "--count", "0"], "--count is 0"),
    (["generate", "run", "--out", "no/where.png"], "its folder does not exist"),
    (["generate", "run", "--out", "a.xyz"], "cannot write a.xyz"),
    (["reconstruct", "run", "text.png"], "text.png cannot be read: it is not an image"),
    (["reconstruct", "run", "nowhere.png"], "there is no image nowhere.png"),
    (["reconstruct", "run", "empty"], "the folder empty has no image files"),
    (["train", "--preset", "aevb-mnits"], "did you mean 'aevb-mnist'"),
    (["train", "--preset"], "--preset lacks its name"),
    (["train", "--preset", "--epochs", "1"], "--preset lacks its name"),
    (["train", "--preset", "aevb-mnist", "--preset=keras-mnist"], "--preset is given twice"),
    (["train", "vae", "--preset", "iwae-paper"], "is of the model iwae, not vae"),
    (["train", "vae", "--encoder", "3x3"], "'3x3' is not a layer"),
    (["train", "infovae", "--prior", "vampprior"], "gives a learned prior no gradient"),
    (["train", "hvae", "--objective", "iwae", "--gradient", "dreg"], "this model has 2"),
    (["train", "vae", "--posterior", "deterministic"], "no density, so no ELBO"),
    (["train", "cvae", "--prior", "vampprior"], "its pseudo-inputs have no labels"),
    (["train", "vae", "--kl-warmup", "3", "--kl-warmup-of", "w"], "it must be all, or one of z"),
    (["train", "iwae", "--gradient", "dreg", "--kl-warmup", "2"], "leave out --kl-warmup"),
    (
        ["train", "vampprior", "--objective", "iwae", "--gradient", "dreg"],
        "several times the noise of plain",
    ),
    (["train", "hvae", "--condition", "lable"], "one of none, label"),
    (["train", "iwae", "--beta", "4"], "--beta 4.0 has no effect for --objective iwae"),
    (["train", "vae", "--kernel", "imq"], "--kernel imq has no effect"),
    (["train", "vae", "--pseudo-inputs", "noise"], "--pseudo-inputs needs --prior vampprior"),
    (["train", "vae", "--network-size", "3"], "these networks have none"),
    (["train", "vae", "--kl-warmup", "0", "--kl-warmup-of", "z"], "needs a --kl-warmup"),
    (["train", "mmdvae", "--kl-warmup", "2"], "the objective has no KL"),
    (["train", "vae", "--decoder", "8x @3*2 @3:tanh"], "a decoder has dense layers"),
    (["train", "vae", "--network-size", "1e30", "--network", "conv"], "more than 1,048,576"),
    (["train", "--preset", "aevb-mnist", "--num-layers", "1"], "--num-layers has no effect with"),
    (["train", "--preset", "aevb-mnist", "--network", "conv"], "--network conv has no effect"),
    (["train", "--preset", "aevb-mnist", "--hidden-dim", "7"], "--hidden-dim has no effect"),
    (["train", "vae", "--prior", "vampprior", "--posterior", "deterministic"], "which are points"),
    (["generate", "run", "--latent", "1,2,3", "--count", "4"], "is one point to decode"),
    (["reconstruct", "run", "--label", "3"], "--label is only for your own image files"),
    (["cluster", "run"], "a vae has no clusters"),
    (["generate", "run", "--label", "3"], "needs a model with --condition label"),
    (["generate", "run", "--cluster", "3"], "needs a model whose prior is a mixture"),
    (["reconstruct", "run", "--analogies"], "need a model with --condition label"),
    (["completion", "powershell"], "one of bash, zsh, fish, tcsh"),
]


@pytest.mark.parametrize(
    ("arguments", "said"), BAD, ids=lambda x: "_".join(x) if type(x) is list else ""
)
def test_bad_input_is_one_line_and_exit_code_2_and_leaves_nothing(
    vaekit, run, tmp_path, arguments, said
):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("this is a text file")
    before = sorted(tmp_path.rglob("*"))
    code, out, err = vaekit(*arguments)
    assert code == 2
    assert said in err
    assert err.startswith("vaekit: ")
    assert err.count("\n") == 1
    assert out == ""
    assert sorted(p for p in tmp_path.rglob("*") if p.name != "pictures") == before


def test_a_taken_out_is_refused(vaekit, run, small_mnist):
    content = (run / "config.json").read_bytes()
    code, _, err = vaekit("train", "vae", *SMALL, "--out", run)
    assert code == 2
    assert "exists already" in err
    assert (run / "config.json").read_bytes() == content


def test_an_unwritable_out_is_named(vaekit, tmp_path, small_mnist, monkeypatch):
    (tmp_path / "locked").mkdir(mode=0o500)
    original = Path.mkdir

    def mkdir(self, *arguments, **options):  # root may write anywhere, so the refusal is played
        if self.parent.name == "locked":
            raise PermissionError(13, "Permission denied", str(self))
        original(self, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    code, _, err = vaekit("train", "vae", *SMALL, "--out", "locked/run")
    assert (code, err) == (2, "vaekit: locked/run: Permission denied\n")


def test_an_out_below_a_file_is_named(vaekit, tmp_path, small_mnist):
    (tmp_path / "file").write_text("x")
    code, _, err = vaekit("train", "vae", *SMALL, "--out", "file/run")
    assert code == 2
    assert err == "vaekit: file/run: Not a directory\n"


def test_a_full_disk_is_named_and_the_old_file_stays(vaekit, run, monkeypatch):
    vaekit("evaluate", run, "--samples", 2, "--limit", 5)
    before = (run / "evaluation.json").read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    code, _, err = vaekit("evaluate", run, "--samples", 2, "--limit", 6)
    assert code == 2
    assert err.endswith(f"vaekit: {run}/evaluation.json: No space left on device\n")
    assert (run / "evaluation.json").read_bytes() == before
    assert not list(run.glob("*.part"))


def test_too_little_memory_is_one_line_and_other_errors_keep_their_traceback(
    vaekit, small_mnist, monkeypatch
):
    def fail(*arguments, **options):
        raise RuntimeError(said)

    monkeypatch.setattr("vaekit.training.job.train", fail)
    said = (
        "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"
    )
    code, _, err = vaekit("train", "vae")
    assert code == 2
    assert err.startswith("vaekit: not enough memory")
    said = "a bug"
    with pytest.raises(RuntimeError, match="a bug"):
        vaekit("train", "vae")


def test_an_interrupt_is_one_line(vaekit, small_mnist, monkeypatch):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("vaekit.training.job.train", interrupt)
    code, _, err = vaekit("train", "vae")
    assert code == 130
    assert err.count("\n") == 1
