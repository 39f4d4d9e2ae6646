"""Follow boxes from frame to frame: constant velocity, the largest overlap first."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

_JITTER = 0.05  # of a face's size: how far a detector's boxes lie off
_SPEED = 2.0  # sizes a second: how fast a face may move when it is first seen
_PUSH = 3.0  # sizes² a second³: how fast its speed may change


@dataclass(slots=True, eq=False)
class Track:
    """One face through time.

    id: its number, from 1.
    state: (4, 2), middle x and y, width and height in pixels, each with its change in a second.
    seen: when it was found last, in seconds.
    spread: (2, 2), the covariance of a position and its change in sizes of the face, one for all four.
    """

    id: int
    state: np.ndarray
    seen: float
    spread: np.ndarray = field(default_factory=lambda: np.diag([_JITTER**2, _SPEED**2]))

    @property
    def box(self) -> np.ndarray:
        """(4,): x, y, width, height, where it is, or is expected."""
        middle, size = self.state[:2, 0], self.state[2:, 0]
        return np.concatenate([middle - size / 2, size])

    @property
    def doubt(self) -> float:
        """By how many of its sizes it may lie off."""
        return float(self.spread[0, 0] ** 0.5)


class Tracker:
    """Gives each face a number, from 1, that stays with it while it is in view; one that comes back gets another.

    gap: seconds after which a face that is not seen is given up; 1.
    overlap: the least intersection over union of what was found and what is expected, 0 to 1; 0.25.

    A Kalman filter of constant velocity, in seconds, so that frames may come at any rate, expects each face somewhere
    (`predict`). What was found there goes to the faces by intersection over union, the largest first (`update`). For
    faces that are still without, both boxes are grown by as much as the face may lie off, so that one hidden for a
    while is found again. One expected outside of the picture is given up, too.

    Paper: Bewley et al., Simple Online and Realtime Tracking, 2016; the growing: Yang et al., Hard to Track Objects
    with Irregular Motions and Similar Appearances? Make It Easier by Buffering the Matching Space, 2023. Greedy instead
    of optimal, the filter's scale in sizes of the face, and growth by its doubt are ours.
    """

    def __init__(self, *, gap: float = 1.0, overlap: float = 0.25):
        self.gap, self.overlap = gap, overlap
        self.tracks: list[Track] = []
        self._time, self._last = 0.0, 0

    def predict(self, time: float, size: tuple[int, int]) -> list[Track]:
        """Move the faces to `time`, and return those that may be there.

        time: in seconds.
        size: width and height of the picture.
        """
        step = max(0.0, time - self._time)
        self._time = time
        forward = np.array([[1, step], [0, 1]])
        noise = _PUSH * np.array([[step**3 / 3, step**2 / 2], [step**2 / 2, step]])
        for track in self.tracks:
            track.state = track.state @ forward.T
            track.spread = forward @ track.spread @ forward.T + noise
        self.tracks = [
            track
            for track in self.tracks
            if 0 <= time - track.seen <= self.gap
            and (track.state[:2, 0] >= 0).all()
            and (track.state[:2, 0] < size).all()
        ]
        return self.tracks

    def rescale(self, ratio: float) -> None:
        """The picture became `ratio` times as large, and every face with it."""
        for track in self.tracks:
            track.state = track.state * ratio

    def update(self, boxes: Sequence[Sequence[float]], *, births: bool = True) -> list[int | None]:
        """The number of each box that was found at the time of `predict`.

        boxes: x, y, width, height each.
        births: whether boxes of nobody get a new number; otherwise they have None.
        """
        found = np.asarray(boxes, float).reshape(-1, 4)
        ids: list[int | None] = [None] * len(found)
        for grown in (False, True):
            left = [track for track in self.tracks if track.id not in ids]
            free = [i for i, id in enumerate(ids) if id is None]
            margin = np.array([min(track.doubt, 1.0) * track.state[2:, 0].max() * grown for track in left])[:, None]
            ious = overlaps(np.array([track.box for track in left]).reshape(-1, 4), found[free], margin)
            while ious.size and ious.max() >= self.overlap:
                row, column = np.unravel_index(ious.argmax(), ious.shape)
                self._correct(left[row], found[free[column]])
                ids[free[column]] = left[row].id
                ious[row], ious[:, column] = 0, 0
        for i, id in enumerate(ids):
            if id is None and births:
                self._last = ids[i] = self._last + 1
                x, y, width, height = found[i]
                state = np.array([[x + width / 2, 0], [y + height / 2, 0], [width, 0], [height, 0]])
                self.tracks.append(Track(self._last, state, self._time))
        return ids

    def _correct(self, track: Track, box: np.ndarray) -> None:
        gain = track.spread[:, 0] / (track.spread[0, 0] + _JITTER**2)  # (2,)
        measured = np.concatenate([box[:2] + box[2:] / 2, box[2:]])
        track.state = track.state + (measured - track.state[:, 0])[:, None] * gain
        track.state[2:, 1] = 0  # sizes stay as they were while a face is hidden
        track.spread = track.spread - np.outer(gain, track.spread[0])
        track.seen = self._time


def overlaps(a: np.ndarray, b: np.ndarray, margin: np.ndarray | float = 0.0) -> np.ndarray:
    """Intersection over union of boxes (n, 4) with boxes (m, 4), all grown by margin (n, 1) on every side -> (n, m)."""
    low = np.maximum(a[:, None, :2], b[:, :2]) - np.asarray(margin)[..., None]
    high = np.minimum(a[:, None, :2] + a[:, None, 2:], b[:, :2] + b[:, 2:]) + np.asarray(margin)[..., None]
    shared = (high - low).clip(0).prod(2)
    sizes = [(box[..., 2:] + 2 * np.asarray(margin)[..., None]).prod(-1) for box in (a[:, None], b[None])]
    return shared / np.maximum(sizes[0] + sizes[1] - shared, 1e-9)
