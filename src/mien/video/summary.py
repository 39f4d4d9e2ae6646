"""Who was seen when, and with which expressions for how long: as data, and as a picture."""

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np

from mien.errors import require
from mien.faces.columns import answer_entry, safe_cell
from mien.faces.palette import ink_on, palette
from mien.faces.record import path_text
from mien.outputs import Output
from mien.video.read import VideoFrame

_FINEST, _BINS = 0.04, 1200  # seconds of a bin of the timeline, and how many a video has at most
_STRIPS = 30  # people in the timeline
_STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 21600, 86400)  # of the axis
_HIGH = 48  # pixels of a strip before it is scaled


@dataclass(slots=True, eq=False)
class Person:
    """A track. first, last: when it was seen, in seconds; seconds: for how long, all together, gaps not counted.

    times: seconds by (smoothed) expression. total: (C,) the sum of unsmoothed probabilities × seconds. others: the sum
    of the values of every other output × seconds, as arrays; known: the seconds in which there was a value.
    bins: the same of the smoothed ones, by the number of the bin of the timeline.
    """

    source: str
    track: int
    first: float
    last: float
    frames: int = 0
    seconds: float = 0.0
    times: Counter[str] = field(default_factory=Counter)
    total: np.ndarray | float = 0.0
    bins: dict[int, np.ndarray] = field(default_factory=dict)
    others: dict[str, np.ndarray] = field(default_factory=dict)
    known: Counter[str] = field(default_factory=Counter)


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


