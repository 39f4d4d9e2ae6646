"""What is told of a face, and the files that it is told in: JSON Lines, CSV, Parquet."""

import csv
import json
import os
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, BinaryIO, Protocol

from mien.errors import require
from mien.faces import Face

Row = dict[str, Any]


def row(source: str, index: int, face: Face) -> Row:
    """A face as plain data: pixels to hundredths, shares to millionths."""
    return {
        "source": spell(source),
        "face": index,
        "box": _hundredths(face.box),
        "score": None if face.score is None else round(face.score, 4),
        "landmarks": None if face.landmarks is None else [_hundredths(point) for point in face.landmarks],
        "expression": face.expression,
        "probability": round(face.probability, 6),
        "probabilities": {label: round(share, 6) for label, share in face.probabilities.items()},
    }


def no_face(source: str, note: str) -> Row:
    """The row of a picture in which there is no face."""
    names = ("face", "box", "score", "landmarks", "expression", "probability", "probabilities")
    return {"source": spell(source), **dict.fromkeys(names), "note": note}


def spell(path: str) -> str:
    """A path as text that can be written anywhere, even where the bytes of a file's name are no UTF-8."""
    return os.fsencode(path).decode(errors="backslashreplace")


class Writer(Protocol):
    """Writes rows; `close` when all are there."""

    def __init__(self, file: BinaryIO, labels: Sequence[str]): ...

    def write(self, row: Row) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """A JSON object a line."""

    def __init__(self, file: BinaryIO, labels: Sequence[str]):
        self._file = file

    def write(self, row: Row) -> None:
        self._file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")

    def close(self) -> None:
        pass


class Csv:
    """A line a face, everything that is nested in columns of its own."""

    def __init__(self, file: BinaryIO, labels: Sequence[str]):
        self._labels = labels
        points = [f"landmark_{i}_{axis}" for i in range(5) for axis in "xy"]
        shares = [f"p_{label}" for label in labels]
        box = ["box_x", "box_y", "box_w", "box_h"]
        self._columns = ["source", "face", *box, "score", *points, "expression", "probability", *shares, "note"]
        self._write = csv.writer(SimpleNamespace(write=lambda line: file.write(line.encode())), lineterminator="\n")
        self._write.writerow(self._columns)

    def write(self, row: Row) -> None:
        box = row["box"] or [None] * 4
        points = [axis for point in row["landmarks"] or [[None] * 2] * 5 for axis in point]
        shares = [(row["probabilities"] or {}).get(label) for label in self._labels]
        head, tail = (row["source"], row["face"]), (row["expression"], row["probability"])
        self._write.writerow([*head, *box, row["score"], *points, *tail, *shares, row.get("note")])

    def close(self) -> None:
        pass


class Parquet:
    """A row a face, nested as in JSON."""

    def __init__(self, file: BinaryIO, labels: Sequence[str]):
        pa = require("pyarrow", "parquet")
        self._schema = pa.schema(
            {
                "source": pa.string(),
                "face": pa.int32(),
                "box": pa.list_(pa.float32()),
                "score": pa.float32(),
                "landmarks": pa.list_(pa.list_(pa.float32())),
                "expression": pa.string(),
                "probability": pa.float32(),
                "probabilities": pa.struct([(label, pa.float32()) for label in labels]),
                "note": pa.string(),
            }
        )
        self._table = pa.Table
        self._file = require("pyarrow.parquet", "parquet").ParquetWriter(file, self._schema)
        self._rows: list[Row] = []

    def write(self, row: Row) -> None:
        self._rows.append(row)
        if len(self._rows) == 10_000:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._file.close()

    def _flush(self) -> None:
        self._file.write_table(self._table.from_pylist(self._rows, self._schema))
        self._rows.clear()


WRITERS: dict[str, type[Writer]] = {".jsonl": JsonLines, ".csv": Csv, ".parquet": Parquet}


def _hundredths(values: Any) -> list[float] | None:
    return None if values is None else [round(float(value), 2) for value in values]
