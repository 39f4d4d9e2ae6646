"""A figure, the mesh of a head on shoulders, and a painter that draws it turned as it is to be."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from mien.heads.angles import to_rotation

REGIONS = ("skin", "hair", "lips", "white", "iris", "cloth")
"""What a face of a mesh shows."""


@dataclass(frozen=True, eq=False)
class Figure:
    """The mesh of a head on shoulders, at rest: it looks along -z, x is to its left, y down.

    vertices: (V, 3). faces: (F, 4) numbers of vertices, anticlockwise as seen from outside; a triangle's last one is
    there twice.
    region: (F,) numbers of REGIONS. head: (V,) whether a vertex is of the head itself, about which its box goes.
    bend: (V,) how far a vertex follows the head rather than the shoulders, 0 to 1. pivot: (3,) where the neck bends.
    """

    vertices: np.ndarray
    faces: np.ndarray
    region: np.ndarray
    head: np.ndarray
    bend: np.ndarray
    pivot: np.ndarray


@dataclass(frozen=True, eq=False)
class Sprite:
    """A figure as it was drawn: image (H, W, 3) uint8, cover (H, W) float 0 to 1, and the same of its head alone; box
    (4,) x, y, width, height of the head."""

    image: np.ndarray
    cover: np.ndarray
    head: np.ndarray
    box: np.ndarray


def draw(
    figure: Figure,
    angles: Sequence[float],
    height: float,
    colors: np.ndarray,
    light: Sequence[float] = (0.3, -0.5, -0.8),
    *,
    body: Sequence[float] | None = None,
    distance: float = 12.0,
    finer: int = 3,
) -> Sprite:
    """Draw a figure whose head is turned by `angles`, in perspective, so that its head is about `height` pixels high.

    angles: degrees of pitch, yaw, roll of the head, as the camera sees it; body: of the shoulders (default: its yaw).
    colors: (6, 3) RGB of REGIONS, 0 to 255. light: where it comes from, in the camera's axes.
    distance: of the camera, in heights of the head. finer: how many times as large it is painted before it is shrunk.
    """
    turn = to_rotation(np.asarray(angles)), to_rotation(np.asarray((0, angles[1], 0) if body is None else body))
    rest = figure.vertices - figure.pivot
    blend = figure.bend[:, None]
    points = blend * (rest @ turn[0].T) + (1 - blend) * (rest @ turn[1].T)
    head = points[figure.head]
    tall = np.ptp(rest[figure.head][:, 1])
    points, head = points - head.mean(0), head - head.mean(0)
    flat = points[:, :2] / (1 + points[:, 2:] / (distance * tall)) * (height * finer / tall)
    corner, far = flat.min(0) - finer, flat.max(0) + finer
    size = (np.ceil((far - corner) / finer).astype(int)) * finer  # width, height
    flat = flat - corner
    quads, solid = flat[figure.faces], points[figure.faces]
    normal = np.cross(solid[:, 2] - solid[:, 0], solid[:, 3] - solid[:, 1])
    normal /= np.linalg.norm(normal, axis=1, keepdims=True) + 1e-12
    one, other = quads[:, 2] - quads[:, 0], quads[:, 3] - quads[:, 1]  # diagonals
    seen = np.flatnonzero(one[:, 0] * other[:, 1] < one[:, 1] * other[:, 0])
    order = seen[np.argsort(-solid[seen, :, 2].mean(1), kind="stable")]
    toward = np.asarray(light, float) / np.linalg.norm(light)
    shade = 0.45 + 0.6 * np.clip(normal @ toward, 0, None)
    paint = np.clip(colors[figure.region] * shade[:, None], 0, 255)
    of_head = figure.head[figure.faces].all(1)
    canvas = np.zeros((size[1], size[0], 3), np.uint8)
    cover = np.zeros((size[1], size[0]), np.uint8)
    pixels = np.rint(quads * 16).astype(np.int32)
    for i in order:
        cv2.fillConvexPoly(canvas, pixels[i], paint[i].tolist(), cv2.LINE_8, 4)
        cv2.fillConvexPoly(cover, pixels[i], 255 if of_head[i] else 128, cv2.LINE_8, 4)
    small = (size[0] // finer, size[1] // finer)
    anything, of_it = (
        cv2.resize(np.float32(mask), small, interpolation=cv2.INTER_AREA) for mask in (cover > 0, cover > 200)
    )
    image = cv2.resize(np.float32(canvas), small, interpolation=cv2.INTER_AREA) / np.maximum(anything, 1e-6)[..., None]
    outline = flat[figure.head] / finer
    low, high = outline.min(0), outline.max(0)
    return Sprite(np.uint8(np.clip(image, 0, 255)), anything, of_it, np.concatenate([low, high - low]))
