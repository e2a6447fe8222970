"""What stands between the network and the service: a small ASGI layer that only sound requests pass.

It is outermost, so a refused request costs next to nothing: it reaches neither tracing nor BentoML's metrics, whose
labels would otherwise grow with every invented path. Every error leaves as problem+json (RFC 9457) or as a page, every
answer with an `X-Request-ID`. A request that passes has been read and validated once; the result travels in the ASGI
scope.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import uuid
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from http import HTTPStatus
from typing import Any

from serving.schemas import Invalid, problem_type

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

SCOPE_KEY = "doorstep.request"
"""Where the scope holds what `accept` made of the body."""
PROBLEM = b"application/problem+json"
PAGE = b"text/html; charset=utf-8"
"""An error that is a page of ours passes as it is."""
MAX_BODY = 2_000_000
"""Bytes of a body, unless told otherwise."""
DRAINED = 32_000_000
"""A refused body up to this long is read and thrown away, so that its sender gets to see the answer."""

HIDDEN = ("/static/", "/rows/", "/v1/diagnosis/")
"""Paths that an answer does not list: there are many alike."""

_PREFIX = re.compile(r"(/[A-Za-z0-9._~-]+)+")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_SLUGS = {
    400: "invalid-request",
    404: "not-found",
    405: "method-not-allowed",
    408: "body-too-slow",
    409: "conflict",
    410: "gone",
    413: "body-too-large",
    415: "not-json",
    500: "internal-error",
    503: "overloaded",
}

_NO_STORE = (b"cache-control", b"no-store")

logger = logging.getLogger("doorstep.guard")


def later(seconds: int = 1) -> tuple[tuple[bytes, bytes], ...]:
    """Headers of a refusal that holds only for so long."""
    return ((b"retry-after", str(seconds).encode()),)


class Refused(Exception):
    """A request that goes no further; carries the status, the words and further headers of the answer."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        errors: list[dict[str, Any]] | None = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.errors = errors
        self.headers = headers

    def body(self) -> bytes:
        """The problem+json document."""
        content: dict[str, Any] = {
            "type": problem_type(_SLUGS[self.status]) if self.status in _SLUGS else "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
        }
        if self.errors:
            content["errors"] = self.errors
        return json.dumps(content, ensure_ascii=False).encode()


