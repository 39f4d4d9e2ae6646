"""HTTP connections that do not wait for ever."""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from mien.service.limits import Limits, Refused


def protocol(limits: Limits) -> type[H11Protocol]:
    """uvicorn's HTTP/1.1, which has no time limit for the head of a request or for taking an answer, with both.

    Of uvicorn's two parsers it is the one that limits a head's size. The body's time is the gate's matter.
    """

    class Patient(H11Protocol):
        _clock: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > limits.connections:
                transport.abort()
            else:
                self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is None or self.cycle.response_complete:  # a head, or what is left of a body that was refused
                self._watch()
            elif not self.flow.write_paused:
                self._unwatch()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._watch()

        def resume_writing(self) -> None:
            super().resume_writing()
            self._unwatch()

        def timeout_keep_alive_handler(self) -> None:
            self.transport.abort()

        def connection_lost(self, exc: Exception | None) -> None:
            self._unwatch()
            super().connection_lost(exc)

        def send_400_response(self, msg: str) -> None:
            body = Refused(400, "bad_request", msg.lower().rstrip(".")).body()
            head = "HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nConnection: close\r\n"
            self.transport.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            self.transport.close()
            if self.cycle:
                self.cycle.disconnected = True  # what it was about is over
                self.cycle.message_event.set()

        def _watch(self) -> None:
            if self._clock is None:
                self._clock = self.loop.call_later(limits.head_seconds, self.transport.abort)

        def _unwatch(self) -> None:
            if self._clock is not None:
                self._clock.cancel()
                self._clock = None

    return Patient
