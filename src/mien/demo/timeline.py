"""Who was seen when in a video, and with which expressions, as HTML."""

from collections.abc import Sequence
from html import escape

import numpy as np

from mien.demo.show import percent, picture_url
from mien.faces.palette import colour_of, css
from mien.video import Person, Summary

_STRIPS = 20  # people that are shown, those seen for longest
_EVENTS = 30  # of a person, in words
_HIGH = 48  # pixels of a strip before it is stretched

FOLLOW = """const video = () => document.querySelector('#mien-drawn video');
element.addEventListener('click', event => {
    const strip = event.target.closest('[data-end]');
    if (!strip || !video()) return;
    const box = strip.getBoundingClientRect();
    video().currentTime = Number(strip.dataset.end) * (event.clientX - box.left) / box.width;
});
document.addEventListener('timeupdate', event => {
    const strip = element.querySelector('[data-end]');
    if (strip && event.target === video())
        element.style.setProperty('--at', 100 * event.target.currentTime / Number(strip.dataset.end) + '%');
}, true);"""
"""JavaScript: a click in the timeline goes there in the video, and a line shows where the video is."""


def reading(time: float, duration: float | None) -> str:
    """How far a video has been read, in seconds."""
    done = f"{clock(time)} of {clock(duration)}" if duration else clock(time)
    bar = f'<progress max="{duration:.3f}" value="{min(time, duration):.3f}"></progress>' if duration else ""
    return f'<p class="mien-reading" role="status">{bar} {done} read</p>'


def timeline(summary: Summary, end: float) -> str:
    """A strip for each person, in it the smoothed probabilities one above the other, and the shares of their time.

    end: the length of the strips, in seconds.
    """
    if not summary.people:
        seen = f"Nobody was seen for {summary.min_seconds:g} seconds." if summary.flickers else "No face was seen."
        return f'<p role="status">{seen}</p>'
    longest = sorted(summary.people, key=lambda person: -person.seconds)[:_STRIPS]
    rows = {row["track"]: row for row in summary.rows()}
    parts = [_legend(summary.labels)]
    for person in (person for person in summary.people if person in longest):
        width, row = summary.widths[person.source], rows[person.track]
        low, high = min(person.bins), max(person.bins) + 1
        style = f"left:{100 * low * width / end:.3f}%;width:{100 * (high - low) * width / end:.3f}%"
        shares = sorted(row["shares"].items(), key=lambda share: -share[1])
        listed = ", ".join(f"{escape(name)} {percent(share)}" for name, share in shares if share >= 0.005)
        face = ""
        if person.thumbnail is not None:
            face = f'<img class="mien-thumbnail" src="{picture_url(person.thumbnail)}" alt="">'
        parts.append(
            f'<section>{face}<h3>Person {person.track}</h3><div class="mien-strip" data-end="{end:.3f}">'
            f'<img src="{picture_url(strip(person, summary.labels), lossless=True)}" alt="" style="{style}"></div>'
            f"<p>Seen for {row['seconds']:.1f} s, from {clock(row['first'])} to {clock(row['last'])}: "
            f"{listed or row['expression']}.</p>{_events(person)}</section>"
        )
    more = len(summary.people) - len(longest) + summary.flickers
    left_out = f'<p class="mien-note">{more:,} seen more shortly are left out.</p>' if more else ""
    return f'<div class="mien-timeline">{"".join(parts)}{left_out}</div>'


def _events(person: Person) -> str:
    """The expressions that began and ended, those of the highest peaks, as a list."""
    strongest = sorted(person.spotter.events, key=lambda event: -event.peak)[:_EVENTS]
    items = "".join(
        f"<li>{escape(event.expression)} from {clock(event.onset)} to {clock(event.offset)}, strongest at "
        f"{clock(event.apex)}, {percent(event.peak)}</li>"
        for event in sorted(strongest, key=lambda event: event.onset)
    )
    more = len(person.spotter.events) - len(strongest)
    items += f"<li>and {more:,} less strong</li>" if more else ""
    many = f"{len(person.spotter.events):,} event{'s' * (len(person.spotter.events) > 1)}"
    return f'<details class="mien-events"><summary>{many}</summary><ul>{items}</ul></details>' if items else ""


def strip(person: Person, labels: Sequence[str]) -> np.ndarray:
    """(48, bins, 3) uint8 RGB from the first bin in which the person was seen to the last, the first label lowest."""
    low, high = min(person.bins), max(person.bins) + 1
    paints = np.array([colour_of(label, labels) for label in labels], np.uint8)
    image = np.full((_HIGH, high - low, 3), 255, np.uint8)
    for at, sums in person.bins.items():
        edges = np.rint(np.cumsum(sums) / sums.sum() * _HIGH)
        kinds = np.searchsorted(edges, np.arange(_HIGH), side="right").clip(max=len(labels) - 1)
        image[::-1, at - low] = paints[kinds]
    return image


def clock(seconds: float) -> str:
    """Minutes and seconds, such as 1:02.5."""
    minutes, rest = divmod(round(10 * seconds), 600)
    return f"{minutes}:{rest // 10:02}.{rest % 10}"


def _legend(labels: Sequence[str]) -> str:
    items = "".join(
        f'<li style="--expression:{css(colour_of(label, labels))}">{escape(label)}</li>' for label in labels
    )
    return f'<ul class="mien-legend">{items}</ul>'
