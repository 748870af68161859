"""The explorer's web server: the JSON API of the page."""

from __future__ import annotations

import base64
import binascii
import contextlib
import functools
import logging
import os
import signal
import socket
import sys
import threading
import webbrowser
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import torch
import uvicorn
from fastapi import APIRouter, Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ConfigDict, Field
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import Response
from torch import Tensor

from ..pictures.style import PALETTE
from ..runs.directory import Run
from ..support.devices import own_generator
from ..support.errors import UserError, one_line, python_names, require
from .limits import MAX_REQUEST_BYTES, Access, HTTPProtocol, RequestLimits, refusal
from .maps import Method
from .session import ExplorerSession

PAGE = Path(__file__).parent / "page"
MAX_IMAGES = 400
EXIT_SECONDS = 1.5  # after Ctrl-C, for the requests under way

Finite = Annotated[float, Field(ge=-1e4, le=1e4, allow_inf_nan=False)]
Latents = Annotated[
    dict[str, Annotated[list[list[Finite]], Field(min_length=1, max_length=MAX_IMAGES)]],
    Field(min_length=1, max_length=64),
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


class EmbeddingBody(Body):
    latent: Name
    method: Literal["tsne", "umap"]


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


def make_app(sessions: Sequence[ExplorerSession], token: str | None = None) -> FastAPI:
    """The ASGI application: the page and its API. Runs are addressed by number; no other file can be read.

    Every request of the API needs the token (see limits.Access), a new one by default: `app.state.access.token`.
    """
    app = FastAPI(title="vaekit explore", docs_url=None, redoc_url=None)
    app.state.sessions, app.state.access = sessions, Access(token)
    app.add_middleware(RequestLimits, access=app.state.access)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])

    @app.exception_handler(UserError)
    async def bad_request(request: Request, error: UserError) -> Response:
        return refusal(400, python_names(str(error)))

    @app.exception_handler(OSError)
    async def not_written(request: Request, error: OSError) -> Response:
        return refusal(400, f"{error.filename}: {error.strerror}")

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        # Without the values given: JSON has no NaN to answer with.
        return refusal(
            422, [{k: each[k] for k in ("loc", "msg", "type")} for each in error.errors()]
        )

    app.include_router(router)
    app.mount("/", StaticFiles(directory=PAGE, html=True))
    return app


class Routes(APIRouter):
    """A router whose functions run in threads, so that each request draws from a generator of its own."""

    def add_api_route(self, path: str, endpoint: Callable[..., Any], **settings: Any) -> None:
        @functools.wraps(endpoint)
        def drawing_alone(*args: Any, **kwargs: Any) -> Any:
            with own_generator():
                return endpoint(*args, **kwargs)

        super().add_api_route(path, drawing_alone, **settings)


async def session_of(run: int, request: Request) -> ExplorerSession:
    """The session of a run by its number. Raises UserError."""
    sessions = request.app.state.sessions
    require(
        0 <= run < len(sessions),
        f"there is no run {run}; they are numbered 0 to {len(sessions) - 1}",
    )
    return sessions[run]


Session = Annotated[ExplorerSession, Depends(session_of)]
router = Routes(prefix="/api")


@router.post("/token")
def token(request: Request) -> dict[str, str]:
    """The token, for a page opened with a launch code."""
    return {"token": request.app.state.access.token}


@router.get("/runs")
def list_runs(request: Request) -> dict[str, Any]:
    sessions = request.app.state.sessions
    return {"runs": [session.describe() for session in sessions], "palette": PALETTE}


@router.get("/runs/{run}/map")
def map_data(
    session: Session,
    latent: Annotated[str, Query(max_length=64)],
    method: Method = "dims",
    dims: Annotated[list[Annotated[int, Field(ge=0, le=2**20)]], Query(max_length=3)] = [0, 1],  # noqa: B006
) -> dict[str, Any]:
    """A map of the test images. It starts no work: for t-SNE and UMAP, `state` may be "absent" or "computing"."""
    session.require_latent(latent)
    return session.maps.map_data(latent, method, dims)


