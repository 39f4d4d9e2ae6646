"""The terminal and the signals of a process that is a command of mien's: what goes to stderr, and what Ctrl-C does."""

import codecs
import io
import os
import signal
import sys
from contextlib import suppress
from typing import Any

AGAIN = 0.05
"""Seconds after which an interruption that came at a bad moment is tried again."""

_PLAIN = {"×": "x", "…": "...", "–": "-", "—": "-", "±": "+-", "≥": ">=", "→": "->"}
"""How letters of mien's own messages are spelled where a terminal has no such letter."""

_said = False


def printable(text: str) -> str:
    """Text that stays on its line of the terminal, whatever a file or a model calls itself."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def leave(*_: object) -> None:
    """End the process at once: what the command does on Ctrl-C before anything is begun, and after all is done."""
    _say()
    os._exit(130)


def interrupt(number: int, frame: Any) -> None:
    """Raise KeyboardInterrupt; amid an import, a moment later.

    An import that is cut leaves half a module, which other errors come of, and its lock may be waited for.
    """
    if _importing(frame) and hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, AGAIN)
    else:
        raise KeyboardInterrupt


def is_usual(handler: object) -> bool:
    """Whether a handler of SIGINT is Python's own or the one here: nobody else has set one."""
    return handler in (signal.default_int_handler, interrupt, leave)


def on_interrupt(handler: Any) -> None:
    """Have Ctrl-C do what `handler` does, unless somebody else has said what it does, or to ignore it."""
    try:
        if is_usual(signal.getsignal(signal.SIGINT)):
            signal.signal(signal.SIGINT, handler)
            if hasattr(signal, "setitimer"):
                signal.signal(signal.SIGALRM, handler)
    except ValueError:  # not the main thread
        pass


def waits() -> bool:
    """Whether an interruption came that was to be tried again; it is not, any more."""
    return hasattr(signal, "setitimer") and signal.setitimer(signal.ITIMER_REAL, 0)[0] > 0


def interrupted() -> int:
    """Say that the command was interrupted, once in a process that is the command's own; its exit code."""
    if isinstance(sys.stderr, _Stderr):
        _say()
    else:
        print("mien: interrupted", file=sys.stderr)
    return 130


def begin() -> None:
    """Make streams of this process that take whatever is written, and have an interruption never swallowed."""
    for number, mode in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):  # nothing can be written to a closed stdout
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, mode)  # takes the lowest number that is free: this one
    codecs.register_error("mien", _spelled)
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout.reconfigure(errors="mien")  # type: ignore[union-attr]
    encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
    sys.stderr = _Stderr(open(2, "wb", closefd=False), encoding, "mien", line_buffering=True)  # noqa: SIM115
    sys.unraisablehook = _swallowed


def keep_stderr() -> None:
    """Have libraries in C write to stderr no more; Python still does."""
    if isinstance(sys.stderr, _Stderr) and sys.stderr.fileno() == 2:
        sys.stderr.flush()
        encoding, own = sys.stderr.encoding, os.dup(2)
        sys.stderr = _Stderr(open(own, "wb"), encoding, "mien", line_buffering=True)  # noqa: SIM115
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)


class _Stderr(io.TextIOWrapper):
    """A stream that nobody has to read: once it cannot be written to, what is written is dropped."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError:
            self._drop()
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError:
            self._drop()

    def _drop(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)


def _say() -> None:
    global _said
    if not _said:
        _said = True
        number = sys.stderr.fileno() if isinstance(sys.stderr, _Stderr) else 2
        with suppress(OSError):
            os.write(number, b"mien: interrupted\n")


def _importing(frame: Any) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def _swallowed(what: Any) -> None:
    """A KeyboardInterrupt that no one could catch, as in a finalizer, comes again."""
    if isinstance(what.exc_value, KeyboardInterrupt) and hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, AGAIN)
    else:
        sys.__unraisablehook__(what)


def _spelled(error: UnicodeError) -> tuple[str | bytes, int]:
    """The error handler "mien" of codecs: what an encoding has no letters for, in plain letters or as an escape."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    plain = "".join(_PLAIN.get(letter) or letter.encode("ascii", "backslashreplace").decode() for letter in text)
    return plain, error.end
