"""RAF-DB's basic set."""

from collections.abc import Iterable
from pathlib import Path

from mien.data.listing import Entry, Listing, find, words
from mien.labels import ORDERS


class RAFDB(Listing):
    """Faces from the internet with seven expressions, each seen by about forty people.

    In `EmoLabel/list_patition_label.txt` (so spelt), or in path itself, a line is a picture and its label, counted from
    1 in the order of mien.labels.ORDERS["rafdb"]: `train_00001.jpg 5`. The name says the split, "train" or "test".

    pictures: their folder, "Image/aligned" or "aligned" by default, where `train_00001_aligned.jpg` or, without such a
        file, `train_00001.jpg` lies.

    Paper: Li et al., Reliable Crowdsourcing and Deep Locality-Preserving Learning for Expression Recognition in the
    Wild, CVPR 2017.
    """

    labels = ORDERS["rafdb"]
    splits = ("train", "test")
    published = {"train": (1290, 281, 717, 4772, 1982, 705, 2524), "test": (329, 74, 160, 1185, 478, 162, 680)}

    def __init__(self, path: str, pictures: str | None = None, check: bool = True):
        super().__init__(check)
        self.path = Path(path)
        self.list = find(self.path, "EmoLabel/list_patition_label.txt", "list_patition_label.txt")
        self.pictures = find(self.path, *([pictures] if pictures else ["Image/aligned", "aligned"]))

    def __str__(self) -> str:
        return str(self.path)

    def lines(self, split: str) -> Iterable[tuple[str, list[str]]]:
        return words(self.list)

    def parse(self, line: list[str], split: str) -> Entry | None:
        name, *rest = line
        if not name.startswith(tuple(f"{each}_" for each in self.splits)) or len(rest) != 1:
            raise ValueError(f"{' '.join(line)!r} is not the name of a picture and its label")
        if not name.startswith(split):
            return None
        label = self.number(rest[0], first=1)
        aligned = self.pictures / f"{Path(name).stem}_aligned{Path(name).suffix}"
        return Entry(aligned if aligned.exists() else self.pictures / name, label, name)
