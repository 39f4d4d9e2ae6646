"""Who was seen when, and with which expressions for how long."""

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np

from mien.faces.columns import answer_entry, safe_cell
from mien.faces.record import path_text
from mien.outputs import Output
from mien.video.events import OFFSET, ONSET, Event, Spotter, rounded
from mien.video.read import VideoFrame

_FINEST, _BINS = 0.04, 1200  # seconds of a bin of the timeline, and how many a video has at most
_GONE = 10.0  # seconds after which nobody comes back under the same number


@dataclass(slots=True, eq=False)
class Person:
    """A track, and what was seen of it.

    source: the name of the video.
    track: its number in it.
    first, last: when it was seen first and last, in seconds.
    spotter: of the expressions that begin and end.
    thumbnail: (64, 64, 3) uint8 RGB; None where there is none.
    frames: int, those in which it was seen.
    seconds: for how long it was seen, all together, gaps not counted.
    times: seconds by (smoothed) expression.
    total: (C,), the sum of unsmoothed probabilities × seconds.
    bins: by the number of the bin of the timeline, the same sum of smoothed probabilities.
    others: by output, the sum of the values of every other output × seconds, as arrays.
    known: by output, the seconds in which there was a value.
    changes: by bin, sums of how far each expression is from a reference, where there is one.
    """

    source: str
    track: int
    first: float
    last: float
    spotter: Spotter
    thumbnail: np.ndarray | None = None
    frames: int = 0
    seconds: float = 0.0
    times: Counter[str] = field(default_factory=Counter)
    total: np.ndarray | float = 0.0
    bins: dict[int, np.ndarray] = field(default_factory=dict)
    others: dict[str, np.ndarray] = field(default_factory=dict)
    known: Counter[str] = field(default_factory=Counter)
    changes: dict[int, np.ndarray] = field(default_factory=dict)


def _values(output: Output, answer: Any) -> np.ndarray:
    """What is summed up of an answer: its numbers, (L,); of angles their directions, (L,) complex."""
    values = np.array(list(answer.values()) if isinstance(answer, Mapping) else [answer])
    return np.exp(1j * np.deg2rad(values)) if output.kind == "angles" else values


def _mean(output: Output, person: Person) -> Any:
    if output.name not in person.others:
        return None
    values = person.others[output.name] / (person.known[output.name] or 1.0)
    values = np.rad2deg(np.angle(values)) if output.kind == "angles" else values
    answer = output.decode(values)
    return {name: round(v, 6) for name, v in answer.items()} if isinstance(answer, dict) else round(answer, 6)


