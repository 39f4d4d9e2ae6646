"""Draw faces into the picture in which they were read."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mien.faces.face import Face

COLOURS = {
    "neutral": (210, 210, 210),
    "happiness": (240, 228, 66),
    "sadness": (0, 114, 178),
    "surprise": (86, 180, 233),
    "fear": (204, 121, 167),
    "disgust": (0, 158, 115),
    "anger": (213, 94, 0),
    "contempt": (230, 159, 0),
}
"""Of each expression, RGB; they stay apart for the colour-blind as well (Okabe and Ito, 2008)."""

_SHORTEST = 240  # pixels of the shorter side below which a picture is enlarged, to be seen and to hold a label

Corners = tuple[float, float, float, float]  # left, top, right, bottom


def draw(image: np.ndarray, faces: Sequence[Face], names: Sequence[str] = ()) -> Image.Image:
    """The picture with a box and a label for each face, which its name begins where there are names; one of less than
    240 pixels is enlarged."""
    height, width = image.shape[:2]
    zoom = max(1, min(-(-_SHORTEST // min(height, width)), 4096 // max(height, width)))
    picture = Image.fromarray(image).resize((width * zoom, height * zoom), Image.Resampling.BICUBIC)
    brush = ImageDraw.Draw(picture)
    side = (picture.width * picture.height) ** 0.5
    line = max(2, round(side / 350))
    boxes = [_corners(face, zoom, picture.size) for face in faces]
    for face, box in zip(faces, boxes, strict=True):
        brush.rectangle(_grown(box, line), outline="black", width=3 * line)
        brush.rectangle(box, outline=_colour(face), width=line)
    labels: list[Corners] = []
    for face, box, name in zip(faces, boxes, names or [""] * len(faces), strict=True):
        text = f"{name} {face.expression} {face.probability:.0%}".lstrip()
        # as wide as the face, but neither too small to be read nor out of proportion to the picture
        size = np.clip((box[2] - box[0]) / 7, max(12, side / 100), max(14, side / 25))
        size = float(round(size)) if names else size  # in a video few sizes, since each font costs 10 ms
        font = _font(size)
        label = _label_box(brush.textbbox((0, 0), text, font, anchor="lt"), size / 4, box, picture.size, labels, boxes)
        labels.append(label)
        brush.rectangle(label, fill=_colour(face), outline="black", width=max(1, line // 2))
        ink = "black" if np.dot(_colour(face), (0.299, 0.587, 0.114)) > 110 else "white"
        brush.text((label[0] + size / 4, label[1] + size / 4), text, ink, font, anchor="lt")
    return picture


@lru_cache(64)
def _font(size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _colour(face: Face) -> tuple[int, int, int]:
    return COLOURS.get(face.expression, (255, 255, 255))


def _corners(face: Face, zoom: int, size: tuple[int, int]) -> Corners:
    """The box within the picture; all of it where the picture is the face."""
    x, y, width, height = face.box or (0, 0, size[0] / zoom, size[1] / zoom)
    left, top = max(0, x * zoom), max(0, y * zoom)
    right, bottom = min(size[0] - 1, (x + width) * zoom), min(size[1] - 1, (y + height) * zoom)
    return left, top, max(left, right), max(top, bottom)


def _grown(box: Corners, by: float) -> Corners:
    return box[0] - by, box[1] - by, box[2] + by, box[3] + by


def _label_box(
    text: Corners,
    margin: float,
    box: Corners,
    size: tuple[int, int],
    labels: Sequence[Corners],
    boxes: Sequence[Corners],
) -> Corners:
    """Where the label of `box` hides the least: above it, below it, or inside at the bottom or the top."""
    width, height = text[2] + 2 * margin, text[3] + 2 * margin
    left = max(0, min(box[0], size[0] - 1 - width))

    def hidden(label: Corners) -> float:
        out = max(0, -label[1]) + max(0, label[3] - size[1])
        others = 3 * sum(_overlap(label, other) for other in labels)
        return 10 * out * width + others + sum(_overlap(label, face) for face in boxes)

    tops = (box[1] - height, box[3], box[3] - height, box[1])
    return min(((left, top, left + width, top + height) for top in tops), key=hidden)


def _overlap(a: Corners, b: Corners) -> float:
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
