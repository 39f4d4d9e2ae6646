"""Heads drawn into their picture: a box, and a cross of the head's three axes."""

from collections.abc import Sequence

import cv2
import numpy as np

from mien.heads.angles import to_rotation
from mien.heads.annotations import Head

LEFT, UP, LOOK, BOX = (220, 40, 40), (40, 190, 60), (40, 110, 255), (255, 210, 0)
"""RGB of the axes to the head's left, out of its crown and along its look, and of the box."""


def mark(image: np.ndarray, heads: Sequence[Head], *, zoom: int = 1) -> np.ndarray:
    """A copy of an image in which each head has a thin box and a cross of its axes.

    image: (H, W, 3) uint8 RGB.
    heads: those in it, in its pixels.
    zoom: int from 1 on, how many times as large the copy is; 1.

    The cross is red to the head's left, green out of its crown, and blue along its look. The blue line has a dark rim
    where the head looks away.
    """
    picture = cv2.resize(image, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_CUBIC) if zoom > 1 else image.copy()
    for head in sorted(heads, key=lambda head: -head.box[2] * head.box[3]):
        x, y, w, h = (zoom * side for side in head.box)
        thick = max(1, round(min(w, h) / 40))
        cv2.rectangle(picture, (round(x), round(y)), (round(x + w), round(y + h)), BOX, max(1, thick // 2), cv2.LINE_AA)
        middle, length = np.array([x + w / 2, y + h / 2]), 0.55 * min(w, h)
        turn = to_rotation(np.array(head.angles))
        axes = [(turn[:, 0], LEFT), (-turn[:, 1], UP), (-turn[:, 2], LOOK)]
        for axis, colour in sorted(axes, key=lambda one: -one[0][2]):  # the farthest end first
            ends = [tuple(np.rint(point).astype(int).tolist()) for point in (middle, middle + length * axis[:2])]
            if axis[2] > 0 and colour == LOOK:
                cv2.line(picture, *ends, (20, 20, 20), thick + 3, cv2.LINE_AA)
            cv2.line(picture, *ends, colour, thick + 1, cv2.LINE_AA)
    return picture
