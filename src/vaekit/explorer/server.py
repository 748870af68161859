"""The explorer as a web server on this machine: what a page may ask of the runs, and how much of it at once."""

from __future__ import annotations

import base64
import binascii
import socket
import time
import webbrowser
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import uvicorn
from fastapi import FastAPI, Query, Request
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ConfigDict, Field
from starlette.middleware.trustedhost import TrustedHostMiddleware
from torch import Tensor

from ..pictures.style import PALETTE
from ..support.errors import UserError, require
from .atlas import Atlas
from .maps import Method

PAGE = Path(__file__).parent / "page"
MOST_BYTES = 4 * 2**20  # of a request
AT_ONCE = 64  # requests; further ones are answered 429
A_SECOND, BURST = 300.0, 600.0  # requests; a page that drags sends 60
MOST_IMAGES = 400

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

Finite = Annotated[float, Field(ge=-1e4, le=1e4, allow_inf_nan=False)]
Latents = Annotated[
    dict[str, Annotated[list[list[Finite]], Field(min_length=1, max_length=MOST_IMAGES)]],
    Field(min_length=1, max_length=4),
]
Label = Annotated[int, Field(ge=0, le=2**20)] | None
Dims = Annotated[list[Annotated[int, Field(ge=0, le=2**20)]], Field(max_length=3)]
Name = Annotated[str, Field(max_length=64)]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=False)


class Points(Body):
    latents: Latents
    label: Label = None


class OnMap(Body):
    latent: Name
    method: Method
    dims: Dims = []


class Place(OnMap):
    place: Annotated[list[Finite], Field(min_length=2, max_length=3)]
    now: Latents
    label: Label = None


class Where(OnMap):
    latents: Latents


class Way(Body):
    start: Latents
    end: Latents
    steps: Annotated[int, Field(ge=2, le=60)] = 11
    label: Label = None


class Draws(Body):
    count: Annotated[int, Field(ge=1, le=MOST_IMAGES)] = 1
    temperature: Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)] = 1.0
    seed: Annotated[int, Field(ge=0, lt=2**53)] = 0
    label: Label = None
    cluster: Label = None


class Picture(Body):
    image: Annotated[str, Field(max_length=MOST_BYTES)]
    """An image file in base64."""
    label: Label = None
    invert: bool = False
    centre: bool = False


class Saved(Points):
    kind: Literal["png", "gif"] = "png"


def make_app(atlases: Sequence[Atlas]) -> FastAPI:
    """The page and what it asks for; runs are known by their number, and nothing else can be read."""
    app = FastAPI(title="vaekit explore", docs_url=None, redoc_url=None)
    app.add_middleware(Limits)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])

    @app.exception_handler(UserError)
    async def refuse(request: Request, error: UserError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 400)

    def atlas(run: int) -> Atlas:
        require(0 <= run < len(atlases), f"there are {len(atlases)} runs, from 0 on")
        return atlases[run]

    api = "/api/runs/{run}"

    @app.get("/api/runs")
    def runs() -> dict[str, Any]:
        return {"runs": [each.about() for each in atlases], "palette": PALETTE}

    @app.get(f"{api}/map")
    def map_of(
        run: int,
        latent: Annotated[str, Query(max_length=64)],
        method: Method = "dims",
        dims: Annotated[list[Annotated[int, Field(ge=0, le=2**20)]], Query(max_length=3)] = [0, 1],  # noqa: B006
    ) -> dict[str, Any]:
        there = atlas(run)
        there.dim_of(latent)
        return there.maps.show(latent, method, dims)

    @app.get(f"{api}/curves")
    def curves(run: int) -> list[dict[str, Any]]:
        return atlas(run).curves()

    @app.get(f"{api}/test/{{place}}")
    def test_image(run: int, place: Annotated[int, Field(ge=0, le=2**40)]) -> dict[str, Any]:
        there = atlas(run)
        images, about = there.test_image(place)
        return {**about, **shown(images), "latents": listed(there.codes(place))}

    @app.post(f"{api}/decode")
    def decode(run: int, body: Points) -> dict[str, Any]:
        there = atlas(run)
        return shown(there.decode(there.checked(body.latents), body.label))

    @app.post(f"{api}/at")
    def at(run: int, body: Place) -> dict[str, Any]:
        there = atlas(run)
        there.dim_of(body.latent)
        now = one(there.checked(body.now))
        latents = there.at(body.latent, body.method, body.dims, body.place, now, body.label)
        return {"latents": listed(latents), **shown(there.decode(latents, body.label))}

    @app.post(f"{api}/where")
    def where(run: int, body: Where) -> dict[str, Any]:
        there = atlas(run)
        there.dim_of(body.latent)
        latents = one(there.checked(body.latents))
        z = latents[body.latent]
        return {"place": there.maps.place_of(body.latent, body.method, body.dims, z)}

    @app.post(f"{api}/nearest")
    def nearest(run: int, body: Points) -> dict[str, Any]:
        there = atlas(run)
        images, about = there.nearest(one(there.checked(body.latents)))
        return {"neighbours": about, **shown(images)}

    @app.post(f"{api}/draws")
    def draws(run: int, body: Draws) -> dict[str, Any]:
        there = atlas(run)
        latents = there.draws(body.count, body.temperature, body.seed, body.label, body.cluster)
        return {"latents": listed(latents), **shown(there.decode(latents, body.label))}

    @app.post(f"{api}/between")
    def way(run: int, body: Way) -> dict[str, Any]:
        there = atlas(run)
        start, end = one(there.checked(body.start)), one(there.checked(body.end))
        latents = there.between(start, end, body.steps)
        return {"latents": listed(latents), **shown(there.decode(latents, body.label))}

    @app.post(f"{api}/analogies")
    def analogies(run: int, body: Points) -> dict[str, Any]:
        there = atlas(run)
        require(there.scene.condition == "label", "the model is not conditional on labels")
        latents = one(there.checked(body.latents))
        classes = range(there.model.blueprint.classes)
        return shown(torch.cat([there.decode(latents, label) for label in classes]))

    @app.post(f"{api}/encode")
    def encode(run: int, body: Picture) -> dict[str, Any]:
        there = atlas(run)
        try:
            content = base64.b64decode(body.image, validate=True)
        except (binascii.Error, ValueError):
            raise UserError("the image is not in base64") from None
        found = there.encode(there.read(content, body.invert, body.centre), body.label)
        latents, seen, redrawn = (found.pop(name) for name in ("latents", "image", "redrawn"))
        return {
            **found,
            "latents": listed(latents),
            "seen": shown(seen)["pixels"],
            **shown(redrawn),
        }

    @app.post(f"{api}/save")
    def save(run: int, body: Saved) -> dict[str, str]:
        there = atlas(run)
        return there.save(there.checked(body.latents), body.label, body.kind)

    app.mount("/", StaticFiles(directory=PAGE, html=True))
    return app


