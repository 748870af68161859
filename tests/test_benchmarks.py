"""The parts of the benchmark scripts that need no training: icons, times, tables of densities."""

import io
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import random_dataset
from vaekit import UserError, build, elbo, evaluate, load_data, train
from vaekit.data.duplicates import find_duplicates

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))

import anomalies as odd_images  # noqa: E402
import colour  # noqa: E402
import density  # noqa: E402
import icons  # noqa: E402
import in_torch  # noqa: E402


def picture(*size, mode="RGB", ink=(200, 30, 60)) -> bytes:
    """A PNG file with ink of this size, in the middle of a canvas that is white or transparent."""
    file = io.BytesIO()
    width, height = size
    clear = (255, 255, 255) if mode == "RGB" else (0, 0, 0, 0)
    image = Image.new(mode, (width + 20, height + 40), clear)
    image.paste(ink if mode == "RGB" else (*ink, 255), (10, 20, 10 + width, 20 + height))
    image.save(file, "png")
    return file.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_an_icon_is_cut_and_padded_with_white(mode):
    image = np.asarray(icons.squared(picture(100, 200, mode=mode), 64))
    assert image.shape == (64, 64, 3)
    assert (image[:, :15] == 255).all()
    assert (image[:, 49:] == 255).all()
    assert (image[:, 20:44] == (200, 30, 60)).all()


@pytest.mark.parametrize(
    "content",
    [picture(63, 70), picture(70, 150), picture(0, 0, ink=(255, 255, 255)), picture(5000, 5000)],
    ids=["small", "narrow", "blank", "huge"],
)
def test_icons_of_other_sizes_are_left_out(content):
    assert icons.squared(content, 64) is None


def test_the_split_of_an_icon_follows_from_its_series():
    names = [f"drawing {chr(97 + k % 26)}{chr(97 + k // 26)}" for k in range(600)]
    splits = [icons.split_of(f"a/{name}_01.png") for name in names]
    assert splits == [icons.split_of(f"b/{name.upper()}-2.png") for name in names]
    counts = [splits.count(split) for split in ("train", "validation", "test")]
    assert counts == [488, 58, 54]  # never to change


def test_collected_icons_have_no_duplicates_and_only_large_classes(tmp_path):
    package = icons.Package("none", r"art/([^/]+)/.*\.png", ("skipped",))
    files = [
        (f"art/food/{chr(97 + k)}apple.png", picture(100, 100, ink=(k, k, k))) for k in range(26)
    ]
    files += [
        (f"art/food/{chr(97 + k)}pear.png", picture(100, 100, ink=(k, 0, 0))) for k in range(26)
    ]
    files += [("art/food/again.png", files[0][1]), ("art/tools/saw.png", picture(90, 80))]
    files += [("art/skipped/x.png", picture(90, 70)), ("art/food/readme.txt", b"text")]
    written = icons.collect(package, iter(files), 16)
    assert {name.split("/")[1] for name in written} == {"food"}
    assert len(written) == 51  # 26 + 26, of which the two black ones are equal
    for name, content in written.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    data = load_data(tmp_path, progress=False)
    assert data.shape == (3, 16, 16)
    assert find_duplicates(data) == []


