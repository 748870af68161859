"""The explorer's server under attack: strangers, many threads, slow and malformed requests, full disks, Ctrl-C."""

import asyncio
import contextlib
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from fastapi.testclient import TestClient

from conftest import random_dataset, small_settings
from vaekit import build, train
from vaekit.explorer import limits, server, session
from vaekit.explorer.session import ExplorerSession
from vaekit.support.devices import own_generator, seeded

URL = "http://127.0.0.1"
TOKEN = {"authorization": "token secret"}
JSON = "content-type: application/json"
ZERO = {"latents": {"z": [[0.0, 0.0]]}}
DECODE = "/api/runs/0/decode"


@pytest.fixture(scope="module")
def sessions(tmp_path_factory):
    folder, data = tmp_path_factory.mktemp("attacked"), random_dataset(shape=(1, 8, 8))
    for name in ("vae", "gmvae"):
        model = build(name, data, **small_settings(name))
        train(model, data, out=folder / name, epochs=1, batch_size=20, progress=False)
    return [ExplorerSession(folder / name) for name in ("vae", "gmvae")]


@pytest.fixture
def client(sessions, monkeypatch):
    monkeypatch.setattr(limits, "RATE_BURST", 1e9)
    return TestClient(server.make_app(sessions, "secret"), URL, headers=TOKEN)


@contextlib.contextmanager
def serving(sessions):
    """The address of a server in a thread."""
    listener = socket.create_server(("127.0.0.1", 0))
    running = server.Server(server.make_app(sessions, "secret"))
    thread = threading.Thread(target=running.run, args=[[listener]])
    address = listener.getsockname()
    thread.start()
    try:
        yield address
    finally:
        running.should_exit = True
        thread.join()


def send(address, text):
    opened = socket.create_connection(address, timeout=5)
    opened.sendall(text.replace("\n", "\r\n").encode())
    return opened


def head(path=DECODE, method="POST", token="token: x", length=100):
    return (
        f"{method} {path} HTTP/1.1\nhost: 127.0.0.1\n{token}\ncontent-length: {length}\n{JSON}\n\n"
    )


def status(opened):
    return int(opened.recv(99).split()[1])


# ---- draws


def draws(client, number):
    """An answer that depends on random numbers."""
    seed, run = number // 4, number % 2
    if number % 4 < 2:
        return client.post(f"/api/runs/{run}/sample", json={"count": 3, "seed": seed}).text
    return client.get(f"/api/runs/{run}/map", params={"latent": "z", "dims": [0, 1]}).text


def test_eight_threads_get_the_answers_of_one(client):
    """While another thread draws from the generator that all threads share."""
    numbers, stop = list(range(8)), threading.Event()
    expected = [draws(client, n) for n in numbers]

    def disturb():
        while not stop.wait(1e-4):
            torch.rand(1)

    with ThreadPoolExecutor(9) as pool:
        pool.submit(disturb)
        answers = list(pool.map(lambda n: draws(client, n), numbers * 2))
        stop.set()
    assert answers == expected * 2


def test_no_request_uses_the_generator_that_threads_share(client, sessions):
    before = torch.get_rng_state()
    for number in range(4):
        draws(client, number)
    client.get("/api/runs")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_generator_of_its_own_draws_the_same_numbers():
    def numbers():
        normal = torch.distributions.Normal(torch.zeros(3), 1.0)
        categorical = torch.distributions.Categorical(logits=torch.zeros(5))
        bernoulli = torch.distributions.Bernoulli(torch.full((3,), 0.5))
        drawn = [normal.rsample((2,)), categorical.sample((9,)), bernoulli.sample(), torch.rand(2)]
        return torch.cat([each.reshape(-1).double() for each in [*drawn, torch.empty(2).normal_()]])

    with seeded(3):
        expected = numbers()
    before = torch.get_rng_state()
    with own_generator(), seeded(3):
        assert torch.equal(numbers(), expected)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_map_started_by_many_is_computed_once(sessions, monkeypatch):
    computed = []
    maps = ExplorerSession(sessions[0].run).maps
    monkeypatch.setattr(maps, "compute_embedding", lambda *words: computed.append(words))
    with ThreadPoolExecutor(8) as pool:
        futures = set(pool.map(lambda _: maps.start_embedding("z", "tsne"), range(8)))
    next(iter(futures)).result()
    assert (len(futures), computed) == (1, [("z", "tsne")])


