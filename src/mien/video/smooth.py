"""Join what is said of one person in frame after frame."""

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from mien.classifier import Answer
from mien.outputs import Output

FORGOTTEN = 10.0
"""Seconds after which nobody comes back under the same number."""


class Smoothing(Protocol):
    """Joins the answers of each track over time, frame by frame, as they come."""

    def __call__(self, track: int, time: float, answer: Answer) -> Answer:
        """What is to be said of the track at `time` (seconds), where the network says `answer` of that frame alone: the
        same outputs, of the same shapes. Times of a track that go back begin it anew."""
        ...

    def forget(self, time: float) -> None:
        """Tracks that were not seen for long before `time` will not come back."""
        ...


class Exponential:
    """`s + (1 - exp(-Δt / τ)) (p - s)`, as fast whatever the frame rate, and less after a gap.

    seconds: τ, 0 or more; 0 changes nothing.
    outputs: those that answers hold.

    Δt is the time since the track was last seen. Of angles, the difference is the shorter way round.
    """

    def __init__(self, seconds: float, outputs: Sequence[Output]):
        if not 0 <= seconds < math.inf:
            raise ValueError(f"smooth is a time in seconds, 0 or more, not {seconds}")
        self.seconds = seconds
        self._names = [output.name for output in outputs]
        self._turns = {output.name for output in outputs if output.kind == "angles"}
        self._before: dict[int, tuple[float, Answer]] = {}  # by track: when it was seen, and its smoothed answers

    def __call__(self, track: int, time: float, answer: Answer) -> Answer:
        at, before = self._before.get(track, (-math.inf, answer))
        if time < at:
            at, before = -math.inf, answer
        weight = np.float32(1 - math.exp(-(time - at) / self.seconds) if self.seconds else 1.0)
        smoothed = {}
        for name in self._names:
            step = answer[name] - before[name]
            if name in self._turns:
                step = (step + 180) % 360 - 180
            smoothed[name] = before[name] + weight * step
            if name in self._turns:
                smoothed[name] = (smoothed[name] + 180) % 360 - 180
        self._before[track] = time, smoothed
        return smoothed

    def forget(self, time: float) -> None:
        for track in [track for track, (at, _) in self._before.items() if time - at > FORGOTTEN]:
            del self._before[track]
