"""FER2013 with FER+'s votes."""

import csv
import glob
import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import get_args

import numpy as np

from mien.data.dataset import DataSet
from mien.data.fer2013 import read_pixels
from mien.data.parquet import Parquet
from mien.data.row import Row
from mien.data.spelling import spell, spell_split
from mien.data.votes import Mode, judge
from mien.errors import MienError, ReadError
from mien.labels import EXPRESSIONS

HALVES = ("even", "odd")
"""What the halves of a split are called, by the parity of the numbers of their pictures."""

_LINES = {"train": 28_709, "validation": 3_589, "test": 3_589}
_SPLITS = {"Training": "train", "PublicTest": "validation", "PrivateTest": "test"}


class FERPlus(DataSet):
    """Faces of 48×48 grey pixels, each with the votes of ten people.

    path: a folder with the makers' files: `fer2013.csv` with the pixels (Kaggle's "Challenges in Representation
        Learning", where it may be called icml_face_data.csv) and `fer2013new.csv` with FER+'s votes, line by line for
        the same pictures. Or a parquet file with the columns `image`, `split`, ten of votes and
        `duplicate_of_validation`.
    min_votes: 1, the default, keeps all votes; 2 forgets single ones, as the makers of FER+ do.
    mode: "majority" and "probability" are the makers' ways of turning votes into a target, as `mien.data.votes.judge`
        says; "votes", the default, leaves out fewer pictures.
    groups: columns of the parquet file that say more of the person, to group answers by; the makers' files have none.
    check: decode each picture once, to leave out the unreadable and to count the repeated; True.

    The classes are mien.labels.EXPRESSIONS. A row whose first largest vote, in the order of the file's columns, is
    "unknown" or "not a face" is left out, and so is a training picture that is in another split as well.

    "validation-even" and "validation-odd" are the halves of a split by the parity of its pictures' numbers (the parquet
    column `fer_row`, the number in FER+'s "Image name"), so that one half can choose and the other can judge.

    Raises MienError where a file is missing or lacks a column, and for a half of a split whose pictures have no number.

    Paper: Barsoum et al., Training Deep Networks for Facial Expression Recognition with Crowd-Sourced Label
    Distribution, ICMI 2016.
    """

    labels = EXPRESSIONS

    def __init__(
        self,
        path: str,
        min_votes: int = 1,
        mode: Mode = "votes",
        groups: list[str] | None = None,
        check: bool = True,
    ):
        super().__init__(check)
        if mode not in get_args(Mode):
            raise MienError(f"no mode {mode!r}, only {', '.join(get_args(Mode))}")
        if Path(path).is_dir() and not glob.glob(f"{glob.escape(str(path))}/*.parquet"):
            if groups:
                raise MienError(f"{path}: the makers' files tell no {groups[0]!r} of anybody")
            self._source = _CSV(Path(path), min_votes, mode)
        else:
            self._source = Parquet(
                path,
                votes=list(EXPRESSIONS),
                reject=["unknown", "not_a_face"],
                labels=list(EXPRESSIONS),
                drop=["duplicate_of_validation"],
                min_votes=min_votes,
                mode=mode,
                groups=groups,
                number="fer_row",
                check=False,
            )
        self.splits = self._source.splits

    def __str__(self) -> str:
        return str(self._source)

    def rows(self, split: str) -> list[Row]:
        whole, _, half = split.rpartition("-")
        if half not in HALVES or "+" in split or split in self.splits:
            return super().rows(split)
        rows = super().rows(whole)
        if any(row.number < 0 for row in rows):
            raise MienError(f"{self}: pictures without a number (fer_row): {whole!r} cannot be halved")
        self.findings[split] = self.findings[spell_split(whole)]
        return [row for row in rows if row.number % 2 == HALVES.index(half)]

    def read(self, split: str) -> Iterator[Row | ReadError]:
        yield from self._source.read(split)
        if isinstance(self._source, _CSV) and (lines := self._source.counts[split]) != _LINES[split]:
            self.warn(f"{split!r} is not as published: {lines:,} lines instead of {_LINES[split]:,}")


