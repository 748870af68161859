"""The explorer's API returns the model's own values, and no request makes it fail."""

import base64
import collections
import contextlib
import io
import shlex
import socket
import time
from pathlib import Path

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
from vaekit.explorer import limits, server
from vaekit.explorer.session import ExplorerSession, centre_digit
from vaekit.inference.encoding import decode
from vaekit.inference.generation import generate
from vaekit.inference.latent_space import decode_latents
from vaekit.inference.tables import read_table

URL = "http://127.0.0.1"
TOKEN = {"authorization": "token secret"}
RUNS = {
    "vae": {},
    "convvae": {"latent_dim": 5},
    "cvae": {"latent_dim": 3},
    "gmvae": {},
    "hvampprior": {"components": 6},
    "deepvae": {
        "groups": "1x1:3 2x1:4 4x1:80"
    },  # of the last group, of 1,280 dimensions, no codes are stored
}
DEEPVAE = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("explorer")
    data = random_dataset(shape=(1, 8, 8))
    for name, more in RUNS.items():
        model = build(name, data, **small_settings(name, **more))
        train(model, data, out=folder / name, epochs=2, batch_size=20, progress=False)
    return folder


@pytest.fixture(scope="module")
def sessions(folder):
    return [ExplorerSession(folder / name) for name in RUNS]


@pytest.fixture
def client(sessions, monkeypatch):
    monkeypatch.setattr(limits, "RATE_BURST", 1e9)
    return open_client(sessions)


def open_client(sessions):
    return TestClient(server.make_app(sessions, "secret"), URL, headers=TOKEN)


def pixels(result, shape=(1, 8, 8)):
    levels = np.frombuffer(base64.b64decode(result["pixels"]), np.uint8)
    return levels.reshape(result["count"], *shape)


def levels(images):
    return (images * 255).round().to(torch.uint8).numpy()


def latent_point(session):
    return {name: [[0.1] * dim] for name, dim in session.dims.items()}


@pytest.mark.parametrize("number", range(len(RUNS)))
def test_a_map_point_is_decoded_and_located_again(client, sessions, number):
    session = sessions[number]
    label = 1 if session.context.condition == "label" else None
    for latent, dim in session.dims.items():
        for method, dims in (("dims", [dim - 1, 0]), ("pca", [])):
            query = {"latent": latent, "method": method, "dims": dims}
            point = [0.7, -0.4]
            body = {**query, "point": point, "current": latent_point(session), "label": label}
            result = client.post(f"/api/runs/{number}/move", json=body).json()
            latents = {k: torch.tensor(z) for k, z in result["latents"].items()}
            if method == "dims":
                assert latents[latent][0, [dim - 1, 0]].tolist() == pytest.approx(point)
                assert latents[latent][0, 1:-1].tolist() == pytest.approx([0.1] * (dim - 2))
            body = {**query, "latents": result["latents"]}
            located = client.post(f"/api/runs/{number}/locate", json=body).json()["point"]
            assert located == pytest.approx(point, abs=1e-3)
            y = None if label is None else torch.tensor([label])
            with torch.no_grad():
                expected = levels(decode_latents(session.model, latents, y))
            assert np.abs(pixels(result).astype(int) - expected).max() <= 1


@pytest.mark.parametrize("number", range(len(RUNS)))
def test_maps_show_the_posterior_means(client, sessions, number):
    session = sessions[number]
    about = client.get("/api/runs").json()["runs"][number]
    for each in about["latents"]:
        query = {"latent": each["name"], "method": "dims", "dims": [1, 0]}
        result = client.get(f"/api/runs/{number}/map", params=query).json()
        codes = session.context.picture_data.codes[each["name"]]
        np.testing.assert_allclose(result["points"], codes[:, [1, 0]], atol=1e-4)
        assert result["labels"] == session.context.picture_data.code_labels.tolist()
        information = each["information"]
        assert [information[d] for d in each["order"]] == sorted(information, reverse=True)
    assert [*(each["name"] for each in about["latents"])] == session.latents


