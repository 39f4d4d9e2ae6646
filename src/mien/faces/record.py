"""Faces as plain data, as JSON and tables take them."""

import os
from collections.abc import Sequence
from typing import Any

from mien.faces.columns import answer_entry
from mien.faces.face import Face
from mien.faces.measure import measured_outputs

Record = dict[str, Any]

_MEASURED = {output.name: answer_entry(output) for output in measured_outputs(True, True, True)}


def record(source: str, index: int, face: Face, note: str | None = None) -> Record:
    """A face as plain data: pixels to hundredths, probabilities to millionths; with a note only where there is one.

    note: of the picture, which follows that of the face."""
    note = "; ".join(filter(None, (face.note, note)))
    return {"source": path_text(source), "face": index, **face.to_dict(), **({"note": note} if note else {})}


def no_face(source: str, note: str) -> Record:
    """The record of a picture in which there is no face."""
    names = ("face", "box", "score", "landmarks", "rotation", "expression", "probability", "probabilities")
    return {"source": path_text(source), **dict.fromkeys(names), "note": note}


def picture_records(source: str, faces: Sequence[Face]) -> list[Record]:
    """The records of one picture: one for each face, or one that says that there is none.

    What the search left out (`Faces.note`) stands in the note of each.
    """
    note = getattr(faces, "note", None)
    if not faces:
        return [no_face(source, f"no face found; {note}" if note else "no face found")]
    return [record(source, index, face, note) for index, face in enumerate(faces)]


def flat(record: Record) -> Record:
    """A record without lists and dictionaries, under the names of the columns of a .csv file of `mien read`."""
    row: Record = {}
    for name, value in record.items():
        if name == "box":
            row |= {f"box_{side}": value[i] if value else None for i, side in enumerate("xywh")}
        elif name == "landmarks":
            row |= {
                f"landmark_{i}_{axis}": value[i][k] if value else None for i in range(5) for k, axis in enumerate("xy")
            }
        elif name in _MEASURED and not isinstance(value, dict):
            row |= zip((column.name for column in _MEASURED[name].columns), _MEASURED[name].cells(value), strict=True)
        elif isinstance(value, dict):
            first = "p" if name == "probabilities" else name
            for label, part in value.items():
                pair = zip(("_x", "_y"), part, strict=True) if isinstance(part, list) else [("", part)]
                row |= {f"{first}_{label}{axis}": number for axis, number in pair}
        else:
            row[name] = value
    return row


def path_text(path: str) -> str:
    """A path as text that can be written anywhere, even where the bytes of a file's name are not UTF-8."""
    return os.fsencode(path).decode(errors="backslashreplace")
