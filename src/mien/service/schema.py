"""What comes in and goes out, as OpenAPI describes it."""

from typing import Any

from pydantic import BaseModel, Field

_FACE = {
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

EXAMPLE: dict[str, Any] = {
    "pictures": [
        {"source": "hopper.jpg", "faces": [_FACE]},
        {"source": "notes.txt", "error": {"code": "unreadable", "reason": "not a picture"}},
    ]
}
"""An answer about examples/hopper.jpg, and about a file that is no picture."""


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


class FaceRow(BaseModel):
    """A face, as `mien read` writes it."""

    source: str = Field(description="The picture's name.")
    face: int = Field(description="The face's number in the picture, from 0; the largest first.")
    box: list[float] | None = Field(
        description="x, y, width, height in pixels of the upright picture; null for a crop."
    )
    score: float | None = Field(description="How sure the detector is that it is a face, 0 to 1; null for a crop.")
    landmarks: list[list[float]] | None = Field(
        description="x and y of the eye on the left, the eye on the right, the nose and the mouth's left and right "
        "corners, as seen with the face upright."
    )
    rotation: int = Field(
        description="Degrees clockwise, 0, 90, 180 or 270, by which the picture is turned to bring the face upright."
    )
    expression: str = Field(description='The likeliest label, or "uncertain".')
    probability: float = Field(description="How probable the likeliest label is, 0 to 1.")
    probabilities: dict[str, float] = Field(description="How probable each label is, 0 to 1.")


class PictureAnswer(BaseModel):
    """`faces`, empty where there is none, or `error`."""

    source: str
    faces: list[FaceRow] | None = None
    note: str | None = Field(None, description="What was not searched for, such as small faces in a large picture.")
    error: Failure | None = None


class Reading(BaseModel):
    """An answer for each picture, in the order sent."""

    pictures: list[PictureAnswer]


class Unreadable(BaseModel):
    """No picture could be read (then `pictures` says why, one by one), or the request was not understood."""

    error: Failure
    pictures: list[PictureAnswer] | None = None


class Labels(BaseModel):
    model: str = Field(description="The model's name.")
    labels: list[str] = Field(description="In the order of the model's outputs.")
    licence: str | None


class Health(BaseModel):
    status: str = Field(description='"ok", or "starting" while no worker is ready.')
    workers: int = Field(description="Worker processes that are alive.")
