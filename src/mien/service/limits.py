"""How much strangers may send, and what is answered where it was too much."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

MB = 2**20


@dataclass(frozen=True)
class Limits:
    """How much a request may bring and cost.

    body: int, bytes of a request; 20 MB.
    held: int, bytes of all requests that are being received or worked on; 512 MB.
    pictures: int, of a request; 16.
    pixels: int, of a picture; 50 million.
    request_pixels: int, of all pictures of a request; 100 million.
    faces: int, of a picture; 100.
    read_seconds: of a processor, for opening the pictures of a request and finding their faces; 10.
    seconds: from the last byte of a request to its answer; 30.
    upload_seconds: from the head of a request to its last byte; 30.
    queue: int, requests that wait or are worked on; 64.
    connections: int, open at a time; 512.
    """

    body: int = 20 * MB
    held: int = 512 * MB
    pictures: int = 16
    pixels: int = 50_000_000
    request_pixels: int = 100_000_000
    faces: int = 100
    read_seconds: float = 10
    seconds: float = 30
    upload_seconds: float = 30
    queue: int = 64
    connections: int = 512

    @property
    def head_seconds(self) -> float:
        """For the head of a request, and for a client that takes no more of its answer."""
        return min(10.0, self.upload_seconds)


@dataclass
class Refused(Exception):
    """A request that is refused.

    status: int, of HTTP.
    code: the reason for programs, one word.
    reason: the same for people, a sentence.
    headers: of the answer; none by default.
    """

    status: int
    code: str
    reason: str
    headers: Mapping[str, str] = field(default_factory=dict)

    def body(self) -> bytes:
        return json.dumps({"error": {"code": self.code, "reason": self.reason}}, ensure_ascii=False).encode()


def busy(code: str, reason: str, status: int = 429) -> Refused:
    return Refused(status, code, reason, {"retry-after": "1"})