class Guard:
    """ASGI middleware; see the module.

    Args:
        app: the application behind.
        endpoints: path -> the one method it answers. GET includes HEAD; a POST has a JSON body.
        accept: (path, body) -> what the application finds under `SCOPE_KEY`. Raises Invalid for a 400.
        on_refusal: told the status of every answer of 400 and above.
        max_body: largest body in bytes.
        body_seconds: how long a body may take to arrive.
        max_in_flight: requests whose body has arrived, worked on at once; more get 503 and `Retry-After`.
        prefix: what a proxy leaves before every path, such as /doorstep; paths without it are answered as well.
        missing: answers a browser that asks for a page where there is nothing; everybody else gets a problem+json.
    """

    def __init__(
        self,
        app: App,
        *,
        endpoints: Mapping[str, str],
        accept: Callable[[str, bytes], Any],
        on_refusal: Callable[[int], None] = lambda status: None,
        max_body: int = MAX_BODY,
        body_seconds: float = 5.0,
        max_in_flight: int = 64,
        prefix: str = "",
        missing: App | None = None,
    ) -> None:
        if prefix and not _PREFIX.fullmatch(prefix):
            raise ValueError(
                f"DOORSTEP_PREFIX is {prefix!r}; allowed: a path such as /doorstep, without a slash at its end"
            )
        self.prefix = prefix
        self.missing = missing
        self.app = app
        self.endpoints = endpoints
        self.accept = accept
        self.on_refusal = on_refusal
        self.max_body = max_body
        self.body_seconds = body_seconds
        self.max_in_flight = max_in_flight
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection of the ASGI server."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            if self.prefix and scope["path"].startswith(f"{self.prefix}/"):
                scope["path"] = scope["path"].removeprefix(self.prefix)
                scope["raw_path"] = scope["raw_path"].removeprefix(self.prefix.encode())
            await self._http(scope, receive, send)
        else:
            await send({"type": "websocket.close"})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers: dict[bytes, bytes] = {}
        for key, value in scope["headers"]:
            headers.setdefault(key, value)
        given = headers.get(b"x-request-id", b"")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex.encode()
        answer = _Answer(send, request_id)
        counted = False
        try:
            if self.prefix and scope["path"] == self.prefix:  # links are relative: without the slash they would miss it
                await answer.moved(f"{self.prefix}/")
                return
            if self.missing is not None and self._for_people(scope, headers):
                await self.missing(scope, receive, answer)
                self.on_refusal(404)
                return
            self._check_target(scope)
            if scope["method"] == "POST":
                body = await self._body(headers, receive)
                if self._in_flight >= self.max_in_flight:
                    raise Refused(
                        503,
                        f"{self.max_in_flight} requests are being worked on; try again in a second",
                        headers=later(),
                    )
                self._in_flight += 1
                counted = True
                try:
                    scope[SCOPE_KEY] = self.accept(scope["path"], body)
                except Invalid as e:
                    raise Refused(400, e.detail, errors=e.errors) from None
                receive = _already_read(body, receive)
            await self.app(scope, receive, answer)
            if not answer.complete:
                raise answer.refusal()
            if answer.status >= 400:
                self.on_refusal(answer.status)
        except Refused as e:
            self.on_refusal(e.status)
            if not answer.started:
                await answer.problem(e)
        except _Gone:
            pass
        except Exception:
            logger.exception("%s %s failed, request %s", scope["method"], scope["path"], request_id.decode())
            self.on_refusal(500)
            if not answer.started:
                await answer.problem(Refused(500, "The service failed on this request; its log says more."))
        finally:
            if counted:
                self._in_flight -= 1

    def _for_people(self, scope: Scope, headers: Mapping[bytes, bytes]) -> bool:
        """Whether a browser looks for a page that is not there; programs take JSON, or whatever comes."""
        accepted = headers.get(b"accept", b"")
        asked = scope["method"] in ("GET", "HEAD") and b"text/html" in accepted and b"json" not in accepted
        return asked and scope["path"] not in self.endpoints

    def _check_target(self, scope: Scope) -> None:
        method = self.endpoints.get(scope["path"])
        if method is None:
            known = ", ".join(f"{m} {p}" for p, m in self.endpoints.items() if not p.startswith(HIDDEN))
            raise Refused(404, f"There is nothing at {scope['path'][:100]}; there is {known}")
        allowed = ("GET", "HEAD") if method == "GET" else (method,)
        if scope["method"] not in allowed:
            raise Refused(
                405,
                f"{scope['path']} takes {method}; given: {scope['method'][:20]}",
                headers=((b"allow", ", ".join(allowed).encode()),),
            )

    async def _body(self, headers: Mapping[bytes, bytes], receive: Receive) -> bytes:
        """The body, never more than `max_body` of it."""
        length_text = headers.get(b"content-length", b"")
        length = int(length_text) if length_text.isdigit() else None
        # Without a stated length, or with a huge one, the rest is not worth reading: the connection is closed instead.
        close = ((b"connection", b"close"),) if length is None or length > DRAINED else ()
        kind, _, parameters = headers.get(b"content-type", b"").decode("latin-1").lower().partition(";")
        charset = parameters.partition("charset=")[2].strip().strip('"')
        if kind.strip() != "application/json" or charset not in ("", "utf-8", "utf8"):
            shown = headers.get(b"content-type", b"nothing").decode("latin-1")[:100]
            raise Refused(415, f"Content-Type must be application/json (in UTF-8); given: {shown}", headers=close)
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise Refused(415, "Content-Encoding must be absent: compressed bodies are not read", headers=close)
        if length is not None and length > self.max_body:
            raise self._too_large(f"{length:,} bytes", close)
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _Gone
                    part = message.get("body", b"")
                    size += len(part)
                    if size > self.max_body:
                        raise self._too_large(f"more than {self.max_body:,} bytes", close)
                    parts.append(part)
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            raise Refused(
                408,
                f"The body must arrive within {self.body_seconds:g} seconds; {size:,} bytes did",
                headers=((b"connection", b"close"),),
            ) from None

    def _too_large(self, given: str, close: tuple[tuple[bytes, bytes], ...]) -> Refused:
        return Refused(413, f"A body may have {self.max_body:,} bytes; given: {given}", headers=close)


class _Gone(Exception):
    """The client hung up before its request was complete."""


class _Answer:
    """The send side of one request: adds the request id, and holds back errors that are not problem+json."""

    def __init__(self, send: Send, request_id: bytes) -> None:
        self._send = send
        self._headers = [(b"x-request-id", request_id), (b"x-content-type-options", b"nosniff")]
        self._held: int | None = None
        self.status = 0
        self.started = False
        self.complete = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            given = dict(message.get("headers", ()))
            if message["status"] >= 400 and given.get(b"content-type") not in (PROBLEM, PAGE):
                self._held = message["status"]
                return
            self.started, self.status = True, message["status"]
            kept = () if b"cache-control" in given else (_NO_STORE,)
            message["headers"] = [*message.get("headers", ()), *self._headers, *kept]
        elif self._held is not None:
            return
        elif message["type"] == "http.response.body" and not message.get("more_body", False):
            self.complete = True
        await self._send(message)

    def refusal(self) -> Refused:
        """What the application behind meant by an answer of 400 or above (or by none at all)."""
        status = self._held if self._held is not None else 500
        details = {
            503: "The service is not ready.",
            504: "The answer took too long.",
        }
        return Refused(status, details.get(status, "The service failed on this request; its log says more."))

    async def problem(self, refused: Refused) -> None:
        """Send `refused`, as the whole answer."""
        self.started = self.complete = True
        body = refused.body()
        headers = [
            (b"content-type", PROBLEM),
            (b"content-length", str(len(body)).encode()),
            *self._headers,
            _NO_STORE,
            *refused.headers,
        ]
        await self._send({"type": "http.response.start", "status": refused.status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})

    async def moved(self, to: str) -> None:
        """Send the client elsewhere."""
        self.started = self.complete = True
        headers = [(b"location", to.encode()), (b"content-length", b"0"), *self._headers, _NO_STORE]
        await self._send({"type": "http.response.start", "status": 308, "headers": headers})
        await self._send({"type": "http.response.body", "body": b""})


def _already_read(body: bytes, receive: Receive) -> Receive:
    """A receive that gives `body` once and then what the server says next, such as that the client hung up."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return pending.pop() if pending else await receive()

    return replay
