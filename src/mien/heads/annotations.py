"""Which heads are in which pictures, where, and how they are turned: a JSON file."""

import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mien.errors import ReadError
from mien.files import whole
from mien.heads.angles import LABELS, encode

VERSION = 1


@dataclass(frozen=True)
class Head:
    """A head in a picture.

    box: x, y, width, height in pixels.
    angles: degrees of pitch, yaw, roll, as `mien.heads.angles` has them.
    score: how sure a network is of it, 0 to 1; None of a head that was annotated.
    """

    box: tuple[float, float, float, float]
    angles: tuple[float, float, float]
    score: float | None = None

    def to_json(self) -> dict[str, Any]:
        found = {"box": [round(v, 2) for v in self.box]}
        found |= {label: round(angle, 2) for label, angle in zip(LABELS, self.angles, strict=True)}
        return found if self.score is None else found | {"score": round(self.score, 4)}


@dataclass(frozen=True)
class Picture:
    """A picture and the heads in it.

    path: of the picture.
    size: width and height in pixels.
    heads: all of them; none is ().
    """

    path: Path
    size: tuple[int, int]
    heads: tuple[Head, ...]


def write_annotations(path: str | os.PathLike[str], pictures: Iterable[Picture]) -> None:
    """Write an annotations file, whole or not at all.

    path: of the file, whose folder is made where it is missing.
    pictures: those of the file, named as they lie from its folder.
    """
    path = Path(path)
    entries = [
        {
            "image": os.path.relpath(picture.path, path.parent),
            "width": picture.size[0],
            "height": picture.size[1],
            "heads": [head.to_json() for head in picture.heads],
        }
        for picture in pictures
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as file:
        lines = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries)
        file.write(f'{{"mien_heads": {VERSION}, "pictures": [\n{lines}\n]}}\n'.encode())


def read_annotations(path: str | os.PathLike[str]) -> list[Picture]:
    """The pictures of an annotations file, every field of it checked.

        {"mien_heads": 1, "pictures": [
          {"image": "a.jpg", "width": 640, "height": 480, "heads": [
            {"box": [x, y, width, height], "pitch": 0, "yaw": -170, "roll": 5}]}]}

    Boxes are in pixels and lie within the picture, angles in degrees: pitch and roll from -90 to 90, yaw from -180 to
    180. `image` lies from the file's folder; that it is there is seen when it is read.

    Raises ReadError, naming the file, the picture and the head, for the first thing that is missing or out of place.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise ReadError(path, (error.strerror or str(error)).lower()) from error
    except (ValueError, RecursionError) as error:
        raise ReadError(path, f"no JSON ({error})") from error
    if not isinstance(content, dict) or content.get("mien_heads") != VERSION:
        raise ReadError(path, f'no annotations of heads: it does not begin with "mien_heads": {VERSION}')
    pictures = content.get("pictures")
    if not isinstance(pictures, list) or not pictures:
        raise ReadError(path, 'has no "pictures"')
    return [_picture(entry, path, number) for number, entry in enumerate(pictures)]


def _picture(entry: Any, path: Path, number: int) -> Picture:
    where = f"pictures[{number}]"
    if not isinstance(entry, dict) or not isinstance(entry.get("image"), str) or not entry["image"]:
        raise ReadError(path, f'{where} has no "image"')
    where = f"{where} ({entry['image']})"
    size = entry.get("width"), entry.get("height")
    if not all(type(side) is int and side > 0 for side in size):
        raise ReadError(path, f'{where} has no "width" and "height" in pixels')
    if not isinstance(entry.get("heads"), list):
        raise ReadError(path, f'{where} has no "heads" (an empty list where there are none)')
    try:
        heads = tuple(_head(head, i, size) for i, head in enumerate(entry["heads"]))
    except ValueError as error:
        raise ReadError(path, f"{where}, {error}") from error
    return Picture(path.parent / entry["image"], size, heads)


def _head(entry: Any, number: int, size: tuple[int, int]) -> Head:
    if not isinstance(entry, dict):
        raise ValueError(f"heads[{number}] is no object")
    if missing := [name for name in ("box", *LABELS) if name not in entry]:
        raise ValueError(f"heads[{number}] has no {', '.join(missing)}")
    box, angles = entry["box"], [entry[label] for label in LABELS]
    if not isinstance(box, list) or len(box) != 4 or not all(map(_number, box)):
        raise ValueError(f"heads[{number}] has a box that is not four numbers: {box!r}")
    x, y, width, height = box
    if not (
        x >= 0 and y >= 0 and width > 0 and height > 0 and x + width <= size[0] + 0.01 and y + height <= size[1] + 0.01
    ):
        raise ValueError(f"heads[{number}] has the box {box}, which does not lie within {size[0]}×{size[1]} pixels")
    if not all(map(_number, angles)):
        raise ValueError(f"heads[{number}] has an angle that is no number")
    try:
        encode(np.array(angles))
    except ValueError as error:
        raise ValueError(f"heads[{number}] has {error}") from error
    return Head((x, y, width, height), tuple(map(float, angles)))


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
