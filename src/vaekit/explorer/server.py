"""The explorer's web server: the JSON API of the page, and the limits on requests."""

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
from fastapi import APIRouter, Depends, FastAPI, Query, Request
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ConfigDict, Field
from starlette.middleware.trustedhost import TrustedHostMiddleware
from torch import Tensor

from ..pictures.style import PALETTE
from ..runs.directory import Run
from ..support.errors import UserError, python_names, require
from .maps import Method
from .session import ExplorerSession

PAGE = Path(__file__).parent / "page"
MAX_REQUEST_BYTES = 4 * 2**20
MAX_CONCURRENT = 64  # requests; further ones get the status 429
RATE_PER_SECOND, RATE_BURST = 300.0, 600.0  # requests; a drag on the page sends 60 per second
MAX_IMAGES = 400

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

Finite = Annotated[float, Field(ge=-1e4, le=1e4, allow_inf_nan=False)]
Latents = Annotated[
    dict[str, Annotated[list[list[Finite]], Field(min_length=1, max_length=MAX_IMAGES)]],
    Field(min_length=1, max_length=4),
]
Label = Annotated[int, Field(ge=0, le=2**20)] | None
Dims = Annotated[list[Annotated[int, Field(ge=0, le=2**20)]], Field(max_length=3)]
Name = Annotated[str, Field(max_length=64)]


class Body(BaseModel):
    """The JSON body of a request; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", strict=False)


class LatentsBody(Body):
    latents: Latents
    label: Label = None


class MapBody(Body):
    latent: Name
    method: Method
    dims: Dims = []


class MapPointBody(MapBody):
    point: Annotated[list[Finite], Field(min_length=2, max_length=3)]
    current: Latents
    label: Label = None


class LocateBody(MapBody):
    latents: Latents


class InterpolateBody(Body):
    start: Latents
    end: Latents
    steps: Annotated[int, Field(ge=2, le=60)] = 11
    label: Label = None


class SampleBody(Body):
    count: Annotated[int, Field(ge=1, le=MAX_IMAGES)] = 1
    temperature: Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)] = 1.0
    seed: Annotated[int, Field(ge=0, lt=2**53)] = 0
    label: Label = None
    cluster: Label = None


class ImageBody(Body):
    image: Annotated[str, Field(max_length=MAX_REQUEST_BYTES)]
    """An image file in base64."""
    label: Label = None
    invert: bool = False
    centre: bool = False


class SaveBody(LatentsBody):
    kind: Literal["png", "gif"] = "png"


def make_app(sessions: Sequence[ExplorerSession]) -> FastAPI:
    """The ASGI application: the page and its API. Runs are addressed by number; no other file can be read."""
    app = FastAPI(title="vaekit explore", docs_url=None, redoc_url=None)
    app.state.sessions = sessions
    app.add_middleware(RequestLimits)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])

    @app.exception_handler(UserError)
    async def bad_request(request: Request, error: UserError) -> JSONResponse:
        return JSONResponse({"detail": python_names(str(error))}, 400)

    @app.get("/api/runs")
    def list_runs() -> dict[str, Any]:
        return {"runs": [session.describe() for session in sessions], "palette": PALETTE}

    app.include_router(router)
    app.mount("/", StaticFiles(directory=PAGE, html=True))
    return app


async def session_of(run: int, request: Request) -> ExplorerSession:
    """The session of a run by its number. Raises UserError."""
    sessions = request.app.state.sessions
    require(
        0 <= run < len(sessions),
        f"there is no run {run}; they are numbered 0 to {len(sessions) - 1}",
    )
    return sessions[run]


Session = Annotated[ExplorerSession, Depends(session_of)]
router = APIRouter(prefix="/api/runs/{run}")


@router.get("/map")
def map_data(
    session: Session,
    latent: Annotated[str, Query(max_length=64)],
    method: Method = "dims",
    dims: Annotated[list[Annotated[int, Field(ge=0, le=2**20)]], Query(max_length=3)] = [0, 1],  # noqa: B006
) -> dict[str, Any]:
    session.require_latent(latent)
    return session.maps.map_data(latent, method, dims)


@router.get("/curves")
def curves(session: Session) -> list[dict[str, Any]]:
    return session.curves()


@router.get("/test/{position}")
def test_image(session: Session, position: Annotated[int, Field(ge=0, le=2**40)]) -> dict[str, Any]:
    images, description = session.test_image(position)
    return {**description, **encode_pixels(images), "latents": as_lists(session.codes(position))}


@router.post("/decode")
def decode(session: Session, body: LatentsBody) -> dict[str, Any]:
    return encode_pixels(session.decode(session.to_tensors(body.latents), body.label))


@router.post("/move")
def move(session: Session, body: MapPointBody) -> dict[str, Any]:
    """The latents at a map point, decoded."""
    session.require_latent(body.latent)
    current = single_point(session.to_tensors(body.current))
    latents = session.move_to(body.latent, body.method, body.dims, body.point, current, body.label)
    return decoded(session, latents, body.label)


@router.post("/locate")
def locate(session: Session, body: LocateBody) -> dict[str, Any]:
    """The map point of latents."""
    session.require_latent(body.latent)
    z = single_point(session.to_tensors(body.latents))[body.latent]
    return {"point": session.maps.point_of(body.latent, body.method, body.dims, z)}


@router.post("/nearest")
def nearest(session: Session, body: LatentsBody) -> dict[str, Any]:
    images, neighbours = session.nearest(single_point(session.to_tensors(body.latents)))
    return {"neighbours": neighbours, **encode_pixels(images)}


@router.post("/sample")
def sample(session: Session, body: SampleBody) -> dict[str, Any]:
    latents = session.sample(body.count, body.temperature, body.seed, body.label, body.cluster)
    return decoded(session, latents, body.label)


@router.post("/interpolate")
def interpolate(session: Session, body: InterpolateBody) -> dict[str, Any]:
    start, end = (single_point(session.to_tensors(z)) for z in (body.start, body.end))
    return decoded(session, session.interpolate(start, end, body.steps), body.label)


@router.post("/analogies")
def analogies(session: Session, body: LatentsBody) -> dict[str, Any]:
    """The latents decoded with every class."""
    require(session.context.condition == "label", "the model is not conditional on labels")
    latents = single_point(session.to_tensors(body.latents))
    classes = range(session.model.blueprint.classes)
    return encode_pixels(torch.cat([session.decode(latents, label) for label in classes]))


@router.post("/encode")
def encode(session: Session, body: ImageBody) -> dict[str, Any]:
    """The posterior, ELBO and reconstruction of an image file."""
    try:
        content = base64.b64decode(body.image, validate=True)
    except (binascii.Error, ValueError):
        raise UserError("the image is not in base64") from None
    result = session.encode(session.read_image(content, body.invert, body.centre), body.label)
    return {
        **result,
        "latents": as_lists(result["latents"]),
        "input": encode_pixels(result["input"])["pixels"],
        "reconstruction": encode_pixels(result["reconstruction"])["pixels"],
    }


@router.post("/save")
def save(session: Session, body: SaveBody) -> dict[str, str]:
    return session.save(session.to_tensors(body.latents), body.label, body.kind)


def decoded(
    session: ExplorerSession, latents: dict[str, Tensor], label: int | None
) -> dict[str, Any]:
    return {"latents": as_lists(latents), **encode_pixels(session.decode(latents, label))}


def single_point(latents: dict[str, Tensor]) -> dict[str, Tensor]:
    require(all(len(z) == 1 for z in latents.values()), "pass one latent point at a time")
    return latents


def as_lists(latents: dict[str, Tensor]) -> dict[str, Any]:
    return {name: [[round(v, 5) for v in row] for row in z.tolist()] for name, z in latents.items()}


def encode_pixels(images: Tensor) -> dict[str, Any]:
    """Images (N, C, H, W) in [0, 1] as 8-bit levels in base64."""
    levels = (images.clamp(0, 1).nan_to_num(0) * 255).round().to(torch.uint8)
    return {
        "count": len(images),
        "pixels": base64.b64encode(levels.contiguous().numpy().tobytes()).decode(),
    }


class RequestLimits:
    """ASGI middleware: 413 for a request that is too large, 429 for one too many (token bucket), security headers."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self.app, self.active = app, 0
        self.tokens, self.refilled = RATE_BURST, time.monotonic()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        if self.active >= MAX_CONCURRENT or not self.take_token():
            response = JSONResponse({"detail": "too many requests"}, 429, {"retry-after": "1"})
            return await response(scope, receive, send)
        self.active += 1
        try:
            content = await read_body(receive)
            if content is None:
                response = JSONResponse({"detail": "the request is too large"}, 413)
                return await response(scope, receive, send)
            await self.app(scope, replay_body(content, receive), add_security_headers(send))
        finally:
            self.active -= 1

    def take_token(self) -> bool:
        now = time.monotonic()
        self.tokens = min(RATE_BURST, self.tokens + RATE_PER_SECOND * (now - self.refilled)) - 1
        self.refilled = now
        if self.tokens < 0:
            self.tokens = 0.0
            return False
        return True