# ---- saves


def test_saves_at_once_have_names_of_their_own(client, sessions):
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(lambda _: client.post("/api/runs/0/save", json=ZERO).json(), range(8))
        )
    paths = {each["path"] for each in answers}
    assert len(paths) == 8
    folder = sessions[0].run.pictures
    assert {str(file) for file in folder.glob("explorer-*.png")} == paths
    assert len(list(folder.glob("explorer-*.csv"))) == 8


def test_a_save_replaces_no_file_and_leaves_none_if_it_fails(client, sessions, monkeypatch):
    folder = sessions[1].run.pictures
    (folder / "explorer-1.gif").write_text("mine")
    (folder / "explorer-2.csv").symlink_to(folder / "nowhere")
    path = client.post("/api/runs/1/save", json=ZERO).json()["path"]
    assert path.endswith("explorer-3.png")

    def fail(*_, **__):
        raise OSError(28, "No space left on device", "explorer-4.png")

    monkeypatch.setattr(session, "write_images", fail)
    response = client.post("/api/runs/1/save", json=ZERO)
    assert response.json() == {"detail": "explorer-4.png: No space left on device"}
    assert not list(folder.glob("explorer-4*"))
    assert (folder / "explorer-1.gif").read_text() == "mine"


@pytest.mark.parametrize("quota", ["MAX_SAVED_FILES", "MAX_SAVED_BYTES"])
def test_saves_have_a_quota(client, sessions, monkeypatch, quota):
    client.post("/api/runs/0/save", json=ZERO)
    before = set(sessions[0].run.pictures.iterdir())
    monkeypatch.setattr(session, quota, 1)
    response = client.post("/api/runs/0/save", json=ZERO)
    assert response.status_code == 400
    assert "as many as may be saved" in response.text
    assert set(sessions[0].run.pictures.iterdir()) == before


# ---- the token

PATHS = [
    ("GET", "/api/runs"),
    ("GET", "/api/runs/0/map?latent=z"),
    ("GET", "/api/runs/0/curves"),
    ("GET", "/api/runs/0/test/0"),
    ("POST", DECODE),
    ("POST", "/api/runs/0/save"),
    ("POST", "/api/token"),
    ("GET", "/openapi.json"),
    ("POST", "/"),
    ("GET", "/app.js/"),
    ("GET", "//api/runs"),
    ("GET", "/./api/runs"),
    ("OPTIONS", "/api/runs"),
    ("TRACE", "/"),
]
GIVEN = [
    {},
    {"authorization": "token "},
    {"authorization": "token wrong"},
    {"authorization": "token secre"},
    {"authorization": "token secret2"},
    {"authorization": "token \xff\x00"},
    {"authorization": ""},
    {"cookie": "token=secret"},
    {"x-forwarded-for": "127.0.0.1"},
]


@pytest.mark.parametrize(("method", "path"), PATHS)
def test_without_the_token_nothing_is_answered(sessions, method, path):
    client = TestClient(server.make_app(sessions, "secret"), URL)
    for headers in GIVEN:
        encoded = [(name, value.encode("latin-1")) for name, value in headers.items()]
        response = client.request(method, path, headers=encoded)
        assert response.status_code == 403
        assert "z" not in response.json()


def test_the_token_is_accepted_in_the_header_and_in_the_address(sessions):
    client = TestClient(server.make_app(sessions, "secret"), URL)
    assert client.get("/api/runs?token=secret").status_code == 200
    assert client.get("/api/runs", headers=TOKEN).status_code == 200
    for path in ("/", "/index.html", "/app.js", "/style.css"):
        assert client.get(path).status_code == 200
    first, second = (server.make_app(sessions).state.access.token for _ in range(2))
    assert first != second
    assert len(first) > 40
    with pytest.raises(ValueError, match="the token is empty"):
        server.make_app(sessions, "")


def test_a_launch_code_gives_the_token_once_and_nothing_else(sessions, monkeypatch):
    app = server.make_app(sessions, "secret")
    client, access = TestClient(app, URL), app.state.access

    def ask(code, path="/api/token"):
        return client.post(path, headers={"authorization": f"token {code}"})

    assert ask(access.launch_code).status_code == 403  # none was given out
    code = access.new_launch_code()
    assert ask(code, DECODE).status_code == 403
    assert ask(code).json() == {"token": "secret"}
    assert ask(code).status_code == 403
    code = access.new_launch_code()
    monkeypatch.setattr(access, "expires", access.expires - limits.LAUNCH_SECONDS)
    assert ask(code).status_code == 403


