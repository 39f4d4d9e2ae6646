"""What every data set does with the rows that its reader finds."""

import hashlib
import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mien.data.row import Row
from mien.data.spelling import spell_split
from mien.errors import MienError, ReadError
from mien.outputs import Output, expression_output

logger = logging.getLogger(__name__)

_SHOWN = 20  # messages about single rows; a file that is bad throughout should not fill the screen


class NoSplit(MienError):
    """A split that a set does not have."""


@dataclass(slots=True)
class Findings:
    """What reading one split brought to light.

    malformed: one error for each row that cannot be used.
    repeated: how many rows show the very pixels of an earlier row of the split.
    shared: how many show those of a row in another split, by that split, of those read before.
    """

    malformed: list[ReadError] = field(default_factory=list)
    repeated: int = 0
    shared: Counter[str] = field(default_factory=Counter)

    @property
    def left_out(self) -> int:
        """The rows that cannot be used; one error may be of many, such as all of a folder."""
        return sum(error.rows for error in self.malformed)


class DataSet(ABC):
    """A labelled set: a subclass sets `labels` and `splits` and writes `read`.

    check: decode each picture once when its split is first read, so that the unreadable are left out and logged, and
        repeated ones counted; True. Without it an unreadable picture raises ReadError when it is used.

    A subclass may also set:

        units      the names of the action units that its rows have
        further    the outputs that its rows have `targets` of
        first      the number of its first class, where it has numbers in place of names
        notes      what it reads otherwise than it is written; they are logged when the first split is read
        published  by split, how many rows of each label its makers count; a split that differs is reported
    """

    labels: tuple[str, ...]
    splits: tuple[str, ...]
    units: tuple[str, ...] = ()
    further: tuple[Output, ...] = ()
    first: int | None = None
    notes: tuple[str, ...] = ()
    published: Mapping[str, tuple[int, ...]] = {}

    def __init__(self, check: bool = True):
        self.check = check
        self.findings: dict[str, Findings] = {}
        self.warnings: list[str] = []  # about the whole, such as counts that are not as published
        self._rows: dict[str, list[Row]] = {}
        self._seen: dict[str, set[bytes]] = {}  # by split, a digest of each picture

    @property
    def outputs(self) -> tuple[Output, ...]:
        """The questions that rows have answers to: the expression, then action units, then what is `further`."""
        units = (Output("action_units", "binary", self.units),) if self.units else ()
        return (expression_output(self.labels), *units, *self.further)

    def targets(self, row: Row) -> dict[str, np.ndarray]:
        """The targets of a row for each output beside the expression.

        They are float32, of the shape of the output, and NaN where nobody said.

        Raises ReadError, naming the row, for a target of another shape or outside of its range.
        """
        found = {}
        for output in self.outputs[1:]:
            target = row.targets.get(output.name)
            if target is None and output.name == "action_units" and row.units is not None:
                target = np.where(row.units < 0, np.nan, row.units)
            target = np.full(output.shape, np.nan) if target is None else np.asarray(target)
            low, high = output.limits
            if target.shape != output.shape or not ((low <= target) & (target <= high) | np.isnan(target)).all():
                where, shown = row.name or str(self), f"{target.tolist()} is not {output.shape} of {low:g} to {high:g}"
                raise ReadError(where, f"{output.name}: {shown}")
            found[output.name] = target.astype(np.float32)
        return found

    @abstractmethod
    def read(self, split: str) -> Iterable[Row | ReadError]:
        """Each row of a split in order, or an error that says where and why one cannot be used."""

    def rows(self, split: str) -> list[Row]:
        """The usable rows of a split, or of several with "+" between. Malformed ones are logged, one message each, and
        counted in `findings`.

        Raises NoSplit where there is no such split, and MienError where there is not one usable row in it.
        """
        if "+" in split and split not in self.splits:
            return [row for part in split.split("+") for row in self.rows(part)]
        split = spell_split(split)
        if split not in self.splits:
            raise NoSplit(f"{self}: no split {split!r}, only {', '.join(sorted(self.splits))}")
        if split not in self._rows:
            for note in self.notes if not self._rows else ():
                logger.warning("%s: %s", self, note)
            found = self.findings[split] = Findings()
            self._seen[split] = set()
            rows = []
            for row in self.read(split):
                error = row if isinstance(row, ReadError) else self._check(row, found)
                if error is None and row.targets:
                    error = self._check_targets(row)
                if error is None:
                    rows.append(row)
                else:
                    found.malformed.append(error)
            self._tell(split, rows, found)
            self._rows[split] = rows
        return self._rows[split]

    def class_counts(self, split: str) -> np.ndarray:
        """(C,) int64: how many rows of the split have each label."""
        return self._count(self.rows(split))

    def _count(self, rows: list[Row]) -> np.ndarray:
        return np.bincount([row.label for row in rows if row.label >= 0], minlength=len(self.labels))

    def _check(self, row: Row, found: Findings) -> ReadError | None:
        if not self.check:
            return None
        try:
            image = row.image()
        except ReadError as error:
            return ReadError(error.source, error.reason)  # without the frames that the caught one holds on to
        digest = digest_of(image)
        for split, seen in self._seen.items():
            if digest in seen and split == row.split:
                found.repeated += 1
            elif digest in seen:
                found.shared[split] += 1
        self._seen[row.split].add(digest)
        return None

    def _check_targets(self, row: Row) -> ReadError | None:
        try:
            self.targets(row)
        except ReadError as error:
            return ReadError(error.source, error.reason)
        return None

    def _tell(self, split: str, rows: list[Row], found: Findings) -> None:
        bad = found.left_out
        if not rows:
            why = f"all {bad} are malformed, the first: {found.malformed[0]}" if bad else "it is empty"
            raise MienError(f"{self}: no usable row in {split!r}: {why}")
        for error in found.malformed[:_SHOWN]:
            logger.warning("left out: %s", error)
        if bad:
            logger.warning("%s: %d malformed of %d rows left out of %r", self, bad, bad + len(rows), split)
        if found.repeated:
            logger.warning("%s: %d rows of %r repeat the picture of an earlier one", self, found.repeated, split)
        self.compare(repr(split), self._count(rows).tolist(), self.published.get(split, ()))
        for other, count in found.shared.items():
            logger.warning("%s: %d rows of %r show a picture that is in %r, too", self, count, split, other)

    def compare(self, part: str, counts: Sequence[int], published: Sequence[int]) -> None:
        """Warn where the counts of the labels differ from those that are published."""
        all_counts = zip(self.labels, counts, published, strict=False)
        differs = [f"{count:,} of {label} instead of {said:,}" for label, count, said in all_counts if count != said]
        if differs:
            self.warn(f"{part} is not as published: {', '.join(differs)}")

    def warn(self, message: str) -> None:
        """Log what may be wrong with the whole, and keep it in `warnings`; once."""
        if message not in self.warnings:
            self.warnings.append(message)
            logger.warning("%s: %s", self, message)


def digest_of(image: np.ndarray) -> bytes:
    """What no other image (H, W, 3) uint8 has."""
    return hashlib.blake2b(image.tobytes(), digest_size=16, salt=str(image.shape[1]).encode()).digest()
