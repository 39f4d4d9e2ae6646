"""Pictures that a table lists: a path and a label a line."""

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mien.data.dataset import DataSet
from mien.data.parquet import LABEL_COLUMNS
from mien.data.row import Row
from mien.data.spelling import Known, match_names, spell_split
from mien.errors import MienError, ReadError

PICTURE_COLUMNS = ("path", "picture", "image", "file", "filename", "file_name", "filepath", "pth")
"""Columns in which a picture is looked for."""

CLASS_COLUMNS = (*LABEL_COLUMNS, "class", "target")
"""Columns in which its class is looked for."""


class Table(DataSet):
    """A .csv or .tsv file whose first line names the columns: of a picture's path, of its class, and perhaps its split.

    path: the table. Paths in it are meant as seen from the folder that it lies in.
    image: the column of the paths; by default the first of PICTURE_COLUMNS that there is, in whatever case.
    label: the column of the classes; by default the first of CLASS_COLUMNS that there is.
    labels: the classes in order, by name, or a data set of mien.labels.ORDERS. Numbered classes need it; the first is
        then 0 where there is a 0, else 1. Without it, the classes are the names in the column, as
        `mien.data.spelling.match_names` reads them.
    split: the column of the splits; without such a column all rows are the one split "all".
    subject: the column that says who is in the picture.
    check: decode each picture once, to leave out the unreadable and to count the repeated; True.

    Raises MienError where there is no such table, or it lacks a column.
    """

    def __init__(
        self,
        path: str,
        image: str | None = None,
        label: str | None = None,
        labels: list[str] | str | Known | None = None,
        split: str = "split",
        subject: str | None = None,
        check: bool = True,
    ):
        super().__init__(check)
        self.path = Path(path)
        columns, self._lines = _read(self.path)
        self._image = _column(self.path, columns, image, PICTURE_COLUMNS, "image", "pictures")
        self._label = _column(self.path, columns, label, CLASS_COLUMNS, "label", "classes")
        self._subject = subject and _column(self.path, columns, subject, (), "subject", "subjects")
        self._split = next((name for name in columns if name.lower() == split.lower()), None)
        names = [text for _, line in self._lines if (text := line[self._label].strip())]
        try:
            self._matched = match_names([names], labels)
        except MienError as error:
            raise MienError(f"{path}: {error}") from error
        self.labels, self.notes, self.first = self._matched.labels, self._matched.notes, self._matched.first
        splits = dict.fromkeys(self._split_of(line) for _, line in self._lines)
        self.splits = tuple(name for name in splits if name) or ("all",)

    def __str__(self) -> str:
        return str(self.path)

    def _split_of(self, line: dict[str, str]) -> str:
        return spell_split(line[self._split].strip()) if self._split else "all"

    def read(self, split: str) -> Iterator[Row | ReadError]:
        targets = np.eye(len(self.labels), dtype=np.float32)
        for number, line in self._lines:
            if self._split_of(line) != split:
                continue
            where, name, picture = f"{self.path}:{number}", line[self._label].strip(), line[self._image].strip()
            label = self._matched.label_of.get(name)
            if not picture:
                yield ReadError(where, "no picture")
            elif label is None:
                yield ReadError(where, self._matched.why_none(name) if name else "no label")
            else:
                at, subject = self.labels.index(label), line[self._subject].strip() if self._subject else None
                name = f"{where}: {picture}"
                yield Row(self.path.parent / picture, targets[at], split, subject or None, at, name)


def _read(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """The columns, and each line with its number."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file, restval="", delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
            columns = [name.strip() for name in table.fieldnames or ()]
            table.fieldnames = columns
            return columns, [(table.line_num, line) for line in table]
    except OSError as error:
        raise MienError(f"{path}: {(error.strerror or str(error)).lower()}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise MienError(f"{path}: no table ({error})") from error


def _column(path: Path, columns: list[str], named: str | None, usual: tuple[str, ...], option: str, what: str) -> str:
    for name in [named] if named else usual:
        for column in columns:
            if column.lower() == name.lower():
                return column
    raise MienError(
        f"{path}: no column {named or ' or '.join(usual)!r} of the {what}, only {', '.join(columns) or 'none at all'}: "
        f"say {option} (mien data: --set {option}=COLUMN; in a recipe data.init_args.{option})"
    )
