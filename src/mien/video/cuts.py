"""Where a video is cut to another scene."""

from collections import deque

import cv2
import numpy as np

CUT = 10.0
"""How much a frame differs from the one before, of 255, when it is taken for another scene."""

_SIZE = (64, 36)  # pixels in which frames are compared
_NEAR = np.ones((7, 7), np.uint8)  # of these, how far about a place its colour may come from
_LATELY, _RATIO = 6, 3.0  # changes before, and how many times as large as their mean that of a cut is


class Cuts:
    """Says which frames begin another scene, one frame after the other, so that a camera's cuts are known at once.

    threshold: 0 to 255; inf: there are no cuts.

        gone(a, b)  mean over pixels of the largest |difference| of a channel of b to what channel values a has within
                    three pixels of that place, where frames are brought to 64×36 pixels
        change      min(gone(before, now), gone(now, before))
        cut         change ≥ threshold, and change ≥ 3 · the mean of the six changes before, and the frame is not like
                    the one before the last

    What moves by less than a twentieth of the width is found where it was, and is no change. By the second condition a
    moving camera is no cut, by the third the end of a flash is none. A dissolve is none, since it has no frame at which
    it changes. See docs/video.md for how often that is wrong.

    Raises ValueError for another threshold.

    In place of PySceneDetect's content measure (ContentDetector, www.scenedetect.com), which compares pixel with pixel:
    its means of changes before are kept (AdaptiveDetector), the neighbourhood is ours.
    """

    def __init__(self, threshold: float = CUT):
        if not threshold >= 0:
            raise ValueError(f"a change on a scale to 255 is a number from 0, not {threshold}")
        self.threshold = threshold
        self._before: list[np.ndarray] = []  # the last two
        self._lately: deque[float] = deque(maxlen=_LATELY)

    def __call__(self, image: np.ndarray) -> bool:
        """image: (H, W, 3) uint8 RGB, of any size. False of the first."""
        now = cv2.resize(image, _SIZE, interpolation=cv2.INTER_AREA)
        before, self._before = self._before, [*self._before[-1:], now]
        if not before:
            return False
        change = _change(before[-1], now)
        usual = float(np.mean(self._lately)) if self._lately else 0.0
        cut = change >= max(self.threshold, _RATIO * usual) and not (
            len(before) == 2 and _change(before[0], now) < self.threshold
        )
        self._lately.append(min(change, self.threshold))
        return cut


def _change(a: np.ndarray, b: np.ndarray) -> float:
    return min(_gone(a, b), _gone(b, a))


def _gone(a: np.ndarray, b: np.ndarray) -> float:
    above, below = cv2.subtract(b, cv2.dilate(a, _NEAR)), cv2.subtract(cv2.erode(a, _NEAR), b)
    return float(cv2.max(above, below).max(2).mean())
