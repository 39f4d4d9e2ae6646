"""FER2013 as Kaggle gives it out: one table of numbers."""

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mien.data.dataset import DataSet
from mien.data.row import Row
from mien.data.spelling import spell_split
from mien.errors import MienError, ReadError
from mien.labels import ORDERS

SIDE = 48
NAMES = ("fer2013.csv", "icml_face_data.csv", "train.csv")
"""What the table is called; the last is the competition's own, without a column Usage."""


class FER2013(DataSet):
    """Faces of 48×48 grey pixels with the label that FER2013 itself gives them.

    path: the table, or the folder in which it lies under one of NAMES.
    check: count pictures that come several times; True.

    A line of the table has `emotion`, a number from 0 to 6 in the order of mien.labels.ORDERS["fer2013"], `pixels`,
    2,304 numbers with blanks between, and `Usage`: "Training", "PublicTest" (validation) or "PrivateTest" (test). The
    columns may come in any order and case. Without `Usage` all lines are the one split "train".

    Raises MienError where there is no such table.

    Paper: Goodfellow et al., Challenges in Representation Learning, 2013.
    """

    labels = ORDERS["fer2013"]

    def __init__(self, path: str, check: bool = True):
        super().__init__(check)
        self.path = Path(path)
        if self.path.is_dir():
            there = [self.path / name for name in NAMES if (self.path / name).is_file()]
            if not there:
                raise MienError(f"{path}: neither of {', '.join(NAMES)} lies there")
            self.path = there[0]
        if not self.path.is_file():
            raise MienError(f"{path}: no such file")
        names = list(dict.fromkeys(split for _, _, split in self._lines()))
        self.splits = tuple(name for name in ("train", "validation", "test") if name in names)
        if not self.splits:
            raise MienError(f"{self.path}: no line is of Training, PublicTest or PrivateTest")
        if len(self.splits) > 1:
            self.published = _PUBLISHED

    def __str__(self) -> str:
        return str(self.path)

    def read(self, split: str) -> Iterator[Row | ReadError]:
        targets = np.eye(len(self.labels), dtype=np.float32)
        for number, line, of in self._lines():
            if of != split and (of in self.splits or split != self.splits[0]):
                continue
            name = f"{self.path} line {number}"
            try:
                if of not in self.splits:
                    raise ValueError(f"Usage {of!r} is none of Training, PublicTest and PrivateTest")
                emotion = (line["emotion"] or "").strip()
                if not emotion.isdecimal() or int(emotion) >= len(self.labels):
                    raise ValueError(f"emotion {emotion!r} is not a number from 0 to {len(self.labels) - 1}")
                yield Row(read_pixels(line["pixels"]), targets[int(emotion)], split, label=int(emotion), name=name)
            except ValueError as error:
                yield ReadError(name, str(error))

    def _lines(self) -> Iterator[tuple[int, dict[str, str], str]]:
        """Number, columns in lower case, and the split of each line."""
        try:
            with self.path.open(newline="", encoding="utf-8-sig") as file:
                table = csv.DictReader(file, restval="")
                table.fieldnames = [column.strip().lower() for column in table.fieldnames or ()]
                for column in ("emotion", "pixels"):
                    if column not in table.fieldnames:
                        raise MienError(f"{self.path}: no column {column!r}, only {', '.join(table.fieldnames)}")
                for number, line in enumerate(table, start=2):
                    yield number, line, spell_split(line.get("usage", "train").strip())
        except (csv.Error, UnicodeDecodeError) as error:
            raise MienError(f"{self.path}: no table ({error})") from error


def read_pixels(pixels: str | None) -> np.ndarray:
    """(48, 48) uint8 of numbers with blanks between; ValueError says why they are none."""
    try:
        values = np.array((pixels or "").split(), np.uint8)
    except OverflowError as error:
        raise ValueError("pixels above 255") from error
    except ValueError as error:
        raise ValueError("pixels that are no numbers") from error
    if values.size != SIDE * SIDE:
        raise ValueError(f"{values.size} pixels instead of {SIDE}×{SIDE}")
    return values.reshape(SIDE, SIDE)


_PUBLISHED = {
    "train": (3995, 436, 4097, 7215, 4830, 3171, 4965),
    "validation": (467, 56, 496, 895, 653, 415, 607),
    "test": (491, 55, 528, 879, 594, 416, 626),
}
