"""How well events, which begin and end, agree with those that people noted."""

import csv
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mien.errors import MienError

LEVELS = (0.01, 0.1, 0.2, 0.3)
"""The shares of the true time by which a time may be off: MSTA is the share of them that are kept."""

TOLERANCES = (0.1, 0.25, 0.5, 1.0)
"""Seconds by which an onset or offset may be off, each with an F1 of its own."""

MOMENTS = ("onset", "apex", "offset")

_SLACK = 1e-9  # of a bound, relative: 7.7 is ten per cent more than 7, whatever floats say


class Noted(NamedTuple):
    """An event as a file has it; apex and peak may be unknown (NaN)."""

    source: str
    person: str
    expression: str
    onset: float
    apex: float
    offset: float
    peak: float


def msta(predicted: float, true: float, *, strict: bool = False) -> float:
    """EOC-Bench's multi-scale temporal accuracy of one time, 0 to 1.

        mean over a in (0.01, 0.1, 0.2, 0.3) of [ |predicted - true| ≤ a · true ]

    A true time of 0 is met by 0 alone, so times are best counted from where it cannot be 0.

    predicted, true: seconds; NaN for no answer, which scores 0. strict: bounds as floats have them, as in the published
        code, where 7.7 is off by more than a tenth of 7; by default they are wider by 1e-9.

    Paper: Yuan et al., EOC-Bench, arXiv 2506.05287, equation 1. Reference: alibaba-damo-academy/EOCBench, 0659ee7.
    """
    off = abs(predicted - true)
    return sum(off <= level * true * (1 if strict else 1 + _SLACK) for level in LEVELS) / len(LEVELS)


def first_number(text: str) -> str:
    """The first number in an answer of words, as digits, "0" where there is none; "<object 3>" is no answer.

    A sign and an exponent are not part of it, as in the published code: "-4" is 4, and "1e3" is 1.
    """
    found = re.search(r"\d+(?:\.\d+)?", re.sub(r"<object \d+>", "", text))
    return found[0] if found else "0"


