"""The files that faces are told in: JSON Lines, CSV, Parquet."""

import csv
import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, BinaryIO, Protocol

from mien.errors import require
from mien.faces.row import Row, no_face, row, spell

__all__ = ["WRITERS", "Csv", "JsonLines", "Parquet", "Row", "Writer", "no_face", "row", "spell"]


class Writer(Protocol):
    """Writes rows; `close` when all are there. moving: some may be of videos, which have columns of their own."""

    def __init__(self, file: BinaryIO, labels: Sequence[str], moving: bool = False): ...

    def write(self, row: Row) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """A JSON object a line."""

    def __init__(self, file: BinaryIO, labels: Sequence[str], moving: bool = False):
        self._file = file

    def write(self, row: Row) -> None:
        self._file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")

    def close(self) -> None:
        pass


class Csv:
    """A line a face, everything that is nested in columns of its own."""

    def __init__(self, file: BinaryIO, labels: Sequence[str], moving: bool = False):
        self._labels, self._moving = labels, moving
        points = [f"landmark_{i}_{axis}" for i in range(5) for axis in "xy"]
        shares = [f"p_{label}" for label in labels]
        box = ["box_x", "box_y", "box_w", "box_h"]
        when = ["time", "frame", "track"] if moving else []
        unsmoothed = [f"unsmoothed_{label}" for label in labels] if moving else []
        told = ["face", *box, "score", *points, "expression", "probability", *shares]
        self._columns = ["source", *when, *told, *unsmoothed, "note"]
        self._write = csv.writer(SimpleNamespace(write=lambda line: file.write(line.encode())), lineterminator="\n")
        self._write.writerow(self._columns)

    def write(self, row: Row) -> None:
        box = row["box"] or [None] * 4
        points = [axis for point in row["landmarks"] or [[None] * 2] * 5 for axis in point]
        shares = [(row["probabilities"] or {}).get(label) for label in self._labels]
        when, unsmoothed = [], []
        if self._moving:
            when = [row.get(name) for name in ("time", "frame", "track")]
            unsmoothed = [row.get("unsmoothed", {}).get(label) for label in self._labels]
        told = [row["face"], *box, row["score"], *points, row["expression"], row["probability"], *shares]
        self._write.writerow([row["source"], *when, *told, *unsmoothed, row.get("note")])

    def close(self) -> None:
        pass


def schema(labels: Sequence[str], moving: bool = False) -> Any:
    """The columns of a Parquet file of rows, as pyarrow knows them."""
    pa = require("pyarrow", "parquet")
    shares = pa.struct([(label, pa.float32()) for label in labels])
    when = {"time": pa.float64(), "frame": pa.int64(), "track": pa.int32()} if moving else {}
    return pa.schema(
        {
            "source": pa.string(),
            **when,
            "face": pa.int32(),
            "box": pa.list_(pa.float32()),
            "score": pa.float32(),
            "landmarks": pa.list_(pa.list_(pa.float32())),
            "expression": pa.string(),
            "probability": pa.float32(),
            "probabilities": shares,
            **({"unsmoothed": shares} if moving else {}),
            "note": pa.string(),
        }
    )


class Parquet:
    """A row a face, nested as in JSON."""

    def __init__(self, file: BinaryIO, labels: Sequence[str], moving: bool = False):
        pa = require("pyarrow", "parquet")
        self._schema = schema(labels, moving)
        self._table = pa.Table
        self._file = require("pyarrow.parquet", "parquet").ParquetWriter(file, self._schema)
        self._rows: list[Row] = []
        self._most = 2_000 if moving else 10_000  # those of a video are many and wide

    def write(self, row: Row) -> None:
        self._rows.append(row)
        if len(self._rows) == self._most:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._file.close()

    def _flush(self) -> None:
        self._file.write_table(self._table.from_pylist(self._rows, self._schema))
        self._rows.clear()


WRITERS: dict[str, type[Writer]] = {".jsonl": JsonLines, ".csv": Csv, ".parquet": Parquet}
