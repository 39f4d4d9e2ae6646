"""Pictures from a server, within bounds of size and time."""

import threading
import time
from collections.abc import Callable
from contextlib import closing
from queue import Empty, SimpleQueue
from typing import Any

from mien.errors import ReadError

MAX_BYTES = 2**28
"""Of a picture that is held in memory as a file: a quarter of a GB."""

SECONDS = 30.0
"""For one picture, from the first request to the last byte, redirects included."""

_CHUNK = 2**16


def fetch(address: str, *, max_bytes: int = MAX_BYTES, seconds: float = SECONDS) -> bytes:
    """What an http:// or https:// address answers.

    max_bytes: of the answer. seconds: until it is all there.

    Raises ReadError, within `seconds`, where the server cannot be had, says no, or sends more or later than that.
    """
    return _in_time(address, seconds, lambda until: _read(address, max_bytes, seconds, until))


def serves_picture(address: str, *, seconds: float = SECONDS) -> bool:
    """Whether the server says that what is at an address is a picture; its content is not read.

    Raises ReadError as `fetch` does.
    """

    def ask(until: float) -> bool:
        with closing(_open(address, seconds)) as answer:
            return answer.headers.get_content_type().startswith("image/")

    return _in_time(address, seconds, ask)


def _in_time(address: str, seconds: float, work: Callable[[float], Any]) -> Any:
    """The answer of `work`, given when it has to end; a name server or a header that drips is not waited for longer."""
    answers: SimpleQueue[tuple[Any, ReadError | None]] = SimpleQueue()

    def run() -> None:
        try:
            answers.put((work(time.monotonic() + seconds), None))
        except ReadError as error:
            answers.put((None, error))
        except Exception as error:  # of urllib, http.client, ssl and socket, and for addresses that are none
            answers.put((None, ReadError(address, _reason(error))))

    threading.Thread(target=run, daemon=True, name="mien-fetch").start()
    try:
        answer, error = answers.get(timeout=seconds)
    except Empty:
        raise _late(address, seconds) from None
    if error is not None:
        raise error
    return answer


def _open(address: str, seconds: float) -> Any:
    from urllib import request  # costs 40 ms, and few pictures come from a server

    opener = request.OpenerDirector()  # the usual one would open file: and ftp: addresses, too
    for handler in (
        request.ProxyHandler(),
        request.HTTPHandler(),
        request.HTTPSHandler(),
        request.HTTPDefaultErrorHandler(),
        request.HTTPRedirectHandler(),
        request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    opener.addheaders = [("User-Agent", "mien"), ("Accept", "image/*, */*;q=0.5")]
    return opener.open(address, timeout=seconds)


def _read(address: str, max_bytes: int, seconds: float, until: float) -> bytes:
    parts: list[bytes] = []
    size = 0
    with closing(_open(address, seconds)) as answer:
        while part := answer.read1(_CHUNK):
            parts.append(part)
            size += len(part)
            if size > max_bytes:
                raise ReadError(address, f"more than {max_bytes // 2**20} MB")
            if time.monotonic() > until:
                raise _late(address, seconds)
        length = answer.headers.get("Content-Length", "")
    if length.isdecimal() and size < int(length):
        raise ReadError(address, f"cut short: {size:,} of {int(length):,} bytes came")
    return b"".join(parts)


def _late(address: str, seconds: float) -> ReadError:
    return ReadError(address, f"no whole answer within {seconds:g} s")


def _reason(error: Exception) -> str:
    code = getattr(error, "code", None)
    if isinstance(code, int):
        return f"the server answers {code} {getattr(error, 'reason', '')}".strip().lower()
    inner = getattr(error, "reason", error)  # urllib's hold what went wrong
    text = getattr(inner, "strerror", None) or str(inner).strip().partition("\n")[0] or type(inner).__name__
    return f"not to be fetched ({text.lower()})"
