"""Aff-Wild2: videos, labelled frame by frame."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mien.data.dataset import DataSet
from mien.data.listing import find, read_text
from mien.data.row import Row
from mien.errors import MienError, ReadError
from mien.faces.picture import SUFFIXES
from mien.labels import ORDERS

_NAMES = ("Neutral", "Anger", "Disgust", "Fear", "Happiness", "Sadness", "Surprise")


class AffWild2(DataSet):
    """Frames of videos, each with an expression, with action units, or with both.

    `annotations/EXPR_Set/Train_Set/VIDEO.txt` names the seven expressions in its first line, in the order of
    mien.labels.ORDERS["affwild2"], and has the number of one in every other; `annotations/AU_Set/Train_Set/VIDEO.txt`
    names action units and has 0 or 1 for each. The n-th line after the first is of `cropped_aligned/VIDEO/0000n.jpg`; a
    frame without a picture is one in which no face was found, and is left out. -1 means that nobody labelled it, and a
    later number than 6 ("Other") is no expression here. The split of Train_Set and Training_Set is "train", that of
    Validation_Set "validation".

    action_units: tell of them, too, and of the frames that have nothing else.
    expressions, units, frames: the folders; by default as above, or without `annotations/`.

    Papers: Kollias and Zafeiriou, Expression, Affect, Action Unit Recognition: Aff-Wild2, 2019; Analysing Affective
    Behavior in the Second ABAW2 Competition, 2021, for the twelve action units.
    """

    labels = ORDERS["affwild2"]

    def __init__(
        self,
        path: str,
        action_units: bool = False,
        expressions: str | None = None,
        units: str | None = None,
        frames: str = "cropped_aligned",
        check: bool = True,
    ):
        super().__init__(check)
        self.path = Path(path)
        self.frames = find(self.path, frames)
        kinds = {"EXPR_Set": expressions} | ({"AU_Set": units} if action_units else {})
        self.files: dict[str, dict[str, dict[str, Path]]] = {}  # by split, video and kind
        for kind, folder in kinds.items():
            names = (folder,) if folder else (f"annotations/{kind}", kind)
            for file in sorted(find(self.path, *names).glob("*/*.txt")):
                split = next((s for s in ("train", "validation") if file.parent.name.lower().startswith(s[:3])), None)
                if split:
                    self.files.setdefault(split, {}).setdefault(file.stem, {})[kind] = file
        self.splits = tuple(self.files)
        if action_units:
            files = [
                kinds["AU_Set"] for videos in self.files.values() for kinds in videos.values() if "AU_Set" in kinds
            ]
            if not files:
                raise MienError(f"{path}: no action units there")
            self.units = tuple(_fields(read_text(min(files)).partition("\n")[0]))

    def __str__(self) -> str:
        return str(self.path)

    def read(self, split: str) -> Iterator[Row | ReadError]:
        targets = np.concatenate(
            [np.eye(len(self.labels), dtype=np.float32), np.zeros((1, len(self.labels)), np.float32)]
        )
        for video, files in sorted(self.files[split].items()):
            errors: list[ReadError] = []
            told = {kind: self._numbers(kind, file, errors) for kind, file in files.items()}
            yield from errors
            folder = self.frames / video
            if not folder.is_dir():
                yield ReadError(next(iter(files.values())), f"no folder {folder}")
                continue
            for picture in sorted(folder.iterdir()):
                if picture.suffix.lower() not in SUFFIXES or picture.name.startswith("."):
                    continue
                frame = int(picture.stem) - 1 if picture.stem.isdecimal() else -1
                if frame < 0 or all(frame >= len(numbers) for numbers in told.values()):
                    which = " and ".join(map(str, files.values()))
                    yield ReadError(picture, f"no line of {which} is of this frame")
                    continue
                label, units = -1, np.full(len(self.units), -1, np.float32)
                if "EXPR_Set" in told and frame < len(told["EXPR_Set"]):
                    label = int(told["EXPR_Set"][frame, 0])
                if "AU_Set" in told and frame < len(told["AU_Set"]):
                    units = told["AU_Set"][frame]
                if label >= 0 or (units >= 0).any():
                    shown = units if self.units else None
                    yield Row(picture, targets[label], split, video, label, str(picture), units=shown)

    def _numbers(self, kind: str, file: Path, errors: list[ReadError]) -> np.ndarray:
        """(frames, 1) classes or (frames, U) units as float32; -1 where there is no label, or a bad one."""
        head, *lines = read_text(file).splitlines() or [""]
        named = _fields(head)
        if kind == "AU_Set":
            fits, width, most, highest = named == list(self.units), len(self.units), 1, 1
        else:  # what is named behind the seven, "Other", is no expression
            fits, width, most, highest = named[: len(_NAMES)] == list(_NAMES), 1, len(_NAMES) - 1, len(named) - 1
        numbers = np.full((len(lines), width), -1, np.float32)
        if not fits:
            wanted = self.units if kind == "AU_Set" else _NAMES
            errors.append(ReadError(f"{file}:1", f"{head!r} is not {','.join(wanted)}"))
            return numbers
        for i, line in enumerate(lines):
            try:
                values = [int(field) for field in _fields(line)]
            except ValueError:
                values = []
            if len(values) != width or min(values) < -1 or max(values) > highest:
                errors.append(ReadError(f"{file}:{i + 2}", f"{line!r} is not {width} of -1 to {highest}"))
            elif max(values) <= most:
                numbers[i] = values
        return numbers


def _fields(line: str) -> list[str]:
    return [field.strip() for field in line.strip().split(",")]
