"""RAF-DB's basic set."""

from collections.abc import Iterable
from pathlib import Path

from mien.data.listing import ListedPicture, Listing, find, read_text, words
from mien.errors import MienError
from mien.labels import ORDERS

ATTRIBUTES = {
    "gender": ("male", "female", "unsure"),
    "race": ("Caucasian", "African-American", "Asian"),
    "age": ("0-3", "4-19", "20-39", "40-69", "70+"),
}
"""What each number means in lines 6, 7 and 8 of `train_00001_manu_attri.txt`, in the words of the set's own readme."""


class RAFDB(Listing):
    """Faces from the internet with seven expressions, each seen by about forty people.

    path: the folder. In its `EmoLabel/list_patition_label.txt` (so spelt) or `list_patition_label.txt` a line is a
        picture and its label, counted from 1 in the order of mien.labels.ORDERS["rafdb"]: `train_00001.jpg 5`. The name
        says the split, "train" or "test".
    pictures: their folder within, "Image/aligned" or "aligned" by default, where `train_00001_aligned.jpg` or, without
        such a file, `train_00001.jpg` lies.
    groups: which of "gender", "race" and "age" rows have, as the set's makers saw them, out of the files
        `train_00001_manu_attri.txt` in "Annotation/manual" or "manual"; none by default.
    check: decode each picture once, to leave out the unreadable and to count the repeated; True.

    Raises MienError where the list or a folder is missing, and for another group.

    Paper: Li et al., Reliable Crowdsourcing and Deep Locality-Preserving Learning for Expression Recognition in the
    Wild, CVPR 2017.
    """

    labels = ORDERS["rafdb"]
    splits = ("train", "test")
    published = {"train": (1290, 281, 717, 4772, 1982, 705, 2524), "test": (329, 74, 160, 1185, 478, 162, 680)}

    def __init__(self, path: str, pictures: str | None = None, groups: list[str] | None = None, check: bool = True):
        super().__init__(check)
        self.path = Path(path)
        self.list = find(self.path, "EmoLabel/list_patition_label.txt", "list_patition_label.txt")
        self.pictures = find(self.path, *([pictures] if pictures else ["Image/aligned", "aligned"]))
        self.groups = [groups] if isinstance(groups, str) else list(groups or ())
        for name in self.groups:
            if name not in ATTRIBUTES:
                raise MienError(f"RAF-DB tells no {name!r} of anybody, only {', '.join(ATTRIBUTES)}")
        self.attributes = find(self.path, "Annotation/manual", "manual") if self.groups else None

    def __str__(self) -> str:
        return str(self.path)

    def lines(self, split: str) -> Iterable[tuple[str, list[str]]]:
        return words(self.list)

    def parse(self, line: list[str], split: str) -> ListedPicture | None:
        name, *rest = line
        if not name.startswith(tuple(f"{each}_" for each in self.splits)) or len(rest) != 1:
            raise ValueError(f"{' '.join(line)!r} is not the name of a picture and its label")
        if not name.startswith(split):
            return None
        label = self.number(rest[0], first=1)
        aligned = self.pictures / f"{Path(name).stem}_aligned{Path(name).suffix}"
        picture = aligned if aligned.exists() else self.pictures / name
        return ListedPicture(picture, label, name, groups=self._attributes(Path(name).stem) if self.groups else {})

    def _attributes(self, name: str) -> dict[str, str]:
        file = self.attributes / f"{name}_manu_attri.txt"
        try:
            lines = read_text(file).splitlines()
        except MienError as error:
            raise ValueError(str(error)) from error
        codes = dict(zip(ATTRIBUTES, map(str.strip, lines[5:8]), strict=False))
        known = {name: dict(zip("01234", words, strict=False)) for name, words in ATTRIBUTES.items()}
        if any(codes.get(name) not in words for name, words in known.items()):
            raise ValueError(f"{file}: lines 6 to 8 are not the numbers of {', '.join(ATTRIBUTES)}")
        return {name: known[name][codes[name]] for name in self.groups}