def test_the_browser_gets_a_launch_code_the_terminal_the_token(sessions, monkeypatch):
    opened, log = [], []
    monkeypatch.setattr(server.webbrowser, "open", opened.append)
    monkeypatch.setattr(server.uvicorn.Server, "run", lambda self, sockets: None)
    app = server.make_app(sessions, "secret")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server.serve(app, listener, True, log.append)
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/?token="
    assert log == [f"{address}secret  (stop with Ctrl-C)"]
    assert opened == [address + app.state.access.launch_code]


@pytest.mark.parametrize(
    "host", ["testserver", "evil.example", "127.0.0.1.evil.example", "0.0.0.0", "[::1]", ""]
)
def test_other_hosts_are_refused(client, host):
    assert client.get("/api/runs", headers={"host": host}).status_code == 400
    assert client.get("/", headers={"host": host}).status_code == 400


# ---- malformed requests

MALFORMED = {
    "NaN": ("decode", '{"latents": {"z": [[NaN, 0]]}}'),
    "Infinity": ("decode", '{"latents": {"z": [[Infinity, 0]]}}'),
    "-Infinity": ("decode", '{"latents": {"z": [[-Infinity, 0]]}}'),
    "a number beyond float64": ("decode", '{"latents": {"z": [[1e999, 0]]}}'),
    "NaN as a seed": ("sample", '{"seed": NaN}'),
    "Infinity as a count": ("sample", '{"count": Infinity}'),
    "an integer of 400 digits": ("sample", '{"seed": 1%s}' % ("0" * 400)),
    "an integer of 5000 digits": ("sample", '{"seed": 1%s}' % ("0" * 5000)),
    "a lone surrogate as a key": ("decode", r'{"\ud800": 1}'),
    "a lone surrogate as a latent": ("move", r'{"latent": "\ud800", "method": "pca", '
                                     r'"point": [0, 0], "current": {"z": [[0, 0]]}}'),
    "100,000 nested lists": ("decode", "[" * 100_000),
    "a body cut off": ("decode", '{"latents": {"z": [[0, 0'),
    "bytes that are not UTF-8": ("decode", b'{"latents": "\xff\xfe"}'),
    "a nul": ("decode", "\0"),
    "a list": ("decode", "[]"),
    "null": ("decode", "null"),
    "true as a number": ("sample", '{"count": true, "seed": "x"}'),
}  # fmt: skip


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_bodies_are_refused(client, name):
    verb, body = MALFORMED[name]
    headers = {"content-type": "application/json"}
    response = client.post(f"/api/runs/0/{verb}", content=body, headers=headers)
    assert response.status_code in (400, 422)
    assert response.json()["detail"]
    if "NaN" in name or "Infinity" in name:
        assert response.status_code == 422


MALFORMED_HEADS = {
    "a header of 1 MB": f"GET / HTTP/1.1\nhost: 127.0.0.1\nx: {'a' * 1_000_000}\n\n",
    "100,000 headers": f"GET / HTTP/1.1\nhost: 127.0.0.1\n{100_000 * f'a: b{chr(10)}'}\n",
    "two lengths": head().replace("\n\n", "\ncontent-length: 5\n\n"),
    "a negative length": head(length=-5),
    "a length of 10^30": head(length=10**30),
    "no host": "GET /api/runs HTTP/1.0\nauthorization: token secret\n\n",
    "two hosts": head(token="host: evil.example"),
    "an upgrade to a websocket": head(
        "/api/runs", "GET", "upgrade: websocket\nconnection: upgrade", 0
    ),
    "an absolute address": head("http://evil.example/api/runs", "GET", length=0),
    "a wrong token before the right one": head(
        token="authorization: token x\nauthorization: token secret", length=0
    ),
    "a token of 60 KB": head("/api/runs?token=" + "a" * 60_000, "GET", length=0),
    "the greeting of TLS": "\x16\x03\x01\x02\0\x01\0" + "\0" * 500,
    "the greeting of HTTP/2": "PRI * HTTP/2.0\n\nSM\n\n",
    "a nul in the path": head("/api/\0runs", "GET", "authorization: token secret", 0),
}


