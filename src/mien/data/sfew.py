"""SFEW 2.0, Static Facial Expressions in the Wild."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from mien.data.dataset import DataSet
from mien.data.folder import Folder
from mien.data.row import Row
from mien.errors import MienError, ReadError
from mien.labels import ORDERS

_PUBLISHED = {"train": (178, 66, 98, 198, 150, 172, 96), "validation": (77, 23, 47, 73, 86, 73, 57)}


class SFEW(DataSet):
    """Frames of films: `Train/Angry/picture`, `Val/Angry/picture`, seven expressions.

    path: the folder. Those of the splits are the ones in it whose names begin so: `Train_Aligned_Faces` and
        `Val_Aligned_Faces`, too, which hold fewer pictures. What else is there (Test has no labels) is left alone.
    check: decode each picture once, to leave out the unreadable and to count the repeated; True.

    Raises MienError where there is no such folder, none of a split in it, or two of one split.

    Paper: Dhall et al., Video and Image Based Emotion Recognition Challenges in the Wild: EmotiW 2015.
    """

    labels = ORDERS["sfew"]

    def __init__(self, path: str, check: bool = True):
        super().__init__(check)
        self.path = Path(path)
        if not self.path.is_dir():
            raise MienError(f"{path}: no such folder")
        self.folders: dict[str, Folder] = {}
        for split, beginning in (("train", "train"), ("validation", "val")):
            found = [folder for folder in sorted(self.path.iterdir()) if folder.name.lower().startswith(beginning)]
            if len(found) > 1:
                raise MienError(f"{path}: {' and '.join(folder.name for folder in found)} are both of {split!r}")
            if found:
                self.folders[split] = Folder(str(found[0]), labels="sfew", check=False)
                if self.folders[split].splits != ("all",):
                    raise MienError(f"{found[0]}: not a tree of label/picture")
                if found[0].name.lower() == beginning:
                    self.published = {**self.published, split: _PUBLISHED[split]}
        self.splits = tuple(self.folders)
        if not self.splits:
            raise MienError(f"{path}: no folder Train or Val there")

    def __str__(self) -> str:
        return str(self.path)

    def read(self, split: str) -> Iterator[Row | ReadError]:
        for row in self.folders[split].read("all"):
            yield row if isinstance(row, ReadError) else replace(row, split=split)