def one(latents: dict[str, Tensor]) -> dict[str, Tensor]:
    require(all(len(z) == 1 for z in latents.values()), "give one place at a time")
    return latents


def listed(latents: dict[str, Tensor]) -> dict[str, Any]:
    return {name: [[round(v, 5) for v in row] for row in z.tolist()] for name, z in latents.items()}


def shown(images: Tensor) -> dict[str, Any]:
    """Images (N, C, H, W) in [0, 1] as bytes in base64."""
    levels = (images.clamp(0, 1).nan_to_num(0) * 255).round().to(torch.uint8)
    return {
        "count": len(images),
        "pixels": base64.b64encode(levels.contiguous().numpy().tobytes()).decode(),
    }


class Limits:
    """Answers 413 to a request that is too large, 429 to one too many, and says what a page may load."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self.app, self.running = app, 0
        self.left, self.checked = BURST, time.monotonic()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        if self.running >= AT_ONCE or not self.allowed():
            answer = JSONResponse({"detail": "too many requests"}, 429, {"retry-after": "1"})
            return await answer(scope, receive, send)
        self.running += 1
        try:
            content = await whole(receive)
            if content is None:
                answer = JSONResponse({"detail": "the request is too large"}, 413)
                return await answer(scope, receive, send)
            await self.app(scope, replay(content, receive), secured(send))
        finally:
            self.running -= 1

    def allowed(self) -> bool:
        now = time.monotonic()
        self.left = min(BURST, self.left + A_SECOND * (now - self.checked)) - 1
        self.checked = now
        if self.left < 0:
            self.left = 0.0
            return False
        return True


async def whole(receive: Receive) -> bytes | None:
    """The body of a request; None of one that is too large."""
    content = b""
    while True:
        message = await receive()
        content += message.get("body", b"")
        if len(content) > MOST_BYTES:
            return None
        if not message.get("more_body"):
            return content


def replay(content: bytes, receive: Receive) -> Receive:
    """What hands on a body that was read, then what else comes."""
    messages = iter([{"type": "http.request", "body": content, "more_body": False}])

    async def receiving() -> MutableMapping[str, Any]:
        return next(messages, None) or await receive()

    return receiving


def secured(send: Send) -> Send:
    """Adds headers by which a browser loads nothing from elsewhere, and shows the page in no other one."""

    async def sending(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            policy = "default-src 'self'; img-src 'self' data: blob:; frame-ancestors 'none'"
            message["headers"] = [
                *message["headers"],
                (b"content-security-policy", policy.encode()),
                (b"x-content-type-options", b"nosniff"),
                (b"cache-control", b"no-store"),
            ]
        await send(message)

    return sending


def explore(
    runs: Sequence[str | Path],
    port: int = 0,
    browser: bool = True,
    data_dir: str | Path | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Serve the page of some runs on 127.0.0.1 until the program is stopped; `port` 0 is a free one.

    Raises UserError.
    """
    require(len(runs) > 0, "`vaekit explore` needs a run directory")
    # asyncio sends small answers at once (TCP_NODELAY) only where the protocol is named: else each takes 40 ms.
    with socket.socket(proto=socket.IPPROTO_TCP) as place:
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            place.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            raise UserError(
                f"--port {port} cannot be had ({error}); leave it out for a free one"
            ) from None
        app = make_app([Atlas(run, data_dir) for run in runs])
        address = f"http://127.0.0.1:{place.getsockname()[1]}/"
        say(f"{address}  (Ctrl-C ends it)")
        if browser:
            webbrowser.open(address)
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[place])