def _halved(bins: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
    """Bins twice as wide."""
    wide: dict[int, np.ndarray] = {}
    for at, sums in bins.items():
        wide[at // 2] = wide.get(at // 2, 0.0) + sums
    return wide


class Summary:
    """Gathers the frames of tracked videos: `begin` each video, `add` its frames, `end` it.

    A frame counts for as long as it is shown, until the next one that is read, so that neither a varying frame rate nor
    frames passed over change the shares. What is kept grows with the number of people and of their events, not with the
    length.

    labels: of the expressions.
    others: the outputs beside the expression; points are left out.
    min_seconds: who is seen for less is left out, and counted in `flickers` (default 0.5).
    onset, offset: between which probabilities an expression begins and ends, as for `mien.video.events.Spotter`.
    change: makes of (smoothed) probabilities how far each is from a reference, by label; None (default) without one.
    """

    def __init__(
        self,
        labels: Sequence[str],
        others: Sequence[Output] = (),
        *,
        min_seconds: float = 0.5,
        onset: float = ONSET,
        offset: float = OFFSET,
        change: Callable[[Mapping[str, float]], Mapping[str, float]] | None = None,
    ):
        self.labels, self.others = list(labels), [output for output in others if output.kind != "points"]
        self.min_seconds, self._thresholds, self.change = min_seconds, (onset, offset), change
        Spotter(labels, onset, offset)  # says what is wrong with them
        self.people: list[Person] = []
        self.flickers = 0
        self.widths: dict[str, float] = {}  # seconds of a bin, by source

    def begin(self, source: str) -> None:
        self._source, self._known, self._cleaned = source, {}, 0.0
        self._before: VideoFrame | None = None
        self._shown = 0.0
        self.widths[source] = _FINEST

    def add(self, frame: VideoFrame) -> None:
        if self._before is not None:
            self._shown = max(0.0, frame.time - self._before.time)
            self._count(self._before, self._shown)
        self._before = VideoFrame(frame.number, frame.time, frame.faces, None, frame.pts)
        if abs(frame.time - self._cleaned) > _GONE:
            self._cleaned = frame.time
            self._leave_out(frame.time)

    def end(self) -> None:
        """The last frame counts for as long as the one before it."""
        if self._before is not None:
            self._count(self._before, self._shown)
        self._before = None
        self._leave_out(math.inf)

    def _leave_out(self, time: float) -> None:
        """Those who were gone long before `time` do not come back: their events end, and flickers go."""
        for person in [person for person in self._known.values() if abs(time - person.last) > _GONE]:
            person.spotter.finish()
            if person.seconds < self.min_seconds - 1e-6:
                del self._known[person.track]
                self.people.remove(person)
                self.flickers += 1

    def _count(self, frame: VideoFrame, seconds: float) -> None:
        while (frame.time + seconds) / self.widths[self._source] >= _BINS:
            self._coarsen()
        width = self.widths[self._source]
        first, end = int(frame.time / width + 1e-6), math.ceil((frame.time + seconds) / width - 1e-6)
        bins = range(first, max(first + 1, end))
        for face in frame.faces:
            person = self._known.get(face.track)
            if person is None:
                spotter = Spotter(self.labels, *self._thresholds)
                person = Person(self._source, face.track, frame.time, frame.time, spotter)
                self._known[face.track] = person
                self.people.append(person)
            person.last = frame.time
            person.frames += 1
            person.seconds += seconds
            person.times[face.expression] += seconds
            person.total = person.total + seconds * self._probs(face.unsmoothed)
            person.thumbnail = person.thumbnail if face.thumbnail is None else face.thumbnail
            smoothed = self._probs(face.probabilities)
            person.spotter.add(frame.time, seconds, smoothed)
            part = max(seconds, 1e-6) / len(bins) * smoothed
            for output in self.others:
                if (answer := face.outputs[output.name]) is not None:
                    values = seconds * _values(output, answer)
                    person.others[output.name] = person.others.get(output.name, 0.0) + values
                    person.known[output.name] += seconds
            for at in bins:
                person.bins[at] = person.bins.get(at, 0.0) + part
            if self.change:
                part = max(seconds, 1e-6) / len(bins) * self._probs(self.change(face.probabilities))
                for at in bins:
                    person.changes[at] = person.changes.get(at, 0.0) + part

    def _probs(self, probabilities: Mapping[str, float]) -> np.ndarray:
        return np.array([probabilities[label] for label in self.labels])

    def _coarsen(self) -> None:
        self.widths[self._source] *= 2
        for person in self.people:
            if person.source != self._source:
                continue
            person.bins, person.changes = _halved(person.bins), _halved(person.changes)

    def events(self) -> list[tuple[str, int, Event]]:
        """The source and the person of each event, by the onset within a source."""
        found = [(person.source, person.track, event) for person in self.people for event in person.spotter.events]
        order = {source: i for i, source in enumerate(self.widths)}
        return sorted(found, key=lambda each: (order[each[0]], each[2].onset, each[1]))

    def rows(self, source: str | None = None) -> list[dict[str, Any]]:
        """One a person: source, track, first, last, frames, seconds, expression (the one seen for longest), shares (of
        the seconds, by expression), mean (unsmoothed probabilities, by label), with a reference change (its mean, by
        label), of every other output its mean (of angles it is the direction between, and points have none), and
        events, each as `events.Event` says.

        source: those of one video only.
        """
        rows = []
        for person in self.people:
            if source not in (None, person.source):
                continue
            names = [*self.labels, *(name for name in person.times if name not in self.labels)]  # "uncertain"
            whole = person.seconds or 1.0
            mean = person.total / whole
            rows.append(
                {
                    "source": path_text(person.source),
                    "track": person.track,
                    "first": round(person.first, 6),
                    "last": round(person.last, 6),
                    "frames": person.frames,
                    "seconds": round(person.seconds, 6),
                    "expression": max(person.times, key=person.times.get),
                    "shares": {name: round(person.times[name] / whole, 6) for name in names},
                    "mean": {label: round(float(p), 6) for label, p in zip(self.labels, mean, strict=True)},
                    **({"change": self._change(person)} if self.change else {}),
                    **{output.name: _mean(output, person) for output in self.others},
                    "events": [rounded(event) for event in person.spotter.events],
                }
            )
        return rows

    def _change(self, person: Person) -> dict[str, float]:
        mean = sum(person.changes.values()) / sum(sums.sum() for sums in person.bins.values())  # probabilities sum to 1
        return {label: round(float(value), 4) for label, value in zip(self.labels, mean, strict=True)}

    def write(self, file: BinaryIO, suffix: str, raw: bool = False) -> None:
        """As a list in JSON, or with `suffix` ".csv" as a line a person; raw: text in it stays as it is."""
        rows = self.rows()
        if suffix != ".csv":
            file.write(json.dumps(rows, ensure_ascii=False, indent=1).encode() + b"\n")
            return
        plain = ["source", "track", "first", "last", "frames", "seconds", "expression"]
        names = [*self.labels, *sorted({name for row in rows for name in row["shares"]} - set(self.labels))]
        text = io.StringIO(newline="")
        table = csv.writer(text, lineterminator="\r\n")  # of both, so that either is quoted within a cell
        means = [f"mean_{label}" for label in self.labels]
        changes = [f"change_{label}" for label in self.labels if self.change]
        others = [f"mean_{column.name}" for output in self.others for column in answer_entry(output).columns]
        lines = [[*plain, *(f"share_{name}" for name in names), *means, *changes, *others, "events"]]
        for row in rows:
            shares = [row["shares"].get(name, 0.0) for name in names]
            more = [cell for output in self.others for cell in answer_entry(output).cells(row[output.name])]
            means = [*row["mean"].values(), *row.get("change", {}).values()]
            lines.append([*(row[name] for name in plain), *shares, *means, *more, len(row["events"])])
        for line in lines:
            table.writerow(line if raw else map(safe_cell, line))
            file.write(f"{text.getvalue()[:-2]}\n".encode(errors="backslashreplace"))
            text.seek(0), text.truncate()
