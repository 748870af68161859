"""What the explorer answers is what the model says, and nothing that is asked breaks it."""

import base64
import collections
import contextlib
import io
import shlex
import socket
import time

import numpy as np
import pytest
import schemathesis
import torch
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from PIL import Image

from conftest import random_dataset, small_settings
from vaekit import UserError, build, train
from vaekit.explorer import server
from vaekit.explorer.atlas import Atlas, centred
from vaekit.inference.generation import generate

HERE = "http://127.0.0.1"
RUNS = {
    "vae": {},
    "convvae": {"latent_dim": 5},
    "cvae": {"latent_dim": 3},
    "gmvae": {},
    "hvampprior": {"components": 6},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("explored")
    data = random_dataset(shape=(1, 8, 8))
    for name, more in RUNS.items():
        model = build(name, data, **small_settings(name, **more))
        train(model, data, out=folder / name, epochs=2, batch_size=20, progress=False)
    return folder


@pytest.fixture(scope="module")
def atlases(folder):
    return [Atlas(folder / name) for name in RUNS]


@pytest.fixture
def client(atlases, monkeypatch):
    monkeypatch.setattr(server, "BURST", 1e9)
    return TestClient(server.make_app(atlases), HERE)


def pixels(found, shape=(1, 8, 8)):
    levels = np.frombuffer(base64.b64decode(found["pixels"]), np.uint8)
    return levels.reshape(found["count"], *shape)


def levels(images):
    return (images * 255).round().to(torch.uint8).numpy()


def middle(atlas):
    return {name: [[0.1] * dim] for name, dim in atlas.dims.items()}


@pytest.mark.parametrize("number", range(len(RUNS)))
def test_a_place_of_the_map_is_decoded_and_found_again(client, atlases, number):
    atlas = atlases[number]
    label = 1 if atlas.scene.condition == "label" else None
    for latent, dim in atlas.dims.items():
        for method, dims in (("dims", [dim - 1, 0]), ("pca", [])):
            ask = {"latent": latent, "method": method, "dims": dims}
            place = [0.7, -0.4]
            body = {**ask, "place": place, "now": middle(atlas), "label": label}
            found = client.post(f"/api/runs/{number}/at", json=body).json()
            latents = {k: torch.tensor(z) for k, z in found["latents"].items()}
            if method == "dims":
                assert latents[latent][0, [dim - 1, 0]].tolist() == pytest.approx(place)
                assert latents[latent][0, 1:-1].tolist() == pytest.approx([0.1] * (dim - 2))
            where = {**ask, "latents": found["latents"]}
            again = client.post(f"/api/runs/{number}/where", json=where).json()["place"]
            assert again == pytest.approx(place, abs=1e-3)
            y = None if label is None else torch.tensor([label])
            with torch.no_grad():
                expected = levels(atlas.model.decode(y, **latents).mean)
            assert np.abs(pixels(found).astype(int) - expected).max() <= 1


@pytest.mark.parametrize("number", range(len(RUNS)))
def test_maps_show_the_posterior_means(client, atlases, number):
    atlas = atlases[number]
    about = client.get("/api/runs").json()["runs"][number]
    for each in about["latents"]:
        ask = {"latent": each["name"], "method": "dims", "dims": [1, 0]}
        found = client.get(f"/api/runs/{number}/map", params=ask).json()
        codes = atlas.scene.exhibits.codes[each["name"]]
        np.testing.assert_allclose(found["points"], codes[:, [1, 0]], atol=1e-4)
        assert found["labels"] == atlas.scene.exhibits.code_labels.tolist()
        strength = each["strength"]
        assert [strength[d] for d in each["order"]] == sorted(strength, reverse=True)
    assert [*(each["name"] for each in about["latents"])] == atlas.latents


def test_contours_hold_their_share_of_a_standard_normal(client):
    found = client.get("/api/runs/0/map", params={"latent": "z", "dims": [0, 1]}).json()
    for contour in found["contours"]:
        radius = np.sqrt(-2 * np.log(1 - contour["mass"]))
        (line,) = contour["lines"]
        np.testing.assert_allclose(np.hypot(*np.array(line).T), radius, rtol=0.1)


def test_components_are_marked_and_clusters_told(client, atlases):
    top = client.get("/api/runs/4/map", params={"latent": "z2", "method": "pca"}).json()
    assert len(top["components"]) == 6
    clusters = client.get("/api/runs/3/map", params={"latent": "z", "dims": [0, 1]}).json()
    assert set(clusters["clusters"]) <= {0, 1, 2}
    assert len(clusters["components"]) == 3


def test_three_dimensions_are_a_cloud(client):
    ask = {"latent": "z", "method": "dims", "dims": [0, 1, 2]}
    found = client.get("/api/runs/2/map", params=ask).json()
    assert np.array(found["points"]).shape[1] == 3


def test_neighbour_maps_come_later_are_kept_and_lead_back(client, atlases, folder):
    ask = {"latent": "z", "method": "tsne"}
    body = {**ask, "place": [0, 0], "now": middle(atlases[1])}
    deadline = time.monotonic() + 60
    while (found := client.get("/api/runs/1/map", params=ask).json())["state"] == "computing":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    points = np.array(found["points"], dtype=np.float32)
    assert (folder / "convvae" / "map-z-tsne.safetensors").is_file()
    again = Atlas(folder / "convvae")
    np.testing.assert_array_equal(
        again.maps.neighbours("z", "tsne").result(), atlases[1].maps.found["z", "tsne"].result()
    )
    body["place"] = points[3].tolist()
    z = client.post("/api/runs/1/at", json=body).json()["latents"]["z"]
    codes = atlases[1].scene.exhibits.codes["z"]
    distances = np.linalg.norm(codes[found["places"]].numpy() - np.array(z), axis=1)
    assert distances.argmin() == 3


def test_draws_are_those_of_generate(client, atlases):
    for number, more in ((0, {}), (2, {"label": 2}), (3, {"cluster": 1}), (4, {})):
        body = {"count": 4, "seed": 9, "temperature": 0.8, **more}
        found = client.post(f"/api/runs/{number}/draws", json=body).json()
        expected = generate(atlases[number].model, 4, 0.8, 9, **more)
        assert np.abs(pixels(found).astype(int) - levels(expected)).max() <= 1


def test_neighbours_are_the_nearest_training_images(client, atlases):
    atlas = atlases[0]
    (batch, codes, rows), z = atlas.known, torch.tensor([[0.3, -0.2]])
    found = client.post("/api/runs/0/nearest", json={"latents": {"z": z.tolist()}}).json()
    first = int((codes - z).norm(dim=1).argmin())
    assert found["neighbours"][0]["row"] == int(rows[first])
    np.testing.assert_array_equal(pixels(found)[0], levels(batch.images[first]))
    distances = [each["distance"] for each in found["neighbours"]]
    assert distances == sorted(distances)


def png(array):
    content = io.BytesIO()
    Image.fromarray(array).save(content, "PNG")
    return base64.b64encode(content.getvalue()).decode()


def test_an_image_of_ones_own_is_encoded(client, atlases):
    image = atlases[0].scene.exhibits.batches["test"].images[:1]
    body = {"image": png(levels(image)[0, 0])}
    found = client.post("/api/runs/0/encode", json=body).json()
    with torch.no_grad():
        q = atlases[0].model.posteriors(atlases[0].model.given(image, None))["z"]
    np.testing.assert_allclose(found["latents"]["z"], q.mean, atol=1e-4)
    np.testing.assert_allclose(found["scales"]["z"], q.stddev[0], atol=1e-3)
    seen = np.frombuffer(base64.b64decode(found["seen"]), np.uint8).reshape(8, 8)
    np.testing.assert_array_equal(seen, levels(image)[0, 0])
    inverted = client.post(
        "/api/runs/0/encode", json={"image": png(255 - levels(image)[0, 0]), "invert": True}
    ).json()
    assert inverted["latents"] == found["latents"]
    assert found["elbo"] < 0


def test_the_lower_level_follows_the_upper_one(client, atlases):
    body = {"latent": "z2", "method": "pca", "place": [0.4, 0.2], "now": middle(atlases[4])}
    found = client.post("/api/runs/4/at", json=body).json()["latents"]
    with torch.no_grad():
        prior = atlases[4].model.prior["z1"](
            {"x": None, "y": None, "z2": torch.tensor(found["z2"])}
        )
    np.testing.assert_allclose(found["z1"], prior.mean, atol=1e-4)
    body = {**body, "latent": "z1", "method": "dims", "dims": [0, 1]}
    assert (
        client.post("/api/runs/4/at", json=body).json()["latents"]["z2"] == middle(atlases[4])["z2"]
    )


def test_an_image_without_a_label_is_of_the_likeliest_class(client, atlases):
    image = {"image": png(levels(atlases[2].scene.exhibits.batches["test"].images[:1])[0, 0])}
    classes = range(atlases[2].model.blueprint.classes)
    each = [
        client.post("/api/runs/2/encode", json={**image, "label": k}).json()["elbo"]
        for k in classes
    ]
    found = client.post("/api/runs/2/encode", json=image).json()
    assert found["label"] == int(np.argmax(each))
    assert found["elbo"] == max(each)


def test_a_drawn_digit_is_put_where_mnists_are():
    drawn = np.zeros((1, 28, 28), np.uint8)
    drawn[0, 1:5, 1:3] = 255
    found = centred(drawn)
    ys, _ = np.nonzero(found[0] > 128)
    assert ys.max() - ys.min() + 1 == 20
    weights = found[0].astype(float)
    for axis in (0, 1):
        at = (weights.sum(1 - axis) * (np.arange(28) + 0.5)).sum() / weights.sum()
        assert abs(at - 14) < 0.6
    assert not centred(np.zeros((1, 28, 28), np.uint8)).any()


def test_ways_and_analogies(client, atlases):
    body = {"start": {"z": [[-1, 0]]}, "end": {"z": [[1, 2]]}, "steps": 5}
    found = client.post("/api/runs/0/between", json=body).json()
    np.testing.assert_allclose(found["latents"]["z"][1], [-0.5, 0.5])
    assert found["count"] == 5
    shown = client.post("/api/runs/2/analogies", json={"latents": middle(atlases[2])}).json()
    assert shown["count"] == atlases[2].model.blueprint.classes
    refused = client.post("/api/runs/0/analogies", json={"latents": middle(atlases[0])})
    assert refused.status_code == 400


@pytest.mark.parametrize("kind", ["png", "gif"])
@pytest.mark.parametrize("number", [0, 2, 4])
def test_what_is_saved_the_shell_makes_too(client, atlases, vaekit, tmp_path, number, kind):
    latents = {
        k: np.random.default_rng(0).normal(size=(6, d)).tolist()
        for k, d in atlases[number].dims.items()
    }
    label = {"label": 1} if number == 2 else {}
    body = {"latents": latents, "kind": kind, **label}
    found = client.post(f"/api/runs/{number}/save", json=body).json()
    words = shlex.split(found["command"])
    again = tmp_path / f"again.{kind}"
    words[words.index("--out") + 1] = str(again)
    code, _, err = vaekit(*words[1:])
    assert code == 0, err
    assert again.read_bytes() == (atlases[number].run.pictures / found["path"]).read_bytes()


LATENTS = {"latents": {"z": [[0, 0]]}}
OTHER = {"latent": "q", "method": "pca", "place": [0, 0]}
FIVE = {"latent": "z", "method": "dims", "dims": [5]}
BAD = [
    ("get", "/api/runs/9/curves", None, "there are 5 runs"),
    ("get", "/api/runs/-1/curves", None, "there are 5 runs"),
    ("get", "/api/runs/x/curves", None, ""),
    ("get", "/api/runs/0/map?latent=q", None, "there is no latent 'q'"),
    ("get", "/api/runs/0/map?latent=z&dims=0&dims=7", None, "has 2 dimensions"),
    ("get", "/api/runs/0/map?latent=z&dims=1&dims=1", None, "has 2 dimensions"),
    ("get", "/api/runs/0/map?latent=z&method=x", None, ""),
    ("get", "/api/runs/0/test/99999999", None, "no such test image"),
    ("get", "/api/runs/0/test/-1", None, ""),
    ("post", "/api/runs/0/decode", {"latents": {"z": [[0]]}}, "z has 2 dimensions"),
    ("post", "/api/runs/0/decode", {"latents": {"q": [[0, 0]]}}, "give the latents z"),
    ("post", "/api/runs/0/decode", {"latents": {"z": []}}, ""),
    ("post", "/api/runs/0/decode", {"latents": {"z": [[1e300, 0]]}}, ""),
    ("post", "/api/runs/0/decode", {"latents": {"z": [[0, 0]] * 401}}, ""),
    ("post", "/api/runs/0/nearest", {"latents": {"z": [[0, 0]] * 2}}, "one place at a time"),
    ("post", "/api/runs/2/decode", {"latents": {"z": [[0, 0, 0]]}, "label": 77}, "labels are 0 to"),
    ("post", "/api/runs/0/draws", {"cluster": 1}, "the model has no clusters"),
    ("post", "/api/runs/3/draws", {"cluster": 7}, "the clusters are 0 to 2"),
    ("post", "/api/runs/0/draws", {"label": 1}, "--label needs a model"),
    ("post", "/api/runs/0/encode", {"image": "%%%"}, "not in base64"),
    ("post", "/api/runs/0/encode", {"image": "aGVsbG8="}, "it is no image"),
    ("post", "/api/runs/0/encode", {"image": ""}, "it is empty"),
    ("post", "/api/runs/0/at", {**FIVE, "place": [0, 0], "now": {"z": [[0, 0]]}}, "2 dimensions"),
    ("post", "/api/runs/0/at", {**OTHER, "now": {"z": [[0, 0]]}}, "no latent 'q'"),
    ("post", "/api/runs/0/where", {**FIVE, **LATENTS}, "2 dimensions"),
    ("post", "/api/runs/0/save", {**LATENTS, "path": "/etc/x"}, ""),
    ("get", "/../../../../etc/passwd", None, ""),
    ("get", "/%2e%2e/%2e%2e/atlas.py", None, ""),
    ("get", "/..%2fserver.py", None, ""),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "body", "said"), BAD)
