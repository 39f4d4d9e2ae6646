"""What comes in and goes out, as OpenAPI describes it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, Field, create_model

from mien.faces.columns import entries
from mien.faces.landmarker import MESH
from mien.faces.measure import measured_outputs
from mien.faces.pose import POSE
from mien.outputs import Output

_FACE: dict[str, Any] = {
    "source": "hopper.jpg",
    "face": 0,
    "box": [175.25, 111.64, 175.43, 213.13],
    "score": 0.9349,
    "landmarks": [[226.34, 197.87], [307.01, 198.03], [269.58, 236.98], [227.98, 270.38], [303.24, 272.3]],
    "rotation": 0,
    "expression": "neutral",
    "probability": 0.904447,
    "probabilities": {"neutral": 0.904447, "happiness": 0.002318, "sadness": 0.073503, "surprise": 8.2e-05}
    | {"fear": 0.000131, "disgust": 0.004004, "anger": 0.002853, "contempt": 0.012661},
}


class UploadedPicture(BaseModel):
    name: str | None = Field(None, description="What the answer calls the picture; its number, if there is none.")
    data: str = Field(description='The picture\'s file in base64, or a "data:" address of one.')


class Upload(BaseModel):
    pictures: list[UploadedPicture]


class Failure(BaseModel):
    code: str = Field(description="For programs: a word that does not change.")
    reason: str = Field(description="For people: what was wrong.")


class Problem(BaseModel):
    error: Failure


class Question(BaseModel):
    """An output of the model."""

    name: str
    kind: str = Field(description="classes, binary, range, angles or points.")
    labels: list[str]
    meaning: str = Field(description="What a value is.")


class Labels(BaseModel):
    model: str = Field(description="The model's name.")
    labels: list[str] = Field(description="The expressions, in the model's order.")
    outputs: list[Question] = Field(description="All that the model answers, the expression first.")
    licence: str | None


class Health(BaseModel):
    status: str = Field(description='"ok", or "starting" while no worker is ready.')
    workers: int = Field(description="Worker processes that are alive.")


def answers(outputs: Sequence[Output]) -> tuple[type[BaseModel], type[BaseModel]]:
    """What the service answers with a model of these outputs: where something was read, and where nothing was."""
    kinds = {"text": str, "integer": int, "number": float, "numbers": list[float], "points": list[list[float]]}
    measured = {output.name for output in measured_outputs(True, True, True)}
    fields: dict[str, Any] = {}
    for entry in entries(outputs):
        kind = dict[str, kinds[entry.kind]] if entry.labels else kinds[entry.kind]  # type: ignore[misc]
        described = "; null for a crop" if entry.name in ("box", "score", "landmarks") else ""
        described = "; null where it could not be measured" if entry.name in measured else described
        kind = kind | None if described else kind
        fields[entry.name] = (kind, Field(description=entry.description.rstrip(".") + described + "."))
    fields["note"] = (str | None, Field(None, description="What is to be said of the face, such as that it is turned."))
    face = create_model("FaceRow", __doc__="A face, as `mien read` writes it.", **fields)
    note = Field(None, description="What was not searched for, such as small faces in a large picture.")
    picture = create_model(
        "PictureAnswer",
        __doc__="`faces`, empty where there is none, or `error`.",
        source=(str, ...),
        faces=(list[face] | None, None),
        note=(str | None, note),
        error=(Failure | None, None),
    )
    reading = create_model(
        "Reading", __doc__="An answer for each picture, in the order sent.", pictures=(list[picture], ...)
    )
    nothing = "No picture could be read (then `pictures` says why, one by one), or the request was not understood."
    unreadable = create_model(
        "Unreadable", __doc__=nothing, error=(Failure, ...), pictures=(list[picture] | None, None)
    )
    return reading, unreadable


def example(outputs: Sequence[Output]) -> dict[str, Any]:
    """An answer about examples/hopper.jpg, and about a file that is no picture; of another model than the default one
    values are made up."""
    face = dict(_FACE)
    if outputs[0].labels != tuple(_FACE["probabilities"]):
        first, *rest = outputs[0].labels
        sure = 0.9 if rest else 1.0
        probs = {first: sure} | {label: round((1 - sure) / len(rest), 6) for label in rest}
        face |= {"expression": first, "probability": sure, "probabilities": probs}
    for output in outputs[1:]:
        low, high = output.limits
        middle = np.full(output.shape, 1 / len(output.labels) if output.kind == "classes" else (low + high) / 2)
        face[output.name] = output.decode(middle) if output != MESH else [[0.0, 0.0, 0.0]] * len(output.labels)
        if output == POSE:
            face[output.name] = {"yaw": -1.338, "pitch": -7.905, "roll": 2.209}
    unread = {"source": "notes.txt", "error": {"code": "unreadable", "reason": "not a picture"}}
    return {"pictures": [{"source": "hopper.jpg", "faces": [face]}, unread]}