def test_malformed_heads_are_refused(sessions):
    with serving(sessions) as address:
        for name, text in MALFORMED_HEADS.items():
            with contextlib.suppress(ConnectionError), send(address, text) as opened:
                assert status(opened) in (400, 403), name
        get = head("/api/runs/0/curves", "GET", "authorization: token secret", 0)
        with send(address, get) as opened:
            assert status(opened) == 200


# ---- slow requests


def test_slow_bodies_lock_nobody_out(sessions, monkeypatch):
    monkeypatch.setattr(limits, "BODY_SECONDS", 0.4)
    with serving(sessions) as address, contextlib.ExitStack() as stack:
        token = "authorization: token secret"
        get = head("/api/runs/0/curves", "GET", token, 0)
        for _ in range(limits.MAX_CONCURRENT):  # strangers, who take no place
            stack.enter_context(send(address, head()))
        assert status(stack.enter_context(send(address, get))) == 200
        slow = [
            stack.enter_context(send(address, head(token=token)))
            for _ in range(limits.MAX_CONCURRENT)
        ]
        assert status(slow[0]) == 408
        assert status(slow[-1]) == 408
        assert status(stack.enter_context(send(address, get))) == 200


def test_slow_heads_and_half_closed_requests_are_closed(sessions, monkeypatch):
    monkeypatch.setattr(limits, "HEAD_SECONDS", 0.3)
    with serving(sessions) as address:
        slow = send(address, "GET / HTTP/1.1\nhost: 127.")
        with slow, contextlib.suppress(ConnectionError):
            for _ in range(8):
                time.sleep(0.1)
                slow.sendall(b"0")
            assert slow.recv(9) == b""
        with send(address, head(token="authorization: token secret")) as half:
            half.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionError):
                assert half.recv(99) == b""


def test_a_client_that_does_not_read_is_left(monkeypatch):
    monkeypatch.setattr(limits, "SEND_SECONDS", 0.05)

    async def never(message):
        await asyncio.sleep(60)

    with pytest.raises(TimeoutError):
        asyncio.run(limits.with_security_headers(never)({"type": "http.response.body"}))


# ---- Ctrl-C

PROGRAM = """
import sys, time
from vaekit.explorer import maps, session
from vaekit.cli.main import main
def forever(*_):
    print("busy", flush=True)
    time.sleep(60)
maps.neighbour_embedding = session.write_images = forever
if "loading" in sys.argv:
    sys.argv.remove("loading")
    session.ExplorerSession.encode_batch = forever
main()
"""


@contextlib.contextmanager
def program(*words):
    command = [sys.executable, "-c", PROGRAM, *map(str, words)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as it:
        try:
            yield it
        finally:
            it.kill()


@pytest.mark.long
@pytest.mark.parametrize("interrupts", [1, 2])
@pytest.mark.parametrize("loading", [True, False])
def test_ctrl_c_ends_it_whatever_is_under_way(sessions, interrupts, loading):
    """A t-SNE map, a save and a slow request, or the loading of the runs."""
    run, more = sessions[0].run, ["loading"] if loading else []
    before = set(run.pictures.iterdir())
    with program("explore", run, "--no-browser", *more) as process, contextlib.ExitStack() as stack:
        if not loading:
            port, token = process.stdout.readline().split()[0].split(":")[2].split("/?token=")
            header, address = f"authorization: token {token}", ("127.0.0.1", int(port))
            for verb, body in [
                ("embedding", '{"latent": "z", "method": "tsne"}'),
                ("save", '{"latents": {"z": [[0, 0]]}}'),
            ]:
                request = head(f"/api/runs/0/{verb}", token=header, length=len(body)) + body
                stack.enter_context(send(address, request))
                assert process.stdout.readline() == "busy\n"
            stack.enter_context(send(address, head(token=header)))
        else:
            assert process.stdout.readline() == "busy\n"
        started = time.monotonic()
        for _ in range(interrupts):
            process.send_signal(signal.SIGINT)
            time.sleep(0.2)
        _, error = process.communicate(timeout=20)
        assert time.monotonic() - started < 2
        assert (process.returncode, error) == (130, "")
    assert set(run.pictures.iterdir()) == before