def test_bad_questions_are_refused(client, method, path, body, said):
    answer = client.request(method, path, json=body)
    assert 400 <= answer.status_code < 500
    assert said in answer.text


def test_too_large_and_too_many_and_other_hosts(atlases, monkeypatch):
    app = server.make_app(atlases)
    client = TestClient(app, HERE)
    large = client.post("/api/runs/0/encode", content=b"x" * (server.MOST_BYTES + 1))
    assert large.status_code == 413
    assert client.get("/api/runs", headers={"host": "evil.example"}).status_code == 400
    monkeypatch.setattr(server, "A_SECOND", 1.0)
    codes = [client.get("/api/runs/0/curves").status_code for _ in range(int(server.BURST) + 50)]
    assert set(codes) == {200, 429}
    assert codes[0] == 200
    page = TestClient(server.make_app(atlases), HERE).get("/")
    assert "vaekit explore" in page.text
    assert "default-src 'self'" in page.headers["content-security-policy"]


def test_a_model_that_completes_images_says_so(tmp_path):
    data = random_dataset(shape=(1, 8, 8))
    model = build("cvae", data, latent_dim=2, hidden_dim=8, condition="quadrants:1")
    run = train(model, data, out=tmp_path / "run", epochs=1, progress=False)
    client = TestClient(server.make_app([Atlas(run)]), HERE)
    assert client.get("/api/runs").json()["runs"][0]["completes"]
    answer = client.post("/api/runs/0/decode", json={"latents": {"z": [[0, 0]]}})
    assert answer.status_code == 400
    assert "completes images" in answer.text
    assert client.get("/api/runs/0/map", params={"latent": "z"}).status_code == 200


