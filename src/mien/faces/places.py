"""Where labels of faces stand: none covers another one, names a face that it covers, or leaves the picture."""

from collections.abc import Sequence

import numpy as np

OWN = 0.2
"""Of its own face, the largest share that a name may cover."""

Size = tuple[float, float]
"""width, height"""

Corners = tuple[float, float, float, float]
"""left, top, right, bottom"""


def places(
    boxes: Sequence[Corners], short: Sequence[Size], full: Sequence[Size], within: Size, gap: float = 0.0
) -> list[tuple[Corners, bool] | None]:
    """Of each face the place of its label, and whether that is the full one; None where even the short has no room.

    boxes: of the faces, the most important first. short, full: sizes of two labels of each, such as a number, and a
        number with an expression; both the same where there is but one. within: size of the picture. gap: between label
        and box.

    Everybody's short label is placed first, where it covers least of faces. Then, in the same order, the full one takes
    its place where that covers no other face, and of its own no more than `OWN`. The page's `place.js` does the same.
    """
    faces = np.array(boxes, float).reshape(-1, 4)
    found = np.full((len(faces), 4), np.nan)  # of nobody: NaN overlaps nothing
    named = [tuple(a) == tuple(b) for a, b in zip(short, full, strict=True)]
    for i, size in enumerate(short):
        spots = _spots(faces[i], size, within, gap)
        found[i] = _best(spots[~_covered(spots, found).any(1)], faces)
    for i, size in enumerate(full):
        if named[i] or np.isnan(found[i, 0]):
            continue
        others = np.arange(len(faces)) != i
        spots = _spots(faces[i], size, within, gap)
        spots = spots[~_covered(spots, found[others]).any(1) & ~_covered(spots, faces[others]).any(1)]
        left, top, right, bottom = faces[i]
        spots = spots[_covered(spots, faces[i : i + 1])[:, 0] <= OWN * (right - left) * (bottom - top)]
        if len(spots):
            found[i], named[i] = _best(spots, faces), True
    rows = [(row[0], row[1], row[2], row[3]) for row in found.tolist()]
    return [None if np.isnan(row[0]) else (row, name) for row, name in zip(rows, named, strict=True)]


def _spots(box: np.ndarray, size: Size, within: Size, gap: float) -> np.ndarray:
    """(n, 4): above and below the box, inside it, and beside it, as far as the picture has room."""
    (left, top, right, bottom), (width, height) = box.tolist(), size
    tops = (top - gap - height, bottom + gap, bottom - gap - height, top + gap)
    lefts = (left, right - width, (left + right - width) / 2)
    sides = [(x, y) for x in (right + gap, left - gap - width) for y in (top, bottom - height)]
    corners = np.array([(x, y) for y in tops for x in lefts] + sides)
    corners[:, 0] = np.maximum(0, np.minimum(corners[:, 0], within[0] - width))
    spots = np.concatenate([corners, corners + (width, height)], 1)
    return spots[(spots[:, 1] >= 0) & (spots[:, 3] <= within[1]) & (spots[:, 2] <= within[0])]


def _best(spots: np.ndarray, faces: np.ndarray) -> np.ndarray | float:
    """The first of those that cover least of all faces."""
    return spots[_covered(spots, faces).sum(1).argmin()] if len(spots) else np.nan


def _covered(spots: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """(spots, boxes): how much of each box each spot covers."""
    a, b = spots[:, None], boxes[None]
    wide = np.minimum(a[..., 2], b[..., 2]) - np.maximum(a[..., 0], b[..., 0])
    high = np.minimum(a[..., 3], b[..., 3]) - np.maximum(a[..., 1], b[..., 1])
    return np.nan_to_num(np.maximum(0, wide) * np.maximum(0, high))