def test_a_deep_hierarchy_has_sliders_along_components_of_its_top_groups(client, sessions):
    about = client.get("/api/runs").json()["runs"][DEEPVAE]["latents"]
    codes = sessions[DEEPVAE].context.picture_data.codes
    assert [each["name"] for each in about] == [*codes] == ["z1_0", "z2_0"]
    assert sum(len(each["components"]) for each in about) <= 24
    for each in about:
        z = codes[each["name"]] - codes[each["name"]].mean(0)
        for component in each["components"]:  # an axis of the codes, of unit length
            axis = torch.tensor(component["axis"])
            assert axis.norm().item() == pytest.approx(1, abs=1e-3)
            spread = (z @ axis).std(correction=0).item()
            assert spread == pytest.approx(component["spread"], rel=0.01, abs=1e-4)
            origin = codes[each["name"]].mean(0) @ axis
            assert origin.item() == pytest.approx(component["origin"], abs=1e-3)
    others = [
        each for run in client.get("/api/runs").json()["runs"][:DEEPVAE] for each in run["latents"]
    ]
    assert all(each["components"] is None for each in others)


def test_samples_of_a_deep_hierarchy_are_those_of_generate_and_its_saves_are_decoded(
    client, sessions
):
    session = sessions[DEEPVAE]
    body = {"count": 3, "seed": 4, "temperature": 0.5}
    result = client.post(f"/api/runs/{DEEPVAE}/sample", json=body).json()
    expected = levels(generate(session.model, 3, 0.5, 4))
    assert np.abs(pixels(result).astype(int) - expected).max() <= 1
    saved = client.post(f"/api/runs/{DEEPVAE}/save", json={"latents": result["latents"]}).json()
    table = shlex.split(saved["command"])[3]
    shown = client.post(f"/api/runs/{DEEPVAE}/decode", json={"latents": result["latents"]}).json()
    again = levels(decode(session.run, read_table(Path(table))))
    assert np.abs(pixels(shown).astype(int) - again).max() <= 1


def test_contours_enclose_their_share_of_a_standard_normal(client):
    result = client.get("/api/runs/0/map", params={"latent": "z", "dims": [0, 1]}).json()
    for contour in result["contours"]:
        radius = np.sqrt(-2 * np.log(1 - contour["mass"]))
        (line,) = contour["lines"]
        np.testing.assert_allclose(np.hypot(*np.array(line).T), radius, rtol=0.1)


def test_components_and_clusters_are_returned(client, sessions):
    top = client.get("/api/runs/4/map", params={"latent": "z2", "method": "pca"}).json()
    assert len(top["components"]) == 6
    clusters = client.get("/api/runs/3/map", params={"latent": "z", "dims": [0, 1]}).json()
    assert set(clusters["clusters"]) <= {0, 1, 2}
    assert len(clusters["components"]) == 3


def test_three_dimensions_are_a_point_cloud(client):
    query = {"latent": "z", "method": "dims", "dims": [0, 1, 2]}
    result = client.get("/api/runs/2/map", params=query).json()
    assert np.array(result["points"]).shape[1] == 3


def test_neighbour_embeddings_are_computed_in_the_background_saved_and_inverted(
    client, sessions, folder
):
    query = {"latent": "z", "method": "tsne"}
    body = {**query, "point": [0, 0], "current": latent_point(sessions[1])}
    assert client.get("/api/runs/1/map", params=query).json() == {"state": "absent"}
    refused = client.post("/api/runs/1/move", json=body)
    assert (refused.status_code, sessions[1].maps.futures) == (400, {})  # neither starts it
    client.post("/api/runs/1/embedding", json=query)
    deadline = time.monotonic() + 60
    while (result := client.get("/api/runs/1/map", params=query).json())["state"] == "computing":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    points = np.array(result["points"], dtype=np.float32)
    assert (folder / "convvae" / "map-z-tsne.safetensors").is_file()
    reopened = ExplorerSession(folder / "convvae")
    np.testing.assert_array_equal(
        reopened.maps.start_embedding("z", "tsne").result(),
        sessions[1].maps.futures["z", "tsne"].result(),
    )
    body["point"] = points[3].tolist()
    z = client.post("/api/runs/1/move", json=body).json()["latents"]["z"]
    codes = sessions[1].context.picture_data.codes["z"]
    distances = np.linalg.norm(codes[result["positions"]].numpy() - np.array(z), axis=1)
    assert distances.argmin() == 3


def test_samples_are_those_of_generate(client, sessions):
    for number, more in ((0, {}), (2, {"label": 2}), (3, {"cluster": 1}), (4, {})):
        body = {"count": 4, "seed": 9, "temperature": 0.8, **more}
        result = client.post(f"/api/runs/{number}/sample", json=body).json()
        expected = generate(sessions[number].model, 4, 0.8, 9, **more)
        assert np.abs(pixels(result).astype(int) - levels(expected)).max() <= 1