def test_the_command_refuses_what_it_cannot_serve(vaekit, folder, monkeypatch):
    for words, said in [
        (["nowhere"], "there is no run directory nowhere"),
        ([folder / "vae", "--port", "99999"], "--port 99999 cannot be had"),
    ]:
        code, _, err = vaekit("explore", *words, "--no-browser")
        assert (code, err.count("\n")) == (2, 1)
        assert said in err
    monkeypatch.setitem(__import__("sys").modules, "uvicorn", None)
    monkeypatch.delitem(__import__("sys").modules, "vaekit.explorer.server")
    code, _, err = vaekit("explore", folder / "vae", "--no-browser")
    assert (code, err) == (2, "vaekit: uvicorn is not installed: pip install 'vaekit[explore]'\n")


def test_it_listens_on_this_machine_alone_and_answers_at_once(folder, monkeypatch):
    """asyncio sets TCP_NODELAY of sockets whose protocol is named; without it each small answer took 40 ms."""
    listening = []
    monkeypatch.setattr(
        server.uvicorn.Server,
        "run",
        lambda self, sockets: listening.append((sockets[0].getsockname()[0], sockets[0].proto)),
    )
    said = []
    server.explore([folder / "vae"], browser=False, say=said.append)
    assert listening == [("127.0.0.1", socket.IPPROTO_TCP)]
    assert said[0].startswith("http://127.0.0.1:")


