"""What an explanation is: numbers over a face crop, for one answer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from mien.errors import MienError
from mien.explain.panel import Panel, face, heat, heat_legend, signed, signed_legend

Run = Callable[[np.ndarray], np.ndarray]
"""Face crops (N, S, S, 3) uint8 RGB -> the probability of each label (N, C): `Classifier.run` is one."""


@dataclass(frozen=True, eq=False)
class Explanation:
    """Which parts of a face crop an answer rests on, as one method says.

    method: its name.
    values: (planes, H, W) float32, each plane laid over the whole crop; more than one plane where a network reads
        several levels of maps.
    index: the class that is explained.
    label: its name.
    probability: that of the class, 0 to 1.
    unit: in a few words, what the values are.
    signed: whether values below 0 speak against the answer; otherwise there are none below 0. False by default.
    """

    method: str
    values: np.ndarray
    index: int
    label: str
    probability: float
    unit: str
    signed: bool = False


def mean_colour(crop: np.ndarray) -> np.ndarray:
    """A crop (S, S, 3) uint8 all of its mean colour: a face of which nothing is left."""
    return np.broadcast_to(np.rint(crop.mean((0, 1))).astype(np.uint8), crop.shape)


def answered(probs: np.ndarray, labels: Sequence[str], target: str | None) -> int:
    """The index of the label that is explained: `target`, by default the likeliest. Raises MienError if it has none."""
    if target is None:
        return int(probs.argmax())
    if target not in labels:
        raise MienError(f"the model does not know {target!r}: it knows {', '.join(labels)}")
    return list(labels).index(target)


def on_grid(values: np.ndarray, grid: int) -> np.ndarray:
    """A map (planes, H, W) -> (grid, grid): the mean over its planes, resampled; areas averaged where it shrinks."""
    plane = np.ascontiguousarray(values.mean(0), np.float32)
    how = cv2.INTER_AREA if min(plane.shape) >= grid else cv2.INTER_LINEAR
    return cv2.resize(plane, (grid, grid), interpolation=how)


def draw(crop: np.ndarray, explanation: Explanation) -> list[Panel]:
    """The face and how it is read, then a panel for each plane, on a scale of its own that its legend tells."""
    panels = [Panel(f"{explanation.label} {explanation.probability:.0%}", face(crop))]
    count = len(explanation.values)
    for i, plane in enumerate(_in_cells(explanation.values)):
        title = explanation.method + (f", level {i + 1}" if count > 1 else "")
        most = float(np.abs(plane).max())
        if explanation.signed:
            words = f"{explanation.unit}; blue speaks against it"
            panels.append(Panel(title, signed(crop, plane, most), signed_legend(words, most)))
        else:
            picture = heat(crop, np.arange(plane.size), plane.ravel(), plane.shape)
            panels.append(Panel(title, picture, heat_legend(explanation.unit, most)))
    return panels


def _in_cells(values: np.ndarray, side: int = 28) -> np.ndarray:
    """Values of pixels (planes, H, W) added up in cells, `side` of them or more along a side, so that they are seen."""
    block = max(1, min(values.shape[1:]) // side)
    if block == 1:
        return values
    height, width = (n // block * block for n in values.shape[1:])
    cut = values[:, :height, :width]
    return cut.reshape(len(cut), height // block, block, width // block, block).sum((2, 4))
