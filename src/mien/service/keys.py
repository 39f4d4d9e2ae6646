"""API keys: kept as digests, compared in constant time, shown to nobody."""

import hmac
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

from mien.errors import MienError

LEAST = 16
"""Characters of a key: fewer could be tried out."""


class Keys:
    """The keys of which a request has to show one; none at all lets everybody in."""

    def __init__(self, keys: Iterable[str] = ()):
        self._digests = [sha256(_checked(key, f"key {n}")).digest() for n, key in enumerate(keys, 1)]

    @classmethod
    def read(cls, path: Path) -> "Keys":
        """One key a line; blank lines and those that begin with # are none."""
        try:
            lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
        except OSError as error:
            raise MienError(f"{path}: {(error.strerror or str(error)).lower()}") from error
        except UnicodeDecodeError as error:
            raise MienError(f"{path}: not a text file") from error
        keys = cls(())
        for number, line in enumerate(lines, 1):
            if line and not line.startswith("#"):
                keys._digests.append(sha256(_checked(line, f"{path}, line {number}")).digest())
        if not keys:
            raise MienError(f"{path}: no key in it")
        return keys

    def __len__(self) -> int:
        return len(self._digests)

    def __contains__(self, shown: bytes) -> bool:
        digest = sha256(shown).digest()  # of one length, which compare_digest would give away
        return sum(hmac.compare_digest(digest, known) for known in self._digests) > 0  # all of them, always


def shown_key(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """The key of `Authorization: Bearer KEY` or `X-API-Key: KEY`."""
    for name, value in headers:
        if name == b"x-api-key":
            return value.strip()
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            return value[7:].strip()
    return None


def _checked(key: str, where: str) -> bytes:
    if not key.isascii() or not key.isprintable() or " " in key:
        raise MienError(f"{where}: a key is of printable ASCII characters without blanks")
    if len(key) < LEAST:
        raise MienError(f"{where}: a key has at least {LEAST} characters")
    return key.encode()
