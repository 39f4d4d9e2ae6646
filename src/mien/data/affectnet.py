"""AffectNet, as it was given out first and as it is given out now."""

import csv
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from mien.data.listing import ListedPicture, Listing, find, read_text
from mien.errors import MienError
from mien.labels import ORDERS
from mien.outputs import VALENCE_AROUSAL

_COLUMNS = (
    "subDirectory_filePath face_x face_y face_width face_height facial_landmarks expression valence arousal".split()
)
_TRAIN, _VALIDATION = (74874, 134415, 25459, 14090, 6378, 3803, 24882, 3750), (500,) * 8


class AffectNet(Listing):
    """Faces from the internet, each labelled by one person; the manually labelled part.

    path: the folder of either edition, as below.
    classes: 8, the default, in the order of mien.labels.ORDERS["affectnet8"], or 7 of them, without contempt.
    valence_arousal: whether rows have the targets "valence" and "arousal", in [-1, 1]; False. They are in the columns
        of that name, or in `annotations/7_val.npy` and `7_aro.npy`, where -2 means that nobody said.
    check: decode each picture once, to leave out the unreadable and to count the repeated; True.

    The edition of 2017 has `training.csv` and `validation.csv`, in path or in `Manually_Annotated_file_lists`, with the
    columns subDirectory_filePath, face_x, face_y, face_width, face_height, …, expression (a file without that first
    line has them in the published order). Its pictures are in `Manually_Annotated_Images`, and faces are cut out by
    their boxes. Later ones have `train_set` and `val_set`, each with `images/7.jpg` and `annotations/7_exp.npy`, faces
    cut out already.

    Rows of no expression (8 none, 9 uncertain, 10 no face) are left out, unless they have valence or arousal and these
    are wanted. The splits are "train" and "validation".

    Raises MienError where a file is missing, and for another number of classes.

    Paper: Mollahosseini et al., AffectNet, IEEE Transactions on Affective Computing, 2017.
    """

    splits = ("train", "validation")

    def __init__(self, path: str, classes: Literal[7, 8] = 8, valence_arousal: bool = False, check: bool = True):
        super().__init__(check)
        self.further = VALENCE_AROUSAL if valence_arousal else ()
        if classes not in (7, 8):
            raise MienError(f"AffectNet has 7 or 8 classes, not {classes}")
        self.path, self.labels = Path(path), ORDERS[f"affectnet{classes}"]
        self.folders, self.lists = {}, {}
        validation = _VALIDATION
        if (self.path / "train_set").is_dir() or (self.path / "val_set").is_dir():
            self.folders = {"train": self.path / "train_set", "validation": self.path / "val_set"}
            validation = (*_VALIDATION[:7], 499)
        else:
            lists = ("", "Manually_Annotated_file_lists/")
            self.lists = {
                split: find(self.path, *(f"{folder}{name}.csv" for folder in lists))
                for split, name in (("train", "training"), ("validation", "validation"))
            }
            self.pictures = find(self.path, "Manually_Annotated_Images")
        self.published = {"train": _TRAIN[:classes], "validation": validation[:classes]}

    def __str__(self) -> str:
        return str(self.path)

    def lines(self, split: str) -> Iterable[tuple[str, dict[str, str] | Path]]:
        return self._csv(self.lists[split]) if self.lists else self._folder(self.folders[split])

    def parse(self, line: dict[str, str] | Path, split: str) -> ListedPicture | None:
        return self._row(line) if isinstance(line, dict) else self._annotated(line)

    def _label(self, word: str) -> int | None:
        """None for contempt where there are seven classes, and for no expression."""
        if not word.isdecimal() or int(word) > 10:
            raise ValueError(f"label {word!r} is not a number from 0 to 10")
        return int(word) if int(word) < len(self.labels) else None

    @staticmethod
    def _csv(file: Path) -> Iterator[tuple[str, dict[str, str]]]:
        table = csv.reader(read_text(file).splitlines())
        columns = _COLUMNS
        try:
            for values in table:
                if table.line_num == 1 and values[:1] == _COLUMNS[:1]:
                    columns = values
                    missing = set(_COLUMNS[:5] + ["expression"]) - set(columns)
                    if missing:
                        raise MienError(f"{file}:1: no column {', '.join(sorted(missing))}")
                elif values:
                    yield f"{file}:{table.line_num}", dict(zip(columns, values, strict=False))
        except csv.Error as error:  # a quotation mark that is never closed
            raise MienError(f"{file}:{table.line_num}: {error}") from error

    def _row(self, line: dict[str, str]) -> ListedPicture | None:
        if "expression" not in line:
            raise ValueError("the line ends before its label")
        label = self._label(line["expression"])
        targets = self._targets(lambda name: line.get(name, ""))
        if label is None and not targets:
            return None
        try:
            x, y, width, height = (int(float(line[name])) for name in _COLUMNS[1:5])
        except (ValueError, OverflowError) as error:
            raise ValueError("its box is not of numbers") from error
        if width <= 0 or height <= 0:
            raise ValueError(f"the box of {width}×{height} is empty")
        name = line["subDirectory_filePath"]
        box = (x, y, width, height)
        return ListedPicture(self.pictures / name, -1 if label is None else label, name, box, targets=targets)

    def _targets(self, word: Callable[[str], str]) -> dict[str, np.ndarray]:
        """The values of "valence" and "arousal", where they are wanted and somebody gave them."""
        targets = {}
        for output in self.further:
            try:
                value = float(word(output.name))
            except ValueError as error:
                raise ValueError(f"its {output.name} is not a number") from error
            if value != -2 and not -1 <= value <= 1:
                raise ValueError(f"its {output.name}, {value:g}, is neither in [-1, 1] nor -2")
            if value != -2:
                targets[output.name] = np.float32([value])
        return targets

    @staticmethod
    def _folder(folder: Path) -> Iterator[tuple[str, Path]]:
        """A line is the file of a label, and a picture without one."""
        labelled = {file.name.removesuffix("_exp.npy") for file in folder.glob("annotations/*_exp.npy")}
        shown = {file.stem for file in folder.glob("images/*.jpg")}
        for name in sorted(labelled | shown, key=lambda name: (len(name), name)):
            file = folder / "annotations" / f"{name}_exp.npy"
            yield str(file), file

    def _annotated(self, file: Path) -> ListedPicture | None:
        name = file.name.removesuffix("_exp.npy")

        def word(kind: str) -> str:
            return str(np.load(file.with_name(f"{name}_{kind}.npy"), allow_pickle=False).item())

        try:
            label = self._label(word("exp").removesuffix(".0"))
            targets = self._targets(lambda kind: word(kind[:3]))
        except FileNotFoundError as error:
            raise ValueError("no such file, but there is a picture of that number") from error
        except (OSError, EOFError) as error:
            raise ValueError("damaged or cut short") from error
        if label is None and not targets:
            return None
        picture = file.parents[1] / "images" / f"{name}.jpg"
        return ListedPicture(picture, -1 if label is None else label, name, targets=targets)
