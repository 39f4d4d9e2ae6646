"""A labelled picture as a face and a target."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from mien.data import Row
from mien.faces import crop

GREY48 = {
    "align": "arcface112",
    "resize": [{"size": 48, "interpolation": "auto"}, {"size": 112, "interpolation": "auto"}],
    "input_size": 112,
    "color": "grey",
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "trained_on": ["as is", "arcface112"],
}
"""Luma at 48 pixels, enlarged: what small grey training pictures hold, and all that is shown of larger ones."""


LABEL_SHARES = {"votes": 0.0, "both": 0.5, "label": 1.0}
"""How much of a target is the label, and not the votes."""


class Crops(Dataset):
    """Rows as (face uint8 (112, 112, 3), target float32 (C,), label int64), and with `further` what that says of a row:
    targets of further outputs by name, float32, NaN where unknown.

    The key of an item is its number, or that and a chance in [0, 1). Where a row has landmarks and the chance is
    below `aligned` the crop is aligned to them, otherwise it is the whole picture.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        preprocess: Mapping[str, Any],
        landmarks: np.ndarray | None = None,
        aligned: float = 0.0,
        label_share: float = 0.0,
        further: Callable[[Row], dict[str, np.ndarray]] | None = None,
    ):
        self.rows, self.preprocess, self.landmarks = rows, preprocess, landmarks
        self.aligned, self.label_share, self.further = aligned, label_share, further

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: int | tuple[int, float]) -> tuple[Any, ...]:
        i, view = (key[0], self.view(key[1])) if isinstance(key, tuple) else (key, 0)
        row = self.rows[i]
        landmarks = None
        if view and not np.isnan(self.landmarks[i]).any():
            landmarks = self.landmarks[i]
        image = row.image()
        try:
            face = crop(image, self.preprocess, landmarks)
        except ValueError:  # landmarks that cannot be a face
            face = crop(image, self.preprocess)
        return torch.from_numpy(np.ascontiguousarray(face)), *self.truth(i)

    def view(self, chance: float) -> int:
        """0 as it is, 1 aligned."""
        return int(self.landmarks is not None and chance < self.aligned)

    def truth(self, i: int) -> tuple[Any, ...]:
        """All of an item but the face."""
        row = self.rows[i]
        further = (self.further(row),) if self.further else ()
        return torch.from_numpy(self.target(row)), row.label, *further

    def target(self, row: Row) -> np.ndarray:
        """(C,) float32, what is learned of a row."""
        if not self.label_share or row.label < 0:
            return row.target
        label = np.eye(len(row.target), dtype=np.float32)[row.label]
        return (1 - self.label_share) * row.target + self.label_share * label
