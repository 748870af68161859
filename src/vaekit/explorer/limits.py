"""What the explorer refuses before it reaches the API: strangers, and requests that are too many, large or slow."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qs

from starlette.responses import Response
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..support.errors import require

MAX_REQUEST_BYTES = 4 * 2**20
MAX_CONCURRENT = 64  # requests; further ones get the status 429
RATE_PER_SECOND, RATE_BURST = 300.0, 600.0  # requests; a drag on the page sends 60 per second
HEAD_SECONDS = BODY_SECONDS = SEND_SECONDS = 10.0  # on this machine, each takes milliseconds
LAUNCH_SECONDS = 60.0
PAGE_FILES = (
    "/",
    "/index.html",
    "/app.js",
    "/style.css",
)  # the same for everybody: no token needed
TOKEN_PATH = "/api/token"
POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; frame-ancestors 'none'; "
    "base-uri 'none'; form-action 'none'"
)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Access:
    """The token that a request must carry: as `?token=` or in the header `Authorization: token TOKEN`.

    Other users of the machine can read the arguments of a process, so the browser is started with a launch code: it
    gives the token once, within a minute.
    """

    def __init__(self, token: str | None = None) -> None:
        require(token != "", "the token is empty")
        self.token = token or secrets.token_urlsafe(32)
        self.launch_code, self.expires = secrets.token_urlsafe(32), 0.0

    def new_launch_code(self) -> str:
        """A code that TOKEN_PATH accepts once instead of the token."""
        self.launch_code = secrets.token_urlsafe(32)
        self.expires = time.monotonic() + LAUNCH_SECONDS
        return self.launch_code

    def allows(self, scope: Scope) -> bool:
        """Whether a request may be answered. Compares in constant time; uses up a launch code."""
        given = given_token(scope)
        allowed = secrets.compare_digest(given, self.token.encode())
        launched = secrets.compare_digest(given, self.launch_code.encode())
        if launched and scope["path"] == TOKEN_PATH and time.monotonic() < self.expires:
            self.expires = 0.0
            return True
        return allowed


def given_token(scope: Scope) -> bytes:
    """The token of a request; empty if it has none."""
    for name, value in scope["headers"]:
        if name == b"authorization":
            return bytes(value).rpartition(b" ")[2]
    return parse_qs(scope["query_string"]).get(b"token", [b""])[0]


def refusal(status: int, detail: Any) -> Response:
    """An answer that closes the connection: the rest of the request may never be read. ASCII, so that no text from the
    request can make it fail."""
    content = json.dumps({"detail": detail})
    return Response(content, status, {"connection": "close"}, "application/json")


class RequestLimits:
    """ASGI middleware: 403 without the token, 408 for a body that is too slow, 413 for one that is too large, 429 for
    one request too many (token bucket); security headers.

    What carries no token takes no place among the concurrent requests.
    """

    def __init__(
        self, app: Callable[[Scope, Receive, Send], Awaitable[None]], access: Access
    ) -> None:
        self.app, self.access, self.active = app, access, 0
        self.tokens, self.refilled = RATE_BURST, time.monotonic()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return None
        send = with_security_headers(send)
        if scope["path"] in PAGE_FILES and scope["method"] in ("GET", "HEAD"):
            return await self.app(scope, receive, send)
        if not self.access.allows(scope):
            text = "the token is missing or wrong: open the address that `vaekit explore` printed"
            return await refusal(403, text)(scope, receive, send)
        if self.active >= MAX_CONCURRENT or not self.take_token():
            response = refusal(429, "too many requests")
            response.headers["retry-after"] = "1"
            return await response(scope, receive, send)
        self.active += 1
        try:
            await self.answer(scope, receive, send)
        finally:
            self.active -= 1

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            content = await asyncio.wait_for(read_body(receive), BODY_SECONDS)
        except TimeoutError:
            return await refusal(408, "the request is too slow")(scope, receive, send)
        except ConnectionError:
            return None
        if content is None:
            return await refusal(413, "the request is too large")(scope, receive, send)
        with contextlib.suppress(TimeoutError):  # the client does not read
            await self.app(scope, replay_body(content, receive), send)
        return None

    def take_token(self) -> bool:
        now = time.monotonic()
        self.tokens = min(RATE_BURST, self.tokens + RATE_PER_SECOND * (now - self.refilled)) - 1
        self.refilled = now
        if self.tokens < 0:
            self.tokens = 0.0
            return False
        return True


async def read_body(receive: Receive) -> bytes | None:
    """The body of a request; None if it is too large. Raises ConnectionError if the client leaves before its end."""
    content = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionAbortedError
        content += message.get("body", b"")
        if len(content) > MAX_REQUEST_BYTES:
            return None
        if not message.get("more_body"):
            return bytes(content)


def replay_body(content: bytes, receive: Receive) -> Receive:
    """A `receive` that returns the body already read, then the messages that follow."""
    messages = iter([{"type": "http.request", "body": content, "more_body": False}])

    async def replay() -> MutableMapping[str, Any]:
        return next(messages, None) or await receive()

    return replay


def with_security_headers(send: Send) -> Send:
    """A `send` with headers that forbid loading from other hosts, framing, caching and passing on the address; it gives
    up on a client that does not read (TimeoutError)."""

    async def send_with_headers(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [
                *message["headers"],
                (b"content-security-policy", POLICY.encode()),
                (b"x-content-type-options", b"nosniff"),
                (b"referrer-policy", b"no-referrer"),
                (b"cache-control", b"no-store"),
            ]
        await asyncio.wait_for(send(message), SEND_SECONDS)

    return send_with_headers


class HTTPProtocol(H11Protocol):
    """HTTP/1.1 that closes a connection on which no request begins for HEAD_SECONDS, however many bytes arrive."""

    last_cycle: Any = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.loop.call_later(HEAD_SECONDS, self.close_if_idle)

    def close_if_idle(self) -> None:
        waiting = self.cycle is None or self.cycle.response_complete
        if waiting and self.cycle is self.last_cycle:
            self.transport.abort()
        elif not self.transport.is_closing():
            self.last_cycle = self.cycle
            self.loop.call_later(HEAD_SECONDS, self.close_if_idle)
