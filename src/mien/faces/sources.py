"""What a picture may come from, and which pictures folders, globs and zips hold."""

import glob
import logging
import os
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import lru_cache
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

import numpy as np
from PIL import Image

from mien.errors import ReadError
from mien.faces.fetch import MAX_BYTES, fetch
from mien.faces.formats import HEAD, KINDS, SUFFIXES, ZIP, NotOpened, ends, kind_of, opens

logger = logging.getLogger(__name__)


class Readable(Protocol):
    """A file opened in binary mode, or anything else whose `read(size)` gives bytes."""

    def read(self, size: int, /) -> bytes: ...


Source = str | os.PathLike[str] | bytes | bytearray | memoryview | Readable | Image.Image | np.ndarray
"""One picture: a path, a file's bytes, anything with `read`, a Pillow picture, an array, "-" for what comes in on
stdin, an address that begins with file://, http:// or https://, or "album.zip/in/it.jpg"."""

Taken = str | bytes | bytearray | memoryview | Image.Image | np.ndarray


def take(source: Source) -> tuple[str, Taken]:
    """The name of a source, and what can be opened again and again: a path where it is one, or else what it held.

    Raises ReadError for what cannot be fetched, and for what is no source.
    """
    if isinstance(source, Image.Image):
        return str(getattr(source, "filename", "") or "picture"), source
    if isinstance(source, np.ndarray):
        return "array", source
    if isinstance(source, bytes | bytearray | memoryview):
        return "picture", source
    if source == "-":
        return "stdin", _bounded("stdin", lambda: sys.stdin.buffer)
    if isinstance(source, str | os.PathLike):
        name = os.fsdecode(source)
        if is_address(name):
            return name, fetch(name)
        return name, local(name)
    if callable(getattr(source, "read", None)):  # an instance of Readable need not have it in its class
        name = getattr(source, "name", None)
        name = name if isinstance(name, str) else "picture"
        return name, _bounded(name, lambda: source)
    kind = type(source).__name__
    raise ReadError(kind, "neither a path, bytes, an opened file, a Pillow picture nor an array")


def is_source(source: object) -> bool:
    """Whether `take` may have a use for it."""
    kinds = str | os.PathLike | bytes | bytearray | memoryview | Image.Image | np.ndarray
    return isinstance(source, kinds) or callable(getattr(source, "read", None))


def is_address(name: str) -> bool:
    """Whether a picture of this name is fetched from a server."""
    return name.lower().startswith(("http://", "https://"))


def local(name: str) -> str:
    """The path that a file:// address stands for; any other name as it is. Raises ReadError for another machine's."""
    if not name.lower().startswith("file://"):
        return name
    address = urlsplit(name)
    if address.netloc.lower() not in ("", "localhost"):
        raise ReadError(name, "on another machine: a file:// address begins with three slashes")
    return unquote(address.path, errors="surrogateescape")


def _bounded(name: str, file: Callable[[], Any]) -> bytes:
    try:
        data = file().read(MAX_BYTES + 1)
    except (OSError, ValueError, AttributeError, TypeError) as error:  # closed, or stdin is no file
        raise ReadError(name, f"cannot be read ({str(error).lower()})") from error
    if not isinstance(data, bytes | bytearray | memoryview):
        raise ReadError(name, f"read gives {type(data).__name__}, not bytes: open it in binary mode")
    if len(data) > MAX_BYTES:
        raise ReadError(name, f"more than {MAX_BYTES // 2**20} MB")
    return bytes(data)


# ---- zips, which are named like folders


