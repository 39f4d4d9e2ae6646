"""How large a picture is shown to a detector: its scale, and overlapping tiles where one look does not hold it."""

from dataclasses import dataclass

import cv2
import numpy as np

LOOK = 1024 * 768
"""Pixels of the largest look, padding included: it bounds the memory that a look takes, and the largest tile."""

STEP = 32
"""The sides of a look are padded to a multiple of it."""

_EACH = 50_000  # what a look costs beside its pixels, as pixels


@dataclass(frozen=True, slots=True)
class TilePlan:
    """Overlapping tiles that cover a picture.

    cost: pixels of all of them, padding included. tiles: left, top, right, bottom of each, in pixels.
    """

    cost: int
    tiles: list[tuple[int, int, int, int]]


def padded(pixels: float) -> int:
    """The next multiple of STEP, at least one."""
    return max(1, -int(-pixels // STEP)) * STEP


def fit(width: int, height: int, scale: float) -> float:
    """The largest scale up to `scale` at which a picture of width × height pixels is one look of at most LOOK pixels.

    A strip one pixel high is padded to 32, so that its own pixels do not say what it costs.
    """
    while (size := padded(round(width * scale)) * padded(round(height * scale))) > LOOK:
        scale *= min(0.999, (LOOK / size) ** 0.5)
    return scale


def plan(width: int, height: int, overlap: int) -> TilePlan:
    """The cheapest even cut of width × height pixels into tiles of at most LOOK pixels.

    overlap: pixels that neighbours share, so that a face no larger lies whole in one of them; 0 to 160.
    """
    if height > width:  # count along the shorter side: a strip has millions of tiles along the other
        turned = plan(height, width, overlap)
        return TilePlan(turned.cost, [(left, top, right, bottom) for top, left, bottom, right in turned.tiles])
    best: tuple[int, int, int] | None = None
    rows = 0
    while best is None or (height > 256 * rows):
        rows += 1
        tall = padded((height + (rows - 1) * overlap) / rows)
        widest = LOOK // tall // STEP * STEP
        if widest >= 3 * overlap and widest:
            columns = max(1, -int(-(width - overlap) // (widest - overlap)))
            wide = padded((width + (columns - 1) * overlap) / columns)
            cost = rows * columns * (wide * tall + _EACH)
            best = min(best or (cost, rows, columns), (cost, rows, columns))
    cost, rows, columns = best
    down, across = _cut(height, rows, overlap), _cut(width, columns, overlap)
    return TilePlan(cost, [(left, top, right, bottom) for top, bottom in down for left, right in across])


def _cut(length: int, count: int, overlap: int) -> list[tuple[int, int]]:
    """`count` stretches, equal to a pixel, that cover `length` pixels; each shares `overlap` of them with the next."""
    each = -(-(length + (count - 1) * overlap) // count)
    starts = [min(i * (each - overlap), length - each) for i in range(count)]
    return [(start, start + each) for start in starts]


def whole_in(box: np.ndarray, tile: tuple[int, int, int, int], width: int, height: int) -> bool:
    """Whether a box (x, y, width, height) ends within a tile, except where the picture of width × height ends, too."""
    left, top, right, bottom = tile
    x, y, w, h = box
    low = (left == 0 or x >= left) and (top == 0 or y >= top)
    return bool(low and (right == width or x + w <= right) and (bottom == height or y + h <= bottom))


def shrink(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """image (H, W, 3) uint8 brought to height × width, no larger than it is: halved while it can be, then linearly.

    This is as good as averaging over areas for what a detector sees, at a tenth of the time.
    """
    while image.shape[0] >= 2 * height and image.shape[1] >= 2 * width:
        rows, columns = image.shape[0] // 2, image.shape[1] // 2
        image = cv2.resize(image[: 2 * rows, : 2 * columns], (columns, rows), interpolation=cv2.INTER_AREA)
    if image.shape[:2] == (height, width):
        return image
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
