"""What a person sees on a terminal: rows as a table, and how far the work is."""

import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from mien.console import printable
from mien.faces.palette import colour_of
from mien.faces.pose import POSE
from mien.faces.record import Record
from mien.outputs import Output


def counted(count: int, thing: str) -> str:
    """ "1 face", "2,000 faces"."""
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def begin(words: str) -> None:
    """Say on a terminal what is begun and may take a while."""
    if sys.stderr.isatty():
        print(f"{printable(words)} …", file=sys.stderr, flush=True)


def coloured() -> bool:
    """Whether stdout is a terminal that shows colours, and nobody has asked it not to: https://no-color.org."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


class TerminalTable:
    """Prints records of pictures as a person reads them, with the second likeliest expression where it has room.

    doubt: the probability below which an expression is marked "?".
    """

    first, time = "picture", 0  # the header of the first column, and the width of the one of times

    def __init__(self, bar: "Progress", sources: Sequence[str], outputs: Sequence[Output], doubt: float = 0.0):
        self._doubt = doubt
        self._labels, self._others = outputs[0].labels, [output for output in outputs[1:] if _is_brief(output)]
        self._say = lambda line: bar.write(printable(line))
        self._draw, self._colours = bar.write, coloured()
        self._label = max(map(len, [*(f"{label}?" for label in self._labels), "expression"]))
        room = shutil.get_terminal_size().columns - self._label - 38 - self.time - 2 * self._colours
        second = max(map(len, self._labels)) + 7
        longest = max(map(len, [*sources, self.first]))
        self._second = second if len(self._labels) > 1 and room - second >= min(longest, 24) else 0
        self._source = min(max(16, room - self._second), longest)
        then = f"{'then':{self._second}}" if self._second else ""
        named = "  " * self._colours + f"{'expression':{self._label}}"
        self._header = f"{self._begin(self.first, 'time')}  face  {named}        {then}where"
        self._counts: Counter[str] = Counter()

    def _begin(self, source: str, time: str) -> str:
        return f"{source:{self._source}}"

    def write(self, record: Record) -> None:
        if self._header:
            self._say(self._header)
            self._header = ""
        source = printable(record["source"])
        if len(source) > self._source:
            source = "…" + source[1 - self._source :]
        line = self._begin(source, "" if record.get("time") is None else f"{record['time']:.2f}")
        if record["expression"] is None:
            self._say(f"{line}        {record['note']}")
            return
        number = record["face"] if record.get("track") is None else record["track"]
        where = "{2:.0f}×{3:.0f} at {0:.0f}, {1:.0f}".format(*record["box"]) if record["box"] else "all of it"
        label = record["expression"]
        self._counts[label] += 1
        answers = [(output.name, _brief(output, record[output.name])) for output in self._others]
        more = "".join(f"  {name} {answer}" for name, answer in answers if answer)
        more += f"  {record['note']}" if record.get("note") else ""
        expression = label + "?" * (record["probability"] < self._doubt)
        text = f"{expression:{self._label}} {record['probability']:>5.0%}  {self._then(record)}{where}{more}"
        block = ""
        if self._colours:
            block = "\x1b[38;2;{};{};{}m■\x1b[0m ".format(*colour_of(label, self._labels))
        self._draw(f"{printable(line)}  {number:>4}  {block}{printable(text)}")

    def _then(self, record: Record) -> str:
        """The likeliest of the other expressions."""
        if not self._second:
            return ""
        label, prob = max(
            ((label, record["probabilities"][label]) for label in self._labels if label != record["expression"]),
            key=lambda each: each[1],
        )
        return f"{f'{label} {prob:.0%}':{self._second}}"

    def totals(self) -> str:
        """How many faces showed what, the commonest first."""
        return ", ".join(f"{count:,} {printable(label)}" for label, count in self._counts.most_common())

    def close(self) -> None:
        pass


def _is_brief(output: Output) -> bool:
    """Whether an answer fits a line: neither points nor many numbers, nor a pose, of which the note says enough."""
    few = output.kind != "points" and len(output.labels) <= 6
    return output.kind in ("binary", "classes") or (few and output != POSE)


def _brief(output: Output, answer: Any) -> str:
    """An answer in few words: those of "binary" that are more likely than not, the likeliest of "classes", numbers.

    Nothing is said of a lone "binary" that is less likely than not.
    """
    if answer is None:
        return "unknown"
    if not isinstance(answer, dict):
        if output.kind == "binary" and answer < 0.5:
            return ""
        return f"{answer:.2f}"
    if output.kind == "binary":
        return "+".join(label for label, prob in answer.items() if prob >= 0.5) or "none"
    if output.kind == "classes":
        return max(answer, key=answer.__getitem__)
    digits = 0 if output.kind == "angles" else 2
    return " ".join(f"{label} {value:.{digits}f}" for label, value in answer.items())


class Changes(TerminalTable):
    """Prints records of videos as a person reads them: those where somebody's expression changes."""

    first, time = "source", 12

    def __init__(self, bar: "Progress", sources: Sequence[str], outputs: Sequence[Output], doubt: float = 0.0):
        super().__init__(bar, sources, outputs, doubt)
        self._shown: dict[int | None, str | None] = {}  # by person, their expression; {None: None} if nobody is there
        self._film = ""

    def _begin(self, source: str, time: str) -> str:
        return f"{source:{self._source}} {time:>9}"

    def write(self, record: Record) -> None:
        if self._film != record["source"]:
            self._film, self._shown = record["source"], {}
        number = record["face"] if record.get("track") is None else record["track"]
        if record["expression"] is None:
            changed, self._shown = self._shown != {None: None}, {None: None}
        else:
            self._shown.pop(None, None)
            changed = self._shown.get(number) != record["expression"]
            self._shown[number] = record["expression"]
        if changed:
            super().write(record)


