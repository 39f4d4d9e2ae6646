"""FER2013 with FER+'s votes."""

import csv
import hashlib
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

import numpy as np

from mien.data.dataset import DataSet
from mien.data.parquet import Parquet
from mien.data.row import Row
from mien.data.spelling import spell
from mien.data.votes import judge
from mien.errors import MienError, ReadError
from mien.labels import EXPRESSIONS

_SIDE = 48
_SPLITS = {"Training": "train", "PublicTest": "validation", "PrivateTest": "test"}


class FERPlus(Parquet):
    """Faces of 48×48 grey pixels, each with the votes of ten people, in one parquet file.

    Columns: `image`, `split` ("train", "validation"), ten of votes, `duplicate_of_validation`. The classes are
    mien.labels.EXPRESSIONS. A row whose first largest vote, in the order of the file's columns, is "unknown" or
    "not_a_face" is left out, and so is a training picture that is in the validation split as well.

    min_votes: 2 forgets single votes, as the makers of FER+ do; 1 keeps all.

    Paper: Barsoum et al., Training Deep Networks for Facial Expression Recognition with Crowd-Sourced Label
    Distribution, ICMI 2016.
    """

    def __init__(self, path: str, min_votes: int = 1, check: bool = True):
        super().__init__(
            path,
            votes=list(EXPRESSIONS),
            reject=["unknown", "not_a_face"],
            labels=list(EXPRESSIONS),
            drop=["duplicate_of_validation"],
            min_votes=min_votes,
            check=check,
        )


class FERPlusCSV(DataSet):
    """The same faces and votes as their makers ship them: a folder with `fer2013.csv` and `fer2013new.csv`.

    The first holds pixels (Kaggle's "Challenges in Representation Learning"; also called icml_face_data.csv), the
    second FER+'s votes, line by line for the same pictures. A row is left out where the first largest vote is "unknown"
    or "NF", where FER+'s makers named no picture, and in training where the very picture is in another split as well.

    min_votes: 2 forgets single votes, as the makers of FER+ do; 1 keeps all.

    Raises MienError where a file is missing or lacks a column. Paper: as FERPlus.
    """

    labels = EXPRESSIONS
    splits = tuple(_SPLITS.values())

    def __init__(self, root: str, min_votes: int = 1, check: bool = True):
        super().__init__(check)
        self.root, self._min_votes = Path(root), min_votes
        names = ("fer2013.csv", "icml_face_data.csv")
        self._pixels = next((self.root / name for name in names if (self.root / name).is_file()), self.root / names[0])
        self._votes = self.root / "fer2013new.csv"
        for file in (self._pixels, self._votes):
            if not file.is_file():
                raise MienError(f"{file}: no such file")
        self._others: set[bytes] | None = None

    def __str__(self) -> str:
        return str(self.root)

    def read(self, split: str) -> Iterator[Row | ReadError]:
        usage = next(name for name, ours in _SPLITS.items() if ours == split)
        held_out = self._held_out() if split == "train" else set()
        for line, face, votes in self._lines():
            if face["usage"].strip() != usage:
                continue
            name = f"{self._votes} line {line}"
            try:
                if votes is None or votes["usage"].strip() != usage:
                    raise ValueError(f"is of another picture than {self._pixels.name}")
                if not votes["image name"].strip():
                    continue
                counts = {spell(column): float(count) for column, count in votes.items() if column in self._columns}
                class_of = np.array([EXPRESSIONS.index(c) if c in EXPRESSIONS else -1 for c in counts])
                judged = judge(np.array(list(counts.values())), class_of, len(EXPRESSIONS), self._min_votes)
                name = f"{self._pixels} line {line}"
                picture = _picture(face["pixels"])
            except ValueError as error:
                yield ReadError(name, str(error))
                continue
            if judged is not None and _digest(picture) not in held_out:
                yield Row(picture, judged[1], split, None, judged[0], name)

    def _held_out(self) -> set[bytes]:
        """A digest of every picture that is not for training."""
        if self._others is None:
            self._others = set()
            for _, face, _ in self._lines():
                if face["usage"].strip() != "Training":
                    try:
                        self._others.add(_digest(_picture(face["pixels"])))
                    except ValueError:
                        continue  # told when its own split is read
        return self._others

    def _lines(self) -> Iterator[tuple[int, dict[str, str], dict[str, str] | None]]:
        """Number, pixels and votes of each line; columns in lower case."""
        with self._pixels.open(newline="") as one, self._votes.open(newline="") as two:
            faces, votes = csv.DictReader(one), csv.DictReader(two)
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


def _picture(pixels: str | None) -> np.ndarray:
    """(48, 48) uint8 of numbers with blanks between."""
    try:
        values = np.array((pixels or "").split(), np.uint8)
    except OverflowError as error:
        raise ValueError("pixels above 255") from error
    except ValueError as error:
        raise ValueError("pixels that are no numbers") from error
    if values.size != _SIDE * _SIDE:
        raise ValueError(f"{values.size} pixels instead of {_SIDE}×{_SIDE}")
    return values.reshape(_SIDE, _SIDE)


def _digest(picture: np.ndarray) -> bytes:
    return hashlib.blake2b(picture.tobytes(), digest_size=16).digest()
