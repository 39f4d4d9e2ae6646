"""Small pictures with titles, in rows on a sheet."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIDE = 224
"""Pixels of a panel."""

_MARGIN, _TITLE, _LETTERS = 12, 26, 15
_WHITE = 0.86  # how much of a dropped token is white
_SHADOW = 0.45  # of a map's light, what the darkest pixel of the face below leaves
_FACE = 0.2  # of a map is the face itself, so that it is seen where the map is dark
_LINE = (90, 90, 90)


@dataclass(frozen=True, eq=False)
class Panel:
    """A picture (SIDE, SIDE, 3) uint8 RGB, and a few words above it."""

    title: str
    picture: np.ndarray


def face(crop: np.ndarray) -> np.ndarray:
    """A face crop (S, S, 3) uint8 at the size of a panel."""
    how = Image.Resampling.BICUBIC if len(crop) < SIDE else Image.Resampling.BOX
    return np.array(Image.fromarray(crop).resize((SIDE, SIDE), how))


def kept(crop: np.ndarray, index: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """The face with all of it whitened but the tokens `index` (K,) of the grid, row-major."""
    return _whiten(face(crop), _cells(_mask(index, grid)))


def heat(
    crop: np.ndarray, index: np.ndarray, values: np.ndarray, grid: tuple[int, int], most: float | None = None
) -> np.ndarray:
    """The face in the colours of values (K,) of the tokens `index` (K,) of the grid, the rest grey and whitened.

    0 is dark, and `most`, by default the greatest value, is bright.
    """
    shown = np.zeros(grid, np.uint8)
    shown.flat[index] = np.rint(255 * values / max(values.max() if most is None else most, 1e-12))
    colours = cv2.applyColorMap(_cells(shown), cv2.COLORMAP_INFERNO)[..., ::-1]
    grey = face(crop) @ np.array((0.299, 0.587, 0.114), np.float32)[:, None]  # (SIDE, SIDE, 1)
    light = (grey - grey.min()) / max(np.ptp(grey), 1)
    lit = np.rint((1 - _FACE) * colours * (_SHADOW + (1 - _SHADOW) * light) + _FACE * grey)
    stays = _cells(_mask(index, grid))
    return _whiten(np.where(stays[..., None], lit, grey).astype(np.uint8), stays)


def sheet(rows: Sequence[Sequence[Panel]], title: str = "") -> Image.Image:
    """Rows of panels on a white page, each under its title, and all of them under that of the page, if it has one."""
    step, down, header = SIDE + _MARGIN, SIDE + _MARGIN + _TITLE, _TITLE if title else 0
    width = max(map(len, rows)) * step + _MARGIN
    page = Image.new("RGB", (width, header + len(rows) * down + _MARGIN), "white")
    brush = ImageDraw.Draw(page)

    def write(text: str, left: int, bottom: int, wide: int) -> None:
        size = _LETTERS
        while brush.textlength(text, ImageFont.load_default(size)) > wide and size > 8:
            size -= 1
        brush.text((left, bottom), text, "black", ImageFont.load_default(size), anchor="ls")

    if title:
        write(title, _MARGIN, _MARGIN + _TITLE - 6, width - 2 * _MARGIN)
    for y, row in enumerate(rows):
        for x, panel in enumerate(row):
            left, top = _MARGIN + x * step, header + y * down + _MARGIN + _TITLE
            write(panel.title, left, top - 6, SIDE)
            brush.rectangle((left - 1, top - 1, left + SIDE, top + SIDE), outline=_LINE)
            page.paste(Image.fromarray(panel.picture), (left, top))
    return page


def _mask(index: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(grid, bool)
    mask.flat[index] = True
    return mask


def _cells(values: np.ndarray) -> np.ndarray:
    """(H, W) -> (SIDE, SIDE): every pixel has the value of the cell that it lies in."""
    rows, columns = (np.arange(SIDE) * count // SIDE for count in values.shape)
    return values[rows[:, None], columns]


def _whiten(picture: np.ndarray, stays: np.ndarray) -> np.ndarray:
    """Pixels outside of `stays` (SIDE, SIDE) go towards white, and a line runs where it ends."""
    white = np.rint(picture + (255 - picture.astype(np.float32)) * _WHITE).astype(np.uint8)
    drawn = np.where(stays[..., None], picture, white)
    edge = np.zeros_like(stays)
    edge[:, 1:] |= stays[:, 1:] != stays[:, :-1]
    edge[1:] |= stays[1:] != stays[:-1]
    drawn[edge] = _LINE
    return drawn
