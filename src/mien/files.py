"""Files that are there whole or not at all, and the stream that errors are written to."""

import errno
import io
import os
import re
import socket
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from mien.errors import MienError, MienWarning, require

LOCK = ".mien.lock"
"""The file by which a run has a folder to itself; a killed run leaves it there, and nobody minds."""

_swept: set[tuple[int, Path]] = set()  # by process: folders that were looked through for drafts of killed runs


@contextmanager
def whole(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write into that takes the name `path` at the end; where the end is not reached, nothing is left.

    What was written is on the disk before the file takes its name, with the mode of the file that it replaces. A pipe
    or a character device, such as /dev/stdout, is written into and never replaced. Warns (MienWarning) where the file
    had other names, hard links, which keep what was there.

    Raises OSError, with `path` as its filename.
    """
    asked = os.fspath(path)
    kind = _kind(asked)
    if kind in (stat.S_IFIFO, stat.S_IFCHR):
        with io.BufferedWriter(_Named(asked, "w", asked)) as stream:
            yield stream
        return
    if kind in (stat.S_IFBLK, stat.S_IFSOCK):
        raise OSError(errno.EINVAL, "neither a file nor a pipe", asked)
    path = Path(os.path.realpath(asked))
    _sweep(path.parent)
    part = path.with_name(f"{_prefix()}{os.getpid()}-{os.urandom(4).hex()}.part")
    try:
        with io.BufferedWriter(draft := _Draft(part, "x", asked)) as file:
            yield file
            file.flush()
            draft.finish(path)
        os.replace(part, path)
    except OSError as error:
        if str(error.filename) == str(part):
            error.filename, error.filename2 = asked, None
        raise
    finally:
        part.unlink(missing_ok=True)


def _kind(path: str) -> int:
    """What stands at the path, as `stat` counts kinds; 0 for nothing."""
    try:
        return stat.S_IFMT(os.stat(path).st_mode)
    except OSError:
        return 0


class _Named(io.FileIO):
    """A file whose errors bear the name that was asked for."""

    def __init__(self, path: str | Path, mode: str, asked: str):
        super().__init__(path, mode)
        self._asked = asked

    def write(self, data, /) -> int:
        with self._naming():
            return super().write(data)

    @contextmanager
    def _naming(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            error.filename = self._asked
            raise


class _Draft(_Named):
    """A file that is written through this object alone: what writes to its number does not see that a disk is full.

    (Pillow, for one, takes a write that was cut short for a whole one.)
    """

    def fileno(self) -> int:
        raise io.UnsupportedOperation("written through its own methods alone")

    def finish(self, path: Path) -> None:
        """Bring it to the disk, in the mode of the file that stands at `path`."""
        number = super().fileno()
        with self._naming():
            os.fsync(number)
        with suppress(FileNotFoundError):
            before = os.stat(path)
            with suppress(OSError, AttributeError):  # a file system, or a Windows, without modes
                os.fchmod(number, stat.S_IMODE(before.st_mode))
            if before.st_nlink > 1:
                links = "its other hard link keeps" if before.st_nlink == 2 else "its other hard links keep"
                warnings.warn(f"{self._asked}: {links} what was there", MienWarning, 4)


def _prefix() -> str:
    return f".mien-{re.sub(r'[^A-Za-z0-9]', '', socket.gethostname())[:40]}-"


def _sweep(folder: Path) -> None:
    """Remove the drafts that killed processes of this machine left in the folder; once for each process."""
    if (os.getpid(), folder) in _swept:
        return
    _swept.add((os.getpid(), folder))
    with suppress(OSError):
        for part in folder.glob(f"{_prefix()}*.part"):
            owner = re.fullmatch(r"(\d+)-[0-9a-f]{8}\.part", part.name.removeprefix(_prefix()))
            if owner and not _runs(int(owner[1])):
                part.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    if os.name == "nt":  # where to ask would end it, and a file that a process has open cannot be removed
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True  # of somebody else's
    return True


@contextmanager
def alone(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Have a folder, made if it is missing, to oneself: no other process, on whatever machine, is in here meanwhile.

    Drafts that killed runs left anywhere in it are removed.

    Raises MienError, at once, where somebody else has it; MissingExtra without filelock.
    """
    filelock = require("filelock", "parquet")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / LOCK, blocking=False)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise MienError(f"{folder}: another run is at work there") from error
    try:
        for part in folder.rglob(".*.part"):
            part.unlink(missing_ok=True)
        yield
    finally:
        (folder / LOCK).unlink(missing_ok=True)  # while it is held: who waits for it sees that the file is gone
        lock.release()


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