async def read_body(receive: Receive) -> bytes | None:
    """The body of a request; None if it is too large."""
    content = b""
    while True:
        message = await receive()
        content += message.get("body", b"")
        if len(content) > MAX_REQUEST_BYTES:
            return None
        if not message.get("more_body"):
            return content


def replay_body(content: bytes, receive: Receive) -> Receive:
    """A `receive` that returns the body already read, then the messages that follow."""
    messages = iter([{"type": "http.request", "body": content, "more_body": False}])

    async def replay() -> MutableMapping[str, Any]:
        return next(messages, None) or await receive()

    return replay


def add_security_headers(send: Send) -> Send:
    """A `send` with headers that forbid loading from other hosts, framing and caching."""

    async def send_with_headers(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            policy = "default-src 'self'; img-src 'self' data: blob:; frame-ancestors 'none'"
            message["headers"] = [
                *message["headers"],
                (b"content-security-policy", policy.encode()),
                (b"x-content-type-options", b"nosniff"),
                (b"cache-control", b"no-store"),
            ]
        await send(message)

    return send_with_headers


def explore(
    runs: Sequence[Run | str | Path],
    port: int = 0,
    browser: bool = True,
    data_dir: str | Path | None = None,
    log: Callable[[str], None] = print,
) -> None:
    """Serve the page for some runs on 127.0.0.1 until interrupted; `port` 0 picks a free one.

    Raises UserError.
    """
    require(len(runs) > 0, "`vaekit explore` needs a run directory")
    # asyncio sets TCP_NODELAY only if the protocol is given; without it each small response takes 40 ms.
    with socket.socket(proto=socket.IPPROTO_TCP) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            raise UserError(
                f"--port {port} is not available ({error}); leave it out to use a free port"
            ) from None
        app = make_app([ExplorerSession(run, data_dir) for run in runs])
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        log(f"{address}  (stop with Ctrl-C)")
        if browser:
            webbrowser.open(address)
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])