def test_runs_without_weights_are_refused(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"has no config\.json"):
        Atlas(tmp_path / "empty")


def fuzz(atlases, monkeypatch, count):
    """Ask what schemathesis makes of the OpenAPI description, as it should be and as it should not."""
    monkeypatch.setattr(server, "BURST", 1e9)
    host = {"host": "127.0.0.1"}
    app = server.make_app(atlases)
    description = schemathesis.openapi.from_asgi("/openapi.json", app, headers=host)
    codes = collections.Counter()
    for found in description.get_all_operations():
        for mode in schemathesis.GenerationMode:

            @settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck))
            @given(found.ok().as_strategy(generation_mode=mode))
            def ask(case):
                answer = case.call(headers=host)
                codes[answer.status_code] += 1
                assert answer.status_code < 500, (case.as_curl_command(), answer.text)

            with contextlib.suppress(Unsatisfiable):  # what has no input has no bad one
                ask()
    return codes


def test_no_shape_of_input_breaks_it(atlases, monkeypatch):
    codes = fuzz(atlases, monkeypatch, 5)
    assert sum(codes.values()) > 50
    assert codes[200] > 0


@pytest.mark.long
def test_no_shape_of_input_breaks_it_for_long(atlases, monkeypatch):
    assert sum(fuzz(atlases, monkeypatch, 500).values()) > 5000
