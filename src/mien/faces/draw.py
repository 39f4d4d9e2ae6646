"""Draw faces into the picture in which they were read, or hide them."""

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from PIL import Image

from mien.faces.face import Face
from mien.faces.overlay import trace
from mien.faces.palette import Colour, colour_of, ink_on
from mien.faces.places import Corners, places

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

_SHORTEST = 240  # pixels of the shorter side below which a picture is enlarged, to be seen and to hold a label
_SMALLEST = 12.0  # pixels of letters that can be read
_CELLS = 4  # of a hidden face, across its shorter side


def draw(
    image: np.ndarray,
    faces: Sequence[Face],
    names: Sequence[str] | None = None,
    *,
    boxes: bool = True,
    labels: bool = True,
    bars: bool = False,
    landmarks: bool = False,
    blur: bool = False,
    axes: bool = True,
    mesh: bool = True,
) -> Image.Image:
    """The picture with its faces marked; one whose shorter side is below 240 pixels is enlarged by a whole factor.

    image: (H, W, 3) uint8 RGB, which stays as it is.
    faces: what was read in it, with boxes in its pixels; a face without a box is all of the picture.
    names: what the label of each face begins with; by default its number from 0, as the row of `mien read` has it,
        where there are several faces, and nothing where there is one.
    boxes: a frame about each face, in the colour of its expression; its width is a fiftieth of the face's.
    labels: the expression and its probability, and "?" behind an expression that is not sure enough to be relied on.
        None covers another, or another face: where a crowd leaves no room for it, the label is the name alone, and
        where it leaves no room for that either, the frame is all there is.
    bars: a bar for each label beside the face, as long as its probability.
    landmarks: a dot on each of the five.
    blur: hide the faces, as `hide` does.
    axes: a cross that shows how each head is turned, where that is known. mesh: the mesh, the irises, and where the
        eyes look, of faces that were read with a landmarker. Both as `mien.faces.overlay.trace` draws them.
    """
    from PIL import ImageDraw  # costs 25 ms, and few readers draw

    height, width = image.shape[:2]
    zoom = max(1, min(-(-_SHORTEST // min(height, width)), 4096 // max(height, width)))
    picture = Image.fromarray(hide(image, faces) if blur else image)
    picture = picture.resize((width * zoom, height * zoom), Image.Resampling.BICUBIC)
    if not blur:
        picture = Image.fromarray(trace(np.asarray(picture), faces, axes=axes, mesh=mesh, zoom=zoom))
    brush = ImageDraw.Draw(picture)
    corners = [_corners(face, zoom, picture.size) for face in faces]
    if names is None:
        names = [str(i) for i in range(len(faces))] if len(faces) > 1 else [""] * len(faces)
    for face, box in zip(faces, corners, strict=True):
        if boxes:
            _frame(brush, box, colour_of(face.expression, face.probabilities))
        if landmarks and face.landmarks is not None:
            _dots(brush, face.landmarks * zoom, box)
    drawn = _labels(brush, picture.size, faces, corners, names) if labels else []
    taken = [place for _, place, *_ in drawn]
    for face, box in zip(faces, corners, strict=True):
        if bars:
            taken.append(_bars(brush, picture.size, face, box, taken, corners))
    for face, place, text, size in drawn:
        colour = colour_of(face.expression, face.probabilities)
        brush.rectangle(place, fill=colour, outline="black", width=max(1, round(size / 15)))
        brush.text((place[0] + size / 4, place[1] + size / 4), text, ink_on(colour), _font(size), anchor="lt")
    return picture


def label_of(face: Face, name: str = "") -> str:
    """What stands at a face, such as "2 happiness 93%"; "fear? 31%" where the model is not sure enough."""
    return f"{name} {answer_of(face)} {_percent(face.probability)}".lstrip()


def answer_of(face: Face) -> str:
    """The expression, marked "?" where the model is not sure enough."""
    return face.expression + "?" * face.doubtful


def _percent(share: float) -> str:
    """A probability in whole percent, of which 0 and 100 are kept for what is exactly so."""
    return "<1%" if 0 < share < 0.005 else ">99%" if 0.995 <= share < 1 else f"{share:.0%}"


def hide(image: np.ndarray, faces: Sequence[Face], *, margin: float = 0.2) -> np.ndarray:
    """The picture with nobody to be recognised: of each face no more is left than four patches across, run together.

    image: (H, W, 3) uint8 RGB, which stays as it is. faces: whom to hide; a face without a box is all of the picture.
    margin: how much more than its box is hidden on each side, as a share of the box (default 0.2).

    Returns (H, W, 3) uint8 RGB. Only found faces are hidden, and a person may be known by more than a face.
    """
    hidden = image.copy()
    for face in faces:
        left, top, right, bottom = cut_of(face, image.shape, margin)
        part = image[top:bottom, left:right]
        if not part.size:
            continue
        height, width = part.shape[:2]
        step = min(height, width) / _CELLS
        small = cv2.resize(
            part, (max(1, round(width / step)), max(1, round(height / step))), interpolation=cv2.INTER_AREA
        )
        hidden[top:bottom, left:right] = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
    return hidden


def cut_of(face: Face, shape: tuple[int, ...], margin: float = 0.0) -> tuple[int, int, int, int]:
    """left, top, right and bottom, in whole pixels of a picture of this shape, of a face and a margin about its box.

    margin: on each side, as a share of the box; what lies outside the picture is cut off.
    """
    height, width = shape[:2]
    if face.box is None:
        return 0, 0, width, height
    x, y, w, h = face.box
    left, top = max(0, int(np.floor(x - margin * w))), max(0, int(np.floor(y - margin * h)))
    right, bottom = min(width, int(np.ceil(x + (1 + margin) * w))), min(height, int(np.ceil(y + (1 + margin) * h)))
    return left, top, max(left, right), max(top, bottom)


def _frame(brush: "ImageDraw", box: Corners, colour: Colour) -> None:
    line = _line(box)
    brush.rectangle(_grown(box, line), outline="black", width=3 * line)
    brush.rectangle(box, outline=colour, width=line)


def _line(box: Corners) -> int:
    """The width of lines about a face."""
    return max(1, round(min(box[2] - box[0], box[3] - box[1]) / 50))


def _dots(brush: "ImageDraw", points: np.ndarray, box: Corners) -> None:
    radius = max(1.5, min(box[2] - box[0], box[3] - box[1]) / 40)
    for x, y in points.tolist():
        for r, colour in ((radius + max(1, radius / 3), "black"), (radius, "white")):
            brush.ellipse((x - r, y - r, x + r, y + r), fill=colour)


def _size(box: Corners, picture: tuple[int, int]) -> float:
    """Of the letters at a face, in few sizes, since each font costs 10 ms."""
    most = max(_SMALLEST + 3, (picture[0] * picture[1]) ** 0.5 / 25)
    return float(round(np.clip((box[2] - box[0]) / 7, _SMALLEST, most)))


def _labels(
    brush: "ImageDraw",
    picture: tuple[int, int],
    faces: Sequence[Face],
    corners: Sequence[Corners],
    names: Sequence[str],
) -> list[tuple[Face, Corners, str, float]]:
    """Each face that has room for a label, where it stands, what it says, and the size of its letters."""

    def measured(text: str, size: float) -> tuple[float, float]:
        extent = brush.textbbox((0, 0), text, _font(size), anchor="lt")
        return extent[2] + size / 2, extent[3] + size / 2

    texts = [label_of(face, name) for face, name in zip(faces, names, strict=True)]
    sizes = [_size(box, picture) for box in corners]
    for i, text in enumerate(texts):  # a narrow picture has no room for large letters
        while sizes[i] > _SMALLEST and measured(text, sizes[i])[0] > picture[0]:
            sizes[i] -= 1
    full = [measured(*each) for each in zip(texts, sizes, strict=True)]
    alone = [name if len(faces) > 1 and name else text for name, text in zip(names, texts, strict=True)]
    short = [measured(*each) for each in zip(alone, sizes, strict=True)]
    found = places(corners, short, full, (picture[0] - 1, picture[1] - 1))
    return [
        (face, spot[0], text if spot[1] else name, size)
        for face, spot, text, name, size in zip(faces, found, texts, alone, sizes, strict=True)
        if spot
    ]


def _bars(
    brush: "ImageDraw",
    picture: tuple[int, int],
    face: Face,
    box: Corners,
    taken: Sequence[Corners],
    corners: Sequence[Corners],
) -> Corners:
    """A table of the probabilities beside a face: names, bars on grey, and numbers."""
    size = max(_SMALLEST, round(_size(box, picture) * 0.75))
    font, gap, row = _font(size), size / 2, round(size * 1.35)
    names = max((brush.textlength(label, font) for label in face.probabilities), default=0.0)
    numbers, bar = brush.textlength(">99%", font), 5 * size
    width, height = names + bar + numbers + 4 * gap, row * len(face.probabilities) + gap
    middle = (box[0] + box[2] - width) / 2
    corner = [
        (box[2] + gap, box[1]),
        (box[0] - gap - width, box[1]),
        (middle, box[3] + gap),
        (middle, box[1] - gap - height),
    ]
    places = []
    for x, y in [*corner, (box[0], box[3] - height)]:
        left, top = max(0, min(x, picture[0] - 1 - width)), max(0, min(y, picture[1] - 1 - height))
        places.append((left, top, left + width, top + height))
    left, top, right, bottom = panel = _best(places, picture, taken, corners)
    brush.rectangle(panel, fill=(32, 32, 32), outline="black")
    for i, (label, prob) in enumerate(face.probabilities.items()):
        y = top + gap / 2 + i * row
        start = left + gap + names + gap
        ink = (255, 255, 255) if label == face.expression else (200, 200, 200)
        brush.text((left + gap, y + row / 2), label, ink, font, anchor="lm")
        brush.rectangle((start, y + row * 0.2, start + bar, y + row * 0.8), fill=(80, 80, 80))
        if (length := bar * prob) >= 1:
            brush.rectangle(
                (start, y + row * 0.2, start + length, y + row * 0.8), fill=colour_of(label, face.probabilities)
            )
        brush.text((right - gap, y + row / 2), _percent(prob), ink, font, anchor="rm")
    return panel


@lru_cache(64)
def _font(size: float) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _corners(face: Face, zoom: int, size: tuple[int, int]) -> Corners:
    """The box within the picture; all of it where the picture is the face."""
    x, y, width, height = face.box or (0, 0, size[0] / zoom, size[1] / zoom)
    left, top = max(0, x * zoom), max(0, y * zoom)
    right, bottom = min(size[0] - 1, (x + width) * zoom), min(size[1] - 1, (y + height) * zoom)
    return left, top, max(left, right), max(top, bottom)


def _grown(box: Corners, by: float) -> Corners:
    return box[0] - by, box[1] - by, box[2] + by, box[3] + by


def _best(
    places: Sequence[Corners], size: tuple[int, int], taken: Sequence[Corners], corners: Sequence[Corners]
) -> Corners:
    """Of places for a table, the first of those that hide the least: of labels and others like it, and of faces."""

    def hidden(place: Corners) -> float:
        out = max(0, -place[1]) + max(0, place[3] - size[1])
        others = 3 * sum(_overlap(place, other) for other in taken)
        return 10 * out * (place[2] - place[0]) + others + sum(_overlap(place, face) for face in corners)

    return min(places, key=hidden)


def _overlap(a: Corners, b: Corners) -> float:
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
