"""ExpW, Expression in the Wild."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from mien.data.listing import ListedPicture, Listing, find, words
from mien.labels import ORDERS

_PUBLISHED = (3671, 3995, 1088, 30537, 10559, 7060, 34883)  # 91,793 in all


class ExpW(Listing):
    """Faces in pictures from the internet, each cut out by the box that the set gives.

    path: the folder. In its `label/label.lst` or `label.lst` a line is a face: picture, number of the face in it, top,
        left, right and bottom of its box in pixels, how sure the detector was, and the label in the order of
        mien.labels.ORDERS["expw"]. Pictures are in `image/origin`, `origin` or `image`.
    seed: int from 0 on, of the draw of the splits; 0.
    check: decode each picture once, to leave out the unreadable and to count the repeated; True.

    The set has no splits. Three quarters of the pictures are "train", a tenth "validation", the rest "test"; faces of
    one picture stay together. *Inferred*: the papers that say 75/10/15 publish no lists, nor whether they drew faces or
    pictures.

    Raises MienError where the list or the pictures are missing.

    Paper: Zhang et al., From Facial Expression Recognition to Interpersonal Relation Prediction, IJCV 2018.
    """

    labels = ORDERS["expw"]
    splits = ("train", "validation", "test")

    def __init__(self, path: str, seed: int = 0, check: bool = True):
        super().__init__(check)
        self.path = Path(path)
        self.list = find(self.path, "label/label.lst", "label.lst")
        self.pictures = find(self.path, "image/origin", "origin", "image")
        lines = [line for _, line in words(self.list)]
        labels = Counter(line[-1] for line in lines)
        self.compare("its list", [labels[str(i)] for i in range(len(self.labels))], _PUBLISHED)
        names = sorted({line[0] for line in lines})
        cuts = np.round(np.cumsum((0.75, 0.10)) * len(names)).astype(int)
        drawn = np.split(np.random.default_rng(seed).permutation(len(names)), cuts)
        self.split_of = {names[i]: split for split, part in zip(self.splits, drawn, strict=True) for i in part}

    def __str__(self) -> str:
        return str(self.path)

    def lines(self, split: str) -> Iterable[tuple[str, list[str]]]:
        return words(self.list)

    def parse(self, line: list[str], split: str) -> ListedPicture | None:
        name, *rest = line
        if self.split_of[name] != split:
            return None
        try:
            face, top, left, right, bottom, _, label = rest
            x, y, x_end, y_end = (int(word) for word in (left, top, right, bottom))
        except ValueError as error:
            raise ValueError(
                f"{' '.join(line)!r} is not a picture, the number of a face, its box, a number and a label"
            ) from error
        if x_end <= x or y_end <= y:
            raise ValueError(f"the box of {left} to {right}, {top} to {bottom} is empty")
        return ListedPicture(self.pictures / name, self.number(label), f"{name} {face}", (x, y, x_end - x, y_end - y))
