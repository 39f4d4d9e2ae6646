"""Pictures in the rows of parquet files, with the votes of several people or with one label."""

import glob
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mien.data.dataset import DataSet
from mien.data.row import Row
from mien.data.spelling import Known, Matched, class_order, match_names, spell, spell_split
from mien.data.votes import Mode, judge
from mien.errors import MienError, ReadError, require
from mien.labels import EXPRESSIONS
from mien.outputs import Output

LABEL_COLUMNS = ("label", "labels", "expression", "emotion")
"""Where a label is looked for when neither votes nor a label column is named."""

REJECTED = ("unknown", "not_a_face", "nf")
"""Columns of votes that stand for no class."""

PREPARED = b"mien"
"""The key of a file's metadata by which shards of `mien data prepare` tell what they hold."""

_BATCH = 1024  # rows in memory beside those that are kept


class Parquet(DataSet):
    """Rows with a picture (a file's bytes, or {bytes, path} as on the Hugging Face Hub) and votes or a label.

    The label of votes is the first largest in the order of the file's columns; a row where that is one of `reject` is
    left out, and the target is the share of each class among the votes for classes.

    path: a file, a folder of files, or a glob.
    image: the column of the pictures.
    votes: the columns of vote counts, each named after its class; by default those that are named after expressions.
    reject: the columns of votes for no class; by default those of REJECTED, beside votes that are found by default.
    label: the column of labels, names or numbers; by default the first of LABEL_COLUMNS that there is.
    labels: the classes in order, by name, or a data set of mien.labels.ORDERS. By default the names that the file gives
        its numbers (as on the Hub), else the classes found, in the order of mien.labels.EXPRESSIONS.
    first: what the first class is numbered in the label column.
    split: the column of the splits; in a file without it the word that its name begins with ("train-00000-of-1").
    subject: the column that says who is in the picture.
    drop: columns that are true where a row is to be left out.
    min_votes: votes for a class with fewer count as none (FER+'s makers: 2), unless none at all would be left.
    mode: how votes become a target, as `mien.data.votes.judge` says.
    groups: columns that say more of the person, such as sex or age, to group answers by.
    number: the column of the number that the set's makers gave a picture; without that column rows have none.
    check: decode each picture once, to leave out the unreadable and to count the repeated.

    Shards of `mien data prepare` say all of this themselves: the target is in them, as are subjects and action units.
    With `drop: [note]` faces that were not found are left out.

    Raises MienError for a file that is no parquet, and for columns that are missing or ambiguous.
    """

    def __init__(
        self,
        path: str,
        image: str = "image",
        votes: list[str] | None = None,
        reject: list[str] | None = None,
        label: str | None = None,
        labels: list[str] | str | Known | None = None,
        first: int = 0,
        split: str = "split",
        subject: str | None = None,
        drop: list[str] | None = None,
        min_votes: int = 1,
        mode: Mode = "votes",
        groups: list[str] | None = None,
        number: str | None = None,
        check: bool = True,
    ):
        super().__init__(check)
        votes, reject, drop, groups = map(_names, (votes, reject, drop, groups))
        self.path, self._image, self._split = str(path), image, split
        self._drop, self._first, self._rule = list(drop or ()), first, (min_votes, mode)
        self._groups = list(groups or ())
        self._files = _find(self.path)
        columns = self._schema(0).names
        self._numbered_by = number = number if number in columns else None
        prepared = (self._schema(0).metadata or {}).get(PREPARED)
        subject = "subject" if prepared and subject is None else subject
        if votes is not None and label is not None:
            raise MienError(f"{path}: say either votes or a label column, not both")
        if votes is None and label is None:
            label = next((name for name in LABEL_COLUMNS if name in columns), None)
        if votes is None and label is None:
            votes = [name for name in columns if spell(name) in EXPRESSIONS]
            reject = [name for name in columns if name.lower() in REJECTED] if reject is None else reject
            if len(votes) < 2:
                raise MienError(f"{path}: columns {', '.join(columns)}: say which are votes, or which is the label")
        self._label, self._subject = label, subject
        self._target = ["target", "units"] if prepared and label == "label" else []
        facts = json.loads(prepared) if self._target else {}
        self.units = tuple(facts.get("units", ()))
        self.further = tuple(map(Output.from_json, facts.get("outputs", ())))
        self._target += [output.name for output in self.further]
        chosen = [*(votes or ()), *(reject or ())]
        self._votes = [name for name in columns if name in chosen]
        named = [name for name in (label, subject, number, *self._target) if name]
        self._values = [*self._votes, *named, *self._drop, *self._groups]
        for index, file in enumerate(self._files):
            names = self._schema(index).names
            missing = [name for name in [image, *chosen, *self._values] if name not in names]
            if missing:
                raise MienError(f"{file}: no column {missing[0]!r}, only {', '.join(names)}")
        self._file_splits = [self._splits_in(index) for index in range(len(self._files))]
        self.splits = tuple(dict.fromkeys(name for names in self._file_splits for name in names))
        rejected = set(reject or ())
        try:
            self._matched = self._match([name for name in self._votes if name not in rejected], labels)
        except MienError as error:
            raise MienError(f"{self.path}: {error}") from error
        self.labels, self.notes = self._matched.labels, self._matched.notes
        index_of = {name: self.labels.index(label) for name, label in self._matched.label_of.items() if label}
        # the class of each column of votes, -1 for those rejected; and of one that is not among the labels, likewise
        self._class_of = np.array([index_of.get(name, -1) for name in self._votes], int)
        self._index_of = index_of

    def __str__(self) -> str:
        return self.path

    def read(self, split: str) -> Iterator[Row | ReadError]:
        columns = list(dict.fromkeys([self._image, *self._values]))
        for index, file in enumerate(self._files):
            if split not in self._file_splits[index]:
                continue
            has_split = self._split in self._schema(index).names
            number = -1
            for batch in self._batches(index, [*columns, *([self._split] if has_split else [])]):
                for values in batch.to_pylist():
                    number += 1
                    if has_split and (values[self._split] is None or spell_split(str(values[self._split])) != split):
                        continue
                    if any(values[name] for name in self._drop):
                        continue
                    row = self._row(values, split, f"{file} row {number}")
                    if row is not None:
                        yield row

    def _row(self, values: dict[str, Any], split: str, name: str) -> Row | ReadError | None:
        try:
            judged = self._one_label(values) if self._label else self._count_votes(values)
            if judged is None:
                return None
            source = _picture(values[self._image], self.path)
        except ValueError as error:
            return ReadError(name, str(error))
        label, target = judged
        subject = values[self._subject] if self._subject else None
        groups = {column: str(values[column]) for column in self._groups if values[column] is not None}
        units = np.array(values["units"], np.float32) if self.units else None
        subject = None if subject is None else str(subject)
        number = values[self._numbered_by] if self._numbered_by else None
        said = {output: values[output.name] for output in self.further}
        targets = {
            output.name: np.array(value, np.float32).reshape(output.shape)
            for output, value in said.items()
            if value is not None
        }
        more = {"units": units, "groups": groups, "number": -1 if number is None else int(number), "targets": targets}
        return Row(source, target, split, subject, label, name, **more)

    def _one_label(self, values: dict[str, Any]) -> tuple[int, np.ndarray]:
        value = values[self._label]
        if self._target:
            target = np.array(values["target"], np.float32)
            if target.shape != (len(self.labels),) or not -1 <= value < len(self.labels):
                raise ValueError(f"label {value!r} and a target of {target.size} do not fit {len(self.labels)} classes")
            return value, target
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, str) and value in self._index_of:
            label = self._index_of[value]
        elif isinstance(value, int) and self._first is not None and 0 <= value - self._first < len(self.labels):
            label = value - self._first
        else:
            raise ValueError("no label" if value is None else f"label {self._matched.why_none(str(value))}")
        return label, np.eye(len(self.labels), dtype=np.float32)[label]

    def _count_votes(self, values: dict[str, Any]) -> tuple[int, np.ndarray] | None:
        """The label and the target (C,); None where no class won."""
        try:
            votes = np.array([values[name] or 0 for name in self._votes], np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError("votes that are no numbers") from error
        return judge(votes, self._class_of, len(self.labels), *self._rule)

    def _schema(self, index: int) -> Any:
        return self._open(index).schema_arrow

    def _open(self, index: int) -> Any:
        parquet = require("pyarrow.parquet", "parquet")
        errors = require("pyarrow", "parquet").ArrowException
        try:
            return parquet.ParquetFile(self._files[index])
        except OSError as error:
            raise MienError(f"{self._files[index]}: {(error.strerror or str(error)).lower()}") from error
        except errors as error:
            raise MienError(f"{self._files[index]}: not a parquet file, or damaged ({error})") from error

    def _batches(self, index: int, columns: list[str]) -> Iterator[Any]:
        errors = require("pyarrow", "parquet").ArrowException
        try:
            with self._open(index) as file:
                yield from file.iter_batches(_BATCH, columns=columns)
        except (OSError, errors) as error:
            raise MienError(f"{self._files[index]}: damaged ({error})") from error

    def _values_in(self, index: int, column: str) -> list[Any]:
        """The different values of a column, in the order in which they come."""
        batches = self._batches(index, [column])
        return list(dict.fromkeys(value for batch in batches for value in batch.column(0).unique().to_pylist()))

    def _splits_in(self, index: int) -> tuple[str, ...]:
        if self._split in self._schema(index).names:
            names = [str(name) for name in self._values_in(index, self._split) if name is not None]
        else:
            names = [Path(self._files[index]).stem.partition("-")[0]]
        return tuple(dict.fromkeys(map(spell_split, names)))

    def _match(self, votes: list[str], labels: list[str] | str | Known | None) -> Matched:
        """The classes, of columns of votes or of the values of the label column; sets `first`."""
        if not self._label:
            return match_names([votes], labels)
        schema = self._schema(0)
        info = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        names = info.get("info", {}).get("features", {}).get(self._label, {}).get("names")
        if names and (labels is None or isinstance(labels, Known)):
            order = tuple(names) if self._target else class_order(names)  # of prepared shards, as they are
            return Matched(order, dict(zip(names, order, strict=True)))
        found = [value for index in range(len(self._files)) for value in self._values_in(index, self._label)]
        found = [value for value in found if value is not None]
        texts = [value for value in found if isinstance(value, str)]
        if found and not texts:
            matched = match_names([[str(self._first)]], labels)  # raises where nobody says what the numbers are
            self.first = self._first = labels.first if isinstance(labels, Known) else self._first
            return matched
        return match_names([texts], labels)


def _find(path: str) -> list[str]:
    if os.path.isdir(path):
        found = sorted(glob.glob(os.path.join(glob.escape(path), "**", "*.parquet"), recursive=True))
    else:
        found = [path] if os.path.exists(path) else sorted(glob.glob(path, recursive=True))
    if not found:
        raise MienError(f"{path}: no parquet file there" if os.path.isdir(path) else f"{path}: no such file")
    return found


def _names(columns: list[str] | str | None) -> list[str] | None:
    """One column may be named without a list, as `--set drop=note` does."""
    return [columns] if isinstance(columns, str) else columns


def _picture(value: Any, path: str) -> bytes | str:
    if isinstance(value, dict):
        if value.get("bytes") is None and value.get("path"):
            beside = path if os.path.isdir(path) else os.path.dirname(path)
            return os.path.join(beside, value["path"])
        value = value.get("bytes")
    if not isinstance(value, bytes) or not value:
        raise ValueError("no picture")
    return value
