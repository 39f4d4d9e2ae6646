"""A labelled set looked through: all that is wrong with it, at once."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from PIL import Image
from tqdm import tqdm

from mien.data.dataset import DataSet, digest_of
from mien.data.row import Row
from mien.data.sheet import contact_sheet, tile_of
from mien.errors import MienError, ReadError

_BATCH = 256  # pictures in memory
_WHERE = re.compile(r"(?P<file>.+?)(?::| line | row | picture | frame )(?P<line>\d+)(?:: .*)?")


@dataclass(frozen=True, slots=True)
class DataProblem:
    """What makes a set wrong.

    kind: "row" is one that says what cannot be; "picture" one that cannot be read, or whose box lies outside of it;
        "shared" one that is in another split, too; "split" one without a usable row, or that cannot be read at all.
    split: in which it was found.
    where: "label.lst:3: face.jpg", or a file.
    reason: what is wrong, in a few words.
    """

    kind: Literal["row", "picture", "shared", "split"]
    split: str
    where: str
    reason: str

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"

    def to_dict(self) -> dict[str, Any]:
        """With the file and the line (or the row, or the frame) taken apart."""
        found = _WHERE.fullmatch(self.where)
        apart = (found["file"], int(found["line"])) if found else (self.where, None)
        return asdict(self) | dict(zip(("file", "line"), apart, strict=True))


@dataclass(slots=True)
class Checked:
    """What looking through a set found.

    labels: of the set, in order.
    counts: by split, the usable rows of each label, (C,).
    unlabelled: by split, the usable rows without a label.
    left_out: by split, how many rows cannot be used.
    problems: what makes the set wrong.
    repeated: by split, the rows that show the picture of an earlier one: name, name of that one, and whether both have
        the same label.
    warnings: what may be wrong, and need not be.
    tiles: by label and split, pictures of it.
    """

    labels: tuple[str, ...]
    counts: dict[str, np.ndarray] = field(default_factory=dict)
    unlabelled: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    problems: list[DataProblem] = field(default_factory=list)
    repeated: dict[str, list[tuple[str, str, bool]]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    tiles: dict[str, dict[str, list[np.ndarray]]] = field(default_factory=dict)

    def sheets(self) -> Iterator[tuple[str, Image.Image]]:
        """Each class that there is a picture of, and a contact sheet of it."""
        for label, parts in self.tiles.items():
            if not parts:
                continue
            number = self.labels.index(label)
            headings = {f"{split}: {self.counts[split][number]:,}": tiles for split, tiles in parts.items()}
            yield label, contact_sheet(label, headings)


def check(data: DataSet, *, workers: int | None = None, shown: int = 24, progress: bool = False) -> Checked:
    """Read every row and every picture of a set.

    data: the set.
    workers: threads that decode, by default one a processor.
    shown: int, tiles of each class and split at most; 24.
    progress: show a bar on stderr.
    """
    checked = Checked(data.labels, tiles={label: {} for label in data.labels})
    first: dict[bytes, tuple[str, str, int]] = {}  # split, name and label of the first row of a picture
    subjects: dict[str, set[str]] = {}
    reported: set[tuple[str, str]] = set()  # a list is read once for each split
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        for split in data.splits:
            rows = []
            checked.counts[split] = np.zeros(len(data.labels), int)
            checked.repeated[split] = []
            for row in _read(data, split, checked.problems):
                if isinstance(row, Row):
                    rows.append(row)
                elif (row.source, row.reason) not in reported:
                    reported.add((row.source, row.reason))
                    checked.left_out[split] += row.rows
                    reason = str(row).removeprefix(f"{row.source}: ")
                    checked.problems.append(DataProblem("row", split, row.source, reason))
            shows = _spread(rows, shown)
            subjects[split] = {row.subject for row in rows if row.subject is not None}
            looked = _look(pool, rows, shows, split if progress else None)
            for row, seen in zip(rows, looked, strict=True):
                if isinstance(seen, ReadError):
                    checked.left_out[split] += 1
                    checked.problems.append(DataProblem("picture", split, seen.source, seen.reason))
                else:
                    _count(checked, row, *seen, first)
            if not checked.counts[split].any() and not checked.unlabelled[split]:
                checked.problems.append(DataProblem("split", split, str(data), f"no usable row in {split!r}"))
            data.compare(repr(split), checked.counts[split].tolist(), data.published.get(split, ()))
    checked.warnings = [*data.warnings, *_warnings(checked, subjects)]
    return checked


def _read(data: DataSet, split: str, problems: list[DataProblem]) -> Iterator[Row | ReadError]:
    try:
        yield from data.read(split)
    except MienError as error:
        problems.append(DataProblem("split", split, str(data), str(error).removeprefix(f"{data}: ")))


def _spread(rows: Sequence[Row], shown: int) -> set[int]:
    """The numbers of so many rows of each label, spread from its first row to its last."""
    labels = np.array([row.label for row in rows], int)
    chosen: set[int] = set()
    for label in set(labels.tolist()) - {-1}:
        of = np.flatnonzero(labels == label)
        chosen.update(of[np.linspace(0, len(of) - 1, min(shown, len(of))).astype(int)].tolist())
    return chosen


def _look(
    pool: ThreadPoolExecutor, rows: Sequence[Row], shows: set[int], bar: str | None
) -> Iterator[tuple[bytes, np.ndarray | None] | ReadError]:
    """For each row, a digest of the picture, and its tile if it is shown; or why it has none."""

    def look(i: int) -> tuple[bytes, np.ndarray | None] | ReadError:
        try:
            image = rows[i].image()
        except ReadError as error:
            return ReadError(error.source, error.reason)  # without the frames that the caught one holds on to
        return digest_of(np.ascontiguousarray(image)), tile_of(image) if i in shows else None

    with tqdm(total=len(rows), desc=bar, unit=" pictures", leave=False, disable=bar is None) as done:
        for start in range(0, len(rows), _BATCH):
            for seen in pool.map(look, range(start, min(start + _BATCH, len(rows)))):
                done.update()
                yield seen


def _count(checked: Checked, row: Row, digest: bytes, tile: np.ndarray | None, first: dict[bytes, Any]) -> None:
    if row.label < 0:
        checked.unlabelled[row.split] += 1
    else:
        checked.counts[row.split][row.label] += 1
        if tile is not None:
            checked.tiles[checked.labels[row.label]].setdefault(row.split, []).append(tile)
    if digest not in first:
        first[digest] = row.split, row.name, row.label
        return
    split, name, label = first[digest]
    if split == row.split:
        checked.repeated[split].append((row.name, name, row.label == label))
    else:
        reason = f"the same picture as {name}, which is in {split!r}"
        checked.problems.append(DataProblem("shared", row.split, row.name, reason))


def _warnings(checked: Checked, subjects: dict[str, set[str]]) -> Iterable[str]:
    for split, repeated in checked.repeated.items():
        if repeated:
            other = sum(not same for _, _, same in repeated)
            under = f", {other:,} of them under another label" if other else ""
            yield f"{len(repeated):,} rows of {split!r} show the picture of an earlier one{under}"
    for split, counts in checked.counts.items():
        missing = [label for label, count in zip(checked.labels, counts, strict=True) if not count]
        if missing and counts.any():
            yield f"{split!r} shows no {', '.join(missing)}"
    splits = list(subjects)
    for i, split in enumerate(splits):
        for other in splits[:i]:
            both = subjects[split] & subjects[other]
            if both:
                yield f"{len(both):,} subjects of {split!r} are in {other!r}, too, such as {min(both)!r}"
