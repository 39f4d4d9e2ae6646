"""A face as plain data, as JSON and tables take it."""

import os
from typing import Any

from mien.faces.face import Face

Record = dict[str, Any]


def record(source: str, index: int, face: Face) -> Record:
    """A face as plain data: pixels to hundredths, probabilities to millionths."""
    return {
        "source": path_text(source),
        "face": index,
        "box": _hundredths(face.box),
        "score": None if face.score is None else round(face.score, 4),
        "landmarks": None if face.landmarks is None else [_hundredths(point) for point in face.landmarks],
        "expression": face.expression,
        "probability": round(face.probability, 6),
        "probabilities": {label: round(prob, 6) for label, prob in face.probabilities.items()},
    }


def no_face(source: str, note: str) -> Record:
    """The record of a picture in which there is no face."""
    names = ("face", "box", "score", "landmarks", "expression", "probability", "probabilities")
    return {"source": path_text(source), **dict.fromkeys(names), "note": note}


def path_text(path: str) -> str:
    """A path as text that can be written anywhere, even where the bytes of a file's name are not UTF-8."""
    return os.fsencode(path).decode(errors="backslashreplace")


def _hundredths(values: Any) -> list[float] | None:
    return None if values is None else [round(float(value), 2) for value in values]
