"""Contact sheets: pictures of a class side by side, to be looked at."""

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mien.faces.align import resize

TILE = 80  # pixels of a tile's side
_COLUMNS, _GAP, _LINE = 12, 4, 24
_PAPER, _INK = (245, 245, 245), (20, 20, 20)


def tile_of(image: np.ndarray) -> np.ndarray:
    """image (H, W, 3) uint8 as wide or as high as a tile, (TILE, TILE, 3), on paper."""
    height, width = image.shape[:2]
    square = np.full((max(height, width),) * 2 + (3,), _PAPER, np.uint8)
    top, left = (max(height, width) - height) // 2, (max(height, width) - width) // 2
    square[top : top + height, left : left + width] = image
    return resize(square, [{"size": TILE}])


def contact_sheet(title: str, parts: Mapping[str, Sequence[np.ndarray]]) -> Image.Image:
    """Tiles (TILE, TILE, 3) uint8 in rows below the heading of their part, and those below the title."""
    step = TILE + _GAP
    rows = sum(-(-len(tiles) // _COLUMNS) for tiles in parts.values())
    size = _COLUMNS * step + _GAP, _LINE * (1 + len(parts)) + rows * step + _GAP
    sheet = Image.new("RGB", size, _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    draw.text((_GAP, _GAP), title, _INK, font, stroke_width=0.4)
    y = _LINE
    for heading, tiles in parts.items():
        draw.text((_GAP, y + _GAP), heading, _INK, font)
        y += _LINE
        for i, tile in enumerate(tiles):
            sheet.paste(Image.fromarray(tile), (_GAP + i % _COLUMNS * step, y + i // _COLUMNS * step))
        y += -(-len(tiles) // _COLUMNS) * step
    return sheet
