"""What can go wrong, said in one line to a person."""

import importlib
from types import ModuleType
from typing import Any


class MienError(Exception):
    """The base of every error that mien raises on purpose; its text is meant to be shown as it is."""


class ReadError(MienError):
    """A source that could not be read.

    source: what names it; kept as text.
    reason: why, in a few words.
    rows: int, how many pictures of a data set this one error leaves out; 1.
    """

    def __init__(self, source: object, reason: str, rows: int = 1):
        super().__init__(f"{source}: {reason}" + (f": {rows:,} pictures left out" if rows > 1 else ""))
        self.source, self.reason, self.rows = str(source), reason, rows

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.source, self.reason, self.rows)


class Misuse(MienError, ValueError):
    """Arguments that do not go together; a command ends with the exit code 2."""


class MienWarning(UserWarning):
    """What a person should know though the work goes on; a command prints it in one line on stderr."""


class CheckpointError(MienError):
    """A model file that is not what it says, or not what was asked for."""


class MissingExtra(MienError):
    """A part of mien whose packages are not installed."""


def require(module: str, extra: str) -> ModuleType:
    """Import `module`, or say which extra of mien brings it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not (module + ".").startswith(error.name + "."):
            raise  # the package is there, and something inside it is broken
        raise MissingExtra(f'this needs {module.partition(".")[0]}: pip install "mien[{extra}]"') from error
