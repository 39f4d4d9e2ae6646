"""How much strangers may send, and what is answered where it was too much."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

MB = 2**20


@dataclass(frozen=True)
class Limits:
    """How much a request may bring and cost.

    body: bytes of a request. held: bytes of all requests that are being received or worked on. pictures: of a request.
    pixels, faces: of a picture. request_pixels: of all pictures of a request. read_seconds: of a processor, for
    opening the pictures of a request and finding their faces. seconds: from the last byte of a request to its answer.
    upload_seconds: from its head to its last byte. queue: requests that wait or are worked on. connections: open at a
    time.
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
    """A request that is refused: status, a code for programs, a reason for people."""

    status: int
    code: str
    reason: str
    headers: Mapping[str, str] = field(default_factory=dict)

    def body(self) -> bytes:
        return json.dumps({"error": {"code": self.code, "reason": self.reason}}, ensure_ascii=False).encode()


def busy(code: str, reason: str, status: int = 429) -> Refused:
    return Refused(status, code, reason, {"retry-after": "1"})
