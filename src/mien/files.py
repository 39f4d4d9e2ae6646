"""Files that are there whole or not at all, and the one that errors are written to."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write into that takes the name `path` at the end; where the end is not reached, nothing is left.

    Raises OSError, with `path` as its filename.
    """
    path = Path(os.path.realpath(path))
    part = path.with_name(f".{os.getpid()}-{os.urandom(4).hex()}.part")
    try:
        with open(part, "xb") as file:
            yield file
        part.replace(path)
    except OSError as error:
        if error.filename == str(part):
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def silence() -> Iterator[None]:
    """Nothing goes to stderr, by whatever language it is written."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