@router.post("/runs/{run}/embedding")
def start_embedding(session: Session, body: EmbeddingBody) -> dict[str, str]:
    """Start to compute a map by t-SNE or UMAP, which /map then returns."""
    session.require_latent(body.latent)
    session.maps.start_embedding(body.latent, body.method)
    return {"state": "computing"}


@router.get("/runs/{run}/curves")
def curves(session: Session) -> list[dict[str, Any]]:
    return session.curves()


@router.get("/runs/{run}/test/{position}")
def test_image(session: Session, position: Annotated[int, Field(ge=0, le=2**40)]) -> dict[str, Any]:
    images, description = session.test_image(position)
    return {
        **description,
        **encode_pixels(session, images),
        "latents": as_lists(session.codes(position)),
    }


@router.post("/runs/{run}/decode")
def decode(session: Session, body: LatentsBody) -> dict[str, Any]:
    return encode_pixels(session, session.decode(session.to_tensors(body.latents), body.label))


@router.post("/runs/{run}/move")
def move(session: Session, body: MapPointBody) -> dict[str, Any]:
    """The latents at a map point, decoded."""
    session.require_latent(body.latent)
    current = single_point(session.to_tensors(body.current))
    latents = session.move_to(body.latent, body.method, body.dims, body.point, current, body.label)
    return decoded(session, latents, body.label)


@router.post("/runs/{run}/locate")
def locate(session: Session, body: LocateBody) -> dict[str, Any]:
    """The map point of latents."""
    session.require_latent(body.latent)
    z = single_point(session.to_tensors(body.latents))[body.latent]
    return {"point": session.maps.point_of(body.latent, body.method, body.dims, z)}


@router.post("/runs/{run}/nearest")
def nearest(session: Session, body: LatentsBody) -> dict[str, Any]:
    images, neighbours = session.nearest(single_point(session.to_tensors(body.latents)))
    return {"neighbours": neighbours, **encode_pixels(session, images)}


@router.post("/runs/{run}/sample")
def sample(session: Session, body: SampleBody) -> dict[str, Any]:
    latents, images = session.sample(
        body.count, body.temperature, body.seed, body.label, body.cluster
    )
    return {"latents": as_lists(latents), **encode_pixels(session, images)}


@router.post("/runs/{run}/interpolate")
def interpolate(session: Session, body: InterpolateBody) -> dict[str, Any]:
    start, end = (single_point(session.to_tensors(z)) for z in (body.start, body.end))
    return decoded(session, session.interpolate(start, end, body.steps), body.label)


@router.post("/runs/{run}/analogies")
def analogies(session: Session, body: LatentsBody) -> dict[str, Any]:
    """The latents decoded with every class."""
    require(session.context.condition == "label", "the model is not conditional on labels")
    latents = single_point(session.to_tensors(body.latents))
    classes = range(session.model.blueprint.classes)
    return encode_pixels(session, torch.cat([session.decode(latents, label) for label in classes]))


@router.post("/runs/{run}/encode")
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
        "input": encode_pixels(session, result["input"])["pixels"],
        "reconstruction": encode_pixels(session, result["reconstruction"])["pixels"],
    }


@router.post("/runs/{run}/save")
def save(session: Session, body: SaveBody) -> dict[str, str]:
    return session.save(session.to_tensors(body.latents), body.label, body.kind)


def decoded(
    session: ExplorerSession, latents: dict[str, Tensor], label: int | None
) -> dict[str, Any]:
    return {"latents": as_lists(latents), **encode_pixels(session, session.decode(latents, label))}


def single_point(latents: dict[str, Tensor]) -> dict[str, Tensor]:
    require(all(len(z) == 1 for z in latents.values()), "pass one latent point at a time")
    return latents


