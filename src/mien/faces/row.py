"""A face as plain data, as JSON and tables take it."""

import os
from typing import Any

from mien.faces.face import Face

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


def _hundredths(values: Any) -> list[float] | None:
    return None if values is None else [round(float(value), 2) for value in values]