def test_neighbours_are_the_nearest_training_images(client, sessions):
    session = sessions[0]
    (batch, codes, rows), z = session.training_codes, torch.tensor([[0.3, -0.2]])
    result = client.post("/api/runs/0/nearest", json={"latents": {"z": z.tolist()}}).json()
    first = int((codes - z).norm(dim=1).argmin())
    assert result["neighbours"][0]["row"] == int(rows[first])
    np.testing.assert_array_equal(pixels(result)[0], levels(batch.images[first]))
    distances = [each["distance"] for each in result["neighbours"]]
    assert distances == sorted(distances)


def png(array):
    content = io.BytesIO()
    Image.fromarray(array).save(content, "PNG")
    return base64.b64encode(content.getvalue()).decode()


def test_an_uploaded_image_is_encoded(client, sessions):
    image = sessions[0].context.picture_data.batches["test"].images[:1]
    body = {"image": png(levels(image)[0, 0])}
    result = client.post("/api/runs/0/encode", json=body).json()
    with torch.no_grad():
        q = sessions[0].model.posteriors(sessions[0].model.given(image, None))["z"]
    np.testing.assert_allclose(result["latents"]["z"], q.mean, atol=1e-4)
    np.testing.assert_allclose(result["scales"]["z"], q.stddev[0], atol=1e-3)
    shown = np.frombuffer(base64.b64decode(result["input"]), np.uint8).reshape(8, 8)
    np.testing.assert_array_equal(shown, levels(image)[0, 0])
    with torch.no_grad():
        reconstruction = levels(sessions[0].model.reconstruct(image).mean)
    shown = np.frombuffer(base64.b64decode(result["reconstruction"]), np.uint8)
    assert np.abs(shown.astype(int) - reconstruction.reshape(-1)).max() <= 1
    inverted = client.post(
        "/api/runs/0/encode", json={"image": png(255 - levels(image)[0, 0]), "invert": True}
    ).json()
    assert inverted["latents"] == result["latents"]
    assert result["elbo"] < 0


def test_a_lower_latent_is_set_to_its_mean_given_the_upper_one(client, sessions):
    body = {
        "latent": "z2",
        "method": "pca",
        "point": [0.4, 0.2],
        "current": latent_point(sessions[4]),
    }
    result = client.post("/api/runs/4/move", json=body).json()["latents"]
    with torch.no_grad():
        prior = sessions[4].model.prior["z1"](
            {"x": None, "y": None, "z2": torch.tensor(result["z2"])}
        )
    np.testing.assert_allclose(result["z1"], prior.mean, atol=1e-4)
    body = {**body, "latent": "z1", "method": "dims", "dims": [0, 1]}
    assert (
        client.post("/api/runs/4/move", json=body).json()["latents"]["z2"]
        == latent_point(sessions[4])["z2"]
    )


def test_without_a_label_the_class_with_the_highest_elbo_is_used(client, sessions):
    image = {
        "image": png(levels(sessions[2].context.picture_data.batches["test"].images[:1])[0, 0])
    }
    classes = range(sessions[2].model.blueprint.classes)
    each = [
        client.post("/api/runs/2/encode", json={**image, "label": k}).json()["elbo"]
        for k in classes
    ]
    result = client.post("/api/runs/2/encode", json=image).json()
    assert result["label"] == int(np.argmax(each))
    assert result["elbo"] == max(each)


def test_a_drawn_digit_is_centred_as_in_mnist():
    drawn = np.zeros((1, 28, 28), np.uint8)
    drawn[0, 1:5, 1:3] = 255
    result = centre_digit(drawn)
    ys, _ = np.nonzero(result[0] > 128)
    assert ys.max() - ys.min() + 1 == 20
    weights = result[0].astype(float)
    for axis in (0, 1):
        centre = (weights.sum(1 - axis) * (np.arange(28) + 0.5)).sum() / weights.sum()
        assert abs(centre - 14) < 0.6
    assert not centre_digit(np.zeros((1, 28, 28), np.uint8)).any()


def test_interpolations_and_analogies(client, sessions):
    body = {"start": {"z": [[-1, 0]]}, "end": {"z": [[1, 2]]}, "steps": 5}
    result = client.post("/api/runs/0/interpolate", json=body).json()
    np.testing.assert_allclose(result["latents"]["z"][1], [-0.5, 0.5])
    assert result["count"] == 5
    shown = client.post("/api/runs/2/analogies", json={"latents": latent_point(sessions[2])}).json()
    assert shown["count"] == sessions[2].model.blueprint.classes
    refused = client.post("/api/runs/0/analogies", json={"latents": latent_point(sessions[0])})
    assert refused.status_code == 400


