"""What an engine has to do with processes: opened anew in one that a fork made, and where it is unpickled."""

import ctypes
import os
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mien.errors import CheckpointError


class FileEngine:
    """An engine that holds an opened model file; a subclass writes `_open`.

    A process that a fork makes inherits what its parent opened, but not the threads that work there, and would wait for
    them without end. There the file is opened anew, when it is first asked for. The same happens where the engine is
    unpickled: only the file's path travels, and its checksum, so that another file is not taken for it.

    path: of the file; options: whatever else `_open` needs, picklable.

    Raises CheckpointError where the file is no longer there, or has changed.
    """

    def __init__(self, path: str | os.PathLike[str], **options: Any):
        self._path, self._options = Path(os.path.abspath(path)), options
        self._checksum: int | None = None
        self._forget()
        self._get(Path(path))
        _engines.add(self)

    def _open(self, path: Path, options: dict[str, Any]) -> tuple[Any, int]:
        """What runs the file, and a checksum of the file."""
        raise NotImplementedError

    def _forget(self) -> None:
        self._lock, self._opened = threading.Lock(), None

    def _get(self, path: Path | None = None) -> Any:
        """What `_open` gave, opened where this process has not done it yet; `path` is how errors call the file."""
        if self._opened is None:
            with self._lock:
                if self._opened is None:
                    path = path or self._path
                    with computing():
                        opened, checksum = self._open(path, self._options)
                    if self._checksum not in (None, checksum):
                        raise CheckpointError(f"{path}: has changed since it was opened")
                    self._opened, self._checksum = opened, checksum
        return self._opened

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (type(self), self._path, self._options, self._checksum)


def _reopen(kind: type[FileEngine], path: Path, options: dict[str, Any], checksum: int) -> FileEngine:
    engine = kind(path, **options)
    if engine._checksum != checksum:
        raise CheckpointError(f"{path}: not the file that was pickled, or changed since")
    return engine


def leak(value: object) -> None:
    """Never free an object: after a fork, freeing it may wait for its threads, which are not there."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))


@contextmanager
def computing() -> Iterator[None]:
    """Around what a library computes in threads of its own: a fork waits until it is done, and it for a fork.

    A lock that such a thread holds at the moment of a fork would be held in the child for ever.
    """
    global _running
    with _turn:
        _turn.wait_for(lambda: not _forking, _PATIENCE)
        _running += 1
    try:
        yield
    finally:
        with _turn:
            _running -= 1
            _turn.notify_all()


def _before_fork() -> None:
    global _forking
    with _turn:
        _forking += 1
        _turn.wait_for(lambda: not _running, _PATIENCE)
    until = time.monotonic() + 0.1
    while _engines and _others_run() and time.monotonic() < until:  # who answered has not yet gone to sleep
        time.sleep(0.001)


def _others_run() -> bool:
    """Whether another thread of this process runs, or is ready to; False where there is no /proc."""
    try:
        threads = set(os.listdir("/proc/self/task")) - {str(threading.get_native_id())}
    except OSError:
        return False
    for thread in threads:
        with suppress(OSError), open(f"/proc/self/task/{thread}/stat") as file:  # it may have ended meanwhile
            if file.read().rpartition(")")[2].split()[0] == "R":
                return True
    return False


def _in_parent() -> None:
    global _forking
    with _turn:
        _forking -= 1
        _turn.notify_all()


def _after_fork() -> None:
    global _turn, _running, _forking
    _turn, _running, _forking = threading.Condition(), 0, 0
    for engine in list(_engines):
        if engine._opened is not None:
            leak(engine._opened)
        engine._forget()


_engines: "weakref.WeakSet[FileEngine]" = weakref.WeakSet()
_turn, _running, _forking = threading.Condition(), 0, 0
_PATIENCE = 1.0  # seconds; no fork waits longer, and nothing for a fork
if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(before=_before_fork, after_in_parent=_in_parent, after_in_child=_after_fork)
