"""The files that records of faces are written to: JSON Lines, CSV, Parquet."""

import csv
import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, BinaryIO, Protocol

from mien.errors import require
from mien.faces.columns import RowEntry, entries, safe_cell
from mien.faces.record import Record
from mien.outputs import Output


class Writer(Protocol):
    """Writes records; `close` when all are there.

    outputs: what the model answers. moving: some records may be of videos, which have columns of their own. raw: of a
    CSV file, text stays as it is. change: records hold how far a face is from a reference.
    """

    def __init__(
        self,
        file: BinaryIO,
        outputs: Sequence[Output],
        moving: bool = False,
        *,
        raw: bool = False,
        change: bool = False,
    ): ...

    def write(self, record: Record) -> None: ...

    def close(self) -> None: ...


class JsonLinesWriter:
    """A JSON object on each line."""

    def __init__(
        self,
        file: BinaryIO,
        outputs: Sequence[Output],
        moving: bool = False,
        *,
        raw: bool = False,
        change: bool = False,
    ):
        self._file = file

    def write(self, record: Record) -> None:
        self._file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")

    def close(self) -> None:
        pass


class CsvWriter:
    """A line for each face; what is nested has columns of its own.

    Text that a spreadsheet would take for a formula has an apostrophe before it, unless `raw` is given.
    """

    def __init__(
        self,
        file: BinaryIO,
        outputs: Sequence[Output],
        moving: bool = False,
        *,
        raw: bool = False,
        change: bool = False,
    ):
        self._entries, self._raw = entries(outputs, moving, change), raw
        # of both characters at the end, so that either is quoted within a cell
        line = SimpleNamespace(write=lambda line: file.write(f"{line[:-2]}\n".encode()))
        self._write = csv.writer(line, lineterminator="\r\n")
        self._row([column.name for entry in self._entries for column in entry.columns])

    def _row(self, cells: Sequence[Any]) -> None:
        self._write.writerow(cells if self._raw else map(safe_cell, cells))

    def write(self, record: Record) -> None:
        self._row([cell for entry in self._entries for cell in entry.cells(record.get(entry.name))])

    def close(self) -> None:
        pass


def schema(outputs: Sequence[Output], moving: bool = False, change: bool = False) -> Any:
    """The columns of a Parquet file of records, as a `pyarrow.Schema`."""
    pa = require("pyarrow", "parquet")
    sizes = {"time": pa.float64(), "frame": pa.int64(), "rotation": pa.int16()}

    def kind(entry: RowEntry) -> Any:
        numbers = pa.list_(pa.float32())
        kinds = {"text": pa.string(), "integer": pa.int32(), "number": pa.float32(), "numbers": numbers}
        value = sizes.get(entry.name) or (kinds | {"points": pa.list_(numbers)})[entry.kind]
        return pa.struct([(label, value) for label in entry.labels]) if entry.labels else value

    return pa.schema([(entry.name, kind(entry)) for entry in entries(outputs, moving, change)])


class ParquetWriter:
    """A row for each face, nested as in JSON."""

    def __init__(
        self,
        file: BinaryIO,
        outputs: Sequence[Output],
        moving: bool = False,
        *,
        raw: bool = False,
        change: bool = False,
    ):
        pa = require("pyarrow", "parquet")
        self._schema = schema(outputs, moving, change)
        self._table = pa.Table
        self._file = require("pyarrow.parquet", "parquet").ParquetWriter(file, self._schema)
        self._records: list[Record] = []
        self._most = 2_000 if moving else 10_000  # records of a video are many and wide

    def write(self, record: Record) -> None:
        self._records.append(record)
        if len(self._records) == self._most:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._file.close()

    def _flush(self) -> None:
        self._file.write_table(self._table.from_pylist(self._records, self._schema))
        self._records.clear()


WRITERS: dict[str, type[Writer]] = {".jsonl": JsonLinesWriter, ".csv": CsvWriter, ".parquet": ParquetWriter}
