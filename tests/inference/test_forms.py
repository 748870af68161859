"""The same images in every form that holds them, arrays and files, give the same latents to one trained model."""

import zipfile

import numpy as np
import pytest
import tifffile
from PIL import Image

from vaekit import UserError, build, encode, load_data, train
from vaekit.cli.main import main
from vaekit.data.sources.inputs import find_image_files, read_images
from vaekit.inference.encoding import images_to_encode
from vaekit.settings.data import ValueRange
from vaekit.support.console import ProgressBar

QUIET = ProgressBar(False)
RANDOM = np.random.default_rng(0).random((20, 9, 7))
BITS = RANDOM > 0.5
VALUES = {
    "8 bits": (256 * RANDOM).astype(np.uint8),
    "16 bits": (65536 * RANDOM).astype(np.uint16),
    "16 bits up to 255": (256 * RANDOM).astype(np.uint16),
    "16 bits, 0 or 1": BITS.astype(np.uint16),
    "8 bits, 0 or 1": BITS.astype(np.uint8),
    "floats to 1": RANDOM.astype(np.float32),
    "floats to 255": (255 * RANDOM).astype(np.float32),
    "floats, 0 or 1": BITS.astype(np.float32),
    "floats, whole": (256 * RANDOM).astype(np.uint8).astype(np.float32),
}


def forms(folder, values):
    """Paths to the same images: an array, an archive, the pages of a file, and folders of one file each."""
    np.save(folder / "array.npy", values)
    kinds = ["npy", "tif"] + ["png"] * (values.dtype.kind == "u")
    for kind in kinds:
        (folder / kind).mkdir()
        for i, image in enumerate(values):
            file = folder / kind / f"{i:02}.{kind}"
            if kind == "npy":
                np.save(file, image)
            elif kind == "tif":
                tifffile.imwrite(file, image, photometric="minisblack", byteorder=">")
            else:
                Image.fromarray(image).save(file)
    tifffile.imwrite(folder / "stack.tif", values, photometric="minisblack")
    with zipfile.ZipFile(folder / "tif.zip", "w") as archive:
        for file in sorted((folder / "tif").iterdir()):
            archive.write(file, f"tif/{file.name}")
    files = ("array.npy", "tif.zip", "stack.tif")
    return [*(folder / file for file in files), *(folder / kind for kind in kinds)]


@pytest.mark.parametrize("trained_on", ["array", "files"])
@pytest.mark.parametrize("kind", VALUES)
def test_the_same_images_in_every_form_have_the_same_latents(kind, trained_on, tmp_path):
    paths = forms(tmp_path, VALUES[kind])
    source = paths[0] if trained_on == "array" else tmp_path / "tif"
    data = load_data(source, progress=False)
    model = build("vae", data, latent_dim=2, hidden_dim=4, seed=1)
    run = train(model, data, out=tmp_path / "run", epochs=1, progress=False)
    tables = [encode(run, path, samples=2) for path in paths]
    for path, table in zip(paths, tables, strict=True):
        assert np.allclose(table["z_mean"], tables[0]["z_mean"], atol=1e-6), path
        assert len(np.unique(table["z_mean"][:, 0])) == 20, path


@pytest.mark.parametrize("stored", [np.uint8, np.uint16])
def test_a_range_of_0_to_1_of_larger_whole_numbers_is_refused(stored, tmp_path):
    np.save(tmp_path / "a.npy", (200 * RANDOM).astype(stored))
    with pytest.raises(UserError, match="from 0 to 199, the range 0 to 1 keeps two"):
        load_data(tmp_path / "a.npy", range="0,1", progress=False)


def test_files_of_zeros_and_ones_in_8_bits_are_said_to_be_almost_black(tmp_path, capsys):
    forms(tmp_path, VALUES["8 bits, 0 or 1"])
    data = load_data(tmp_path / "png", progress=False)
    assert [*data.reading] == [
        "8-bit values, all 0 or 1 of 255: almost black; if they mean black and white, save them as 0 and 255"
    ]
    assert data.value_range == ValueRange()
    assert int(data.train.images.max()) == 1


def test_a_dark_frame_of_the_models_own_type_is_read_by_its_range(tmp_path):
    Image.fromarray((RANDOM[0] * 300).astype(np.uint16)).save(tmp_path / "dark.png")
    files = find_image_files([tmp_path / "dark.png"])
    full = ValueRange(0, 65535, 65536, "uint16")
    read = read_images(files, (1, 9, 7), ProgressBar(False), value_range=full)
    assert np.array_equal(read[0, 0] * 65535, (RANDOM[0] * 300).astype(np.uint16))


def test_a_prepared_file_of_8_bits_is_encoded_in_a_range_of_its_own(tmp_path, monkeypatch):
    forms(tmp_path, VALUES["8 bits"])
    out = tmp_path / "p.safetensors"
    main_arguments = ["vaekit", "data", "prepare", str(tmp_path / "png"), "--out", str(out)]
    monkeypatch.setattr("sys.argv", main_arguments)
    main()
    data = load_data(out, range="10,200", progress=False)
    model = build("vae", data, latent_dim=2, hidden_dim=4, seed=1)
    run = train(model, data, out=tmp_path / "run", epochs=1, progress=False)
    tables = [encode(run, path, samples=2)["z_mean"] for path in (out, tmp_path / "png")]
    assert np.allclose(*(np.sort(table[:, 0]) for table in tables), atol=1e-6)


@pytest.mark.parametrize("form", ["array.npy", "tif"])
def test_resized_images_have_the_levels_of_the_models_data(form, tmp_path):
    forms(tmp_path, (4096 * RANDOM).astype(np.uint16) * 16)
    data = load_data(tmp_path / "array.npy", size="5x5", range="0,65520", progress=False)
    assert data.value_range.levels == 4096
    model = build("vae", data, latent_dim=2, hidden_dim=4, seed=1)
    run = train(model, data, out=tmp_path / "run", epochs=1, progress=False)
    expected = np.concatenate([encode(run, split=s, samples=2)["z_mean"] for s in data.splits])
    path = tmp_path / form
    read = [images[:] for _, images in images_to_encode(run, path, None, None, None, QUIET)]
    steps = read[0].images * 4095
    assert float((steps - steps.round()).abs().max()) < 1e-3
    found = encode(run, path, samples=2)["z_mean"]
    assert np.allclose(np.sort(found[:, 0]), np.sort(expected[:, 0]), atol=1e-4)
