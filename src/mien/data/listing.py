"""Sets whose rows stand in lists, one a line."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mien.data.dataset import DataSet
from mien.data.row import Row
from mien.errors import MienError, ReadError


class ListedPicture(NamedTuple):
    """What a line says.

    picture: the file.
    label: the class; -1: none.
    key: a name that no other line may have.
    box: x, y, width, height of the part of the picture that is meant; None: all of it.
    groups: what else is said of the person.
    targets: of further outputs.
    """

    picture: Path
    label: int
    key: str
    box: tuple[int, int, int, int] | None = None
    groups: Mapping[str, str] = {}
    targets: Mapping[str, np.ndarray] = {}


class Listing(DataSet):
    """A subclass sets `labels` and `splits`, gives the lines and says what one means."""

    @abstractmethod
    def lines(self, split: str) -> Iterable[tuple[str, Any]]:
        """Where each line stands, "label.lst:3", and what stands there."""

    @abstractmethod
    def parse(self, line: Any, split: str) -> ListedPicture | None:
        """The row of a line, None where it is of another split or of no class; ValueError says why it is none."""

    def read(self, split: str) -> Iterator[Row | ReadError]:
        targets = np.eye(len(self.labels) + 1, len(self.labels), dtype=np.float32)  # the last, or number -1, is of none
        first: dict[str, str] = {}
        for where, line in self.lines(split):
            try:
                entry = self.parse(line, split)
            except ValueError as error:
                yield ReadError(where, str(error))
                continue
            if entry is None:
                continue
            if entry.key in first:
                yield ReadError(where, f"{entry.key} is listed already: {first[entry.key]}")
                continue
            first[entry.key] = where
            name, more = (
                f"{where}: {entry.picture.name}",
                {"box": entry.box, "groups": entry.groups, "targets": entry.targets},
            )
            yield Row(entry.picture, targets[entry.label], split, label=entry.label, name=name, **more)

    def number(self, word: str, first: int = 0) -> int:
        """The class that a word numbers; ValueError where it numbers none."""
        last = first + len(self.labels) - 1
        if not word.isdecimal() or not first <= int(word) <= last:
            raise ValueError(f"label {word!r} is not a number from {first} to {last}")
        return int(word) - first


def read_text(file: Path) -> str:
    """Raises MienError where the file is missing or no text."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise MienError(f"{file}: {(error.strerror or str(error)).lower()}") from error
    except UnicodeDecodeError as error:
        raise MienError(f"{file}: not a text") from error


def words(file: Path) -> Iterator[tuple[str, list[str]]]:
    """Where each line that is not empty stands, and its words."""
    for number, line in enumerate(read_text(file).splitlines(), start=1):
        if line.strip():
            yield f"{file}:{number}", line.split()


def find(root: Path, *names: str) -> Path:
    """The first of the names that there is below root; MienError where there is none."""
    for name in names:
        if (root / name).exists():
            return root / name
    raise MienError(f"{root}: no {' or '.join(names)} there" if root.is_dir() else f"{root}: no such folder")
