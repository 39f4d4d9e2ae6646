"""Labelled frames of videos, cut into stretches of one face through time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mien.data.row import Row
from mien.errors import MienError


@dataclass(frozen=True, slots=True, eq=False)
class FrameWindow:
    """Some frames of one subject, in order.

    subject: whose they are.
    rows: (T,), which of the set's rows they are.
    times: (T,) float32, seconds from the beginning of the video.
    """

    subject: str
    rows: np.ndarray
    times: np.ndarray


def windows(
    rows: Sequence[Row],
    *,
    length: int = 64,
    stride: int | None = None,
    rate: float | Mapping[str, float] = 30.0,
    gap: float = 1.0,
) -> list[FrameWindow]:
    """The stretches of the rows of each subject, which have numbers (as those of `AffWild2` have: that of the frame).

    rows: in whatever order; their labels, action units, valence and arousal stay where they are.
    length: how many frames a window has at most; the last one of a stretch may have fewer, and a single frame is one.
    stride: from one window's first frame to the next one's; by default `length`.
    rate: frames a second, of all videos or by subject.
    gap: more seconds than these without a row end a stretch, so that nothing is joined over a cut or a hidden face.

    Raises MienError for a row without a subject or number, for a subject of unknown rate, and a number that comes
    twice.
    """
    if length < 1 or (stride is not None and stride < 1):
        raise MienError(f"windows have a length and a stride from 1 on, not {length} and {stride}")
    by_subject: dict[str, list[tuple[int, int]]] = {}
    for index, row in enumerate(rows):
        if row.subject is None or row.number < 0:
            raise MienError(
                f"{row.name or f'row {index}'}: without a subject or the number of a frame, it is in no video"
            )
        by_subject.setdefault(row.subject, []).append((row.number, index))
    found = []
    for subject, frames in by_subject.items():
        fps = rate.get(subject, 0.0) if isinstance(rate, Mapping) else rate
        if not fps > 0:
            raise MienError(f"{subject}: no rate of frames is known")
        numbers, indices = np.array(sorted(frames)).T
        if (twice := np.flatnonzero(np.diff(numbers) == 0)).size:
            raise MienError(f"{rows[indices[twice[0]]].name or subject}: frame {numbers[twice[0]]} comes twice")
        ends = np.flatnonzero(np.diff(numbers) > gap * fps) + 1
        for stretch in np.split(np.arange(len(numbers)), ends):
            for start in range(0, max(1, len(stretch) - length + (stride or length)), stride or length):
                part = stretch[start : start + length]
                if len(part):
                    found.append(FrameWindow(subject, indices[part], (numbers[part] / fps).astype(np.float32)))
    return found
