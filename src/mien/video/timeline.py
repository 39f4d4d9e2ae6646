"""Who was seen when, and with which expressions, as a picture."""

from typing import Any, BinaryIO

import numpy as np

from mien.errors import require
from mien.faces.palette import ink_on, palette
from mien.faces.record import path_text
from mien.video.summary import Person, Summary

_STRIPS = 30  # people in the timeline
_STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 21600, 86400)  # of the axis
_HIGH = 48  # pixels of a strip before it is scaled
_EVENTS = 200  # of one person, those of the highest peaks


def plot(summary: Summary, file: BinaryIO) -> None:
    """The timeline as PNG: a strip a person, in which the smoothed probabilities lie one above the other.

    summary: of the videos.
    file: to write to.

    Below a strip is a line for each event, with a mark at its apex; before it is a small picture of the person. With a
    reference, the change of each expression from it is drawn below that as a line. Needs the extra [video].
    """
    require("matplotlib", "video")
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    longest = sorted(summary.people, key=lambda person: -person.seconds)[:_STRIPS]
    shown = [person for person in summary.people if person in longest]
    end = max(((max(person.bins) + 1) * summary.widths[person.source] for person in shown), default=1.0)
    high = 1.7 + (1.8 if summary.change else 0.62) * max(1, len(shown))
    bottom = -0.14 if summary.change else 0.4  # of a strip, and what is below it is for changes
    reach = max((np.abs(_changes(person)).max() for person in shown if person.changes), default=0.0) or 1.0
    figure = Figure(figsize=(12, high), dpi=110, layout="constrained")
    figure.get_layout_engine().set(wspace=0, w_pad=0.02)
    faces, axes = figure.subplots(1, 2, width_ratios=(0.55, 10.5), sharey=True)
    for row, person in enumerate(shown):
        _strip(axes, row, bottom, person, end, summary)
        if person.changes:
            _lines(axes, row + 0.22, person, reach, summary)
        if person.thumbnail is not None:
            extent = (0, 1, row + bottom, row - 0.4)
            faces.imshow(person.thumbnail, extent=extent, aspect="auto", interpolation="bilinear")
    several = len(summary.widths) > 1
    names = [f"{_short(p.source)}  {p.track}" if several else f"person {p.track}" for p in shown]
    faces.set_yticks(range(len(shown)), names, parse_math=False)
    faces.set(xlim=(0, 1), ylim=(max(1, len(shown)) - 0.4, -0.6), xticks=[])
    axes.set(xlim=(0, end), xlabel="hours:minutes:seconds" if end > 3600 else "minutes:seconds")
    step = next(s for s in _STEPS if end / s <= 12 or s == _STEPS[-1])
    axes.set_xticks(np.arange(0, end, step), [_clock(at, step < 1) for at in np.arange(0, end, step)])
    for part, sides in ((axes, ("top", "right", "left")), (faces, ("top", "right", "left", "bottom"))):
        for side in sides:
            part.spines[side].set_visible(False)
        part.tick_params(axis="y", length=0)
    axes.tick_params(axis="y", labelleft=False)
    title = _title(summary, shown, several)
    if summary.change and shown:
        title += f"\nlines: change from the reference, up to {reach:.1f} in log-odds either way"
    axes.set_title(title.strip(), fontsize="medium", parse_math=False)
    colours = palette(summary.labels)
    patches = [
        Patch(facecolor=[part / 255 for part in colours[label]], edgecolor="black", linewidth=0.5)
        for label in summary.labels
    ]
    figure.legend(patches, summary.labels, ncols=min(len(summary.labels), 8), loc="outside upper center", frameon=False)
    figure.savefig(file, format="png")


def _title(summary: Summary, shown: list[Person], several: bool) -> str:
    title = "Nobody was seen" if not shown else "" if several else _short(next(iter(summary.widths)))
    if not shown and summary.flickers:
        title += f" for {summary.min_seconds:g} s"
    if more := len(summary.people) - len(shown):
        title += f" (and {more:,} seen more shortly)"
    return title.strip()


def _strip(axes: Any, row: int, bottom: float, person: Person, end: float, summary: Summary) -> None:
    """Colours on white, and names where an expression is the likeliest for long enough to be written there."""
    width, labels, colours = summary.widths[person.source], summary.labels, palette(summary.labels)
    low, high = min(person.bins), max(person.bins) + 1
    bottom, tall = row + bottom, bottom + 0.4
    mark = bottom + 0.075 * tall
    image = np.full((_HIGH, high - low, 3), 255, np.uint8)
    best = np.full(high - low, -1)
    for at, sums in person.bins.items():
        edges = np.rint(np.cumsum(sums) / sums.sum() * _HIGH).astype(int)
        kinds = np.searchsorted(edges, np.arange(_HIGH), side="right").clip(max=len(sums) - 1)
        image[::-1, at - low] = np.array([colours[label] for label in labels])[kinds]
        best[at - low] = sums.argmax()
    axes.imshow(image, extent=(low * width, high * width, bottom, row - 0.4), aspect="auto", interpolation="nearest")
    edges = [0, *(np.flatnonzero(np.diff(best)) + 1), len(best)]
    for begin, stop in zip(edges[:-1], edges[1:], strict=True):
        kind, middle = best[begin], (begin + stop) // 2
        label = labels[kind] if kind >= 0 else ""
        if label and (stop - begin) * width > end * (len(label) + 2) / 130:
            share = person.bins[low + middle] / person.bins[low + middle].sum()
            if share[kind] > 0.3:  # else there is no room in its band
                at = ((low + middle + 0.5) * width, bottom - tall * (share[:kind].sum() + share[kind] / 2))
                ink = [part / 255 for part in ink_on(colours[label])]
                axes.text(*at, label, color=ink, ha="center", va="center", fontsize=8, clip_on=True)
    for event in sorted(person.spotter.events, key=lambda event: -event.peak)[:_EVENTS]:
        colour = [part / 255 for part in colours[event.expression]]
        for wide, ink in ((4.5, "black"), (3.0, colour)):
            axes.plot((event.onset, event.offset), (mark, mark), color=ink, linewidth=wide, solid_capstyle="butt")
        axes.plot(event.apex, mark, marker="^", color=colour, markeredgecolor="black", markersize=6)


def _changes(person: Person) -> np.ndarray:
    """(bins, C) means of the change in each bin, in their order."""
    return np.array([person.changes[at] / person.bins[at].sum() for at in sorted(person.changes)])


def _lines(axes: Any, middle: float, person: Person, reach: float, summary: Summary) -> None:
    """The change of each expression, up for more than in the reference, broken where the person was not seen."""
    width, half, at = summary.widths[person.source], 0.24, np.array(sorted(person.changes))
    begin, stop = at[0] * width, (at[-1] + 1) * width
    axes.fill_between((begin, stop), middle - half, middle + half, color="0.93", linewidth=0, zorder=0)
    axes.plot((begin, stop), (middle, middle), color="0.5", linewidth=0.8)
    values = _changes(person)
    gaps = np.flatnonzero(np.diff(at) > 1) + 1
    times, values = np.insert((at + 0.5) * width, gaps, np.nan), np.insert(values, gaps, np.nan, axis=0)
    for label, line in zip(summary.labels, values.T, strict=True):
        colour = [part / 255 for part in palette(summary.labels)[label]]
        for wide, ink in ((1.9, "black"), (1.4, colour)):
            axes.plot(times, middle - half * line / reach, color=ink, linewidth=wide, solid_capstyle="round")


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
