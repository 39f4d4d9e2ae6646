"""Small pictures with titles, in rows on a sheet."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIDE = 224
"""Pixels of a panel."""

_MARGIN, _TITLE, _LETTERS, _LEGEND = 12, 26, 15, 62
_BAR, _SMALL = 10, 12  # of a legend: the height of the colours, and of what is written under them
_WHITE = 0.86  # how much of a dropped token is white
_SHADOW = 0.45  # of a map's light, what the darkest pixel of the face below leaves
_FACE = 0.2  # of a map is the face itself, so that it is seen where the map is dark
_LINE = (90, 90, 90)
_FOR, _AGAINST = (255, 110, 0), (20, 100, 255)  # colours of what speaks for an answer, and against it
_GREY = 190


@dataclass(frozen=True)
class Legend:
    """What the colours of a panel stand for: the values at both ends, and a few words.

    colours: (1, n, 3) uint8 RGB, from the lowest value to the highest; none where the words alone say it.
    """

    words: str
    low: str = ""
    high: str = ""
    colours: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Panel:
    """A picture with a few words above it, and what its colours mean below.

    title: the words.
    picture: (SIDE, SIDE, 3) uint8 RGB; SIDE is 224.
    legend: of the colours; None: there is none.
    """

    title: str
    picture: np.ndarray
    legend: Legend | None = None


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


def signed(crop: np.ndarray, values: np.ndarray, most: float) -> np.ndarray:
    """The face in grey, orange where values (H, W) are above 0 and blue where they are below, in full at ±`most`.

    Values lie at the middles of H × W cells, and are linear in between.
    """
    smooth = cv2.resize(np.ascontiguousarray(values, np.float32), (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
    return _tint(_in_grey(face(crop)), smooth / max(most, 1e-12))


def signed_legend(words: str, most: float) -> Legend:
    """The legend of `signed`."""
    ramp = _tint(np.full((1, SIDE, 3), _GREY, np.float32), np.linspace(-1, 1, SIDE, dtype=np.float32)[None])
    return Legend(words, percent(-most), percent(most), ramp)


def heat_legend(words: str, most: float) -> Legend:
    """The legend of `heat`."""
    ramp = np.linspace(0, 255, SIDE).astype(np.uint8)[None]
    return Legend(words, "0", percent(most), cv2.applyColorMap(ramp, cv2.COLORMAP_INFERNO)[..., ::-1])


def percent(value: float) -> str:
    """A share in percent, with two digits that count; 0 for less than a millionth."""
    if abs(value) < 1e-6:
        return "0%"
    return f"{100 * value:.2g}%" if abs(value) < 0.0995 else f"{value:.0%}"


def sheet(rows: Sequence[Sequence[Panel]], title: str = "") -> Image.Image:
    """Rows of panels on a white page, each panel under its title.

    rows: panels from left to right; one panel at least.
    title: of the page, above all rows; "": it has none.

    Returns a Pillow image, as large as the panels need.
    """
    step, header = SIDE + _MARGIN, _TITLE if title else 0
    downs = [SIDE + _MARGIN + _TITLE + _LEGEND * any(panel.legend for panel in row) for row in rows]
    width = max(map(len, rows)) * step + _MARGIN
    page = Image.new("RGB", (width, header + sum(downs) + _MARGIN), "white")
    brush = ImageDraw.Draw(page)

    def write(text: str, left: int, bottom: int, wide: int, size: int = _LETTERS, anchor: str = "ls") -> None:
        while brush.textlength(text, ImageFont.load_default(size)) > wide and size > 8:
            size -= 1
        brush.text((left, bottom), text, "black", ImageFont.load_default(size), anchor=anchor)

    def explain(legend: Legend, left: int, top: int) -> None:
        if legend.colours is not None:
            page.paste(Image.fromarray(legend.colours).resize((SIDE, _BAR)), (left, top + 4))
            write(legend.low, left, top + 4 + _BAR + _SMALL, SIDE // 2, _SMALL)
            write(legend.high, left + SIDE, top + 4 + _BAR + _SMALL, SIDE // 2, _SMALL, "rs")
        for i, line in enumerate(_broken(legend.words, brush)):
            write(line, left, top + 4 + (i + 2) * _SMALL + _BAR * (legend.colours is not None) - 1, SIDE, _SMALL - 1)

    if title:
        write(title, _MARGIN, _MARGIN + _TITLE - 6, width - 2 * _MARGIN)
    for y, row in enumerate(rows):
        for x, panel in enumerate(row):
            left, top = _MARGIN + x * step, header + sum(downs[:y]) + _MARGIN + _TITLE
            write(panel.title, left, top - 6, SIDE)
            brush.rectangle((left - 1, top - 1, left + SIDE, top + SIDE), outline=_LINE)
            page.paste(Image.fromarray(panel.picture), (left, top))
            if panel.legend:
                explain(panel.legend, left, top + SIDE)
    return page


def _in_grey(picture: np.ndarray) -> np.ndarray:
    return (picture @ np.array((0.299, 0.587, 0.114), np.float32))[..., None].repeat(3, -1)


def _tint(grey: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Grey (H, W, 3) with so much of a colour, -1 to 1 (H, W): the second one below 0."""
    strength = (0.75 * np.abs(shares).clip(0, 1))[..., None]
    colour = np.where(shares[..., None] > 0, np.float32(_FOR), np.float32(_AGAINST))
    return np.rint((1 - strength) * grey + strength * colour).astype(np.uint8)


def _broken(words: str, brush: ImageDraw.ImageDraw) -> list[str]:
    """Words on lines of a panel's width."""
    lines, font = [""], ImageFont.load_default(_SMALL - 1)
    for word in words.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and brush.textlength(longer, font) > SIDE:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


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
