"""When an expression begins, is strongest and ends."""

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any, BinaryIO, NamedTuple

from mien.faces.columns import safe_cell
from mien.faces.record import path_text

ONSET, OFFSET = 0.6, 0.4
"""The probability that an expression has to reach, and the one below which it has ended."""

LASTING = ("neutral",)
"""Labels that are no event: they are there while no other is."""

_GAP = 1.0  # seconds without a face after which what it showed has ended

COLUMNS = ("person", "expression", "onset", "apex", "offset", "peak")


class Event(NamedTuple):
    """An expression of one person.

    expression: its label.
    onset: when it begins, in seconds.
    apex: when it is strongest, in seconds.
    offset: when it ends, in seconds.
    peak: its probability at the apex, 0 to 1.
    """

    expression: str
    onset: float
    apex: float
    offset: float
    peak: float


class Spotter:
    """Finds the events of one person in (smoothed) probabilities, frame by frame, with two thresholds.

    labels: of the probabilities; those of LASTING have no events.
    onset: the probability that an expression has to reach; 0.6.
    offset: the probability below which it has ended; 0.4.

    An event is a stretch of time in which an expression's probability stays at `offset` or above and somewhere reaches
    `onset`. It begins with the first such frame, and ends with the first below `offset`, or where the face is gone. The
    attribute `events` holds those that have ended, in the order of their ends.

    Raises ValueError unless 0 < offset ≤ onset ≤ 1.
    """

    def __init__(self, labels: Sequence[str], onset: float = ONSET, offset: float = OFFSET):
        if not 0 < offset <= onset <= 1:
            raise ValueError(f"events begin at {onset:g} and end below {offset:g}: not 0 < {offset:g} ≤ {onset:g} ≤ 1")
        self.labels, self.onset, self.offset = labels, onset, offset
        self.events: list[Event] = []
        self._open: dict[int, Event] = {}  # by label, as it would be if it ended now
        self._end = 0.0

    def add(self, time: float, seconds: float, probabilities: Sequence[float]) -> None:
        """A frame shown from `time` on for so many seconds."""
        if time - self._end > _GAP or time + seconds < self._end:
            self.finish()
        for i, label in enumerate(self.labels):
            prob = float(probabilities[i])
            if prob >= self.offset and label not in LASTING:
                event = self._open.get(i, Event(label, time, time, time, 0.0))
                if prob > event.peak:
                    event = event._replace(apex=time, peak=prob)
                self._open[i] = event
            elif i in self._open:
                self._close(i, time)
        self._end = time + seconds

    def finish(self) -> None:
        """The face is gone since the last frame ended."""
        for i in list(self._open):
            self._close(i, self._end)

    def _close(self, i: int, time: float) -> None:
        event = self._open.pop(i)
        if event.peak >= self.onset:
            self.events.append(event._replace(offset=time))


def rounded(event: Event) -> dict[str, Any]:
    """As plain data, to millionths."""
    return {name: value if isinstance(value, str) else round(value, 6) for name, value in event._asdict().items()}


def write_events(file: BinaryIO, events: Iterable[tuple[str, int, Event]], several: bool, raw: bool = False) -> None:
    """Write a line of CSV for each event, in the order in which they are given.

    file: to write to.
    events: each with its source and person.
    several: whether the sources are kept apart, by a first column `source`.
    raw: whether text stays as it is; otherwise what a spreadsheet would compute has an apostrophe before it; False.
    """
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\r\n")
    table.writerow([*(["source"] if several else []), *COLUMNS])
    for source, person, event in events:
        row = [*([path_text(source)] if several else []), person, *rounded(event).values()]
        table.writerow(row if raw else map(safe_cell, row))
    file.write(text.getvalue().replace("\r\n", "\n").encode(errors="backslashreplace"))