@lru_cache(4)
def _archive(path: str, size: int, changed: int, process: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


def _open_zip(path: str) -> zipfile.ZipFile:
    """The zip, which threads may share and processes may not, since they would share its place in the file."""
    found = os.stat(path)
    try:
        return _archive(path, found.st_size, found.st_mtime_ns, os.getpid())
    except (zipfile.BadZipFile, ValueError, EOFError) as error:
        raise ReadError(path, "a zip that is damaged or cut short") from error


def is_zip(path: str) -> bool:
    """Whether there is a file whose content is a zip's."""
    try:
        if not os.path.isfile(path):
            return False  # a pipe would be waited for
        with open(path, "rb") as file:
            return kind_of(file.read(HEAD)) == ZIP
    except (OSError, ValueError):
        return False


def in_zip(path: str) -> bytes | None:
    """What "album.zip/in/it.jpg" names, where album.zip is a zip; None where it is none. Raises ReadError."""
    outer = path
    while not os.path.lexists(outer) and os.path.dirname(outer) != outer:
        outer = os.path.dirname(outer)
    if not os.path.isfile(outer) or not is_zip(outer):
        return None
    try:
        archive = _open_zip(outer)
        found = archive.getinfo(path[len(outer) + 1 :])
        if found.file_size > MAX_BYTES:
            raise ReadError(path, f"more than {MAX_BYTES // 2**20} MB")
        if found.flag_bits & 1:
            raise ReadError(path, "locked with a password")
        with archive.open(found) as file:
            return file.read(MAX_BYTES)
    except KeyError as error:
        raise ReadError(path, f"nothing of that name in {os.path.basename(outer)}") from error
    except ReadError:
        raise
    except Exception as error:  # zipfile's, those of its decompressors, and of the disk
        raise ReadError(path, "damaged in its zip") from error


# ---- finding


def find_pictures(
    sources: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    suffixes: Collection[str] | None = None,
    *,
    missed: list[ReadError] | None = None,
) -> list[str]:
    """The pictures that files, folders, globs and zips name, in the order given, each folder, glob and zip sorted.

    A file is kept whatever it is called. Of a folder (and the folders below it) only what ends as a picture does and
    does not begin with a dot is kept, and so of a glob, unless the glob spells another ending, and of a zip, whose
    pictures are named as if it were a folder; `**` goes through folders. What is missing, matches nothing, or holds no
    picture stays in the list, so that reading it says why, and so do "-" and addresses.

    sources: one path or address, or several.
    suffixes: endings in lower case that are taken instead of those of pictures.
    missed: takes an error for what was passed over: pictures whose format does not open here (one error for a source,
        with their number as its `rows`), folders that cannot be listed. Without it these are logged.
    """
    pictures: list[str] = []
    errors_found: list[ReadError] = [] if missed is None else missed
    for source in [sources] if isinstance(sources, str | os.PathLike) else sources:
        name = os.fspath(source)
        try:
            name = local(name)
        except ReadError:
            pictures.append(name)  # reading it tells why
            continue
        found, errors = _find(name, suffixes)
        pictures += found
        errors_found += {(error.source, error.reason): error for error in errors}.values()
    if missed is None:
        for error in errors_found:
            logger.warning("%s", error)
    return pictures


def _find(name: str, suffixes: Collection[str] | None) -> tuple[list[str], list[ReadError]]:
    """What one source names, and what of it cannot be looked into or opened."""
    missed: list[ReadError] = []
    spelt: set[str] = set()  # kept whatever their format
    if name == "-" or is_address(name):
        return [name], []
    if os.path.isdir(name):
        found = _in_folder(name, missed)
    elif glob.has_magic(name) and not os.path.lexists(name):
        found, spelt = _in_glob(name, missed)
    elif ends(os.path.basename(name)) not in SUFFIXES and is_zip(name):
        found = _in_zip(name, missed)
    else:
        return [name], []
    endings = {path: ends(os.path.basename(path)) for path in found}
    if suffixes is not None:
        return [path for path in found if path in spelt or endings[path] in suffixes] or [name], []
    kept = [path for path in found if path in spelt or opens(endings[path])]
    shut = [path for path in found if endings[path] in KINDS and path not in spelt and not opens(endings[path])]
    if shut:
        missed.append(NotOpened(name, Counter(KINDS[endings[path]] for path in shut)))
    return kept or ([] if missed else [name]), missed


def _in_folder(folder: str, missed: list[ReadError]) -> list[str]:
    """All files of a folder and of those below it."""

    def fail(error: OSError) -> None:
        missed.append(ReadError(error.filename, f"cannot be listed ({(error.strerror or str(error)).lower()})"))

    found = [os.path.join(parent, name) for parent, _, names in os.walk(folder, onerror=fail) for name in names]
    return sorted(found)


def _in_glob(pattern: str, missed: list[ReadError]) -> tuple[list[str], set[str]]:
    """The files that a glob matches, and all in folders that it matches; and which of them it spells the ending of."""
    ending = os.path.splitext(pattern)[1]
    spells = bool(ending) and not glob.has_magic(ending)
    found: set[str] = set()
    spelt: set[str] = set()
    for name in glob.iglob(pattern, recursive=True):
        if os.path.isdir(name):
            found.update(_in_folder(name, missed))
        else:
            (spelt if spells else found).add(name)
    missed += _unlistable(pattern)
    return sorted(found | spelt), spelt


def _unlistable(pattern: str) -> Iterator[ReadError]:
    """Folders that a glob had to look into and could not, of which `glob` says nothing."""
    parts = pattern.split("/")
    for i, part in enumerate(parts):
        if not glob.has_magic(part):
            continue
        above = "/".join(parts[:i]) or ("/" if i else ".")
        folders = glob.glob(f"{above}/**/", recursive=True) if part == "**" else glob.glob(above, recursive=True)
        for folder in filter(os.path.isdir, folders):
            try:
                os.scandir(folder).close()
            except OSError as error:
                yield ReadError(folder, f"cannot be listed ({(error.strerror or str(error)).lower()})")


def _in_zip(path: str, missed: list[ReadError]) -> list[str]:
    try:
        names = {entry.filename for entry in _open_zip(path).infolist() if not entry.is_dir()}
    except ReadError as error:
        missed.append(error)
        return []
    return sorted(f"{path}/{name}" for name in names)