@pytest.mark.parametrize("kind", ["png", "gif"])
@pytest.mark.parametrize("number", [0, 2, 4])
def test_the_saved_command_reproduces_the_file(client, sessions, vaekit, tmp_path, number, kind):
    latents = {
        k: np.random.default_rng(0).normal(size=(6, d)).tolist()
        for k, d in sessions[number].dims.items()
    }
    label = {"label": 1} if number == 2 else {}
    body = {"latents": latents, "kind": kind, **label}
    result = client.post(f"/api/runs/{number}/save", json=body).json()
    words = shlex.split(result["command"])
    again = tmp_path / f"again.{kind}"
    words[words.index("--out") + 1] = str(again)
    code, _, err = vaekit(*words[1:])
    assert code == 0, err
    assert again.read_bytes() == (sessions[number].run.pictures / result["path"]).read_bytes()


LATENTS = {"latents": {"z": [[0, 0]]}}
UNKNOWN_LATENT = {"latent": "q", "method": "pca", "point": [0, 0]}
DIMENSION_5 = {"latent": "z", "method": "dims", "dims": [5]}
BAD_REQUESTS = [
    ("get", "/api/runs/9/curves", None, "numbered 0 to 5"),
    ("get", "/api/runs/-1/curves", None, "numbered 0 to 5"),
    ("get", "/api/runs/x/curves", None, ""),
    ("get", "/api/runs/0/map?latent=q", None, "there is no latent 'q'"),
    ("get", "/api/runs/0/map?latent=z&dims=0&dims=7", None, "has 2 dimensions"),
    ("get", "/api/runs/0/map?latent=z&dims=1&dims=1", None, "has 2 dimensions"),
    ("get", "/api/runs/0/map?latent=z&method=x", None, ""),
    ("get", "/api/runs/0/test/99999999", None, "there is no test image 99999999"),
    ("get", "/api/runs/0/test/-1", None, ""),
    ("post", "/api/runs/0/decode", {"latents": {"z": [[0]]}}, "z has 2 dimensions"),
    ("post", "/api/runs/0/decode", {"latents": {"q": [[0, 0]]}}, "pass the latents z"),
    ("post", "/api/runs/0/decode", {"latents": {"z": []}}, ""),
    ("post", "/api/runs/0/decode", {"latents": {"z": [[1e300, 0]]}}, ""),
    ("post", "/api/runs/0/decode", {"latents": {"z": [[0, 0]] * 401}}, ""),
    ("post", "/api/runs/0/nearest", {"latents": {"z": [[0, 0]] * 2}}, "one latent point at a time"),
    ("post", "/api/runs/2/decode", {"latents": {"z": [[0, 0, 0]]}, "label": 77}, "labels are 0 to"),
    ("post", "/api/runs/0/sample", {"cluster": 1}, "the model has no clusters"),
    ("post", "/api/runs/3/sample", {"cluster": 7}, "the clusters are 0 to 2"),
    ("post", "/api/runs/0/sample", {"label": 1}, "label needs a model"),
    ("post", "/api/runs/0/encode", {"image": "%%%"}, "not in base64"),
    ("post", "/api/runs/0/encode", {"image": "aGVsbG8="}, "it is not an image"),
    ("post", "/api/runs/0/encode", {"image": ""}, "it is empty"),
    ("post", "/api/runs/0/move", {**DIMENSION_5, "point": [0, 0], "current": {"z": [[0, 0]]}}, "2 dimensions"),
    ("post", "/api/runs/0/move", {**UNKNOWN_LATENT, "current": {"z": [[0, 0]]}}, "no latent 'q'"),
    ("post", "/api/runs/0/locate", {**DIMENSION_5, **LATENTS}, "2 dimensions"),
    ("post", "/api/runs/0/save", {**LATENTS, "path": "/etc/x"}, ""),
    ("get", "/../../../../etc/passwd", None, ""),
    ("get", "/%2e%2e/%2e%2e/session.py", None, ""),
    ("get", "/..%2fserver.py", None, ""),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "body", "message"), BAD_REQUESTS)
def test_bad_requests_are_refused(client, method, path, body, message):
    response = client.request(method, path, json=body)
    assert 400 <= response.status_code < 500
    assert message in response.text


