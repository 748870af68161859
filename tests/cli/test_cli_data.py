"""`vaekit data`, and training on the user's own images, from the command line."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from vaekit.data.sources import catalog

RNG = np.random.default_rng(5)


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path_factory):
    monkeypatch.delenv("VAEKIT_DATA", raising=False)
    monkeypatch.setenv("VAEKIT_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def photos(tmp_path):
    """Twenty photographs of two sizes in two class folders."""
    for i in range(20):
        path = tmp_path / "my photos" / ("cats", "dogs")[i % 2] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (20, 30, 3) if i % 3 else (30, 20, 3)
        Image.fromarray(RNG.integers(0, 256, shape, dtype=np.uint8)).save(path)
    return tmp_path / "my photos"


def test_list_says_which_data_sets_are_available(vaekit, tmp_path):
    code, out, err = vaekit("data", "list")
    assert (code, err) == (0, "")
    rows = {name: re.search(rf"│ {name} .*?(?=├|└)", out, re.DOTALL)[0] for name in catalog.CATALOG}
    assert "yes" in rows["mnist"]
    assert "no, 1 MB" in rows["freyface"]
    assert "CC BY-SA 3.0" in rows["mnist"]
    assert "1,572 / 196 / 197" in rows["freyface"]
    (tmp_path / "freyface").mkdir()
    (tmp_path / "freyface" / "frey_rawface.mat").write_bytes(b"x")
    code, out, _ = vaekit("data", "list", "--data-dir", ".")
    assert "yes" in re.search(r"│ freyface .*?├", out, re.DOTALL)[0]


def test_get_of_an_available_data_set(vaekit):
    code, out, _ = vaekit("data", "get", "digits")
    assert (code, out) == (0, "digits needs no download\n")
    code, out, _ = vaekit("data", "get", "MNIST")
    assert code == 0
    assert out.startswith("mnist is in ")


def test_show_prints_counts_and_writes_a_picture(vaekit, photos):
    code, out, err = vaekit("data", "show", "my photos", "--size", "16x12", "--count", "7")
    assert code == 0
    assert re.fullmatch(r"decoding 20 images of .*my photos, once\n", err)
    assert "16 x 12 pixels (height x width), colour, likelihood logistic" in " ".join(out.split())
    assert re.search(r"cats\s*│\s*8\s*│\s*1\s*│\s*1 ", out)
    assert out.endswith("my-photos-images.png\n")
    with Image.open("my-photos-images.png") as image:
        assert image.width > 500
    code, out, err = vaekit("data", "show", "mnist", "--split", "test", "--out", "a.pdf")
    assert (code, err) == (0, "")
    assert "likelihood bernoulli" in " ".join(out.split())


def test_duplicates_and_groups_are_told_by_show_prepare_and_train(vaekit, tmp_path):
    names = [f"train/all/p{p}/{i}.png" for p in range(4) for i in range(2)] + ["test/all/p7/0.png"]
    for name in names:
        path = tmp_path / "d" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(RNG.integers(0, 256, (4, 4), dtype=np.uint8)).save(path)
    (tmp_path / "d" / names[3]).write_bytes((tmp_path / "d" / names[-1]).read_bytes())
    rows = [f"{name},{name[10:12]}" for name in names]
    (tmp_path / "d" / "metadata.csv").write_text("\n".join(["file_name,who", *rows]))
    told = r"1 image of test is also in (train|validation), first test/all/p7/0.png = train/all/p1/1.png"
    code, out, err = vaekit("data", "show", "d", "--group-by", "who")
    assert code == 0
    assert re.search(told, out)
    assert "metadata.csv: file names from 'file_name', kept: who\n" in err
    code, out, err = vaekit("data", "prepare", "d")
    assert code == 0
    assert re.search(told, err)
    code, out, err = vaekit(
        "train", "vae", "--data", "d", "--group-by", "2", "--epochs", "1", "--out", "run"
    )
    assert code == 0
    assert re.search(told, err)
    source = json.loads((tmp_path / "run" / "config.json").read_text())["data"]["source"]
    assert source["group_by"] == "2"


def test_names_that_look_like_markup(vaekit, photos, tmp_path):
    (photos / "cats").rename(photos / "[bold]cats$[")
    photos.rename(tmp_path / "[red]")
    code, out, err = vaekit("data", "show", "[red]", "--size", "8")
    assert code == 0, err
    assert "[red]: 8 x 8" in " ".join(out.split())
    assert "[bold]cats$[" in out


def test_from_photos_to_reconstructions(vaekit, photos, tmp_path):
    """Prepare, train, evaluate, reconstruct; the same without preparing, and after the folder has moved."""
    preprocess = ["--size", "16", "--fit", "letterbox"]
    code, out, err = vaekit("data", "prepare", "my photos", *preprocess)
    assert (code, err) == (0, "decoding 20 images of my photos, once\n")
    assert "20 images of 16 x 16 pixels, 3 channels" in out
    tiny = ["--latent-dim", "2", "--channels", "4", "--epochs", "1"]
    code, out, err = vaekit(
        "train", "convvae", "--data", "my photos.safetensors", *tiny, "--out", "a"
    )
    assert code == 0, err
    code, _, err = vaekit(
        "train", "convvae", "--data", "my photos", *preprocess, *tiny, "--out", "b"
    )
    assert code == 0, err
    one, two = (json.loads((tmp_path / run / "config.json").read_text()) for run in "ab")
    assert one["data"]["sha256"] == two["data"]["sha256"]
    assert one["model"]["settings"]["likelihood"] == "logistic"
    assert two["data"]["source"]["fit"] == "letterbox"
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (
        tmp_path / "b" / "model.safetensors"
    ).read_bytes()
    photos.rename(tmp_path / "old photos")
    code, _, err = vaekit("evaluate", "b", "--samples", "2")
    assert code == 2
    assert "there is no file or folder" in err
    code, _, err = vaekit("evaluate", "b", "--samples", "2", "--data-dir", "old photos")
    assert code == 0, err
    code, out, err = vaekit("reconstruct", "b", "old photos/cats", "--out", "pairs.png")
    assert (code, out) == (0, "pairs.png\n")
    assert "20 x 30 to 16 x 16 pixels" in err
    code, out, err = vaekit("reconstruct", "b", "--data-dir", "old photos")
    assert code == 0, err


def test_a_cvae_uses_the_class_folders_as_labels(vaekit, photos):
    tiny = ["--latent-dim", "2", "--hidden-dim", "4", "--epochs", "1", "--out", "a"]
    code, _, err = vaekit("train", "cvae", "--data", "my photos", "--size", "8", *tiny)
    assert code == 0, err
    assert vaekit("generate", "a", "--label", "1")[0] == 0
    assert vaekit("generate", "a", "--out", "rows.png")[1] == "rows.png\n"
    with Image.open("rows.png") as rows:
        assert rows.info["Description"] == "rows from the top: cats, dogs"
    code, _, err = vaekit("generate", "a", "--label", "2")
    assert code == 2
    assert "labels are 0 to 1" in err


def test_one_pixel_images(vaekit, tmp_path):
    (tmp_path / "d").mkdir()
    for i in range(9):
        Image.fromarray(np.full((1, 1), 28 * i, np.uint8)).save(tmp_path / "d" / f"{i}.png")
    code, _, err = vaekit(
        "train", "vae", "--data", "d", "--epochs", "1", "--latent-dim", "1", "--hidden-dim", "4"
    )
    assert code == 0, err
    code, _, err = vaekit("train", "convvae", "--data", "d", "--epochs", "1")
    assert code in (0, 2)
    assert "Traceback" not in err


BAD = [
    (["data", "lst"], "there is no command 'lst'; did you mean 'list'"),
    (["data"], "needs one of: list, get, show, prepare"),
    (["data", "get"], "lacks NAME"),
    (["data", "get", "mnits"], "did you mean 'mnist'"),
    (["data", "show"], "lacks DATA"),
    (["data", "show", "nowhere"], "there is no data set or folder 'nowhere'"),
    (["data", "show", "mnist", "--count", "0"], "--count is 0"),
    (["data", "show", "mnist", "--conut", "3"], "did you mean '--count'"),
    (["data", "show", "mnist", "--sizes", "3"], "did you mean '--size'"),
    (["data", "show", "mnist", "--split", "tset"], "one of train, validation, test"),
    (["data", "show", "mnist", "--out", "a.xyz"], "cannot write a.xyz"),
    (["data", "show", "empty"], "empty has no image files"),
    (["data", "show", "mnist:x"], "mnist has no variant 'x'"),
    (["data", "prepare"], "lacks FOLDER"),
    (["data", "prepare", "nowhere"], "there is no folder or archive nowhere"),
    (["data", "prepare", "empty"], "empty has no image files"),
    (["data", "prepare", "notes.txt"], "is not a folder of images"),
    (["data", "prepare", "my photos", "--out", "a.npz"], "must end in .safetensors"),
    (["data", "prepare", "my photos", "--out", "no/a.safetensors"], "its folder does not exist"),
    (["data", "prepare", "my photos", "--size", "0x3"], "--size 0x3 is not a size"),
    (["data", "prepare", "my photos", "--fit", "corp"], "one of crop, letterbox, stretch"),
    (["train", "vae", "--data", "nowhere/"], "there is no file or folder nowhere"),
    (["train", "vae", "--data", "nowhere.npz"], "there is no file or folder nowhere.npz"),
    (["train", "vae", "--data", "empty"], "empty has no image files"),
    (["train", "vae", "--data", "notes.txt"], "is not a folder of images"),
    (["train", "vae", "--data", "my photos", "--validation-share", "1"], "--validation-share is 1.0"),
    (["train", "vae", "--data", "my photos", "--split-seed", "-1"], "--split-seed is -1"),
    (["train", "vae", "--data", "my photos", "--data-dir", "nowhere"], "the data folder nowhere does not exist"),
    (["train", "vae", "--data-dir", "nowhere"], "the data folder nowhere does not exist"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"), BAD, ids=lambda x: "_".join(x) if type(x) is list else ""
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message, vaekit, photos, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    before = sorted(tmp_path.rglob("*"))
    code, out, err = vaekit(*arguments)
    assert (code, out if "show" not in arguments else "") == (2, "")
    assert message in err
    assert re.sub("decoding .*\n", "", err).count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before