def test_only_regular_files_of_a_package_are_read(tmp_path, monkeypatch):
    archive = tmp_path / "data.tar"
    with tarfile.open(archive, "w") as tar:
        for name in ("./art/a.png", "../evil.png"):
            info = tarfile.TarInfo(name)
            info.size = 3
            tar.addfile(info, io.BytesIO(b"abc"))
        link = tarfile.TarInfo("./art/b.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    popen = icons.subprocess.Popen
    monkeypatch.setattr(
        icons.subprocess, "Popen", lambda command, **kw: popen(["cat", str(archive)], **kw)
    )
    read = list(icons.members(tmp_path / "some.deb"))
    assert read == [("art/a.png", b"abc"), ("../evil.png", b"abc")]
    # Names are never paths to write to: what is written is named by its class and its last part.
    package = icons.Package("none", r".*?(\w+)/.*\.png|\.\./(evil)\.png")
    assert package.class_of("../evil.png") is None
    assert sorted(tmp_path.rglob("*.png")) == []


@pytest.mark.parametrize(
    ("minutes", "start", "epoch", "expected"),
    [(10, 20, 58, 10), (10, 0, 60, 10), (1, 30, 30.1, None)],
)
def test_as_many_epochs_as_end_within_the_time(minutes, start, epoch, expected):
    if expected is None:
        with pytest.raises(UserError, match="give more than 1 minutes"):
            colour.affordable_epochs(minutes, start, epoch)
    else:
        assert colour.affordable_epochs(minutes, start, epoch) == expected


def test_the_table_of_colour_has_a_line_for_each_measured_model():
    measured = {"bits": 4.2345, "psnr": 20.5, "ssim": 0.7, "images": 9}
    measured |= {"frechet_samples": None, "frechet_reconstructions": 1.0}
    record = {"parameters": 12345, "images_per_second": 99.6, "epochs": 7, "seconds": 90.0}
    records = [
        {**record, "name": "convvae", "validation": measured, "resumed": True},
        {**record, "name": "deepvae", "validation": measured, "test": measured},
    ]
    lines = colour.table(records, "validation")
    assert (
        lines[2]
        == "| `convvae` | 4.234 | 20.50 | 0.700 |  | 1.00 | 12,345 | 100 | 7 | 1.5 (resumed) |"
    )
    assert len(lines) == 4
    assert len(colour.table(records, "test")) == 3
    assert {line.count("|") for line in lines} == {11}


@pytest.mark.parametrize("shape", [(1, 12, 10), (3, 40, 8)])
def test_the_plain_ladder_has_the_elbo_of_the_deepvae(shape):
    """Of images that are padded, and cut into squares; with the same noise, which both draw in the same order."""
    model = build("deepvae", shape, channels=8, likelihood="bernoulli")
    torch.manual_seed(0)
    with torch.no_grad():
        for weights in model.parameters():  # also those that are zero at first
            weights += 0.1 * torch.randn_like(weights)
        x = torch.bernoulli(torch.full((3, *shape), 0.4))
        torch.manual_seed(1)
        plain = in_torch.plain_ladder_loss(model.decoder.ladder, x)
        torch.manual_seed(1)
        assert torch.allclose(-elbo()(model(x)), plain, rtol=1e-5)


def test_published_figures_are_complete():
    rows = list(density.published_rows())
    assert len(rows) > 50
    assert {row.origin for row in rows} == {"read", "second-hand", "memory"}
    assert not any(row.ours for row in rows)
    assert len({(row.data, row.model) for row in rows}) == len(rows)
    (exemplar,) = [r for r in rows if r.model == "Exemplar VAE, gated 300-300-40"]
    assert "| 82.09 (sd 0.18) |" in exemplar.line
    (bound,) = [row for row in rows if "bound" in row.note]
    assert bound.model == "Efficient-VDVAE"


def test_the_table_of_densities_has_what_the_records_say():
    rows = density.all_rows(ROOT / "docs" / "results")
    ours = {row.model: row for row in rows if row.ours and row.data == density.MNIST}
    values = [
        json.loads((ROOT / f"docs/results/models/vampprior-{s}.json").read_text())["nll"]
        for s in range(3)
    ]
    row = ours["`vampprior --epochs 20`"]
    assert row.nll == pytest.approx(np.mean(values))
    assert row.sd == pytest.approx(np.std(values, ddof=1))
    assert (row.seeds, row.samples, row.images) == (3, 1000, 10_000)
    assert round(row.parameters / 1e6, 2) == 1.71  # as docs/results/models.md has it
    record = next(row for row in rows if "86.76" in row.source)
    assert (record.nll, record.seconds, record.seeds) == (
        pytest.approx(86.2947, abs=1e-3),
        105.8,
        3,
    )
    text = density.report(rows)
    assert text.count("## ") == 5
    for row in rows:
        assert row.line in text
        assert row.line.count("|") == 11
    assert (ROOT / "docs/results/density.md").read_text() == text, "run benchmarks/density.py"


def test_a_model_without_a_record_is_not_measured():
    rows = [density.Row(density.MNIST, "`vae --epochs 3`", 90.0)]
    found = {row.model: row.line for row in density.unmeasured_rows(rows)}
    assert "`vae`" not in found
    assert "`cvae`" not in found  # another quantity
    assert "not measured" in found["`vampprior`"]
    assert found["vaekit"].startswith("| **vaekit** | not measured |")


def test_recorded_runs_must_differ_in_their_seeds_alone(trained_runs, tmp_path, monkeypatch):
    monkeypatch.setattr(density, "machine", lambda run: "a machine, revision 1")
    first, second, other = trained_runs
    path = density.record_runs("small", [first, second], tmp_path)
    (row,) = density.added_rows(tmp_path)
    assert json.loads(path.read_text())["command"] == "vae --latent-dim 2"
    assert (row.seeds, row.samples, row.data) == (2, 5, density.MNIST)
    assert row.seconds > 0
    for runs, message in (
        ([first, first], "same seed"),
        ([first, other], "differ in more than their seeds"),
    ):
        with pytest.raises(UserError, match=message):
            density.record_runs("small", runs, tmp_path)


@pytest.fixture
def trained_runs(tmp_path, monkeypatch):
    """Three tiny evaluated runs, of which the last has another latent dimension."""
    runs, data = [], random_dataset(name="mnist")
    for seed, dim in ((1, 2), (2, 2), (3, 3)):
        out = tmp_path / f"{seed}"
        command = ["train", "vae", "--latent-dim", str(dim), "--seed", str(seed), "--out", str(out)]
        monkeypatch.setattr(sys, "argv", ["vaekit", *command])
        model = build("vae", data, seed=seed, latent_dim=dim, hidden_dim=8, likelihood="bernoulli")
        train(
            model, data, out=str(out), binarisation="dynamic", epochs=1, seed=seed, progress=False
        )
        evaluate(out, data, metrics=("elbo", "nll"), samples=5, limit=20)
        runs.append(out)
    return runs


def odd_record(seed, **aurocs):
    """A record of benchmarks/anomalies.py with these AUROCs by detector, `nll` being the default score."""
    detectors = {
        name: {
            "false_alarms": 0.04 + 0.02 * seed,
            "auroc": {"clothes": value},
            "found": {"clothes": 0.5},
        }
        for name, value in aurocs.items()
    }
    return {
        "task": "digits", "seed": seed, "default": "nll", "detectors": detectors, "minutes": 5.0,
        "images": {"validation": 9, "test": 9, "clothes": 9}, "date": "2026-11-27", "machine": "m",
    }  # fmt: skip


BASELINES = {"IsolationForest on PCA": 0.6, "k-NN on pixels": 0.8}


@pytest.mark.parametrize(
    ("ours", "lines"),
    [
        ({"nll": 0.9, "latent": 0.95}, ["- Nowhere in this table."]),
        ({"nll": 0.7, "latent": 0.95}, ["the default nll (0.700), to k-NN on pixels (0.800)"]),
        (
            {"nll": 0.7, "latent": 0.75},
            ["every score, to k-NN on pixels (0.800; best latent, 0.750)"],
        ),
    ],
)
def test_the_table_of_odd_images_says_where_vaekit_loses(ours, lines):
    records = [odd_record(seed, **ours, **BASELINES) for seed in (0, 1)]
    text = odd_images.page(records)
    for line in lines:
        assert line in text
    (row,) = [
        each for each in text.splitlines() if each.startswith("| MNIST, binarised | clothes |")
    ]
    assert f"{ours['nll']:.3f} (sd 0.000) *" in row
    best = max([*ours.values(), 0.8])
    assert f"**{best:.3f} (sd 0.000)**" in row
    assert row.endswith("| 2 |")
    assert "0.050 (sd 0.014)" in text  # false alarms of 4 % and 6 %


@pytest.mark.parametrize("kind", odd_images.CORRUPTIONS)
def test_corrupted_images_differ_as_they_should(kind):
    images = random_dataset((3, 16, 16), kind="grey").test.images
    found = odd_images.corrupt(kind, images, 0)
    assert found.shape == images.shape
    assert found.dtype == torch.uint8
    assert torch.equal(found, odd_images.corrupt(kind, images, 0))
    changed = found != images
    if kind == "occlusion":
        assert ((found == 127).sum((1, 2, 3)) >= 3 * 16).all()
        assert (changed.any(1).sum((1, 2)) <= 16).all()
    else:
        rough = (found.float().diff(dim=-1).var(), images.float().diff(dim=-1).var())
        assert rough[0] > rough[1] if kind == "noise" else rough[0] < rough[1] / 2


def test_left_out_classes_are_all_odd_and_no_label_remains():
    data = random_dataset()
    rest, odd = odd_images.left_out(data, [1])
    counts = [int((split.labels == 1).sum()) for split in data.splits.values()]
    assert len(odd) == sum(counts)
    assert [len(s) for s in rest.splits.values()] == [20 - count for count in counts]
    assert all(split.labels is None for split in rest.splits.values())
