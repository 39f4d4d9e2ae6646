"""Aff-Wild2: videos, labelled frame by frame."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mien.data.dataset import DataSet
from mien.data.listing import find, read_text
from mien.data.row import Row
from mien.data.video import SUFFIXES as VIDEOS
from mien.data.video import Frame
from mien.errors import MienError, ReadError, require
from mien.faces.picture import SUFFIXES
from mien.labels import ORDERS
from mien.outputs import VALENCE_AROUSAL

_NAMES = ("Neutral", "Anger", "Disgust", "Fear", "Happiness", "Sadness", "Surprise")


class AffWild2(DataSet):
    """Frames of videos, each with an expression, action units, valence and arousal, or some of these.

    path: the folder.
    action_units, valence_arousal: read them, too, and the frames that have nothing else; False.
    expressions, units, affect, frames, videos: the folders within; by default as below, or without `annotations/`.
    check: decode each picture once, to leave out the unreadable and to count the repeated; True.

    `annotations/EXPR_Set/Train_Set/VIDEO.txt` names the seven expressions in its first line, in the order of
    mien.labels.ORDERS["affwild2"], and every other line has the number of one. `annotations/AU_Set/Train_Set/VIDEO.txt`
    names action units, and has 0 or 1 for each. `annotations/VA_Set/Train_Set/VIDEO.txt` has "valence,arousal", then a
    number in [-1, 1] for each. -1 means that nobody labelled a frame, as -5 does of valence and arousal, and a number
    above 6 ("Other") is no expression here. The split of Train_Set and Training_Set is "train", that of Validation_Set
    is "validation". The makers publish counts of three sets together, of which the third has no labels, so nothing is
    compared.

    The n-th line after the first is of `cropped_aligned/VIDEO/0000n.jpg`. A frame without a picture is one in which no
    face was found, and is left out. The subject of a row is the video, and its number that of the frame, from 0.

    Without `cropped_aligned`, the videos themselves are read (`mien[video]`): VIDEO.mp4 or .avi, anywhere in `videos`,
    or in `batch1` and `batch2`. Such a frame is all of the scene; `mien data prepare` finds its face and cuts it out,
    once. Of VIDEO_left and VIDEO_right, where there is only VIDEO.mp4, the face is in that half of it (*inferred*).

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
        valence_arousal: bool = False,
        affect: str | None = None,
        frames: str | None = None,
        videos: str | None = None,
        check: bool = True,
    ):
        super().__init__(check)
        self.path = Path(path)
        self.videos: dict[str, Path] | None = None
        if videos or not (frames or (self.path / "cropped_aligned").exists()):
            self.videos = _find_videos(self.path, videos)
        else:
            self.frames = find(self.path, frames or "cropped_aligned")
        kinds = {"EXPR_Set": expressions} | ({"AU_Set": units} if action_units else {})
        if valence_arousal:
            kinds["VA_Set"], self.further = affect, VALENCE_AROUSAL
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
            numbers = {kind: self._numbers(kind, file, errors) for kind, file in files.items()}
            yield from errors
            length = max(map(len, numbers.values()))
            if self.videos is not None:
                shown = self._film(video, length)
                missing = f"no video {video}"
            else:
                shown = self._folder(self.frames / video)
                missing = f"no folder {self.frames / video}"
            if shown is None:
                yield ReadError(next(iter(files.values())), missing)
                continue
            for picture, frame in shown:
                if not 0 <= frame < length:
                    which = " and ".join(map(str, files.values()))
                    yield ReadError(picture, f"no line of {which} is of this frame")
                    continue
                said = {kind: lines[frame] for kind, lines in numbers.items() if frame < len(lines)}
                label = int(said["EXPR_Set"][0]) if "EXPR_Set" in said else -1
                units = said.get("AU_Set", np.full(len(self.units), -1, np.float32)) if self.units else None
                affect = dict(zip(("valence", "arousal"), said.get("VA_Set", np.zeros((0, 1)))[:, None], strict=False))
                affect = {name: value for name, value in affect.items() if np.isfinite(value).all()}
                if label >= 0 or affect or (units is not None and (units >= 0).any()):
                    said = {"units": units, "targets": affect, "number": frame}
                    yield Row(picture, targets[label], split, video, label, str(picture), **said)

    @staticmethod
    def _folder(folder: Path) -> list[tuple[Path, int]] | None:
        """The pictures, and the frame that each is of; -1 for one that is of none."""
        if not folder.is_dir():
            return None
        pictures = [
            path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES and path.name[0] != "."
        ]
        return [(path, int(path.stem) - 1 if path.stem.isdecimal() else -1) for path in pictures]

    def _film(self, video: str, length: int) -> Iterator[tuple[Frame, int]] | None:
        """As many frames as there are lines; reading one beyond its end is an error."""
        name, _, side = video.rpartition("_")
        if video in self.videos or side not in ("left", "right"):
            name, side = video, ""
        if name not in self.videos:
            return None
        return ((Frame(self.videos[name], i, side), i) for i in range(length))

    def _numbers(self, kind: str, file: Path, errors: list[ReadError]) -> np.ndarray:
        """(frames, 1) classes, (frames, U) units, or (frames, 2) valence and arousal, as float32.

        A label that is missing or bad is -1, of valence and arousal NaN.
        """
        head, *lines = read_text(file).splitlines() or [""]
        named = _fields(head)
        if kind == "VA_Set":
            return self._affect(file, named, lines, errors)
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

    @staticmethod
    def _affect(file: Path, named: list[str], lines: list[str], errors: list[ReadError]) -> np.ndarray:
        numbers = np.full((len(lines), 2), np.nan, np.float32)
        if named != ["valence", "arousal"]:
            errors.append(ReadError(f"{file}:1", f"{','.join(named)!r} is not valence,arousal"))
            return numbers
        for i, line in enumerate(lines):
            try:
                values = np.array([float(field) for field in _fields(line)])
            except ValueError:
                values = np.array([])
            known = values != -5
            if values.shape != (2,) or not (np.abs(values[known]) <= 1).all():
                errors.append(ReadError(f"{file}:{i + 2}", f"{line!r} is not two numbers from -1 to 1, or -5"))
            else:
                numbers[i] = np.where(known, values, np.nan)
        return numbers


def _find_videos(root: Path, folder: str | None) -> dict[str, Path]:
    names = [folder] if folder else ["videos", "batch1", "batch2"]
    if not any((root / name).is_dir() for name in names):
        find(root, *([folder] if folder else ["cropped_aligned", *names]))  # says what is missing
    require("av", "video")
    files = sorted(file for name in names for file in (root / name).rglob("*") if file.suffix.lower() in VIDEOS)
    return {file.stem: file for file in files if not file.name.startswith(".")}


def _fields(line: str) -> list[str]:
    return [field.strip() for field in line.strip().split(",")]
