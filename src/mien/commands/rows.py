"""The files that records of faces are written to: JSON Lines, CSV, Parquet."""

import csv
import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, BinaryIO, Protocol

from mien.errors import require
from mien.faces.record import Record


class Writer(Protocol):
    """Writes records; `close` when all are there.

    moving: some may be of videos, which have columns of their own.
    """

    def __init__(self, file: BinaryIO, labels: Sequence[str], moving: bool = False): ...

    def write(self, record: Record) -> None: ...

    def close(self) -> None: ...


class JsonLinesWriter:
    """A JSON object on each line."""

    def __init__(self, file: BinaryIO, labels: Sequence[str], moving: bool = False):
        self._file = file

    def write(self, record: Record) -> None:
        self._file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")

    def close(self) -> None:
        pass


class CsvWriter:
    """A line for each face; what is nested has columns of its own."""

    def __init__(self, file: BinaryIO, labels: Sequence[str], moving: bool = False):
        self._labels, self._moving = labels, moving
        points = [f"landmark_{i}_{axis}" for i in range(5) for axis in "xy"]
        probs = [f"p_{label}" for label in labels]
        box = ["box_x", "box_y", "box_w", "box_h"]
        when = ["time", "frame", "track"] if moving else []
        unsmoothed = [f"unsmoothed_{label}" for label in labels] if moving else []
        values = ["face", *box, "score", *points, "rotation", "expression", "probability", *probs]
        self._columns = ["source", *when, *values, *unsmoothed, "note"]
        self._write = csv.writer(SimpleNamespace(write=lambda line: file.write(line.encode())), lineterminator="\n")
        self._write.writerow(self._columns)

    def write(self, record: Record) -> None:
        box = record["box"] or [None] * 4
        points = [axis for point in record["landmarks"] or [[None] * 2] * 5 for axis in point]
        probs = [(record["probabilities"] or {}).get(label) for label in self._labels]
        when, unsmoothed = [], []
        if self._moving:
            when = [record.get(name) for name in ("time", "frame", "track")]
            unsmoothed = [record.get("unsmoothed", {}).get(label) for label in self._labels]
        found = [record["face"], *box, record["score"], *points, record["rotation"]]
        values = [*found, record["expression"], record["probability"], *probs]
        self._write.writerow([record["source"], *when, *values, *unsmoothed, record.get("note")])

    def close(self) -> None:
        pass


def schema(labels: Sequence[str], moving: bool = False) -> Any:
    """The columns of a Parquet file of records, as a `pyarrow.Schema`."""
    pa = require("pyarrow", "parquet")
    probs = pa.struct([(label, pa.float32()) for label in labels])
    when = {"time": pa.float64(), "frame": pa.int64(), "track": pa.int32()} if moving else {}
    return pa.schema(
        {
            "source": pa.string(),
            **when,
            "face": pa.int32(),
            "box": pa.list_(pa.float32()),
            "score": pa.float32(),
            "landmarks": pa.list_(pa.list_(pa.float32())),
            "rotation": pa.int16(),
            "expression": pa.string(),
            "probability": pa.float32(),
            "probabilities": probs,
            **({"unsmoothed": probs} if moving else {}),
            "note": pa.string(),
        }
    )


class ParquetWriter:
    """A row for each face, nested as in JSON."""

    def __init__(self, file: BinaryIO, labels: Sequence[str], moving: bool = False):
        pa = require("pyarrow", "parquet")
        self._schema = schema(labels, moving)
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
