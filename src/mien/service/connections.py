"""HTTP connections that do not wait for ever, nor keep others out."""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from mien.service.limits import Limits, Refused

IDLE_SECONDS = 30.0
"""How long a connection stays open between two requests."""


def protocol(limits: Limits) -> type[H11Protocol]:
    """uvicorn's HTTP/1.1 with time limits for a request's head and for taking an answer, and a limit of connections.

    Of uvicorn's two parsers it is the one that limits a head's size. Where there are too many connections, that one is
    closed which has waited longest for the rest of a request. A request finds its connection in its scope's state, and
    reports to it; the time for its body is the gate's matter.
    """
    every: set[Any] = set()
    waiting: dict[Any, None] = {}  # for the rest of a request, the longest first

    class Connection(H11Protocol):
        def __init__(self, *, app_state: dict[str, Any], **arguments: Any):
            super().__init__(app_state={**app_state, "connection": self}, **arguments)
            self._clock: asyncio.TimerHandle | None = None
            self._idle = self._asked = self._paused = False

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._socket = transport
            every.add(self)
            waiting[self] = None
            self._watch(limits.head_seconds)
            if len(every) > limits.connections:
                next(iter(waiting)).drop()

        def data_received(self, data: bytes) -> None:
            if self._idle:  # a head begins, or it is what is left of a body that was refused
                self._idle = False
                self._watch(limits.head_seconds)
            super().data_received(data)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._paused = True
            self._watch(limits.head_seconds)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._paused:
                self._paused = False
                self._watch(None if self._asked else IDLE_SECONDS)

        def connection_lost(self, exc: Exception | None) -> None:
            self._forget()
            super().connection_lost(exc)

        def send_400_response(self, msg: str) -> None:
            body = Refused(400, "bad_request", msg.lower().rstrip(".")).body()
            head = "HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nConnection: close\r\n"
            self._socket.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            self._socket.close()

        def asked(self) -> None:
            """A head has come."""
            self._asked, self._idle = True, False
            self._watch(None)

        def received(self) -> None:
            """The whole request has come."""
            waiting.pop(self, None)

        def answered(self) -> None:
            """The request is over."""
            if self in every:
                self._asked, self._idle = False, True
                waiting.pop(self, None)
                waiting[self] = None
                if not self._paused:
                    self._watch(IDLE_SECONDS)

        def drop(self) -> None:
            self._forget()
            self._socket.abort()

        def _forget(self) -> None:
            self._watch(None)
            every.discard(self)
            waiting.pop(self, None)

        def _watch(self, seconds: float | None) -> None:
            if self._clock is not None:
                self._clock.cancel()
            self._clock = None if seconds is None else asyncio.get_running_loop().call_later(seconds, self.drop)

    return Connection
