"""A small picture of each person, out of the frame in which the face is seen best."""

import cv2
import numpy as np

from mien.faces import Detection

SIDE = 64
"""Pixels of a thumbnail's sides."""

_BETTER = 1.3  # times as good as the look before
_ROOM = 1.5  # times as wide as the face
_KEPT = 10_000  # people whose best look is remembered


class Thumbnails:
    """Cuts a face out wherever it is seen better than before: larger, and more surely a face."""

    def __init__(self):
        self._best: dict[int | None, float] = {}

    def __call__(self, image: np.ndarray, detection: Detection | None, track: int | None) -> np.ndarray | None:
        """(64, 64, 3) uint8 RGB, or None where the person was seen as well before.

        image: (H, W, 3) uint8 RGB. detection: None where all of it is the face. track: whose face.
        """
        box = (0.0, 0.0, *image.shape[1::-1]) if detection is None else detection.box
        sure = 1.0 if detection is None else detection.score
        good = sure * min(max(box[2:]), 2 * SIDE)  # more pixels than that are not seen
        if good <= _BETTER * self._best.get(track, 0.0):
            return None
        self._best[track] = good
        if len(self._best) > _KEPT:
            del self._best[next(iter(self._best))]
        return cut_out(image, box)


def cut_out(image: np.ndarray, box: tuple[float, float, float, float]) -> np.ndarray:
    """The square about the box (x, y, width, height), 1.5 times as wide; outside of the image its edge goes on."""
    side = max(box[2:]) * _ROOM
    x, y = box[0] + (box[2] - side) / 2, box[1] + (box[3] - side) / 2
    low = np.floor([x, y]).astype(int)
    high = np.maximum(np.ceil([x + side, y + side]).astype(int), low + 1)
    inner = np.clip([low, high], 0, [image.shape[1], image.shape[0]])
    if (inner[1] <= inner[0]).any():
        return np.zeros((SIDE, SIDE, 3), np.uint8)
    part = image[inner[0][1] : inner[1][1], inner[0][0] : inner[1][0]]
    before, behind = inner[0] - low, high - inner[1]
    part = cv2.copyMakeBorder(part, before[1], behind[1], before[0], behind[0], cv2.BORDER_REPLICATE)
    return cv2.resize(part, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
