"""Pictures that end the process which reads them, found by what it leaves behind."""

import hashlib
import json
from pathlib import Path

from mien.engines.openvino import cache_folder

CAREFUL = 3
"""The attempt from which on a shard is read picture by picture: an end may have other reasons than a picture."""

REASON = "reading it ends the process"


class Tries:
    """A shard's attempts on this machine, in a file of the cache folder that is there while one is under way.

    attempt: the number of this one, from 1. deadly: the indices in the shard of the pictures that ended earlier ones.
    """

    def __init__(self, out: str, digest: str):
        name = hashlib.blake2b(f"{out} {digest}".encode(errors="surrogateescape"), digest_size=16).hexdigest()
        try:
            self._path: Path | None = cache_folder() / f"{name}.tries"
        except RuntimeError:  # a user without a home
            self._path = None
        self.attempt, self.deadly = 1, set()
        try:
            attempt, deadly, at = json.loads(self._path.read_text()) if self._path else (0, (), None)
            self.attempt, self.deadly = int(attempt) + 1, {*deadly, *(() if at is None else (at,))}
        except (OSError, ValueError, TypeError):
            pass
        self.begin(None)

    @property
    def careful(self) -> bool:
        return self.attempt >= CAREFUL

    def begin(self, index: int | None) -> None:
        """Note that the picture `index` is next; None: many at once."""
        if self._path is not None:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._path.write_text(json.dumps([self.attempt, sorted(self.deadly), index]))
            except OSError:
                self._path = None

    def end(self) -> None:
        """However it ended, the process is there."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
