"""Where results lie: a folder of this machine, or one of a bucket."""

import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from mien.errors import MienError, require
from mien.files import LOCK, alone, whole

KEY = b"mien"
"""The key of a Parquet file's metadata under which it says, as JSON, what it holds."""

_LOCAL = ("file://", "local://")


def address(name: str) -> str:
    """A path of this machine as it is from the root, and an address of another (s3://, gs://, …) as it is."""
    for prefix in _LOCAL:
        name = name.removeprefix(prefix)
    if "::" in name and "://" in name:
        raise MienError(f"{name}: an address within an address is not read")
    if "://" not in name:
        return os.path.abspath(name)
    return name if name.endswith("://") else name.rstrip("/")


def file_system(name: str) -> tuple[Any, str]:
    """fsspec's file system of an address, and the path in it. MienError says what it takes and is not installed."""
    fsspec = require("fsspec", "ray")
    try:
        return fsspec.core.url_to_fs(name)
    except ImportError as error:  # "Install s3fs to access S3"
        raise MienError(f"{name}: {error}") from error
    except ValueError as error:
        raise MienError(f"{name}: {str(error).lower()}") from error


@contextmanager
def one_line(name: str) -> Iterator[None]:
    """Turns whatever a bucket's client raises (there is no common base class) into a MienError of one line."""
    try:
        yield
    except MienError:
        raise
    except Exception as error:
        raise MienError(f"{name}: {reason(error)}") from error


def reason(error: Exception) -> str:
    """Why a file could not be had, in a line."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    text = getattr(error, "strerror", None) or str(error).strip().partition("\n")[0]
    return str(text).lower() if isinstance(error, OSError) and text else f"{type(error).__name__}: {text}".strip(": ")


class Store:
    """Files by their names, each there whole or not at all.

    Raises MienError where the folder cannot be had, listed, read or written.
    """

    def __init__(self, where: str):
        self.where = address(where)
        self._fs, self._root = file_system(self.where) if "://" in self.where else (None, self.where)

    def names(self, folder: str = "") -> set[str]:
        """What the files are called in a folder, which need not be there."""
        path = os.path.join(self._root, folder).rstrip("/")
        with one_line(self.where):
            try:
                if self._fs is None:
                    return set(os.listdir(path)) - {LOCK}
                self._fs.invalidate_cache()
                return {name.rstrip("/").rpartition("/")[2] for name in self._fs.ls(path, detail=False)}
            except FileNotFoundError:
                return set()

    def read(self, name: str) -> bytes | None:
        """None where there is no such file."""
        with one_line(f"{self.where}/{name}"):
            try:
                if self._fs is None:
                    return Path(self._root, name).read_bytes()
                return self._fs.cat_file(f"{self._root}/{name}")
            except FileNotFoundError:
                return None

    def write(self, name: str, data: bytes) -> None:
        with one_line(f"{self.where}/{name}"):
            if self._fs is not None:
                self._fs.pipe_file(f"{self._root}/{name}", data)  # a bucket shows an object when all of it is there
                return
            path = Path(self._root, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole(path) as file:
                file.write(data)

    def footer(self, name: str) -> dict[str, Any] | None:
        """What a Parquet file says it holds; None for one that is missing, damaged or somebody else's."""
        parquet = require("pyarrow.parquet", "parquet")
        nothing = (FileNotFoundError, require("pyarrow", "parquet").ArrowException, KeyError, TypeError, ValueError)
        path = f"{self._root}/{name}"
        with one_line(f"{self.where}/{name}"):
            try:
                with open(path, "rb") if self._fs is None else self._fs.open(path, "rb") as file:
                    return json.loads(parquet.read_metadata(file).metadata[KEY])
            except nothing:
                return None

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Have the folder to oneself (`mien.files.alone`); a bucket knows no locks, and nothing is done there."""
        with alone(self._root) if self._fs is None else nullcontext():
            yield


def parquet_bytes(table: Any, facts: dict[str, Any]) -> bytes:
    """A table as a Parquet file whose metadata holds `facts`."""
    file = io.BytesIO()
    table = table.replace_schema_metadata({KEY: json.dumps(facts)})
    require("pyarrow.parquet", "parquet").write_table(table, file)
    return file.getvalue()
