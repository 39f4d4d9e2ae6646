"""Pictures and where they come from: folders, globs, tables, and buckets with any of these in them."""

import glob
import os
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from typing import Any
from urllib.parse import urlsplit

from mien.batch.store import address, file_system, one_line, reason
from mien.errors import MienError, ReadError, require
from mien.faces import find_pictures
from mien.faces.fetch import MAX_BYTES, fetch
from mien.faces.formats import KINDS, SUFFIXES, NotOpened, ends, opens
from mien.faces.sources import is_address, is_zip, local

Item = str | tuple[str, int, int]
"""A picture by its path or address; or a table of pictures, its first row meant, and how many follow."""

TABLE = ".parquet"

_FETCHES = 16  # at once
_ROWS = 64  # of a table, in memory at once


def find_sources(names: Sequence[str], column: str, out: str, missed: list[ReadError]) -> list[Item]:
    """The pictures that files, folders, globs, zips, addresses and tables name, in the order given, each once.

    names: of all these. An http:// or https:// address that ends as a picture does is one, and "-" is the picture on
        stdin.
    column: the column of the pictures in a table.
    out: the folder or address of the results; tables in it are left out.
    missed: takes an error for what was passed over: pictures whose format does not open, folders that cannot be listed.

    A folder's pictures are those that `mien.faces.find_pictures` finds in it; where there are none, they are the rows
    of the tables in it. A glob that spells ".parquet" names tables. A table that cannot be opened is an item of no
    rows, so that reading it says why.

    Raises MienError for what is not there, and for a table without `column`.
    """
    found = chain.from_iterable(_find(_where(name), missed) for name in names)
    inside = f"{address(out)}/"
    pictures = [name for name in dict.fromkeys(found) if not (name.startswith(inside) and name.endswith(TABLE))]
    return [_item(name, column) for name in pictures]


def _where(name: str) -> str:
    return name if name == "-" else address(local(name))


def _find(name: str, missed: list[ReadError]) -> list[str]:
    if name == "-" or (is_address(name) and (ends(_base(urlsplit(name).path)) in {*SUFFIXES, *KINDS})):
        return [name]
    if "://" in name:
        with one_line(name):
            return _find_far(name, missed)
    inside = _in_file(name)
    if not os.path.lexists(name) and not glob.has_magic(name) and not inside:
        raise MienError(f"{name}: no such file or folder")
    found = find_pictures([name], missed=missed)
    if found != [name] or os.path.isfile(name) or inside:
        return found or _tables(name)
    return _tables(name)


def _in_file(name: str) -> bool:
    """Whether it names what is in a zip."""
    parts = name.split("/")
    return any(os.path.isfile(above := "/".join(parts[:i])) and is_zip(above) for i in range(1, len(parts)))


def _tables(name: str) -> list[str]:
    """The tables in a folder; nothing for a glob, which then matches nothing."""
    if not os.path.isdir(name):
        return []
    return sorted(glob.glob(os.path.join(glob.escape(name), "**", f"*{TABLE}"), recursive=True))


def _find_far(name: str, missed: list[ReadError]) -> list[str]:
    fs, path = file_system(name)
    if fs.isfile(path):
        return [name]
    spelt = ()
    if glob.has_magic(path):
        ending = os.path.splitext(path)[1]
        spelt = () if glob.has_magic(ending) else (ending,)
        paths = [path for path, info in fs.glob(path, detail=True).items() if info["type"] == "file"]
    else:
        paths = fs.find(path)
    if shut := [path for path in paths if ends(_base(path)) in KINDS and not spelt and not opens(ends(_base(path)))]:
        missed.append(NotOpened(name, Counter(KINDS[ends(_base(path))] for path in shut)))
    pictures = {*SUFFIXES, *(ending for ending in KINDS if opens(ending))}
    for endings in (spelt or pictures, (TABLE,)):
        found = [path for path in paths if not _base(path).startswith(".") and _ending(path, spelt) in endings]
        if found or glob.has_magic(path):
            return sorted(map(fs.unstrip_protocol, found))
    return []


def _base(path: str) -> str:
    return path.rpartition("/")[2]


def _ending(path: str, spelt: Sequence[str]) -> str:
    ending = os.path.splitext(path)[1]
    return ending if spelt else ending.lower()


