"""Pictures sorted into folders: split/class/picture."""

import os
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mien.data.dataset import DataSet
from mien.data.row import Row
from mien.data.spelling import Known, match_names, names_split, spell, spell_split
from mien.errors import MienError, ReadError
from mien.faces.formats import KINDS, SUFFIXES, NotOpened, ends
from mien.faces.sources import find_pictures
from mien.labels import EXPRESSIONS


class Folder(DataSet):
    """`path/split/class/picture`, or `path/class/picture` as the one split "all".

    Splits are folders that are called what anybody calls splits ("train", "val", "test", …), or of whose folders every
    one is called after an expression. The names of the other folders are the classes, read as
    `mien.data.spelling.match_names` says: expressions in any spelling where all are expressions, else as they are. A
    folder of no class is malformed, and reported once.

    path: the folder.
    labels: the classes in order, by name, or a data set of mien.labels.ORDERS ("rafdb"); numbered folders need it, and
        are counted from 0 where there is a folder 0 and from 1 where there is none. Without it, the folders' names.
    check: decode each picture once, to leave out the unreadable and to count the repeated.
    root: what path was called before.

    Raises MienError where path is no such tree.
    """

    def __init__(
        self,
        path: str = "",
        labels: list[str] | str | Known | None = None,
        check: bool = True,
        root: str | None = None,
    ):
        super().__init__(check)
        if root is not None:
            warnings.warn("mien.data.Folder(root=…) is called path now", DeprecationWarning, stacklevel=2)
            path = root
        if not path:
            raise MienError("a folder of pictures needs its path")
        self.path = Path(path)
        if not self.path.is_dir():
            raise MienError(f"{path}: no such folder")
        self._splits = self._find_splits()
        self.splits = tuple(self._splits)
        groups = [
            [folder.name for top in tops for folder in _folders(top) if _shows(folder)]
            for tops in self._splits.values()
        ]
        try:
            self._matched = match_names(groups, labels)
        except MienError as error:
            raise MienError(f"{path}: {error}") from error
        self.labels, self.notes, self.first = self._matched.labels, self._matched.notes, self._matched.first

    def __str__(self) -> str:
        return str(self.path)

    def _find_splits(self) -> dict[str, list[Path]]:
        top = _folders(self.path)
        inner = {folder: _folders(folder) for folder in top}
        named = [folder for folder in top if names_split(folder.name) and inner[folder]]
        if not any(map(_shows, top)):
            raise MienError(f"{self.path}: not a tree of split/class/picture or class/picture")
        if not any(_holds_pictures(folder) for folder in (named or top)):
            names = [folder.name for folders in inner.values() for folder in folders]
            if any(map(names_split, names)):
                raise MienError(f"{self.path}: its splits lie one folder deeper: give {top[0]}")
            if not named and not all(spell(name) in EXPRESSIONS or name.isdecimal() for name in names):
                raise MienError(
                    f"{self.path}: {top[0].name} may be a split or a class: call splits train, validation and test, "
                    "or put the pictures right into the folders of their classes"
                )
            splits: dict[str, list[Path]] = {}
            for folder in top:
                if inner[folder]:
                    splits.setdefault(spell_split(folder.name), []).append(folder)
            return splits
        return {"all": [self.path]}

    def read(self, split: str) -> Iterator[Row | ReadError]:
        missed: list[ReadError] = []
        for top in self._splits[split]:
            for folder in _folders(top):
                pictures = _pictures(folder, missed)
                label = self._matched.label_of.get(folder.name)
                if label is None:
                    if pictures:
                        yield ReadError(str(folder), self._matched.why_none(folder.name), rows=len(pictures))
                    continue
                number = self.labels.index(label)
                target = np.eye(len(self.labels), dtype=np.float32)[number]
                for picture in pictures:
                    yield Row(picture, target, split, label=number, name=picture)
        yield from (error for error in missed if not isinstance(error, NotOpened))
        if kinds := sum((error.kinds for error in missed if isinstance(error, NotOpened)), Counter[str]()):
            where = self._splits[split]
            yield NotOpened(where[0] if len(where) == 1 else self.path, kinds)


def _folders(parent: Path) -> list[Path]:
    """Those that are no program's own, such as .git and __MACOSX."""
    return sorted(path for path in parent.iterdir() if path.is_dir() and not path.name.startswith((".", "__MACOSX")))


def _pictures(folder: Path, missed: list[ReadError]) -> list[str]:
    found = find_pictures(folder, missed=missed)
    return [] if found == [os.fspath(folder)] else found  # what holds no picture is named itself


def _shows(folder: Path) -> bool:
    """Whether there is a picture in it or below, if only one that cannot be opened."""
    missed: list[ReadError] = []
    return bool(_pictures(folder, missed) or missed)


def _holds_pictures(folder: Path) -> bool:
    return any(ends(path.name) in SUFFIXES or ends(path.name) in KINDS for path in folder.iterdir())
