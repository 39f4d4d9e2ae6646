"""One labelled picture."""

import os
from dataclasses import dataclass

import numpy as np

from mien.errors import ReadError
from mien.faces.picture import open_picture


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """A picture of one face, and what people say it shows.

    source: a path, a file's bytes, or an array (H, W, 3) uint8 RGB; kept encoded, decoded on demand.
    target: (C,) float32, the share of the votes that each class has; sums to 1.
    label: the class that counts as right when one must; the first largest of `target` unless the set's rule differs.
    subject: who is in the picture, where the set says so. name: where the row stands, for messages.
    """

    source: str | os.PathLike[str] | bytes | np.ndarray
    target: np.ndarray
    split: str
    subject: str | None = None
    label: int = -1
    name: str = ""

    def __post_init__(self):
        if self.label < 0:
            object.__setattr__(self, "label", int(self.target.argmax()))

    def image(self) -> np.ndarray:
        """The picture, upright, (H, W, 3) uint8 RGB; raises ReadError, naming the row, where it cannot be read."""
        try:
            return open_picture(self.source)
        except ReadError as error:
            raise ReadError(self.name or error.source, error.reason) from error
