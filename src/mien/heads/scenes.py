"""Pictures of several figures over photographs, with annotations: what a head detector can be tried on."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from mien.errors import ReadError
from mien.faces import find_pictures, open_picture
from mien.files import whole
from mien.heads.annotations import Head, Picture, write_annotations
from mien.heads.figure import Figure, draw
from mien.heads.makehuman import random_colors

VISIBLE = 0.5
"""The share of a head that must be seen."""


def make_scene(
    figure: Callable[[np.random.Generator], Figure],
    photographs: Sequence[np.ndarray],
    rng: np.random.Generator,
    size: int = 128,
    heights: tuple[float, float] = (18, 64),
    most: int = 4,
) -> tuple[np.ndarray, list[Head]]:
    """A picture (size, size, 3) uint8 RGB of up to `most` figures, the far ones first, over a cut of a photograph.

    figure: makes one of a shape drawn by chance, such as `MakeHuman.figure`. photographs: (H, W, 3) uint8, without
    people. heights: of heads in pixels, between which logarithms are even. Yaw is even over all directions; pitch and
    roll are about 0, with deviations of 18 and 12 degrees. One picture in ten has no heads. A figure that would hide
    more than half of a head behind it is left out.
    """
    scene = cut(photographs[rng.integers(len(photographs))], rng, size)
    count = 0 if rng.random() < 0.1 else int(rng.integers(1, most + 1))
    heads, owner = [], np.zeros((size, size), int)  # which head is seen at a pixel
    areas = []
    for height in np.sort(np.exp(rng.uniform(*np.log(heights), count))):
        angles = np.array(
            [np.clip(rng.normal(0, 18), -60, 60), rng.uniform(-180, 180), np.clip(rng.normal(0, 12), -45, 45)]
        )
        light = np.array([rng.normal(), -abs(rng.normal()), -abs(rng.normal()) - 0.3])
        body = (0, angles[1] + rng.normal(0, 25), 0)
        sprite = draw(figure(rng), angles, height, random_colors(rng), light, body=body, distance=rng.uniform(5, 20))
        x, y, w, h = sprite.box
        if w > size or h > size:
            continue
        left, top = round(rng.uniform(0, size - w) - x), round(rng.uniform(0, size - h) - y)
        box = np.clip([x + left, y + top, x + left + w, y + top + h], 0, size)
        rows, columns = _shared(top, sprite.cover.shape[0], size), _shared(left, sprite.cover.shape[1], size)
        inner = np.s_[rows[0] - top : rows[1] - top, columns[0] - left : columns[1] - left]
        outer = np.s_[rows[0] : rows[1], columns[0] : columns[1]]
        after = owner.copy()
        after[outer][sprite.cover[inner] > 0.5] = 0
        after[outer][sprite.head[inner] > 0.5] = len(heads) + 1
        if any((after == i + 1).sum() < VISIBLE * area for i, area in enumerate(areas)):
            continue  # it would hide another head
        cover = sprite.cover[inner][..., None]
        scene[outer] = np.uint8(sprite.image[inner] * cover + scene[outer] * (1 - cover))
        owner = after
        areas.append((sprite.head > 0.5).sum())
        corner, far = box[:2], box[2:]
        heads.append(Head(tuple(map(float, (*corner, *(far - corner)))), tuple(map(float, angles))))
    return disturb(scene, rng), heads


def _shared(start: int, length: int, size: int) -> tuple[int, int]:
    return max(start, 0), max(min(start + length, size), max(start, 0))


def cut(photograph: np.ndarray, rng: np.random.Generator, size: int) -> np.ndarray:
    """A square of a photograph, half to all of its shorter side wide, perhaps mirrored, in another light."""
    shorter = min(photograph.shape[:2])
    side = int(rng.uniform(0.5, 1) * shorter)
    top, left = (int(rng.integers(0, length - side + 1)) for length in photograph.shape[:2])
    square = cv2.resize(photograph[top : top + side, left : left + side], (size, size), interpolation=cv2.INTER_AREA)
    if rng.random() < 0.5:
        square = square[:, ::-1]
    return np.uint8(np.clip(square * rng.uniform(0.5, 1.2) * rng.uniform(0.85, 1.15, 3), 0, 255))


def disturb(scene: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A little blur and noise over figures and photograph alike, so that sharpness gives neither away."""
    if rng.random() < 0.6:
        scene = cv2.GaussianBlur(scene, (0, 0), rng.uniform(0.3, 0.9))
    return np.uint8(np.clip(scene + rng.normal(0, rng.uniform(0, 6), scene.shape), 0, 255))


def make_scenes(
    out: str | os.PathLike[str],
    figure: Callable[[np.random.Generator], Figure],
    photographs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    count: int,
    seed: int = 0,
    **options,
) -> Path:
    """Write `count` scenes as PNG files into the folder `out`, and `annotations.json`, whose path is given back.

    photographs: folders and files of pictures without people. seed: 0 or more; the same gives the same pictures.
    options: those of `make_scene`.

    Raises ReadError where there are no photographs, or one cannot be read.
    """
    out = Path(out)
    sources = [photographs] if isinstance(photographs, str | os.PathLike) else list(photographs)
    names = [name for source in sources for name in find_pictures([source])]
    if not names:
        raise ReadError(", ".join(map(str, sources)), "no photographs there")
    images = [np.ascontiguousarray(open_picture(name)) for name in names]
    out.mkdir(parents=True, exist_ok=True)
    pictures = []
    for number in range(count):
        scene, heads = make_scene(figure, images, np.random.default_rng((seed, number)), **options)
        path = out / f"{number:05}.png"
        with whole(path) as file:
            file.write(cv2.imencode(".png", scene[..., ::-1])[1].tobytes())
        pictures.append(Picture(path, scene.shape[1::-1], tuple(heads)))
    write_annotations(path := out / "annotations.json", pictures)
    return path