def as_lists(latents: dict[str, Tensor]) -> dict[str, Any]:
    return {name: [[round(v, 5) for v in row] for row in z.tolist()] for name, z in latents.items()}


def encode_pixels(session: ExplorerSession, images: Tensor) -> dict[str, Any]:
    """Images (N, C, H, W) in [0, 1] as they are shown, grey or colour: 8-bit levels in base64."""
    levels = (session.context.bands(images).clamp(0, 1).nan_to_num(0) * 255).round().to(torch.uint8)
    return {
        "count": len(images),
        "pixels": base64.b64encode(levels.contiguous().numpy().tobytes()).decode(),
    }


class Server(uvicorn.Server):
    """A server that ends the process within 2 seconds of the first signal, whatever its threads are computing."""

    def __init__(self, app: FastAPI) -> None:
        self.sessions = app.state.sessions
        super().__init__(
            uvicorn.Config(
                app,
                log_level="error",
                proxy_headers=False,
                http=HTTPProtocol,
                ws="none",
                server_header=False,
                timeout_graceful_shutdown=1,
            )
        )

    def handle_exit(self, sig: int, frame: Any) -> None:
        super().handle_exit(sig, frame)
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # requests are cut off
        killer = threading.Timer(EXIT_SECONDS, end_process, [sig, self.sessions])
        killer.daemon = True
        killer.start()


def end_process(signal_number: int, sessions: Sequence[ExplorerSession]) -> NoReturn:
    """End the process at once: Python would wait for its threads, such as that of t-SNE, to their end."""
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    for session in sessions:
        session.remove_unfinished()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(128 + signal_number)


def open_sessions(
    runs: Sequence[Run | str | Path],
    data_dir: str | Path | None,
    log: Callable[[str], None],
    bands: str | None = None,
) -> list[ExplorerSession]:
    """The sessions of the runs that can be read; a line is logged for each other. Raises UserError if there is none."""
    sessions: list[ExplorerSession] = []
    problems: list[str] = []
    for run in runs:
        try:
            session = ExplorerSession(run, data_dir, bands)
            session.describe()
            sessions.append(session)
        except (UserError, OSError) as error:
            problems.append(one_line(error))
    require(len(sessions) > 0, "; ".join(problems))
    for problem in problems:
        log(f"left out: {problem}")
    return sessions


def explore(
    runs: Sequence[Run | str | Path],
    port: int = 0,
    browser: bool = True,
    data_dir: str | Path | None = None,
    log: Callable[[str], None] = print,
    bands: str | None = None,
) -> None:
    """Serve the page for some runs on 127.0.0.1 until interrupted; `port` 0 picks a free one. `bands` are those of
    PlotConfig.

    Ctrl-C ends the process. Raises UserError.
    """
    require(len(runs) > 0, "`vaekit explore` needs a run directory")
    sessions: list[ExplorerSession] = []
    # asyncio sets TCP_NODELAY only if the protocol is given; without it each small response takes 40 ms.
    with socket.socket(proto=socket.IPPROTO_TCP) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            raise UserError(
                f"--port {port} is not available ({error}); leave it out to use a free port"
            ) from None
        try:
            sessions += open_sessions(runs, data_dir, log, bands)
            serve(make_app(sessions), listener, browser, log)
        except KeyboardInterrupt:
            end_process(signal.SIGINT, sessions)


def serve(app: FastAPI, listener: socket.socket, browser: bool, log: Callable[[str], None]) -> None:
    """Serve the page on a bound socket; its address, with the token, is logged and opened in the browser."""
    listener.listen(128)
    access = app.state.access
    address = f"http://127.0.0.1:{listener.getsockname()[1]}/?token="
    log(f"{address}{access.token}  (stop with Ctrl-C)")
    if browser:
        webbrowser.open(address + access.new_launch_code())
    Server(app).run(sockets=[listener])
