"""A face that was read."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from mien.faces.pose import is_turned
from mien.outputs import EXPRESSION

Box = tuple[float, float, float, float]
"""x, y, width and height, in pixels."""


def as_box(values: Iterable[float]) -> Box:
    """Four numbers of any kind as a box of Python's own; ValueError where they are not four."""
    x, y, width, height = map(float, values)
    return x, y, width, height


@dataclass(frozen=True, slots=True, eq=False)
class Face:
    """One face in a picture, and what it shows.

    box: x, y, width and height in pixels of the picture as its EXIF tag turns it; None where the picture was taken as a
        face crop.
    score: how sure the detector is, 0 to 1; None without a detector.
    landmarks: (5, 2) float32, x and y in the same pixels: the eye on the left of the picture, the eye on the right, the
        tip of the nose, the corners of the mouth on the left and on the right, left and right as seen with the face
        upright; None without a detector.
    expression: the likeliest label, or "uncertain" from a reader that abstains.
    probability: of the likeliest label, 0 to 1.
    probabilities: every label's, in the model's order.
    rotation: degrees clockwise, 0, 90, 180 or 270, by which the picture is turned to bring the face upright; 0 by
        default.
    outputs: the answers to all that the model is asked, by the names of its outputs: "expression", the probabilities,
        and whatever else it answers, a number ("valence") or a number for each label; see `mien.outputs.Output`. What
        is measured stands there, too ("pose"), as None where it could not be measured.
    doubtful: whether the probability is below that from which the reader, or else the model, takes an answer for sure;
        such answers are marked "?" where people read them.
    mesh: (478, 3) float32 of a reader with a landmarker: x and y in the same pixels, and depth in the same scale.

    Faces are equal where all of this is, and can be pickled.
    """

    box: Box | None
    score: float | None
    landmarks: np.ndarray | None
    expression: str
    probability: float
    probabilities: dict[str, float]
    rotation: int = field(default=0, kw_only=True)
    doubtful: bool = field(default=False, kw_only=True)
    outputs: Mapping[str, Any] = field(default_factory=dict, kw_only=True)
    mesh: np.ndarray | None = field(default=None, kw_only=True, repr=False)

    @property
    def pose(self) -> Mapping[str, float] | None:
        """How the head is turned: "yaw", "pitch" and "roll" in degrees, of the face upright; None where nobody knows.

        Yaw is positive to the person's left, pitch upwards, roll clockwise as seen: see `mien.faces.pose.POSE`.
        """
        return self.outputs.get("pose")

    @property
    def note(self) -> str | None:
        """What is to be said of this face in its row; None where there is nothing."""
        missing = {name for name in ("blendshapes", "eye_direction") if self.outputs.get(name, "") is None}
        said = ["turned"] if is_turned(self.pose) else []
        if self.pose is None and "pose" in self.outputs and self.landmarks is not None:
            said.append("no pose, since the landmarks do not make a face")
        if "blendshapes" in missing:
            said.append("the landmarker sees no face here")
        elif missing:
            said.append("eyes shut, so no eye direction")
        return "; ".join(said) or None

    def to_dict(self) -> dict[str, Any]:
        """As plain data, which JSON takes, under the names of a row of `mien read`: pixels to hundredths, the score to
        four digits, probabilities to millionths."""
        return {
            "box": None if self.box is None else _hundredths(self.box),
            "score": None if self.score is None else round(self.score, 4),
            "landmarks": None if self.landmarks is None else [_hundredths(point) for point in self.landmarks],
            "rotation": self.rotation,
            "expression": self.expression,
            "probability": round(self.probability, 6),
            "probabilities": {label: round(prob, 6) for label, prob in self.probabilities.items()},
            **{name: _rounded(answer) for name, answer in self.outputs.items() if name != EXPRESSION},
        }

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        pairs = ((getattr(self, part.name), getattr(other, part.name)) for part in fields(self))
        return all(
            np.array_equal(a, b) if isinstance(a, np.ndarray) or isinstance(b, np.ndarray) else a == b for a, b in pairs
        )

    def __hash__(self) -> int:
        return hash((self.box, self.score, self.expression, self.probability))


def _rounded(answer: Any) -> Any:
    """Its numbers to six digits behind the point."""
    if answer is None:
        return None
    if isinstance(answer, Mapping):
        return {label: _rounded(value) for label, value in answer.items()}
    return [_rounded(value) for value in answer] if isinstance(answer, tuple) else round(answer, 6)


def _hundredths(values: Any) -> list[float]:
    return [round(float(value), 2) for value in values]