class _CSV:
    """The rows in the makers' files."""

    splits = tuple(_SPLITS.values())

    def __init__(self, root: Path, min_votes: int, mode: Mode):
        self.root, self._rule = root, (min_votes, mode)
        self.counts: Counter[str] = Counter()  # lines of a split, when it was read
        names = ("fer2013.csv", "icml_face_data.csv")
        self._pixels = next((root / name for name in names if (root / name).is_file()), root / names[0])
        self._votes = root / "fer2013new.csv"
        for file in (self._pixels, self._votes):
            if not file.is_file():
                raise MienError(f"{file}: no such file")
        self._others: set[bytes] | None = None

    def __str__(self) -> str:
        return str(self.root)

    def read(self, split: str) -> Iterator[Row | ReadError]:
        usage = next(name for name, ours in _SPLITS.items() if ours == split)
        held_out = self._held_out() if split == "train" else set()
        self.counts[split], first = 0, {}
        for line, face, votes in self._lines():
            if face["usage"].strip() != usage:
                continue
            self.counts[split] += 1
            name = f"{self._votes} line {line}"
            try:
                if votes is None or votes["usage"].strip() != usage:
                    raise ValueError(f"is of another picture than {self._pixels.name}")
                if None in votes.values():
                    raise ValueError("the line ends before its last vote")
                if not (picture := votes["image name"].strip()):
                    continue
                if first.setdefault(picture, line) != line:
                    raise ValueError(f"{picture} is listed already: line {first[picture]}")
                counts = {spell(column): float(count) for column, count in votes.items() if column in self._columns}
                class_of = np.array([EXPRESSIONS.index(c) if c in EXPRESSIONS else -1 for c in counts])
                judged = judge(np.array(list(counts.values())), class_of, len(EXPRESSIONS), *self._rule)
                name = f"{self._pixels} line {line}"
                picture = read_pixels(face["pixels"])
            except ValueError as error:
                yield ReadError(name, str(error))
                continue
            if judged is not None and _digest(picture) not in held_out:
                number = re.search(r"(\d+)\.\w+$", votes["image name"].strip())
                yield Row(picture, judged[1], split, None, judged[0], name, number=int(number[1]) if number else -1)

    def _held_out(self) -> set[bytes]:
        """A digest of every picture that is not for training."""
        if self._others is None:
            self._others = set()
            for _, face, _ in self._lines():
                if face["usage"].strip() != "Training":
                    try:
                        self._others.add(_digest(read_pixels(face["pixels"])))
                    except ValueError:
                        continue  # reported when its own split is read
        return self._others

    def _lines(self) -> Iterator[tuple[int, dict[str, str], dict[str, str] | None]]:
        """Number, pixels and votes of each line; columns in lower case."""
        try:
            yield from self._read_lines()
        except (csv.Error, UnicodeDecodeError) as error:
            raise MienError(f"{self.root}: {self._pixels.name} or {self._votes.name} is no table ({error})") from error

    def _read_lines(self) -> Iterator[tuple[int, dict[str, str], dict[str, str] | None]]:
        how = {"newline": "", "encoding": "utf-8-sig"}
        with self._pixels.open(**how) as one, self._votes.open(**how) as two:
            faces, votes = csv.DictReader(one, restval=""), csv.DictReader(two)
            for reader, file, needed in (
                (faces, self._pixels, ["usage", "pixels"]),
                (votes, self._votes, ["usage", "image name", *EXPRESSIONS, "unknown", "nf"]),
            ):
                reader.fieldnames = [column.strip().lower() for column in reader.fieldnames or ()]
                spelt = [*reader.fieldnames, *map(spell, reader.fieldnames)]
                missing = [column for column in needed if column not in spelt]
                if missing:
                    raise MienError(f"{file}: no column {missing[0]!r}, only {', '.join(reader.fieldnames)}")
            self._columns = [c for c in votes.fieldnames if spell(c) in (*EXPRESSIONS, "unknown", "nf")]
            for line, (face, vote) in enumerate(zip_longest(faces, votes), start=2):
                if face is None:
                    raise MienError(f"{self._votes}: more lines than {self._pixels.name}")
                yield line, face, vote


def _digest(picture: np.ndarray) -> bytes:
    return hashlib.blake2b(picture.tobytes(), digest_size=16).digest()
