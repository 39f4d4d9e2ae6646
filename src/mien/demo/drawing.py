"""Drawn faces, an example for those who have no photograph at hand."""

from PIL import Image, ImageDraw, ImageFilter

_PAPER, _SHIRT, _SKIN, _SHADE = (196, 209, 222), (60, 90, 140), (226, 178, 148), (190, 140, 112)
_HAIR, _NOSE, _LIPS, _MOUTH = (70, 48, 36), (212, 160, 130), (150, 40, 50), (80, 20, 30)
_WHITE, _IRIS, _PUPIL = (250, 250, 250), (60, 80, 60), (10, 10, 10)


def drawing(side: int = 360) -> Image.Image:
    """Three faces in a row, each on a square of `side` pixels: one laughs, one is surprised, one is cross."""
    page = Image.new("RGB", (3 * side, side))
    for i, mood in enumerate(("laughing", "surprised", "cross")):
        page.paste(_face(side, mood), (i * side, 0))
    return page


def _face(side: int, mood: str) -> Image.Image:
    scale = side / 240  # drawn on 240 × 240
    picture = Image.new("RGB", (side, side), _PAPER)
    brush = ImageDraw.Draw(picture)

    def box(x: float, y: float, rx: float, ry: float) -> list[float]:
        return [(x - rx) * scale, (y - ry) * scale, (x + rx) * scale, (y + ry) * scale]

    def oval(x: float, y: float, rx: float, ry: float, colour: tuple[int, int, int]) -> None:
        brush.ellipse(box(x, y, rx, ry), fill=colour)

    oval(120, 245, 105, 55, _SHIRT)
    brush.rectangle(box(120, 197, 22, 18), fill=_SHADE)
    oval(120, 105, 72, 84, _HAIR)
    oval(120, 122, 58, 74, _SKIN)
    oval(120, 60, 54, 30, _HAIR)
    lids = {"laughing": 4, "surprised": 10, "cross": 5}[mood]
    for x in (96, 144):
        oval(x, 116, 13, lids, _WHITE)
        oval(x, 116, 6, min(lids, 6), _IRIS)
        oval(x, 116, 3, 3, _PUPIL)
        if mood == "cross":
            inner, outer = (x + 14, x - 15) if x < 120 else (x - 14, x + 15)
            brush.line([(outer * scale, 97 * scale), (inner * scale, 109 * scale)], _HAIR, round(5 * scale))
        else:
            brush.arc(box(x, 104 if mood == "laughing" else 100, 17, 12), 200, 340, _HAIR, round(4 * scale))
    brush.polygon([(x * scale, y * scale) for x, y in ((120, 118), (110, 144), (130, 144))], fill=_NOSE)
    for x in (113, 127):
        oval(x, 145, 5, 3, _SHADE)
    if mood == "laughing":
        brush.chord(box(120, 158, 30, 18), 0, 180, _LIPS)
        brush.chord(box(120, 158, 26, 11), 0, 180, _WHITE)
        for x in (86, 154):
            brush.arc(box(x, 155, 14, 21), *((300, 360) if x < 120 else (180, 240)), _SHADE, round(2 * scale))
    elif mood == "surprised":
        oval(120, 168, 13, 16, _LIPS)
        oval(120, 168, 9, 12, _MOUTH)
    else:
        brush.arc(box(120, 176, 22, 14), 205, 335, _LIPS, round(5 * scale))
    return picture.filter(ImageFilter.GaussianBlur(1.2 * scale))