def test_requests_one_after_the_other_are_not_too_many(client):
    count = limits.MAX_CONCURRENT + 5
    assert {client.get("/api/runs/0/curves").status_code for _ in range(count)} == {200}


def test_large_requests_many_requests_and_other_hosts_are_refused(sessions, monkeypatch):
    client = open_client(sessions)
    large = client.post("/api/runs/0/encode", content=b"x" * (limits.MAX_REQUEST_BYTES + 1))
    assert large.status_code == 413
    assert client.get("/api/runs", headers={"host": "evil.example"}).status_code == 400
    monkeypatch.setattr(limits, "RATE_PER_SECOND", 1.0)
    codes = [
        client.get("/api/runs/0/curves").status_code for _ in range(int(limits.RATE_BURST) + 50)
    ]
    assert set(codes) == {200, 429}
    assert codes[0] == 200
    page = TestClient(server.make_app(sessions), URL).get("/")
    assert "vaekit explore" in page.text
    assert "default-src 'self'" in page.headers["content-security-policy"]


def test_a_model_that_completes_images_has_a_map_but_no_decoding(tmp_path):
    data = random_dataset(shape=(1, 8, 8))
    model = build("cvae", data, latent_dim=2, hidden_dim=8, condition="quadrants:1")
    run = train(model, data, out=tmp_path / "run", epochs=1, progress=False)
    client = open_client([ExplorerSession(run)])
    assert client.get("/api/runs").json()["runs"][0]["completes_images"]
    response = client.post("/api/runs/0/decode", json={"latents": {"z": [[0, 0]]}})
    assert response.status_code == 400
    assert "completes images" in response.text
    assert client.get("/api/runs/0/map", params={"latent": "z"}).status_code == 200


def test_the_command_refuses_missing_runs_ports_and_packages(vaekit, folder, monkeypatch):
    for words, message in [
        (["nowhere"], "there is no run directory nowhere"),
        ([folder / "vae", "--port", "99999"], "--port 99999 is not available"),
    ]:
        code, _, err = vaekit("explore", *words, "--no-browser")
        assert (code, err.count("\n")) == (2, 1)
        assert message in err
    monkeypatch.setitem(__import__("sys").modules, "uvicorn", None)
    monkeypatch.delitem(__import__("sys").modules, "vaekit.explorer.server")
    code, _, err = vaekit("explore", folder / "vae", "--no-browser")
    assert (code, err) == (2, "vaekit: uvicorn is not installed: pip install 'vaekit[explore]'\n")


def test_it_listens_on_localhost_only_and_without_nagle_delay(folder, monkeypatch):
    """asyncio sets TCP_NODELAY only for sockets with a protocol; without it each small response took 40 ms."""
    listening = []
    monkeypatch.setattr(
        server.uvicorn.Server,
        "run",
        lambda self, sockets: listening.append((sockets[0].getsockname()[0], sockets[0].proto)),
    )
    log = []
    server.explore([folder / "vae"], browser=False, log=log.append)
    assert listening == [("127.0.0.1", socket.IPPROTO_TCP)]
    assert log[0].startswith("http://127.0.0.1:")


def test_runs_without_weights_are_refused(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"has no config\.json"):
        ExplorerSession(tmp_path / "empty")


def fuzz(sessions, monkeypatch, count):
    """Send the valid and invalid requests that schemathesis generates from the OpenAPI description."""
    monkeypatch.setattr(limits, "RATE_BURST", 1e9)
    headers = {"host": "127.0.0.1", **TOKEN}
    app = server.make_app(sessions, "secret")
    description = schemathesis.openapi.from_asgi("/openapi.json", app, headers=headers)
    codes = collections.Counter()
    for operation in description.get_all_operations():
        for mode in schemathesis.GenerationMode:

            @settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck))
            @given(operation.ok().as_strategy(generation_mode=mode))
            def send(case):
                response = case.call(headers=headers)
                codes[response.status_code] += 1
                assert response.status_code < 500, (case.as_curl_command(), response.text)

            with contextlib.suppress(Unsatisfiable):  # without input, none is invalid
                send()
    return codes


def test_generated_requests(sessions, monkeypatch):
    codes = fuzz(sessions, monkeypatch, 5)
    assert sum(codes.values()) > 50
    assert codes[200] > 0


@pytest.mark.long
def test_generated_requests_for_long(sessions, monkeypatch):
    assert sum(fuzz(sessions, monkeypatch, 500).values()) > 5000