class Summary:
    """Gathers the frames of tracked videos: `begin` each video, `add` its frames, `end` it.

    A frame counts for as long as it is shown, until the next one that is read, so that neither a varying frame rate nor
    frames passed over change the shares. What is kept grows with the number of people, not with the length.
    """

    def __init__(self, labels: Sequence[str], others: Sequence[Output] = ()):
        self.labels, self.others = list(labels), [output for output in others if output.kind != "points"]
        self._colours = palette(labels)
        self.people: list[Person] = []
        self.widths: dict[str, float] = {}  # seconds of a bin, by source

    def begin(self, source: str) -> None:
        self._source, self._known = source, {}
        self._before: VideoFrame | None = None
        self._shown = 0.0
        self.widths[source] = _FINEST

    def add(self, frame: VideoFrame) -> None:
        if self._before is not None:
            self._shown = max(0.0, frame.time - self._before.time)
            self._count(self._before, self._shown)
        self._before = VideoFrame(frame.number, frame.time, frame.faces, None, frame.pts)

    def end(self) -> None:
        """The last frame counts for as long as the one before it."""
        if self._before is not None:
            self._count(self._before, self._shown)
        self._before = None

    def _count(self, frame: VideoFrame, seconds: float) -> None:
        while (frame.time + seconds) / self.widths[self._source] >= _BINS:
            self._coarsen()
        width = self.widths[self._source]
        first, end = int(frame.time / width + 1e-6), math.ceil((frame.time + seconds) / width - 1e-6)
        bins = range(first, max(first + 1, end))
        for face in frame.faces:
            person = self._known.get(face.track)
            if person is None:
                person = self._known[face.track] = Person(self._source, face.track, frame.time, frame.time)
                self.people.append(person)
            person.last = frame.time
            person.frames += 1
            person.seconds += seconds
            person.times[face.expression] += seconds
            person.total = person.total + seconds * self._probs(face.unsmoothed)
            part = max(seconds, 1e-6) / len(bins) * self._probs(face.probabilities)
            for output in self.others:
                if (answer := face.outputs[output.name]) is not None:
                    values = seconds * _values(output, answer)
                    person.others[output.name] = person.others.get(output.name, 0.0) + values
                    person.known[output.name] += seconds
            for at in bins:
                person.bins[at] = person.bins.get(at, 0.0) + part

    def _probs(self, probabilities: dict[str, float]) -> np.ndarray:
        return np.array([probabilities[label] for label in self.labels])

    def _coarsen(self) -> None:
        self.widths[self._source] *= 2
        for person in self._known.values():
            bins: dict[int, np.ndarray] = {}
            for at, sums in person.bins.items():
                bins[at // 2] = bins.get(at // 2, 0.0) + sums
            person.bins = bins

    def rows(self) -> list[dict[str, Any]]:
        """One a person: source, track, first, last, frames, seconds, expression (the one seen for longest), shares (of
        the seconds, by expression), mean (unsmoothed probabilities, by label), and of every other output its mean; of
        angles it is the direction between, and points have none."""
        rows = []
        for person in self.people:
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
                    **{output.name: _mean(output, person) for output in self.others},
                }
            )
        return rows

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
        others = [f"mean_{column.name}" for output in self.others for column in answer_entry(output).columns]
        lines = [[*plain, *(f"share_{name}" for name in names), *means, *others]]
        for row in rows:
            shares = [row["shares"].get(name, 0.0) for name in names]
            more = [cell for output in self.others for cell in answer_entry(output).cells(row[output.name])]
            lines.append([*(row[name] for name in plain), *shares, *row["mean"].values(), *more])
        for line in lines:
            table.writerow(line if raw else map(safe_cell, line))
            file.write(f"{text.getvalue()[:-2]}\n".encode(errors="backslashreplace"))
            text.seek(0), text.truncate()

    def plot(self, file: BinaryIO) -> None:
        """The timeline as PNG: a strip a person, in it the smoothed probabilities one above the other. Needs the extra
        [video]."""
        require("matplotlib", "video")
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch

        longest = sorted(self.people, key=lambda person: -person.seconds)[:_STRIPS]
        shown = [person for person in self.people if person in longest]
        end = max(((max(person.bins) + 1) * self.widths[person.source] for person in shown), default=1.0)
        figure = Figure(figsize=(12, 1.7 + 0.62 * max(1, len(shown))), dpi=110, layout="constrained")
        axes = figure.add_subplot()
        for row, person in enumerate(shown):
            self._strip(axes, row, person, end)
        several = len(self.widths) > 1
        names = [f"{_short(p.source)}  {p.track}" if several else f"person {p.track}" for p in shown]
        axes.set_yticks(range(len(shown)), names, parse_math=False)
        axes.set(
            xlim=(0, end),
            ylim=(max(1, len(shown)) - 0.4, -0.6),
            xlabel="hours:minutes:seconds" if end > 3600 else "minutes:seconds",
        )
        step = next(s for s in _STEPS if end / s <= 12 or s == _STEPS[-1])
        axes.set_xticks(np.arange(0, end, step), [_clock(at, step < 1) for at in np.arange(0, end, step)])
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.tick_params(axis="y", length=0)
        left_out = len(self.people) - len(shown)
        title = "Nobody was seen" if not shown else "" if several else _short(next(iter(self.widths)))
        if left_out:
            title += f" (and {left_out:,} seen more shortly)"
        axes.set_title(title.strip(), fontsize="medium", parse_math=False)
        patches = [
            Patch(facecolor=[part / 255 for part in self._colours[label]], edgecolor="black", linewidth=0.5)
            for label in self.labels
        ]
        figure.legend(patches, self.labels, ncols=min(len(self.labels), 8), loc="outside upper center", frameon=False)
        figure.savefig(file, format="png")

    def _strip(self, axes: Any, row: int, person: Person, end: float) -> None:
        """Colours on white, and names where an expression is the likeliest for long enough to be written there."""
        width = self.widths[person.source]
        low, high = min(person.bins), max(person.bins) + 1
        image = np.full((_HIGH, high - low, 3), 255, np.uint8)
        best = np.full(high - low, -1)
        for at, sums in person.bins.items():
            edges = np.rint(np.cumsum(sums) / sums.sum() * _HIGH).astype(int)
            kinds = np.searchsorted(edges, np.arange(_HIGH), side="right").clip(max=len(sums) - 1)
            image[::-1, at - low] = np.array([self._colours[label] for label in self.labels])[kinds]
            best[at - low] = sums.argmax()
        axes.imshow(
            image, extent=(low * width, high * width, row + 0.4, row - 0.4), aspect="auto", interpolation="nearest"
        )
        edges = [0, *(np.flatnonzero(np.diff(best)) + 1), len(best)]
        for begin, stop in zip(edges[:-1], edges[1:], strict=True):
            kind, middle = best[begin], (begin + stop) // 2
            label = self.labels[kind] if kind >= 0 else ""
            if label and (stop - begin) * width > end * (len(label) + 2) / 130:
                share = person.bins[low + middle] / person.bins[low + middle].sum()
                if share[kind] > 0.3:  # else there is no room in its band
                    at = ((low + middle + 0.5) * width, row + 0.4 - 0.8 * (share[:kind].sum() + share[kind] / 2))
                    ink = [part / 255 for part in ink_on(self._colours[label])]
                    axes.text(*at, label, color=ink, ha="center", va="center", fontsize=8, clip_on=True)


def _short(source: str) -> str:
    base = path_text(source).rstrip("/").rpartition("/")[2]
    name = "".join(letter if letter.isprintable() else "?" for letter in base)
    return name if len(name) <= 40 else "…" + name[-39:]


def _clock(seconds: float, tenths: bool) -> str:
    if tenths:
        return f"{int(seconds // 60)}:{seconds % 60:04.1f}"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