def _item(name: str, column: str) -> Item:
    if not name.endswith(TABLE):
        return name
    try:
        with _open_table(name) as table:
            columns, rows = table.schema_arrow.names, table.metadata.num_rows
    except ReadError:
        return name, 0, 0
    if column not in columns:
        raise MienError(
            f"{name}: no column {column!r}, only {', '.join(columns)}: --column says which has the pictures"
        )
    return name, 0, rows


def contents(items: Sequence[Item], column: str) -> Iterator[tuple[str, str | bytes | ReadError]]:
    """For each picture its name, and a path or a file's bytes, or why there are none; far ones are fetched ahead."""
    pool = ThreadPoolExecutor(_FETCHES, "mien-fetch")
    waiting: deque[tuple[str, Future[str | bytes | ReadError]]] = deque()
    try:
        for name, value in _values(items, column):
            waiting.append((name, pool.submit(_fetch, name, value)))
            if len(waiting) == 2 * _FETCHES:
                first, future = waiting.popleft()
                yield first, future.result()
        for name, future in waiting:
            yield name, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _values(items: Sequence[Item], column: str) -> Iterator[tuple[str, str | bytes | ReadError]]:
    for item in items:
        if isinstance(item, str):
            yield item, item
        else:
            yield from _rows(*item, column)


def _rows(name: str, first: int, count: int, column: str) -> Iterator[tuple[str, str | bytes | ReadError]]:
    """The pictures of `count` rows; where the table breaks off, each row that follows is an error."""
    row = first
    try:
        with _open_table(name) as table:
            for value in _column(table, first, count, column):
                yield f"{name} row {row}", _picture(value, name)
                row += 1
        why = "the table has no such row" if row < first + count else ""
    except ReadError as error:
        why = error.reason
    except Exception as error:  # pyarrow's, or those of a bucket's client
        why = f"the table is damaged ({reason(error)})"
    if why and not count:
        yield name, ReadError(name, why)
    for number in range(row, first + count):
        yield f"{name} row {number}", ReadError(f"{name} row {number}", why)


def _open_table(name: str) -> Any:
    parquet = require("pyarrow.parquet", "parquet")
    try:
        if "://" not in name:
            return parquet.ParquetFile(name)
        fs, path = file_system(name)
        return parquet.ParquetFile(fs.open(path, "rb"))
    except require("pyarrow", "parquet").ArrowException as error:
        raise ReadError(name, "not a parquet file, or damaged") from error
    except MienError:
        raise
    except Exception as error:
        raise ReadError(name, reason(error)) from error


def _column(table: Any, first: int, count: int, column: str) -> Iterator[Any]:
    """The values of `count` rows, out of no more row groups than they lie in."""
    groups, skip, end = [], 0, 0
    for group in range(table.num_row_groups):
        begin, end = end, end + table.metadata.row_group(group).num_rows
        if begin < first + count and first < end:
            skip = skip if groups else first - begin
            groups.append(group)
    for batch in table.iter_batches(_ROWS, row_groups=groups, columns=[column]):
        part = batch.column(0)[skip : skip + count]
        skip = max(0, skip - len(batch))
        count -= len(part)
        yield from part.to_pylist()


def _picture(value: Any, table: str) -> str | bytes | ReadError:
    """A cell: a file's bytes, a path beside the table, or both as {bytes, path} on the Hugging Face Hub."""
    if isinstance(value, dict):
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if isinstance(value, bytes) and value:
        return value
    if not isinstance(value, str) or not value:
        return ReadError(table, "no picture")
    if "://" in value:
        return address(value)
    return f"{table.rpartition('/')[0]}/{value}" if "://" in table else os.path.join(os.path.dirname(table), value)


def _fetch(name: str, value: str | bytes | ReadError) -> str | bytes | ReadError:
    if not isinstance(value, str) or "://" not in value:
        return value
    if is_address(value):
        try:
            return fetch(value)
        except ReadError as error:
            return ReadError(name, error.reason)
    try:
        fs, path = file_system(value)
        with fs.open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except MienError as error:
        return ReadError(name, str(error))
    except Exception as error:
        return ReadError(name, reason(error))
    return data if len(data) <= MAX_BYTES else ReadError(name, f"more than {MAX_BYTES // 2**20} MB")