def people_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The people of a tracked video, as `mien.video.Summary.rows` has them, a line each below a header."""
    wide = max(map(len, ["mostly", *(row["expression"] for row in rows)]))
    lines = [f"person  {'seen from':>9}  {'to':>9}  {'for':>9}  {'mostly':{wide}}  events  time by expression"]
    for row in rows:
        shares = sorted(row["shares"].items(), key=lambda share: -share[1])
        listed = ", ".join(f"{name} {share:.0%}" for name, share in shares if share >= 0.005)
        seen = f"{row['first']:>8.2f}s  {row['last']:>8.2f}s  {row['seconds']:>8.2f}s"
        lines.append(f"{row['track']:>6}  {seen}  {row['expression']:{wide}}  {len(row['events']):>6}  {listed}")
    return lines


class Progress:
    """Prints lines, and below them a progress bar once the work has taken a second, where somebody looks.

    `begin` starts anew: with how many pictures there are, or with the seconds of a video, None where nobody knows.
    """

    def __init__(self, total: int):
        self._bar = None
        self.begin(total)

    def begin(self, total: float | None, video: str = "") -> None:
        self.close()
        self._total, self._done, self._video = total, 0, video
        self._begin = time.monotonic() + 1 if sys.stderr.isatty() else float("inf")

    def write(self, line: str, file: TextIO | None = None) -> None:
        (print if self._bar is None else self._bar.write)(line, file=file)

    def update(self, done: float | None = None) -> None:
        """One more is done; or, of a video, so many seconds are."""
        step = 1 if done is None else max(0.0, done - self._done)
        self._done += step
        if self._bar is not None:
            self._bar.update(step)
        elif time.monotonic() > self._begin:
            from tqdm import tqdm

            form = {"unit": " pictures"}
            if self._video:
                form = {"unit": "s", "desc": printable(self._video)[-30:], "bar_format": self._form()}
            self._bar = tqdm(total=self._total, initial=self._done, leave=False, **form)

    def _form(self) -> str:
        """Seconds of video, and how many of them in a second."""
        if self._total:
            return (
                "{desc}: {percentage:3.0f}%|{bar}| {n:.1f} of {total:.1f} s [{elapsed}<{remaining}, {rate_noinv_fmt}]"
            )
        return "{desc}: {n:.1f} s [{elapsed}, {rate_noinv_fmt}]"

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