def read_events(path: str | os.PathLike[str]) -> list[Noted]:
    """The events of a .csv file with the columns person, expression, onset and offset, and optionally source, apex and
    peak, as `mien read --events` writes it; other columns are passed over.

    Raises MienError, naming file and line, for what is none.
    """
    path, events = Path(path), []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            names = table.fieldnames or []
            if missing := [name for name in ("person", "expression", "onset", "offset") if name not in names]:
                raise MienError(f"{path}: no column {missing[0]!r}, only {', '.join(names) or 'an empty file'}")
            for line in table:
                events.append(_event(line, f"{path} line {table.line_num}"))
    except OSError as error:
        raise MienError(f"{path}: {(error.strerror or str(error)).lower()}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise MienError(f"{path}: no table ({error})") from error
    return events


def _event(line: Mapping[str, Any], where: str) -> Noted:
    numbers = {}
    for name in ("onset", "apex", "offset", "peak"):
        text = (line.get(name) or "").strip()
        try:
            numbers[name] = float(text) if text or name in ("onset", "offset") else math.nan
        except ValueError:
            raise MienError(f"{where}: {name} {text!r} is no number") from None
        if text and not (math.isfinite(numbers[name]) and numbers[name] >= 0):
            raise MienError(f"{where}: {name} {text} is no time from 0 on")
    if numbers["offset"] < numbers["onset"]:
        raise MienError(f"{where}: ends at {numbers['offset']:g}, before it begins at {numbers['onset']:g}")
    texts = {name: (line.get(name) or "").strip() for name in ("source", "person", "expression")}
    if not texts["expression"]:
        raise MienError(f"{where}: no expression")
    return Noted(**texts, **numbers)


@dataclass(frozen=True, slots=True)
class Agreement:
    """predicted, true: how many events there are. paired: how many are of one expression and person and overlap.

    f1: by "onset" and "offset" and then by tolerance in seconds, what share is met, 2 · hits / (predicted + true).
    msta: by "onset", "apex", "offset" and "duration" the mean over true events, 0 for those that nobody predicted; NaN
    where no true event has that time. within: for each of them the share of true events within each of LEVELS.
    """

    predicted: int
    true: int
    paired: int
    f1: Mapping[str, Mapping[float, float]]
    msta: Mapping[str, float]
    within: Mapping[str, Sequence[float]]

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON takes it: None in the place of NaN."""
        found = asdict(self)
        found["msta"] = {name: None if math.isnan(value) else value for name, value in self.msta.items()}
        found["within"] = {name: None if math.isnan(self.msta[name]) else list(v) for name, v in self.within.items()}
        found["f1"] = {moment: {f"{t:g}": value for t, value in row.items()} for moment, row in self.f1.items()}
        return found

    def __str__(self) -> str:
        tolerances = list(self.f1["onset"])
        lines = [f"{self.predicted:,} predicted, {self.true:,} true events, {self.paired:,} of them in pairs", ""]
        lines.append("F1 within  " + "".join(f"{f'{t:g} s':>8}" for t in tolerances))
        lines += [f"{moment:9}  " + "".join(f"{row[t]:>8.3f}" for t in tolerances) for moment, row in self.f1.items()]
        lines += ["", "MSTA            all" + "".join(f"{f'{level:.0%}':>8}" for level in LEVELS)]
        for name, value in self.msta.items():
            cells = [value, *self.within[name]]
            shown = f"{value:>8.3f}" + "".join(f"{cell:>8.3f}" for cell in cells[1:])
            lines.append(f"{name:9}  " + ("  nobody noted it" if math.isnan(value) else shown))
        return "\n".join(lines)


def compare_events(
    predicted: Sequence[Noted],
    true: Sequence[Noted],
    *,
    tolerances: Sequence[float] = TOLERANCES,
    strict: bool = False,
    same_people: bool = False,
) -> Agreement:
    """Compare two lists of events.

    Onsets (and offsets) of one source, person and expression are matched one to one, as many as lie within a tolerance
    of one another. For MSTA events are paired that overlap, those that share most of their time first.

    same_people: persons are called the same in both. By default each predicted person stands for the true one of that
        source with whom the events of the same expression overlap for longest, several for one where a track was cut;
        who overlaps with nobody stays alone.
    strict: as for `msta`.
    """
    if not same_people:
        predicted = _as_true_people(predicted, true)
    groups = defaultdict(lambda: ([], []))
    for side, events in enumerate((predicted, true)):
        for event in events:
            groups[event.source, event.person, event.expression][side].append(event)
    f1: dict[str, dict[float, float]] = {}
    for moment in ("onset", "offset"):
        hits = {t: sum(_hits(*groups[key], moment, t) for key in groups) for t in tolerances}
        f1[moment] = {t: 2 * n / max(1, len(predicted) + len(true)) for t, n in hits.items()}
    pairs = [pair for ours, theirs in groups.values() for pair in _pairs(ours, theirs)]
    scores = {}
    for name in (*MOMENTS, "duration"):
        times = [(_time(p, name) if p else math.nan, _time(t, name)) for p, t in pairs]
        scores[name] = [(p, t) for p, t in times if not math.isnan(t)]
    means = {name: _mean([msta(p, t, strict=strict) for p, t in values]) for name, values in scores.items()}
    slack = 1 if strict else 1 + _SLACK
    within = {
        name: [_mean([float(abs(p - t) <= level * t * slack) for p, t in values]) for level in LEVELS]
        for name, values in scores.items()
    }
    return Agreement(len(predicted), len(true), sum(p is not None for p, _ in pairs), f1, means, within)


def _time(event: Noted, name: str) -> float:
    return event.offset - event.onset if name == "duration" else getattr(event, name)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _overlap(a: Noted, b: Noted) -> float:
    """Seconds, of which an event without length has a trifle."""
    return min(a.offset, b.offset) - max(a.onset, b.onset) + 1e-6


def _as_true_people(predicted: Sequence[Noted], true: Sequence[Noted]) -> list[Noted]:
    shared: dict[tuple[str, str], dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for p in predicted:
        for t in true:
            if (p.source, p.expression) == (t.source, t.expression) and _overlap(p, t) > 0:
                shared[p.source, p.person][t.person] += _overlap(p, t)
    names = {key: max(sorted(of), key=lambda name: of[name]) for key, of in shared.items()}  # noqa: B023 used at once
    return [p._replace(person=names.get((p.source, p.person), f"nobody, {p.person}")) for p in predicted]


def _hits(predicted: Iterable[Noted], true: Iterable[Noted], moment: str, tolerance: float) -> int:
    """How many pairs there can be within the tolerance: of times in order, the earliest that fit is as good as any."""
    ours, theirs = (sorted(getattr(event, moment) for event in events) for events in (predicted, true))
    i = k = hits = 0
    while i < len(ours) and k < len(theirs):
        if abs(ours[i] - theirs[k]) <= tolerance + _SLACK:
            i, k, hits = i + 1, k + 1, hits + 1
        elif ours[i] < theirs[k]:
            i += 1
        else:
            k += 1
    return hits


def _pairs(predicted: Sequence[Noted], true: Sequence[Noted]) -> list[tuple[Noted | None, Noted]]:
    """Each true event with the predicted one that is its, or None."""
    shares = sorted(
        (
            (_overlap(p, t) / (max(p.offset, t.offset) - min(p.onset, t.onset) + 1e-6), i, k)
            for i, p in enumerate(predicted)
            for k, t in enumerate(true)
        ),
        reverse=True,
    )
    taken: dict[int, int] = {}
    for share, i, k in shares:
        if share > 0 and k not in taken and i not in taken.values():
            taken[k] = i
    return [(predicted[taken[k]] if k in taken else None, t) for k, t in enumerate(true)]
