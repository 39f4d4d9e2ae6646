"""One labelled picture."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from mien.data.video import Frame
from mien.errors import ReadError
from mien.faces.picture import open_picture


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """A picture of one face, and what people say it shows.

    source: a path, a file's bytes, an array (H, W, 3) uint8 RGB, or a frame of a video; decoded on demand.
    target: (C,) float32, the share of the votes that each class has; sums to 1, or to 0 where nobody said.
    split: the name of the split that it is of.
    label: the class that counts as right when one must; the first largest of `target` unless the set's rule differs,
        and -1 where nobody said.
    subject: who is in the picture, where the set says so.
    name: where the row stands, for messages.
    box: x, y, width, height in pixels of the part of the picture that the row is about; without it, all of it.
    units: (U,) float32, the action units: 1 where one shows, 0 where it does not, -1 where nobody said.
    groups: what else the set says of the person, such as {"sex": "female"}, to group answers by.
    number: of the picture in the set as its makers number it, and -1 where nobody does.
    targets: what the set says of further outputs, by their names, of the shape that the output has; NaN, or no entry,
        where nobody said.
    """

    source: str | os.PathLike[str] | bytes | np.ndarray | Frame
    target: np.ndarray
    split: str
    subject: str | None = None
    label: int = -1
    name: str = ""
    box: tuple[int, int, int, int] | None = None
    units: np.ndarray | None = None
    groups: Mapping[str, str] = field(default_factory=dict)
    number: int = -1
    targets: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self):
        if self.label < 0 and self.target.any():
            object.__setattr__(self, "label", int(self.target.argmax()))

    def image(self) -> np.ndarray:
        """The picture, upright, (H, W, 3) uint8 RGB, or the part of it within the box.

        Raises ReadError, naming the row, where it cannot be read, or the box lies outside of it.
        """
        return self.cut(self.whole())

    def whole(self) -> np.ndarray:
        """All of the picture, whatever the box, upright, (H, W, 3) uint8 RGB; ReadError where it cannot be read."""
        try:
            return self.source.image() if isinstance(self.source, Frame) else open_picture(self.source)
        except ReadError as error:
            raise ReadError(self.name or error.source, error.reason) from error

    def cut(self, image: np.ndarray) -> np.ndarray:
        """The part of the whole picture (H, W, 3) within the box; ReadError where that is outside."""
        if self.box is None:
            return image
        x, y, width, height = self.box
        part = image[max(0, y) : max(0, y + height), max(0, x) : max(0, x + width)]
        if not part.size:
            sides = f"{image.shape[1]}×{image.shape[0]}"
            raise ReadError(
                self.name or "picture", f"the box {x}, {y}, {width}×{height} is outside the picture, {sides}"
            )
        return part
