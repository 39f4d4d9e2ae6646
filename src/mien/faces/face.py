"""A face that was read."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

Box = tuple[float, float, float, float]
"""x, y, width and height, in pixels."""


def as_box(values: Iterable[float]) -> Box:
    """Four numbers of any kind as a box of Python's own; ValueError where they are not four."""
    x, y, width, height = map(float, values)
    return x, y, width, height


@dataclass(frozen=True, slots=True, eq=False)
class Face:
    """One face in a picture, and what it shows.

    box: x, y, width and height in pixels of the upright picture; None where the picture was taken as a face crop.
    score: how sure the detector is, 0 to 1; None without a detector.
    landmarks: (5, 2) float32, x and y in the same pixels: the eye on the left of the picture, the eye on the right,
        the tip of the nose, the corners of the mouth on the left and on the right, left and right as seen with the face
        upright; None without a detector.
    expression: the likeliest label, or "uncertain" from a reader that abstains; probability: the share of the likeliest
        label, 0 to 1; probabilities: every label's.
    rotation: degrees clockwise, 0, 90, 180 or 270, by which the picture is turned to bring the face upright; 0 by
        default.
    """

    box: Box | None
    score: float | None
    landmarks: np.ndarray | None
    expression: str
    probability: float
    probabilities: dict[str, float]
    rotation: int = field(default=0, kw_only=True)
