"""Pictures sorted into folders: split/label/picture."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mien.data.dataset import DataSet
from mien.data.row import Row
from mien.data.spelling import class_order, sort_classes, spell, spell_split
from mien.errors import MienError, ReadError
from mien.faces.formats import KINDS, SUFFIXES, NotOpened, ends
from mien.faces.sources import find_pictures
from mien.labels import EXPRESSIONS


class Folder(DataSet):
    """`root/split/label/picture`, or `root/label/picture` as the one split "all".

    A folder is named after its label as anybody spells it ("happiness", "Happy"), or numbered, counted from 0 where
    there is a folder 0 and from 1 where there is none. Folders of other names are malformed.

    labels: the classes in order, by name, or a data set of mien.labels.ORDERS ("rafdb"); numbered folders need it.
        Without it, the expressions that there is a folder of, in the order of mien.labels.EXPRESSIONS.
    check: decode each picture once, to leave out the unreadable and to count the repeated.

    Raises MienError where root is no such tree.
    """

    def __init__(self, root: str, labels: list[str] | str | None = None, check: bool = True):
        super().__init__(check)
        self.root = Path(root)
        if not self.root.is_dir():
            raise MienError(f"{root}: no such folder")
        top = _folders(self.root)
        if any(_holds_pictures(folder) for folder in top):
            self._splits = {"all": [self.root]}
        else:
            self._splits: dict[str, list[Path]] = {}
            for folder in top:
                if _folders(folder):
                    self._splits.setdefault(spell_split(folder.name), []).append(folder)
        self.splits = tuple(self._splits)
        if not self.splits:
            raise MienError(f"{root}: not a tree of split/label/picture")
        names = {folder.name for tops in self._splits.values() for top in tops for folder in _folders(top)}
        self._first = 0 if any(name.isdecimal() and int(name) == 0 for name in names) else 1
        if labels is not None:
            self.labels = class_order(labels)
            return
        self.labels = sort_classes({spell(name) for name in names} & set(EXPRESSIONS))
        if not self.labels:
            hint = " (its labels are numbered)" if any(name.isdecimal() for name in names) else ""
            raise MienError(f'{root}: no folder is named after an expression{hint}: say labels, such as "rafdb"')

    def __str__(self) -> str:
        return str(self.root)

    def read(self, split: str) -> Iterator[Row | ReadError]:
        missed: list[ReadError] = []
        for top in self._splits[split]:
            for folder in _folders(top):
                pictures = _pictures(folder, missed)
                label = self._label(folder.name)
                if label is None:
                    for picture in pictures:
                        yield ReadError(picture, f"{folder.name!r} is none of {', '.join(self.labels)}")
                    continue
                target = np.eye(len(self.labels), dtype=np.float32)[label]
                for picture in pictures:
                    yield Row(picture, target, split, label=label, name=picture)
        yield from (error for error in missed if not isinstance(error, NotOpened))
        if kinds := sum((error.kinds for error in missed if isinstance(error, NotOpened)), Counter[str]()):
            where = self._splits[split]
            yield NotOpened(where[0] if len(where) == 1 else self.root, kinds)

    def _label(self, name: str) -> int | None:
        if spell(name) in self.labels:
            return self.labels.index(spell(name))
        number = int(name) - self._first if name.isdecimal() else -1
        return number if 0 <= number < len(self.labels) else None


def _folders(parent: Path) -> list[Path]:
    return sorted(path for path in parent.iterdir() if path.is_dir() and not path.name.startswith("."))


def _pictures(folder: Path, missed: list[ReadError]) -> list[str]:
    found = find_pictures(folder, missed=missed)
    return [] if found == [os.fspath(folder)] else found  # what holds no picture is named itself


def _holds_pictures(folder: Path) -> bool:
    return any(ends(path.name) in SUFFIXES or ends(path.name) in KINDS for path in folder.iterdir())
