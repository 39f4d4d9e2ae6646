"""What a request has to pass before anything is done for it: keys, size, time."""

import asyncio
import logging
import time
from typing import Any

from mien.service.dispatch import Dispatcher
from mien.service.keys import Keys, shown_key
from mien.service.limits import Limits, Refused, busy
from mien.service.metrics import Metrics

logger = logging.getLogger("mien.service.access")

READING = ("/v1/read", "/v1/classify")
"""Routes to which pictures are sent."""

GUARDED = (*READING, "/v1/labels", "/metrics")
"""Routes that need a key, where there are keys."""

ROUTES = (*GUARDED, "/healthz", "/docs", "/openapi.json", "/")

_HEADERS = [(b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff")]


class RequestGate:
    """ASGI around the application, which gets only requests that are allowed, their bodies whole and in memory."""

    def __init__(self, app: Any, *, dispatcher: Dispatcher, limits: Limits, keys: Keys, metrics: Metrics):
        self._app, self._dispatcher, self._limits, self._keys, self._metrics = app, dispatcher, limits, keys, metrics
        self.held = 0

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        begin, status = time.monotonic(), 499  # the client is gone
        connection = scope["state"]["connection"]
        connection.asked()

        async def answer(message: dict) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", []), *_HEADERS]}
            await send(message)

        route = scope["path"] if scope["path"] in ROUTES else "other"
        held = [0]
        try:
            self._check(scope)
            if scope["path"] in READING and scope["method"] == "POST":
                body = await self._body(scope, receive, held)
                if body is None:
                    return
                connection.received()
                scope["state"]["body"] = body
            await self._app(scope, receive, answer)
        except Refused as refused:
            await refuse(refused, answer)
        finally:
            self.held -= held[0]
            connection.answered()
            seconds = time.monotonic() - begin
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.seconds.labels(route).observe(seconds)
            logger.info("%s %s %d %.3f s", _method(scope), route, status, seconds)

    def _check(self, scope: dict) -> None:
        """Refuse what can be refused before the body comes: then it is never read."""
        if self._keys and scope["path"] in GUARDED and (shown_key(scope["headers"]) or b"") not in self._keys:
            raise Refused(401, "no_key", "this needs a key: Authorization: Bearer KEY", {"www-authenticate": "Bearer"})
        if scope["path"] not in READING or scope["method"] != "POST":
            return
        headers = dict(scope["headers"])
        if headers.get(b"content-encoding", b"identity") != b"identity":
            raise Refused(415, "unsupported_type", "send the body as it is, not compressed")
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._limits.body:
            raise _too_large(self._limits)
        if self._dispatcher.full:
            raise busy("queue_full", "too many requests are waiting already")

    async def _body(self, scope: dict, receive: Any, held: list[int]) -> bytes | None:
        """The whole body; None if the client went away."""
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.upload_seconds):
                while True:
                    message = await receive()
                    if message["type"] != "http.request":
                        return None
                    chunk = message.get("body", b"")
                    held[0] += len(chunk)
                    self.held += len(chunk)
                    if held[0] > self._limits.body:
                        raise _too_large(self._limits)
                    if self.held > self._limits.held:
                        raise busy("memory_full", "too much is being received already")
                    body += chunk
                    if not message.get("more_body"):
                        return bytes(body)
        except TimeoutError as error:
            reason = f"the body did not arrive within {self._limits.upload_seconds:g} seconds"
            raise Refused(408, "too_slow", reason, {"connection": "close"}) from error


async def refuse(refused: Refused, send: Any) -> None:
    body = refused.body()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **refused.headers}
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refused.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def _too_large(limits: Limits) -> Refused:
    return Refused(413, "too_large", f"a request has at most {limits.body:,} bytes")


def _method(scope: dict) -> str:
    return scope["method"] if scope["method"] in ("GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE") else "?"
